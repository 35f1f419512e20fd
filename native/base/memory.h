/* What this process holds and what the system can give. */
#ifndef LMI_BASE_MEMORY_H
#define LMI_BASE_MEMORY_H

#include <stddef.h>

#include "lmi.h"

void memory_now(lmi_memory *memory); /* 0 where the system does not say */

/* The same from the /proc and /sys below another folder: for tests. */
void memory_at(const char *system, lmi_memory *memory);

/* Asks the system to back a range with pages of 2 MiB, where it can; never fails. What is read from end to end, as weights are
 * for every token, comes a fifth to a third sooner. */
enum { LARGE_PAGE = 2 << 20 };
void memory_in_large_pages(const void *bytes, size_t size);

#endif
