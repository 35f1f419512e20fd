/* The matmul column for AVX-512 (VNNI). */
#include "kernels/matmul_avx512.h"

#include "kernels/fill.h"
#include "kernels/matmul_parts.h"

#define CHOOSE(TYPE, NAME) MATMUL_CHOOSE(NAME, avx512, avx512)
MATMUL_INTEGER_TYPES(CHOOSE)
#undef CHOOSE

static size_t scratch_bytes(int64_t k) {
    size_t most = matmul_rows_scratch_avx512(k);
    most = matmul_tiles_scratch_avx512() > most ? matmul_tiles_scratch_avx512() : most;
    return matmul_float_scratch_avx512() > most ? matmul_float_scratch_avx512() : most;
}

void matmul_fill_avx512(kernels *table) {
#define ROW(TYPE, NAME) table->matmul[QUANT_##TYPE] = matmul_##NAME##_with_avx512;
    MATMUL_INTEGER_TYPES(ROW)
#undef ROW
    table->matmul[QUANT_F32] = matmul_f32_avx512;
    table->matmul[QUANT_F16] = matmul_f16_avx512;
    table->matmul[QUANT_BF16] = matmul_bf16_avx512;
    table->matmul_scratch = scratch_bytes;
    pack_fill_avx512(table);
}
