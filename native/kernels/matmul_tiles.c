#include "kernels/matmul_tiles.h"

/* All tiles, a panel, and the sums of one tile. */
size_t matmul_tiled_scratch(const tile_kernel *kernel) {
    size_t sums = (size_t)(kernel->tokens * kernel->rows) * sizeof(float);
    return act_round((size_t)kernel->tiles * kernel->tile_bytes + kernel->panel_bytes + sums);
}

static const void *token_row(const matmul_args *a, int64_t t) {
    int64_t last = a->n_tokens - 1; /* stands for the tokens after it in what is fetched ahead */
    return (const char *)a->x + (size_t)(t < last ? t : last) * a->x_stride;
}

static void unpack(const matmul_args *a, const tile_kernel *kernel, int64_t r0, int64_t c0, int columns, void *tile) {
    const uint8_t *rows[TILE_MAX_ROWS];
    for (int i = 0; i < kernel->rows; i++) { /* beyond the last row, that row again: its results are dropped */
        int64_t row = r0 + i < a->row1 ? r0 + i : a->row1 - 1;
        rows[i] = (const uint8_t *)a->w + (size_t)row * a->row_bytes;
    }
    kernel->unpack(rows, c0, columns, tile);
}

/* While tile i of n is multiplied: the results that it adds to, and its share of the activations for the next panel. */
static void list_lines(const matmul_args *a, const tile_kernel *kernel, int64_t r0, int64_t t0, int64_t c0, int columns, int i,
                       int n, int n_tokens, fetch_list *list) {
    int m = 0;
    for (int t = 0; t < n_tokens; t++) {
        for (int r = 0; r < kernel->rows; r += 16) {
            list->line[m++] = (const void *)((uintptr_t)(a->y + (t0 + t) * a->y_stride + r0) + (uintptr_t)r * sizeof(float));
        }
    }
    const int x_lines = (columns * kernel->x_bytes + 63) / 64;
    for (int t = kernel->tokens * i / n; t < kernel->tokens * (i + 1) / n; t++) {
        const char *x = (const char *)token_row(a, t0 + kernel->tokens + t) + c0 * kernel->x_bytes;
        for (int line = 0; line < x_lines; line++) {
            list->line[m++] = x + 64 * line;
        }
    }
    const int steps = (columns + TILE_STEP - 1) / TILE_STEP;
    list->per_step = (m + steps - 1) / steps;
    for (int last = m - 1; m < steps * list->per_step; m++) {
        list->line[m] = list->line[last];
    }
}

static void add_sums(const matmul_args *a, const tile_kernel *kernel, int64_t r0, int n_rows, int64_t t0, int n_tokens,
                     int64_t c0, const float *sums) {
    for (int t = 0; t < n_tokens; t++, sums += kernel->rows) {
        float *y = a->y + (t0 + t) * a->y_stride + r0;
        for (int r = 0; r < n_rows; r++) {
            y[r] = c0 == 0 ? sums[r] : y[r] + sums[r];
        }
    }
}

static int smaller(int64_t a, int b) { return a < b ? (int)a : b; }

void matmul_tiled(const matmul_args *a, const tile_kernel *kernel) {
    char *tiles = a->scratch, *panel = tiles + (size_t)kernel->tiles * kernel->tile_bytes;
    float *sums = (float *)(void *)(panel + kernel->panel_bytes);

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
                fetch_list soon;
                for (int t = 0; t < n; t++) {
                    x[t] = token_row(a, t0 + t);
                }
                kernel->fill_panel(x, a->k, c0, columns, n, panel);
                for (int i = 0; i < n_tiles; i++) {
                    const int64_t r = r0 + i * kernel->rows;
                    const int rows = smaller(a->row1 - r, kernel->rows);
                    list_lines(a, kernel, r, t0, c0, columns, i, n_tiles, n, &soon);
                    kernel->multiply(tiles + (size_t)i * kernel->tile_bytes, panel, columns, rows, n, &soon, sums);
                    add_sums(a, kernel, r, rows, t0, n, c0, sums);
                }
            }
        }
    }
}
