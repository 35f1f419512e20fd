/* What a session keeps of the middle, on the host's side: memory, the slots of a chunk, saved states.
 *
 * Which block lies where is decided here, as on the CPU (backend/recall_store.h); keys, values and these tables are page-locked memory
 * that kernels read and write in place. Boxes, which blocks are found by, are the device's own. */
#include <string.h>

#include "cuda/internal.h"

static const middle_shape *shape_of(const backend_context *c) { return &c->shape.middle; }

lmi_status cuda_kept_check(const context_shape *shape, lmi_error *error) {
    const lmi_recall kind = shape->middle.kind;
    if (kind != LMI_RECALL_NONE && kind != LMI_RECALL_BLOCKS) {
        fail(error, LMI_DEVICE, "a GPU recalls blocks; %s is the CPU's only", kind == LMI_RECALL_TOPK ? "topk" : "surprise");
        remedy(error, "Use --recall blocks, or --device cpu.");
        return LMI_DEVICE;
    }
    if (kind != LMI_RECALL_NONE && shape->recall_folder != NULL) {
        fail(error, LMI_DEVICE, "a GPU keeps what is recalled in memory, not in a folder");
        remedy(error, "Leave --recall-folder out, or use --device cpu.");
        return LMI_DEVICE;
    }
    return LMI_OK;
}

/* ---- memory -------------------------------------------------------------------------------------------------------- */

static const rope_table *rope_of(const backend_context *c) {
    for (int64_t i = c->model->layer0; i < c->model->layer1; i++) {
        if (c->shape.layers[i].recalls) {
            return c->shape.layers[i].rope; /* all that recall have the same */
        }
    }
    return NULL;
}

void cuda_kept_describe(backend_context *c) {
    const middle_shape *m = shape_of(c);
    if (m->kind == LMI_RECALL_NONE) {
        return;
    }
    cuda_kept *kept = &c->kept;
    const recall_store store = recall_store_of(c->model, &c->shape);
    kept->store = store;
    kept->args = (cuda_recall){
        .block = m->block,
        .n = m->n,
        .n_open = m->n_open,
        .distance = m->distance,
        .slot_stride = (uint64_t)store.n_shelves * store.bank_bytes,
        .bank_bytes = store.bank_bytes,
        .tree_values = boxes_values(c->model->spec->head_dim, m->n_slots),
    };
    kept->args.most_seen = cuda_recall_most_seen(&kept->args, c->shape.chunk);
}

void cuda_kept_take(backend_context *c, cuda_take *take, void *taker) {
    const middle_shape *m = shape_of(c);
    if (m->kind == LMI_RECALL_NONE) {
        return;
    }
    const model_spec *spec = c->model->spec;
    cuda_kept *kept = &c->kept;
    cuda_recall *r = &kept->args;
    const uint64_t n_groups = ((uint64_t)c->shape.chunk + CUDA_RECALL_TOGETHER - 1) / CUDA_RECALL_TOGETHER;
    const uint64_t n_lists = n_groups * (uint64_t)spec->n_kv_heads, n_trees = (uint64_t)kept->store.n_shelves;
    kept->boxes = take(taker, n_trees, (uint64_t)r->tree_values * sizeof *kept->boxes);
    if (kept->boxes != NULL) {
        r->tree = boxes_at(kept->boxes, spec->head_dim, m->n_slots);
    }
    kept->turn = take(taker, rope_of(c) != NULL ? (uint64_t)spec->n_rot : 0, sizeof(float));
    kept->now = take(taker, 1 + (uint64_t)m->n_open, sizeof(int64_t));
    kept->number = take(taker, (uint64_t)m->n_slots, sizeof(int64_t));
    r->seen = take(taker, n_lists * (uint64_t)r->most_seen, sizeof *r->seen);
    r->n_seen = take(taker, n_lists, sizeof *r->n_seen);
    r->search = take(taker, n_lists, cuda_recall_search_bytes(m->n));
    r->turn = kept->turn;
    r->now = kept->now;
    r->number = kept->number;
}

void cuda_kept_take_pinned(backend_context *c, cuda_take *take, void *taker) {
    const middle_shape *m = shape_of(c);
    if (m->kind == LMI_RECALL_NONE) {
        return;
    }
    cuda_kept *kept = &c->kept;
    middle_blocks *blocks = &kept->store.blocks;
    kept->staged_now = take(taker, 1 + (uint64_t)m->n_open, sizeof(int64_t));
    blocks->slot = kept->staged_now != NULL ? kept->staged_now + 1 : NULL;
    blocks->block = take(taker, (uint64_t)m->n_slots, sizeof(int64_t));
    blocks->chosen = take(taker, (uint64_t)m->n_slots, sizeof *blocks->chosen);
    kept->args.chosen = (int64_t *)(void *)blocks->chosen;
}

uint64_t cuda_kept_bytes(const backend_context *c) { return c->kept.store.banks_size; }

lmi_status cuda_kept_open(backend_context *c, lmi_error *error) {
    cuda_kept *kept = &c->kept;
    if (shape_of(c)->kind == LMI_RECALL_NONE) {
        return LMI_OK;
    }
    void *banks;
    lmi_status status = device_alloc_pinned(c->stream, kept->store.banks_size, &banks, error);
    if (status != LMI_OK) {
        if (status == LMI_OUT_OF_MEMORY) {
            remedy(error, "Use a smaller --recall-budget.");
        }
        return status;
    }
    kept->store.banks = banks;
    kept->args.banks = banks;
    const rope_table *rope = rope_of(c);
    if (rope != NULL) {
        rope_row(rope, shape_of(c)->distance, c->staged); /* staged has room: see take_pinned */
        device_upload(c->stream, kept->turn, c->staged, (uint64_t)rope->n_rot * sizeof(float));
    }
    return device_check(c->stream, error);
}

void cuda_kept_close(backend_context *c) { device_free_pinned(c->stream, c->kept.store.banks); }

/* ---- a chunk ------------------------------------------------------------------------------------------------------- */

cuda_recall cuda_kept_layer(const backend_context *c, int64_t layer) {
    const layer_context *layers = c->shape.layers;
    if (!layers[layer].recalls) {
        return (cuda_recall){.block = 0};
    }
    int64_t shelf = 0;
    for (int64_t i = c->model->layer0; i < layer; i++) {
        shelf += layers[i].recalls ? c->model->spec->n_kv_heads : 0;
    }
    cuda_recall r = c->kept.args;
    for (int i = 0; i < c->n_turns; i++) {
        r.table = c->rope_of[i] == layers[layer].rope ? c->ropes[i] : r.table;
    }
    r.banks += (uint64_t)shelf * r.bank_bytes;
    for (int i = 0; i < r.tree.n_levels; i++) {
        r.tree.level[i] += shelf * r.tree_values;
    }
    return r;
}

lmi_status cuda_kept_begin(backend_context *c, const backend_chunk *chunk, lmi_error *error) {
    cuda_kept *kept = &c->kept;
    middle_blocks *blocks = &kept->store.blocks;
    const middle_shape *m = shape_of(c);
    if (m->kind == LMI_RECALL_NONE) {
        return LMI_OK;
    }
    const int64_t begun = blocks->n_used + blocks->n_dropped;
    bool went_back;
    lmi_status status = recall_store_begin(&kept->store, chunk->first, chunk->n_tokens, &went_back, error);
    if (status != LMI_OK) {
        return status;
    }
    if (went_back || kept->loaded || blocks->n_used + blocks->n_dropped != begun) {
        kept->staged_now[0] = blocks->n_used;
        device_upload(c->stream, kept->now, kept->staged_now, (1 + (uint64_t)m->n_open) * sizeof(int64_t));
        device_upload(c->stream, kept->number, blocks->block, (uint64_t)blocks->n_used * sizeof(int64_t));
    }
    if (went_back) {
        cuda_launch_boxes(&kept->args, c->shape.kv_type, (int32_t)c->model->spec->head_dim, kept->store.n_shelves,
                          blocks->n_used, middle_size(m, chunk->first) / m->block, kept->loaded, c->stream);
    }
    kept->loaded = false;
    return LMI_OK;
}

/* ---- saved states -------------------------------------------------------------------------------------------------- */

void cuda_recall_counts(const backend_context *c, int64_t n_read, int64_t *n_kept, int64_t *n_dropped) {
    recall_store_counts(&c->kept.store, n_read, n_kept, n_dropped);
}

uint64_t cuda_recall_bytes(const backend_context *c) { return recall_store_bytes(&c->kept.store); }
uint64_t cuda_recall_most(const backend_context *c) { return recall_store_most(&c->kept.store); }

void cuda_recall_get(backend_context *c, uint64_t offset, size_t n, void *bytes) {
    recall_store_get(&c->kept.store, offset, n, bytes);
}

/* Boxes are made when the next chunk begins: recall_store_begin says that it went back. */
void cuda_recall_put(backend_context *c, uint64_t offset, size_t n, const void *bytes) {
    c->kept.loaded |= recall_store_put(&c->kept.store, offset, n, bytes);
}

lmi_status cuda_recall_check(const backend_context *c, const void *bytes, size_t size, lmi_error *error) {
    return recall_store_check(&c->kept.store, bytes, size, error);
}
