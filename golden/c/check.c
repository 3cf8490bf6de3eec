/* Checks a requantizer and a GEMM tile against vectors.h, in C99 without any implementation-defined shift.
 *
 *     cc -std=c99 -Wall -Wextra -Werror -o check check.c && ./check
 *
 * The last line is PASS and the number of results compared, or FAIL; the exit status is 0 or 1. */
#include <inttypes.h>
#include <stdint.h>
#include <stdio.h>

#include "vectors.h"

static int compared, failed;

/* floor(x / 2^n), 0 <= n <= 62: >> of a negative number is left to the compiler in C99. */
static int64_t floor_shift(int64_t x, int n)
{
    return x >= 0 ? (int64_t)((uint64_t)x >> n) : -1 - (int64_t)((uint64_t)(-1 - x) >> n);
}

/* SPEC.md 2.3. |acc| < 2^31, 0 <= mult < 2^31, 1 <= shift <= 62: the sum is below 2^63. */
static int32_t requantize(int32_t acc, int32_t mult, int shift, int wide)
{
    const int64_t low = wide ? -32768 : -128, high = wide ? 32767 : 127;
    const int64_t rounded = floor_shift((int64_t)acc * mult + ((int64_t)1 << (shift - 1)), shift);
    return (int32_t)(rounded < low ? low : rounded > high ? high : rounded);
}

/* SPEC.md 4.3 for one element: x [K], weight [K]. */
static int32_t linear(const int8_t *x, const int8_t *weight, int32_t bias, int32_t mult, int shift)
{
    int32_t acc = bias;
    for (int k = 0; k < TILE_K; k++)
        acc += (int32_t)x[k] * weight[k];
    return requantize(acc, mult, shift, 0);
}

static void check(const char *what, int at, int32_t found, int32_t expected)
{
    compared++;
    if (found != expected && failed++ == 0)
        printf("first mismatch: %s[%d] is %" PRId32 ", expected %" PRId32 "\n", what, at, found, expected);
}

int main(void)
{
    for (int i = 0; i < REQUANTIZE_ROWS; i++)
        check("requantize", i,
              requantize(requantize_acc[i], requantize_mult[i], requantize_shift[i], requantize_wide[i]),
              requantize_expected[i]);
    for (int m = 0; m < TILE_M; m++)
        for (int n = 0; n < TILE_N; n++)
            check("tile", m * TILE_N + n,
                  linear(tile_x + m * TILE_K, tile_weight + n * TILE_K, tile_bias[n], tile_mult[n], tile_shift[n]),
                  tile_expected[m * TILE_N + n]);
    if (failed)
        printf("FAIL %d of %d\n", failed, compared);
    else
        printf("PASS %d\n", compared);
    return failed != 0;
}
