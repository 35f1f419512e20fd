/* The parts of the NEON column: row-wise kernels for few tokens, tiled ones for many. */
#ifndef LMI_KERNELS_MATMUL_NEON_H
#define LMI_KERNELS_MATMUL_NEON_H

#include <arm_neon.h>

#include "kernels/kernels.h"
#include "kernels/matmul_parts.h"

#define MATMUL_DECLARE(TYPE, NAME)                                                                                             \
    void matmul_rows_##NAME##_neon(const matmul_args *a);                                                                      \
    void matmul_tiles_##NAME##_neon(const matmul_args *a);                                                                     \
    void matmul_tiles_##NAME##_i8mm(const matmul_args *a); /* for CPUs with smmla */
MATMUL_INTEGER_TYPES(MATMUL_DECLARE)
#undef MATMUL_DECLARE

size_t matmul_tiles_scratch_neon(void);

void matmul_f32_neon(const matmul_args *a);
void matmul_f16_neon(const matmul_args *a);
void matmul_bf16_neon(const matmul_args *a);
size_t matmul_float_scratch_neon(void);

/* Rows of 4 dwords to columns. */
INLINE void transpose_4x4(int32x4_t v[4]) {
    int32x4_t a = vtrn1q_s32(v[0], v[1]), b = vtrn2q_s32(v[0], v[1]), c = vtrn1q_s32(v[2], v[3]), d = vtrn2q_s32(v[2], v[3]);
    v[0] = vcombine_s32(vget_low_s32(a), vget_low_s32(c));
    v[1] = vcombine_s32(vget_low_s32(b), vget_low_s32(d));
    v[2] = vcombine_s32(vget_high_s32(a), vget_high_s32(c));
    v[3] = vcombine_s32(vget_high_s32(b), vget_high_s32(d));
}

#endif
