/* Weights in planes: the layouts cover every byte of a block once, splitting is exact and can be undone, and pieces of a tensor
 * that are split one by one give the planes of the whole. */
#include "../check.h"
#include "cuda/planes.h"

enum { GUARD = 64 };

static uint8_t *allocate(uint64_t size) {
    uint8_t *memory = malloc((size_t)size + GUARD);
    if (memory == NULL) {
        exit(2);
    }
    memset(memory, 0xa5, (size_t)size + GUARD);
    return memory;
}

static int guarded(const uint8_t *memory, uint64_t size) {
    for (int i = 0; i < GUARD; i++) {
        if (memory[size + (uint64_t)i] != 0xa5) {
            return 0;
        }
    }
    return 1;
}

static void test_layouts(void) {
    for (uint32_t type = 0; type < QUANT_TYPE_END + 3; type++) {
        const quant_info *info = quant_find(type);
        const plane_layout *layout = plane_layout_of((quant_type)type);
        CHECK((info == NULL) == (layout == NULL), "type %u", type);
        if (info == NULL || layout == NULL) {
            continue;
        }
        uint8_t covered[256] = {0};
        CHECK(layout->n >= 1 && layout->n <= MAX_PLANES, "%s", info->name);
        for (int p = 0; p < layout->n; p++) {
            for (int i = 0; i < layout->plane[p].bytes; i++) {
                covered[layout->plane[p].offset + i]++;
            }
        }
        for (uint32_t i = 0; i < sizeof covered; i++) {
            CHECK(covered[i] == (i < info->block_bytes), "%s byte %u: %d times", info->name, i, covered[i]);
        }
        CHECK(info->block_values == 1 || layout->plane[0].bytes % 16 == 0, "%s: quants are read 16 bytes at a time",
              info->name);
        for (uint64_t n = 0; n < 1000; n += n / 3 + 1) {
            uint64_t end = 0;
            for (int p = 0; p <= layout->n; p++) {
                const uint64_t at = plane_offset(layout, n, p);
                CHECK(at % PLANE_ALIGN == 0 && at >= end && at - end < PLANE_ALIGN, "%s plane %d", info->name, p);
                end = at + (p < layout->n ? n * layout->plane[p].bytes : 0);
            }
        }
        const uint64_t many = UINT64_C(4000000) * 32768; /* more than 2^32 blocks */
        CHECK(plane_offset(layout, many, layout->n) == many * info->block_bytes, "%s", info->name);
    }
}

/* Undoes planes_split. */
static void join(const plane_layout *layout, const uint8_t *part, uint64_t n, uint8_t *blocks, uint64_t block_bytes) {
    for (int p = 0; p < layout->n; p++) {
        for (uint64_t i = 0; i < n; i++, part += layout->plane[p].bytes) {
            memcpy(blocks + i * block_bytes + layout->plane[p].offset, part, layout->plane[p].bytes);
        }
    }
}

static void test_round_trip(const quant_info *info, uint64_t n, uint64_t piece, uint64_t *seed) {
    const plane_layout *layout = plane_layout_of(info->type);
    const uint64_t size = n * info->block_bytes, whole = plane_offset(layout, n, layout->n);
    uint8_t *blocks = allocate(size), *back = allocate(size), *part = allocate(size), *tensor = allocate(whole);
    for (uint64_t i = 0; i < size; i++) {
        blocks[i] = (uint8_t)check_random(seed);
    }
    for (uint64_t b = 0; b < n; b += piece) {
        const uint64_t m = n - b < piece ? n - b : piece;
        planes_split(layout, blocks + b * info->block_bytes, m, part);
        const uint8_t *from = part;
        for (int p = 0; p < layout->n; p++) {
            const uint64_t bytes = layout->plane[p].bytes;
            memcpy(tensor + plane_offset(layout, n, p) + b * bytes, from, (size_t)(m * bytes));
            from += m * bytes;
        }
        join(layout, part, m, back + b * info->block_bytes, info->block_bytes);
    }
    CHECK(memcmp(blocks, back, (size_t)size) == 0, "%s: %lu blocks in pieces of %lu", info->name, (unsigned long)n,
          (unsigned long)piece);
    int right = 1;
    for (uint64_t b = 0; b < n; b++) {
        for (int p = 0; p < layout->n; p++) {
            const uint64_t bytes = layout->plane[p].bytes;
            right &= memcmp(tensor + plane_offset(layout, n, p) + b * bytes,
                            blocks + b * info->block_bytes + layout->plane[p].offset, (size_t)bytes) == 0;
        }
    }
    CHECK(right, "%s: fields are not where planes.h says", info->name);
    CHECK(guarded(part, size) && guarded(back, size) && guarded(tensor, whole), "%s: written behind the end", info->name);
    free(blocks);
    free(back);
    free(part);
    free(tensor);
}

int main(void) {
    uint64_t seed = 1;
    test_layouts();
    for (uint32_t type = 0; type < QUANT_TYPE_END; type++) {
        static const uint64_t counts[] = {0, 1, 2, 3, 7, 16, 33, 257};
        for (size_t i = 0; quant_find(type) != NULL && i < sizeof counts / sizeof *counts; i++) {
            test_round_trip(quant_find(type), counts[i], counts[i] + 1, &seed);
            test_round_trip(quant_find(type), counts[i], 5, &seed);
        }
    }
    return check_report();
}
