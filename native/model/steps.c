#include "model/steps.h"

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
        return spec->n_ff;
    case BUFFER_LOGITS:
        return spec->n_vocab;
    case BUFFER_COUNT:
        break;
    }
    return 0;
}

const step *model_steps(const model_spec *spec, const model_weights *weights, arena *memory, int64_t *n_steps) {
    *n_steps = 2 + 5 * spec->n_layers;
    step *steps = arena_take_array(memory, (size_t)*n_steps, sizeof *steps);
    if (steps == NULL) {
        return NULL;
    }
    step *next = steps;
    *next++ = (step){.kind = STEP_EMBED, .n_outputs = 1, .w = {&weights->embedding}, .out = {BUFFER_X}};
    for (int32_t i = 0; i < (int32_t)spec->n_layers; i++) {
        const layer_weights *layer = &weights->layers[i];
        *next++ = (step){.kind = STEP_LINEAR,
                         .layer = i,
                         .in = BUFFER_X,
                         .norm = layer->attention_norm,
                         .n_outputs = 3,
                         .w = {&layer->q, &layer->k, &layer->v},
                         .out = {BUFFER_Q, BUFFER_K, BUFFER_V}};
        *next++ = (step){.kind = STEP_ATTEND, .layer = i, .in = BUFFER_Q, .n_outputs = 1, .out = {BUFFER_A}};
        *next++ =
            (step){.kind = STEP_LINEAR_ADD, .layer = i, .in = BUFFER_A, .n_outputs = 1, .w = {&layer->o}, .out = {BUFFER_X}};
        *next++ = (step){.kind = STEP_GATED,
                         .layer = i,
                         .in = BUFFER_X,
                         .norm = layer->ffn_norm,
                         .n_outputs = 1,
                         .w = {&layer->gate, &layer->up},
                         .out = {BUFFER_H}};
        *next++ =
            (step){.kind = STEP_LINEAR_ADD, .layer = i, .in = BUFFER_H, .n_outputs = 1, .w = {&layer->down}, .out = {BUFFER_X}};
    }
    *next++ = (step){.kind = STEP_LINEAR,
                     .in = BUFFER_X,
                     .norm = weights->output_norm,
                     .n_outputs = 1,
                     .w = {&weights->output},
                     .out = {BUFFER_LOGITS}};
    return steps;
}
