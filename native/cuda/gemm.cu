/* What surrounds the tiled product: rows of activations to f16, sorting tokens by expert, the choice of tiles, adding up experts. */
#include "cuda/gemm.cuh"

/* ---- work space ----------------------------------------------------------------------------------------------------- */

/* Of one launch; n_x: rows of x, n_pairs and summed_rows: of experts. */
typedef struct tile_work {
    uint64_t x, token_exponent, first, pair, product, bytes;
} tile_work;

static uint64_t place_part(tile_work *work, uint64_t bytes) {
    const uint64_t at = work->bytes;
    work->bytes += (bytes + PLANE_ALIGN - 1) / PLANE_ALIGN * PLANE_ALIGN;
    return at;
}

static tile_work divide_work(uint64_t n_x, uint64_t cols, uint64_t n_experts, uint64_t n_pairs, uint64_t summed_rows) {
    tile_work work = {};
    work.x = place_part(&work, n_x * ((cols + STEP - 1) / STEP * STEP) * sizeof(uint16_t));
    work.token_exponent = place_part(&work, n_x * sizeof(int32_t));
    work.first = place_part(&work, (n_experts + 1) * sizeof(int32_t));
    work.pair = place_part(&work, n_pairs * sizeof(int32_t));
    work.product = place_part(&work, n_pairs * summed_rows * sizeof(float));
    return work;
}

/* widest_input also bounds the rows of what experts add to: these are the inputs of experts too. */
extern "C" uint64_t cuda_tiled_bytes(int64_t n_tokens, int64_t widest_input, int64_t n_experts, int64_t n_used) {
    const uint64_t n = (uint64_t)n_tokens, n_pairs = n_experts > 0 ? n * (uint64_t)n_used : 0;
    return divide_work(n_pairs > n ? n_pairs : n, (uint64_t)widest_input, (uint64_t)n_experts, n_pairs, (uint64_t)widest_input)
        .bytes;
}

/* ---- activations ---------------------------------------------------------------------------------------------------- */

enum { HALVES_THREADS = 256, HALVES_TOP = 14 };

typedef struct halves_args {
    const float *x;
    cuda_norm norm;
    int32_t cols;
    int64_t stride;
    uint16_t *halves;  /* [][stride] */
    int32_t *exponent; /* [] */
} halves_args;

/* The exponent of a finite, positive value. */
__device__ __forceinline__ int exponent_of(float x) { return (int)(__float_as_uint(x) >> 23) - 127; }

/* A row of x, normed, times 2^-exponent so that its largest value is from 2^14 to 2^15. A row with anything that is not finite becomes
 * NaN. Sums of squares are taken of x scaled by a power of two, so that rows of any size have a norm. */
__global__ void __launch_bounds__(HALVES_THREADS) halves_kernel(const halves_args args) {
    wait_for_previous();
    let_next_start();
    const float *x = args.x + (int64_t)blockIdx.x * args.cols;
    const int thread = (int)threadIdx.x, n = args.cols;
    float factor = 1.0f, mean = 0.0f, shrink = 1.0f;
    if (args.norm.kind != CUDA_NORM_NONE) {
        float largest = 0.0f;
        for (int c = thread; c < n; c += HALVES_THREADS) {
            largest = max_or_nan(largest, fabsf(x[c]));
        }
        largest = block_max<HALVES_THREADS>(largest);
        const int exponent = exponent_of(largest);
        shrink = power_of_two(-(exponent < -60 ? -60 : exponent > 126 ? 126 : exponent));
        float sum = 0.0f;
        if (args.norm.kind == CUDA_NORM_LAYER) {
            for (int c = thread; c < n; c += HALVES_THREADS) {
                sum += x[c] * shrink;
            }
            mean = block_sum<HALVES_THREADS>(sum) / (float)n;
            sum = 0.0f;
        }
        for (int c = thread; c < n; c += HALVES_THREADS) {
            const float apart = x[c] * shrink - mean;
            sum += apart * apart;
        }
        factor = 1.0f / sqrtf(block_sum<HALVES_THREADS>(sum) / (float)n + args.norm.eps * shrink * shrink);
    }
    const auto normed = [&](int c) {
        if (args.norm.kind == CUDA_NORM_NONE) {
            return x[c];
        }
        float y = (x[c] * shrink - mean) * factor;
        if (args.norm.scale != NULL) {
            y *= args.norm.scale[c];
        }
        if (args.norm.bias != NULL) {
            y += args.norm.bias[c];
        }
        return y;
    };
    float largest = 0.0f;
    for (int c = thread; c < n; c += HALVES_THREADS) {
        largest = max_or_nan(largest, fabsf(normed(c)));
    }
    largest = block_max<HALVES_THREADS>(largest);
    const bool finite = __float_as_uint(largest) < 0x7f800000u;
    const int top = exponent_of(largest) - HALVES_TOP, exponent = !finite || largest == 0.0f ? 0 : top < -126 ? -126 : top;
    const float by = power_of_two(-exponent);
    uint32_t *pairs = (uint32_t *)(args.halves + (int64_t)blockIdx.x * args.stride);
    for (int c = 2 * thread; c < args.stride; c += 2 * HALVES_THREADS) {
        pairs[c / 2] = finite ? pack_halves(c < n ? normed(c) * by : 0.0f, c + 1 < n ? normed(c + 1) * by : 0.0f) : 0x7e007e00u;
    }
    if (thread == 0) {
        args.exponent[blockIdx.x] = exponent;
    }
}

/* ---- experts -------------------------------------------------------------------------------------------------------- */

enum { SORT_THREADS = 256 };

/* One block an expert: how many pairs have lower ones, and a list of its own in their order. */
__global__ void __launch_bounds__(SORT_THREADS)
    sort_kernel(const int32_t *expert, int32_t n_pairs, int32_t n_experts, int32_t *first, int32_t *pair) {
    SHARED int32_t of_warp[SORT_THREADS / 32];
    wait_for_previous();
    let_next_start();
    const int thread = (int)threadIdx.x, lane = thread % 32;
    const int32_t own = (int32_t)blockIdx.x;
    int32_t n_lower = 0;
    for (int32_t i = thread; i < n_pairs; i += SORT_THREADS) {
        n_lower += expert[i] < own ? 1 : 0;
    }
    int32_t slot = block_sum<SORT_THREADS>(n_lower);
    if (thread == 0) {
        first[own] = slot;
        if (own == 0) {
            first[n_experts] = n_pairs;
        }
    }
    for (int32_t base = 0; base < n_pairs; base += SORT_THREADS) {
        const int32_t i = base + thread;
        const bool mine = i < n_pairs && expert[i] == own;
        const uint32_t vote = __ballot_sync(0xffffffffu, mine);
        __syncthreads(); /* the last counts have been read */
        if (lane == 0) {
            of_warp[thread / 32] = __popc(vote);
        }
        __syncthreads();
        int32_t before = __popc(vote & ((1u << lane) - 1)), all = 0;
        for (int w = 0; w < SORT_THREADS / 32; w++) {
            before += w < thread / 32 ? of_warp[w] : 0;
            all += of_warp[w];
        }
        if (mine) {
            pair[slot + before] = i;
        }
        slot += all;
    }
}

enum { SUM_THREADS = 256 };

/* y[t] += sum over j of share[t][j] * product[t][j] */
__global__ void __launch_bounds__(SUM_THREADS) sum_experts_kernel(const float *product, const float *share, const float *s,
                                                                  int32_t n_used, int64_t rows, int64_t n, float *y) {
    wait_for_previous();
    let_next_start();
    const int64_t i = (int64_t)blockIdx.x * SUM_THREADS + threadIdx.x;
    if (i >= n) {
        return;
    }
    const int64_t t = i / rows, r = i % rows;
    float sum = 0.0f;
    for (int32_t j = 0; j < n_used; j++) {
        sum += share[t * n_used + j] * product[(t * n_used + j) * rows + r];
    }
    y[i] += s != NULL ? sum * sigmoid(s[t]) : sum;
}

/* ---- tiles ---------------------------------------------------------------------------------------------------------- */

static bool is_super(quant_type type) { return block_values(type) == 256; }

static int64_t n_tiles(int64_t n, int64_t tile) { return (n + tile - 1) / tile; }

/* The large tile needs the fewest loads a product, the middle one makes four times as many tiles, where otherwise multiprocessors would
 * have none, and wastes less on a ragged end; the small one is for few tokens. */
static tile_size choose_size(const tile_args *args, int64_t all_rows, const device_info *info) {
    const bool fits = tile_shared_bytes(TILE_LARGE) + 4096 <= info->shared_bytes;
    const int64_t tokens = args->first != NULL ? n_tiles(args->n_tokens, args->n_experts) : args->n_tokens;
    const int64_t copies = args->first != NULL ? args->n_experts : 1;
    if (tokens <= 32) {
        return TILE_SMALL;
    }
    const int64_t large = n_tiles(tokens, 128), middle = n_tiles(tokens, 64);
    const bool fills = 10 * copies * large * n_tiles(all_rows, 128) >= 9 * info->n_multiprocessors;
    return fits && fills && 128 * large * 4 <= 64 * middle * 5 ? TILE_LARGE : TILE_MIDDLE;
}

/* args but for w, y and n_weights, of one type. */
static void launch_weights(tile_args *args, const cuda_weight *w, float *const *y, int n, device_stream *stream) {
    int64_t all_rows = 0, n_row_tiles = 0;
    args->n_weights = n;
    for (int i = 0; i < n; i++) {
        args->w[i] = w[i];
        args->y[i] = y[i];
        all_rows += w[i].rows;
    }
    const tile_size size = choose_size(args, all_rows, device_stream_info(stream));
    const tile_shape shape = tile_shape_of(size);
    for (int i = 0; i < n; i++) {
        n_row_tiles += n_tiles(w[i].rows, shape.rows);
    }
    if (args->mode == TILE_GATED) {
        n_row_tiles = n_tiles(w[0].rows, shape.rows / 2);
    }
    const int64_t n_token_tiles =
        args->first != NULL ? args->n_tokens / shape.tokens + args->n_experts : n_tiles(args->n_tokens, shape.tokens);
    (is_super(w[0].type) ? launch_tiles_256 : launch_tiles_32)(args, size, (unsigned)(n_token_tiles * n_row_tiles), stream);
}

static void launch_gated(tile_args *args, const cuda_linear *linear, device_stream *stream) {
    const cuda_weight *w = linear->w;
    if (linear->n_weights == 1) {
        args->mode = TILE_ACTIVATE;
        launch_weights(args, w, linear->y, 1, stream);
    } else if (w[0].type == w[1].type) {
        float *const y[2] = {linear->y[0], linear->y[0]};
        args->mode = TILE_GATED;
        launch_weights(args, w, y, 2, stream);
    } else {
        args->mode = TILE_STORE;
        launch_weights(args, w + 1, linear->y, 1, stream);
        args->mode = TILE_TIMES;
        launch_weights(args, w, linear->y, 1, stream);
    }
}

/* Neighbours of one type together. */
static void launch_several(tile_args *args, const cuda_linear *linear, device_stream *stream) {
    for (int i = 0, n; i < linear->n_weights; i += n) {
        for (n = 1; i + n < linear->n_weights && linear->w[i + n].type == linear->w[i].type; n++) {}
        launch_weights(args, linear->w + i, linear->y + i, n, stream);
    }
}

extern "C" void cuda_launch_tiled(const cuda_linear *linear, device_stream *stream) {
    const bool experts = linear->expert != NULL, adds_experts = experts && linear->kind == CUDA_ADD;
    const int32_t n_pairs = experts ? linear->n_tokens * linear->n_used : 0;
    const int32_t n_x = adds_experts ? n_pairs : linear->n_tokens;
    const int64_t cols = linear->w[0].cols, n_experts = experts ? linear->w[0].n_matrices : 0;
    const tile_work work = divide_work((uint64_t)n_x, (uint64_t)cols, (uint64_t)n_experts, (uint64_t)n_pairs,
                                       adds_experts ? (uint64_t)linear->w[0].rows : 0);
    uint8_t *memory = (uint8_t *)linear->work;
    float *product = (float *)(memory + work.product);

    halves_args halves = {};
    halves.x = linear->x;
    halves.norm = linear->norm;
    halves.cols = (int32_t)cols;
    halves.stride = n_tiles(cols, STEP) * STEP;
    halves.halves = (uint16_t *)(memory + work.x);
    halves.exponent = (int32_t *)(memory + work.token_exponent);
    LAUNCH(stream, halves_kernel, dim3((unsigned)n_x, 1, 1), dim3(HALVES_THREADS, 1, 1), 0, halves);

    tile_args args = {};
    args.kind = linear->activation;
    args.clamp = linear->clamp;
    args.softcap = linear->softcap;
    args.s = linear->s;
    args.n_tokens = experts ? n_pairs : linear->n_tokens;
    args.x = halves.halves;
    args.x_stride = halves.stride;
    args.token_exponent = halves.exponent;
    if (experts) {
        int32_t *first = (int32_t *)(memory + work.first), *pair = (int32_t *)(memory + work.pair);
        LAUNCH(stream, sort_kernel, dim3((unsigned)n_experts, 1, 1), dim3(SORT_THREADS, 1, 1), 0, linear->expert, n_pairs,
               (int32_t)n_experts, first, pair);
        args.first = first;
        args.pair = pair;
        args.n_experts = (int32_t)n_experts;
        args.pairs_per_x = adds_experts ? 1 : linear->n_used;
    }
    if (linear->kind == CUDA_GATED) {
        launch_gated(&args, linear, stream);
    } else if (adds_experts) {
        args.mode = TILE_STORE;
        launch_weights(&args, linear->w, &product, 1, stream);
        const int64_t rows = linear->w[0].rows, n = rows * linear->n_tokens;
        LAUNCH(stream, sum_experts_kernel, dim3((unsigned)n_tiles(n, SUM_THREADS), 1, 1), dim3(SUM_THREADS, 1, 1), 0, product,
               linear->share, linear->s, linear->n_used, rows, n, linear->y[0]);
    } else {
        args.mode = linear->kind == CUDA_ADD ? TILE_ADD : TILE_STORE;
        launch_several(&args, linear, stream);
    }
}
