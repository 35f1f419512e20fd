/* The encoder of each type: where its searches start, and how its blocks are packed (blocks.h says what the bits mean).
 *
 * Included once per instruction set, after one of lanes_*.h; ENCODERS names the table that results. */
#ifndef LMI_QUANT_ENCODE_TYPES_H
#define LMI_QUANT_ENCODE_TYPES_H

#include "quant/encode_super.h"

#define STORE_BLOCK(block, b) memcpy(block, &(b), sizeof(b))

/* Two codes in a byte: value j low, value j + 16 high. */
static void pack_nibbles(const int8_t *codes, int add, uint8_t *qs) {
    for (int j = 0; j < 16; j++) {
        qs[j] = (uint8_t)(((codes[j] + add) & 15) | ((codes[j + 16] + add) & 15) << 4);
    }
}

static void pack_fifth_bits(const int8_t *codes, int add, uint8_t *qh) {
    uint32_t word = 0;
    for (int j = 0; j < 32; j++) {
        word |= (uint32_t)((codes[j] + add) >> 4 & 1) << j;
    }
    memcpy(qh, &word, sizeof word);
}

/* ---- blocks of 32: scale only --------------------------------------------------------------------------------------- */

/* What the extreme value is given: about the last code on either side, less where a neighbour fits better, more to cut it off. */
static const float starts_q4_0[48] = {-9.4f, -9.0f, -8.7f, -8.45f, -8.25f, -8.1f, -7.95f, -7.8f, -7.6f, -7.4f,  -7.2f, -7.0f,
                                      -6.7f, -6.4f, -6.0f, -5.6f,  8.3f,   7.9f,  7.6f,   7.4f,  7.25f, 7.1f,   6.95f, 6.8f,
                                      6.65f, 6.5f,  6.3f,  6.1f,   5.8f,   5.5f,  5.2f,   4.8f,  -12,   -10.5f, -9.8f, -7.1f,
                                      -5.2f, -4.6f, -3.8f, -3,     11,     9.5f,  8.8f,   7.0f,  4.4f,  3.8f,   3.1f,  2.3f};
static const float starts_q5_0[48] = {-18.0f, -17.4f, -17.0f, -16.6f, -16.4f, -16.2f, -16.0f, -15.8f, -15.6f, -15.4f,
                                      -15.2f, -15.0f, -14.7f, -14.3f, -13.8f, -13.2f, 16.9f,  16.4f,  16.0f,  15.7f,
                                      15.5f,  15.3f,  15.1f,  14.9f,  14.7f,  14.5f,  14.3f,  14.1f,  13.8f,  13.4f,
                                      13.0f,  12.4f,  -24,    -21,    -19,    -14.5f, -12.5f, -11.5f, -9.5f,  -7.5f,
                                      22,     19.5f,  17.6f,  15.2f,  11.6f,  10.6f,  9.0f,   7.0f};
static const float starts_q8_0[16] = {128.4f, 128,    127.7f, 127.5f, 127.3f, 127.1f, 126.9f, 126.7f,
                                      126.5f, 126.2f, 125.9f, 125.6f, 125.2f, 124.7f, 124,    123};

static void encode_q4_0(const float *x, const float *w, void *block) {
    const code_set set = {-8, 7, NULL, NULL};
    int8_t codes[QK];
    float unused = 0;
    const float scale = round_f16(scale_fit(x, w, QK, set, starts_q4_0, 48, 3, &unused));
    scale_codes(x, QK, set, scale, codes);
    block_q4_0 b = {.d = f32_to_f16(scale)};
    pack_nibbles(codes, 8, b.qs);
    STORE_BLOCK(block, b);
}

static void encode_q5_0(const float *x, const float *w, void *block) {
    const code_set set = {-16, 15, NULL, NULL};
    int8_t codes[QK];
    float unused = 0;
    const float scale = round_f16(scale_fit(x, w, QK, set, starts_q5_0, 48, 3, &unused));
    scale_codes(x, QK, set, scale, codes);
    block_q5_0 b = {.d = f32_to_f16(scale)};
    pack_nibbles(codes, 16, b.qs);
    pack_fifth_bits(codes, 16, b.qh);
    STORE_BLOCK(block, b);
}

static void encode_q8_0(const float *x, const float *w, void *block) {
    const code_set set = {-127, 127, NULL, NULL};
    float unused = 0;
    block_q8_0 b = {.d = f32_to_f16(round_f16(scale_fit(x, w, QK, set, starts_q8_0, 16, 1, &unused)))};
    scale_codes(x, QK, set, f16_to_f32(b.d), b.qs);
    STORE_BLOCK(block, b);
}

static const float iq4_values[16] = {-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113};
static const float iq4_middles[16] = {-115.5f, -93.5f, -74, -57, -42, -28.5f, -16, -4.5f, 7, 19, 31.5f, 45.5f, 61, 79, 101, 0};
static const float starts_iq4[32] = {-146, -139, -134, -130, -127, -124, -121, -118, -115, -112, -109,
                                     -106, -102, -98,  -92,  -85,  130,  124,  120,  117,  114,  112,
                                     110,  107,  104,  101,  98,   95,   91,   87,   82,   76};

static void encode_iq4_nl(const float *x, const float *w, void *block) {
    const code_set set = {0, 0, iq4_values, iq4_middles};
    int8_t codes[QK];
    float unused = 0;
    const float scale = round_f16(scale_fit(x, w, QK, set, starts_iq4, 32, 3, &unused));
    scale_codes(x, QK, set, scale, codes);
    block_iq4_nl b = {.d = f32_to_f16(scale)};
    pack_nibbles(codes, 0, b.qs);
    STORE_BLOCK(block, b);
}

/* The sixteen exponents below and above that of the largest value, all tried; codes are signed, bit 3 set. */
static void encode_mxfp4(const float *x, const float *w, void *block) {
    static const float values[16] = {-6, -4, -3, -2, -1.5f, -1, -0.5f, 0, 0.5f, 1, 1.5f, 2, 3, 4, 6, 6};
    static const float middles[16] = {-5,    -3.5f, -2.5f, -1.75f, -1.25f, -0.75f, -0.25f, 0.25f,
                                      0.75f, 1.25f, 1.75f, 2.5f,   3.5f,   5,      7e9f,   0};
    static const uint8_t bits[16] = {15, 14, 13, 12, 11, 10, 9, 0, 1, 2, 3, 4, 5, 6, 7, 7};
    const code_set set = {0, 0, values, middles};
    int8_t codes[QK];
    float scales[16], least;
    const float most = fabsf(extreme(x, QK));
    block_mxfp4 b = {.e = 0};
    if (most >= ENCODE_LEAST) { /* so the exponent is at least 93 */
        const int base = (int)(f32_to_bits(most) >> 23) - 2;
        for (int i = 0; i < 16; i++) {
            scales[i] = f32_from_bits((uint32_t)(base + i - 8) << 23);
        }
        const int lane = lanes_least(scale_error(x, w, QK, set, lanes_load(scales)), &least);
        b.e = (uint8_t)(base + lane - 8);
        scale_codes(x, QK, set, scales[lane], codes);
        for (int j = 0; j < 16; j++) {
            b.qs[j] = (uint8_t)(bits[codes[j]] | bits[codes[j + 16]] << 4);
        }
    }
    STORE_BLOCK(block, b);
}

/* ---- blocks of 32: scale and offset --------------------------------------------------------------------------------- */

/* Every pair of four: how far inside the first and the last code the least and the largest value lie. */
#define PAIRS(a, b, c, d) {a, a, a, a, b, b, b, b, c, c, c, c, d, d, d, d, a, b, c, d, a, b, c, d, a, b, c, d, a, b, c, d}

static const float starts_4bit[2][32] = {PAIRS(-0.45f, -0.1f, 0.2f, 0.55f), PAIRS(-0.8f, -0.25f, 0, 0.4f)};
static const float starts_5bit[2][32] = {PAIRS(-0.4f, -0.1f, 0.2f, 0.5f), PAIRS(-0.8f, -0.25f, 0, 0.35f)};

/* With an offset of their own some blocks are best served by cutting off an outlier of little weight. */
#define CUTTING PAIRS(-5.0f, -2.5f, -1.3f, 0)
static const float starts_4_1[3][32] = {PAIRS(-0.45f, -0.1f, 0.2f, 0.55f), PAIRS(-0.8f, -0.25f, 0, 0.4f), CUTTING};
static const float starts_5_1[3][32] = {PAIRS(-0.4f, -0.1f, 0.2f, 0.5f), PAIRS(-0.8f, -0.25f, 0, 0.35f), CUTTING};

static void encode_q4_1(const float *x, const float *w, void *block) {
    int8_t codes[QK];
    float unused = 0;
    const affine fit = affine_stored(x, w, QK, 15, fit_pairs(x, w, QK, 15, false, starts_4_1, 3, 3, &unused));
    block_q4_1 b = {.d = f32_to_f16(fit.scale), .m = f32_to_f16(fit.low)};
    affine_codes(x, QK, 15, fit.scale, fit.low, codes);
    pack_nibbles(codes, 0, b.qs);
    STORE_BLOCK(block, b);
}

static void encode_q5_1(const float *x, const float *w, void *block) {
    int8_t codes[QK];
    float unused = 0;
    const affine fit = affine_stored(x, w, QK, 31, fit_pairs(x, w, QK, 31, false, starts_5_1, 3, 3, &unused));
    block_q5_1 b = {.d = f32_to_f16(fit.scale), .m = f32_to_f16(fit.low)};
    affine_codes(x, QK, 31, fit.scale, fit.low, codes);
    pack_nibbles(codes, 0, b.qs);
    pack_fifth_bits(codes, 0, b.qh);
    STORE_BLOCK(block, b);
}

#define LOOSE 1.5f

/* ---- super-blocks: scales only -------------------------------------------------------------------------------------- */

static const float starts_q3_K[32] = {-5.2f, -4.8f, -4.5f, -4.3f, -4.15f, -4.0f, -3.85f, -3.7f, -3.55f, -3.4f, -3.2f,
                                      -3.0f, -2.8f, -2.6f, -2.3f, -2.0f,  4.2f,  3.8f,   3.5f,  3.3f,   3.15f, 3.0f,
                                      2.85f, 2.7f,  2.55f, 2.4f,  2.25f,  2.1f,  1.9f,   1.7f,  1.5f,   1.2f};
static const float starts_q6_K[16] = {-33.2f, -32.6f, -32.2f, -31.9f, -31.6f, -31.3f, -30.9f, -30.4f,
                                      32.1f,  31.6f,  31.2f,  30.9f,  30.6f,  30.3f,  29.9f,  29.4f};
/* What integer the largest group scale is given at first; on the negative side there is one more. */
static const float ends_6bit[16] = {-33.2f, -32, -31, -30, -29, -28, -27, -26, 32.2f, 31, 30, 29, 28, 27, 26, 25};
static const float ends_8bit[16] = {-130, -128, -126, -124, -122, -120, -118, -116, 129, 127, 125, 123, 121, 119, 117, 115};

static void encode_q3_K(const float *x, const float *w, void *block) {
    static const scale_kind kind = {
        .group = 16,
        .set = {-4, 3, NULL, NULL},
        .starts = starts_q3_K,
        .n_starts = 32,
        .n_steps = 3,
        .low = -32,
        .high = 31,
        .ends = ends_6bit,
        .loose = LOOSE,
    };
    super_scales fit;
    super_scale_fit(x, w, &kind, &fit);
    block_q3_K b = {.d = f32_to_f16(fit.d)};
    for (int g = 0; g < 16; g++) {
        const int stored = fit.integers[g] + 32;
        b.scales[g % 8] = (uint8_t)(b.scales[g % 8] | (stored & 15) << (g / 8 * 4));
        b.scales[8 + g % 4] = (uint8_t)(b.scales[8 + g % 4] | (stored >> 4) << (g / 4 * 2));
    }
    for (int i = 0; i < QK_K; i++) {
        const int stored = fit.codes[i] + 4, half = i / 128, shift = i / 32 % 4, lane = i % 32;
        b.qs[32 * half + lane] = (uint8_t)(b.qs[32 * half + lane] | (stored & 3) << (2 * shift));
        b.hmask[lane] = (uint8_t)(b.hmask[lane] | (stored >> 2) << (4 * half + shift));
    }
    STORE_BLOCK(block, b);
}

static void encode_q6_K(const float *x, const float *w, void *block) {
    static const scale_kind kind = {
        .group = 16,
        .set = {-32, 31, NULL, NULL},
        .starts = starts_q6_K,
        .n_starts = 16,
        .n_steps = 2,
        .low = -128,
        .high = 127,
        .ends = ends_8bit,
        .loose = LOOSE,
    };
    super_scales fit;
    super_scale_fit(x, w, &kind, &fit);
    block_q6_K b = {.d = f32_to_f16(fit.d)};
    memcpy(b.scales, fit.integers, sizeof b.scales);
    for (int i = 0; i < QK_K; i++) {
        const int stored = fit.codes[i] + 32, half = i / 128, shift = i / 32 % 4, lane = i % 32;
        uint8_t *low = &b.ql[64 * half + 32 * (shift % 2) + lane], *high = &b.qh[32 * half + lane];
        *low = (uint8_t)(*low | (stored & 15) << (shift / 2 * 4));
        *high = (uint8_t)(*high | (stored >> 4) << (2 * shift));
    }
    STORE_BLOCK(block, b);
}

static void encode_iq4_xs(const float *x, const float *w, void *block) {
    static const scale_kind kind = {
        .group = 32,
        .set = {-127, 113, iq4_values, iq4_middles},
        .starts = starts_iq4,
        .n_starts = 32,
        .n_steps = 3,
        .low = -32,
        .high = 31,
        .ends = ends_6bit,
        .loose = LOOSE,
    };
    super_scales fit;
    super_scale_fit(x, w, &kind, &fit);
    block_iq4_xs b = {.d = f32_to_f16(fit.d)};
    for (int g = 0; g < 8; g++) {
        const int stored = fit.integers[g] + 32;
        b.scales_l[g / 2] = (uint8_t)(b.scales_l[g / 2] | (stored & 15) << (g % 2 * 4));
        b.scales_h = (uint16_t)(b.scales_h | (stored >> 4) << (2 * g));
        pack_nibbles(fit.codes + 32 * g, 0, b.qs + 16 * g);
    }
    STORE_BLOCK(block, b);
}

/* ---- super-blocks: scales and offsets ------------------------------------------------------------------------------- */

static const float starts_2bit[2][32] = {PAIRS(-0.6f, -0.2f, 0.1f, 0.4f), PAIRS(-0.4f, 0, 0.25f, 0.6f)};
static const float ends_4bit[32] = PAIRS(15.3f, 14.4f, 13.5f, 12.5f);
static const float ends_6bit_pairs[32] = PAIRS(63.4f, 62, 60, 57);

static void encode_q2_K(const float *x, const float *w, void *block) {
    static const affine_kind kind = {
        .group = 16, .high = 3, .most = 15, .starts = starts_2bit, .ends = ends_4bit, .loose = LOOSE};
    super_affines fit;
    super_affine_fit(x, w, &kind, &fit);
    block_q2_K b = {.d = f32_to_f16(fit.d), .dmin = f32_to_f16(fit.dmin)};
    for (int g = 0; g < 16; g++) {
        b.scales[g] = (uint8_t)(fit.scales[g] | fit.minima[g] << 4);
    }
    for (int i = 0; i < QK_K; i++) {
        uint8_t *byte = &b.qs[32 * (i / 128) + i % 32];
        *byte = (uint8_t)(*byte | fit.codes[i] << (i / 32 % 4 * 2));
    }
    STORE_BLOCK(block, b);
}

/* Eight 6-bit scales and minima in twelve bytes: the last four pairs give their high bits to the bytes of the first four. */
static void pack_6bit(const super_affines *fit, uint8_t scales[12]) {
    for (int g = 0; g < 4; g++) {
        scales[g] = (uint8_t)(fit->scales[g] | (fit->scales[g + 4] >> 4) << 6);
        scales[g + 4] = (uint8_t)(fit->minima[g] | (fit->minima[g + 4] >> 4) << 6);
        scales[g + 8] = (uint8_t)((fit->scales[g + 4] & 15) | (fit->minima[g + 4] & 15) << 4);
    }
}

static void encode_q4_K(const float *x, const float *w, void *block) {
    static const affine_kind kind = {
        .group = 32, .high = 15, .most = 63, .starts = starts_4bit, .ends = ends_6bit_pairs, .loose = LOOSE};
    super_affines fit;
    super_affine_fit(x, w, &kind, &fit);
    block_q4_K b = {.d = f32_to_f16(fit.d), .dmin = f32_to_f16(fit.dmin)};
    pack_6bit(&fit, b.scales);
    for (int i = 0; i < QK_K; i++) {
        uint8_t *byte = &b.qs[i / 64 * 32 + i % 32];
        *byte = (uint8_t)(*byte | fit.codes[i] << (i / 32 % 2 * 4));
    }
    STORE_BLOCK(block, b);
}

static void encode_q5_K(const float *x, const float *w, void *block) {
    static const affine_kind kind = {
        .group = 32, .high = 31, .most = 63, .starts = starts_5bit, .ends = ends_6bit_pairs, .loose = LOOSE};
    super_affines fit;
    super_affine_fit(x, w, &kind, &fit);
    block_q5_K b = {.d = f32_to_f16(fit.d), .dmin = f32_to_f16(fit.dmin)};
    pack_6bit(&fit, b.scales);
    for (int i = 0; i < QK_K; i++) {
        uint8_t *low = &b.qs[i / 64 * 32 + i % 32], *high = &b.qh[i % 32];
        *low = (uint8_t)(*low | (fit.codes[i] & 15) << (i / 32 % 2 * 4));
        *high = (uint8_t)(*high | (fit.codes[i] >> 4) << (i / 32));
    }
    STORE_BLOCK(block, b);
}

const encoders ENCODERS = {.block = {
                               [QUANT_Q4_0] = encode_q4_0,
                               [QUANT_Q4_1] = encode_q4_1,
                               [QUANT_Q5_0] = encode_q5_0,
                               [QUANT_Q5_1] = encode_q5_1,
                               [QUANT_Q8_0] = encode_q8_0,
                               [QUANT_Q2_K] = encode_q2_K,
                               [QUANT_Q3_K] = encode_q3_K,
                               [QUANT_Q4_K] = encode_q4_K,
                               [QUANT_Q5_K] = encode_q5_K,
                               [QUANT_Q6_K] = encode_q6_K,
                               [QUANT_IQ4_NL] = encode_iq4_nl,
                               [QUANT_IQ4_XS] = encode_iq4_xs,
                               [QUANT_MXFP4] = encode_mxfp4,
                           }};

#endif
