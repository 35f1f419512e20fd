/* Super-blocks of 256 values: groups of 16 or 32 with small integer scales of their own.
 *
 * The order of the float32 operations is that of the `gguf` package: scales are multiplied first, then the value. */
#include "base/half.h"
#include "quant/blocks.h"
#include "quant/dequant.h"

/* Q2_K, Q3_K, Q6_K share one walk: half h of the block, pair of bits s, lane l make value 128 h + 32 s + l. */

void dequant_q2_K(const void *blocks, float *values, int64_t n) {
    for (int64_t i = 0; i < n / QK_K; i++, values += QK_K) {
        block_q2_K b;
        BLOCK_AT(b, blocks, i);
        float d = f16_to_f32(b.d), dmin = f16_to_f32(b.dmin);
        for (int group = 0; group < 16; group++) {
            float scale = d * (float)(b.scales[group] & 15);
            float minimum = dmin * (float)(b.scales[group] >> 4);
            int h = group / 8, s = group / 2 % 4;
            const uint8_t *qs = b.qs + 32 * h + group % 2 * 16;
            for (int l = 0; l < 16; l++) {
                values[16 * group + l] = scale * (float)(qs[l] >> (2 * s) & 3) - minimum;
            }
        }
    }
}

/* Scale `group` of 16: four low bits in the first eight bytes, two high bits in the last four. */
static int q3_K_scale(const uint8_t scales[12], int group) {
    int low = group < 8 ? scales[group] & 15 : scales[group - 8] >> 4;
    int high = scales[8 + group % 4] >> (group / 4 * 2) & 3;
    return (low | high << 4) - 32;
}

void dequant_q3_K(const void *blocks, float *values, int64_t n) {
    for (int64_t i = 0; i < n / QK_K; i++, values += QK_K) {
        block_q3_K b;
        BLOCK_AT(b, blocks, i);
        float d = f16_to_f32(b.d);
        for (int group = 0; group < 16; group++) {
            float scale = d * (float)q3_K_scale(b.scales, group);
            int h = group / 8, s = group / 2 % 4, lane = group % 2 * 16;
            for (int l = lane; l < lane + 16; l++) {
                int low = b.qs[32 * h + l] >> (2 * s) & 3;
                int high = b.hmask[l] >> (4 * h + s) & 1; /* set: nothing is subtracted */
                values[128 * h + 32 * s + l] = scale * (float)(low + 4 * high - 4);
            }
        }
    }
}

/* Q4_K and Q5_K: eight 6-bit scales and eight 6-bit minima in twelve bytes. */
static void q4_K_scale(const uint8_t s[12], int group, int *scale, int *minimum) {
    if (group < 4) {
        *scale = s[group] & 63;
        *minimum = s[group + 4] & 63;
    } else {
        *scale = (s[group + 4] & 15) | (s[group - 4] >> 6) << 4;
        *minimum = (s[group + 4] >> 4) | (s[group] >> 6) << 4;
    }
}

/* Groups 2p and 2p + 1 are the low and high halves of the same 32 bytes. */

void dequant_q4_K(const void *blocks, float *values, int64_t n) {
    for (int64_t i = 0; i < n / QK_K; i++, values += QK_K) {
        block_q4_K b;
        BLOCK_AT(b, blocks, i);
        float d = f16_to_f32(b.d), dmin = f16_to_f32(b.dmin);
        for (int group = 0; group < 8; group++) {
            int sc, m;
            q4_K_scale(b.scales, group, &sc, &m);
            float scale = d * (float)sc, minimum = dmin * (float)m;
            const uint8_t *qs = b.qs + group / 2 * 32;
            for (int l = 0; l < 32; l++) {
                values[32 * group + l] = scale * (float)(qs[l] >> (group % 2 * 4) & 15) - minimum;
            }
        }
    }
}

void dequant_q5_K(const void *blocks, float *values, int64_t n) {
    for (int64_t i = 0; i < n / QK_K; i++, values += QK_K) {
        block_q5_K b;
        BLOCK_AT(b, blocks, i);
        float d = f16_to_f32(b.d), dmin = f16_to_f32(b.dmin);
        for (int group = 0; group < 8; group++) {
            int sc, m;
            q4_K_scale(b.scales, group, &sc, &m);
            float scale = d * (float)sc, minimum = dmin * (float)m;
            const uint8_t *qs = b.qs + group / 2 * 32;
            for (int l = 0; l < 32; l++) {
                int q = (qs[l] >> (group % 2 * 4) & 15) | (b.qh[l] >> group & 1) << 4;
                values[32 * group + l] = scale * (float)q - minimum;
            }
        }
    }
}

void dequant_q6_K(const void *blocks, float *values, int64_t n) {
    for (int64_t i = 0; i < n / QK_K; i++, values += QK_K) {
        block_q6_K b;
        BLOCK_AT(b, blocks, i);
        float d = f16_to_f32(b.d);
        for (int group = 0; group < 16; group++) {
            float scale = d * (float)b.scales[group];
            int h = group / 8, s = group / 2 % 4, lane = group % 2 * 16;
            for (int l = lane; l < lane + 16; l++) {
                int low = b.ql[64 * h + 32 * (s % 2) + l] >> (s / 2 * 4) & 15;
                int high = b.qh[32 * h + l] >> (2 * s) & 3;
                values[128 * h + 32 * s + l] = scale * (float)((low | high << 4) - 32);
            }
        }
    }
}

/* Group `group` of 32: 16 bytes, low halves first. */
void dequant_iq4_xs(const void *blocks, float *values, int64_t n) {
    for (int64_t i = 0; i < n / QK_K; i++, values += QK_K) {
        block_iq4_xs b;
        BLOCK_AT(b, blocks, i);
        float d = f16_to_f32(b.d);
        for (int group = 0; group < 8; group++) {
            int low = b.scales_l[group / 2] >> (group % 2 * 4) & 15;
            int high = b.scales_h >> (2 * group) & 3;
            float scale = d * (float)((low | high << 4) - 32);
            const uint8_t *qs = b.qs + 16 * group;
            float *out = values + 32 * group;
            for (int l = 0; l < 16; l++) {
                out[l] = scale * (float)quant_iq4_values[qs[l] & 15];
                out[l + 16] = scale * (float)quant_iq4_values[qs[l] >> 4];
            }
        }
    }
}
