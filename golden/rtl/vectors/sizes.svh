`define REQUANTIZE_ROWS 348
`define TILE_M 5
`define TILE_K 24
`define TILE_N 4
