/* Activations to their packed form: the steps of pack_ref.c, sixteen at a time. */
#include <immintrin.h>

#include "base/half.h"
#include "kernels/matmul_parts.h"

/* From the largest magnitude, as bits. */
static inline float scale_of(uint32_t largest) {
    return largest >= 0x7f800000u ? f32_from_bits(PACK_NAN_BITS) : f32_from_bits(largest) / 127.0f;
}

static inline __m512i magnitude_bits(__m512 x) {
    return _mm512_and_si512(_mm512_castps_si512(x), _mm512_set1_epi32(0x7fffffff));
}

static inline __m512i quantize(__m512 x, __m512 d) {
    __m512 ratio = _mm512_div_ps(x, d);
    ratio = _mm512_min_ps(_mm512_max_ps(ratio, _mm512_set1_ps(-127.0f)), _mm512_set1_ps(127.0f));
    return _mm512_cvtps_epi32(ratio);
}

static void pack_q8_32(const float *x, int64_t k, void *row) {
    packed_row p = packed_row_at(ACT_Q8_32, row, k);
    for (int64_t b = 0; b < k / 32; b++, x += 32) {
        __m512 x0 = _mm512_loadu_ps(x), x1 = _mm512_loadu_ps(x + 16);
        float d = scale_of(_mm512_reduce_max_epu32(_mm512_max_epu32(magnitude_bits(x0), magnitude_bits(x1))));
        __m512i q0 = _mm512_setzero_si512(), q1 = q0;
        if (d > 0) {
            q0 = quantize(x0, _mm512_set1_ps(d));
            q1 = quantize(x1, _mm512_set1_ps(d));
        }
        _mm_store_si128((__m128i *)(void *)(p.q + 32 * b), _mm512_cvtepi32_epi8(q0));
        _mm_store_si128((__m128i *)(void *)(p.q + 32 * b + 16), _mm512_cvtepi32_epi8(q1));
        p.d[b] = d;
        p.sum_32[b] = _mm512_reduce_add_epi32(_mm512_add_epi32(q0, q1));
    }
    pack_clear_tails(ACT_Q8_32, row, k);
}

static void pack_q8_256(const float *x, int64_t k, void *row) {
    packed_row p = packed_row_at(ACT_Q8_256, row, k);
    for (int64_t b = 0; b < k / 256; b++, x += 256) {
        __m512i largest = _mm512_setzero_si512();
        for (int i = 0; i < 16; i++) {
            largest = _mm512_max_epu32(largest, magnitude_bits(_mm512_loadu_ps(x + 16 * i)));
        }
        float d = scale_of(_mm512_reduce_max_epu32(largest));
        for (int i = 0; i < 16; i++) {
            __m512i q = _mm512_setzero_si512();
            if (d > 0) {
                q = quantize(_mm512_loadu_ps(x + 16 * i), _mm512_set1_ps(d));
            }
            _mm_store_si128((__m128i *)(void *)(p.q + 256 * b + 16 * i), _mm512_cvtepi32_epi8(q));
            p.sum_16[16 * b + i] = (int16_t)_mm512_reduce_add_epi32(q);
        }
        p.d[b] = d;
    }
    pack_clear_tails(ACT_Q8_256, row, k);
}

void pack_fill_avx512(kernels *table) {
    table->pack[ACT_Q8_32] = pack_q8_32;
    table->pack[ACT_Q8_256] = pack_q8_256;
}
