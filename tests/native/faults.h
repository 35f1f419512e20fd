/* Memory that runs out when told to. Programs named test_*_faults.c are linked so that malloc, calloc, realloc and
 * aligned_alloc of the whole library come here (see CMakeLists.txt).
 *
 *     faults_begin(k, FAULT_ONCE);   the k-th allocation from now on fails (k >= 1; 0: none does)
 *     ... call the library ...
 *     long n = faults_end();         allocations attempted; more than k: the fault did happen
 *
 * Only for tests of one thread at a time. */
#ifndef LMI_TESTS_FAULTS_H
#define LMI_TESTS_FAULTS_H

#include <stdint.h>
#include <stdlib.h>

typedef enum fault_mode { FAULT_ONCE, FAULT_FROM_THEN_ON } fault_mode;

static long fault_calls, fault_at;
static fault_mode fault_kind;
static uint64_t fault_bytes; /* asked for, in all */
static int fault_armed;

void *__real_malloc(size_t size);
void *__real_calloc(size_t n, size_t size);
void *__real_realloc(void *old, size_t size);
void *__real_aligned_alloc(size_t alignment, size_t size);
void *__wrap_malloc(size_t size);
void *__wrap_calloc(size_t n, size_t size);
void *__wrap_realloc(void *old, size_t size);
void *__wrap_aligned_alloc(size_t alignment, size_t size);

static inline void faults_begin(long at, fault_mode kind) {
    fault_calls = 0;
    fault_bytes = 0;
    fault_at = at;
    fault_kind = kind;
    fault_armed = 1;
}
static inline long faults_end(void) {
    fault_armed = 0;
    return fault_calls;
}

static inline int fault_now(uint64_t bytes) {
    if (!fault_armed) {
        return 0;
    }
    fault_calls++;
    fault_bytes += bytes;
    return fault_at > 0 && (fault_kind == FAULT_ONCE ? fault_calls == fault_at : fault_calls >= fault_at);
}

void *__wrap_malloc(size_t size) { return fault_now(size) ? NULL : __real_malloc(size); }
void *__wrap_calloc(size_t n, size_t size) { return fault_now((uint64_t)n * size) ? NULL : __real_calloc(n, size); }
void *__wrap_realloc(void *old, size_t size) { return fault_now(size) ? NULL : __real_realloc(old, size); }
void *__wrap_aligned_alloc(size_t alignment, size_t size) {
    return fault_now(size) ? NULL : __real_aligned_alloc(alignment, size);
}

#endif
