#include "kernels/attention.h"
#include "kernels/fill.h"

/* ---- storing ------------------------------------------------------------------------------------------------------ */

static void kv_store_f32(const kv_bank *bank, int64_t slot, const float *key, const float *value) {
    const int64_t d = bank->head_dim;
    float *keys = (float *)bank->keys + slot / KV_TILE * d * KV_TILE + slot % KV_TILE;
    float *values = (float *)bank->values + slot * d;
    for (int64_t i = 0; i < d; i++) {
        keys[i * KV_TILE] = key[i];
        values[i] = value[i];
    }
}

static void kv_store_f16(const kv_bank *bank, int64_t slot, const float *key, const float *value) {
    const int64_t d = bank->head_dim;
    uint16_t *keys = (uint16_t *)bank->keys + slot / KV_TILE * d * KV_TILE + slot % KV_TILE;
    uint16_t *values = (uint16_t *)bank->values + slot * d;
    for (int64_t i = 0; i < d; i++) {
        keys[i * KV_TILE] = f32_to_f16(key[i]);
        values[i] = f32_to_f16(value[i]);
    }
}

/* 32 values to int8 with one f16 scale. The scale is rounded first and the values divided by what was stored, so each is within
 * half a step of what is read back. Values that are not finite, or too large for the scale, make the scale NaN: they show. */
static uint16_t round_to_int8(const float *x, int8_t *q) {
    float max = 0;
    bool sound = true;
    for (int i = 0; i < 32; i++) {
        const float size = fabsf(x[i]);
        sound = sound && size <= 65504.0f * 127.0f;
        max = size > max ? size : max;
    }
    const uint16_t scale = sound ? f32_to_f16(max / 127.0f) : 0x7e00u;
    const float step = f16_to_f32(scale), magic = 12582912.0f;
    for (int i = 0; i < 32; i++) {
        const float level = step > 0 ? (x[i] / step + magic) - magic : 0; /* to nearest, ties to even; a NaN step gives 0 */
        q[i] = (int8_t)(level > 127 ? 127 : level < -127 ? -127 : level);
    }
    return scale;
}

static void kv_store_q8_0(const kv_bank *bank, int64_t slot, const float *key, const float *value) {
    const int64_t d = bank->head_dim, tile = slot / KV_TILE, lane = slot % KV_TILE, n_scales = d / 32;
    uint8_t *keys = (uint8_t *)bank->keys + tile * d * KV_TILE + lane * 4;
    int8_t *values = (int8_t *)bank->values + slot * d;
    for (int64_t block = 0; block < n_scales; block++) {
        int8_t q[32];
        bank->key_scales[(tile * n_scales + block) * KV_TILE + lane] = round_to_int8(key + block * 32, q);
        for (int64_t i = 0; i < 32; i++) {
            keys[(block * 8 + i / 4) * KV_TILE * 4 + i % 4] = (uint8_t)(q[i] + 128);
        }
        bank->value_scales[slot * n_scales + block] = round_to_int8(value + block * 32, values + block * 32);
    }
}

/* ---- attending: one row at a time ---------------------------------------------------------------------------------- */

/* logits[16] of a tile. */
static void logits_f32(const kv_bank *bank, int64_t tile, const float *q, float *logits) {
    const float *keys = (const float *)bank->keys + tile * bank->head_dim * KV_TILE;
    for (int64_t i = 0; i < bank->head_dim; i++) {
        for (int s = 0; s < KV_TILE; s++) {
            logits[s] += q[i] * keys[i * KV_TILE + s];
        }
    }
}

static void logits_f16(const kv_bank *bank, int64_t tile, const float *q, float *logits) {
    const uint16_t *keys = (const uint16_t *)bank->keys + tile * bank->head_dim * KV_TILE;
    for (int64_t i = 0; i < bank->head_dim; i++) {
        for (int s = 0; s < KV_TILE; s++) {
            logits[s] += q[i] * f16_to_f32(keys[i * KV_TILE + s]);
        }
    }
}

static void logits_q8_0(const kv_bank *bank, int64_t tile, const int16_t *levels, const float *steps, float *logits) {
    const uint8_t *keys = (const uint8_t *)bank->keys + tile * bank->head_dim * KV_TILE;
    const int64_t n_scales = bank->head_dim / 32;
    const uint16_t *scales = bank->key_scales + tile * n_scales * KV_TILE;
    for (int64_t block = 0; block < n_scales; block++) {
        int32_t sums[KV_TILE] = {0};
        for (int64_t i = block * 32; i < block * 32 + 32; i++) {
            for (int s = 0; s < KV_TILE; s++) {
                sums[s] += levels[i] * (keys[(i / 4 * KV_TILE + s) * 4 + i % 4] - 128);
            }
        }
        for (int s = 0; s < KV_TILE; s++) {
            logits[s] += (float)sums[s] * (f16_to_f32(scales[block * KV_TILE + s]) * steps[block]);
        }
    }
}

/* o += weight * (the value of a slot) */
static void add_value(const kv_bank *bank, int64_t slot, float weight, float *o) {
    const int64_t d = bank->head_dim;
    if (bank->type == LMI_KV_F32) {
        const float *value = (const float *)bank->values + slot * d;
        for (int64_t i = 0; i < d; i++) {
            o[i] += weight * value[i];
        }
    } else if (bank->type == LMI_KV_F16) {
        const uint16_t *value = (const uint16_t *)bank->values + slot * d;
        for (int64_t i = 0; i < d; i++) {
            o[i] += weight * f16_to_f32(value[i]);
        }
    } else {
        const int8_t *value = (const int8_t *)bank->values + slot * d;
        const uint16_t *scales = bank->value_scales + slot * (d / 32);
        for (int64_t i = 0; i < d; i++) {
            o[i] += weight * ((float)value[i] * f16_to_f32(scales[i / 32]));
        }
    }
}

/* One block of a row's running softmax. `seen` is not empty. */
static void attend_block(const kv_bank *bank, int64_t block, uint64_t seen, const float *q, const int16_t *levels,
                         const float *steps, float *m, float *z, float *o) {
    float logits[BLOCK_SLOTS] = {0};
    for (int t = 0; t < BLOCK_TILES; t++) {
        if ((seen >> (t * KV_TILE) & 0xffff) == 0) {
            continue;
        }
        const int64_t tile = block / KV_TILE + t;
        if (bank->type == LMI_KV_F32) {
            logits_f32(bank, tile, q, logits + t * KV_TILE);
        } else if (bank->type == LMI_KV_F16) {
            logits_f16(bank, tile, q, logits + t * KV_TILE);
        } else {
            logits_q8_0(bank, tile, levels, steps, logits + t * KV_TILE);
        }
    }
    float largest = *m;
    for (int s = 0; s < BLOCK_SLOTS; s++) {
        if (seen >> s & 1) {
            largest = logits[s] > largest ? logits[s] : largest;
        }
    }
    const float base = largest == -INFINITY ? 0.0f : largest; /* -inf - -inf is no number */
    const float fade = exp_f32(*m - base);
    float sum = *z * fade;
    for (int64_t i = 0; i < bank->head_dim; i++) {
        o[i] *= fade;
    }
    for (int s = 0; s < BLOCK_SLOTS; s++) {
        if (seen >> s & 1) {
            const float weight = exp_f32(logits[s] - base);
            sum += weight;
            add_value(bank, block + s, weight, o);
        }
    }
    *m = largest;
    *z = sum;
}

static void attend(const attend_args *args, bool sinks) {
    const kv_bank *bank = args->bank;
    const int64_t d = bank->head_dim;
    int16_t *levels = args->scratch;
    float *steps = (float *)(void *)((char *)args->scratch + kv_round((size_t)d * sizeof *levels));
    for (int64_t r = 0; r < args->n_rows; r++) {
        const int64_t pos = args->first_pos + r / args->rows_per_token;
        const float *q = args->q + r * d;
        const slot_view view = view_of(args, sinks, pos, pos);
        if (bank->type == LMI_KV_Q8_0) {
            for (int64_t i = 0; i < d / QUERY_BLOCK; i++) {
                steps[i] = round_query(q + i * QUERY_BLOCK, levels + i * QUERY_BLOCK);
            }
        }
        for (int64_t block = args->slot0 / BLOCK_SLOTS * BLOCK_SLOTS; block < args->slot1; block += BLOCK_SLOTS) {
            const uint64_t seen = seen_in_block(&view, block);
            if (seen != 0) {
                attend_block(bank, block, seen, q, levels, steps, &args->m[r], &args->z[r], args->o + r * d);
            }
        }
    }
}

static void attend_ring(const attend_args *args) { attend(args, false); }
static void attend_sinks(const attend_args *args) { attend(args, true); }

static size_t attend_scratch(int64_t n_rows, int64_t head_dim) {
    (void)n_rows;
    return kv_round((size_t)head_dim * sizeof(int16_t)) + kv_round((size_t)head_dim / QUERY_BLOCK * sizeof(float));
}

void attention_fill_ref(kernels *table) {
    table->kv_store[LMI_KV_F32] = kv_store_f32;
    table->kv_store[LMI_KV_F16] = kv_store_f16;
    table->kv_store[LMI_KV_Q8_0] = kv_store_q8_0;
    for (int type = 0; type < KV_TYPES; type++) {
        table->attend_ring[type] = attend_ring;
        table->attend_sinks[type] = attend_sinks;
    }
    table->attend_scratch = attend_scratch;
}
