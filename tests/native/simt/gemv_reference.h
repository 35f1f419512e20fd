/* What the tests of gemv.cu share: weights of all types, in the file's form and in planes, and the oracle.
 *
 * The oracle multiplies decoded weights with the same int8 activations in float64: those that the CPU's own pack makes. A
 * kernel may then differ by the rounding of float32 sums only, which a dropped column or a wrong scale exceeds a
 * thousandfold. */
#ifndef LMI_TESTS_GEMV_REFERENCE_H
#define LMI_TESTS_GEMV_REFERENCE_H

#include <memory>

#include "../block_layouts.h"
#include "base/half.h"
#include "kernels/kernels.h"
#include "quant/quant.h"
#include "simt/on_device.h"

/* ThreadSanitizer makes a thread of every thread: a part of the shapes must do. */
#if defined(__SANITIZE_THREAD__)
#define SMALL 1
#elif defined(__has_feature)
#if __has_feature(thread_sanitizer)
#define SMALL 1
#endif
#endif
#ifndef SMALL
#define SMALL 0
#endif

static const kernels *cpu;

typedef std::vector<float> floats;
typedef std::vector<double> doubles;

static floats random_floats(size_t n, uint64_t *random, double scale = 1.0) {
    floats v(n);
    for (float &x : v) {
        x = (float)(scale * check_normal(random));
    }
    return v;
}

/* ---- weights ------------------------------------------------------------------------------------------------------- */

static const layout *layout_of(quant_type type) {
    return std::find_if(std::begin(layouts), std::end(layouts), [type](const layout &l) { return l.type == type; });
}

static void put_half(uint8_t *at, float value) {
    const uint16_t half = f32_to_f16(value);
    memcpy(at, &half, sizeof half);
}

static void random_block(const layout *l, const quant_info *info, uint8_t *block, uint64_t *random) {
    for (uint32_t i = 0; i < info->block_bytes; i++) {
        block[i] = (uint8_t)(check_random(random) >> 40);
    }
    const float value = (float)check_normal(random);
    const uint16_t bf16 = (uint16_t)(f32_to_bits(value) >> 16);
    switch (l->type) {
    case QUANT_F32:
        memcpy(block, &value, sizeof value);
        break;
    case QUANT_F16:
        put_half(block, value);
        break;
    case QUANT_BF16:
        memcpy(block, &bf16, sizeof bf16);
        break;
    case QUANT_MXFP4:
        block[0] = (uint8_t)(118 + check_random(random) % 8);
        break;
    default:
        put_half(block + l->d, 0.001f + 0.05f * (float)check_uniform(random));
        if (l->m >= 0) {
            const float most = l->type == QUANT_Q4_1 || l->type == QUANT_Q5_1 ? -0.4f : 0.02f;
            put_half(block + l->m, most * (float)check_uniform(random));
        }
    }
}

struct matrix {
    const quant_info *info;
    const layout *l;
    int64_t rows, cols, n_matrices;
    size_t row_bytes;
    std::vector<uint8_t> file; /* as in the file, all matrices */
    buffer<uint8_t> planes;
    buffer<float> bias;
    bool has_bias;

    static size_t size_of(const quant_info *info, int64_t n_values) {
        const plane_layout *planes = plane_layout_of(info->type);
        return (size_t)plane_offset(planes, (uint64_t)n_values / info->block_values, planes->n);
    }

    matrix(quant_type type, int64_t n_rows, int64_t n_cols, uint64_t *random, bool with_bias = false, int64_t n = 1)
        : info(quant_find(type)), l(layout_of(type)), rows(n_rows), cols(n_cols), n_matrices(n),
          row_bytes((size_t)n_cols / info->block_values * info->block_bytes), file(row_bytes * (size_t)(n_rows * n)),
          planes(size_of(info, n_rows * n_cols * n)), bias((size_t)(n_rows * n)), has_bias(with_bias) {
        for (size_t at = 0; at < file.size(); at += info->block_bytes) {
            random_block(l, info, &file[at], random);
        }
        for (size_t i = 0; i < bias.n; i++) {
            bias[i] = (float)check_normal(random);
        }
        split();
    }
    void split() { fill_planes(info, file, planes.at); }
    cuda_weight weight() {
        cuda_weight w = {};
        w.type = info->type;
        w.rows = rows;
        w.cols = cols;
        w.n_matrices = n_matrices;
        point_at_planes(info, file.size() / info->block_bytes, planes.at, &w);
        w.bias = has_bias ? bias.at : nullptr;
        return w;
    }
    /* One row decoded, and its minima: what its blocks decode to when all quantised values are 0. */
    void decode(int64_t row, floats *w, floats *minima) const {
        std::vector<uint8_t> copy(file.begin() + (int64_t)row_bytes * row, file.begin() + (int64_t)row_bytes * (row + 1));
        w->resize((size_t)cols);
        info->to_f32(copy.data(), w->data(), cols);
        minima->assign((size_t)cols, 0.0f);
        if (l->m >= 0) {
            for (size_t at = 0; at < row_bytes; at += info->block_bytes) {
                memset(&copy[at] + l->q0, 0, (size_t)(l->q1 - l->q0));
                memset(&copy[at] + l->h0, 0, (size_t)(l->h1 - l->h0));
            }
            info->to_f32(copy.data(), minima->data(), cols);
        }
    }
};

/* ---- the oracle ---------------------------------------------------------------------------------------------------- */

struct packed_rows {
    act_kind act;
    int64_t cols;
    size_t stride;
    char *rows; /* 64-byte aligned */
    packed_rows(quant_type type, const float *x, int64_t n_cols, int64_t n)
        : act(cpu->act[type]), cols(n_cols), stride(act_row_bytes(act, n_cols)),
          rows((char *)aligned_alloc(64, (stride * (size_t)n + 63) / 64 * 64)) {
        for (int64_t t = 0; t < n; t++) {
            cpu->pack[act](x + t * cols, cols, rows + (size_t)t * stride);
        }
    }
    packed_rows(const packed_rows &) = delete;
    packed_rows &operator=(const packed_rows &) = delete;
    ~packed_rows() { free(rows); }
    double at(int64_t t, int64_t c) const {
        const char *row = rows + (size_t)t * stride;
        switch (act) {
        case ACT_Q8_32:
            return (double)act_q8(row)[c] * (double)act_scales(row, cols)[c / 32];
        case ACT_Q8_256:
            return (double)act_q8(row)[c] * (double)act_scales(row, cols)[c / 256];
        default:
            return (double)((const float *)(const void *)row)[c];
        }
    }
};

struct sums {
    doubles value, size; /* [tokens][rows]: W x without bias; the sum of sizes of the terms */
};

/* Rows of matrix `m` of w times all rows of x. */
static sums solve(const matrix &w, int64_t m, const float *x, int64_t tokens) {
    const packed_rows packed(w.info->type, x, w.cols, tokens);
    doubles values((size_t)(tokens * w.cols));
    for (int64_t t = 0; t < tokens; t++) {
        for (int64_t c = 0; c < w.cols; c++) {
            values[(size_t)(t * w.cols + c)] = packed.at(t, c);
        }
    }
    sums s = {doubles((size_t)(tokens * w.rows)), doubles((size_t)(tokens * w.rows))};
    floats row, minima;
    for (int64_t r = 0; r < w.rows; r++) {
        w.decode(m * w.rows + r, &row, &minima);
        for (int64_t t = 0; t < tokens; t++) {
            double sum = 0, size = 0;
            for (int64_t c = 0; c < w.cols; c++) {
                const double v = values[(size_t)(t * w.cols + c)];
                const double minimum = (double)minima[(size_t)c], weight = (double)row[(size_t)c];
                sum += weight * v;
                size += fabs((weight - minimum) * v) + fabs(minimum * v);
            }
            s.value[(size_t)(t * w.rows + r)] = sum;
            s.size[(size_t)(t * w.rows + r)] = size;
        }
    }
    return s;
}

/* got [n] against want, each within `ulps` 2^-24 of size (+ extra), and all together by their squares. */
static inline void compare(const char *what, const float *got, const doubles &want, const doubles &size, double ulps,
                           int64_t cols) {
    double worst = 0, error = 0, energy = 0;
    for (size_t i = 0; i < want.size(); i++) {
        const double difference = (double)got[i] - want[i], excess = fabs(difference) / (size[i] * 0x1p-24 + 1e-36);
        worst = excess > worst || excess != excess ? excess : worst;
        error += difference * difference;
        energy += size[i] * size[i] / (double)cols; /* what the result of random signs would have */
    }
    CHECK(worst <= ulps, "%s: %.3g x 2^-24 of the terms", what, worst);
    CHECK(error <= 1e-12 * energy, "%s: NMSE %.3g", what, error / energy);
}

/* ---- calls --------------------------------------------------------------------------------------------------------- */

static cuda_linear linear(cuda_linear_kind kind, std::initializer_list<matrix *> weights, const float *x, int64_t tokens) {
    cuda_linear l = {};
    l.kind = kind;
    l.n_tokens = (int32_t)tokens;
    for (matrix *w : weights) {
        l.w[l.n_weights++] = w->weight();
    }
    l.x = x;
    return l;
}

static floats run(cuda_linear l, size_t n, const floats *before = nullptr) {
    buffer<float> y(n);
    for (size_t i = 0; i < n; i++) {
        y[i] = before != nullptr ? (*before)[i] : -12345.75f;
    }
    l.y[0] = y.at;
    cuda_launch_rowwise(&l, stream);
    finish();
    return floats(y.at, y.at + n);
}

static inline floats multiply(matrix *w, const float *x, int64_t tokens) {
    return run(linear(CUDA_STORE, {w}, x, tokens), (size_t)(tokens * w->rows));
}

static inline bool same_bits(const floats &a, const floats &b) {
    return a.size() == b.size() && memcmp(a.data(), b.data(), a.size() * sizeof(float)) == 0;
}

struct device_rows {
    buffer<float> at;
    explicit device_rows(const floats &x) : at(x.size()) { memcpy(at.at, x.data(), x.size() * sizeof(float)); }
    operator const float *() const { return at.at; }
};

#endif
