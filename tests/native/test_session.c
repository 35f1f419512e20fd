/* Sessions as a whole: nothing allocated while tokens are read, the same bits for any number of threads, cancelling from
 * another thread, sessions that share a model, a second thread refused. Also run under ThreadSanitizer. */
#define _GNU_SOURCE
#include <pthread.h>
#include <stdatomic.h>

#include "memory_llama.h"

/* ---- counting allocations ----------------------------------------------------------------------------------------- */

static atomic_long n_allocations;
#if !defined(__SANITIZE_ADDRESS__) && !defined(__SANITIZE_THREAD__) && defined(__GLIBC__)
enum { COUNTS_ALLOCATIONS = 1 };
extern void *__libc_malloc(size_t size);
extern void *__libc_calloc(size_t n, size_t size);
extern void *__libc_realloc(void *memory, size_t size);
void *malloc(size_t size) {
    atomic_fetch_add(&n_allocations, 1);
    return __libc_malloc(size);
}
void *calloc(size_t n, size_t size) {
    atomic_fetch_add(&n_allocations, 1);
    return __libc_calloc(n, size);
}
void *realloc(void *memory, size_t size) {
    atomic_fetch_add(&n_allocations, 1);
    return __libc_realloc(memory, size);
}
#else
enum { COUNTS_ALLOCATIONS = 0 };
#endif

/* ---- a model in memory -------------------------------------------------------------------------------------------- */

static lmi_session *open_recalling(lmi_model *model, int64_t window, int64_t chunk, lmi_recall kind) {
    lmi_session_options options;
    lmi_session_options_default(&options);
    options.window = window;
    options.sinks = 3;
    options.chunk = chunk;
    options.recall = (lmi_recall_options){.kind = kind, .n = (int64_t[]){0, 7, 64, 2}[kind], .block = 16};
    lmi_session *session = NULL;
    lmi_error error = {0};
    CHECK(lmi_session_open(model, &options, &session, &error) == LMI_OK, "%s | %s", error.message, error.remedy);
    return session;
}

static lmi_session *open_session(lmi_model *model, int64_t window, int64_t chunk) {
    return open_recalling(model, window, chunk, LMI_RECALL_NONE);
}

enum { N_TOKENS = 300 };

static void fill_tokens(int32_t tokens[N_TOKENS], int64_t n_vocab) {
    uint64_t state = 7;
    for (int i = 0; i < N_TOKENS; i++) {
        tokens[i] = (int32_t)(check_random(&state) % (uint64_t)n_vocab);
    }
}

static int64_t vocab_of(const lmi_model *model) {
    lmi_model_info info;
    lmi_model_get_info(model, &info);
    return info.n_vocab;
}

/* ---- tests -------------------------------------------------------------------------------------------------------- */

static void test_no_allocations(lmi_recall recall) {
    lmi_model *model = open_model(QUANT_Q8_0, 3);
    lmi_session *session = open_recalling(model, 40, 16, recall);
    int32_t tokens[N_TOKENS];
    fill_tokens(tokens, vocab_of(model));
    lmi_error error = {0};
    CHECK(lmi_session_read(session, tokens, 64, NULL, &error) == LMI_OK, "%s", error.message);
    const long before = atomic_load(&n_allocations);
    CHECK(lmi_session_read(session, tokens + 64, N_TOKENS - 64, NULL, &error) == LMI_OK, "%s", error.message);
    for (int i = 0; i < 200; i++) {
        int32_t token;
        float logprob;
        CHECK(lmi_session_sample(session, &token, &logprob, &error) == LMI_OK, "%s", error.message);
        CHECK(logprob <= 0.0f && isfinite(logprob));
        CHECK(lmi_session_read(session, &token, 1, NULL, &error) == LMI_OK, "%s", error.message);
    }
    CHECK(lmi_session_rewind(session, lmi_session_position(session) - 5, &error) == LMI_OK, "%s", error.message);
    CHECK(lmi_session_read(session, tokens, 20, NULL, &error) == LMI_OK, "%s", error.message);
    const long after = atomic_load(&n_allocations);
    CHECK(after == before, "%ld allocations while tokens were read", after - before);
    CHECK(!COUNTS_ALLOCATIONS || before > 0, "the counter does not count");
    CHECK(lmi_session_hot_allocations(session) == 0);
    lmi_session_close(session);
    lmi_model_close(model);
}

static void test_threads_agree(quant_type type, lmi_recall recall) {
    float *first = NULL;
    static const int counts[] = {1, 2, 3, 7};
    for (size_t i = 0; i < sizeof counts / sizeof *counts; i++) {
        lmi_model *model = open_model(type, counts[i]);
        lmi_session *session = open_recalling(model, 50, 32, recall);
        const int64_t n_vocab = vocab_of(model);
        int32_t tokens[N_TOKENS];
        fill_tokens(tokens, n_vocab);
        lmi_error error = {0};
        const size_t bytes = (size_t)n_vocab * sizeof(float);
        float *logits = malloc(2 * bytes);
        CHECK(lmi_session_read(session, tokens, N_TOKENS - 10, NULL, &error) == LMI_OK, "%s", error.message);
        memcpy(logits, lmi_session_logits(session, -1), bytes);
        for (int t = N_TOKENS - 10; t < N_TOKENS; t++) {
            CHECK(lmi_session_read(session, tokens + t, 1, NULL, &error) == LMI_OK, "%s", error.message);
        }
        memcpy(logits + n_vocab, lmi_session_logits(session, -1), bytes);
        for (int64_t v = 0; v < 2 * n_vocab; v++) {
            CHECK(isfinite(logits[v]));
        }
        if (first == NULL) {
            first = logits;
        } else {
            CHECK(memcmp(first, logits, 2 * bytes) == 0, "%d threads give other bits than 1", counts[i]);
            free(logits);
        }
        lmi_session_close(session);
        lmi_model_close(model);
    }
    free(first);
}

typedef struct reader {
    lmi_session *session;
    const int32_t *tokens;
    size_t n_read;
    lmi_status status;
    atomic_int done;
} reader;

static void *read_for_long(void *argument) {
    reader *r = argument;
    lmi_error error;
    do {
        r->status = lmi_session_read(r->session, r->tokens, N_TOKENS, &r->n_read, &error);
    } while (r->status == LMI_OK || r->status == LMI_BUSY); /* busy: the other thread is inside its call */
    atomic_store(&r->done, 1);
    return NULL;
}

static void test_cancel_and_busy(void) {
    lmi_model *model = open_model(QUANT_Q8_0, 2);
    lmi_session *session = open_session(model, 40, 16);
    int32_t tokens[N_TOKENS];
    fill_tokens(tokens, vocab_of(model));
    reader r = {.session = session, .tokens = tokens};
    pthread_t thread;
    pthread_create(&thread, NULL, read_for_long, &r);
    lmi_error error;
    int busy = 0;
    for (int i = 0; i < 1000000 && busy < 3; i++) { /* the reader is nearly always inside a call */
        busy += lmi_session_rewind(session, 0, &error) == LMI_BUSY;
    }
    CHECK(busy == 3, "a second thread was never refused");
    lmi_session_cancel(session);
    pthread_join(thread, NULL);
    CHECK(r.status == LMI_CANCELLED, "status %d", (int)r.status);
    const int64_t position = lmi_session_position(session);
    CHECK(lmi_session_read(session, tokens, 1, NULL, &error) == LMI_CANCELLED, "the flag stays until it is cleared");
    lmi_session_clear_cancel(session);
    CHECK(lmi_session_position(session) == position);
    CHECK(lmi_session_read(session, tokens, 1, NULL, &error) == LMI_OK);
    CHECK(lmi_session_position(session) == position + 1);
    lmi_session_close(session);
    lmi_model_close(model);
}

/* After a cancelled chunk the text goes on as if the chunk had never been begun. */
static void test_cancelled_chunk_leaves_nothing(lmi_recall recall) {
    lmi_model *model = open_model(QUANT_Q8_0, 2);
    lmi_session *one = open_recalling(model, 40, 16, recall), *two = open_recalling(model, 40, 16, recall);
    int32_t tokens[N_TOKENS];
    fill_tokens(tokens, vocab_of(model));
    lmi_error error;
    size_t n_read = 99;
    CHECK(lmi_session_read(one, tokens, 160, NULL, &error) == LMI_OK);
    const size_t bytes = (size_t)vocab_of(model) * sizeof(float);
    float *before = malloc(bytes);
    memcpy(before, lmi_session_logits(one, -1), bytes);
    lmi_session_cancel(one);
    CHECK(lmi_session_read(one, tokens + 20, 64, &n_read, &error) == LMI_CANCELLED && n_read == 0);
    CHECK(memcmp(lmi_session_logits(one, -1), before, bytes) == 0, "the logits are those of the last token read");
    free(before);
    lmi_session_clear_cancel(one);
    CHECK(lmi_session_read(two, tokens, 160, NULL, &error) == LMI_OK);
    for (int at = 160; at < 200; at += 10) {
        CHECK(lmi_session_read(one, tokens + at, 10, NULL, &error) == LMI_OK);
        CHECK(lmi_session_read(two, tokens + at, 10, NULL, &error) == LMI_OK);
        CHECK(memcmp(lmi_session_logits(one, -1), lmi_session_logits(two, -1), bytes) == 0, "recall %d, at %d", (int)recall,
              at);
    }
    lmi_session_close(one);
    lmi_session_close(two);
    lmi_model_close(model);
}

static void *read_once(void *argument) {
    reader *r = argument;
    lmi_error error;
    for (size_t done = 0; done < N_TOKENS; done += 25) {
        r->status = lmi_session_read(r->session, r->tokens + done, 25, NULL, &error);
    }
    return NULL;
}

static void test_two_sessions(void) {
    lmi_model *model = open_model(QUANT_Q8_0, 2);
    int32_t tokens[N_TOKENS];
    fill_tokens(tokens, vocab_of(model));
    reader readers[3] = {0};
    pthread_t threads[3];
    for (int i = 0; i < 3; i++) {
        readers[i].session = open_session(model, 40, 16);
        readers[i].tokens = tokens;
    }
    for (int i = 1; i < 3; i++) {
        pthread_create(&threads[i], NULL, read_once, &readers[i]);
    }
    for (int i = 1; i < 3; i++) {
        pthread_join(threads[i], NULL);
    }
    read_once(&readers[0]);
    const size_t bytes = (size_t)vocab_of(model) * sizeof(float);
    for (int i = 1; i < 3; i++) {
        CHECK(readers[i].status == LMI_OK);
        CHECK(memcmp(lmi_session_logits(readers[0].session, -1), lmi_session_logits(readers[i].session, -1), bytes) == 0,
              "a session that ran beside another gives other bits");
    }
    for (int i = 0; i < 3; i++) {
        lmi_session_close(readers[i].session);
    }
    lmi_model_close(model);
}

static void test_arguments(void) {
    lmi_model *model = open_model(QUANT_F32, 1);
    lmi_session *session = open_session(model, 40, 16);
    lmi_error error;
    const int32_t outside[] = {0, (int32_t)vocab_of(model)};
    const int32_t negative[] = {-1};
    CHECK(lmi_session_read(session, outside, 2, NULL, &error) == LMI_INVALID_ARGUMENT);
    CHECK(lmi_session_read(session, negative, 1, NULL, &error) == LMI_INVALID_ARGUMENT);
    CHECK(lmi_session_read(session, negative, 0, NULL, &error) == LMI_INVALID_ARGUMENT);
    CHECK(lmi_session_read(session, NULL, 1, NULL, &error) == LMI_INVALID_ARGUMENT);
    CHECK(lmi_session_position(session) == 0);
    CHECK(lmi_session_logits(session, -1) == NULL && lmi_session_logits(session, 0) == NULL);
    int32_t token;
    CHECK(lmi_session_sample(session, &token, NULL, &error) == LMI_INVALID_ARGUMENT);
    CHECK(lmi_session_rewind(session, 1, &error) == LMI_INVALID_ARGUMENT);
    CHECK(lmi_session_rewind(session, -1, &error) == LMI_INVALID_ARGUMENT);
    CHECK(lmi_session_set_start(session, -5, &error) == LMI_INVALID_ARGUMENT);
    CHECK(lmi_session_set_start(session, INT64_MAX, &error) == LMI_INVALID_ARGUMENT);
    static const int64_t bad[][5] = {
        /* window, sinks, chunk, rollback, kv_type */
        {-1, 0, 0, 0, 0}, {INT64_MIN, 0, 0, 0, 0}, {INT64_MAX, 0, 0, 0, 0}, {8, -2, 0, 0, 0}, {8, INT64_MAX, 0, 0, 0},
        {8, 0, -1, 0, 0}, {8, 0, 1 << 30, 0, 0},   {8, 0, 0, -1, 0},        {8, 0, 0, 0, 7},  {8, 0, 0, 0, -1},
    };
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        lmi_session_options options;
        lmi_session_options_default(&options);
        options.window = bad[i][0];
        options.sinks = bad[i][1];
        options.chunk = bad[i][2];
        options.rollback = bad[i][3];
        options.kv_type = (lmi_kv_type)bad[i][4];
        lmi_plan plan;
        lmi_session *none = (lmi_session *)1;
        CHECK(lmi_session_plan(model, &options, &plan, &error) == LMI_INVALID_ARGUMENT, "case %zu", i);
        CHECK(lmi_session_open(model, &options, &none, &error) == LMI_INVALID_ARGUMENT && none == NULL, "case %zu", i);
    }
    lmi_session_options huge;
    lmi_session_options_default(&huge);
    huge.window = (int64_t)1 << 40;
    lmi_session *none;
    CHECK(lmi_session_open(model, &huge, &none, &error) == LMI_OUT_OF_MEMORY, "%s", error.message);
    CHECK(error.remedy[0] != '\0');
    lmi_session_close(session);
    lmi_model_close(model);
}

int main(void) {
    for (int recall = LMI_RECALL_NONE; recall <= LMI_RECALL_BLOCKS; recall++) {
        test_no_allocations((lmi_recall)recall);
        test_threads_agree(QUANT_Q8_0, (lmi_recall)recall);
        test_cancelled_chunk_leaves_nothing((lmi_recall)recall);
    }
    test_threads_agree(QUANT_Q4_K, LMI_RECALL_NONE);
    test_threads_agree(QUANT_F16, LMI_RECALL_NONE);
    test_cancel_and_busy();
    test_two_sessions();
    test_arguments();
    return check_report();
}
