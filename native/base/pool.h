/* A fixed set of workers that share one job at a time.
 *
 * A job is cut into more pieces than there are workers. Each worker has a run of pieces that follow each other, which keeps
 * what it fetches ahead useful; one that has run out takes half of what another has left, so a slow or descheduled worker
 * holds up nobody but the piece it has. The caller is worker 0. Idle workers spin briefly, then sleep. */
#ifndef LMI_BASE_POOL_H
#define LMI_BASE_POOL_H

#include <stdint.h>

#include "base/status.h"

typedef struct pool pool;

/* Called once for every piece in [0, n_pieces), from any worker in [0, n_workers). */
typedef void pool_job(void *context, int64_t piece, int worker);

enum { POOL_MAX_WORKERS = 256 };

lmi_status pool_open(int n_workers, pool **out, lmi_error *error);
void pool_close(pool *p);
int pool_n_workers(const pool *p);

/* Runs a job of fewer than 2^32 pieces to its end: what the pieces wrote is visible to the caller. One caller at a time
 * (pool_lock). */
void pool_run(pool *p, pool_job *job, void *context, int64_t n_pieces);

/* Sessions of one model take turns: held for a whole read call, not per job. */
void pool_lock(pool *p);
void pool_unlock(pool *p);

#endif
