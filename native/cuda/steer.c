/* Rows after the last norm on the device: given to who asked for them, and steered before they meet the output matrix.
 *
 * Steering is two row-wise products in float32, whatever the number of rows, so that drafts of several give what single tokens give.
 * Factors fill the rank that the session was opened for, with zeros, so that one captured graph serves every steer. */
#include "cuda/internal.h"

enum { RANK_STEP = 4 }; /* 16 bytes: rows that are read so are read fast */

static int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }

int64_t cuda_steer_room(const context_shape *shape) { return (shape->steer_rank + RANK_STEP - 1) / RANK_STEP * RANK_STEP; }

int64_t cuda_normed_rows(const context_shape *shape) {
    const int64_t wanted = shape->last_hidden ? shape->chunk : shape->steer_rank > 0 ? shape->n_logits : 0;
    return smaller(wanted, CUDA_LOGITS_ROWS);
}

/* ---- factors ------------------------------------------------------------------------------------------------------- */

/* [n_rows][n_cols] of the host into [all_rows][all_cols] of the device, the rest 0. */
static lmi_status put_factor(backend_context *c, float *device, int64_t all_rows, int64_t all_cols, const float *host,
                             int64_t n_rows, int64_t n_cols, lmi_error *error) {
    const int64_t n = all_rows * all_cols;
    lmi_status status = LMI_OK;
    for (int64_t done = 0; done < n && status == LMI_OK;) {
        const int64_t part = smaller(n - done, (int64_t)c->staged_values);
        for (int64_t i = 0; i < part; i++) {
            const int64_t row = (done + i) / all_cols, col = (done + i) % all_cols;
            c->staged[i] = row < n_rows && col < n_cols ? host[row * n_cols + col] : 0.0f;
        }
        device_upload(c->stream, device + done, c->staged, (uint64_t)part * sizeof *c->staged);
        status = device_check(c->stream, error);
        done += part;
    }
    return status;
}

lmi_status cuda_put_steer(backend_context *c, const steer_factors *f, lmi_error *error) {
    if (f->version == c->steer_version) {
        return LMI_OK;
    }
    const int64_t n_embd = c->model->spec->n_embd, room = cuda_steer_room(&c->shape);
    c->steer_version = 0; /* neither, until both are there */
    lmi_status status = put_factor(c, c->steer_down, room, n_embd, f->down, f->rank, n_embd, error);
    if (status == LMI_OK) {
        status = put_factor(c, c->steer_up, n_embd, room, f->up, n_embd, f->rank, error);
    }
    if (status == LMI_OK) {
        c->steer_version = f->version;
    }
    return status;
}

/* ---- rows ---------------------------------------------------------------------------------------------------------- */

/* Rows of the chunk that make logits, from row0 on, to the normed ones; what the steps' last one has as its input. */
static void norm_rows(backend_context *c, int64_t row0, int64_t n_rows) {
    const int64_t last = c->model->n_steps - 1, n_embd = c->model->spec->n_embd;
    const float *x = c->buffers[c->model->steps[last].in] + row0 * n_embd;
    cuda_launch_norm(x, c->normed, c->weights->steps[last].norm, n_embd, (int32_t)n_rows, c->stream);
}

static void multiply(backend_context *c, cuda_linear_kind kind, const float *w, int64_t rows, int64_t cols, const float *x,
                     float *y, int64_t n_rows) {
    cuda_linear args = {
        .kind = kind,
        .n_weights = 1,
        .n_tokens = (int32_t)n_rows,
        .w = {{.type = QUANT_F32, .rows = rows, .cols = cols, .n_matrices = 1, .plane = {(const uint8_t *)w}}},
        .y = {y},
        .x = x,
    };
    cuda_launch_rowwise(&args, c->stream);
}

void cuda_steer(backend_context *c, int64_t row0, int64_t n_rows) {
    const int64_t n_embd = c->model->spec->n_embd, room = cuda_steer_room(&c->shape);
    norm_rows(c, row0, n_rows);
    for (int64_t done = 0; done < n_rows; done += CUDA_ROWWISE_TOKENS) {
        const int64_t n = smaller(n_rows - done, CUDA_ROWWISE_TOKENS);
        float *rows = c->normed + done * n_embd;
        multiply(c, CUDA_STORE, c->steer_down, room, n_embd, rows, c->coordinates, n);
        multiply(c, CUDA_ADD, c->steer_up, n_embd, room, c->coordinates, rows, n);
    }
}

lmi_status cuda_fetch_hidden(backend_context *c, const backend_chunk *chunk, lmi_error *error) {
    const int64_t n_embd = c->model->spec->n_embd, most = cuda_normed_rows(&c->shape);
    lmi_status status = LMI_OK;
    for (int64_t done = 0; done < chunk->n_last_hidden && status == LMI_OK;) {
        const int64_t n = smaller(chunk->n_last_hidden - done, most);
        norm_rows(c, chunk->n_tokens - chunk->n_last_hidden + done, n);
        status = cuda_download_rows(c, chunk->last_hidden + done * n_embd, c->normed, n, n_embd, error);
        done += n;
    }
    return status;
}
