/* The matmul column for AMX: that of AVX-512 but for many tokens, with weights that are multiplied as bytes or as halves. */
#include "kernels/matmul_amx.h"
#include "kernels/fill.h"
#include "kernels/matmul_avx512.h"
#include "kernels/matmul_parts.h"

#define CHOOSE(TYPE, NAME) MATMUL_CHOOSE(NAME, avx512, amx)
MATMUL_INTEGER_TYPES(CHOOSE)
#undef CHOOSE

static void matmul_f16_with_amx(const matmul_args *a) {
    (a->n_tokens <= MATMUL_ROWWISE_TOKENS ? matmul_f16_avx512 : matmul_f16_amx)(a);
}
static void matmul_bf16_with_amx(const matmul_args *a) {
    (a->n_tokens <= MATMUL_ROWWISE_TOKENS ? matmul_bf16_avx512 : matmul_bf16_amx)(a);
}

static size_t scratch_bytes(int64_t k) {
    size_t most = matmul_rows_scratch_avx512(k);
    most = matmul_tiles_scratch_amx() > most ? matmul_tiles_scratch_amx() : most;
    most = matmul_float_scratch_amx() > most ? matmul_float_scratch_amx() : most;
    return matmul_float_scratch_avx512() > most ? matmul_float_scratch_avx512() : most;
}

void matmul_fill_amx(kernels *table) {
    matmul_fill_avx512(table);
#define ROW(TYPE, NAME) table->matmul[QUANT_##TYPE] = matmul_##NAME##_with_amx;
    MATMUL_INTEGER_TYPES(ROW)
#undef ROW
    table->matmul[QUANT_F16] = matmul_f16_with_amx;
    table->matmul[QUANT_BF16] = matmul_bf16_with_amx;
    table->matmul_scratch = scratch_bytes;
}
