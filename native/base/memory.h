/* What this process holds and what the system can give. */
#ifndef LMI_BASE_MEMORY_H
#define LMI_BASE_MEMORY_H

#include "lmi.h"

void memory_now(lmi_memory *memory); /* 0 where the system does not say */

/* The same from the /proc and /sys below another folder: for tests. */
void memory_at(const char *system, lmi_memory *memory);

#endif
