#define _GNU_SOURCE
#include "base/file.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <time.h>
#include <unistd.h>

#include "base/checked.h"
#include "base/memory.h"

_Static_assert(sizeof(off_t) == 8, "files may be larger than 2 GiB");

/* Linux moves at most 0x7ffff000 bytes a call; whole pages, and often enough to notice a signal. */
enum { LARGEST_TRANSFER = 256 << 20 };

/* ---- words for messages ------------------------------------------------------------------------------------------ */

enum { SHOWN_PATH = 400 };

/* As much of a path as leaves room for the rest of a message: of a long one the end, which says more than the beginning. */
static const char *show(const char *path, char text[SHOWN_PATH]) {
    size_t size = strlen(path);
    if (size < SHOWN_PATH) {
        memcpy(text, path, size + 1);
        return text;
    }
    path += size - (SHOWN_PATH - 4);
    while (((unsigned char)*path & 0xc0) == 0x80) { /* not in the middle of a UTF-8 sequence */
        path++;
    }
    memcpy(text, "...", 3);
    memcpy(text + 3, path, strlen(path) + 1);
    return text;
}

/* Not strerror: it depends on the locale, and may keep its text in memory shared by threads. */
static const char *words(int code, char text[32]) {
    static const struct {
        int code;
        const char *words;
    } known[] = {
        {ENOENT, "no such file or folder"},
        {EACCES, "permission denied"},
        {EPERM, "operation not permitted"},
        {ENOTDIR, "a part of the path is not a folder"},
        {EISDIR, "it is a folder"},
        {ENAMETOOLONG, "the path is too long"},
        {ELOOP, "too many links in the path"},
        {EMFILE, "this process has too many open files"},
        {ENFILE, "the system has too many open files"},
        {ENOMEM, "out of memory"},
        {EAGAIN, "the system is out of resources or limits them"},
        {ENOSPC, "no space left"},
        {EDQUOT, "disk quota exceeded"},
        {EFBIG, "larger than files may be here"},
        {EIO, "input/output error"},
        {EROFS, "the file system is read-only"},
        {ETXTBSY, "the file is in use as a program"},
        {ENODEV, "the file system cannot map files"},
        {EXDEV, "it is on another file system"},
        {EBUSY, "the device is busy"},
        {ENXIO, "no such device"},
        {ESTALE, "the network file has gone"},
        {EEXIST, "the file exists"},
    };
    for (size_t i = 0; i < sizeof known / sizeof *known; i++) {
        if (known[i].code == code) {
            return known[i].words;
        }
    }
    snprintf(text, 32, "system error %d", code);
    return text;
}

static const char *kind_of(mode_t mode) {
    return S_ISDIR(mode)    ? "a directory"
           : S_ISFIFO(mode) ? "a pipe"
           : S_ISSOCK(mode) ? "a socket"
           : S_ISCHR(mode)  ? "a device"
           : S_ISBLK(mode)  ? "a disk device"
                            : "not a regular file";
}

static lmi_status check_path(const char *path, lmi_error *error) {
    if (path == NULL || *path == '\0') {
        fail(error, LMI_INVALID_ARGUMENT, "the file name is empty");
        remedy(error, "Give the path of a file.");
        return LMI_INVALID_ARGUMENT;
    }
    size_t size = strlen(path);
    if (size >= PATH_MAX) {
        char shown[SHOWN_PATH];
        fail(error, LMI_IO, "the path is too long (%zu bytes, at most %d): %s", size, PATH_MAX - 1, show(path, shown));
        remedy(error, "Use a shorter path, or a relative one.");
        return LMI_IO;
    }
    return LMI_OK;
}

/* ---- reading ----------------------------------------------------------------------------------------------------- */

static lmi_status fail_open(const char *path, int code, lmi_error *error) {
    char shown[SHOWN_PATH], text[32];
    if (code == ENOENT || code == ENOTDIR) {
        fail(error, LMI_IO, "no such file: %s", show(path, shown));
        remedy(error, "Check the name and the folder.");
    } else if (code == EACCES || code == EPERM) {
        fail(error, LMI_IO, "cannot read %s: permission denied", show(path, shown));
        remedy(error, "Make it readable for this user, with chmod or chown.");
    } else {
        fail(error, LMI_IO, "cannot open %s: %s", show(path, shown), words(code, text));
    }
    return LMI_IO;
}

static lmi_status check_kind(const char *path, mode_t mode, lmi_error *error) {
    if (S_ISREG(mode)) {
        return LMI_OK;
    }
    char shown[SHOWN_PATH];
    show(path, shown);
    fail(error, LMI_IO, "%s is %s", shown, kind_of(mode));
    if (S_ISDIR(mode)) {
        remedy(error, "Give a file that lies in it; of a Hugging Face folder, lmi convert makes one.");
    } else {
        remedy(error, "Only regular files can be read: copy it to one first.");
    }
    return LMI_IO;
}

static lmi_status map_whole(const char *path, file_view *view, lmi_error *error) {
    void *bytes = mmap(NULL, (size_t)view->size, PROT_READ, MAP_SHARED, view->fd, 0);
    if (bytes == MAP_FAILED) {
        char shown[SHOWN_PATH], text[32], size[32];
        lmi_status status = errno == ENOMEM ? LMI_OUT_OF_MEMORY : LMI_IO;
        fail(error, status, "cannot map %s (%s): %s", show(path, shown), human_bytes(view->size, size), words(errno, text));
        remedy(error,
               status == LMI_IO ? "Read it into memory instead: --no-mmap" : "Raise the limit of address space (ulimit -v).");
        return status;
    }
    memory_in_large_pages(bytes, (size_t)view->size);
    view->bytes = bytes;
    view->mapped = true;
    return LMI_OK;
}

static lmi_status read_whole(const char *path, file_view *view, lmi_error *error) {
    char shown[SHOWN_PATH], text[32], size[32], free_text[32];
    lmi_memory memory;
    memory_now(&memory);
    /* Asked first: Linux grants memory that it does not have, and kills the process when it is touched. */
    if (memory.available_bytes > 0 && view->size > memory.available_bytes) {
        fail(error, LMI_OUT_OF_MEMORY, "reading %s into memory needs %s, %s free", show(path, shown),
             human_bytes(view->size, size), human_bytes(memory.available_bytes, free_text));
        remedy(error, "Leave the file mapped: without --no-mmap.");
        return LMI_OUT_OF_MEMORY;
    }
    void *bytes = NULL;
    if (posix_memalign(&bytes, LARGE_PAGE, (size_t)view->size) != 0) {
        fail(error, LMI_OUT_OF_MEMORY, "no memory to read %s (%s)", show(path, shown), human_bytes(view->size, size));
        remedy(error, "Leave the file mapped: without --no-mmap.");
        return LMI_OUT_OF_MEMORY;
    }
    memory_in_large_pages(bytes, (size_t)view->size);
    view->bytes = bytes;
    for (uint64_t done = 0; done < view->size;) {
        uint64_t left = view->size - done;
        size_t n = left < LARGEST_TRANSFER ? (size_t)left : LARGEST_TRANSFER;
        ssize_t got = pread(view->fd, (uint8_t *)bytes + done, n, (off_t)done);
        if (got < 0 && errno == EINTR) {
            continue;
        }
        if (got < 0) {
            return fail_at(error, LMI_IO, done, "cannot read %s: %s", show(path, shown), words(errno, text));
        }
        if (got == 0) {
            fail_at(error, LMI_IO, done, "%s became shorter while it was read (%s of %s)", show(path, shown),
                    human_bytes(done, text), human_bytes(view->size, size));
            remedy(error, "Wait until whatever writes it is done.");
            return LMI_IO;
        }
        done += (uint64_t)got;
    }
    close(view->fd); /* it was only read from */
    view->fd = -1;
    return LMI_OK;
}

static lmi_status open_view(const char *path, bool map, file_view *view, lmi_error *error) {
    struct stat info;
    char shown[SHOWN_PATH];
    lmi_status status;
    /* The kind is asked before opening, which can have effects on devices, and again after, when nobody can swap the file. */
    if (stat(path, &info) != 0) {
        return fail_open(path, errno, error);
    }
    if ((status = check_kind(path, info.st_mode, error)) != LMI_OK) {
        return status;
    }
    do {
        view->fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK | O_NOCTTY);
    } while (view->fd < 0 && errno == EINTR);
    if (view->fd < 0 || fstat(view->fd, &info) != 0) {
        return fail_open(path, errno, error);
    }
    if ((status = check_kind(path, info.st_mode, error)) != LMI_OK) {
        return status;
    }
    if (info.st_size <= 0) {
        fail_at(error, LMI_BAD_FORMAT, 0, "%s is empty", show(path, shown));
        remedy(error, "Download or save it again.");
        return LMI_BAD_FORMAT;
    }
    view->size = (uint64_t)info.st_size;
    if (view->size > SIZE_MAX / 2) {
        return fail(error, LMI_UNSUPPORTED, "%s is larger than this machine can address", show(path, shown));
    }
    return map ? map_whole(path, view, error) : read_whole(path, view, error);
}

lmi_status file_open(const char *path, bool map, file_view *view, lmi_error *error) {
    *view = (file_view){.fd = -1};
    lmi_status status = check_path(path, error);
    if (status == LMI_OK && (status = open_view(path, map, view, error)) != LMI_OK) {
        file_close(view);
    }
    return status;
}

void file_close(file_view *view) {
    if (view->mapped) {
        munmap((void *)(uintptr_t)view->bytes, (size_t)view->size);
    } else {
        free((void *)(uintptr_t)view->bytes);
    }
    if (view->fd >= 0) {
        close(view->fd);
    }
    *view = (file_view){.fd = -1};
}

lmi_status file_check(const file_view *view, lmi_error *error) {
    if (!view->mapped) {
        return LMI_OK;
    }
    struct stat info;
    char text[32], was[32];
    if (fstat(view->fd, &info) != 0) {
        return fail(error, LMI_IO, "cannot look at the open file: %s", words(errno, text));
    }
    if (info.st_size < 0 || (uint64_t)info.st_size < view->size) {
        fail(error, LMI_IO, "the file became shorter while in use (%s bytes of %s are left)",
             group_digits(info.st_size < 0 ? 0 : (uint64_t)info.st_size, text), group_digits(view->size, was));
        remedy(error, "Put the whole file back and start again; with --no-mmap it is read into memory once.");
        return LMI_IO;
    }
    return LMI_OK;
}

void file_prefetch(const file_view *view, uint64_t offset, uint64_t size) {
    if (!view->mapped || offset >= view->size) {
        return;
    }
    uint64_t end = size < view->size - offset ? offset + size : view->size;
    long page = sysconf(_SC_PAGESIZE);
    uint64_t start = page > 0 ? offset - offset % (uint64_t)page : offset;
    if (end > start) {
        (void)madvise((void *)(uintptr_t)(view->bytes + start), (size_t)(end - start), MADV_WILLNEED);
    }
}

void file_drop(const file_view *view, const void *bytes, uint64_t size) {
    /* Linux maps so many bytes of a file at a time. What of them is a neighbour's can be read again. */
    enum { TOGETHER = 1 << 16 };
    const uintptr_t begin = (uintptr_t)view->bytes, from = (uintptr_t)bytes;
    /* Of memory that is no file's, the same call would forget what is in it. */
    if (!view->mapped || from < begin || from - begin > view->size || size > view->size - (from - begin)) {
        return;
    }
    const uintptr_t first = from / TOGETHER * TOGETHER, start = first > begin ? first : begin;
    const uintptr_t last = (from + size + TOGETHER - 1) / TOGETHER * TOGETHER, all = begin + view->size;
    (void)madvise((void *)start, (size_t)((last < all ? last : all) - start), MADV_DONTNEED);
}

/* ---- writing ----------------------------------------------------------------------------------------------------- */

/* The folder that `path` is in. */
static void folder_of(const char *path, char folder[PATH_MAX]) {
    const char *slash = strrchr(path, '/');
    size_t size = slash == NULL ? 0 : slash == path ? 1 : (size_t)(slash - path);
    memcpy(folder, path, size);
    folder[size] = '\0';
    if (size == 0) {
        memcpy(folder, ".", 2);
    }
}

/* The permissions that a new file gets. Asking umask() would change it for a moment, for all threads: /proc only reads it. */
static mode_t default_mode(void) {
    char text[512];
    int fd = open("/proc/self/status", O_RDONLY | O_CLOEXEC);
    ssize_t n = fd < 0 ? 0 : read(fd, text, sizeof text - 1);
    if (fd >= 0) {
        close(fd);
    }
    text[n > 0 ? n : 0] = '\0';
    const char *line = strstr(text, "\nUmask:");
    if (line == NULL) {
        return 0600;
    }
    line += strlen("\nUmask:");
    while (*line == ' ' || *line == '\t') {
        line++;
    }
    unsigned mask = 0;
    for (int i = 0; i < 6 && *line >= '0' && *line <= '7'; i++, line++) {
        mask = mask * 8 + (unsigned)(*line - '0');
    }
    return (mode_t)(0666u & ~mask);
}

/* Bytes that this user can still write in a folder; false if the file system does not say. */
static bool free_space(const char *folder, uint64_t *bytes) {
    struct statvfs info;
    return statvfs(folder, &info) == 0 && info.f_blocks > 0 && info.f_frsize > 0 &&
           ck_mul((uint64_t)info.f_bavail, (uint64_t)info.f_frsize, bytes);
}

static lmi_status fail_space(const char *path, uint64_t needed, lmi_error *error) {
    char shown[SHOWN_PATH], folder[PATH_MAX], needs[32], left[32];
    uint64_t available = 0;
    folder_of(path, folder);
    if (!free_space(folder, &available)) {
        fail(error, LMI_NO_SPACE, "cannot write %s: no space left; nothing was left behind", show(path, shown));
    } else {
        fail(error, LMI_NO_SPACE, "cannot write %s: no space left (needs %s, %s free); nothing was left behind",
             show(path, shown), human_bytes(needed, needs), human_bytes(available, left));
    }
    remedy(error, "Free some space, or write to another disk.");
    return LMI_NO_SPACE;
}

/* Says why, and removes what was written so far. */
static lmi_status fail_write(file_writer *writer, int code, lmi_error *error) {
    char shown[SHOWN_PATH], text[32];
    file_abandon(writer);
    if (code == ENOSPC || code == EDQUOT) {
        return fail_space(writer->path, writer->needed > writer->written ? writer->needed : writer->written, error);
    }
    fail(error, LMI_IO, "cannot write %s: %s; nothing was left behind", show(writer->path, shown), words(code, text));
    if (code == EFBIG) {
        remedy(error, "Raise the limit of file size (ulimit -f), or use a file system that allows larger files.");
    } else if (code == EACCES || code == EPERM || code == EROFS) {
        remedy(error, "Choose a folder that this user can write to.");
    } else if (code == ENOENT || code == ENOTDIR) {
        remedy(error, "Make the folder first, with mkdir -p.");
    } else if (code == ENAMETOOLONG) {
        remedy(error, "Use a shorter name: while it is written, the file has 30 characters more.");
    }
    return LMI_IO;
}

/* A name that no other writer uses; O_EXCL makes sure. */
static void name_partial(file_writer *writer, int attempt) {
    struct timespec now = {0};
    clock_gettime(CLOCK_MONOTONIC, &now);
    uint64_t z = (uint64_t)now.tv_nsec + ((uint64_t)now.tv_sec << 30) + ((uint64_t)attempt << 50) + (uint64_t)(uintptr_t)writer;
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
    snprintf(writer->partial, sizeof writer->partial, "%s.partial-%ld-%08x", writer->path, (long)getpid(), (unsigned)(z >> 32));
}

/* What is there already: only a regular file is replaced (as root, a rename would replace /dev/null itself); a link keeps
 * standing, and the file that it leads to is replaced. */
static lmi_status resolve_target(const char *path, file_writer *writer, lmi_error *error) {
    char shown[SHOWN_PATH], text[32];
    struct stat info;
    memcpy(writer->path, path, strlen(path) + 1);
    writer->mode = 0;
    if (lstat(path, &info) != 0) {
        return errno == ENOENT ? LMI_OK : fail_write(writer, errno, error);
    }
    if (S_ISLNK(info.st_mode)) {
        char resolved[PATH_MAX];
        if (realpath(path, resolved) == NULL || strlen(resolved) >= sizeof writer->path || stat(resolved, &info) != 0) {
            fail(error, LMI_IO, "cannot write %s: it is a link that cannot be followed: %s", show(path, shown),
                 words(errno, text));
            remedy(error, "Remove the link, or make the place it leads to.");
            return LMI_IO;
        }
        memcpy(writer->path, resolved, strlen(resolved) + 1);
    }
    if (!S_ISREG(info.st_mode)) {
        fail(error, LMI_IO, "cannot write %s: it is %s", show(path, shown), kind_of(info.st_mode));
        remedy(error, "Choose the name of a new file or of a regular one.");
        return LMI_IO;
    }
    writer->mode = (uint32_t)(info.st_mode & 0777);
    return LMI_OK;
}

lmi_status file_create(const char *path, uint64_t size_needed, file_writer *writer, lmi_error *error) {
    writer->fd = -1;
    writer->needed = size_needed;
    writer->written = 0;
    writer->path[0] = writer->partial[0] = '\0';
    lmi_status status = check_path(path, error);
    if (status != LMI_OK || (status = resolve_target(path, writer, error)) != LMI_OK) {
        return status;
    }
    char folder[PATH_MAX];
    uint64_t available;
    folder_of(writer->path, folder);
    if (free_space(folder, &available) && size_needed > available) {
        return fail_space(writer->path, size_needed, error);
    }
    if (writer->mode == 0) {
        writer->mode = (uint32_t)default_mode();
    }
    for (int attempt = 0;; attempt++) {
        name_partial(writer, attempt);
        writer->fd = open(writer->partial, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC | O_NOFOLLOW, 0600);
        if (writer->fd >= 0) {
            return LMI_OK;
        }
        if ((errno != EEXIST && errno != EINTR) || attempt == 100) {
            return fail_write(writer, errno, error);
        }
    }
}

lmi_status file_write(file_writer *writer, const void *bytes, size_t size, lmi_error *error) {
    if (writer->fd < 0) {
        return fail(error, LMI_IO, "cannot write %.300s: an earlier write failed", writer->path);
    }
    /* Going past RLIMIT_FSIZE sends SIGXFSZ, which ends a process that does not expect it: stop before. */
    struct rlimit limit;
    if (getrlimit(RLIMIT_FSIZE, &limit) == 0 && limit.rlim_cur != RLIM_INFINITY &&
        (writer->written > limit.rlim_cur || size > limit.rlim_cur - writer->written)) {
        return fail_write(writer, EFBIG, error);
    }
    for (size_t done = 0; done < size;) {
        size_t n = size - done < LARGEST_TRANSFER ? size - done : LARGEST_TRANSFER;
        ssize_t put = write(writer->fd, (const uint8_t *)bytes + done, n);
        if (put < 0 && errno == EINTR) {
            continue;
        }
        if (put <= 0) {
            return fail_write(writer, put == 0 ? EIO : errno, error);
        }
        done += (size_t)put;
        writer->written += (uint64_t)put;
    }
    return LMI_OK;
}

static int sync_file(int fd) {
    int result;
    do {
        result = fsync(fd);
    } while (result != 0 && errno == EINTR);
    return result;
}

lmi_status file_commit(file_writer *writer, lmi_error *error) {
    if (writer->fd < 0) {
        return fail(error, LMI_IO, "cannot write %.300s: an earlier write failed", writer->path);
    }
    if (fchmod(writer->fd, (mode_t)writer->mode) != 0 || sync_file(writer->fd) != 0) {
        return fail_write(writer, errno, error);
    }
    int fd = writer->fd;
    writer->fd = -1;
    if ((close(fd) != 0 && errno != EINTR) || rename(writer->partial, writer->path) != 0) { /* NFS reports a full disk here */
        return fail_write(writer, errno, error);
    }
    writer->partial[0] = '\0';
    /* The name itself is durable once the folder is. Some file systems and permissions do not let a folder be synced: then
     * the system does it in its own time. The new file is whole either way. */
    char folder[PATH_MAX];
    folder_of(writer->path, folder);
    fd = open(folder, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (fd < 0) {
        return LMI_OK;
    }
    int code = sync_file(fd) == 0 ? 0 : errno;
    close(fd);
    if (code == EIO || code == ENOSPC || code == EDQUOT) {
        char shown[SHOWN_PATH], text[32];
        return fail(error, LMI_IO, "%s was written, but its folder may not survive a power cut: %s", show(writer->path, shown),
                    words(code, text));
    }
    return LMI_OK;
}

void file_abandon(file_writer *writer) {
    if (writer->fd >= 0) {
        close(writer->fd);
        writer->fd = -1;
    }
    if (writer->partial[0] != '\0') {
        unlink(writer->partial);
        writer->partial[0] = '\0';
    }
}
