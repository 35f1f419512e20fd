/* What is kept of the middle: tokens that leave the window go to their blocks, blocks that are whole get boxes, and tokens choose
 * the blocks that can have what they look for. As backend/cpu_recall.c and lambda/boxes.c do it, in the same order of sums and
 * with the same rule for equals, so that the same blocks are chosen.
 *
 * Banks lie in the host's memory, which the device reads and writes in place: a token that leaves is written once, a block is read
 * when it is whole and when it was chosen. Boxes lie on the device. */
#include "cuda/attend.cuh"
#include "cuda/phase.cuh"
#include "cuda/sort.cuh"

enum {
    RECALL_THREADS = 256,
    HEADS_AT_ONCE = 8,
    NEXT = 2 * BOX_FAN,       /* from a box's number to that of the next dimension */
    SORTED = 2048,            /* keys that a block sorts in shared memory; more in `search` */
    LISTED = SORTED / BOX_FAN /* boxes whose children these are */
};
static_assert(RECALL_THREADS / 32 <= (int)ATTEND_MAX_WARPS && 2 * RECALL_THREADS >= (int)CUDA_MAX_HEAD_DIM,
              "a thread has a pair");

static __host__ __device__ __forceinline__ int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }
static __host__ __device__ __forceinline__ int64_t above(int64_t n) { return (n + BOX_FAN - 1) / BOX_FAN; }

/* As beam_of of backend/cpu_recall.c. */
static __host__ __device__ __forceinline__ int64_t beam_of(int64_t n) { return n > 8 ? (3 * n + 3) / 4 : 6; }

/* Boxes that a search lists: of a level the beam, in the end what was looked for. */
static __host__ __device__ __forceinline__ int64_t listed_of(int64_t n) { return n > beam_of(n) ? n : beam_of(n); }

static __host__ __device__ __forceinline__ int64_t power_above(int64_t n) {
    int64_t power = 2;
    while (power < n) {
        power *= 2;
    }
    return power;
}

int64_t cuda_recall_most_seen(const cuda_recall *recall, int64_t n_tokens) {
    const int64_t n = smaller(n_tokens, CUDA_RECALL_TOGETHER), most = recall->block - 1 + n - 1;
    return recall->block == 0 ? 0 : recall->n + (most + recall->block - 1) / recall->block;
}

int64_t cuda_recall_segments(const cuda_recall *recall, int64_t n_tokens) {
    return (cuda_recall_most_seen(recall, n_tokens) * recall->block + CUDA_SEGMENT - 1) / CUDA_SEGMENT;
}

uint64_t cuda_recall_search_bytes(int64_t n) {
    const int64_t listed = listed_of(n), keys = power_above(listed * BOX_FAN);
    return keys <= SORTED ? 0 : (uint64_t)keys * sizeof(uint64_t) + 2 * (uint64_t)listed * sizeof(int64_t);
}

/* ---- a token out of the ring ------------------------------------------------------------------------------------------ */

static __device__ __forceinline__ float load_key(const kv_bank &bank, int64_t slot, int i) {
    const int d = bank.head_dim, lane = (int)(slot % KV_TILE);
    const int64_t tile = slot / KV_TILE, at = (tile * d + i) * KV_TILE + lane;
    if (bank.type == LMI_KV_F32) {
        return ((const float *)bank.keys)[at];
    }
    if (bank.type == LMI_KV_F16) {
        return half_to_float(((const uint16_t *)bank.keys)[at]);
    }
    const int level = (int)((const uint8_t *)bank.keys)[(tile * (d / 4) + i / 4) * KV_TILE * 4 + lane * 4 + i % 4] - 128;
    return half_to_float(bank.key_scales[(tile * (d / 32) + i / 32) * KV_TILE + lane]) * (float)level;
}

static __device__ __forceinline__ float load_value(const kv_bank &bank, int64_t slot, int i) {
    const int d = bank.head_dim;
    const int64_t at = slot * d + i;
    if (bank.type == LMI_KV_F32) {
        return ((const float *)bank.values)[at];
    }
    if (bank.type == LMI_KV_F16) {
        return half_to_float(((const uint16_t *)bank.values)[at]);
    }
    return half_to_float(bank.value_scales[slot * (d / 32) + i / 32]) * (float)((const int8_t *)bank.values)[at];
}

/* Tokens that leave with the chunk: begin .. end - 1. */
typedef struct leaving_range {
    int64_t begin, end;
} leaving_range;

static __device__ __forceinline__ leaving_range leaving_of(const cuda_attend &a) {
    const int64_t first = a.control->first;
    leaving_range range = {a.sinks + middle_of(a, first), a.sinks + middle_of(a, first + a.n_tokens)};
    return range;
}

static __device__ __forceinline__ int64_t slot_of_block(const cuda_recall &r, int64_t block) {
    return r.now[1 + block % r.n_open];
}

/* By the whole block. */
static __device__ __forceinline__ void store_leaving(const attend_task &task, int64_t kv_head, int64_t token) {
    SHARED float key[CUDA_MAX_HEAD_DIM];
    SHARED float value[CUDA_MAX_HEAD_DIM];
    const cuda_attend &a = task.a;
    const cuda_recall &r = a.recall;
    const kv_bank ring = bank_of_head(task, false, kv_head);
    const int64_t index = token - a.sinks, position = a.control->start + token;
    for (int u = (int)threadIdx.x; u < a.head_dim / 2; u += (int)blockDim.x) {
        const head_pair at = pair_of(a.pairing, a.n_rot, u);
        const float x = load_key(ring, token % a.capacity, at.first), y = load_key(ring, token % a.capacity, at.second);
        float2 pair = {x, y};
        if (r.table != NULL && u < a.n_rot / 2) {
            float back[2];
            cos_sin_of((uint64_t)position * r.table->turns[u], &back[0], &back[1]);
            back[1] = -back[1];
            pair = turned(x, y, back, 2, 0);
        }
        key[at.first] = pair.x;
        key[at.second] = pair.y;
        value[at.first] = load_value(ring, token % a.capacity, at.first);
        value[at.second] = load_value(ring, token % a.capacity, at.second);
    }
    __syncthreads();
    store_slot(bank_of_slot(task, kv_head, slot_of_block(r, index / r.block)), index % r.block, key, value);
}

/* ---- boxes --------------------------------------------------------------------------------------------------------------- */

static __device__ __forceinline__ float widen(uint16_t bfloat) { return __uint_as_float((uint32_t)bfloat << 16); }

/* The nearest bfloat16 that is not less, and one that is not more; NaN stays NaN. */
static __device__ __forceinline__ uint16_t round_up(float x) {
    const uint32_t bits = __float_as_uint(x);
    const bool more = (bits & 0xffff) != 0 && bits >> 31 == 0;
    return x != x ? (uint16_t)0x7fc0 : (uint16_t)((bits >> 16) + (more ? 1 : 0));
}
static __device__ __forceinline__ uint16_t round_down(float x) { return (uint16_t)(round_up(-x) ^ 0x8000); }

/* As in_order of lambda/boxes.c. */
static __device__ __forceinline__ int16_t in_order(uint16_t bits) {
    return (int16_t)(bits ^ ((bits & 0x8000) != 0 ? 0x7fff : 0));
}

/* Dimension i of box `box` of a level: the largest; the smallest is BOX_FAN further on. */
static __device__ __forceinline__ uint16_t *side_of(const boxes &tree, int64_t offset, int level, int64_t box, int i) {
    return tree.level[level] + offset + (box / BOX_FAN * tree.d + i) * NEXT + box % BOX_FAN;
}

/* A dimension of a slot's own box: around the keys of its bank, or empty. */
static __device__ __forceinline__ void enclose_keys(const boxes &tree, int64_t offset, const kv_bank &bank, int64_t slot,
                                                    int64_t n_keys, bool whole, int i) {
    uint16_t largest = whole ? 0xff80 : 0, smallest = whole ? 0x7f80 : 0; /* -inf, inf */
    for (int64_t t = 0; whole && t < n_keys; t++) {
        const float key = load_key(bank, t, i);
        largest = key <= widen(largest) ? largest : round_up(key);
        smallest = key >= widen(smallest) ? smallest : round_down(key);
    }
    uint16_t *side = side_of(tree, offset, 0, slot, i);
    side[0] = largest;
    side[BOX_FAN] = smallest;
}

/* A dimension of box `box` of a level, around those of the level below, of which `used` are in use. */
static __device__ __forceinline__ void enclose_boxes(const boxes &tree, int64_t offset, int level, int64_t box, int64_t used,
                                                     int i) {
    const uint16_t *from = side_of(tree, offset, level - 1, box * BOX_FAN, i);
    const int64_t n = smaller(used - box * BOX_FAN, BOX_FAN);
    int16_t most = in_order(from[0]), least = in_order(from[BOX_FAN]);
    for (int64_t j = 1; j < n; j++) {
        const int16_t high = in_order(from[j]), low = in_order(from[BOX_FAN + j]);
        most = high > most ? high : most;
        least = low < least ? low : least;
    }
    uint16_t *side = side_of(tree, offset, level, box, i);
    side[0] = (uint16_t)in_order((uint16_t)most);
    side[BOX_FAN] = (uint16_t)in_order((uint16_t)least);
}

/* Of blocks that the leaving tokens begin or make whole. A thread has a dimension, which is all that it looks at. */
static __device__ __forceinline__ void close_blocks(const attend_task &task, int64_t kv_head) {
    const cuda_attend &a = task.a;
    const cuda_recall &r = a.recall;
    const leaving_range leaving = leaving_of(a);
    const int64_t offset = kv_head * r.tree_values, begin = leaving.begin - a.sinks, end = leaving.end - a.sinks;
    const int64_t n_used = r.now[0];
    for (int64_t b = begin / r.block; b * r.block < end; b++) {
        const bool begins = b * r.block >= begin, whole = (b + 1) * r.block <= end;
        if (!begins && !whole) {
            continue;
        }
        const int64_t slot = slot_of_block(r, b);
        const kv_bank bank = bank_of_slot(task, kv_head, slot);
        for (int i = (int)threadIdx.x; i < a.head_dim; i += (int)blockDim.x) {
            enclose_keys(r.tree, offset, bank, slot, r.block, whole, i);
            int64_t box = slot, used = n_used;
            for (int level = 1; level < r.tree.n_levels; level++, used = above(used)) {
                box /= BOX_FAN;
                enclose_boxes(r.tree, offset, level, box, used, i);
            }
        }
    }
}

/* ---- choosing ------------------------------------------------------------------------------------------------------------ */

/* The sum of the group's queries of tokens token0 .. token0 + n - 1, turned as they look at what is kept. By the whole block, which
 * sees it after the next barrier. */
static __device__ __forceinline__ void sum_queries(const attend_task &task, int64_t kv_head, int64_t token0, int64_t n,
                                                   float *look) {
    SHARED float factors[HEADS_AT_ONCE];
    const cuda_attend &a = task.a;
    const int d = a.head_dim, group = task.group, u = (int)threadIdx.x;
    const head_pair at = pair_of(a.pairing, a.n_rot, u);
    const float *weights = a.head_norm != 0 ? a.q_norm : NULL;
    float2 sum = {0.0f, 0.0f};
    for (int64_t token = token0; token < token0 + n; token++) {
        const float *row = a.q + token * a.n_heads * d;
        for (int r0 = 0; r0 < group; r0 += HEADS_AT_ONCE) {
            const int n_heads = group - r0 < HEADS_AT_ONCE ? group - r0 : HEADS_AT_ONCE, first = (int)kv_head * group + r0;
            if (weights != NULL) {
                __syncthreads(); /* the factors before these have been read */
                norm_factors(a.head_norm, row, a.n_heads, first, n_heads, d, a.eps, factors);
                __syncthreads();
            }
            for (int r = 0; u < d / 2 && r < n_heads; r++) {
                const float *head = row + (int64_t)(first + r) * d;
                const float *w = weights != NULL && a.head_norm == 2 ? weights + (int64_t)(first + r) * d : weights;
                const float factor = weights != NULL ? factors[r] : 1.0f;
                const float x = __fmul_rn(normed(head[at.first], factor, w, at.first), a.scale);
                const float y = __fmul_rn(normed(head[at.second], factor, w, at.second), a.scale);
                const float2 pair = turned(x, y, a.recall.turn, a.n_rot, u);
                sum.x = __fadd_rn(sum.x, pair.x);
                sum.y = __fadd_rn(sum.y, pair.y);
            }
        }
    }
    if (u < d / 2) {
        look[at.first] = sum.x;
        look[at.second] = sum.y;
    }
}

/* No key in the box has a larger product with q. */
static __device__ __forceinline__ float bound_of(const boxes &tree, int64_t offset, int level, int64_t box, const float *q) {
    const uint16_t *side = side_of(tree, offset, level, box, 0);
    const int d = (int)tree.d, whole = d / 4 * 4;
    float sums[4] = {0.0f, 0.0f, 0.0f, 0.0f};
#pragma unroll 4
    for (int i = 0; i < whole; i += 4) {
#pragma unroll
        for (int k = 0; k < 4; k++) {
            const float x = q[i + k];
            sums[k] = __fadd_rn(sums[k], __fmul_rn(x, widen(side[(i + k) * NEXT + (x <= 0.0f ? BOX_FAN : 0)])));
        }
    }
    for (int i = whole; i < d; i++) {
        sums[0] = __fadd_rn(sums[0], __fmul_rn(q[i], widen(side[i * NEXT + (q[i] <= 0.0f ? BOX_FAN : 0)])));
    }
    return __fadd_rn(__fadd_rn(sums[0], sums[1]), __fadd_rn(sums[2], sums[3]));
}

/* n keys, a power of two, in descending order (a bitonic network). By the whole block. */
static __device__ __forceinline__ void sort_keys(uint64_t *keys, int64_t n) {
    for (int64_t length = 2; length <= n; length *= 2) {
        for (int64_t distance = length / 2; distance > 0; distance /= 2) {
            for (int64_t pair = threadIdx.x; pair < n / 2; pair += blockDim.x) {
                const int64_t at = 2 * pair - (pair & (distance - 1));
                put_in_order(keys + at, keys + at + distance, (at & length) == 0);
            }
            __syncthreads();
        }
    }
}

/* Lists of boxes, the best first, and the keys of their children. */
typedef struct search_space {
    uint64_t *keys;
    int64_t *from, *to;
} search_space;

/* From the top of the tree down, the best `beam` of a level; the slots of the best n whose blocks are below `limit` into
 * space->from. By the whole block. */
static __device__ __forceinline__ int64_t find_slots(const cuda_recall &r, int64_t offset, int64_t limit, const float *look,
                                                     search_space *space) {
    SHARED int64_t n_found;
    const int64_t n_used = r.now[0], beam = beam_of(r.n);
    int64_t n_from = 1; /* the box around everything, which nobody keeps */
    if (threadIdx.x == 0) {
        space->from[0] = 0;
    }
    __syncthreads();
    for (int level = r.tree.n_levels - 1; level >= 0; level--) {
        int64_t used = n_used;
        for (int l = 0; l < level; l++) {
            used = above(used);
        }
        const int64_t n_keys = n_from * BOX_FAN, n_sorted = power_above(n_keys);
        const int64_t most = level > 1 ? beam / 2 + 1 : level == 1 ? beam : r.n;
        for (int64_t i = threadIdx.x; i < n_sorted; i += blockDim.x) {
            const int64_t box = i < n_keys ? space->from[i / BOX_FAN] * BOX_FAN + i % BOX_FAN : used;
            uint64_t key = 0;
            if (box < used && (level > 0 || r.number[box] < limit)) {
                const float bound = bound_of(r.tree, offset, level, box, look);
                key = bound == bound ? key_of_number(bound, i) : 0;
            }
            space->keys[i] = key;
        }
        if (threadIdx.x == 0) {
            n_found = 0;
        }
        __syncthreads();
        sort_keys(space->keys, n_sorted);
        for (int64_t i = threadIdx.x; i < most && i < n_sorted; i += blockDim.x) {
            const uint64_t key = space->keys[i];
            if (key != 0) {
                const int64_t at = (int64_t)(0xffffffffu - (uint32_t)key);
                space->to[i] = space->from[at / BOX_FAN] * BOX_FAN + at % BOX_FAN;
                if (i + 1 == most || i + 1 == n_sorted || space->keys[i + 1] == 0) {
                    n_found = i + 1;
                }
            }
        }
        __syncthreads();
        int64_t *const swap = space->from;
        space->from = space->to;
        space->to = swap;
        n_from = n_found;
        __syncthreads(); /* it has been read */
    }
    return n_from;
}

/* What the tokens that choose together, `group` of them all, see of one kv head. By the whole block. */
static __device__ __forceinline__ void choose(const attend_task &task, int64_t kv_head, int64_t group) {
    SHARED float look[CUDA_MAX_HEAD_DIM];
    SHARED uint64_t keys[SORTED];
    SHARED int64_t lists[2][LISTED];
    const cuda_attend &a = task.a;
    const cuda_recall &r = a.recall;
    const int64_t token0 = group * CUDA_RECALL_TOGETHER, n = smaller(a.n_tokens - token0, CUDA_RECALL_TOGETHER);
    const int64_t first = a.control->first + token0, n_whole = middle_of(a, first) / r.block;
    const int64_t at = group * a.n_kv_heads + kv_head;
    search_space space = {keys, lists[0], lists[1]};
    if (r.search != NULL) {
        const int64_t listed = listed_of(r.n), n_keys = power_above(listed * BOX_FAN);
        uint8_t *own =
            (uint8_t *)r.search + (uint64_t)at * ((uint64_t)n_keys * sizeof(uint64_t) + 2 * (uint64_t)listed * sizeof(int64_t));
        space.keys = (uint64_t *)own;
        space.from = (int64_t *)(space.keys + n_keys);
        space.to = space.from + listed;
    }
    sum_queries(task, kv_head, token0, n, look);
    __syncthreads();
    const int64_t n_chosen = n_whole > 0 ? find_slots(r, kv_head * r.tree_values, n_whole, look, &space) : 0;
    /* What has left the window and is not yet a whole block is always seen. */
    const int64_t n_left = middle_of(a, first + n - 1), n_open = (n_left + r.block - 1) / r.block - n_whole;
    const int64_t n_seen = n_chosen + (n_open > 0 ? n_open : 0);
    cuda_seen *seen = r.seen + at * r.most_seen;
    for (int64_t i = threadIdx.x; i < n_seen; i += blockDim.x) {
        cuda_seen one;
        one.block = n_whole + i - n_chosen;
        one.slot = i < n_chosen ? space.from[i] : slot_of_block(r, one.block);
        if (i < n_chosen) {
            one.block = r.number[one.slot];
            store_same(r.chosen + one.slot, a.control->first);
        }
        seen[i] = one;
    }
    if (threadIdx.x == 0) {
        r.n_seen[at] = (int32_t)n_seen;
    }
}

/* ---- kernels ------------------------------------------------------------------------------------------------------------- */

/* One block a kv head, for a single token. */
static __global__ void __launch_bounds__(RECALL_THREADS, 1) recall_one(attend_task task) {
    wait_for_previous();
    let_next_start();
    const int64_t kv_head = (int64_t)blockIdx.x;
    const leaving_range leaving = leaving_of(task.a);
    if (leaving.begin < leaving.end) {
        store_leaving(task, kv_head, leaving.begin);
        __syncthreads();
        close_blocks(task, kv_head);
        __syncthreads();
    }
    choose(task, kv_head, 0);
}

/* One block a kv head and token. */
static __global__ void __launch_bounds__(RECALL_THREADS) store_all(attend_task task) {
    wait_for_previous();
    let_next_start();
    const leaving_range leaving = leaving_of(task.a);
    const int64_t token = leaving.begin + (int64_t)blockIdx.y;
    if (token < leaving.end) {
        store_leaving(task, (int64_t)blockIdx.x, token);
    }
}

/* One block a kv head. */
static __global__ void __launch_bounds__(RECALL_THREADS) close_all(attend_task task) {
    wait_for_previous();
    let_next_start();
    close_blocks(task, (int64_t)blockIdx.x);
}

/* One block a kv head and tokens that choose together. */
static __global__ void __launch_bounds__(RECALL_THREADS) choose_all(attend_task task) {
    wait_for_previous();
    let_next_start();
    choose(task, (int64_t)blockIdx.x, (int64_t)blockIdx.y);
}

void launch_recall(const attend_task &task, device_stream *stream) {
    const unsigned n_kv_heads = (unsigned)task.a.n_kv_heads, n_tokens = (unsigned)task.a.n_tokens;
    if (task.a.recall.block == 0) {
        return;
    }
    if (n_tokens == 1) {
        LAUNCH(stream, recall_one, dim3(n_kv_heads), dim3(RECALL_THREADS), 0, task);
        return;
    }
    const unsigned n_groups = (n_tokens + CUDA_RECALL_TOGETHER - 1) / CUDA_RECALL_TOGETHER;
    LAUNCH(stream, store_all, dim3(n_kv_heads, n_tokens), dim3(RECALL_THREADS), 0, task);
    LAUNCH(stream, close_all, dim3(n_kv_heads), dim3(RECALL_THREADS), 0, task);
    LAUNCH(stream, choose_all, dim3(n_kv_heads, n_groups), dim3(RECALL_THREADS), 0, task);
}

/* ---- boxes anew ---------------------------------------------------------------------------------------------------------- */

/* Blocks of x take slots in turn, those of y shelves. */
static __global__ void __launch_bounds__(RECALL_THREADS)
    enclose_slots(attend_task task, int64_t n_used, int64_t n_whole, bool anew) {
    wait_for_previous();
    let_next_start();
    const cuda_recall &r = task.a.recall;
    const int64_t shelf = (int64_t)blockIdx.y;
    for (int64_t slot = (int64_t)blockIdx.x; slot < n_used; slot += gridDim.x) {
        const bool whole = r.number[slot] < n_whole;
        if (!whole || anew) {
            const kv_bank bank = bank_of_slot(task, shelf, slot);
            for (int i = (int)threadIdx.x; i < task.a.head_dim; i += RECALL_THREADS) {
                enclose_keys(r.tree, shelf * r.tree_values, bank, slot, r.block, whole, i);
            }
        }
    }
}

/* The same with the boxes of a level. */
static __global__ void __launch_bounds__(RECALL_THREADS) enclose_level(attend_task task, int level, int64_t used_below) {
    wait_for_previous();
    let_next_start();
    const cuda_recall &r = task.a.recall;
    for (int64_t box = (int64_t)blockIdx.x; box < above(used_below); box += gridDim.x) {
        for (int i = (int)threadIdx.x; i < task.a.head_dim; i += RECALL_THREADS) {
            enclose_boxes(r.tree, (int64_t)blockIdx.y * r.tree_values, level, box, used_below, i);
        }
    }
}

void cuda_launch_boxes(const cuda_recall *recall, lmi_kv_type type, int32_t head_dim, int64_t n_shelves, int64_t n_used,
                       int64_t n_whole, bool anew, device_stream *stream) {
    enum { MOST_BLOCKS = 1024 };
    cuda_attend args = {};
    args.kv_type = type;
    args.head_dim = head_dim;
    args.n_heads = args.n_kv_heads = 1;
    args.recall = *recall;
    const attend_task task = attend_task_of(&args);
    int64_t used = n_used;
    for (int level = 0; level < recall->tree.n_levels && used > 0; level++) {
        const int64_t n = level == 0 ? used : above(used);
        const dim3 grid((unsigned)smaller(n, MOST_BLOCKS), (unsigned)n_shelves);
        if (level == 0) {
            LAUNCH(stream, enclose_slots, grid, dim3(RECALL_THREADS), 0, task, n_used, n_whole, anew);
        } else {
            LAUNCH(stream, enclose_level, grid, dim3(RECALL_THREADS), 0, task, level, used);
            used = above(used);
        }
    }
}
