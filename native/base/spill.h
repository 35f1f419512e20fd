/* A large range of zeroed memory that is only taken page by page as it fills: of the system's memory, or of a file without a
 * name, which the system may write out and which goes when it is closed, whatever happens. */
#ifndef LMI_BASE_SPILL_H
#define LMI_BASE_SPILL_H

#include "base/status.h"

typedef struct spill {
    void *bytes;
    uint64_t size;
} spill;

/* `folder` NULL: memory. A file gets its blocks at once, so that a full disk is LMI_NO_SPACE here and no bus error later. */
lmi_status spill_open(const char *folder, uint64_t size, spill *out, lmi_error *error);
void spill_close(spill *range); /* {0} is allowed */

#endif
