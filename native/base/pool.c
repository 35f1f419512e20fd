#define _GNU_SOURCE
#include "base/pool.h"

#include <pthread.h>
#include <stdalign.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdlib.h>

#include "base/clock.h"

/* How long a thread spins before it sleeps: longer than the gap between two steps of a layer. Measured by the clock, since one
 * pause takes 10 to 150 cycles, depending on the CPU. */
enum { SPIN_NANOSECONDS = 50000, PAUSES_PER_LOOK = 32 };

/* Pieces [first, end) that are not yet taken, as first << 32 | end: taken by compare-and-swap, from the front by their worker,
 * the upper half by one that has run out. Within a job no range comes back once a piece of it is taken. */
typedef struct share {
    alignas(64) _Atomic uint64_t range;
} share;

typedef struct worker {
    pool *owner;
    pthread_t thread;
    int index;
} worker;

struct pool {
    int n_workers;
    int n_started;
    worker *workers; /* [n_workers]; 0 is the caller's */
    share *shares;   /* [n_workers] */
    pthread_mutex_t turn;
    pthread_mutex_t sleep_lock;
    pthread_cond_t wake;
    pthread_cond_t done;

    pool_job *job;
    void *context;
    alignas(64) _Atomic uint64_t generation; /* a new value is a new job */
    alignas(64) _Atomic int n_inside;        /* workers that may be touching the current job */
    _Atomic bool job_open;
    _Atomic bool closing;
    _Atomic int n_asleep;
    _Atomic bool caller_asleep;
};

static inline void pause_cpu(void) {
#if defined(__x86_64__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    __asm__ volatile("yield");
#endif
}

typedef struct spin {
    int rounds;
    int64_t end;
} spin;

/* Pauses; false once it has gone on for long enough. */
static bool spin_on(spin *s) {
    pause_cpu();
    if (s->rounds++ % PAUSES_PER_LOOK != 0) {
        return true;
    }
    const int64_t nanoseconds = clock_nanoseconds();
    if (s->end == 0) {
        s->end = nanoseconds + SPIN_NANOSECONDS;
    }
    return nanoseconds < s->end;
}

static uint64_t range_of(uint64_t first, uint64_t end) { return first << 32 | end; }

/* Takes pieces [*first, *end) of a share: one from the front, or the upper half of them. */
static bool take_from(share *from, bool half, uint64_t *first, uint64_t *end) {
    uint64_t now = atomic_load_explicit(&from->range, memory_order_relaxed);
    for (;;) {
        const uint64_t a = now >> 32, b = now & UINT32_MAX;
        if (a >= b) {
            return false;
        }
        *first = half ? a + (b - a) / 2 : a;
        *end = half ? b : a + 1;
        const uint64_t kept = half ? range_of(a, *first) : range_of(*end, b);
        if (atomic_compare_exchange_weak_explicit(&from->range, &now, kept, memory_order_relaxed, memory_order_relaxed)) {
            return true;
        }
    }
}

static bool help_another(pool *p, int index) {
    for (int i = 1; i < p->n_workers; i++) {
        uint64_t first, end;
        if (take_from(&p->shares[(index + i) % p->n_workers], true, &first, &end)) {
            atomic_store_explicit(&p->shares[index].range, range_of(first, end), memory_order_relaxed);
            return true;
        }
    }
    return false;
}

static void take_pieces(pool *p, int index) {
    uint64_t piece, end;
    do {
        while (take_from(&p->shares[index], false, &piece, &end)) {
            p->job(p->context, (int64_t)piece, index);
        }
    } while (help_another(p, index));
}

static uint64_t wait_for_job(pool *p, uint64_t seen) {
    uint64_t now;
    spin spinning = {0};
    do {
        now = atomic_load_explicit(&p->generation, memory_order_acquire);
        if (now != seen) {
            return now;
        }
    } while (spin_on(&spinning));
    pthread_mutex_lock(&p->sleep_lock);
    atomic_fetch_add(&p->n_asleep, 1);
    while ((now = atomic_load(&p->generation)) == seen) {
        pthread_cond_wait(&p->wake, &p->sleep_lock);
    }
    atomic_fetch_sub(&p->n_asleep, 1);
    pthread_mutex_unlock(&p->sleep_lock);
    return now;
}

static void *work(void *argument) {
    worker *self = argument;
    pool *p = self->owner;
    uint64_t seen = 0;
    for (;;) {
        seen = wait_for_job(p, seen);
        if (atomic_load_explicit(&p->closing, memory_order_acquire)) {
            return NULL;
        }
        /* Enter first, look second: a worker that comes too late finds the job closed, and the caller need not wait for it. */
        atomic_fetch_add(&p->n_inside, 1);
        if (atomic_load(&p->job_open)) {
            take_pieces(p, self->index);
        }
        if (atomic_fetch_sub(&p->n_inside, 1) == 1 && atomic_load(&p->caller_asleep)) {
            pthread_mutex_lock(&p->sleep_lock);
            pthread_cond_signal(&p->done);
            pthread_mutex_unlock(&p->sleep_lock);
        }
    }
}

static void announce(pool *p) {
    atomic_fetch_add(&p->generation, 1);
    if (atomic_load(&p->n_asleep) > 0) {
        pthread_mutex_lock(&p->sleep_lock);
        pthread_cond_broadcast(&p->wake);
        pthread_mutex_unlock(&p->sleep_lock);
    }
}

static void wait_for_workers(pool *p) {
    spin spinning = {0};
    do {
        if (atomic_load(&p->n_inside) == 0) {
            return;
        }
    } while (spin_on(&spinning));
    pthread_mutex_lock(&p->sleep_lock);
    atomic_exchange(&p->caller_asleep, true);
    while (atomic_load(&p->n_inside) != 0) {
        pthread_cond_wait(&p->done, &p->sleep_lock);
    }
    atomic_store(&p->caller_asleep, false);
    pthread_mutex_unlock(&p->sleep_lock);
}

void pool_run(pool *p, pool_job *job, void *context, int64_t n_pieces) {
    if (p->n_workers == 1 || n_pieces <= 1) {
        for (int64_t piece = 0; piece < n_pieces; piece++) {
            job(context, piece, 0);
        }
        return;
    }
    p->job = job;
    p->context = context;
    for (int i = 0; i < p->n_workers; i++) {
        const uint64_t n = (uint64_t)n_pieces, w = (uint64_t)p->n_workers, at = (uint64_t)i;
        atomic_store_explicit(&p->shares[i].range, range_of(n * at / w, n * (at + 1) / w), memory_order_relaxed);
    }
    atomic_store(&p->job_open, true);
    announce(p);
    take_pieces(p, 0);
    atomic_exchange(&p->job_open, false); /* not a store: emulated by qemu, a load of n_inside may overtake that */
    wait_for_workers(p);
}

lmi_status pool_open(int n_workers, pool **out, lmi_error *error) {
    *out = NULL;
    if (n_workers < 1 || n_workers > POOL_MAX_WORKERS) {
        return fail(error, LMI_INVALID_ARGUMENT, "threads must be between 1 and %d, not %d", POOL_MAX_WORKERS, n_workers);
    }
    pool *p = aligned_alloc(64, (sizeof *p + 63) / 64 * 64);
    worker *workers = calloc((size_t)n_workers, sizeof *workers);
    share *shares = aligned_alloc(64, (size_t)n_workers * sizeof *shares);
    if (p == NULL || workers == NULL || shares == NULL) {
        free(p);
        free(workers);
        free(shares);
        return fail(error, LMI_OUT_OF_MEMORY, "no memory for %d threads", n_workers);
    }
    *p = (pool){.n_workers = n_workers, .workers = workers, .shares = shares};
    pthread_mutex_init(&p->turn, NULL);
    pthread_mutex_init(&p->sleep_lock, NULL);
    pthread_cond_init(&p->wake, NULL);
    pthread_cond_init(&p->done, NULL);
    p->n_started = 1;
    for (int i = 0; i < n_workers; i++) {
        workers[i] = (worker){.owner = p, .index = i};
        if (i > 0) {
            if (pthread_create(&workers[i].thread, NULL, work, &workers[i]) != 0) {
                pool_close(p);
                return fail(error, LMI_OUT_OF_MEMORY, "cannot start thread %d of %d", i + 1, n_workers);
            }
            p->n_started++;
        }
    }
    *out = p;
    return LMI_OK;
}

void pool_close(pool *p) {
    if (p == NULL) {
        return;
    }
    atomic_store(&p->closing, true);
    announce(p);
    for (int i = 1; i < p->n_started; i++) {
        pthread_join(p->workers[i].thread, NULL);
    }
    pthread_cond_destroy(&p->wake);
    pthread_cond_destroy(&p->done);
    pthread_mutex_destroy(&p->sleep_lock);
    pthread_mutex_destroy(&p->turn);
    free(p->workers);
    free(p->shares);
    free(p);
}

int pool_n_workers(const pool *p) { return p->n_workers; }
void pool_lock(pool *p) { pthread_mutex_lock(&p->turn); }
void pool_unlock(pool *p) { pthread_mutex_unlock(&p->turn); }
