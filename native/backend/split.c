#include "backend/split.h"

struct backend_context {
    const split_model *halves;
    backend_context *part[2];
    float *hidden;          /* [chunk][n_embd]: from the first to the second */
    uint64_t context_bytes; /* of the first */
};

static const split_model *halves_of(const backend_model *model) { return model->weights; }

backend_model split_part(const backend_model *whole, int64_t layer0, int64_t layer1) {
    /* Steps of layers stand between EMBED, which is the first, and the output, which is the last. */
    int64_t begin = 1, end = whole->n_steps - 1;
    while (begin < end && whole->steps[begin].layer < layer0) {
        begin++;
    }
    while (end > begin && whole->steps[end - 1].layer >= layer1) {
        end--;
    }
    begin = layer0 == whole->layer0 ? 0 : begin;
    end = layer1 == whole->layer1 ? whole->n_steps : end;
    backend_model part = *whole;
    part.steps = whole->steps + begin;
    part.n_steps = end - begin;
    part.layer0 = layer0;
    part.layer1 = layer1;
    part.weights = NULL;
    return part;
}

static uint64_t hidden_bytes(const backend_model *model, const context_shape *shape) {
    return (uint64_t)shape->chunk * (uint64_t)model->spec->n_embd * sizeof(float);
}

/* What a half keeps: rows after the last norm, and steers of them, are the second's. Neither has both ends of the model. */
static context_shape shape_of(const context_shape *whole, int half) {
    context_shape shape = *whole;
    shape.ahead = false;
    if (half == 0) {
        shape.last_hidden = false;
        shape.steer_rank = 0;
    }
    return shape;
}

static lmi_status split_plan(const backend_model *model, const context_shape *shape, backend_bytes *bytes, lmi_error *error) {
    const split_model *halves = halves_of(model);
    *bytes = (backend_bytes){.work = hidden_bytes(model, shape) + sizeof(backend_context)};
    for (int i = 0; i < 2; i++) {
        backend_bytes part;
        const context_shape own = shape_of(shape, i);
        lmi_status status = halves->device[i]->plan(&halves->part[i], &own, &part, error);
        if (status != LMI_OK) {
            return status;
        }
        bytes->context += part.context;
        bytes->work += part.work;
        bytes->device_context += part.device_context;
        bytes->device_work += part.device_work;
    }
    return LMI_OK;
}

static void split_close(backend_context *c) {
    for (int i = 0; i < 2; i++) {
        if (c->part[i] != NULL && c->halves->device[i]->close != NULL) {
            c->halves->device[i]->close(c->part[i]);
        }
    }
}

static lmi_status split_open(const backend_model *model, const context_shape *shape, arena *memory, backend_context **out,
                             lmi_error *error) {
    backend_context *c = arena_take(memory, sizeof *c);
    float *hidden = arena_take(memory, (size_t)hidden_bytes(model, shape));
    if (c == NULL || hidden == NULL) {
        return fail(error, LMI_OUT_OF_MEMORY, "no memory for a session");
    }
    c->halves = halves_of(model);
    c->hidden = hidden;
    for (int i = 0; i < 2; i++) {
        const context_shape own = shape_of(shape, i);
        lmi_status status = c->halves->device[i]->open(&c->halves->part[i], &own, memory, &c->part[i], error);
        if (status != LMI_OK) {
            split_close(c);
            return status;
        }
    }
    c->context_bytes = c->halves->device[0]->context_bytes(c->part[0]);
    *out = c;
    return LMI_OK;
}

static lmi_status split_run(backend_context *c, const backend_chunk *chunk, lmi_error *error) {
    backend_chunk first = *chunk, second = *chunk;
    first.hidden_out = c->hidden;
    first.logits = NULL;
    first.n_logits = first.n_last_hidden = 0;
    first.steer = NULL;
    second.hidden_in = c->hidden;
    lmi_status status = c->halves->device[0]->run(c->part[0], &first, error);
    return status == LMI_OK ? c->halves->device[1]->run(c->part[1], &second, error) : status;
}

static uint64_t split_context_bytes(const backend_context *c) {
    return c->context_bytes + c->halves->device[1]->context_bytes(c->part[1]);
}

static lmi_status split_context_get(backend_context *c, uint64_t offset, size_t n, void *bytes, lmi_error *error) {
    const uint64_t left = offset < c->context_bytes ? c->context_bytes - offset : 0;
    const size_t n_first = n < left ? n : (size_t)left;
    lmi_status status = LMI_OK;
    if (n_first > 0) {
        status = c->halves->device[0]->context_get(c->part[0], offset, n_first, bytes, error);
    }
    if (status == LMI_OK && n > n_first) {
        status = c->halves->device[1]->context_get(c->part[1], offset + n_first - c->context_bytes, n - n_first,
                                                   (char *)bytes + n_first, error);
    }
    return status;
}

static lmi_status split_context_put(backend_context *c, uint64_t offset, size_t n, const void *bytes, lmi_error *error) {
    const uint64_t left = offset < c->context_bytes ? c->context_bytes - offset : 0;
    const size_t n_first = n < left ? n : (size_t)left;
    lmi_status status = LMI_OK;
    if (n_first > 0) {
        status = c->halves->device[0]->context_put(c->part[0], offset, n_first, bytes, error);
    }
    if (status == LMI_OK && n > n_first) {
        status = c->halves->device[1]->context_put(c->part[1], offset + n_first - c->context_bytes, n - n_first,
                                                   (const char *)bytes + n_first, error);
    }
    return status;
}

static uint64_t split_weight_bytes(const backend_model *model) {
    const split_model *halves = halves_of(model);
    return halves->device[0]->weight_bytes(&halves->part[0]) + halves->device[1]->weight_bytes(&halves->part[1]);
}

static void split_release(backend_model *model) {
    split_model *halves = model->weights;
    for (int i = 0; i < 2; i++) {
        if (halves->part[i].weights != NULL) {
            halves->device[i]->release(&halves->part[i]);
        }
    }
}

static lmi_status split_upload(backend_model *model, const backend_upload *how, lmi_error *error) {
    split_model *halves = model->weights;
    for (int i = 0; i < 2; i++) {
        lmi_status status =
            halves->device[i]->upload != NULL ? halves->device[i]->upload(&halves->part[i], how, error) : LMI_OK;
        if (status != LMI_OK) {
            split_release(model);
            return status;
        }
    }
    return LMI_OK;
}

static lmi_status split_fetch_logits(backend_context *c, int64_t row, float *logits, lmi_error *error) {
    return c->halves->device[1]->fetch_logits(c->part[1], row, logits, error);
}

static lmi_status split_candidates(backend_context *c, int64_t row, logit_candidates *out, lmi_error *error) {
    return c->halves->device[1]->candidates(c->part[1], row, out, error);
}

backend split_backend(const split_model *halves) {
    return (backend){
        .name = "split",
        .plan = split_plan,
        .open = split_open,
        .run = split_run,
        .context_bytes = split_context_bytes,
        .context_get = split_context_get,
        .context_put = split_context_put,
        .weight_bytes = split_weight_bytes,
        .close = split_close,
        .upload = split_upload,
        .release = split_release,
        .fetch_logits = halves->device[1]->fetch_logits != NULL ? split_fetch_logits : NULL,
        .candidates = halves->device[1]->candidates != NULL ? split_candidates : NULL,
    };
}
