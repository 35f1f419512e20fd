/* The tiled product (gemm.cu) on the emulator.
 *
 * Twice against float64: with the kernel's own f16 values of both sides, where only the order of float32 sums may differ, and with exact
 * ones, where rounding to f16 may cost what it must. */
#include "gemm_reference.h"

static const char *name_of(quant_type type) { return quant_find(type)->name; }

static double activation_of(activation kind, double x) {
    switch (kind) {
    case ACTIVATION_GELU_TANH:
        return x / 2 * (1 + tanh(sqrt(2 / M_PI) * (x + 0.044715 * x * x * x)));
    case ACTIVATION_GELU_ERF:
        return x / 2 * (1 + erf(x / sqrt(2.0)));
    case ACTIVATION_SWIGLU_OAI:
        return fmin(x, 7) / (1 + exp(-1.702 * fmin(x, 7)));
    default:
        return x / (1 + exp(-x));
    }
}

static double up_factor(activation kind, double up) { return kind == ACTIVATION_SWIGLU_OAI ? 1 + fmin(fmax(up, -7), 7) : up; }

/* A launch with everything it needs; y begins as `before`. */
struct launch {
    cuda_linear args = {};
    std::vector<const matrices *> w;
    std::vector<float> before[CUDA_MAX_OUTPUTS], y[CUDA_MAX_OUTPUTS];
    std::vector<double> x16; /* what the kernel made of x */

    void run(const std::vector<float> &x, const std::vector<float> &s, const std::vector<int32_t> &expert = {},
             const std::vector<float> &share = {}) {
        const int64_t cols = w[0]->cols, n = args.n_tokens;
        const bool experts = !expert.empty();
        buffer<float> device_x(x), device_s(s), device_share(share);
        buffer<int32_t> device_expert(expert);
        const int64_t widest = experts && args.kind == CUDA_ADD && w[0]->rows > cols ? w[0]->rows : cols;
        buffer<uint8_t> work(cuda_tiled_bytes(n, widest, experts ? w[0]->n : 0, args.n_used));
        std::vector<buffer<float> *> outputs;
        args.x = device_x.at;
        args.s = s.empty() ? nullptr : device_s.at;
        args.expert = experts ? device_expert.at : nullptr;
        args.share = share.empty() ? nullptr : device_share.at;
        args.work = work.at;
        args.n_weights = (int32_t)w.size();
        for (size_t i = 0; i < w.size(); i++) {
            args.w[i] = w[i]->weight();
            if (i == 0 || args.kind == CUDA_STORE) {
                const int64_t rows_of_y = experts && args.kind == CUDA_GATED ? n * args.n_used : n;
                before[i] = normals((size_t)(rows_of_y * w[i]->rows), 0.5);
                outputs.push_back(new buffer<float>(before[i]));
                args.y[i] = outputs.back()->at;
            }
        }
        for (int again = 0; again < 2; again++) { /* the emulator changes the order of blocks: results must be the same bits */
            for (size_t i = 0; i < outputs.size(); i++) {
                memcpy(outputs[i]->at, before[i].data(), before[i].size() * sizeof(float));
            }
            cuda_launch_tiled(&args, stream);
            finish();
            for (size_t i = 0; i < outputs.size(); i++) {
                if (again == 0) {
                    y[i].assign(outputs[i]->at, outputs[i]->at + outputs[i]->n);
                } else {
                    CHECK(memcmp(y[i].data(), outputs[i]->at, y[i].size() * sizeof(float)) == 0, "not the same twice");
                }
            }
            again += outputs[0]->n > 20000; /* once is enough where it takes long */
        }
        x16 = rounded_rows(work.at, experts && args.kind == CUDA_ADD ? n * args.n_used : n, cols);
        for (buffer<float> *output : outputs) {
            delete output;
        }
    }
};

static void within_error(double y, double expected, double error, const char *what, quant_type type, int64_t t, int64_t r) {
    CHECK(fabs(y - expected) <= error, "%s, %s, token %d, row %d: %.9g, not %.9g (+- %.2g)", what, name_of(type), (int)t,
          (int)r, y, expected, error);
}

/* Of a sum: accumulation, then one rounding. */
static double sum_error(const product &p) { return 1e-6 * p.size + 6e-8 * fabs(p.value) + 1e-37; }

/* ---- sums ----------------------------------------------------------------------------------------------------------- */

struct budget {
    double error = 0, signal = 0;
};

/* y [n][rows] of one matrix without experts against both references. */
static void check_sums(const launch &l, int i, const std::vector<double> &exact_x, const char *what, budget *spent) {
    const matrices &m = *l.w[(size_t)i];
    for (int64_t r = 0; r < m.rows; r++) {
        const std::vector<double> row = rounded_row(m, r);
        for (int64_t t = 0; t < l.args.n_tokens; t++) {
            const product p = dot(row.data(), &l.x16[(size_t)(t * m.cols)], m.cols);
            const product exact = dot(&m.exact[(size_t)(r * m.cols)], &exact_x[(size_t)(t * m.cols)], m.cols);
            const double bias = (double)m.bias[(size_t)r], y = (double)l.y[i][(size_t)(t * m.rows + r)];
            within_error(y, p.value + bias, sum_error(p) + 6e-8 * fabs(y), what, m.info->type, t, r);
            within_error(y, exact.value + bias, exact.size * 0x1.04p-10 + 6e-8 * fabs(y), "exact", m.info->type, t, r);
            spent->error += (y - bias - exact.value) * (y - bias - exact.value);
            spent->signal += exact.value * exact.value;
        }
    }
}

/* Races do not depend on the type, and ThreadSanitizer takes its time. */
#ifdef __SANITIZE_THREAD__
enum { TYPES_APART = 6 };
#else
enum { TYPES_APART = 1 };
#endif

/* The emulated device has four multiprocessors: 400 rows and 100 tokens make enough large tiles for it, 32 tokens take small ones. */
static void test_types() {
    static const struct {
        int64_t rows, blocks;
        int32_t tokens;
    } shapes[] = {{64, 4, 32}, {5, 1, 9}, {77, 3, 33}, {65, 5, 65}, {400, 2, 100}};
    for (size_t n = 0; n < sizeof all_types / sizeof *all_types; n += TYPES_APART) {
        const quant_type type = all_types[n];
        budget spent;
        int i = 0;
        for (const auto &shape : shapes) {
            const quant_info *info = quant_find(type);
            const int64_t cols = info->block_values == 1 ? shape.blocks * 64 + (i % 3 == 0              ? 0
                                                                                : shape.blocks % 2 == 0 ? 24
                                                                                                        : -5)
                                                         : shape.blocks * info->block_values;
            const matrices m(type, shape.rows, cols, 1, i % 2 != 0);
            launch l;
            l.w = {&m};
            l.args.kind = CUDA_STORE;
            l.args.n_tokens = shape.tokens;
            const std::vector<float> x = normals((size_t)(shape.tokens * cols), 1.0);
            l.run(x, {});
            check_sums(l, 0, normed_rows(x.data(), shape.tokens, cols, l.args.norm), "sum", &spent);
            i++;
        }
        CHECK(spent.error <= 1.5e-7 * spent.signal, "%s: noise to signal %.3g", name_of(type), spent.error / spent.signal);
    }
}

/* q, k, v of two types, normed. */
static void test_norms() {
    const int64_t cols = 512, n = 40;
    const matrices q(QUANT_Q4_K, 96, cols, 1, true), k(QUANT_Q4_K, 33, cols, 1, true), v(QUANT_Q6_K, 32, cols);
    const std::vector<float> scale = normals((size_t)cols, 1.0), bias = normals((size_t)cols, 0.2);
    buffer<float> device_scale(scale), device_bias(bias);
    for (int kind = 0; kind < 4; kind++) {
        std::vector<float> x = normals((size_t)(n * cols), 3.0);
        for (int64_t c = 0; c < cols; c++) {
            x[(size_t)c] *= 1e30f;             /* squares beyond the range of floats */
            x[(size_t)(cols + c)] *= 1e-6f;    /* eps decides */
            x[(size_t)(2 * cols + c)] += 1000; /* a mean that is large beside what differs from it */
        }
        launch l;
        l.w = {&q, &k, &v};
        l.args.kind = CUDA_STORE;
        l.args.n_tokens = (int32_t)n;
        l.args.norm.kind = kind < 2 ? CUDA_NORM_RMS : CUDA_NORM_LAYER;
        l.args.norm.eps = 1e-5f;
        l.args.norm.scale = kind == 1 ? nullptr : device_scale.at;
        l.args.norm.bias = kind == 2 ? device_bias.at : nullptr;
        l.run(x, {});
        std::vector<double> exact = normed_rows(x.data(), n, cols, l.args.norm);
        for (int64_t c = 0; kind >= 2 && c < cols; c++) { /* cancels in float32: only as good as the kernel's own */
            exact[(size_t)(2 * cols + c)] = l.x16[(size_t)(2 * cols + c)];
        }
        for (int64_t t = 0; t < n; t++) {
            double largest = 0;
            for (int64_t c = 0; c < cols; c++) {
                largest = fmax(largest, fabs(exact[(size_t)(t * cols + c)]));
            }
            for (int64_t c = 0; c < cols; c++) {
                const double a = l.x16[(size_t)(t * cols + c)], b = exact[(size_t)(t * cols + c)];
                CHECK(fabs(a - b) <= fabs(b) * 0x1.02p-11 + largest * 2e-6, "norm %d, token %d: %.9g, not %.9g", kind, (int)t,
                      a, b);
            }
        }
        budget spent;
        for (int i = 0; i < 3; i++) {
            check_sums(l, i, l.x16, "normed", &spent);
        }
    }
}

/* ---- what is done with sums ----------------------------------------------------------------------------------------- */

static void test_store_and_add() {
    const int64_t cols = 256, rows = 70, n = 35;
    const matrices m(QUANT_Q5_K, rows, cols, 1, true, 0.02);
    const std::vector<float> x = normals((size_t)(n * cols), 1.0);
    std::vector<float> s = normals((size_t)n, 3.0);
    s[3] = -INFINITY;
    s[4] = INFINITY;
    for (int mode = 0; mode < 5; mode++) {
        launch l;
        l.w = {&m};
        l.args.kind = mode < 3 ? CUDA_STORE : CUDA_ADD;
        l.args.n_tokens = (int32_t)n;
        l.args.clamp = mode == 0 || mode == 2 ? 8.0f : 0.0f;
        l.args.softcap = mode == 1 || mode == 2 ? 5.0f : 0.0f;
        l.run(x, mode == 4 ? s : std::vector<float>());
        for (int64_t r = 0; r < rows; r++) {
            const std::vector<double> row = rounded_row(m, r);
            for (int64_t t = 0; t < n; t++) {
                const product p = dot(row.data(), &l.x16[(size_t)(t * cols)], cols);
                const size_t at = (size_t)(t * rows + r);
                double v = p.value + (double)m.bias[(size_t)r];
                v = l.args.clamp > 0 ? fmin(fmax(v, -8), 8) : v;
                v = l.args.softcap > 0 ? 5 * tanh(v / 5) : v;
                v = mode == 4 ? v / (1 + exp(-(double)s[(size_t)t])) : v;
                v += mode >= 3 ? (double)l.before[0][at] : 0;
                within_error((double)l.y[0][at], v, sum_error(p) + 5e-7 * fabs(v) + 1e-6, "epilogue", m.info->type, t, r);
            }
        }
    }
}

static void check_gated(const launch &l, const matrices &gate, const matrices *up, int64_t row_of_y, int64_t row_of_x,
                        int64_t matrix, const char *what) {
    const double *x = &l.x16[(size_t)(row_of_x * gate.cols)];
    for (int64_t r = 0; r < gate.rows; r++) {
        const size_t row = (size_t)(matrix * gate.rows + r);
        const product g = dot(rounded_row(gate, (int64_t)row).data(), x, gate.cols);
        const double gate_value = g.value + (double)gate.bias[row], f = activation_of(l.args.activation, gate_value);
        double expected = f, error = 1.2 * sum_error(g) + 5e-7 * fabs(gate_value);
        if (up != nullptr) {
            const product u = dot(rounded_row(*up, (int64_t)row).data(), x, gate.cols);
            const double factor = up_factor(l.args.activation, u.value + (double)up->bias[row]);
            expected = f * factor;
            error =
                error * (fabs(factor) + sum_error(u)) + fabs(f) * (sum_error(u) + 1e-7 * fabs(factor)) + 1e-7 * fabs(expected);
        }
        within_error((double)l.y[0][(size_t)(row_of_y * gate.rows + r)], expected, error, what, gate.info->type, row_of_y, r);
    }
}

static void test_gated() {
    const int64_t cols = 256;
    for (int kind = 0; kind < ACTIVATIONS; kind++) {
        const int64_t rows = kind == 0 ? 200 : 37, n = kind == 0 ? 101 : kind == 1 ? 9 : 34; /* large, small and middle tiles */
        const std::vector<float> x = normals((size_t)(n * cols), 1.0);
        const matrices gate(QUANT_Q4_K, rows, cols, 1, true, 0.02), up(QUANT_Q4_K, rows, cols, 1, true, 0.02);
        const matrices other(QUANT_Q6_K, rows, cols, 1, true, 0.02);
        for (int form = 0; form < 3; form++) {
            launch l;
            l.w = form == 0   ? std::vector<const matrices *>{&gate, &up}
                  : form == 1 ? std::vector<const matrices *>{&gate, &other}
                              : std::vector<const matrices *>{&gate};
            l.args.kind = CUDA_GATED;
            l.args.activation = (activation)kind;
            l.args.n_tokens = (int32_t)n;
            l.run(x, {});
            for (int64_t t = 0; t < n; t += 3) {
                check_gated(l, gate, form == 0 ? &up : form == 1 ? &other : nullptr, t, t, 0, "gated");
            }
        }
    }
}

/* ---- experts -------------------------------------------------------------------------------------------------------- */

static void test_experts() {
    static const struct {
        int64_t n_experts, n, rows, n_used;
    } shapes[] = {{5, 20, 40, 2}, {3, 150, 40, 2}, {300, 9, 8, 3}};
    for (const auto &shape : shapes) {
        const int64_t n = shape.n, n_used = shape.n_used, cols = 256, rows = shape.rows, n_pairs = n * n_used;
        std::vector<int32_t> expert((size_t)n_pairs);
        std::vector<float> share((size_t)n_pairs);
        for (int64_t t = 0; t < n; t++) {
            for (int64_t j = 0; j < n_used; j++) { /* expert 1 has none where there are five */
                const int64_t first = shape.n_experts == 5 ? 0 : t % (shape.n_experts - 2);
                expert[(size_t)(t * n_used + j)] = (int32_t)(j == 0 ? first : shape.n_experts - j);
                share[(size_t)(t * n_used + j)] = (float)check_uniform(&seed);
            }
        }
        const matrices gate(QUANT_MXFP4, rows, cols, shape.n_experts, true), up(QUANT_MXFP4, rows, cols, shape.n_experts, true);
        launch gated;
        gated.w = {&gate, &up};
        gated.args.kind = CUDA_GATED;
        gated.args.activation = ACTIVATION_SWIGLU_OAI;
        gated.args.n_tokens = (int32_t)n;
        gated.args.n_used = (int32_t)n_used;
        gated.args.norm.kind = CUDA_NORM_RMS;
        gated.args.norm.eps = 1e-6f;
        gated.run(normals((size_t)(n * cols), 1.0), {}, expert);
        for (int64_t p = 0; p < n_pairs; p++) {
            check_gated(gated, gate, &up, p, p / n_used, expert[(size_t)p], "experts gated");
        }

        const matrices down(QUANT_Q4_0, rows, 96, shape.n_experts, true);
        launch add;
        add.w = {&down};
        add.args.kind = CUDA_ADD;
        add.args.n_tokens = (int32_t)n;
        add.args.n_used = (int32_t)n_used;
        add.run(normals((size_t)(n_pairs * 96), 1.0), {}, expert, share);
        for (int64_t t = 0; t < n; t++) {
            for (int64_t r = 0; r < rows; r++) {
                double sum = (double)add.before[0][(size_t)(t * rows + r)], error = 2e-7 * fabs(sum);
                for (int64_t p = t * n_used; p < (t + 1) * n_used; p++) {
                    const int64_t row = expert[(size_t)p] * rows + r;
                    const product one = dot(rounded_row(down, row).data(), &add.x16[(size_t)(p * 96)], 96);
                    const double value = one.value + (double)down.bias[(size_t)row];
                    sum += (double)share[(size_t)p] * value;
                    error += sum_error(one) + 3e-7 * fabs(value);
                }
                within_error((double)add.y[0][(size_t)(t * rows + r)], sum, error, "experts add", down.info->type, t, r);
            }
        }
    }
}

/* ---- extremes ------------------------------------------------------------------------------------------------------- */

/* Rows of x of any size; NaN and infinity show, in their own token only. */
static void test_extreme_activations() {
    const int64_t cols = 256, rows = 40, n = 40;
    const matrices m(QUANT_Q4_K, rows, cols);
    for (int kind = 0; kind < 3; kind++) {
        std::vector<float> x = normals((size_t)(n * cols), 1.0);
        const float sizes[] = {1e35f, 1e-37f, 0.0f, 1e-44f, 1e20f, 1e-20f};
        for (int64_t c = 0; c < 6 * cols; c++) {
            x[(size_t)c] *= sizes[c / cols];
        }
        x[6 * (size_t)cols + 77] = NAN;
        x[7 * (size_t)cols + 200] = -INFINITY;
        x[8 * (size_t)cols + 3] = 1e30f; /* one outlier */
        launch l;
        l.w = {&m};
        l.args.kind = CUDA_STORE;
        l.args.n_tokens = (int32_t)n;
        l.args.norm.kind = (cuda_norm_kind)kind;
        l.args.norm.eps = 1e-6f;
        l.run(x, {});
        const std::vector<double> exact = normed_rows(x.data(), n, cols, l.args.norm);
        for (int64_t t = 0; t < n; t++) {
            for (int64_t r = 0; r < rows; r++) {
                const double y = (double)l.y[0][(size_t)(t * rows + r)];
                if (t == 6 || t == 7) {
                    CHECK(isnan(y), "kind %d, token %d: %g", kind, (int)t, y);
                    continue;
                }
                const product p = dot(&m.exact[(size_t)(r * cols)], &exact[(size_t)(t * cols)], cols);
                within_error(y, p.value, p.size * 0x1.1p-10 + 2e-44, "extreme x", m.info->type, t, r);
            }
        }
    }
}

/* Rows of W of any size, growing on the way, and with scales that are no numbers. */
static void test_extreme_weights() {
    const int64_t rows = 40, n = 33;
    for (const quant_type type : {QUANT_F32, QUANT_BF16}) {
        const int64_t cols = 200;
        matrices m(type, rows, cols, 1, false, 1.0);
        for (int64_t r = 0; r < rows; r++) {
            for (int64_t c = 0; c < cols; c++) {
                const double sizes[] = {1.0,
                                        1e30,
                                        1e-30,
                                        0.0,
                                        c < 64 ? 0.0 : 1e-5,
                                        c < 150 ? 1e-20 : 1e20,
                                        c < 100 ? 1e-38 : 1e30,
                                        1e-40,
                                        c % 2 == 0 ? 1e-3 : 1e3};
                const float value = (float)((double)m.exact[(size_t)(r * cols + c)] * sizes[r % 9]);
                const uint32_t bits = f32_to_bits(value);
                const size_t bytes = m.info->block_bytes;
                memcpy(&m.file[(size_t)(r * cols + c) * bytes], (const uint8_t *)&bits + (4 - bytes), bytes);
            }
        }
        m.upload();
        launch l;
        l.w = {&m};
        l.args.kind = CUDA_STORE;
        l.args.n_tokens = (int32_t)n;
        const std::vector<float> x = normals((size_t)(n * cols), 1.0);
        l.run(x, {});
        const std::vector<double> exact = normed_rows(x.data(), n, cols, l.args.norm);
        for (int64_t r = 0; r < rows; r++) {
            double largest = 0;
            for (int64_t c = 0; c < cols; c++) {
                largest = fmax(largest, fabs((double)m.exact[(size_t)(r * cols + c)]));
            }
            for (int64_t t = 0; t < n; t++) {
                const product p = dot(&m.exact[(size_t)(r * cols)], &exact[(size_t)(t * cols)], cols);
                within_error((double)l.y[0][(size_t)(t * rows + r)], p.value,
                             p.size * 0x1.04p-10 + largest * (double)cols * 4 * 0x1p-24, "extreme w", type, t, r);
            }
        }
    }
    for (const quant_type type : all_types) { /* whatever a file holds: rows of their own, and no crash */
        if (type == QUANT_F32 || type == QUANT_BF16) {
            continue;
        }
        matrices m(type, rows, 256);
        const size_t row_bytes = m.file.size() / (size_t)rows;
        for (int64_t r = 0; r < rows; r += 2) {
            for (size_t i = 0; i < row_bytes; i++) {
                m.file[(size_t)r * row_bytes + i] = r % 4 == 0 ? 0xff : (uint8_t)check_random(&seed);
            }
        }
        m.upload();
        launch l;
        l.w = {&m};
        l.args.kind = CUDA_STORE;
        l.args.n_tokens = (int32_t)n;
        const std::vector<float> x = normals((size_t)(n * 256), 1.0);
        l.run(x, {});
        for (int64_t r = 0; r < rows; r++) {
            bool finite = true;
            for (int64_t c = 0; c < 256; c++) {
                finite &= isfinite(m.exact[(size_t)(r * 256 + c)]) != 0;
            }
            for (int64_t t = 0; t < n; t++) {
                const product p = dot(&m.exact[(size_t)(r * 256)], &x[(size_t)(t * 256)], 256);
                const double y = (double)l.y[0][(size_t)(t * rows + r)];
                if (finite) { /* scales of 10^4 beside those of 10^-4 in a row: as good as the largest allows */
                    double largest = 0;
                    for (int64_t c = 0; c < 256; c++) {
                        largest = fmax(largest, fabs((double)m.exact[(size_t)(r * 256 + c)]));
                    }
                    within_error(y, p.value, p.size * 0x1.1p-10 + largest * 256 * 4 * 0x1p-22, "any bytes", type, t, r);
                } else {
                    CHECK(!isfinite(y), "%s: %g of a row that is not finite", name_of(type), y);
                }
            }
        }
    }
}

int main(void) {
    lmi_error error;
    CHECK(device_stream_open(0, &stream, &error) == LMI_OK);
    test_types();
    test_norms();
    test_store_and_add();
    test_gated();
    test_experts();
    test_extreme_activations();
    test_extreme_weights();
    device_stream_close(stream);
    return check_report();
}
