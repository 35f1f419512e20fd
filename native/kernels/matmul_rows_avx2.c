/* The row-wise kernels with vpmaddubsw. */
#define ROWS_ISA avx2
#include "kernels/matmul_rows_avx2.h"

size_t matmul_rows_scratch_avx2(int64_t k) { return PASS_TOKENS * act_round((size_t)k); }
