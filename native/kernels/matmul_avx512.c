/* The matmul column for AVX-512. */
#include "kernels/fill.h"
#include "kernels/matmul_parts.h"

void matmul_fill_avx512(kernels *table) { pack_fill_avx512(table); }
