#include "gguf/name_table.h"

#include <stdlib.h>

static text_view name_of(const name_table *t, uint32_t item) {
    return *(const text_view *)(const void *)((const char *)t->items + item * t->stride);
}

/* Eight bytes at a time: multiply and fold. It need not withstand an adversary (see the header), only be quick. */
static uint64_t hash_of(text_view name) {
    uint64_t hash = name.size * UINT64_C(0x9e3779b97f4a7c15);
    for (size_t i = 0; i < name.size; i += 8) {
        uint64_t word = 0;
        memcpy(&word, name.data + i, name.size - i < 8 ? name.size - i : 8);
        hash = (hash ^ word) * UINT64_C(0xd6e8feb86659fd93);
        hash ^= hash >> 32;
    }
    return hash;
}

static int compare_names(text_view a, text_view b) {
    if (a.size != b.size) {
        return a.size < b.size ? -1 : 1;
    }
    return a.size == 0 ? 0 : memcmp(a.data, b.data, a.size);
}

static bool comes_before(const name_table *t, name_entry a, name_entry b) {
    if (a.hash != b.hash) {
        return a.hash < b.hash;
    }
    int order = compare_names(name_of(t, a.item), name_of(t, b.item));
    return order != 0 ? order < 0 : a.item < b.item;
}

/* Restores the heap below `root` after its entry changed. */
static void sift_down(name_table *t, size_t root, size_t n) {
    name_entry moved = t->entries[root];
    for (size_t child = 2 * root + 1; child < n; child = 2 * root + 1) {
        if (child + 1 < n && comes_before(t, t->entries[child], t->entries[child + 1])) {
            child++;
        }
        if (!comes_before(t, moved, t->entries[child])) {
            break;
        }
        t->entries[root] = t->entries[child];
        root = child;
    }
    t->entries[root] = moved;
}

/* Heapsort: in place, and n log n whatever the input. */
static void sort_entries(name_table *t) {
    for (size_t root = t->n / 2; root-- > 0;) {
        sift_down(t, root, t->n);
    }
    for (size_t n = t->n; n-- > 1;) {
        name_entry last = t->entries[n];
        t->entries[n] = t->entries[0];
        t->entries[0] = last;
        sift_down(t, 0, n);
    }
}

bool name_table_build(name_table *t, const void *items, size_t n, size_t stride) {
    *t = (name_table){.items = items, .stride = stride, .n = n};
    if (n == 0) {
        return true;
    }
    t->entries = calloc(n, sizeof *t->entries);
    if (t->entries == NULL) {
        t->n = 0;
        return false;
    }
    for (size_t i = 0; i < n; i++) {
        t->entries[i] = (name_entry){hash_of(name_of(t, (uint32_t)i)), (uint32_t)i};
    }
    sort_entries(t);
    return true;
}

void name_table_close(name_table *t) {
    free(t->entries);
    *t = (name_table){0};
}

int64_t name_table_find(const name_table *t, text_view name) {
    uint64_t hash = hash_of(name);
    size_t low = 0, high = t->n;
    while (low < high) { /* the first entry that does not come before (hash, name) */
        size_t middle = low + (high - low) / 2;
        const name_entry *entry = &t->entries[middle];
        if (entry->hash < hash || (entry->hash == hash && compare_names(name_of(t, entry->item), name) < 0)) {
            low = middle + 1;
        } else {
            high = middle;
        }
    }
    return low < t->n && text_equal(name_of(t, t->entries[low].item), name) ? (int64_t)t->entries[low].item : -1;
}

int64_t name_table_duplicate(const name_table *t) {
    int64_t first = -1;
    for (size_t i = 1; i < t->n; i++) {
        const name_entry *a = &t->entries[i - 1], *b = &t->entries[i];
        if (a->hash == b->hash && text_equal(name_of(t, a->item), name_of(t, b->item)) && (first < 0 || b->item < first)) {
            first = b->item;
        }
    }
    return first;
}
