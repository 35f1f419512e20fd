/* Memory runs out at every allocation of the tokenizer in turn, once and for good: an error, no leak, and the next call works. */
#include "check.h"
#include "faults.h"
#include "gguf_builder.h"
#include "tokenizer/tokenizer.h"

/* Everything that takes memory: opening, a word, a long run (heap), special tokens, text out. */
static lmi_status use(const gguf *file, const char *text, size_t size, size_t *n_tokens, lmi_error *error) {
    tokenizer *t = NULL;
    encoder *e = NULL;
    decoder *d = NULL;
    int32_t tokens[256];
    size_t n, length;
    *n_tokens = 0;
    lmi_status status = tokenizer_open(file, &t, error);
    if (status == LMI_OK) {
        status = encoder_open(t, true, &e, error);
    }
    if (status == LMI_OK) {
        status = decoder_open(t, true, &d, error);
    }
    for (size_t at = 0; at < size && status == LMI_OK; at += 4096) {
        status = encoder_feed(e, text + at, size - at < 4096 ? size - at : 4096, error);
    }
    if (status == LMI_OK) {
        status = encoder_finish(e, error);
    }
    while (status == LMI_OK && (n = encoder_take(e, tokens, 256)) > 0) {
        *n_tokens += n;
        for (size_t i = 0; i < n; i++) {
            decoder_push(d, tokens[i], &length);
        }
    }
    if (e != NULL && status != LMI_OK) { /* an encoder that failed starts anew */
        long calls = faults_end();
        CHECK(encoder_feed(e, "the", 3, NULL) == LMI_OK && encoder_finish(e, NULL) == LMI_OK);
        CHECK(encoder_take(e, tokens, 256) > 0);
        fault_calls = calls;
    }
    decoder_close(d);
    encoder_close(e);
    tokenizer_close(t);
    return status;
}

static void test_each_allocation(int bpe, const char *text, size_t size) {
    builder b = {0};
    gguf *file;
    build_begin(&b, 3);
    bpe ? build_bpe(&b) : build_spm(&b);
    CHECK(gguf_open(b.bytes, b.size, &file, NULL) == LMI_OK);
    size_t expected, n;
    CHECK(use(file, text, size, &expected, NULL) == LMI_OK && expected > 0);
    for (int kind = FAULT_ONCE; kind <= FAULT_FROM_THEN_ON; kind++) {
        long failures = 0;
        for (long k = 1;; k++) {
            lmi_error error = {0};
            faults_begin(k, (fault_mode)kind);
            lmi_status status = use(file, text, size, &n, &error);
            long calls = faults_end();
            if (calls < k) {
                CHECK(status == LMI_OK && n == expected, "%s", error.message);
                break;
            }
            failures++;
            CHECK(status == LMI_OUT_OF_MEMORY && error.status == status, "allocation %ld: status %d", k, (int)status);
            CHECK(error.message[0] != '\0', "allocation %ld", k);
            CHECK(use(file, text, size, &n, &error) == LMI_OK && n == expected, "after allocation %ld: %s", k, error.message);
        }
        CHECK(failures >= 12, "only %ld allocations were seen", failures);
    }
    gguf_close(file);
    build_free(&b);
}

/* Tokens cost no memory once there is enough of it: a text that is read in parts allocates nothing after the first. */
static void test_steady_state(int bpe) {
    builder b = {0};
    gguf *file;
    tokenizer *t;
    encoder *e;
    decoder *d;
    int32_t tokens[4096];
    build_begin(&b, 3);
    bpe ? build_bpe(&b) : build_spm(&b);
    CHECK(gguf_open(b.bytes, b.size, &file, NULL) == LMI_OK && tokenizer_open(file, &t, NULL) == LMI_OK);
    CHECK(encoder_open(t, true, &e, NULL) == LMI_OK && decoder_open(t, false, &d, NULL) == LMI_OK);
    char text[2000];
    for (size_t i = 0; i < sizeof text; i++) {
        text[i] = "the other one, in the rain. "[i % 28];
    }
    for (int round = 0; round < 100; round++) {
        if (round == 2) {
            faults_begin(0, FAULT_ONCE);
        }
        CHECK(encoder_feed(e, text, sizeof text, NULL) == LMI_OK);
        size_t length;
        for (size_t n; (n = encoder_take(e, tokens, 4096)) > 0;) {
            for (size_t i = 0; i < n; i++) {
                decoder_push(d, tokens[i], &length);
            }
        }
    }
    long calls = faults_end();
    CHECK(calls == 0, "%ld allocations", calls);
    decoder_close(d);
    encoder_close(e);
    tokenizer_close(t);
    gguf_close(file);
    build_free(&b);
}

int main(void) {
    char text[6000];
    for (size_t i = 0; i < sizeof text; i++) {
        text[i] = i < 100 ? "the <s> tin\xe2\x98\x83"[i % 14] : i < 5000 ? 'e' : "th"[i & 1];
    }
    for (int bpe = 0; bpe < 2; bpe++) {
        test_each_allocation(bpe, text, sizeof text);
        test_steady_state(bpe);
    }
    return check_report();
}
