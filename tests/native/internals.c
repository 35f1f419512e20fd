#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "internals.h"

#include "kernels/kernels.h"
#include "lambda/rope.h"
#include "lambda/window.h"

static const kernels *table_of(int32_t isa) {
    const kernels *table = NULL;
    kernels_get((lmi_isa)isa, &table, NULL);
    return table;
}

int32_t internals_isa_available(int32_t isa) { return table_of(isa) != NULL; }

int32_t internals_rope_init(int32_t n_rot, const double *numbers, const float *factors, int32_t scaling, uint64_t *turns,
                            float *magnitude, char *message) {
    const rope_params params = {.n_rot = n_rot,
                                .theta = numbers[0],
                                .factors = factors,
                                .scaling = (rope_scaling)scaling,
                                .factor = numbers[1],
                                .original_context = numbers[2],
                                .attention_factor = numbers[3],
                                .beta_fast = numbers[4],
                                .beta_slow = numbers[5],
                                .untruncated = numbers[6] != 0};
    rope_table table;
    lmi_error error = {0};
    const lmi_status status = rope_table_init(&table, &params, &error);
    memcpy(message, error.message, sizeof error.message);
    if (status == LMI_OK) {
        memcpy(turns, table.turns, (size_t)n_rot / 2 * sizeof *turns);
        *magnitude = table.magnitude;
    }
    return (int32_t)status;
}

void internals_rope_row(int32_t n_rot, float magnitude, const uint64_t *turns, int64_t position, float *cos_sin) {
    rope_table table = {.n_rot = n_rot, .magnitude = magnitude};
    memcpy(table.turns, turns, (size_t)n_rot / 2 * sizeof *turns);
    rope_row(&table, position, cos_sin);
}

void internals_rope(int32_t isa, float *x, int64_t n_heads, int64_t head_dim, int64_t n_rot, const float *cos_sin,
                    int32_t pairing) {
    table_of(isa)->rope(x, n_heads, head_dim, n_rot, cos_sin, (rope_pairing)pairing);
}

int64_t internals_ring_capacity(int64_t window, int64_t chunk, int64_t rollback) {
    return ring_capacity(window, chunk, rollback);
}

int32_t internals_band_slots(int64_t first, int64_t last, int64_t window, int64_t capacity, int64_t *ranges) {
    slot_range found[2] = {{0, 0}, {0, 0}};
    const int n = band_slots(first, last, window, capacity, found);
    memcpy(ranges, found, sizeof found);
    return n;
}

int64_t internals_active_sinks(int64_t position, int64_t window, int64_t sinks) {
    return active_sinks(position, window, sinks);
}

void *internals_bank_open(int32_t type, int32_t head_dim, int64_t n_slots, int32_t fill) {
    const int64_t slots = kv_round_slots(n_slots);
    const size_t bytes = kv_bank_bytes((lmi_kv_type)type, head_dim, slots);
    kv_bank *bank = malloc(sizeof *bank);
    void *memory = aligned_alloc(64, bytes > 0 ? bytes : 64);
    if (bank == NULL || memory == NULL) {
        free(bank);
        free(memory);
        return NULL;
    }
    memset(memory, fill, bytes);
    *bank = kv_bank_at(memory, (lmi_kv_type)type, head_dim, slots);
    return bank;
}

void internals_bank_close(void *handle) {
    kv_bank *bank = handle;
    if (bank != NULL) {
        free(bank->keys);
        free(bank);
    }
}

size_t internals_bank_bytes(const void *handle) {
    const kv_bank *bank = handle;
    return kv_bank_bytes(bank->type, bank->head_dim, bank->n_slots);
}

void internals_bank_copy(const void *handle, void *bytes) {
    memcpy(bytes, ((const kv_bank *)handle)->keys, internals_bank_bytes(handle));
}

void internals_kv_store(int32_t isa, void *handle, int64_t slot, const float *key, const float *value) {
    const kv_bank *bank = handle;
    table_of(isa)->kv_store[bank->type](bank, slot, key, value);
}

int32_t internals_attend(int32_t isa, const void *handle, int32_t sinks, const float *q, int64_t n_rows, int64_t rows_per_token,
                         int64_t first_pos, int64_t newest, int64_t n_slots_used, int64_t window, int64_t slot0, int64_t slot1,
                         float softcap, const float *slopes, float *m, float *z, float *o) {
    const kernels *k = table_of(isa);
    const kv_bank *bank = handle;
    void *scratch = aligned_alloc(64, (k->attend_scratch(n_rows, bank->head_dim) + 63) / 64 * 64);
    if (scratch == NULL) {
        return -1;
    }
    const attend_args args = {.bank = bank,
                              .q = q,
                              .n_rows = n_rows,
                              .rows_per_token = rows_per_token,
                              .first_pos = first_pos,
                              .newest = newest,
                              .n_slots_used = n_slots_used,
                              .window = window,
                              .distance = window,
                              .slot0 = slot0,
                              .slot1 = slot1,
                              .softcap = softcap,
                              .slopes = slopes,
                              .m = m,
                              .z = z,
                              .o = o,
                              .scratch = scratch};
    (sinks ? k->attend_sinks : k->attend_ring)[bank->type](&args);
    free(scratch);
    return 0;
}
