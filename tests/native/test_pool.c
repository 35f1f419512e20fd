/* The pool: every piece once, whatever the number of workers, pieces and pauses; what pieces wrote is seen; a worker that is
 * held up outside a job holds up nobody. Run it under the thread sanitizer too (make sanitize). */
#define _GNU_SOURCE
#include "check.h"

#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <time.h>
#include <unistd.h>

#include "base/pool.h"

#if defined(__SANITIZE_THREAD__)
enum { UNDER_TSAN = 1 };
#else
enum { UNDER_TSAN = 0 };
#endif

enum { MOST_PIECES = 3000, MOST_WORKERS = 8 };

/* Plain memory on purpose: only the pool makes it safe, and the thread sanitizer sees if it does not. */
typedef struct sums {
    int64_t n_pieces;
    int32_t times[MOST_PIECES]; /* how often each piece was done */
    int64_t value[MOST_PIECES];
    int64_t by_worker[MOST_WORKERS]; /* each written by one worker only */
    int64_t round;
    int n_workers;
} sums;

static void add_piece(void *context, int64_t piece, int worker) {
    sums *s = context;
    if (piece < 0 || piece >= s->n_pieces || worker < 0 || worker >= s->n_workers) {
        s->times[0] = 1000;
        return;
    }
    s->times[piece]++;
    s->value[piece] = s->round * 1000003 + piece;
    s->by_worker[worker]++;
}

static bool all_once(const sums *s, int64_t before) {
    int64_t wrong = 0, done = 0;
    for (int64_t i = 0; i < s->n_pieces; i++) {
        wrong += s->times[i] != 1 || s->value[i] != s->round * 1000003 + i;
    }
    for (int i = 0; i < MOST_WORKERS; i++) {
        done += s->by_worker[i];
    }
    return wrong == 0 && done == before + s->n_pieces;
}

static void test_pieces(void) {
    static sums s;
    uint64_t random = 4;
    for (int n_workers = 1; n_workers <= MOST_WORKERS; n_workers++) {
        pool *p = NULL;
        lmi_error error = {0};
        CHECK(pool_open(n_workers, &p, &error) == LMI_OK && pool_n_workers(p) == n_workers, "%s", error.message);
        memset(&s, 0, sizeof s);
        s.n_workers = n_workers;
        int64_t before = 0, wrong = 0;
        for (s.round = 0; s.round < (UNDER_TSAN ? 300 : 2000); s.round++) {
            uint64_t kind = check_random(&random) % 10;
            s.n_pieces = kind < 4   ? (int64_t)(check_random(&random) % 12)
                         : kind < 9 ? (int64_t)(check_random(&random) % 100)
                                    : MOST_PIECES;
            memset(s.times, 0, sizeof s.times);
            pool_run(p, add_piece, &s, s.n_pieces);
            wrong += !all_once(&s, before);
            before += s.n_pieces;
            if (kind == 0) { /* some workers fall asleep, some are about to */
                usleep((useconds_t)(check_random(&random) % 120));
            }
        }
        CHECK(wrong == 0, "%lld jobs of %d workers went wrong", (long long)wrong, n_workers);
        pool_close(p);
    }
}

/* Jobs with nothing between them: a late worker meets a later job. */
static void add_one(void *context, int64_t piece, int worker) {
    (void)worker;
    ((int32_t *)context)[piece]++;
}

static void test_late_workers(void) {
    pool *p = NULL;
    CHECK(pool_open(4, &p, NULL) == LMI_OK);
    int64_t wrong = 0;
    for (int round = 0; round < (UNDER_TSAN ? 3000 : 30000); round++) {
        int32_t times[8] = {0}; /* on the stack: a worker that comes after the end would write into the next round */
        int64_t n = 2 + round % 7;
        pool_run(p, add_one, times, n);
        for (int i = 0; i < 8; i++) {
            wrong += times[i] != (i < n);
        }
    }
    CHECK(wrong == 0, "%lld", (long long)wrong);
    pool_close(p);
}

/* The caller has no piece left and falls asleep until the others are done. */
static void dawdle(void *context, int64_t piece, int worker) {
    if (worker != 0) {
        usleep(500);
    }
    ((int32_t *)context)[piece]++;
}

static void test_sleeping_caller(void) {
    pool *p = NULL;
    CHECK(pool_open(4, &p, NULL) == LMI_OK);
    for (int round = 0; round < 200; round++) {
        int32_t times[8] = {0};
        pool_run(p, dawdle, times, 8);
        int wrong = 0;
        for (int i = 0; i < 8; i++) {
            wrong += times[i] != 1;
        }
        CHECK(wrong == 0);
        if (round % 8 == 0) {
            usleep(200);
        }
    }
    pool_close(p);
}

static void test_open_close(void) {
    lmi_error error;
    pool *p = (pool *)&error;
    const int bad[] = {0, -1, 257, 1 << 30};
    for (int i = 0; i < 4; i++) {
        CHECK(pool_open(bad[i], &p, &error) == LMI_INVALID_ARGUMENT && p == NULL);
        CHECK(strncmp(error.message, "threads must be between 1 and 256, not ", 39) == 0, "%s", error.message);
    }
    pool_close(NULL);
    for (int i = 0; i < 200; i++) { /* workers that have not begun, have slept, have worked */
        int32_t times[8] = {0};
        CHECK(pool_open(1 + i % 8, &p, &error) == LMI_OK);
        if (i % 3 == 1) {
            usleep(200);
        }
        if (i % 3 == 2) {
            pool_run(p, add_one, times, 8);
            CHECK(times[0] == 1 && times[7] == 1);
        }
        pool_close(p);
    }
}

/* Two sessions of one model. */
typedef struct visitor {
    pool *shared;
    sums *own;
    int64_t wrong;
} visitor;

static void *visit(void *argument) {
    visitor *v = argument;
    for (int i = 0; i < 100; i++) {
        int64_t before = 0;
        pool_lock(v->shared);
        for (int k = 0; k < 3; k++) {
            memset(v->own, 0, sizeof *v->own);
            v->own->n_pieces = 20;
            v->own->n_workers = MOST_WORKERS;
            v->own->round = i;
            pool_run(v->shared, add_piece, v->own, 20);
            v->wrong += !all_once(v->own, before);
        }
        pool_unlock(v->shared);
    }
    return NULL;
}

static void test_turns(void) {
    static sums own[3];
    visitor visitors[3];
    pthread_t threads[3];
    pool *p = NULL;
    CHECK(pool_open(3, &p, NULL) == LMI_OK);
    for (int i = 0; i < 3; i++) {
        visitors[i] = (visitor){.shared = p, .own = &own[i]};
        CHECK(pthread_create(&threads[i], NULL, visit, &visitors[i]) == 0);
    }
    for (int i = 0; i < 3; i++) {
        pthread_join(threads[i], NULL);
        CHECK(visitors[i].wrong == 0);
    }
    pool_close(p);
}

/* Workers 1 to 3 are stopped, by a signal handler that does not return, while they wait for work. */
static atomic_bool released;
static atomic_int n_stopped, n_met;
static pthread_t threads_of[4];

static void stop_here(int number) {
    (void)number;
    atomic_fetch_add(&n_stopped, 1);
    while (!atomic_load(&released)) {
        nanosleep(&(struct timespec){.tv_nsec = 1000000}, NULL);
    }
    atomic_fetch_sub(&n_stopped, 1);
}

static void meet(void *context, int64_t piece, int worker) {
    (void)context;
    (void)piece;
    threads_of[worker] = pthread_self();
    atomic_fetch_add(&n_met, 1);
    while (atomic_load(&n_met) < 4) { /* so that every worker takes one piece */
        nanosleep(&(struct timespec){.tv_nsec = 100000}, NULL);
    }
}

static void wait_for(atomic_int *number, int value) {
    for (int i = 0; i < 10000 && atomic_load(number) != value; i++) {
        usleep(1000);
    }
}

static void test_stopped_workers(void) {
    static sums s;
    pool *p = NULL;
    struct sigaction action = {.sa_handler = stop_here}, before;
    sigaction(SIGUSR1, &action, &before);
    CHECK(pool_open(4, &p, NULL) == LMI_OK);
    pool_run(p, meet, NULL, 4);
    CHECK(atomic_load(&n_met) == 4);
    usleep(50000); /* now they sleep */
    for (int i = 1; i < 4; i++) {
        pthread_kill(threads_of[i], SIGUSR1);
    }
    wait_for(&n_stopped, 3);
    CHECK(atomic_load(&n_stopped) == 3);
    s.n_workers = 4;
    for (s.round = 0; s.round < 50; s.round++) {
        s.n_pieces = 40;
        memset(s.times, 0, sizeof s.times);
        pool_run(p, add_piece, &s, s.n_pieces); /* returns: the caller does it all */
        CHECK(all_once(&s, s.round * 40));
    }
    CHECK(s.by_worker[0] == 50 * 40 && atomic_load(&n_stopped) == 3, "%lld by the caller", (long long)s.by_worker[0]);
    atomic_store(&released, true);
    wait_for(&n_stopped, 0);
    atomic_store(&n_met, 0);
    pool_run(p, meet, NULL, 4); /* and they work again */
    CHECK(atomic_load(&n_met) == 4);
    pool_close(p);
    sigaction(SIGUSR1, &before, NULL);
}

int main(void) {
    test_pieces();
    test_late_workers();
    test_sleeping_caller();
    test_open_close();
    test_turns();
    if (!UNDER_TSAN) { /* it runs handlers when it likes */
        test_stopped_workers();
    }
    return check_report();
}
