/* The matmul column for NEON. */
#include "kernels/matmul_neon.h"

#include "kernels/fill.h"

#define CHOOSE(TYPE, NAME)                                                                                                     \
    static void matmul_##NAME(const matmul_args *a) {                                                                          \
        if (a->n_tokens <= MATMUL_ROWWISE_TOKENS) {                                                                            \
            matmul_rows_##NAME##_neon(a);                                                                                      \
        } else {                                                                                                               \
            matmul_tiles_##NAME##_neon(a);                                                                                     \
        }                                                                                                                      \
    }
MATMUL_INTEGER_TYPES(CHOOSE)
#undef CHOOSE

static size_t scratch_bytes(int64_t k) {
    size_t integers = matmul_tiles_scratch_neon(), floats = matmul_float_scratch_neon();
    (void)k;
    return integers > floats ? integers : floats;
}

void matmul_fill_neon(kernels *table) {
#define ROW(TYPE, NAME) table->matmul[QUANT_##TYPE] = matmul_##NAME;
    MATMUL_INTEGER_TYPES(ROW)
#undef ROW
    table->matmul[QUANT_F32] = matmul_f32_neon;
    table->matmul[QUANT_F16] = matmul_f16_neon;
    table->matmul[QUANT_BF16] = matmul_bf16_neon;
    table->matmul_scratch = scratch_bytes;
    pack_fill_neon(table);
}
