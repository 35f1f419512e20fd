/* Attention of many tokens on tensor cores: first keys, values and queries of all tokens go to their places, then a block takes
 * 64 rows (tokens times the query heads of a kv head) through the tiles of their band.
 *
 * A tile is 64 or 32 slots of a bank. Its keys lie transposed (kv_tile.h), so that keys and values both are the right operand
 * of a product as they lie, eight by eight turned by load_matrices_transposed. The ring is walked in order of its slots, as
 * band_slots of lambda/window.h has it; only tiles at the band's ends are masked. Softmax runs in float32 (Milakov &
 * Gimelshein, arXiv 1805.02867).
 *
 * Logits are as good as float32's: keys are exact (levels of Q8_0 banks, whose scales come after the product), queries are two
 * halves, the second what the first lost. Weights are rounded to binary16, and so are values of Q8_0 banks: results are off by
 * up to 5e-4, Q8_0 8e-4, of the largest value of their head. */
#include "cuda/attend.cuh"

enum { WARPS = 4, THREADS = 32 * WARPS, ROWS = 16 * WARPS, HEADS_AT_ONCE = 8 };

/* Weights are rounded to binary16 for the product with the values: times 2^15, so that small ones stay normal; the largest
 * is 1. */
constexpr float WEIGHT_EXPONENT = 15.0f, LOG2_E = 1.44269504f;

/* What rows meet, in turn. */
enum { RING, SINKS, KEPT };

/* Queries, binary16: [2, or 3: for the ring, for the sinks, for what is kept][n_kv_heads][n_tokens * group][2: the number, what that
 * lost][head_dim]. */
uint64_t cuda_attend_tiled_bytes(int64_t n_tokens, int64_t n_heads, int64_t head_dim, bool recalls) {
    return (recalls ? 6 : 4) * sizeof(uint16_t) * (uint64_t)n_tokens * (uint64_t)n_heads * (uint64_t)head_dim;
}

/* ---- keys, values and queries to their places --------------------------------------------------------------------- */

static __device__ __forceinline__ void store_parts(uint16_t *to, int head_dim, float x) {
    to[0] = float_to_half(x);
    to[head_dim] = float_to_half(x - half_to_float(to[0]));
}

/* One block a kv head and token. */
template <bool RECALLS> static __global__ void __launch_bounds__(THREADS) place_token(attend_task task) {
    SHARED float factors[HEADS_AT_ONCE];
    wait_for_previous();
    let_next_start();
    const cuda_attend &a = task.a;
    const int64_t kv_head = (int64_t)blockIdx.x, token = (int64_t)blockIdx.y;
    const int d = a.head_dim, group = task.group;
    store_token(task, token, kv_head, a.control->first + token);

    const float *row = a.q + token * a.n_heads * d;
    const float *norm = a.head_norm != 0 ? a.q_norm : NULL;
    const float *turn = a.turn != NULL ? a.turn + token * a.n_rot : NULL, *turn_sink = sink_row(a, a.turn_sink, token);
    uint16_t *ring = (uint16_t *)a.work + (kv_head * a.n_tokens + token) * group * 2 * d;
    const int64_t all = (int64_t)a.n_tokens * a.n_heads * 2 * d;
    uint16_t *sinks = ring + SINKS * all;
    for (int r0 = 0; r0 < group; r0 += HEADS_AT_ONCE) {
        const int n = group - r0 < HEADS_AT_ONCE ? group - r0 : HEADS_AT_ONCE, first = (int)kv_head * group + r0;
        if (norm != NULL) {
            __syncthreads(); /* the factors of the heads before these have been read */
            norm_factors(a.head_norm, row, a.n_heads, first, n, d, a.eps, factors);
            __syncthreads();
        }
        for (int i = (int)threadIdx.x; i < n * (d / 2); i += THREADS) {
            const int r = i / (d / 2), u = i % (d / 2);
            const head_pair at = pair_of(a.pairing, a.n_rot, u);
            const float *head = row + (int64_t)(first + r) * d;
            const float *w = norm != NULL && a.head_norm == 2 ? norm + (int64_t)(first + r) * d : norm;
            const float factor = norm != NULL ? factors[r] : 1.0f;
            const float x = normed(head[at.first], factor, w, at.first) * a.scale;
            const float y = normed(head[at.second], factor, w, at.second) * a.scale;
            const float2 near = turned(x, y, turn, a.n_rot, u), far = turned(x, y, turn_sink, a.n_rot, u);
            const int64_t to = (int64_t)(r0 + r) * 2 * d;
            store_parts(ring + to + at.first, d, near.x);
            store_parts(ring + to + at.second, d, near.y);
            if (a.sinks > 0) {
                store_parts(sinks + to + at.first, d, far.x);
                store_parts(sinks + to + at.second, d, far.y);
            }
            if (RECALLS) {
                const float2 pair = turned(x, y, a.recall.turn, a.n_rot, u);
                store_parts(ring + KEPT * all + to + at.first, d, pair.x);
                store_parts(ring + KEPT * all + to + at.second, d, pair.y);
            }
        }
    }
}

/* ---- tiles in shared memory --------------------------------------------------------------------------------------- */

/* Shared memory for heads of up to DIM: keys [TILES][DIM][16], values [SLOTS][DIM + 8], both parts of queries [64][DIM + 8],
 * scales of keys (Q8_0) [TILES][DIM / 32][16], all binary16; rows are 16 bytes apart modulo 128, and the halves of every other
 * four rows of keys exchanged, so that eight rows are read without conflicts. Tiles of wide heads are smaller: the whole fits
 * into 99 KiB, up to 128 into 64 KiB. */
template <int DIM> struct layout {
    enum {
        SLOTS = DIM <= 96 ? 64 : 32,
        TILES = SLOTS / KV_TILE,
        ROW_BYTES = 2 * DIM + 16,
        KEY_BYTES = SLOTS * DIM * 2,
        VALUE_BYTES = SLOTS * ROW_BYTES,
        PART_BYTES = (int)ROWS * ROW_BYTES, /* of queries */
        SCALE_BYTES = SLOTS * DIM / 32 * 2,
        BYTES = KEY_BYTES + VALUE_BYTES + 2 * PART_BYTES + SCALE_BYTES,
        COLUMNS = DIM / 8 /* pieces of 16 bytes of a row */
    };
};

/* Where half `half` (8 slots) of row `row` (a dimension) of tile t lies, in bytes. */
template <int DIM> static __device__ __forceinline__ int key_at(int t, int row, int half) {
    return (t * DIM + row) * (KV_TILE * 2) + ((half ^ (row >> 2 & 1)) << 4);
}

/* A tile: slots of a bank from slot0 on, of which slot0 + c is at the distance offset + r - c from the block's token r, seen if
 * that is within near .. far - 1, and c < limit. */
typedef struct slot_tile {
    int32_t slot0, offset, near, far, limit;
} slot_tile;

/* Does any token (0 .. last) of the block see one of slots c .. c + n - 1? */
static __device__ __forceinline__ bool any_sees(const slot_tile &tile, int last, int c, int n) {
    return c < tile.limit && tile.offset + last - c >= tile.near && tile.offset - (c + n - 1) < tile.far;
}

/* Do all see all? */
static __device__ __forceinline__ bool all_see(const slot_tile &tile, int last, int n_slots) {
    return tile.limit >= n_slots && tile.offset - (n_slots - 1) >= tile.near && tile.offset + last < tile.far;
}

/* Four levels, one byte of each word, as binary16. */
static __device__ __forceinline__ uint2 widen_levels(const uint4 &words, int shift) {
    uint2 halves;
    halves.x = pack_halves((float)((int)(words.x >> shift & 0xff) - 128), (float)((int)(words.y >> shift & 0xff) - 128));
    halves.y = pack_halves((float)((int)(words.z >> shift & 0xff) - 128), (float)((int)(words.w >> shift & 0xff) - 128));
    return halves;
}

/* Two values of a Q8_0 bank as binary16. */
static __device__ __forceinline__ uint32_t scale_levels(int low, int high, float scale) {
    return pack_halves((float)low * scale, (float)high * scale);
}

/* Keys that nobody sees stay what they were: their logits are not looked at. */
template <lmi_kv_type TYPE, int DIM>
static __device__ __forceinline__ void copy_keys(const kv_bank &bank, const slot_tile &tile, int last, unsigned char *keys,
                                                 unsigned char *scales) {
    const int d = bank.head_dim;
#pragma unroll
    for (int t = 0; t < layout<DIM>::TILES; t++) {
        if (!any_sees(tile, last, KV_TILE * t, KV_TILE)) {
            continue;
        }
        const int64_t at = tile.slot0 / KV_TILE + t;
        if (TYPE == LMI_KV_F16) {
            const uint4 *from = (const uint4 *)bank.keys + at * d * 2;
            for (int i = (int)threadIdx.x; i < 2 * d; i += THREADS) {
                copy_16(keys + key_at<DIM>(t, i >> 1, i & 1), from + i);
            }
        } else {
            const uint4 *from = (const uint4 *)bank.keys + at * d;
            const uint4 *from_scales = (const uint4 *)bank.key_scales + at * (d / 32) * 2;
            for (int i = (int)threadIdx.x; i < d / 32 * 2; i += THREADS) {
                copy_16(scales + (t * (DIM / 32) * 2 + i) * 16, from_scales + i);
            }
            for (int i = (int)threadIdx.x; i < d; i += THREADS) { /* four slots of four dimensions */
                const int row = i / 4 * 4, slots = i % 4;
                const uint4 words = from[i];
#pragma unroll
                for (int j = 0; j < 4; j++) {
                    *(uint2 *)(keys + key_at<DIM>(t, row + j, slots >> 1) + (slots & 1) * 8) = widen_levels(words, 8 * j);
                }
            }
        }
    }
}

/* Values that nobody sees become zeros: a weight of zero does not make good whatever bytes there are. */
template <lmi_kv_type TYPE, int DIM>
static __device__ __forceinline__ void copy_values(const kv_bank &bank, const slot_tile &tile, int last,
                                                   unsigned char *values) {
    enum { COLUMNS = layout<DIM>::COLUMNS };
    const int d = bank.head_dim;
    for (int i = (int)threadIdx.x; i < layout<DIM>::SLOTS * COLUMNS; i += THREADS) {
        const int c = i / COLUMNS, column = i % COLUMNS * 8;
        unsigned char *to = values + c * layout<DIM>::ROW_BYTES + column * 2;
        if (column >= d) {
            continue;
        }
        if (!any_sees(tile, last, c, 1)) {
            *(uint4 *)to = make_uint4(0, 0, 0, 0);
        } else if (TYPE == LMI_KV_F16) {
            copy_16(to, (const uint16_t *)bank.values + (int64_t)(tile.slot0 + c) * d + column);
        } else {
            const uint2 bytes = *(const uint2 *)((const int8_t *)bank.values + (int64_t)(tile.slot0 + c) * d + column);
            const float s = half_to_float(bank.value_scales[(int64_t)(tile.slot0 + c) * (d / 32) + column / 32]);
            *(uint4 *)to = make_uint4(scale_levels((int8_t)bytes.x, (int8_t)(bytes.x >> 8), s),
                                      scale_levels((int8_t)(bytes.x >> 16), (int8_t)(bytes.x >> 24), s),
                                      scale_levels((int8_t)bytes.y, (int8_t)(bytes.y >> 8), s),
                                      scale_levels((int8_t)(bytes.y >> 16), (int8_t)(bytes.y >> 24), s));
        }
    }
}

/* Both parts of rows first .. of the kv head's queries; zeros behind the last row and the last column. */
template <int DIM>
static __device__ __forceinline__ void copy_queries(const uint16_t *from, int32_t first, int32_t n_rows, int d,
                                                    unsigned char *queries) {
    enum { COLUMNS = layout<DIM>::COLUMNS };
    for (int i = (int)threadIdx.x; i < 2 * ROWS * COLUMNS; i += THREADS) {
        const int part = i / (ROWS * COLUMNS), row = i / COLUMNS % ROWS, column = i % COLUMNS * 8;
        unsigned char *to = queries + (part * ROWS + row) * layout<DIM>::ROW_BYTES + column * 2;
        if (first + row < n_rows && column < d) {
            copy_16(to, from + (int64_t)((first + row) * 2 + part) * d + column);
        } else {
            *(uint4 *)to = make_uint4(0, 0, 0, 0);
        }
    }
}

/* ---- a block of rows ---------------------------------------------------------------------------------------------- */

/* The block's tokens and what of the banks they see between them. Numbers of slots, and distances, are below 2^30. */
typedef struct row_block {
    int32_t first_row, n_rows; /* of the kv head: row = token * group + head */
    int32_t last;              /* tokens of the block, less one */
    int32_t window, n_sinks, capacity;
    int32_t begin;  /* the slot of the oldest token that the block's first sees */
    int32_t offset; /* what slot 0 is away from the first token, the ring walked backwards from `begin` on; less the capacity,
                       where it wraps */
    int32_t sink_offset; /* the first token's distance to the text's first, or so far that it is out of every window */
    int32_t n_ring_tiles, n_sink_tiles, n_whole; /* n_whole: of the ring before it wraps */
    int64_t middle;                              /* tokens of the middle that the first token sees */
    int64_t list;                                /* of what its tokens see of it */
} row_block;

template <int SLOTS> static __device__ __forceinline__ int32_t tiles_of(int32_t begin, int32_t end) {
    return (end + SLOTS - 1) / SLOTS - begin / SLOTS;
}

template <int SLOTS> static __device__ __forceinline__ row_block row_block_at(const attend_task &task, int32_t block) {
    const cuda_attend &a = task.a;
    row_block rows;
    rows.first_row = block * ROWS;
    rows.n_rows = a.n_tokens * task.group;
    const int32_t last_row = (rows.first_row + ROWS < rows.n_rows ? rows.first_row + ROWS : rows.n_rows) - 1;
    const int32_t token = rows.first_row / task.group;
    const int64_t first = a.control->first + token, oldest = oldest_in_view(a, first), far = a.window + a.sinks + SLOTS;
    rows.last = last_row / task.group - token;
    rows.window = (int32_t)a.window;
    rows.n_sinks = sinks_in_view(a, first + rows.last);
    rows.capacity = (int32_t)a.capacity;
    rows.begin = (int32_t)(oldest % a.capacity);
    rows.offset = (int32_t)(first - oldest) + rows.begin;
    rows.sink_offset = (int32_t)(first < far ? first : far);
    const int32_t end = rows.offset + rows.last + 1;
    rows.n_whole = tiles_of<SLOTS>(rows.begin, end < rows.capacity ? end : rows.capacity);
    rows.n_ring_tiles = rows.n_whole + (end > rows.capacity ? tiles_of<SLOTS>(0, end - rows.capacity) : 0);
    rows.n_sink_tiles = tiles_of<SLOTS>(0, rows.n_sinks);
    rows.middle = first - a.window + 1 - a.sinks; /* not below 0 once anything is seen; then later tokens see more */
    rows.list = token / CUDA_RECALL_TOGETHER * a.n_kv_heads + (int64_t)blockIdx.y;
    return rows;
}

template <int SLOTS> static __device__ __forceinline__ slot_tile tile_at(const row_block &rows, bool is_sink, int32_t i) {
    const bool wrapped = !is_sink && i >= rows.n_whole;
    slot_tile tile;
    tile.slot0 = (i + (is_sink ? 0 : wrapped ? -rows.n_whole : rows.begin / SLOTS)) * SLOTS;
    tile.offset = (is_sink ? rows.sink_offset : wrapped ? rows.offset - rows.capacity : rows.offset) - tile.slot0;
    tile.near = is_sink ? rows.window : 0;
    tile.far = is_sink ? INT32_MAX : rows.window;
    const int32_t left = (is_sink ? rows.n_sinks : rows.capacity) - tile.slot0;
    tile.limit = left < SLOTS ? left : SLOTS;
    return tile;
}

/* The ith tile of what is kept; its bank. Its tokens are seen from some distance on, which the first token's may still lack. */
template <int SLOTS>
static __device__ __forceinline__ slot_tile kept_tile_at(const attend_task &task, const row_block &rows, int32_t i,
                                                         kv_bank *bank) {
    const cuda_recall &r = task.a.recall;
    const int32_t block = (int32_t)r.block, tiles = (block + SLOTS - 1) / SLOTS;
    const cuda_seen one = r.seen[rows.list * r.most_seen + i / tiles];
    const int64_t out = rows.middle - one.block * r.block; /* of the block's tokens, how many the first token sees */
    slot_tile tile;
    tile.slot0 = i % tiles * SLOTS;
    tile.near = 1;
    tile.far = INT32_MAX;
    tile.offset = (int32_t)(out < block ? out : block) - tile.slot0;
    tile.limit = block - tile.slot0 < SLOTS ? block - tile.slot0 : SLOTS;
    *bank = bank_of_slot(task, (int64_t)blockIdx.y, one.slot);
    return tile;
}

/* The ith of a phase, and its bank, where that is not the same for all. */
template <int SLOTS, bool RECALLS>
static __device__ __forceinline__ slot_tile next_tile(const attend_task &task, const row_block &rows, int phase, int32_t i,
                                                      kv_bank *bank) {
    if (RECALLS && phase == KEPT) {
        return kept_tile_at<SLOTS>(task, rows, i, bank);
    }
    return tile_at<SLOTS>(rows, phase == SINKS, i);
}

/* The two rows of a lane, 8 apart. */
typedef struct lane_rows {
    int32_t token[2]; /* counted from the block's first */
    float slope[2];
} lane_rows;

/* Logits of the warp's 16 rows and a tile's slots. `queries` and `keys`: the row that this lane names. A block of 32 dimensions
 * of a Q8_0 bank is multiplied by itself, then scaled. */
template <lmi_kv_type TYPE, int DIM>
static __device__ __forceinline__ void multiply_keys(const unsigned char *queries, const unsigned char *keys,
                                                     const unsigned char *scales, int d,
                                                     float (&logits)[layout<DIM>::SLOTS / 8][4]) {
    enum { TILES = layout<DIM>::TILES, TOGETHER = TYPE == LMI_KV_Q8_0 ? 2 : DIM / 16 };
    static_assert(TYPE == LMI_KV_F16 || DIM % 32 == 0, "blocks of 32");
#pragma unroll
    for (int first = 0; first < DIM / 16; first += TOGETHER) {
        float sums[2 * TILES][4] = {};
#pragma unroll
        for (int k = first; k < first + TOGETHER; k++) {
            uint32_t query[2][4];
            load_matrices(query[0], queries + k * 32);
            load_matrices(query[1], queries + layout<DIM>::PART_BYTES + k * 32);
#pragma unroll
            for (int t = 0; t < TILES; t++) {
                uint32_t key[4];
                load_matrices_transposed(key, keys + (t * DIM + k * 16) * (KV_TILE * 2));
#pragma unroll
                for (int part = 1; part >= 0; part--) {
                    mma_f16(sums[2 * t], query[part], key);
                    mma_f16(sums[2 * t + 1], query[part], key + 2);
                }
            }
        }
        if (TYPE == LMI_KV_Q8_0 && first * 16 >= d) {
            continue; /* there are no scales */
        }
#pragma unroll
        for (int j = 0; j < 2 * TILES; j++) {
            float low = 1.0f, high = 1.0f;
            if (TYPE == LMI_KV_Q8_0) {
                const int at = (j / 2 * (DIM / 32) + first / 2) * KV_TILE + j % 2 * 8 + (int)(threadIdx.x % 4) * 2;
                const uint32_t pair = *(const uint32_t *)(scales + at * 2);
                low = half_to_float((uint16_t)pair);
                high = half_to_float((uint16_t)(pair >> 16));
            }
#pragma unroll
            for (int e = 0; e < 4; e++) {
                logits[j][e] += sums[j][e] * (e % 2 == 0 ? low : high);
            }
        }
    }
}

/* Caps, biases and masks the logits of a tile, two rows a lane as mma_f16 has them. far: the distance of all that is not in the ring. */
template <int N>
static __device__ __forceinline__ void shape_logits(const cuda_attend &a, const slot_tile &tile, bool is_ring, int far,
                                                    bool masked, const lane_rows &lane, float (&logits)[N][4]) {
    const int column = (int)(threadIdx.x % 4) * 2;
    if (a.softcap != 0.0f) {
#pragma unroll
        for (int j = 0; j < N; j++) {
#pragma unroll
            for (int e = 0; e < 4; e++) {
                logits[j][e] = capped(logits[j][e], a.softcap);
            }
        }
    }
    if (a.slopes == NULL && !masked) {
        return;
    }
#pragma unroll
    for (int j = 0; j < N; j++) {
#pragma unroll
        for (int e = 0; e < 4; e++) {
            const int c = 8 * j + column + e % 2, distance = tile.offset + lane.token[e / 2] - c;
            if (a.slopes != NULL) {
                logits[j][e] -= lane.slope[e / 2] * (float)(is_ring ? distance : far);
            }
            if (distance < tile.near || distance >= tile.far || c >= tile.limit) {
                logits[j][e] = -INFINITY;
            }
        }
    }
}

/* Logits become weights, and what there was of the running softmax is faded to the new largest logit. */
template <int N, int COLUMNS>
static __device__ __forceinline__ void weigh(float (&logits)[N][4], float (&m)[2], float (&z)[2], float (&o)[COLUMNS][4]) {
#pragma unroll
    for (int h = 0; h < 2; h++) {
        float largest = m[h];
#pragma unroll
        for (int j = 0; j < N; j++) {
            largest = max_or_nan(max_or_nan(largest, logits[j][2 * h]), logits[j][2 * h + 1]);
        }
        largest = max_or_nan(largest, __shfl_xor_sync(0xffffffffu, largest, 1));
        largest = max_or_nan(largest, __shfl_xor_sync(0xffffffffu, largest, 2));
        const float base = largest == -INFINITY ? 0.0f : largest; /* -inf - -inf is no number */
        const float fade = exp2f((m[h] - base) * LOG2_E), shift = WEIGHT_EXPONENT - base * LOG2_E;
        float sum = z[h] * fade;
#pragma unroll
        for (int j = 0; j < N; j++) {
#pragma unroll
            for (int e = 2 * h; e < 2 * h + 2; e++) {
                logits[j][e] = exp2f(fmaf(logits[j][e], LOG2_E, shift));
                sum += logits[j][e];
            }
        }
        m[h] = largest;
        z[h] = sum;
        if (__any_sync(0xffffffffu, fade != 1.0f)) {
#pragma unroll
            for (int j = 0; j < COLUMNS; j++) {
                o[j][2 * h] *= fade;
                o[j][2 * h + 1] *= fade;
            }
        }
    }
}

template <lmi_kv_type TYPE, int DIM, bool RECALLS>
static __global__ void __launch_bounds__(THREADS) attend_rows(attend_task task) {
    typedef layout<DIM> place;
    enum { STEPS = DIM / 16, SLOTS = place::SLOTS, TILES = place::TILES, ROW_BYTES = place::ROW_BYTES };
    wait_for_previous();
    let_next_start();
    const cuda_attend &a = task.a;
    const int d = a.head_dim, lane = (int)(threadIdx.x % 32), warp = (int)(threadIdx.x / 32);
    const int64_t kv_head = (int64_t)blockIdx.y;
    const row_block rows = row_block_at<SLOTS>(task, (int32_t)blockIdx.x);
    unsigned char *keys = dynamic_shared(), *values = keys + place::KEY_BYTES, *queries = values + place::VALUE_BYTES;
    unsigned char *scales = queries + 2 * place::PART_BYTES;
    const int row16 = lane % 16, half = lane / 16; /* the row of 16 bytes that this lane names to load_matrices */
    const unsigned char *own_queries = queries + (warp * 16 + row16) * ROW_BYTES + half * 16;

    lane_rows own;
#pragma unroll
    for (int h = 0; h < 2; h++) {
        const int32_t row = rows.first_row + warp * 16 + lane / 4 + 8 * h, last = rows.n_rows - 1;
        own.token[h] = (row < last ? row : last) / task.group - rows.first_row / task.group;
        own.slope[h] = a.slopes != NULL ? a.slopes[kv_head * task.group + row % task.group] : 0.0f;
    }
    if (d < DIM) { /* behind the head's columns there are zeros */
        for (int i = (int)threadIdx.x; i < TILES * 2 * (DIM - d); i += THREADS) {
            const int row = i / (TILES * 2);
            *(uint4 *)(keys + key_at<DIM>(i / 2 % TILES, d + row, i % 2)) = make_uint4(0, 0, 0, 0);
        }
        for (int i = (int)threadIdx.x; i < SLOTS * (DIM - d) / 8; i += THREADS) {
            *(uint4 *)(values + i % SLOTS * ROW_BYTES + d * 2 + i / SLOTS * 16) = make_uint4(0, 0, 0, 0);
        }
    }
    float m[2] = {-INFINITY, -INFINITY}, z[2] = {0.0f, 0.0f}, o[2 * STEPS][4] = {};
#pragma unroll 1
    for (int phase = RECALLS ? KEPT : SINKS; phase >= RING; phase--) {
        const bool is_sink = phase == SINKS, is_kept = RECALLS && phase == KEPT;
        const int32_t n_tiles = is_kept   ? (int32_t)(a.recall.n_seen[rows.list] * ((a.recall.block + SLOTS - 1) / SLOTS))
                                : is_sink ? rows.n_sink_tiles
                                          : rows.n_ring_tiles;
        if (n_tiles == 0) {
            continue;
        }
        kv_bank bank = bank_of_head(task, is_sink, kv_head);
        const uint16_t *from = (const uint16_t *)a.work + ((int64_t)phase * a.n_kv_heads + kv_head) * rows.n_rows * 2 * d;
        __syncthreads(); /* nothing of the other bank is read any more */
        copy_queries<DIM>(from, rows.first_row, rows.n_rows, d, queries);
        const slot_tile start = next_tile<SLOTS, RECALLS>(task, rows, phase, 0, &bank);
        copy_keys<TYPE, DIM>(bank, start, rows.last, keys, scales);
        copy_commit();
        for (int32_t i = 0; i < n_tiles; i++) {
            const slot_tile tile = next_tile<SLOTS, RECALLS>(task, rows, phase, i, &bank);
            copy_wait<0>();
            __syncthreads(); /* the keys are there, the values before them have been read */
            copy_values<TYPE, DIM>(bank, tile, rows.last, values);
            copy_commit();
            float logits[SLOTS / 8][4] = {};
            multiply_keys<TYPE, DIM>(own_queries, keys + row16 * KV_TILE * 2 + ((half ^ (row16 >> 2 & 1)) << 4), scales, d,
                                     logits);
            shape_logits(a, tile, phase == RING, is_kept ? (int)a.recall.distance : (int)a.window,
                         !all_see(tile, rows.last, SLOTS), own, logits);
            weigh(logits, m, z, o);
            copy_wait<0>();
            __syncthreads(); /* the values are there, the keys have been read */
            if (i + 1 < n_tiles) {
                const slot_tile next = next_tile<SLOTS, RECALLS>(task, rows, phase, i + 1, &bank);
                copy_keys<TYPE, DIM>(bank, next, rows.last, keys, scales);
                copy_commit();
            }
#pragma unroll
            for (int t = 0; t < TILES; t++) {
                const uint32_t weights[4] = {pack_halves(logits[2 * t][0], logits[2 * t][1]),
                                             pack_halves(logits[2 * t][2], logits[2 * t][3]),
                                             pack_halves(logits[2 * t + 1][0], logits[2 * t + 1][1]),
                                             pack_halves(logits[2 * t + 1][2], logits[2 * t + 1][3])};
#pragma unroll
                for (int k = 0; k < STEPS; k++) {
                    uint32_t value[4];
                    load_matrices_transposed(value, values + (t * KV_TILE + row16) * ROW_BYTES + k * 32 + half * 16);
                    mma_f16(o[2 * k], weights, value);
                    mma_f16(o[2 * k + 1], weights, value + 2);
                }
            }
        }
    }
#pragma unroll
    for (int h = 0; h < 2; h++) {
        z[h] += __shfl_xor_sync(0xffffffffu, z[h], 1);
        z[h] += __shfl_xor_sync(0xffffffffu, z[h], 2);
        const int32_t row = rows.first_row + warp * 16 + lane / 4 + 8 * h;
        if (row >= rows.n_rows) {
            continue;
        }
        const int64_t token = row / task.group, head = kv_head * task.group + row % task.group;
        const float learned = a.sink_logits == NULL ? 0.0f : exp2f((a.sink_logits[head] - m[h]) * LOG2_E + WEIGHT_EXPONENT);
        const float inverse = 1.0f / (z[h] + learned);
        float *out = a.a + (token * a.n_heads + head) * d;
#pragma unroll
        for (int j = 0; j < 2 * STEPS; j++) {
            const int column = 8 * j + lane % 4 * 2;
            if (8 * j < d) {
                *(float2 *)(out + column) = make_float2(o[j][2 * h] * inverse, o[j][2 * h + 1] * inverse);
            }
        }
    }
}

/* ---- launching ----------------------------------------------------------------------------------------------------- */

template <lmi_kv_type TYPE, int DIM> static bool launch_rows(const attend_task &task, device_stream *stream) {
    const cuda_attend &a = task.a;
    if (a.head_dim > DIM || device_stream_info(stream)->shared_bytes < (uint64_t)layout<DIM>::BYTES) {
        return false;
    }
    const int64_t n_blocks = ((int64_t)a.n_tokens * task.group + ROWS - 1) / ROWS;
    const dim3 tokens((unsigned)a.n_kv_heads, (unsigned)a.n_tokens), grid((unsigned)n_blocks, (unsigned)a.n_kv_heads);
    if (a.recall.block > 0) {
        LAUNCH(stream, place_token<true>, tokens, dim3(THREADS), 0, task);
        launch_recall(task, stream);
        LAUNCH(stream, (attend_rows<TYPE, DIM, true>), grid, dim3(THREADS), layout<DIM>::BYTES, task);
    } else {
        LAUNCH(stream, place_token<false>, tokens, dim3(THREADS), 0, task);
        LAUNCH(stream, (attend_rows<TYPE, DIM, false>), grid, dim3(THREADS), layout<DIM>::BYTES, task);
    }
    return true;
}

/* The narrowest that takes the head. */
static bool launch_any(const attend_task &task, device_stream *stream) {
    const int d = task.a.head_dim;
    if (d % 8 != 0) {
        return false;
    }
    switch (task.a.kv_type) {
    case LMI_KV_F16:
        return d <= 64    ? launch_rows<LMI_KV_F16, 64>(task, stream)
               : d <= 80  ? launch_rows<LMI_KV_F16, 80>(task, stream)
               : d <= 96  ? launch_rows<LMI_KV_F16, 96>(task, stream)
               : d <= 128 ? launch_rows<LMI_KV_F16, 128>(task, stream)
                          : launch_rows<LMI_KV_F16, 256>(task, stream);
    case LMI_KV_Q8_0:
        return d <= 64    ? launch_rows<LMI_KV_Q8_0, 64>(task, stream)
               : d <= 96  ? launch_rows<LMI_KV_Q8_0, 96>(task, stream)
               : d <= 128 ? launch_rows<LMI_KV_Q8_0, 128>(task, stream)
                          : launch_rows<LMI_KV_Q8_0, 256>(task, stream);
    case LMI_KV_F32:
        break;
    }
    return false;
}

/* Banks of float32, heads that are not made of 16-byte pieces, devices with too little shared memory: row by row, which is
 * exact and slow. */
void cuda_launch_attend_tiled(const cuda_attend *args, device_stream *stream) {
    const attend_task task = attend_task_of(args);
    if (!launch_any(task, stream)) {
        cuda_launch_attend_rowwise(args, stream);
    }
}
