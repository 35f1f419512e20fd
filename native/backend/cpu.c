/* The CPU backend: memory of a session, and the steps as jobs for the pool.
 *
 * A step over one row packs its input redundantly on every worker instead of paying for a barrier; over more rows the input
 * is packed by all first. Weight rows are cut into pieces that are taken from a counter: what a row's result is does not
 * depend on the cut. */
#include "backend/cpu.h"

#include <string.h>

#include "base/checked.h"
#include "lambda/alibi.h"

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

static void *take_for(void *t, uint64_t n, uint64_t size) { return take(t, n, size); }

static uint64_t layer_bytes(const model_spec *spec, const context_shape *shape, const layer_context *layer) {
    const uint64_t n = (uint64_t)spec->n_kv_heads;
    const size_t ring = kv_bank_bytes(shape->kv_type, spec->head_dim, kv_round_slots(layer->capacity));
    const size_t sinks = kv_bank_bytes(shape->kv_type, spec->head_dim, kv_round_slots(layer->sinks));
    return n * (ring + sinks);
}

/* Which packed forms of its input the model's steps want; experts have packed rows of their own. */
static bool wants_kind(const backend_model *model, act_kind kind, bool experts) {
    for (int64_t i = 0; i < model->n_steps; i++) {
        const step *s = &model->steps[i];
        const bool of_experts = s->kind == STEP_EXPERTS_GATED || s->kind == STEP_EXPERTS_ADD;
        for (int w = 0; s->kind != STEP_EMBED && of_experts == experts && w < STEP_MAX_OUTPUTS; w++) {
            if (s->w[w] != NULL && model->kernels->act[s->w[w]->type->type] == kind) {
                return true;
            }
        }
    }
    return false;
}

static int64_t larger(int64_t a, int64_t b) { return a > b ? a : b; }

static int64_t widest_ff(const model_spec *spec) {
    return larger(step_buffer_width(spec, BUFFER_H), spec->n_experts > 0 ? spec->n_ff_expert : 0);
}

static int64_t widest_input(const model_spec *spec) {
    return larger(larger(spec->n_embd, widest_ff(spec)), step_buffer_width(spec, BUFFER_A));
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
    for (int i = 0; i < 2; i++) {
        w->part[i] = take(t, (uint64_t)larger(c->shape.chunk * CUT_OF_MANY, MATMUL_ROWWISE_TOKENS * CUT_OF_FEW), sizeof(float));
    }
    w->matmul_scratch = take(t, k->matmul_scratch(larger((int64_t)width, c->shape.steer_rank)), 1);
    w->q = take(t, rows * d, sizeof(float));
    w->q_sink = take(t, rows * d, sizeof(float));
    w->m = take(t, rows, sizeof(float));
    w->z = take(t, rows, sizeof(float));
    w->o = take(t, rows * d, sizeof(float));
    w->key = take(t, 2 * d, sizeof(float));
    w->attend_scratch = take(t, k->attend_scratch((int64_t)rows, spec->head_dim), 1);
    cpu_recall_take_worker(c, w, take_for, t);
}

static turn_set *turns_of(backend_context *c, int64_t layer) {
    for (int i = 0; i < c->n_turns; i++) {
        if (c->turns[i].rope == c->shape.layers[layer].rope) {
            return &c->turns[i];
        }
    }
    return NULL;
}

static void take_sums(taker *t, backend_context *c) {
    const backend_model *model = c->model;
    c->sums = take(t, c->shape.importance ? (uint64_t)model->n_steps : 0, sizeof *c->sums);
    for (int64_t i = 0; c->shape.importance && i < model->n_steps; i++) {
        int64_t width;
        const int64_t n = cpu_sums_of(model, &model->steps[i], &width);
        double *squares = take(t, (uint64_t)n * (uint64_t)width, sizeof *squares);
        int64_t *counts = take(t, (uint64_t)n, sizeof *counts);
        if (c->sums != NULL) {
            c->sums[i] = (input_sums){n, width, squares, counts};
        }
    }
}

static void take_work(taker *t, backend_context *c) {
    const model_spec *spec = c->model->spec;
    const int64_t layer0 = c->model->layer0, layer1 = c->model->layer1;
    const uint64_t chunk = (uint64_t)c->shape.chunk, turns = (uint64_t)spec->n_rot;
    const uint64_t n_kv_heads = (uint64_t)spec->n_kv_heads, group = (uint64_t)c->group;
    const uint64_t slots = chunk * (uint64_t)spec->n_experts_used;
    for (int b = 0; b < BUFFER_LOGITS; b++) {
        c->buffers[b] = take(t, chunk * (uint64_t)step_buffer_width(spec, (step_buffer)b), sizeof(float));
    }
    for (int kind = 0; kind < ACT_KINDS; kind++) {
        const bool dense = wants_kind(c->model, (act_kind)kind, false), experts = wants_kind(c->model, (act_kind)kind, true);
        c->packed_stride[kind] = dense || experts ? act_row_bytes((act_kind)kind, widest_input(spec)) : 0;
        c->packed[kind] = take(t, dense ? chunk : 0, c->packed_stride[kind]);
        c->routes.packed[kind] = take(t, experts ? slots : 0, c->packed_stride[kind]);
    }
    c->routes.expert = take(t, slots, sizeof(int32_t));
    c->routes.share = take(t, slots, sizeof(float));
    c->routes.slot = take(t, slots, sizeof(int32_t));
    c->routes.token = take(t, slots, sizeof(int32_t));
    c->routes.slot_share = take(t, slots, sizeof(float));
    c->routes.odds = take(t, chunk * (uint64_t)spec->n_experts, sizeof(float));
    c->routes.first_slot = take(t, (uint64_t)spec->n_experts + 1, sizeof(int32_t));
    for (int i = 0; i < c->n_turns; i++) {
        c->turns[i].turn = take(t, chunk * turns, sizeof(float));
        c->turns[i].turn_sink = take(t, chunk * turns, sizeof(float));
        c->turns[i].turn_sink_key = take(t, chunk * turns, sizeof(float));
        c->turns[i].turn_recall = take(t, c->turns[i].recalls ? turns : 0, sizeof(float));
        c->turns[i].turn_back = take(t, c->turns[i].recalls ? chunk * turns : 0, sizeof(float));
    }
    take_sums(t, c);
    c->steer_work = take(t, cpu_steer_floats(&c->shape, spec->n_embd), sizeof *c->steer_work);
    c->slopes = take(t, spec->alibi_max_bias > 0.0f ? (uint64_t)spec->n_heads : 0, sizeof(float));
    for (int64_t i = layer0; i < layer1; i++) {
        const layer_context *layer = &c->shape.layers[i];
        const int64_t n =
            (layer->sinks + ATTEND_SEGMENT - 1) / ATTEND_SEGMENT + (layer->capacity + ATTEND_SEGMENT - 1) / ATTEND_SEGMENT;
        c->n_segments = larger(n + layer->recalls, c->n_segments);
    }
    const uint64_t n_parts = n_kv_heads * (uint64_t)c->n_segments, n_rows = (uint64_t)c->shape.n_exact * group;
    c->partials = take(t, n_parts, sizeof *c->partials);
    float *m = take(t, n_parts * n_rows, sizeof *m);
    float *z = take(t, n_parts * n_rows, sizeof *z);
    float *o = take(t, n_parts * n_rows * (uint64_t)spec->head_dim, sizeof *o);
    for (uint64_t i = 0; c->partials != NULL && !t->failed && i < n_parts; i++) {
        c->partials[i] = (cpu_partial){m + i * n_rows, z + i * n_rows, o + i * n_rows * (uint64_t)spec->head_dim};
    }
    c->arrived = take(t, n_kv_heads, sizeof *c->arrived);
    c->layers = take(t, (uint64_t)spec->n_layers, sizeof *c->layers);
    c->workers = take(t, (uint64_t)c->n_workers, sizeof *c->workers);
    for (int i = 0; i < c->n_workers; i++) {
        cpu_worker counted;
        take_worker(t, c, c->workers != NULL ? &c->workers[i] : &counted);
    }
    int64_t shelf = 0;
    for (int64_t i = layer0; i < layer1; i++) {
        const layer_context *layer = &c->shape.layers[i];
        kv_bank *rings = take(t, n_kv_heads, sizeof *rings);
        kv_bank *sinks = layer->sinks > 0 ? take(t, n_kv_heads, sizeof *sinks) : NULL;
        if (c->layers != NULL) {
            c->layers[i] = (cpu_layer){rings, sinks, turns_of(c, i), layer->recalls ? shelf : -1};
        }
        shelf += layer->recalls ? spec->n_kv_heads : 0;
    }
    cpu_recall_take(c, take_for, t);
}

static uint64_t all_layer_bytes(const backend_model *model, const context_shape *shape) {
    uint64_t bytes = 0;
    for (int64_t i = model->layer0; i < model->layer1; i++) {
        bytes += layer_bytes(model->spec, shape, &shape->layers[i]);
    }
    return bytes;
}

static void place_banks(backend_context *c) {
    const model_spec *spec = c->model->spec;
    const lmi_kv_type type = c->shape.kv_type;
    const int32_t d = (int32_t)spec->head_dim;
    uint8_t *at = c->context;
    for (int64_t i = c->model->layer0; i < c->model->layer1; i++) {
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
    backend_context c = {
        .model = model,
        .shape = *shape,
        .n_workers = pool_n_workers(model->workers),
        .group = model->spec->n_heads / model->spec->n_kv_heads,
    };
    for (int64_t i = model->layer0; i < model->layer1; i++) {
        const layer_context *layer = &shape->layers[i];
        turn_set *turns = turns_of(&c, i);
        if (turns == NULL && layer->rope != NULL && c.n_turns < MAX_ROPES) {
            turns = &c.turns[c.n_turns++];
            turns->rope = layer->rope;
        }
        if (turns != NULL && layer->sinks > 0) {
            turns->with_sinks = layer;
        }
        if (turns != NULL) {
            turns->recalls |= layer->recalls;
        }
    }
    return c;
}

static lmi_status cpu_plan(const backend_model *model, const context_shape *shape, backend_bytes *bytes, lmi_error *error) {
    backend_context counted = describe(model, shape);
    taker t = {0};
    take_work(&t, &counted);
    if (t.failed) {
        return fail(error, LMI_OUT_OF_MEMORY, "the work space is larger than this machine can address");
    }
    const uint64_t recall = recall_store_of(model, shape).banks_size;
    const uint64_t context = all_layer_bytes(model, shape) + (shape->recall_folder == NULL ? recall : 0);
    *bytes = (backend_bytes){.context = context, .work = t.bytes + sizeof counted, .recall = recall};
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
    c->context_bytes = (size_t)all_layer_bytes(model, shape);
    c->context = take(&t, c->context_bytes, 1);
    take_work(&t, c);
    if (t.failed) {
        char text[32];
        fail(error, LMI_OUT_OF_MEMORY, "no memory for a context and work space of %s", human_bytes(t.bytes, text));
        remedy(error, "Use a smaller --window or --chunk.");
        return LMI_OUT_OF_MEMORY;
    }
    if (c->slopes != NULL) {
        alibi_slopes(model->spec->n_heads, model->spec->alibi_max_bias, c->slopes);
    }
    place_banks(c);
    *out = c;
    if (c->recall == NULL) {
        return LMI_OK;
    }
    recall_store *kept = &c->recall->kept;
    lmi_status status = spill_open(shape->recall_folder, kept->banks_size, &c->recall->store, error);
    kept->banks = c->recall->store.bytes;
    return status;
}

static void cpu_close(backend_context *c) {
    if (c->recall != NULL) {
        spill_close(&c->recall->store);
    }
}

static uint64_t cpu_context_bytes(const backend_context *c) { return c->context_bytes; }

static lmi_status cpu_context_get(backend_context *c, uint64_t offset, size_t n, void *bytes, lmi_error *error) {
    (void)error;
    memcpy(bytes, c->context + offset, n);
    return LMI_OK;
}

static lmi_status cpu_context_put(backend_context *c, uint64_t offset, size_t n, const void *bytes, lmi_error *error) {
    (void)error;
    memcpy(c->context + offset, bytes, n);
    return LMI_OK;
}

static uint64_t bytes_of_weight(const step *s, const model_spec *spec, const weight *w) {
    const bool stack = s->kind == STEP_EXPERTS_GATED || s->kind == STEP_EXPERTS_ADD;
    return (stack ? (uint64_t)spec->n_experts : 1) * (uint64_t)w->rows * w->row_bytes;
}

/* Only the embedding can be named twice: it may be the output, too. */
static uint64_t cpu_weight_bytes(const backend_model *model) {
    const void *embedding = NULL;
    uint64_t bytes = 0;
    for (int64_t i = 0; i < model->n_steps; i++) {
        const step *s = &model->steps[i];
        for (int w = 0; w < STEP_MAX_OUTPUTS; w++) {
            if (s->w[w] != NULL && s->w[w]->data != embedding) {
                bytes += bytes_of_weight(s, model->spec, s->w[w]);
            }
        }
        embedding = s->kind == STEP_EMBED ? s->w[0]->data : embedding;
    }
    return bytes;
}

/* ---- steps -------------------------------------------------------------------------------------------------------- */

act_kind cpu_kind_of(const backend_context *c, const weight *w) { return c->model->kernels->act[w->type->type]; }

static int n_weights(const step *s) { return s->kind != STEP_GATED ? s->n_outputs : s->w[1] != NULL ? 2 : 1; }

const float *cpu_input_row(const backend_context *c, int64_t row) {
    return c->buffers[c->step->in] + (c->first_row + row) * step_buffer_width(c->model->spec, c->step->in);
}

void cpu_norm(const backend_context *c, const norm_weights *norm, const float *x, int64_t width, float *y) {
    const model_spec *spec = c->model->spec;
    if (spec->arch->norm == NORM_LAYER) {
        c->model->kernels->layer_norm(x, norm->scale, norm->bias, width, spec->norm_eps, y);
    } else {
        c->model->kernels->rms_norm(x, norm->scale, width, spec->norm_eps, y);
    }
}

/* Norm, then one packed row for each form that the step's weights want. */
static void pack_row(const backend_context *c, int64_t row, cpu_worker *worker, uint8_t *const packed[ACT_KINDS]) {
    const int64_t width = step_buffer_width(c->model->spec, c->step->in);
    const float *x = c->instead != NULL ? c->instead + row * c->instead_stride : cpu_input_row(c, row);
    if (c->step->norm != NULL && c->instead == NULL) {
        cpu_norm(c, c->step->norm, x, width, worker->row);
        x = worker->row;
    }
    bool done[ACT_KINDS] = {false};
    for (int i = 0; i < n_weights(c->step); i++) {
        const act_kind kind = cpu_kind_of(c, c->step->w[i]);
        if (!done[kind]) {
            c->model->kernels->pack[kind](x, width, packed[kind]);
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

void cpu_multiply(const backend_context *c, const weight *w, cpu_worker *worker, const uint8_t *packed, int64_t n_tokens,
                  int64_t row0, int64_t n_rows, float *y) {
    const matmul_args args = {
        .w = (const uint8_t *)w->data + (size_t)row0 * w->row_bytes,
        .row_bytes = w->row_bytes,
        .k = w->cols,
        .row1 = n_rows,
        .x = packed,
        .x_stride = c->packed_stride[cpu_kind_of(c, w)],
        .n_tokens = n_tokens,
        .y = y,
        .y_stride = n_rows,
        .scratch = worker->matmul_scratch,
    };
    c->model->kernels->matmul[w->type->type](&args);
    for (int64_t t = 0; w->bias != NULL && t < n_tokens; t++) {
        c->model->kernels->add(y + t * n_rows, w->bias + row0, n_rows);
    }
}

static void multiply(const backend_context *c, const weight *w, cpu_worker *worker, int64_t row0, int64_t n_rows, float *y) {
    const act_kind kind = cpu_kind_of(c, w);
    const uint8_t *packed = c->n_rows == 1 ? worker->packed[kind] : c->packed[kind];
    cpu_multiply(c, w, worker, packed, c->n_rows, row0, n_rows, y);
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
    const int64_t n = row0 + c->cut < w->rows ? c->cut : w->rows - row0;
    multiply(c, w, worker, row0, n, worker->part[0]);
    if (s->kind == STEP_GATED && s->w[1] != NULL) {
        multiply(c, s->w[1], worker, row0, n, worker->part[1]);
    }
    for (int64_t t = 0; t < c->n_rows; t++) {
        float *part = worker->part[0] + t * n, *out = output_rows(c, output) + t * w->rows + row0;
        if (s->kind == STEP_GATED) {
            const float *up = s->w[1] != NULL ? worker->part[1] + t * n : NULL;
            k->activate[c->model->spec->arch->activation](part, up, n, out);
        } else if (s->kind == STEP_LINEAR_ADD) {
            if (s->gated_by_s) {
                k->scale(part, 1.0f / (1.0f + exp_f32(-c->buffers[BUFFER_S][t])), n);
            }
            k->add(out, part, n);
        } else {
            if (s->clamp > 0.0f) {
                k->clamp(part, s->clamp, n);
            }
            if (s->softcap > 0.0f) {
                k->softcap(part, s->softcap, n);
            }
            memcpy(out, part, (size_t)n * sizeof *out);
        }
    }
}

/* Rows of a piece: about 256 KiB of weights for a few rows of activations; for many, 128 rows, since all activations pass through
 * the cache once a piece. At least eight pieces a worker where the matrix allows it. */
int64_t cpu_choose_cut(const backend_context *c, int64_t n_weight_rows, size_t row_bytes, int64_t n_tokens) {
    const int64_t of_few = (int64_t)(262144 / row_bytes);
    const int64_t wanted = n_tokens > MATMUL_ROWWISE_TOKENS ? CUT_OF_MANY : of_few < CUT_OF_FEW ? of_few : CUT_OF_FEW;
    const int64_t by_workers = n_weight_rows / (8 * c->n_workers);
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
    c->cut = cpu_choose_cut(c, all_rows, s->w[0]->row_bytes, c->n_rows);
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
    float *x = c->buffers[BUFFER_X] + piece * w->cols;
    w->type->to_f32((const uint8_t *)w->data + row * w->row_bytes, x, w->cols);
    if (c->model->spec->embedding_scale != 1.0f) {
        c->model->kernels->scale(x, c->model->spec->embedding_scale, w->cols);
    }
}

static void add_norm_piece(void *context, int64_t piece, int worker) {
    const backend_context *c = context;
    const int64_t width = step_buffer_width(c->model->spec, c->step->in);
    float *row = c->workers[worker].row;
    cpu_norm(c, c->step->norm, cpu_input_row(c, piece), width, row);
    c->model->kernels->add(c->buffers[c->step->out[0]] + piece * width, row, width);
}

/* cos and sin of every token of the chunk. */
static void turn_chunk(const backend_context *c, const turn_set *turns) {
    const backend_chunk *chunk = c->chunk;
    const layer_context *layer = turns->with_sinks;
    const int64_t stride = c->model->spec->n_rot;
    for (int64_t t = 0; t < chunk->n_tokens; t++) {
        const int64_t index = chunk->first + t;
        rope_row(turns->rope, chunk->start + index, turns->turn + t * stride);
        if (layer != NULL && c->shape.placement != LMI_PLACEMENT_CEILING) {
            const int64_t furthest = furthest_sink_query(&c->shape, layer);
            rope_row(turns->rope, index < furthest ? index : furthest, turns->turn_sink + t * stride);
            rope_row(turns->rope, index < layer->sinks ? index : 0, turns->turn_sink_key + t * stride);
        }
    }
    if (layer != NULL && c->shape.placement == LMI_PLACEMENT_CEILING) {
        rope_row(turns->rope, layer->window, turns->turn_sink);
        rope_row(turns->rope, 0, turns->turn_sink_key);
    }
}

static lmi_status cpu_run(backend_context *c, const backend_chunk *chunk, lmi_error *error) {
    c->chunk = chunk;
    lmi_status status = cpu_recall_begin(c, error);
    if (status != LMI_OK) {
        return status;
    }
    for (int i = 0; i < c->n_turns; i++) {
        turn_chunk(c, &c->turns[i]);
    }
    const size_t hidden = (size_t)(chunk->n_tokens * c->model->spec->n_embd) * sizeof(float);
    if (chunk->hidden_in != NULL) {
        memcpy(c->buffers[BUFFER_X], chunk->hidden_in, hidden);
    }
    for (int64_t i = 0; i < c->model->n_steps; i++) {
        if (atomic_load_explicit(chunk->cancel, memory_order_relaxed) != 0) {
            cpu_recall_end(c, false);
            return fail(error, LMI_CANCELLED, "cancelled");
        }
        c->step = &c->model->steps[i];
        c->instead = NULL;
        c->first_row = 0;
        c->n_rows = chunk->n_tokens;
        if (c->sums != NULL) {
            cpu_add_importance(c);
        }
        switch (c->step->kind) {
        case STEP_EMBED:
            pool_run(c->model->workers, embed_piece, c, chunk->n_tokens);
            break;
        case STEP_ATTEND:
            cpu_attend(c);
            break;
        case STEP_ADD_NORM:
            pool_run(c->model->workers, add_norm_piece, c, chunk->n_tokens);
            break;
        case STEP_ROUTE:
            cpu_route(c);
            break;
        case STEP_EXPERTS_GATED:
        case STEP_EXPERTS_ADD:
            cpu_experts(c);
            break;
        case STEP_LINEAR:
        case STEP_LINEAR_ADD:
        case STEP_GATED:
            if (c->step->out[0] == BUFFER_LOGITS) {
                cpu_keep_hidden(c);
                c->first_row = chunk->n_tokens - chunk->n_logits;
                c->n_rows = chunk->n_logits;
                if (c->n_rows > 0 && chunk->steer != NULL) {
                    cpu_steer(c);
                }
            }
            if (c->n_rows > 0) {
                run_linear(c);
            }
            break;
        }
    }
    cpu_recall_end(c, true);
    if (chunk->hidden_out != NULL) {
        memcpy(chunk->hidden_out, c->buffers[BUFFER_X], hidden);
    }
    return LMI_OK;
}

static const input_sums *cpu_importance(const backend_context *c, int64_t i) {
    return c->sums != NULL && c->sums[i].n > 0 ? &c->sums[i] : NULL;
}

const backend backend_cpu = {
    .name = "cpu",
    .plan = cpu_plan,
    .open = cpu_open,
    .run = cpu_run,
    .context_bytes = cpu_context_bytes,
    .context_get = cpu_context_get,
    .context_put = cpu_context_put,
    .weight_bytes = cpu_weight_bytes,
    .importance = cpu_importance,
    .close = cpu_close,
    .surprise = cpu_recall_surprise,
    .recall_counts = cpu_recall_counts,
    .recall_bytes = cpu_recall_bytes,
    .recall_most = cpu_recall_most,
    .recall_get = cpu_recall_get,
    .recall_put = cpu_recall_put,
    .recall_check = cpu_recall_check,
};
