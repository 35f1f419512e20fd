/* The matmul of every type on every instruction set of this machine, against float64.
 *
 * The oracle multiplies the decoded weights (quant_find) with the *same* int8 activations in double. A kernel may then differ
 * by the rounding of float32 sums only, which a dropped column or a wrong scale exceeds a thousandfold; the error of quantising
 * the activations is a budget of its own (test_pack.c). Weights, packed rows and scratch end at an unreadable page. */
#define _GNU_SOURCE
#include "base/cpu.h"
#include "base/half.h"
#include "block_layouts.h"
#include "check.h"
#include "fence.h"
#include "kernels/kernels.h"
#include "quant/blocks.h"

#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__) || defined(__SANITIZE_UNDEFINED__)
#define SMALL 1
#elif defined(__has_feature)
#if __has_feature(address_sanitizer) || __has_feature(thread_sanitizer) || __has_feature(undefined_behavior_sanitizer)
#define SMALL 1
#endif
#endif
#ifndef SMALL
#define SMALL 0
#endif

enum { MAX_ROWS = 33, MAX_TOKENS = 65, ISAS = LMI_ISA_NEON + 1 };

static const kernels *columns[ISAS]; /* [0] unused; NULL where this machine has none */

/* ---- types --------------------------------------------------------------------------------------------------------- */

static size_t row_bytes_of(const quant_info *info, int64_t k) { return (size_t)k / info->block_values * info->block_bytes; }

static void put_half(uint8_t *at, float value) {
    uint16_t half = f32_to_f16(value);
    memcpy(at, &half, sizeof half);
}

/* Random blocks with scales of ordinary size. */
static void random_weights(const layout *l, const quant_info *info, uint8_t *bytes, size_t size, uint64_t *seed) {
    for (size_t i = 0; i < size; i++) {
        bytes[i] = (uint8_t)(check_random(seed) >> 40);
    }
    for (size_t at = 0; at < size; at += info->block_bytes) {
        float value = (float)check_normal(seed);
        switch (l->type) {
        case QUANT_F32:
            memcpy(bytes + at, &value, sizeof value);
            break;
        case QUANT_F16:
            put_half(bytes + at, value);
            break;
        case QUANT_BF16: {
            uint16_t half = (uint16_t)(f32_to_bits(value) >> 16);
            memcpy(bytes + at, &half, sizeof half);
            break;
        }
        case QUANT_MXFP4:
            bytes[at] = (uint8_t)(118 + check_random(seed) % 8);
            break;
        default:
            put_half(bytes + at + l->d, 0.001f + 0.05f * (float)check_uniform(seed));
            if (l->m >= 0) {
                put_half(bytes + at + l->m,
                         (l->type == QUANT_Q4_1 || l->type == QUANT_Q5_1 ? -0.4f : 0.02f) * (float)check_uniform(seed));
            }
        }
    }
}

/* ---- one case: a type, K, weights, tokens ----------------------------------------------------------------------------- */

typedef struct problem {
    const layout *layout;
    const quant_info *info;
    act_kind act;
    int64_t k, rows, tokens;
    size_t row_bytes, x_stride;
    uint8_t *w;   /* [rows][row_bytes] */
    char *x;      /* [tokens][x_stride], packed */
    double *want; /* [tokens][rows] */
    double *size; /* [tokens][rows]: sum of |terms| */
    fence w_fence, x_fence;
} problem;

static void *allocate(size_t size) {
    void *memory = aligned_alloc(64, (size + 63) / 64 * 64);
    if (memory == NULL) {
        exit(2);
    }
    memset(memory, 0, (size + 63) / 64 * 64);
    return memory;
}

static double activation_at(const problem *p, int64_t t, int64_t c) {
    const char *row = p->x + (size_t)t * p->x_stride;
    switch (p->act) {
    case ACT_Q8_32:
        return (double)act_q8(row)[c] * (double)act_scales(row, p->k)[c / 32];
    case ACT_Q8_256:
        return (double)act_q8(row)[c] * (double)act_scales(row, p->k)[c / 256];
    default:
        return (double)((const float *)(const void *)row)[c];
    }
}

/* The minima of a row: what its blocks decode to when all quantised values are 0. */
static void decode_minima(const problem *p, const uint8_t *row, float *values) {
    const layout *l = p->layout;
    if (l->m < 0) {
        memset(values, 0, (size_t)p->k * sizeof *values);
        return;
    }
    uint8_t *copy = allocate(p->row_bytes);
    memcpy(copy, row, p->row_bytes);
    for (size_t at = 0; at < p->row_bytes; at += p->info->block_bytes) {
        memset(copy + at + l->q0, 0, (size_t)(l->q1 - l->q0));
        memset(copy + at + l->h0, 0, (size_t)(l->h1 - l->h0));
    }
    p->info->to_f32(copy, values, p->k);
    free(copy);
}

static void solve(problem *p) {
    float *w = allocate((size_t)p->k * sizeof *w), *minima = allocate((size_t)p->k * sizeof *minima);
    double *x = allocate((size_t)(p->tokens * p->k) * sizeof *x);
    for (int64_t t = 0; t < p->tokens; t++) {
        for (int64_t c = 0; c < p->k; c++) {
            x[t * p->k + c] = activation_at(p, t, c);
        }
    }
    for (int64_t r = 0; r < p->rows; r++) {
        p->info->to_f32(p->w + (size_t)r * p->row_bytes, w, p->k);
        decode_minima(p, p->w + (size_t)r * p->row_bytes, minima);
        for (int64_t t = 0; t < p->tokens; t++) {
            double sum = 0, size = 0;
            for (int64_t c = 0; c < p->k; c++) {
                double xc = x[t * p->k + c];
                sum += (double)w[c] * xc;
                size += fabs(((double)w[c] - (double)minima[c]) * xc) + fabs((double)minima[c] * xc);
            }
            p->want[t * p->rows + r] = sum;
            p->size[t * p->rows + r] = size;
        }
    }
    free(w);
    free(minima);
    free(x);
}

static problem problem_new(const layout *l, int64_t k, int64_t rows, int64_t tokens) {
    problem p = {.layout = l,
                 .info = quant_find(l->type),
                 .act = columns[LMI_ISA_REF]->act[l->type],
                 .k = k,
                 .rows = rows,
                 .tokens = tokens};
    p.row_bytes = row_bytes_of(p.info, k);
    p.x_stride = act_row_bytes(p.act, k);
    p.w_fence = fence_new(p.row_bytes * (size_t)rows);
    p.x_fence = fence_new(p.x_stride * (size_t)tokens);
    p.w = fence_last(&p.w_fence, p.row_bytes * (size_t)rows);
    p.x = fence_last(&p.x_fence, p.x_stride * (size_t)tokens);
    p.want = allocate((size_t)(rows * tokens) * sizeof *p.want);
    p.size = allocate((size_t)(rows * tokens) * sizeof *p.size);
    return p;
}

static void problem_free(problem *p) {
    fence_free(&p->w_fence);
    fence_free(&p->x_fence);
    free(p->want);
    free(p->size);
}

/* x: [tokens][k] floats */
static void pack_tokens(problem *p, const float *x) {
    for (int64_t t = 0; t < p->tokens; t++) {
        columns[LMI_ISA_REF]->pack[p->act](x + t * p->k, p->k, p->x + (size_t)t * p->x_stride);
    }
}

static void random_tokens(problem *p, uint64_t *seed) {
    float *x = allocate((size_t)(p->tokens * p->k) * sizeof *x);
    for (int64_t i = 0; i < p->tokens * p->k; i++) {
        x[i] = (float)check_normal(seed);
    }
    pack_tokens(p, x);
    free(x);
}

/* Rows row0..row1 of the last `rows` of the weights (so that the end of the tensor is at the fence) times the last n tokens.
 * y: [n][y_stride]. */
static void run_part(const problem *p, const kernels *table, int64_t rows, int64_t row0, int64_t row1, int64_t n, float *y,
                     int64_t y_stride) {
    size_t scratch_bytes = table->matmul_scratch(p->k);
    fence scratch = fence_new(scratch_bytes + 64);
    CHECK(scratch_bytes % 64 == 0);
    memset(scratch.base, 0xff, scratch.size); /* NaN if read before it is written */
    matmul_args a = {
        .w = p->w + (size_t)(p->rows - rows) * p->row_bytes,
        .row_bytes = p->row_bytes,
        .k = p->k,
        .row0 = row0,
        .row1 = row1,
        .x = p->x + (size_t)(p->tokens - n) * p->x_stride,
        .x_stride = p->x_stride,
        .n_tokens = n,
        .y = y,
        .y_stride = y_stride,
        .scratch = fence_last(&scratch, scratch_bytes),
    };
    table->matmul[p->layout->type](&a);
    fence_free(&scratch);
}

static const float untouched = -12345.75f;

static float *new_y(int64_t size) {
    float *y = allocate((size_t)size * sizeof *y);
    for (int64_t i = 0; i < size; i++) {
        y[i] = untouched;
    }
    return y;
}

static bool same_bits(float a, float b) { return f32_to_bits(a) == f32_to_bits(b); }

/* The whole problem on one table: fills got [tokens][rows] and holds it to `ulps` times 2^-24 of the size of the sum. */
static void check_bound(const problem *p, const kernels *table, int64_t n, double ulps, float *got) {
    const char *isa = cpu_isa_name(table->isa);
    run_part(p, table, p->rows, 0, p->rows, n, got, p->rows);
    double error = 0, energy = 0, worst = 0;
    for (int64_t t = 0; t < n; t++) {
        for (int64_t r = 0; r < p->rows; r++) {
            int64_t i = (p->tokens - n + t) * p->rows + r;
            double difference = (double)got[t * p->rows + r] - p->want[i];
            error += difference * difference;
            energy += p->size[i] * p->size[i] / (double)p->k; /* what the result of random signs would have */
            double excess = fabs(difference) / (p->size[i] * 0x1p-24 + 1e-36);
            worst = excess > worst || excess != excess ? excess : worst;
        }
    }
    CHECK(worst <= ulps, "%s %s k %lld tokens %lld: %.3g x 2^-24 of the terms", p->info->name, isa, (long long)p->k,
          (long long)n, worst);
    CHECK(error <= 1e-12 * energy, "%s %s k %lld tokens %lld: NMSE %.3g", p->info->name, isa, (long long)p->k, (long long)n,
          error / energy);
}

/* Every number of rows and tokens gives the bits of the whole: `whole` [tokens][rows] holds token t at line t. */
static void check_part(const problem *p, const kernels *table, int64_t rows, int64_t n, const float *whole) {
    int64_t stride = rows + 5;
    float *y = new_y(n * stride);
    run_part(p, table, rows, 0, rows, n, y, stride);
    long wrong = 0, spilled = 0;
    for (int64_t t = 0; t < n; t++) {
        for (int64_t r = 0; r < stride; r++) {
            if (r >= rows) {
                spilled += !same_bits(y[t * stride + r], untouched);
            } else {
                wrong += !same_bits(y[t * stride + r], whole[(p->tokens - n + t) * p->rows + p->rows - rows + r]);
            }
        }
    }
    CHECK(wrong == 0 && spilled == 0, "%s %s k %lld rows %lld tokens %lld: %ld differ, %ld written beside", p->info->name,
          cpu_isa_name(table->isa), (long long)p->k, (long long)rows, (long long)n, wrong, spilled);
    free(y);
}

static void check_splits(const problem *p, const kernels *table, int64_t n, const float *whole) {
    static const int64_t cuts[][4] = {{0, 16, 32, 33}, {0, 16, 16, 33}, {0, 1, 5, 33}, {0, 32, 33, 33}, {7, 8, 24, 31}};
    for (size_t i = 0; i < sizeof cuts / sizeof *cuts; i++) {
        float *y = new_y(n * p->rows);
        for (int part = 0; part < 3; part++) {
            run_part(p, table, p->rows, cuts[i][part], cuts[i][part + 1], n, y, p->rows);
        }
        long wrong = 0;
        for (int64_t t = 0; t < n; t++) {
            for (int64_t r = 0; r < p->rows; r++) {
                bool inside = r >= cuts[i][0] && r < cuts[i][3];
                float want = inside ? whole[(p->tokens - n + t) * p->rows + r] : untouched;
                wrong += !same_bits(y[t * p->rows + r], want);
            }
        }
        CHECK(wrong == 0, "%s %s k %lld tokens %lld: split %zu changes %ld results", p->info->name, cpu_isa_name(table->isa),
              (long long)p->k, (long long)n, i, wrong);
        free(y);
    }
}

static void test_shapes(const layout *l, int64_t k, uint64_t seed) {
    static const int64_t row_counts[] = {1, 3, 15, 16, 17, 33};
    static const int64_t token_counts[] = {1, 2, 3, 4, 5, 6, 7, 8, 9, 16, 17, 33, 65};
    static const int64_t few_tokens[] = {1, 5, 8, 9, 17};
    const int64_t *counts = SMALL ? few_tokens : token_counts;
    size_t n_counts = SMALL ? sizeof few_tokens / sizeof *few_tokens : sizeof token_counts / sizeof *token_counts;
    int64_t tokens = counts[n_counts - 1];

    problem p = problem_new(l, k, MAX_ROWS, tokens);
    random_weights(l, p.info, p.w, p.row_bytes * MAX_ROWS, &seed);
    random_tokens(&p, &seed);
    solve(&p);
    for (int isa = LMI_ISA_REF; isa < ISAS; isa++) {
        if (columns[isa] == NULL) {
            continue;
        }
        float *tiled = new_y(tokens * MAX_ROWS), *row_wise = new_y(tokens * MAX_ROWS);
        check_bound(&p, columns[isa], tokens, 8, tiled);
        check_bound(&p, columns[isa], 8, 8, row_wise + (tokens - 8) * MAX_ROWS);
        for (size_t i = 0; i < n_counts; i++) {
            const float *whole = counts[i] <= 8 ? row_wise : tiled;
            for (size_t j = 0; j < sizeof row_counts / sizeof *row_counts; j += SMALL ? 4 : 1) {
                if (isa == LMI_ISA_REF && counts[i] > 17) {
                    continue; /* slow, and no different */
                }
                check_part(&p, columns[isa], row_counts[j], counts[i], whole);
            }
        }
        check_splits(&p, columns[isa], 3, row_wise);
        check_splits(&p, columns[isa], tokens < 21 ? tokens : 21, tiled);
        free(tiled);
        free(row_wise);
    }
    problem_free(&p);
}

/* More rows than are unpacked at a time, whole and in pieces. */
static void test_many_rows(const layout *l, uint64_t seed) {
    enum { ROWS = 300, TOKENS = 14, PIECE = 48 };
    problem p = problem_new(l, 512, ROWS, TOKENS);
    random_weights(l, p.info, p.w, p.row_bytes * ROWS, &seed);
    random_tokens(&p, &seed);
    solve(&p);
    for (int isa = LMI_ISA_REF; isa < ISAS; isa++) {
        if (columns[isa] == NULL) {
            continue;
        }
        float *whole = new_y(TOKENS * ROWS), *pieces = new_y(TOKENS * ROWS);
        check_bound(&p, columns[isa], TOKENS, 8, whole);
        for (int64_t r = 0; r < ROWS; r += PIECE) {
            run_part(&p, columns[isa], ROWS, r, r + PIECE < ROWS ? r + PIECE : ROWS, TOKENS, pieces, ROWS);
        }
        CHECK(memcmp(whole, pieces, TOKENS * ROWS * sizeof *whole) == 0, "%s %s", p.info->name, cpu_isa_name((lmi_isa)isa));
        free(whole);
        free(pieces);
    }
    problem_free(&p);
}

/* ---- whole numbers ------------------------------------------------------------------------------------------------------ */

/* With scales of 1 and activations that are whole numbers, the result is a whole number below 2^24: everyone must hit it. */
static void test_integers(const layout *l, int64_t k, uint64_t seed) {
    problem p = problem_new(l, k, MAX_ROWS, 17);
    if (p.act == ACT_F32) {
        problem_free(&p);
        return;
    }
    random_weights(l, p.info, p.w, p.row_bytes * MAX_ROWS, &seed);
    for (size_t at = 0; at < p.row_bytes * MAX_ROWS; at += p.info->block_bytes) {
        if (l->type == QUANT_MXFP4) {
            p.w[at] = 128;
            continue;
        }
        put_half(p.w + at + l->d, 1);
        if (l->m >= 0) {
            put_half(p.w + at + l->m, 1);
        }
    }
    float *x = allocate((size_t)(p.tokens * k) * sizeof *x);
    for (int64_t i = 0; i < p.tokens * k; i++) {
        x[i] = i % 32 == 7 ? 127.0f : (float)((int64_t)(check_random(&seed) % 255) - 127); /* so that d is 1 */
    }
    pack_tokens(&p, x);
    solve(&p);
    for (int isa = LMI_ISA_REF; isa < ISAS; isa++) {
        for (int64_t n = 8; columns[isa] != NULL && n <= 17; n += 9) {
            float *y = new_y(n * MAX_ROWS);
            run_part(&p, columns[isa], MAX_ROWS, 0, MAX_ROWS, n, y, MAX_ROWS);
            long wrong = 0;
            for (int64_t i = 0; i < n * MAX_ROWS; i++) {
                wrong += (double)y[i] != p.want[(p.tokens - n) * MAX_ROWS + i];
            }
            CHECK(wrong == 0, "%s %s tokens %lld: %ld whole numbers are wrong", p.info->name, cpu_isa_name((lmi_isa)isa),
                  (long long)n, wrong);
            free(y);
        }
    }
    free(x);
    problem_free(&p);
}

/* ---- extremes ----------------------------------------------------------------------------------------------------------- */

/* Largest and smallest values, scales and activations in all combinations: sums in 16 bits would saturate here. */
static void test_saturation(const layout *l, int64_t k) {
    static const uint8_t fills[] = {0x00, 0x80, 0x7f, 0xff};
    static const float patterns[][2] = {{127, 127}, {-127, -127}, {127, -127}};
    problem p = problem_new(l, k, MAX_ROWS, 9);
    float *x = allocate((size_t)(p.tokens * k) * sizeof *x);
    float *y = new_y(p.tokens * MAX_ROWS);
    for (int fill = 0; p.act != ACT_F32 && fill < 16; fill += SMALL ? 5 : 1) {
        uint8_t values = fills[fill % 4], rest = fills[fill / 4];
        memset(p.w, rest, p.row_bytes * MAX_ROWS);
        for (size_t at = 0; at < p.row_bytes * MAX_ROWS; at += p.info->block_bytes) {
            memset(p.w + at + l->q0, values, (size_t)(l->q1 - l->q0));
            memset(p.w + at + l->h0, values, (size_t)(l->h1 - l->h0));
            if (l->type == QUANT_MXFP4) {
                p.w[at] = 127;
                continue;
            }
            put_half(p.w + at + l->d, 1);
            if (l->m >= 0) {
                put_half(p.w + at + l->m, 1);
            }
        }
        for (size_t pattern = 0; pattern < sizeof patterns / sizeof *patterns; pattern++) {
            for (int64_t i = 0; i < p.tokens * k; i++) {
                x[i] = patterns[pattern][i % 2];
            }
            pack_tokens(&p, x);
            solve(&p);
            for (int isa = LMI_ISA_REF; isa < ISAS; isa++) {
                for (int64_t n = 8; columns[isa] != NULL && n <= 9; n++) {
                    check_bound(&p, columns[isa], n, 8, y);
                }
            }
        }
    }
    free(x);
    free(y);
    problem_free(&p);
}

/* A scale of zero, of the smallest subnormal, of infinity or NaN: in one block of one row. The other rows must not notice. */
static void test_strange_scales(const layout *l, int64_t k, uint64_t seed) {
    static const uint16_t halves[] = {0x0000, 0x8000, 0x0001, 0x03ff, 0x7c00, 0xfc00, 0x7e00};
    enum { ROW = 5 };
    problem p = problem_new(l, k, MAX_ROWS, 9);
    float *y = new_y(p.tokens * MAX_ROWS);
    for (size_t i = 0; l->d >= 0 && i < sizeof halves / sizeof *halves; i++) {
        for (int field = 0; field < 2; field++) {
            int offset = field ? l->m : l->d;
            if (offset < 0) {
                continue;
            }
            random_weights(l, p.info, p.w, p.row_bytes * MAX_ROWS, &seed);
            random_tokens(&p, &seed);
            uint8_t *block = p.w + ROW * p.row_bytes + (size_t)(k / p.info->block_values / 2) * p.info->block_bytes;
            memcpy(block + offset, &halves[i], sizeof halves[i]);
            bool finite = (halves[i] & 0x7c00) != 0x7c00;
            solve(&p);
            for (int isa = LMI_ISA_REF; isa < ISAS; isa++) {
                for (int64_t n = 8; columns[isa] != NULL && n <= 9; n++) {
                    run_part(&p, columns[isa], MAX_ROWS, 0, MAX_ROWS, n, y, MAX_ROWS);
                    long wrong = 0;
                    for (int64_t j = 0; j < n * MAX_ROWS; j++) {
                        int64_t from = (p.tokens - n) * MAX_ROWS + j;
                        if (j % MAX_ROWS == ROW && !finite) {
                            wrong += isfinite(y[j]) != 0;
                        } else {
                            wrong += !(fabs((double)y[j] - p.want[from]) <= 8 * 0x1p-24 * p.size[from]);
                        }
                    }
                    CHECK(wrong == 0, "%s %s tokens %lld scale 0x%04x: %ld wrong", p.info->name, cpu_isa_name((lmi_isa)isa),
                          (long long)n, halves[i], wrong);
                }
            }
        }
    }
    free(y);
    problem_free(&p);
}

/* Scales up to 2^107, with which a kernel's own constants may not overflow. */
static void test_large_scales(uint64_t seed) {
    enum { ROW = 5, K = 512 };
    const layout *l = NULL;
    for (int i = 0; i < N_LAYOUTS; i++) {
        l = layouts[i].type == QUANT_MXFP4 ? &layouts[i] : l;
    }
    problem p = problem_new(l, K, MAX_ROWS, 9);
    float *y = new_y(p.tokens * MAX_ROWS);
    random_weights(l, p.info, p.w, p.row_bytes * MAX_ROWS, &seed);
    random_tokens(&p, &seed);
    for (int b = 0; b < K / 32; b++) {
        p.w[ROW * p.row_bytes + (size_t)b * p.info->block_bytes] = (uint8_t)(220 + b);
    }
    solve(&p);
    for (int isa = LMI_ISA_REF; isa < ISAS; isa++) {
        for (int64_t n = 8; columns[isa] != NULL && n <= 9; n++) {
            run_part(&p, columns[isa], MAX_ROWS, 0, MAX_ROWS, n, y, MAX_ROWS);
            for (int64_t t = 0; t < n; t++) {
                const int64_t at = t * MAX_ROWS + ROW, from = (p.tokens - n) * MAX_ROWS + at;
                CHECK(fabs((double)y[at] - p.want[from]) <= 8 * 0x1p-24 * p.size[from], "%s: %g, not %g",
                      cpu_isa_name((lmi_isa)isa), (double)y[at], p.want[from]);
            }
        }
    }
    free(y);
    problem_free(&p);
}

/* Every scale byte of MXFP4, and activations that are zero, tiny or not finite in one token. */
static void test_strange_activations(const layout *l, int64_t k, uint64_t seed) {
    static const float values[] = {0.0f, -0.0f, 1e-45f, 3e-44f, 1e-38f, 1e30f, INFINITY, -INFINITY, NAN};
    enum { TOKEN = 3 };
    problem p = problem_new(l, k, MAX_ROWS, 9);
    float *x = allocate((size_t)(p.tokens * k) * sizeof *x);
    float *y = new_y(p.tokens * MAX_ROWS);
    random_weights(l, p.info, p.w, p.row_bytes * MAX_ROWS, &seed);
    if (l->type == QUANT_MXFP4) {
        for (size_t b = 0; b < (size_t)k / 32 * MAX_ROWS; b++) {
            p.w[17 * b] = (uint8_t)(b % 120);
        }
    }
    for (size_t i = 0; i < sizeof values / sizeof *values; i++) {
        for (int64_t j = 0; j < p.tokens * k; j++) {
            x[j] = (float)check_normal(&seed);
        }
        for (int64_t c = 0; c < k; c++) {
            if (isfinite(values[i]) || c == k / 2) {
                x[TOKEN * k + c] = values[i];
            }
        }
        pack_tokens(&p, x);
        solve(&p);
        for (int isa = LMI_ISA_REF; isa < ISAS; isa++) {
            for (int64_t n = 8; columns[isa] != NULL && n <= 9; n++) {
                run_part(&p, columns[isa], MAX_ROWS, 0, MAX_ROWS, n, y, MAX_ROWS);
                long wrong = 0;
                for (int64_t j = 0; j < n * MAX_ROWS; j++) {
                    int64_t from = (p.tokens - n) * MAX_ROWS + j;
                    if (from / MAX_ROWS == TOKEN && !isfinite(values[i])) {
                        wrong += isfinite(y[j]) != 0;
                    } else {
                        wrong += !(fabs((double)y[j] - p.want[from]) <= 8 * 0x1p-24 * p.size[from] + 1e-36);
                    }
                }
                CHECK(wrong == 0, "%s %s tokens %lld activation %g: %ld wrong", p.info->name, cpu_isa_name((lmi_isa)isa),
                      (long long)n, (double)values[i], wrong);
            }
        }
    }
    free(x);
    free(y);
    problem_free(&p);
}

/* ---- the table ------------------------------------------------------------------------------------------------------- */

static void test_table(void) {
    lmi_error error;
    const kernels *table;
    CHECK(kernels_get(LMI_ISA_AUTO, &table, &error) == LMI_OK && table->isa != LMI_ISA_AUTO && columns[table->isa] == table);
    CHECK(kernels_get((lmi_isa)77, &table, &error) == LMI_INVALID_ARGUMENT && table == NULL && error.message[0] != '\0');
    CHECK(kernels_get((lmi_isa)-1, &table, &error) == LMI_INVALID_ARGUMENT && table == NULL);
    for (int isa = LMI_ISA_REF; isa < ISAS; isa++) {
        bool built = true; /* older compilers lack two */
#if !defined(LMI_HAS_AVXVNNI)
        built = built && isa != LMI_ISA_AVXVNNI;
#endif
#if !defined(LMI_HAS_AMX)
        built = built && isa != LMI_ISA_AMX;
#endif
        CHECK((built && cpu_has((lmi_isa)isa)) == (columns[isa] != NULL), "%s", cpu_isa_name((lmi_isa)isa));
        if (columns[isa] == NULL) {
            CHECK(kernels_get((lmi_isa)isa, &table, &error) == LMI_UNSUPPORTED && table == NULL && error.remedy[0] != '\0');
            continue;
        }
        CHECK(columns[isa]->isa == (lmi_isa)isa);
        for (uint32_t type = 0; type < QUANT_TYPE_END; type++) {
            CHECK((quant_find(type) != NULL) == (columns[isa]->matmul[type] != NULL), "type %u", type);
            CHECK(columns[isa]->act[type] == columns[LMI_ISA_REF]->act[type]);
        }
    }
}

int main(void) {
    for (int isa = LMI_ISA_REF; isa < ISAS; isa++) {
        lmi_error error;
        if (kernels_get((lmi_isa)isa, &columns[isa], &error) != LMI_OK) {
            columns[isa] = NULL;
        }
    }
    test_table();
    static const int64_t long_k[] = {256, 512, 4096 + 256}, short_k[] = {32, 64, 96}, odd_k[] = {1, 7, 172};
    for (int i = 0; i < N_LAYOUTS; i++) {
        const layout *l = &layouts[i];
        uint32_t block = quant_find(l->type)->block_values;
        for (size_t j = 0; j < sizeof long_k / sizeof *long_k - SMALL; j++) {
            test_shapes(l, long_k[j], 7 * (uint64_t)i + j);
        }
        for (size_t j = 0; block == 32 && j < sizeof short_k / sizeof *short_k; j++) {
            test_shapes(l, short_k[j], 1000 + 7 * (uint64_t)i + j);
        }
        for (size_t j = 0; block == 1 && j < sizeof odd_k / sizeof *odd_k; j++) {
            test_shapes(l, odd_k[j], 2000 + 7 * (uint64_t)i + j);
        }
        test_many_rows(l, 2500 + (uint64_t)i);
        test_integers(l, 256, 3000 + (uint64_t)i);
        test_saturation(l, 512);
        test_strange_scales(l, 512, 4000 + (uint64_t)i);
        test_strange_activations(l, 512, 5000 + (uint64_t)i);
    }
    test_large_scales(6000);
    return check_report();
}
