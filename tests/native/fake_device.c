/* A device that is none: the CPU's backend behind a door of its own, with its own copy of weights, contexts and logits, memory that is
 * counted, and wrong guesses at what comes next. For tests of everything around devices: which layers run where, plans, saved states, errors. Its results are the CPU's, bit
 * for bit. Opened as liblmi_cuda is; the environment says how much memory it has (LMI_FAKE_BYTES) and what it answers when it is looked at
 * (LMI_FAKE_REFUSES), for tests that start programs. */
#include "fake_device.h"

#include <math.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>

static fake_controls controls;

LMI_API fake_controls *lmi_fake_controls(void);
fake_controls *lmi_fake_controls(void) { return &controls; }

static lmi_status refuse(lmi_status status, const char *what, lmi_error *error) {
    return status == LMI_OK ? LMI_OK : fail(error, status, "the fake device was told to fail: %s", what);
}

static pthread_mutex_t guard = PTHREAD_MUTEX_INITIALIZER; /* sessions open and close in any thread */

static lmi_status take(uint64_t bytes, int64_t *count, lmi_error *error) {
    pthread_mutex_lock(&guard);
    const bool fits = bytes <= controls.total_bytes - controls.used_bytes;
    controls.used_bytes += fits ? bytes : 0;
    *count += fits;
    pthread_mutex_unlock(&guard);
    return fits ? LMI_OK : fail(error, LMI_OUT_OF_MEMORY, "the fake device is full");
}

static void give_back(uint64_t bytes, int64_t *count, int by) {
    pthread_mutex_lock(&guard);
    controls.used_bytes -= bytes;
    *count += by;
    pthread_mutex_unlock(&guard);
}

static uint64_t used_bytes(void) {
    pthread_mutex_lock(&guard);
    const uint64_t bytes = controls.used_bytes;
    pthread_mutex_unlock(&guard);
    return bytes;
}

static lmi_status fake_probe(int32_t index, lmi_device_info *info, lmi_error *error) {
    if (index != 0) {
        fail(error, LMI_DEVICE, "no usable CUDA device: there is no GPU %d", index);
        remedy(error, "Use --device cpu.");
        return LMI_DEVICE;
    }
    *info = (lmi_device_info){
        .name = "Fake GPU",
        .major = 9,
        .n_multiprocessors = 1,
        .driver = 13000,
        .runtime = 13000,
        .total_bytes = controls.total_bytes,
        .free_bytes = controls.total_bytes - used_bytes(),
    };
    return refuse(controls.refuse, "probe", error);
}

/* ---- weights ------------------------------------------------------------------------------------------------------ */

typedef struct fake_weights {
    arena memory;
    uint64_t bytes;
    backend_model model; /* whose steps name the copies */
} fake_weights;

static lmi_status copy_weight(fake_weights *own, const weight *from, uint64_t bytes, const weight **to) {
    weight *copy = arena_take(&own->memory, sizeof *copy);
    void *data = arena_take(&own->memory, (size_t)bytes);
    if (copy == NULL || data == NULL) {
        return LMI_OUT_OF_MEMORY;
    }
    *copy = *from;
    copy->data = memcpy(data, from->data, (size_t)bytes);
    *to = copy;
    return LMI_OK;
}

static lmi_status copy_steps(fake_weights *own, const backend_model *model, const backend_upload *how, lmi_error *error) {
    step *steps = arena_take_array(&own->memory, (size_t)model->n_steps, sizeof *steps);
    if (steps == NULL) {
        return fail(error, LMI_OUT_OF_MEMORY, "no memory for the fake device");
    }
    memcpy(steps, model->steps, (size_t)model->n_steps * sizeof *steps);
    uint64_t done = 0;
    for (int64_t i = 0; i < model->n_steps; i++) {
        const bool stack = steps[i].kind == STEP_EXPERTS_GATED || steps[i].kind == STEP_EXPERTS_ADD;
        for (int w = 0; w < STEP_MAX_OUTPUTS && steps[i].w[w] != NULL; w++) {
            const uint64_t bytes =
                (uint64_t)steps[i].w[w]->rows * steps[i].w[w]->row_bytes * (stack ? (uint64_t)model->spec->n_experts : 1);
            if (copy_weight(own, steps[i].w[w], bytes, &steps[i].w[w]) != LMI_OK) {
                return fail(error, LMI_OUT_OF_MEMORY, "no memory for the fake device");
            }
            how->copied(how->owner, model->steps[i].w[w]->data, bytes);
            done += bytes;
            if (how->progress != NULL && how->progress(how->context, done < own->bytes ? done : own->bytes, own->bytes) != 0) {
                return fail(error, LMI_CANCELLED, "cancelled");
            }
        }
    }
    own->model = *model;
    own->model.steps = steps;
    return LMI_OK;
}

static void fake_release(backend_model *model) {
    fake_weights *own = model->weights;
    give_back(own->bytes, &controls.n_releases, 1);
    arena_close(&own->memory);
    free(own);
    model->weights = NULL;
}

static uint64_t fake_weight_bytes(const backend_model *model) { return backend_cpu.weight_bytes(model); }

static lmi_status fake_upload(backend_model *model, const backend_upload *how, lmi_error *error) {
    lmi_status status = refuse(controls.fail_upload, "upload", error);
    const uint64_t bytes = backend_cpu.weight_bytes(model);
    if (status != LMI_OK || (status = take(bytes, &controls.n_uploads, error)) != LMI_OK) {
        return status;
    }
    fake_weights *own = calloc(1, sizeof *own);
    if (own == NULL) {
        give_back(bytes, &controls.n_uploads, -1);
        return fail(error, LMI_OUT_OF_MEMORY, "no memory for the fake device");
    }
    own->bytes = bytes;
    model->weights = own;
    status = copy_steps(own, model, how, error);
    if (status != LMI_OK) {
        fake_release(model);
    }
    return status;
}

/* ---- a session ---------------------------------------------------------------------------------------------------- */

struct backend_context {
    const backend_model *model;
    arena memory;
    backend_context *inner; /* the CPU's */
    uint64_t bytes;
    float *logits; /* [n_logits][n_vocab] of the last run that had any */
    int64_t n_logits;
};

static uint64_t logit_bytes(const backend_model *model, const context_shape *shape) {
    return (uint64_t)shape->n_logits * (uint64_t)model->spec->n_vocab * sizeof(float);
}

static lmi_status fake_plan(const backend_model *model, const context_shape *shape, backend_bytes *bytes, lmi_error *error) {
    backend_bytes host;
    lmi_status status = refuse(controls.refuse_plan, "plan", error);
    if (status == LMI_OK) {
        status = backend_cpu.plan(model, shape, &host, error);
    }
    if (status == LMI_OK) {
        *bytes = (backend_bytes){
            .work = sizeof(backend_context),
            .device_context = host.context,
            .device_work = host.work + logit_bytes(model, shape),
            .recall = host.recall,
        };
    }
    return status;
}

static void fake_close(backend_context *c) {
    if (c->inner != NULL) {
        backend_cpu.close(c->inner);
    }
    give_back(c->bytes, &controls.n_contexts, -1);
    arena_close(&c->memory);
}

static lmi_status fake_open(const backend_model *model, const context_shape *shape, arena *memory, backend_context **out,
                            lmi_error *error) {
    backend_bytes bytes;
    backend_context *c = arena_take(memory, sizeof *c);
    lmi_status status = c == NULL ? fail(error, LMI_OUT_OF_MEMORY, "no memory for a session") : LMI_OK;
    if (status != LMI_OK || (status = refuse(controls.fail_open, "open", error)) != LMI_OK ||
        (status = fake_plan(model, shape, &bytes, error)) != LMI_OK ||
        (status = take(bytes.device_context + bytes.device_work, &controls.n_contexts, error)) != LMI_OK) {
        return status;
    }
    c->model = model;
    c->bytes = bytes.device_context + bytes.device_work;
    arena_open(&c->memory);
    c->logits = arena_take(&c->memory, (size_t)logit_bytes(model, shape));
    const fake_weights *own = model->weights;
    status = c->logits == NULL ? fail(error, LMI_OUT_OF_MEMORY, "no memory for the fake device")
                               : backend_cpu.open(&own->model, shape, &c->memory, &c->inner, error);
    if (status != LMI_OK) {
        fake_close(c);
        return status;
    }
    *out = c;
    return LMI_OK;
}

static lmi_status fake_run(backend_context *c, const backend_chunk *chunk, lmi_error *error) {
    backend_chunk own = *chunk;
    if (chunk->logits == NULL) {
        own.logits = c->logits;
    }
    controls.n_runs++;
    lmi_status status = refuse(controls.fail_run, "run", error);
    if (status == LMI_OK) {
        status = backend_cpu.run(c->inner, &own, error);
    }
    if (status == LMI_OK && chunk->logits == NULL) {
        c->n_logits = chunk->n_logits;
    }
    if (status == LMI_OK && chunk->next != NULL) { /* as far ahead as it may, and always wrong */
        const int32_t wrong = (int32_t)((chunk->tokens[0] + 1) % c->model->spec->n_vocab);
        own.tokens = &wrong;
        own.first++;
        own.n_logits = 0;
        status = backend_cpu.run(c->inner, &own, error);
        controls.n_ahead++;
    }
    return status;
}

static uint64_t fake_context_bytes(const backend_context *c) { return backend_cpu.context_bytes(c->inner); }

static lmi_status fake_context_get(backend_context *c, uint64_t offset, size_t n, void *bytes, lmi_error *error) {
    return backend_cpu.context_get(c->inner, offset, n, bytes, error);
}

static lmi_status fake_context_put(backend_context *c, uint64_t offset, size_t n, const void *bytes, lmi_error *error) {
    return backend_cpu.context_put(c->inner, offset, n, bytes, error);
}

static void fake_surprise(backend_context *c, int64_t first, const float *surprisal, int64_t n) {
    backend_cpu.surprise(c->inner, first, surprisal, n);
}
static void fake_recall_counts(const backend_context *c, int64_t n_read, int64_t *kept, int64_t *dropped) {
    backend_cpu.recall_counts(c->inner, n_read, kept, dropped);
}
static uint64_t fake_recall_bytes(const backend_context *c) { return backend_cpu.recall_bytes(c->inner); }
static uint64_t fake_recall_most(const backend_context *c) { return backend_cpu.recall_most(c->inner); }
static void fake_recall_get(backend_context *c, uint64_t offset, size_t n, void *bytes) {
    backend_cpu.recall_get(c->inner, offset, n, bytes);
}
static void fake_recall_put(backend_context *c, uint64_t offset, size_t n, const void *bytes) {
    backend_cpu.recall_put(c->inner, offset, n, bytes);
}
static lmi_status fake_recall_check(const backend_context *c, const void *bytes, size_t size, lmi_error *error) {
    return backend_cpu.recall_check(c->inner, bytes, size, error);
}

/* ---- logits ------------------------------------------------------------------------------------------------------- */

static lmi_status fake_fetch_logits(backend_context *c, int64_t row, float *logits, lmi_error *error) {
    const int64_t n_vocab = c->model->spec->n_vocab;
    if (row < 0 || row >= c->n_logits) {
        return fail(error, LMI_INTERNAL, "there is no row %lld of logits on the fake device", (long long)row);
    }
    controls.n_fetched++;
    memcpy(logits, c->logits + row * n_vocab, (size_t)n_vocab * sizeof *logits);
    return refuse(controls.fail_fetch, "fetch", error);
}

static lmi_status fake_candidates(backend_context *c, int64_t row, logit_candidates *out, lmi_error *error) {
    const int64_t n_vocab = c->model->spec->n_vocab;
    const float *logits = c->logits + row * n_vocab;
    if (row < 0 || row >= c->n_logits) {
        return fail(error, LMI_INTERNAL, "there is no row %lld of logits on the fake device", (long long)row);
    }
    controls.n_candidates++;
    memset(out, 0, sizeof *out);
    out->has_nan = controls.no_candidates;
    for (int64_t i = 0; i < n_vocab; i++) { /* insertion: the largest first, equal ones by id */
        int32_t at = out->n;
        while (at > 0 && logits[i] > out->logit[at - 1]) {
            at--;
        }
        if (at < LOGIT_CANDIDATES) {
            const size_t n_behind = (size_t)((out->n < LOGIT_CANDIDATES ? out->n : LOGIT_CANDIDATES - 1) - at);
            memmove(&out->logit[at + 1], &out->logit[at], n_behind * sizeof *out->logit);
            memmove(&out->id[at + 1], &out->id[at], n_behind * sizeof *out->id);
            out->logit[at] = logits[i];
            out->id[at] = (int32_t)i;
            out->n += out->n < LOGIT_CANDIDATES;
        }
    }
    for (int64_t i = 0; i < n_vocab; i++) {
        out->sum += exp((double)logits[i] - (double)out->logit[0]);
    }
    return refuse(controls.fail_candidates, "candidates", error);
}

LMI_API const backend *lmi_cuda_backend(const char *version);
const backend *lmi_cuda_backend(const char *version) {
    static const backend table = {
        .name = "fake",
        .runs_ahead = true,
        .plan = fake_plan,
        .open = fake_open,
        .run = fake_run,
        .context_bytes = fake_context_bytes,
        .context_get = fake_context_get,
        .context_put = fake_context_put,
        .weight_bytes = fake_weight_bytes,
        .close = fake_close,
        .probe = fake_probe,
        .upload = fake_upload,
        .release = fake_release,
        .fetch_logits = fake_fetch_logits,
        .candidates = fake_candidates,
        .surprise = fake_surprise,
        .recall_counts = fake_recall_counts,
        .recall_bytes = fake_recall_bytes,
        .recall_most = fake_recall_most,
        .recall_get = fake_recall_get,
        .recall_put = fake_recall_put,
        .recall_check = fake_recall_check,
    };
    if (strcmp(version, lmi_version()) != 0 || controls.old) {
        return NULL;
    }
    if (controls.total_bytes == 0) {
        const char *bytes = getenv("LMI_FAKE_BYTES"), *refuses = getenv("LMI_FAKE_REFUSES");
        controls.total_bytes = bytes != NULL ? strtoull(bytes, NULL, 10) : (uint64_t)1 << 40;
        controls.refuse = refuses != NULL ? LMI_DEVICE : LMI_OK;
    }
    return &table;
}
