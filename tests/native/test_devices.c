/* Models that a device runs, whole or in part: the device is one that is none (fake_device.c), whose numbers are the CPU's bit for bit, so
 * that whatever is split, moved, saved, fetched late or not at all must give the same bits as a session on the CPU. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <pthread.h>
#include <sys/mman.h>
#include <unistd.h>

#include "check.h"
#include "fake_device.h"
#include "gguf_builder.h"

enum { N_LAYERS = 4, N_TOKENS = 300 };
#define PLENTY ((uint64_t)1 << 40)
#define RESERVE ((uint64_t)256 << 20)

static fake_controls *fake;
static char model_path[64];

static void find_fake(void) {
    void *library = dlopen(FAKE_LIBRARY, RTLD_NOW | RTLD_LOCAL);
    fake_entry *entry = NULL;
    if (library != NULL) {
        void *found = dlsym(library, "lmi_fake_controls");
        memcpy(&entry, &found, sizeof found);
    }
    if (entry == NULL) {
        fprintf(stderr, "cannot open %s: %s\n", FAKE_LIBRARY, dlerror());
        exit(1);
    }
    fake = entry();
}

/* As it is before a test. Nothing may be left of the one before. */
static void reset(void) {
    CHECK(fake->used_bytes == 0 && fake->n_contexts == 0 && fake->n_uploads == fake->n_releases);
    *fake = (fake_controls){.total_bytes = PLENTY};
}

static void write_model(quant_type type) {
    builder b = {0};
    build_llama_of(&b, type, BUILD_SPM, N_LAYERS);
    static int fd = -1;
    if (fd >= 0) {
        close(fd);
    }
    fd = memfd_create("model", MFD_CLOEXEC);
    CHECK(fd >= 0 && write(fd, b.bytes, b.size) == (ssize_t)b.size);
    build_free(&b);
    snprintf(model_path, sizeof model_path, "/proc/self/fd/%d", fd);
}

static lmi_model_options model_options(lmi_device device, int32_t gpu_layers) {
    lmi_model_options options;
    lmi_model_options_default(&options);
    CHECK(options.device == LMI_DEVICE_AUTO && options.gpu_layers == -1 && options.device_index == 0);
    options.n_threads = 2;
    options.device = device;
    options.gpu_layers = gpu_layers;
    options.device_library = FAKE_LIBRARY;
    return options;
}

static lmi_model *open_model(lmi_device device, int32_t gpu_layers) {
    const lmi_model_options options = model_options(device, gpu_layers);
    lmi_model *model = NULL;
    lmi_error error = {0};
    CHECK(lmi_model_open(model_path, &options, &model, &error) == LMI_OK, "%s | %s", error.message, error.remedy);
    return model;
}

static lmi_session_options session_options(void) {
    lmi_session_options options;
    lmi_session_options_default(&options);
    options.window = 40;
    options.sinks = 3;
    options.chunk = 16;
    return options;
}

static lmi_session *open_session(lmi_model *model, const lmi_session_options *options) {
    lmi_session *session = NULL;
    lmi_error error = {0};
    CHECK(lmi_session_open(model, options, &session, &error) == LMI_OK, "%s | %s", error.message, error.remedy);
    return session;
}

static lmi_model_info info_of(const lmi_model *model) {
    lmi_model_info info;
    lmi_model_get_info(model, &info);
    return info;
}

static lmi_plan plan_of(const lmi_model *model, const lmi_session_options *options) {
    lmi_plan plan = {0};
    lmi_error error = {0};
    CHECK(lmi_session_plan(model, options, &plan, &error) == LMI_OK, "%s", error.message);
    return plan;
}

static const int32_t *tokens_of(const lmi_model *model) {
    static int32_t tokens[N_TOKENS];
    uint64_t state = 7;
    for (int i = 0; i < N_TOKENS; i++) {
        tokens[i] = (int32_t)(check_random(&state) % (uint64_t)info_of(model).n_vocab);
    }
    return tokens;
}

static void read_tokens(lmi_session *session, const int32_t *tokens, size_t n) {
    lmi_error error = {0};
    CHECK(lmi_session_read(session, tokens, n, NULL, &error) == LMI_OK, "%s", error.message);
}

static bool same_logits(lmi_session *a, lmi_session *b, int64_t n_vocab) {
    const float *x = lmi_session_logits(a, -1), *y = lmi_session_logits(b, -1);
    return x != NULL && y != NULL && memcmp(x, y, (size_t)n_vocab * sizeof *x) == 0;
}

static unsigned char *state_of(lmi_session *session, size_t *size) {
    lmi_error error = {0};
    *size = lmi_session_state_size(session);
    unsigned char *state = malloc(*size);
    CHECK(lmi_session_state_write(session, state, *size, &error) == LMI_OK, "%s", error.message);
    return state;
}

/* ---- the same bits, wherever layers run ------------------------------------------------------------------------------ */

/* A session on the CPU and one elsewhere, through everything that a session does. */
static void run_beside(lmi_model *cpu, lmi_model *other, const lmi_session_options *options, const char *what) {
    const int64_t n_vocab = info_of(cpu).n_vocab;
    const int32_t *tokens = tokens_of(cpu);
    lmi_session *a = open_session(cpu, options), *b = open_session(other, options);
    lmi_error error = {0};
    read_tokens(a, tokens, 100);
    read_tokens(b, tokens, 100);
    CHECK(same_logits(a, b, n_vocab), "%s: chunks", what);
    for (int i = 100; i < 120; i++) {
        read_tokens(a, tokens + i, 1);
        read_tokens(b, tokens + i, 1);
        CHECK(same_logits(a, b, n_vocab), "%s: token %d", what, i);
    }
    CHECK(lmi_session_rewind(a, 110, &error) == LMI_OK && lmi_session_rewind(b, 110, &error) == LMI_OK);
    read_tokens(a, tokens + 150, 30);
    read_tokens(b, tokens + 150, 30);
    CHECK(same_logits(a, b, n_vocab), "%s: after a rewind", what);

    lmi_session_cancel(b);
    size_t n_read = 9;
    CHECK(lmi_session_read(b, tokens, 20, &n_read, &error) == LMI_CANCELLED && n_read == 0);
    CHECK(same_logits(a, b, n_vocab), "%s: a cancelled chunk leaves the logits", what);
    lmi_session_clear_cancel(b);
    read_tokens(a, tokens + 180, 20);
    read_tokens(b, tokens + 180, 20);
    CHECK(same_logits(a, b, n_vocab), "%s: after a cancelled chunk", what);
    CHECK(lmi_session_nll(a, -1, 3) == lmi_session_nll(b, -1, 3));

    /* States are the same bytes, also where nobody has asked for the logits yet, and go on anywhere. */
    read_tokens(a, tokens + 200, 3);
    read_tokens(b, tokens + 200, 3);
    size_t size_a, size_b;
    unsigned char *state_a = state_of(a, &size_a), *state_b = state_of(b, &size_b);
    CHECK(size_a == size_b && memcmp(state_a, state_b, size_a) == 0, "%s: states differ", what);
    lmi_session *c = open_session(cpu, options), *d = open_session(other, options);
    read_tokens(d, tokens, 5); /* what it held, on the device or not, gives way */
    CHECK(lmi_session_state_read(c, state_b, size_b, &error) == LMI_OK, "%s", error.message);
    CHECK(lmi_session_state_read(d, state_a, size_a, &error) == LMI_OK, "%s", error.message);
    CHECK(same_logits(c, d, n_vocab) && same_logits(a, d, n_vocab), "%s: the logits of a loaded state", what);
    lmi_session *all[] = {a, b, c, d};
    for (int i = 0; i < 4; i++) {
        read_tokens(all[i], tokens + 210, 50);
        CHECK(same_logits(a, all[i], n_vocab), "%s: session %d after the move", what, i);
        CHECK(lmi_session_hot_allocations(all[i]) == 0);
    }
    state_b[size_b / 2] ^= 1;
    CHECK(lmi_session_state_read(d, state_b, size_b, &error) == LMI_BAD_FORMAT);
    read_tokens(a, tokens + 10, 1);
    read_tokens(d, tokens + 10, 1);
    CHECK(same_logits(a, d, n_vocab), "%s: a damaged state changes nothing", what);
    free(state_a);
    free(state_b);
    for (int i = 0; i < 4; i++) {
        lmi_session_close(all[i]);
    }
}

static void test_same_bits(quant_type type, lmi_kv_type kv_type) {
    reset();
    write_model(type);
    lmi_model *cpu = open_model(LMI_DEVICE_CPU, -1);
    for (int32_t n = 0; n <= N_LAYERS + 1; n++) {
        char what[64];
        snprintf(what, sizeof what, "type %d, %d layers", (int)type, n);
        lmi_model *other = open_model(LMI_DEVICE_CUDA, n);
        lmi_session_options options = session_options();
        options.kv_type = kv_type;
        run_beside(cpu, other, &options, what);
        CHECK(info_of(other).device_layers == (n < N_LAYERS ? n : N_LAYERS));
        CHECK((fake->n_runs > 0) == (n > 0) && (fake->used_bytes > 0) == (n > 0));
        lmi_model_close(other);
        CHECK(fake->used_bytes == 0);
    }
    lmi_model_close(cpu);
}

/* Rows of logits for every token, and guesses at the next ones. */
static void test_rows_and_guesses(void) {
    reset();
    write_model(QUANT_Q8_0);
    for (int32_t n = 0; n <= N_LAYERS; n += 2) {
        lmi_model *cpu = open_model(LMI_DEVICE_CPU, -1), *other = open_model(LMI_DEVICE_CUDA, n);
        const int64_t n_vocab = info_of(cpu).n_vocab;
        const int32_t *tokens = tokens_of(cpu);
        lmi_error error = {0};
        lmi_session_options options = session_options();
        options.all_logits = 1;
        lmi_session *a = open_session(cpu, &options), *b = open_session(other, &options);
        read_tokens(a, tokens, 16);
        read_tokens(b, tokens, 16);
        double x[16], y[16];
        CHECK(lmi_session_n_rows(b) == 16);
        for (int64_t row = 0; row < 16; row++) {
            CHECK(memcmp(lmi_session_logits(a, row), lmi_session_logits(b, row), (size_t)n_vocab * sizeof(float)) == 0);
        }
        CHECK(lmi_session_nll_rows(a, 0, tokens, 16, x, &error) == LMI_OK);
        CHECK(lmi_session_nll_rows(b, 0, tokens, 16, y, &error) == LMI_OK && memcmp(x, y, sizeof x) == 0);
        lmi_session_close(a);
        lmi_session_close(b);

        options.all_logits = 0;
        options.draft = 5;
        a = open_session(cpu, &options);
        b = open_session(other, &options);
        for (int i = 0; i < 200; i++) { /* a text that repeats itself: guesses come true */
            const int32_t *token = &tokens[i % 9 == 8 ? i % 23 : i % 9];
            read_tokens(a, token, 1);
            read_tokens(b, token, 1);
            CHECK(same_logits(a, b, n_vocab), "token %d", i);
            CHECK(i % 7 != 0 || lmi_session_nll_rows(b, 0, token, 1, y, &error) == LMI_OK);
        }
        lmi_draft_counts counts;
        lmi_session_get_draft(b, &counts);
        CHECK(counts.n_true > 0, "no guess came true");
        lmi_session_close(a);
        lmi_session_close(b);
        lmi_model_close(cpu);
        lmi_model_close(other);
    }
}

/* Tokens are drawn from candidates where these are enough, from the row where they are not; always the same ones. */
static void test_sampling(void) {
    write_model(QUANT_Q8_0);
    for (int refused = 0; refused < 2; refused++) {
        reset();
        fake->no_candidates = refused != 0;
        lmi_model *cpu = open_model(LMI_DEVICE_CPU, -1), *other = open_model(LMI_DEVICE_CUDA, 3);
        const lmi_session_options options = session_options();
        lmi_session *a = open_session(cpu, &options), *b = open_session(other, &options);
        lmi_error error = {0};
        read_tokens(a, tokens_of(cpu), 50);
        read_tokens(b, tokens_of(cpu), 50);
        for (int i = 0; i < 60; i++) {
            int32_t x = -1, y = -2;
            float p, q;
            CHECK(lmi_session_sample(a, &x, &p, &error) == LMI_OK && lmi_session_sample(b, &y, &q, &error) == LMI_OK, "%s",
                  error.message);
            CHECK(x == y && fabsf(p - q) < 1e-5f, "%d, not %d", y, x);
            read_tokens(a, &x, 1);
            read_tokens(b, &x, 1);
        }
        CHECK(fake->n_candidates == 60 && fake->n_fetched == (refused ? 60 : 0), "%lld fetched", (long long)fake->n_fetched);
        const float *row = lmi_session_logits(b, -1);
        CHECK(row != NULL && row == lmi_session_logits(b, -1) && fake->n_fetched == (refused ? 61 : 1), "fetched once");
        int32_t x, y;
        CHECK(lmi_session_sample(a, &x, NULL, &error) == LMI_OK && lmi_session_sample(b, &y, NULL, &error) == LMI_OK && x == y);
        CHECK(fake->n_candidates == 60, "the row was here already");
        lmi_session_close(a);
        lmi_session_close(b);
        lmi_model_close(cpu);
        lmi_model_close(other);
    }
}

/* A device that always goes on with the wrong token changes nothing of what is drawn, how far a text can be taken back, and what is saved. */
static void test_running_ahead(void) {
    write_model(QUANT_Q8_0);
    reset();
    lmi_model *cpu = open_model(LMI_DEVICE_CPU, -1), *other = open_model(LMI_DEVICE_CUDA, N_LAYERS);
    lmi_session_options options = session_options();
    options.rollback = options.chunk - 1;
    lmi_session *a = open_session(cpu, &options), *b = open_session(other, &options);
    const int32_t *tokens = tokens_of(cpu), n_vocab = (int32_t)info_of(cpu).n_vocab;
    lmi_error error = {0};
    lmi_sampling sampling;
    lmi_sampling_default(&sampling);
    read_tokens(a, tokens, 50);
    read_tokens(b, tokens, 50);
    CHECK(fake->n_ahead == 0, "nothing was drawn");
    for (int i = 0; i < 150; i++) {
        int32_t x = -1, y = -2;
        CHECK(lmi_session_sample(a, &x, NULL, &error) == LMI_OK && lmi_session_sample(b, &y, NULL, &error) == LMI_OK && x == y,
              "%d: %d, not %d", i, y, x);
        x = i % 11 == 10 ? (x + 3) % n_vocab : x;
        const int64_t ran = fake->n_ahead;
        read_tokens(a, &x, 1);
        read_tokens(b, &x, 1);
        CHECK(fake->n_ahead - ran == (i % 11 != 10 && i < 100), "%d: only behind what was drawn, and by the candidates", i);
        if (i % 17 == 16) {
            const int64_t position = lmi_session_position(b), back = position - options.rollback;
            CHECK(lmi_session_rewind(a, back, &error) == LMI_OK && lmi_session_rewind(b, back, &error) == LMI_OK, "%s",
                  error.message);
            read_tokens(a, tokens + i, 2);
            read_tokens(b, tokens + i, 2);
        }
        CHECK(i % 5 != 0 || same_logits(a, b, n_vocab), "%d", i);
        if (i == 60 || i == 99) {
            sampling.temperature = i == 60 ? 0.0f : 1.0f;
            sampling.repeat_penalty = i == 60 ? 1.0f : 1.2f;
            CHECK(lmi_session_set_sampling(a, &sampling, &error) == LMI_OK &&
                  lmi_session_set_sampling(b, &sampling, &error) == LMI_OK);
        }
    }
    size_t size;
    sampling.repeat_penalty = 1.0f;
    for (int i = 0; i < 2; i++) {
        CHECK(lmi_session_set_sampling(i == 0 ? a : b, &sampling, &error) == LMI_OK);
    }
    int32_t x = -1, y = -2;
    CHECK(lmi_session_sample(a, &x, NULL, &error) == LMI_OK && lmi_session_sample(b, &y, NULL, &error) == LMI_OK && x == y);
    read_tokens(a, &x, 1);
    read_tokens(b, &x, 1);
    CHECK(lmi_session_rewind(b, lmi_session_position(b) - options.chunk, &error) == LMI_STATE, "a slot of the ring is taken");
    unsigned char *state = state_of(b, &size);
    lmi_session *c = open_session(cpu, &options);
    CHECK(lmi_session_state_read(c, state, size, &error) == LMI_OK, "%s", error.message);
    free(state);
    CHECK(lmi_session_position(c) == lmi_session_position(a) && same_logits(a, c, n_vocab));
    for (int i = 0; i < 20; i++) {
        CHECK(lmi_session_sample(a, &x, NULL, &error) == LMI_OK && lmi_session_sample(c, &y, NULL, &error) == LMI_OK && x == y);
        read_tokens(a, &x, 1);
        read_tokens(c, &x, 1);
    }
    options.rollback = options.chunk; /* no slot to spare */
    lmi_session_close(c);
    c = open_session(other, &options);
    const int64_t ran = fake->n_ahead;
    read_tokens(c, tokens, 3);
    CHECK(lmi_session_sample(c, &x, NULL, &error) == LMI_OK);
    read_tokens(c, &x, 1);
    CHECK(fake->n_ahead == ran);
    lmi_session_close(a);
    lmi_session_close(b);
    lmi_session_close(c);
    lmi_model_close(cpu);
    lmi_model_close(other);
}

/* What is most likely, apart from tokens among the last 4096, after token 5 over and over, `first` before them and one that was drawn. */
static int32_t draw_last(lmi_model *model, int32_t first) {
    enum { N = 4095 };
    lmi_session_options options = session_options();
    options.rollback = 1;
    lmi_session *session = open_session(model, &options);
    int32_t *text = malloc((N + 10) * sizeof *text), token = -1;
    for (int i = 0; i < N + 10; i++) {
        text[i] = i == 10 ? first : 5;
    }
    lmi_sampling sampling;
    lmi_error error = {0};
    lmi_sampling_default(&sampling);
    sampling.temperature = 0;
    CHECK(lmi_session_set_sampling(session, &sampling, &error) == LMI_OK);
    read_tokens(session, text, N + 10);
    CHECK(lmi_session_sample(session, &token, NULL, &error) == LMI_OK);
    read_tokens(session, &token, 1);
    sampling.presence_penalty = 10;
    sampling.penalty_last = N + 1;
    CHECK(lmi_session_set_sampling(session, &sampling, &error) == LMI_OK);
    CHECK(lmi_session_sample(session, &token, NULL, &error) == LMI_OK);
    lmi_session_close(session);
    free(text);
    return token;
}

/* The token ahead takes a slot of the ring, and no place in the history that penalties look at. */
static void test_history(void) {
    write_model(QUANT_Q8_0);
    reset();
    lmi_model *cpu = open_model(LMI_DEVICE_CPU, -1), *other = open_model(LMI_DEVICE_CUDA, N_LAYERS);
    const int32_t likely = draw_last(cpu, 5), next = draw_last(cpu, likely), got = draw_last(other, likely);
    CHECK(next != likely, "the oldest one counts");
    CHECK(got == next && fake->n_ahead == 1, "%d, not %d", got, next);
    lmi_model_close(cpu);
    lmi_model_close(other);
}

/* ---- plans ------------------------------------------------------------------------------------------------------------ */

static void test_plan_is_exact(void) {
    write_model(QUANT_Q8_0);
    const lmi_session_options options = session_options();
    for (int32_t n = 0; n <= N_LAYERS; n++) {
        reset();
        lmi_model *model = open_model(LMI_DEVICE_CUDA, n);
        const lmi_plan before = plan_of(model, &options);
        CHECK(before.device_layers == n && fake->used_bytes == 0 && fake->n_uploads == 0, "a plan takes nothing");
        CHECK(info_of(model).device_layers == (n == 0 ? 0 : -1), "not decided yet");
        CHECK(before.device_needed_bytes ==
              before.device_weight_bytes + before.device_context_bytes + before.device_work_bytes);
        lmi_session *session = open_session(model, &options);
        CHECK(fake->used_bytes == before.device_needed_bytes, "%llu planned, %llu taken",
              (unsigned long long)before.device_needed_bytes, (unsigned long long)fake->used_bytes);
        lmi_plan own;
        lmi_session_get_plan(session, &own);
        CHECK(own.device_layers == n && own.device_weight_bytes == before.device_weight_bytes &&
              own.context_bytes == before.context_bytes);
        const lmi_plan second = plan_of(model, &options);
        CHECK(second.device_needed_bytes == second.device_context_bytes + second.device_work_bytes, "weights are there");
        if (n > 0) {
            CHECK(second.device_available_bytes == PLENTY - RESERVE - fake->used_bytes);
            CHECK(strcmp(info_of(model).device, "Fake GPU") == 0);
        }
        lmi_model *cpu = open_model(LMI_DEVICE_CPU, -1);
        const lmi_plan whole = plan_of(cpu, &options);
        CHECK(before.context_bytes + before.device_context_bytes == whole.context_bytes, "each layer is in one place");
        CHECK(before.device_weight_bytes <= whole.weight_bytes, "a table that is embedding and output is there once");
        CHECK(n > 0 ? before.weight_bytes < whole.weight_bytes : before.weight_bytes == whole.weight_bytes);
        CHECK((before.weight_bytes == 0) == (n == N_LAYERS), "mapped weights that nobody reads do not count");
        lmi_model_close(cpu);
        const uint64_t weights = before.device_weight_bytes;
        lmi_session_close(session);
        CHECK(fake->used_bytes == weights, "weights stay for the next session");
        lmi_model_close(model);
        CHECK(fake->used_bytes == 0);
    }
}

static void test_what_fits(void) {
    write_model(QUANT_Q8_0);
    const lmi_session_options options = session_options();
    uint64_t needed[N_LAYERS + 1] = {0};
    for (int32_t n = 1; n <= N_LAYERS; n++) {
        reset();
        lmi_model *model = open_model(LMI_DEVICE_CUDA, n);
        needed[n] = plan_of(model, &options).device_needed_bytes;
        CHECK(needed[n] > needed[n - 1]);
        lmi_model_close(model);
    }
    for (int32_t n = 0; n <= N_LAYERS; n++) {
        reset();
        fake->total_bytes = RESERVE + needed[n] + (n < N_LAYERS ? needed[n + 1] - needed[n] - 1 : 0);
        lmi_model *model = open_model(LMI_DEVICE_AUTO, -1);
        const lmi_plan plan = plan_of(model, &options);
        CHECK(plan.device_layers == n, "%lld layers, not %d", (long long)plan.device_layers, n);
        CHECK((plan.device_note[0] == '\0') == (n == N_LAYERS));
        if (n > 0 && n < N_LAYERS) {
            char end[64];
            snprintf(end, sizeof end, "placing %d of %d layers on the GPU", n, N_LAYERS);
            CHECK(strstr(plan.device_note, end) != NULL && strstr(plan.device_note, "on GPU 0") != NULL, "%s",
                  plan.device_note);
        }
        CHECK(n > 0 || strstr(plan.device_note, "not one layer fits") != NULL, "%s", plan.device_note);
        lmi_session *session = open_session(model, &options);
        CHECK(info_of(model).device_layers == n && fake->used_bytes == needed[n]);
        /* What was decided stands, and another session that does not fit any more is refused. */
        fake->total_bytes = RESERVE + fake->used_bytes;
        lmi_session *none = NULL;
        lmi_error error = {0};
        const lmi_status status = lmi_session_open(model, &options, &none, &error);
        CHECK(status == (n > 0 ? LMI_OUT_OF_MEMORY : LMI_OK), "%d", (int)status);
        CHECK(n == 0 || (strstr(error.remedy, "--gpu-layers") != NULL && strstr(error.remedy, "--window") != NULL));
        lmi_session_close(none);
        lmi_session_close(session);
        lmi_model_close(model);

        if (n < N_LAYERS) { /* one more than fits */
            lmi_error too_many = {0};
            reset();
            fake->total_bytes = RESERVE + needed[n + 1] - 1;
            model = open_model(LMI_DEVICE_AUTO, n + 1);
            CHECK(lmi_session_open(model, &options, &none, &too_many) == LMI_OUT_OF_MEMORY, "%s", too_many.message);
            CHECK(none == NULL && fake->n_uploads == 0 && strstr(too_many.message, "on GPU 0") != NULL);
            lmi_model_close(model);
        }
    }
    reset();
    fake->total_bytes = RESERVE / 2;
    lmi_model *model = open_model(LMI_DEVICE_CUDA, -1);
    lmi_plan plan;
    lmi_error error = {0};
    CHECK(lmi_session_plan(model, &options, &plan, &error) == LMI_DEVICE && error.remedy[0] != '\0', "%s", error.message);
    lmi_model_close(model);
}

/* ---- what may go wrong ------------------------------------------------------------------------------------------------ */

static void test_no_device(void) {
    write_model(QUANT_Q8_0);
    reset();
    lmi_error error = {0};
    lmi_device_info info;
    CHECK(lmi_device_find(0, FAKE_LIBRARY, &info, &error) == LMI_OK && info.free_bytes == PLENTY, "%s", error.message);
    CHECK(lmi_device_find(1, FAKE_LIBRARY, &info, &error) == LMI_DEVICE && strstr(error.message, "GPU 1") != NULL);
    CHECK(lmi_device_find(0, "/no/such/library.so", &info, &error) == LMI_DEVICE, "%s", error.message);
    CHECK(strstr(error.message, "no usable CUDA device: cannot open") != NULL && strstr(error.remedy, "--device cpu") != NULL);
    CHECK(lmi_device_find(0, "libm.so.6", &info, &error) == LMI_DEVICE, "%s", error.message);
    CHECK(strstr(error.message, "is not lmi's library") != NULL, "%s", error.message);
    CHECK(lmi_device_find(0, FAKE_LIBRARY, NULL, &error) == LMI_INVALID_ARGUMENT);
    fake->old = true;
    CHECK(lmi_device_find(0, FAKE_LIBRARY, &info, &error) == LMI_DEVICE && strstr(error.message, "not of version") != NULL);
    fake->old = false;
    if (lmi_device_find(0, NULL, &info, &error) != LMI_OK) { /* this machine may have one */
        CHECK(error.status == LMI_DEVICE && error.remedy[0] != '\0', "%s", error.message);
        void *driver = dlopen("libcuda.so.1", RTLD_NOW | RTLD_LOCAL);
        const char *expected = "no usable CUDA device: driver library libcuda.so.1 not found";
        CHECK(driver != NULL || (strcmp(error.message, expected) == 0 && strcmp(error.remedy, "Use --device cpu.") == 0));
    }

    /* A GPU that is there and cannot be used: an error where it was asked for, else a note. */
    fake->refuse = LMI_DEVICE;
    lmi_model_options options = model_options(LMI_DEVICE_CUDA, -1);
    lmi_model *model = NULL;
    CHECK(lmi_model_open(model_path, &options, &model, &error) == LMI_DEVICE && model == NULL, "%s", error.message);
    model = open_model(LMI_DEVICE_AUTO, -1);
    CHECK(info_of(model).device_layers == 0 && strstr(info_of(model).no_device, "told to fail") != NULL);
    CHECK(info_of(model).device[0] == '\0');
    const lmi_session_options shape = session_options();
    CHECK(strstr(plan_of(model, &shape).device_note, "told to fail") != NULL);
    lmi_session_close(open_session(model, &shape));
    lmi_model_close(model);

    /* One that cannot run this model. */
    fake->refuse = LMI_OK;
    fake->refuse_plan = LMI_UNSUPPORTED;
    model = open_model(LMI_DEVICE_AUTO, -1);
    CHECK(strstr(plan_of(model, &shape).device_note, "told to fail") != NULL);
    lmi_session *session = open_session(model, &shape);
    lmi_plan plan;
    lmi_session_get_plan(session, &plan);
    CHECK(plan.device_layers == 0 && fake->n_uploads == 0 && info_of(model).device_layers == 0);
    CHECK(strstr(plan_of(model, &shape).device_note, "told to fail") != NULL, "the reason stays");
    lmi_session_close(session);
    lmi_model_close(model);
    model = open_model(LMI_DEVICE_CUDA, -1);
    CHECK(lmi_session_open(model, &shape, &session, &error) == LMI_UNSUPPORTED && session == NULL);
    lmi_model_close(model);

    /* One that is gone when a session is to be opened. */
    reset();
    model = open_model(LMI_DEVICE_AUTO, -1);
    fake->refuse = LMI_DEVICE;
    CHECK(plan_of(model, &shape).device_layers == 0 && strstr(plan_of(model, &shape).device_note, "told to fail") != NULL);
    lmi_session_close(open_session(model, &shape));
    lmi_model_close(model);
    fake->refuse = LMI_OK;
    model = open_model(LMI_DEVICE_CUDA, -1);
    fake->refuse = LMI_DEVICE;
    CHECK(lmi_session_open(model, &shape, &session, &error) == LMI_DEVICE && strstr(error.message, "told to fail") != NULL);
    lmi_model_close(model);

    /* Options that contradict each other or mean nothing. */
    reset();
    options = model_options(LMI_DEVICE_CPU, 2);
    CHECK(lmi_model_open(model_path, &options, &model, &error) == LMI_INVALID_ARGUMENT && error.remedy[0] != '\0');
    options = model_options(LMI_DEVICE_CUDA, -2);
    CHECK(lmi_model_open(model_path, &options, &model, &error) == LMI_INVALID_ARGUMENT);
    options = model_options((lmi_device)3, -1);
    CHECK(lmi_model_open(model_path, &options, &model, &error) == LMI_INVALID_ARGUMENT);
    options = model_options(LMI_DEVICE_CUDA, -1);
    options.device_index = -1;
    CHECK(lmi_model_open(model_path, &options, &model, &error) == LMI_INVALID_ARGUMENT);
    options = model_options(LMI_DEVICE_CUDA, -1);
    options.vocab_only = 1;
    CHECK(lmi_model_open(model_path, &options, &model, &error) == LMI_OK && info_of(model).device_layers == 0);
    lmi_model_close(model);
}

/* Only the CPU keeps sums: where anything may run, it does; where the GPU must, that is said. */
static void test_importance(void) {
    write_model(QUANT_Q8_0);
    reset();
    lmi_session_options options = session_options();
    options.importance = 1;
    lmi_error error = {0};
    lmi_model *model = open_model(LMI_DEVICE_AUTO, -1);
    lmi_session *session = open_session(model, &options);
    CHECK(fake->n_uploads == 0 && info_of(model).device_layers == 0);
    read_tokens(session, tokens_of(model), 20);
    lmi_importance sums = {0};
    int n_found = 0;
    for (int64_t i = 0; i < info_of(model).n_tensors; i++) {
        CHECK(lmi_session_importance(session, i, &sums, &error) == LMI_OK);
        n_found += sums.n_matrices > 0;
    }
    CHECK(n_found > 7 * N_LAYERS - 1, "%d", n_found);
    lmi_session_close(session);
    lmi_model_close(model);
    for (int32_t n = 1; n <= N_LAYERS; n++) {
        model = open_model(LMI_DEVICE_CUDA, n);
        CHECK(lmi_session_open(model, &options, &session, &error) == LMI_DEVICE && session == NULL);
        CHECK(strstr(error.remedy, "--device cpu") != NULL);
        lmi_model_close(model);
    }
}

typedef struct watch {
    int64_t n_calls, stop_at;
    uint64_t done, all;
} watch;

static int32_t watch_upload(void *context, uint64_t done, uint64_t all) {
    watch *w = context;
    CHECK(done >= w->done && done <= all && (w->all == 0 || w->all == all));
    w->done = done;
    w->all = all;
    return ++w->n_calls == w->stop_at;
}

static void test_upload(void) {
    write_model(QUANT_Q8_0);
    for (int32_t n = 2; n <= N_LAYERS; n += 2) {
        reset();
        watch w = {.stop_at = 5};
        lmi_model_options options = model_options(LMI_DEVICE_CUDA, n);
        options.progress = watch_upload;
        options.progress_context = &w;
        lmi_model *model;
        lmi_error error = {0};
        CHECK(lmi_model_open(model_path, &options, &model, &error) == LMI_OK && w.n_calls == 0);
        const lmi_session_options shape = session_options();
        lmi_session *session;
        CHECK(lmi_session_open(model, &shape, &session, &error) == LMI_CANCELLED && session == NULL && w.n_calls == 5);
        CHECK(fake->used_bytes == 0 && info_of(model).device_layers == -1, "as if nothing had been begun");
        fake->fail_upload = LMI_DEVICE;
        CHECK(lmi_session_open(model, &shape, &session, &error) == LMI_DEVICE && fake->used_bytes == 0);
        fake->fail_upload = LMI_OK;
        w = (watch){0};
        fake->fail_open = LMI_OUT_OF_MEMORY;
        CHECK(lmi_session_open(model, &shape, &session, &error) == LMI_OUT_OF_MEMORY && fake->n_contexts == 0);
        fake->fail_open = LMI_OK;
        CHECK(w.done == w.all && w.all == plan_of(model, &shape).device_weight_bytes && fake->used_bytes == w.all);
        session = open_session(model, &shape);
        CHECK(fake->n_uploads == 2, "the weights were there");
        lmi_session_close(session);
        lmi_model_close(model);
    }
}

/* A device that fails in the middle: the calls say so, and nothing counts as read. */
static void test_failures(void) {
    write_model(QUANT_Q8_0);
    for (int32_t n = 2; n <= N_LAYERS; n += 2) {
        reset();
        lmi_model *model = open_model(LMI_DEVICE_CUDA, n);
        const lmi_session_options options = session_options();
        lmi_session *session = open_session(model, &options);
        const int32_t *tokens = tokens_of(model);
        lmi_error error = {0};
        size_t n_read = 9;
        int32_t token;
        double nll;
        read_tokens(session, tokens, 20);
        fake->fail_run = LMI_DEVICE;
        CHECK(lmi_session_read(session, tokens, 20, &n_read, &error) == LMI_DEVICE && n_read == 0);
        CHECK(lmi_session_position(session) == 20 && lmi_session_n_rows(session) == 1);
        fake->fail_run = LMI_OK;
        fake->fail_candidates = LMI_DEVICE;
        CHECK(lmi_session_sample(session, &token, NULL, &error) == LMI_DEVICE);
        fake->fail_candidates = LMI_OK;
        fake->no_candidates = true;
        fake->fail_fetch = LMI_DEVICE;
        CHECK(lmi_session_sample(session, &token, NULL, &error) == LMI_DEVICE);
        CHECK(lmi_session_logits(session, -1) == NULL && isinf(lmi_session_nll(session, -1, 0)));
        CHECK(lmi_session_nll_rows(session, 0, tokens, 1, &nll, &error) == LMI_DEVICE);
        const size_t size = lmi_session_state_size(session);
        unsigned char *state = malloc(size);
        CHECK(lmi_session_state_write(session, state, size, &error) == LMI_DEVICE);
        free(state);
        fake->fail_fetch = LMI_OK;
        CHECK(lmi_session_sample(session, &token, NULL, &error) == LMI_OK && lmi_session_logits(session, -1) != NULL);
        lmi_session_close(session);
        lmi_model_close(model);
    }
}

static void *open_and_read(void *argument) {
    lmi_model *model = argument;
    const lmi_session_options options = session_options();
    lmi_session *session;
    static const int32_t tokens[] = {1, 2, 3, 4};
    lmi_error error;
    if (lmi_session_open(model, &options, &session, &error) != LMI_OK) { /* CHECK counts for one thread */
        return NULL;
    }
    for (int i = 0; i < 20; i++) {
        if (lmi_session_read(session, tokens, 4, NULL, &error) != LMI_OK) {
            return NULL;
        }
    }
    float first = lmi_session_logits(session, -1)[0];
    float *copy = malloc(sizeof *copy);
    *copy = first;
    lmi_session_close(session);
    return copy;
}

static int32_t take_time(void *context, uint64_t done, uint64_t all) {
    (void)context, (void)done, (void)all;
    usleep(1000);
    return 0;
}

/* Several first sessions at once: the weights are copied once, however long that takes. */
static void test_threads(void) {
    enum { N = 4 };
    write_model(QUANT_Q8_0);
    reset();
    lmi_model_options options = model_options(LMI_DEVICE_AUTO, -1);
    options.progress = take_time;
    lmi_model *model = NULL;
    CHECK(lmi_model_open(model_path, &options, &model, NULL) == LMI_OK);
    pthread_t threads[N];
    float *first = NULL;
    for (int i = 0; i < N; i++) {
        pthread_create(&threads[i], NULL, open_and_read, model);
    }
    for (int i = 0; i < N; i++) {
        void *logit;
        pthread_join(threads[i], &logit);
        CHECK(logit != NULL && (first == NULL || *first == *(float *)logit));
        if (first == NULL) {
            first = logit;
        } else {
            free(logit);
        }
    }
    free(first);
    CHECK(fake->n_uploads == 1, "%lld times", (long long)fake->n_uploads);
    lmi_model_close(model);
}

int main(void) {
    find_fake();
    test_same_bits(QUANT_Q8_0, LMI_KV_F16);
    test_same_bits(QUANT_Q4_K, LMI_KV_F32);
    test_same_bits(QUANT_F32, LMI_KV_F16);
    test_rows_and_guesses();
    test_sampling();
    test_running_ahead();
    test_history();
    test_plan_is_exact();
    test_what_fits();
    test_no_device();
    test_importance();
    test_upload();
    test_failures();
    test_threads();
    reset();
    return check_report();
}
