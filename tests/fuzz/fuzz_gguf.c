/* The reader alone: any bytes are refused with an error, or opened and every promise of gguf.h holds. */
#include "../native/gguf_walk.h"
#include "gguf_mutator.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);
size_t LLVMFuzzerCustomMutator(uint8_t *data, size_t size, size_t max_size, unsigned seed);
size_t LLVMFuzzerMutate(uint8_t *data, size_t size, size_t max_size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    lmi_error error = {0};
    gguf *file = NULL;
    uint64_t sum = 0;
    lmi_status status = gguf_open(data, size, &file, &error);
    if (status == LMI_OK) {
        if (gguf_walk(file, &sum) != 0) {
            __builtin_trap();
        }
    } else if (file != NULL || error.status != status || error.message[0] == '\0' || error.offset < 0 ||
               (uint64_t)error.offset > size) {
        __builtin_trap();
    }
    gguf_close(file);
    return 0;
}

size_t LLVMFuzzerCustomMutator(uint8_t *data, size_t size, size_t max_size, unsigned seed) {
    uint64_t rng = seed;
    return mutator_below(&rng, 4) == 0 ? LLVMFuzzerMutate(data, size, max_size)
                                       : mutate_gguf(data, size, max_size, NULL, 0, &rng);
}
