/* The matmul column for AMX: that of AVX-512 but for the weights that are multiplied as bytes with many tokens. */
#include "kernels/fill.h"
#include "kernels/matmul_avx512.h"
#include "kernels/matmul_parts.h"

#define CHOOSE(TYPE, NAME) MATMUL_CHOOSE(NAME, avx512, amx)
MATMUL_INTEGER_TYPES(CHOOSE)
#undef CHOOSE

static size_t scratch_bytes(int64_t k) {
    size_t most = matmul_rows_scratch_avx512(k);
    most = matmul_tiles_scratch_amx() > most ? matmul_tiles_scratch_amx() : most;
    return matmul_float_scratch_avx512() > most ? matmul_float_scratch_avx512() : most;
}

void matmul_fill_amx(kernels *table) {
    matmul_fill_avx512(table);
#define ROW(TYPE, NAME) table->matmul[QUANT_##TYPE] = matmul_##NAME##_with_amx;
    MATMUL_INTEGER_TYPES(ROW)
#undef ROW
    table->matmul_scratch = scratch_bytes;
}
