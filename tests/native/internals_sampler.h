/* The sampler alone, for the Python tests. Plain declarations: cffi reads this file. */

void *internals_sampler_open(int64_t n_vocab);
void internals_sampler_close(void *sampler);

/* `chances`: temperature, top_p, min_p, typical_p, repeat, frequency and presence penalty. Returns an lmi_status; message [704]. */
int32_t internals_sampler_set(void *sampler, const float *chances, int32_t top_k, int32_t penalty_last, uint64_t seed,
                              char *message);

/* n draws from the same logits [n_vocab]; tokens [n], logprobs [n] or NULL. `history` [4096] as in sampler_draw. */
int32_t internals_sampler_draw(void *sampler, const float *logits, const int32_t *history, int64_t position, int64_t n_known,
                               int64_t n, int32_t *tokens, float *logprobs, char *message);

double internals_logits_nll(const float *logits, int64_t n_vocab, int32_t token);

/* Generator and options, as a saved state has them. */
size_t internals_sampler_state_bytes(void);
void internals_sampler_get_state(void *sampler, void *bytes);
int32_t internals_sampler_put_state(void *sampler, const void *bytes, char *message);
