/* The bodies of the vector kernels, written once in plain C. Every column includes them and the compiler makes vectors of the
 * column's width out of them; with no contraction to fused operations all columns agree bit for bit. */
#ifndef LMI_KERNELS_VECTOR_H
#define LMI_KERNELS_VECTOR_H

#include <math.h>
#include <stdint.h>
#include <string.h>

#include "base/half.h"
#include "kernels/kernels.h"

/* exp(r) = 1 + r + r^2 (C2 + C3 r + ... + C6 r^4) for |r| <= ln 2 / 2: minimax in relative error, 3e-9 before rounding. */
#define EXP_C2 0x1.fffffcp-2f
#define EXP_C3 0x1.555492p-3f
#define EXP_C4 0x1.5558f2p-5f
#define EXP_C5 0x1.123a2p-7f
#define EXP_C6 0x1.6a23dp-10f
#define EXP_MAGIC 12582912.0f /* 1.5 * 2^23: adding it rounds to an integer, which then stands in the low bits */
#define EXP_LOG2_E 0x1.715476p+0f
/* ln 2 in two parts (Cody and Waite): the high one is short enough for n * high to be exact. */
#define EXP_LN2_HIGH 0x1.62e4p-1f
#define EXP_LN2_LOW 0x1.7f7d1cp-20f
/* Beyond these the result is 0 or infinity in any case. */
#define EXP_LOW -120.0f
#define EXP_HIGH 89.0f
/* From here on exp is a normal float (2^-126 is exp(-87.336)). Results below cost x86 an assist of some 200 cycles each: weights
 * of attention are cut off here. */
#define EXP_NORMAL -87.33f

/* exp(x) = m * 2^n for EXP_LOW <= x <= EXP_HIGH; NaN gives a NaN m. */
static inline float exp_split(float x, int32_t *n) {
    const float shifted = x * EXP_LOG2_E + EXP_MAGIC;
    const float k = shifted - EXP_MAGIC;
    const float r = (x - k * EXP_LN2_HIGH) - k * EXP_LN2_LOW;
    float q = EXP_C6;
    q = q * r + EXP_C5;
    q = q * r + EXP_C4;
    q = q * r + EXP_C3;
    q = q * r + EXP_C2;
    *n = (int32_t)(f32_to_bits(shifted) & 0x3ff) - ((int32_t)(f32_to_bits(shifted) & 0x200) << 1);
    return 1.0f + (r + r * r * q);
}

/* x * 2^n for |n| <= 250, rounded once: the first factor leaves x normal. */
static inline float times_power(float x, int32_t n) {
    const int32_t half = n >> 1;
    x *= f32_from_bits((uint32_t)(half + 127) << 23);
    return x * f32_from_bits((uint32_t)(n - half + 127) << 23);
}

/* x / (1 + exp(-x)) for x >= 0 and x exp(x) / (1 + exp(x)) below: nothing overflows, and 2^n comes last so that small results
 * keep their digits. Choices are masks of integers: compilers do not make vectors of branches. */
static inline float silu(float x) {
    const int32_t bits = (int32_t)f32_to_bits(x), size = bits & 0x7fffffff, negative = bits >> 31;
    const int32_t low = 0x42f00000, infinite = 0x7f800000; /* -EXP_LOW */
    const int32_t far = -((size > low) & (size <= infinite)), clamped = (low & far) | (size & ~far);
    const float a = -f32_from_bits((uint32_t)clamped); /* -|x| */
    int32_t n;
    const float m = exp_split(a, &n);
    const float e = times_power(m, n);
    const float top = f32_from_bits((uint32_t)(((int32_t)f32_to_bits(a * m) & negative) | (bits & ~negative)));
    return times_power(top / (1.0f + e), n & negative);
}

/* In the loops below a piece is finished before it is written: the output may be the input, and the compiler need not ask. */
enum { VECTOR_PIECE = 16 };

static inline void silu_mul_body(const float *gate, const float *up, int64_t n, float *h) {
    const int64_t whole = n / VECTOR_PIECE * VECTOR_PIECE;
    for (int64_t i = 0; i < whole; i += VECTOR_PIECE) {
        float piece[VECTOR_PIECE];
        for (int j = 0; j < VECTOR_PIECE; j++) {
            piece[j] = silu(gate[i + j]) * up[i + j];
        }
        memcpy(h + i, piece, sizeof piece);
    }
    for (int64_t i = whole; i < n; i++) {
        h[i] = silu(gate[i]) * up[i];
    }
}

/* Sums in double: the squares of floats are exact there. */
static inline void rms_norm_body(const float *x, const float *w, int64_t n, float eps, float *y) {
    double sums[VECTOR_PIECE] = {0};
    const int64_t whole = n / VECTOR_PIECE * VECTOR_PIECE;
    for (int64_t i = 0; i < whole; i += VECTOR_PIECE) {
        for (int j = 0; j < VECTOR_PIECE; j++) {
            sums[j] += (double)x[i + j] * (double)x[i + j];
        }
    }
    for (int64_t i = whole; i < n; i++) {
        sums[i - whole] += (double)x[i] * (double)x[i];
    }
    for (int width = VECTOR_PIECE / 2; width > 0; width /= 2) {
        for (int j = 0; j < width; j++) {
            sums[j] += sums[j + width];
        }
    }
    const float factor = (float)(1.0 / sqrt(sums[0] / (double)n + (double)eps));
    for (int64_t i = 0; i < whole; i += VECTOR_PIECE) {
        float piece[VECTOR_PIECE];
        for (int j = 0; j < VECTOR_PIECE; j++) {
            piece[j] = x[i + j] * factor * w[i + j];
        }
        memcpy(y + i, piece, sizeof piece);
    }
    for (int64_t i = whole; i < n; i++) {
        y[i] = x[i] * factor * w[i];
    }
}

static inline void rope_body(float *x, int64_t n_heads, int64_t head_dim, int64_t n_rot, const float *cos_sin,
                             rope_pairing pairing) {
    const int64_t pairs = n_rot / 2;
    for (int64_t h = 0; h < n_heads; h++) {
        float *head = x + h * head_dim;
        if (pairing == ROPE_ADJACENT) {
            for (int64_t i = 0; i < pairs; i++) {
                const float c = cos_sin[2 * i], s = cos_sin[2 * i + 1], a = head[2 * i], b = head[2 * i + 1];
                /* a * c - b * s; written so, GCC 12 would fuse the difference with one product, contraction or not. */
                const float negative_s = f32_from_bits(f32_to_bits(s) ^ 0x80000000u);
                head[2 * i] = a * c + b * negative_s;
                head[2 * i + 1] = b * c + a * s;
            }
        } else {
            for (int64_t i = 0; i < pairs; i++) {
                const float c = cos_sin[2 * i], s = cos_sin[2 * i + 1], a = head[i], b = head[i + pairs];
                head[i] = a * c - b * s;
                head[i + pairs] = a * s + b * c;
            }
        }
    }
}

static inline void add_body(float *x, const float *y, int64_t n) {
    for (int64_t i = 0; i < n; i++) {
        x[i] += y[i];
    }
}

static inline void scale_body(float *x, float factor, int64_t n) {
    for (int64_t i = 0; i < n; i++) {
        x[i] *= factor;
    }
}

#endif
