/* The CUDA backend as the engine calls it, on the emulator, beside the CPU's: chunks, single tokens, steers, rows after the last norm, and
 * what a token costs the host. The whole of its host side runs under AddressSanitizer here. */
#define _GNU_SOURCE
#include "memory_llama.h"

#include <math.h>

#include "engine/model.h"
#include "lambda/window.h"
#include "simt/device_simt.h"

enum { CHUNK = 9, N_LOGITS = 4, RANK = 5, WINDOW = 14, SINKS = 2, N_BACKENDS = 2 };

const backend *lmi_cuda_backend(const char *version);

static struct side {
    const backend *table;
    backend_model model;
    arena memory;
    backend_context *context;
    float logits[CHUNK * 1024], hidden[CHUNK * 64];
} sides[N_BACKENDS]; /* the CPU's first */
static int64_t n_embd, n_vocab, read_so_far;
static uint64_t copied_bytes;

static void note_copied(void *owner, const void *bytes, uint64_t n) {
    CHECK(owner == &copied_bytes && bytes != NULL);
    copied_bytes += n;
}

static void open_sides(lmi_model *model, const layer_context *layer) {
    const context_shape shape = {
        .layers = layer, .chunk = CHUNK, .n_exact = N_LOGITS, .n_logits = N_LOGITS, .last_hidden = true, .steer_rank = RANK};
    const backend_upload how = {.copied = note_copied, .owner = &copied_bytes};
    lmi_error error = {0};
    for (int i = 0; i < N_BACKENDS; i++) {
        struct side *s = &sides[i];
        backend_bytes bytes;
        s->table = i == 0 ? &backend_cpu : lmi_cuda_backend(lmi_version());
        s->model = model->shared;
        arena_open(&s->memory);
        if (s->table->upload != NULL) {
            CHECK(s->table->upload(&s->model, &how, &error) == LMI_OK, "%s", error.message);
        }
        const uint64_t before = simt_allocated();
        CHECK(s->table->plan(&s->model, &shape, &bytes, &error) == LMI_OK, "%s", error.message);
        CHECK(s->table->open(&s->model, &shape, &s->memory, &s->context, &error) == LMI_OK, "%s", error.message);
        CHECK(simt_allocated() - before == bytes.device_context + bytes.device_work, "a plan is exact");
    }
}

static void close_sides(void) {
    for (int i = 0; i < N_BACKENDS; i++) {
        sides[i].table->close(sides[i].context);
        if (sides[i].table->release != NULL) {
            sides[i].table->release(&sides[i].model);
        }
        arena_close(&sides[i].memory);
    }
    CHECK(simt_allocated() == 0, "%llu bytes are left", (unsigned long long)simt_allocated());
}

/* Difference over the largest, and noise over signal, squares. */
typedef struct difference {
    double worst, noise;
} difference;

static difference difference_of(const float *got, const float *expected, int64_t n) {
    double worst = 0, largest = 0, noise = 0, signal = 0;
    for (int64_t i = 0; i < n; i++) {
        const double apart = fabs((double)got[i] - (double)expected[i]), size = fabs((double)expected[i]);
        worst = fmax(worst, apart); /* of a NaN, the noise tells */
        largest = fmax(largest, size);
        noise += apart * apart;
        signal += size * size;
    }
    return (difference){worst / largest, noise / signal};
}

/* The next n tokens on both. */
static void run(int64_t n, int64_t n_logits, int64_t n_hidden, const steer_factors *steer) {
    atomic_int cancel = 0;
    int32_t tokens[CHUNK];
    for (int64_t i = 0; i < n; i++) {
        tokens[i] = (int32_t)((read_so_far + i) * 7 % n_vocab);
    }
    lmi_error error = {0};
    for (int i = 0; i < N_BACKENDS; i++) {
        struct side *s = &sides[i];
        const backend_chunk chunk = {
            .tokens = tokens,
            .n_tokens = n,
            .first = read_so_far,
            .logits = s->table->fetch_logits != NULL ? NULL : s->logits,
            .n_logits = n_logits,
            .last_hidden = s->hidden,
            .n_last_hidden = n_hidden,
            .steer = steer,
            .cancel = &cancel,
        };
        CHECK(s->table->run(s->context, &chunk, &error) == LMI_OK, "%s", error.message);
    }
    read_so_far += n;
}

/* Row-wise kernels do what the CPU does. Tiled ones round activations to binary16, and what they read stays in the context. */
static void check_same(const char *what, const float *got, const float *expected, int64_t n, bool tiled) {
    const difference d = difference_of(got, expected, n);
    CHECK(d.noise < 2e-5 && (tiled || d.worst < 1e-4), "%s: off by %g of the largest, noise %g", what, d.worst, d.noise);
}

static void compare(const char *what, int64_t n_logits, int64_t n_hidden, bool tiled) {
    struct side *gpu = &sides[1];
    lmi_error error = {0};
    for (int64_t row = n_logits - 1; row >= 0; row--) {
        logit_candidates top;
        CHECK(gpu->table->fetch_logits(gpu->context, row, gpu->logits, &error) == LMI_OK, "%s", error.message);
        check_same(what, gpu->logits, sides[0].logits + row * n_vocab, n_vocab, tiled);
        CHECK(gpu->table->candidates(gpu->context, row, &top, &error) == LMI_OK, "%s", error.message);
        CHECK(top.logit[0] == gpu->logits[top.id[0]] && top.logit[0] >= gpu->logits[(top.id[0] + 1) % n_vocab], "%s", what);
    }
    if (n_hidden > 0) {
        check_same(what, gpu->hidden, sides[0].hidden, n_hidden * n_embd, tiled);
    }
}

/* What one token takes of the host: a graph is launched and waited for, and nothing is copied. */
static void check_cost(const char *what, const steer_factors *steer, bool copies) {
    simt_device *device = simt_device_now();
    device->n_copies = device->n_waits = 0;
    run(1, 1, 0, steer);
    CHECK((device->n_copies > 0) == copies, "%s: %d copies", what, (int)device->n_copies);
    CHECK(copies || device->n_waits == 1, "%s: waited %d times", what, (int)device->n_waits);
    logit_candidates top;
    device->n_waits = 0;
    CHECK(sides[1].table->candidates(sides[1].context, 0, &top, NULL) == LMI_OK && device->n_waits == 0, "they came with it");
    compare(what, 1, 0, false);
}

/* What a saved state holds, out and in again, in pieces of any size. */
static void test_state(void) {
    const struct side *gpu = &sides[1];
    const uint64_t size = gpu->table->context_bytes(gpu->context);
    CHECK(size == backend_cpu.context_bytes(sides[0].context));
    unsigned char *saved = malloc((size_t)size), *back = malloc((size_t)size);
    CHECK(gpu->table->context_get(gpu->context, 0, (size_t)size, saved, NULL) == LMI_OK);
    for (uint64_t at = 0, n = 1; at < size; at += n, n = n * 3 + 1) {
        n = n < size - at ? n : size - at;
        CHECK(gpu->table->context_put(gpu->context, at, (size_t)n, saved + at, NULL) == LMI_OK);
        CHECK(gpu->table->context_get(gpu->context, at, (size_t)n, back + at, NULL) == LMI_OK);
    }
    CHECK(memcmp(saved, back, (size_t)size) == 0);
    free(saved);
    free(back);
}

int main(void) {
    lmi_model *model = open_model(QUANT_F32, 2);
    n_embd = model->spec.n_embd;
    n_vocab = model->spec.n_vocab;
    CHECK(n_vocab <= 1024 && n_embd <= 64);
    const layer_context layer = {
        .window = WINDOW, .sinks = SINKS, .capacity = ring_capacity(WINDOW, CHUNK, 4), .rope = &model->rope};
    open_sides(model, &layer);
    CHECK(copied_bytes >= backend_cpu.weight_bytes(&model->shared), "%llu bytes", (unsigned long long)copied_bytes);

    float down[RANK * 64], up[RANK * 64], other[RANK * 64];
    uint64_t random = 3;
    for (int64_t i = 0; i < RANK * n_embd; i++) {
        down[i] = (float)check_normal(&random) * 0.1f;
        up[i] = (float)check_normal(&random) * 0.1f;
        other[i] = (float)check_normal(&random) * 0.1f;
    }
    const steer_factors all = {RANK, down, up, 1}, few = {2, other, up, 2}, again = {RANK, down, up, 3};
    check_cost("the first token", NULL, false);
    check_cost("a token", NULL, false);
    check_cost("a steer that is new", &all, true);
    check_cost("a steer that was there", &all, false);
    check_cost("none", NULL, false);
    check_cost("a steer that was there", &all, false);
    check_cost("another of fewer directions", &few, true);
    run(3, 3, 1, &again);
    compare("a few tokens, steered", 3, 1, false);
    run(1, 1, 1, &again);
    compare("a token and its hidden state", 1, 1, false);
    run(CHUNK, N_LOGITS, CHUNK, NULL);
    compare("a chunk", N_LOGITS, CHUNK, true);
    run(CHUNK, N_LOGITS, 3, &few);
    compare("a steered chunk", N_LOGITS, 3, true);
    run(2, 1, 0, &few);
    compare("after it", 1, 0, true);
    test_state();
    close_sides();
    lmi_model_close(model);
    return check_report();
}
