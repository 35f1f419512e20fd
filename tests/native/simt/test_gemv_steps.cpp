/* Row-wise products (gemv.cu) on the emulator as the steps of a model want them: outputs, gates, experts. */
#include "gemv_reference.h"

/* ---- what is done to sums ------------------------------------------------------------------------------------------ */

static double activated(activation kind, double x) {
    switch (kind) {
    case ACTIVATION_GELU_TANH:
        return x / 2 * (1 + tanh(sqrt(2 / M_PI) * (x + 0.044715 * x * x * x)));
    case ACTIVATION_GELU_ERF:
        return x / 2 * erfc(-x / sqrt(2));
    case ACTIVATION_SWIGLU_OAI:
        x = x < 7 ? x : 7;
        return x / (1 + exp(-1.702 * x));
    default:
        return x / (1 + exp(-x));
    }
}

static double gated(activation kind, double gate, double up) {
    return activated(kind, gate) * (kind == ACTIVATION_SWIGLU_OAI ? 1 + fmin(fmax(up, -7), 7) : up);
}

static double bias_of(matrix &w, int64_t m, int64_t r) { return w.has_bias ? (double)w.bias[(size_t)(m * w.rows + r)] : 0.0; }

/* Slopes of activations are at most about 1.2, of partners 1. */
static double gated_size(const double gate, const double gate_size, const double up, const double up_size, activation kind) {
    return 1.2 * gate_size * (fabs(up) + 1) + (up_size + fabs(up) + 1) * (fabs(activated(kind, gate)) + 1e-30);
}

static void test_outputs(quant_type q, quant_type k, quant_type v, int64_t tokens, uint64_t *random) {
    const int64_t cols = 512;
    matrix wq(q, 48, cols, random, true), wk(k, 17, cols, random), wv(v, 1, cols, random, true);
    const floats x = random_floats((size_t)(tokens * cols), random);
    const device_rows on_device(x);
    cuda_linear l = linear(CUDA_STORE, {&wq, &wk, &wv}, on_device, tokens);
    matrix *const w[] = {&wq, &wk, &wv};
    const float caps[][2] = {{0, 0}, {3, 0}, {0, 5}, {4, 2.5f}};
    for (const float *cap : caps) {
        buffer<float> y0((size_t)(tokens * 48)), y1((size_t)(tokens * 17)), y2((size_t)tokens);
        l.y[0] = y0.at;
        l.y[1] = y1.at;
        l.y[2] = y2.at;
        l.clamp = cap[0];
        l.softcap = cap[1];
        cuda_launch_rowwise(&l, stream);
        finish();
        for (int i = 0; i < 3; i++) {
            sums s = solve(*w[i], 0, x.data(), tokens);
            for (int64_t j = 0; j < tokens * w[i]->rows; j++) {
                double &value = s.value[(size_t)j];
                value += bias_of(*w[i], 0, j % w[i]->rows);
                s.size[(size_t)j] += fabs(value);
                value = cap[0] > 0 ? fmin(fmax(value, -(double)cap[0]), (double)cap[0]) : value;
                value = cap[1] > 0 ? (double)cap[1] * tanh(value / (double)cap[1]) : value;
            }
            compare("outputs", l.y[i], s.value, s.size, 8, 1);
        }
    }
}

static void test_add(quant_type type, int64_t tokens, bool with_s, uint64_t *random) {
    const int64_t cols = 768, rows = 21;
    matrix w(type, rows, cols, random, true);
    const floats x = random_floats((size_t)(tokens * cols), random), before = random_floats((size_t)(tokens * rows), random, 5);
    floats s_values = random_floats((size_t)tokens, random, 2);
    s_values[0] = -100.0f;
    const device_rows on_device(x), s_there(s_values);
    cuda_linear l = linear(CUDA_ADD, {&w}, on_device, tokens);
    l.s = with_s ? (const float *)s_there : nullptr;
    const floats y = run(l, before.size(), &before);
    sums s = solve(w, 0, x.data(), tokens);
    for (int64_t i = 0; i < tokens * rows; i++) {
        const double gate = with_s ? 1 / (1 + exp(-(double)s_values[(size_t)(i / rows)])) : 1;
        double &value = s.value[(size_t)i], &size = s.size[(size_t)i];
        value = (value + bias_of(w, 0, i % rows)) * gate + (double)before[(size_t)i];
        size = (size + 5) * gate + fabs((double)before[(size_t)i]);
    }
    compare("added", y.data(), s.value, s.size, 8, 1);
}

static void test_gated(quant_type gate, quant_type up, bool alone, activation kind, int64_t tokens, uint64_t *random) {
    const int64_t cols = 256, rows = 35;
    matrix wg(gate, rows, cols, random, true), wu(up, rows, cols, random, true);
    const floats x = random_floats((size_t)(tokens * cols), random, 0.5);
    const device_rows on_device(x);
    cuda_linear l = alone ? linear(CUDA_GATED, {&wg}, on_device, tokens) : linear(CUDA_GATED, {&wg, &wu}, on_device, tokens);
    l.activation = kind;
    const floats y = run(l, (size_t)(tokens * rows));
    sums g = solve(wg, 0, x.data(), tokens);
    const sums u = solve(wu, 0, x.data(), tokens);
    for (int64_t i = 0; i < tokens * rows; i++) {
        const double a = g.value[(size_t)i] + bias_of(wg, 0, i % rows), b = u.value[(size_t)i] + bias_of(wu, 0, i % rows);
        const double as = g.size[(size_t)i] + fabs(a), bs = u.size[(size_t)i] + fabs(b);
        g.value[(size_t)i] = alone ? activated(kind, a) : gated(kind, a, b);
        g.size[(size_t)i] = alone ? 1.2 * as + fabs(a) : gated_size(a, as, b, bs, kind);
    }
    char what[100];
    snprintf(what, sizeof what, "gated %s %s %d, %d tokens", wg.info->name, alone ? "alone" : wu.info->name, (int)kind,
             (int)tokens);
    compare(what, y.data(), g.value, g.size, 8, 1);
}

/* What epilogues make of values that sums seldom have: a matrix of one column per value, F32, so that sums are exact. */
static void test_activation_range(activation kind, uint64_t *random) {
    const int64_t n = 400;
    matrix w(QUANT_F32, n, 4, random);
    floats values((size_t)n);
    for (int64_t i = 0; i < n; i++) {
        const float special[] = {0.0f,  -0.0f,  INFINITY, -INFINITY, NAN,  1e-30f, -1e-30f,
                                 3e38f, -3e38f, -90.0f,   90.0f,     7.0f, -16.5f};
        values[(size_t)i] = i < 13 ? special[i] : (float)((double)(i - 200) / 8.0 * check_uniform(random));
        const float row[4] = {values[(size_t)i], 0, 0, 0};
        memcpy(&w.file[(size_t)i * w.row_bytes], row, sizeof row);
    }
    w.split();
    const device_rows x(floats{1, 0, 0, 0});
    cuda_linear l = linear(CUDA_GATED, {&w}, x, 1);
    l.activation = kind;
    const floats y = run(l, (size_t)n);
    for (int64_t i = 0; i < n; i++) {
        const float v = values[(size_t)i];
        if (isnan(v)) {
            CHECK(isnan(y[(size_t)i]), "%d: %g", (int)kind, (double)y[(size_t)i]);
        } else {
            const double want = v == -INFINITY                                   ? 0.0
                                : v == INFINITY && kind != ACTIVATION_SWIGLU_OAI ? INFINITY
                                                                                 : activated(kind, (double)v);
            CHECK((double)y[(size_t)i] == want || fabs((double)y[(size_t)i] - want) <= 4e-7 * fabs((double)v), "%d: f(%g) = %g",
                  (int)kind, (double)v, (double)y[(size_t)i]);
        }
    }
}

/* ---- experts ------------------------------------------------------------------------------------------------------- */

struct routes {
    std::vector<int32_t> chosen;
    floats share;
    buffer<int32_t> expert;
    buffer<float> weight;
    routes(int64_t tokens, int64_t n_used, int64_t n_experts, uint64_t *random)
        : chosen((size_t)(tokens * n_used)), share((size_t)(tokens * n_used)), expert(chosen.size()), weight(chosen.size()) {
        for (int64_t t = 0; t < tokens; t++) {
            const int64_t first = (int64_t)(check_random(random) % (uint64_t)n_experts);
            for (int64_t j = 0; j < n_used; j++) { /* different ones */
                chosen[(size_t)(t * n_used + j)] = (int32_t)((first + 5 * j) % n_experts);
                share[(size_t)(t * n_used + j)] = (float)check_uniform(random);
            }
        }
        memcpy(expert.at, chosen.data(), chosen.size() * sizeof chosen[0]);
        memcpy(weight.at, share.data(), share.size() * sizeof share[0]);
    }
};

static void test_experts_gated(quant_type gate, quant_type up, bool alone, int64_t tokens, int64_t n_used, uint64_t *random) {
    const int64_t cols = 256, rows = 19, n_experts = 67;
    matrix wg(gate, rows, cols, random, true, n_experts), wu(up, rows, cols, random, true, n_experts);
    const floats x = random_floats((size_t)(tokens * cols), random, 0.5);
    const device_rows on_device(x);
    routes r(tokens, n_used, n_experts, random);
    cuda_linear l = alone ? linear(CUDA_GATED, {&wg}, on_device, tokens) : linear(CUDA_GATED, {&wg, &wu}, on_device, tokens);
    l.expert = r.expert.at;
    l.share = r.weight.at;
    l.n_used = (int32_t)n_used;
    const floats y = run(l, (size_t)(tokens * n_used * rows));
    doubles want, size;
    for (int64_t t = 0; t < tokens; t++) {
        for (int64_t j = 0; j < n_used; j++) {
            const int64_t e = r.chosen[(size_t)(t * n_used + j)];
            const sums g = solve(wg, e, &x[(size_t)(t * cols)], 1), u = solve(wu, e, &x[(size_t)(t * cols)], 1);
            for (int64_t i = 0; i < rows; i++) {
                const double a = g.value[(size_t)i] + bias_of(wg, e, i), b = u.value[(size_t)i] + bias_of(wu, e, i);
                const double as = g.size[(size_t)i] + fabs(a), bs = u.size[(size_t)i] + fabs(b);
                want.push_back(alone ? activated(ACTIVATION_SILU, a) : gated(ACTIVATION_SILU, a, b));
                size.push_back(alone ? 1.2 * as + fabs(a) : gated_size(a, as, b, bs, ACTIVATION_SILU));
            }
        }
    }
    compare("experts, gated", y.data(), want, size, 8, 1);
}

static void test_experts_add(quant_type type, int64_t cols, int64_t tokens, int64_t n_used, uint64_t *random) {
    const int64_t rows = 11, n_experts = 67;
    matrix w(type, rows, cols, random, true, n_experts);
    const floats x = random_floats((size_t)(tokens * n_used * cols), random),
                 before = random_floats((size_t)(tokens * rows), random);
    const device_rows on_device(x);
    routes r(tokens, n_used, n_experts, random);
    cuda_linear l = linear(CUDA_ADD, {&w}, on_device, tokens);
    l.expert = r.expert.at;
    l.share = r.weight.at;
    l.n_used = (int32_t)n_used;
    const floats y = run(l, before.size(), &before);
    doubles want(before.begin(), before.end()), size(before.size(), 1.0);
    for (int64_t t = 0; t < tokens; t++) {
        for (int64_t j = 0; j < n_used; j++) {
            const int64_t slot = t * n_used + j, e = r.chosen[(size_t)slot];
            const double share = (double)r.share[(size_t)slot];
            const sums s = solve(w, e, &x[(size_t)(slot * cols)], 1);
            for (int64_t i = 0; i < rows; i++) {
                want[(size_t)(t * rows + i)] += share * (s.value[(size_t)i] + bias_of(w, e, i));
                size[(size_t)(t * rows + i)] += share * (s.size[(size_t)i] + fabs(bias_of(w, e, i)));
            }
        }
    }
    char what[100];
    snprintf(what, sizeof what, "experts, added: %s, %d columns, %d used", w.info->name, (int)cols, (int)n_used);
    compare(what, y.data(), want, size, 8, cols);
    l.n_tokens = 1;
    const floats first(before.begin(), before.begin() + rows);
    CHECK(same_bits(run(l, (size_t)rows, &first), floats(y.begin(), y.begin() + rows)), "%s: one token", what);
}

int main() {
    uint64_t random = 7;
    lmi_error error;
    CHECK(kernels_get(LMI_ISA_REF, &cpu, &error) == LMI_OK);
    CHECK(device_stream_open(0, &stream, &error) == LMI_OK);
    for (const int64_t tokens : {1, 2, 8}) {
        test_outputs(QUANT_Q4_K, QUANT_Q6_K, QUANT_Q8_0, tokens, &random);
        test_outputs(QUANT_Q5_K, QUANT_Q5_K, QUANT_Q6_K, tokens, &random);
        test_outputs(QUANT_F16, QUANT_F16, QUANT_F16, tokens, &random);
        test_outputs(QUANT_Q5_0, QUANT_IQ4_XS, QUANT_Q5_0, tokens, &random);
        for (const bool with_s : {false, true}) {
            test_add(QUANT_Q4_K, tokens, with_s, &random);
            test_add(QUANT_BF16, tokens, with_s, &random);
        }
        for (int kind = 0; kind < ACTIVATIONS; kind++) {
            test_gated(QUANT_Q4_K, QUANT_Q4_K, false, (activation)kind, tokens, &random);
            test_gated(QUANT_Q4_K, QUANT_Q8_0, false, (activation)kind, tokens, &random);
            test_gated(QUANT_F16, QUANT_F16, true, (activation)kind, tokens, &random);
        }
    }
    for (int kind = 0; kind < ACTIVATIONS; kind++) {
        test_activation_range((activation)kind, &random);
    }
    for (const int64_t tokens : {1, 3, 8}) {
        test_experts_gated(QUANT_Q4_K, QUANT_Q4_K, false, tokens, 4, &random);
        test_experts_gated(QUANT_MXFP4, QUANT_Q8_0, false, tokens, 2, &random);
        test_experts_gated(QUANT_Q8_0, QUANT_Q8_0, true, tokens, 1, &random);
        test_experts_add(QUANT_Q6_K, 256, tokens, 4, &random);
        test_experts_add(QUANT_MXFP4, 96, tokens, 8, &random);
    }
    test_experts_gated(QUANT_Q4_0, QUANT_Q4_0, false, 1, SMALL ? 9 : 64, &random);
    test_experts_add(QUANT_Q4_K, SMALL ? 256 : 1024, 2, 64, &random);
    test_experts_add(QUANT_F32, 12000, 2, 3, &random);
    device_stream_close(stream);
    return check_report();
}
