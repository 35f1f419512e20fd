/* The matmul of every type in portable C: the measure of the fast ones, and what runs where there is none.
 *
 * Blocks are taken apart into whole numbers once and multiplied with up to eight tokens. Block dots are exact; their scaled
 * sums are kept in double, so the result is within a rounding of the exact one. */
#include "base/half.h"
#include "kernels/fill.h"
#include "kernels/matmul_parts.h"
#include "kernels/matmul_unpack.h"
#include "quant/blocks.h"

static const void *row_of(const matmul_args *a, int64_t r) { return (const char *)a->w + (size_t)r * a->row_bytes; }
static const void *token_of(const matmul_args *a, int64_t t) { return (const char *)a->x + (size_t)t * a->x_stride; }

static int32_t dot_i8(const int8_t *a, const int8_t *b, int n) {
    int32_t sum = 0;
    for (int i = 0; i < n; i++) {
        sum += a[i] * b[i];
    }
    return sum;
}

/* ---- ACT_Q8_32 ----------------------------------------------------------------------------------------------------- */

INLINE void matmul_32(const matmul_args *a, size_t block_bytes, void (*unpack)(const void *, block_32 *)) {
    for (int64_t t0 = 0; t0 < a->n_tokens; t0 += 8) {
        int n = a->n_tokens - t0 < 8 ? (int)(a->n_tokens - t0) : 8;
        for (int64_t r = a->row0; r < a->row1; r++) {
            const char *w = row_of(a, r);
            double sum[8] = {0};
            for (int64_t b = 0; b < a->k / 32; b++) {
                block_32 block;
                unpack(w + (size_t)b * block_bytes, &block);
                for (int t = 0; t < n; t++) {
                    const void *x = token_of(a, t0 + t);
                    double dx = act_scales(x, a->k)[b];
                    int32_t dot = dot_i8(block.q, act_q8(x) + 32 * b, 32);
                    sum[t] += dx * ((double)block.d * dot + (double)block.m * act_sums_32(x, a->k)[b]);
                }
            }
            for (int t = 0; t < n; t++) {
                a->y[(t0 + t) * a->y_stride + r] = (float)sum[t];
            }
        }
    }
}

/* ---- ACT_Q8_256 ---------------------------------------------------------------------------------------------------- */

INLINE void matmul_256(const matmul_args *a, size_t block_bytes, void (*unpack)(const void *, block_256 *)) {
    for (int64_t t0 = 0; t0 < a->n_tokens; t0 += 8) {
        int n = a->n_tokens - t0 < 8 ? (int)(a->n_tokens - t0) : 8;
        for (int64_t r = a->row0; r < a->row1; r++) {
            const char *w = row_of(a, r);
            double sum[8] = {0};
            for (int64_t b = 0; b < a->k / 256; b++) {
                block_256 block;
                unpack(w + (size_t)b * block_bytes, &block);
                for (int t = 0; t < n; t++) {
                    const void *x = token_of(a, t0 + t);
                    const int8_t *q = act_q8(x) + 256 * b;
                    const int16_t *q_sum = act_sums_16(x, a->k) + 16 * b;
                    int32_t dot = 0, minima = 0; /* below 2^29 and 2^21 */
                    for (int g = 0; g < 16; g++) {
                        dot += block.scale[g] * dot_i8(block.q + 16 * g, q + 16 * g, 16);
                        minima += block.minimum[g] * q_sum[g];
                    }
                    sum[t] += (double)act_scales(x, a->k)[b] * ((double)block.d * dot - (double)block.dmin * minima);
                }
            }
            for (int t = 0; t < n; t++) {
                a->y[(t0 + t) * a->y_stride + r] = (float)sum[t];
            }
        }
    }
}

/* ---- ACT_F32 ------------------------------------------------------------------------------------------------------- */

static void load_f32(const char *w, int n, float *out) { memcpy(out, w, (size_t)n * sizeof *out); }

static void load_f16(const char *w, int n, float *out) {
    for (int i = 0; i < n; i++) {
        uint16_t half;
        memcpy(&half, w + 2 * i, sizeof half);
        out[i] = f16_to_f32(half);
    }
}

static void load_bf16(const char *w, int n, float *out) {
    for (int i = 0; i < n; i++) {
        uint16_t half;
        memcpy(&half, w + 2 * i, sizeof half);
        out[i] = bf16_to_f32(half);
    }
}

/* Sixteen sums side by side, which a compiler can keep in vectors. */
INLINE void matmul_float(const matmul_args *a, size_t value_bytes, void (*load)(const char *, int, float *)) {
    enum { LANES = 16, CHUNK = 64 };
    for (int64_t t0 = 0; t0 < a->n_tokens; t0 += 8) {
        int n = a->n_tokens - t0 < 8 ? (int)(a->n_tokens - t0) : 8;
        for (int64_t r = a->row0; r < a->row1; r++) {
            const char *w = row_of(a, r);
            float sum[8][LANES] = {{0}};
            for (int64_t c = 0; c < a->k; c += CHUNK) {
                int m = a->k - c < CHUNK ? (int)(a->k - c) : CHUNK;
                float values[CHUNK] = {0};
                load(w + (size_t)c * value_bytes, m, values);
                for (int t = 0; t < n; t++) {
                    const float *x = (const float *)token_of(a, t0 + t) + c;
                    int i = 0;
                    for (; i + LANES <= m; i += LANES) {
                        for (int l = 0; l < LANES; l++) {
                            sum[t][l] += values[i + l] * x[i + l];
                        }
                    }
                    for (; i < m; i++) {
                        sum[t][i % LANES] += values[i] * x[i];
                    }
                }
            }
            for (int t = 0; t < n; t++) {
                double total = 0;
                for (int l = 0; l < LANES; l++) {
                    total += (double)sum[t][l];
                }
                a->y[(t0 + t) * a->y_stride + r] = (float)total;
            }
        }
    }
}

/* ---- the table ----------------------------------------------------------------------------------------------------- */

static void matmul_f32(const matmul_args *a) { matmul_float(a, 4, load_f32); }
static void matmul_f16(const matmul_args *a) { matmul_float(a, 2, load_f16); }
static void matmul_bf16(const matmul_args *a) { matmul_float(a, 2, load_bf16); }
static void matmul_q4_0(const matmul_args *a) { matmul_32(a, sizeof(block_q4_0), unpack_q4_0); }
static void matmul_q4_1(const matmul_args *a) { matmul_32(a, sizeof(block_q4_1), unpack_q4_1); }
static void matmul_q5_0(const matmul_args *a) { matmul_32(a, sizeof(block_q5_0), unpack_q5_0); }
static void matmul_q5_1(const matmul_args *a) { matmul_32(a, sizeof(block_q5_1), unpack_q5_1); }
static void matmul_q8_0(const matmul_args *a) { matmul_32(a, sizeof(block_q8_0), unpack_q8_0); }
static void matmul_iq4_nl(const matmul_args *a) { matmul_32(a, sizeof(block_iq4_nl), unpack_iq4_nl); }
static void matmul_mxfp4(const matmul_args *a) { matmul_32(a, sizeof(block_mxfp4), unpack_mxfp4); }
static void matmul_q2_K(const matmul_args *a) { matmul_256(a, sizeof(block_q2_K), unpack_q2_K); }
static void matmul_q3_K(const matmul_args *a) { matmul_256(a, sizeof(block_q3_K), unpack_q3_K); }
static void matmul_q4_K(const matmul_args *a) { matmul_256(a, sizeof(block_q4_K), unpack_q4_K); }
static void matmul_q5_K(const matmul_args *a) { matmul_256(a, sizeof(block_q5_K), unpack_q5_K); }
static void matmul_q6_K(const matmul_args *a) { matmul_256(a, sizeof(block_q6_K), unpack_q6_K); }
static void matmul_iq4_xs(const matmul_args *a) { matmul_256(a, sizeof(block_iq4_xs), unpack_iq4_xs); }

static size_t no_scratch(int64_t k) {
    (void)k;
    return 0;
}

void matmul_fill_ref(kernels *table) {
    static const struct {
        quant_type type;
        act_kind act;
        matmul_kernel *matmul;
    } rows[] = {
        {QUANT_F32, ACT_F32, matmul_f32},         {QUANT_F16, ACT_F32, matmul_f16},
        {QUANT_BF16, ACT_F32, matmul_bf16},       {QUANT_Q4_0, ACT_Q8_32, matmul_q4_0},
        {QUANT_Q4_1, ACT_Q8_32, matmul_q4_1},     {QUANT_Q5_0, ACT_Q8_32, matmul_q5_0},
        {QUANT_Q5_1, ACT_Q8_32, matmul_q5_1},     {QUANT_Q8_0, ACT_Q8_32, matmul_q8_0},
        {QUANT_IQ4_NL, ACT_Q8_32, matmul_iq4_nl}, {QUANT_MXFP4, ACT_Q8_32, matmul_mxfp4},
        {QUANT_Q2_K, ACT_Q8_256, matmul_q2_K},    {QUANT_Q3_K, ACT_Q8_256, matmul_q3_K},
        {QUANT_Q4_K, ACT_Q8_256, matmul_q4_K},    {QUANT_Q5_K, ACT_Q8_256, matmul_q5_K},
        {QUANT_Q6_K, ACT_Q8_256, matmul_q6_K},    {QUANT_IQ4_XS, ACT_Q8_256, matmul_iq4_xs},
    };
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        table->act[rows[i].type] = rows[i].act;
        table->matmul[rows[i].type] = rows[i].matmul;
    }
    table->matmul_scratch = no_scratch;
    pack_fill_ref(table);
}
