/* What the weights of a step are multiplied with: squares, summed over all rows, for quantizers that spend their bits where a
 * column matters. One thread adds in order of tokens, so that the sums do not depend on the number of threads; it is a twentieth
 * of the time that the products take. */
#include "backend/cpu.h"

int64_t cpu_sums_of(const backend_model *model, const step *s, int64_t *width) {
    *width = s->w[0] != NULL ? s->w[0]->cols : 0;
    switch (s->kind) {
    case STEP_LINEAR:
    case STEP_LINEAR_ADD:
    case STEP_GATED:
        return 1;
    case STEP_EXPERTS_GATED:
    case STEP_EXPERTS_ADD:
        return model->spec->n_experts;
    case STEP_EMBED:
    case STEP_ATTEND:
    case STEP_ADD_NORM:
    case STEP_ROUTE:
        break;
    }
    return 0;
}

static void add_row(const input_sums *sums, int64_t matrix, const float *x) {
    double *squares = sums->squares + matrix * sums->width;
    for (int64_t i = 0; i < sums->width; i++) {
        squares[i] += (double)x[i] * (double)x[i];
    }
    sums->counts[matrix]++;
}

/* A row of the step's input as its weights get it. */
static const float *normed_row(const backend_context *c, int64_t row) {
    const float *x = cpu_input_row(c, row);
    if (c->step->norm == NULL) {
        return x;
    }
    cpu_norm(c, c->step->norm, x, c->step->w[0]->cols, c->workers[0].row);
    return c->workers[0].row;
}

void cpu_add_importance(backend_context *c) {
    const input_sums *sums = &c->sums[c->step - c->model->steps];
    const int64_t n_tokens = c->chunk->n_tokens, n_used = c->model->spec->n_experts_used;
    if (sums->n == 0) {
        return;
    }
    if (c->step->kind == STEP_EXPERTS_ADD) { /* its input lies in order of experts */
        for (int64_t e = 0; e < sums->n; e++) {
            for (int32_t slot = c->routes.first_slot[e]; slot < c->routes.first_slot[e + 1]; slot++) {
                add_row(sums, e, c->buffers[BUFFER_E] + slot * sums->width);
            }
        }
        return;
    }
    for (int64_t t = 0; t < n_tokens; t++) {
        const float *x = normed_row(c, t);
        if (c->step->kind == STEP_EXPERTS_GATED) {
            for (int64_t u = 0; u < n_used; u++) {
                add_row(sums, c->routes.expert[t * n_used + u], x);
            }
        } else {
            add_row(sums, 0, x);
        }
    }
}
