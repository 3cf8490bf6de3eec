// requantize (SPEC.md 2.3): result = saturate(floor((acc * mult + 2^(shift-1)) / 2^shift)), ties up.
//
// acc    INT32, |acc| < 2^31
// mult   [0, 2^31)
// shift  [1, 62]
// wide   0: INT8 result, sign-extended to 16 bits; 1: INT16 result
module requantize (
    input  logic signed [31:0] acc,
    input  logic        [30:0] mult,
    input  logic        [5:0]  shift,
    input  logic               wide,
    output logic signed [15:0] result
);
  // |acc * mult| < 2^62: with the rounding constant, below 2^61 + 2^62, the sum fits 64 bits.
  logic signed [63:0] product, half, rounded, low, high, clamped;

  always_comb begin
    product = 64'(acc) * $signed({33'b0, mult});
    half = 64'sd1 <<< (shift - 6'd1);
    rounded = (product + half) >>> shift;
    low = wide ? -64'sd32768 : -64'sd128;
    high = wide ? 64'sd32767 : 64'sd127;
    clamped = rounded < low ? low : rounded > high ? high : rounded;
  end

  assign result = 16'(clamped);
endmodule
