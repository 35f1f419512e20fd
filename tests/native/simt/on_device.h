/* What the tests of kernels share: a stream, memory on the device, weights in planes. */
#ifndef LMI_TESTS_ON_DEVICE_H
#define LMI_TESTS_ON_DEVICE_H

#include "../check.h"

#include <algorithm>
#include <vector>

#include "cuda/launch.h"

static device_stream *stream;

static inline void finish() {
    lmi_error error;
    CHECK(device_check(stream, &error) == LMI_OK, "%s", error.message);
}

/* Device memory, which is host memory here, that frees itself; with a guard behind. */
template <typename T> struct buffer {
    T *at = nullptr;
    size_t n;
    explicit buffer(size_t size) : n(size) {
        CHECK(device_alloc(stream, (n + 1) * sizeof(T), (void **)&at, nullptr) == LMI_OK);
        memset((void *)(at + n), 0x5a, sizeof(T));
    }
    explicit buffer(const std::vector<T> &from) : buffer(from.size()) { std::copy(from.begin(), from.end(), at); }
    buffer(const buffer &) = delete;
    buffer &operator=(const buffer &) = delete;
    ~buffer() {
        T guard;
        memset((void *)&guard, 0x5a, sizeof guard);
        CHECK(memcmp((void *)(at + n), (void *)&guard, sizeof guard) == 0, "written beyond the end");
        device_free(stream, at);
    }
    T &operator[](size_t i) { return at[i]; }
};

/* Blocks of a tensor as the file has them, into its planes. */
static inline void fill_planes(const quant_info *info, const std::vector<uint8_t> &file, uint8_t *planes) {
    const plane_layout *layout = plane_layout_of(info->type);
    const uint64_t n_blocks = file.size() / info->block_bytes;
    std::vector<uint8_t> part(file.size());
    planes_split(layout, file.data(), n_blocks, part.data());
    const uint8_t *from = part.data();
    for (int p = 0; p < layout->n; p++) {
        const size_t bytes = (size_t)n_blocks * layout->plane[p].bytes;
        std::copy(from, from + bytes, planes + plane_offset(layout, n_blocks, p));
        from += bytes;
    }
}

static inline void point_at_planes(const quant_info *info, uint64_t n_blocks, const uint8_t *planes, cuda_weight *w) {
    const plane_layout *layout = plane_layout_of(info->type);
    for (int p = 0; p < layout->n; p++) {
        w->plane[p] = planes + plane_offset(layout, n_blocks, p);
    }
}

#endif
