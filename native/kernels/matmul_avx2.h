/* The parts of the AVX2 column: row-wise kernels for few tokens, tiled ones for many. */
#ifndef LMI_KERNELS_MATMUL_AVX2_H
#define LMI_KERNELS_MATMUL_AVX2_H

#include <immintrin.h>

#include "kernels/kernels.h"
#include "kernels/matmul_parts.h"

#define MATMUL_DECLARE(TYPE, NAME)                                                                                             \
    void matmul_rows_##NAME##_avx2(const matmul_args *a);                                                                      \
    void matmul_tiles_##NAME##_avx2(const matmul_args *a);                                                                     \
    void matmul_rows_##NAME##_avxvnni(const matmul_args *a);                                                                   \
    void matmul_tiles_##NAME##_avxvnni(const matmul_args *a);
MATMUL_INTEGER_TYPES(MATMUL_DECLARE)
#undef MATMUL_DECLARE

size_t matmul_rows_scratch_avx2(int64_t k); /* AVX-VNNI the same */
size_t matmul_tiles_scratch_avx2(void);
size_t matmul_tiles_scratch_avxvnni(void);

void matmul_f32_avx2(const matmul_args *a);
void matmul_f16_avx2(const matmul_args *a);
void matmul_bf16_avx2(const matmul_args *a);
size_t matmul_float_scratch_avx2(void);

INLINE float sum_of_lanes(__m256 v) {
    __m128 s = _mm_add_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
    s = _mm_add_ps(s, _mm_movehl_ps(s, s));
    return _mm_cvtss_f32(_mm_add_ss(s, _mm_movehdup_ps(s)));
}

/* Rows of 8 dwords to columns. */
INLINE void transpose_8x8(__m256i v[8]) {
    __m256i a[8];
    for (int i = 0; i < 8; i += 2) {
        a[i] = _mm256_unpacklo_epi32(v[i], v[i + 1]);
        a[i + 1] = _mm256_unpackhi_epi32(v[i], v[i + 1]);
    }
    for (int i = 0; i < 8; i += 4) { /* v[i + c]: column c of rows i..i+3, column c + 4 in the upper half */
        v[i] = _mm256_unpacklo_epi64(a[i], a[i + 2]);
        v[i + 1] = _mm256_unpackhi_epi64(a[i], a[i + 2]);
        v[i + 2] = _mm256_unpacklo_epi64(a[i + 1], a[i + 3]);
        v[i + 3] = _mm256_unpackhi_epi64(a[i + 1], a[i + 3]);
    }
    for (int c = 0; c < 4; c++) {
        __m256i low = v[c], high = v[c + 4];
        v[c] = _mm256_permute2x128_si256(low, high, 0x20);
        v[c + 4] = _mm256_permute2x128_si256(low, high, 0x31);
    }
}

#endif
