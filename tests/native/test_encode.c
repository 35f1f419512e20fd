/* The encoders: the same bytes from every instruction set and any number of threads, errors near the least possible (found by
 * brute force where that can be done), odd blocks, and the door lmi_quantize with all that it refuses. */
#include "base/cpu.h"
#include "base/half.h"
#include "check.h"
#include "quant/blocks.h"
#include "quant/encode.h"

enum { N = 256 * 24 };

static const struct {
    lmi_isa isa;
    const encoders *table;
} built[] = {
    {LMI_ISA_REF, &encoders_ref},
#if defined(__x86_64__)
    {LMI_ISA_AVX2, &encoders_avx2},
    {LMI_ISA_AVX512, &encoders_avx512},
#endif
};
enum { N_BUILT = sizeof built / sizeof *built };

typedef enum kind { NORMAL, HEAVY, SMALL_STEPS, SPARSE, POSITIVE, FAINT, TINY, LARGE, CONSTANT, ZERO, N_KINDS } kind;

static void fill(kind k, float *x, int n, uint64_t *seed) {
    for (int i = 0; i < n; i++) {
        const double v = check_normal(seed);
        x[i] = k == NORMAL        ? (float)(0.02 * v)
               : k == HEAVY       ? (float)(0.02 * v / (0.05 + check_uniform(seed)))
               : k == SMALL_STEPS ? (float)(0.5 + 1e-4 * v)
               : k == SPARSE      ? (check_uniform(seed) < 0.03 ? (float)v : 0.0f)
               : k == POSITIVE    ? (float)(0.1 * fabs(v) + 0.01)
               : k == FAINT       ? (float)(1e-6 * v) /* binary16 has few numbers there */
               : k == TINY        ? (float)(1e-9 * v)
               : k == LARGE       ? (float)(15000 * (v > 4    ? 4
                                                     : v < -4 ? -4
                                                              : v))
               : k == CONSTANT    ? -0.37f
                                  : 0.0f;
    }
}

static double squared_error(const quant_info *type, const float *x, const float *w, const void *blocks, int n) {
    static float decoded[N];
    type->to_f32(blocks, decoded, n);
    double sum = 0;
    for (int i = 0; i < n; i++) {
        const double e = (double)decoded[i] - (double)x[i];
        CHECK(isfinite(decoded[i]), "%s value %d is %g for %g", type->name, i, (double)decoded[i], (double)x[i]);
        sum += (double)w[i] * e * e;
    }
    return sum;
}

/* Every instruction set gives the bytes of the portable one, and touches nothing behind a block. */
static void test_same_bytes(void) {
    static float x[N], w[N];
    static uint8_t expected[N * 2 + 1], got[N * 2 + 1];
    uint64_t seed = 11;
    for (uint32_t t = 0; t < QUANT_TYPE_END; t++) {
        const quant_info *type = quant_find(t);
        for (int k = 0; encoders_ref.block[t] != NULL && k < N_KINDS * 2; k++) {
            fill((kind)(k / 2), x, N, &seed);
            for (int i = 0; i < N; i++) {
                w[i] = k % 2 == 0 ? 1 : (float)(check_uniform(&seed) * check_uniform(&seed) + 1e-6);
            }
            const int n_blocks = N / (int)type->block_values;
            for (int b = 0; b < N_BUILT; b++) {
                uint8_t *out = b == 0 ? expected : got;
                memset(out, 0xa5, sizeof expected);
                for (int i = 0; cpu_has(built[b].isa) && i < n_blocks; i++) { /* odd addresses */
                    built[b].table->block[t](x + i * (int)type->block_values, w + i * (int)type->block_values,
                                             out + 1 + i * (int)type->block_bytes);
                }
                if (b > 0 && cpu_has(built[b].isa)) {
                    CHECK(memcmp(expected, got, sizeof got) == 0, "%s kind %d: other bytes from %s", type->name, k,
                          cpu_isa_name(built[b].isa));
                }
                CHECK(out[0] == 0xa5 && out[1 + n_blocks * (int)type->block_bytes] == 0xa5, "%s writes outside", type->name);
            }
            double energy = 0;
            for (int i = 0; i < N; i++) {
                energy += (double)w[i] * (double)x[i] * (double)x[i];
            }
            const double error = squared_error(type, x, w, expected + 1, N);
            CHECK(error <= energy, "%s kind %d: worse than zeros, %g of %g", type->name, k, error, energy);
        }
    }
}

/* Least-squares error of normal values over their energy: what the number of bits allows. */
static void test_error_bars(void) {
    static const struct {
        quant_type type;
        double bar; /* squared error / energy */
    } bars[] = {
        {QUANT_Q2_K, 0.0680},   {QUANT_Q3_K, 0.0213},   {QUANT_Q4_0, 0.0070},  {QUANT_Q4_1, 0.0049},  {QUANT_Q4_K, 0.0052},
        {QUANT_Q5_0, 0.00175},  {QUANT_Q5_1, 0.00113},  {QUANT_Q5_K, 0.00125}, {QUANT_Q6_K, 0.00034}, {QUANT_Q8_0, 2.5e-5},
        {QUANT_IQ4_NL, 0.0057}, {QUANT_IQ4_XS, 0.0058}, {QUANT_MXFP4, 0.0130},
    };
    static float x[N], w[N];
    static uint8_t blocks[N * 2];
    uint64_t seed = 5;
    fill(NORMAL, x, N, &seed);
    double energy = 0;
    for (int i = 0; i < N; i++) {
        w[i] = 1;
        energy += (double)x[i] * (double)x[i];
    }
    for (size_t b = 0; b < sizeof bars / sizeof *bars; b++) {
        const quant_info *type = quant_find((uint32_t)bars[b].type);
        for (int i = 0; i < N / (int)type->block_values; i++) {
            encoders_best()->block[bars[b].type](x + i * (int)type->block_values, w, blocks + i * (int)type->block_bytes);
        }
        const double share = squared_error(type, x, w, blocks, N) / energy;
        CHECK(share <= bars[b].bar && share > bars[b].bar / 2, "%s: %.6f of the energy, bar %.6f", type->name, share,
              bars[b].bar);
    }
}

/* Codes change where a value is midway between two: between two such scales the codes are fixed and the best scale is a least
 * squares solution. Trying all of them, both signs of the scale, finds the least error there is. */
static double least_error_by_force(const float *x, const float *w, int n, int low, int high) {
    double least = INFINITY;
    for (int i = 0; i < n; i++) {
        for (int code = low; code < high; code++) {
            const double middle = code + 0.5, at = (double)x[i] / middle;
            for (int side = 0; side < 4; side++) {
                const double scale = at * (side % 2 ? 1 + 1e-7 : 1 - 1e-7) * (side / 2 ? 1 : -1);
                double xx = 0, xq = 0, qq = 0;
                for (int j = 0; j < n && scale != 0; j++) {
                    double q = nearbyint((double)x[j] / scale);
                    q = q < low ? low : q > high ? high : q;
                    xx += (double)w[j] * (double)x[j] * (double)x[j];
                    xq += (double)w[j] * (double)x[j] * q;
                    qq += (double)w[j] * q * q;
                }
                const double error = qq > 0 ? xx - xq * xq / qq : INFINITY;
                least = error < least ? error : least;
            }
        }
    }
    return least;
}

static void test_near_the_least(void) {
    static const struct {
        quant_type type;
        int low, high;
        double mean, worst; /* of the error over the least one */
    } types[] = {{QUANT_Q4_0, -8, 7, 1.004, 1.09}, {QUANT_Q5_0, -16, 15, 1.012, 1.12}};
    uint64_t seed = 9;
    for (size_t t = 0; t < sizeof types / sizeof *types; t++) {
        double sum = 0, worst = 0;
        enum { BLOCKS = 60 };
        for (int b = 0; b < BLOCKS; b++) {
            float x[32], w[32];
            uint8_t block[64];
            fill(b % 3 == 0 ? HEAVY : NORMAL, x, 32, &seed);
            for (int i = 0; i < 32; i++) {
                w[i] = b % 2 == 0 ? 1 : (float)(0.05 + check_uniform(&seed));
            }
            encoders_best()->block[types[t].type](x, w, block);
            const double ratio = squared_error(quant_find((uint32_t)types[t].type), x, w, block, 32) /
                                 least_error_by_force(x, w, 32, types[t].low, types[t].high);
            CHECK(ratio > 0.9999, "less than the least: %g", ratio);
            worst = ratio > worst ? ratio : worst;
            sum += ratio;
        }
        CHECK(sum / BLOCKS < types[t].mean && worst < types[t].worst, "%s: error %.4f of the least on average, %.4f at worst",
              quant_name((uint32_t)types[t].type), sum / BLOCKS, worst);
    }
}

/* ---- the door ------------------------------------------------------------------------------------------------------ */

static lmi_status encode(const char *to, const float *x, int64_t rows, int64_t cols, uint8_t *out,
                         const lmi_quantize_options *options, lmi_error *error) {
    return lmi_quantize("F32", x, (size_t)(rows * cols) * sizeof *x, to, out, (size_t)lmi_tensor_bytes(to, rows * cols), rows,
                        cols, options, error);
}

static void test_threads(void) {
    enum { ROWS = 67, COLS = 768, COUNT = ROWS * COLS };
    static float x[COUNT], importance[COLS];
    static uint8_t one[COUNT * 2], many[COUNT * 2];
    uint64_t seed = 3;
    fill(NORMAL, x, COUNT, &seed);
    for (int i = 0; i < COLS; i++) {
        importance[i] = i % 7 == 0 ? 0 : (float)check_uniform(&seed) * 100;
    }
    lmi_quantize_options options;
    lmi_quantize_options_default(&options);
    static const char *const types[] = {"Q4_K", "Q6_K", "Q8_0", "IQ4_NL", "F16", "BF16"};
    for (size_t t = 0; t < sizeof types / sizeof *types; t++) {
        for (int weighted = 0; weighted < 2; weighted++) {
            options.importance = weighted ? importance : NULL;
            options.n_threads = 1;
            CHECK(encode(types[t], x, ROWS, COLS, one, &options, NULL) == LMI_OK, "%s", types[t]);
            for (options.n_threads = 2; options.n_threads < 8; options.n_threads += 5) {
                memset(many, 0, sizeof many);
                CHECK(encode(types[t], x, ROWS, COLS, many, &options, NULL) == LMI_OK, "%s", types[t]);
                CHECK(memcmp(one, many, (size_t)lmi_tensor_bytes(types[t], COUNT)) == 0, "%s: threads matter", types[t]);
            }
        }
    }
}

static void test_importance(void) {
    enum { COLS = 512 };
    static float x[COLS * 8], importance[COLS], one[COLS * 8];
    static uint8_t plain[COLS * 16], weighted[COLS * 16];
    uint64_t seed = 4;
    fill(NORMAL, x, COLS * 8, &seed);
    for (int i = 0; i < COLS * 8; i++) {
        importance[i % COLS] = i % 5 == 0 ? 50 : 0.5f;
        one[i] = i % COLS % 5 == 0 ? 50 : 0.5f;
    }
    for (int i = 0; i < COLS; i++) {
        importance[i] = one[i];
    }
    lmi_quantize_options options;
    lmi_quantize_options_default(&options);
    for (uint32_t t = 0; t < QUANT_TYPE_END; t++) {
        if (encoders_ref.block[t] == NULL || t == QUANT_MXFP4) {
            continue; /* MXFP4 has too few scales for a choice */
        }
        const quant_info *type = quant_find(t);
        options.importance = NULL;
        CHECK(encode(type->name, x, 8, COLS, plain, &options, NULL) == LMI_OK, " ");
        options.importance = importance;
        CHECK(encode(type->name, x, 8, COLS, weighted, &options, NULL) == LMI_OK, " ");
        const double before = squared_error(type, x, one, plain, COLS * 8);
        const double after = squared_error(type, x, one, weighted, COLS * 8);
        CHECK(after < 0.97 * before, "%s: weighted error %g, without weights %g", type->name, after, before);
    }
}

static void refused(lmi_status status, const lmi_error *error, const char *part, int line) {
    CHECK(status == LMI_INVALID_ARGUMENT || status == LMI_UNSUPPORTED, "line %d: status %d", line, (int)status);
    CHECK(error->status == status && strstr(error->message, part) != NULL, "line %d: \"%s\"", line, error->message);
}
#define REFUSED(call, part) refused(call, &error, part, __LINE__)

static void test_refusals(void) {
    enum { ROWS = 300, COLS = 256, COUNT = ROWS * COLS };
    static float x[COUNT];
    static uint8_t out[COUNT * 4];
    float importance[COLS];
    lmi_error error;
    lmi_quantize_options options;
    uint64_t seed = 6;
    fill(NORMAL, x, COUNT, &seed);
    memset(out, 0x5a, sizeof out);
    for (int i = 0; i < COLS; i++) {
        importance[i] = 1;
    }
    lmi_quantize_options_default(&options);
    REFUSED(encode("Q9_9", x, 1, COLS, out, NULL, &error), "Q9_9");
    REFUSED(lmi_quantize(NULL, x, 4, "F16", out, 2, 1, 1, NULL, &error), "(null)");
    REFUSED(encode("Q4_K", x, 2, 128, out, NULL, &error), "not whole blocks");
    REFUSED(encode("Q4_0", x, 0, 256, out, NULL, &error), "no matrix");
    REFUSED(encode("Q4_0", x, -1, 256, out, NULL, &error), "no matrix");
    REFUSED(lmi_quantize("F32", x, 1, "Q4_0", out, 144, INT64_MAX / 2, INT64_MAX / 2, NULL, &error), "no matrix");
    REFUSED(lmi_quantize("F32", x, 1023, "Q4_0", out, 144, 1, 256, NULL, &error), "source");
    REFUSED(lmi_quantize("F32", x, 1024, "Q4_0", out, 145, 1, 256, NULL, &error), "blocks");
    REFUSED(lmi_quantize("F32", NULL, 1024, "Q4_0", out, 144, 1, 256, NULL, &error), "no values");
    options.size--;
    REFUSED(encode("Q4_0", x, 1, COLS, out, &options, &error), "another version");
    lmi_quantize_options_default(&options);
    options.importance = importance;
    importance[77] = -1;
    REFUSED(encode("Q4_0", x, 1, COLS, out, &options, &error), "column 77");
    importance[77] = NAN;
    REFUSED(encode("Q4_0", x, 1, COLS, out, &options, &error), "column 77");
    importance[77] = INFINITY;
    REFUSED(encode("Q4_0", x, 1, COLS, out, &options, &error), "column 77");
    options.importance = NULL;
    options.allow_nonfinite = 1;
    REFUSED(encode("Q4_0", x, 1, COLS, out, &options, &error), "cannot hold");
    options.allow_nonfinite = 0;

    static const float bad[] = {NAN, INFINITY, -INFINITY, 65536};
    options.first_row = 1000;
    for (size_t b = 0; b < 4; b++) {
        for (int threads = 1; threads < 5; threads += 3) {
            options.n_threads = threads;
            const float kept = x[123 * COLS + 45], other = x[290 * COLS + 3];
            x[123 * COLS + 45] = bad[b];
            x[290 * COLS + 3] = bad[b]; /* the first one is named, whoever finds which */
            REFUSED(encode("Q6_K", x, ROWS, COLS, out, &options, &error), "row 1123, column 45");
            REFUSED(encode("F16", x, ROWS, COLS, out, &options, &error), "row 1123, column 45");
            CHECK((encode("BF16", x, 1, COLS, out, &options, &error) == LMI_OK), " ");
            memset(out, 0x5a, sizeof out);
            x[123 * COLS + 45] = kept;
            x[290 * COLS + 3] = other;
        }
    }
    for (size_t i = 0; i < sizeof out; i++) {
        if (out[i] != 0x5a) {
            CHECK(false, "byte %zu was written by a call that failed", i);
            break;
        }
    }
}

static void test_floats(void) {
    static const float x[] = {0, -0.0f, 1, -2.5f, 65504, 1e-8f, 3.14159265f, NAN, INFINITY, -INFINITY, 1e30f};
    enum { COUNT = sizeof x / sizeof *x };
    uint8_t out[COUNT * 4];
    float back[COUNT];
    lmi_quantize_options options;
    lmi_quantize_options_default(&options);
    options.allow_nonfinite = 1;
    static const char *const types[] = {"F32", "BF16", "F16"};
    for (int t = 0; t < 3; t++) {
        CHECK(encode(types[t], x, 1, COUNT, out, &options, NULL) == LMI_OK, "%s", types[t]);
        CHECK(lmi_dequantize(types[t], out, (size_t)lmi_tensor_bytes(types[t], COUNT), back, COUNT, NULL) == LMI_OK, " ");
        const double precision = t == 0 ? 0 : t == 1 ? 0x1p-8 : 0x1p-11;
        for (int i = 0; i < COUNT; i++) {
            if (isnan(x[i]) || isinf(x[i]) || (t == 2 && x[i] > 1e29f)) {
                CHECK(isnan(x[i]) ? isnan(back[i]) : isinf(back[i]) && (back[i] > 0) == (x[i] > 0), "%s %d", types[t], i);
            } else {
                CHECK(fabs((double)back[i] - (double)x[i]) <= precision * fabs((double)x[i]) + (t == 2 ? 0x1p-25 : 0),
                      "%s: %g for %g", types[t], (double)back[i], (double)x[i]);
                CHECK((signbit(back[i]) != 0) == (signbit(x[i]) != 0), "%s sign of %g", types[t], (double)x[i]);
            }
        }
    }
}

/* From blocks of one type to those of another, and as they are where the types agree. */
static void test_from_blocks(void) {
    enum { COLS = 512 };
    static float x[COLS], decoded[COLS];
    static uint8_t first[COLS * 4], direct[COLS * 4], through[COLS * 4];
    uint64_t seed = 8;
    fill(NORMAL, x, COLS, &seed);
    const size_t q8 = (size_t)lmi_tensor_bytes("Q8_0", COLS), q4 = (size_t)lmi_tensor_bytes("Q4_K", COLS);
    CHECK(encode("Q8_0", x, 1, COLS, first, NULL, NULL) == LMI_OK, " ");
    CHECK(lmi_dequantize("Q8_0", first, q8, decoded, COLS, NULL) == LMI_OK, " ");
    CHECK(encode("Q4_K", decoded, 1, COLS, direct, NULL, NULL) == LMI_OK, " ");
    CHECK(lmi_quantize("Q8_0", first, q8, "Q4_K", through, q4, 1, COLS, NULL, NULL) == LMI_OK, " ");
    CHECK(memcmp(direct, through, q4) == 0, "decoding on the way changes the result");
    CHECK(lmi_quantize("Q8_0", first, q8, "Q8_0", through, q8, 1, COLS, NULL, NULL) == LMI_OK, " ");
    CHECK(memcmp(first, through, q8) == 0, "blocks of the wanted type are not passed on");
}

static void test_types(void) {
    lmi_type_info info;
    lmi_error error;
    for (uint32_t t = 0; t < QUANT_TYPE_END; t++) {
        const quant_info *type = quant_find(t);
        if (type != NULL) {
            CHECK(lmi_type_find(type->name, &info, NULL) == LMI_OK && info.number == (int32_t)t, "%s", type->name);
            CHECK(info.block_values == (int32_t)type->block_values && info.block_bytes == (int32_t)type->block_bytes, " ");
            CHECK((encoders_ref.block[t] != NULL) == (type->block_values > 1), "%s has no encoder", type->name);
        }
    }
    REFUSED(lmi_type_find("IQ2_XXS", &info, &error), "IQ2_XXS");
    REFUSED(lmi_type_find(NULL, &info, &error), "(null)");
}

int main(void) {
    test_types();
    test_same_bytes();
    test_error_bars();
    test_near_the_least();
    test_threads();
    test_importance();
    test_floats();
    test_from_blocks();
    test_refusals();
    return check_report();
}
