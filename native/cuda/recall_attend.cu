/* Row-wise attention over what is recalled: blocks of the host's memory, one after the other, in segments of CUDA_SEGMENT of their
 * tokens. A warp takes two tiles, of one block or of two; the segments' parts lie behind those of sinks and ring, whose kernel comes
 * next and merges them all. */
#include "cuda/attend_rowwise.cuh"

/* A tile of 16 tokens that the list of blocks names; `seen`: how many of them this token sees. */
typedef struct kept_tile {
    kv_bank bank;
    int64_t tile;
    int32_t seen;
} kept_tile;

static __device__ __forceinline__ kept_tile kept_tile_at(const attend_task &task, int64_t token, int64_t kv_head, int64_t i) {
    const cuda_attend &a = task.a;
    const cuda_recall &r = a.recall;
    const int64_t list = token / CUDA_RECALL_TOGETHER * a.n_kv_heads + kv_head, tiles = r.block / KV_TILE;
    kept_tile t = {};
    if (i / tiles < r.n_seen[list]) {
        const cuda_seen one = r.seen[list * r.most_seen + i / tiles];
        t.bank = bank_of_slot(task, kv_head, one.slot);
        t.tile = i % tiles;
        const int64_t out = middle_of(a, a.control->first + token) - one.block * r.block - t.tile * KV_TILE;
        t.seen = (int32_t)(out <= 0 ? 0 : out < KV_TILE ? out : (int64_t)KV_TILE);
    }
    return t;
}

template <lmi_kv_type TYPE, int G, int V>
static __global__ void __launch_bounds__(THREADS, 2) attend_kept(attend_task task, int32_t n_segments) {
    enum { SLOTS = key_pieces<TYPE>::SLOTS };
    SHARED float q[CUDA_MAX_HEAD_DIM * G];
    SHARED float weights[WARPS][WARP_SLOTS * G];
    wait_for_previous();
    let_next_start();
    const cuda_attend &a = task.a;
    const int warp = (int)(threadIdx.x / 32), lane = (int)(threadIdx.x % 32);
    const int64_t token = task.token0 + (int64_t)blockIdx.z, kv_head = (int64_t)blockIdx.y, segment = (int64_t)blockIdx.x;
    const int64_t first = (segment * CUDA_SEGMENT + warp * WARP_SLOTS) / KV_TILE;
    const kept_tile low = kept_tile_at(task, token, kv_head, first), high = kept_tile_at(task, token, kv_head, first + 1);
    const int slot = slot_of_lane<SLOTS>(lane);
    const bool seen = slot % KV_TILE < (slot < KV_TILE ? low.seen : high.seen);
    const uint32_t low_bits = (1u << low.seen) - 1, high_bits = ((1u << high.seen) - 1) << KV_TILE;
    const value_lanes lanes = value_lanes_of<V>(a.head_dim, lane);
#pragma unroll 1
    for (int r0 = 0; r0 < task.group; r0 += G) {
        load_queries<TYPE, G>(task, token, kv_head, r0, FOR_KEPT, q);
        float m[G], z[G], sums[G][8] = {}, kept[G] = {}, given[G] = {};
#pragma unroll 1
        for (int t = 0; t < 2; t++) {
            const kept_tile &of = t == 0 ? low : high;
            float products[G][SLOTS] = {};
            if (of.seen > 0) {
                multiply_keys<TYPE, G>(of.bank, of.tile, q, lane, products);
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
                logit -= a.slopes[kv_head * task.group + r0 + g] * (float)a.recall.distance;
            }
            m[g] = warp_max(seen ? logit : -INFINITY);
            const float weight = seen ? expf(logit - m[g]) : 0.0f;
            z[g] = warp_sum(weight);
            weights[warp][slot * G + g] = weight;
        }
        __syncwarp();
        add_values<TYPE, G, V>(low.bank, low.tile * KV_TILE, low_bits, weights[warp], lanes, lane, sums);
        add_values<TYPE, G, V>(high.bank, high.tile * KV_TILE - KV_TILE, high_bits, weights[warp], lanes, lane, sums);
        sum_rows(lanes, sums);
        store_part<G, V>(task, r0, m, z, lanes, sums, part_of(task, n_segments + segment));
    }
}

template <lmi_kv_type TYPE, int V> static void launch_kept(const attend_task &task, int32_t n_tokens, device_stream *stream) {
    const cuda_attend &a = task.a;
    const int32_t n_segments = (int32_t)cuda_attend_segments(a.sinks, a.capacity);
    const dim3 grid((unsigned)(task.n_parts - n_segments), (unsigned)a.n_kv_heads, (unsigned)n_tokens), block(THREADS);
    if (task.group == 1) {
        LAUNCH(stream, (attend_kept<TYPE, 1, V>), grid, block, 0, task, n_segments);
    } else if (task.group == 2) {
        LAUNCH(stream, (attend_kept<TYPE, 2, V>), grid, block, 0, task, n_segments);
    } else if (task.group <= 4) {
        LAUNCH(stream, (attend_kept<TYPE, 4, V>), grid, block, 0, task, n_segments);
    } else {
        LAUNCH(stream, (attend_kept<TYPE, 8, V>), grid, block, 0, task, n_segments);
    }
}

void launch_recalled(const attend_task &task, int32_t n_tokens, device_stream *stream) {
    if (task.a.recall.block == 0) {
        return;
    }
    if (task.a.kv_type == LMI_KV_Q8_0) {
        launch_kept<LMI_KV_Q8_0, 8>(task, n_tokens, stream);
    } else if (task.a.kv_type == LMI_KV_F32) {
        launch_kept<LMI_KV_F32, 2>(task, n_tokens, stream);
    } else if (task.a.head_dim % 8 == 0) {
        launch_kept<LMI_KV_F16, 8>(task, n_tokens, stream);
    } else {
        launch_kept<LMI_KV_F16, 2>(task, n_tokens, stream);
    }
}
