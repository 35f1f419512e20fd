#include "kernels/matmul_tiles.h"

#include <string.h>

/* All tiles, a panel, and the sums of one tile. */
size_t matmul_tiled_scratch(const tile_kernel *kernel) {
    size_t sums = (size_t)(kernel->tokens * kernel->rows) * sizeof(float);
    return act_round((size_t)kernel->tiles * kernel->tile_bytes + kernel->panel_bytes + sums);
}

static const void *token_row(const matmul_args *a, int64_t t) { return (const char *)a->x + (size_t)t * a->x_stride; }

static void unpack(const matmul_args *a, const tile_kernel *kernel, int64_t r0, int64_t c0, int columns, void *tile) {
    const uint8_t *rows[TILE_MAX_ROWS];
    for (int i = 0; i < kernel->rows; i++) { /* beyond the last row, that row again: its results are dropped */
        int64_t row = r0 + i < a->row1 ? r0 + i : a->row1 - 1;
        rows[i] = (const uint8_t *)a->w + (size_t)row * a->row_bytes;
    }
    kernel->unpack(rows, c0, columns, tile);
}

static int smaller(int64_t a, int b) { return a < b ? (int)a : b; }

/* While tile i of n is multiplied: its share of the activations for the panel from token t0 on. */
static fetch_plan plan_fetching(const matmul_args *a, const tile_kernel *kernel, int64_t t0, int64_t c0, int columns, int i,
                                int n) {
    const int n_tokens = t0 < a->n_tokens ? smaller(a->n_tokens - t0, kernel->tokens) : 0;
    const int first = n_tokens * i / n, steps = (columns + TILE_STEP - 1) / TILE_STEP;
    fetch_plan plan = {.row = (const char *)a->x + (size_t)(t0 + first) * a->x_stride + c0 * kernel->x_bytes,
                       .stride = a->x_stride,
                       .n_rows = n_tokens * (i + 1) / n - first,
                       .n_lines = (columns * kernel->x_bytes + 63) / 64};
    plan.per_step = (plan.n_rows * plan.n_lines + steps - 1) / steps;
    return plan;
}

/* A tile that sticks out of the matrix, or a panel with fewer tokens: by way of a whole one. */
static void multiply_part(const tile_kernel *kernel, const void *tile, const void *panel, int columns, int n_rows, int n,
                          fetch_plan *soon, tile_sums sums, float *whole) {
    for (int t = 0; !sums.first && t < n; t++) {
        memcpy(whole + t * kernel->rows, sums.y + t * sums.stride, (size_t)n_rows * sizeof *whole);
    }
    kernel->multiply(tile, panel, columns, n_rows, n, soon, (tile_sums){whole, kernel->rows, sums.first});
    for (int t = 0; t < n; t++) {
        memcpy(sums.y + t * sums.stride, whole + t * kernel->rows, (size_t)n_rows * sizeof *whole);
    }
}

void matmul_tiled(const matmul_args *a, const tile_kernel *kernel) {
    char *tiles = a->scratch, *panel = tiles + (size_t)kernel->tiles * kernel->tile_bytes;
    float *whole = (float *)(void *)(panel + kernel->panel_bytes);
    memset(whole, 0, (size_t)(kernel->tokens * kernel->rows) * sizeof *whole);

    for (int64_t r0 = a->row0; r0 < a->row1; r0 += kernel->tiles * kernel->rows) {
        const int n_rows = smaller(a->row1 - r0, kernel->tiles * kernel->rows);
        const int n_tiles = (n_rows + kernel->rows - 1) / kernel->rows;
        for (int64_t c0 = 0; c0 < a->k; c0 += kernel->columns) {
            const int columns = smaller(a->k - c0, kernel->columns);
            for (int i = 0; i < n_tiles; i++) {
                unpack(a, kernel, r0 + i * kernel->rows, c0, columns, tiles + (size_t)i * kernel->tile_bytes);
            }
            for (int64_t t0 = 0; t0 < a->n_tokens; t0 += kernel->tokens) {
                const int n = smaller(a->n_tokens - t0, kernel->tokens);
                const void *x[TILE_MAX_TOKENS];
                for (int t = 0; t < n; t++) {
                    x[t] = token_row(a, t0 + t);
                }
                kernel->fill_panel(x, a->k, c0, columns, n, panel);
                for (int i = 0; i < n_tiles; i++) {
                    const int64_t r = r0 + i * kernel->rows;
                    const int rows = smaller(a->row1 - r, kernel->rows);
                    const void *tile = tiles + (size_t)i * kernel->tile_bytes;
                    fetch_plan soon = plan_fetching(a, kernel, t0 + kernel->tokens, c0, columns, i, n_tiles);
                    const tile_sums sums = {a->y + t0 * a->y_stride + r, a->y_stride, c0 == 0};
                    if (rows == kernel->rows && n == kernel->tokens) {
                        kernel->multiply(tile, panel, columns, rows, n, &soon, sums);
                    } else {
                        multiply_part(kernel, tile, panel, columns, rows, n, &soon, sums, whole);
                    }
                }
            }
        }
    }
}
