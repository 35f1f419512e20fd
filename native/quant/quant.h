/* Tensor types: one row per type, and nobody else knows a block layout by number.
 *
 * Layouts and names are those of GGUF (ggml). A type without a row is refused by name. */
#ifndef LMI_QUANT_QUANT_H
#define LMI_QUANT_QUANT_H

#include <stdint.h>

#include "base/text.h"

#ifdef __cplusplus
extern "C" {
#endif

/* Values as in GGUF files. */
typedef enum quant_type {
    QUANT_F32 = 0,
    QUANT_F16 = 1,
    QUANT_Q4_0 = 2,
    QUANT_Q4_1 = 3,
    QUANT_Q5_0 = 6,
    QUANT_Q5_1 = 7,
    QUANT_Q8_0 = 8,
    QUANT_Q2_K = 10,
    QUANT_Q3_K = 11,
    QUANT_Q4_K = 12,
    QUANT_Q5_K = 13,
    QUANT_Q6_K = 14,
    QUANT_IQ4_NL = 20,
    QUANT_IQ4_XS = 23,
    QUANT_BF16 = 30,
    QUANT_MXFP4 = 39,
    QUANT_TYPE_END = 40 /* tables indexed by type have this many entries */
} quant_type;

typedef struct quant_info {
    quant_type type;
    const char *name;
    uint32_t block_values; /* values in a block */
    uint32_t block_bytes;
    /* Decodes n values (whole blocks), bit-equal to the `gguf` package. `blocks` may have any alignment. */
    void (*to_f32)(const void *blocks, float *values, int64_t n);
} quant_info;

/* NULL if the type cannot be run. */
const quant_info *quant_find(uint32_t type);
const quant_info *quant_find_name(text_view name);

/* Its name in GGUF, supported or not: "IQ2_XXS"; NULL for a number that no version of the format has used. */
const char *quant_name(uint32_t type);

#ifdef __cplusplus
}
#endif
#endif
