/* Options to numbers, and numbers to bytes: all of it before anything large is taken. */
#include <string.h>

#include "base/memory.h"
#include "engine/recall.h"
#include "engine/session.h"
#include "lambda/window.h"

enum {
    DEFAULT_SINKS = 16,
    DEFAULT_WINDOW = 4096,
    DEFAULT_CHUNK = 512,
    DEFAULT_ROLLBACK = 64,
    MAX_CHUNK = 65536,
    MAX_STEER_RANK = 65536
};
#define MAX_TOKENS ((int64_t)1 << 40)

void lmi_session_options_default(lmi_session_options *options) {
    *options = (lmi_session_options){.size = sizeof *options,
                                     .sinks = -1,
                                     .kv_type = LMI_KV_F16,
                                     .placement = LMI_PLACEMENT_CEILING,
                                     .recall = {.layer = -1}};
}

static lmi_status out_of_range(lmi_error *error, const char *name, int64_t value, int64_t min, int64_t max) {
    return fail(error, LMI_INVALID_ARGUMENT, "%s must be between %lld and %lld, not %lld", name, (long long)min, (long long)max,
                (long long)value);
}

static lmi_status resolve(const model_spec *spec, lmi_session_options *o, lmi_error *error) {
    if (o->size != sizeof *o) {
        return fail(error, LMI_INVALID_ARGUMENT,
                    "lmi_session_options has %zu bytes here and %zu at the caller: use its default function", sizeof *o,
                    o->size);
    }
    if (o->sinks == -1) {
        /* A quarter of the trained context at most: the rest is for the window. */
        o->sinks = spec->trained_context / 4 < DEFAULT_SINKS ? spec->trained_context / 4 : DEFAULT_SINKS;
    }
    if (o->sinks < 0 || o->sinks > MAX_TOKENS) {
        return out_of_range(error, "sinks", o->sinks, 0, MAX_TOKENS);
    }
    if (o->window == 0) {
        o->window = spec->trained_context - o->sinks < DEFAULT_WINDOW ? spec->trained_context - o->sinks : DEFAULT_WINDOW;
        o->window = o->window < 1 ? 1 : o->window;
    }
    if (o->chunk == 0) {
        /* Surprise must be known before a token leaves the window. */
        o->chunk = o->recall.kind == LMI_RECALL_SURPRISE && o->window < DEFAULT_CHUNK ? o->window : DEFAULT_CHUNK;
    }
    o->rollback = o->rollback == 0 ? DEFAULT_ROLLBACK : o->rollback;
    if (o->window < 1 || o->window > MAX_TOKENS) {
        return out_of_range(error, "window", o->window, 1, MAX_TOKENS);
    }
    if (o->chunk < 1 || o->chunk > MAX_CHUNK) {
        return out_of_range(error, "chunk", o->chunk, 1, MAX_CHUNK);
    }
    if (o->rollback < 1 || o->rollback > MAX_TOKENS) {
        return out_of_range(error, "rollback", o->rollback, 1, MAX_TOKENS);
    }
    if (o->draft < 0 || o->draft > DRAFT_MOST) {
        return out_of_range(error, "draft", o->draft, 0, DRAFT_MOST);
    }
    if (o->draft > 0 && o->all_logits != 0) {
        return fail(error, LMI_INVALID_ARGUMENT, "draft and all_logits cannot be had together");
    }
    if (o->draft > 0 && o->all_hidden != 0) {
        return fail(error, LMI_INVALID_ARGUMENT, "draft and all_hidden cannot be had together");
    }
    if (o->steer_rank < 0 || o->steer_rank > MAX_STEER_RANK) {
        return out_of_range(error, "steer_rank", o->steer_rank, 0, MAX_STEER_RANK);
    }
    if (o->steer_rank > 0 && o->importance != 0) {
        return fail(error, LMI_INVALID_ARGUMENT,
                    "steer_rank and importance cannot be had together: sums are of the model alone");
    }
    o->draft = o->draft < o->chunk ? o->draft : (int32_t)o->chunk - 1;
    if (o->kv_type < LMI_KV_F16 || o->kv_type > LMI_KV_F32) {
        return fail(error, LMI_INVALID_ARGUMENT, "kv_type %d is not known", (int)o->kv_type);
    }
    if (o->placement < LMI_PLACEMENT_CEILING || o->placement > LMI_PLACEMENT_TRUE) {
        return fail(error, LMI_INVALID_ARGUMENT, "placement %d is not known", (int)o->placement);
    }
    if (o->placement != LMI_PLACEMENT_CEILING && spec->arch->alibi) {
        fail(error, LMI_UNSUPPORTED, "the %s placement needs rotary positions; this model has ALiBi",
             o->placement == LMI_PLACEMENT_TRUE ? "true" : "contiguous");
        remedy(error, "Use the ceiling placement.");
        return LMI_UNSUPPORTED;
    }
    if (o->kv_type == LMI_KV_Q8_0 && spec->head_dim % 32 != 0) {
        fail(error, LMI_UNSUPPORTED, "a q8_0 context needs heads of a multiple of 32 numbers; this model's have %lld",
             (long long)spec->head_dim);
        remedy(error, "Use the f16 context.");
        return LMI_UNSUPPORTED;
    }
    return recall_resolve(spec, o, error);
}

/* Keys are stored rotated, so the choice between short and long factors is made once, by the largest distance there can be. */
static const rope_table *layer_rope(const lmi_model *model, int64_t layer, int64_t window) {
    const model_spec *spec = &model->spec;
    if ((spec->layer_flags[layer] & LAYER_UNROTATED) != 0) {
        return NULL;
    }
    if (spec->has_rope_window && (spec->layer_flags[layer] & LAYER_WINDOWED) != 0) {
        return &model->rope_window;
    }
    return spec->has_rope_long && (double)window > spec->rope.original_context ? &model->rope_long : &model->rope;
}

lmi_status session_plan_make(const lmi_model *model, const lmi_session_options *options, arena *memory, session_plan *plan,
                             lmi_error *error) {
    const model_spec *spec = &model->spec;
    *plan = (session_plan){0};
    if (!model->has_weights) {
        return fail(error, LMI_INVALID_ARGUMENT, "this model was opened for its vocabulary only");
    }
    if (options != NULL) {
        plan->options = *options;
    } else {
        lmi_session_options_default(&plan->options);
    }
    lmi_status status = resolve(spec, &plan->options, error);
    if (status != LMI_OK) {
        return status;
    }
    const lmi_session_options *o = &plan->options;
    plan->layers = arena_take_array(memory, (size_t)spec->n_layers, sizeof *plan->layers);
    if (plan->layers == NULL) {
        return fail(error, LMI_OUT_OF_MEMORY, "no memory for the plan of %lld layers", (long long)spec->n_layers);
    }
    for (int64_t i = 0; i < spec->n_layers; i++) {
        /* A layer that was trained with a window never saw tokens beyond it: it keeps that window and no sinks. */
        const bool native = (spec->layer_flags[i] & LAYER_WINDOWED) != 0;
        const int64_t window = native && spec->native_window < o->window ? spec->native_window : o->window;
        plan->layers[i] = (layer_context){
            .window = window,
            .sinks = native ? 0 : o->sinks,
            .capacity = ring_capacity(window, o->chunk, o->rollback),
            .rope = layer_rope(model, i, o->window),
            .recalls = recall_layer(spec, o, i),
        };
        plan->capacity = plan->layers[i].capacity > plan->capacity ? plan->layers[i].capacity : plan->capacity;
    }
    /* Surprise is told by the logits of every token. */
    plan->logits_rows = o->all_logits || o->recall.kind == LMI_RECALL_SURPRISE ? o->chunk : 1 + o->draft;
    plan->shape = (context_shape){
        .layers = plan->layers,
        .kv_type = o->kv_type,
        .placement = o->placement,
        .chunk = o->chunk,
        .n_exact = 1 + o->draft,
        .n_logits = plan->logits_rows,
        .importance = o->importance != 0,
        .recall_folder = o->recall.folder,
        .last_hidden = o->all_hidden != 0,
        .steer_rank = o->steer_rank,
        /* A token that is run unasked takes a slot of the ring: rollback must be there beside it. */
        .ahead = o->draft == 0 && o->all_logits == 0 && o->all_hidden == 0 && o->recall.kind == LMI_RECALL_NONE &&
                 o->chunk > o->rollback,
    };
    status = recall_shape(spec, o, &plan->shape.middle, error);
    if (status != LMI_OK) {
        return status;
    }
    return placement_plan_make(model, &plan->shape, &plan->place, error);
}

uint64_t session_own_bytes(const lmi_model *model, const session_plan *plan) {
    const uint64_t logits = (uint64_t)plan->logits_rows * (uint64_t)model->spec.n_vocab * sizeof(float);
    return logits + sampler_bytes(model->spec.n_vocab) + SAMPLER_HISTORY * sizeof(int32_t) + sizeof(lmi_session) +
           (plan->options.draft > 0 ? draft_bytes() : 0) +
           (plan->options.recall.kind == LMI_RECALL_SURPRISE ? (uint64_t)plan->options.chunk * (sizeof(float) + sizeof(double))
                                                             : 0) +
           session_steer_bytes(model, plan);
}

void session_plan_report(const lmi_model *model, const session_plan *plan, lmi_plan *report) {
    const placement_plan *p = &plan->place;
    lmi_memory memory;
    memory_now(&memory);
    *report = (lmi_plan){
        .window = plan->options.window,
        .sinks = plan->options.sinks,
        .chunk = plan->options.chunk,
        .rollback = plan->options.rollback,
        .ring_slots = plan->capacity,
        .weight_bytes = p->host_weights,
        .context_bytes = p->bytes.context,
        .recall_bytes = p->bytes.recall,
        .recall_file_bytes = plan->options.recall.folder != NULL ? p->bytes.recall : 0,
        .recall_tokens = plan->shape.middle.n_slots * plan->shape.middle.block,
        .recall_seen = recall_seen(&plan->shape.middle),
        .work_bytes = p->bytes.work + session_own_bytes(model, plan),
        .tokenizer_bytes = model->tokens != NULL ? tokenizer_bytes(model->tokens) : 0,
        .available_bytes = memory.available_bytes,
        .weights_mapped = model->view.mapped,
        .device_layers = p->device_layers,
        .device_weight_bytes = p->device_weights,
        .device_context_bytes = p->bytes.device_context,
        .device_work_bytes = p->bytes.device_work,
        .device_needed_bytes = p->device_needed,
        .device_available_bytes = p->device_layers > 0 ? p->device_available : 0,
    };
    memcpy(report->device_note, p->note, sizeof report->device_note);
    report->total_bytes = report->weight_bytes + report->context_bytes + report->work_bytes + report->tokenizer_bytes;
}

lmi_status lmi_session_plan(const lmi_model *model, const lmi_session_options *options, lmi_plan *plan, lmi_error *error) {
    if (model == NULL || plan == NULL) {
        return fail(error, LMI_INVALID_ARGUMENT, "lmi_session_plan needs a model and a place for the plan");
    }
    arena memory;
    arena_open(&memory);
    session_plan made;
    lmi_status status = session_plan_make(model, options, &memory, &made, error);
    if (status == LMI_OK) {
        session_plan_report(model, &made, plan);
    }
    arena_close(&memory);
    return status;
}
