/* Weights from planes (weights.cuh), whatever bytes a file holds, against the decoders of quant/. */
#include "gemm_reference.h"

template <int TYPE> static void check_type() {
    const quant_info *info = quant_find(TYPE);
    for (int odd = 0; odd < 2; odd++) { /* rows of floats may end anywhere */
        matrices m((quant_type)TYPE, 3, info->block_values == 1 ? 200 + odd : info->block_values * (3 - odd), 2);
        for (uint8_t &byte : m.file) {
            byte = (uint8_t)check_random(&seed);
        }
        m.upload();
        for (int64_t r = 0; r < m.n * m.rows; r++) {
            std::vector<int> seen((size_t)m.cols);
            const cuda_weight skipped = skip_rows<TYPE>(m.weight(), r);
            for (int64_t unit = 0; unit * UNIT < m.cols; unit++) {
                const weight_unit<TYPE> raw = load_unit<TYPE>(m.weight(), r, unit), same = load_unit<TYPE>(skipped, 0, unit);
                float v[UNIT], again[UNIT];
                uint32_t h[UNIT / 2], scaled[UNIT / 2];
                decode_unit<TYPE>(raw, v);
                decode_unit<TYPE>(same, again);
                halves_of_unit<TYPE>(raw, 1.0f, h);
                halves_of_unit<TYPE>(raw, 0x1p-7f, scaled);
                CHECK(memcmp(v, again, sizeof v) == 0, "%s: rows skipped", info->name);
                const float bound = bound_of_unit<TYPE>(raw);
                for (int i = 0; i < UNIT; i++) {
                    const int64_t c = unit_column(TYPE, unit, i);
                    if (c >= m.cols) {
                        CHECK(v[i] == 0.0f && h[i / 2] >> 16 == 0, "%s: beyond the row", info->name);
                        continue;
                    }
                    seen[(size_t)c]++;
                    const float exact = m.exact[(size_t)(r * m.cols + c)];
                    CHECK(f32_to_bits(v[i]) == f32_to_bits(exact) || (v[i] != v[i] && exact != exact),
                          "%s, row %d, column %d: %a, not %a", info->name, (int)r, (int)c, (double)v[i], (double)exact);
                    if (!isfinite(bound)) {
                        continue;
                    }
                    CHECK(fabsf(exact) <= bound, "%s: %g beyond %g", info->name, (double)exact, (double)bound);
                    /* half a unit of f16, of subnormal ones as well, and what float32 rounded before */
                    const double half = f16_to_f32((uint16_t)(h[i / 2] >> (16 * (i % 2))));
                    const double small = 128.0 * f16_to_f32((uint16_t)(scaled[i / 2] >> (16 * (i % 2)))),
                                 before = (double)bound * 0x1p-18;
                    const double error = fabs((double)exact) * 0x1p-11 + before;
                    CHECK(bound > 65000 || fabs(half - (double)exact) <= error + 0x1p-25, "%s: %g, not %g", info->name, half,
                          (double)exact);
                    CHECK(bound > 128 * 65000 || fabs(small - (double)exact) <= error + 0x1p-18, "%s: %g, not %g", info->name,
                          small, (double)exact);
                }
            }
            for (const int times : seen) {
                CHECK(times == 1, "%s: a column in %d units", info->name, times);
            }
        }
    }
    for (int p = 0; p < plane_layout_of((quant_type)TYPE)->n; p++) {
        CHECK(plane_bytes(TYPE, p) == plane_layout_of((quant_type)TYPE)->plane[p].bytes, "%s, plane %d", info->name, p);
    }
    CHECK(block_values(TYPE) == (int)info->block_values, "%s", info->name);
}

int main(void) {
    lmi_error error;
    CHECK(device_stream_open(0, &stream, &error) == LMI_OK);
#define CHECK_TYPE(TYPE) check_type<TYPE>();
    EACH_TYPE(CHECK_TYPE)
    device_stream_close(stream);
    return check_report();
}
