/* Mixtures of experts on the CPU: each token goes to a few of many feed-forward blocks, and only their weights are touched.
 *
 * Tokens are sorted by expert, so that each expert's matrices pass through the cache once a chunk and meet all of its tokens
 * in one tiled product. A piece is a range of weight rows, the same of every expert, one expert after the other: sums are in
 * order of experts, whoever computes what. */
#include <math.h>
#include <string.h>

#include "backend/cpu.h"

/* ---- choice ------------------------------------------------------------------------------------------------------- */

static int32_t first_unchosen(const int32_t *chosen, int64_t n_chosen) {
    for (int32_t e = 0;; e++) {
        int64_t i = 0;
        while (i < n_chosen && chosen[i] != e) {
            i++;
        }
        if (i == n_chosen) {
            return e; /* n_chosen experts are taken, so this is at most expert n_chosen */
        }
    }
}

static void route_token(void *context, int64_t token, int worker) {
    backend_context *c = context;
    (void)worker;
    const model_spec *spec = c->model->spec;
    const int64_t n = spec->n_experts, n_used = spec->n_experts_used;
    const float *logits = c->buffers[BUFFER_R] + token * n;
    float *odds = c->routes.odds + token * n;
    int32_t *expert = c->routes.expert + token * n_used;
    float *share = c->routes.share + token * n_used;
    float top = -INFINITY, all = 0.0f, chosen = 0.0f;
    for (int64_t e = 0; e < n; e++) {
        top = logits[e] > top ? logits[e] : top;
    }
    for (int64_t e = 0; e < n; e++) {
        odds[e] = exp_f32(logits[e] - top);
        all += odds[e];
    }
    /* The first of equal ones; those that are no number come last, but there are always n_used different experts. */
    for (int64_t i = 0; i < n_used; i++) {
        int64_t best = -1;
        for (int64_t e = 0; e < n; e++) {
            if (odds[e] > -1.0f && (best < 0 || odds[e] > odds[best])) {
                best = e;
            }
        }
        if (best >= 0) {
            expert[i] = (int32_t)best;
            share[i] = odds[best];
            odds[best] = -1.0f;
        } else {
            expert[i] = first_unchosen(expert, i);
            share[i] = NAN;
        }
        chosen += share[i];
    }
    const float whole = spec->arch->experts == EXPERTS_NORMED ? chosen : all;
    for (int64_t i = 0; i < n_used; i++) {
        share[i] /= whole;
    }
}

void cpu_route(backend_context *c) {
    const int64_t n_tokens = c->chunk->n_tokens, n_experts = c->model->spec->n_experts, n_used = c->model->spec->n_experts_used;
    cpu_routes *routes = &c->routes;
    pool_run(c->model->workers, route_token, c, n_tokens);
    memset(routes->first_slot, 0, (size_t)(n_experts + 1) * sizeof *routes->first_slot);
    for (int64_t i = 0; i < n_tokens * n_used; i++) {
        routes->first_slot[routes->expert[i] + 1]++;
    }
    for (int64_t e = 0; e < n_experts; e++) {
        routes->first_slot[e + 1] += routes->first_slot[e];
    }
    /* first_slot[e] runs to the end of e's slots, which is where those of e + 1 begin, and is then put back. */
    for (int64_t i = 0; i < n_tokens * n_used; i++) {
        const int32_t slot = routes->first_slot[routes->expert[i]]++;
        routes->slot[i] = slot;
        routes->token[slot] = (int32_t)(i / n_used);
        routes->slot_share[slot] = routes->share[i];
    }
    memmove(routes->first_slot + 1, routes->first_slot, (size_t)n_experts * sizeof *routes->first_slot);
    routes->first_slot[0] = 0;
}

/* ---- products ----------------------------------------------------------------------------------------------------- */

/* One token's input, normed and packed, into each of its slots. */
static void pack_token(void *context, int64_t token, int worker_index) {
    backend_context *c = context;
    const step *s = c->step;
    cpu_worker *worker = &c->workers[worker_index];
    const int64_t n_used = c->model->spec->n_experts_used, width = s->w[0]->cols;
    const float *x = cpu_input_row(c, token);
    if (s->norm != NULL) {
        cpu_norm(c, s->norm, x, width, worker->row);
        x = worker->row;
    }
    for (int i = 0; i < 2; i++) {
        const act_kind kind = cpu_kind_of(c, s->w[i]);
        if (i == 1 && kind == cpu_kind_of(c, s->w[0])) {
            continue;
        }
        const size_t stride = c->packed_stride[kind];
        uint8_t *first = c->routes.packed[kind] + (size_t)c->routes.slot[token * n_used] * stride;
        c->model->kernels->pack[kind](x, width, first);
        for (int64_t u = 1; u < n_used; u++) {
            memcpy(c->routes.packed[kind] + (size_t)c->routes.slot[token * n_used + u] * stride, first,
                   act_row_bytes(kind, width));
        }
    }
}

/* A slot's own row of BUFFER_E. */
static void pack_slot(void *context, int64_t slot, int worker_index) {
    backend_context *c = context;
    (void)worker_index;
    const weight *w = c->step->w[0];
    const act_kind kind = cpu_kind_of(c, w);
    c->model->kernels->pack[kind](c->buffers[BUFFER_E] + slot * w->cols, w->cols,
                                  c->routes.packed[kind] + (size_t)slot * c->packed_stride[kind]);
}

static weight expert_of(const weight *all, int64_t e) {
    weight one = *all;
    one.data = (const uint8_t *)all->data + (size_t)(e * all->rows) * all->row_bytes;
    one.bias = all->bias != NULL ? all->bias + e * all->rows : NULL;
    return one;
}

static void multiply(const backend_context *c, int64_t e, const weight *all, cpu_worker *worker, int64_t row0, int64_t n_rows,
                     float *y) {
    const weight one = expert_of(all, e);
    const act_kind kind = cpu_kind_of(c, &one);
    const int32_t first = c->routes.first_slot[e];
    cpu_multiply(c, &one, worker, c->routes.packed[kind] + (size_t)first * c->packed_stride[kind],
                 c->routes.first_slot[e + 1] - first, row0, n_rows, y);
}

static void experts_piece(void *context, int64_t piece, int worker_index) {
    backend_context *c = context;
    const step *s = c->step;
    const kernels *k = c->model->kernels;
    const cpu_routes *routes = &c->routes;
    cpu_worker *worker = &c->workers[worker_index];
    const int64_t rows = s->w[0]->rows, row0 = piece * c->cut;
    const int64_t n = row0 + c->cut < rows ? c->cut : rows - row0;
    for (int64_t e = 0; e < c->model->spec->n_experts; e++) {
        const int64_t first = routes->first_slot[e], n_slots = routes->first_slot[e + 1] - first;
        if (n_slots == 0) {
            continue;
        }
        multiply(c, e, s->w[0], worker, row0, n, worker->part[0]);
        if (s->kind == STEP_EXPERTS_GATED) {
            multiply(c, e, s->w[1], worker, row0, n, worker->part[1]);
        }
        for (int64_t i = 0; i < n_slots; i++) {
            float *part = worker->part[0] + i * n;
            if (s->kind == STEP_EXPERTS_GATED) {
                float *out = c->buffers[BUFFER_E] + (first + i) * rows + row0;
                k->activate[c->model->spec->arch->activation](part, worker->part[1] + i * n, n, out);
            } else {
                k->scale(part, routes->slot_share[first + i], n);
                k->add(c->buffers[BUFFER_X] + routes->token[first + i] * rows + row0, part, n);
            }
        }
    }
}

void cpu_experts(backend_context *c) {
    const step *s = c->step;
    const int64_t n_tokens = c->chunk->n_tokens, n_slots = n_tokens * c->model->spec->n_experts_used;
    const int64_t rows = s->w[0]->rows, tokens_each = n_slots / c->model->spec->n_experts;
    c->cut = cpu_choose_cut(c, rows, s->w[0]->row_bytes, tokens_each);
    c->cut = c->cut < CUT_OF_MANY ? c->cut : CUT_OF_MANY; /* an expert may have all tokens of the chunk */
    if (s->kind == STEP_EXPERTS_GATED) {
        pool_run(c->model->workers, pack_token, c, n_tokens);
    } else {
        pool_run(c->model->workers, pack_slot, c, n_slots);
    }
    pool_run(c->model->workers, experts_piece, c, (rows + c->cut - 1) / c->cut);
}
