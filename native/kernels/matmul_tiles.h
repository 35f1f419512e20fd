/* Matmul for many tokens: the loops, which are the same for every type and instruction set.
 *
 *   for a few tiles of rows, for a block of columns:   unpack the tiles             they stay in the L2 cache
 *       for a few tokens:                              copy a panel of activations  it stays in the L1 cache
 *           for each tile:                             multiply it with the panel, add to y
 *
 * A row's result does not depend on its place in a tile, nor a token's on its place in a panel. */
#ifndef LMI_KERNELS_MATMUL_TILES_H
#define LMI_KERNELS_MATMUL_TILES_H

#include <stdbool.h>

#include "kernels/kernels.h"

enum { TILE_MAX_ROWS = 32, TILE_MAX_TOKENS = 16, TILE_STEP = 32 };

/* The cache lines of the next panel's activations. They come from the L3 cache or from memory, and asked for all at once they
 * block the loads of the tile (10 % of the time); so `multiply` asks for a few every TILE_STEP columns. */
typedef struct fetch_plan {
    const char *row; /* of the token in turn */
    size_t stride;
    int n_rows, n_lines; /* rows that are left; lines of each */
    int line, per_step;
} fetch_plan;

static inline void fetch_some(fetch_plan *soon) {
    for (int i = 0; i < soon->per_step && soon->n_rows > 0; i++) {
        __builtin_prefetch(soon->row + 64 * soon->line, 0, 2);
        if (++soon->line == soon->n_lines) {
            soon->line = 0;
            soon->row += soon->stride;
            soon->n_rows--;
        }
    }
}

/* Where a tile's results go: row r of token t at y[t * stride + r]; `first`, or they are added to what is there. */
typedef struct tile_sums {
    float *y;
    int64_t stride;
    bool first;
} tile_sums;

typedef struct tile_kernel {
    int rows;                       /* in a tile */
    int tiles;                      /* unpacked at a time */
    int tokens;                     /* in a panel */
    int columns;                    /* in a tile and a panel, whole blocks of every type */
    int x_bytes;                    /* of an activation in a packed row, for fetching ahead */
    size_t tile_bytes, panel_bytes; /* multiples of 64 */

    /* c0 .. c0 + columns - 1 of `rows` rows, which begin at rows[i]. */
    void (*unpack)(const uint8_t *const *rows, int64_t c0, int columns, void *tile);
    /* The same columns of n packed rows, which begin at x[i]; k columns in all. */
    void (*fill_panel)(const void *const *x, int64_t k, int64_t c0, int columns, int n, void *panel);
    /* Adds what it has summed up from zero, or single blocks, to y. Of the results only n_rows of n tokens are wanted; there is room for all. Calls fetch_some every TILE_STEP columns. */
    void (*multiply)(const void *tile, const void *panel, int columns, int n_rows, int n, fetch_plan *soon, tile_sums sums);
} tile_kernel;

void matmul_tiled(const matmul_args *args, const tile_kernel *kernel);
size_t matmul_tiled_scratch(const tile_kernel *kernel);

#endif
