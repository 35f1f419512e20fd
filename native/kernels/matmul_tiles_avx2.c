/* The tiled kernels with vpmaddubsw. */
#define TILES_NAME(NAME) matmul_tiles_##NAME##_avx2
#include "kernels/matmul_tiles_avx2.h"

size_t matmul_tiles_scratch_avx2(void) { return tiles_scratch(); }
