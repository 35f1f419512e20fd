/* Reading and nothing else: how fast the device gives the weights at all, the limit of writing one token after the other. */
#include "cuda/launch.h"
#include "cuda/primitives.cuh"

namespace {

enum { THREADS = 256, BLOCKS_EACH = 8, LOADS = 4 };

/* Every block reads every gridDim-th stretch of THREADS * LOADS 16-byte words; sums keep the loads from being left out. */
__global__ void __launch_bounds__(THREADS) read_all(const uint8_t *bytes, uint64_t n_words, uint32_t *sums) {
    wait_for_previous();
    const uint64_t stretch = (uint64_t)THREADS * LOADS, step = (uint64_t)gridDim.x * stretch;
    uint32_t sum = 0;
    for (uint64_t at = blockIdx.x * stretch + threadIdx.x; at < n_words; at += step) {
        uint4 words[LOADS];
#pragma unroll
        for (int i = 0; i < LOADS; i++) {
            const uint64_t word = at + (uint64_t)i * THREADS;
            words[i] = load_16_once(bytes + (word < n_words ? word : at) * 16);
        }
#pragma unroll
        for (int i = 0; i < LOADS; i++) {
            sum += words[i].x ^ words[i].y ^ words[i].z ^ words[i].w;
        }
    }
    sums[blockIdx.x * THREADS + threadIdx.x] = sum;
}

unsigned n_blocks(const device_stream *stream) { return (unsigned)device_stream_info(stream)->n_multiprocessors * BLOCKS_EACH; }

} // namespace

uint64_t cuda_read_bytes(const device_stream *stream) { return (uint64_t)n_blocks(stream) * THREADS * sizeof(uint32_t); }

void cuda_launch_read(const void *bytes, uint64_t n, void *work, device_stream *stream) {
    LAUNCH(stream, (read_all), dim3(n_blocks(stream)), dim3(THREADS), 0, (const uint8_t *)bytes, n / 16, (uint32_t *)work);
}
