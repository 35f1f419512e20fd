/* What is kept of the middle, on the CPU: storing what leaves the window, choosing, attending.
 *
 * A key in the ring is turned by its position. When its token leaves the window the rotation is taken off once, by the exact phase,
 * and it is stored as sinks are: turned to position 0. Queries meet such keys turned to one distance, so they all seem to lie there.
 * All of a layer's work for one kv head is one unit's: heads share nothing but the time at which a block was last chosen. */
#include <math.h>
#include <string.h>

#include "backend/cpu.h"
#include "base/memory.h"

static const middle_shape *shape_of(const backend_context *c) { return &c->shape.middle; }

static bool is_surprise(const middle_shape *m) { return m->kind == LMI_RECALL_SURPRISE; }

/* ---- memory -------------------------------------------------------------------------------------------------------------- */

void cpu_recall_take(backend_context *c, cpu_take *take, void *taker) {
    const middle_shape *m = shape_of(c);
    if (m->kind == LMI_RECALL_NONE) {
        return;
    }
    const model_spec *spec = c->model->spec;
    const uint64_t n = (uint64_t)m->n_slots;
    cpu_recall counted = {0}, *r = take(taker, 1, sizeof *r);
    c->recall = r;
    r = r != NULL ? r : &counted;
    r->kept = recall_store_of(c->model, &c->shape);
    if (is_surprise(m)) {
        r->kept.surprises.n_ring = m->n_open;
        r->kept.surprises.surprisal = take(taker, (uint64_t)m->n_open, sizeof(float));
        r->kept.surprises.token = take(taker, n, sizeof(int64_t));
        r->kept.surprises.rank = take(taker, n, sizeof(double));
        r->kept.surprises.moves = take(taker, (uint64_t)c->shape.chunk, sizeof(middle_move));
        r->kept.surprises.runs = take(taker, n / 2 + 1, sizeof(slot_range));
        return;
    }
    r->kept.blocks.block = take(taker, n, sizeof(int64_t));
    r->kept.blocks.chosen = take(taker, n, sizeof(*r->kept.blocks.chosen));
    r->kept.blocks.slot = take(taker, (uint64_t)m->n_open, sizeof(int64_t));
    const uint64_t n_trees = m->kind == LMI_RECALL_BLOCKS ? (uint64_t)r->kept.n_shelves : 0;
    r->boxes = take(taker, n_trees, sizeof *r->boxes);
    for (uint64_t i = 0; i < n_trees; i++) {
        uint16_t *memory = take(taker, (uint64_t)boxes_values(spec->head_dim, m->n_slots), sizeof *memory);
        if (r->boxes != NULL && memory != NULL) {
            memory_in_large_pages(memory, (size_t)boxes_values(spec->head_dim, m->n_slots) * sizeof *memory);
            r->boxes[i] = boxes_at(memory, spec->head_dim, m->n_slots);
        }
    }
}

/* A box around many keys promises more than one around few, so no few of them are enough for a small n. */
static int64_t beam_of(const middle_shape *m) { return m->n > 8 ? (3 * m->n + 3) / 4 : 6; }

void cpu_recall_take_worker(const backend_context *c, cpu_worker *worker, cpu_take *take, void *taker) {
    const middle_shape *m = shape_of(c);
    const bool picks = m->kind == LMI_RECALL_TOPK || m->kind == LMI_RECALL_BLOCKS;
    worker->picks = take(taker, picks ? (uint64_t)m->n : 0, sizeof(pick));
    worker->look = take(taker, picks ? (uint64_t)c->model->spec->head_dim : 0, sizeof(float));
    worker->box = take(taker, m->kind == LMI_RECALL_BLOCKS ? 2 * (uint64_t)c->model->spec->head_dim : 0, sizeof(float));
    worker->beams = take(taker, m->kind == LMI_RECALL_BLOCKS ? 2 * (uint64_t)beam_of(m) : 0, sizeof(pick));
    const bool few = m->kind == LMI_RECALL_TOPK;
    worker->few = take(taker, few ? kv_bank_bytes(c->shape.kv_type, c->model->spec->head_dim, kv_round_slots(m->n)) : 0, 1);
}

/* ---- a chunk -------------------------------------------------------------------------------------------------------------- */

static int64_t first_of(const backend_context *c) { return c->chunk->first; }

/* After a rewind, blocks that were whole are not, and will be of other tokens. A search must not depend on what was. */
static void empty_boxes(const backend_context *c, int64_t n_whole) {
    const cpu_recall *r = c->recall;
    for (int64_t s = 0; s < r->kept.blocks.n_used; s++) {
        for (int64_t shelf = 0; r->kept.blocks.block[s] >= n_whole && shelf < r->kept.n_shelves; shelf++) {
            boxes_empty(&r->boxes[shelf], s, r->kept.blocks.n_used);
        }
    }
}

lmi_status cpu_recall_begin(backend_context *c, lmi_error *error) {
    cpu_recall *r = c->recall;
    if (r == NULL) {
        return LMI_OK;
    }
    const middle_shape *m = shape_of(c);
    const int64_t first = first_of(c), n = c->chunk->n_tokens;
    bool went_back;
    lmi_status status = recall_store_begin(&r->kept, first, n, &went_back, error);
    if (r->boxes != NULL && went_back) {
        empty_boxes(c, middle_size(m, first) / m->block);
    }
    for (int i = 0; i < c->n_turns; i++) {
        const turn_set *turns = &c->turns[i];
        if (turns->turn_recall == NULL) {
            continue;
        }
        const int64_t stride = c->model->spec->n_rot;
        const float magnitude = turns->rope->magnitude;
        const token_range leaving = middle_leaving(m, first, n);
        rope_row(turns->rope, m->distance, turns->turn_recall);
        for (int64_t j = leaving.begin; j < leaving.end; j++) {
            float *row = turns->turn_back + (j - leaving.begin) * stride;
            rope_row(turns->rope, c->chunk->start + j, row);
            for (int64_t pair = 0; pair < stride / 2; pair++) { /* position 0 keeps the magnitude */
                row[2 * pair] /= magnitude;
                row[2 * pair + 1] /= -magnitude;
            }
        }
    }
    return status;
}

static int64_t shelf_of(const backend_context *c, int64_t kv_head) { return c->layers[c->step->layer].shelf + kv_head; }

static kv_bank bank_of(const backend_context *c, int64_t shelf, int64_t slot) {
    const recall_store *r = &c->recall->kept;
    const int64_t n_tokens = kv_round_slots(r->bank_tokens);
    return kv_bank_at(recall_store_bank(r, shelf, slot), c->shape.kv_type, (int32_t)c->model->spec->head_dim, n_tokens);
}

/* ---- storing -------------------------------------------------------------------------------------------------------------- */

/* The token leaves the ring of layer i for a slot of `bank`. */
static void move_token(const backend_context *c, int64_t token, int64_t i, int64_t kv_head, cpu_worker *worker,
                       const kv_bank *bank, int64_t slot) {
    const model_spec *spec = c->model->spec;
    const kernels *k = c->model->kernels;
    const cpu_layer *layer = &c->layers[i];
    float *key = worker->key, *value = worker->key + spec->head_dim;
    kv_load(&layer->rings[kv_head], ring_slot(token, c->shape.layers[i].capacity), key, value);
    if (layer->turns != NULL) {
        const int64_t row = token - middle_leaving(shape_of(c), first_of(c), c->chunk->n_tokens).begin;
        k->rope(key, 1, spec->head_dim, spec->n_rot, layer->turns->turn_back + row * spec->n_rot, spec->arch->pairing);
    }
    k->kv_store[c->shape.kv_type](bank, slot, key, value);
}

/* A block that is there. */
static void enclose(const backend_context *c, int64_t shelf, int64_t slot, cpu_worker *worker) {
    const boxes *b = &c->recall->boxes[shelf];
    const kv_bank bank = bank_of(c, shelf, slot);
    const float *key = worker->key;
    float *largest = worker->box, *smallest = worker->box + b->d;
    for (int64_t i = 0; i < b->d; i++) {
        largest[i] = -INFINITY;
        smallest[i] = INFINITY;
    }
    for (int64_t t = 0; t < shape_of(c)->block; t++) {
        kv_load(&bank, t, worker->key, NULL);
        for (int64_t i = 0; i < b->d; i++) {
            largest[i] = key[i] <= largest[i] ? largest[i] : key[i];
            smallest[i] = key[i] >= smallest[i] ? smallest[i] : key[i];
        }
    }
    boxes_enclose(b, slot, largest, smallest, c->recall->kept.blocks.n_used);
}

void cpu_recall_store(backend_context *c, int64_t kv_head, cpu_worker *worker) {
    const middle_shape *m = shape_of(c);
    if (m->kind == LMI_RECALL_SURPRISE) {
        return;
    }
    const int64_t shelf = shelf_of(c, kv_head);
    const token_range leaving = middle_leaving(m, first_of(c), c->chunk->n_tokens);
    for (int64_t j = leaving.begin; j < leaving.end; j++) {
        const int64_t at = (j - m->sinks) % m->block;
        const int64_t slot = middle_slot(&c->recall->kept.blocks, m, (j - m->sinks) / m->block);
        const kv_bank bank = bank_of(c, shelf, slot);
        move_token(c, j, c->step->layer, kv_head, worker, &bank, at);
        if (m->kind == LMI_RECALL_BLOCKS && at == 0) {
            boxes_empty(&c->recall->boxes[shelf], slot, c->recall->kept.blocks.n_used);
        } else if (m->kind == LMI_RECALL_BLOCKS && at == m->block - 1) {
            enclose(c, shelf, slot, worker);
        }
    }
}

/* Of one layer and kv head, what the chunk's leaving tokens move into. */
static void settle_piece(void *context, int64_t piece, int worker) {
    backend_context *c = context;
    const middle_surprises *s = &c->recall->kept.surprises;
    const int64_t n = c->model->spec->n_kv_heads, layer = c->model->layer0 + piece / n, kv_head = piece % n;
    if (c->layers[layer].shelf >= 0) {
        const kv_bank bank = bank_of(c, c->layers[layer].shelf + kv_head, 0);
        for (int64_t i = 0; i < s->n_moves; i++) {
            move_token(c, s->moves[i].token, layer, kv_head, &c->workers[worker], &bank, s->moves[i].slot);
        }
    }
}

void cpu_recall_end(backend_context *c, bool finished) {
    if (c->recall == NULL || c->recall->kept.surprises.n_moves == 0) {
        return;
    }
    if (finished) {
        pool_run(c->model->workers, settle_piece, c, (c->model->layer1 - c->model->layer0) * c->model->spec->n_kv_heads);
    } else {
        middle_take_back(&c->recall->kept.surprises);
    }
}

/* ---- choosing ------------------------------------------------------------------------------------------------------------- */

/* Of blocks that were whole when the token at `index` was read, those that the rows look for most. */
static int64_t choose_blocks(backend_context *c, int64_t shelf, int64_t index, const float *q, int64_t n_rows,
                             cpu_worker *worker) {
    const middle_shape *m = shape_of(c);
    middle_blocks *blocks = &c->recall->kept.blocks;
    const int64_t d = c->model->spec->head_dim, n_whole = middle_size(m, index) / m->block;
    memset(worker->look, 0, (size_t)d * sizeof(float));
    for (int64_t r = 0; r < n_rows; r++) {
        c->model->kernels->add(worker->look, q + r * d, d);
    }
    return boxes_find(&c->recall->boxes[shelf], c->model->kernels->box_bounds, worker->look, blocks->n_used, blocks->block,
                      n_whole, m->n, worker->picks, beam_of(m), worker->beams);
}

static float product(const float *x, const float *y, int64_t n) {
    float sum = 0.0f;
    for (int64_t i = 0; i < n; i++) {
        sum += x[i] * y[i];
    }
    return sum;
}

/* Of all tokens of the middle, those that one query looks for most; none where there are fewer than K. */
static int64_t choose_tokens(const backend_context *c, int64_t shelf, int64_t index, const float *q, cpu_worker *worker) {
    const middle_shape *m = shape_of(c);
    const int64_t d = c->model->spec->head_dim, n_tokens = middle_size(m, index);
    int64_t n = 0;
    if (n_tokens < m->n) {
        return 0;
    }
    for (int64_t s = 0; s < c->recall->kept.blocks.n_used; s++) {
        const kv_bank bank = bank_of(c, shelf, s);
        const int64_t left = n_tokens - c->recall->kept.blocks.block[s] * m->block;
        for (int64_t i = 0; i < m->block && i < left; i++) {
            kv_load(&bank, i, worker->key, worker->key + d);
            n = pick_better(worker->picks, n, m->n, (pick){product(q, worker->key, d), (int32_t)i, s});
        }
    }
    return n;
}

/* ---- attending ------------------------------------------------------------------------------------------------------------ */

bool cpu_recall_sees(const backend_context *c, int64_t layer, int64_t n_read) {
    return c->layers[layer].shelf >= 0 && middle_size(shape_of(c), n_read) > 0;
}

typedef struct view {
    attend_args args;
    attend_kernel *attend;
} view;

/* A block shows each row the tokens that are out of its window. Blocks lie far apart: that in slot `next`, or none (-1), is asked for
 * meanwhile. */
static void attend_block(const backend_context *c, view *v, int64_t shelf, int64_t slot, int64_t next, int64_t first) {
    const middle_shape *m = shape_of(c);
    const kv_bank bank = bank_of(c, shelf, slot);
    v->args.then = next < 0 ? NULL : bank_of(c, shelf, next).keys;
    v->args.bank = &bank;
    v->args.first_pos = first - m->sinks - c->recall->kept.blocks.block[slot] * m->block;
    v->args.window = m->window;
    v->args.n_slots_used = m->block;
    v->args.slot0 = 0;
    v->args.slot1 = m->block;
    v->attend(&v->args);
}

/* With many rows all of it at once: there is time enough. */
static void fetch(const backend_context *c, int64_t shelf, int64_t slot) {
    const char *bank = recall_store_bank(&c->recall->kept, shelf, slot);
    for (size_t i = 0; i < c->recall->kept.bank_bytes; i += 64) {
        __builtin_prefetch(bank + i);
    }
}

static void attend_blocks(backend_context *c, view *v, int64_t shelf, int64_t first, int64_t n, cpu_worker *worker) {
    const middle_shape *m = shape_of(c);
    middle_blocks *blocks = &c->recall->kept.blocks;
    const int64_t n_picks = choose_blocks(c, shelf, first, v->args.q, v->args.n_rows, worker);
    for (int64_t i = 0; i < n_picks; i++) {
        atomic_store_explicit(&blocks->chosen[worker->picks[i].slot], first_of(c), memory_order_relaxed);
        const int64_t next = i + 1 < n_picks ? worker->picks[i + 1].slot : -1;
        if (n > 1 && next >= 0) {
            fetch(c, shelf, next);
        }
        attend_block(c, v, shelf, worker->picks[i].slot, next, first);
        v->args.again = true;
    }
    /* What has left the window and is not yet a whole block is always seen. */
    const int64_t n_left = middle_size(m, first + n - 1);
    for (int64_t b = middle_size(m, first) / m->block; b * m->block < n_left; b++) {
        attend_block(c, v, shelf, middle_slot(blocks, m, b), -1, first);
    }
}

/* Each query head of one token sees tokens of its own. */
static void attend_tokens(const backend_context *c, view *v, int64_t shelf, int64_t index, cpu_worker *worker) {
    const middle_shape *m = shape_of(c);
    const int64_t d = c->model->spec->head_dim;
    const kv_bank few = kv_bank_at(worker->few, c->shape.kv_type, (int32_t)d, kv_round_slots(m->n));
    const attend_args all = v->args;
    for (int64_t h = 0; h < all.n_rows; h++) {
        const int64_t n = choose_tokens(c, shelf, index, all.q + h * d, worker);
        for (int64_t i = 0; i < n; i++) {
            const kv_bank bank = bank_of(c, shelf, worker->picks[i].slot);
            kv_load(&bank, worker->picks[i].lane, worker->key, worker->key + d);
            c->model->kernels->kv_store[c->shape.kv_type](&few, i, worker->key, worker->key + d);
        }
        v->args.bank = &few;
        v->args.q = all.q + h * d;
        v->args.slopes = all.slopes != NULL ? all.slopes + h : NULL;
        v->args.m = all.m + h;
        v->args.z = all.z + h;
        v->args.o = all.o + h * d;
        v->args.n_rows = v->args.rows_per_token = 1;
        v->args.first_pos = n; /* and a window of 1: all of them are seen */
        v->args.window = 1;
        v->args.n_slots_used = v->args.slot1 = n;
        v->attend(&v->args);
    }
}

static void attend_surprises(const backend_context *c, view *v, int64_t shelf) {
    const middle_surprises *s = &c->recall->kept.surprises;
    const kv_bank bank = bank_of(c, shelf, 0);
    v->args.bank = &bank;
    v->args.first_pos = s->n_used;
    v->args.window = 1;
    v->args.n_slots_used = s->n_used;
    for (int64_t i = 0; i < s->n_runs; i++) {
        v->args.slot0 = s->runs[i].begin;
        v->args.slot1 = s->runs[i].end;
        v->attend(&v->args);
    }
}

void cpu_recall_attend(backend_context *c, int64_t token, int64_t n, int64_t kv_head, cpu_worker *worker, float *q, float *m,
                       float *z, float *o) {
    const model_spec *spec = c->model->spec;
    const turn_set *turns = c->layers[c->step->layer].turns;
    const int64_t shelf = shelf_of(c, kv_head), first = first_of(c) + token;
    cpu_load_queries(c, token, n, kv_head, worker, turns != NULL ? turns->turn_recall : NULL, q);
    view v = {
        .args = {.q = q,
                 .n_rows = n * c->group,
                 .rows_per_token = c->group,
                 .distance = shape_of(c)->distance,
                 .m = m,
                 .z = z,
                 .o = o,
                 .softcap = spec->attention_softcap,
                 .slopes = c->slopes != NULL ? c->slopes + kv_head * c->group : NULL,
                 .scratch = worker->attend_scratch},
        .attend = c->model->kernels->attend_sinks[c->shape.kv_type],
    };
    switch (shape_of(c)->kind) {
    case LMI_RECALL_BLOCKS:
        attend_blocks(c, &v, shelf, first, n, worker);
        break;
    case LMI_RECALL_SURPRISE:
        attend_surprises(c, &v, shelf);
        break;
    case LMI_RECALL_TOPK:
        if (c->chunk->n_tokens == 1) {
            attend_tokens(c, &v, shelf, first, worker);
        }
        break;
    case LMI_RECALL_NONE:
        break;
    }
}

/* ---- the rest of backend.h's ------------------------------------------------------------------------------------------------ */

void cpu_recall_surprise(backend_context *c, int64_t first, const float *surprisal, int64_t n) {
    recall_store_surprise(&c->recall->kept, first, surprisal, n);
}

void cpu_recall_counts(const backend_context *c, int64_t n_read, int64_t *kept, int64_t *dropped) {
    recall_store_counts(&c->recall->kept, n_read, kept, dropped);
}

uint64_t cpu_recall_bytes(const backend_context *c) { return recall_store_bytes(&c->recall->kept); }
uint64_t cpu_recall_most(const backend_context *c) { return recall_store_most(&c->recall->kept); }

void cpu_recall_get(backend_context *c, uint64_t offset, size_t n, void *bytes) {
    recall_store_get(&c->recall->kept, offset, n, bytes);
}

void cpu_recall_put(backend_context *c, uint64_t offset, size_t n, const void *bytes) {
    const recall_store *r = &c->recall->kept;
    if (recall_store_put(&c->recall->kept, offset, n, bytes)) {
        for (int64_t shelf = 0; c->recall->boxes != NULL && shelf < r->n_shelves; shelf++) {
            for (int64_t s = 0; s < r->blocks.n_used; s++) {
                enclose(c, shelf, s, &c->workers[0]);
            }
        }
    }
}

lmi_status cpu_recall_check(const backend_context *c, const void *bytes, size_t size, lmi_error *error) {
    return recall_store_check(&c->recall->kept, bytes, size, error);
}
