/* The tiled kernels with sdot. */
#define TILES_NAME(NAME) matmul_tiles_##NAME##_neon
#include "kernels/matmul_tiles_neon.h"

size_t matmul_tiles_scratch_neon(void) { /* with smmla just as much */
    const tile_kernel kernel = {
        .rows = ROWS, .tiles = TILES, .tokens = TOKENS, .tile_bytes = sizeof(tile), .panel_bytes = sizeof(panel)};
    return matmul_tiled_scratch(&kernel);
}
