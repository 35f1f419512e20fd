/* The parts of the AVX-512 column: row-wise kernels for few tokens, tiled ones for many. */
#ifndef LMI_KERNELS_MATMUL_AVX512_H
#define LMI_KERNELS_MATMUL_AVX512_H

#include "kernels/kernels.h"

/* Every integer type: NAME of q4_0, ... */
#define MATMUL_INTEGER_TYPES(X)                                                                                             \
    X(Q4_0, q4_0)                                                                                                           \
    X(Q4_1, q4_1) X(Q5_0, q5_0) X(Q5_1, q5_1) X(Q8_0, q8_0) X(IQ4_NL, iq4_nl) X(MXFP4, mxfp4) X(Q2_K, q2_K) X(Q3_K, q3_K) \
        X(Q4_K, q4_K) X(Q5_K, q5_K) X(Q6_K, q6_K) X(IQ4_XS, iq4_xs)

#define MATMUL_DECLARE(TYPE, NAME) \
    void matmul_rows_##NAME##_avx512(const matmul_args *a); \
    void matmul_tiles_##NAME##_avx512(const matmul_args *a);
MATMUL_INTEGER_TYPES(MATMUL_DECLARE)
#undef MATMUL_DECLARE

size_t matmul_rows_scratch_avx512(int64_t k);
size_t matmul_tiles_scratch_avx512(int64_t k);

void matmul_f32_avx512(const matmul_args *a);
void matmul_f16_avx512(const matmul_args *a);
void matmul_bf16_avx512(const matmul_args *a);
size_t matmul_float_scratch_avx512(int64_t k);

#endif
