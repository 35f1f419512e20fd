/* The sampler chain: penalties -> top-k -> typical -> top-p -> min-p -> temperature -> draw (lmi.h, lmi_sampling).
 *
 * Random numbers are PCG64 (XSL-RR 128/64, O'Neill 2014), state and stream filled by SplitMix64 of the seed; one draw a token:
 * the upper 53 bits of an output, divided by 2^53. Lives in memory given by the session; allocates nothing. */
#ifndef LMI_ENGINE_SAMPLER_H
#define LMI_ENGINE_SAMPLER_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "backend/candidates.h"
#include "base/status.h"

typedef struct sampler sampler;

enum { SAMPLER_HISTORY = 4096 };

size_t sampler_bytes(int64_t n_vocab);
sampler *sampler_at(void *memory, int64_t n_vocab); /* `memory`: sampler_bytes, zeroed, 64-byte aligned */
lmi_status sampler_set(sampler *s, const lmi_sampling *sampling, lmi_error *error); /* checks ranges; reseeds */

/* What was read: token of position p is history[p % SAMPLER_HISTORY], for the last min(position, SAMPLER_HISTORY) positions,
 * of which `n_known` are recorded. Logits [n_vocab] are not changed; if all are NaN or -infinity, it fails with LMI_INTERNAL.
 * *logprob (NULL: not wanted) is the token's in the model's own distribution: temperature 1, before penalties and cuts.
 * What each link does exactly is said at the head of sampler.c. Before sampler_set, the most likely token is drawn. */
lmi_status sampler_draw(sampler *s, const float *logits, const int32_t *history, int64_t position, int64_t n_known,
                        int32_t *token, float *logprob, lmi_error *error);

/* The same from a backend's candidates alone, where they tell for sure: then true, and token, generator and log probability
 * (to rounding) are those that sampler_draw gives for the whole row. Else false, and nothing has changed: draw from the whole
 * row. Always true, unless a logit is NaN or +infinity, for the most likely token and for top_k up to LOGIT_CANDIDATES without
 * penalties; with penalties that only lower, it nearly always is for a smaller top_k. Without top_k it depends on where top-p
 * and min-p cut. */
bool sampler_draw_candidates(sampler *s, const logit_candidates *top, const int32_t *history, int64_t position, int64_t n_known,
                             int32_t *token, float *logprob);

/* How the next two tokens will be drawn if a backend's candidates are to tell. False with options by which they often do not: penalties,
 * which need the text, typical_p, heat without a cut, and a top_k beyond them. Nothing changes. */
bool sampler_foresee(const sampler *s, draw_order next[2]);

/* The part that a saved state keeps: options and generator. */
size_t sampler_state_bytes(void);
void *sampler_state(sampler *s);
/* 0 if bytes loaded into sampler_state are options that sampler_set would accept, else a failure. */
lmi_status sampler_check_state(const void *state, lmi_error *error);

#endif
