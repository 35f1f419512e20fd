/* Saved states: what of a session they hold, and what makes them fit. */
#include <string.h>

#include "engine/session.h"
#include "engine/snapshot.h"

enum { PART_CONTEXT, PART_LOGITS, PART_HISTORY, PART_SAMPLER, PART_RECALL, MOST_PARTS };

static size_t context_size(const lmi_session *s) { return (size_t)s->device->context_bytes(s->context); }

static lmi_status get_context(void *owner, uint64_t offset, size_t n, void *bytes, lmi_error *error) {
    lmi_session *s = owner;
    return s->device->context_get(s->context, offset, n, bytes, error);
}

static lmi_status put_context(void *owner, uint64_t offset, size_t n, const void *bytes, lmi_error *error) {
    lmi_session *s = owner;
    return s->device->context_put(s->context, offset, n, bytes, error);
}

static lmi_status get_recall(void *owner, uint64_t offset, size_t n, void *bytes, lmi_error *error) {
    lmi_session *s = owner;
    (void)error;
    s->device->recall_get(s->context, offset, n, bytes);
    return LMI_OK;
}

static lmi_status put_recall(void *owner, uint64_t offset, size_t n, const void *bytes, lmi_error *error) {
    lmi_session *s = owner;
    (void)error;
    s->device->recall_put(s->context, offset, n, bytes);
    return LMI_OK;
}

static bool recalls(const lmi_session *s) { return s->plan.options.recall.kind != LMI_RECALL_NONE; }
static int parts_of(const lmi_session *s) { return recalls(s) ? MOST_PARTS : PART_RECALL; }

static void describe(lmi_session *s, snapshot_header *header, snapshot_part parts[MOST_PARTS]) {
    const lmi_session_options *o = &s->plan.options;
    const middle_shape *middle = &s->plan.shape.middle;
    *header = (snapshot_header){
        .window = o->window,
        .sinks = o->sinks,
        .chunk = o->chunk,
        .rollback = o->rollback,
        .kv_type = (int32_t)o->kv_type,
        .placement = (int32_t)o->placement,
        .ring_slots = s->plan.capacity,
        .n_vocab = s->model->spec.n_vocab,
        .start = s->start,
        .position = s->start + s->n_read,
        .furthest = s->start + s->furthest,
        .has_logits = s->n_rows > 0,
        .isa = (int32_t)s->model->kernels->isa,
        .recall = (int32_t)middle->kind,
        .recall_layer = recalls(s) ? o->recall.layer : 0,
        .recall_n = middle->n,
        .recall_block = middle->block,
        .recall_distance = middle->distance,
        .recall_budget = recalls(s) ? (int64_t)o->recall.budget : 0,
        .recall_decay = (float)middle->decay,
    };
    model_fingerprint(s->model, header->fingerprint);
    const size_t row = (size_t)s->model->spec.n_vocab * sizeof(float);
    parts[PART_CONTEXT] = (snapshot_part){.size = context_size(s), .owner = s, .get = get_context, .put = put_context};
    /* The last row, wherever it stands; a load puts it first. */
    void *last = s->logits + (s->n_rows > 0 ? (s->n_rows - 1) * s->model->spec.n_vocab : 0);
    parts[PART_LOGITS] = (snapshot_part){.data = last, .size = row};
    parts[PART_HISTORY] = (snapshot_part){.data = s->history, .size = SAMPLER_HISTORY * sizeof *s->history};
    parts[PART_SAMPLER] = (snapshot_part){.data = sampler_state(s->draws), .size = sampler_state_bytes()};
    parts[PART_RECALL] = (snapshot_part){.owner = s, .get = get_recall, .put = put_recall};
    if (recalls(s)) {
        parts[PART_RECALL].size = (size_t)s->device->recall_bytes(s->context);
        parts[PART_RECALL].most = (size_t)s->device->recall_most(s->context);
    }
}

static lmi_status check_part(void *context, int part, const void *bytes, size_t size, lmi_error *error) {
    const lmi_session *s = context;
    if (part == PART_SAMPLER) {
        return sampler_check_state(bytes, error);
    }
    if (part == PART_RECALL) {
        return s->device->recall_check(s->context, bytes, size, error);
    }
    if (part == PART_HISTORY) {
        for (size_t i = 0; i < size / sizeof(int32_t); i++) {
            int32_t token;
            memcpy(&token, (const char *)bytes + i * sizeof token, sizeof token);
            if (token < 0 || token >= s->model->spec.n_vocab) {
                return fail(error, LMI_STATE, "the saved state holds token %d, outside the vocabulary", token);
            }
        }
    }
    return LMI_OK;
}

static void adopt(lmi_session *s, const snapshot_header *header) {
    s->start = header->start;
    s->n_read = header->position - header->start;
    s->furthest = s->recorded = header->furthest - header->start;
    s->n_rows = header->has_logits != 0;
    s->n_hidden = 0;
    s->held = 0;
    session_drop_ahead(s);
    if (s->guesses != NULL) {
        draft_clear(s->guesses);
    }
}

size_t lmi_session_state_size(const lmi_session *session) {
    const lmi_session *s = session;
    snapshot_part parts[MOST_PARTS] = {0};
    parts[PART_CONTEXT].size = context_size(s);
    parts[PART_LOGITS].size = (size_t)s->model->spec.n_vocab * sizeof(float);
    parts[PART_HISTORY].size = SAMPLER_HISTORY * sizeof *s->history;
    parts[PART_SAMPLER].size = sampler_state_bytes();
    parts[PART_RECALL].size = recalls(s) ? (size_t)s->device->recall_bytes(s->context) : 0;
    return snapshot_size(parts, parts_of(s));
}

typedef enum direction { WRITE_BYTES, READ_BYTES, WRITE_FILE, READ_FILE } direction;

static lmi_status transfer(lmi_session *session, direction way, void *bytes, size_t size, const char *path, lmi_error *error) {
    lmi_status status = session_enter(session, error);
    if (status != LMI_OK) {
        return status;
    }
    snapshot_header header, loaded;
    snapshot_part parts[MOST_PARTS];
    const int n_parts = parts_of(session);
    describe(session, &header, parts);
    if (way == READ_BYTES || way == READ_FILE) {
        parts[PART_LOGITS].data = session->logits;
    } else if (session->n_rows > 0) {
        status = session_fetch_logits(session, session->n_rows - 1, error);
    }
    if (status != LMI_OK) {
        session_leave(session);
        return status;
    }
    switch (way) {
    case WRITE_BYTES:
        status = snapshot_write(&header, parts, n_parts, bytes, size, error);
        break;
    case WRITE_FILE:
        status = snapshot_save(&header, parts, n_parts, path, error);
        break;
    case READ_BYTES:
        status = snapshot_read(&header, &loaded, parts, n_parts, bytes, size, check_part, session, error);
        break;
    case READ_FILE:
        status = snapshot_load(&header, &loaded, parts, n_parts, path, check_part, session, error);
        break;
    }
    if (status == LMI_OK && (way == READ_BYTES || way == READ_FILE)) {
        adopt(session, &loaded);
    }
    session_leave(session);
    return status;
}

lmi_status lmi_session_state_write(lmi_session *session, void *bytes, size_t size, lmi_error *error) {
    return transfer(session, WRITE_BYTES, bytes, size, NULL, error);
}

lmi_status lmi_session_state_read(lmi_session *session, const void *bytes, size_t size, lmi_error *error) {
    return transfer(session, READ_BYTES, (void *)(uintptr_t)bytes, size, NULL, error);
}

lmi_status lmi_session_save(lmi_session *session, const char *path, lmi_error *error) {
    return transfer(session, WRITE_FILE, NULL, 0, path, error);
}

lmi_status lmi_session_load(lmi_session *session, const char *path, lmi_error *error) {
    return transfer(session, READ_FILE, NULL, 0, path, error);
}

lmi_status lmi_state_file_options(const char *path, lmi_session_options *options, lmi_error *error) {
    if (path == NULL || options == NULL) {
        return fail(error, LMI_INVALID_ARGUMENT, "lmi_state_file_options needs a path and a place for the options");
    }
    snapshot_header header;
    lmi_status status = snapshot_peek(path, &header, error);
    if (status == LMI_OK) {
        lmi_session_options_default(options);
        options->window = header.window;
        options->sinks = header.sinks;
        options->chunk = header.chunk;
        options->rollback = header.rollback;
        options->kv_type = (lmi_kv_type)header.kv_type;
        options->placement = (lmi_placement)header.placement;
        options->recall.kind = (lmi_recall)header.recall;
        options->recall.layer = header.recall == LMI_RECALL_NONE ? -1 : header.recall_layer;
        options->recall.n = header.recall_n;
        options->recall.block = header.recall_block;
        options->recall.distance = header.recall_distance;
        options->recall.budget = (uint64_t)header.recall_budget;
        options->recall.decay = (double)header.recall_decay;
    }
    return status;
}
