/* Weights on their way to the device: from the mapped file, split into planes by all workers, through pinned memory that is filled and
 * copied in turn. */
#define _GNU_SOURCE
#include <stdlib.h>
#include <string.h>

#include "base/clock.h"
#include "cuda/internal.h"
#include "lambda/alibi.h"

enum { PIECE_BYTES = 1 << 20, BATCH_PIECES = 16, N_BATCHES = 2 };

typedef struct uploader {
    device_stream *stream;
    pool *workers;
    uint8_t *staging[N_BATCHES]; /* pinned, BATCH_PIECES pieces each */
    device_mark *free[N_BATCHES];
    int turn;
    const backend_upload *how;
    uint64_t done, all;
    lmi_error *error;
    lmi_status status; /* the first failure; nothing is copied after it */
} uploader;

/* Places tables one after the other in device memory, or only counts; with an uploader it fills them, too: one description of what a model
 * has on the device. */
typedef struct placer {
    uint8_t *base; /* NULL: count */
    uint64_t used;
    uploader *up;
} placer;

static uint8_t *place(placer *p, uint64_t bytes) {
    uint8_t *at = p->base != NULL ? p->base + p->used : NULL;
    p->used += (bytes + PLANE_ALIGN - 1) / PLANE_ALIGN * PLANE_ALIGN;
    return at;
}

/* ---- copying ------------------------------------------------------------------------------------------------------ */

static uint8_t *next_batch(uploader *u) {
    u->turn = (u->turn + 1) % N_BATCHES;
    device_mark_wait(u->free[u->turn]);
    return u->staging[u->turn];
}

/* The staging is on its way, and `host`, which it was filled from, has been read. */
static void end_batch(uploader *u, const void *host, uint64_t bytes) {
    device_mark_set(u->stream, u->free[u->turn]);
    u->done += bytes;
    u->how->copied(u->how->owner, host, bytes);
    if (u->how->progress != NULL && u->how->progress(u->how->context, u->done, u->all) != 0) {
        u->status = fail(u->error, LMI_CANCELLED, "cancelled while the weights were copied to the GPU");
    } else if (device_peek(u->stream, u->error) != LMI_OK) {
        u->status = LMI_DEVICE;
    }
}

static void copy_raw(uploader *u, uint8_t *device, const void *host, uint64_t bytes) {
    for (uint64_t at = 0; at < bytes && u->status == LMI_OK;) {
        const uint64_t most = (uint64_t)PIECE_BYTES * BATCH_PIECES, n = bytes - at < most ? bytes - at : most;
        uint8_t *staging = next_batch(u);
        memcpy(staging, (const uint8_t *)host + at, (size_t)n);
        device_upload(u->stream, device + at, staging, n);
        end_batch(u, (const uint8_t *)host + at, n);
        at += n;
    }
}

typedef struct split_job {
    const plane_layout *layout;
    const uint8_t *blocks;
    uint64_t block_bytes, n_blocks, piece_blocks;
    uint8_t *staging;
} split_job;

static uint64_t blocks_of_piece(const split_job *job, int64_t piece) {
    const uint64_t first = (uint64_t)piece * job->piece_blocks;
    return job->n_blocks - first < job->piece_blocks ? job->n_blocks - first : job->piece_blocks;
}

static void split_piece(void *context, int64_t piece, int worker) {
    const split_job *job = context;
    (void)worker;
    planes_split(job->layout, job->blocks + (uint64_t)piece * job->piece_blocks * job->block_bytes, blocks_of_piece(job, piece),
                 job->staging + (uint64_t)piece * PIECE_BYTES);
}

static void copy_planes(uploader *u, const quant_info *type, const void *host, uint64_t n_blocks, uint8_t *device) {
    const plane_layout *layout = plane_layout_of(type->type);
    split_job job = {.layout = layout, .block_bytes = type->block_bytes, .piece_blocks = PIECE_BYTES / type->block_bytes};
    for (uint64_t at = 0; at < n_blocks && u->status == LMI_OK;) {
        const uint64_t most = job.piece_blocks * BATCH_PIECES;
        job.n_blocks = n_blocks - at < most ? n_blocks - at : most;
        job.blocks = (const uint8_t *)host + at * type->block_bytes;
        job.staging = next_batch(u);
        const int64_t n_pieces = (int64_t)((job.n_blocks + job.piece_blocks - 1) / job.piece_blocks);
        pool_run(u->workers, split_piece, &job, n_pieces);
        for (int64_t i = 0; i < n_pieces; i++) {
            const uint64_t first = at + (uint64_t)i * job.piece_blocks, n = blocks_of_piece(&job, i);
            const uint8_t *part = job.staging + (uint64_t)i * PIECE_BYTES;
            for (int p = 0; p < layout->n; p++) {
                const uint64_t bytes = layout->plane[p].bytes;
                device_upload(u->stream, device + plane_offset(layout, n_blocks, p) + first * bytes, part, n * bytes);
                part += n * bytes;
            }
        }
        end_batch(u, job.blocks, job.n_blocks * type->block_bytes);
        at += job.n_blocks;
    }
}

/* ---- what a model has ---------------------------------------------------------------------------------------------- */

static const float *place_floats(placer *p, const float *host, int64_t n) {
    if (host == NULL) {
        return NULL;
    }
    uint8_t *at = place(p, (uint64_t)n * sizeof *host);
    if (p->up != NULL) {
        copy_raw(p->up, at, host, (uint64_t)n * sizeof *host);
    }
    return (const float *)(const void *)at;
}

static cuda_weight place_weight(placer *p, const weight *w, int64_t n_matrices) {
    const plane_layout *layout = plane_layout_of(w->type->type);
    const uint64_t n_blocks = (uint64_t)(n_matrices * w->rows) * (uint64_t)(w->cols / w->type->block_values);
    uint8_t *at = place(p, plane_offset(layout, n_blocks, layout->n));
    cuda_weight out = {.type = w->type->type, .rows = w->rows, .cols = w->cols, .n_matrices = n_matrices};
    for (int i = 0; i < layout->n && at != NULL; i++) {
        out.plane[i] = at + plane_offset(layout, n_blocks, i);
    }
    if (p->up != NULL) {
        copy_planes(p->up, w->type, w->data, n_blocks, at);
    }
    out.bias = place_floats(p, w->bias, n_matrices * w->rows);
    return out;
}

static cuda_norm place_norm(placer *p, const model_spec *spec, const norm_weights *norm, int64_t width) {
    if (norm == NULL) {
        return (cuda_norm){.kind = CUDA_NORM_NONE};
    }
    return (cuda_norm){
        .kind = spec->arch->norm == NORM_LAYER ? CUDA_NORM_LAYER : CUDA_NORM_RMS,
        .scale = place_floats(p, norm->scale, width),
        .bias = place_floats(p, norm->bias, width),
        .eps = spec->norm_eps,
    };
}

static cuda_step place_step(placer *p, const backend_model *model, const step *s) {
    const model_spec *spec = model->spec;
    const bool experts = s->kind == STEP_EXPERTS_GATED || s->kind == STEP_EXPERTS_ADD;
    cuda_step out = {0};
    for (int i = 0; i < STEP_MAX_OUTPUTS; i++) {
        if (s->w[i] != NULL) {
            out.w[i] = place_weight(p, s->w[i], experts ? spec->n_experts : 1);
        }
    }
    out.norm = place_norm(p, spec, s->norm, step_buffer_width(spec, s->in));
    if (s->kind == STEP_ATTEND) {
        const layer_weights *layer = s->attention;
        const bool each = spec->arch->head_norm == HEAD_NORM_EACH;
        out.q_norm = place_floats(p, layer->q_norm, each ? spec->head_dim : spec->n_heads * spec->head_dim);
        out.k_norm = place_floats(p, layer->k_norm, each ? spec->head_dim : spec->n_kv_heads * spec->head_dim);
        out.sink_logits = place_floats(p, layer->sink_logits, spec->n_heads);
    }
    return out;
}

/* Fills `steps` if it is not NULL. Only the embedding can be in two steps: as the table of tokens and as the output matrix. */
static const float *place_model(placer *p, const backend_model *model, cuda_step *steps) {
    const weight *embedding = NULL;
    cuda_weight table = {0};
    for (int64_t i = 0; i < model->n_steps; i++) {
        step s = model->steps[i];
        const bool again = embedding != NULL && s.w[0] != NULL && s.w[0]->data == embedding->data;
        if (again) {
            s.w[0] = NULL;
        }
        cuda_step placed = place_step(p, model, &s);
        if (again) {
            placed.w[0] = table;
            placed.w[0].bias = place_floats(p, model->steps[i].w[0]->bias, model->steps[i].w[0]->rows);
        }
        if (s.kind == STEP_EMBED) {
            embedding = s.w[0];
            table = placed.w[0];
        }
        if (steps != NULL) {
            steps[i] = placed;
        }
    }
    if (!(model->spec->alibi_max_bias > 0.0f)) {
        return NULL;
    }
    float *slopes = p->up != NULL ? calloc((size_t)model->spec->n_heads, sizeof *slopes) : NULL;
    if (p->up != NULL && slopes == NULL) {
        p->up->status = fail(p->up->error, LMI_OUT_OF_MEMORY, "no memory for %lld slopes", (long long)model->spec->n_heads);
        return NULL;
    }
    if (slopes != NULL) {
        alibi_slopes(model->spec->n_heads, model->spec->alibi_max_bias, slopes);
    }
    uint8_t *at = place(p, (uint64_t)model->spec->n_heads * sizeof *slopes);
    if (slopes != NULL) {
        copy_raw(p->up, at, slopes, (uint64_t)model->spec->n_heads * sizeof *slopes);
    }
    free(slopes);
    return (const float *)(const void *)at;
}

uint64_t cuda_weight_bytes(const backend_model *model) {
    placer counted = {0};
    (void)place_model(&counted, model, NULL);
    return counted.used;
}

/* ---- upload ------------------------------------------------------------------------------------------------------- */

static lmi_status open_uploader(uploader *u, lmi_error *error) {
    lmi_status status = LMI_OK;
    for (int i = 0; i < N_BATCHES && status == LMI_OK; i++) {
        void *staging;
        status = device_alloc_pinned(u->stream, (uint64_t)PIECE_BYTES * BATCH_PIECES, &staging, error);
        if (status == LMI_OK) {
            u->staging[i] = staging;
            status = device_mark_open(u->stream, &u->free[i], error);
        }
    }
    return status;
}

static void close_uploader(uploader *u) {
    for (int i = 0; i < N_BATCHES; i++) {
        device_mark_close(u->free[i]);
        device_free_pinned(u->stream, u->staging[i]);
    }
}

static lmi_status upload(cuda_model *m, backend_model *model, const backend_upload *how, lmi_error *error) {
    m->bytes = cuda_weight_bytes(model);
    m->steps = calloc((size_t)model->n_steps, sizeof *m->steps);
    if (m->steps == NULL) {
        return fail(error, LMI_OUT_OF_MEMORY, "no memory for the tables of %lld steps", (long long)model->n_steps);
    }
    lmi_status status = device_alloc(m->stream, m->bytes, &m->memory, error);
    if (status != LMI_OK) {
        remedy(error, "Put fewer layers on the GPU: --gpu-layers.");
        return status;
    }
    uploader u = {.stream = m->stream, .workers = model->workers, .how = how, .all = m->bytes, .error = error};
    status = open_uploader(&u, error);
    if (status == LMI_OK) {
        placer p = {.base = m->memory, .up = &u};
        m->slopes = place_model(&p, model, m->steps);
        const lmi_status last = device_check(m->stream, u.status == LMI_OK ? error : NULL);
        status = u.status != LMI_OK ? u.status : last;
    }
    close_uploader(&u);
    return status;
}

lmi_status cuda_upload(backend_model *model, const backend_upload *how, lmi_error *error) {
    cuda_model *m = calloc(1, sizeof *m);
    if (m == NULL) {
        return fail(error, LMI_OUT_OF_MEMORY, "no memory for a model on the GPU");
    }
    model->weights = m;
    lmi_status status = device_stream_open(how->device_index, &m->stream, error);
    if (status == LMI_OK) {
        status = upload(m, model, how, error);
    }
    if (status != LMI_OK) {
        cuda_release(model);
    }
    return status;
}

void cuda_release(backend_model *model) {
    cuda_model *m = model->weights;
    if (m == NULL) {
        return;
    }
    device_free(m->stream, m->memory);
    device_stream_close(m->stream);
    free(m->steps);
    free(m);
    model->weights = NULL;
}

double cuda_read_speed(const backend_model *model) {
    enum { PASSES = 4 }; /* between two looks at the clock */
    const cuda_model *m = model->weights;
    void *work;
    if (m == NULL || device_alloc(m->stream, cuda_read_bytes(m->stream), &work, NULL) != LMI_OK) {
        return 0.0;
    }
    double best = 0.0, last = clock_seconds();
    const double began = last;
    for (int n = 0; last - began < 0.2 || n < 3; n++) {
        for (int i = 0; i < PASSES; i++) {
            cuda_launch_read(m->memory, m->bytes, work, m->stream);
        }
        if (device_check(m->stream, NULL) != LMI_OK) {
            best = 0.0;
            break;
        }
        const double now = clock_seconds(), speed = PASSES * (double)m->bytes / (now - last);
        best = speed > best ? speed : best;
        last = now;
    }
    device_free(m->stream, work);
    return best;
}
