/* What both attention kernels do: which slots a token sees, heads with norm and rotation, keys and values into their slots.
 *
 * Blocks are one-dimensional, whole warps. Bytes of a slot are those that the CPU's kv_store writes (kernels/attention_ref.c),
 * for every type: rotations and scales are rounded operation by operation, as there, never fused. */
#ifndef LMI_CUDA_ATTEND_CUH
#define LMI_CUDA_ATTEND_CUH

#include <math.h>

#include "cuda/launch.h"
#include "cuda/primitives.cuh"

enum { ATTEND_MAX_WARPS = 8 };

/* Where the parts of a bank of kv head 0 lie, in bytes behind the ring's first: one pointer for both banks, which compilers
 * know to be global. */
typedef struct bank_parts {
    int64_t keys, values, key_scales, value_scales;
} bank_parts;

typedef struct attend_task {
    cuda_attend a;
    bank_parts ring, sinks;
    bank_parts kept; /* of what is recalled: behind its bank's first byte */
    int32_t group;   /* query heads of a kv head */
    int32_t token0;  /* the token of blockIdx.z 0 */
    int32_t n_parts; /* row-wise: segments, those of what is recalled last */
    bool stores;     /* keys and values are not in their slots yet */
} attend_task;

/* Moves what leaves the window to where it is kept, and lists what the tokens see of that: nothing in layers that do not recall. Keys
 * of a single token need not be stored yet. recall.cu */
void launch_recall(const attend_task &task, device_stream *stream);

static inline int64_t bytes_behind(const uint8_t *first, const void *part) {
    return part == NULL ? 0 : (int64_t)((uintptr_t)part - (uintptr_t)first);
}

/* By the rules of kv_tile.h. */
static inline bank_parts bank_parts_of(const cuda_attend *args, const uint8_t *first, uint8_t *memory, int64_t slots) {
    const kv_bank bank = kv_bank_at(memory, args->kv_type, args->head_dim, kv_round_slots(slots));
    bank_parts parts = {};
    parts.keys = bytes_behind(first, bank.keys);
    parts.values = bytes_behind(first, bank.values);
    parts.key_scales = bytes_behind(first, bank.key_scales);
    parts.value_scales = bytes_behind(first, bank.value_scales);
    return parts;
}

static inline attend_task attend_task_of(const cuda_attend *args) {
    attend_task task = {};
    task.a = *args;
    task.ring = bank_parts_of(args, args->ring, args->ring, args->capacity);
    if (args->sinks > 0) {
        task.sinks = bank_parts_of(args, args->ring, args->sinks_bank, args->sinks);
    }
    if (args->recall.block > 0) {
        task.kept = bank_parts_of(args, args->recall.banks, args->recall.banks, args->recall.block);
    }
    task.group = args->n_heads / args->n_kv_heads;
    return task;
}

static __device__ __forceinline__ kv_bank bank_of_head(const attend_task &task, bool is_sink, int64_t kv_head) {
    const cuda_attend &a = task.a;
    uint8_t *first = a.ring + (int64_t)a.head_stride * kv_head;
    kv_bank bank = {};
    bank.type = a.kv_type;
    bank.head_dim = a.head_dim;
    bank.keys = first + (is_sink ? task.sinks.keys : task.ring.keys);
    bank.values = first + (is_sink ? task.sinks.values : task.ring.values);
    bank.key_scales = (uint16_t *)(first + (is_sink ? task.sinks.key_scales : task.ring.key_scales));
    bank.value_scales = (uint16_t *)(first + (is_sink ? task.sinks.value_scales : task.ring.value_scales));
    return bank;
}

/* Of what is recalled, in host memory. */
static __device__ __forceinline__ kv_bank bank_of_slot(const attend_task &task, int64_t kv_head, int64_t slot) {
    const cuda_recall &r = task.a.recall;
    uint8_t *first = r.banks + slot * (int64_t)r.slot_stride + kv_head * (int64_t)r.bank_bytes;
    kv_bank bank = {};
    bank.type = task.a.kv_type;
    bank.head_dim = task.a.head_dim;
    bank.keys = first + task.kept.keys;
    bank.values = first + task.kept.values;
    bank.key_scales = (uint16_t *)(first + task.kept.key_scales);
    bank.value_scales = (uint16_t *)(first + task.kept.value_scales);
    return bank;
}

/* Tokens of the middle for the query at `index`: as middle_size of lambda/middle.h. */
static __device__ __forceinline__ int64_t middle_of(const cuda_attend &a, int64_t index) {
    const int64_t n = index - a.window + 1 - a.sinks;
    return n > 0 ? n : 0;
}

/* Sinks that the token of this index sees, out of its window. */
static __device__ __forceinline__ int32_t sinks_in_view(const cuda_attend &a, int64_t index) {
    const int64_t out = index - a.window + 1;
    return (int32_t)(out <= 0 ? 0 : out < a.sinks ? out : a.sinks);
}

/* The oldest token of the ring that the token of this index sees. */
static __device__ __forceinline__ int64_t oldest_in_view(const cuda_attend &a, int64_t index) {
    return index < a.window ? 0 : index - a.window + 1;
}

/* ---- heads: norm, scale, rotation --------------------------------------------------------------------------------- */

/* 1 / rms of each of the heads first .. first + n of a token's row of n_all heads, as `kind` says (see cuda_attend), to factors
 * [n] in shared memory. By the whole block; there for all after the next barrier. Sums in double, as on the CPU. */
static __device__ __noinline__ void norm_factors(int32_t kind, const float *row, int32_t n_all, int32_t first, int32_t n,
                                                 int32_t head_dim, float eps, float *factors) {
    SHARED double parts[ATTEND_MAX_WARPS];
    const int warp = (int)(threadIdx.x / 32), lane = (int)(threadIdx.x % 32), n_warps = (int)(blockDim.x / 32);
    if (kind == 1) {
        for (int h = warp; h < n; h += n_warps) {
            const float *x = row + (int64_t)(first + h) * head_dim;
            double sum = 0;
#pragma unroll 4
            for (int i = lane; i < head_dim; i += 32) {
                sum += (double)x[i] * (double)x[i];
            }
            sum = warp_sum(sum);
            if (lane == 0) {
                factors[h] = (float)(1.0 / sqrt(sum / (double)head_dim + (double)eps));
            }
        }
        return;
    }
    const int width = n_all * head_dim;
    double sum = 0;
#pragma unroll 4
    for (int i = (int)threadIdx.x; i < width; i += (int)blockDim.x) {
        sum += (double)row[i] * (double)row[i];
    }
    sum = warp_sum(sum);
    __syncthreads(); /* the parts of the last call have been read */
    if (lane == 0) {
        parts[warp] = sum;
    }
    __syncthreads();
    if ((int)threadIdx.x < n) {
        sum = 0;
        for (int i = 0; i < n_warps; i++) {
            sum += parts[i];
        }
        factors[threadIdx.x] = (float)(1.0 / sqrt(sum / (double)width + (double)eps));
    }
}

/* The head's values that turn together are those of a pair; behind the rotary part neighbours are. 0 <= u < head_dim / 2. */
typedef struct head_pair {
    int first, second;
} head_pair;

static __device__ __forceinline__ head_pair pair_of(rope_pairing pairing, int n_rot, int u) {
    head_pair pair = {2 * u, 2 * u + 1};
    if (u < n_rot / 2 && pairing == ROPE_HALVES) {
        pair.first = u;
        pair.second = u + n_rot / 2;
    }
    return pair;
}

/* A value after its norm: weights NULL, none. */
static __device__ __forceinline__ float normed(float x, float factor, const float *weights, int i) {
    return weights == NULL ? x : __fmul_rn(__fmul_rn(x, factor), weights[i]);
}

/* (x, y) turned by pair u of the row cos_sin; NULL: not. */
static __device__ __forceinline__ float2 turned(float x, float y, const float *cos_sin, int n_rot, int u) {
    float2 pair = {x, y};
    if (cos_sin != NULL && u < n_rot / 2) {
        const float c = cos_sin[2 * u], s = cos_sin[2 * u + 1];
        pair.x = __fadd_rn(__fmul_rn(x, c), -__fmul_rn(y, s));
        pair.y = __fadd_rn(__fmul_rn(x, s), __fmul_rn(y, c));
    }
    return pair;
}

/* Where in turn_sink, turn_sink_key a token's row lies. */
static __device__ __forceinline__ const float *sink_row(const cuda_attend &a, const float *rows, int64_t token) {
    return rows != NULL && a.contiguous ? rows + token * a.n_rot : rows;
}

/* Not often asked for, and long. */
[[maybe_unused]] static __device__ __noinline__ float capped(float logit, float cap) { return cap * tanhf(logit / cap); }

/* ---- keys and values into a slot ---------------------------------------------------------------------------------- */

/* 32 values of a warp to int8 with one f16 scale, which is returned: as round_to_int8 of the CPU. */
static __device__ __forceinline__ uint16_t round_to_int8(float x, int *level) {
    const float size = fabsf(x);
    const bool sound = __all_sync(0xffffffffu, size <= 65504.0f * 127.0f) != 0;
    const float max = warp_max(size);
    const uint16_t scale = sound ? float_to_half(max / 127.0f) : (uint16_t)0x7e00;
    const float step = half_to_float(scale), magic = 12582912.0f;
    const float rounded = step > 0.0f ? __fadd_rn(__fadd_rn(x / step, magic), -magic) : 0.0f; /* to nearest, ties to even */
    *level = (int)(rounded > 127.0f ? 127.0f : rounded < -127.0f ? -127.0f : rounded);
    return scale;
}

/* `key`, `value` [head_dim]; by the whole block. */
static __device__ __forceinline__ void store_slot(const kv_bank &bank, int64_t slot, const float *key, const float *value) {
    const int d = bank.head_dim, lane = (int)(slot % KV_TILE);
    const int64_t tile = slot / KV_TILE;
    if (bank.type == LMI_KV_Q8_0) {
        const int at = (int)(threadIdx.x % 32), n_scales = d / 32;
        uint8_t *keys = (uint8_t *)bank.keys + tile * d * KV_TILE + lane * 4;
        int8_t *values = (int8_t *)bank.values + slot * d;
#pragma unroll 1
        for (int piece = (int)(threadIdx.x / 32); piece < 2 * n_scales; piece += (int)(blockDim.x / 32)) {
            const int block = piece >> 1, i = block * 32 + at;
            int level;
            if ((piece & 1) == 0) {
                const uint16_t scale = round_to_int8(key[i], &level);
                keys[i / 4 * KV_TILE * 4 + i % 4] = (uint8_t)(level + 128);
                if (at == 0) {
                    bank.key_scales[(tile * n_scales + block) * KV_TILE + lane] = scale;
                }
            } else {
                const uint16_t scale = round_to_int8(value[i], &level);
                values[i] = (int8_t)level;
                if (at == 0) {
                    bank.value_scales[slot * n_scales + block] = scale;
                }
            }
        }
        return;
    }
#pragma unroll 1
    for (int i = (int)threadIdx.x; i < d; i += (int)blockDim.x) {
        const int64_t key_at = (tile * d + i) * KV_TILE + lane, value_at = slot * d + i;
        if (bank.type == LMI_KV_F32) {
            ((float *)bank.keys)[key_at] = key[i];
            ((float *)bank.values)[value_at] = value[i];
        } else {
            ((uint16_t *)bank.keys)[key_at] = float_to_half(key[i]);
            ((uint16_t *)bank.values)[value_at] = float_to_half(value[i]);
        }
    }
}

/* The token's key, as it comes out of norm and rotation, and its value into their slot of the ring and, if it is a sink, of the
 * sinks. By the whole block, which sees the bytes after the next barrier. */
static __device__ __forceinline__ void store_token(const attend_task &task, int64_t token, int64_t kv_head, int64_t index) {
    SHARED float key[CUDA_MAX_HEAD_DIM];
    SHARED float factor[1];
    const cuda_attend &a = task.a;
    const int d = a.head_dim;
    const float *row = a.k + token * a.n_kv_heads * d, *raw = row + kv_head * d;
    const float *value = a.v + (token * a.n_kv_heads + kv_head) * d;
    const float *weights = a.head_norm != 0 ? a.k_norm : NULL;
    if (weights != NULL) {
        norm_factors(a.head_norm, row, a.n_kv_heads, (int32_t)kv_head, 1, d, a.eps, factor);
        __syncthreads();
        weights += a.head_norm == 2 ? kv_head * d : 0;
    }
    const float norm = weights != NULL ? factor[0] : 1.0f;
#pragma unroll 1
    for (int bank = 0; bank < (index < a.sinks ? 2 : 1); bank++) {
        const float *turn =
            bank == 0 ? (a.turn != NULL ? a.turn + token * a.n_rot : NULL) : sink_row(a, a.turn_sink_key, token);
        __syncthreads(); /* the ring's key has been stored */
#pragma unroll 1
        for (int u = (int)threadIdx.x; u < d / 2; u += (int)blockDim.x) {
            const head_pair at = pair_of(a.pairing, a.n_rot, u);
            const float x = normed(raw[at.first], norm, weights, at.first);
            const float y = normed(raw[at.second], norm, weights, at.second);
            const float2 pair = turned(x, y, turn, a.n_rot, u);
            key[at.first] = pair.x;
            key[at.second] = pair.y;
        }
        __syncthreads();
        store_slot(bank_of_head(task, bank == 1, kv_head), bank == 1 ? index : index % a.capacity, key, value);
    }
}

#endif
