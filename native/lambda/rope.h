/* Rotary frequencies as turns in 0.64 fixed point.
 *
 * f_i = round(2^64 * w_i / 2 pi) and phase(p) = p * f_i mod 2^64: multiplication wraps by itself, so positions of 10^10 are
 * as exact as small ones, and phase(p) - phase(q) == phase(p - q) bit for bit. */
#ifndef LMI_LAMBDA_ROPE_H
#define LMI_LAMBDA_ROPE_H

#include <stdbool.h>
#include <stdint.h>

#include "base/status.h"

#ifdef __cplusplus
extern "C" {
#endif

enum { ROPE_MAX_PAIRS = 512 };

typedef struct rope_table {
    int32_t n_rot;   /* values that turn: 2 * pairs */
    float magnitude; /* multiplies cos and sin (YaRN, LongRoPE); 1 elsewhere */
    uint64_t turns[ROPE_MAX_PAIRS];
} rope_table;

typedef enum rope_scaling { ROPE_SCALING_NONE = 0, ROPE_SCALING_LINEAR = 1, ROPE_SCALING_YARN = 2 } rope_scaling;

typedef struct rope_params {
    int32_t n_rot;
    double theta;         /* base */
    const float *factors; /* [n_rot / 2], each divides its frequency (rope_freqs.weight: Llama 3); NULL: none */
    rope_scaling scaling;
    double factor;               /* linear, YaRN: by how much the context was stretched */
    double original_context;     /* YaRN */
    double attention_factor;     /* multiplies cos and sin (LongRoPE, arXiv 2402.13753), beside YaRN's own magnitude; 1 */
    double beta_fast, beta_slow; /* YaRN (arXiv 2309.00071, section 3.2): 32, 1 */
    bool untruncated;            /* YaRN: the ramp's ends are not rounded to whole pairs (gpt-oss) */
} rope_params;

lmi_status rope_table_init(rope_table *table, const rope_params *params, lmi_error *error);

/* cos_sin[n_rot/2][2] at a position, error <= 2e-7 * magnitude. Position 0 gives (magnitude, 0). */
void rope_row(const rope_table *table, int64_t position, float *cos_sin);

#ifdef __cplusplus
}
#endif
#endif
