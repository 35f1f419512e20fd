/* What this CPU and its operating system can run. */
#ifndef LMI_BASE_CPU_H
#define LMI_BASE_CPU_H

#include <stdbool.h>

#include "lmi.h"

bool cpu_has(lmi_isa isa);
bool cpu_has_i8mm(void); /* smmla, an option of LMI_ISA_NEON; false on other machines */
const char *cpu_isa_name(lmi_isa isa);
int cpu_count(void); /* cores that this process may use, at least 1 */

#endif
