/* Attention of one token, or a few, over the slots of ring and sinks: what it costs is reading the banks once.
 *
 * A block is (segment of CUDA_SEGMENT slots, kv head, token), a warp of it 32 slots, which it takes from queries to weighted
 * values by itself: keys 16 bytes a lane, lanes that hold parts of the same dot products exchange them (each step halves what a
 * lane still adds up), then a lane has one slot's logits. The block merges its warps, the last block of a kv head to finish
 * merges the segments, both in order: the result does not depend on timing. All arithmetic is in float32, as on the CPU. */
#include "cuda/attend_rowwise.cuh"

enum { MERGE_HEADS = 64 };

int64_t cuda_attend_segments(int64_t sinks, int64_t capacity) { return segments_of(sinks) + segments_of(capacity); }

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
    const int n_parts = task.n_parts; /* behind the segments those of what is recalled, which all are there */
    float *out = a.a + (token * a.n_heads + kv_head * group) * d;
    for (int r0 = 0; r0 < group; r0 += MERGE_HEADS) {
        const int n = group - r0 < MERGE_HEADS ? group - r0 : MERGE_HEADS;
        __syncthreads(); /* the heads before these are done */
#pragma unroll 1
        for (int r = (int)(threadIdx.x / 32); r < n; r += WARPS) {
            float m = -INFINITY, z = 0.0f;
#pragma unroll 1
            for (int s = lane; s < n_parts; s += 32) {
                if (s >= n_segments || segment_in_view(view, n_sinks, s)) {
                    m = max_or_nan(m, parts[s * stride + r0 + r]);
                }
            }
            m = warp_max(m);
#pragma unroll 1
            for (int s = lane; s < n_parts; s += 32) {
                if (s >= n_segments || segment_in_view(view, n_sinks, s)) {
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
            for (int s = 0; s < n_parts; s++) {
                if (s >= n_segments || segment_in_view(view, n_sinks, s)) {
                    const float *part = parts + s * stride;
                    sum += expf(part[r0 + r] - m) * part[2 * group + (int64_t)r0 * d + i];
                }
            }
            out[(int64_t)r0 * d + i] = sum * inverse[r];
        }
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
        load_queries<TYPE, G>(task, token, kv_head, r0, is_sink ? FOR_SINKS : FOR_RING, q);
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
        sum_rows(lanes, sums);
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
    const int64_t n_segments = cuda_attend_segments(args->sinks, args->capacity);
    task.n_parts = (int32_t)(n_segments + cuda_recall_segments(&args->recall, args->n_tokens));
    task.stores = args->n_tokens == 1;
    if (!task.stores) {
        LAUNCH(stream, store_tokens, dim3((unsigned)args->n_kv_heads, (unsigned)args->n_tokens), dim3(128), 0, task);
    }
    launch_recall(task, stream);
    for (int32_t done = 0; done < args->n_tokens; done += CUDA_ROWWISE_TOKENS) {
        const int32_t left = args->n_tokens - done, n = left < CUDA_ROWWISE_TOKENS ? left : CUDA_ROWWISE_TOKENS;
        task.token0 = done;
        launch_recalled(task, n, stream);
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
