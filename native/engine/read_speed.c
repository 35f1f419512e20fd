/* How fast this machine, or the GPU that has them, can read a model's weights at all: the limit of writing one token after the other. */
#define _GNU_SOURCE
#include <math.h>
#include <string.h>

#include "base/clock.h"
#include "engine/model.h"

enum { PIECE = 1 << 20, AHEAD = 4096 };

typedef struct reading {
    const gguf *file;
    uint64_t sums[POOL_MAX_WORKERS][8]; /* so that nothing is optimised away; a cache line each */
} reading;

/* The piece's bytes of the tensors, laid end to end. */
static void read_piece(void *context, int64_t piece, int worker) {
    reading *r = context;
    uint64_t skip = (uint64_t)piece * PIECE, left = PIECE;
    uint64_t a = 0, b = 0, c = 0, d = 0;
    for (int64_t i = 0; i < r->file->n_tensors && left > 0; i++) {
        const gguf_tensor *tensor = &r->file->tensors[i];
        if (skip >= tensor->n_bytes) {
            skip -= tensor->n_bytes;
            continue;
        }
        const uint64_t n = tensor->n_bytes - skip < left ? tensor->n_bytes - skip : left;
        const uint8_t *bytes = tensor->data + skip;
        for (uint64_t at = 0; at + 64 <= n; at += 64) {
            uint64_t words[8];
            __builtin_prefetch(bytes + at + AHEAD);
            memcpy(words, bytes + at, sizeof words);
            a += words[0] ^ words[4];
            b += words[1] ^ words[5];
            c += words[2] ^ words[6];
            d += words[3] ^ words[7];
        }
        skip = 0;
        left -= n;
    }
    r->sums[worker][0] += a + b + c + d;
}

static double cpu_speed(const lmi_model *model) {
    reading r = {.file = model->file};
    uint64_t n_bytes = 0;
    for (int64_t i = 0; i < model->file->n_tensors; i++) {
        n_bytes += model->file->tensors[i].n_bytes; /* extents do not overlap */
    }
    const double began = clock_seconds();
    double best = 0.0;
    int n_passes = 0; /* at least three: the first meets pages that are not mapped yet */
    for (double last = began; last - began < 0.2 || n_passes < 3; n_passes++) {
        pool_run(model->workers, read_piece, &r, (int64_t)((n_bytes + PIECE - 1) / PIECE));
        const double now = clock_seconds();
        best = (double)n_bytes / (now - last) > best ? (double)n_bytes / (now - last) : best;
        last = now;
    }
    return best;
}

/* Those that the GPU has are read there, one part after the other as for a token. */
double lmi_model_read_speed(lmi_model *model) {
    if (model == NULL || model->file->n_tensors == 0) {
        return 0.0;
    }
    pool_lock(model->workers);
    const placement *p = &model->devices.place;
    const bool placed = model->has_weights && atomic_load(&model->devices.settled) != 0;
    const bool gpu = placed && p->device_layers > 0, cpu = !gpu || p->device == &p->both;
    double seconds = 0.0, n_bytes = 0.0;
    if (gpu) {
        const backend *device = model->devices.library.table;
        const backend_model *part = cpu ? &p->halves.part[1] : &p->model;
        const double speed = device->read_speed != NULL ? device->read_speed(part) : 0.0;
        n_bytes += (double)device->weight_bytes(part);
        seconds += speed > 0.0 ? n_bytes / speed : INFINITY;
    }
    if (cpu) {
        const double own = gpu ? (double)backend_cpu.weight_bytes(&p->halves.part[0]) : 1.0;
        n_bytes += own;
        seconds += own / cpu_speed(model);
    }
    pool_unlock(model->workers);
    return n_bytes / seconds;
}
