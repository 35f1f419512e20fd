#include "base/half.h"
#include "kernels/kernels.h"

static void load_f32(const kv_bank *bank, int64_t slot, float *key, float *value) {
    const int64_t d = bank->head_dim;
    const float *keys = (const float *)bank->keys + slot / KV_TILE * d * KV_TILE + slot % KV_TILE;
    const float *values = (const float *)bank->values + slot * d;
    for (int64_t i = 0; i < d; i++) {
        key[i] = keys[i * KV_TILE];
    }
    for (int64_t i = 0; value != NULL && i < d; i++) {
        value[i] = values[i];
    }
}

static void load_f16(const kv_bank *bank, int64_t slot, float *key, float *value) {
    const int64_t d = bank->head_dim;
    const uint16_t *keys = (const uint16_t *)bank->keys + slot / KV_TILE * d * KV_TILE + slot % KV_TILE;
    const uint16_t *values = (const uint16_t *)bank->values + slot * d;
    for (int64_t i = 0; i < d; i++) {
        key[i] = f16_to_f32(keys[i * KV_TILE]);
    }
    for (int64_t i = 0; value != NULL && i < d; i++) {
        value[i] = f16_to_f32(values[i]);
    }
}

static void load_q8_0(const kv_bank *bank, int64_t slot, float *key, float *value) {
    const int64_t d = bank->head_dim, tile = slot / KV_TILE, lane = slot % KV_TILE, n_scales = d / 32;
    const uint8_t *keys = (const uint8_t *)bank->keys + tile * d * KV_TILE + lane * 4;
    const int8_t *values = (const int8_t *)bank->values + slot * d;
    for (int64_t i = 0; i < d; i++) {
        const float key_scale = f16_to_f32(bank->key_scales[(tile * n_scales + i / 32) * KV_TILE + lane]);
        key[i] = key_scale * (float)(keys[i / 4 * KV_TILE * 4 + i % 4] - 128);
    }
    for (int64_t i = 0; value != NULL && i < d; i++) {
        value[i] = f16_to_f32(bank->value_scales[slot * n_scales + i / 32]) * (float)values[i];
    }
}

void kv_load(const kv_bank *bank, int64_t slot, float *key, float *value) {
    (bank->type == LMI_KV_F32 ? load_f32 : bank->type == LMI_KV_F16 ? load_f16 : load_q8_0)(bank, slot, key, value);
}
