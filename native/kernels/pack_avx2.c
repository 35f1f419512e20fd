/* Activations to their packed form: the steps of pack_ref.c, eight at a time. */
#include <immintrin.h>

#include "base/half.h"
#include "kernels/matmul_parts.h"

/* From the largest magnitude, as bits. */
static inline float scale_of(uint32_t largest) {
    return largest >= 0x7f800000u ? f32_from_bits(PACK_NAN_BITS) : f32_from_bits(largest) / 127.0f;
}

static inline __m256i magnitude_bits(__m256 x) {
    return _mm256_and_si256(_mm256_castps_si256(x), _mm256_set1_epi32(0x7fffffff));
}

static inline uint32_t largest_of(__m256i v) {
    __m128i m = _mm_max_epu32(_mm256_castsi256_si128(v), _mm256_extracti128_si256(v, 1));
    m = _mm_max_epu32(m, _mm_shuffle_epi32(m, 0x4e));
    m = _mm_max_epu32(m, _mm_shuffle_epi32(m, 0xb1));
    return (uint32_t)_mm_cvtsi128_si32(m);
}

static inline __m256i quantize(__m256 x, __m256 d) {
    __m256 ratio = _mm256_div_ps(x, d);
    ratio = _mm256_min_ps(_mm256_max_ps(ratio, _mm256_set1_ps(-127.0f)), _mm256_set1_ps(127.0f));
    return _mm256_cvtps_epi32(ratio);
}

/* 32 values to bytes in order. */
static inline __m256i quantize_32(const float *x, float d) {
    __m256 scale = _mm256_set1_ps(d);
    __m256i q0 = quantize(_mm256_loadu_ps(x), scale), q1 = quantize(_mm256_loadu_ps(x + 8), scale);
    __m256i q2 = quantize(_mm256_loadu_ps(x + 16), scale), q3 = quantize(_mm256_loadu_ps(x + 24), scale);
    __m256i q = _mm256_packs_epi16(_mm256_packs_epi32(q0, q1), _mm256_packs_epi32(q2, q3));
    return _mm256_permutevar8x32_epi32(q, _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7)); /* packs interleaves the halves */
}

/* Sums of the two halves of 32 bytes. */
static inline void sums_of_16(__m256i q, int32_t *low, int32_t *high) {
    __m256i pairs = _mm256_maddubs_epi16(_mm256_set1_epi8(1), q);
    __m256i fours = _mm256_madd_epi16(pairs, _mm256_set1_epi16(1));
    fours = _mm256_add_epi32(fours, _mm256_shuffle_epi32(fours, 0x4e));
    fours = _mm256_add_epi32(fours, _mm256_shuffle_epi32(fours, 0xb1));
    *low = _mm_cvtsi128_si32(_mm256_castsi256_si128(fours));
    *high = _mm_cvtsi128_si32(_mm256_extracti128_si256(fours, 1));
}

static void pack_q8_32(const float *x, int64_t k, void *row) {
    packed_row p = packed_row_at(ACT_Q8_32, row, k);
    for (int64_t b = 0; b < k / 32; b++, x += 32) {
        __m256i largest = _mm256_setzero_si256(), q = largest;
        for (int i = 0; i < 4; i++) {
            largest = _mm256_max_epu32(largest, magnitude_bits(_mm256_loadu_ps(x + 8 * i)));
        }
        float d = scale_of(largest_of(largest));
        if (d > 0) {
            q = quantize_32(x, d);
        }
        int32_t low, high;
        sums_of_16(q, &low, &high);
        _mm256_store_si256((__m256i *)(void *)(p.q + 32 * b), q);
        p.d[b] = d;
        p.sum_32[b] = low + high;
    }
    pack_clear_tails(ACT_Q8_32, row, k);
}

static void pack_q8_256(const float *x, int64_t k, void *row) {
    packed_row p = packed_row_at(ACT_Q8_256, row, k);
    for (int64_t b = 0; b < k / 256; b++, x += 256) {
        __m256i largest = _mm256_setzero_si256();
        for (int i = 0; i < 32; i++) {
            largest = _mm256_max_epu32(largest, magnitude_bits(_mm256_loadu_ps(x + 8 * i)));
        }
        float d = scale_of(largest_of(largest));
        for (int i = 0; i < 8; i++) {
            __m256i q = _mm256_setzero_si256();
            if (d > 0) {
                q = quantize_32(x + 32 * i, d);
            }
            int32_t low, high;
            sums_of_16(q, &low, &high);
            _mm256_store_si256((__m256i *)(void *)(p.q + 256 * b + 32 * i), q);
            p.sum_16[16 * b + 2 * i] = (int16_t)low;
            p.sum_16[16 * b + 2 * i + 1] = (int16_t)high;
        }
        p.d[b] = d;
    }
    pack_clear_tails(ACT_Q8_256, row, k);
}

void pack_fill_avx2(kernels *table) {
    table->pack[ACT_Q8_32] = pack_q8_32;
    table->pack[ACT_Q8_256] = pack_q8_256;
}
