/* The encoders: float32 values to blocks, each found by search for the least squared error.
 *
 * A block is encoded by itself and by one thread, so the bytes depend on nothing but the values and their weights: not on
 * threads, and not on the machine (lanes_ref.h says how). `weights` are positive, one per value: what is minimised is
 * sum w (x - decoded x)^2. Values are finite and at most ENCODE_MOST in magnitude, which every binary16 scale can hold. */
#ifndef LMI_QUANT_ENCODE_H
#define LMI_QUANT_ENCODE_H

#include "quant/quant.h"

#define ENCODE_MOST 65504.0f

/* One block of info->block_values values. `block` may have any alignment. */
typedef void encode_block(const float *values, const float *weights, void *block);

typedef struct encoders {
    encode_block *block[QUANT_TYPE_END]; /* NULL: not a type of blocks */
} encoders;

/* One table per instruction set; the ones that are not built do not exist. Their bytes are equal. */
extern const encoders encoders_ref;
#if defined(__x86_64__)
extern const encoders encoders_avx2;
extern const encoders encoders_avx512;
#endif

/* The fastest that this CPU runs. */
const encoders *encoders_best(void);

#endif
