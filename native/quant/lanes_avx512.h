/* Sixteen float32 lanes as one AVX-512 vector; see lanes_ref.h. */
#ifndef LMI_QUANT_LANES_AVX512_H
#define LMI_QUANT_LANES_AVX512_H

#include <immintrin.h>
#include <stdint.h>

#define LANES_INLINE static inline __attribute__((always_inline))

typedef __m512 lanes;
typedef __mmask16 lanes_mask;
typedef __m512i lanes_codes;

/* clang-format off */
LANES_INLINE lanes lanes_set(float x) { return _mm512_set1_ps(x); }
LANES_INLINE lanes lanes_load(const float *p) { return _mm512_loadu_ps(p); }
LANES_INLINE void lanes_store(float *p, lanes x) { _mm512_storeu_ps(p, x); }
LANES_INLINE lanes lanes_add(lanes x, lanes y) { return _mm512_add_ps(x, y); }
LANES_INLINE lanes lanes_sub(lanes x, lanes y) { return _mm512_sub_ps(x, y); }
LANES_INLINE lanes lanes_mul(lanes x, lanes y) { return _mm512_mul_ps(x, y); }
LANES_INLINE lanes lanes_div(lanes x, lanes y) { return _mm512_div_ps(x, y); }
LANES_INLINE lanes lanes_min(lanes x, lanes y) { return _mm512_min_ps(x, y); }
LANES_INLINE lanes lanes_max(lanes x, lanes y) { return _mm512_max_ps(x, y); }
LANES_INLINE lanes lanes_round(lanes x) { return _mm512_roundscale_ps(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }
LANES_INLINE lanes_mask lanes_greater(lanes x, lanes y) { return _mm512_cmp_ps_mask(x, y, _CMP_GT_OQ); }
LANES_INLINE lanes lanes_select(lanes_mask mask, lanes yes, lanes no) { return _mm512_mask_blend_ps(mask, no, yes); }
/* clang-format on */

LANES_INLINE lanes_codes lanes_find(const float thresholds[16], lanes x) {
    const __m512 table = _mm512_loadu_ps(thresholds);
    __m512i index = _mm512_maskz_set1_epi32(_mm512_cmp_ps_mask(x, _mm512_set1_ps(thresholds[7]), _CMP_GT_OQ), 8);
    for (int step = 4; step > 0; step /= 2) {
        __m512 next = _mm512_permutexvar_ps(_mm512_add_epi32(index, _mm512_set1_epi32(step - 1)), table);
        index = _mm512_mask_add_epi32(index, _mm512_cmp_ps_mask(x, next, _CMP_GT_OQ), index, _mm512_set1_epi32(step));
    }
    return index;
}

LANES_INLINE lanes lanes_look_up(const float table[16], lanes_codes codes) {
    return _mm512_permutexvar_ps(codes, _mm512_loadu_ps(table));
}

LANES_INLINE void lanes_store_codes(int8_t *p, lanes_codes codes) {
    _mm_storeu_si128((__m128i *)(void *)p, _mm512_cvtepi32_epi8(codes));
}

LANES_INLINE void lanes_store_i8(int8_t *p, lanes x) { lanes_store_codes(p, _mm512_cvtps_epi32(x)); }

#endif
