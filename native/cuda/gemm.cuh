/* The tiled product of many tokens with quantized rows, on tensor cores: what gemm.cu prepares and gemm_32.cu, gemm_256.cu compute.
 *
 *   y[t][r] = 2^(token_exponent[t] + e[r]) * sum over c of f16(W[r][c] 2^-e[r]) * x[t][c]
 *
 * x are f16 rows that gemm.cu scaled by a power of two each. So is every row of W, here and as it goes: the first 64 columns that are not
 * all zero choose e so that they are below 2, and should weights further on exceed 2^15, e grows and the sums so far are scaled down (once
 * in a long while, if ever). Nothing finite can overflow, whatever the type, and what rounding to f16 loses is at most 2^-12 of the
 * weight itself, or 2^-25 of the largest of its row if that is more. F16 weights are taken as they are. Rows of F32 have no more
 * digits than that either: activations would not either.
 *
 * A block of threads computes TOKENS x ROWS. Columns go by in steps of 64. Activations are copied to shared memory two steps
 * ahead; quants are loaded to registers two steps ahead, made f16 and stored to shared memory one step ahead, by the thread pair of their
 * row, while the tensor cores work on the step at hand. Rows in shared memory are 128 bytes, and chunk c of 16 bytes lies at
 * c ^ (row % 8): neither copying, storing nor loading matrices meets a bank twice. */
#ifndef LMI_CUDA_GEMM_CUH
#define LMI_CUDA_GEMM_CUH

#include "cuda/epilogue.cuh"
#include "cuda/weights.cuh"

typedef enum tile_mode {
    TILE_STORE,    /* y = bounded(v) */
    TILE_ADD,      /* y += v sigmoid(s) */
    TILE_ACTIVATE, /* y = f(v) */
    TILE_GATED,    /* y = f(v of w[0]) * (v of w[1]); every other eight rows of a tile are of w[1] */
    TILE_TIMES     /* y = f(v) * y */
} tile_mode;

typedef struct tile_args {
    tile_mode mode;
    activation kind;
    float clamp, softcap;
    const float *s;
    int32_t n_weights;               /* GATED: 2 */
    cuda_weight w[CUDA_MAX_OUTPUTS]; /* of one type and equal cols; GATED: and equal rows */
    float *y[CUDA_MAX_OUTPUTS];
    int32_t n_tokens;  /* rows of y */
    const uint16_t *x; /* f16 [][x_stride], zeros beyond cols */
    int64_t x_stride;  /* multiple of 64 */
    const int32_t *token_exponent;
    /* Experts: row p of y ("pair" t * n_used + j) is of matrix e if p is among pair[first[e] .. first[e + 1]), and its x is row p /
     * pairs_per_x. NULL: matrix 0, all rows in order. */
    const int32_t *first, *pair;
    int32_t n_experts, pairs_per_x;
} tile_args;

typedef enum tile_size { TILE_LARGE, TILE_MIDDLE, TILE_SMALL } tile_size;

typedef struct tile_shape {
    int tokens, rows, warps_of_tokens;
} tile_shape;

__host__ __device__ constexpr tile_shape tile_shape_of(tile_size size) {
    return size == TILE_LARGE ? tile_shape{128, 128, 2} : size == TILE_MIDDLE ? tile_shape{64, 64, 2} : tile_shape{32, 64, 1};
}

enum { TILE_STAGES = 3, TILE_ROW_BYTES = 2 * STEP };

__host__ __device__ constexpr size_t tile_shared_bytes(tile_size size) {
    return (size_t)(TILE_STAGES * tile_shape_of(size).tokens + 2 * tile_shape_of(size).rows) * TILE_ROW_BYTES;
}

/* gemm_32.cu has the types with blocks of up to 32 values, gemm_256.cu the super-blocks. */
void launch_tiles_32(const tile_args *args, tile_size size, unsigned n_blocks, device_stream *stream);
void launch_tiles_256(const tile_args *args, tile_size size, unsigned n_blocks, device_stream *stream);

/* ---- exponents ------------------------------------------------------------------------------------------------------ */

/* 2^n, -126 <= n <= 127 */
__device__ __forceinline__ float power_of_two(int n) { return __uint_as_float((uint32_t)(n + 127) << 23); }

/* x 2^n, |n| <= 252, rounded once unless it gets subnormal half way. */
__device__ __forceinline__ float times_power(float x, int n) {
    const int half = n >> 1;
    return x * power_of_two(half) * power_of_two(n - half);
}

enum { ROW_HEADROOM = 15 };

/* e of a row of weights so far. */
typedef struct row_scale {
    int exponent;
    uint32_t limit; /* bits of the smallest bound that is too large for it; 0: no exponent yet */
} row_scale;

/* Makes room for weights up to `bound` (bits of a float); returns what sums so far must be multiplied by. A bound that is not finite
 * changes nothing: the weights will be infinite or NaN in f16 as well. */
__device__ __forceinline__ float make_room(row_scale *scale, uint32_t bound) {
    if (bound < scale->limit || bound >= 0x7f800000u || bound == 0) {
        return 1.0f;
    }
    const int field = (int)(bound >> 23);
    const int exponent = field < 1 ? -126 : field > 253 ? 126 : field - 127;
    const int shrink = scale->exponent - exponent; /* below 0 if there was one */
    const float factor = scale->limit == 0 ? 1.0f : shrink < -126 ? 0.0f : power_of_two(shrink);
    scale->exponent = exponent;
    scale->limit = exponent + ROW_HEADROOM > 127 ? 0x7f800000u : (uint32_t)(exponent + ROW_HEADROOM + 127) << 23;
    return factor;
}

/* ---- the tile ------------------------------------------------------------------------------------------------------- */

__device__ __forceinline__ unsigned char *tile_chunk(unsigned char *tile, int row, int chunk) {
    return tile + row * TILE_ROW_BYTES + (chunk ^ (row & 7)) * 16;
}

/* Where the block's tile is. */
typedef struct tile_place {
    int weight;        /* which of w; GATED: 0 */
    int64_t row;       /* first row of y */
    int32_t slot, end; /* tokens, or slots of an expert */
    int32_t matrix;
} tile_place;

template <int TOKENS, int ROWS> __device__ __forceinline__ bool find_tile(const tile_args &args, tile_place *place) {
    SHARED int32_t found[3];
    const int rows_of_y = args.mode == TILE_GATED ? ROWS / 2 : ROWS;
    const int32_t n_token_tiles =
        args.first != NULL ? args.n_tokens / TOKENS + args.n_experts : (args.n_tokens + TOKENS - 1) / TOKENS;
    const int32_t token_tile = (int32_t)(blockIdx.x % (unsigned)n_token_tiles);
    int64_t row_tile = blockIdx.x / (unsigned)n_token_tiles;
    place->weight = 0;
    while (args.mode != TILE_GATED && place->weight + 1 < args.n_weights &&
           row_tile >= (args.w[place->weight].rows + ROWS - 1) / ROWS) {
        row_tile -= (args.w[place->weight].rows + ROWS - 1) / ROWS;
        place->weight++;
    }
    place->row = row_tile * rows_of_y;
    if (args.first == NULL) {
        place->slot = token_tile * TOKENS;
        place->end = args.n_tokens;
        place->matrix = 0;
        return true;
    }
    /* Expert e has the tiles first[e] / TOKENS + e and on: as many as it needs fit before those of the next. */
    if (threadIdx.x == 0) {
        found[0] = -1;
    }
    __syncthreads();
    for (int32_t e = (int32_t)threadIdx.x; e < args.n_experts; e += 2 * ROWS) {
        const int32_t from = args.first[e], to = args.first[e + 1];
        if (token_tile >= from / TOKENS + e && token_tile <= to / TOKENS + e) {
            found[0] = e;
            found[1] = from + (token_tile - from / TOKENS - e) * TOKENS;
            found[2] = to;
        }
    }
    __syncthreads();
    place->matrix = found[0];
    place->slot = found[1];
    place->end = found[2];
    return found[0] >= 0 && place->slot < place->end;
}

/* Stores a tile of sums [TOKENS][stride]: each thread one row of y, every few tokens. */
template <int TOKENS, int ROWS>
__device__ __forceinline__ void finish_tile(const tile_args &args, const tile_place &place, const float *sums, int stride,
                                            const int32_t *row_exponent) {
    const bool gated = args.mode == TILE_GATED;
    const int n_rows = gated ? ROWS / 2 : ROWS, thread = (int)threadIdx.x, r = thread % n_rows;
    const int local = gated ? r / 8 * 16 + r % 8 : r;
    const int64_t rows = args.w[place.weight].rows, row = place.row + r;
    if (row >= rows) {
        return;
    }
    const float *all_bias = args.w[place.weight].bias, *all_up_bias = args.w[1].bias;
    const float bias = all_bias != NULL ? all_bias[place.matrix * rows + row] : 0.0f;
    const float up_bias = gated && all_up_bias != NULL ? all_up_bias[place.matrix * rows + row] : 0.0f;
    const int exponent = row_exponent[local], up_exponent = gated ? row_exponent[local + 8] : 0;
    for (int t = thread / n_rows; t < TOKENS && place.slot + t < place.end; t += 2 * ROWS / n_rows) {
        const int32_t token = args.first != NULL ? args.pair[place.slot + t] : place.slot + t;
        const int token_exponent = args.token_exponent[args.first != NULL ? token / args.pairs_per_x : token];
        float *y = args.y[place.weight] + token * rows + row;
        const float v = times_power(sums[t * stride + local], token_exponent + exponent) + bias;
        if (args.mode == TILE_STORE) {
            *y = bounded(v, args.clamp, args.softcap);
        } else if (args.mode == TILE_ADD) {
            *y += args.s != NULL ? v * sigmoid(args.s[token]) : v;
        } else {
            float up = 0.0f;
            if (gated) {
                up = times_power(sums[t * stride + local + 8], token_exponent + up_exponent) + up_bias;
            } else if (args.mode == TILE_TIMES) {
                up = *y;
            }
            const float f = activated(args.kind, v);
            *y = args.mode == TILE_ACTIVATE ? f : f * factor_of(args.kind, up);
        }
    }
}

/* Blocks a multiprocessor should hold: it decides how many registers a thread may have. */
constexpr int tile_residents(int type, tile_size size) {
    return type == QUANT_F32 ? 1 : size == TILE_LARGE ? 2 : size == TILE_MIDDLE ? 4 : 5;
}

template <int TYPE, tile_size SIZE>
__global__ void __launch_bounds__(2 * tile_shape_of(SIZE).rows, tile_residents(TYPE, SIZE)) tile_kernel(const tile_args args) {
    constexpr tile_shape SHAPE = tile_shape_of(SIZE);
    constexpr int TOKENS = SHAPE.tokens, ROWS = SHAPE.rows, THREADS = 2 * ROWS, WARPS = THREADS / 32;
    constexpr int WARP_TOKENS = TOKENS / SHAPE.warps_of_tokens, WARP_ROWS = ROWS / (WARPS / SHAPE.warps_of_tokens);
    constexpr int M = WARP_TOKENS / 16, N = WARP_ROWS / 8, COPIES = TOKENS * 8 / THREADS;
    constexpr bool SCALED = TYPE != QUANT_F16;
    SHARED float shrink[2][ROWS];
    SHARED int32_t shrink_step[2], row_exponent[ROWS];
    unsigned char *x_tiles = dynamic_shared(), *w_tiles = x_tiles + TILE_STAGES * TOKENS * TILE_ROW_BYTES;
    const int thread = (int)threadIdx.x, lane = thread % 32, warp = thread / 32;

    if (args.first != NULL) {
        wait_for_previous();
    }
    tile_place place;
    if (!find_tile<TOKENS, ROWS>(args, &place)) {
        return;
    }
    /* Weights: two threads a row, one a unit of each step. */
    const int w_row = thread / 2, w_unit = thread % 2;
    const bool gated = args.mode == TILE_GATED;
    const cuda_weight &whole = args.w[gated ? w_row / 8 % 2 : place.weight];
    const int64_t y_row = place.row + (gated ? w_row / 16 * 8 + w_row % 8 : w_row), last_row = whole.rows - 1;
    const cuda_weight w = skip_rows<TYPE>(whole, place.matrix * whole.rows + (y_row < last_row ? y_row : last_row));
    const int n_units = (int)((args.w[0].cols + UNIT - 1) / UNIT), n_steps = (n_units + 1) / 2;
    row_scale scale = {0, 0};
    const auto load = [&](int step) {
        const int unit = 2 * step + w_unit;
        return unit < n_units ? load_unit<TYPE>(w, 0, unit) : weight_unit<TYPE>{};
    };
    const auto store = [&](const weight_unit<TYPE> &raw, int step) {
        float factor = 1.0f;
        if (SCALED) {
            uint32_t bound = __float_as_uint(bound_of_unit<TYPE>(raw));
            const uint32_t other = __shfl_xor_sync(0xffffffffu, bound, 1);
            bound = other > bound ? other : bound;
            const float by = make_room(&scale, bound);
            if (by != 1.0f) {
                atomicMax(&shrink_step[step & 1], step);
            }
            if (w_unit == 0) {
                shrink[step & 1][w_row] = by;
            }
            factor = power_of_two(-scale.exponent);
        }
        uint32_t h[UNIT / 2];
        if constexpr (TYPE == QUANT_F16) {
#pragma unroll
            for (int i = 0; i < UNIT / 2; i++) {
                h[i] = word_of(raw.quarter[i / 4], i % 4);
            }
        } else {
            halves_of_unit<TYPE>(raw, factor, h);
        }
        unsigned char *tile = w_tiles + (step & 1) * ROWS * TILE_ROW_BYTES;
#pragma unroll
        for (int j = 0; j < 4; j++) {
            *(uint4 *)tile_chunk(tile, w_row, 4 * w_unit + j) = make_uint4(h[4 * j], h[4 * j + 1], h[4 * j + 2], h[4 * j + 3]);
        }
    };
    weight_unit<TYPE> raw = load(0);
    wait_for_previous();

    /* Activations: eight threads a row. Rows beyond the last are copies of it. */
    int32_t source[COPIES]; /* in chunks: fewer than 2^31, as the work space is less than 32 GiB */
#pragma unroll
    for (int i = 0; i < COPIES; i++) {
        const int32_t slot = place.slot + thread / 8 + i * (THREADS / 8);
        const int32_t inside = slot < place.end ? slot : place.end - 1;
        source[i] = (args.first != NULL ? args.pair[inside] / args.pairs_per_x : inside) * (int32_t)(args.x_stride / 8);
    }
    const auto copy = [&](int step) {
        if (step < n_steps) {
            unsigned char *tile = x_tiles + step % TILE_STAGES * TOKENS * TILE_ROW_BYTES;
            const int32_t chunk = row_chunk(TYPE, step, thread % 8);
#pragma unroll
            for (int i = 0; i < COPIES; i++) {
                copy_16(tile_chunk(tile, thread / 8 + i * (THREADS / 8), thread % 8),
                        args.x + 8 * (int64_t)(source[i] + chunk));
            }
        }
        copy_commit();
    };

    float sum[M][N][4];
#pragma unroll
    for (int i = 0; i < M * N * 4; i++) {
        (&sum[0][0][0])[i] = 0.0f;
    }
    if (thread < 2) {
        shrink_step[thread] = -1;
    }
    __syncthreads();
    for (int step = 0; step < TILE_STAGES - 1; step++) {
        copy(step);
    }
    store(raw, 0);
    raw = load(1);

    const int token0 = warp % SHAPE.warps_of_tokens * WARP_TOKENS, row0 = warp / SHAPE.warps_of_tokens * WARP_ROWS;
    /* Matrices of x: rows 0 .. 7, 8 .. 15, both again 8 columns on. Of w: rows 0 .. 7, 8 columns on, then rows 8 .. 15. */
    const int x_lane = (token0 + lane % 16) * TILE_ROW_BYTES + ((lane / 16) ^ (lane & 7)) * 16;
    const int w_lane = (row0 + lane / 16 * 8 + lane % 8) * TILE_ROW_BYTES + ((lane / 8 % 2) ^ (lane & 7)) * 16;
    for (int step = 0; step < n_steps; step++) {
        copy_wait<TILE_STAGES - 2>();
        __syncthreads(); /* x and w of this step are there, those of the last one are no longer needed */
        if (SCALED && shrink_step[step & 1] == step) {
#pragma unroll
            for (int n = 0; n < N; n++) {
                const float a = shrink[step & 1][row0 + 8 * n + lane % 4 * 2],
                            b = shrink[step & 1][row0 + 8 * n + lane % 4 * 2 + 1];
#pragma unroll
                for (int m = 0; m < M; m++) {
                    sum[m][n][0] *= a, sum[m][n][2] *= a;
                    sum[m][n][1] *= b, sum[m][n][3] *= b;
                }
            }
        }
        copy(step + TILE_STAGES - 1);
        const unsigned char *x_tile = x_tiles + step % TILE_STAGES * TOKENS * TILE_ROW_BYTES;
        const unsigned char *w_tile = w_tiles + (step & 1) * ROWS * TILE_ROW_BYTES;
#pragma unroll
        for (int k = 0; k < STEP / 16; k++) {
            uint32_t a[M][4], b[N / 2][4];
#pragma unroll
            for (int m = 0; m < M; m++) {
                load_matrices(a[m], x_tile + 16 * m * TILE_ROW_BYTES + (x_lane ^ k * 32));
            }
#pragma unroll
            for (int n = 0; n < N / 2; n++) {
                load_matrices(b[n], w_tile + 16 * n * TILE_ROW_BYTES + (w_lane ^ k * 32));
            }
#pragma unroll
            for (int m = 0; m < M; m++) {
#pragma unroll
                for (int n = 0; n < N; n++) {
                    mma_f16(sum[m][n], a[m], b[n / 2] + n % 2 * 2);
                }
            }
            if (k == 1 && step + 1 < n_steps) {
                store(raw, step + 1);
                raw = load(step + 2);
            }
        }
    }
    let_next_start();

    /* Sums go through shared memory, so that what is done with them is written once and stores are of whole sectors. */
    constexpr int SUM_STRIDE = ROWS + 8; /* two values of each of a quarter warp's rows: no bank twice */
    float *sums = (float *)x_tiles;
    copy_wait<0>();
    __syncthreads();
    if (w_unit == 0) {
        row_exponent[w_row] = scale.exponent;
    }
#pragma unroll
    for (int m = 0; m < M; m++) {
#pragma unroll
        for (int n = 0; n < N; n++) {
            float *at = sums + (token0 + 16 * m + lane / 4) * SUM_STRIDE + row0 + 8 * n + lane % 4 * 2;
            *(float2 *)at = make_float2(sum[m][n][0], sum[m][n][1]);
            *(float2 *)(at + 8 * SUM_STRIDE) = make_float2(sum[m][n][2], sum[m][n][3]);
        }
    }
    __syncthreads();
    finish_tile<TOKENS, ROWS>(args, place, sums, SUM_STRIDE, row_exponent);
}

template <int TYPE>
static void launch_tiles_of(const tile_args *args, tile_size size, unsigned n_blocks, device_stream *stream) {
    const dim3 grid(n_blocks, 1, 1), block((unsigned)(2 * tile_shape_of(size).rows), 1, 1);
    const size_t bytes = tile_shared_bytes(size);
    if (size == TILE_LARGE) {
        LAUNCH(stream, (tile_kernel<TYPE, TILE_LARGE>), grid, block, bytes, *args);
    } else if (size == TILE_MIDDLE) {
        LAUNCH(stream, (tile_kernel<TYPE, TILE_MIDDLE>), grid, block, bytes, *args);
    } else {
        LAUNCH(stream, (tile_kernel<TYPE, TILE_SMALL>), grid, block, bytes, *args);
    }
}

#endif
