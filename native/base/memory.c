#define _GNU_SOURCE
#include "base/memory.h"

#include <fcntl.h>
#include <limits.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <unistd.h>

#include "base/checked.h"

/* The files of /proc and of cgroups that are read here are a few KiB; what is beyond this is not looked at. */
enum { TEXT_SIZE = 8192 };

/* The text of a file whose path is given in parts, "" if it cannot be read. */
static void read_text(const char *system, const char *folder, const char *group, const char *file, char text[TEXT_SIZE]) {
    char name[PATH_MAX];
    size_t size = 0;
    int n = snprintf(name, sizeof name, "%s%s%s%s", system, folder, group, file);
    int fd = n > 0 && (size_t)n < sizeof name ? open(name, O_RDONLY | O_CLOEXEC) : -1;
    if (fd >= 0) {
        ssize_t got;
        while (size < TEXT_SIZE - 1 && (got = read(fd, text + size, TEXT_SIZE - 1 - size)) > 0) {
            size += (size_t)got;
        }
        close(fd);
    }
    text[size] = '\0';
}

/* Digits at `text`, after blanks; false if there are none or too many ("max" of a cgroup without a limit). */
static bool parse_number(const char *text, uint64_t *value) {
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

/* The number after `name` at the beginning of a line. */
static bool find_number(const char *text, const char *name, uint64_t *value) {
    size_t size = strlen(name);
    for (const char *line = text; line != NULL && *line != '\0';) {
        if (strncmp(line, name, size) == 0) {
            return parse_number(line + size, value);
        }
        line = strchr(line, '\n');
        line = line == NULL ? NULL : line + 1;
    }
    return false;
}

/* Lines "Name:   123 kB". */
static uint64_t find_kib(const char *text, const char *name) {
    uint64_t value;
    return find_number(text, name, &value) && ck_mul(value, 1024, &value) ? value : 0;
}

static uint64_t smaller(uint64_t a, uint64_t b) { return a < b ? a : b; }

typedef struct cgroup_files {
    const char *root;
    const char *limit;
    const char *usage;
    const char *reclaimable; /* name in memory.stat */
} cgroup_files;

/* One group's limit. Its page cache counts as used, but goes as soon as memory is asked for: the part that the kernel calls
 * inactive is free for our purpose. */
static void apply_limit(const char *system, const cgroup_files *files, const char *group, lmi_memory *memory) {
    char text[TEXT_SIZE];
    uint64_t limit, used = 0, cache = 0;
    read_text(system, files->root, group, files->limit, text);
    if (!parse_number(text, &limit)) {
        return; /* version 2 writes "max"; version 1 a number near 2^63, which changes nothing below */
    }
    read_text(system, files->root, group, files->usage, text);
    parse_number(text, &used);
    read_text(system, files->root, group, "/memory.stat", text);
    find_number(text, files->reclaimable, &cache);
    used -= smaller(used, cache);
    memory->total_bytes = smaller(memory->total_bytes, limit);
    memory->available_bytes = smaller(memory->available_bytes, limit - smaller(limit, used));
}

/* A group is held to its own limit and to those above it. In a container the path may be the host's: then only the root,
 * which is the container's own group there, exists. */
static void apply_limits(const char *system, const cgroup_files *files, const char *line, lmi_memory *memory) {
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
        apply_limit(system, files, group, memory);
        if (size == 0) {
            return;
        }
        while (size > 0 && group[size - 1] != '/') {
            group[--size] = '\0';
        }
    }
}

/* Lines "hierarchy:controllers:path" of /proc/self/cgroup. */
static void apply_cgroups(const char *system, lmi_memory *memory) {
    static const cgroup_files version_2 = {"/sys/fs/cgroup", "/memory.max", "/memory.current", "inactive_file "};
    static const cgroup_files version_1 = {"/sys/fs/cgroup/memory", "/memory.limit_in_bytes", "/memory.usage_in_bytes",
                                           "total_inactive_file "};
    char text[TEXT_SIZE];
    read_text(system, "/proc/self", "", "/cgroup", text);
    for (const char *line = text; line != NULL && *line != '\0';) {
        const char *controllers = strchr(line, ':');
        const char *path = controllers == NULL ? NULL : strchr(controllers + 1, ':');
        const char *end = strchr(line, '\n');
        if (path != NULL && (end == NULL || path < end)) {
            controllers++;
            if (controllers == path) {
                apply_limits(system, &version_2, path + 1, memory);
            } else {
                for (const char *name = controllers; name < path; name += strcspn(name, ",:") + 1) { /* "cpu,memory" */
                    if (strcspn(name, ",:") == strlen("memory") && memcmp(name, "memory", strlen("memory")) == 0) {
                        apply_limits(system, &version_1, path + 1, memory);
                    }
                }
            }
        }
        line = end == NULL ? NULL : end + 1;
    }
}

void memory_at(const char *system, lmi_memory *memory) {
    char text[TEXT_SIZE];
    *memory = (lmi_memory){0};
    read_text(system, "/proc/self", "", "/status", text);
    memory->resident_bytes = find_kib(text, "VmRSS:");
    memory->peak_resident_bytes = find_kib(text, "VmHWM:");
    memory->anonymous_bytes = find_kib(text, "RssAnon:");
    read_text(system, "/proc", "", "/meminfo", text);
    memory->total_bytes = find_kib(text, "MemTotal:");
    memory->available_bytes = find_kib(text, "MemAvailable:");
    if (memory->total_bytes > 0) {
        apply_cgroups(system, memory);
    }
}

void memory_now(lmi_memory *memory) {
    memory_at("", memory);
    struct rusage usage;
    if (memory->peak_resident_bytes == 0 && getrusage(RUSAGE_SELF, &usage) == 0 && usage.ru_maxrss > 0) {
        memory->peak_resident_bytes = (uint64_t)usage.ru_maxrss * 1024;
    }
    /* The kernel updates the two at different moments. */
    if (memory->peak_resident_bytes < memory->resident_bytes) {
        memory->peak_resident_bytes = memory->resident_bytes;
    }
}

void memory_in_large_pages(const void *bytes, size_t size) {
    const uintptr_t first = (uintptr_t)bytes, end = (first + size) / LARGE_PAGE * LARGE_PAGE;
    const uintptr_t start = (first + LARGE_PAGE - 1) / LARGE_PAGE * LARGE_PAGE;
    if (end > start) {
        (void)madvise((void *)start, end - start, MADV_HUGEPAGE);
    }
}
