/* The CPU backend: memory of a session, and the steps as jobs for the pool.
 *
 * A step over one row packs its input redundantly on every worker instead of paying for a barrier; over more rows the input
 * is packed by all first. Weight rows are cut into pieces that are taken from a counter: what a row's result is does not
 * depend on the cut. */
#include "backend/cpu.h"

#include <string.h>

#include "base/checked.h"

/* ---- memory ------------------------------------------------------------------------------------------------------- */

/* Takes from the arena, or only adds up what it would take: one description of the memory serves plan and open. */
typedef struct taker {
    arena *memory; /* NULL: count */
    uint64_t bytes;
    bool failed;
} taker;

static void *take(taker *t, uint64_t n, uint64_t size) {
    uint64_t bytes;
    if (!ck_mul(n, size, &bytes) || !ck_align(bytes, 64, &bytes) || !ck_add(t->bytes, bytes, &t->bytes) || bytes > SIZE_MAX) {
        t->failed = true;
        return NULL;
    }
    if (t->memory == NULL || bytes == 0) {
        return NULL;
    }
    void *memory = arena_take(t->memory, (size_t)bytes);
    t->failed |= memory == NULL;
    return memory;
}

static uint64_t layer_bytes(const model_spec *spec, const context_shape *shape, const layer_context *layer) {
    const uint64_t n = (uint64_t)spec->n_kv_heads;
    const size_t ring = kv_bank_bytes(shape->kv_type, spec->head_dim, kv_round_slots(layer->capacity));
    const size_t sinks = kv_bank_bytes(shape->kv_type, spec->head_dim, kv_round_slots(layer->sinks));
    return n * (ring + sinks);
}

/* Which packed forms of its input the model's steps want. */
static bool wants_kind(const backend_model *model, act_kind kind) {
    for (int64_t i = 0; i < model->n_steps; i++) {
        const step *s = &model->steps[i];
        for (int w = 0; s->kind != STEP_EMBED && w < STEP_MAX_OUTPUTS; w++) {
            if (s->w[w] != NULL && model->kernels->act[s->w[w]->type->type] == kind) {
                return true;
            }
        }
    }
    return false;
}

static int64_t widest_input(const model_spec *spec) {
    int64_t width = spec->n_embd;
    width = spec->n_ff > width ? spec->n_ff : width;
    return step_buffer_width(spec, BUFFER_A) > width ? step_buffer_width(spec, BUFFER_A) : width;
}

static void take_worker(taker *t, const backend_context *c, cpu_worker *w) {
    const model_spec *spec = c->model->spec;
    const kernels *k = c->model->kernels;
    const uint64_t width = (uint64_t)widest_input(spec);
    const uint64_t rows = (uint64_t)(ATTEND_BLOCK * c->group), d = (uint64_t)spec->head_dim;
    w->row = take(t, width, sizeof(float));
    for (int kind = 0; kind < ACT_KINDS; kind++) {
        w->packed[kind] = take(t, c->packed_stride[kind], 1);
    }
    w->matmul_scratch = take(t, k->matmul_scratch((int64_t)width), 1);
    w->q = take(t, rows * d, sizeof(float));
    w->q_sink = take(t, rows * d, sizeof(float));
    w->m = take(t, rows, sizeof(float));
    w->z = take(t, rows, sizeof(float));
    w->o = take(t, rows * d, sizeof(float));
    w->key = take(t, d, sizeof(float));
    w->attend_scratch = take(t, k->attend_scratch((int64_t)rows, spec->head_dim), 1);
}

static void take_work(taker *t, backend_context *c) {
    const model_spec *spec = c->model->spec;
    const uint64_t chunk = (uint64_t)c->shape.chunk, turns = (uint64_t)spec->n_rot;
    const uint64_t n_kv_heads = (uint64_t)spec->n_kv_heads, group = (uint64_t)c->group;
    for (int b = 0; b < BUFFER_LOGITS; b++) {
        c->buffers[b] = take(t, chunk * (uint64_t)step_buffer_width(spec, (step_buffer)b), sizeof(float));
    }
    c->up = take(t, chunk * (uint64_t)spec->n_ff, sizeof(float));
    c->delta = take(t, chunk * (uint64_t)spec->n_embd, sizeof(float));
    for (int kind = 0; kind < ACT_KINDS; kind++) {
        c->packed_stride[kind] = wants_kind(c->model, (act_kind)kind) ? act_row_bytes((act_kind)kind, widest_input(spec)) : 0;
        c->packed[kind] = take(t, chunk, c->packed_stride[kind]);
    }
    c->turn = take(t, chunk * turns, sizeof(float));
    c->turn_sink = take(t, chunk * turns, sizeof(float));
    c->turn_sink_key = take(t, chunk * turns, sizeof(float));
    for (int64_t i = 0; i < spec->n_layers; i++) {
        const layer_context *layer = &c->shape.layers[i];
        const int64_t n =
            (layer->sinks + ATTEND_SEGMENT - 1) / ATTEND_SEGMENT + (layer->capacity + ATTEND_SEGMENT - 1) / ATTEND_SEGMENT;
        c->n_segments = n > c->n_segments ? n : c->n_segments;
    }
    const uint64_t n_parts = n_kv_heads * (uint64_t)c->n_segments;
    c->partials = take(t, n_parts, sizeof *c->partials);
    float *m = take(t, n_parts * group, sizeof *m);
    float *z = take(t, n_parts * group, sizeof *z);
    float *o = take(t, n_parts * group * (uint64_t)spec->head_dim, sizeof *o);
    for (uint64_t i = 0; c->partials != NULL && !t->failed && i < n_parts; i++) {
        c->partials[i] = (cpu_partial){m + i * group, z + i * group, o + i * group * (uint64_t)spec->head_dim};
    }
    c->arrived = take(t, n_kv_heads, sizeof *c->arrived);
    c->layers = take(t, (uint64_t)spec->n_layers, sizeof *c->layers);
    c->workers = take(t, (uint64_t)c->n_workers, sizeof *c->workers);
    for (int i = 0; i < c->n_workers; i++) {
        cpu_worker counted;
        take_worker(t, c, c->workers != NULL ? &c->workers[i] : &counted);
    }
    for (int64_t i = 0; i < spec->n_layers; i++) {
        kv_bank *rings = take(t, n_kv_heads, sizeof *rings);
        kv_bank *sinks = c->shape.layers[i].sinks > 0 ? take(t, n_kv_heads, sizeof *sinks) : NULL;
        if (c->layers != NULL) {
            c->layers[i] = (cpu_layer){rings, sinks};
        }
    }
}

static uint64_t all_layer_bytes(const model_spec *spec, const context_shape *shape) {
    uint64_t bytes = 0;
    for (int64_t i = 0; i < spec->n_layers; i++) {
        bytes += layer_bytes(spec, shape, &shape->layers[i]);
    }
    return bytes;
}

static void place_banks(backend_context *c) {
    const model_spec *spec = c->model->spec;
    const lmi_kv_type type = c->shape.kv_type;
    const int32_t d = (int32_t)spec->head_dim;
    uint8_t *at = c->context;
    for (int64_t i = 0; i < spec->n_layers; i++) {
        const int64_t ring = kv_round_slots(c->shape.layers[i].capacity), sinks = kv_round_slots(c->shape.layers[i].sinks);
        for (int64_t h = 0; h < spec->n_kv_heads; h++) {
            c->layers[i].rings[h] = kv_bank_at(at, type, d, ring);
            at += kv_bank_bytes(type, d, ring);
            if (sinks > 0) {
                c->layers[i].sinks[h] = kv_bank_at(at, type, d, sinks);
                at += kv_bank_bytes(type, d, sinks);
            }
        }
    }
}

static backend_context describe(const backend_model *model, const context_shape *shape) {
    return (backend_context){
        .model = model,
        .shape = *shape,
        .n_workers = pool_n_workers(model->workers),
        .group = model->spec->n_heads / model->spec->n_kv_heads,
    };
}

static lmi_status cpu_plan(const backend_model *model, const context_shape *shape, backend_bytes *bytes, lmi_error *error) {
    backend_context counted = describe(model, shape);
    taker t = {0};
    take_work(&t, &counted);
    if (t.failed) {
        return fail(error, LMI_OUT_OF_MEMORY, "the work space is larger than this machine can address");
    }
    *bytes = (backend_bytes){.context = all_layer_bytes(model->spec, shape), .work = t.bytes + sizeof counted};
    return LMI_OK;
}

static lmi_status cpu_open(const backend_model *model, const context_shape *shape, arena *memory, backend_context **out,
                           lmi_error *error) {
    backend_context *c = arena_take(memory, sizeof *c);
    if (c == NULL) {
        return fail(error, LMI_OUT_OF_MEMORY, "no memory for a session");
    }
    *c = describe(model, shape);
    taker t = {.memory = memory};
    c->context_bytes = (size_t)all_layer_bytes(model->spec, shape);
    c->context = take(&t, c->context_bytes, 1);
    take_work(&t, c);
    if (t.failed) {
        char text[32];
        fail(error, LMI_OUT_OF_MEMORY, "no memory for a context and work space of %s", human_bytes(t.bytes, text));
        remedy(error, "Use a smaller --window or --chunk.");
        return LMI_OUT_OF_MEMORY;
    }
    place_banks(c);
    *out = c;
    return LMI_OK;
}

static void *cpu_context_memory(backend_context *c, size_t *size) {
    *size = c->context_bytes;
    return c->context;
}

/* ---- steps -------------------------------------------------------------------------------------------------------- */

static act_kind kind_of(const backend_context *c, const weight *w) { return c->model->kernels->act[w->type->type]; }

static int n_weights(const step *s) { return s->kind == STEP_GATED ? 2 : s->n_outputs; }

static const float *input_row(const backend_context *c, int64_t row) {
    return c->buffers[c->step->in] + (c->first_row + row) * step_buffer_width(c->model->spec, c->step->in);
}

/* Norm, then one packed row for each form that the step's weights want. */
static void pack_row(const backend_context *c, int64_t row, cpu_worker *worker, uint8_t *const packed[ACT_KINDS]) {
    const model_spec *spec = c->model->spec;
    const kernels *k = c->model->kernels;
    const int64_t width = step_buffer_width(spec, c->step->in);
    const float *x = input_row(c, row);
    if (c->step->norm != NULL) {
        k->rms_norm(x, c->step->norm, width, spec->norm_eps, worker->row);
        x = worker->row;
    }
    bool done[ACT_KINDS] = {false};
    for (int i = 0; i < n_weights(c->step); i++) {
        const act_kind kind = kind_of(c, c->step->w[i]);
        if (!done[kind]) {
            k->pack[kind](x, width, packed[kind]);
            done[kind] = true;
        }
    }
}

static void pack_piece(void *context, int64_t piece, int worker_index) {
    const backend_context *c = context;
    uint8_t *rows[ACT_KINDS];
    for (int kind = 0; kind < ACT_KINDS; kind++) {
        rows[kind] = c->packed[kind] == NULL ? NULL : c->packed[kind] + (size_t)piece * c->packed_stride[kind];
    }
    pack_row(c, piece, &c->workers[worker_index], rows);
}

static void add_bias(const weight *w, float *y, int64_t stride, int64_t n_rows, int64_t row0, int64_t row1) {
    if (w->bias != NULL) {
        for (int64_t t = 0; t < n_rows; t++) {
            for (int64_t r = row0; r < row1; r++) {
                y[t * stride + r] += w->bias[r];
            }
        }
    }
}

/* y[rows of this step][row0 .. row1) = W x + bias */
static void multiply(const backend_context *c, const weight *w, cpu_worker *worker, int64_t row0, int64_t row1, float *y) {
    const act_kind kind = kind_of(c, w);
    const matmul_args args = {
        .w = w->data,
        .row_bytes = w->row_bytes,
        .k = w->cols,
        .row0 = row0,
        .row1 = row1,
        .x = c->n_rows == 1 ? worker->packed[kind] : c->packed[kind],
        .x_stride = c->packed_stride[kind],
        .n_tokens = c->n_rows,
        .y = y,
        .y_stride = w->rows,
        .scratch = worker->matmul_scratch,
    };
    c->model->kernels->matmul[w->type->type](&args);
    add_bias(w, y, w->rows, c->n_rows, row0, row1);
}

static float *output_rows(const backend_context *c, int output) {
    const step_buffer buffer = c->step->out[output];
    return buffer == BUFFER_LOGITS ? c->chunk->logits : c->buffers[buffer];
}

static void linear_piece(void *context, int64_t piece, int worker_index) {
    const backend_context *c = context;
    const kernels *k = c->model->kernels;
    const step *s = c->step;
    cpu_worker *worker = &c->workers[worker_index];
    if (c->n_rows == 1 && worker->epoch != c->epoch) {
        pack_row(c, 0, worker, worker->packed);
        worker->epoch = c->epoch;
    }
    int output = 0;
    for (; piece >= (s->w[output]->rows + c->cut - 1) / c->cut; output++) {
        piece -= (s->w[output]->rows + c->cut - 1) / c->cut;
    }
    const weight *w = s->w[output];
    const int64_t row0 = piece * c->cut;
    const int64_t row1 = row0 + c->cut < w->rows ? row0 + c->cut : w->rows;
    if (s->kind == STEP_LINEAR) {
        multiply(c, w, worker, row0, row1, output_rows(c, output));
        return;
    }
    float *y = output_rows(c, 0);
    if (s->kind == STEP_GATED) {
        multiply(c, w, worker, row0, row1, y);
        multiply(c, s->w[1], worker, row0, row1, c->up);
        for (int64_t t = 0; t < c->n_rows; t++) {
            float *gate = y + t * w->rows + row0;
            k->silu_mul(gate, c->up + t * w->rows + row0, row1 - row0, gate);
        }
        return;
    }
    multiply(c, w, worker, row0, row1, c->delta);
    for (int64_t t = 0; t < c->n_rows; t++) {
        k->add(y + t * w->rows + row0, c->delta + t * w->rows + row0, row1 - row0);
    }
}

/* Rows of a piece: about 64 KiB of weights for a few rows of activations; for many, 128 rows, since all activations pass through
 * the cache once a piece. At least eight pieces a worker where the matrix allows it. */
static int64_t choose_cut(const backend_context *c, int64_t all_rows) {
    const int64_t wanted = c->n_rows > 8 ? 128 : (int64_t)(65536 / c->step->w[0]->row_bytes);
    const int64_t by_workers = all_rows / (8 * c->n_workers);
    const int64_t cut = wanted < by_workers ? wanted : by_workers;
    return cut < MATMUL_ROW_TILE ? MATMUL_ROW_TILE : cut / MATMUL_ROW_TILE * MATMUL_ROW_TILE;
}

static void run_linear(backend_context *c) {
    const step *s = c->step;
    const int n = s->kind == STEP_GATED ? 1 : s->n_outputs;
    int64_t all_rows = 0, n_pieces = 0;
    for (int i = 0; i < n; i++) {
        all_rows += s->w[i]->rows;
    }
    c->cut = choose_cut(c, all_rows);
    for (int i = 0; i < n; i++) {
        n_pieces += (s->w[i]->rows + c->cut - 1) / c->cut;
    }
    c->epoch++;
    if (c->n_rows > 1) {
        pool_run(c->model->workers, pack_piece, c, c->n_rows);
    }
    pool_run(c->model->workers, linear_piece, c, n_pieces);
}

static void embed_piece(void *context, int64_t piece, int worker) {
    const backend_context *c = context;
    (void)worker;
    const weight *w = c->step->w[0];
    const size_t row = (size_t)c->chunk->tokens[piece];
    w->type->to_f32((const uint8_t *)w->data + row * w->row_bytes, c->buffers[BUFFER_X] + piece * w->cols, w->cols);
}

/* cos and sin of every token of the chunk, once for all layers and heads. */
static void turn_chunk(backend_context *c) {
    const backend_chunk *chunk = c->chunk;
    const rope_table *rope = c->model->rope;
    const layer_context *layer = NULL;
    for (int64_t i = 0; i < c->model->spec->n_layers && layer == NULL; i++) {
        layer = c->shape.layers[i].sinks > 0 ? &c->shape.layers[i] : NULL; /* all layers with sinks have the same window */
    }
    const int64_t stride = c->model->spec->n_rot;
    for (int64_t t = 0; t < chunk->n_tokens; t++) {
        const int64_t index = chunk->first + t;
        rope_row(rope, chunk->start + index, c->turn + t * stride);
        if (layer != NULL && c->shape.placement == LMI_PLACEMENT_CONTIGUOUS) {
            const int64_t furthest = layer->window + layer->sinks - 1;
            rope_row(rope, index < furthest ? index : furthest, c->turn_sink + t * stride);
            rope_row(rope, index < layer->sinks ? index : 0, c->turn_sink_key + t * stride);
        }
    }
    if (layer != NULL && c->shape.placement == LMI_PLACEMENT_CEILING) {
        rope_row(rope, layer->window, c->turn_sink);
        rope_row(rope, 0, c->turn_sink_key);
    }
}

static lmi_status cpu_run(backend_context *c, const backend_chunk *chunk, lmi_error *error) {
    c->chunk = chunk;
    turn_chunk(c);
    for (int64_t i = 0; i < c->model->n_steps; i++) {
        if (atomic_load_explicit(chunk->cancel, memory_order_relaxed) != 0) {
            return fail(error, LMI_CANCELLED, "cancelled");
        }
        c->step = &c->model->steps[i];
        c->first_row = 0;
        c->n_rows = chunk->n_tokens;
        switch (c->step->kind) {
        case STEP_EMBED:
            pool_run(c->model->workers, embed_piece, c, chunk->n_tokens);
            break;
        case STEP_ATTEND:
            cpu_attend(c);
            break;
        case STEP_LINEAR:
        case STEP_LINEAR_ADD:
        case STEP_GATED:
            if (c->step->out[0] == BUFFER_LOGITS) {
                c->first_row = chunk->n_tokens - chunk->n_logits;
                c->n_rows = chunk->n_logits;
            }
            if (c->n_rows > 0) {
                run_linear(c);
            }
            break;
        }
    }
    return LMI_OK;
}

const backend backend_cpu = {
    .name = "cpu",
    .plan = cpu_plan,
    .open = cpu_open,
    .run = cpu_run,
    .context_memory = cpu_context_memory,
};
