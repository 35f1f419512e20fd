/* Plain floats and blocks of 32 values.
 *
 * The order of the float32 operations is that of the `gguf` package, so that results agree to the last bit. */
#include "base/half.h"
#include "quant/blocks.h"
#include "quant/dequant.h"

const int8_t quant_iq4_values[16] = {-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113};
const int8_t quant_mxfp4_values[16] = {0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12};

void dequant_f32(const void *blocks, float *values, int64_t n) { memcpy(values, blocks, (size_t)n * sizeof *values); }

void dequant_f16(const void *blocks, float *values, int64_t n) {
    for (int64_t i = 0; i < n; i++) {
        uint16_t half;
        BLOCK_AT(half, blocks, i);
        values[i] = f16_to_f32(half);
    }
}

void dequant_bf16(const void *blocks, float *values, int64_t n) {
    for (int64_t i = 0; i < n; i++) {
        uint16_t half;
        BLOCK_AT(half, blocks, i);
        values[i] = bf16_to_f32(half);
    }
}

/* Byte j of a block holds value j in its low half and value j + 16 in its high half. */

void dequant_q4_0(const void *blocks, float *values, int64_t n) {
    for (int64_t i = 0; i < n / QK; i++, values += QK) {
        block_q4_0 b;
        BLOCK_AT(b, blocks, i);
        float d = f16_to_f32(b.d);
        for (int j = 0; j < 16; j++) {
            values[j] = d * (float)((b.qs[j] & 15) - 8);
            values[j + 16] = d * (float)((b.qs[j] >> 4) - 8);
        }
    }
}

void dequant_q4_1(const void *blocks, float *values, int64_t n) {
    for (int64_t i = 0; i < n / QK; i++, values += QK) {
        block_q4_1 b;
        BLOCK_AT(b, blocks, i);
        float d = f16_to_f32(b.d), m = f16_to_f32(b.m);
        for (int j = 0; j < 16; j++) {
            values[j] = d * (float)(b.qs[j] & 15) + m;
            values[j + 16] = d * (float)(b.qs[j] >> 4) + m;
        }
    }
}

/* The fifth bits: bit j of a 32-bit word belongs to value j. */
static uint32_t high_bits(const uint8_t qh[4]) {
    uint32_t word;
    memcpy(&word, qh, sizeof word);
    return word;
}

void dequant_q5_0(const void *blocks, float *values, int64_t n) {
    for (int64_t i = 0; i < n / QK; i++, values += QK) {
        block_q5_0 b;
        BLOCK_AT(b, blocks, i);
        float d = f16_to_f32(b.d);
        uint32_t high = high_bits(b.qh);
        for (int j = 0; j < 16; j++) {
            int q0 = (b.qs[j] & 15) | (int)(high >> j & 1) << 4;
            int q1 = (b.qs[j] >> 4) | (int)(high >> (j + 16) & 1) << 4;
            values[j] = d * (float)(q0 - 16);
            values[j + 16] = d * (float)(q1 - 16);
        }
    }
}

void dequant_q5_1(const void *blocks, float *values, int64_t n) {
    for (int64_t i = 0; i < n / QK; i++, values += QK) {
        block_q5_1 b;
        BLOCK_AT(b, blocks, i);
        float d = f16_to_f32(b.d), m = f16_to_f32(b.m);
        uint32_t high = high_bits(b.qh);
        for (int j = 0; j < 16; j++) {
            int q0 = (b.qs[j] & 15) | (int)(high >> j & 1) << 4;
            int q1 = (b.qs[j] >> 4) | (int)(high >> (j + 16) & 1) << 4;
            values[j] = d * (float)q0 + m;
            values[j + 16] = d * (float)q1 + m;
        }
    }
}

void dequant_q8_0(const void *blocks, float *values, int64_t n) {
    for (int64_t i = 0; i < n / QK; i++, values += QK) {
        block_q8_0 b;
        BLOCK_AT(b, blocks, i);
        float d = f16_to_f32(b.d);
        for (int j = 0; j < 32; j++) {
            values[j] = d * (float)b.qs[j];
        }
    }
}

void dequant_iq4_nl(const void *blocks, float *values, int64_t n) {
    for (int64_t i = 0; i < n / QK; i++, values += QK) {
        block_iq4_nl b;
        BLOCK_AT(b, blocks, i);
        float d = f16_to_f32(b.d);
        for (int j = 0; j < 16; j++) {
            values[j] = d * (float)quant_iq4_values[b.qs[j] & 15];
            values[j + 16] = d * (float)quant_iq4_values[b.qs[j] >> 4];
        }
    }
}

/* 2^(e - 128): half of the block's scale, since the table holds twice the values. The two smallest are subnormal. */
static float mxfp4_half_scale(uint8_t e) { return f32_from_bits(e < 2 ? UINT32_C(0x00200000) << e : (uint32_t)(e - 1) << 23); }

void dequant_mxfp4(const void *blocks, float *values, int64_t n) {
    for (int64_t i = 0; i < n / QK; i++, values += QK) {
        block_mxfp4 b;
        BLOCK_AT(b, blocks, i);
        float d = mxfp4_half_scale(b.e);
        for (int j = 0; j < 16; j++) {
            values[j] = d * (float)quant_mxfp4_values[b.qs[j] & 15];
            values[j + 16] = d * (float)quant_mxfp4_values[b.qs[j] >> 4];
        }
    }
}
