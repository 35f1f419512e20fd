/* Few tokens, NEON: one pass over each row of weights, as it lies in the file, for up to four tokens.
 *
 * sdot adds four products to each of four sums in 32 bits; dots of a block or super-block are exact. */
#include "kernels/matmul_neon.h"
#include "kernels/matmul_unpack_neon.h"

enum { PASS_TOKENS = 4 };

INLINE const void *token_row(const matmul_args *a, int64_t t) { return (const char *)a->x + (size_t)t * a->x_stride; }

INLINE int32x4_t dot_16(int32x4_t sum, int8x16_t v, const int8_t *x) { return vdotq_s32(sum, v, vld1q_s8(x)); }

/* ---- blocks of 32 -------------------------------------------------------------------------------------------------- */

typedef struct pass_of_32 {
    const int8_t *x[PASS_TOKENS];
    const float *dx[PASS_TOKENS];
    const int32_t *sum[PASS_TOKENS];
} pass_of_32;

typedef struct sums_32 {
    float32x4_t dots[PASS_TOKENS];
    float32x4_t minima[PASS_TOKENS];
} sums_32;

/* 16-bit words at first, first + step, ... (n of them, at most 4; then zeros). */
INLINE uint16x4_t gather_u16(const uint8_t *first, size_t step, int n) {
    if (n == 4) {
        return (uint16x4_t){load_u16(first), load_u16(first + step), load_u16(first + 2 * step), load_u16(first + 3 * step)};
    }
    uint16_t words[4] = {0};
    for (int i = 0; i < n; i++) {
        words[i] = load_u16(first + (size_t)i * step);
    }
    return vld1_u16(words);
}

/* Up to four blocks from block g (a multiple of 4) on: block g + i in lane i of the sums. */
INLINE void add_blocks_32(const type_32 *type, const pass_of_32 *p, const uint8_t *b, int64_t g, int n_blocks, int n,
                          sums_32 *s) {
    const size_t bytes = (size_t)type->bytes;
    int32x4_t dots[PASS_TOKENS][4];
    UNROLL for (int i = 0; i < 4; i++) {
        if (i < n_blocks) {
            int8x16x2_t v = type->columns(b + (size_t)i * bytes);
            UNROLL for (int t = 0; t < n; t++) {
                const int8_t *x = p->x[t] + 32 * (g + i);
                dots[t][i] = dot_16(dot_16(vdupq_n_s32(0), v.val[0], x), v.val[1], x + 16);
            }
        } else {
            UNROLL for (int t = 0; t < n; t++) { dots[t][i] = vdupq_n_s32(0); }
        }
    }
    float32x4_t d = type->scale(gather_u16(b, bytes, n_blocks));
    UNROLL for (int t = 0; t < n; t++) {
        int32x4_t whole = vpaddq_s32(vpaddq_s32(dots[t][0], dots[t][1]), vpaddq_s32(dots[t][2], dots[t][3]));
        s->dots[t] = vfmaq_f32(s->dots[t], vcvtq_f32_s32(whole), d * vld1q_f32(p->dx[t] + g)); /* packed rows are padded */
    }
    if (type->has_min) {
        float32x4_t m = half_scale(gather_u16(b + 2, bytes, n_blocks));
        UNROLL for (int t = 0; t < n; t++) {
            float32x4_t x = vcvtq_f32_s32(vld1q_s32(p->sum[t] + g)) * vld1q_f32(p->dx[t] + g);
            s->minima[t] = vfmaq_f32(s->minima[t], m, x);
        }
    }
}

INLINE void pass_32(const matmul_args *a, const type_32 *type, int64_t t0, int n) {
    const int64_t n_blocks = a->k / 32, whole = n_blocks / 4 * 4;
    pass_of_32 p;
    UNROLL for (int t = 0; t < n; t++) {
        p.x[t] = act_q8(token_row(a, t0 + t));
        p.dx[t] = act_scales(token_row(a, t0 + t), a->k);
        p.sum[t] = act_sums_32(token_row(a, t0 + t), a->k);
    }
    for (int64_t r = a->row0; r < a->row1; r++) {
        const uint8_t *w = (const uint8_t *)a->w + (size_t)r * a->row_bytes;
        sums_32 s;
        UNROLL for (int t = 0; t < n; t++) { s.dots[t] = s.minima[t] = vdupq_n_f32(0); }
        for (int64_t g = 0; g < whole; g += 4) {
            const uint8_t *b = w + (size_t)(g * type->bytes);
            if (g % 8 == 0) {
                fetch_rows_ahead(b, 8 * type->bytes, 1);
            }
            add_blocks_32(type, &p, b, g, 4, n, &s);
        }
        if (whole < n_blocks) {
            add_blocks_32(type, &p, w + (size_t)(whole * type->bytes), whole, (int)(n_blocks - whole), n, &s);
        }
        UNROLL for (int t = 0; t < n; t++) {
            float y = vaddvq_f32(s.dots[t]);
            a->y[(t0 + t) * a->y_stride + r] = type->has_min ? y + vaddvq_f32(s.minima[t]) : y;
        }
    }
}

/* ---- super-blocks of 256 ------------------------------------------------------------------------------------------- */

/* The minima times the sums of 16 activations that they belong to. */
INLINE int32_t dot_minima(const type_256 *type, const header_256 *h, const int16_t *sums) {
    int16x8_t low = vld1q_s16(sums), high = vld1q_s16(sums + 8);
    if (type->group == 32) {
        low = vpaddq_s16(low, high); /* at most 32 * 127 */
    }
    int32x4_t dot = vmull_s16(vget_low_s16(h->minimum[0]), vget_low_s16(low));
    dot = vmlal_high_s16(dot, h->minimum[0], low);
    if (type->group == 16) {
        dot = vmlal_s16(dot, vget_low_s16(h->minimum[1]), vget_low_s16(high));
        dot = vmlal_high_s16(dot, h->minimum[1], high);
    }
    return vaddvq_s32(dot);
}

INLINE void pass_256(const matmul_args *a, const type_256 *type, int64_t t0, int n) {
    const int64_t n_blocks = a->k / 256;
    const int8_t *x[PASS_TOKENS];
    const float *dx[PASS_TOKENS];
    const int16_t *sums[PASS_TOKENS];
    UNROLL for (int t = 0; t < n; t++) {
        x[t] = act_q8(token_row(a, t0 + t));
        dx[t] = act_scales(token_row(a, t0 + t), a->k);
        sums[t] = act_sums_16(token_row(a, t0 + t), a->k);
    }
    for (int64_t r = a->row0; r < a->row1; r++) {
        const uint8_t *b = (const uint8_t *)a->w + (size_t)r * a->row_bytes;
        float dots[PASS_TOKENS], minima[PASS_TOKENS];
        UNROLL for (int t = 0; t < n; t++) { dots[t] = minima[t] = 0; }
        for (int64_t s = 0; s < n_blocks; s++, b += type->bytes) {
            fetch_rows_ahead(b, type->bytes, 1);
            header_256 h = type->header(b);
            int32x4_t total[PASS_TOKENS];
            UNROLL for (int t = 0; t < n; t++) { total[t] = vdupq_n_s32(0); }
            UNROLL for (int j = 0; j < 8; j++) {
                int8x16x2_t v = type->columns(b, j);
                UNROLL for (int t = 0; t < n; t++) {
                    const int8_t *from = x[t] + 256 * s + 32 * j;
                    int32x4_t low = dot_16(vdupq_n_s32(0), v.val[0], from);
                    if (type->group == 32) {
                        total[t] += dot_16(low, v.val[1], from + 16) * h.scale[j / 4][j % 4];
                    } else {
                        int32x4_t high = dot_16(vdupq_n_s32(0), v.val[1], from + 16);
                        total[t] += low * h.scale[j / 2][2 * j % 4];
                        total[t] += high * h.scale[j / 2][2 * j % 4 + 1];
                    }
                }
            }
            UNROLL for (int t = 0; t < n; t++) {
                dots[t] = __builtin_fmaf((float)vaddvq_s32(total[t]), h.d * dx[t][s], dots[t]);
                if (type->has_min) {
                    float dot = (float)dot_minima(type, &h, sums[t] + 16 * s);
                    minima[t] = __builtin_fmaf(dot, h.dmin * dx[t][s], minima[t]);
                }
            }
        }
        UNROLL for (int t = 0; t < n; t++) { a->y[(t0 + t) * a->y_stride + r] = type->has_min ? dots[t] - minima[t] : dots[t]; }
    }
}

/* ---- passes of four tokens and of one ---------------------------------------------------------------------------------- */

ROW_WISE_KERNELS(type, neon)
