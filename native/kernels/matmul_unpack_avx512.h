/* Blocks to whole numbers with AVX-512: 64 columns in a register, in order, as unsigned bytes u = q + offset.
 *
 * An offset makes signed values fit for vpdpbusd (unsigned times signed); users start their sums at -offset * sum(x), which
 * is exact. Nothing is read outside the block. */
#ifndef LMI_KERNELS_MATMUL_UNPACK_AVX512_H
#define LMI_KERNELS_MATMUL_UNPACK_AVX512_H

#include <immintrin.h>
#include <stdbool.h>
#include <stdint.h>
#include <string.h>

#include "kernels/matmul_parts.h"
#include "quant/blocks.h"

INLINE __m128i load_128(const void *p) { return _mm_loadu_si128(p); }
INLINE __m256i load_256(const void *p) { return _mm256_loadu_si256(p); }
INLINE __m512i load_512(const void *p) { return _mm512_loadu_si512(p); }
INLINE __m512i twice_256(const void *p) { return _mm512_broadcast_i64x4(load_256(p)); }

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

INLINE float load_half(const void *p) { return _mm_cvtss_f32(_mm_cvtph_ps(_mm_cvtsi32_si128(load_u16(p)))); }

INLINE short word_at(const void *p) { return (short)load_u16(p); }

/* 16-bit words at first, first + step, ... */
INLINE __m128i eight_words(const uint8_t *first, size_t step) {
    return _mm_setr_epi16(word_at(first), word_at(first + step), word_at(first + 2 * step), word_at(first + 3 * step),
                          word_at(first + 4 * step), word_at(first + 5 * step), word_at(first + 6 * step),
                          word_at(first + 7 * step));
}

/* 16 bits at the same place of eight rows. */
INLINE __m128i words_of_rows(const uint8_t *const *rows, size_t offset) {
    return _mm_setr_epi16(word_at(rows[0] + offset), word_at(rows[1] + offset), word_at(rows[2] + offset),
                          word_at(rows[3] + offset), word_at(rows[4] + offset), word_at(rows[5] + offset),
                          word_at(rows[6] + offset), word_at(rows[7] + offset));
}

/* Shift counts that differ between the two 32-byte halves, in 16-bit lanes. Bits that cross a byte are masked afterwards. */
INLINE __m512i halves_16(int low, int high) {
    return _mm512_inserti64x4(_mm512_set1_epi16((short)low), _mm256_set1_epi16((short)high), 1);
}

INLINE __m512i halves_8(int low, int high) {
    return _mm512_inserti64x4(_mm512_set1_epi8((char)low), _mm256_set1_epi8((char)high), 1);
}

/* ---- blocks of 32: two of them make 64 columns ---------------------------------------------------------------------- */

typedef struct type_32 {
    int bytes;    /* of a block, which begins with a 16-bit scale (MXFP4: an 8-bit exponent) */
    int offset;   /* w = d * (u - offset), or d * u + m */
    bool has_min; /* m, a half at byte 2 */
    __m512i (*columns)(const uint8_t *b0, const uint8_t *b1);
    __m256 (*scale)(__m128i words);
} type_32;

/* Two runs of 16 bytes to four groups of 16 values: low halves, high halves, of each. */
INLINE __m512i nibbles_of_two(const uint8_t *q0, const uint8_t *q1) {
    __m512i v = _mm512_inserti64x4(_mm512_castsi256_si512(_mm256_broadcastsi128_si256(load_128(q0))),
                                   _mm256_broadcastsi128_si256(load_128(q1)), 1);
    v = _mm512_srlv_epi64(v, _mm512_setr_epi64(0, 0, 4, 4, 0, 0, 4, 4));
    return _mm512_and_si512(v, _mm512_set1_epi8(15));
}

INLINE __m512i add_fifth_bits(__m512i u, const uint8_t *h0, const uint8_t *h1) {
    uint64_t bits = load_u32(h0) | (uint64_t)load_u32(h1) << 32;
    return _mm512_mask_add_epi8(u, (__mmask64)bits, u, _mm512_set1_epi8(16));
}

INLINE __m512i q4_0_columns(const uint8_t *b0, const uint8_t *b1) { return nibbles_of_two(b0 + 2, b1 + 2); }
INLINE __m512i q4_1_columns(const uint8_t *b0, const uint8_t *b1) { return nibbles_of_two(b0 + 4, b1 + 4); }
INLINE __m512i q5_0_columns(const uint8_t *b0, const uint8_t *b1) {
    return add_fifth_bits(nibbles_of_two(b0 + 6, b1 + 6), b0 + 2, b1 + 2);
}
INLINE __m512i q5_1_columns(const uint8_t *b0, const uint8_t *b1) {
    return add_fifth_bits(nibbles_of_two(b0 + 8, b1 + 8), b0 + 4, b1 + 4);
}
INLINE __m512i q8_0_columns(const uint8_t *b0, const uint8_t *b1) {
    __m512i v = _mm512_inserti64x4(_mm512_castsi256_si512(load_256(b0 + 2)), load_256(b1 + 2), 1);
    return _mm512_xor_si512(v, _mm512_set1_epi8((char)0x80));
}

/* Table of 16 values plus 128, for a byte shuffle. */
INLINE __m512i iq4_table(void) {
    __m128i table = _mm_xor_si128(load_128(quant_iq4_values), _mm_set1_epi8((char)0x80));
    return _mm512_broadcast_i32x4(table);
}

INLINE __m512i iq4_nl_columns(const uint8_t *b0, const uint8_t *b1) {
    return _mm512_shuffle_epi8(iq4_table(), nibbles_of_two(b0 + 2, b1 + 2));
}
INLINE __m512i mxfp4_columns(const uint8_t *b0, const uint8_t *b1) {
    __m128i table = _mm_add_epi8(load_128(quant_mxfp4_values), _mm_set1_epi8(12));
    return _mm512_shuffle_epi8(_mm512_broadcast_i32x4(table), nibbles_of_two(b0 + 1, b1 + 1));
}

INLINE __m256 half_scale(__m128i words) { return _mm256_cvtph_ps(words); }

/* 2^(e - 128): half the scale of the format, whose doubled values the table holds; e = 0 and 1 are subnormal. */
INLINE __m256 mxfp4_scale(__m128i words) {
    __m256i e = _mm256_and_si256(_mm256_cvtepu16_epi32(words), _mm256_set1_epi32(0xff));
    __m256i normal = _mm256_slli_epi32(_mm256_sub_epi32(e, _mm256_set1_epi32(1)), 23);
    __m256i tiny = _mm256_sllv_epi32(_mm256_set1_epi32(0x00200000), e);
    return _mm256_castsi256_ps(_mm256_mask_mov_epi32(normal, _mm256_cmplt_epu32_mask(e, _mm256_set1_epi32(2)), tiny));
}

static const type_32 type_q4_0 = {sizeof(block_q4_0), 8, false, q4_0_columns, half_scale};
static const type_32 type_q4_1 = {sizeof(block_q4_1), 0, true, q4_1_columns, half_scale};
static const type_32 type_q5_0 = {sizeof(block_q5_0), 16, false, q5_0_columns, half_scale};
static const type_32 type_q5_1 = {sizeof(block_q5_1), 0, true, q5_1_columns, half_scale};
static const type_32 type_q8_0 = {sizeof(block_q8_0), 128, false, q8_0_columns, half_scale};
static const type_32 type_iq4_nl = {sizeof(block_iq4_nl), 128, false, iq4_nl_columns, half_scale};
static const type_32 type_mxfp4 = {sizeof(block_mxfp4), 12, false, mxfp4_columns, mxfp4_scale};

/* ---- super-blocks of 256: columns 64 j .. 64 j + 63 ------------------------------------------------------------------- */

typedef struct header_256 {
    __m256i scale;   /* int16[16], of 16 columns each */
    __m256i minimum; /* int16[16]; types with minima */
    float d, dmin;
} header_256;

typedef struct type_256 {
    int bytes;
    int offset;
    bool has_min; /* w = d * scale * u - dmin * minimum */
    int group;    /* columns with one scale: 16 or 32 */
    __m512i (*columns)(const uint8_t *block, int j);
    header_256 (*header)(const uint8_t *block);
} type_256;

/* Half h of the block, pair of bits s, lane l is column 128 h + 32 s + l; two s at a time. */
INLINE __m512i crumbs(const uint8_t *qs, int j) {
    int shift = 4 * (j % 2);
    __m512i v = _mm512_srlv_epi16(twice_256(qs + 32 * (j / 2)), halves_16(shift, shift + 2));
    return _mm512_and_si512(v, _mm512_set1_epi8(3));
}

INLINE __m512i q2_K_columns(const uint8_t *b, int j) { return crumbs(b + offsetof(block_q2_K, qs), j); }

INLINE header_256 q2_K_header(const uint8_t *b) {
    __m128i v = load_128(b + offsetof(block_q2_K, scales));
    header_256 h = {_mm256_cvtepu8_epi16(_mm_and_si128(v, _mm_set1_epi8(15))),
                    _mm256_cvtepu8_epi16(_mm_and_si128(_mm_srli_epi16(v, 4), _mm_set1_epi8(15))),
                    load_half(b + offsetof(block_q2_K, d)), load_half(b + offsetof(block_q2_K, dmin))};
    return h;
}

/* Bits 2j and 2j + 1 of 32 bytes belong to the lower and upper 32 columns; adds `value` where they are set. */
INLINE __m512i add_plane(__m512i u, const uint8_t *bits, int j, int value) {
    __mmask64 set = _mm512_test_epi8_mask(twice_256(bits), halves_8(1 << (2 * j), 2 << (2 * j)));
    return _mm512_mask_add_epi8(u, set, u, _mm512_set1_epi8((char)value));
}

INLINE __m512i q3_K_columns(const uint8_t *b, int j) {
    return add_plane(crumbs(b + offsetof(block_q3_K, qs), j), b + offsetof(block_q3_K, hmask), j, 4);
}

/* Scales of 6 bits: low four in bytes 0..7 (groups 0..7 low, 8..15 high half), upper two in bytes 8..11, byte i % 4. */
INLINE __m128i q3_K_scale_bytes(const uint8_t *s) {
    uint64_t low;
    memcpy(&low, s, sizeof low);
    const uint64_t nibbles = UINT64_C(0x0f0f0f0f0f0f0f0f);
    __m128i v = _mm_set_epi64x((long long)(low >> 4 & nibbles), (long long)(low & nibbles));
    __m128i high = _mm_srlv_epi32(_mm_set1_epi32((int)load_u32(s + 8)), _mm_setr_epi32(0, 2, 4, 6));
    high = _mm_slli_epi16(_mm_and_si128(high, _mm_set1_epi8(3)), 4);
    return _mm_sub_epi8(_mm_or_si128(v, high), _mm_set1_epi8(32));
}

INLINE header_256 q3_K_header(const uint8_t *b) {
    const __m128i v = q3_K_scale_bytes(b + offsetof(block_q3_K, scales));
    header_256 h = {_mm256_cvtepi8_epi16(v), _mm256_setzero_si256(), load_half(b + offsetof(block_q3_K, d)), 0};
    return h;
}

typedef struct scales_6 {
    uint64_t scales, minima; /* a byte for each group of 32 columns */
} scales_6;

/* Q4_K and Q5_K: eight 6-bit scales and eight 6-bit minima in twelve bytes. */
INLINE scales_6 scales_of_32(const uint8_t *s) {
    const uint32_t s0 = load_u32(s), s1 = load_u32(s + 4), s2 = load_u32(s + 8);
    const uint32_t low6 = 0x3f3f3f3f, low4 = 0x0f0f0f0f, low2 = 0x03030303;
    scales_6 v = {(s0 & low6) | (uint64_t)((s2 & low4) | (s0 >> 6 & low2) << 4) << 32,
                  (s1 & low6) | (uint64_t)((s2 >> 4 & low4) | (s1 >> 6 & low2) << 4) << 32};
    return v;
}

INLINE header_256 q4_K_header(const uint8_t *b) {
    const scales_6 s = scales_of_32(b + offsetof(block_q4_K, scales));
    __m128i v = _mm_set_epi64x((long long)s.minima, (long long)s.scales);
    header_256 h = {_mm256_cvtepu8_epi16(_mm_unpacklo_epi8(v, v)), _mm256_cvtepu8_epi16(_mm_unpackhi_epi8(v, v)), load_half(b),
                    load_half(b + 2)};
    return h;
}

INLINE __m512i nibbles_of_32(const uint8_t *qs) {
    return _mm512_and_si512(_mm512_srlv_epi16(twice_256(qs), halves_16(0, 4)), _mm512_set1_epi8(15));
}

INLINE __m512i q4_K_columns(const uint8_t *b, int j) { return nibbles_of_32(b + offsetof(block_q4_K, qs) + 32 * j); }

INLINE __m512i q5_K_columns(const uint8_t *b, int j) {
    return add_plane(nibbles_of_32(b + offsetof(block_q5_K, qs) + 32 * j), b + offsetof(block_q5_K, qh), j, 16);
}

INLINE __m512i q6_K_columns(const uint8_t *b, int j) {
    __m512i low = load_512(b + 64 * (j / 2));
    __m512i high = twice_256(b + offsetof(block_q6_K, qh) + 32 * (j / 2));
    if (j % 2 == 0) { /* bits 0..1 and 2..3 of `high` to bits 4..5 */
        high = _mm512_sllv_epi16(high, halves_16(4, 2));
    } else {
        low = _mm512_srli_epi16(low, 4);
        high = _mm512_srlv_epi16(high, halves_16(0, 2));
    }
    __m512i both = _mm512_ternarylogic_epi32(_mm512_set1_epi8(15), low, high, 0xca); /* bits of low where 15 is set */
    return _mm512_and_si512(both, _mm512_set1_epi8(63));
}

INLINE header_256 q6_K_header(const uint8_t *b) {
    header_256 h = {_mm256_cvtepi8_epi16(load_128(b + offsetof(block_q6_K, scales))), _mm256_setzero_si256(),
                    load_half(b + offsetof(block_q6_K, d)), 0};
    return h;
}

INLINE __m512i iq4_xs_columns(const uint8_t *b, int j) {
    const uint8_t *qs = b + offsetof(block_iq4_xs, qs) + 32 * j;
    return _mm512_shuffle_epi8(iq4_table(), nibbles_of_two(qs, qs + 16));
}

/* int32[8] */
INLINE __m256i iq4_xs_scales_of_32(const uint8_t *b) {
    uint32_t low = load_u32(b + offsetof(block_iq4_xs, scales_l)), high = load_u16(b + offsetof(block_iq4_xs, scales_h));
    const __m256i group = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
    __m256i l = _mm256_srlv_epi32(_mm256_set1_epi32((int)low), _mm256_slli_epi32(group, 2));
    __m256i h = _mm256_srlv_epi32(_mm256_set1_epi32((int)high), _mm256_slli_epi32(group, 1));
    l = _mm256_and_si256(l, _mm256_set1_epi32(15));
    h = _mm256_slli_epi32(_mm256_and_si256(h, _mm256_set1_epi32(3)), 4);
    return _mm256_sub_epi32(_mm256_or_si256(l, h), _mm256_set1_epi32(32));
}

INLINE header_256 iq4_xs_header(const uint8_t *b) {
    const __m256i scale = _mm256_and_si256(iq4_xs_scales_of_32(b), _mm256_set1_epi32(0xffff));
    header_256 head = {_mm256_or_si256(scale, _mm256_slli_epi32(scale, 16)), _mm256_setzero_si256(),
                       load_half(b + offsetof(block_iq4_xs, d)), 0};
    return head;
}

static const type_256 type_q2_K = {sizeof(block_q2_K), 0, true, 16, q2_K_columns, q2_K_header};
static const type_256 type_q3_K = {sizeof(block_q3_K), 4, false, 16, q3_K_columns, q3_K_header};
static const type_256 type_q4_K = {sizeof(block_q4_K), 0, true, 32, q4_K_columns, q4_K_header};
static const type_256 type_q5_K = {sizeof(block_q5_K), 0, true, 32, q5_K_columns, q4_K_header};
static const type_256 type_q6_K = {sizeof(block_q6_K), 32, false, 16, q6_K_columns, q6_K_header};
static const type_256 type_iq4_xs = {sizeof(block_iq4_xs), 128, false, 32, iq4_xs_columns, iq4_xs_header};

#endif
