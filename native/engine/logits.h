/* Passes over a row of logits, and probabilities out of it. */
#ifndef LMI_ENGINE_LOGITS_H
#define LMI_ENGINE_LOGITS_H

#include <stdint.h>

enum { LOGIT_BLOCK = 64 };

/* The largest of each block of LOGIT_BLOCK and of all; NaN is never larger. -infinity if there is nothing else. */
float logits_largest(const float *z, int64_t n, float *block_max);

/* How far a logit is below another: 0 if they are equal, infinite ones too. */
static inline double gap(float z, float largest) { return z == largest ? 0.0 : (double)z - (double)largest; }

/* log softmax(logits)[token], `largest` being their largest; the sum of exponentials is good to about 1e-7. */
double log_probability(const float *logits, int64_t n, int32_t token, float largest);

/* -log softmax(logits)[token], summed in double. +infinity for an id out of range; a NaN among the logits gives NaN. */
double logits_nll(const float *logits, int64_t n_vocab, int32_t token);

#endif
