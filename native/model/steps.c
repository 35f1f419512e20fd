#include "model/steps.h"

enum { MOST_LAYER_STEPS = 9 };

int64_t step_buffer_width(const model_spec *spec, step_buffer buffer) {
    switch (buffer) {
    case BUFFER_X:
        return spec->n_embd;
    case BUFFER_Q:
    case BUFFER_A:
        return spec->n_heads * spec->head_dim;
    case BUFFER_K:
    case BUFFER_V:
        return spec->n_kv_heads * spec->head_dim;
    case BUFFER_H:
        return spec->n_experts > 0 ? spec->n_ff_shared : spec->n_ff;
    case BUFFER_D:
        return spec->arch->norms != NORM_BEFORE ? spec->n_embd : 0;
    case BUFFER_R:
        return spec->n_experts;
    case BUFFER_S:
        return spec->n_ff_shared > 0 ? 1 : 0;
    case BUFFER_E:
        return spec->n_experts_used * spec->n_ff_expert;
    case BUFFER_LOGITS:
        return spec->n_vocab;
    case BUFFER_COUNT:
        break;
    }
    return 0;
}

static const norm_weights *given(const norm_weights *norm) { return norm->scale != NULL ? norm : NULL; }

/* x += W in, with a norm in between where there is one. */
static step *add_block(step *next, int32_t layer, step_buffer in, const weight *w, const norm_weights *post) {
    step linear = {.kind = STEP_LINEAR_ADD, .layer = layer, .in = in, .n_outputs = 1, .w = {w}, .out = {BUFFER_X}};
    if (post == NULL) {
        *next++ = linear;
        return next;
    }
    linear.kind = STEP_LINEAR;
    linear.out[0] = BUFFER_D;
    *next++ = linear;
    *next++ = (step){.kind = STEP_ADD_NORM, .layer = layer, .in = BUFFER_D, .norm = post, .n_outputs = 1, .out = {BUFFER_X}};
    return next;
}

static step *add_gated(step *next, int32_t i, const layer_weights *layer) {
    const bool gated = layer->gate.data != NULL;
    *next++ = (step){.kind = STEP_GATED,
                     .layer = i,
                     .in = BUFFER_X,
                     .norm = given(&layer->ffn_norm),
                     .n_outputs = 1,
                     .w = {gated ? &layer->gate : &layer->up, gated ? &layer->up : NULL},
                     .out = {BUFFER_H}};
    return next;
}

/* All of them read x before any of them adds to it. */
static step *add_experts(step *next, int32_t i, const model_spec *spec, const layer_weights *layer) {
    const bool shared = spec->n_ff_shared > 0;
    const norm_weights *norm = given(&layer->ffn_norm);
    *next++ = (step){.kind = STEP_LINEAR,
                     .layer = i,
                     .in = BUFFER_X,
                     .norm = norm,
                     .n_outputs = shared ? 2 : 1,
                     .w = {&layer->router, shared ? &layer->shared_gate : NULL},
                     .out = {BUFFER_R, BUFFER_S}};
    *next++ = (step){.kind = STEP_ROUTE, .layer = i, .in = BUFFER_R};
    *next++ = (step){.kind = STEP_EXPERTS_GATED,
                     .layer = i,
                     .in = BUFFER_X,
                     .norm = norm,
                     .n_outputs = 1,
                     .w = {&layer->gates, &layer->ups},
                     .out = {BUFFER_E}};
    next = shared ? add_gated(next, i, layer) : next;
    *next++ =
        (step){.kind = STEP_EXPERTS_ADD, .layer = i, .in = BUFFER_E, .n_outputs = 1, .w = {&layer->downs}, .out = {BUFFER_X}};
    if (shared) {
        next = add_block(next, i, BUFFER_H, &layer->down, NULL);
        next[-1].gated_by_s = true;
    }
    return next;
}

static step *add_layer(step *next, int32_t i, const model_spec *spec, const layer_weights *layer) {
    *next++ = (step){.kind = STEP_LINEAR,
                     .layer = i,
                     .in = BUFFER_X,
                     .norm = given(&layer->attention_norm),
                     .n_outputs = 3,
                     .w = {&layer->q, &layer->k, &layer->v},
                     .out = {BUFFER_Q, BUFFER_K, BUFFER_V},
                     .clamp = spec->clamp_qkv};
    *next++ = (step){.kind = STEP_ATTEND, .layer = i, .in = BUFFER_Q, .n_outputs = 1, .out = {BUFFER_A}, .attention = layer};
    if (spec->parallel) {
        next = add_gated(next, i, layer);
    }
    next = add_block(next, i, BUFFER_A, &layer->o, given(&layer->attention_post_norm));
    if (spec->n_experts > 0) {
        return add_experts(next, i, spec, layer);
    }
    if (!spec->parallel) {
        next = add_gated(next, i, layer);
    }
    return add_block(next, i, BUFFER_H, &layer->down, given(&layer->ffn_post_norm));
}

const step *model_steps(const model_spec *spec, const model_weights *weights, arena *memory, int64_t *n_steps) {
    step *steps = arena_take_array(memory, (size_t)(2 + MOST_LAYER_STEPS * spec->n_layers), sizeof *steps);
    if (steps == NULL) {
        return NULL;
    }
    step *next = steps;
    *next++ = (step){.kind = STEP_EMBED, .n_outputs = 1, .w = {&weights->embedding}, .out = {BUFFER_X}};
    for (int32_t i = 0; i < (int32_t)spec->n_layers; i++) {
        next = add_layer(next, i, spec, &weights->layers[i]);
    }
    *next++ = (step){.kind = STEP_LINEAR,
                     .in = BUFFER_X,
                     .norm = &weights->output_norm,
                     .n_outputs = 1,
                     .w = {&weights->output},
                     .out = {BUFFER_LOGITS},
                     .softcap = spec->output_softcap};
    *n_steps = next - steps;
    return steps;
}
