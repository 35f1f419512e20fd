/* Rows after the last norm: kept for who asked for them, and steered before they meet the output matrix.
 *
 * Steering is two products in float32, one row's as any other's: what a row becomes does not depend on threads, nor on the rows
 * beside it where a run is exact. */
#include "backend/cpu.h"

#include <string.h>

static size_t row_floats(int64_t width) { return act_row_bytes(ACT_F32, width) / sizeof(float); }

uint64_t cpu_steer_floats(const context_shape *shape, int64_t n_embd) {
    const uint64_t per_row = 2 * row_floats(n_embd) + row_floats(shape->steer_rank);
    return shape->steer_rank > 0 ? (uint64_t)shape->n_logits * per_row : 0;
}

static void norm_row(const backend_context *c, int64_t row, float *y) {
    const int64_t width = c->model->spec->n_embd;
    const float *x = cpu_input_row(c, row);
    if (c->step->norm != NULL) {
        cpu_norm(c, c->step->norm, x, width, y);
    } else {
        memcpy(y, x, (size_t)width * sizeof *y);
    }
}

static void keep_piece(void *context, int64_t piece, int worker) {
    const backend_context *c = context;
    (void)worker;
    norm_row(c, piece, c->chunk->last_hidden + piece * c->model->spec->n_embd);
}

void cpu_keep_hidden(backend_context *c) {
    const int64_t n = c->chunk->n_last_hidden;
    c->first_row = c->chunk->n_tokens - n;
    if (n > 0) {
        pool_run(c->model->workers, keep_piece, c, n);
    }
}

/* The parts of the work space: normed rows, which become the steered ones, what is added to them, and c P1. */
static float *steered(const backend_context *c) { return c->steer_work; }
static float *added(const backend_context *c) {
    return c->steer_work + (size_t)c->shape.n_logits * row_floats(c->model->spec->n_embd);
}
static float *coordinates(const backend_context *c) {
    return c->steer_work + 2 * (size_t)c->shape.n_logits * row_floats(c->model->spec->n_embd);
}

static void norm_piece(void *context, int64_t piece, int worker) {
    const backend_context *c = context;
    (void)worker;
    norm_row(c, piece, steered(c) + (size_t)piece * row_floats(c->model->spec->n_embd));
}

static void multiply_piece(const backend_context *c, int worker, int64_t piece, const float *w, int64_t n_rows, int64_t n_cols,
                           const float *x, float *y) {
    const int64_t row0 = piece * c->cut;
    const matmul_args args = {
        .w = w,
        .row_bytes = (size_t)n_cols * sizeof *w,
        .k = n_cols,
        .row0 = row0,
        .row1 = row0 + c->cut < n_rows ? row0 + c->cut : n_rows,
        .x = x,
        .x_stride = act_row_bytes(ACT_F32, n_cols),
        .n_tokens = c->n_rows,
        .y = y,
        .y_stride = (int64_t)row_floats(n_rows),
        .scratch = c->workers[worker].matmul_scratch,
    };
    c->model->kernels->matmul[QUANT_F32](&args);
}

static void down_piece(void *context, int64_t piece, int worker) {
    const backend_context *c = context;
    const steer_factors *f = c->chunk->steer;
    multiply_piece(c, worker, piece, f->down, f->rank, c->model->spec->n_embd, steered(c), coordinates(c));
}

static void up_piece(void *context, int64_t piece, int worker) {
    const backend_context *c = context;
    const steer_factors *f = c->chunk->steer;
    multiply_piece(c, worker, piece, f->up, c->model->spec->n_embd, f->rank, coordinates(c), added(c));
}

static void add_piece(void *context, int64_t piece, int worker) {
    const backend_context *c = context;
    const size_t at = (size_t)piece * row_floats(c->model->spec->n_embd);
    (void)worker;
    c->model->kernels->add(steered(c) + at, added(c) + at, c->model->spec->n_embd);
}

static void run_product(backend_context *c, void (*job)(void *, int64_t, int), int64_t n_rows, int64_t n_cols) {
    c->cut = cpu_choose_cut(c, n_rows, (size_t)n_cols * sizeof(float), c->n_rows);
    pool_run(c->model->workers, job, c, (n_rows + c->cut - 1) / c->cut);
}

void cpu_steer(backend_context *c) {
    const int64_t n_embd = c->model->spec->n_embd, rank = c->chunk->steer->rank;
    pool_run(c->model->workers, norm_piece, c, c->n_rows);
    run_product(c, down_piece, rank, n_embd);
    run_product(c, up_piece, n_embd, rank);
    pool_run(c->model->workers, add_piece, c, c->n_rows);
    c->instead = steered(c);
    c->instead_stride = (int64_t)row_floats(n_embd);
}
