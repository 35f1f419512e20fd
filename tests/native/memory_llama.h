/* A small llama that lives in memory, opened on the CPU. memfd_create wants _GNU_SOURCE to be defined before all includes. */
#ifndef LMI_TEST_MEMORY_LLAMA_H
#define LMI_TEST_MEMORY_LLAMA_H

#include <sys/mman.h>
#include <unistd.h>

#include "check.h"
#include "gguf_builder.h"

static lmi_model *open_model(quant_type type, int n_threads) {
    builder b = {0};
    build_llama(&b, type, BUILD_SPM);
    const int fd = memfd_create("model", MFD_CLOEXEC);
    size_t written = 0;
    while (fd >= 0 && written < b.size) {
        const ssize_t n = write(fd, b.bytes + written, b.size - written);
        if (n <= 0) {
            break;
        }
        written += (size_t)n;
    }
    build_free(&b);
    char path[64];
    snprintf(path, sizeof path, "/proc/self/fd/%d", fd);
    lmi_model_options options;
    lmi_model_options_default(&options);
    options.n_threads = n_threads;
    options.device = LMI_DEVICE_CPU;
    lmi_model *model = NULL;
    lmi_error error = {0};
    CHECK(lmi_model_open(path, &options, &model, &error) == LMI_OK, "%s | %s", error.message, error.remedy);
    close(fd);
    return model;
}

#endif
