/* Attention of one token, or a few, over the slots of ring and sinks: what it costs is reading the banks once.
 *
 * A block is (segment of CUDA_SEGMENT slots, kv head, token), a warp of it 32 slots, which it takes from queries to weighted
 * values by itself: keys 16 bytes a lane, lanes that hold parts of the same dot products exchange them (each step halves what a
 * lane still adds up), then a lane has one slot's logits. The block merges its warps, the last block of a kv head to finish
 * merges the segments, both in order: the result does not depend on timing. All arithmetic is in float32, as on the CPU. */
#include "cuda/attend.cuh"
#include "cuda/attend_pieces.cuh"

enum { WARPS = 8, THREADS = 32 * WARPS, WARP_SLOTS = CUDA_SEGMENT / WARPS, MERGE_HEADS = 64 };
static_assert((int)WARPS <= (int)ATTEND_MAX_WARPS && WARP_SLOTS == 32, "a lane has a slot of its own");

static __host__ __device__ __forceinline__ int64_t segments_of(int64_t slots) {
    return (slots + CUDA_SEGMENT - 1) / CUDA_SEGMENT;
}

int64_t cuda_attend_segments(int64_t sinks, int64_t capacity) { return segments_of(sinks) + segments_of(capacity); }

/* ---- queries ------------------------------------------------------------------------------------------------------- */

/* 32 values of a warp to 16-bit levels: what a query is when it meets a Q8_0 bank, see round_query of kernels/attention.h. */
static __device__ __forceinline__ float round_query(float x) {
    const float max = warp_max(fabsf(x)), magic = 12582912.0f;
    if (!(max >= 1e-30f && max <= 3e38f)) {
        return max < 1e-30f ? 0.0f : NAN;
    }
    const float level = __fadd_rn(__fadd_rn(__fmul_rn(x, 32767.0f / max), magic), -magic);
    return (level > 32767.0f ? 32767.0f : level < -32767.0f ? -32767.0f : level) * (max / 32767.0f);
}

/* G queries of the kv head from its r0th on to q [head_dim][G]: normed, scaled, turned for the bank; zeros behind the last. */
template <lmi_kv_type TYPE, int G>
static __device__ __forceinline__ void load_queries(const attend_task &task, int64_t token, int64_t kv_head, int r0,
                                                    bool is_sink, float *q) {
    SHARED float factors[G];
    const cuda_attend &a = task.a;
    const int d = a.head_dim, first = (int)kv_head * task.group + r0, n = task.group - r0 < G ? task.group - r0 : G;
    const float *row = a.q + token * a.n_heads * d;
    const float *weights = a.head_norm != 0 ? a.q_norm : NULL;
    const float *turn = is_sink ? sink_row(a, a.turn_sink, token) : a.turn != NULL ? a.turn + token * a.n_rot : NULL;
    if (weights != NULL) {
        norm_factors(a.head_norm, row, a.n_heads, first, n, d, a.eps, factors);
    }
    __syncthreads(); /* the queries before these have been read, too */
#pragma unroll 2
    for (int i = (int)threadIdx.x; i < G * (d / 2); i += THREADS) {
        const int r = i % G, u = i / G;
        const head_pair at = pair_of(a.pairing, a.n_rot, u);
        float2 pair = {0.0f, 0.0f};
        if (r < n) {
            const float *head = row + (int64_t)(first + r) * d;
            const float *w = weights != NULL && a.head_norm == 2 ? weights + (int64_t)(first + r) * d : weights;
            const float factor = weights != NULL ? factors[r] : 1.0f;
            pair = turned(normed(head[at.first], factor, w, at.first) * a.scale,
                          normed(head[at.second], factor, w, at.second) * a.scale, turn, a.n_rot, u);
        }
        q[at.first * G + r] = pair.x;
        q[at.second * G + r] = pair.y;
    }
    __syncthreads();
    if (TYPE == LMI_KV_Q8_0) {
#pragma unroll 1
        for (int piece = (int)(threadIdx.x / 32); piece < d / 32 * G; piece += WARPS) {
            float *x = q + (piece / G * 32 + (int)(threadIdx.x % 32)) * G + piece % G;
            *x = round_query(*x);
        }
        __syncthreads();
    }
}

/* ---- a segment ----------------------------------------------------------------------------------------------------- */

/* What there is to see for a token in the ring: slots begin .. begin + count, modulo the capacity; and where. */
typedef struct attend_view {
    int64_t index;
    int32_t n_sinks, begin, count, capacity;
    int32_t n_sink_segments; /* that are seen */
    int32_t first_segment, last,
        tail;           /* of the ring: first .. last, and 0 .. tail, -1 if none; the same segment may be both first and tail */
    int32_t n_segments; /* that are seen, in all */
} attend_view;

static __device__ __forceinline__ attend_view view_at(const cuda_attend &a, int64_t index) {
    const int64_t oldest = oldest_in_view(a, index);
    attend_view view;
    view.index = index;
    view.n_sinks = sinks_in_view(a, index);
    view.capacity = (int32_t)a.capacity;
    view.begin = (int32_t)(oldest < a.capacity ? oldest : oldest % a.capacity);
    view.count = (int32_t)(index - oldest + 1);
    const int64_t end = (int64_t)view.begin + view.count;
    const bool wraps = end > a.capacity;
    view.n_sink_segments = (int32_t)segments_of(view.n_sinks);
    view.first_segment = view.begin / CUDA_SEGMENT;
    view.last = (int32_t)((wraps ? a.capacity - 1 : end - 1) / CUDA_SEGMENT);
    view.tail = wraps ? (int32_t)((end - a.capacity - 1) / CUDA_SEGMENT) : -1;
    const int32_t twice = view.tail == view.first_segment ? 1 : 0;
    view.n_segments = view.n_sink_segments + view.last - view.first_segment + 1 + view.tail + 1 - twice;
    return view;
}

/* Of segment `i` of all, sinks first: is there something to see? */
static __device__ __forceinline__ bool segment_in_view(const attend_view &view, int64_t all_sink_segments, int64_t i) {
    if (i < all_sink_segments) {
        return i < view.n_sink_segments;
    }
    i -= all_sink_segments;
    return (i >= view.first_segment && i <= view.last) || i <= view.tail;
}

/* The token's distance to what a slot of the ring holds, or -1 if it is not seen. */
static __device__ __forceinline__ int32_t ring_distance(const attend_view &view, int64_t slot) {
    if (slot >= view.capacity) {
        return -1;
    }
    const int32_t after = (int32_t)slot - view.begin, age = after < 0 ? after + view.capacity : after;
    return age < view.count ? view.count - 1 - age : -1;
}

/* A part, in floats: m [group], z [group], o [group][head_dim]. */
static __device__ __forceinline__ int64_t part_floats(const attend_task &task) {
    return (int64_t)task.group * (2 + task.a.head_dim);
}

/* Of a segment of the block's token and kv head. */
static __device__ __forceinline__ float *part_of(const attend_task &task, int64_t segment) {
    const int64_t row = (int64_t)blockIdx.z * task.a.n_kv_heads + (int64_t)blockIdx.y;
    return task.a.parts + (row * (int64_t)gridDim.x + segment) * part_floats(task);
}

/* The segments' parts of the token and kv head, merged in their order; by the whole block. */
static __device__ __forceinline__ void merge_parts(const attend_task &task, int64_t token, int64_t kv_head,
                                                   const float *parts) {
    SHARED float largest[MERGE_HEADS];
    SHARED float inverse[MERGE_HEADS];
    const cuda_attend &a = task.a;
    const attend_view view = view_at(a, a.control->first + token); /* once more: registers are wanted between */
    const int d = a.head_dim, group = task.group, lane = (int)(threadIdx.x % 32);
    const int64_t stride = part_floats(task);
    const int n_sinks = (int)segments_of(a.sinks), n_segments = n_sinks + (int)segments_of(a.capacity);
    float *out = a.a + (token * a.n_heads + kv_head * group) * d;
    for (int r0 = 0; r0 < group; r0 += MERGE_HEADS) {
        const int n = group - r0 < MERGE_HEADS ? group - r0 : MERGE_HEADS;
        __syncthreads(); /* the heads before these are done */
#pragma unroll 1
        for (int r = (int)(threadIdx.x / 32); r < n; r += WARPS) {
            float m = -INFINITY, z = 0.0f;
#pragma unroll 1
            for (int s = lane; s < n_segments; s += 32) {
                if (segment_in_view(view, n_sinks, s)) {
                    m = max_or_nan(m, parts[s * stride + r0 + r]);
                }
            }
            m = warp_max(m);
#pragma unroll 1
            for (int s = lane; s < n_segments; s += 32) {
                if (segment_in_view(view, n_sinks, s)) {
                    z += expf(parts[s * stride + r0 + r] - m) * parts[s * stride + group + r0 + r];
                }
            }
            z = warp_sum(z);
            if (lane == 0) {
                const float *learned = a.sink_logits;
                largest[r] = m;
                inverse[r] = 1.0f / (learned == NULL ? z : z + expf(learned[kv_head * group + r0 + r] - m));
            }
        }
        __syncthreads();
#pragma unroll 1
        for (int i = (int)threadIdx.x; i < n * d; i += THREADS) {
            const int r = i / d;
            const float m = largest[r];
            float sum = 0.0f;
#pragma unroll 4
            for (int s = 0; s < n_segments; s++) {
                if (segment_in_view(view, n_sinks, s)) {
                    const float *part = parts + s * stride;
                    sum += expf(part[r0 + r] - m) * part[2 * group + (int64_t)r0 * d + i];
                }
            }
            out[(int64_t)r0 * d + i] = sum * inverse[r];
        }
    }
}

/* The warps' m, z [G] and o (sums, in the lanes of `lanes`) become the part of heads r0 .. r0 + n. */
template <int G, int V>
static __device__ __forceinline__ void store_part(const attend_task &task, int r0, const float (&m)[G], const float (&z)[G],
                                                  const value_lanes &lanes, const float (&sums)[G][8], float *part) {
    enum { ROUND = G < 2 ? 1 : 2 };
    SHARED float warp_m[WARPS][G];
    SHARED float warp_z[WARPS][G];
    SHARED float bases[G];
    SHARED float rows[WARPS][ROUND][CUDA_MAX_HEAD_DIM];
    const int d = task.a.head_dim, group = task.group, n = group - r0 < G ? group - r0 : G;
    const int warp = (int)(threadIdx.x / 32), lane = (int)(threadIdx.x % 32);
    if (lane == 0) {
#pragma unroll
        for (int g = 0; g < G; g++) {
            warp_m[warp][g] = m[g];
            warp_z[warp][g] = z[g];
        }
    }
    __syncthreads();
    if ((int)threadIdx.x < n) {
        const int g = (int)threadIdx.x;
        float largest = warp_m[0][g], sum = 0.0f;
#pragma unroll 1
        for (int w = 1; w < WARPS; w++) {
            largest = max_or_nan(largest, warp_m[w][g]);
        }
        const float base = largest == -INFINITY ? 0.0f : largest; /* -inf - -inf is no number */
#pragma unroll 1
        for (int w = 0; w < WARPS; w++) {
            sum += expf(warp_m[w][g] - base) * warp_z[w][g];
        }
        bases[g] = base;
        part[r0 + g] = largest;
        part[group + r0 + g] = sum;
    }
    __syncthreads();
#pragma unroll
    for (int g0 = 0; g0 < G; g0 += ROUND) {
#pragma unroll
        for (int g = g0; g < g0 + ROUND; g++) {
            const float factor = g < n ? expf(m[g] - bases[g]) : 0.0f;
            if (lanes.active && lane < lanes.stride) {
#pragma unroll
                for (int c = 0; c < 8; c++) {
                    const int column = lanes.column + c % V + 32 * V * (c / V);
                    if (column < d) {
                        rows[warp][g - g0][column] = factor * sums[g][c];
                    }
                }
            }
        }
        __syncthreads();
#pragma unroll 1
        for (int i = (int)threadIdx.x; i < ROUND * d; i += THREADS) {
            const int g = i < d ? 0 : 1, column = i < d ? i : i - d;
            float sum = 0.0f;
#pragma unroll
            for (int w = 0; w < WARPS; w++) {
                sum += rows[w][g][column];
            }
            if (g0 + g < n) {
                part[2 * group + (int64_t)(r0 + g0 + g) * d + column] = sum;
            }
        }
        __syncthreads();
    }
}

template <lmi_kv_type TYPE, int G, int V>
static __global__ void __launch_bounds__(THREADS, 2) attend_segment(attend_task task) {
    enum { SLOTS = key_pieces<TYPE>::SLOTS };
    SHARED float q[CUDA_MAX_HEAD_DIM * G];
    SHARED float weights[WARPS][WARP_SLOTS * G];
    SHARED int is_last;
    wait_for_previous();
    let_next_start();
    const cuda_attend &a = task.a;
    const int warp = (int)(threadIdx.x / 32), lane = (int)(threadIdx.x % 32);
    const int64_t token = task.token0 + (int64_t)blockIdx.z, kv_head = (int64_t)blockIdx.y, index = a.control->first + token;
    const int64_t n_sinks = segments_of(a.sinks), segment = (int64_t)blockIdx.x;
    const attend_view view = view_at(a, index);
    if (!segment_in_view(view, n_sinks, segment)) {
        return;
    }
    const bool is_sink = segment < n_sinks;
    const kv_bank bank = bank_of_head(task, is_sink, kv_head);
    const int64_t segment_slot = (is_sink ? segment : segment - n_sinks) * CUDA_SEGMENT,
                  slot0 = segment_slot + warp * WARP_SLOTS;
    if (task.stores && !is_sink && index % a.capacity / CUDA_SEGMENT == segment - n_sinks) {
        store_token(task, token, kv_head, index);
        __syncthreads();
    }

    const int64_t plain = slot0 + lane, slot = slot0 + slot_of_lane<SLOTS>(lane);
    const int32_t distance = is_sink ? (slot < view.n_sinks ? (int32_t)a.window : -1) : ring_distance(view, slot);
    const uint32_t seen =
        __ballot_sync(0xffffffffu, is_sink ? plain < view.n_sinks : ring_distance(view, plain) >= 0); /* bit s: slot0 + s */
    const value_lanes lanes = value_lanes_of<V>(a.head_dim, lane);
#pragma unroll 1
    for (int r0 = 0; r0 < task.group; r0 += G) {
        load_queries<TYPE, G>(task, token, kv_head, r0, is_sink, q);
        float m[G], z[G], sums[G][8] = {}, kept[G] = {}, given[G] = {};
#pragma unroll 1 /* a tile's loads and sums are what registers there are for */
        for (int t = 0; t < 2; t++) {
            float products[G][SLOTS] = {};
            if ((seen >> (KV_TILE * t) & 0xffff) != 0) {
                multiply_keys<TYPE, G>(bank, slot0 / KV_TILE + t, q, lane, products);
            }
#pragma unroll
            for (int g = 0; g < G; g++) {
                const float part = share_out<SLOTS>(products[g], lane);
                const bool own = t == lane / 16;
                kept[g] = own ? part : kept[g];
                given[g] = own ? given[g] : part;
            }
        }
#pragma unroll
        for (int g = 0; g < G; g++) {
            float logit = kept[g] + __shfl_xor_sync(0xffffffffu, given[g], 16);
            if (a.softcap != 0.0f) {
                logit = capped(logit, a.softcap);
            }
            if (a.slopes != NULL && r0 + g < task.group) {
                logit -= a.slopes[kv_head * task.group + r0 + g] * (float)distance;
            }
            m[g] = warp_max(distance >= 0 ? logit : -INFINITY);
            const float weight = distance >= 0 ? expf(logit - m[g]) : 0.0f;
            z[g] = warp_sum(weight);
            weights[warp][slot_of_lane<SLOTS>(lane) * G + g] = weight;
        }
        __syncwarp();
        add_values<TYPE, G, V>(bank, slot0, seen, weights[warp], lanes, lane, sums);
        store_part<G, V>(task, r0, m, z, lanes, sums, part_of(task, segment));
    }

    const int64_t row = (int64_t)blockIdx.z * a.n_kv_heads + kv_head;
    __threadfence();
    __syncthreads();
    if (threadIdx.x == 0) {
        const attend_view again = view_at(a, a.control->first + token);
        is_last = atomicAdd(a.arrived + row, 1u) == (uint32_t)again.n_segments - 1 ? 1 : 0;
    }
    __syncthreads();
    if (is_last != 0) {
        __threadfence();
        merge_parts(task, token, kv_head, part_of(task, 0));
        if (threadIdx.x == 0) {
            a.arrived[row] = 0;
        }
    }
}

/* ---- launching ----------------------------------------------------------------------------------------------------- */

/* One block a kv head and token: several tokens are stored before any is attended. */
static __global__ void __launch_bounds__(128) store_tokens(attend_task task) {
    wait_for_previous();
    let_next_start();
    const int64_t token = (int64_t)blockIdx.y;
    store_token(task, token, (int64_t)blockIdx.x, task.a.control->first + token);
}

template <lmi_kv_type TYPE, int V>
static void launch_segments(const attend_task &task, int32_t n_tokens, device_stream *stream) {
    const cuda_attend &a = task.a;
    const dim3 grid((unsigned)cuda_attend_segments(a.sinks, a.capacity), (unsigned)a.n_kv_heads, (unsigned)n_tokens),
        block(THREADS);
    if (task.group == 1) {
        LAUNCH(stream, (attend_segment<TYPE, 1, V>), grid, block, 0, task);
    } else if (task.group == 2) {
        LAUNCH(stream, (attend_segment<TYPE, 2, V>), grid, block, 0, task);
    } else if (task.group <= 4) {
        LAUNCH(stream, (attend_segment<TYPE, 4, V>), grid, block, 0, task);
    } else {
        LAUNCH(stream, (attend_segment<TYPE, 8, V>), grid, block, 0, task);
    }
}

void cuda_launch_attend_rowwise(const cuda_attend *args, device_stream *stream) {
    attend_task task = attend_task_of(args);
    task.stores = args->n_tokens == 1;
    if (!task.stores) {
        LAUNCH(stream, store_tokens, dim3((unsigned)args->n_kv_heads, (unsigned)args->n_tokens), dim3(128), 0, task);
    }
    for (int32_t done = 0; done < args->n_tokens; done += CUDA_ROWWISE_TOKENS) {
        const int32_t left = args->n_tokens - done, n = left < CUDA_ROWWISE_TOKENS ? left : CUDA_ROWWISE_TOKENS;
        task.token0 = done;
        if (args->kv_type == LMI_KV_Q8_0) {
            launch_segments<LMI_KV_Q8_0, 8>(task, n, stream);
        } else if (args->kv_type == LMI_KV_F32) {
            launch_segments<LMI_KV_F32, 2>(task, n, stream);
        } else if (args->head_dim % 8 == 0) {
            launch_segments<LMI_KV_F16, 8>(task, n, stream);
        } else {
            launch_segments<LMI_KV_F16, 2>(task, n, stream);
        }
    }
}
