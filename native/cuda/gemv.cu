/* Row-wise products: up to CUDA_ROWWISE_TOKENS rows of input with matrices that pass through the device once.
 *
 * A few blocks per multiprocessor each make the packed input for themselves, which costs less than a kernel more; then their
 * warps take units, two weight rows (or one of the gate and one of its partner) at a time. Where there are too few rows to
 * keep the memory busy, warps share units, by columns. Inputs that do not fit are held piece by piece; warps keep the sums
 * of their units meanwhile.
 *
 * Sums, in this order: a lane's chunks in a segment of columns, lanes as a butterfly, segments, warps that share the unit.
 * None of it depends on n_tokens, on the grid or on the device, so single tokens and drafts of several give the same bits. */
#include "cuda/epilogue.cuh"
#include "cuda/gemv_input.cuh"

enum {
    BLOCKS_EACH = 2,     /* blocks that a multiprocessor has room for: 128 registers a thread, so that loads can be ahead */
    INPUT_BYTES = 45056, /* shared memory for the input: of eight rows, 4096 columns */
    KEPT_FLOATS = 2048   /* and for sums between pieces of the input */
};

/* Gate and partner of different types are two launches: the first leaves its sums in y, the second applies what is done to
 * both. */
typedef enum gate_part { GATE_WHOLE, GATE_ALONE, GATE_PARTNER } gate_part;

typedef struct rowwise_args {
    cuda_linear l;
    int64_t row_bytes[CUDA_MAX_OUTPUTS]; /* of plane 0 */
    int32_t rows[CUDA_MAX_OUTPUTS];      /* of a matrix */
    int32_t cols;
    double one_of_cols;                 /* 1 / cols */
    int32_t units_of[CUDA_MAX_OUTPUTS]; /* of weight i; experts: of one expert, in [0] */
    int32_t units;                      /* of a y of the grid */
    int32_t input_rows;                 /* likewise */
    int32_t held_rows, held_columns;    /* at a time; columns are whole segments */
    int32_t segment;                    /* columns */
    int32_t row_stages, column_stages;
    int32_t split;         /* warps that share a unit */
    int32_t rounds, batch; /* units of a warp: all, and between two fillings of the input */
    gate_part part;
    bool gate_and_up; /* GATED with two weights: a unit is a row of each */
    bool per_token;   /* experts: y of the grid is the token */
} rowwise_args;

/* ---- units --------------------------------------------------------------------------------------------------------- */

struct unit {
    int weight; /* gate_and_up: 0 */
    int row[2];
    bool second; /* there is a second row */
    int used;    /* which of the token's experts; ADD: all of them */
};

__device__ __forceinline__ cuda_weight weight_of(const rowwise_args &args, int i) {
    return i == 0 ? args.l.w[0] : i == 1 ? args.l.w[1] : args.l.w[2];
}

__device__ __forceinline__ unit unit_at(const rowwise_args &args, int index) {
    unit u = {0, {index, index}, true, 0};
    if (args.per_token && args.l.kind == CUDA_GATED) {
        u.used = index / args.units_of[0];
        index -= u.used * args.units_of[0];
    } else if (args.l.kind == CUDA_STORE) {
#pragma unroll
        for (int i = 0; i + 1 < CUDA_MAX_OUTPUTS; i++) {
            if (u.weight == i && index >= args.units_of[i]) {
                index -= args.units_of[i];
                u.weight = i + 1;
            }
        }
    }
    if (args.gate_and_up) {
        u.row[0] = u.row[1] = index;
    } else {
        const int rows = u.weight == 0 ? args.rows[0] : u.weight == 1 ? args.rows[1] : args.rows[2];
        u.row[0] = 2 * index;
        u.second = 2 * index + 1 < rows;
        u.row[1] = u.second ? 2 * index + 1 : 2 * index;
    }
    return u;
}

/* The first lines of what the warp will read, on their way while it waits for the kernel before. */
__device__ __forceinline__ void fetch_unit(const rowwise_args &args, const unit &u, int first, int step) {
#pragma unroll
    for (int r = 0; r < 2; r++) {
        const int i = args.gate_and_up ? r : u.weight;
        const int64_t bytes = i == 0 ? args.row_bytes[0] : i == 1 ? args.row_bytes[1] : args.row_bytes[2];
        const uint8_t *row = weight_of(args, i).plane[0] + u.row[r] * bytes;
        for (int64_t at = 128 * (int64_t)first; at < bytes; at += 128 * (int64_t)step) {
            fetch_ahead(row + at);
        }
    }
}

/* ---- sums across lanes --------------------------------------------------------------------------------------------- */

/* Sums N values over the warp: lane l has value l / (32 / N). The order of additions is that of a butterfly for any N. */
template <int N> __device__ __forceinline__ float sum_lanes(float *v, int lane) {
    int offset = 16;
#pragma unroll
    for (int n = N / 2; n > 0; n /= 2) {
        const bool upper = (lane & offset) != 0;
#pragma unroll
        for (int i = 0; i < n; i++) {
            const float kept = upper ? v[n + i] : v[i], sent = upper ? v[i] : v[n + i];
            v[i] = kept + __shfl_xor_sync(0xffffffffu, sent, offset);
        }
        offset /= 2;
    }
#pragma unroll
    for (; offset > 0; offset /= 2) {
        v[0] += __shfl_xor_sync(0xffffffffu, v[0], offset);
    }
    return v[0];
}

/* ---- a unit on what is held ---------------------------------------------------------------------------------------- */

/* What is held now: rows row0 .. of the input, columns column .. */
struct stage_place {
    int row0, n_rows, column, n_columns;
};

/* This lane's value, one of 2 T, and what the columns held add to it. */
template <int TYPE, int T>
__device__ __forceinline__ float multiply_unit(const rowwise_args &args, const unit &u, const stage_place &stage,
                                               const unsigned char *memory, int token, int first, int step, int lane,
                                               float value) {
    constexpr input_form FORM = form_of(TYPE);
    const cuda_linear &l = args.l;
    const bool add_experts = args.per_token && l.kind == CUDA_ADD;
    const cuda_weight a = weight_of(args, u.weight), b = args.gate_and_up ? l.w[1] : a;
    const int stride = (int)held_bytes(FORM, args.held_columns), n_products = add_experts ? stage.n_rows : 1;
    row_pair p;
#pragma unroll
    for (int n = 0; n < MAX_PLANES; n++) {
        p.plane[0][n] = a.plane[n];
        p.plane[1][n] = b.plane[n];
    }
    p.cols = args.cols;
    p.first = first;
    p.step = step;
    for (int at = 0; at < stage.n_columns; at += args.segment) {
        p.column = stage.column + at;
        p.n_columns = stage.n_columns - at < args.segment ? stage.n_columns - at : args.segment;
        for (int i = 0; i < n_products; i++) {
            const int64_t chosen = (int64_t)token * l.n_used + (add_experts ? stage.row0 + i : u.used);
            const int64_t row0 = args.per_token ? (int64_t)l.expert[chosen] * a.rows : 0;
            p.row[0] = row0 + u.row[0];
            p.row[1] = row0 + u.row[1];
            const unsigned char *held = memory + (add_experts ? i * stride : 0);
            const held_rows x = {held + (FORM == FORM_VALUES ? 4 : 1) * at, held + sums_at(args.held_columns) + at / 4,
                                 held + scales_at(FORM, args.held_columns) + (FORM == FORM_32 ? at / 4 : at / 64), stride};
            float sum[2 * T];
#pragma unroll
            for (int j = 0; j < 2 * T; j++) {
                sum[j] = 0.0f;
            }
            dot_rows<TYPE, T>(p, x, l.n_tokens, sum);
            const float total = sum_lanes<2 * T>(sum, lane);
            value = add_experts ? fmaf(l.share[chosen], total, value) : value + total;
        }
    }
    return value;
}

/* Biases, and what becomes of the sum. Lane l has value l / (32 / 2T): row of the unit times T, plus token. */
template <int T>
__device__ __forceinline__ void finish_unit(const rowwise_args &args, const unit &u, int token0, int lane, float value) {
    const cuda_linear &l = args.l;
    const int index = lane / (32 / (2 * T)), r = index / T, t = index % T, token = token0 + t;
    const cuda_weight w = weight_of(args, args.gate_and_up ? r : u.weight);
    const int64_t row = r == 0 ? u.row[0] : u.row[1];
    if (w.bias != nullptr) {
        if (args.per_token && l.kind == CUDA_ADD) {
            for (int j = 0; j < l.n_used; j++) {
                const int64_t i = (int64_t)token * l.n_used + j;
                value = fmaf(l.share[i], w.bias[l.expert[i] * w.rows + row], value);
            }
        } else {
            const int64_t matrix = args.per_token ? l.expert[(int64_t)token * l.n_used + u.used] : 0;
            value += w.bias[matrix * w.rows + row];
        }
    }
    const float up = __shfl_xor_sync(0xffffffffu, value, 16); /* gate_and_up: of the same token */
    if (lane % (32 / (2 * T)) != 0 || (!args.per_token && t >= l.n_tokens) || (r == 1 && (args.gate_and_up || !u.second))) {
        return;
    }
    if (l.kind == CUDA_GATED) {
        float *y = l.y[0] + (args.per_token ? (int64_t)token * l.n_used + u.used : token) * w.rows + row;
        if (args.part == GATE_PARTNER) {
            value = activated(l.activation, *y) * factor_of(l.activation, value);
        } else if (args.part == GATE_WHOLE) {
            value = activated(l.activation, value);
            if (args.gate_and_up) {
                value *= factor_of(l.activation, up);
            }
        }
        *y = value;
    } else if (l.kind == CUDA_ADD) {
        if (l.s != nullptr) {
            value *= sigmoid(l.s[token]);
        }
        l.y[0][token * w.rows + row] += value;
    } else {
        float *y = u.weight == 0 ? l.y[0] : u.weight == 1 ? l.y[1] : l.y[2];
        y[token * w.rows + row] = bounded(value, l.clamp, l.softcap);
    }
}

/* ---- the kernel ---------------------------------------------------------------------------------------------------- */

template <int TYPE, int T>
__global__ void __launch_bounds__(32 * WARPS, BLOCKS_EACH) rowwise(const __grid_constant__ rowwise_args args) {
    SHARED row_norm norms[INPUT_ROWS];
    SHARED float exchange[WARPS][32];
    unsigned char *memory = dynamic_shared();
    const cuda_linear &l = args.l;
    const int lane = (int)threadIdx.x % 32, warp = (int)threadIdx.x / 32;
    const int part = warp % args.split, first = part * 32 + lane, step = 32 * args.split;
    const int n_groups = WARPS / args.split; /* of warps that share units */
    const int unit0 = (int)blockIdx.x * n_groups + warp / args.split, unit_step = (int)gridDim.x * n_groups;
    if (!args.per_token && unit0 < args.units) {
        fetch_unit(args, unit_at(args, unit0), first, step);
    }
    wait_for_previous();
    const int token = args.per_token ? (int)blockIdx.y : 0;
    const float *x = l.x + (int64_t)token * args.input_rows * args.cols;
    if (l.norm.kind != CUDA_NORM_NONE) {
        find_norms(l.norm, x, args.cols, args.one_of_cols, args.input_rows, norms);
    }
    const int n_stages = args.row_stages * args.column_stages;
    float *kept = (float *)(memory + args.held_rows * (int)held_bytes(form_of(TYPE), args.held_columns)) + warp * (2 * T);
    for (int round0 = 0; round0 < args.rounds; round0 += args.batch) {
        const int round1 = round0 + args.batch < args.rounds ? round0 + args.batch : args.rounds;
        for (int i = 0; i < n_stages; i++) {
            stage_place stage;
            stage.row0 = i / args.column_stages * args.held_rows;
            stage.n_rows = args.input_rows - stage.row0 < args.held_rows ? args.input_rows - stage.row0 : args.held_rows;
            stage.column = i % args.column_stages * args.held_columns;
            stage.n_columns = args.cols - stage.column < args.held_columns ? args.cols - stage.column : args.held_columns;
            __syncthreads();
            hold_rows<form_of(TYPE)>(memory, args.held_columns, l.norm, norms + stage.row0, x + (int64_t)stage.row0 * args.cols,
                                     args.cols, stage.n_rows, stage.column, stage.n_columns);
            __syncthreads();
            if (round1 == args.rounds && i == n_stages - 1) {
                let_next_start();
            }
            for (int round = round0; round < round1; round++) {
                const int index = unit0 + round * unit_step;
                float *place = kept + (round - round0) * (WARPS * 2 * T) + lane / (32 / (2 * T));
                float value = i > 0 ? *place : 0.0f;
                __syncwarp();
                if (index < args.units) {
                    value = multiply_unit<TYPE, T>(args, unit_at(args, index), stage, memory, token, first, step, lane, value);
                }
                if (i < n_stages - 1) {
                    if (lane % (32 / (2 * T)) == 0) {
                        *place = value;
                    }
                    __syncwarp();
                    continue;
                }
                if (args.split > 1) {
                    exchange[warp][lane] = value;
                    __syncthreads();
                    for (int other = 1; part == 0 && other < args.split; other++) {
                        value += exchange[warp + other][lane];
                    }
                    __syncthreads();
                }
                if (index < args.units && part == 0) {
                    finish_unit<T>(args, unit_at(args, known_here(index)), token, lane, value);
                }
            }
        }
    }
}

/* ---- launching ----------------------------------------------------------------------------------------------------- */

/* The most columns, a multiple of `step`, of which `rows` can be held; at least one step. */
static int64_t most_columns(input_form form, int64_t rows, int64_t step) {
    int64_t columns = step;
    while (rows * held_bytes(form, columns + step) <= INPUT_BYTES) {
        columns += step;
    }
    return columns;
}

static int64_t divide_up(int64_t a, int64_t b) { return (a + b - 1) / b; }

/* How the input is held: all of it if there is room, else all columns of some rows (experts, which are independent) or some
 * columns. */
static void plan_input(rowwise_args *args) {
    const cuda_linear *l = &args->l;
    const input_form form = form_of(l->w[0].type);
    const bool add_experts = args->per_token && l->kind == CUDA_ADD;
    args->cols = (int32_t)l->w[0].cols;
    args->one_of_cols = 1.0 / (double)args->cols;
    args->input_rows = args->per_token ? (add_experts ? l->n_used : 1) : l->n_tokens;
    const int64_t segment = most_columns(form, CUDA_ROWWISE_TOKENS, 512);
    int64_t rows = args->input_rows, columns = divide_up(args->cols, 256) * 256;
    if (add_experts && rows * held_bytes(form, columns) > INPUT_BYTES) {
        rows = INPUT_BYTES / held_bytes(form, columns);
        rows = rows < 1 ? 1 : rows;
    }
    if (rows * held_bytes(form, columns) > INPUT_BYTES) {
        columns = most_columns(form, rows, segment);
    }
    args->segment = (int32_t)segment;
    args->held_rows = (int32_t)rows;
    args->held_columns = (int32_t)columns;
    args->row_stages = (int32_t)divide_up(args->input_rows, rows);
    args->column_stages = (int32_t)divide_up(args->cols, columns);
}

static void plan_units(rowwise_args *args) {
    const cuda_linear *l = &args->l;
    const int n = l->kind == CUDA_STORE ? l->n_weights : 1;
    args->units = 0;
    for (int i = 0; i < l->n_weights; i++) {
        args->rows[i] = (int32_t)l->w[i].rows;
    }
    for (int i = 0; i < n; i++) {
        args->units_of[i] = (int32_t)(args->gate_and_up ? l->w[i].rows : divide_up(l->w[i].rows, 2));
        args->units += args->units_of[i];
    }
    if (args->per_token && l->kind == CUDA_GATED) {
        args->units *= l->n_used;
    }
    for (int i = 0; i < l->n_weights; i++) {
        const plane_layout *layout = plane_layout_of(l->w[i].type);
        args->row_bytes[i] = l->w[i].cols / quant_find(l->w[i].type)->block_values * layout->plane[0].bytes;
    }
    args->split = args->units <= 256 ? 8 : args->units <= 512 ? 4 : args->units <= 1024 ? 2 : 1;
}

template <int TYPE> static void launch(const rowwise_args &args, bool one, dim3 grid, size_t shared, device_stream *stream) {
    const dim3 block(32 * WARPS, 1, 1);
    if (one) {
        LAUNCH(stream, (rowwise<TYPE, 1>), grid, block, shared, args);
    } else {
        LAUNCH(stream, (rowwise<TYPE, CUDA_ROWWISE_TOKENS>), grid, block, shared, args);
    }
}

/* Weights of one type. */
static void launch_type(const cuda_linear *linear, gate_part part, device_stream *stream) {
    rowwise_args args = {};
    args.l = *linear;
    args.part = part;
    args.per_token = linear->expert != NULL;
    args.gate_and_up = linear->kind == CUDA_GATED && linear->n_weights == 2;
    plan_input(&args);
    plan_units(&args);
    const bool one = args.per_token || linear->n_tokens == 1, pieces = args.row_stages * args.column_stages > 1;
    const int64_t grid_y = args.per_token ? linear->n_tokens : 1;
    const int64_t room = divide_up((int64_t)device_stream_info(stream)->n_multiprocessors * BLOCKS_EACH, grid_y);
    const int64_t wanted = divide_up(args.units, WARPS / args.split);
    args.rounds = (int32_t)divide_up(wanted, room);
    args.batch = pieces ? KEPT_FLOATS / (WARPS * 2 * (one ? 1 : CUDA_ROWWISE_TOKENS)) : args.rounds;
    const dim3 grid((unsigned)divide_up(wanted, args.rounds), (unsigned)grid_y, 1);
    const size_t input_bytes = (size_t)(args.held_rows * held_bytes(form_of(linear->w[0].type), args.held_columns));
    const size_t shared = input_bytes + (pieces ? KEPT_FLOATS * sizeof(float) : 0);
    switch (linear->w[0].type) {
#define LAUNCH_TYPE(TYPE)                                                                                                      \
    case TYPE:                                                                                                                 \
        launch<TYPE>(args, one, grid, shared, stream);                                                                         \
        break;
        GEMV_TYPES(LAUNCH_TYPE)
#undef LAUNCH_TYPE
    case QUANT_TYPE_END:
        break;
    }
}

void cuda_launch_rowwise(const cuda_linear *linear, device_stream *stream) {
    if (linear->n_tokens <= 0) {
        return;
    }
    if (linear->kind == CUDA_GATED && linear->n_weights == 2 && linear->w[0].type != linear->w[1].type) {
        cuda_linear part = *linear;
        part.n_weights = 1;
        launch_type(&part, GATE_ALONE, stream);
        part.w[0] = linear->w[1];
        launch_type(&part, GATE_PARTNER, stream);
        return;
    }
    bool done[CUDA_MAX_OUTPUTS] = {false};
    for (int i = 0; i < linear->n_weights; i++) {
        cuda_linear part = *linear;
        part.n_weights = 0;
        for (int j = i; j < linear->n_weights && !done[i]; j++) {
            if (linear->w[j].type == linear->w[i].type && !done[j]) {
                part.w[part.n_weights] = linear->w[j];
                part.y[part.n_weights++] = linear->y[j];
                done[j] = j > i;
            }
        }
        if (part.n_weights > 0) {
            launch_type(&part, GATE_WHOLE, stream);
        }
    }
}
