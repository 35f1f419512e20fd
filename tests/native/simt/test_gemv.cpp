/* Row-wise products (gemv.cu) on the emulator: all types, shapes, hostile values, norms. See gemv_reference.h. */
#include "gemv_reference.h"

/* ---- all types, all shapes ----------------------------------------------------------------------------------------- */

static void test_shapes(quant_type type, int64_t cols, uint64_t *random) {
    enum { ROWS = 33, TOKENS = 8 };
    const floats x = random_floats((size_t)(TOKENS * cols), random);
    const device_rows on_device(x);
    for (const int64_t rows : {1, 3, 16, 33}) {
        if (SMALL && rows != 3) {
            continue;
        }
        matrix w(type, rows, cols, random);
        const sums s = solve(w, 0, x.data(), TOKENS);
        floats eight;
        for (const int64_t tokens : {8, 5, 2, 1}) {
            if (SMALL && tokens % 7 != 1) {
                continue;
            }
            char what[100];
            snprintf(what, sizeof what, "%s, %d x %d, %d tokens", w.info->name, (int)rows, (int)cols, (int)tokens);
            const floats y = multiply(&w, on_device, tokens);
            const size_t n = (size_t)(tokens * rows);
            compare(what, y.data(), doubles(s.value.begin(), s.value.begin() + (int64_t)n), s.size, 8, cols);
            eight = tokens == 8 ? y : eight;
            CHECK(same_bits(y, floats(eight.begin(), eight.begin() + (int64_t)n)), "%s: other bits than of eight", what);
        }
        const packed_rows packed(type, x.data(), cols, 1);
        floats reference((size_t)rows);
        matmul_args args = {};
        args.w = w.file.data();
        args.row_bytes = w.row_bytes;
        args.k = cols;
        args.row1 = rows;
        args.x = packed.rows;
        args.x_stride = packed.stride;
        args.n_tokens = 1;
        args.y = reference.data();
        args.y_stride = rows;
        cpu->matmul[type](&args);
        for (int64_t r = 0; r < rows; r++) {
            CHECK(fabs((double)reference[(size_t)r] - (double)eight[(size_t)r]) <= 1e-6 * s.size[(size_t)r],
                  "%s: row %d %g, on the CPU %g", w.info->name, (int)r, (double)eight[(size_t)r], (double)reference[(size_t)r]);
        }
    }
}

/* Inputs that are held in pieces: many columns. Ragged ends. */
static void test_wide(quant_type type, int64_t cols, int64_t rows, uint64_t *random) {
    enum { TOKENS = 8 };
    const floats x = random_floats((size_t)(TOKENS * cols), random);
    const device_rows on_device(x);
    matrix w(type, rows, cols, random);
    const sums s = solve(w, 0, x.data(), TOKENS);
    const floats y = multiply(&w, on_device, TOKENS);
    char what[100];
    snprintf(what, sizeof what, "%s, %d columns", w.info->name, (int)cols);
    compare(what, y.data(), s.value, s.size, 8, cols);
    for (const int64_t tokens : {1, 3}) {
        const floats few = multiply(&w, on_device, tokens);
        CHECK(same_bits(few, floats(y.begin(), y.begin() + tokens * rows)), "%s: %d tokens", what, (int)tokens);
    }
}

/* Many rows: every warp has several units, and with many columns several batches of them. */
static void test_tall(quant_type type, int64_t rows, int64_t cols, int64_t tokens, uint64_t *random) {
    const floats x = random_floats((size_t)(tokens * cols), random);
    const device_rows on_device(x);
    matrix w(type, rows, cols, random);
    const sums s = solve(w, 0, x.data(), tokens);
    const floats y = multiply(&w, on_device, tokens);
    char what[100];
    snprintf(what, sizeof what, "%s, %d x %d", w.info->name, (int)rows, (int)cols);
    compare(what, y.data(), s.value, s.size, 8, cols);
}

/* ---- hostile values ------------------------------------------------------------------------------------------------ */

static void test_hostile(quant_type type, uint64_t *random) {
    const int64_t cols = 512, rows = 6;
    const layout *l = layout_of(type);
    matrix w(type, rows, cols, random);
    const size_t block = w.info->block_bytes;
    for (size_t at = 0; at < w.file.size(); at += block) {
        uint8_t *b = &w.file[at];
        const size_t row = at / w.row_bytes;
        if (l->d < 0 && type != QUANT_MXFP4) {
            continue;
        }
        if (row == 0) { /* all ones: the largest integers everywhere */
            memset(b, 0xff, block);
        } else if (row == 1) {
            memset(b, 0, block);
        } else if (row == 2) { /* the lowest */
            memset(b, 0x80, block);
        }
        if (type == QUANT_MXFP4) {
            b[0] = row == 4 ? (uint8_t)(at / block % 24) : 120;
        } else if (row == 4) { /* subnormal scales */
            put_half(b + l->d, 0x1p-24f * (float)(1 + at / block % 7));
        } else if (row < 3) {
            put_half(b + l->d, 0.5f);
        }
        if (l->m >= 0 && row < 5) {
            put_half(b + l->m, row == 4 ? 0x1p-23f : row == 1 ? 0.0f : 0.25f);
        }
    }
    w.split();
    floats x = random_floats((size_t)(8 * cols), random);
    for (int64_t c = 0; c < cols; c++) {
        x[(size_t)c] = 1.0f; /* all 127 */
        x[(size_t)(cols + c)] = c % 2 != 0 ? -3.0f : 3.0f;
        x[(size_t)(2 * cols + c)] = 0.0f;
        x[(size_t)(3 * cols + c)] = 1e-44f * (float)(c % 5); /* subnormal: scales are coarse, or 0 */
        x[(size_t)(4 * cols + c)] = c == 77 ? 3e30f : 1e-3f;
    }
    const sums s = solve(w, 0, x.data(), 8);
    const device_rows on_device(x);
    const floats y = multiply(&w, on_device, 8);
    doubles size = s.size;
    for (double &bytes : size) {
        bytes += 0x1p-120; /* below that, results are rounded to subnormal numbers */
    }
    char what[100];
    snprintf(what, sizeof what, "%s, hostile", w.info->name);
    compare(what, y.data(), s.value, size, 8, 1);

    for (const float bad : {NAN, INFINITY, -INFINITY}) { /* in one token */
        floats damaged = x;
        damaged[(size_t)(5 * cols + 300)] = bad;
        const floats z = multiply(&w, device_rows(damaged), 8);
        for (size_t i = 0; i < z.size(); i++) {
            const bool plain = type == QUANT_F32 || type == QUANT_F16 || type == QUANT_BF16;
            if (i / (size_t)rows != 5) {
                CHECK(memcmp(&z[i], &y[i], sizeof(float)) == 0, "%s: NaN in another token", w.info->name);
            } else {
                CHECK(plain ? !isfinite(z[i]) : isnan(z[i]), "%s: %g from %g", w.info->name, (double)z[i], (double)bad);
            }
        }
    }
    const size_t damaged_row = 5 * w.row_bytes + w.row_bytes / block / 2 * block; /* a weight that is no number */
    if (type == QUANT_MXFP4) {
        return; /* has none */
    } else if (l->d >= 0) {
        put_half(&w.file[damaged_row] + l->d, NAN);
    } else {
        memset(&w.file[damaged_row], 0xff, block);
    }
    w.split();
    const floats z = multiply(&w, on_device, 8);
    for (size_t i = 0; i < z.size(); i++) {
        CHECK(i % (size_t)rows == 5 ? isnan(z[i]) : memcmp(&z[i], &y[i], sizeof(float)) == 0, "%s: NaN in row 5, row %d is %g",
              w.info->name, (int)(i % (size_t)rows), (double)z[i]);
    }
}

/* ---- norms --------------------------------------------------------------------------------------------------------- */

static void test_norm(quant_type type, cuda_norm_kind kind, int64_t cols, int64_t tokens, bool scaled, uint64_t *random) {
    const int64_t rows = 7;
    matrix w(type, rows, cols, random);
    floats x = random_floats((size_t)(tokens * cols), random, 3.0);
    for (int64_t c = 0; c < cols; c++) {
        x[(size_t)c] += kind == CUDA_NORM_LAYER ? 500.0f : 0.0f; /* a mean far above what varies */
    }
    x[(size_t)(cols / 2)] *= kind == CUDA_NORM_RMS ? 40.0f : 1.0f;
    for (int64_t c = 0; type == QUANT_F32 && c < cols; c++) { /* an error of the mean adds up in row 0 */
        const float one = 1.0f;
        memcpy(&w.file[(size_t)c * sizeof one], &one, sizeof one);
    }
    w.split();
    const floats scale = random_floats((size_t)cols, random), bias = random_floats((size_t)cols, random);
    const device_rows on_device(x), scale_there(scale), bias_there(bias);
    cuda_linear l = linear(CUDA_STORE, {&w}, on_device, tokens);
    l.norm.kind = kind;
    l.norm.eps = 1e-5f;
    l.norm.scale = scaled ? (const float *)scale_there : nullptr;
    l.norm.bias = scaled && kind == CUDA_NORM_LAYER ? (const float *)bias_there : nullptr;
    const floats y = run(l, (size_t)(tokens * rows));
    floats normed(x.size());
    const floats ones((size_t)cols, 1.0f);
    for (int64_t t = 0; t < tokens; t++) {
        if (kind == CUDA_NORM_LAYER) {
            cpu->layer_norm(&x[(size_t)(t * cols)], scaled ? scale.data() : nullptr, scaled ? bias.data() : nullptr, cols,
                            1e-5f, &normed[(size_t)(t * cols)]);
        } else {
            cpu->rms_norm(&x[(size_t)(t * cols)], scaled ? scale.data() : ones.data(), cols, 1e-5f,
                          &normed[(size_t)(t * cols)]);
        }
    }
    const sums s = solve(w, 0, normed.data(), tokens);
    char what[100];
    snprintf(what, sizeof what, "%s after norm %d, %d columns", w.info->name, (int)kind, (int)cols);
    /* A norm that differs by a unit of the last place moves an input across the edge between two int8 once in 10^5 times. */
    compare(what, y.data(), s.value, s.size, kind == CUDA_NORM_RMS ? 10 : 16, cols);
    l.n_tokens = 1;
    CHECK(same_bits(run(l, (size_t)rows), floats(y.begin(), y.begin() + rows)), "%s: one token", what);
}

int main() {
    uint64_t random = 7;
    lmi_error error;
    CHECK(kernels_get(LMI_ISA_REF, &cpu, &error) == LMI_OK);
    CHECK(device_stream_open(0, &stream, &error) == LMI_OK);
    for (const layout &l : layouts) {
        const bool plain = quant_find(l.type)->block_values == 1;
        for (const int64_t cols : {4096 + 256, 512, 256}) {
            if (!SMALL || cols == 512) {
                test_shapes(l.type, cols, &random);
            }
        }
        if (plain) {
            test_shapes(l.type, 6, &random);
            test_shapes(l.type, 333, &random);
        } else if (quant_find(l.type)->block_values == 32) {
            test_shapes(l.type, 32, &random);
            test_shapes(l.type, 864, &random);
        }
        test_hostile(l.type, &random);
    }
    test_wide(QUANT_Q4_K, 4096 * 3 + 768, 5, &random);
    if (!SMALL) {
        test_wide(QUANT_Q8_0, 4096 * 9 + 32, 3, &random);
        test_wide(QUANT_Q4_0, 4096 + 32, 3, &random);
        test_wide(QUANT_Q6_K, 4096 * 9 + 256, 3, &random);
        test_wide(QUANT_F32, 11264 + 1024 + 7, 3, &random);
        test_wide(QUANT_F16, 11264 + 1024 + 8, 3, &random);
        test_tall(QUANT_Q8_0, 20001, 32, 1, &random);
        test_tall(QUANT_F16, 3000, 16, 3, &random);
        test_tall(QUANT_Q4_0, 4500, 4608, 2, &random);
        test_tall(QUANT_F32, 2222, 12000, 1, &random);
    }
    for (const quant_type type : {QUANT_F32, QUANT_F16, QUANT_Q8_0, QUANT_Q4_K}) {
        for (const int64_t tokens : {1, 3, 8}) {
            test_norm(type, CUDA_NORM_RMS, 1280, tokens, true, &random);
            test_norm(type, CUDA_NORM_LAYER, 1280, tokens, true, &random);
        }
        test_norm(type, CUDA_NORM_RMS, 4352, 2, false, &random);
        test_norm(type, CUDA_NORM_LAYER, 256, 5, false, &random);
    }
    test_norm(QUANT_F32, CUDA_NORM_RMS, 333, 2, true, &random);
    test_norm(QUANT_F32, CUDA_NORM_LAYER, 6, 4, true, &random);
    device_stream_close(stream);
    return check_report();
}
