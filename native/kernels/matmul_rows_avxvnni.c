/* The row-wise kernels with vpdpbusd, for CPUs that have it without AVX-512 (AVX-VNNI). */
#define ROWS_ISA avxvnni
#include "kernels/matmul_rows_avx2.h"
