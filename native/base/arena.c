#include "base/arena.h"

#include <stdlib.h>
#include <string.h>

#include "base/checked.h"

enum { ALIGNMENT = 64, SMALL_BLOCK = 64 * 1024 };

struct arena_block {
    arena_block *next;
    size_t size; /* of the payload */
    size_t used;
    unsigned char *payload;
};

void arena_open(arena *a) { *a = (arena){0}; }

void arena_close(arena *a) {
    arena_block *block = a->blocks;
    while (block != NULL) {
        arena_block *next = block->next;
        free(block);
        block = next;
    }
    *a = (arena){0};
}

static arena_block *add_block(arena *a, size_t size) {
    uint64_t bytes;
    if (!ck_add(size, sizeof(arena_block) + ALIGNMENT, &bytes) || bytes > SIZE_MAX) {
        return NULL;
    }
    /* calloc: the system hands out large zero pages without touching them. */
    arena_block *block = calloc(1, (size_t)bytes);
    if (block == NULL) {
        return NULL;
    }
    uintptr_t payload = (uintptr_t)(block + 1);
    block->payload = (unsigned char *)(block + 1) + (size_t)((ALIGNMENT - payload % ALIGNMENT) % ALIGNMENT);
    block->size = size;
    block->next = a->blocks;
    a->blocks = block;
    a->reserved += bytes;
    return block;
}

void *arena_take(arena *a, size_t size) {
    uint64_t rounded;
    if (a->sealed) {
        a->refused++;
        return NULL;
    }
    if (size == 0 || !ck_align(size, ALIGNMENT, &rounded)) {
        return NULL;
    }
    arena_block *block = a->blocks;
    if (block == NULL || block->size - block->used < rounded) {
        block = add_block(a, rounded < SMALL_BLOCK ? SMALL_BLOCK : (size_t)rounded);
        if (block == NULL) {
            return NULL;
        }
        /* Keep filling the older block if it has more room left than the new one will have. */
        if (block->next != NULL && block->next->size - block->next->used > block->size - (size_t)rounded) {
            arena_block *older = block->next;
            block->next = older->next;
            older->next = block;
            a->blocks = older;
        }
    }
    void *memory = block->payload + block->used;
    block->used += (size_t)rounded;
    return memory;
}

void *arena_take_array(arena *a, size_t n, size_t size) {
    uint64_t bytes;
    if (!ck_mul(n, size, &bytes) || bytes > SIZE_MAX) {
        return NULL;
    }
    return arena_take(a, (size_t)bytes);
}

void arena_seal(arena *a) { a->sealed = true; }
void arena_unseal(arena *a) { a->sealed = false; }
