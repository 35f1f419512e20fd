/* The matmul column for AVX-VNNI: that of AVX2 but for the weights that are multiplied as bytes. */
#include "kernels/fill.h"
#include "kernels/matmul_avx2.h"

#define CHOOSE(TYPE, NAME) MATMUL_CHOOSE(NAME, avxvnni, avxvnni)
MATMUL_INTEGER_TYPES(CHOOSE)
#undef CHOOSE

static size_t scratch_bytes(int64_t k) {
    size_t most = matmul_rows_scratch_avx2(k);
    most = matmul_tiles_scratch_avxvnni() > most ? matmul_tiles_scratch_avxvnni() : most;
    return matmul_float_scratch_avx2() > most ? matmul_float_scratch_avx2() : most;
}

void matmul_fill_avxvnni(kernels *table) {
    matmul_fill_avx2(table);
#define ROW(TYPE, NAME) table->matmul[QUANT_##TYPE] = matmul_##NAME##_with_avxvnni;
    MATMUL_INTEGER_TYPES(ROW)
#undef ROW
    table->matmul_scratch = scratch_bytes;
}
