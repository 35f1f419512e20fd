/* Blocks to signed bytes with NEON: 32 columns in two registers, in order, ready for sdot (signed times signed).
 *
 * Offsets of a format are gone afterwards; where that is cheapest the bytes are 4, 16 or 32 times what the format means and
 * the scale is as much smaller, which is exact either way. Nothing is read outside the block. */
#ifndef LMI_KERNELS_MATMUL_UNPACK_NEON_H
#define LMI_KERNELS_MATMUL_UNPACK_NEON_H

#include <arm_neon.h>
#include <stdbool.h>
#include <stdint.h>
#include <string.h>

#include "kernels/matmul_parts.h"
#include "quant/blocks.h"

INLINE uint32_t load_u32(const void *p) {
    uint32_t v;
    memcpy(&v, p, sizeof v);
    return v;
}

INLINE uint16_t load_u16(const void *p) {
    uint16_t v;
    memcpy(&v, p, sizeof v);
    return v;
}

INLINE float32x4_t halves_to_floats(uint16x4_t words) { return vcvt_f32_f16(vreinterpret_f16_u16(words)); }
INLINE float load_half(const void *p) { return halves_to_floats(vdup_n_u16(load_u16(p)))[0]; }

INLINE uint8x16_t bytes_of(uint8_t value) { return vdupq_n_u8(value); }

INLINE int8x16x2_t pair_of(uint8x16_t low, uint8x16_t high) {
    int8x16x2_t v = {{vreinterpretq_s8_u8(low), vreinterpretq_s8_u8(high)}};
    return v;
}

/* ---- blocks of 32 -------------------------------------------------------------------------------------------------- */

typedef struct type_32 {
    int bytes;    /* of a block, which begins with a 16-bit scale (MXFP4: an 8-bit exponent) */
    bool has_min; /* w = d * q + m, m a half at byte 2; else w = d * q */
    int8x16x2_t (*columns)(const uint8_t *block);
    float32x4_t (*scale)(uint16x4_t words); /* of four blocks */
} type_32;

/* Byte j holds value j in its low half and value j + 16 in its high half. */
INLINE int8x16x2_t nibbles(const uint8_t *qs) {
    uint8x16_t v = vld1q_u8(qs);
    return pair_of(v & bytes_of(15), v >> 4);
}

INLINE int8x16x2_t look_up(const int8_t *values, const uint8_t *qs) {
    uint8x16_t v = vld1q_u8(qs);
    int8x16_t table = vld1q_s8(values);
    int8x16x2_t q = {{vqtbl1q_s8(table, v & bytes_of(15)), vqtbl1q_s8(table, v >> 4)}};
    return q;
}

/* All ones where bit i of the word is set, for value i. */
INLINE uint8x16x2_t spread_bits(uint32_t word) {
    static const uint8_t byte[32] = {0, 0, 0, 0, 0, 0, 0, 0, 1, 1, 1, 1, 1, 1, 1, 1,
                                     2, 2, 2, 2, 2, 2, 2, 2, 3, 3, 3, 3, 3, 3, 3, 3};
    uint8x16_t bit = vreinterpretq_u8_u64(vdupq_n_u64(UINT64_C(0x8040201008040201)));
    uint8x16_t bytes = vreinterpretq_u8_u32(vdupq_n_u32(word));
    uint8x16x2_t v = {
        {vtstq_u8(vqtbl1q_u8(bytes, vld1q_u8(byte)), bit), vtstq_u8(vqtbl1q_u8(bytes, vld1q_u8(byte + 16)), bit)}};
    return v;
}

/* Flipping the top bit of a nibble takes 8 off in two's complement; in the upper half of a byte it counts 16 times. */
INLINE int8x16x2_t q4_0_columns(const uint8_t *b) {
    uint8x16_t v = vld1q_u8(b + 2) ^ bytes_of(0x88);
    return pair_of(v << 4, v & bytes_of(0xf0));
}

INLINE int8x16x2_t q4_1_columns(const uint8_t *b) { return nibbles(b + 4); }

/* The upper half of a byte: all ones where the fifth bit is clear, which takes 16 off. */
INLINE int8x16x2_t q5_0_columns(const uint8_t *b) {
    uint8x16_t v = vld1q_u8(b + 6);
    uint8x16x2_t clear = spread_bits(~load_u32(b + 2));
    return pair_of(vsliq_n_u8(v, clear.val[0], 4), vsriq_n_u8(clear.val[1], v, 4));
}

INLINE int8x16x2_t q5_1_columns(const uint8_t *b) {
    uint8x16_t v = vld1q_u8(b + 8);
    uint8x16x2_t set = spread_bits(load_u32(b + 4));
    return pair_of(vsliq_n_u8(v, set.val[0] & bytes_of(1), 4), vsriq_n_u8(set.val[1] & bytes_of(16), v, 4));
}

INLINE int8x16x2_t q8_0_columns(const uint8_t *b) { return pair_of(vld1q_u8(b + 2), vld1q_u8(b + 18)); }
INLINE int8x16x2_t iq4_nl_columns(const uint8_t *b) { return look_up(quant_iq4_values, b + 2); }
INLINE int8x16x2_t mxfp4_columns(const uint8_t *b) { return look_up(quant_mxfp4_values, b + 1); }

INLINE float32x4_t half_scale(uint16x4_t words) { return halves_to_floats(words); }
INLINE float32x4_t half_scale_by_16(uint16x4_t words) { return halves_to_floats(words) * vdupq_n_f32(1.0f / 16); }

/* 2^(e - 128): half the scale of the format, whose doubled values the table holds; e = 0 and 1 are subnormal. */
INLINE float32x4_t mxfp4_scale(uint16x4_t words) {
    uint32x4_t e = vmovl_u16(words) & vdupq_n_u32(0xff);
    uint32x4_t normal = (e - vdupq_n_u32(1)) << 23;
    uint32x4_t tiny = vshlq_u32(vdupq_n_u32(0x00200000), vreinterpretq_s32_u32(e));
    return vreinterpretq_f32_u32(vbslq_u32(vcltq_u32(e, vdupq_n_u32(2)), tiny, normal));
}

static const type_32 type_q4_0 = {sizeof(block_q4_0), false, q4_0_columns, half_scale_by_16};
static const type_32 type_q4_1 = {sizeof(block_q4_1), true, q4_1_columns, half_scale};
static const type_32 type_q5_0 = {sizeof(block_q5_0), false, q5_0_columns, half_scale};
static const type_32 type_q5_1 = {sizeof(block_q5_1), true, q5_1_columns, half_scale};
static const type_32 type_q8_0 = {sizeof(block_q8_0), false, q8_0_columns, half_scale};
static const type_32 type_iq4_nl = {sizeof(block_iq4_nl), false, iq4_nl_columns, half_scale};
static const type_32 type_mxfp4 = {sizeof(block_mxfp4), false, mxfp4_columns, mxfp4_scale};

/* ---- super-blocks of 256: columns 32 j .. 32 j + 31 ------------------------------------------------------------------- */

typedef struct header_256 {
    int32x4_t scale[4];   /* of the groups */
    int16x8_t minimum[2]; /* the same; types with minima */
    float d, dmin;
} header_256;

typedef struct type_256 {
    int bytes;
    int group;    /* columns with one scale: 16 or 32 */
    bool has_min; /* w = d * scale * q - dmin * minimum; else w = d * scale * q */
    int8x16x2_t (*columns)(const uint8_t *block, int j);
    header_256 (*header)(const uint8_t *block);
} type_256;

/* Shifts by what is a constant once all is inlined; n may be 0. */
INLINE uint8x16_t up(uint8x16_t v, int n) { return v << (uint8_t)n; }
INLINE uint8x16_t down(uint8x16_t v, int n) { return v >> (uint8_t)n; }

INLINE header_256 header_of(int8x16_t scale, uint8x16_t minimum, float d, float dmin) {
    int16x8_t low = vmovl_s8(vget_low_s8(scale)), high = vmovl_high_s8(scale);
    header_256 h = {{vmovl_s16(vget_low_s16(low)), vmovl_high_s16(low), vmovl_s16(vget_low_s16(high)), vmovl_high_s16(high)},
                    {vreinterpretq_s16_u16(vmovl_u8(vget_low_u8(minimum))), vreinterpretq_s16_u16(vmovl_high_u8(minimum))},
                    d,
                    dmin};
    return h;
}

/* Q2_K, Q3_K, Q6_K: half h = j / 4 of the block, pair of bits s = j % 4. */

INLINE int8x16x2_t q2_K_columns(const uint8_t *b, int j) {
    const uint8_t *qs = b + offsetof(block_q2_K, qs) + 32 * (j / 4);
    return pair_of(down(vld1q_u8(qs), 2 * (j % 4)) & bytes_of(3), down(vld1q_u8(qs + 16), 2 * (j % 4)) & bytes_of(3));
}

INLINE header_256 q2_K_header(const uint8_t *b) {
    uint8x16_t v = vld1q_u8(b + offsetof(block_q2_K, scales));
    return header_of(vreinterpretq_s8_u8(v & bytes_of(15)), v >> 4, load_half(b + offsetof(block_q2_K, d)),
                     load_half(b + offsetof(block_q2_K, dmin)));
}

/* 32 (q - 4): the third bit flipped on top, the pair below it. */
INLINE uint8x16_t q3_K_half(const uint8_t *qs, const uint8_t *hmask, int j) {
    uint8x16_t pair = up(vld1q_u8(qs), 6 - 2 * (j % 4)) & bytes_of(0xc0);
    return vsriq_n_u8(up(~vld1q_u8(hmask), 7 - j), pair, 1);
}

INLINE int8x16x2_t q3_K_columns(const uint8_t *b, int j) {
    const uint8_t *qs = b + offsetof(block_q3_K, qs) + 32 * (j / 4), *hmask = b + offsetof(block_q3_K, hmask);
    return pair_of(q3_K_half(qs, hmask, j), q3_K_half(qs + 16, hmask + 16, j));
}

/* Scales of 6 bits: low four in bytes 0..7 (groups 0..7 low, 8..15 high half), upper two in bytes 8..11, byte i % 4. */
INLINE header_256 q3_K_header(const uint8_t *b) {
    static const int32_t right[4] = {0, -2, -4, -6};
    const uint8_t *s = b + offsetof(block_q3_K, scales);
    uint8x8_t low = vld1_u8(s);
    uint8x16_t v = vcombine_u8(low & vdup_n_u8(15), low >> 4);
    uint8x16_t high = vreinterpretq_u8_u32(vshlq_u32(vdupq_n_u32(load_u32(s + 8)), vld1q_s32(right)));
    v = vsliq_n_u8(v, high & bytes_of(3), 4) - bytes_of(32);
    return header_of(vreinterpretq_s8_u8(v), bytes_of(0), load_half(b + offsetof(block_q3_K, d)) * (1.0f / 32), 0);
}

/* 4 (q - 32): the upper pair with its top bit flipped, then the low four bits. */
INLINE uint8x16_t q6_K_half(const uint8_t *ql, const uint8_t *qh, int s) {
    uint8x16_t low = vld1q_u8(ql), high = vld1q_u8(qh) ^ bytes_of(0xaa);
    return vsriq_n_u8(up(high, 6 - 2 * s), s < 2 ? low << 4 : low & bytes_of(0xf0), 2);
}

INLINE int8x16x2_t q6_K_columns(const uint8_t *b, int j) {
    const int half = j / 4, s = j % 4;
    const uint8_t *ql = b + 64 * half + 32 * (s % 2), *qh = b + offsetof(block_q6_K, qh) + 32 * half;
    return pair_of(q6_K_half(ql, qh, s), q6_K_half(ql + 16, qh + 16, s));
}

INLINE header_256 q6_K_header(const uint8_t *b) {
    return header_of(vld1q_s8((const int8_t *)b + offsetof(block_q6_K, scales)), bytes_of(0),
                     load_half(b + offsetof(block_q6_K, d)) * 0.25f, 0);
}

/* Q4_K and Q5_K: d, dmin, then eight 6-bit scales and eight 6-bit minima in twelve bytes. */
INLINE header_256 scales_of_32(const uint8_t *b) {
    uint32_t s0 = load_u32(b + 4), s1 = load_u32(b + 8), s2 = load_u32(b + 12);
    const uint32_t low6 = 0x3f3f3f3f, low4 = 0x0f0f0f0f, low2 = 0x03030303;
    uint64_t scales = (s0 & low6) | (uint64_t)((s2 & low4) | (s0 >> 6 & low2) << 4) << 32;
    uint64_t minima = (s1 & low6) | (uint64_t)((s2 >> 4 & low4) | (s1 >> 6 & low2) << 4) << 32;
    return header_of(vcombine_s8(vcreate_s8(scales), vdup_n_s8(0)), vcombine_u8(vcreate_u8(minima), vdup_n_u8(0)), load_half(b),
                     load_half(b + 2));
}

INLINE int8x16x2_t q4_K_columns(const uint8_t *b, int j) {
    const uint8_t *qs = b + offsetof(block_q4_K, qs) + 32 * (j / 2);
    uint8x16_t low = vld1q_u8(qs), high = vld1q_u8(qs + 16);
    return j % 2 == 0 ? pair_of(low & bytes_of(15), high & bytes_of(15)) : pair_of(low >> 4, high >> 4);
}

/* Bit j of qh above the nibble. */
INLINE uint8x16_t q5_K_half(const uint8_t *qs, const uint8_t *qh, int j) {
    uint8x16_t nibble = vld1q_u8(qs), bit = vld1q_u8(qh);
    if (j % 2 == 0) {
        return vsliq_n_u8(nibble, down(bit, j), 4) & bytes_of(31);
    }
    return vsriq_n_u8(j < 4 ? up(bit, 4 - j) : down(bit, j - 4), nibble, 4) & bytes_of(31);
}

INLINE int8x16x2_t q5_K_columns(const uint8_t *b, int j) {
    const uint8_t *qs = b + offsetof(block_q5_K, qs) + 32 * (j / 2), *qh = b + offsetof(block_q5_K, qh);
    return pair_of(q5_K_half(qs, qh, j), q5_K_half(qs + 16, qh + 16, j));
}

INLINE int8x16x2_t iq4_xs_columns(const uint8_t *b, int j) {
    return look_up(quant_iq4_values, b + offsetof(block_iq4_xs, qs) + 16 * j);
}

/* Eight scales of 6 bits: four in a word of nibbles, two in a word of pairs. */
INLINE header_256 iq4_xs_header(const uint8_t *b) {
    static const int32_t right[8] = {0, -1, -2, -3, -4, -5, -6, -7};
    uint32x4_t low = vdupq_n_u32(load_u32(b + offsetof(block_iq4_xs, scales_l)));
    uint32x4_t high = vdupq_n_u32(load_u16(b + offsetof(block_iq4_xs, scales_h)));
    header_256 h = {{vdupq_n_s32(0)}, {vdupq_n_s16(0)}, load_half(b + offsetof(block_iq4_xs, d)), 0};
    UNROLL for (int i = 0; i < 2; i++) {
        int32x4_t by_pair = vld1q_s32(right + 4 * i) * 2;
        uint32x4_t l = vshlq_u32(low, by_pair * 2) & vdupq_n_u32(15), u = vshlq_u32(high, by_pair) & vdupq_n_u32(3);
        h.scale[i] = vreinterpretq_s32_u32(l | u << 4) - vdupq_n_s32(32);
    }
    return h;
}

static const type_256 type_q2_K = {sizeof(block_q2_K), 16, true, q2_K_columns, q2_K_header};
static const type_256 type_q3_K = {sizeof(block_q3_K), 16, false, q3_K_columns, q3_K_header};
static const type_256 type_q4_K = {sizeof(block_q4_K), 32, true, q4_K_columns, scales_of_32};
static const type_256 type_q5_K = {sizeof(block_q5_K), 32, true, q5_K_columns, scales_of_32};
static const type_256 type_q6_K = {sizeof(block_q6_K), 16, false, q6_K_columns, q6_K_header};
static const type_256 type_iq4_xs = {sizeof(block_iq4_xs), 32, false, iq4_xs_columns, iq4_xs_header};

#endif
