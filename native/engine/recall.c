#include "engine/recall.h"

#include <math.h>

#include "backend/backend.h"

enum { DEFAULT_TOPK = 5, DEFAULT_SURPRISE = 256, DEFAULT_BLOCK = 32, MAX_BLOCK = 4096, TOPK_LAYER = 4, MAX_TOPK = 4096 };
#define DEFAULT_BUDGET ((uint64_t)1 << 30)
#define MAX_BUDGET ((uint64_t)1 << 50)
#define DEFAULT_DECAY 0.9
#define MIN_DECAY 1e-10
#define MAX_SLOTS ((int64_t)1 << 40)

static lmi_status refuse(lmi_error *error, const char *what, int64_t value, int64_t min, int64_t max) {
    return fail(error, LMI_INVALID_ARGUMENT, "%s must be between %lld and %lld, not %lld", what, (long long)min, (long long)max,
                (long long)value);
}

static bool is_full_layer(const model_spec *spec, int64_t layer) { return (spec->layer_flags[layer] & LAYER_WINDOWED) == 0; }

static lmi_status check_layer(const model_spec *spec, const lmi_recall_options *r, lmi_error *error) {
    if (r->layer < 0 || r->layer >= spec->n_layers) {
        return refuse(error, "the first layer that recalls", r->layer, 0, spec->n_layers - 1);
    }
    for (int64_t i = r->layer; i < spec->n_layers; i++) {
        if (is_full_layer(spec, i)) {
            return LMI_OK;
        }
    }
    fail(error, LMI_UNSUPPORTED, "no layer from %d on looks beyond a window that it was trained with: nothing can be recalled",
         (int)r->layer);
    remedy(error, "Leave --recall out.");
    return LMI_UNSUPPORTED;
}

static lmi_status check_company(const lmi_session_options *o, lmi_error *error) {
    if (o->draft > 0) {
        fail(error, LMI_INVALID_ARGUMENT, "draft and recall cannot be had together");
        remedy(error, "Leave one of them out.");
        return LMI_INVALID_ARGUMENT;
    }
    if (o->window < 2) {
        return fail(error, LMI_INVALID_ARGUMENT, "recall needs a window of at least 2 tokens");
    }
    if (o->recall.kind == LMI_RECALL_SURPRISE && o->chunk > o->window) {
        fail(error, LMI_INVALID_ARGUMENT, "to recall by surprise a chunk must not be larger than the window: %lld and %lld",
             (long long)o->chunk, (long long)o->window);
        remedy(error, "Use --chunk %lld.", (long long)o->window);
        return LMI_INVALID_ARGUMENT;
    }
    return LMI_OK;
}

static void fill_in(const model_spec *spec, const lmi_session_options *o, lmi_recall_options *r) {
    const int64_t half = o->window / 2 > 1 ? o->window / 2 : 1;
    if (r->kind != LMI_RECALL_BLOCKS) {
        r->block = r->kind == LMI_RECALL_TOPK ? KV_TILE : 1;
    } else if (r->block == 0) {
        r->block = DEFAULT_BLOCK;
    }
    if (r->layer == -1) {
        const int64_t last = spec->n_layers - 1;
        r->layer = r->kind != LMI_RECALL_TOPK ? 0 : last < TOPK_LAYER ? (int32_t)last : TOPK_LAYER;
    }
    if (r->n == 0) {
        const int64_t blocks = r->block > 0 && half / r->block > 1 ? half / r->block : 1;
        r->n = r->kind == LMI_RECALL_TOPK ? DEFAULT_TOPK : r->kind == LMI_RECALL_SURPRISE ? DEFAULT_SURPRISE : blocks;
    }
    r->distance = r->distance == 0 ? half : r->distance;
    r->budget = r->budget == 0 ? DEFAULT_BUDGET : r->budget;
    r->decay = r->decay == 0.0 ? DEFAULT_DECAY : r->decay;
}

lmi_status recall_resolve(const model_spec *spec, lmi_session_options *o, lmi_error *error) {
    lmi_recall_options *r = &o->recall;
    if (r->kind == LMI_RECALL_NONE) {
        return LMI_OK;
    }
    if (r->kind < LMI_RECALL_NONE || r->kind > LMI_RECALL_BLOCKS) {
        return fail(error, LMI_INVALID_ARGUMENT, "recall %d is not known", (int)r->kind);
    }
    fill_in(spec, o, r);
    const int64_t most = r->kind == LMI_RECALL_SURPRISE ? (int64_t)1 << 24 : MAX_TOPK;
    if (r->n < 1 || r->n > most) {
        return refuse(error, "what is recalled at once", r->n, 1, most);
    }
    if (r->kind == LMI_RECALL_BLOCKS && (r->block < KV_TILE || r->block > MAX_BLOCK || r->block % KV_TILE != 0)) {
        return fail(error, LMI_INVALID_ARGUMENT, "a recalled block must have a multiple of %d tokens, at most %d, not %lld",
                    (int)KV_TILE, (int)MAX_BLOCK, (long long)r->block);
    }
    if (r->distance < 1 || r->distance > o->window) {
        return refuse(error, "the distance of what is recalled", r->distance, 1, o->window);
    }
    if (r->budget > MAX_BUDGET) {
        return fail(error, LMI_INVALID_ARGUMENT, "a recall budget of %llu bytes is more than any machine has",
                    (unsigned long long)r->budget);
    }
    const double decay = (double)(float)r->decay; /* as a saved state holds it */
    if (!(decay >= MIN_DECAY && decay <= 1.0)) {
        return fail(error, LMI_INVALID_ARGUMENT, "the decay of surprise must be between %g and 1, not %g", MIN_DECAY, r->decay);
    }
    r->decay = decay;
    lmi_status status = check_layer(spec, r, error);
    return status == LMI_OK ? check_company(o, error) : status;
}

bool recall_layer(const model_spec *spec, const lmi_session_options *o, int64_t layer) {
    return o->recall.kind != LMI_RECALL_NONE && layer >= o->recall.layer && is_full_layer(spec, layer);
}

lmi_status recall_shape(const model_spec *spec, const lmi_session_options *o, middle_shape *shape, lmi_error *error) {
    const lmi_recall_options *r = &o->recall;
    *shape = (middle_shape){.kind = r->kind};
    if (r->kind == LMI_RECALL_NONE) {
        return LMI_OK;
    }
    const int64_t ahead = o->chunk > o->rollback ? o->chunk : o->rollback;
    *shape = (middle_shape){
        .kind = r->kind,
        .window = o->window,
        .sinks = o->sinks,
        .n = r->n,
        .block = r->block,
        .n_slots = r->n,
        .n_open = r->kind == LMI_RECALL_SURPRISE ? o->window + ahead : ahead / r->block + 3,
        .distance = r->distance,
        .decay = r->decay,
    };
    if (r->kind == LMI_RECALL_SURPRISE) {
        return LMI_OK;
    }
    int64_t n_layers = 0;
    for (int64_t i = 0; i < spec->n_layers; i++) {
        n_layers += recall_layer(spec, o, i);
    }
    const uint64_t slot = recall_slot_bytes(spec, o->kv_type, n_layers, r->block), room = r->budget / slot;
    const int64_t least = shape->n_open + (r->kind == LMI_RECALL_BLOCKS ? r->n : 1);
    shape->n_slots = room < (uint64_t)MAX_SLOTS ? (int64_t)room : MAX_SLOTS;
    if (shape->n_slots < least) {
        char has[32], needs[32];
        fail(error, LMI_INVALID_ARGUMENT, "a recall budget of %s has room for %lld tokens; %lld are needed at least",
             human_bytes(r->budget, has), (long long)(shape->n_slots * r->block), (long long)(least * r->block));
        remedy(error, "Use --recall-budget %s or more, or a smaller --chunk.", human_bytes((uint64_t)least * slot, needs));
        return LMI_INVALID_ARGUMENT;
    }
    return LMI_OK;
}

int64_t recall_seen(const middle_shape *shape) { return shape->kind == LMI_RECALL_BLOCKS ? shape->n * shape->block : shape->n; }
