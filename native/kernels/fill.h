/* How a column of the table of kernels is put together: every family of kernels has a function per instruction set that sets
 * the entries it has and leaves the others as they are.
 *
 * kernels.c calls all `_ref` functions first, for every column, so that an instruction set need only override what it does
 * better. The functions do not set `isa`. */
#ifndef LMI_KERNELS_FILL_H
#define LMI_KERNELS_FILL_H

#include "kernels/kernels.h"

/* act, matmul, matmul_scratch, pack */
void matmul_fill_ref(kernels *table);
void matmul_fill_avx2(kernels *table);
void matmul_fill_avxvnni(kernels *table);
void matmul_fill_avx512(kernels *table);
void matmul_fill_amx(kernels *table);
void matmul_fill_neon(kernels *table);

/* kv_store, attend_ring, attend_sinks, attend_scratch */
void attention_fill_ref(kernels *table);
void attention_fill_avx2(kernels *table);
void attention_fill_avx512(kernels *table);
void attention_fill_neon(kernels *table);

/* rms_norm, layer_norm, rope, activate, softcap, clamp, add, scale */
void vector_fill_ref(kernels *table);
void vector_fill_avx2(kernels *table);
void vector_fill_avx512(kernels *table);

#endif
