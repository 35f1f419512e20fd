#include "cuda/planes.h"

#include <string.h>

#include "quant/blocks.h"

#define FIELD(BLOCK, FIRST, BYTES) {(uint16_t)offsetof(BLOCK, FIRST), BYTES}

/* Quants first. Fields that lie side by side in the block and are multiples of 16 bytes share a plane where there are too many
 * fields: the hmask and qs of Q3_K, the ql and qh of Q6_K. Every field stays aligned to what it is read by. */
static const plane_layout layouts[QUANT_TYPE_END] = {
    [QUANT_F32] = {1, {{0, 4}}},
    [QUANT_F16] = {1, {{0, 2}}},
    [QUANT_BF16] = {1, {{0, 2}}},
    [QUANT_Q4_0] = {2, {FIELD(block_q4_0, qs, 16), FIELD(block_q4_0, d, 2)}},
    [QUANT_Q4_1] = {2, {FIELD(block_q4_1, qs, 16), FIELD(block_q4_1, d, 4)}},
    [QUANT_Q5_0] = {3, {FIELD(block_q5_0, qs, 16), FIELD(block_q5_0, qh, 4), FIELD(block_q5_0, d, 2)}},
    [QUANT_Q5_1] = {2, {FIELD(block_q5_1, qs, 16), FIELD(block_q5_1, d, 8)}},
    [QUANT_Q8_0] = {2, {FIELD(block_q8_0, qs, 32), FIELD(block_q8_0, d, 2)}},
    [QUANT_Q2_K] = {3, {FIELD(block_q2_K, qs, 64), FIELD(block_q2_K, scales, 16), FIELD(block_q2_K, d, 4)}},
    [QUANT_Q3_K] = {3, {FIELD(block_q3_K, hmask, 96), FIELD(block_q3_K, scales, 12), FIELD(block_q3_K, d, 2)}},
    [QUANT_Q4_K] = {2, {FIELD(block_q4_K, qs, 128), FIELD(block_q4_K, d, 16)}},
    [QUANT_Q5_K] = {3, {FIELD(block_q5_K, qs, 128), FIELD(block_q5_K, qh, 32), FIELD(block_q5_K, d, 16)}},
    [QUANT_Q6_K] = {3, {FIELD(block_q6_K, ql, 192), FIELD(block_q6_K, scales, 16), FIELD(block_q6_K, d, 2)}},
    [QUANT_IQ4_NL] = {2, {FIELD(block_iq4_nl, qs, 16), FIELD(block_iq4_nl, d, 2)}},
    [QUANT_IQ4_XS] = {2, {FIELD(block_iq4_xs, qs, 128), FIELD(block_iq4_xs, d, 8)}},
    [QUANT_MXFP4] = {2, {FIELD(block_mxfp4, qs, 16), FIELD(block_mxfp4, e, 1)}},
};

const plane_layout *plane_layout_of(quant_type type) {
    return (uint32_t)type < QUANT_TYPE_END && layouts[type].n > 0 ? &layouts[type] : NULL;
}

uint64_t plane_offset(const plane_layout *layout, uint64_t n_blocks, int p) {
    uint64_t at = 0;
    for (int i = 0; i < p; i++) {
        at += (n_blocks * layout->plane[i].bytes + PLANE_ALIGN - 1) / PLANE_ALIGN * PLANE_ALIGN;
    }
    return at;
}

/* n fields of `bytes`, so far apart on either side. */
static inline void copy_of(size_t bytes, uint8_t *to, size_t to_apart, const uint8_t *from, size_t from_apart, uint64_t n) {
    for (uint64_t i = 0; i < n; i++) {
        memcpy(to + i * to_apart, from + i * from_apart, bytes);
    }
}

/* With the size a constant of the loop, a copy is a few instructions instead of a call: a model has 10^8 blocks. */
static void copy_fields(size_t bytes, uint8_t *to, size_t to_apart, const uint8_t *from, size_t from_apart, uint64_t n) {
    switch (bytes) {
    case 1:
        copy_of(1, to, to_apart, from, from_apart, n);
        break;
    case 2:
        copy_of(2, to, to_apart, from, from_apart, n);
        break;
    case 4:
        copy_of(4, to, to_apart, from, from_apart, n);
        break;
    case 8:
        copy_of(8, to, to_apart, from, from_apart, n);
        break;
    case 12:
        copy_of(12, to, to_apart, from, from_apart, n);
        break;
    case 16:
        copy_of(16, to, to_apart, from, from_apart, n);
        break;
    case 32:
        copy_of(32, to, to_apart, from, from_apart, n);
        break;
    default:
        copy_of(bytes, to, to_apart, from, from_apart, n);
        break;
    }
}

static size_t block_bytes_of(const plane_layout *layout) {
    size_t bytes = 0;
    for (int p = 0; p < layout->n; p++) {
        bytes += layout->plane[p].bytes;
    }
    return bytes;
}

void planes_split(const plane_layout *layout, const void *blocks, uint64_t n, void *part) {
    const size_t block_bytes = block_bytes_of(layout);
    uint8_t *plane = part;
    if (layout->n == 1) {
        memcpy(plane, blocks, (size_t)n * block_bytes);
        return;
    }
    for (int p = 0; p < layout->n; p++) {
        const size_t bytes = layout->plane[p].bytes;
        copy_fields(bytes, plane, bytes, (const uint8_t *)blocks + layout->plane[p].offset, block_bytes, n);
        plane += n * bytes;
    }
}
