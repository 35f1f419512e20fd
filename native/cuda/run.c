/* The steps of a model as launches. One token with its logits is a graph that was captured once; other chunks are launched step by
 * step. What a chunk's place in the text changes is read by the kernels from the control block.
 *
 * Running ahead: a graph draws from its candidates what the host most likely will, and a second one, like it but for where its logits and its
 * words with the host are, is queued right behind it for the token that was drawn. So the device is busy while the host draws, decodes and
 * comes back. If it comes back with another token, or to another place, the control block is set anew, and that token was in vain. */
#include <string.h>

#include "cuda/internal.h"

/* ---- launches ------------------------------------------------------------------------------------------------------ */

static void begin(backend_context *c, const cuda_pass *pass) {
    /* One token is read where the host wrote it: a copy, queued before the graph, takes longer than that. */
    const int32_t *tokens = pass->n_tokens == 1 ? &c->mailbox->one[pass->slot].token : c->tokens;
    cuda_begin args = {.control = c->control, .tokens = tokens, .n_tokens = pass->n_tokens, .n_turns = c->n_turns};
    memcpy(args.turns, c->turns, sizeof args.turns);
    if (c->model->steps[0].kind == STEP_EMBED) {
        args.table = c->weights->steps[0].w[0];
        args.scale = c->model->spec->embedding_scale;
        args.x = c->buffers[BUFFER_X];
    }
    cuda_launch_begin(&args, c->stream);
}

/* Outputs begin at row to_row of their buffers. */
static void linear(backend_context *c, const step *s, const cuda_step *on_device, const float *x, int64_t n_rows,
                   int64_t to_row) {
    const model_spec *spec = c->model->spec;
    const bool experts = s->kind == STEP_EXPERTS_GATED || s->kind == STEP_EXPERTS_ADD;
    const bool gated = s->kind == STEP_GATED || s->kind == STEP_EXPERTS_GATED;
    cuda_linear args = {
        .kind = gated                    ? CUDA_GATED
                : s->kind == STEP_LINEAR ? CUDA_STORE
                                         : CUDA_ADD,
        .activation = spec->arch->activation,
        .n_tokens = (int32_t)n_rows,
        .x = x,
        .norm = on_device->norm,
        .s = s->gated_by_s ? c->buffers[BUFFER_S] : NULL,
        .clamp = s->clamp,
        .softcap = s->softcap,
        .work = c->work,
    };
    for (int i = 0; i < STEP_MAX_OUTPUTS && s->w[i] != NULL; i++) {
        args.w[args.n_weights++] = on_device->w[i];
    }
    for (int i = 0; i < s->n_outputs; i++) {
        args.y[i] = c->buffers[s->out[i]] + to_row * step_buffer_width(spec, s->out[i]);
    }
    if (experts) {
        args.expert = c->expert;
        args.share = c->share;
        args.n_used = (int32_t)spec->n_experts_used;
    }
    if (n_rows <= CUDA_ROWWISE_TOKENS) {
        cuda_launch_rowwise(&args, c->stream);
    } else {
        cuda_launch_tiled(&args, c->stream);
    }
}

static void attend(backend_context *c, const step *s, const cuda_step *on_device, const cuda_pass *pass) {
    const model_spec *spec = c->model->spec;
    const layer_context *layer = &c->shape.layers[s->layer];
    uint8_t *banks = c->layers[s->layer - c->model->layer0];
    const int64_t ring_slots = kv_round_slots(layer->capacity);
    const size_t ring_bytes = kv_bank_bytes(c->shape.kv_type, spec->head_dim, ring_slots);
    cuda_attend args = {
        .control = c->control,
        .n_tokens = pass->n_tokens,
        .n_heads = (int32_t)spec->n_heads,
        .n_kv_heads = (int32_t)spec->n_kv_heads,
        .head_dim = (int32_t)spec->head_dim,
        .n_rot = (int32_t)spec->n_rot,
        .pairing = spec->arch->pairing,
        .q = c->buffers[BUFFER_Q],
        .k = c->buffers[BUFFER_K],
        .v = c->buffers[BUFFER_V],
        .a = c->buffers[BUFFER_A],
        .head_norm = spec->arch->head_norm == HEAD_NORM_EACH  ? 1
                     : spec->arch->head_norm == HEAD_NORM_ALL ? 2
                                                              : 0,
        .q_norm = on_device->q_norm,
        .k_norm = on_device->k_norm,
        .eps = spec->norm_eps,
        .scale = spec->attention_scale,
        .softcap = spec->attention_softcap,
        .slopes = c->weights->slopes,
        .sink_logits = on_device->sink_logits,
        .kv_type = c->shape.kv_type,
        .window = layer->window,
        .sinks = layer->sinks,
        .capacity = layer->capacity,
        .ring = banks,
        .sinks_bank = banks + ring_bytes,
        .recall = cuda_kept_layer(c, s->layer),
        .head_stride = ring_bytes + kv_bank_bytes(c->shape.kv_type, spec->head_dim, kv_round_slots(layer->sinks)),
        .parts = c->parts,
        .arrived = c->arrived,
        .work = c->work,
    };
    for (int i = 0; i < c->n_turns; i++) {
        if (c->rope_of[i] == layer->rope) {
            args.turn = c->turns[i].turn;
            args.turn_sink = c->turns[i].turn_sink;
            args.turn_sink_key = c->turns[i].turn_sink_key;
            args.contiguous = c->turns[i].contiguous;
        }
    }
    if (pass->n_tokens == 1 || (pass->n_tokens <= CUDA_ROWWISE_TOKENS && pass->first >= layer->sinks)) {
        cuda_launch_attend_rowwise(&args, c->stream);
    } else {
        cuda_launch_attend_tiled(&args, c->stream);
    }
}

static void launch_step(backend_context *c, int64_t i, const cuda_pass *pass) {
    const model_spec *spec = c->model->spec;
    const step *s = &c->model->steps[i];
    const cuda_step *on_device = &c->weights->steps[i];
    switch (s->kind) {
    case STEP_EMBED:
        break; /* in begin */
    case STEP_ATTEND:
        attend(c, s, on_device, pass);
        break;
    case STEP_ADD_NORM:
        cuda_launch_add_norm(c->buffers[s->in], c->buffers[s->out[0]], on_device->norm, step_buffer_width(spec, s->in),
                             pass->n_tokens, c->stream);
        break;
    case STEP_ROUTE:
        cuda_launch_route(c->buffers[BUFFER_R], spec->n_experts, (int32_t)spec->n_experts_used,
                          spec->arch->experts == EXPERTS_NORMED, c->expert, c->share, pass->n_tokens, c->stream);
        break;
    case STEP_LINEAR:
    case STEP_LINEAR_ADD:
    case STEP_GATED:
    case STEP_EXPERTS_GATED:
    case STEP_EXPERTS_ADD:
        linear(c, s, on_device, c->buffers[s->in], pass->n_tokens, 0);
        break;
    }
}

static void logits(backend_context *c, int64_t row0, int64_t n_rows, int64_t to_row, bool steered) {
    const int64_t i = c->model->n_steps - 1;
    const step *s = &c->model->steps[i];
    cuda_step on_device = c->weights->steps[i];
    const float *x = c->buffers[s->in] + row0 * step_buffer_width(c->model->spec, s->in);
    if (steered) {
        cuda_steer(c, row0, n_rows);
        on_device.norm = (cuda_norm){.kind = CUDA_NORM_NONE};
        x = c->normed;
    }
    linear(c, s, &on_device, x, n_rows, to_row);
}

static const float *logits_row(const backend_context *c, int64_t row) {
    return c->buffers[BUFFER_LOGITS] + row * c->model->spec->n_vocab;
}

/* Everything that one token takes, up to its logits, its candidates and one drawn from them. */
static void launch_one(backend_context *c, int slot, bool steered) {
    const cuda_pass pass = {.n_tokens = 1, .slot = slot};
    cuda_one *one = &c->mailbox->one[slot];
    begin(c, &pass);
    for (int64_t i = 0; i < c->model->n_steps; i++) {
        if (cuda_gives_logits(&c->model->steps[i])) {
            logits(c, 0, 1, slot, steered);
            const cuda_draw draw = {c->runs_ahead ? &one->order : NULL, c->control, &one->drawn};
            cuda_launch_candidates(logits_row(c, slot), c->model->spec->n_vocab, &one->candidates, draw, c->choose_work,
                                   c->stream);
        } else {
            launch_step(c, i, &pass);
        }
    }
    cuda_launch_advance(c->control, 1, c->stream);
}

static lmi_status capture(backend_context *c, bool steered, device_graph *graphs[CUDA_SLOTS], lmi_error *error) {
    /* Once in earnest: the driver loads kernels when they are first launched, which a recording must not wait for, and a device that cannot
     * run them is found here. What token 0 left behind is cleared. */
    launch_one(c, 0, steered);
    lmi_status status = device_check(c->stream, error);
    if (status != LMI_OK) {
        return status;
    }
    device_clear(c->stream, c->banks, c->bank_bytes);
    device_clear(c->stream, c->control, sizeof *c->control);
    for (int slot = 0; slot < (c->runs_ahead ? CUDA_SLOTS : 1) && status == LMI_OK; slot++) {
        device_graph_begin(c->stream);
        launch_one(c, slot, steered);
        status = device_graph_end(c->stream, &graphs[slot], error);
    }
    return status;
}

lmi_status cuda_capture(backend_context *c, lmi_error *error) {
    lmi_status status = LMI_OK;
    for (int slot = 0; c->runs_ahead && slot < CUDA_SLOTS && status == LMI_OK; slot++) {
        status = device_mark_open(c->stream, &c->mark[slot], error);
    }
    if (status == LMI_OK) {
        status = capture(c, false, c->one, error);
    }
    return status == LMI_OK && c->shape.steer_rank > 0 ? capture(c, true, c->steered, error) : status;
}

/* ---- chunks -------------------------------------------------------------------------------------------------------- */

/* Tokens, their place and, from a split model's other half, their hidden state. Nothing of the last chunk is still queued. */
static void stage(backend_context *c, const backend_chunk *chunk) {
    if (c->on_device.first != chunk->first || c->on_device.start != chunk->start) {
        c->mailbox->control = (cuda_control){.first = chunk->first, .start = chunk->start};
        device_upload(c->stream, c->control, &c->mailbox->control, sizeof *c->control);
    }
    if (chunk->hidden_in != NULL) {
        const size_t bytes = (size_t)(chunk->n_tokens * c->model->spec->n_embd) * sizeof *c->staged;
        memcpy(c->staged, chunk->hidden_in, bytes);
        device_upload(c->stream, c->buffers[BUFFER_X], c->staged, bytes);
    }
    if (chunk->n_tokens == 1) {
        c->mailbox->one[0].token = chunk->tokens[0]; /* a graph has its own */
    } else {
        memcpy(c->staged_tokens, chunk->tokens, (size_t)chunk->n_tokens * sizeof *c->tokens);
        device_upload(c->stream, c->tokens, c->staged_tokens, (size_t)chunk->n_tokens * sizeof *c->tokens);
    }
}

lmi_status cuda_download_rows(backend_context *c, float *to, const float *from, int64_t n_rows, int64_t width,
                              lmi_error *error) {
    const int64_t most = (int64_t)c->staged_values / width;
    lmi_status status = LMI_OK;
    for (int64_t row = 0; row < n_rows && status == LMI_OK;) {
        const int64_t n = n_rows - row < most ? n_rows - row : most;
        device_download(c->stream, c->staged, from + row * width, (uint64_t)(n * width) * sizeof *to);
        status = device_check(c->stream, error);
        if (status == LMI_OK) {
            memcpy(to + row * width, c->staged, (size_t)(n * width) * sizeof *to);
        }
        row += n;
    }
    return status;
}

/* With room on the host: all rows, as many at a time as there is room for on the device. Without: the rows stay where they are. */
static lmi_status run_logits(backend_context *c, const backend_chunk *chunk, lmi_error *error) {
    const int64_t n_vocab = c->model->spec->n_vocab;
    const bool steered = chunk->steer != NULL;
    if (chunk->logits == NULL) {
        if (chunk->n_logits > 0) {
            logits(c, chunk->n_tokens - chunk->n_logits, chunk->n_logits, 0, steered);
        }
        return LMI_OK;
    }
    lmi_status status = LMI_OK;
    for (int64_t done = 0; done < chunk->n_logits && status == LMI_OK;) {
        const int64_t left = chunk->n_logits - done, n = left < c->logits_rows ? left : c->logits_rows;
        logits(c, chunk->n_tokens - left, n, 0, steered);
        status = cuda_download_rows(c, chunk->logits + done * n_vocab, c->buffers[BUFFER_LOGITS], n, n_vocab, error);
        done += n;
    }
    return status;
}

static lmi_status run_steps(backend_context *c, const backend_chunk *chunk, lmi_error *error) {
    const cuda_pass pass = {.n_tokens = (int32_t)chunk->n_tokens, .first = chunk->first};
    begin(c, &pass);
    for (int64_t i = 0; i < c->model->n_steps; i++) {
        if (atomic_load_explicit(chunk->cancel, memory_order_relaxed) != 0) {
            return fail(error, LMI_CANCELLED, "cancelled");
        }
        if (!cuda_gives_logits(&c->model->steps[i])) {
            launch_step(c, i, &pass);
            continue;
        }
        lmi_status status = run_logits(c, chunk, error);
        if (status != LMI_OK) {
            return status;
        }
    }
    cuda_launch_advance(c->control, pass.n_tokens, c->stream);
    return LMI_OK;
}

static int64_t steer_version(const backend_chunk *chunk) { return chunk->steer != NULL ? chunk->steer->version : 0; }

/* Queues the graph of a slot: for this token, or for the one that was drawn (-1). */
static void queue_one(backend_context *c, int slot, int32_t token, const draw_order *order, bool steered) {
    cuda_one *one = &c->mailbox->one[slot];
    one->token = token;
    if (order != NULL) {
        one->order = *order;
    }
    device_graph_launch(c->stream, steered ? c->steered[slot] : c->one[slot]);
    if (c->runs_ahead) {
        device_mark_set(c->stream, c->mark[slot]);
    }
}

/* The chunk is what the other slot's graph was queued for. */
static bool came_true(const backend_context *c, const backend_chunk *chunk) {
    return c->ahead && chunk->tokens[0] == c->mailbox->one[c->slot].drawn && chunk->first == c->on_device.first - 1 &&
           chunk->start == c->on_device.start && steer_version(chunk) == c->ahead_steer;
}

/* The queue is empty when a chunk begins that is not there already. */
static lmi_status prepare(backend_context *c, const backend_chunk *chunk, lmi_error *error) {
    lmi_status status = LMI_OK;
    if (c->ahead) {
        c->ahead = false;
        status = device_check(c->stream, error);
    }
    if (status == LMI_OK && chunk->steer != NULL) {
        status = cuda_put_steer(c, chunk->steer, error); /* before anything is staged */
    }
    if (status == LMI_OK) {
        status = cuda_kept_begin(c, chunk, error);
    }
    if (status == LMI_OK) {
        stage(c, chunk);
    }
    return status;
}

/* By a graph, and by another one ahead where that is wanted. */
static lmi_status run_one(backend_context *c, const backend_chunk *chunk, bool is_there, lmi_error *error) {
    const int slot = c->runs_ahead ? 1 - c->slot : 0;
    const bool steered = chunk->steer != NULL;
    const draw_order *next = c->runs_ahead ? chunk->next : NULL;
    if (!is_there) {
        queue_one(c, slot, chunk->tokens[0], next, steered);
    }
    c->ahead = next != NULL;
    c->ahead_steer = steer_version(chunk);
    lmi_status status = LMI_OK;
    if (c->ahead) {
        queue_one(c, 1 - slot, -1, next + 1, steered);
        device_mark_wait(c->mark[slot]);
        status = device_peek(c->stream, error);
    }
    if (status == LMI_OK) {
        c->slot = slot;
        c->chosen_row = 0;
    }
    return status;
}

lmi_status cuda_run(backend_context *c, const backend_chunk *chunk, lmi_error *error) {
    if (atomic_load_explicit(chunk->cancel, memory_order_relaxed) != 0) {
        return fail(error, LMI_CANCELLED, "cancelled");
    }
    const bool whole = cuda_gives_logits(&c->model->steps[c->model->n_steps - 1]);
    const bool one = chunk->n_tokens == 1 && (chunk->n_logits == 1 || !whole) && chunk->logits == NULL;
    const bool is_there = one && came_true(c, chunk);
    lmi_status status = is_there ? LMI_OK : prepare(c, chunk, error);
    if (status != LMI_OK) {
        c->on_device.first = -1;
        return status;
    }
    if (one) {
        status = run_one(c, chunk, is_there, error);
    } else {
        status = run_steps(c, chunk, error);
        if (status == LMI_OK) {
            c->slot = 0;
            c->chosen_row = -1;
        }
    }
    if (status == LMI_OK && chunk->hidden_out != NULL) {
        status = cuda_download_rows(c, chunk->hidden_out, c->buffers[BUFFER_X], chunk->n_tokens, c->model->spec->n_embd, error);
    }
    if (status == LMI_OK) {
        status = cuda_fetch_hidden(c, chunk, error);
    }
    if (!c->ahead || status != LMI_OK) {
        const lmi_status last = device_check(c->stream, status == LMI_OK ? error : NULL);
        status = status == LMI_OK ? last : status;
    }
    c->ahead = c->ahead && status == LMI_OK;
    /* After a failure nobody knows how far the control block came. */
    c->on_device =
        (cuda_control){.first = status == LMI_OK ? chunk->first + chunk->n_tokens + c->ahead : -1, .start = chunk->start};
    return status;
}

lmi_status cuda_fetch_logits(backend_context *c, int64_t row, float *values, lmi_error *error) {
    return cuda_download_rows(c, values, logits_row(c, c->slot + row), 1, c->model->spec->n_vocab, error);
}

lmi_status cuda_candidates(backend_context *c, int64_t row, logit_candidates *out, lmi_error *error) {
    lmi_status status = LMI_OK;
    logit_candidates *here = &c->mailbox->one[c->slot].candidates;
    if (row != c->chosen_row) { /* not the one that the graph left */
        cuda_launch_candidates(logits_row(c, c->slot + row), c->model->spec->n_vocab, here, (cuda_draw){0}, c->choose_work,
                               c->stream);
        status = device_check(c->stream, error);
        c->chosen_row = status == LMI_OK ? row : -1;
    }
    if (status == LMI_OK) {
        *out = *here;
    }
    return status;
}
