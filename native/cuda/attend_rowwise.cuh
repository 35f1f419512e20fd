/* What the blocks of the row-wise attention share: a segment of CUDA_SEGMENT slots, 32 of them a warp's; queries before it, and
 * what is left of it for the merge. */
#ifndef LMI_CUDA_ATTEND_ROWWISE_CUH
#define LMI_CUDA_ATTEND_ROWWISE_CUH

#include "cuda/attend.cuh"
#include "cuda/attend_pieces.cuh"

enum { WARPS = 8, THREADS = 32 * WARPS, WARP_SLOTS = CUDA_SEGMENT / WARPS };
static_assert((int)WARPS <= (int)ATTEND_MAX_WARPS && WARP_SLOTS == 32, "a lane has a slot of its own");

static __host__ __device__ __forceinline__ int64_t segments_of(int64_t slots) {
    return (slots + CUDA_SEGMENT - 1) / CUDA_SEGMENT;
}

/* Parts of what n_tokens tokens from task.token0 on see of what is kept, before the segments that merge them. recall_attend.cu */
void launch_recalled(const attend_task &task, int32_t n_tokens, device_stream *stream);

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

/* What queries are turned for. */
typedef enum query_use { FOR_RING, FOR_SINKS, FOR_KEPT } query_use;

/* G queries of the kv head from its r0th on to q [head_dim][G]: normed, scaled, turned for `use`; zeros behind the last. */
template <lmi_kv_type TYPE, int G>
static __device__ __forceinline__ void load_queries(const attend_task &task, int64_t token, int64_t kv_head, int r0,
                                                    query_use use, float *q) {
    SHARED float factors[G];
    const cuda_attend &a = task.a;
    const int d = a.head_dim, first = (int)kv_head * task.group + r0, n = task.group - r0 < G ? task.group - r0 : G;
    const float *row = a.q + token * a.n_heads * d;
    const float *weights = a.head_norm != 0 ? a.q_norm : NULL;
    const float *turn = use == FOR_KEPT    ? a.recall.turn
                        : use == FOR_SINKS ? sink_row(a, a.turn_sink, token)
                        : a.turn != NULL   ? a.turn + token * a.n_rot
                                           : NULL;
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

/* ---- parts ---------------------------------------------------------------------------------------------------------- */

/* A part, in floats: m [group], z [group], o [group][head_dim]. */
static __device__ __forceinline__ int64_t part_floats(const attend_task &task) {
    return (int64_t)task.group * (2 + task.a.head_dim);
}

/* Of a segment of the block's token and kv head. */
static __device__ __forceinline__ float *part_of(const attend_task &task, int64_t segment) {
    const int64_t row = (int64_t)blockIdx.z * task.a.n_kv_heads + (int64_t)blockIdx.y;
    return task.a.parts + (row * task.n_parts + segment) * part_floats(task);
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

#endif
