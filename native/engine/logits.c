#include "engine/logits.h"

#include <math.h>

#include "base/half.h"

enum { LANES = 16 };

/* Inner loops run over a fixed number of lanes, which the compiler turns into vector code of any width. */

float logits_largest(const float *z, int64_t n, float *block_max) {
    float largest = -INFINITY;
    for (int64_t begin = 0; begin < n; begin += LOGIT_BLOCK) {
        int64_t end = n - begin < LOGIT_BLOCK ? n : begin + LOGIT_BLOCK;
        float lane[LANES];
        for (int j = 0; j < LANES; j++) {
            lane[j] = -INFINITY;
        }
        int64_t i = begin;
        for (; i + LANES <= end; i += LANES) {
            for (int j = 0; j < LANES; j++) {
                lane[j] = z[i + j] > lane[j] ? z[i + j] : lane[j];
            }
        }
        for (; i < end; i++) {
            lane[0] = z[i] > lane[0] ? z[i] : lane[0];
        }
        for (int j = 1; j < LANES; j++) {
            lane[0] = lane[j] > lane[0] ? lane[j] : lane[0];
        }
        block_max[begin / LOGIT_BLOCK] = lane[0];
        largest = lane[0] > largest ? lane[0] : largest;
    }
    return largest;
}

/* exp(x) for x <= 0, to about 1e-7 of itself; what is below -87, and NaN, counts as -87 (1.6e-38). That limit is put on the
 * bits, as integers, because the compiler turns a comparison of floats into a jump.
 * x = n log 2 + r, |r| <= log(2) / 2; log 2 in two pieces of which the first times n is exact; Taylor's series to r^7. */
static inline float exp_lane(float x) {
    const int32_t most = 0x42ae0000; /* 87 */
    int32_t magnitude = (int32_t)(f32_to_bits(x) & 0x7fffffffu);
    x = -f32_from_bits((uint32_t)(magnitude < most ? magnitude : most));
    float shifted = x * 1.44269504f + 0x1.8p23f; /* the low bits are now n, rounded to nearest */
    float n = shifted - 0x1.8p23f;
    float r = (x - n * 0x1.63p-1f) - n * -0x1.bd0106p-13f;
    float p = 1.0f / 5040;
    p = p * r + 1.0f / 720;
    p = p * r + 1.0f / 120;
    p = p * r + 1.0f / 24;
    p = p * r + 1.0f / 6;
    p = p * r + 0.5f;
    p = p * r + 1.0f;
    p = p * r + 1.0f;
    return p * f32_from_bits((f32_to_bits(shifted) + 127) << 23);
}

/* The sum of exp(z - largest), for a finite largest. Lanes are added up in double before rounding can gather in them. */
static double sum_exp(const float *z, int64_t n, float largest) {
    double total = 0;
    for (int64_t begin = 0; begin < n; begin += LANES * LANES) {
        int64_t size = n - begin < LANES * LANES ? n - begin : LANES * LANES;
        float power[LANES * LANES], lane[LANES] = {0};
        for (int64_t i = 0; i < size; i++) {
            power[i] = exp_lane(z[begin + i] - largest);
        }
        for (int64_t i = size; i < LANES * LANES; i++) {
            power[i] = 0.0f;
        }
        for (int i = 0; i < LANES * LANES; i += LANES) {
            for (int j = 0; j < LANES; j++) {
                lane[j] += power[i + j];
            }
        }
        for (int j = 0; j < LANES; j++) {
            total += (double)lane[j];
        }
    }
    return total;
}

double log_probability(const float *logits, int64_t n, int32_t token, float largest) {
    if (largest == INFINITY) {
        int64_t n_infinite = 0;
        for (int64_t i = 0; i < n; i++) {
            n_infinite += logits[i] == INFINITY;
        }
        return logits[token] == INFINITY ? -log((double)n_infinite) : -INFINITY;
    }
    return gap(logits[token], largest) - log(sum_exp(logits, n, largest));
}

double logits_nll(const float *logits, int64_t n_vocab, int32_t token) {
    if (token < 0 || token >= n_vocab) {
        return INFINITY;
    }
    float largest = -INFINITY;
    for (int64_t i = 0; i < n_vocab; i++) {
        largest = logits[i] > largest ? logits[i] : largest;
    }
    if (largest == INFINITY || largest == -INFINITY) {
        return largest == INFINITY ? -log_probability(logits, n_vocab, token, largest) : NAN;
    }
    double total = 0; /* a NaN among the logits gives NaN: a measurement must not hide it */
    for (int64_t i = 0; i < n_vocab; i++) {
        total += exp((double)logits[i] - (double)largest);
    }
    return log(total) - ((double)logits[token] - (double)largest);
}
