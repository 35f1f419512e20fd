#include <string.h>

#include "kernels/attention.h"
#include "kernels/fill.h"
#include "kernels/vector.h"

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

/* ---- attending: a block of slots is widened once, then rows one at a time ------------------------------------------- */

/* Parts of scratch. */
typedef struct workspace {
    float *keys;     /* [4][d][16] */
    float *values;   /* [64][d] */
    int16_t *bytes;  /* Q8_0: [4][d][16] keys */
    float *scales;   /* Q8_0: [4][d/32][16] of keys */
    int16_t *levels; /* Q8_0: [d] of a row's query */
    float *steps;    /* Q8_0: [d/32] */
} workspace;

enum { PARTS = 6 };

static void workspace_offsets(int64_t head_dim, size_t offsets[PARTS + 1]) {
    const size_t d = (size_t)head_dim;
    const size_t bytes[PARTS] = {BLOCK_SLOTS * d * sizeof(float),
                                 BLOCK_SLOTS * d * sizeof(float),
                                 BLOCK_SLOTS * d * sizeof(int16_t),
                                 BLOCK_SLOTS * d / 32 * sizeof(float),
                                 d * sizeof(int16_t),
                                 d / QUERY_BLOCK * sizeof(float)};
    offsets[0] = 0;
    for (int i = 0; i < PARTS; i++) {
        offsets[i + 1] = offsets[i] + kv_round(bytes[i]);
    }
}

static workspace workspace_at(void *scratch, int64_t head_dim) {
    size_t at[PARTS + 1];
    workspace_offsets(head_dim, at);
    char *base = scratch;
    void *parts[PARTS];
    for (int i = 0; i < PARTS; i++) {
        parts[i] = base + at[i];
    }
    return (workspace){parts[0], parts[1], parts[2], parts[3], parts[4], parts[5]};
}

/* Those of the block's tiles that hold a slot of `seen`. */
static void widen_block(const kv_bank *bank, const workspace *w, int64_t block, uint64_t seen) {
    const int64_t d = bank->head_dim, n_scales = d / 32;
    for (int64_t t = 0; t < BLOCK_TILES; t++) {
        if ((seen >> (t * KV_TILE) & 0xffff) == 0) {
            continue;
        }
        const int64_t from = (block + t * KV_TILE) * d, to = t * KV_TILE * d, n = KV_TILE * d;
        if (bank->type == LMI_KV_F32) {
            memcpy(w->keys + to, (const float *)bank->keys + from, (size_t)n * sizeof(float));
            memcpy(w->values + to, (const float *)bank->values + from, (size_t)n * sizeof(float));
        } else if (bank->type == LMI_KV_F16) {
            for (int64_t i = 0; i < n; i++) {
                w->keys[to + i] = f16_to_f32(((const uint16_t *)bank->keys)[from + i]);
                w->values[to + i] = f16_to_f32(((const uint16_t *)bank->values)[from + i]);
            }
        } else {
            const uint8_t *keys = (const uint8_t *)bank->keys + from;
            const int8_t *values = (const int8_t *)bank->values + from;
            for (int64_t i = 0; i < n; i++) {
                const int64_t row = i / KV_TILE, slot = i % KV_TILE;
                w->bytes[to + i] = (int16_t)(keys[(row / 4 * KV_TILE + slot) * 4 + row % 4] - 128);
            }
            for (int64_t i = 0; i < n; i++) {
                w->values[to + i] = (float)values[i] * f16_to_f32(bank->value_scales[(from + i) / 32]);
            }
            for (int64_t i = 0; i < n_scales * KV_TILE; i++) {
                w->scales[t * n_scales * KV_TILE + i] = f16_to_f32(bank->key_scales[from / 32 + i]);
            }
        }
    }
}

/* logits[16] of a tile */
static void tile_logits(const float *keys, const float *q, int64_t d, float *logits) {
    float sums[KV_TILE] = {0};
    for (int64_t i = 0; i < d; i++) {
        for (int s = 0; s < KV_TILE; s++) {
            sums[s] += q[i] * keys[i * KV_TILE + s];
        }
    }
    memcpy(logits, sums, sizeof sums);
}

static void tile_logits_int8(const int16_t *bytes, const float *scales, const int16_t *levels, const float *steps, int64_t d,
                             float *logits) {
    float sums[KV_TILE] = {0};
    for (int64_t block = 0; block < d / QUERY_BLOCK; block++) {
        int32_t whole[KV_TILE] = {0};
        for (int64_t i = block * QUERY_BLOCK; i < (block + 1) * QUERY_BLOCK; i++) {
            for (int s = 0; s < KV_TILE; s++) {
                whole[s] += levels[i] * bytes[i * KV_TILE + s];
            }
        }
        for (int s = 0; s < KV_TILE; s++) {
            sums[s] += (float)whole[s] * (scales[block * KV_TILE + s] * steps[block]);
        }
    }
    memcpy(logits, sums, sizeof sums);
}

/* Caps and biases logits [64] of a row; what is not seen may become anything. */
static void shape_logits(const attend_args *args, bool sinks, const int32_t *ages, int64_t row, float *logits) {
    if (args->softcap != 0) {
        softcap_body(logits, args->softcap, BLOCK_SLOTS);
    }
    if (args->slopes != NULL) {
        const int32_t lag = (int32_t)(args->newest - (args->first_pos + row / args->rows_per_token));
        const float slope = args->slopes[row % args->rows_per_token];
        for (int s = 0; s < BLOCK_SLOTS; s++) {
            logits[s] -= slope * (sinks ? (float)args->distance : (float)(ages[s] - lag));
        }
    }
}

/* One block of a row's running softmax; `seen` is not empty. */
static void attend_row(const attend_args *args, bool sinks, const workspace *w, const int32_t *ages, uint64_t seen,
                       int64_t row) {
    const int64_t d = args->bank->head_dim;
    const float *q = args->q + row * d;
    float *o = args->o + row * d;
    float logits[BLOCK_SLOTS] = {0};
    if (args->bank->type == LMI_KV_Q8_0) {
        for (int64_t i = 0; i < d / QUERY_BLOCK; i++) {
            w->steps[i] = round_query(q + i * QUERY_BLOCK, w->levels + i * QUERY_BLOCK);
        }
    }
    for (int64_t t = 0; t < BLOCK_TILES; t++) {
        if ((seen >> (t * KV_TILE) & 0xffff) == 0) {
            continue;
        }
        if (args->bank->type == LMI_KV_Q8_0) {
            tile_logits_int8(w->bytes + t * KV_TILE * d, w->scales + t * KV_TILE * (d / 32), w->levels, w->steps, d,
                             logits + t * KV_TILE);
        } else {
            tile_logits(w->keys + t * KV_TILE * d, q, d, logits + t * KV_TILE);
        }
    }
    if (shapes_logits(args)) {
        shape_logits(args, sinks, ages, row, logits);
    }
    float largest = args->m[row];
    for (int s = 0; s < BLOCK_SLOTS; s++) {
        if (seen >> s & 1) {
            largest = logits[s] > largest ? logits[s] : largest;
        }
    }
    const float base = largest == -INFINITY ? 0.0f : largest; /* -inf - -inf is no number */
    const float fade = exp_f32(args->m[row] - base);
    float sum = args->z[row] * fade;
    for (int64_t i = 0; i < d; i++) {
        o[i] *= fade;
    }
    for (int64_t s = 0; s < BLOCK_SLOTS; s++) {
        if (seen >> s & 1) {
            const float weight = exp_f32(logits[s] - base);
            const float *value = w->values + s * d;
            sum += weight;
            for (int64_t i = 0; i < d; i++) {
                o[i] += weight * value[i];
            }
        }
    }
    args->m[row] = largest;
    args->z[row] = sum;
}

static void attend(const attend_args *args, bool sinks) {
    if (args->n_rows <= 0) {
        return;
    }
    const workspace w = workspace_at(args->scratch, args->bank->head_dim);
    const int64_t last_pos = args->first_pos + (args->n_rows - 1) / args->rows_per_token;
    const slot_view hull = view_of(args, sinks, args->first_pos, last_pos);
    for (int64_t block = args->slot0 / BLOCK_SLOTS * BLOCK_SLOTS; block < args->slot1; block += BLOCK_SLOTS) {
        const uint64_t any = seen_in_block(&hull, block);
        if (any == 0) {
            continue;
        }
        widen_block(args->bank, &w, block, any);
        int32_t ages[BLOCK_SLOTS] = {0};
        if (args->slopes != NULL && !sinks) {
            ages_in_block(args, block, ages);
        }
        for (int64_t r = 0; r < args->n_rows; r++) {
            const int64_t pos = args->first_pos + r / args->rows_per_token;
            const slot_view view = view_of(args, sinks, pos, pos);
            const uint64_t seen = seen_in_block(&view, block);
            if (seen != 0) {
                attend_row(args, sinks, &w, ages, seen, r);
            }
        }
    }
}

static void attend_ring(const attend_args *args) { attend(args, false); }
static void attend_sinks(const attend_args *args) { attend(args, true); }

static size_t attend_scratch(int64_t n_rows, int64_t head_dim) {
    (void)n_rows; /* rows come one at a time */
    size_t offsets[PARTS + 1];
    workspace_offsets(head_dim, offsets);
    return offsets[PARTS];
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
