/* The bytes of a bank of keys and values: one layer, one kv head, either a ring or a sink store.
 *
 * Slots lie in tiles of 16. Keys are transposed inside a tile, so that 16 dot products grow side by side; values are rows.
 *
 *            keys                                    values
 *   F32      float  [tile][d][16]                    float  [slot][d]
 *   F16      uint16 [tile][d][16]                    uint16 [slot][d]
 *   Q8_0     uint8  [tile][d/4][16][4], q + 128      int8   [slot][d]
 *            uint16 [tile][d/32][16]  f16 scales     uint16 [slot][d/32]
 *
 * Order in memory: keys, key scales, values, value scales, each 64-byte aligned. Every writer and reader includes this. */
#ifndef LMI_KERNELS_KV_TILE_H
#define LMI_KERNELS_KV_TILE_H

#include <stddef.h>
#include <stdint.h>

#include "lmi.h"

enum { KV_TILE = 16, KV_TYPES = 3 };

typedef struct kv_bank {
    lmi_kv_type type;
    int32_t head_dim; /* d: even; a multiple of 32 for Q8_0 */
    int64_t n_slots;  /* a multiple of KV_TILE */
    void *keys;
    void *values;
    uint16_t *key_scales;   /* Q8_0 */
    uint16_t *value_scales; /* Q8_0 */
} kv_bank;

static inline size_t kv_round(size_t bytes) { return (bytes + 63) / 64 * 64; }
static inline int64_t kv_round_slots(int64_t n) { return (n + KV_TILE - 1) / KV_TILE * KV_TILE; }
static inline size_t kv_value_bytes(lmi_kv_type type) { return type == LMI_KV_F32 ? 4 : type == LMI_KV_F16 ? 2 : 1; }

static inline size_t kv_bank_bytes(lmi_kv_type type, int64_t head_dim, int64_t n_slots) {
    size_t n = (size_t)head_dim * (size_t)n_slots;
    size_t scales = type == LMI_KV_Q8_0 ? kv_round(n / 32 * sizeof(uint16_t)) : 0;
    return 2 * (kv_round(n * kv_value_bytes(type)) + scales);
}

/* `memory`: kv_bank_bytes, zeroed, 64-byte aligned. */
static inline kv_bank kv_bank_at(void *memory, lmi_kv_type type, int32_t head_dim, int64_t n_slots) {
    size_t n = (size_t)head_dim * (size_t)n_slots;
    size_t data = kv_round(n * kv_value_bytes(type));
    size_t half = kv_bank_bytes(type, head_dim, n_slots) / 2;
    char *base = (char *)memory;
    kv_bank bank = {type, head_dim, n_slots, base, base + half, NULL, NULL};
    if (type == LMI_KV_Q8_0) {
        bank.key_scales = (uint16_t *)(void *)(base + data);
        bank.value_scales = (uint16_t *)(void *)(base + half + data);
    }
    return bank;
}

#endif
