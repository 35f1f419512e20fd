/* Finds one of many things by its name, and names given twice.
 *
 * Entries are sorted by (hash, name, number) instead of hashed into buckets: names chosen to collide cost the same
 * n log n comparisons as any others, without a secret or a source of random numbers. */
#ifndef LMI_GGUF_NAME_TABLE_H
#define LMI_GGUF_NAME_TABLE_H

#include "base/text.h"

#include <stdint.h>

typedef struct name_entry {
    uint64_t hash;
    uint32_t item;
} name_entry;

typedef struct name_table {
    const void *items; /* [n], `stride` bytes apart; each begins with its text_view name */
    size_t stride;
    size_t n;
    name_entry *entries; /* [n], sorted */
} name_table;

/* false: no memory. The items must stay in place. A zeroed table is empty and need not be closed. */
bool name_table_build(name_table *table, const void *items, size_t n, size_t stride);
void name_table_close(name_table *table);

/* The item with this name, or -1. */
int64_t name_table_find(const name_table *table, text_view name);
/* The first item whose name an earlier item has, or -1. */
int64_t name_table_duplicate(const name_table *table);

#endif
