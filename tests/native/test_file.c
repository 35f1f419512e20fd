/* Files: what cannot be opened and why, mapped and read alike, writing whole or not at all, every call failing in turn. */
#define _GNU_SOURCE
#include "files.h"

#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/un.h>

#include "base/file.h"
#include "base/memory.h"

static const char old_bytes[] = "what was there before", new_bytes[] = "what comes now, and is somewhat longer";
enum { OLD = sizeof old_bytes, NEW = sizeof new_bytes };

static bool says(const lmi_error *error, const char *part) {
    return strstr(error->message, part) != NULL && strchr(error->message, '\n') == NULL;
}

static void refuse(const char *path, lmi_status expected, const char *message, const char *advice) {
    for (int map = 0; map < 2; map++) {
        file_view view;
        lmi_error error = {0};
        int before = open_files();
        lmi_status status = file_open(path, map, &view, &error);
        CHECK(status == expected && error.status == expected, "%s: status %d", path ? path : "NULL", (int)status);
        CHECK(says(&error, message), "%s", error.message);
        CHECK(strstr(error.remedy, advice) != NULL, "%s", error.remedy);
        CHECK(view.bytes == NULL && view.fd == -1 && open_files() == before);
        file_close(&view); /* harmless */
    }
}

/* ---- reading ----------------------------------------------------------------------------------------------------- */

static void test_what_cannot_be_read(void) {
    char path[5000], expected[700];
    refuse(NULL, LMI_INVALID_ARGUMENT, "the file name is empty", "path");
    refuse("", LMI_INVALID_ARGUMENT, "the file name is empty", "path");
    refuse("modle.gguf", LMI_IO, "no such file: modle.gguf", "name");
    refuse(in_folder("a/b/c"), LMI_IO, "no such file: ", "");
    snprintf(expected, sizeof expected, "%s is a directory", folder);
    refuse(folder, LMI_IO, expected, "Give a file that lies in it");
    refuse("/dev/null", LMI_IO, "/dev/null is a device", "");
    mkfifo(in_folder("pipe"), 0600);
    refuse(in_folder("pipe"), LMI_IO, "is a pipe", ""); /* and does not wait for a writer */
    put_file(in_folder("empty"), "", 0);
    refuse(in_folder("empty"), LMI_BAD_FORMAT, "empty is empty", "again");
    put_file(in_folder("file"), old_bytes, OLD);
    refuse(in_folder("file/below"), LMI_IO, "no such file: ", "");
    CHECK(symlink("nowhere", in_folder("dangling")) == 0 && symlink("loop", in_folder("loop")) == 0);
    refuse(in_folder("dangling"), LMI_IO, "no such file: ", "");
    refuse(in_folder("loop"), LMI_IO, "too many links in the path", "");
    refuse("two\nlines", LMI_IO, "no such file: two?lines", "");

    int end = socket(AF_UNIX, SOCK_STREAM, 0);
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    snprintf(address.sun_path, sizeof address.sun_path, "%.90s/socket", folder);
    CHECK(bind(end, (struct sockaddr *)&address, sizeof address) == 0);
    refuse(address.sun_path, LMI_IO, "is a socket", "");
    close(end);

    memset(path, 'a', sizeof path - 1);
    path[sizeof path - 1] = '\0';
    refuse(path, LMI_IO, "the path is too long (4999 bytes, at most 4095): ...aaa", "shorter");
    path[4095] = '\0'; /* the longest path, but a name that no file system has */
    refuse(path, LMI_IO, "the path is too long", "");
}

static int read_as_nobody(void) {
    file_view view;
    lmi_error error = {0};
    if (setuid(65534) != 0) {
        return 99;
    }
    return file_open(in_folder("secret"), true, &view, &error) == LMI_IO && says(&error, "secret: permission denied") &&
                   strstr(error.remedy, "chmod") != NULL
               ? 0
               : 1;
}

static int write_as_nobody(void) {
    file_writer writer;
    lmi_error error = {0};
    if (setuid(65534) != 0) {
        return 99;
    }
    return file_create(in_folder("locked/new"), 1, &writer, &error) == LMI_IO &&
                   says(&error, "permission denied; nothing was left behind") && error.remedy[0] != '\0'
               ? 0
               : 1;
}

static void test_permissions(void) {
    put_file(in_folder("secret"), old_bytes, OLD);
    chmod(in_folder("secret"), 0);
    chmod(folder, 0755);
    mkdir(in_folder("locked"), 0555);
    int result = in_child(read_as_nobody);
    CHECK(result == 0 || result == 99, "%d", result);
    result = in_child(write_as_nobody);
    CHECK(result == 0 || result == 99, "%d", result);
}

static void test_reading(void) {
    enum { SIZE = 100003 };
    static unsigned char bytes[SIZE];
    uint64_t random = 2;
    for (int i = 0; i < SIZE; i++) {
        bytes[i] = (unsigned char)check_random(&random);
    }
    put_file(in_folder("data"), bytes, SIZE);
    CHECK(symlink("data", in_folder("link")) == 0);
    for (int map = 0; map < 2; map++) {
        file_view view;
        lmi_error error = {0};
        int before = open_files();
        CHECK(file_open(in_folder(map ? "link" : "data"), map, &view, &error) == LMI_OK, "%s", error.message);
        CHECK(view.size == SIZE && memcmp(view.bytes, bytes, SIZE) == 0 && view.mapped == map && (view.fd >= 0) == map);
        CHECK((uintptr_t)view.bytes % 64 == 0);
        CHECK(open_files() == before + map, "only a mapped file stays open");
        CHECK(map == 0 || (fcntl(view.fd, F_GETFD) & FD_CLOEXEC) != 0);
        file_prefetch(&view, 0, SIZE);
        file_prefetch(&view, 5000, UINT64_MAX);
        file_prefetch(&view, UINT64_MAX, UINT64_MAX);
        file_prefetch(&view, SIZE, 1);
        file_prefetch(&view, SIZE - 1, 0);
        static unsigned char other[1 << 18]; /* beside the file, whole pages of it */
        memset(other, 7, sizeof other);
        file_drop(&view, view.bytes, SIZE);
        file_drop(&view, view.bytes + 70000, 1000);
        file_drop(&view, view.bytes + SIZE, 0);
        file_drop(&view, other, sizeof other);
        file_drop(&view, view.bytes - 4096, 4096);
        file_drop(&view, view.bytes, UINT64_MAX);
        CHECK(memcmp(view.bytes, bytes, SIZE) == 0 && other[100000] == 7, "what was dropped is there again");
        CHECK(file_check(&view, &error) == LMI_OK);
        FILE *more = fopen(in_folder("data"), "ab");
        fputc('x', more);
        fclose(more);
        CHECK(file_check(&view, &error) == LMI_OK, "a longer file is no harm");
        CHECK(truncate(in_folder("data"), SIZE - 1) == 0);
        CHECK(file_check(&view, &error) == (map ? LMI_IO : LMI_OK));
        CHECK(!map || says(&error, "became shorter while in use (100,002 bytes of 100,003 are left)"), "%s", error.message);
        CHECK(!map || strstr(error.remedy, "--no-mmap") != NULL);
        file_close(&view);
        CHECK(view.bytes == NULL && view.fd == -1 && !view.mapped && open_files() == before);
        file_close(&view);
        put_file(in_folder("data"), bytes, SIZE);
    }
}

static lmi_status write_all(const char *path, const void *bytes, size_t size, lmi_error *error) {
    file_writer writer;
    lmi_status status = file_create(path, size, &writer, error);
    if (status == LMI_OK) {
        status = file_write(&writer, bytes, size / 2, error);
    }
    if (status == LMI_OK) {
        status = file_write(&writer, (const char *)bytes + size / 2, size - size / 2, error);
    }
    if (status == LMI_OK) {
        status = file_commit(&writer, error);
    }
    file_abandon(&writer);
    return status;
}

static void test_reading_in_trouble(void) {
    file_view view;
    lmi_error error = {0};
    put_file(in_folder("data"), old_bytes, OLD);
    io_fail(CALL_PREAD, 1, 0, false); /* a byte at a time */
    CHECK(file_open(in_folder("data"), false, &view, &error) == LMI_OK && memcmp(view.bytes, old_bytes, OLD) == 0);
    CHECK(io_fault[CALL_PREAD].calls == OLD);
    file_close(&view);
    io_fail(CALL_PREAD, 1, EINTR, true);
    CHECK(file_open(in_folder("data"), false, &view, &error) == LMI_OK && memcmp(view.bytes, old_bytes, OLD) == 0);
    CHECK(io_fault[CALL_PREAD].calls == 2);
    file_close(&view);
    int before = open_files();
    io_fail(CALL_PREAD, 1, EIO, false);
    CHECK(file_open(in_folder("data"), false, &view, &error) == LMI_IO && says(&error, "data: input/output error"), "%s",
          error.message);
    CHECK(view.bytes == NULL && open_files() == before);
    io_fail(CALL_PREAD, 1, -1, false); /* the file has just been cut */
    CHECK(file_open(in_folder("data"), false, &view, &error) == LMI_IO && says(&error, "became shorter while it was read"),
          "%s", error.message);
    CHECK(view.bytes == NULL && open_files() == before);
    io_fail(CALL_WRITE, 1, -1, false); /* and nothing more can be written: an error, not a loop */
    put_file(in_folder("out"), old_bytes, OLD);
    CHECK(write_all(in_folder("out"), new_bytes, NEW, &error) == LMI_IO && file_equals(in_folder("out"), old_bytes, OLD));
    io_clear();
}

#if !defined(__SANITIZE_ADDRESS__) && !defined(__SANITIZE_THREAD__) /* these have reserved terabytes already */
/* Reads a file of 1 GiB, all holes, with 256 MiB of address space left. */
static int open_without_memory(void) {
    file_view view;
    lmi_error error = {0};
    lmi_memory memory;
    memory_now(&memory);
    struct rlimit limit = {memory.resident_bytes + (256 << 20), RLIM_INFINITY};
    struct rlimit set = {0};
    if (setrlimit(RLIMIT_AS, &limit) != 0 || getrlimit(RLIMIT_AS, &set) != 0 || set.rlim_cur != limit.rlim_cur) {
        return 99; /* qemu-user does not pass this limit on */
    }
    int n_open = open_files();
    bool good = file_open(in_folder("holes"), false, &view, &error) == LMI_OUT_OF_MEMORY && says(&error, "(1.00 GiB)") &&
                strstr(error.remedy, "--no-mmap") != NULL && view.fd == -1;
    good = good && file_open(in_folder("holes"), true, &view, &error) == LMI_OUT_OF_MEMORY && says(&error, "cannot map ") &&
           strstr(error.remedy, "ulimit -v") != NULL && view.fd == -1;
    return good && open_files() == n_open ? 0 : 1;
}
#else
static int open_without_memory(void) { return 99; }
#endif

static void test_memory_is_short(void) {
    file_view view;
    lmi_error error = {0};
    put_file(in_folder("holes"), "", 0);
    if (truncate(in_folder("holes"), (off_t)1 << 42) == 0) { /* 4 TiB: nobody has that */
        CHECK(file_open(in_folder("holes"), false, &view, &error) == LMI_OUT_OF_MEMORY);
        CHECK(says(&error, "into memory needs 4.00 TiB, ") && strstr(error.remedy, "without --no-mmap") != NULL, "%s",
              error.message);
        CHECK(view.bytes == NULL && view.fd == -1);
    }
    CHECK(truncate(in_folder("holes"), (off_t)1 << 30) == 0);
    int result = in_child(open_without_memory);
    CHECK(result == 0 || result == 99, "%d", result);
    remove(in_folder("holes"));
}

/* ---- writing ----------------------------------------------------------------------------------------------------- */

static unsigned mode_of(const char *path) {
    struct stat info;
    return stat(path, &info) == 0 ? (unsigned)info.st_mode & 07777 : 0;
}

static void test_writing(void) {
    lmi_error error = {0};
    int before = open_files();
    const mode_t masks[] = {022, 077, 0, 027};
    for (int i = 0; i < 4; i++) {
        mode_t old = umask(masks[i]);
        CHECK(write_all(in_folder("out"), new_bytes, NEW, &error) == LMI_OK, "%s", error.message);
        umask(old);
        CHECK(mode_of(in_folder("out")) == (0666u & ~masks[i]), "%o with umask %o", mode_of(in_folder("out")),
              (unsigned)masks[i]);
        CHECK(file_equals(in_folder("out"), new_bytes, NEW));
        remove(in_folder("out"));
    }
    put_file(in_folder("out"), old_bytes, OLD);
    chmod(in_folder("out"), 0640);
    CHECK(write_all(in_folder("out"), new_bytes, NEW, &error) == LMI_OK && file_equals(in_folder("out"), new_bytes, NEW));
    CHECK(mode_of(in_folder("out")) == 0640, "a replaced file keeps its permissions");
    CHECK(partials() == 0 && open_files() == before);

    file_writer writer;
    CHECK(file_create(in_folder("out"), 0, &writer, &error) == LMI_OK);
    CHECK(strncmp(writer.partial, in_folder("out.partial-"), strlen(in_folder("out.partial-"))) == 0, "%s", writer.partial);
    CHECK(mode_of(writer.partial) == 0600 && partials() == 1, "nobody else reads a file half written");
    CHECK((fcntl(writer.fd, F_GETFD) & FD_CLOEXEC) != 0);
    CHECK(file_write(&writer, old_bytes, 3, &error) == LMI_OK);
    CHECK(file_equals(in_folder("out"), new_bytes, NEW), "the old file is there until the commit");
    file_abandon(&writer);
    file_abandon(&writer);
    CHECK(partials() == 0 && file_equals(in_folder("out"), new_bytes, NEW) && open_files() == before);
    CHECK(file_write(&writer, old_bytes, 3, &error) == LMI_IO && file_commit(&writer, &error) == LMI_IO, "it is closed");
    CHECK(partials() == 0 && file_equals(in_folder("out"), new_bytes, NEW));

    CHECK(symlink("out", in_folder("outlink")) == 0);
    CHECK(write_all(in_folder("outlink"), old_bytes, OLD, &error) == LMI_OK);
    struct stat info;
    CHECK(lstat(in_folder("outlink"), &info) == 0 && S_ISLNK(info.st_mode) && file_equals(in_folder("out"), old_bytes, OLD),
          "a link stays one");

    CHECK(chdir(folder) == 0 && write_all("plain name", new_bytes, NEW, &error) == LMI_OK, "%s", error.message);
    CHECK(file_equals(in_folder("plain name"), new_bytes, NEW) && chdir("/") == 0);

    file_writer one, two; /* two at once: each whole, the last one stays */
    CHECK(file_create(in_folder("out"), 0, &one, &error) == LMI_OK && file_create(in_folder("out"), 0, &two, &error) == LMI_OK);
    CHECK(file_write(&one, new_bytes, NEW, &error) == LMI_OK && file_write(&two, old_bytes, OLD, &error) == LMI_OK);
    CHECK(file_commit(&two, &error) == LMI_OK && file_equals(in_folder("out"), old_bytes, OLD));
    CHECK(file_commit(&one, &error) == LMI_OK && file_equals(in_folder("out"), new_bytes, NEW) && partials() == 0);
    file_abandon(&one); /* does nothing after a commit */
    CHECK(file_equals(in_folder("out"), new_bytes, NEW) && open_files() == before);
}

static void refuse_writing(const char *path, uint64_t size, lmi_status expected, const char *message) {
    file_writer writer;
    lmi_error error = {0};
    int before = open_files(), n_before = partials();
    CHECK(file_create(path, size, &writer, &error) == expected, "%s: %s", path, error.message);
    CHECK(says(&error, message) && error.remedy[0] != '\0', "%s | %s", error.message, error.remedy);
    file_abandon(&writer);
    CHECK(open_files() == before && partials() == n_before);
}

static void test_what_cannot_be_written(void) {
    char path[5000];
    memset(path, 'a', sizeof path);
    path[4500] = '\0';
    refuse_writing("", 1, LMI_INVALID_ARGUMENT, "the file name is empty");
    refuse_writing(path, 1, LMI_IO, "the path is too long");
    path[250] = '\0'; /* a name that leaves no room for ".partial-" */
    CHECK(chdir(folder) == 0);
    refuse_writing(path, 1, LMI_IO, "the path is too long; nothing was left behind");
    CHECK(chdir("/") == 0);
    refuse_writing(folder, 1, LMI_IO, "it is a directory");
    refuse_writing("/dev/null", 1, LMI_IO, "cannot write /dev/null: it is a device");
    refuse_writing("/dev/full", 1, LMI_IO, "it is a device");
    refuse_writing(in_folder("pipe"), 1, LMI_IO, "it is a pipe");
    refuse_writing(in_folder("dangling"), 1, LMI_IO, "it is a link that cannot be followed: no such file or folder");
    refuse_writing(in_folder("none/file"), 1, LMI_IO, "no such file or folder");
    refuse_writing(in_folder("file/below"), 1, LMI_IO, "a part of the path is not a folder");
    refuse_writing(in_folder("big"), (uint64_t)1 << 60, LMI_NO_SPACE, "no space left (needs 1.00 EiB, ");
    refuse_writing(in_folder("big"), UINT64_MAX, LMI_NO_SPACE, " free); nothing was left behind");
}

static void test_writing_in_trouble(void) {
    const struct {
        file_call call;
        int code;
        lmi_status status;
        const char *message;
    } faults[] = {
        {CALL_WRITE, ENOSPC, LMI_NO_SPACE, "no space left (needs 39 B, "},
        {CALL_WRITE, EDQUOT, LMI_NO_SPACE, "no space left"},
        {CALL_WRITE, EIO, LMI_IO, "input/output error; nothing was left behind"},
        {CALL_WRITE, EFBIG, LMI_IO, "larger than files may be here"},
        {CALL_WRITE, 12345, LMI_IO, "system error 12345"},
        {CALL_FSYNC, EIO, LMI_IO, "input/output error; nothing was left behind"},
        {CALL_FSYNC, ENOSPC, LMI_NO_SPACE, "no space left"},
        {CALL_FCHMOD, EPERM, LMI_IO, "operation not permitted"},
        {CALL_RENAME, EACCES, LMI_IO, "permission denied"},
        {CALL_RENAME, ENOSPC, LMI_NO_SPACE, "no space left"},
    };
    lmi_error error = {0};
    int before = open_files();
    for (size_t i = 0; i < sizeof faults / sizeof *faults; i++) {
        for (long at = 1; at <= (faults[i].call == CALL_WRITE ? 2 : 1); at++) {
            put_file(in_folder("out"), old_bytes, OLD);
            io_fail(faults[i].call, at, faults[i].code, false);
            CHECK(write_all(in_folder("out"), new_bytes, NEW, &error) == faults[i].status, "fault %zu at %ld", i, at);
            io_clear();
            CHECK(says(&error, faults[i].message), "%s", error.message);
            CHECK(partials() == 0 && file_equals(in_folder("out"), old_bytes, OLD) && open_files() == before,
                  "fault %zu at %ld", i, at);
        }
    }
    /* a byte at a time, interrupted, then all is well */
    io_fail(CALL_WRITE, 1, 0, false);
    CHECK(write_all(in_folder("out"), new_bytes, NEW, &error) == LMI_OK && file_equals(in_folder("out"), new_bytes, NEW));
    CHECK(io_fault[CALL_WRITE].calls == NEW);
    for (long at = 1; at <= 2; at++) {
        io_fail(CALL_WRITE, at, EINTR, true);
        CHECK(write_all(in_folder("out"), old_bytes, OLD, &error) == LMI_OK && file_equals(in_folder("out"), old_bytes, OLD));
        io_fail(CALL_FSYNC, at, EINTR, true);
        CHECK(write_all(in_folder("out"), new_bytes, NEW, &error) == LMI_OK && file_equals(in_folder("out"), new_bytes, NEW));
    }
    /* the folder cannot be synced: not an error where that is not done, one where the disk fails; the file is whole */
    io_fail(CALL_FSYNC, 2, EINVAL, false);
    CHECK(write_all(in_folder("out"), old_bytes, OLD, &error) == LMI_OK && file_equals(in_folder("out"), old_bytes, OLD));
    io_fail(CALL_FSYNC, 2, EIO, false);
    CHECK(write_all(in_folder("out"), new_bytes, NEW, &error) == LMI_IO && says(&error, "was written, but"), "%s",
          error.message);
    CHECK(file_equals(in_folder("out"), new_bytes, NEW) && partials() == 0 && open_files() == before);
    io_clear();
}

/* Beyond RLIMIT_FSIZE the kernel sends SIGXFSZ, which ends a process: an error has to come first. */
static int write_beyond_limit(void) {
    lmi_error error = {0};
    struct rlimit limit = {NEW - 1, NEW - 1};
    if (setrlimit(RLIMIT_FSIZE, &limit) != 0) {
        return 99;
    }
    lmi_status status = write_all(in_folder("out"), new_bytes, NEW, &error);
    return status == LMI_IO && says(&error, "larger than files may be here; nothing was left behind") &&
                   strstr(error.remedy, "ulimit -f") != NULL
               ? 0
               : 1;
}

static int write_up_to_limit(void) {
    lmi_error error = {0};
    struct rlimit limit = {NEW, NEW};
    return setrlimit(RLIMIT_FSIZE, &limit) != 0 ? 99 : write_all(in_folder("out"), new_bytes, NEW, &error) == LMI_OK ? 0 : 1;
}

static void test_size_limit(void) {
    put_file(in_folder("out"), old_bytes, OLD);
    int result = in_child(write_beyond_limit);
    CHECK(result == 0 || result == 99, "%d", result);
    CHECK(partials() == 0 && file_equals(in_folder("out"), old_bytes, OLD));
    CHECK(in_child(write_up_to_limit) == 0 && file_equals(in_folder("out"), new_bytes, NEW));
}

int main(void) {
    folder_make();
    test_what_cannot_be_read();
    test_permissions();
    test_reading();
    test_reading_in_trouble();
    test_memory_is_short();
    test_writing();
    test_what_cannot_be_written();
    test_writing_in_trouble();
    test_size_limit();
    folder_remove();
    return check_report();
}
