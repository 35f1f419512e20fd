/* The tiled kernels with vpdpbusd, for CPUs that have it without AVX-512 (AVX-VNNI). */
#define TILES_NAME(NAME) matmul_tiles_##NAME##_avxvnni
#include "kernels/matmul_tiles_avx2.h"

size_t matmul_tiles_scratch_avxvnni(void) { return tiles_scratch(); }
