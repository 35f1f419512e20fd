/* Matmul for many tokens: the loops, which are the same for every type and instruction set.
 *
 *   for a few tiles of rows, for a block of columns:   unpack the tiles             they stay in the L2 cache
 *       for a few tokens:                              copy a panel of activations  it stays in the L1 cache
 *           for each tile:                             multiply it with the panel, add to y
 *
 * A row's result does not depend on its place in a tile, nor a token's on its place in a panel. */
#ifndef LMI_KERNELS_MATMUL_TILES_H
#define LMI_KERNELS_MATMUL_TILES_H

#include "kernels/kernels.h"

enum { TILE_MAX_ROWS = 32, TILE_MAX_TOKENS = 16, TILE_STEP = 32, FETCH_LINES = 384 };

/* Cache lines that will be wanted soon: the activations of the next panel, the results that the tile is added to. They come
 * from the L3 cache or from memory, and asked for all at once they block the loads of the tile (10 % of the time); so
 * `multiply` asks for a few every TILE_STEP columns. */
typedef struct fetch_list {
    int per_step;
    const void *line[FETCH_LINES];
} fetch_list;

static inline void fetch_some(const fetch_list *list, int step) {
    for (int i = 0; i < list->per_step; i++) {
        __builtin_prefetch(list->line[step * list->per_step + i], 0, 2);
    }
}

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
    /* y[n][rows]; of the rows only the first n_rows are wanted. Calls fetch_some for steps 0 .. (columns - 1) / TILE_STEP. */
    void (*multiply)(const void *tile, const void *panel, int columns, int n_rows, int n, const fetch_list *soon, float *y);
} tile_kernel;

void matmul_tiled(const matmul_args *args, const tile_kernel *kernel);
size_t matmul_tiled_scratch(const tile_kernel *kernel);

#endif
