#define _GNU_SOURCE
#include "base/spill.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "base/memory.h"

/* A file of the folder that no name leads to. Where the file system knows no O_TMPFILE, one whose name is taken away at once. */
static int open_nameless(const char *folder) {
    int fd = open(folder, O_TMPFILE | O_RDWR | O_CLOEXEC, 0600);
    if (fd < 0 && (errno == EOPNOTSUPP || errno == EISDIR || errno == EINVAL)) {
        char name[4096];
        const int n = snprintf(name, sizeof name, "%s/.lmi-recall-XXXXXX", folder);
        if (n < 0 || (size_t)n >= sizeof name) {
            errno = ENAMETOOLONG;
            return -1;
        }
        fd = mkostemp(name, O_CLOEXEC);
        if (fd >= 0) {
            unlink(name);
        }
    }
    return fd;
}

static lmi_status map_file(const char *folder, uint64_t size, spill *out, lmi_error *error) {
    char needs[32];
    const int fd = open_nameless(folder);
    if (fd < 0) {
        fail(error, LMI_IO, "cannot keep what is recalled in %s: %s", folder, strerror(errno));
        remedy(error, "Name a folder that exists and can be written to, or leave --recall-folder out.");
        return LMI_IO;
    }
    int problem;
    do {
        problem = posix_fallocate(fd, 0, (off_t)size);
    } while (problem == EINTR); /* Ctrl-C while it works is seen between chunks, as everywhere */
    if (problem != 0) {
        close(fd);
        fail(error, LMI_NO_SPACE, "no room for %s in %s: %s", human_bytes(size, needs), folder, strerror(problem));
        remedy(error, "Use a smaller --recall-budget, or another --recall-folder.");
        return LMI_NO_SPACE;
    }
    void *bytes = mmap(NULL, (size_t)size, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    close(fd); /* the mapping keeps the file */
    if (bytes == MAP_FAILED) {
        fail(error, LMI_OUT_OF_MEMORY, "cannot map %s of %s: %s", human_bytes(size, needs), folder, strerror(errno));
        remedy(error, "Use a smaller --recall-budget.");
        return LMI_OUT_OF_MEMORY;
    }
    *out = (spill){bytes, size};
    return LMI_OK;
}

lmi_status spill_open(const char *folder, uint64_t size, spill *out, lmi_error *error) {
    *out = (spill){0};
    if (size == 0) {
        return LMI_OK;
    }
    if (size > INT64_MAX || size > SIZE_MAX) {
        return fail(error, LMI_OUT_OF_MEMORY, "a range of %llu bytes is more than this machine can address",
                    (unsigned long long)size);
    }
    if (folder != NULL) {
        return map_file(folder, size, out, error);
    }
    void *bytes = mmap(NULL, (size_t)size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (bytes == MAP_FAILED) {
        char needs[32];
        fail(error, LMI_OUT_OF_MEMORY, "no memory for %s to recall from", human_bytes(size, needs));
        remedy(error, "Use a smaller --recall-budget, or --recall-folder to keep it on disk.");
        return LMI_OUT_OF_MEMORY;
    }
    memory_in_large_pages(bytes, (size_t)size); /* what is read here and there costs a walk through the page tables each time */
    *out = (spill){bytes, size};
    return LMI_OK;
}

void spill_close(spill *range) {
    if (range->bytes != NULL) {
        munmap(range->bytes, (size_t)range->size);
    }
    *range = (spill){0};
}
