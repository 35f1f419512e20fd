/* Memory that is taken when something opens and given back, all at once, when it closes.
 *
 * A sealed arena is the allocation guard: while tokens are read or written it refuses, and counts, every request. */
#ifndef LMI_BASE_ARENA_H
#define LMI_BASE_ARENA_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

typedef struct arena_block arena_block;

typedef struct arena {
    arena_block *blocks;
    uint64_t reserved; /* bytes taken from the system */
    int64_t refused;   /* requests while sealed */
    bool sealed;
} arena;

void arena_open(arena *a); /* an empty arena holds nothing and need not be closed */
void arena_close(arena *a);

/* Zeroed, 64-byte aligned; NULL if there is no memory, size is 0 or the arena is sealed. */
void *arena_take(arena *a, size_t size);
/* The same for n items; NULL also if n * size overflows. */
void *arena_take_array(arena *a, size_t n, size_t size);

void arena_seal(arena *a);
void arena_unseal(arena *a);

#endif
