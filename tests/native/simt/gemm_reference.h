/* For tests of tiled products: random matrices of every type, on the device and as numbers, and products in float64. */
#ifndef LMI_TESTS_GEMM_REFERENCE_H
#define LMI_TESTS_GEMM_REFERENCE_H

#include "cuda/gemm.cuh"
#include "quant/blocks.h"
#include "simt/on_device.h"

static uint64_t seed = 7;

static inline std::vector<float> normals(size_t n, double scale) {
    std::vector<float> x(n);
    for (float &value : x) {
        value = (float)(scale * check_normal(&seed));
    }
    return x;
}

static inline uint16_t random_half(double scale) { return f32_to_f16((float)(scale * (0.3 + check_uniform(&seed)))); }

/* Random quants and scales of ordinary size. */
static inline void fill_block(quant_type type, uint8_t *block, uint32_t bytes, double scale) {
    for (uint32_t i = 0; i < bytes; i++) {
        block[i] = (uint8_t)check_random(&seed);
    }
    const uint16_t d = random_half(scale), d2 = random_half(scale);
    const auto put = [&](size_t offset, uint16_t half) { memcpy(block + offset, &half, sizeof half); };
    const float value = (float)(scale * check_normal(&seed));
    const uint16_t half = f32_to_f16(value), bfloat = (uint16_t)(f32_to_bits(value) >> 16);
    switch (type) {
    case QUANT_F32:
        memcpy(block, &value, sizeof value);
        break;
    case QUANT_F16:
        put(0, half);
        break;
    case QUANT_BF16:
        put(0, bfloat);
        break;
    case QUANT_Q4_1:
    case QUANT_Q5_1:
    case QUANT_Q4_K:
    case QUANT_Q5_K:
        put(2, d2);
        put(0, d);
        break;
    case QUANT_Q2_K:
        put(offsetof(block_q2_K, d), d);
        put(offsetof(block_q2_K, dmin), d2);
        break;
    case QUANT_Q3_K:
        put(offsetof(block_q3_K, d), d);
        break;
    case QUANT_Q6_K:
        put(offsetof(block_q6_K, d), d);
        break;
    case QUANT_MXFP4:
        block[0] = (uint8_t)(118 + check_random(&seed) % 6);
        break;
    default:
        put(0, d);
        break;
    }
}

/* [n_matrices][rows][cols] */
struct matrices {
    const quant_info *info;
    int64_t rows, cols, n;
    std::vector<uint8_t> file;
    std::vector<float> exact, bias; /* exact: [n * rows][cols] */
    buffer<uint8_t> planes;
    buffer<float> device_bias;
    bool has_bias;

    static uint64_t n_blocks_of(quant_type type, int64_t values) { return (uint64_t)values / quant_find(type)->block_values; }
    static uint64_t plane_bytes_of(quant_type type, uint64_t n_blocks) {
        const plane_layout *layout = plane_layout_of(type);
        return plane_offset(layout, n_blocks, layout->n);
    }

    matrices(quant_type type, int64_t n_rows, int64_t n_cols, int64_t n_matrices = 1, bool with_bias = false,
             double scale = 0.01)
        : info(quant_find(type)), rows(n_rows), cols(n_cols), n(n_matrices),
          file(n_blocks_of(type, n_matrices * n_rows * n_cols) * info->block_bytes),
          exact((size_t)(n_matrices * n_rows * n_cols)), bias(normals((size_t)(n_matrices * n_rows), 0.1)),
          planes(plane_bytes_of(type, n_blocks_of(type, n_matrices * n_rows * n_cols))), device_bias(bias),
          has_bias(with_bias) {
        for (size_t i = 0; i < file.size(); i += info->block_bytes) {
            fill_block(type, &file[i], info->block_bytes, scale);
        }
        if (!has_bias) {
            std::fill(bias.begin(), bias.end(), 0.0f);
        }
        upload();
    }

    /* After `file` has been changed. */
    void upload() {
        fill_planes(info, file, planes.at);
        info->to_f32(file.data(), exact.data(), (int64_t)exact.size());
    }

    cuda_weight weight() const {
        cuda_weight w = {};
        w.type = info->type;
        w.rows = rows;
        w.cols = cols;
        w.n_matrices = n;
        point_at_planes(info, file.size() / info->block_bytes, planes.at, &w);
        w.bias = has_bias ? device_bias.at : nullptr;
        return w;
    }
};

/* Row `row` of all matrices as the tiled kernel rounds it: f16 times 2^e, where e may change on the way (gemm.cuh). */
template <int TYPE> static std::vector<double> rounded_row_of(const matrices &m, int64_t row) {
    const cuda_weight w = m.weight();
    std::vector<double> values((size_t)m.cols);
    row_scale scale = {0, 0};
    for (int64_t unit = 0; unit * UNIT < m.cols; unit++) {
        if (unit % 2 == 0 && TYPE != QUANT_F16) {
            uint32_t bound = 0;
            for (int64_t u = unit; u < unit + 2 && u * UNIT < m.cols; u++) {
                const uint32_t own = f32_to_bits(bound_of_unit<TYPE>(load_unit<TYPE>(w, row, u)));
                bound = own > bound ? own : bound;
            }
            make_room(&scale, bound);
        }
        uint32_t h[UNIT / 2];
        halves_of_unit<TYPE>(load_unit<TYPE>(w, row, unit), power_of_two(-scale.exponent), h);
        for (int i = 0; i < UNIT; i++) {
            const int64_t c = unit_column(TYPE, unit, i);
            if (c < m.cols) {
                values[(size_t)c] = ldexp((double)f16_to_f32((uint16_t)(h[i / 2] >> (16 * (i % 2)))), scale.exponent);
            }
        }
    }
    return values;
}

#define EACH_TYPE(DO)                                                                                                          \
    DO(QUANT_F32)                                                                                                              \
    DO(QUANT_F16)                                                                                                              \
    DO(QUANT_BF16)                                                                                                             \
    DO(QUANT_Q4_0)                                                                                                             \
    DO(QUANT_Q4_1)                                                                                                             \
    DO(QUANT_Q5_0)                                                                                                             \
    DO(QUANT_Q5_1)                                                                                                             \
    DO(QUANT_Q8_0)                                                                                                             \
    DO(QUANT_Q2_K)                                                                                                             \
    DO(QUANT_Q3_K)                                                                                                             \
    DO(QUANT_Q4_K)                                                                                                             \
    DO(QUANT_Q5_K)                                                                                                             \
    DO(QUANT_Q6_K)                                                                                                             \
    DO(QUANT_IQ4_NL)                                                                                                           \
    DO(QUANT_IQ4_XS)                                                                                                           \
    DO(QUANT_MXFP4)

static const quant_type all_types[] = {
#define NAME_TYPE(TYPE) TYPE,
    EACH_TYPE(NAME_TYPE)
#undef NAME_TYPE
};

static inline std::vector<double> rounded_row(const matrices &m, int64_t row) {
    switch (m.info->type) {
#define ROW_CASE(TYPE)                                                                                                         \
    case TYPE:                                                                                                                 \
        return rounded_row_of<TYPE>(m, row);
        EACH_TYPE(ROW_CASE)
#undef ROW_CASE
    default:
        return {};
    }
}

/* A product and the sum of the sizes of its terms, which is what its error is measured by. */
struct product {
    double value, size;
};

template <typename W, typename X> static product dot(const W *w, const X *x, int64_t n) {
    product p = {0, 0};
    for (int64_t c = 0; c < n; c++) {
        p.value += (double)w[c] * (double)x[c];
        p.size += fabs((double)w[c] * (double)x[c]);
    }
    return p;
}

/* [n][cols], normed in float64. */
static inline std::vector<double> normed_rows(const float *x, int64_t n, int64_t cols, const cuda_norm &norm) {
    std::vector<double> rows((size_t)(n * cols));
    for (int64_t t = 0; t < n; t++) {
        double mean = 0, square = 0;
        for (int64_t c = 0; norm.kind == CUDA_NORM_LAYER && c < cols; c++) {
            mean += (double)x[t * cols + c] / (double)cols;
        }
        for (int64_t c = 0; c < cols; c++) {
            square += ((double)x[t * cols + c] - mean) * ((double)x[t * cols + c] - mean) / (double)cols;
        }
        const double factor = norm.kind == CUDA_NORM_NONE ? 1.0 : 1.0 / sqrt(square + (double)norm.eps);
        for (int64_t c = 0; c < cols; c++) {
            double &y = rows[(size_t)(t * cols + c)];
            y = ((double)x[t * cols + c] - mean) * factor;
            if (norm.kind != CUDA_NORM_NONE) {
                y = y * (norm.scale != nullptr ? (double)norm.scale[c] : 1.0) +
                    (norm.bias != nullptr ? (double)norm.bias[c] : 0.0);
            }
        }
    }
    return rows;
}

/* What the last launch made of x: f16 rows and their exponents lie first in its work space. */
static inline std::vector<double> rounded_rows(const void *work, int64_t n, int64_t cols) {
    const int64_t stride = (cols + 63) / 64 * 64;
    const uint16_t *halves = (const uint16_t *)work;
    const int32_t *exponent = (const int32_t *)((const uint8_t *)work + (n * stride * 2 + 255) / 256 * 256);
    std::vector<double> rows((size_t)(n * cols));
    for (int64_t t = 0; t < n; t++) {
        for (int64_t c = 0; c < stride; c++) {
            const float half = f16_to_f32(halves[t * stride + c]);
            if (c < cols) {
                rows[(size_t)(t * cols + c)] = ldexp((double)half, exponent[t]);
            } else {
                CHECK(half == 0.0f || half != half, "padding of row %d", (int)t);
            }
        }
    }
    return rows;
}

#endif
