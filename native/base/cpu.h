/* What this CPU and its operating system can run. */
#ifndef LMI_BASE_CPU_H
#define LMI_BASE_CPU_H

#include <stdbool.h>

#include "lmi.h"

bool cpu_has(lmi_isa isa);
bool cpu_has_i8mm(void); /* smmla, an option of LMI_ISA_NEON; false on other machines */
const char *cpu_isa_name(lmi_isa isa);

/* Cores that this process may use, at least 1; where a container or a service is granted the time of fewer, as many as that is, rounded
 * up: more threads would spend it on waiting for one another. */
int cpu_count(void);

/* The same of so many cores, from the /proc and /sys below another folder: for tests. */
int cpu_count_at(const char *system, int n_cores);

#endif
