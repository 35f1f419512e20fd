#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "internals_sampler.h"

#include "engine/logits.h"
#include "engine/sampler.h"

void *internals_sampler_open(int64_t n_vocab) {
    void *memory = aligned_alloc(64, sampler_bytes(n_vocab));
    if (memory == NULL) {
        return NULL;
    }
    memset(memory, 0, sampler_bytes(n_vocab));
    return sampler_at(memory, n_vocab);
}

void internals_sampler_close(void *sampler_) { free(sampler_); }

static int32_t report(lmi_status status, const lmi_error *error, char *message) {
    if (message != NULL) {
        memcpy(message, error->message, sizeof error->message);
    }
    return (int32_t)status;
}

int32_t internals_sampler_set(void *s, const float *chances, int32_t top_k, int32_t penalty_last, uint64_t seed,
                              char *message) {
    lmi_error error = {0};
    lmi_sampling sampling = {.size = sizeof sampling,
                             .temperature = chances[0],
                             .top_k = top_k,
                             .top_p = chances[1],
                             .min_p = chances[2],
                             .typical_p = chances[3],
                             .repeat_penalty = chances[4],
                             .frequency_penalty = chances[5],
                             .presence_penalty = chances[6],
                             .penalty_last = penalty_last,
                             .seed = seed};
    lmi_status status = sampler_set(s, &sampling, &error);
    return report(status, &error, message);
}

int32_t internals_sampler_draw(void *s, const float *logits, const int32_t *history, int64_t position, int64_t n_known,
                               int64_t n, int32_t *tokens, float *logprobs, char *message) {
    lmi_error error = {0};
    lmi_status status = LMI_OK;
    for (int64_t i = 0; i < n && status == LMI_OK; i++) {
        float *logprob = logprobs == NULL ? NULL : logprobs + i;
        status = sampler_draw(s, logits, history, position, n_known, tokens + i, logprob, &error);
    }
    return report(status, &error, message);
}

double internals_logits_nll(const float *logits, int64_t n_vocab, int32_t token) { return logits_nll(logits, n_vocab, token); }

size_t internals_sampler_state_bytes(void) { return sampler_state_bytes(); }

void internals_sampler_get_state(void *s, void *bytes) { memcpy(bytes, sampler_state(s), sampler_state_bytes()); }

int32_t internals_sampler_put_state(void *s, const void *bytes, char *message) {
    lmi_error error = {0};
    lmi_status status = sampler_check_state(bytes, &error);
    if (status == LMI_OK) {
        memcpy(sampler_state(s), bytes, sampler_state_bytes());
    }
    return report(status, &error, message);
}
