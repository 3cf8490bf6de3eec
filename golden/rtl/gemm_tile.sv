// One row of `linear` (SPEC.md 4.3) at a time: N output channels in parallel, one element of x per clock.
//
// Raise `load` for a clock: the accumulators take the biases. Then K clocks with `step`: x[k] and the k-th column of the
// weights, channel 0 in the low byte. The requantized row stands at `row` afterwards, channel 0 in the low 16 bits.
module gemm_tile #(
    parameter int N = 4
) (
    input  logic                 clock,
    input  logic                 load,
    input  logic                 step,
    input  logic signed [7:0]    x,
    input  logic        [8*N-1:0]  weight,
    input  logic        [32*N-1:0] bias,
    input  logic        [31*N-1:0] mult,
    input  logic        [6*N-1:0]  shift,
    input  logic                 wide,
    output logic        [16*N-1:0] row
);
  generate
    for (genvar n = 0; n < N; n++) begin : lane
      logic signed [31:0] acc;
      logic signed [7:0]  w;
      assign w = weight[8*n+:8];

      always_ff @(posedge clock)
        if (load) acc <= bias[32*n+:32];
        else if (step) acc <= acc + 32'(x) * 32'(w);

      requantize scale (
          .acc(acc),
          .mult(mult[31*n+:31]),
          .shift(shift[6*n+:6]),
          .wide(wide),
          .result(row[16*n+:16])
      );
    end
  endgenerate
endmodule
