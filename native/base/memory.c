#define _GNU_SOURCE
#include "base/memory.h"

#include <stdbool.h>
#include <stdint.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/sysinfo.h>

#include "base/cgroup.h"
#include "base/checked.h"

/* The number after `name` at the beginning of a line. */
static bool find_number(const char *text, const char *name, uint64_t *value) {
    size_t size = strlen(name);
    for (const char *line = text; line != NULL && *line != '\0';) {
        if (strncmp(line, name, size) == 0) {
            return small_number(line + size, value);
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

/* One group's limit. Its page cache counts as used, but goes as soon as memory is asked for: the part that the kernel calls
 * inactive is free for our purpose. */
static void apply_limit(const char *system, const char *root, const char *group, int version, void *context) {
    lmi_memory *memory = context;
    char text[SMALL_TEXT];
    uint64_t limit, used = 0, cache = 0;
    small_text(system, root, group, version == 2 ? "/memory.max" : "/memory.limit_in_bytes", text);
    if (!small_number(text, &limit)) {
        return; /* version 2 writes "max"; version 1 a number near 2^63, which changes nothing below */
    }
    small_text(system, root, group, version == 2 ? "/memory.current" : "/memory.usage_in_bytes", text);
    small_number(text, &used);
    small_text(system, root, group, "/memory.stat", text);
    find_number(text, version == 2 ? "inactive_file " : "total_inactive_file ", &cache);
    used -= smaller(used, cache);
    memory->total_bytes = smaller(memory->total_bytes, limit);
    memory->available_bytes = smaller(memory->available_bytes, limit - smaller(limit, used));
}

void memory_at(const char *system, lmi_memory *memory) {
    char text[SMALL_TEXT];
    *memory = (lmi_memory){0};
    small_text(system, "/proc/self", "", "/status", text);
    memory->resident_bytes = find_kib(text, "VmRSS:");
    memory->peak_resident_bytes = find_kib(text, "VmHWM:");
    memory->anonymous_bytes = find_kib(text, "RssAnon:");
    small_text(system, "/proc", "", "/meminfo", text);
    memory->total_bytes = find_kib(text, "MemTotal:");
    memory->available_bytes = find_kib(text, "MemAvailable:");
    if (memory->total_bytes > 0) {
        cgroup_each(system, "memory", "/sys/fs/cgroup/memory", apply_limit, memory);
    }
}

void memory_now(lmi_memory *memory) {
    memory_at("", memory);
    struct sysinfo machine;
    if (memory->total_bytes == 0 && sysinfo(&machine) == 0) {
        /* No /proc here, as in some sandboxes. What is free besides the page cache is not told: nothing is refused for it. */
        memory->total_bytes = memory->available_bytes = (uint64_t)machine.totalram * machine.mem_unit;
    }
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
