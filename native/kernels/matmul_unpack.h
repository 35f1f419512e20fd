/* A quantised block as whole numbers, in the order of the columns: the form in which every kernel multiplies. Portable. */
#ifndef LMI_KERNELS_MATMUL_UNPACK_H
#define LMI_KERNELS_MATMUL_UNPACK_H

#include <stdint.h>

/* 32 values: w = d * q + m */
typedef struct block_32 {
    int8_t q[32];
    float d, m;
} block_32;

/* 256 values in groups of 16: w = d * scale * q - dmin * minimum */
typedef struct block_256 {
    int8_t q[256];
    int16_t scale[16], minimum[16];
    float d, dmin;
} block_256;

/* `block`: one block of the type, any alignment. Types without m, or without minima, give zeros there. */
void unpack_q4_0(const void *block, block_32 *out);
void unpack_q4_1(const void *block, block_32 *out);
void unpack_q5_0(const void *block, block_32 *out);
void unpack_q5_1(const void *block, block_32 *out);
void unpack_q8_0(const void *block, block_32 *out);
void unpack_iq4_nl(const void *block, block_32 *out);
void unpack_mxfp4(const void *block, block_32 *out); /* d is half the scale of the format: the values are doubled */
void unpack_q2_K(const void *block, block_256 *out);
void unpack_q3_K(const void *block, block_256 *out);
void unpack_q4_K(const void *block, block_256 *out);
void unpack_q5_K(const void *block, block_256 *out);
void unpack_q6_K(const void *block, block_256 *out);
void unpack_iq4_xs(const void *block, block_256 *out);

#endif
