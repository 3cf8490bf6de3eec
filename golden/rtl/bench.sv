// Reads vectors/*.mem with $readmemh, checks requantize and gemm_tile. Run it in this folder:
//
//     iverilog -g2012 -Ivectors -o bench requantize.sv gemm_tile.sv bench.sv && vvp -n bench
//
// README.md has the line for Verilator.
//
// The last line is PASS and the number of results compared, or FAIL and the first that differs.
`timescale 1ns / 1ns
`include "sizes.svh"

module bench;
  localparam int R = `REQUANTIZE_ROWS, M = `TILE_M, K = `TILE_K, N = `TILE_N;

  logic [31:0] acc[0:R-1], scale_mult[0:R-1];
  logic [7:0]  scale_shift[0:R-1], scale_wide[0:R-1];
  logic [15:0] scale_expected[0:R-1];
  logic [7:0]  x[0:M*K-1], weight[0:N*K-1], shift[0:N-1];
  logic [31:0] bias[0:N-1], mult[0:N-1];
  logic [15:0] expected[0:M*N-1];

  logic signed [31:0] one_acc;
  logic [30:0] one_mult;
  logic [5:0] one_shift;
  logic one_wide;
  logic signed [15:0] one_result;
  requantize unit (
      .acc(one_acc), .mult(one_mult), .shift(one_shift), .wide(one_wide), .result(one_result)
  );

  logic clock = 0, load = 0, step = 0;
  logic signed [7:0] x_k;
  logic [8*N-1:0] weight_k;
  logic [32*N-1:0] biases;
  logic [31*N-1:0] mults;
  logic [6*N-1:0] shifts;
  logic [16*N-1:0] row;
  gemm_tile #(.N(N)) tile (
      .clock(clock), .load(load), .step(step), .x(x_k), .weight(weight_k),
      .bias(biases), .mult(mults), .shift(shifts), .wide(1'b0), .row(row)
  );

  int compared = 0, failed = 0;

  task check(input string what, input int at, input logic [15:0] found, input logic [15:0] wanted);
    compared++;
    if (found !== wanted) begin
      if (failed == 0)
        $display("first mismatch: %s[%0d] is %h, expected %h", what, at, found, wanted);
      failed++;
    end
  endtask

  task tick;
    #1 clock = 1;
    #1 clock = 0;
  endtask

  initial begin
    $readmemh("vectors/requantize_acc.mem", acc);
    $readmemh("vectors/requantize_mult.mem", scale_mult);
    $readmemh("vectors/requantize_shift.mem", scale_shift);
    $readmemh("vectors/requantize_wide.mem", scale_wide);
    $readmemh("vectors/requantize_expected.mem", scale_expected);
    $readmemh("vectors/tile_x.mem", x);
    $readmemh("vectors/tile_weight.mem", weight);
    $readmemh("vectors/tile_bias.mem", bias);
    $readmemh("vectors/tile_mult.mem", mult);
    $readmemh("vectors/tile_shift.mem", shift);
    $readmemh("vectors/tile_expected.mem", expected);

    for (int i = 0; i < R; i++) begin
      one_acc = acc[i];
      one_mult = scale_mult[i][30:0];
      one_shift = scale_shift[i][5:0];
      one_wide = scale_wide[i][0];
      #1 check("requantize", i, one_result, scale_expected[i]);
    end

    for (int n = 0; n < N; n++) begin
      biases[32*n+:32] = bias[n];
      mults[31*n+:31] = mult[n][30:0];
      shifts[6*n+:6] = shift[n][5:0];
    end
    for (int m = 0; m < M; m++) begin
      load = 1;
      tick;
      load = 0;
      step = 1;
      for (int k = 0; k < K; k++) begin
        x_k = x[m*K+k];
        for (int n = 0; n < N; n++) weight_k[8*n+:8] = weight[n*K+k];
        tick;
      end
      step = 0;
      #1;
      for (int n = 0; n < N; n++) check("tile", m * N + n, row[16*n+:16], expected[m*N+n]);
    end

    if (failed != 0) $display("FAIL %0d of %0d", failed, compared);
    else $display("PASS %0d", compared);
    $finish(0);
  end
endmodule
