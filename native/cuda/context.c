/* Memory of a session on the device: planned, taken and given back in one piece of each kind. */
#include <string.h>

#include "base/checked.h"
#include "cuda/internal.h"

/* Takes from one block, or only adds up what it would take: one description of the memory serves plan and open. */
typedef struct taker {
    uint8_t *base; /* NULL: count */
    uint64_t used;
    bool failed;
} taker;

static void *take(void *of, uint64_t n, uint64_t size) {
    taker *t = of;
    uint64_t bytes;
    if (!ck_mul(n, size, &bytes) || !ck_align(bytes, PLANE_ALIGN, &bytes)) {
        t->failed = true;
        return NULL;
    }
    void *at = t->base != NULL && bytes > 0 ? t->base + t->used : NULL;
    t->failed |= !ck_add(t->used, bytes, &t->used);
    return at;
}

static int64_t larger(int64_t a, int64_t b) { return a > b ? a : b; }
static int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }

static uint64_t head_bytes(const backend_context *c, const layer_context *layer) {
    const int64_t d = c->model->spec->head_dim;
    return kv_bank_bytes(c->shape.kv_type, d, kv_round_slots(layer->capacity)) +
           kv_bank_bytes(c->shape.kv_type, d, kv_round_slots(layer->sinks));
}

static int64_t widest_input(const backend_model *model) {
    int64_t width = 0;
    for (int64_t i = 0; i < model->n_steps; i++) {
        for (int w = 0; w < STEP_MAX_OUTPUTS && model->steps[i].kind != STEP_EMBED; w++) {
            width = model->steps[i].w[w] != NULL ? larger(width, model->steps[i].w[w]->cols) : width;
        }
    }
    return width;
}

/* Rows of a buffer at a time: one for each token of a chunk; of logits as many as are asked for, up to a bound. */
static int64_t buffer_rows(const backend_context *c, int b) { return b == BUFFER_LOGITS ? c->logits_rows : c->shape.chunk; }

static void take_work(taker *t, backend_context *c) {
    const model_spec *spec = c->model->spec;
    const int64_t chunk = c->shape.chunk, rowwise = smaller(chunk, CUDA_ROWWISE_TOKENS);
    for (int b = 0; b < BUFFER_COUNT; b++) {
        c->buffers[b] = take(t, (uint64_t)buffer_rows(c, b) * (uint64_t)step_buffer_width(spec, (step_buffer)b), sizeof(float));
    }
    const uint64_t routes = (uint64_t)chunk * (uint64_t)spec->n_experts_used;
    c->expert = take(t, routes, sizeof *c->expert);
    c->share = take(t, routes, sizeof *c->share);
    for (int i = 0; i < c->n_turns; i++) {
        cuda_turns *turns = &c->turns[i];
        const uint64_t row = (uint64_t)turns->n_rot, rows = turns->contiguous ? (uint64_t)chunk : 1;
        c->ropes[i] = take(t, 1, sizeof *c->ropes[i]);
        turns->table = c->ropes[i];
        turns->turn = take(t, (uint64_t)chunk * row, sizeof(float));
        turns->turn_sink = take(t, rows * row, sizeof(float));
        turns->turn_sink_key = take(t, rows * row, sizeof(float));
    }
    int64_t n_segments = 0;
    for (int64_t i = c->model->layer0; i < c->model->layer1; i++) {
        const layer_context *layer = &c->shape.layers[i];
        const int64_t n_kept = layer->recalls ? cuda_recall_segments(&c->kept.args, chunk) : 0;
        n_segments = larger(n_segments, cuda_attend_segments(layer->sinks, layer->capacity) + n_kept);
    }
    const uint64_t group = (uint64_t)(spec->n_heads / spec->n_kv_heads), kv_rows = (uint64_t)(rowwise * spec->n_kv_heads);
    c->parts = take(t, kv_rows * (uint64_t)n_segments, group * (2 + (uint64_t)spec->head_dim) * sizeof(float));
    c->arrived = take(t, kv_rows, sizeof *c->arrived);
    const uint64_t tiled = cuda_tiled_bytes(chunk, widest_input(c->model), spec->n_experts, spec->n_experts_used);
    const uint64_t attend =
        cuda_attend_tiled_bytes(chunk, spec->n_heads, spec->head_dim, c->shape.middle.kind != LMI_RECALL_NONE);
    cuda_kept_take(c, take, t);
    c->work = take(t, tiled > attend ? tiled : attend, 1);
    c->choose_work = take(t, cuda_candidates_bytes(spec->n_vocab), 1);
    const uint64_t room = (uint64_t)cuda_steer_room(&c->shape), n_embd = (uint64_t)spec->n_embd;
    c->steer_down = take(t, room * n_embd, sizeof *c->steer_down);
    c->steer_up = take(t, room * n_embd, sizeof *c->steer_up);
    c->coordinates = take(t, room, CUDA_ROWWISE_TOKENS * sizeof *c->coordinates);
    c->normed = take(t, (uint64_t)cuda_normed_rows(&c->shape) * n_embd, sizeof *c->normed);
    c->control = take(t, 1, sizeof *c->control);
    c->tokens = take(t, (uint64_t)chunk, sizeof *c->tokens);
}

static void take_banks(taker *t, backend_context *c) {
    for (int64_t i = c->model->layer0; i < c->model->layer1; i++) {
        const uint64_t bytes = head_bytes(c, &c->shape.layers[i]) * (uint64_t)c->model->spec->n_kv_heads;
        uint8_t *at = t->base != NULL ? t->base + t->used : NULL; /* no gaps: a saved state has none */
        t->failed |= !ck_add(t->used, bytes, &t->used);
        if (c->layers != NULL) {
            c->layers[i - c->model->layer0] = at;
        }
    }
}

static void take_pinned(taker *t, backend_context *c) {
    const model_spec *spec = c->model->spec;
    c->mailbox = take(t, 1, sizeof *c->mailbox);
    c->staged_tokens = take(t, (uint64_t)c->shape.chunk, sizeof *c->staged_tokens);
    const int64_t rope_values = sizeof(rope_table) / sizeof *c->staged; /* more than the rest in very small models */
    c->staged_values = (uint64_t)larger(larger(c->shape.chunk * spec->n_embd, spec->n_vocab), rope_values);
    c->staged = take(t, c->staged_values, sizeof *c->staged);
    cuda_kept_take_pinned(c, take, t);
}

static void describe(backend_context *c, const backend_model *model, const context_shape *shape) {
    *c = (backend_context){.model = model, .weights = model->weights, .shape = *shape};
    /* The token that is drawn goes from the last step to the first: both are here. Slots of what is kept are told before a token runs. */
    c->runs_ahead = shape->ahead && shape->middle.kind == LMI_RECALL_NONE && model->steps[0].kind == STEP_EMBED &&
                    cuda_gives_logits(&model->steps[model->n_steps - 1]);
    c->logits_rows = larger(smaller(shape->n_logits, CUDA_LOGITS_ROWS), c->runs_ahead ? CUDA_SLOTS : 0);
    for (int64_t i = model->layer0; i < model->layer1; i++) {
        const layer_context *layer = &shape->layers[i];
        int n = 0;
        while (layer->rope != NULL && n < c->n_turns && c->rope_of[n] != layer->rope) {
            n++;
        }
        if (layer->rope == NULL || n == MAX_ROPES) {
            continue;
        }
        if (n == c->n_turns) {
            c->rope_of[c->n_turns++] = layer->rope;
            c->turns[n].n_rot = layer->rope->n_rot;
        }
        if (layer->sinks > 0) {
            c->turns[n].window = layer->window;
            c->turns[n].sinks = layer->sinks;
            c->turns[n].contiguous = shape->placement != LMI_PLACEMENT_CEILING;
            c->turns[n].furthest = furthest_sink_query(shape, layer);
        }
    }
    cuda_kept_describe(c);
}

lmi_status cuda_plan(const backend_model *model, const context_shape *shape, backend_bytes *bytes, lmi_error *error) {
    if (model->spec->head_dim > CUDA_MAX_HEAD_DIM) {
        fail(error, LMI_UNSUPPORTED, "heads of %lld numbers are more than the GPU's attention takes (%d)",
             (long long)model->spec->head_dim, CUDA_MAX_HEAD_DIM);
        remedy(error, "Use --device cpu.");
        return LMI_UNSUPPORTED;
    }
    lmi_status status = cuda_kept_check(shape, error);
    if (status != LMI_OK) {
        return status;
    }
    backend_context c;
    describe(&c, model, shape);
    taker work = {0}, banks = {0}, pinned = {0};
    take_work(&work, &c);
    take_banks(&banks, &c);
    take_pinned(&pinned, &c);
    if (work.failed || banks.failed || pinned.failed) {
        return fail(error, LMI_OUT_OF_MEMORY, "the context and work space are larger than any GPU can address");
    }
    const uint64_t kept = cuda_kept_bytes(&c);
    *bytes = (backend_bytes){.context = kept,
                             .work = pinned.used + sizeof c,
                             .device_context = banks.used,
                             .device_work = work.used,
                             .recall = kept};
    return LMI_OK;
}

static lmi_status take_memory(backend_context *c, lmi_error *error) {
    taker work = {0}, banks = {0}, pinned = {0};
    take_work(&work, c);
    take_banks(&banks, c);
    take_pinned(&pinned, c);
    lmi_status status = device_alloc(c->stream, banks.used, &c->banks, error);
    if (status == LMI_OK) {
        status = device_alloc(c->stream, work.used, &c->memory, error);
    }
    if (status == LMI_OK) {
        status = device_alloc_pinned(c->stream, pinned.used, &c->pinned, error);
    }
    if (status != LMI_OK) {
        if (status == LMI_OUT_OF_MEMORY) {
            remedy(error, "Use a smaller --window or --chunk, or put fewer layers on the GPU: --gpu-layers.");
        }
        return status;
    }
    c->bank_bytes = banks.used;
    work = (taker){.base = c->memory};
    banks = (taker){.base = c->banks};
    pinned = (taker){.base = c->pinned};
    take_work(&work, c);
    take_banks(&banks, c);
    take_pinned(&pinned, c);
    return cuda_kept_open(c, error);
}

static lmi_status fill_memory(backend_context *c, lmi_error *error) {
    for (int i = 0; i < c->n_turns; i++) {
        memcpy(c->staged, c->rope_of[i], sizeof *c->rope_of[i]); /* staged has room: see take_pinned */
        device_upload(c->stream, c->ropes[i], c->staged, sizeof *c->rope_of[i]);
        lmi_status status = device_check(c->stream, error);
        if (status != LMI_OK) {
            return status;
        }
    }
    return cuda_capture(c, error);
}

lmi_status cuda_open(const backend_model *model, const context_shape *shape, arena *memory, backend_context **out,
                     lmi_error *error) {
    backend_context *c = arena_take(memory, sizeof *c);
    if (c == NULL) {
        return fail(error, LMI_OUT_OF_MEMORY, "no memory for a session");
    }
    describe(c, model, shape);
    c->layers = arena_take_array(memory, (size_t)(model->layer1 - model->layer0 + 1), sizeof *c->layers);
    if (c->layers == NULL) {
        return fail(error, LMI_OUT_OF_MEMORY, "no memory for a session");
    }
    lmi_status status = device_stream_open(device_stream_info(c->weights->stream)->index, &c->stream, error);
    if (status == LMI_OK) {
        status = take_memory(c, error);
    }
    if (status == LMI_OK) {
        status = fill_memory(c, error);
    }
    if (status != LMI_OK) {
        cuda_close(c);
        return status;
    }
    *out = c;
    return LMI_OK;
}

void cuda_close(backend_context *c) {
    if (c->ahead) {
        device_check(c->stream, NULL);
    }
    for (int slot = 0; slot < CUDA_SLOTS; slot++) {
        device_graph_free(c->one[slot]);
        device_graph_free(c->steered[slot]);
        device_mark_close(c->mark[slot]);
    }
    device_free(c->stream, c->memory);
    device_free(c->stream, c->banks);
    device_free_pinned(c->stream, c->pinned);
    cuda_kept_close(c);
    device_stream_close(c->stream);
}

/* ---- saved states -------------------------------------------------------------------------------------------------- */

uint64_t cuda_context_bytes(const backend_context *c) { return c->bank_bytes; }

/* In parts that fit the pinned staging. */
static lmi_status move(backend_context *c, uint64_t offset, size_t n, const uint8_t *from, uint8_t *to, lmi_error *error) {
    const size_t most = (size_t)(c->staged_values * sizeof *c->staged);
    uint8_t *device = (uint8_t *)c->banks + offset;
    lmi_status status = LMI_OK;
    for (size_t at = 0; at < n && status == LMI_OK;) {
        const size_t part = n - at < most ? n - at : most;
        if (from != NULL) {
            memcpy(c->staged, from + at, part);
            device_upload(c->stream, device + at, c->staged, part);
        } else {
            device_download(c->stream, c->staged, device + at, part);
        }
        status = device_check(c->stream, error);
        if (status == LMI_OK && to != NULL) {
            memcpy(to + at, c->staged, part);
        }
        at += part;
    }
    return status;
}

lmi_status cuda_context_get(backend_context *c, uint64_t offset, size_t n, void *bytes, lmi_error *error) {
    return move(c, offset, n, NULL, bytes, error);
}

lmi_status cuda_context_put(backend_context *c, uint64_t offset, size_t n, const void *bytes, lmi_error *error) {
    if (c->ahead) { /* what it runs from is gone */
        c->ahead = false;
        const lmi_status status = device_check(c->stream, error);
        if (status != LMI_OK) {
            return status;
        }
    }
    return move(c, offset, n, bytes, NULL, error);
}
