/* The decoders behind the table of quant.c: n values, whole blocks, `blocks` of any alignment. */
#ifndef LMI_QUANT_DEQUANT_H
#define LMI_QUANT_DEQUANT_H

#include <stddef.h>
#include <stdint.h>
#include <string.h>

/* A block sits at any address in a mapped file: memcpy is the portable unaligned load, and costs nothing. */
#define BLOCK_AT(block, blocks, index)                                                                                         \
    memcpy(&(block), (const uint8_t *)(blocks) + (size_t)(index) * sizeof(block), sizeof(block))

void dequant_f32(const void *blocks, float *values, int64_t n);
void dequant_f16(const void *blocks, float *values, int64_t n);
void dequant_bf16(const void *blocks, float *values, int64_t n);
void dequant_q4_0(const void *blocks, float *values, int64_t n);
void dequant_q4_1(const void *blocks, float *values, int64_t n);
void dequant_q5_0(const void *blocks, float *values, int64_t n);
void dequant_q5_1(const void *blocks, float *values, int64_t n);
void dequant_q8_0(const void *blocks, float *values, int64_t n);
void dequant_iq4_nl(const void *blocks, float *values, int64_t n);
void dequant_mxfp4(const void *blocks, float *values, int64_t n);
void dequant_q2_K(const void *blocks, float *values, int64_t n);
void dequant_q3_K(const void *blocks, float *values, int64_t n);
void dequant_q4_K(const void *blocks, float *values, int64_t n);
void dequant_q5_K(const void *blocks, float *values, int64_t n);
void dequant_q6_K(const void *blocks, float *values, int64_t n);
void dequant_iq4_xs(const void *blocks, float *values, int64_t n);

#endif
