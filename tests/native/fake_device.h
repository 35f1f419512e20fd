/* What tests can tell the device that is none, and see of it. */
#ifndef LMI_TESTS_FAKE_DEVICE_H
#define LMI_TESTS_FAKE_DEVICE_H

#include "backend/backend.h"

typedef struct fake_controls {
    uint64_t total_bytes, used_bytes; /* of its memory */
    lmi_status refuse;                /* what a probe returns */
    lmi_status refuse_plan;           /* what a plan returns */
    lmi_status fail_upload, fail_open, fail_run, fail_fetch, fail_candidates;
    bool old;           /* it was built for another version */
    bool no_candidates; /* they tell that there is a NaN: nobody can draw from them */
    int64_t n_uploads, n_releases, n_contexts, n_runs, n_fetched, n_candidates, n_ahead;
} fake_controls;

typedef fake_controls *fake_entry(void); /* the function lmi_fake_controls */

#endif
