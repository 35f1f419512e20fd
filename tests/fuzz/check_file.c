#define _GNU_SOURCE
#include "check_file.h"

#include <math.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "../native/gguf_walk.h"
#include "lmi.h"

#define PROMISE(condition)                                                                                                     \
    do {                                                                                                                       \
        if (!(condition)) {                                                                                                    \
            fprintf(stderr, "%s:%d: broken: %s\n", __FILE__, __LINE__, #condition);                                            \
            abort();                                                                                                           \
        }                                                                                                                      \
    } while (0)

/* An error must be one that a user can act on: a status, one line of text. */
static void check_error(lmi_status status, const lmi_error *error) {
    int good = status < 0 && status != LMI_INTERNAL && error->status == status && error->message[0] != '\0';
    for (const char *c = error->message; *c != '\0'; c++) {
        good &= (unsigned char)*c >= 0x20 && *c != 0x7f;
    }
    if (!good) {
        fprintf(stderr, "broken: status %d came with error status %d, message: %s\n", (int)status, (int)error->status,
                error->message);
        abort();
    }
}

static int open_reader(const uint8_t *bytes, size_t size) {
    lmi_error error = {0};
    long broken = 0;
    lmi_status status = walk_copy(bytes, size, &error, &broken);
    PROMISE(broken == 0);
    if (status != LMI_OK) {
        check_error(status, &error);
        PROMISE(error.offset >= 0 && (uint64_t)error.offset <= size);
    }
    return status == LMI_OK;
}

#ifndef LMI_FUZZ_READER_ONLY

enum { TOKENS = 8 };

/* Ids of a short text; without a vocabulary, any ids. */
static size_t make_tokens(const lmi_model *model, const lmi_model_info *info, int32_t tokens[TOKENS]) {
    static const char text[] = "The \xc3\xa9"
                               "end, he said <s>\xff in 1999.";
    lmi_encoder *encoder = NULL;
    lmi_error error = {0};
    size_t n = 0;
    if (lmi_encoder_open(model, 1, &encoder, &error) == LMI_OK) {
        PROMISE(lmi_encoder_feed(encoder, text, sizeof text - 1, &error) == LMI_OK);
        PROMISE(lmi_encoder_finish(encoder, &error) == LMI_OK);
        n = lmi_encoder_take(encoder, tokens, TOKENS);
        PROMISE(n <= TOKENS);
    }
    lmi_encoder_close(encoder);
    for (size_t i = 0; i < n; i++) {
        PROMISE(tokens[i] >= 0 && tokens[i] < info->n_vocab);
    }
    while (n < TOKENS) {
        tokens[n] = (int32_t)((int64_t)n * 37 % info->n_vocab);
        n++;
    }
    return n;
}

static void use_vocabulary(const lmi_model *model, const lmi_model_info *info) {
    lmi_decoder *decoder = NULL;
    lmi_error error = {0};
    char text[64];
    if (lmi_decoder_open(model, 1, &decoder, &error) != LMI_OK) {
        return;
    }
    for (int32_t token = -1; token <= info->n_vocab; token++) {
        size_t size = 0;
        lmi_model_token_text(model, token, token & 1, text, sizeof text);
        (void)lmi_model_is_end_token(model, token);
        lmi_decoder_push(decoder, token, &size);
    }
    lmi_decoder_close(decoder);
}

static int run_session(lmi_model *model) {
    lmi_model_info info;
    lmi_session_options options;
    lmi_session *session = NULL;
    lmi_error error = {0};
    int32_t tokens[TOKENS], next = -1;
    lmi_model_get_info(model, &info);
    PROMISE(info.n_vocab > 0);
    use_vocabulary(model, &info);
    lmi_session_options_default(&options);
    options.window = 6;
    options.sinks = 2;
    options.chunk = 3;
    options.rollback = 2;
    lmi_status status = lmi_session_open(model, &options, &session, &error);
    if (status != LMI_OK) {
        check_error(status, &error);
        return 0;
    }
    size_t n = make_tokens(model, &info, tokens), done = 0;
    status = lmi_session_read(session, tokens, n, &done, &error);
    if (status != LMI_OK) {
        check_error(status, &error);
    } else {
        const float *logits = lmi_session_logits(session, -1);
        PROMISE(done == n && logits != NULL && lmi_session_hot_allocations(session) == 0);
        int64_t usable = 0; /* weights may be NaN, so logits may be: but all are there */
        for (int64_t i = 0; i < info.n_vocab; i++) {
            usable += logits[i] > -INFINITY;
        }
        float logprob = 0.0f;
        status = lmi_session_sample(session, &next, &logprob, &error);
        PROMISE((status == LMI_OK) == (usable > 0));
        PROMISE(status != LMI_OK || (next >= 0 && next < info.n_vocab));
        PROMISE(status == LMI_OK || (error.status == status && error.message[0] != '\0'));
    }
    lmi_session_close(session);
    return status == LMI_OK;
}

static int run_model(const uint8_t *bytes, size_t size) {
    lmi_model *model = NULL;
    lmi_error error = {0};
    lmi_model_options options;
    char path[64];
    int fd = memfd_create("mutated", MFD_CLOEXEC), ran = 0;
    PROMISE(fd >= 0);
    for (size_t done = 0; done < size;) {
        ssize_t n = write(fd, bytes + done, size - done);
        PROMISE(n > 0);
        done += (size_t)n;
    }
    snprintf(path, sizeof path, "/proc/self/fd/%d", fd);
    lmi_model_options_default(&options);
    options.n_threads = 1;
    options.device = LMI_DEVICE_CPU;
    options.no_map = size % 2 == 0; /* read into memory, an over-read is seen at once; both ways are used */
    lmi_status status = lmi_model_open(path, &options, &model, &error);
    if (status == LMI_OK) {
        ran = run_session(model);
    } else {
        check_error(status, &error);
        PROMISE(model == NULL);
    }
    lmi_model_close(model);
    close(fd);
    return ran;
}

#else

static int run_model(const uint8_t *bytes, size_t size) {
    (void)bytes;
    return size > 0;
}

#endif

file_verdict check_file(const uint8_t *bytes, size_t size) {
    if (!open_reader(bytes, size)) {
        return FILE_REFUSED;
    }
    return run_model(bytes, size) ? FILE_RAN : FILE_MODEL_REFUSED;
}
