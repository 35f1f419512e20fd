/* The bodies of the vector kernels, written once in plain C. Every column includes them and the compiler makes vectors of the
 * column's width out of them; with no contraction to fused operations all columns agree bit for bit. */
#ifndef LMI_KERNELS_VECTOR_H
#define LMI_KERNELS_VECTOR_H

#include <math.h>
#include <stdbool.h>
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

/* exp(x) = (1 + p) * 2^n for EXP_LOW <= x <= EXP_HIGH; NaN gives a NaN p. */
static inline float exp_parts(float x, int32_t *n) {
    const float shifted = x * EXP_LOG2_E + EXP_MAGIC;
    const float k = shifted - EXP_MAGIC;
    const float r = (x - k * EXP_LN2_HIGH) - k * EXP_LN2_LOW;
    float q = EXP_C6;
    q = q * r + EXP_C5;
    q = q * r + EXP_C4;
    q = q * r + EXP_C3;
    q = q * r + EXP_C2;
    *n = (int32_t)(f32_to_bits(shifted) & 0x3ff) - ((int32_t)(f32_to_bits(shifted) & 0x200) << 1);
    return r + r * r * q;
}

/* exp(x) = m * 2^n */
static inline float exp_split(float x, int32_t *n) { return 1.0f + exp_parts(x, n); }

/* x * 2^n for |n| <= 250, rounded once: the first factor leaves x normal. */
static inline float times_power(float x, int32_t n) {
    const int32_t half = n >> 1;
    x *= f32_from_bits((uint32_t)(half + 127) << 23);
    return x * f32_from_bits((uint32_t)(n - half + 127) << 23);
}

/* Choices are masks of integers: compilers do not make vectors of branches. */
static inline float choose(int32_t mask, float yes, float no) {
    return f32_from_bits((f32_to_bits(yes) & (uint32_t)mask) | (f32_to_bits(no) & ~(uint32_t)mask));
}

/* min(|x|, most), NaN for NaN. */
static inline float size_up_to(float most, float x) {
    const int32_t size = (int32_t)(f32_to_bits(x) & 0x7fffffff), end = (int32_t)f32_to_bits(most), infinite = 0x7f800000;
    return choose(-((size > end) & (size <= infinite)), most, f32_from_bits((uint32_t)size));
}

/* x with its size cut off at `limit`. */
static inline float within(float limit, float x) { return choose(INT32_MIN, x, size_up_to(limit, x)); }

/* x / (1 + exp(-u)) where u has the sign of x: as it stands for u >= 0, and x exp(u) / (1 + exp(u)) below. Nothing overflows,
 * and 2^n comes last so that small results keep their digits. A negative x beyond -most counts as that: the result is 0. */
static inline float times_logistic(float x, float u, float most) {
    const int32_t negative = (int32_t)f32_to_bits(x) >> 31;
    int32_t n;
    const float m = exp_split(-size_up_to(-EXP_LOW, u), &n);
    const float e = times_power(m, n);
    return times_power(choose(negative, -size_up_to(most, x) * m, x) / (1.0f + e), n & negative);
}

static inline float silu(float x) { return times_logistic(x, x, -EXP_LOW); }

/* By tanh(u) = 1 - 2 / (1 + exp(2u)), gelu(x) = x / (1 + exp(-2u)) with 2u = x (GELU_FIRST + GELU_THIRD x^2): nothing cancels
 * where results are small. From |x| = 16 on it is x or 0. */
#define GELU_FIRST 0x1.988454p+0f /* 2 sqrt(2 / pi) */
#define GELU_THIRD 0x1.2444f2p-4f /* the same times 0.044715 */
static inline float gelu_tanh(float x) {
    const float size = size_up_to(16.0f, x);
    const float u = size * (GELU_FIRST + GELU_THIRD * (size * size));
    return times_logistic(x, choose(INT32_MIN, x, u), 16.0f);
}

/* gelu(x) = x Phi(x), and Phi(-a) = exp(-a^2 / 2) t P(t) for a >= 0 with t = 1 / (1 + TAIL_T a): P, of degree 8, is minimax in
 * relative error over 0 <= a <= 14.5, 1.3e-8 before rounding. Beyond that Phi(-a) is 0 as a float. */
#define TAIL_END 14.5f
#define TAIL_T 0.265625f
#define TAIL_P0 0x1.b22116p-4f
#define TAIL_P1 0x1.b049b4p-4f
#define TAIL_P2 0x1.a414c2p-4f
#define TAIL_P3 0x1.fae6fp-5f
#define TAIL_P4 0x1.128a26p-3f
#define TAIL_P5 -0x1.c448eap-4f
#define TAIL_P6 0x1.b21fc6p-3f
#define TAIL_P7 -0x1.2344fep-3f
#define TAIL_P8 0x1.f63036p-6f
static inline float gelu_erf(float x) {
    const float a = size_up_to(TAIL_END, x), t = 1.0f / (1.0f + TAIL_T * a);
    float q = TAIL_P8;
    q = q * t + TAIL_P7;
    q = q * t + TAIL_P6;
    q = q * t + TAIL_P5;
    q = q * t + TAIL_P4;
    q = q * t + TAIL_P3;
    q = q * t + TAIL_P2;
    q = q * t + TAIL_P1;
    q = q * t + TAIL_P0;
    int32_t n;
    const float m = exp_split(-0.5f * (a * a), &n);
    const float tail = times_power(a * (q * t * m), n);
    return choose((int32_t)f32_to_bits(x) >> 31, -tail, x - tail);
}

#define OAI_ALPHA 1.702f
#define OAI_LIMIT 7.0f
static inline float swiglu_oai(float x) {
    const float c = choose((int32_t)f32_to_bits(x) >> 31, x, size_up_to(OAI_LIMIT, x));
    return times_logistic(c, OAI_ALPHA * c, -EXP_LOW);
}

/* tanh(x) = -e / (2 + e) with e = exp(-2 |x|) - 1 = p 2^n + (2^n - 1), which keeps its digits for small x. From TANH_ONE on
 * it is 1. */
#define TANH_ONE 10.0f
static inline float tanh_f32(float x) {
    int32_t n;
    const float p = exp_parts(-2.0f * size_up_to(TANH_ONE, x), &n);
    const float power = f32_from_bits((uint32_t)(n + 127) << 23);
    const float e = p * power + (power - 1.0f);
    return choose(INT32_MIN, x, e / (2.0f + e));
}

/* In the loops below a piece is finished before it is written: the output may be the input, and the compiler need not ask. */
enum { VECTOR_PIECE = 16 };

static inline float factor_of(activation kind, float up) {
    return kind == ACTIVATION_SWIGLU_OAI ? 1.0f + within(OAI_LIMIT, up) : up;
}

static inline float activated(activation kind, float x) {
    switch (kind) {
    case ACTIVATION_GELU_TANH:
        return gelu_tanh(x);
    case ACTIVATION_GELU_ERF:
        return gelu_erf(x);
    case ACTIVATION_SWIGLU_OAI:
        return swiglu_oai(x);
    case ACTIVATION_SILU:
    case ACTIVATIONS:
        break;
    }
    return silu(x);
}

/* `kind` is a constant where this is inlined. */
static inline __attribute__((always_inline)) void activate_body(activation kind, const float *gate, const float *up, int64_t n,
                                                                float *h) {
    const int64_t whole = n / VECTOR_PIECE * VECTOR_PIECE;
    for (int64_t i = 0; i < whole; i += VECTOR_PIECE) {
        float piece[VECTOR_PIECE];
        for (int j = 0; j < VECTOR_PIECE; j++) {
            piece[j] = activated(kind, gate[i + j]);
        }
        if (up != NULL) {
            for (int j = 0; j < VECTOR_PIECE; j++) {
                piece[j] *= factor_of(kind, up[i + j]);
            }
        }
        memcpy(h + i, piece, sizeof piece);
    }
    for (int64_t i = whole; i < n; i++) {
        const float value = activated(kind, gate[i]);
        h[i] = up == NULL ? value : value * factor_of(kind, up[i]);
    }
}

/* Sum of x - shift, or of its squares, in double: for shift 0 the squares are exact there. In one order everywhere. */
static inline __attribute__((always_inline)) double sum_of(const float *x, int64_t n, double shift, bool squares) {
    double sums[VECTOR_PIECE] = {0};
    const int64_t whole = n / VECTOR_PIECE * VECTOR_PIECE;
    for (int64_t i = 0; i < whole; i += VECTOR_PIECE) {
        for (int j = 0; j < VECTOR_PIECE; j++) {
            const double value = (double)x[i + j] - shift;
            sums[j] += squares ? value * value : value;
        }
    }
    for (int64_t i = whole; i < n; i++) {
        const double value = (double)x[i] - shift;
        sums[i - whole] += squares ? value * value : value;
    }
    for (int width = VECTOR_PIECE / 2; width > 0; width /= 2) {
        for (int j = 0; j < width; j++) {
            sums[j] += sums[j + width];
        }
    }
    return sums[0];
}

static inline void rms_norm_body(const float *x, const float *w, int64_t n, float eps, float *y) {
    const int64_t whole = n / VECTOR_PIECE * VECTOR_PIECE;
    const float factor = (float)(1.0 / sqrt(sum_of(x, n, 0.0, true) / (double)n + (double)eps));
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

/* The mean first, then the squares of what differs from it: nothing cancels. */
static inline void layer_norm_body(const float *x, const float *w, const float *b, int64_t n, float eps, float *y) {
    const int64_t whole = n / VECTOR_PIECE * VECTOR_PIECE;
    const double mean = sum_of(x, n, 0.0, false) / (double)n;
    const double factor = 1.0 / sqrt(sum_of(x, n, mean, true) / (double)n + (double)eps);
    for (int64_t i = 0; i < n; i += VECTOR_PIECE) {
        float piece[VECTOR_PIECE] = {0};
        const int width = i < whole ? VECTOR_PIECE : (int)(n - whole);
        if (width == VECTOR_PIECE) {
            for (int j = 0; j < VECTOR_PIECE; j++) {
                piece[j] = (float)(((double)x[i + j] - mean) * factor);
            }
        } else {
            for (int j = 0; j < width; j++) {
                piece[j] = (float)(((double)x[i + j] - mean) * factor);
            }
        }
        for (int j = 0; w != NULL && j < width; j++) {
            piece[j] *= w[i + j];
        }
        for (int j = 0; b != NULL && j < width; j++) {
            piece[j] += b[i + j];
        }
        memcpy(y + i, piece, (size_t)width * sizeof *piece);
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

static inline void softcap_body(float *x, float cap, int64_t n) {
    const float inverse = 1.0f / cap;
    for (int64_t i = 0; i < n; i++) {
        x[i] = cap * tanh_f32(x[i] * inverse);
    }
}

static inline void clamp_body(float *x, float limit, int64_t n) {
    for (int64_t i = 0; i < n; i++) {
        x[i] = within(limit, x[i]);
    }
}

static inline void add_body(float *x, const float *y, int64_t n) {
    for (int64_t i = 0; i < n; i++) {
        x[i] += y[i];
    }
}

/* Four sums for each box, so that additions do not wait for one another; `lanes` boxes at a time, a constant, as many as have
 * room in registers. One line for each dimension of a tile: it is asked for as its neighbours are added up, since a burst of
 * requests would wait for itself. */
static inline __attribute__((always_inline)) void box_bounds_body(const float *q, const uint16_t *tile, const uint16_t *next,
                                                                  int64_t d, int lanes, float *bounds) {
    enum { FAN = 32, MOST = 32 };
    const int64_t whole = d / 4 * 4;
    for (int at = 0; at < FAN; at += lanes) {
        float sums[4][MOST] = {{0}};
        for (int64_t i = 0; i < whole; i += 4) {
            for (int k = 0; k < 4; k++) {
                const int64_t row = ((i + k) * 2 + (q[i + k] <= 0.0f)) * FAN;
                if (at == 0 && next != NULL) {
                    __builtin_prefetch(next + row);
                }
                for (int j = 0; j < lanes; j++) {
                    sums[k][j] += q[i + k] * bf16_to_f32(tile[row + at + j]);
                }
            }
        }
        for (int64_t i = whole; i < d; i++) {
            const uint16_t *row = tile + (i * 2 + (q[i] <= 0.0f)) * FAN + at;
            for (int j = 0; j < lanes; j++) {
                sums[0][j] += q[i] * bf16_to_f32(row[j]);
            }
        }
        for (int j = 0; j < lanes; j++) {
            bounds[at + j] = (sums[0][j] + sums[1][j]) + (sums[2][j] + sums[3][j]);
        }
    }
}

static inline void scale_body(float *x, float factor, int64_t n) {
    for (int64_t i = 0; i < n; i++) {
        x[i] *= factor;
    }
}

#endif
