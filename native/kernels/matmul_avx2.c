/* The matmul column for AVX2. */
#include "kernels/matmul_avx2.h"

#include "kernels/fill.h"

#define CHOOSE(TYPE, NAME) MATMUL_CHOOSE(NAME, avx2, avx2)
MATMUL_INTEGER_TYPES(CHOOSE)
#undef CHOOSE

static size_t scratch_bytes(int64_t k) {
    size_t most = matmul_rows_scratch_avx2(k);
    most = matmul_tiles_scratch_avx2() > most ? matmul_tiles_scratch_avx2() : most;
    return matmul_float_scratch_avx2() > most ? matmul_float_scratch_avx2() : most;
}

void matmul_fill_avx2(kernels *table) {
#define ROW(TYPE, NAME) table->matmul[QUANT_##TYPE] = matmul_##NAME##_with_avx2;
    MATMUL_INTEGER_TYPES(ROW)
#undef ROW
    table->matmul[QUANT_F32] = matmul_f32_avx2;
    table->matmul[QUANT_F16] = matmul_f16_avx2;
    table->matmul[QUANT_BF16] = matmul_bf16_avx2;
    table->matmul_scratch = scratch_bytes;
    pack_fill_avx2(table);
}
