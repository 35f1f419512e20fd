/* The first kernel of a chunk and the last: embedding rows, cos and sin of all positions, and the control block moved on.
 *
 * One grid does the first two. Blocks x < n_column_blocks of row y decode columns of the embedding of token y; then there are
 * three blocks for each way of turning, which make its rows of token y: turn, turn_sink, turn_sink_key. */
#include "cuda/phase.cuh"
#include "cuda/weights.cuh"

enum { BEGIN_THREADS = 64, TURN_ROWS = 3 };

/* Positions as rope_row of lambda/rope.c sees them, and turn_chunk of backend/cpu.c. False: the row stays. */
static __device__ __forceinline__ bool position_of(const cuda_turns &turns, int row, int64_t start, int64_t index,
                                                   int64_t token, int64_t *position) {
    switch (row) {
    case 0:
        *position = start + index;
        return true;
    case 1:
        *position = !turns.contiguous ? turns.window : index < turns.furthest ? index : turns.furthest;
        break;
    default:
        *position = !turns.contiguous ? 0 : index < turns.sinks ? index : 0;
        break;
    }
    return turns.sinks > 0 && (turns.contiguous || token == 0);
}

static __device__ __forceinline__ void make_row(const cuda_begin &args, int way, int row, int64_t token) {
    const cuda_turns &turns = args.turns[way];
    int64_t position;
    if (!position_of(turns, row, args.control->start, args.control->first + token, token, &position)) {
        return;
    }
    float *out = row == 0 ? turns.turn : row == 1 ? turns.turn_sink : turns.turn_sink_key;
    const float magnitude = turns.table->magnitude;
    for (int32_t i = (int32_t)threadIdx.x; i < turns.n_rot / 2; i += BEGIN_THREADS) {
        float c, s;
        cos_sin_of((uint64_t)position * turns.table->turns[i], &c, &s);
        ((float2 *)out)[token * (turns.n_rot / 2) + i] = make_float2(c * magnitude, s * magnitude);
    }
}

template <int TYPE> static __device__ __forceinline__ void embed(const cuda_begin &args, int64_t unit, int64_t token) {
    const int64_t cols = args.table.cols;
    if (unit * UNIT >= cols) {
        return;
    }
    float v[UNIT];
    const int64_t given = args.tokens[token];
    decode_unit<TYPE>(load_unit<TYPE>(args.table, given >= 0 ? given : args.control->drawn, unit), v);
    float *x = args.x + token * cols;
    /* Four columns of a unit that begin at a multiple of four lie side by side. */
#pragma unroll
    for (int i = 0; i < UNIT; i += 4) {
        const int64_t column = unit_column(TYPE, unit, i);
        if (cols % 4 == 0) {
            if (column < cols) {
                *(float4 *)(x + column) =
                    make_float4(v[i] * args.scale, v[i + 1] * args.scale, v[i + 2] * args.scale, v[i + 3] * args.scale);
            }
        } else {
#pragma unroll
            for (int j = 0; j < 4; j++) {
                if (column + j < cols) {
                    x[column + j] = v[i + j] * args.scale;
                }
            }
        }
    }
}

template <int TYPE> static __global__ void __launch_bounds__(BEGIN_THREADS) begin_chunk(cuda_begin args, int n_column_blocks) {
    let_next_start();
    wait_for_previous();
    const int64_t token = blockIdx.y;
    const int block = (int)blockIdx.x;
    if (block < n_column_blocks) {
        embed<TYPE>(args, (int64_t)block * BEGIN_THREADS + threadIdx.x, token);
    } else {
        make_row(args, (block - n_column_blocks) / TURN_ROWS, (block - n_column_blocks) % TURN_ROWS, token);
    }
}

template <int TYPE> static void launch(const cuda_begin *args, device_stream *stream) {
    const int64_t n_units = args->x != NULL ? (args->table.cols + UNIT - 1) / UNIT : 0;
    const int n_column_blocks = (int)((n_units + BEGIN_THREADS - 1) / BEGIN_THREADS);
    const int n_blocks = n_column_blocks + TURN_ROWS * args->n_turns;
    if (n_blocks > 0) {
        LAUNCH(stream, (begin_chunk<TYPE>), dim3((unsigned)n_blocks, (unsigned)args->n_tokens), dim3(BEGIN_THREADS), 0, *args,
               n_column_blocks);
    }
}

void cuda_launch_begin(const cuda_begin *args, device_stream *stream) {
    switch (args->x != NULL ? args->table.type : QUANT_F32) {
    case QUANT_F32:
        return launch<QUANT_F32>(args, stream);
    case QUANT_F16:
        return launch<QUANT_F16>(args, stream);
    case QUANT_BF16:
        return launch<QUANT_BF16>(args, stream);
    case QUANT_Q4_0:
        return launch<QUANT_Q4_0>(args, stream);
    case QUANT_Q4_1:
        return launch<QUANT_Q4_1>(args, stream);
    case QUANT_Q5_0:
        return launch<QUANT_Q5_0>(args, stream);
    case QUANT_Q5_1:
        return launch<QUANT_Q5_1>(args, stream);
    case QUANT_Q8_0:
        return launch<QUANT_Q8_0>(args, stream);
    case QUANT_Q2_K:
        return launch<QUANT_Q2_K>(args, stream);
    case QUANT_Q3_K:
        return launch<QUANT_Q3_K>(args, stream);
    case QUANT_Q4_K:
        return launch<QUANT_Q4_K>(args, stream);
    case QUANT_Q5_K:
        return launch<QUANT_Q5_K>(args, stream);
    case QUANT_Q6_K:
        return launch<QUANT_Q6_K>(args, stream);
    case QUANT_IQ4_NL:
        return launch<QUANT_IQ4_NL>(args, stream);
    case QUANT_IQ4_XS:
        return launch<QUANT_IQ4_XS>(args, stream);
    case QUANT_MXFP4:
        return launch<QUANT_MXFP4>(args, stream);
    case QUANT_TYPE_END:
        break;
    }
}

static __global__ void advance(cuda_control *control, int32_t n_tokens) {
    wait_for_previous();
    control->first += n_tokens;
}

void cuda_launch_advance(cuda_control *control, int32_t n_tokens, device_stream *stream) {
    LAUNCH(stream, advance, dim3(1), dim3(1), 0, control, n_tokens);
}
