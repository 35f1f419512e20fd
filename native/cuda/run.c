/* The steps of a model as launches. One token with its logits is a graph that was captured once; other chunks are launched step by
 * step. What a chunk's place in the text changes is read by the kernels from the control block. */
#include <string.h>

#include "cuda/internal.h"

/* ---- launches ------------------------------------------------------------------------------------------------------ */

static void begin(backend_context *c, const cuda_pass *pass) {
    /* One token is read where the host wrote it: a copy, queued before the graph, takes longer than that. */
    const int32_t *tokens = pass->n_tokens == 1 ? c->staged_tokens : c->tokens;
    cuda_begin args = {.control = c->control, .tokens = tokens, .n_tokens = pass->n_tokens, .n_turns = c->n_turns};
    memcpy(args.turns, c->turns, sizeof args.turns);
    if (c->model->steps[0].kind == STEP_EMBED) {
        args.table = c->weights->steps[0].w[0];
        args.scale = c->model->spec->embedding_scale;
        args.x = c->buffers[BUFFER_X];
    }
    cuda_launch_begin(&args, c->stream);
}

static void linear(backend_context *c, const step *s, const cuda_step *on_device, const float *x, int64_t n_rows) {
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
        args.y[i] = c->buffers[s->out[i]];
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
        linear(c, s, on_device, c->buffers[s->in], pass->n_tokens);
        break;
    }
}

static bool gives_logits(const step *s) { return s->kind == STEP_LINEAR && s->out[0] == BUFFER_LOGITS; }

static void logits(backend_context *c, int64_t row0, int64_t n_rows, bool steered) {
    const int64_t i = c->model->n_steps - 1;
    const step *s = &c->model->steps[i];
    cuda_step on_device = c->weights->steps[i];
    const float *x = c->buffers[s->in] + row0 * step_buffer_width(c->model->spec, s->in);
    if (steered) {
        cuda_steer(c, row0, n_rows);
        on_device.norm = (cuda_norm){.kind = CUDA_NORM_NONE};
        x = c->normed;
    }
    linear(c, s, &on_device, x, n_rows);
}

/* Everything that one token takes, up to its logits and candidates. */
static void launch_one(backend_context *c, bool steered) {
    const cuda_pass pass = {.n_tokens = 1};
    begin(c, &pass);
    for (int64_t i = 0; i < c->model->n_steps; i++) {
        if (gives_logits(&c->model->steps[i])) {
            logits(c, 0, 1, steered);
            cuda_launch_candidates(c->buffers[BUFFER_LOGITS], c->model->spec->n_vocab, &c->mailbox->candidates, c->choose_work,
                                   c->stream);
        } else {
            launch_step(c, i, &pass);
        }
    }
    cuda_launch_advance(c->control, 1, c->stream);
}

static lmi_status capture(backend_context *c, bool steered, device_graph **graph, lmi_error *error) {
    /* Once in earnest: the driver loads kernels when they are first launched, which a recording must not wait for, and a device that cannot
     * run them is found here. What token 0 left behind is cleared. */
    launch_one(c, steered);
    lmi_status status = device_check(c->stream, error);
    if (status != LMI_OK) {
        return status;
    }
    device_clear(c->stream, c->banks, c->bank_bytes);
    device_clear(c->stream, c->control, sizeof *c->control);
    device_graph_begin(c->stream);
    launch_one(c, steered);
    return device_graph_end(c->stream, graph, error);
}

lmi_status cuda_capture(backend_context *c, lmi_error *error) {
    const lmi_status status = capture(c, false, &c->one, error);
    return status == LMI_OK && c->shape.steer_rank > 0 ? capture(c, true, &c->steered, error) : status;
}

/* ---- chunks -------------------------------------------------------------------------------------------------------- */

/* Tokens, their place and, from a split model's other half, their hidden state. Nothing of the last chunk is still queued. */
static void stage(backend_context *c, const backend_chunk *chunk) {
    if (c->on_device.first != chunk->first || c->on_device.start != chunk->start) {
        c->mailbox->control = (cuda_control){chunk->first, chunk->start};
        device_upload(c->stream, c->control, &c->mailbox->control, sizeof *c->control);
    }
    if (chunk->hidden_in != NULL) {
        const size_t bytes = (size_t)(chunk->n_tokens * c->model->spec->n_embd) * sizeof *c->staged;
        memcpy(c->staged, chunk->hidden_in, bytes);
        device_upload(c->stream, c->buffers[BUFFER_X], c->staged, bytes);
    }
    memcpy(c->staged_tokens, chunk->tokens, (size_t)chunk->n_tokens * sizeof *c->tokens);
    if (chunk->n_tokens > 1) {
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
            logits(c, chunk->n_tokens - chunk->n_logits, chunk->n_logits, steered);
        }
        return LMI_OK;
    }
    lmi_status status = LMI_OK;
    for (int64_t done = 0; done < chunk->n_logits && status == LMI_OK;) {
        const int64_t left = chunk->n_logits - done, n = left < c->logits_rows ? left : c->logits_rows;
        logits(c, chunk->n_tokens - left, n, steered);
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
        if (!gives_logits(&c->model->steps[i])) {
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

lmi_status cuda_run(backend_context *c, const backend_chunk *chunk, lmi_error *error) {
    const bool whole = gives_logits(&c->model->steps[c->model->n_steps - 1]);
    lmi_status status = chunk->steer != NULL ? cuda_put_steer(c, chunk->steer, error) : LMI_OK; /* before anything is staged */
    status = status == LMI_OK ? cuda_kept_begin(c, chunk, error) : status;
    if (status != LMI_OK) {
        return status;
    }
    stage(c, chunk);
    c->chosen_row = -1;
    if (atomic_load_explicit(chunk->cancel, memory_order_relaxed) != 0) {
        status = fail(error, LMI_CANCELLED, "cancelled");
    } else if (chunk->n_tokens == 1 && (chunk->n_logits == 1 || !whole) && chunk->logits == NULL) {
        device_graph_launch(c->stream, chunk->steer != NULL ? c->steered : c->one);
        c->chosen_row = 0;
    } else {
        status = run_steps(c, chunk, error);
    }
    if (status == LMI_OK && chunk->hidden_out != NULL) {
        status = cuda_download_rows(c, chunk->hidden_out, c->buffers[BUFFER_X], chunk->n_tokens, c->model->spec->n_embd, error);
    }
    if (status == LMI_OK) {
        status = cuda_fetch_hidden(c, chunk, error);
    }
    const lmi_status last = device_check(c->stream, status == LMI_OK ? error : NULL);
    status = status == LMI_OK ? last : status;
    /* After a failure nobody knows how far the control block came. */
    c->on_device = (cuda_control){status == LMI_OK ? chunk->first + chunk->n_tokens : -1, chunk->start};
    return status;
}

lmi_status cuda_fetch_logits(backend_context *c, int64_t row, float *values, lmi_error *error) {
    const int64_t n_vocab = c->model->spec->n_vocab;
    return cuda_download_rows(c, values, c->buffers[BUFFER_LOGITS] + row * n_vocab, 1, n_vocab, error);
}

lmi_status cuda_candidates(backend_context *c, int64_t row, logit_candidates *out, lmi_error *error) {
    lmi_status status = LMI_OK;
    if (row != c->chosen_row) { /* not the one that the graph left */
        const int64_t n_vocab = c->model->spec->n_vocab;
        cuda_launch_candidates(c->buffers[BUFFER_LOGITS] + row * n_vocab, n_vocab, &c->mailbox->candidates, c->choose_work,
                               c->stream);
        status = device_check(c->stream, error);
        c->chosen_row = status == LMI_OK ? row : -1;
    }
    if (status == LMI_OK) {
        *out = c->mailbox->candidates;
    }
    return status;
}
