/* Kernels of the Λ attention, for the Python tests: rope tables, index arithmetic, banks. Plain declarations: cffi reads this file.
 * `isa` is an lmi_isa, `type` an lmi_kv_type. */

int32_t internals_isa_available(int32_t isa);

/* `numbers`: theta, factor, original_context, attention_factor, beta_fast, beta_slow, untruncated. `factors` [n_rot / 2] or NULL. Fills turns
 * [n_rot / 2] and *magnitude. Returns an lmi_status; message [704]. */
int32_t internals_rope_init(int32_t n_rot, const double *numbers, const float *factors, int32_t scaling, uint64_t *turns,
                            float *magnitude, char *message);
void internals_rope_row(int32_t n_rot, float magnitude, const uint64_t *turns, int64_t position, float *cos_sin);
void internals_rope(int32_t isa, float *x, int64_t n_heads, int64_t head_dim, int64_t n_rot, const float *cos_sin,
                    int32_t pairing);

int64_t internals_ring_capacity(int64_t window, int64_t chunk, int64_t rollback);
int32_t internals_band_slots(int64_t first, int64_t last, int64_t window, int64_t capacity, int64_t *ranges); /* [4] */
int64_t internals_active_sinks(int64_t position, int64_t window, int64_t sinks);

/* A bank of at least n_slots, every byte `fill`; NULL without memory. */
void *internals_bank_open(int32_t type, int32_t head_dim, int64_t n_slots, int32_t fill);
void internals_bank_close(void *bank);
size_t internals_bank_bytes(const void *bank);
void internals_bank_copy(const void *bank, void *bytes);
void internals_kv_store(int32_t isa, void *bank, int64_t slot, const float *key, const float *value);

/* As attend_args of kernels.h; returns 0, or -1 without memory for scratch. */
int32_t internals_attend(int32_t isa, const void *bank, int32_t sinks, const float *q, int64_t n_rows, int64_t rows_per_token,
                         int64_t first_pos, int64_t newest, int64_t n_slots_used, int64_t window, int64_t slot0, int64_t slot1,
                         float softcap, const float *slopes, float *m, float *z, float *o);
