/* The tiled kernels with smmla, for CPUs that have it (ARMv8.6, option i8mm). */
#define TILES_NAME(NAME) matmul_tiles_##NAME##_i8mm
#include "kernels/matmul_tiles_neon.h"
