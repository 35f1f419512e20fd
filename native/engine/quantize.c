/* lmi_quantize: checks, then blocks in parallel. Pieces are whole blocks, so nothing depends on who takes which. */
#include <inttypes.h>
#include <math.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <string.h>

#include "base/checked.h"
#include "base/cpu.h"
#include "base/half.h"
#include "base/pool.h"
#include "quant/encode.h"

enum {
    CHUNK = 256,             /* values decoded at a time: whole blocks of every type */
    PIECE_CHUNKS = 32,       /* chunks that a worker takes at a time */
    MOST_DIMENSION = 1 << 30 /* far above any matrix, and safe to multiply */
};

typedef struct work {
    const quant_info *from, *to;
    const uint8_t *source;
    uint8_t *blocks;
    int64_t n, cols;
    const float *importance;
    encode_block *encode; /* NULL: plain floats */
    float most;           /* largest magnitude that is allowed */
    _Atomic int64_t first_bad;
} work;

lmi_status lmi_type_find(const char *name, lmi_type_info *info, lmi_error *error) {
    const quant_info *found = name == NULL ? NULL : quant_find_name(text_of(name));
    if (found == NULL) {
        return fail(error, LMI_UNSUPPORTED, "tensor type %.60s is not supported", name == NULL ? "(null)" : name);
    }
    *info = (lmi_type_info){
        .name = found->name,
        .number = (int32_t)found->type,
        .block_values = (int32_t)found->block_values,
        .block_bytes = (int32_t)found->block_bytes,
    };
    return LMI_OK;
}

void lmi_quantize_options_default(lmi_quantize_options *options) { *options = (lmi_quantize_options){.size = sizeof *options}; }

/* ---- pieces -------------------------------------------------------------------------------------------------------- */

/* Decodes the chunk that begins at value `first`; returns how many values it has. */
static int64_t decode_chunk(const work *w, int64_t first, float values[CHUNK]) {
    const int64_t n = w->n - first < CHUNK ? w->n - first : CHUNK;
    w->from->to_f32(w->source + first / w->from->block_values * w->from->block_bytes, values, n);
    return n;
}

static bool any_bad(const float *values, int64_t n, float most) {
    int bad = 0;
    for (int64_t i = 0; i < n; i++) {
        bad |= !(fabsf(values[i]) <= most); /* NaN too */
    }
    return bad != 0;
}

static void check_piece(void *context, int64_t piece, int worker) {
    (void)worker;
    work *w = context;
    float values[CHUNK];
    const int64_t end = (piece + 1) * PIECE_CHUNKS * CHUNK;
    for (int64_t first = piece * PIECE_CHUNKS * CHUNK; first < end && first < w->n; first += CHUNK) {
        const int64_t n = decode_chunk(w, first, values);
        if (!any_bad(values, n, w->most)) {
            continue;
        }
        int64_t bad = first;
        while (fabsf(values[bad - first]) <= w->most) {
            bad++;
        }
        int64_t seen = atomic_load(&w->first_bad);
        while (bad < seen && !atomic_compare_exchange_weak(&w->first_bad, &seen, bad)) {}
        return;
    }
}

/* With coarse codes the least squared error by itself makes a worse model: the best scale is then a small one, every matrix comes
 * out smaller, and such errors add up where those of single weights cancel. So large values count more: weights times
 * sqrt(share + (x / rms)^2). Chosen by the perplexity of trained models; plain errors grow by 1 to 5 %. Known importance says part
 * of what the size of a value hints at, and then size counts less. */
static float share_of_small(const work *w) {
    const quant_type type = w->to->type;
    const float share = type == QUANT_Q2_K ? 0.3f : type == QUANT_Q3_K || type == QUANT_Q4_0 ? 1 : 0;
    return w->importance == NULL ? share : 3 * share;
}

static void favour_large(const float *values, int64_t n, float share, float *weights) {
    double squares = 0;
    for (int64_t i = 0; i < n; i++) {
        squares += (double)values[i] * (double)values[i];
    }
    const float rms = (float)sqrt(squares / (double)n), inverse = rms > 0x1p-60f ? 1 / rms : 0;
    for (int64_t i = 0; i < n; i++) {
        const float size = values[i] * inverse;
        weights[i] *= sqrtf(share + size * size);
    }
}

/* Weights of a block: the largest importance is 1, and none is 0, so that columns that were never used still get sound codes. */
static void block_weights(const work *w, int64_t first, const float *values, int64_t n, float *weights) {
    float most = 0;
    int64_t col = first % w->cols;
    for (int64_t i = 0; i < n; i++, col++) {
        weights[i] = w->importance == NULL ? 1 : w->importance[col];
        most = weights[i] > most ? weights[i] : most;
    }
    for (int64_t i = 0; i < n; i++) {
        const float share = most > 0 ? weights[i] / most : 1;
        weights[i] = share > 0x1p-20f ? share : 0x1p-20f;
    }
    const float share = share_of_small(w);
    if (share > 0) {
        favour_large(values, n, share, weights);
    }
}

static uint16_t to_bf16(float value) {
    const uint32_t bits = f32_to_bits(value);
    if ((bits & 0x7fffffffu) > 0x7f800000u) { /* NaN stays NaN, quiet */
        return (uint16_t)(bits >> 16 | 0x40u);
    }
    return (uint16_t)((bits + 0x7fffu + (bits >> 16 & 1u)) >> 16);
}

static void store_floats(quant_type type, const float *values, int64_t n, uint8_t *out) {
    if (type == QUANT_F32) {
        memcpy(out, values, (size_t)n * sizeof *values);
        return;
    }
    for (int64_t i = 0; i < n; i++) {
        const uint16_t half = type == QUANT_F16 ? f32_to_f16(values[i]) : to_bf16(values[i]);
        memcpy(out + 2 * i, &half, sizeof half);
    }
}

static void encode_piece(void *context, int64_t piece, int worker) {
    (void)worker;
    const work *w = context;
    float values[CHUNK], weights[CHUNK];
    const int64_t block = w->to->block_values;
    const bool weighted = w->importance != NULL || share_of_small(w) > 0;
    for (int i = 0; i < CHUNK; i++) {
        weights[i] = 1;
    }
    const int64_t end = (piece + 1) * PIECE_CHUNKS * CHUNK;
    for (int64_t first = piece * PIECE_CHUNKS * CHUNK; first < end && first < w->n; first += CHUNK) {
        const int64_t n = decode_chunk(w, first, values);
        uint8_t *out = w->blocks + first / block * w->to->block_bytes;
        if (w->encode == NULL) {
            store_floats(w->to->type, values, n, out);
            continue;
        }
        for (int64_t i = 0; i < n; i += block, out += w->to->block_bytes) {
            if (weighted) {
                block_weights(w, first + i, values + i, block, weights + i);
            }
            w->encode(values + i, weights + i, out);
        }
    }
}

/* ---- the call ------------------------------------------------------------------------------------------------------ */

static lmi_status check_bytes(const char *what, const quant_info *type, int64_t n, size_t size, lmi_error *error) {
    uint64_t needed;
    if (!ck_mul((uint64_t)n / type->block_values, type->block_bytes, &needed) || needed != size) {
        return fail(error, LMI_INVALID_ARGUMENT, "%s: %" PRId64 " values of %s do not take %zu bytes", what, n, type->name,
                    size);
    }
    return LMI_OK;
}

static lmi_status check_arguments(const work *w, int64_t rows, size_t source_size, size_t size,
                                  const lmi_quantize_options *options, lmi_error *error) {
    if (rows < 1 || w->cols < 1 || rows > MOST_DIMENSION || w->cols > MOST_DIMENSION) {
        return fail(error, LMI_INVALID_ARGUMENT, "%" PRId64 " rows of %" PRId64 " values are no matrix", rows, w->cols);
    }
    for (int i = 0; i < 2; i++) {
        const quant_info *type = i == 0 ? w->from : w->to;
        if (w->cols % type->block_values != 0) {
            return fail(error, LMI_INVALID_ARGUMENT, "rows of %" PRId64 " values are not whole blocks of %u (%s)", w->cols,
                        type->block_values, type->name);
        }
    }
    lmi_status status = check_bytes("source", w->from, w->n, source_size, error);
    if (status == LMI_OK) {
        status = check_bytes("blocks", w->to, w->n, size, error);
    }
    if (status != LMI_OK) {
        return status;
    }
    if (w->source == NULL || w->blocks == NULL) {
        return fail(error, LMI_INVALID_ARGUMENT, "no values to read, or no place to write to");
    }
    if (options->allow_nonfinite && w->encode != NULL) {
        return fail(error, LMI_INVALID_ARGUMENT, "%s cannot hold infinities and NaN", w->to->name);
    }
    for (int64_t i = 0; w->importance != NULL && i < w->cols; i++) {
        if (!(w->importance[i] >= 0 && w->importance[i] <= 3e38f)) {
            return fail(error, LMI_INVALID_ARGUMENT, "the importance of column %" PRId64 " is %g", i, (double)w->importance[i]);
        }
    }
    return LMI_OK;
}

static lmi_status report_bad(const work *w, int64_t index, const lmi_quantize_options *options, lmi_error *error) {
    float values[CHUNK];
    decode_chunk(w, index / CHUNK * CHUNK, values);
    const double value = (double)values[index % CHUNK];
    const int64_t row = index / w->cols + options->first_row, col = index % w->cols;
    fail(error, LMI_INVALID_ARGUMENT, "the value at row %" PRId64 ", column %" PRId64 " is %g, which %s cannot hold", row, col,
         value, w->to->name);
    if (isfinite(value)) {
        remedy(error, "keep this tensor in F32 or BF16");
    } else {
        remedy(error, "the weights are damaged: get them again");
    }
    return LMI_INVALID_ARGUMENT;
}

static lmi_status run(work *w, bool check, int n_threads, const lmi_quantize_options *options, lmi_error *error) {
    const int64_t n_pieces = (w->n + PIECE_CHUNKS * CHUNK - 1) / (PIECE_CHUNKS * CHUNK);
    pool *workers;
    lmi_status status = pool_open((int)(n_threads < n_pieces ? n_threads : n_pieces), &workers, error);
    if (status != LMI_OK) {
        return status;
    }
    if (check) {
        pool_run(workers, check_piece, w, n_pieces);
    }
    const int64_t bad = atomic_load(&w->first_bad);
    if (bad < w->n) {
        status = report_bad(w, bad, options, error);
    } else if (w->from == w->to) { /* as it is: encoding anew could only lose */
        memcpy(w->blocks, w->source, (size_t)(w->n / w->from->block_values) * w->from->block_bytes);
    } else {
        pool_run(workers, encode_piece, w, n_pieces);
    }
    pool_close(workers);
    return status;
}

lmi_status lmi_quantize(const char *from, const void *source, size_t source_size, const char *to, void *blocks, size_t size,
                        int64_t rows, int64_t cols, const lmi_quantize_options *options, lmi_error *error) {
    lmi_quantize_options chosen;
    lmi_quantize_options_default(&chosen);
    if (options != NULL) {
        if (options->size != sizeof chosen) {
            return fail(error, LMI_INVALID_ARGUMENT, "quantize options of another version of lmi.h");
        }
        chosen = *options;
    }
    lmi_type_info unused;
    lmi_status status = lmi_type_find(from, &unused, error);
    if (status == LMI_OK) {
        status = lmi_type_find(to, &unused, error);
    }
    if (status != LMI_OK) {
        return status;
    }
    work w = {
        .from = quant_find_name(text_of(from)),
        .to = quant_find_name(text_of(to)),
        .source = source,
        .blocks = blocks,
        .cols = cols,
        .importance = chosen.importance,
    };
    w.encode = encoders_best()->block[w.to->type];
    w.most = w.encode != NULL || w.to->type == QUANT_F16 ? ENCODE_MOST : 0x1.fffffep127f;
    if (rows > 0 && rows <= MOST_DIMENSION && cols > 0 && cols <= MOST_DIMENSION) {
        w.n = rows * cols;
    }
    atomic_init(&w.first_bad, INT64_MAX);
    status = check_arguments(&w, rows, source_size, size, &chosen, error);
    if (status != LMI_OK) {
        return status;
    }
    const int n_threads = chosen.n_threads > 0 ? chosen.n_threads : cpu_count();
    return run(&w, !chosen.allow_nonfinite, n_threads < POOL_MAX_WORKERS ? n_threads : POOL_MAX_WORKERS, &chosen, error);
}
