/* The matmul column for AVX2. */
#include "kernels/fill.h"
#include "kernels/matmul_parts.h"

void matmul_fill_avx2(kernels *table) { pack_fill_avx2(table); }
