/* A whole model from any bytes: opened, its vocabulary used, eight tokens read and one sampled. */
#include "check_file.h"
#include "gguf_mutator.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);
size_t LLVMFuzzerCustomMutator(uint8_t *data, size_t size, size_t max_size, unsigned seed);
size_t LLVMFuzzerMutate(uint8_t *data, size_t size, size_t max_size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    (void)check_file(data, size);
    return 0;
}

size_t LLVMFuzzerCustomMutator(uint8_t *data, size_t size, size_t max_size, unsigned seed) {
    uint64_t rng = seed;
    return mutator_below(&rng, 8) == 0 ? LLVMFuzzerMutate(data, size, max_size)
                                       : mutate_gguf(data, size, max_size, NULL, 0, &rng);
}
