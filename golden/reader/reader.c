/* An independent reader of intseg models, written from SPEC.md: the second opinion on what a model computes.
 *
 *     cc -std=c99 -O2 -o reader reader.c
 *     ./reader MODEL.flat IMAGE.ppm [LABELS.pgm]
 *
 * MODEL.flat is written by `intseg flatten` (README.md beside this file describes every byte), IMAGE.ppm is a binary
 * PPM (P6, maximum 255). Prints the SHA-256 of the output of every node in every window, of the scores summed over
 * the windows and of the labels, and of a classifier the best classes. Exit code 0, or 2 and one line on stderr.
 *
 * Values of nodes are held as int64_t whatever their dtype is, so that no formula of SPEC.md needs a cast; section
 * numbers in the comments are its sections. Plain C99: no undefined behaviour, any byte order, no dependencies.
 */
#include <inttypes.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { I8 = 1, U8, I16, U16, I32, I64 };
enum { NEAREST, BILINEAR };
enum { GRID, PIXEL };
enum { SEGMENTATION, CLASSIFICATION };
enum { PAPER, NORMALIZED, ALIGNED };
enum { HEADER = 192, NODE = 96, TENSOR = 32, MAX_AXIS = 65535, MAX_NODES = 4096, MAX_TENSORS = 32768 };
#define MAX_ELEMENTS ((uint64_t)1 << 30)
#define IS_TENSOR ((uint32_t)1 << 31)
#define NONE UINT32_MAX
#define LIMIT31 ((int64_t)1 << 31)

/* A tensor of the file (raw), a computed value (v), or only what one looks like. */
struct array {
    int dtype, rank;
    int bits; /* of an element of a packed INT8 tensor (section 6.1), else 0 */
    uint32_t shape[4];
    uint64_t count;
    int64_t row_sum; /* largest sum of the last axis where it is known (section 3.5), else 0 */
    const uint8_t *raw;
    int64_t *v;
};

struct node {
    struct array out;
    const char *name;
    uint32_t op, inputs[2], params[4], last_use;
    int32_t attrs[8];
};

struct model {
    uint8_t *bytes;
    uint64_t size;
    uint32_t node_count, tensor_count, output, window[2], stride[2], patch, classes, upsample, merge, working[2], task;
    uint8_t pad[3];
    const char *name;
    uint32_t class_names;
    struct node *nodes;
    struct array *tensors;
    struct array image; /* one window */
};

/* What an op sees. */
struct call {
    const struct array *in[2], *param[4];
    const int32_t *attr;
    struct array *out;
};

static void die(const char *format, ...)
{
    va_list arguments;
    va_start(arguments, format);
    fputs("reader: ", stderr);
    vfprintf(stderr, format, arguments);
    fputc('\n', stderr);
    va_end(arguments);
    exit(2);
}

static void *allocate(uint64_t count, size_t size)
{
    void *memory = NULL;
    if (count <= SIZE_MAX / size)
        memory = calloc(count ? (size_t)count : 1, size);
    if (memory == NULL)
        die("out of memory: %" PRIu64 " elements of %lu bytes", count, (unsigned long)size);
    return memory;
}

/* ------------------------------------------------------------------------------------------ SHA-256 (FIPS 180-4) */

struct sha256 {
    uint32_t state[8];
    uint64_t length;
    uint8_t block[64];
};

static const uint32_t ROUND[64] = {
    0x428a2f98, 0x71374491, 0xb5c0fbcf, 0xe9b5dba5, 0x3956c25b, 0x59f111f1, 0x923f82a4, 0xab1c5ed5, 0xd807aa98, 0x12835b01,
    0x243185be, 0x550c7dc3, 0x72be5d74, 0x80deb1fe, 0x9bdc06a7, 0xc19bf174, 0xe49b69c1, 0xefbe4786, 0x0fc19dc6, 0x240ca1cc,
    0x2de92c6f, 0x4a7484aa, 0x5cb0a9dc, 0x76f988da, 0x983e5152, 0xa831c66d, 0xb00327c8, 0xbf597fc7, 0xc6e00bf3, 0xd5a79147,
    0x06ca6351, 0x14292967, 0x27b70a85, 0x2e1b2138, 0x4d2c6dfc, 0x53380d13, 0x650a7354, 0x766a0abb, 0x81c2c92e, 0x92722c85,
    0xa2bfe8a1, 0xa81a664b, 0xc24b8b70, 0xc76c51a3, 0xd192e819, 0xd6990624, 0xf40e3585, 0x106aa070, 0x19a4c116, 0x1e376c08,
    0x2748774c, 0x34b0bcb5, 0x391c0cb3, 0x4ed8aa4a, 0x5b9cca4f, 0x682e6ff3, 0x748f82ee, 0x78a5636f, 0x84c87814, 0x8cc70208,
    0x90befffa, 0xa4506ceb, 0xbef9a3f7, 0xc67178f2};

static uint32_t rotate(uint32_t x, int n) { return x >> n | x << (32 - n); }

static void sha_block(struct sha256 *s)
{
    uint32_t w[64], h[8];
    int i;
    for (i = 0; i < 16; i++)
        w[i] = (uint32_t)s->block[4 * i] << 24 | (uint32_t)s->block[4 * i + 1] << 16
             | (uint32_t)s->block[4 * i + 2] << 8 | s->block[4 * i + 3];
    for (; i < 64; i++) {
        uint32_t a = w[i - 15], b = w[i - 2];
        w[i] = w[i - 16] + (rotate(a, 7) ^ rotate(a, 18) ^ a >> 3) + w[i - 7] + (rotate(b, 17) ^ rotate(b, 19) ^ b >> 10);
    }
    memcpy(h, s->state, sizeof h);
    for (i = 0; i < 64; i++) {
        uint32_t t1 = h[7] + (rotate(h[4], 6) ^ rotate(h[4], 11) ^ rotate(h[4], 25)) + ((h[4] & h[5]) ^ (~h[4] & h[6]))
                    + ROUND[i] + w[i];
        uint32_t t2 = (rotate(h[0], 2) ^ rotate(h[0], 13) ^ rotate(h[0], 22))
                    + ((h[0] & h[1]) ^ (h[0] & h[2]) ^ (h[1] & h[2]));
        memmove(h + 1, h, 7 * sizeof h[0]);
        h[4] += t1;
        h[0] = t1 + t2;
    }
    for (i = 0; i < 8; i++)
        s->state[i] += h[i];
}

static void sha_start(struct sha256 *s)
{
    static const uint32_t start[8] = {0x6a09e667, 0xbb67ae85, 0x3c6ef372, 0xa54ff53a,
                                      0x510e527f, 0x9b05688c, 0x1f83d9ab, 0x5be0cd19};
    memcpy(s->state, start, sizeof start);
    s->length = 0;
}

static void sha_byte(struct sha256 *s, uint8_t byte)
{
    s->block[s->length++ % 64] = byte;
    if (s->length % 64 == 0)
        sha_block(s);
}

static void sha_finish(struct sha256 *s, uint8_t digest[32])
{
    uint64_t bits = s->length * 8;
    int i;
    sha_byte(s, 0x80);
    while (s->length % 64 != 56)
        sha_byte(s, 0);
    for (i = 7; i >= 0; i--)
        sha_byte(s, (uint8_t)(bits >> 8 * i));
    for (i = 0; i < 32; i++)
        digest[i] = (uint8_t)(s->state[i / 4] >> (24 - 8 * (i % 4)));
}

static int width_of(int dtype) { return dtype <= U8 ? 1 : dtype <= U16 ? 2 : dtype == I32 ? 4 : 8; }

/* SHA-256 over the elements in C order, little-endian in their dtype; printed after `label`. */
static void print_digest(const char *label, const int64_t *v, uint64_t count, int dtype)
{
    struct sha256 s;
    uint8_t digest[32];
    uint64_t i;
    int b, width = width_of(dtype);
    sha_start(&s);
    for (i = 0; i < count; i++)
        for (b = 0; b < width; b++)
            sha_byte(&s, (uint8_t)((uint64_t)v[i] >> 8 * b));
    sha_finish(&s, digest);
    printf("%s ", label);
    for (b = 0; b < 32; b++)
        printf("%02x", digest[b]);
    putchar('\n');
}

/* ------------------------------------------------------------------------------------------ primitives (section 2) */

static int64_t min64(int64_t a, int64_t b) { return a < b ? a : b; }
static int64_t max64(int64_t a, int64_t b) { return a > b ? a : b; }

/* floor(x / 2^n): C leaves >> of a negative number to the compiler, so it shifts ~x, which is not negative. */
static int64_t asr(int64_t x, int n) { return x >= 0 ? x >> n : ~(~x >> n); }

/* floor(a / b), b > 0: C truncates. */
static int64_t floor_div(int64_t a, int64_t b) { return a >= 0 ? a / b : ~(~a / b); }

static int64_t rsr(int64_t x, int c) { return asr(x + ((int64_t)1 << (c - 1)), c); }

/* INT8, INT16, or b bits that INT8 holds, which the flat form writes as 16 b + 1. */
static int64_t saturate(int64_t x, int type)
{
    int64_t top = ((int64_t)1 << ((type > I64 ? type / 16 : type == I8 ? 8 : 16) - 1)) - 1;
    return max64(min64(x, top), -top - 1);
}

static int64_t requantize(int64_t x, int64_t mult, int shift, int type) { return saturate(rsr(x * mult, shift), type); }

static int64_t shift_left(int64_t x, int64_t n)
{
    return n >= 0 ? x * ((int64_t)1 << n) : asr(x, (int)min64(-n, 62));
}

static int64_t isqrt(int64_t v)
{
    int64_t r = 0, bit;
    for (bit = (int64_t)1 << 30; bit > 0; bit >>= 1)
        if ((r + bit) * (r + bit) <= v)
            r += bit;
    return r;
}

static int bit_length(int64_t v)
{
    int n = 0;
    for (; v > 0; v >>= 1)
        n++;
    return n;
}

static int64_t int_div(int64_t n, int64_t d, int k_out, int kind)
{
    int length;
    d = max64(d, 1);
    if (kind == PAPER)
        return asr((LIMIT31 - 1) / d * n, 32 - k_out);
    length = bit_length(d);
    return rsr(n * ((((int64_t)1 << 46) - 1) / shift_left(d, 31 - length)), length + 16 - k_out);
}

/* Gives i_b; *q is the power of two below it. */
static int64_t split_exp(int64_t x, int64_t i0, int k, int lam, int64_t *q)
{
    int64_t e = max64(x + asr(x, 1) - asr(x, 4), -lam * k * i0);
    *q = -e / i0;
    return asr(e + *q * i0, 1) + i0;
}

static int64_t shift_exp(int64_t x, int64_t i0, int k, int lam)
{
    int64_t q, i_b = split_exp(x, i0, k, lam, &q);
    return shift_left(i_b, k - q);
}

/* --------------------------------------------------------------------------------------------------- reading arrays */

static uint32_t read32(const uint8_t *p)
{
    return (uint32_t)p[0] | (uint32_t)p[1] << 8 | (uint32_t)p[2] << 16 | (uint32_t)p[3] << 24;
}

static int32_t signed32(uint32_t u) { return u < (uint32_t)1 << 31 ? (int32_t)u : -1 - (int32_t)~u; }

/* 6.1: `bits` bits from bit i bits on, low bits first, in two's complement. */
static int64_t packed_at(const uint8_t *raw, uint64_t i, int bits)
{
    uint64_t first = i * (uint64_t)bits, low = first % 8;
    int64_t u = raw[first / 8] >> low;
    if (low + (uint64_t)bits > 8)
        u |= (int64_t)raw[first / 8 + 1] << (8 - low);
    u &= ((int64_t)1 << bits) - 1;
    return u >> (bits - 1) ? u - ((int64_t)1 << bits) : u;
}

/* Element i of a tensor of the file. */
static int64_t at(const struct array *a, uint64_t i)
{
    const uint8_t *p = a->raw + i * (uint64_t)width_of(a->dtype);
    uint64_t u;
    if (a->bits)
        return packed_at(a->raw, i, a->bits);
    switch (a->dtype) {
    case U8: return p[0];
    case I8: return p[0] < 128 ? p[0] : (int64_t)p[0] - 256;
    case I16: u = (uint64_t)p[0] | (uint64_t)p[1] << 8; return u < 32768 ? (int64_t)u : (int64_t)u - 65536;
    case I32: return signed32(read32(p));
    default: u = read32(p) | (uint64_t)read32(p + 4) << 32; return u >> 63 ? -1 - (int64_t)~u : (int64_t)u;
    }
}

/* Elements of the last axis, and how many rows of it there are. */
static uint64_t last(const struct array *a) { return a->shape[a->rank - 1]; }
static uint64_t rows(const struct array *a) { return a->count / last(a); }

/* -------------------------------------------------------------------- ops (section 4): what they give, what they do
 *
 * A check refuses what section 5.2 refuses and sets dtype, rank and shape of the result; dtypes of inputs and
 * parameters and ranges of attributes come from the table at the end. Then run fills out->v.
 */

static const char *node_name = "";

static void need(int holds, const char *what)
{
    if (!holds)
        die("node %s: %s", node_name, what);
}

static void gives(struct array *out, int dtype, int rank, uint64_t a, uint64_t b, uint64_t c)
{
    uint64_t shape[3];
    int i;
    shape[0] = a, shape[1] = b, shape[2] = c;
    out->dtype = dtype;
    out->rank = rank;
    for (i = 0; i < rank; i++) {
        need(shape[i] >= 1 && shape[i] <= MAX_AXIS, "an axis of the result is not 1 to 65535 long");
        out->shape[i] = (uint32_t)shape[i];
    }
}

static void gives_like(struct array *out, const struct array *x, int dtype)
{
    out->dtype = dtype;
    out->rank = x->rank;
    memcpy(out->shape, x->shape, sizeof x->shape);
}

static int same_shape(const struct array *a, const struct array *b)
{
    return a->rank == b->rank && memcmp(a->shape, b->shape, (size_t)a->rank * sizeof a->shape[0]) == 0;
}

static int has_shape(const struct array *a, int rank, uint64_t first, uint64_t second)
{
    return a->rank == rank && a->shape[0] == first && (rank < 2 || a->shape[1] == second);
}

static void need_rank(const struct array *x, int rank) { need(x->rank == rank, "an input has the wrong number of axes"); }

static void need_range(const struct array *a, int64_t low, int64_t high, const char *what)
{
    uint64_t i;
    for (i = 0; i < a->count; i++)
        need(at(a, i) >= low && at(a, i) <= high, what);
}

static void need_scales(const struct array *mult, const struct array *shift)
{
    need_range(mult, 0, LIMIT31 - 1, "a mult is negative");
    need_range(shift, 1, 62, "a shift is not 1 to 62");
}

static int is_narrow(int32_t attr) { return attr % 16 == I8 && attr / 16 >= 4 && attr / 16 <= 7; }

/* The dtype of a result, of an attribute that is always there. */
static int out_type(int32_t attr)
{
    need(attr == I8 || attr == I16 || is_narrow(attr), "out is neither int4 to int8 nor int16");
    return attr == I16 ? I16 : I8;
}

/* The type of an INT8 result, of an attribute that may be absent. */
static int int8_type(int32_t attr)
{
    need(attr == 0 || is_narrow(attr), "out is not int4 to int7");
    return attr == 0 ? I8 : attr;
}

static int32_t dot(const int16_t *a, const int16_t *b, uint64_t count)
{
    int32_t sum = 0;
    uint64_t i;
    for (i = 0; i < count; i++)
        sum += (int32_t)a[i] * b[i];
    return sum;
}

/* 4.1 quantize_input */
static void check_quantize_input(const struct call *c)
{
    need_rank(c->in[0], 3);
    need(c->in[0]->shape[2] == 3, "the input does not have 3 channels");
    need(has_shape(c->param[0], 2, 3, 256), "table is not [3, 256]");
    gives_like(c->out, c->in[0], I8);
}

static void run_quantize_input(const struct call *c)
{
    uint64_t i;
    for (i = 0; i < c->out->count; i++)
        c->out->v[i] = at(c->param[0], i % 3 * 256 + (uint64_t)c->in[0]->v[i]);
}

/* 4.2 patchify: patch */
static void check_patchify(const struct call *c)
{
    uint32_t p = (uint32_t)c->attr[0];
    const uint32_t *n = c->in[0]->shape;
    need_rank(c->in[0], 3);
    need(n[0] % p == 0 && n[1] % p == 0, "the input is not a multiple of patch");
    gives(c->out, I8, 2, (uint64_t)(n[0] / p) * (n[1] / p), (uint64_t)p * p * n[2], 0);
}

static void run_patchify(const struct call *c)
{
    uint64_t p = (uint64_t)c->attr[0], height = c->in[0]->shape[0], width = c->in[0]->shape[1], depth = c->in[0]->shape[2];
    uint64_t y, x, ch;
    for (y = 0; y < height; y++)
        for (x = 0; x < width; x++)
            for (ch = 0; ch < depth; ch++)
                c->out->v[(y / p * (width / p) + x / p) * p * p * depth + (y % p * p + x % p) * depth + ch]
                    = c->in[0]->v[(y * width + x) * depth + ch];
}

/* 4.3 linear: out; weight, bias, mult, shift */
static void check_linear(const struct call *c)
{
    uint64_t n, k, width = c->param[0]->shape[0], depth = c->param[0]->shape[1];
    need_rank(c->in[0], 2);
    need(has_shape(c->param[0], 2, width, last(c->in[0])), "weight is not [N, K]");
    need(has_shape(c->param[1], 1, width, 0) && has_shape(c->param[2], 1, width, 0) && has_shape(c->param[3], 1, width, 0),
         "bias, mult and shift are not [N]");
    need_scales(c->param[2], c->param[3]);
    for (n = 0; n < width; n++) {
        int64_t bias = at(c->param[1], n), size = bias < 0 ? -bias : bias;
        for (k = 0; k < depth; k++) {
            int64_t w = at(c->param[0], n * depth + k);
            size += 128 * (w < 0 ? -w : w);
        }
        need(size < LIMIT31, "an accumulator may overflow");
    }
    gives(c->out, out_type(c->attr[0]), 2, c->in[0]->shape[0], width, 0);
}

static void run_linear(const struct call *c)
{
    uint64_t m, n, k, height = c->in[0]->shape[0], depth = c->in[0]->shape[1], width = c->out->shape[1];
    int16_t *x = allocate(height * depth, sizeof *x), *w = allocate(depth, sizeof *w);
    for (k = 0; k < height * depth; k++)
        x[k] = (int16_t)c->in[0]->v[k];
    for (n = 0; n < width; n++) {
        int64_t bias = at(c->param[1], n), mult = at(c->param[2], n);
        int shift = (int)at(c->param[3], n);
        for (k = 0; k < depth; k++)
            w[k] = (int16_t)at(c->param[0], n * depth + k);
        for (m = 0; m < height; m++)
            c->out->v[m * width + n] = requantize(dot(x + m * depth, w, depth) + bias, mult, shift, c->attr[0]);
    }
    free(x);
    free(w);
}

/* 4.4 add: mult_a, shift_a, mult_b, shift_b */
static void check_add(const struct call *c)
{
    int i;
    need(same_shape(c->in[0], c->in[1]), "the inputs differ in shape");
    for (i = 0; i < 4; i += 2)
        need(asr(c->attr[i], (int)min64(c->attr[i + 1] + 14, 62)) == 0, "a branch may overflow");
    gives_like(c->out, c->in[0], I16);
}

static void run_add(const struct call *c)
{
    uint64_t i;
    for (i = 0; i < c->out->count; i++)
        c->out->v[i] = saturate(rsr(c->in[0]->v[i] * c->attr[0], c->attr[1]) + rsr(c->in[1]->v[i] * c->attr[2], c->attr[3]), I16);
}

/* 4.5 layernorm: shift, out; mult, bias */
static void check_layernorm(const struct call *c)
{
    int64_t limit = (int64_t)1 << 61;
    need(has_shape(c->param[0], 1, last(c->in[0]), 0) && has_shape(c->param[1], 1, last(c->in[0]), 0),
         "mult and bias are not [D]");
    need_range(c->param[0], 1 - LIMIT31, LIMIT31 - 1, "a mult is -2^31");
    need_range(c->param[1], 1 - limit, limit - 1, "a bias is 2^61 or more in size");
    gives_like(c->out, c->in[0], out_type(c->attr[1]));
}

static void run_layernorm(const struct call *c)
{
    uint64_t row, j, depth = last(c->in[0]);
    for (row = 0; row < rows(c->in[0]); row++) {
        const int64_t *x = c->in[0]->v + row * depth;
        int64_t *y = c->out->v + row * depth, sum = 0, variance = 0, mean, f;
        for (j = 0; j < depth; j++)
            sum += x[j];
        mean = floor_div(2 * sum + (int64_t)depth, 2 * (int64_t)depth);
        for (j = 0; j < depth; j++)
            variance += (x[j] - mean) * (x[j] - mean);
        f = (LIMIT31 - 1) / max64(1, isqrt(variance));
        for (j = 0; j < depth; j++)
            y[j] = saturate(rsr(asr((x[j] - mean) * f, 1) * at(c->param[0], j) + at(c->param[1], j), c->attr[0]), c->attr[1]);
    }
}

/* 4.6 matmul: transpose_b, out; mult, shift */
static void check_matmul(const struct call *c)
{
    const struct array *a = c->in[0], *b = c->in[1], *mult = c->param[0];
    int r = a->rank, i, leading = r >= 2 && b->rank == r && mult->rank == r - 1;
    uint64_t depth, width;
    int64_t sum;
    for (i = 0; leading && i < r - 2; i++)
        leading = a->shape[i] == b->shape[i] && a->shape[i] == mult->shape[i];
    need(leading, "the leading axes of a, b and mult differ");
    depth = b->shape[c->attr[0] ? r - 1 : r - 2];
    width = b->shape[c->attr[0] ? r - 2 : r - 1];
    need(depth == last(a), "the inner axes of a and b differ");
    need(last(mult) == 1 || last(mult) == width, "mult is neither [..., 1] nor [..., N]");
    need(same_shape(mult, c->param[1]), "shift has not the shape of mult");
    need_scales(mult, c->param[1]);
    sum = (int64_t)depth * (a->dtype == I8 ? 128 : 32768);
    if (a->row_sum > 0)
        sum = min64(sum, a->row_sum);
    need(128 * sum < LIMIT31, "an accumulator may overflow");
    gives_like(c->out, a, out_type(c->attr[1]));
    c->out->shape[r - 1] = (uint32_t)width;
}

static void run_matmul(const struct call *c)
{
    const struct array *a = c->in[0], *mult = c->param[0];
    int transposed = c->attr[0];
    uint64_t height = a->shape[a->rank - 2], depth = last(a), width = last(c->out), scales = last(mult), batch, m, n, k;
    int16_t *x = allocate(height * depth, sizeof *x), *y = allocate(depth, sizeof *y);
    for (batch = 0; batch < a->count / (height * depth); batch++) {
        const int64_t *b = c->in[1]->v + batch * depth * width;
        for (k = 0; k < height * depth; k++)
            x[k] = (int16_t)a->v[batch * height * depth + k];
        for (n = 0; n < width; n++) {
            uint64_t s = batch * scales + (scales > 1 ? n : 0);
            for (k = 0; k < depth; k++)
                y[k] = (int16_t)b[transposed ? n * depth + k : k * width + n];
            for (m = 0; m < height; m++)
                c->out->v[(batch * height + m) * width + n]
                    = requantize(dot(x + m * depth, y, depth), at(mult, s), (int)at(c->param[1], s), c->attr[1]);
        }
    }
    free(x);
    free(y);
}

/* 3.5: the largest sum of a row of probabilities */
static int64_t probability_sum(const struct array *x, int k_out)
{
    return ((int64_t)1 << (k_out - 1)) + ((int64_t)last(x) + 1) / 2;
}

static int64_t row_max(const int64_t *x, uint64_t count)
{
    int64_t top = x[0];
    uint64_t j;
    for (j = 1; j < count; j++)
        top = max64(top, x[j]);
    return top;
}

/* 4.7 shiftmax: i0, k_inter, int_div_kind, out */
static void check_shiftmax(const struct call *c)
{
    int out = out_type(c->attr[3]);
    need((int64_t)c->attr[0] << c->attr[1] <= 32768, "i0 * 2^k_inter is above 2^15");
    gives_like(c->out, c->in[0], out);
    c->out->row_sum = probability_sum(c->in[0], out == I8 ? 8 : 16);
}

static void run_shiftmax(const struct call *c)
{
    uint64_t row, j, width = last(c->in[0]);
    for (row = 0; row < rows(c->in[0]); row++) {
        const int64_t *x = c->in[0]->v + row * width;
        int64_t *e = c->out->v + row * width, top = row_max(x, width), sum = 0;
        for (j = 0; j < width; j++)
            sum += e[j] = shift_exp(x[j] - top, c->attr[0], c->attr[1], 1);
        for (j = 0; j < width; j++)
            e[j] = saturate(int_div(e[j], sum, c->out->dtype == I8 ? 8 : 16, c->attr[2]), c->out->dtype);
    }
}

/* 4.8 softmax2: frac_bits, a1, a2 */
static void check_softmax2(const struct call *c)
{
    gives_like(c->out, c->in[0], I16);
    c->out->row_sum = probability_sum(c->in[0], 16);
}

static int64_t power2(int64_t t, int frac_bits, int64_t a1, int64_t a2)
{
    int64_t q = asr(t, frac_bits), f = (t - q * ((int64_t)1 << frac_bits)) * ((int64_t)1 << (15 - frac_bits));
    int64_t power = 32767 - asr(f * (a1 - asr(a2 * f, 15)), 15);
    return q == 0 ? power : q <= 15 ? rsr(power, (int)q) : 0;
}

static void run_softmax2(const struct call *c)
{
    uint64_t row, j, width = last(c->in[0]);
    for (row = 0; row < rows(c->in[0]); row++) {
        const int64_t *x = c->in[0]->v + row * width;
        int64_t *e = c->out->v + row * width, top = row_max(x, width), sum = 0;
        for (j = 0; j < width; j++)
            sum += e[j] = power2(top - x[j], c->attr[0], c->attr[1], c->attr[2]);
        for (j = 0; j < width; j++)
            e[j] = saturate(int_div(e[j], sum, 16, NORMALIZED), I16);
    }
}

/* 4.9 shift_gelu, 4.10 sigmoid_gelu: i0, k_inter, lam, int_div_kind, k_out, mult, shift, out */
static void check_gelu(const struct call *c)
{
    int8_type(c->attr[7]);
    need(c->attr[4] == 8 || c->attr[4] == 16, "k_out is neither 8 nor 16");
    need((int64_t)c->attr[0] << c->attr[1] < (int64_t)1 << 45, "i0 * 2^k_inter is 2^45 or more");
    gives_like(c->out, c->in[0], I8);
}

static int64_t times_1_6875(int64_t x) { return x + asr(x, 1) + asr(x, 3) + asr(x, 4); }

static void run_shift_gelu(const struct call *c)
{
    const int32_t *a = c->attr;
    uint64_t row, j, width = last(c->in[0]);
    for (row = 0; row < rows(c->in[0]); row++) {
        const int64_t *x = c->in[0]->v + row * width;
        int64_t *y = c->out->v + row * width, top = 0, i_b0, q_0;
        for (j = 0; j < width; j++)
            top = max64(top, times_1_6875(x[j]));
        i_b0 = split_exp(-top, a[0], a[1], a[2], &q_0);
        for (j = 0; j < width; j++) {
            int64_t q, i_b = split_exp(times_1_6875(x[j]) - top, a[0], a[1], a[2], &q);
            int64_t up = a[3] != ALIGNED ? 0 : q < q_0 ? q : q_0; /* 2.9 */
            int64_t e = shift_left(i_b, a[1] - q + up), e_0 = shift_left(i_b0, a[1] - q_0 + up);
            y[j] = requantize(x[j] * int_div(e, e + e_0, a[4], a[3]), a[5], a[6], int8_type(a[7]));
        }
    }
}

static void run_sigmoid_gelu(const struct call *c)
{
    const int32_t *a = c->attr;
    uint64_t i;
    for (i = 0; i < c->out->count; i++) {
        int64_t x = c->in[0]->v[i], p = times_1_6875(x), one = (int64_t)a[0] << a[1];
        int64_t e = shift_exp(p < 0 ? p : -p, a[0], a[1], a[2]);
        c->out->v[i] = requantize(x * int_div(p >= 0 ? one : e, one + e, a[4], a[3]), a[5], a[6], int8_type(a[7]));
    }
}

/* 4.11 gelu_table: table */
static void check_gelu_table(const struct call *c)
{
    need(has_shape(c->param[0], 1, 256, 0), "table is not [256]");
    gives_like(c->out, c->in[0], I8);
}

static void run_gelu_table(const struct call *c)
{
    uint64_t i;
    for (i = 0; i < c->out->count; i++)
        c->out->v[i] = at(c->param[0], (uint64_t)(c->in[0]->v[i] + 128));
}

/* 4.12 l2norm: mult, shift, out */
static void check_l2norm(const struct call *c)
{
    int8_type(c->attr[2]);
    gives_like(c->out, c->in[0], I8);
}

static void run_l2norm(const struct call *c)
{
    uint64_t row, j, depth = last(c->in[0]);
    for (row = 0; row < rows(c->in[0]); row++) {
        const int64_t *x = c->in[0]->v + row * depth;
        int64_t squares = 0, f;
        for (j = 0; j < depth; j++)
            squares += x[j] * x[j];
        f = (LIMIT31 - 1) / max64(1, isqrt(squares));
        for (j = 0; j < depth; j++)
            c->out->v[row * depth + j] = requantize(asr(x[j] * f, 1), c->attr[0], c->attr[1], int8_type(c->attr[2]));
    }
}

/* 4.13 concat */
static void check_concat(const struct call *c)
{
    need_rank(c->in[0], 2);
    need_rank(c->in[1], 2);
    need(c->in[0]->dtype == c->in[1]->dtype && last(c->in[0]) == last(c->in[1]), "the inputs differ in dtype or width");
    gives(c->out, c->in[0]->dtype, 2, (uint64_t)c->in[0]->shape[0] + c->in[1]->shape[0], last(c->in[0]), 0);
}

static void run_concat(const struct call *c)
{
    memcpy(c->out->v, c->in[0]->v, (size_t)c->in[0]->count * sizeof *c->out->v);
    memcpy(c->out->v + c->in[0]->count, c->in[1]->v, (size_t)c->in[1]->count * sizeof *c->out->v);
}

/* 4.14 slice: start, stop */
static void check_slice(const struct call *c)
{
    need_rank(c->in[0], 2);
    need(c->attr[0] < c->attr[1] && (uint32_t)c->attr[1] <= c->in[0]->shape[0], "not 0 <= start < stop <= rows");
    gives(c->out, c->in[0]->dtype, 2, (uint64_t)(c->attr[1] - c->attr[0]), last(c->in[0]), 0);
}

static void run_slice(const struct call *c)
{
    memcpy(c->out->v, c->in[0]->v + (uint64_t)c->attr[0] * last(c->in[0]), (size_t)c->out->count * sizeof *c->out->v);
}

/* 4.15 split_heads: heads, part, parts */
static void check_split_heads(const struct call *c)
{
    uint64_t heads = (uint64_t)c->attr[0], groups = heads * (uint64_t)c->attr[2];
    need_rank(c->in[0], 2);
    need(c->attr[1] < c->attr[2], "part is not below parts");
    need(last(c->in[0]) % groups == 0, "parts * heads does not divide the width");
    gives(c->out, c->in[0]->dtype, 3, heads, c->in[0]->shape[0], last(c->in[0]) / groups);
}

static void run_split_heads(const struct call *c)
{
    uint64_t heads = c->out->shape[0], tokens = c->out->shape[1], d = c->out->shape[2], h, t, i;
    for (h = 0; h < heads; h++)
        for (t = 0; t < tokens; t++)
            for (i = 0; i < d; i++)
                c->out->v[(h * tokens + t) * d + i]
                    = c->in[0]->v[t * last(c->in[0]) + ((uint64_t)c->attr[1] * heads + h) * d + i];
}

/* 4.16 merge_heads */
static void check_merge_heads(const struct call *c)
{
    const uint32_t *n = c->in[0]->shape;
    need_rank(c->in[0], 3);
    gives(c->out, c->in[0]->dtype, 2, n[1], (uint64_t)n[0] * n[2], 0);
}

static void run_merge_heads(const struct call *c)
{
    uint64_t heads = c->in[0]->shape[0], tokens = c->in[0]->shape[1], d = c->in[0]->shape[2], h, t, i;
    for (h = 0; h < heads; h++)
        for (t = 0; t < tokens; t++)
            for (i = 0; i < d; i++)
                c->out->v[(t * heads + h) * d + i] = c->in[0]->v[(h * tokens + t) * d + i];
}

/* 4.17 to_grid: height, width */
static void check_to_grid(const struct call *c)
{
    uint64_t height = (uint64_t)c->attr[0], width = (uint64_t)c->attr[1];
    need_rank(c->in[0], 2);
    need(height * width == c->in[0]->shape[0], "height * width is not the number of rows");
    gives(c->out, c->in[0]->dtype, 3, height, width, last(c->in[0]));
}

static void run_copy(const struct call *c) { memcpy(c->out->v, c->in[0]->v, (size_t)c->out->count * sizeof *c->out->v); }

/* 4.18 upsample_nearest: factor */
static void check_upsample_nearest(const struct call *c)
{
    int i;
    need(c->in[0]->rank >= 2, "an input has the wrong number of axes");
    gives_like(c->out, c->in[0], c->in[0]->dtype);
    for (i = 0; i < 2; i++) {
        c->out->shape[i] *= (uint32_t)c->attr[0];
        need(c->out->shape[i] <= MAX_AXIS, "an axis of the result is not 1 to 65535 long");
    }
}

static void run_upsample_nearest(const struct call *c)
{
    uint64_t factor = (uint64_t)c->attr[0], height = c->out->shape[0], width = c->out->shape[1];
    uint64_t cell = c->out->count / (height * width), i, j;
    for (i = 0; i < height; i++)
        for (j = 0; j < width; j++)
            memcpy(c->out->v + (i * width + j) * cell, c->in[0]->v + (i / factor * (width / factor) + j / factor) * cell,
                   (size_t)cell * sizeof *c->out->v);
}

/* 4.19 upsample_bilinear: factor, row_start, row_stop */
static void check_upsample_bilinear(const struct call *c)
{
    uint64_t factor = (uint64_t)c->attr[0];
    need_rank(c->in[0], 3);
    need(c->attr[1] < c->attr[2] && (uint64_t)c->attr[2] <= c->in[0]->shape[0] * factor,
         "not 0 <= row_start < row_stop <= rows * factor");
    gives(c->out, I64, 3, (uint64_t)(c->attr[2] - c->attr[1]), c->in[0]->shape[1] * factor, c->in[0]->shape[2]);
}

struct taps {
    uint64_t lower, upper;
    int64_t w_lower, w_upper;
};

static struct taps taps_of(uint64_t i, uint64_t cells, uint64_t factor)
{
    struct taps t;
    int64_t pos = max64(2 * (int64_t)i + 1 - (int64_t)factor, 0), step = 2 * (int64_t)factor;
    pos = min64(pos, step * ((int64_t)cells - 1));
    t.lower = (uint64_t)(pos / step);
    t.upper = t.lower + 1 < cells ? t.lower + 1 : cells - 1;
    t.w_upper = pos % step;
    t.w_lower = step - t.w_upper;
    return t;
}

/* Row i of the output, [width * factor, depth], of x [height, width, depth]. */
static void bilinear_row(const int64_t *x, uint64_t height, uint64_t width, uint64_t depth, uint64_t factor, uint64_t i,
                         int64_t *out)
{
    struct taps r = taps_of(i, height, factor);
    const int64_t *above = x + r.lower * width * depth, *below = x + r.upper * width * depth;
    uint64_t j, ch;
    for (j = 0; j < width * factor; j++) {
        struct taps t = taps_of(j, width, factor);
        for (ch = 0; ch < depth; ch++) {
            uint64_t a = t.lower * depth + ch, b = t.upper * depth + ch;
            out[j * depth + ch] = (above[a] * r.w_lower + below[a] * r.w_upper) * t.w_lower
                                + (above[b] * r.w_lower + below[b] * r.w_upper) * t.w_upper;
        }
    }
}

static void run_upsample_bilinear(const struct call *c)
{
    const uint32_t *n = c->in[0]->shape;
    uint64_t i, row = (uint64_t)c->out->shape[1] * n[2];
    for (i = 0; i < c->out->shape[0]; i++)
        bilinear_row(c->in[0]->v, n[0], n[1], n[2], (uint64_t)c->attr[0], i + (uint64_t)c->attr[1], c->out->v + i * row);
}

/* 4.20 argmax */
static void check_argmax(const struct call *c)
{
    gives_like(c->out, c->in[0], last(c->in[0]) <= 256 ? U8 : U16);
    c->out->rank--;
}

static int64_t argmax(const int64_t *x, uint64_t count)
{
    uint64_t j, best = 0;
    for (j = 1; j < count; j++)
        if (x[j] > x[best])
            best = j;
    return (int64_t)best;
}

static void run_argmax(const struct call *c)
{
    uint64_t i, classes = last(c->in[0]);
    for (i = 0; i < c->out->count; i++)
        c->out->v[i] = argmax(c->in[0]->v + i * classes, classes);
}

/* 4.23 sum_rows */
static void check_sum_rows(const struct call *c)
{
    need_rank(c->in[0], 2);
    gives(c->out, I32, 1, c->in[0]->shape[1], 0, 0);
}

static void run_sum_rows(const struct call *c)
{
    uint64_t i, classes = last(c->in[0]);
    memset(c->out->v, 0, (size_t)classes * sizeof *c->out->v);
    for (i = 0; i < c->in[0]->count; i++)
        c->out->v[i % classes] += c->in[0]->v[i];
}

/* 4.21 exp_weights: table */
static void check_exp_weights(const struct call *c)
{
    const struct array *x = c->in[0], *table = c->param[0];
    uint64_t i;
    int axis, leading = x->rank >= 2 && table->rank == x->rank - 1 && last(table) == 256;
    for (axis = 0; leading && axis < x->rank - 2; axis++)
        leading = x->shape[axis] == table->shape[axis];
    need(leading, "table is not [..., 256] with the leading axes of x");
    need_range(table, 0, 255 * 128, "an entry of table is not 0 to 32640");
    for (i = 0; i < table->count; i += 256)
        need(at(table, i) == 255 * 128, "table does not begin with 32640");
    gives_like(c->out, x, U8);
}

static void run_exp_weights(const struct call *c)
{
    static const int dither[8] = {8, 72, 40, 104, 24, 88, 56, 120};
    uint64_t row, j, width = last(c->in[0]), height = c->in[0]->shape[c->in[0]->rank - 2];
    for (row = 0; row < rows(c->in[0]); row++) {
        const int64_t *x = c->in[0]->v + row * width;
        int64_t top = row_max(x, width);
        for (j = 0; j < width; j++)
            c->out->v[row * width + j]
                = (at(c->param[0], row / height * 256 + (uint64_t)min64(top - x[j], 255)) + dither[j % 8]) / 128;
    }
}

/* 4.22 weighted_mean: out; mult, shift */
static void check_weighted_mean(const struct call *c)
{
    const struct array *a = c->in[0], *b = c->in[1], *mult = c->param[0];
    int r = a->rank, i, leading = r >= 2 && b->rank == r && mult->rank == r - 1;
    for (i = 0; leading && i < r - 2; i++)
        leading = a->shape[i] == b->shape[i] && a->shape[i] == mult->shape[i];
    need(leading, "the leading axes of a, b and mult differ");
    need(b->shape[r - 2] == last(a), "the inner axes of a and b differ");
    need(last(mult) == 1 || last(mult) == last(b), "mult is neither [..., 1] nor [..., N]");
    need(same_shape(mult, c->param[1]), "shift has not the shape of mult");
    need_range(mult, 0, LIMIT31 - 1, "a mult is negative");
    need_range(c->param[1], 1, 39, "a shift is not 1 to 39");
    int8_type(c->attr[0]);
    gives_like(c->out, a, I8);
    c->out->shape[r - 1] = b->shape[r - 1];
}

static void run_weighted_mean(const struct call *c)
{
    const struct array *a = c->in[0], *mult = c->param[0];
    uint64_t height = a->shape[a->rank - 2], depth = last(a), width = last(c->out), scales = last(mult), row, n, k;
    for (row = 0; row < rows(a); row++) {
        const int64_t *x = a->v + row * depth, *b = c->in[1]->v + row / height * depth * width;
        int64_t total = 0, f;
        int length = 0;
        for (k = 0; k < depth; k++)
            total += x[k];
        total = max64(total, 1);
        while (total >> length > 0)
            length++;
        f = (((int64_t)1 << 61) - 1) / (total * ((int64_t)1 << (31 - length)));
        for (n = 0; n < width; n++) {
            uint64_t s = row / height * scales + (scales > 1 ? n : 0);
            int64_t acc = 0;
            for (k = 0; k < depth; k++)
                acc += x[k] * b[k * width + n];
            c->out->v[row * width + n]
                = saturate(rsr(acc * asr(f * at(mult, s), 31), (int)at(c->param[1], s) + length - 1), int8_type(c->attr[0]));
        }
    }
}

#define BIT(dtype) (1u << (dtype))
#define NARROW (BIT(I8) | BIT(I16))
#define MULT {0, INT32_MAX}
#define SHIFT {1, 62}
#define OUT {I8, 16 * 7 + I8}
#define NARROW_OUT {0, 16 * 7 + I8}
#define GELU(kinds) {{1, 32768}, {0, 31}, {1, 64}, {PAPER, kinds}, {8, 16}, MULT, SHIFT, NARROW_OUT}

/* Index + 1 is the number of the op's section 4.x. Inputs: the dtypes allowed; params: their dtypes; attrs: ranges. */
static const struct op {
    unsigned inputs[2], params[4];
    int32_t attrs[8][2];
    void (*check)(const struct call *);
    void (*run)(const struct call *);
} OPS[] = {
    {{BIT(U8)}, {BIT(I8)}, {{0}}, check_quantize_input, run_quantize_input},
    {{BIT(I8)}, {0}, {{1, 64}}, check_patchify, run_patchify},
    {{BIT(I8)}, {BIT(I8), BIT(I32), BIT(I32), BIT(I8)}, {OUT}, check_linear, run_linear},
    {{BIT(I16), BIT(I16)}, {0}, {MULT, SHIFT, MULT, SHIFT}, check_add, run_add},
    {{BIT(I16)}, {BIT(I32), BIT(I64)}, {SHIFT, OUT}, check_layernorm, run_layernorm},
    {{NARROW, BIT(I8)}, {BIT(I32), BIT(I8)}, {{0, 1}, OUT}, check_matmul, run_matmul},
    {{NARROW}, {0}, {{1, 32768}, {0, 15}, {PAPER, NORMALIZED}, {I8, I16}}, check_shiftmax, run_shiftmax},
    {{BIT(I16)}, {0}, {{0, 15}, {16384, 32767}, {0, 16383}}, check_softmax2, run_softmax2},
    {{BIT(I8)}, {0}, GELU(ALIGNED), check_gelu, run_shift_gelu},
    {{BIT(I8)}, {0}, GELU(NORMALIZED), check_gelu, run_sigmoid_gelu},
    {{BIT(I8)}, {BIT(I8)}, {{0}}, check_gelu_table, run_gelu_table},
    {{BIT(I16)}, {0}, {MULT, SHIFT, NARROW_OUT}, check_l2norm, run_l2norm},
    {{NARROW, NARROW}, {0}, {{0}}, check_concat, run_concat},
    {{NARROW}, {0}, {{0, 65535}, {0, 65535}}, check_slice, run_slice},
    {{NARROW}, {0}, {{1, 1024}, {0, 2}, {1, 3}}, check_split_heads, run_split_heads},
    {{NARROW}, {0}, {{0}}, check_merge_heads, run_merge_heads},
    {{NARROW}, {0}, {{1, 65535}, {1, 65535}}, check_to_grid, run_copy},
    {{BIT(U8) | BIT(U16) | BIT(I16) | BIT(I32)}, {0}, {{1, 64}}, check_upsample_nearest, run_upsample_nearest},
    {{BIT(I16) | BIT(I32)}, {0}, {{1, 64}, {0, 4194240}, {0, 4194240}}, check_upsample_bilinear, run_upsample_bilinear},
    {{BIT(I16) | BIT(I32) | BIT(I64)}, {0}, {{0}}, check_argmax, run_argmax},
    {{BIT(I16)}, {BIT(I16)}, {{0}}, check_exp_weights, run_exp_weights},
    {{BIT(U8), BIT(I8)}, {BIT(I32), BIT(I8)}, {NARROW_OUT}, check_weighted_mean, run_weighted_mean},
    {{NARROW}, {0}, {{0}}, check_sum_rows, run_sum_rows},
};

/* ---------------------------------------------------------------------------------------------- the flat form */

static uint8_t *read_file(const char *path, uint64_t *size)
{
    FILE *file = fopen(path, "rb");
    uint8_t *bytes = NULL;
    uint64_t room = 0;
    size_t got;
    if (file == NULL)
        die("%s: cannot read it", path);
    *size = 0;
    do {
        if (*size == room) {
            uint8_t *more;
            room = room ? 2 * room : 1 << 16;
            more = room <= SIZE_MAX ? realloc(bytes, (size_t)room) : NULL;
            if (more == NULL)
                die("%s: out of memory", path);
            bytes = more;
        }
        got = fread(bytes + *size, 1, (size_t)(room - *size), file);
        *size += got;
    } while (got > 0);
    if (ferror(file))
        die("%s: cannot read it", path);
    fclose(file);
    return bytes;
}

/* A place in the file: `count` records of `width` bytes at an offset that is a multiple of `align`. */
static const uint8_t *place(const struct model *m, uint32_t offset, uint64_t count, uint64_t width, uint32_t align,
                            const char *what)
{
    if (offset % align != 0 || offset > m->size || count > (m->size - offset) / width)
        die("%s lie outside the file or are not aligned", what);
    return m->bytes + offset;
}

static const char *text(const struct model *m, uint32_t offset)
{
    uint32_t start = read32(m->bytes + 72), size = read32(m->bytes + 76);
    if (offset >= size) /* the last byte of the strings is zero: what begins inside them ends inside them */
        die("a name lies outside the strings");
    return (const char *)m->bytes + start + offset;
}

/* dtype, rank and shape, as records hold them; sets count and bits. */
static void read_kind(const uint8_t *p, struct array *a, const char *what)
{
    uint32_t dtype = read32(p), rank = read32(p + 4), i;
    a->bits = 0;
    if (dtype % 16 == I8 && dtype / 16 >= 2 && dtype / 16 <= 8) {
        a->bits = (int)(dtype / 16);
        dtype = I8;
    }
    if (dtype < I8 || dtype > I64 || rank > 4)
        die("%s: dtype %" PRIu32 " with %" PRIu32 " axes, expected 1 to 6 with at most 4", what, dtype, rank);
    a->dtype = (int)dtype;
    a->rank = (int)rank;
    a->count = 1;
    for (i = 0; i < 4; i++) {
        uint32_t n = read32(p + 8 + 4 * i);
        if (i < rank ? n < 1 || n > MAX_AXIS : n != 0)
            die("%s: an axis of %" PRIu32 " elements, expected 1 to 65535", what, n);
        a->shape[i] = n;
        if (i < rank)
            a->count *= n;
        if (a->count > MAX_ELEMENTS)
            die("%s: more than 2^30 elements", what);
    }
}

static void unpack(struct array *a)
{
    uint64_t i;
    if (a->v != NULL)
        return;
    a->v = allocate(a->count, sizeof *a->v);
    for (i = 0; i < a->count; i++)
        a->v[i] = at(a, i);
}

static void read_tensors(struct model *m)
{
    const uint8_t *p = place(m, read32(m->bytes + 68), m->tensor_count, TENSOR, 64, "tensor records");
    uint32_t i;
    m->tensors = allocate(m->tensor_count, sizeof *m->tensors);
    for (i = 0; i < m->tensor_count; i++, p += TENSOR) {
        struct array *t = &m->tensors[i];
        const char *name = text(m, read32(p));
        read_kind(p + 4, t, name);
        if (t->rank < 1 || t->dtype == U16)
            die("tensor %s: a scalar or uint16", name);
        if (t->bits) {
            uint64_t used = t->count * (uint64_t)t->bits, bytes = (used + 7) / 8;
            t->raw = place(m, read32(p + 28), bytes, 1, 64, "elements of a tensor");
            if (used % 8 != 0 && t->raw[bytes - 1] >> used % 8 != 0)
                die("tensor %s: bits behind the last element", name);
            continue;
        }
        t->raw = place(m, read32(p + 28), t->count, (uint64_t)width_of(t->dtype), 64, "elements of a tensor");
    }
}

/* 0 is the image, i + 1 node i, 2^31 + i tensor i. */
static struct array *input(struct model *m, uint32_t reference, uint32_t before)
{
    uint32_t i = reference & ~IS_TENSOR;
    if (reference & IS_TENSOR) {
        need(i < m->tensor_count, "an input is no tensor");
        unpack(&m->tensors[i]);
        return &m->tensors[i];
    }
    need(i <= before, "an input is no earlier node");
    return i == 0 ? &m->image : &m->nodes[i - 1].out;
}

static void call_of(struct model *m, uint32_t index, struct call *c)
{
    struct node *n = &m->nodes[index];
    const struct op *op = &OPS[n->op - 1];
    int i;
    memset(c, 0, sizeof *c);
    for (i = 0; i < 2; i++) {
        if (op->inputs[i] == 0) {
            need(n->inputs[i] == NONE, "has an input too many");
            continue;
        }
        c->in[i] = input(m, n->inputs[i], index);
        need(op->inputs[i] >> c->in[i]->dtype & 1, "an input has a dtype that its op does not take");
        need(c->in[i]->rank >= 1, "an input is a scalar");
    }
    for (i = 0; i < 4; i++) {
        if (op->params[i] == 0) {
            need(n->params[i] == NONE, "has a parameter too many");
            continue;
        }
        need(n->params[i] < m->tensor_count, "a parameter is no tensor");
        c->param[i] = &m->tensors[n->params[i]];
        need(op->params[i] >> c->param[i]->dtype & 1, "a parameter has a dtype that its op does not take");
    }
    c->attr = n->attrs;
}

static void check_node(struct model *m, uint32_t index)
{
    struct node *n = &m->nodes[index];
    const struct op *op = &OPS[n->op - 1];
    struct array found;
    struct call c;
    int i;
    call_of(m, index, &c);
    for (i = 0; i < 8; i++)
        need(n->attrs[i] >= op->attrs[i][0] && n->attrs[i] <= op->attrs[i][1], "an attribute is out of range");
    memset(&found, 0, sizeof found);
    c.out = &found;
    op->check(&c);
    need(found.dtype == n->out.dtype && same_shape(&found, &n->out), "declares another dtype or shape than its op gives");
    n->out.row_sum = found.row_sum;
    for (i = 0; i < 2; i++)
        if (op->inputs[i] && n->inputs[i] != 0 && !(n->inputs[i] & IS_TENSOR))
            m->nodes[n->inputs[i] - 1].last_use = index;
    n->last_use = index;
}

static void read_nodes(struct model *m)
{
    const uint8_t *p = place(m, read32(m->bytes + 64), m->node_count, NODE, 64, "node records");
    uint32_t i;
    int j;
    m->nodes = allocate(m->node_count, sizeof *m->nodes);
    for (i = 0; i < m->node_count; i++, p += NODE) {
        struct node *n = &m->nodes[i];
        n->op = read32(p);
        n->name = node_name = text(m, read32(p + 4));
        need(n->op >= 1 && n->op <= sizeof OPS / sizeof OPS[0], "unknown op");
        read_kind(p + 8, &n->out, n->name);
        need(n->out.bits == 0, "the output of a node is packed");
        for (j = 0; j < 2; j++)
            n->inputs[j] = read32(p + 32 + 4 * j);
        for (j = 0; j < 4; j++)
            n->params[j] = read32(p + 40 + 4 * j);
        for (j = 0; j < 8; j++)
            n->attrs[j] = signed32(read32(p + 56 + 4 * j));
        if (read32(p + 88) != 0 || read32(p + 92) != 0)
            die("node %s: reserved bytes are not zero", n->name);
        check_node(m, i);
    }
}

static void check_info(const struct model *m)
{
    const struct array *out = &m->nodes[m->output].out;
    uint32_t p = m->patch, i;
    uint64_t cells[2];
    if (p < 1 || p > 64)
        die("patch is %" PRIu32 ", expected 1 to 64", p);
    for (i = 0; i < 2; i++) {
        uint32_t w = m->window[i], s = m->stride[i];
        if (w < p || w > MAX_AXIS || w % p != 0 || s % (m->merge == GRID ? p : 1) != 0 || s > w || 2 * s < w || s == 0)
            die("window of %" PRIu32 " and stride of %" PRIu32 " do not fit patch %" PRIu32, w, s, p);
        cells[i] = w / p;
    }
    if (cells[0] * cells[1] > MAX_AXIS || m->upsample > BILINEAR || m->merge > PIXEL || m->classes < 1
        || m->classes > MAX_AXIS)
        die("too many patches or classes, or an unknown upsample or merge");
    if (m->working[1] > 16384 || m->working[0] > m->working[1] || (m->working[0] == 0) != (m->working[1] == 0)
        || (m->working[0] != 0 && m->working[0] < m->window[0] && m->working[0] < m->window[1]))
        die("a working size of %" PRIu32 ", %" PRIu32, m->working[0], m->working[1]);
    if (m->task > CLASSIFICATION)
        die("task %" PRIu32 ", expected 0 or 1", m->task);
    if (m->task == CLASSIFICATION) {
        if (m->stride[0] != m->window[0] || m->stride[1] != m->window[1] || m->upsample != NEAREST || m->merge != GRID)
            die("a classifier that labels pixels");
        if (out->dtype != I32 || out->rank != 1 || last(out) != m->classes)
            die("the output is not int32 [classes]");
        return;
    }
    if ((out->dtype != I8 && out->dtype != I16) || !has_shape(out, 3, cells[0], cells[1]) || last(out) != m->classes)
        die("the output is not int8 or int16 [window height / patch, window width / patch, classes]");
}

static void read_model(struct model *m, const char *path)
{
    struct sha256 s;
    uint8_t digest[32];
    uint32_t strings, string_bytes;
    uint64_t i;
    const uint8_t *b;
    memset(m, 0, sizeof *m);
    b = m->bytes = read_file(path, &m->size);
    if (m->size < HEADER || memcmp(b, "INTSEGFL", 8) != 0)
        die("not a flat intseg model; write one with intseg flatten");
    if (read32(b + 8) != 1)
        die("version %" PRIu32 " of the flat form, expected 1", read32(b + 8));
    if (read32(b + 12) != m->size)
        die("%" PRIu64 " bytes, expected %" PRIu32 ": truncated", m->size, read32(b + 12));
    sha_start(&s);
    for (i = 48; i < m->size; i++)
        sha_byte(&s, b[i]);
    sha_finish(&s, digest);
    if (memcmp(digest, b + 16, 32) != 0)
        die("the bytes do not match their SHA-256: damaged");
    m->node_count = read32(b + 48);
    m->tensor_count = read32(b + 52);
    m->output = read32(b + 56);
    if (m->node_count < 1 || m->node_count > MAX_NODES || m->tensor_count > MAX_TENSORS || m->output >= m->node_count)
        die("too many nodes or tensors, or no output");
    strings = read32(b + 72);
    string_bytes = read32(b + 76);
    place(m, strings, string_bytes, 1, 64, "strings");
    if (string_bytes < 1 || b[strings + (uint64_t)string_bytes - 1] != 0)
        die("the strings do not end in a zero byte");
    for (i = 0; i < 2; i++) {
        m->window[i] = read32(b + 88 + 4 * i);
        m->stride[i] = read32(b + 96 + 4 * i);
    }
    m->patch = read32(b + 104);
    m->classes = read32(b + 108);
    m->upsample = read32(b + 112);
    m->merge = read32(b + 160);
    m->working[0] = read32(b + 164);
    m->working[1] = read32(b + 168);
    m->task = read32(b + 172);
    m->class_names = read32(b + 80);
    memcpy(m->pad, b + 116, 3);
    m->name = text(m, read32(b + 120));
    place(m, read32(b + 80), m->classes, 4, 64, "class names");
    place(m, read32(b + 84), m->classes, 4, 64, "the palette");
    if (m->window[0] < 1 || m->window[0] > MAX_AXIS || m->window[1] < 1 || m->window[1] > MAX_AXIS)
        die("a window of %" PRIu32 " x %" PRIu32 " pixels, expected 1 to 65535", m->window[0], m->window[1]);
    m->image.dtype = U8;
    m->image.rank = 3;
    m->image.shape[0] = m->window[0];
    m->image.shape[1] = m->window[1];
    m->image.shape[2] = 3;
    m->image.count = (uint64_t)m->window[0] * m->window[1] * 3;
    read_tensors(m);
    read_nodes(m);
    check_info(m);
}

/* ------------------------------------------------------------------------------------------ a window, an image */

/* Runs the graph on m->image; the caller frees the scores. */
static int64_t *run_graph(struct model *m, uint64_t window)
{
    uint32_t i, j;
    int64_t *scores;
    m->nodes[m->output].last_use = m->node_count;
    for (i = 0; i < m->node_count; i++) {
        struct node *n = &m->nodes[i];
        struct call c;
        node_name = n->name;
        call_of(m, i, &c);
        c.out = &n->out;
        n->out.v = allocate(n->out.count, sizeof *n->out.v);
        OPS[n->op - 1].run(&c);
        printf("window %" PRIu64 " ", window);
        print_digest(n->name, n->out.v, n->out.count, n->out.dtype);
        for (j = 0; j <= i; j++)
            if (m->nodes[j].last_use == i) {
                free(m->nodes[j].out.v);
                m->nodes[j].out.v = NULL;
            }
    }
    scores = m->nodes[m->output].out.v;
    m->nodes[m->output].out.v = NULL;
    return scores;
}

struct axis {
    uint64_t size, padded, cells, count; /* pixels, padded pixels, cells, windows */
    uint64_t before;                     /* pixels of padding before the image */
    uint64_t *starts;                    /* of the windows, in pixels */
    int64_t *weights;                    /* L / n of every cell: a patch, or a pixel */
};

/* Section 7, step 0: a side at the working size, of an image with these sides. */
static uint64_t working_side(const struct model *m, uint64_t side, uint64_t height, uint64_t width)
{
    uint64_t least = height < width ? height : width, most = height < width ? width : height, size;
    uint64_t from = least, to = m->working[0];
    if (to == 0)
        return side;
    if (m->working[0] * most > m->working[1] * least) {
        from = most;
        to = m->working[1];
    }
    size = (2 * side * to + (m->task == CLASSIFICATION ? 0 : from)) / (2 * from);
    return size > 0 ? size : 1;
}

/* 7.1: `count` lines of old pixels, `step` bytes apart, to `size` pixels; lines begin `line` and `line_out` bytes apart. */
static void resize_axis(const uint8_t *x, uint64_t old, uint8_t *out, uint64_t size, uint64_t step, uint64_t lines,
                        uint64_t line, uint64_t line_out)
{
    int64_t n = (int64_t)old, m = (int64_t)size, t = 2 * (n > m ? n : m), i, p;
    int64_t *k = allocate(old, sizeof *k);
    uint64_t l, c;
    for (p = 0; p < m; p++) {
        int64_t first = -1, last = -1, total = 0;
        for (i = ((2 * p + 1) * n - t) / (2 * m) - 1; i < n; i++) {
            int64_t d = (2 * i + 1) * m - (2 * p + 1) * n, tent;
            if (i < 0)
                continue;
            tent = t - (d < 0 ? -d : d);
            if (tent <= 0 && d > 0)
                break;
            if (tent <= 0)
                continue;
            first = first < 0 ? i : first;
            last = i;
            k[i] = tent;
            total += tent;
        }
        for (i = first; i <= last; i++)
            k[i] = (((int64_t)1 << 23) * k[i] + total) / (2 * total);
        for (l = 0; l < lines; l++)
            for (c = 0; c < step; c++) {
                int64_t sum = (int64_t)1 << 21;
                for (i = first; i <= last; i++)
                    sum += k[i] * x[l * line + (uint64_t)i * step + c];
                sum >>= 22;
                out[l * line_out + (uint64_t)p * step + c] = (uint8_t)(sum > 255 ? 255 : sum);
            }
    }
    free(k);
}

/* The image at another size. */
static uint8_t *resize(uint8_t *rgb, uint64_t height, uint64_t width, uint64_t tall, uint64_t wide)
{
    uint8_t *out;
    if (wide != width) {
        out = allocate(height * wide * 3, 1);
        resize_axis(rgb, width, out, wide, 3, height, width * 3, wide * 3);
        free(rgb);
        rgb = out;
    }
    if (tall != height) {
        out = allocate(tall * wide * 3, 1);
        resize_axis(rgb, height, out, tall, wide * 3, 1, 0, 0);
        free(rgb);
        rgb = out;
    }
    return rgb;
}

static uint64_t gcd(uint64_t a, uint64_t b)
{
    while (b != 0) {
        uint64_t r = a % b;
        a = b;
        b = r;
    }
    return a;
}

/* Section 7, steps 1 to 3, along one axis. */
static struct axis lay_out(uint64_t size, uint64_t window, uint64_t stride, uint64_t cell)
{
    struct axis a;
    uint64_t start, i, k;
    int64_t common = 1, seen[4] = {0, 0, 0, 0};
    a.before = 0;
    a.size = size;
    a.padded = (size + cell - 1) / cell * cell;
    if (a.padded < window)
        a.padded = window;
    a.cells = a.padded / cell;
    a.starts = allocate(a.padded / stride + 1, sizeof *a.starts);
    a.weights = allocate(a.cells, sizeof *a.weights);
    a.count = 0;
    for (start = 0; start + window < a.padded; start += stride)
        a.starts[a.count++] = start;
    a.starts[a.count++] = a.padded - window;
    for (k = 0; k < a.count; k++)
        for (i = 0; i < window / cell; i++)
            a.weights[a.starts[k] / cell + i]++;
    for (i = 0; i < a.cells; i++)
        seen[a.weights[i]] = 1; /* 1 to 3 windows cover a cell */
    common = (seen[2] ? 2 : 1) * (seen[3] ? 3 : 1);
    for (i = 0; i < a.cells; i++)
        a.weights[i] = common / a.weights[i];
    return a;
}

/* 7.4, steps 1 and 2: one window in the middle. */
static struct axis middle(uint64_t size, uint64_t window)
{
    struct axis a;
    uint64_t spare = size > window ? size - window : 0;
    a.size = size;
    a.padded = size > window ? size : window;
    a.before = size < window ? (window - size) / 2 : 0;
    a.cells = a.count = 1;
    a.starts = allocate(1, sizeof *a.starts);
    a.weights = NULL;
    a.starts[0] = spare / 2;
    if (spare % 2 == 1 && a.starts[0] % 2 == 1)
        a.starts[0]++;
    return a;
}

/* The scores of a whole image, [rows, columns, classes], or those of its windows, [windows, rows, columns, classes]. */
static int64_t *merge(struct model *m, const uint8_t *rgb, const struct axis *v, const struct axis *h)
{
    uint64_t depth = m->classes, wh = m->window[0], ww = m->window[1], i, j, y, x, c;
    uint64_t one = m->task == CLASSIFICATION ? depth : wh / m->patch * (ww / m->patch) * depth;
    int whole = m->merge == PIXEL || m->task == CLASSIFICATION;
    int64_t *sum = allocate(whole ? v->count * h->count * one : v->cells * h->cells * depth, sizeof *sum);
    for (i = 0; i < v->count; i++)
        for (j = 0; j < h->count; j++) {
            int64_t *scores;
            m->image.v = allocate(m->image.count, sizeof *m->image.v);
            for (y = 0; y < wh; y++)
                for (x = 0; x < ww; x++)
                    for (c = 0; c < 3; c++) {
                        /* what lies before the image is far behind it, unsigned */
                        uint64_t row = v->starts[i] + y - v->before, column = h->starts[j] + x - h->before;
                        m->image.v[(y * ww + x) * 3 + c] = row < v->size && column < h->size
                            ? rgb[(row * h->size + column) * 3 + c] : m->pad[c];
                    }
            scores = run_graph(m, i * h->count + j);
            if (whole)
                memcpy(sum + (i * h->count + j) * one, scores, (size_t)one * sizeof *sum);
            for (y = 0; !whole && y < wh / m->patch; y++)
                for (x = 0; x < ww / m->patch; x++)
                    for (c = 0; c < depth; c++)
                        sum[((v->starts[i] / m->patch + y) * h->cells + h->starts[j] / m->patch + x) * depth + c]
                            += scores[(y * (ww / m->patch) + x) * depth + c];
            free(scores);
            free(m->image.v);
        }
    for (y = 0; !whole && y < v->cells; y++)
        for (x = 0; x < h->cells; x++)
            for (c = 0; c < depth; c++)
                sum[(y * h->cells + x) * depth + c] *= v->weights[y] * h->weights[x];
    return sum;
}

/* The scores of pixel row y of a window, [width of the window, classes]. */
static void window_row(const struct model *m, const int64_t *scores, uint64_t y, int64_t *out)
{
    uint64_t cells = m->window[1] / m->patch, depth = m->classes, x, c;
    if (m->upsample == BILINEAR) {
        bilinear_row(scores, m->window[0] / m->patch, cells, depth, m->patch, y, out);
        return;
    }
    for (x = 0; x < m->window[1]; x++)
        for (c = 0; c < depth; c++)
            out[x * depth + c] = scores[(y / m->patch * cells + x / m->patch) * depth + c];
}

/* The scores of pixel row y of an image whose windows are merged in pixels, [padded width, classes]. */
static void pixel_row(const struct model *m, const int64_t *scores, const struct axis *v, const struct axis *h, uint64_t y,
                      int64_t *row)
{
    uint64_t depth = m->classes, wide = m->window[1] * depth, i, j, x, c;
    uint64_t one = (uint64_t)(m->window[0] / m->patch) * (m->window[1] / m->patch) * depth;
    int64_t *part = allocate(wide, sizeof *part);
    for (x = 0; x < h->padded * depth; x++)
        row[x] = 0;
    for (i = 0; i < v->count; i++)
        for (j = 0; j < h->count && y >= v->starts[i] && y - v->starts[i] < m->window[0]; j++) {
            window_row(m, scores + (i * h->count + j) * one, y - v->starts[i], part);
            for (x = 0; x < wide; x++)
                row[h->starts[j] * depth + x] += part[x];
        }
    for (x = 0; x < h->padded; x++)
        for (c = 0; c < depth; c++)
            row[x * depth + c] *= v->weights[y] * h->weights[x];
    free(part);
}

/* The scores of pixel row y at the working size, [padded width, classes]. */
static void score_row(const struct model *m, const int64_t *sum, const struct axis *v, const struct axis *h, uint64_t y,
                      int64_t *row)
{
    uint64_t depth = m->classes, x, c;
    if (m->merge == PIXEL)
        pixel_row(m, sum, v, h, y, row);
    else if (m->upsample == BILINEAR)
        bilinear_row(sum, v->cells, h->cells, depth, m->patch, y, row);
    else
        for (x = 0; x < h->padded; x++)
            for (c = 0; c < depth; c++)
                row[x * depth + c] = sum[(y / m->patch * h->cells + x / m->patch) * depth + c];
}

/* 7.2: where pixel i of `size` lies between those of `working`; upper has the weight w_upper, of w_lower + w_upper. */
static struct taps back(uint64_t i, uint64_t size, uint64_t working)
{
    uint64_t g = gcd(size, working), parts = 2 * (size / g);
    int64_t at = (int64_t)((2 * i + 1) * (working / g)) - (int64_t)(size / g), most = (int64_t)(parts * (working - 1));
    struct taps t;
    at = at < 0 ? 0 : at > most ? most : at;
    t.lower = (uint64_t)at / parts;
    t.upper = t.lower + 1 < working ? t.lower + 1 : t.lower;
    t.w_upper = at % (int64_t)parts;
    t.w_lower = (int64_t)parts - t.w_upper;
    return t;
}

/* The labels of an image that was segmented at another size. */
static int64_t *label_back(const struct model *m, const int64_t *sum, const struct axis *v, const struct axis *h,
                           uint64_t height, uint64_t width)
{
    uint64_t depth = m->classes, y, x, c;
    int64_t *labels = allocate(height * width, sizeof *labels), *pixel = allocate(depth, sizeof *pixel);
    int64_t *upper = allocate(h->padded * depth, sizeof *upper), *lower = allocate(h->padded * depth, sizeof *lower);
    for (y = 0; y < height; y++) {
        struct taps r = back(y, height, v->size);
        score_row(m, sum, v, h, r.lower, upper);
        score_row(m, sum, v, h, r.upper, lower);
        for (x = 0; x < width; x++) {
            struct taps t = back(x, width, h->size);
            for (c = 0; c < depth; c++) {
                uint64_t a = t.lower * depth + c, b = t.upper * depth + c;
                pixel[c] = (upper[a] * r.w_lower + lower[a] * r.w_upper) * t.w_lower
                         + (upper[b] * r.w_lower + lower[b] * r.w_upper) * t.w_upper;
            }
            labels[y * width + x] = argmax(pixel, depth);
        }
    }
    free(upper);
    free(lower);
    free(pixel);
    return labels;
}

/* Section 7, steps 4 and 5. */
static int64_t *label(const struct model *m, const int64_t *sum, const struct axis *v, const struct axis *h)
{
    uint64_t depth = m->classes, y, x;
    int64_t *labels = allocate(v->size * h->size, sizeof *labels), *row = allocate(h->padded * depth, sizeof *row);
    for (y = 0; y < v->size; y++) {
        score_row(m, sum, v, h, y, row);
        for (x = 0; x < h->size; x++)
            labels[y * h->size + x] = argmax(row + x * depth, depth);
    }
    free(row);
    return labels;
}

/* -------------------------------------------------------------------------------------------------- PPM and PGM */

/* A decimal number of a PPM header after white space and comments, and the one byte that ends it. */
static uint64_t ppm_number(const uint8_t *b, uint64_t size, uint64_t *at_byte)
{
    uint64_t i = *at_byte, value = 0, digits = 0;
    for (; i < size && (b[i] == ' ' || (b[i] >= 9 && b[i] <= 13) || b[i] == '#'); i++)
        if (b[i] == '#')
            while (i + 1 < size && b[i] != '\n')
                i++;
    for (; i < size && b[i] >= '0' && b[i] <= '9' && digits < 6; i++, digits++)
        value = 10 * value + (uint64_t)(b[i] - '0');
    if (digits == 0 || i >= size || !(b[i] == ' ' || (b[i] >= 9 && b[i] <= 13)))
        die("the image's header is not that of a PPM");
    *at_byte = i + 1;
    return value;
}

static uint8_t *read_ppm(const char *path, uint64_t *height, uint64_t *width)
{
    uint64_t size, start = 2, most, bytes;
    uint8_t *b = read_file(path, &size);
    if (size < 3 || b[0] != 'P' || b[1] != '6')
        die("%s: not a binary PPM (P6)", path);
    *width = ppm_number(b, size, &start);
    *height = ppm_number(b, size, &start);
    most = ppm_number(b, size, &start);
    if (most != 255 || *width < 1 || *height < 1 || *width > MAX_AXIS || *height > MAX_AXIS)
        die("%s: not 1 to 65535 pixels a side with a maximum of 255", path);
    bytes = *width * *height * 3;
    if (size - start != bytes)
        die("%s: %" PRIu64 " bytes of pixels, expected %" PRIu64, path, size - start, bytes);
    memmove(b, b + start, (size_t)bytes);
    return b;
}

static void write_pgm(const char *path, const int64_t *labels, uint64_t height, uint64_t width, int dtype)
{
    FILE *file = fopen(path, "wb");
    uint64_t i;
    if (file == NULL)
        die("%s: cannot write it", path);
    fprintf(file, "P5\n%" PRIu64 " %" PRIu64 "\n%d\n", width, height, dtype == U8 ? 255 : 65535);
    for (i = 0; i < height * width; i++) {
        if (dtype == U16)
            fputc((int)(labels[i] >> 8), file);
        fputc((int)(labels[i] & 255), file);
    }
    i = (uint64_t)ferror(file);
    if (fclose(file) != 0 || i)
        die("%s: cannot write it", path);
}

/* 7.4, step 4: the five best, in falling order, equal ones by number. Their logits are lost. */
static void print_best(const struct model *m, int64_t *logits)
{
    uint64_t k;
    for (k = 0; k < 5 && k < m->classes; k++) {
        uint64_t best = (uint64_t)argmax(logits, m->classes);
        const uint8_t *names = m->bytes + m->class_names;
        printf("class %" PRIu64 " %" PRId64 " %s\n", best, logits[best], text(m, read32(names + 4 * best)));
        logits[best] = INT64_MIN;
    }
}

int main(int argc, char **argv)
{
    struct model m;
    struct axis v, h;
    uint64_t height, width, tall, wide;
    uint32_t i;
    int dtype;
    uint8_t *rgb;
    int64_t *sum, *labels;
    if (argc != 3 && argc != 4)
        die("usage: reader MODEL.flat IMAGE.ppm [LABELS.pgm]");
    read_model(&m, argv[1]);
    rgb = read_ppm(argv[2], &height, &width);
    tall = working_side(&m, height, height, width);
    wide = working_side(&m, width, height, width);
    rgb = resize(rgb, height, width, tall, wide);
    if (m.task == CLASSIFICATION) {
        v = middle(tall, m.window[0]);
        h = middle(wide, m.window[1]);
    } else {
        v = lay_out(tall, m.window[0], m.stride[0], m.merge == GRID ? m.patch : 1);
        h = lay_out(wide, m.window[1], m.stride[1], m.merge == GRID ? m.patch : 1);
    }
    sum = merge(&m, rgb, &v, &h);
    if (m.merge == GRID)
        print_digest("merged", sum, v.cells * h.cells * m.classes, I32);
    else
        print_digest("merged", sum, v.count * h.count * m.nodes[m.output].out.count, I16);
    if (m.task == CLASSIFICATION) {
        height = width = 1;
        labels = allocate(1, sizeof *labels);
        labels[0] = argmax(sum, m.classes);
    } else
        labels = tall == height && wide == width ? label(&m, sum, &v, &h) : label_back(&m, sum, &v, &h, height, width);
    dtype = m.classes <= 256 ? U8 : U16;
    print_digest("labels", labels, height * width, dtype);
    if (m.task == CLASSIFICATION)
        print_best(&m, sum);
    if (argc == 4)
        write_pgm(argv[3], labels, height, width, dtype);
    free(labels);
    free(sum);
    free(rgb);
    free(v.starts);
    free(v.weights);
    free(h.starts);
    free(h.weights);
    for (i = 0; i < m.tensor_count; i++)
        free(m.tensors[i].v);
    free(m.tensors);
    free(m.nodes);
    free(m.bytes);
    if (fflush(stdout) != 0 || ferror(stdout))
        die("cannot write the digests");
    return 0;
}
