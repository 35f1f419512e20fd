/* Memory runs out at every allocation, in turn, of a whole run: a model is opened, a text encoded, tokens read, sampled and
 * decoded, the state written and read back. Each time the answer must be LMI_OUT_OF_MEMORY, nothing may leak (under
 * AddressSanitizer), and the next run without a fault must succeed. */
#define _GNU_SOURCE
#include <sys/mman.h>
#include <unistd.h>

#include "check.h"
#include "faults.h"
#include "gguf_builder.h"
#include "lmi.h"

typedef struct run {
    lmi_model *model;
    lmi_session *session;
    lmi_encoder *encoder;
    lmi_decoder *decoder;
    lmi_error error;
} run;

static lmi_status open_all(run *r, const char *path) {
    lmi_model_options options;
    lmi_session_options session;
    lmi_model_options_default(&options);
    options.n_threads = 1; /* allocations of other threads would have no fixed number */
    options.device = LMI_DEVICE_CPU;
    lmi_session_options_default(&session);
    session.window = 6;
    session.sinks = 2;
    session.chunk = 3;
    session.rollback = 2;
    lmi_status status = lmi_model_open(path, &options, &r->model, &r->error);
    if (status == LMI_OK) {
        status = lmi_session_open(r->model, &session, &r->session, &r->error);
    }
    if (status == LMI_OK) {
        status = lmi_encoder_open(r->model, 1, &r->encoder, &r->error);
    }
    return status == LMI_OK ? lmi_decoder_open(r->model, 1, &r->decoder, &r->error) : status;
}

static lmi_status use_all(run *r) {
    static const char text[] = "The end of the story, he said.\n\n    in 1999 \xc3\xa9\xf0\x9f\x98\x80";
    int32_t tokens[64], next = 0;
    float logprob;
    size_t n = 0, done = 0, size = 0;
    lmi_status status = LMI_OK;
    for (int i = 0; i < 40 && status == LMI_OK; i++) { /* long enough that what is held must grow */
        status = lmi_encoder_feed(r->encoder, text, sizeof text - 1, &r->error);
    }
    if (status == LMI_OK) {
        status = lmi_encoder_finish(r->encoder, &r->error);
    }
    if (status != LMI_OK) {
        return status;
    }
    n = lmi_encoder_take(r->encoder, tokens, 64);
    long before = fault_calls;
    status = lmi_session_read(r->session, tokens, n, &done, &r->error);
    if (status == LMI_OK) {
        status = lmi_session_sample(r->session, &next, &logprob, &r->error);
    }
    for (size_t i = 0; i < n && status == LMI_OK; i++) {
        CHECK(lmi_decoder_push(r->decoder, tokens[i], &size) != NULL, "token %zu", i);
    }
    CHECK(fault_calls == before, "%ld allocations while tokens were read and written", fault_calls - before);
    return status;
}

static void close_all(run *r) {
    lmi_decoder_close(r->decoder);
    lmi_encoder_close(r->encoder);
    lmi_session_close(r->session);
    lmi_model_close(r->model);
    *r = (run){0};
}

static lmi_status run_once(const char *path, run *r) {
    lmi_status status = open_all(r, path);
    if (status == LMI_OK) {
        status = use_all(r);
    }
    close_all(r);
    return status;
}

static void test_run(const builder *b, const char *name) {
    char path[64];
    int fd = memfd_create(name, 0);
    CHECK(fd >= 0 && write(fd, b->bytes, b->size) == (ssize_t)b->size, "%s", name);
    snprintf(path, sizeof path, "/proc/self/fd/%d", fd);
    for (int kind = FAULT_ONCE; kind <= FAULT_FROM_THEN_ON; kind++) {
        long faults = 0;
        for (long k = 1; k < 100000; k++) {
            run r = {0};
            faults_begin(k, (fault_mode)kind);
            lmi_status status = open_all(&r, path);
            status = status == LMI_OK ? use_all(&r) : status;
            long calls = faults_end();
            lmi_error error = r.error;
            close_all(&r);
            if (calls < k) {
                CHECK(status == LMI_OK, "%s: %s", name, error.message);
                break;
            }
            faults++;
            CHECK(status == LMI_OUT_OF_MEMORY && error.status == status && error.message[0] != '\0',
                  "%s: allocation %ld: status %d, %s", name, k, (int)status, error.message);
            CHECK(run_once(path, &r) == LMI_OK, "%s: after allocation %ld: %s", name, k, r.error.message);
        }
        CHECK(faults > 10 && faults < 99999, "%s: %ld allocations", name, faults);
    }
    close(fd);
}

int main(void) {
    builder b = {0};
    build_llama(&b, QUANT_Q8_0, BUILD_SPM);
    test_run(&b, "spm");
    build_free(&b);
    build_llama(&b, QUANT_Q4_0, BUILD_BPE);
    test_run(&b, "bpe");
    build_free(&b);
    return check_report();
}
