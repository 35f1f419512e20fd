/* Memory that ends at an unreadable page: what reads or writes beyond its arrays crashes. Define _GNU_SOURCE first. */
#ifndef LMI_TESTS_FENCE_H
#define LMI_TESTS_FENCE_H

#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <unistd.h>

typedef struct fence {
    char *base;
    size_t size; /* readable bytes */
} fence;

static inline fence fence_new(size_t size) {
    size_t page = (size_t)sysconf(_SC_PAGESIZE);
    fence f = {NULL, (size + page - 1) / page * page};
    void *base = mmap(NULL, f.size + page, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (base == MAP_FAILED || mprotect((char *)base + f.size, page, PROT_NONE) != 0) {
        perror("mmap");
        exit(2);
    }
    f.base = base;
    return f;
}

static inline void *fence_last(const fence *f, size_t size) { return f->base + f->size - size; }

static inline void fence_free(fence *f) { munmap(f->base, f->size + (size_t)sysconf(_SC_PAGESIZE)); }

#endif
