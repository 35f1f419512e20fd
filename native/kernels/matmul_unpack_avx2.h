/* Blocks to whole numbers with AVX2: 32 columns in a register, in order.
 *
 * Either as unsigned bytes u = q + offset, for vpmaddubsw (unsigned times signed, pairs added to 16 bits): users then take
 * offset * sum(x) off; or, where 2 * 255 * 127 would not fit in 16 bits, as signed bytes q, which users multiply as
 * |q| * (x with the sign of q). AVX-VNNI's vpdpbusd adds to 32 bits: there all are unsigned. Nothing is read outside the
 * block. */
#ifndef LMI_KERNELS_MATMUL_UNPACK_AVX2_H
#define LMI_KERNELS_MATMUL_UNPACK_AVX2_H

#include <immintrin.h>
#include <stdbool.h>
#include <stdint.h>
#include <string.h>

#include "kernels/matmul_parts.h"
#include "quant/blocks.h"

INLINE __m128i load_128(const void *p) { return _mm_loadu_si128(p); }
INLINE __m256i load_256(const void *p) { return _mm256_loadu_si256(p); }
INLINE __m256i twice_128(const void *p) { return _mm256_broadcastsi128_si256(load_128(p)); }

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

/* 16-bit words at first, first + step, ... (n of them, at most 8; then zeros). */
INLINE __m128i gather_u16(const uint8_t *first, size_t step, int n) {
    if (n == 8) {
        return _mm_setr_epi16(word_at(first), word_at(first + step), word_at(first + 2 * step), word_at(first + 3 * step),
                              word_at(first + 4 * step), word_at(first + 5 * step), word_at(first + 6 * step),
                              word_at(first + 7 * step));
    }
    uint16_t words[8] = {0};
    for (int i = 0; i < n; i++) {
        words[i] = load_u16(first + (size_t)i * step);
    }
    return load_128(words);
}

/* How types with eight bits are handed over. */
#if defined(__AVXVNNI__)
enum { SIGNED_OFFSET = 128, IS_SIGNED = 0 };
INLINE __m256i from_signed(__m256i q) { return _mm256_xor_si256(q, _mm256_set1_epi8((char)SIGNED_OFFSET)); } /* q + 128 */
#else
enum { SIGNED_OFFSET = 0, IS_SIGNED = 1 };
INLINE __m256i from_signed(__m256i q) { return q; }
#endif

/* The largest |u|, or |q| of signed types, says how many products of pairs fit in 16 bits: all sums stay within
 * 2 * top * 127 * steps <= 32767. Four is as good as any more. */
INLINE int steps_in_16_bits(int top) {
    int steps = 32767 / (2 * 127 * top);
    return steps < 4 ? steps : 4;
}

/* ---- blocks of 32 -------------------------------------------------------------------------------------------------- */

typedef struct type_32 {
    int bytes;  /* of a block, which begins with a 16-bit scale (MXFP4: an 8-bit exponent) */
    int offset; /* w = d * (u - offset), or d * u + m, or of signed types d * q */
    int top;
    bool is_signed;
    bool has_min; /* m, a half at byte 2 */
    __m256i (*columns)(const uint8_t *block);
    __m256 (*scale)(__m128i words);
} type_32;

/* 16 bytes to 32 values: low halves, then high halves. */
INLINE __m256i nibbles(const uint8_t *qs) {
    __m256i v = _mm256_srlv_epi64(twice_128(qs), _mm256_setr_epi64x(0, 0, 4, 4));
    return _mm256_and_si256(v, _mm256_set1_epi8(15));
}

/* 16 where bit i of the 32-bit word is set, for value i. */
INLINE __m256i fifth_bits(const uint8_t *qh) {
    const __m256i byte = _mm256_setr_epi64x(0, 0x0101010101010101, 0x0202020202020202, 0x0303030303030303);
    const __m256i bit = _mm256_set1_epi64x((long long)0x8040201008040201);
    __m256i v = _mm256_shuffle_epi8(_mm256_set1_epi32((int)load_u32(qh)), byte);
    v = _mm256_cmpeq_epi8(_mm256_and_si256(v, bit), bit);
    return _mm256_and_si256(v, _mm256_set1_epi8(16));
}

INLINE __m256i q4_0_columns(const uint8_t *b) { return nibbles(b + 2); }
INLINE __m256i q4_1_columns(const uint8_t *b) { return nibbles(b + 4); }
INLINE __m256i q5_0_columns(const uint8_t *b) { return _mm256_or_si256(nibbles(b + 6), fifth_bits(b + 2)); }
INLINE __m256i q5_1_columns(const uint8_t *b) { return _mm256_or_si256(nibbles(b + 8), fifth_bits(b + 4)); }
INLINE __m256i q8_0_columns(const uint8_t *b) { return from_signed(load_256(b + 2)); }
INLINE __m256i iq4_nl_columns(const uint8_t *b) {
    return _mm256_shuffle_epi8(from_signed(twice_128(quant_iq4_values)), nibbles(b + 2));
}
INLINE __m256i mxfp4_columns(const uint8_t *b) {
    __m256i table = _mm256_add_epi8(twice_128(quant_mxfp4_values), _mm256_set1_epi8(12));
    return _mm256_shuffle_epi8(table, nibbles(b + 1));
}

INLINE __m256 half_scale(__m128i words) { return _mm256_cvtph_ps(words); }

/* 2^(e - 128): half the scale of the format, whose doubled values the table holds; e = 0 and 1 are subnormal. */
INLINE __m256 mxfp4_scale(__m128i words) {
    __m256i e = _mm256_and_si256(_mm256_cvtepu16_epi32(words), _mm256_set1_epi32(0xff));
    __m256i normal = _mm256_slli_epi32(_mm256_sub_epi32(e, _mm256_set1_epi32(1)), 23);
    __m256i tiny = _mm256_sllv_epi32(_mm256_set1_epi32(0x00200000), e);
    __m256i is_tiny = _mm256_cmpgt_epi32(_mm256_set1_epi32(2), e);
    return _mm256_castsi256_ps(_mm256_blendv_epi8(normal, tiny, is_tiny));
}

static const type_32 type_q4_0 = {sizeof(block_q4_0), 8, 15, false, false, q4_0_columns, half_scale};
static const type_32 type_q4_1 = {sizeof(block_q4_1), 0, 15, false, true, q4_1_columns, half_scale};
static const type_32 type_q5_0 = {sizeof(block_q5_0), 16, 31, false, false, q5_0_columns, half_scale};
static const type_32 type_q5_1 = {sizeof(block_q5_1), 0, 31, false, true, q5_1_columns, half_scale};
static const type_32 type_q8_0 = {sizeof(block_q8_0), SIGNED_OFFSET, 128, IS_SIGNED, false, q8_0_columns, half_scale};
static const type_32 type_iq4_nl = {sizeof(block_iq4_nl), SIGNED_OFFSET, 127, IS_SIGNED, false, iq4_nl_columns, half_scale};
static const type_32 type_mxfp4 = {sizeof(block_mxfp4), 12, 24, false, false, mxfp4_columns, mxfp4_scale};

/* ---- super-blocks of 256: columns 32 j .. 32 j + 31 ------------------------------------------------------------------- */

typedef struct header_256 {
    __m256i scale;   /* int16[16], of 16 columns each */
    __m256i minimum; /* the same; types with minima */
    float d, dmin;
} header_256;

typedef struct type_256 {
    int bytes;
    int offset;
    int top;
    bool is_signed;
    bool has_min; /* w = d * scale * u - dmin * minimum */
    int group;    /* columns with one scale: 16 or 32 */
    __m256i (*columns)(const uint8_t *block, int j);
    header_256 (*header)(const uint8_t *block);
} type_256;

/* Half h = j / 4 of the block, pair of bits s = j % 4. */
INLINE __m256i crumbs(const uint8_t *qs, int j) {
    return _mm256_and_si256(_mm256_srli_epi16(load_256(qs + 32 * (j / 4)), 2 * (j % 4)), _mm256_set1_epi8(3));
}

/* Bit j of every byte, moved to bit `to`. */
INLINE __m256i plane(const uint8_t *bits, int j, int to) {
    __m256i v = load_256(bits);
    v = j < to ? _mm256_slli_epi16(v, to - j) : _mm256_srli_epi16(v, j - to);
    return _mm256_and_si256(v, _mm256_set1_epi8((char)(1 << to)));
}

INLINE __m256i q2_K_columns(const uint8_t *b, int j) { return crumbs(b + offsetof(block_q2_K, qs), j); }

INLINE header_256 q2_K_header(const uint8_t *b) {
    __m128i v = load_128(b + offsetof(block_q2_K, scales));
    header_256 h = {_mm256_cvtepu8_epi16(_mm_and_si128(v, _mm_set1_epi8(15))),
                    _mm256_cvtepu8_epi16(_mm_and_si128(_mm_srli_epi16(v, 4), _mm_set1_epi8(15))),
                    load_half(b + offsetof(block_q2_K, d)), load_half(b + offsetof(block_q2_K, dmin))};
    return h;
}

INLINE __m256i q3_K_columns(const uint8_t *b, int j) {
    return _mm256_or_si256(crumbs(b + offsetof(block_q3_K, qs), j), plane(b + offsetof(block_q3_K, hmask), j, 2));
}

/* Scales of 6 bits: low four in bytes 0..7 (groups 0..7 low, 8..15 high half), upper two in bytes 8..11, byte i % 4. */
INLINE header_256 q3_K_header(const uint8_t *b) {
    const uint8_t *s = b + offsetof(block_q3_K, scales);
    uint64_t low;
    memcpy(&low, s, sizeof low);
    const uint64_t halves = UINT64_C(0x0f0f0f0f0f0f0f0f);
    __m128i v = _mm_set_epi64x((long long)(low >> 4 & halves), (long long)(low & halves));
    __m128i high = _mm_srlv_epi32(_mm_set1_epi32((int)load_u32(s + 8)), _mm_setr_epi32(0, 2, 4, 6));
    high = _mm_slli_epi16(_mm_and_si128(high, _mm_set1_epi8(3)), 4);
    v = _mm_sub_epi8(_mm_or_si128(v, high), _mm_set1_epi8(32));
    header_256 h = {_mm256_cvtepi8_epi16(v), _mm256_setzero_si256(), load_half(b + offsetof(block_q3_K, d)), 0};
    return h;
}

/* Q4_K and Q5_K: d, dmin, then eight 6-bit scales and eight 6-bit minima in twelve bytes. */
INLINE header_256 scales_of_32(const uint8_t *b) {
    uint32_t s0 = load_u32(b + 4), s1 = load_u32(b + 8), s2 = load_u32(b + 12);
    const uint32_t low6 = 0x3f3f3f3f, low4 = 0x0f0f0f0f, low2 = 0x03030303;
    uint64_t scales = (s0 & low6) | (uint64_t)((s2 & low4) | (s0 >> 6 & low2) << 4) << 32;
    uint64_t minima = (s1 & low6) | (uint64_t)((s2 >> 4 & low4) | (s1 >> 6 & low2) << 4) << 32;
    __asm__("" : "+r"(scales), "+r"(minima)); /* or the compiler does the above with vectors, whose ports are busy */
    __m128i v = _mm_set_epi64x((long long)minima, (long long)scales);
    header_256 h = {_mm256_cvtepu8_epi16(_mm_unpacklo_epi8(v, v)), _mm256_cvtepu8_epi16(_mm_unpackhi_epi8(v, v)), load_half(b),
                    load_half(b + 2)};
    return h;
}

INLINE __m256i nibble_of_32(const uint8_t *qs, int j) {
    __m256i v = load_256(qs + 32 * (j / 2));
    return _mm256_and_si256(j % 2 ? _mm256_srli_epi16(v, 4) : v, _mm256_set1_epi8(15));
}

INLINE __m256i q4_K_columns(const uint8_t *b, int j) { return nibble_of_32(b + offsetof(block_q4_K, qs), j); }

INLINE __m256i q5_K_columns(const uint8_t *b, int j) {
    return _mm256_or_si256(nibble_of_32(b + offsetof(block_q5_K, qs), j), plane(b + offsetof(block_q5_K, qh), j, 4));
}

INLINE __m256i q6_K_columns(const uint8_t *b, int j) {
    const int half = j / 4, s = j % 4;
    __m256i low = load_256(b + 64 * half + 32 * (s % 2));
    low = _mm256_and_si256(s < 2 ? low : _mm256_srli_epi16(low, 4), _mm256_set1_epi8(15));
    __m256i high = load_256(b + offsetof(block_q6_K, qh) + 32 * half);
    high = s < 2 ? _mm256_slli_epi16(high, 4 - 2 * s) : _mm256_srli_epi16(high, 2 * s - 4); /* to bits 4 and 5 */
    return _mm256_or_si256(low, _mm256_and_si256(high, _mm256_set1_epi8(48)));
}

INLINE header_256 q6_K_header(const uint8_t *b) {
    header_256 h = {_mm256_cvtepi8_epi16(load_128(b + offsetof(block_q6_K, scales))), _mm256_setzero_si256(),
                    load_half(b + offsetof(block_q6_K, d)), 0};
    return h;
}

INLINE __m256i iq4_xs_columns(const uint8_t *b, int j) {
    return _mm256_shuffle_epi8(from_signed(twice_128(quant_iq4_values)), nibbles(b + offsetof(block_iq4_xs, qs) + 16 * j));
}

INLINE header_256 iq4_xs_header(const uint8_t *b) {
    uint32_t low = load_u32(b + offsetof(block_iq4_xs, scales_l)), high = load_u16(b + offsetof(block_iq4_xs, scales_h));
    const __m256i group = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
    __m256i l = _mm256_srlv_epi32(_mm256_set1_epi32((int)low), _mm256_slli_epi32(group, 2));
    __m256i h = _mm256_srlv_epi32(_mm256_set1_epi32((int)high), _mm256_slli_epi32(group, 1));
    l = _mm256_and_si256(l, _mm256_set1_epi32(15));
    h = _mm256_slli_epi32(_mm256_and_si256(h, _mm256_set1_epi32(3)), 4);
    __m256i scale = _mm256_sub_epi32(_mm256_or_si256(l, h), _mm256_set1_epi32(32));
    scale = _mm256_and_si256(scale, _mm256_set1_epi32(0xffff));
    header_256 head = {_mm256_or_si256(scale, _mm256_slli_epi32(scale, 16)), _mm256_setzero_si256(),
                       load_half(b + offsetof(block_iq4_xs, d)), 0};
    return head;
}

static const type_256 type_q2_K = {sizeof(block_q2_K), 0, 3, false, true, 16, q2_K_columns, q2_K_header};
static const type_256 type_q3_K = {sizeof(block_q3_K), 4, 7, false, false, 16, q3_K_columns, q3_K_header};
static const type_256 type_q4_K = {sizeof(block_q4_K), 0, 15, false, true, 32, q4_K_columns, scales_of_32};
static const type_256 type_q5_K = {sizeof(block_q5_K), 0, 31, false, true, 32, q5_K_columns, scales_of_32};
static const type_256 type_q6_K = {sizeof(block_q6_K), 32, 63, false, false, 16, q6_K_columns, q6_K_header};
static const type_256 type_iq4_xs = {sizeof(block_iq4_xs), SIGNED_OFFSET, 127, IS_SIGNED, false, 32,
                                     iq4_xs_columns,       iq4_xs_header};

#endif
