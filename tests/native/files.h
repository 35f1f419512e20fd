/* For tests of what is read from and written to disk: a folder of their own, and system calls that fail when told to.
 *
 * The library calls pread, write, fsync, fchmod and rename; a program that includes this file defines them, so the calls come
 * here first and go on to the kernel unless a fault is due. */
#ifndef LMI_TESTS_FILES_H
#define LMI_TESTS_FILES_H

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdbool.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/types.h>
#include <sys/wait.h>
#include <unistd.h>

#include "check.h"

typedef enum file_call { CALL_PREAD, CALL_WRITE, CALL_FSYNC, CALL_FCHMOD, CALL_RENAME, N_CALLS } file_call;

/* From the `at`-th such call on (1 is the first; 0: never): errno `code`, with code 0 one byte a call, with -1 none at all. */
static struct {
    long calls, at;
    int code;
    bool once;
} io_fault[N_CALLS];

static inline void io_clear(void) { memset(io_fault, 0, sizeof io_fault); }
static inline void io_fail(file_call call, long at, int code, bool once) {
    io_clear();
    io_fault[call].at = at;
    io_fault[call].code = code;
    io_fault[call].once = once;
}

static inline bool io_due(file_call call) {
    long n = ++io_fault[call].calls;
    return io_fault[call].at > 0 && (io_fault[call].once ? n == io_fault[call].at : n >= io_fault[call].at);
}

/* True if the call is to fail; else *size may have become less. */
static inline bool io_fails(file_call call, size_t *size) {
    if (!io_due(call)) {
        return false;
    }
    if (io_fault[call].code <= 0) {
        *size = io_fault[call].code == 0 && *size > 0;
        return false;
    }
    errno = io_fault[call].code;
    return true;
}

ssize_t pread(int fd, void *bytes, size_t size, off_t offset);
ssize_t write(int fd, const void *bytes, size_t size);
int fsync(int fd);
int fchmod(int fd, mode_t mode);
int rename(const char *from, const char *to);

ssize_t pread(int fd, void *bytes, size_t size, off_t offset) {
    return io_fails(CALL_PREAD, &size) ? -1 : (ssize_t)syscall(SYS_pread64, fd, bytes, size, offset);
}
ssize_t write(int fd, const void *bytes, size_t size) {
    if (fd > 2 && io_fails(CALL_WRITE, &size)) {
        return -1;
    }
    return (ssize_t)syscall(SYS_write, fd, bytes, size);
}
int fsync(int fd) {
    size_t none = 0;
    return io_fails(CALL_FSYNC, &none) ? -1 : (int)syscall(SYS_fsync, fd);
}
int fchmod(int fd, mode_t mode) {
    size_t none = 0;
    return io_fails(CALL_FCHMOD, &none) ? -1 : (int)syscall(SYS_fchmod, fd, mode);
}
int rename(const char *from, const char *to) {
    size_t none = 0;
    return io_fails(CALL_RENAME, &none) ? -1 : (int)syscall(SYS_renameat2, AT_FDCWD, from, AT_FDCWD, to, 0);
}

/* ---- a folder ---------------------------------------------------------------------------------------------------- */

static char folder[256];

static inline void folder_make(void) {
    const char *base = getenv("TMPDIR");
    snprintf(folder, sizeof folder, "%s/lmi-test-XXXXXX", base != NULL && strlen(base) < 200 ? base : "/tmp");
    if (mkdtemp(folder) == NULL) {
        perror(folder);
        exit(1);
    }
}

/* Names in the folder, and how many of them are partial files. */
static inline int folder_count(const char *path, int *n_partial) {
    int n = 0;
    *n_partial = 0;
    DIR *dir = opendir(path);
    for (struct dirent *entry; dir != NULL && (entry = readdir(dir)) != NULL;) {
        if (strcmp(entry->d_name, ".") != 0 && strcmp(entry->d_name, "..") != 0) {
            n++;
            *n_partial += strstr(entry->d_name, ".partial-") != NULL;
        }
    }
    if (dir != NULL) {
        closedir(dir);
    }
    return n;
}

static inline int partials(void) {
    int n;
    folder_count(folder, &n);
    return n;
}

static inline void folder_remove(void) {
    char command[600];
    snprintf(command, sizeof command, "rm -rf '%s'", folder);
    if (system(command) != 0) {
        fprintf(stderr, "%s is still there\n", folder);
    }
}

static inline const char *in_folder(const char *name) {
    static char paths[4][600];
    static int next;
    char *path = paths[next++ & 3];
    snprintf(path, sizeof paths[0], "%s/%s", folder, name);
    return path;
}

/* Straight from the kernel, past the faults. */
static inline void put_file(const char *path, const void *bytes, size_t size) {
    FILE *file = fopen(path, "wb");
    if (file == NULL || fwrite(bytes, 1, size, file) != size || fclose(file) != 0) {
        perror(path);
        exit(1);
    }
}

static inline bool file_equals(const char *path, const void *bytes, size_t size) {
    FILE *file = fopen(path, "rb");
    if (file == NULL) {
        return false;
    }
    char *held = malloc(size + 1);
    size_t got = fread(held, 1, size + 1, file);
    bool equal = got == size && memcmp(held, bytes, size) == 0;
    free(held);
    fclose(file);
    return equal;
}

static inline int open_files(void) {
    int n_partial;
    return folder_count("/proc/self/fd", &n_partial);
}

/* Runs a function in a child process; its result, or 128 + the signal that ended it. */
static inline int in_child(int (*function)(void)) {
    fflush(NULL);
    pid_t child = fork();
    if (child == 0) {
        int result = function();
        fflush(NULL);
        _exit(result);
    }
    int status = 0;
    waitpid(child, &status, 0);
    return WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
}

#endif
