/* Control groups of Linux, versions 1 and 2: what a container or a service is held to. */
#ifndef LMI_BASE_CGROUP_H
#define LMI_BASE_CGROUP_H

#include <stdbool.h>
#include <stdint.h>

/* The files of /proc and of cgroups that are read here are a few KiB; what is beyond this is not looked at. */
enum { SMALL_TEXT = 8192 };

/* The text of a file whose path is given in parts, "" if it cannot be read. */
void small_text(const char *system, const char *folder, const char *group, const char *file, char text[SMALL_TEXT]);

/* Digits at `text`, after blanks; false if there are none or too many ("max" of a group without a limit, or -1). */
bool small_number(const char *text, uint64_t *value);

/* A group that this process is in: the file F of it is system + root + group + F. `version`: 1 or 2. */
typedef void cgroup_visit(const char *system, const char *root, const char *group, int version, void *context);

/* Visits the groups of a controller, those above them included: a group is held to their limits too. `system` comes before /proc and
 * /sys: "", or a folder for tests. `root_1`: where version 1 has the controller. */
void cgroup_each(const char *system, const char *controller, const char *root_1, cgroup_visit *visit, void *context);

#endif
