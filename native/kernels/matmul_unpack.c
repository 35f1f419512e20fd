#include "kernels/matmul_unpack.h"

#include <string.h>

#include "base/half.h"
#include "quant/blocks.h"

/* 2^(e - 128); the two smallest are subnormal. */
static float mxfp4_scale(uint8_t e) { return f32_from_bits(e < 2 ? 0x00200000u << e : (uint32_t)(e - 1) << 23); }

/* Blocks of 32: byte j holds value j in its low half and value j + 16 in its high half. */

static void split_nibbles(const uint8_t qs[16], int offset, int8_t q[32]) {
    for (int j = 0; j < 16; j++) {
        q[j] = (int8_t)((qs[j] & 15) - offset);
        q[j + 16] = (int8_t)((qs[j] >> 4) - offset);
    }
}

static void look_up_nibbles(const uint8_t qs[16], const int8_t values[16], int8_t q[32]) {
    for (int j = 0; j < 16; j++) {
        q[j] = values[qs[j] & 15];
        q[j + 16] = values[qs[j] >> 4];
    }
}

/* Adds 16 to the values whose bit is set in the 32-bit word qh. */
static void add_fifth_bits(const uint8_t qh[4], int8_t q[32]) {
    for (int j = 0; j < 32; j++) {
        q[j] = (int8_t)(q[j] + (qh[j / 8] >> (j % 8) & 1) * 16);
    }
}

void unpack_q4_0(const void *block, block_32 *out) {
    block_q4_0 b;
    memcpy(&b, block, sizeof b);
    split_nibbles(b.qs, 8, out->q);
    out->d = f16_to_f32(b.d);
    out->m = 0;
}

void unpack_q4_1(const void *block, block_32 *out) {
    block_q4_1 b;
    memcpy(&b, block, sizeof b);
    split_nibbles(b.qs, 0, out->q);
    out->d = f16_to_f32(b.d);
    out->m = f16_to_f32(b.m);
}

void unpack_q5_0(const void *block, block_32 *out) {
    block_q5_0 b;
    memcpy(&b, block, sizeof b);
    split_nibbles(b.qs, 16, out->q);
    add_fifth_bits(b.qh, out->q);
    out->d = f16_to_f32(b.d);
    out->m = 0;
}

void unpack_q5_1(const void *block, block_32 *out) {
    block_q5_1 b;
    memcpy(&b, block, sizeof b);
    split_nibbles(b.qs, 0, out->q);
    add_fifth_bits(b.qh, out->q);
    out->d = f16_to_f32(b.d);
    out->m = f16_to_f32(b.m);
}

void unpack_q8_0(const void *block, block_32 *out) {
    block_q8_0 b;
    memcpy(&b, block, sizeof b);
    memcpy(out->q, b.qs, sizeof out->q);
    out->d = f16_to_f32(b.d);
    out->m = 0;
}

void unpack_iq4_nl(const void *block, block_32 *out) {
    block_iq4_nl b;
    memcpy(&b, block, sizeof b);
    look_up_nibbles(b.qs, quant_iq4_values, out->q);
    out->d = f16_to_f32(b.d);
    out->m = 0;
}

void unpack_mxfp4(const void *block, block_32 *out) {
    block_mxfp4 b;
    memcpy(&b, block, sizeof b);
    look_up_nibbles(b.qs, quant_mxfp4_values, out->q);
    out->d = mxfp4_scale(b.e);
    out->m = 0;
}

/* Super-blocks of 256. */

/* Q2_K, Q3_K and Q6_K share one walk: half h, pair of bits s, lane l make value 128 h + 32 s + l. */

void unpack_q2_K(const void *block, block_256 *out) {
    block_q2_K b;
    memcpy(&b, block, sizeof b);
    for (int h = 0; h < 2; h++) {
        for (int s = 0; s < 4; s++) {
            for (int l = 0; l < 32; l++) {
                out->q[128 * h + 32 * s + l] = (int8_t)(b.qs[32 * h + l] >> (2 * s) & 3);
            }
        }
    }
    for (int g = 0; g < 16; g++) {
        out->scale[g] = b.scales[g] & 15;
        out->minimum[g] = b.scales[g] >> 4;
    }
    out->d = f16_to_f32(b.d);
    out->dmin = f16_to_f32(b.dmin);
}

static void no_minima(block_256 *out) {
    memset(out->minimum, 0, sizeof out->minimum);
    out->dmin = 0;
}

void unpack_q3_K(const void *block, block_256 *out) {
    block_q3_K b;
    memcpy(&b, block, sizeof b);
    for (int h = 0; h < 2; h++) {
        for (int s = 0; s < 4; s++) {
            for (int l = 0; l < 32; l++) {
                int low = b.qs[32 * h + l] >> (2 * s) & 3;
                int high = b.hmask[l] >> (4 * h + s) & 1;
                out->q[128 * h + 32 * s + l] = (int8_t)(low + 4 * high - 4);
            }
        }
    }
    for (int g = 0; g < 16; g++) { /* four low bits in bytes 0..7, two high bits in bytes 8..11 */
        int low = b.scales[g % 8] >> (g / 8 * 4) & 15;
        int high = b.scales[8 + g % 4] >> (g / 4 * 2) & 3;
        out->scale[g] = (int16_t)((low | high << 4) - 32);
    }
    out->d = f16_to_f32(b.d);
    no_minima(out);
}

/* Eight 6-bit scales and eight 6-bit minima in twelve bytes, one of each for two groups of 16. */
static void unpack_scales_of_32(const uint8_t s[12], block_256 *out) {
    for (int g = 0; g < 8; g++) {
        int scale, minimum;
        if (g < 4) {
            scale = s[g] & 63;
            minimum = s[g + 4] & 63;
        } else {
            scale = (s[g + 4] & 15) | (s[g - 4] >> 6) << 4;
            minimum = (s[g + 4] >> 4) | (s[g] >> 6) << 4;
        }
        out->scale[2 * g] = out->scale[2 * g + 1] = (int16_t)scale;
        out->minimum[2 * g] = out->minimum[2 * g + 1] = (int16_t)minimum;
    }
}

void unpack_q4_K(const void *block, block_256 *out) {
    block_q4_K b;
    memcpy(&b, block, sizeof b);
    for (int p = 0; p < 4; p++) {
        for (int l = 0; l < 32; l++) {
            out->q[64 * p + l] = (int8_t)(b.qs[32 * p + l] & 15);
            out->q[64 * p + 32 + l] = (int8_t)(b.qs[32 * p + l] >> 4);
        }
    }
    unpack_scales_of_32(b.scales, out);
    out->d = f16_to_f32(b.d);
    out->dmin = f16_to_f32(b.dmin);
}

void unpack_q5_K(const void *block, block_256 *out) {
    block_q5_K b;
    memcpy(&b, block, sizeof b);
    for (int p = 0; p < 4; p++) {
        for (int l = 0; l < 32; l++) {
            out->q[64 * p + l] = (int8_t)((b.qs[32 * p + l] & 15) + (b.qh[l] >> (2 * p) & 1) * 16);
            out->q[64 * p + 32 + l] = (int8_t)((b.qs[32 * p + l] >> 4) + (b.qh[l] >> (2 * p + 1) & 1) * 16);
        }
    }
    unpack_scales_of_32(b.scales, out);
    out->d = f16_to_f32(b.d);
    out->dmin = f16_to_f32(b.dmin);
}

void unpack_q6_K(const void *block, block_256 *out) {
    block_q6_K b;
    memcpy(&b, block, sizeof b);
    for (int h = 0; h < 2; h++) {
        for (int s = 0; s < 4; s++) {
            for (int l = 0; l < 32; l++) {
                int low = b.ql[64 * h + 32 * (s % 2) + l] >> (s / 2 * 4) & 15;
                int high = b.qh[32 * h + l] >> (2 * s) & 3;
                out->q[128 * h + 32 * s + l] = (int8_t)((low | high << 4) - 32);
            }
        }
    }
    for (int g = 0; g < 16; g++) {
        out->scale[g] = b.scales[g];
    }
    out->d = f16_to_f32(b.d);
    no_minima(out);
}

void unpack_iq4_xs(const void *block, block_256 *out) {
    block_iq4_xs b;
    memcpy(&b, block, sizeof b);
    for (int g = 0; g < 8; g++) {
        int low = b.scales_l[g / 2] >> (g % 2 * 4) & 15;
        int high = b.scales_h >> (2 * g) & 3;
        look_up_nibbles(b.qs + 16 * g, quant_iq4_values, out->q + 32 * g);
        out->scale[2 * g] = out->scale[2 * g + 1] = (int16_t)((low | high << 4) - 32);
    }
    out->d = f16_to_f32(b.d);
    no_minima(out);
}
