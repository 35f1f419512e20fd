/* The parts of the columns for AVX-512 and AMX: row-wise kernels for few tokens, tiled ones for many. */
#ifndef LMI_KERNELS_MATMUL_AVX512_H
#define LMI_KERNELS_MATMUL_AVX512_H

#include <immintrin.h>

#include "kernels/kernels.h"
#include "kernels/matmul_parts.h"

#define MATMUL_DECLARE(TYPE, NAME)                                                                                             \
    void matmul_rows_##NAME##_avx512(const matmul_args *a);                                                                    \
    void matmul_tiles_##NAME##_avx512(const matmul_args *a);                                                                   \
    void matmul_tiles_##NAME##_amx(const matmul_args *a);
MATMUL_INTEGER_TYPES(MATMUL_DECLARE)
#undef MATMUL_DECLARE

size_t matmul_rows_scratch_avx512(int64_t k);
size_t matmul_tiles_scratch_avx512(void);
size_t matmul_tiles_scratch_amx(void);

void matmul_f32_avx512(const matmul_args *a);
void matmul_f16_avx512(const matmul_args *a);
void matmul_bf16_avx512(const matmul_args *a);
size_t matmul_float_scratch_avx512(void);

/* The first n of sixteen. */
INLINE __mmask16 mask_of(int64_t n) { return (__mmask16)(n >= 16 ? 0xffffu : n > 0 ? (1u << n) - 1 : 0); }

/* Sixteen values, those outside the mask are 0 and not read. */
INLINE __m512 load_f16(const uint8_t *values, __mmask16 mask) {
    return _mm512_cvtph_ps(_mm256_maskz_loadu_epi16(mask, values));
}
INLINE __m512 load_bf16(const uint8_t *values, __mmask16 mask) {
    __m512i words = _mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(mask, values));
    return _mm512_castsi512_ps(_mm512_slli_epi32(words, 16));
}

/* Rows of 16 dwords to columns. */
INLINE void transpose_16x16(__m512i v[16]) {
    __m512i a[16];
    UNROLL for (int i = 0; i < 16; i += 2) {
        a[i] = _mm512_unpacklo_epi32(v[i], v[i + 1]);
        a[i + 1] = _mm512_unpackhi_epi32(v[i], v[i + 1]);
    }
    UNROLL for (int i = 0; i < 16; i += 4) { /* v[i + c]: column c (mod 4) of rows i..i+3, a quarter for each four columns */
        v[i] = _mm512_unpacklo_epi64(a[i], a[i + 2]);
        v[i + 1] = _mm512_unpackhi_epi64(a[i], a[i + 2]);
        v[i + 2] = _mm512_unpacklo_epi64(a[i + 1], a[i + 3]);
        v[i + 3] = _mm512_unpackhi_epi64(a[i + 1], a[i + 3]);
    }
    UNROLL for (int c = 0; c < 4; c++) {
        a[c] = _mm512_shuffle_i32x4(v[c], v[c + 4], 0x88);
        a[c + 4] = _mm512_shuffle_i32x4(v[c], v[c + 4], 0xdd);
        a[c + 8] = _mm512_shuffle_i32x4(v[c + 8], v[c + 12], 0x88);
        a[c + 12] = _mm512_shuffle_i32x4(v[c + 8], v[c + 12], 0xdd);
    }
    UNROLL for (int c = 0; c < 4; c++) {
        v[c] = _mm512_shuffle_i32x4(a[c], a[c + 8], 0x88);
        v[c + 4] = _mm512_shuffle_i32x4(a[c + 4], a[c + 12], 0x88);
        v[c + 8] = _mm512_shuffle_i32x4(a[c], a[c + 8], 0xdd);
        v[c + 12] = _mm512_shuffle_i32x4(a[c + 4], a[c + 12], 0xdd);
    }
}

#endif
