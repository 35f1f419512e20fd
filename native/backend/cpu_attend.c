/* The attention step on the CPU: rotate, store, attend.
 *
 * One token, or a few that must give the same bits: a unit is (kv head, segment of 512 slots). Each unit rotates its own queries, the unit that owns the slot of a single token stores its key first, and the last unit of a kv head to finish merges
 * the parts in order of segments: the result does not depend on who computed what. More tokens: keys and values are stored first,
 * then a unit is (kv head, 64 tokens). */
#include "backend/cpu.h"

#include <math.h>
#include <string.h>

#include "lambda/window.h"

static int64_t turn_stride(const backend_context *c) { return c->model->spec->n_rot; }

static const layer_context *layer_shape(const backend_context *c) { return &c->shape.layers[c->step->layer]; }

/* Where in turn_sink, turn_sink_key a token's row lies. */
static int64_t sink_row(const backend_context *c, int64_t token) {
    return c->shape.placement == LMI_PLACEMENT_CEILING ? 0 : token * turn_stride(c);
}

static void rotate(const backend_context *c, float *x, int64_t n_heads, const float *turn) {
    const model_spec *spec = c->model->spec;
    c->model->kernels->rope(x, n_heads, spec->head_dim, spec->n_rot, turn, spec->arch->pairing);
}

/* Heads first .. first + n of a token's row of n_all heads, with the family's norm. */
static void load_heads(const backend_context *c, const float *row, int64_t n_all, int64_t first, int64_t n, const float *norm,
                       cpu_worker *worker, float *out) {
    const model_spec *spec = c->model->spec;
    const int64_t d = spec->head_dim;
    if (norm != NULL && spec->arch->head_norm == HEAD_NORM_EACH) {
        for (int64_t h = 0; h < n; h++) {
            c->model->kernels->rms_norm(row + (first + h) * d, norm, d, spec->norm_eps, out + h * d);
        }
        return;
    }
    if (norm != NULL) {
        c->model->kernels->rms_norm(row, norm, n_all * d, spec->norm_eps, worker->row);
        row = worker->row;
    }
    memcpy(out, row + first * d, (size_t)(n * d) * sizeof *out);
}

/* The group's queries of one token, scaled, not turned. */
static void load_group(const backend_context *c, int64_t token, int64_t kv_head, cpu_worker *worker, float *q) {
    const model_spec *spec = c->model->spec;
    const float *row = c->buffers[BUFFER_Q] + token * spec->n_heads * spec->head_dim;
    load_heads(c, row, spec->n_heads, kv_head * c->group, c->group, c->step->attention->q_norm, worker, q);
    c->model->kernels->scale(q, spec->attention_scale, c->group * spec->head_dim);
}

/* In both rotations. q_sink may be NULL. */
static void load_queries(const backend_context *c, int64_t token, int64_t kv_head, cpu_worker *worker, float *q,
                         float *q_sink) {
    const turn_set *turns = c->layers[c->step->layer].turns;
    load_group(c, token, kv_head, worker, q);
    if (q_sink != NULL) {
        memcpy(q_sink, q, (size_t)(c->group * c->model->spec->head_dim) * sizeof *q_sink);
    }
    if (turns != NULL) {
        rotate(c, q, c->group, turns->turn + token * turn_stride(c));
    }
    if (turns != NULL && q_sink != NULL) {
        rotate(c, q_sink, c->group, turns->turn_sink + sink_row(c, token));
    }
}

void cpu_load_queries(const backend_context *c, int64_t token, int64_t n, int64_t kv_head, cpu_worker *worker,
                      const float *turn, float *q) {
    for (int64_t t = 0; t < n; t++, q += c->group * c->model->spec->head_dim) {
        load_group(c, token + t, kv_head, worker, q);
        if (turn != NULL) {
            rotate(c, q, c->group, turn);
        }
    }
}

static void store_key_value(backend_context *c, int64_t token, int64_t kv_head, cpu_worker *worker) {
    const model_spec *spec = c->model->spec;
    const kernels *k = c->model->kernels;
    const layer_context *shape = layer_shape(c);
    const int64_t d = spec->head_dim;
    const float *keys = c->buffers[BUFFER_K] + token * spec->n_kv_heads * d;
    const float *value = c->buffers[BUFFER_V] + (token * spec->n_kv_heads + kv_head) * d;
    const int64_t index = c->chunk->first + token;
    const cpu_layer *layer = &c->layers[c->step->layer];
    float *raw = worker->key, *key = worker->key + d;
    load_heads(c, keys, spec->n_kv_heads, kv_head, 1, c->step->attention->k_norm, worker, raw);
    memcpy(key, raw, (size_t)d * sizeof *key);
    if (layer->turns != NULL) {
        rotate(c, key, 1, layer->turns->turn + token * turn_stride(c));
    }
    k->kv_store[c->shape.kv_type](&layer->rings[kv_head], ring_slot(index, shape->capacity), key, value);
    if (index < shape->sinks) {
        if (layer->turns != NULL) {
            rotate(c, raw, 1, layer->turns->turn_sink_key + sink_row(c, token));
        }
        k->kv_store[c->shape.kv_type](&layer->sinks[kv_head], index, raw, value);
    }
}

/* One over the sum of weights; a learned sink logit takes part in the sum and gives nothing. */
static float normaliser(const backend_context *c, int64_t head, float m, float z) {
    const float *sinks = c->step->attention->sink_logits;
    return 1.0f / (sinks == NULL ? z : z + exp_f32(sinks[head] - m));
}

static const float *slopes_of(const backend_context *c, int64_t kv_head) {
    return c->slopes != NULL ? c->slopes + kv_head * c->group : NULL;
}

static void clear_state(float *m, float *z, float *o, int64_t n_rows, int64_t head_dim) {
    for (int64_t i = 0; i < n_rows; i++) {
        m[i] = -INFINITY;
        z[i] = 0.0f;
    }
    memset(o, 0, (size_t)(n_rows * head_dim) * sizeof *o);
}

/* ---- one token, or a few ------------------------------------------------------------------------------------------ */

static int64_t segments_of(int64_t slots) { return (slots + ATTEND_SEGMENT - 1) / ATTEND_SEGMENT; }

/* Slots that hold a token once that of this index is stored: a prefix of the ring until it wraps. */
static int64_t used_slots(const layer_context *shape, int64_t index) {
    return index + 1 < shape->capacity ? index + 1 : shape->capacity;
}

/* What there is to see for the token of this index: of sinks, of the ring, and one last segment of what is recalled. */
typedef struct segments {
    int64_t n_sinks, used, n_sink_segments, n_kept, n;
} segments;

static segments segments_at(const backend_context *c, int64_t index) {
    const layer_context *shape = layer_shape(c);
    const int64_t n_sinks = active_sinks(index, shape->window, shape->sinks), used = used_slots(shape, index);
    const int64_t n_kept = segments_of(n_sinks) + segments_of(used);
    return (segments){n_sinks, used, segments_of(n_sinks), n_kept, n_kept + cpu_recall_sees(c, c->step->layer, index + 1)};
}

static void merge(backend_context *c, int64_t kv_head, int64_t n_segments) {
    const model_spec *spec = c->model->spec;
    const int64_t d = spec->head_dim;
    const cpu_partial *parts = c->partials + kv_head * c->n_segments;
    for (int64_t r = 0; r < c->chunk->n_tokens * c->group; r++) {
        const int64_t head = kv_head * c->group + r % c->group;
        float *out = c->buffers[BUFFER_A] + (r / c->group * spec->n_heads + head) * d;
        float m = -INFINITY;
        for (int64_t s = 0; s < n_segments; s++) {
            m = parts[s].m[r] > m ? parts[s].m[r] : m;
        }
        float z = 0.0f;
        memset(out, 0, (size_t)d * sizeof *out);
        for (int64_t s = 0; s < n_segments; s++) {
            if (parts[s].z[r] == 0.0f) {
                continue; /* nothing seen there: exp(-inf - m) is not to be evaluated */
            }
            const float factor = exp_f32(parts[s].m[r] - m);
            z += factor * parts[s].z[r];
            for (int64_t i = 0; i < d; i++) {
                out[i] += factor * parts[s].o[r * d + i];
            }
        }
        c->model->kernels->scale(out, normaliser(c, head, m, z), d);
    }
}

/* The last of a kv head's segments merges them all. */
static void arrive(backend_context *c, int64_t kv_head, int64_t n_segments) {
    if (atomic_fetch_add_explicit(&c->arrived[kv_head], 1, memory_order_acq_rel) == (int)n_segments - 1) {
        merge(c, kv_head, n_segments);
    }
}

/* A segment for all tokens of the chunk together, so that its keys and values are fetched and converted once; what a row gets does not
 * depend on the rows beside it. */
static void attend_segment(void *context, int64_t piece, int worker_index) {
    backend_context *c = context;
    cpu_worker *worker = &c->workers[worker_index];
    const model_spec *spec = c->model->spec;
    const layer_context *shape = layer_shape(c);
    const int64_t n_tokens = c->chunk->n_tokens, n_rows = n_tokens * c->group, d = spec->head_dim;
    const int64_t first = c->chunk->first, last = first + n_tokens - 1;
    const segments view = segments_at(c, last); /* no token sees more than the last */
    /* What is recalled comes first, if anything: it takes longest, and who is done sooner helps with the rest. */
    const int64_t segment = (piece + view.n_kept) % view.n, kv_head = piece / view.n;
    const cpu_partial *part = c->partials + kv_head * c->n_segments + segment;
    clear_state(part->m, part->z, part->o, n_rows, d);
    if (segment == view.n_kept) {
        cpu_recall_store(c, kv_head, worker);
        cpu_recall_attend(c, 0, n_tokens, kv_head, worker, worker->q, part->m, part->z, part->o);
        arrive(c, kv_head, view.n);
        return;
    }
    const bool is_sink = segment < view.n_sink_segments;
    const int64_t slot0 = (is_sink ? segment : segment - view.n_sink_segments) * ATTEND_SEGMENT;
    const int64_t limit = is_sink ? view.n_sinks : view.used;
    const cpu_layer *layer = &c->layers[c->step->layer];

    for (int64_t t = 0; t < n_tokens; t++) {
        load_queries(c, t, kv_head, worker, worker->q + t * c->group * d, is_sink ? worker->q_sink + t * c->group * d : NULL);
    }
    if (!is_sink && n_tokens == 1) {
        const int64_t own = ring_slot(first, shape->capacity);
        if (own >= slot0 && own < slot0 + ATTEND_SEGMENT) {
            store_key_value(c, 0, kv_head, worker);
        }
    }
    const attend_args args = {
        .bank = is_sink ? &layer->sinks[kv_head] : &layer->rings[kv_head],
        .q = is_sink ? worker->q_sink : worker->q,
        .n_rows = n_rows,
        .rows_per_token = c->group,
        .first_pos = first,
        .newest = last,
        .n_slots_used = is_sink ? view.n_sinks : shape->capacity,
        .window = shape->window,
        .distance = shape->window,
        .slot0 = slot0,
        .slot1 = slot0 + ATTEND_SEGMENT < limit ? slot0 + ATTEND_SEGMENT : limit,
        .m = part->m,
        .z = part->z,
        .o = part->o,
        .softcap = spec->attention_softcap,
        .slopes = slopes_of(c, kv_head),
        .scratch = worker->attend_scratch,
    };
    const kernels *k = c->model->kernels;
    (is_sink ? k->attend_sinks : k->attend_ring)[c->shape.kv_type](&args);
    arrive(c, kv_head, view.n);
}

/* ---- many tokens -------------------------------------------------------------------------------------------------- */

static void store_token(void *context, int64_t piece, int worker_index) {
    backend_context *c = context;
    for (int64_t h = 0; h < c->model->spec->n_kv_heads; h++) {
        store_key_value(c, piece, h, &c->workers[worker_index]);
    }
}

static void attend_block(void *context, int64_t piece, int worker_index) {
    backend_context *c = context;
    cpu_worker *worker = &c->workers[worker_index];
    const model_spec *spec = c->model->spec;
    const kernels *k = c->model->kernels;
    const layer_context *shape = layer_shape(c);
    const cpu_layer *layer = &c->layers[c->step->layer];
    const int64_t d = spec->head_dim, n_tokens = c->chunk->n_tokens;
    const int64_t kv_head = piece % spec->n_kv_heads;
    const int64_t token0 = piece / spec->n_kv_heads * ATTEND_BLOCK;
    const int64_t n = n_tokens - token0 < ATTEND_BLOCK ? n_tokens - token0 : ATTEND_BLOCK;
    const int64_t first = c->chunk->first + token0, last = first + n - 1;
    const int64_t n_sinks = active_sinks(last, shape->window, shape->sinks);

    for (int64_t t = 0; t < n; t++) {
        const int64_t at = t * c->group * d;
        load_queries(c, token0 + t, kv_head, worker, worker->q + at, n_sinks > 0 ? worker->q_sink + at : NULL);
    }
    clear_state(worker->m, worker->z, worker->o, n * c->group, d);
    attend_args args = {
        .q = worker->q_sink,
        .n_rows = n * c->group,
        .rows_per_token = c->group,
        .first_pos = first,
        .newest = c->chunk->first + n_tokens - 1,
        .window = shape->window,
        .distance = shape->window,
        .m = worker->m,
        .z = worker->z,
        .o = worker->o,
        .softcap = spec->attention_softcap,
        .slopes = slopes_of(c, kv_head),
        .scratch = worker->attend_scratch,
    };
    if (n_sinks > 0) {
        args.bank = &layer->sinks[kv_head];
        args.n_slots_used = n_sinks;
        args.slot1 = n_sinks;
        k->attend_sinks[c->shape.kv_type](&args);
    }
    args.q = worker->q;
    args.bank = &layer->rings[kv_head];
    args.n_slots_used = shape->capacity;
    slot_range ranges[2];
    const int n_ranges = band_slots(first, last, shape->window, shape->capacity, ranges);
    for (int i = 0; i < n_ranges; i++) {
        args.slot0 = ranges[i].begin;
        args.slot1 = ranges[i].end;
        k->attend_ring[c->shape.kv_type](&args);
    }
    if (cpu_recall_sees(c, c->step->layer, last + 1)) {
        cpu_recall_attend(c, token0, n, kv_head, worker, worker->q_sink, worker->m, worker->z, worker->o);
    }
    for (int64_t t = 0; t < n; t++) {
        for (int64_t r = 0; r < c->group; r++) {
            const int64_t row = t * c->group + r;
            float *out = c->buffers[BUFFER_A] + ((token0 + t) * spec->n_heads + kv_head * c->group + r) * d;
            memcpy(out, worker->o + row * d, (size_t)d * sizeof *out);
            k->scale(out, normaliser(c, kv_head * c->group + r, worker->m[row], worker->z[row]), d);
        }
    }
}

static void recall_store_piece(void *context, int64_t piece, int worker_index) {
    backend_context *c = context;
    cpu_recall_store(c, piece, &c->workers[worker_index]);
}

void cpu_attend(backend_context *c) {
    const int64_t n_kv_heads = c->model->spec->n_kv_heads, n_tokens = c->chunk->n_tokens;
    const layer_context *shape = layer_shape(c);
    pool *workers = c->model->workers;
    const bool recalls = cpu_recall_sees(c, c->step->layer, c->chunk->first + n_tokens);
    const bool exact = n_tokens <= c->shape.n_exact && c->chunk->first >= shape->sinks;
    if (!exact || n_tokens > 1) {
        pool_run(workers, store_token, c, n_tokens);
    }
    if (!exact) {
        if (recalls) {
            pool_run(workers, recall_store_piece, c, n_kv_heads);
        }
        pool_run(workers, attend_block, c, n_kv_heads * ((n_tokens + ATTEND_BLOCK - 1) / ATTEND_BLOCK));
        return;
    }
    for (int64_t i = 0; i < n_kv_heads; i++) {
        atomic_store_explicit(&c->arrived[i], 0, memory_order_relaxed);
    }
    pool_run(workers, attend_segment, c, n_kv_heads * segments_at(c, c->chunk->first + n_tokens - 1).n);
}
