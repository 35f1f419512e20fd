/* The CUDA backend as the engine calls it, on the emulator, beside the CPU's: chunks, single tokens, steers, rows after the last norm, and
 * what a token costs the host; and running ahead beside not doing so. What is queued runs at once, and then as late as it may. The whole of its
 * host side runs under AddressSanitizer here. */
#define _GNU_SOURCE
#include "memory_llama.h"

#include <math.h>

#include "engine/model.h"
#include "engine/sampler.h"
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

/* ---- running ahead ------------------------------------------------------------------------------------------------ */

enum { PLAIN, AHEAD, N_WAYS, BACK = 4 };

static struct way {
    arena memory;
    backend_context *context;
    logit_candidates top;
} ways[N_WAYS]; /* two sessions of one model on the device */

static void open_ways(const backend *table, const backend_model *model, const layer_context *layer) {
    const uint64_t before = simt_allocated();
    uint64_t planned = 0;
    lmi_error error = {0};
    for (int i = 0; i < N_WAYS; i++) {
        const context_shape shape = {
            .layers = layer, .chunk = CHUNK, .n_exact = 1, .n_logits = 1, .steer_rank = RANK, .ahead = i == AHEAD};
        backend_bytes bytes;
        arena_open(&ways[i].memory);
        CHECK(table->plan(model, &shape, &bytes, &error) == LMI_OK, "%s", error.message);
        CHECK(table->open(model, &shape, &ways[i].memory, &ways[i].context, &error) == LMI_OK, "%s", error.message);
        planned += bytes.device_context + bytes.device_work;
    }
    CHECK(simt_allocated() - before == planned, "a plan is exact");
}

/* Both read the same; what they would draw from is the same, bit for bit. Returns how many graphs the second launched. */
static int64_t read_both(const backend *table, const int32_t *tokens, int64_t n, int64_t first, const steer_factors *steer,
                         const draw_order *next, bool cancelled) {
    simt_device *device = simt_device_now();
    int64_t n_graphs = 0;
    for (int i = 0; i < N_WAYS; i++) {
        atomic_int cancel = cancelled && i == AHEAD;
        const backend_chunk chunk = {.tokens = tokens,
                                     .n_tokens = n,
                                     .first = first,
                                     .start = 3,
                                     .n_logits = 1,
                                     .steer = steer,
                                     .next = i == AHEAD ? next : NULL,
                                     .cancel = &cancel};
        lmi_error error = {0};
        n_graphs = device->n_graphs;
        if (cancel != 0) {
            CHECK(table->run(ways[i].context, &chunk, &error) == LMI_CANCELLED);
            atomic_store(&cancel, 0);
        }
        CHECK(table->run(ways[i].context, &chunk, &error) == LMI_OK, "%s", error.message);
        n_graphs = device->n_graphs - n_graphs;
        memset(&ways[i].top, 0, sizeof ways[i].top);
        CHECK(table->candidates(ways[i].context, 0, &ways[i].top, &error) == LMI_OK, "%s", error.message);
    }
    CHECK(memcmp(&ways[PLAIN].top, &ways[AHEAD].top, sizeof ways[PLAIN].top) == 0, "at %lld", (long long)first);
    return n_graphs;
}

static bool same_rows(const backend *table) {
    for (int i = 0; i < N_WAYS; i++) {
        CHECK(table->fetch_logits(ways[i].context, 0, sides[i].logits, NULL) == LMI_OK);
    }
    return memcmp(sides[PLAIN].logits, sides[AHEAD].logits, (size_t)n_vocab * sizeof(float)) == 0;
}

static bool same_banks(const backend *table, bool copy) {
    const size_t size = (size_t)table->context_bytes(ways[PLAIN].context);
    unsigned char *bytes[N_WAYS];
    for (int i = 0; i < N_WAYS; i++) {
        bytes[i] = malloc(size);
        CHECK(table->context_get(ways[i].context, 0, size, bytes[i], NULL) == LMI_OK);
    }
    const bool same = memcmp(bytes[PLAIN], bytes[AHEAD], size) == 0;
    CHECK(!copy || table->context_put(ways[AHEAD].context, 0, size, bytes[PLAIN], NULL) == LMI_OK);
    free(bytes[PLAIN]);
    free(bytes[AHEAD]);
    return same;
}

/* Tokens as they are drawn, and every way in which the host may come back with something else. */
static void test_ahead(const backend *table, const steer_factors *steers) {
    unsigned char *memory = aligned_alloc(64, sampler_bytes(n_vocab));
    memset(memory, 0, sampler_bytes(n_vocab));
    sampler *draws = sampler_at(memory, n_vocab);
    lmi_sampling sampling;
    lmi_sampling_default(&sampling);
    sampling.seed = 6;
    CHECK(sampler_set(draws, &sampling, NULL) == LMI_OK);
    const steer_factors *steer = NULL;
    draw_order next[2];
    int64_t first = 0, n_ahead = 0, n_graphs = 0;
    bool was_ahead = false;
    int32_t token = 5, others[CHUNK];
    for (int i = 0; i < 28; i++) {
        bool drawn = i > 0;
        if (i == 21) {
            sampling.temperature = 0;
            CHECK(sampler_set(draws, &sampling, NULL) == LMI_OK);
        }
        drawn = drawn && i != 22;   /* with other options than were foreseen when its logits were queued */
        if (i > 4 && i % 13 == 5) { /* another token */
            token = (int32_t)((token + 1) % n_vocab);
            drawn = false;
        }
        if (i > 4 && i % 17 == 7) { /* another place */
            first -= BACK;
            drawn = false;
        }
        if (i > 4 && i % 11 == 3) { /* another model, as it were */
            steer = steer == NULL ? &steers[i % 2] : NULL;
            drawn = false;
        }
        if (i > 4 && i % 19 == 0) { /* a state, which is the same but for slots that nobody may read */
            same_banks(table, true);
            drawn = false;
        }
        if (i > 4 && i % 15 == 12) { /* several tokens */
            for (int j = 0; j < CHUNK; j++) {
                others[j] = (int32_t)((token + 7 * j) % n_vocab);
            }
            read_both(table, others, CHUNK, first, steer, NULL, false);
            first += CHUNK;
            was_ahead = false;
            drawn = false;
        } else {
            CHECK(sampler_foresee(draws, next));
            const bool ahead = i % 9 != 8;
            n_graphs = read_both(table, &token, 1, first++, steer, ahead ? next : NULL, i % 10 == 9);
            CHECK(n_graphs == (drawn && was_ahead ? 0 : 1) + ahead, "%d: %lld graphs", i, (long long)n_graphs);
            n_ahead += drawn && was_ahead;
            was_ahead = ahead;
        }
        CHECK(i % 7 != 0 || same_rows(table), "%d", i);
        CHECK(sampler_draw_candidates(draws, &ways[AHEAD].top, NULL, 0, 0, &token, NULL), "%d", i);
    }
    CHECK(n_ahead > 8, "%lld", (long long)n_ahead);
    read_both(table, &token, 1, first, steer, NULL, false); /* over the slot of what ran ahead */
    CHECK(same_banks(table, false), "nothing is left of it");
    CHECK(sampler_foresee(draws, next));
    read_both(table, &token, 1, first + 1, steer, next, false); /* closed with a token under way */
    free(memory);
}

static void test_ways(const layer_context *layer, const steer_factors *steers) {
    const struct side *gpu = &sides[1];
    open_ways(gpu->table, &gpu->model, layer);
    test_ahead(gpu->table, steers);
    for (int i = 0; i < N_WAYS; i++) {
        gpu->table->close(ways[i].context);
        arena_close(&ways[i].memory);
    }
}

/* A device that is lost with a token under way: an error, and nothing hangs or leaks. */
static void test_lost(const layer_context *layer) {
    const struct side *gpu = &sides[1];
    const draw_order next[2] = {{.temperature = 1, .top_p = 1, .top_k = 1}, {.temperature = 1, .top_p = 1, .top_k = 1}};
    const int32_t token = 9;
    lmi_error error = {0};
    open_ways(gpu->table, &gpu->model, layer);
    read_both(gpu->table, &token, 1, 0, NULL, next, false);
    simt_device_now()->lost = true;
    atomic_int cancel = 0;
    const backend_chunk chunk = {.tokens = &ways[AHEAD].top.id[0],
                                 .n_tokens = 1,
                                 .first = 1,
                                 .start = 3,
                                 .n_logits = 1,
                                 .next = next,
                                 .cancel = &cancel};
    for (int i = 0; i < 2; i++) {
        CHECK(gpu->table->run(ways[AHEAD].context, &chunk, &error) == LMI_DEVICE && error.message[0] != 0);
    }
    for (int i = 0; i < N_WAYS; i++) {
        gpu->table->close(ways[i].context);
        arena_close(&ways[i].memory);
    }
    simt_device_now()->lost = false;
}

static void test_all(lmi_model *model) {
    read_so_far = copied_bytes = 0;
    const layer_context layer = {
        .window = WINDOW, .sinks = SINKS, .capacity = ring_capacity(WINDOW, CHUNK, BACK), .rope = &model->rope};
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
    const steer_factors others[2] = {{RANK, down, up, 4}, {2, other, up, 5}};
    test_ways(&layer, others);
    test_lost(&layer);
    close_sides();
}

int main(void) {
    lmi_model *model = open_model(QUANT_F32, 2);
    n_embd = model->spec.n_embd;
    n_vocab = model->spec.n_vocab;
    CHECK(n_vocab <= 1024 && n_embd <= 64);
    for (int lazy = 0; lazy < 2; lazy++) {
        simt_device_now()->lazy = lazy != 0;
        test_all(model);
    }
    lmi_model_close(model);
    return check_report();
}
