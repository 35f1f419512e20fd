/* Sixteen float32 lanes as two AVX2 vectors; see lanes_ref.h. */
#ifndef LMI_QUANT_LANES_AVX2_H
#define LMI_QUANT_LANES_AVX2_H

#include <immintrin.h>
#include <stdint.h>

#define LANES_INLINE static inline __attribute__((always_inline))

typedef struct lanes {
    __m256 a, b;
} lanes;
typedef lanes lanes_mask;
typedef struct lanes_codes {
    __m256i a, b;
} lanes_codes;

/* clang-format off */
LANES_INLINE lanes lanes_set(float x) { return (lanes){_mm256_set1_ps(x), _mm256_set1_ps(x)}; }
LANES_INLINE lanes lanes_load(const float *p) { return (lanes){_mm256_loadu_ps(p), _mm256_loadu_ps(p + 8)}; }
LANES_INLINE void lanes_store(float *p, lanes x) { _mm256_storeu_ps(p, x.a); _mm256_storeu_ps(p + 8, x.b); }
LANES_INLINE lanes lanes_add(lanes x, lanes y) { return (lanes){_mm256_add_ps(x.a, y.a), _mm256_add_ps(x.b, y.b)}; }
LANES_INLINE lanes lanes_sub(lanes x, lanes y) { return (lanes){_mm256_sub_ps(x.a, y.a), _mm256_sub_ps(x.b, y.b)}; }
LANES_INLINE lanes lanes_mul(lanes x, lanes y) { return (lanes){_mm256_mul_ps(x.a, y.a), _mm256_mul_ps(x.b, y.b)}; }
LANES_INLINE lanes lanes_div(lanes x, lanes y) { return (lanes){_mm256_div_ps(x.a, y.a), _mm256_div_ps(x.b, y.b)}; }
LANES_INLINE lanes lanes_min(lanes x, lanes y) { return (lanes){_mm256_min_ps(x.a, y.a), _mm256_min_ps(x.b, y.b)}; }
LANES_INLINE lanes lanes_max(lanes x, lanes y) { return (lanes){_mm256_max_ps(x.a, y.a), _mm256_max_ps(x.b, y.b)}; }
/* clang-format on */

LANES_INLINE lanes lanes_round(lanes x) {
    return (lanes){_mm256_round_ps(x.a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC),
                   _mm256_round_ps(x.b, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC)};
}

LANES_INLINE lanes_mask lanes_greater(lanes x, lanes y) {
    return (lanes){_mm256_cmp_ps(x.a, y.a, _CMP_GT_OQ), _mm256_cmp_ps(x.b, y.b, _CMP_GT_OQ)};
}

LANES_INLINE lanes lanes_select(lanes_mask mask, lanes yes, lanes no) {
    return (lanes){_mm256_blendv_ps(no.a, yes.a, mask.a), _mm256_blendv_ps(no.b, yes.b, mask.b)};
}

/* Entry `index` of a table of 16: the third bit of the index chooses the half. */
LANES_INLINE __m256 lanes_entry(__m256 low, __m256 high, __m256i index) {
    return _mm256_blendv_ps(_mm256_permutevar8x32_ps(low, index), _mm256_permutevar8x32_ps(high, index),
                            _mm256_castsi256_ps(_mm256_slli_epi32(index, 28)));
}

LANES_INLINE __m256i lanes_find_half(const float thresholds[16], __m256 x) {
    const __m256 low = _mm256_loadu_ps(thresholds), high = _mm256_loadu_ps(thresholds + 8);
    __m256i index = _mm256_and_si256(_mm256_castps_si256(_mm256_cmp_ps(x, _mm256_set1_ps(thresholds[7]), _CMP_GT_OQ)),
                                     _mm256_set1_epi32(8));
    for (int step = 4; step > 0; step /= 2) {
        __m256 next = lanes_entry(low, high, _mm256_add_epi32(index, _mm256_set1_epi32(step - 1)));
        __m256i more = _mm256_castps_si256(_mm256_cmp_ps(x, next, _CMP_GT_OQ));
        index = _mm256_add_epi32(index, _mm256_and_si256(more, _mm256_set1_epi32(step)));
    }
    return index;
}

LANES_INLINE lanes_codes lanes_find(const float thresholds[16], lanes x) {
    return (lanes_codes){lanes_find_half(thresholds, x.a), lanes_find_half(thresholds, x.b)};
}

LANES_INLINE lanes lanes_look_up(const float table[16], lanes_codes codes) {
    const __m256 low = _mm256_loadu_ps(table), high = _mm256_loadu_ps(table + 8);
    return (lanes){lanes_entry(low, high, codes.a), lanes_entry(low, high, codes.b)};
}

LANES_INLINE void lanes_store_codes(int8_t *p, lanes_codes codes) {
    __m256i words = _mm256_permute4x64_epi64(_mm256_packs_epi32(codes.a, codes.b), 0xd8);
    __m128i bytes = _mm_packs_epi16(_mm256_castsi256_si128(words), _mm256_extracti128_si256(words, 1));
    _mm_storeu_si128((__m128i *)(void *)p, bytes);
}

LANES_INLINE void lanes_store_i8(int8_t *p, lanes x) {
    lanes_store_codes(p, (lanes_codes){_mm256_cvtps_epi32(x.a), _mm256_cvtps_epi32(x.b)});
}

#endif
