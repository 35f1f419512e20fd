#define _GNU_SOURCE
#include "base/cgroup.h"

#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "base/checked.h"

void small_text(const char *system, const char *folder, const char *group, const char *file, char text[SMALL_TEXT]) {
    char name[PATH_MAX];
    size_t size = 0;
    int n = snprintf(name, sizeof name, "%s%s%s%s", system, folder, group, file);
    int fd = n > 0 && (size_t)n < sizeof name ? open(name, O_RDONLY | O_CLOEXEC) : -1;
    if (fd >= 0) {
        ssize_t got;
        while (size < SMALL_TEXT - 1 && (got = read(fd, text + size, SMALL_TEXT - 1 - size)) > 0) {
            size += (size_t)got;
        }
        close(fd);
    }
    text[size] = '\0';
}

bool small_number(const char *text, uint64_t *value) {
    while (*text == ' ' || *text == '\t') {
        text++;
    }
    if (*text < '0' || *text > '9') {
        return false;
    }
    uint64_t sum = 0;
    for (; *text >= '0' && *text <= '9'; text++) {
        if (!ck_mul(sum, 10, &sum) || !ck_add(sum, (uint64_t)(*text - '0'), &sum)) {
            return false;
        }
    }
    *value = sum;
    return true;
}

/* In a container the path may be the host's: then only the root, which is the container's own group there, exists. */
static void visit_upwards(const char *system, const char *root, const char *line, int version, cgroup_visit *visit,
                          void *context) {
    char group[PATH_MAX];
    size_t size = strcspn(line, "\n");
    if (size >= sizeof group) {
        return;
    }
    memcpy(group, line, size);
    group[size] = '\0';
    for (;;) {
        while (size > 0 && group[size - 1] == '/') {
            group[--size] = '\0';
        }
        visit(system, root, group, version, context);
        if (size == 0) {
            return;
        }
        while (size > 0 && group[size - 1] != '/') {
            group[--size] = '\0';
        }
    }
}

/* Lines "hierarchy:controllers:path" of /proc/self/cgroup. */
void cgroup_each(const char *system, const char *controller, const char *root_1, cgroup_visit *visit, void *context) {
    char text[SMALL_TEXT];
    small_text(system, "/proc/self", "", "/cgroup", text);
    for (const char *line = text; line != NULL && *line != '\0';) {
        const char *controllers = strchr(line, ':');
        const char *path = controllers == NULL ? NULL : strchr(controllers + 1, ':');
        const char *end = strchr(line, '\n');
        if (path != NULL && (end == NULL || path < end)) {
            controllers++;
            if (controllers == path) {
                visit_upwards(system, "/sys/fs/cgroup", path + 1, 2, visit, context);
            } else {
                for (const char *name = controllers; name < path; name += strcspn(name, ",:") + 1) { /* "cpu,memory" */
                    if (strcspn(name, ",:") == strlen(controller) && memcmp(name, controller, strlen(controller)) == 0) {
                        visit_upwards(system, root_1, path + 1, 1, visit, context);
                    }
                }
            }
        }
        line = end == NULL ? NULL : end + 1;
    }
}
