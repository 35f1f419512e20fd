/* Large ranges: zeroed, taken page by page, in memory or in a file that no name leads to; and what happens where there is no room. */
#define _GNU_SOURCE
#include "files.h"

#include <signal.h>
#include <sys/resource.h>

#include "base/memory.h"
#include "base/spill.h"

enum { MIB = 1 << 20 };

static int files_in(const char *folder) {
    DIR *dir = opendir(folder);
    int n = -2; /* . and .. */
    while (dir != NULL && readdir(dir) != NULL) {
        n++;
    }
    closedir(dir);
    return n;
}

static void test_range(const char *folder) {
    spill range;
    lmi_error error = {0};
    CHECK(spill_open(folder, 8 * MIB + 5, &range, &error) == LMI_OK, "%s", error.message);
    CHECK(range.size == 8 * MIB + 5 && (folder == NULL || files_in(folder) == 0), "the file has a name");
    uint8_t *bytes = range.bytes;
    for (size_t i = 0; i < range.size; i += 997) {
        CHECK(bytes[i] == 0);
        bytes[i] = (uint8_t)(i * 31);
    }
    for (size_t i = 0; i < range.size; i += 997) {
        CHECK(bytes[i] == (uint8_t)(i * 31));
    }
    spill_close(&range);
    CHECK(range.bytes == NULL && range.size == 0);
    spill_close(&range); /* {0} */
}

static void test_untouched_pages_are_free(void) {
    spill range;
    lmi_error error = {0};
    CHECK(spill_open(NULL, (uint64_t)1 << 34, &range, &error) == LMI_OK, "%s", error.message);
    ((uint8_t *)range.bytes)[(uint64_t)1 << 33] = 1;
    lmi_memory memory;
    lmi_memory_now(&memory);
    CHECK(memory.resident_bytes < (uint64_t)1 << 31, "%llu", (unsigned long long)memory.resident_bytes);
    spill_close(&range);
}

static void refused(const char *folder, uint64_t size, lmi_status expected) {
    spill range = {(void *)1, 1};
    lmi_error error = {0};
    const lmi_status status = spill_open(folder, size, &range, &error);
    CHECK(status == expected && error.message[0] != '\0', "status %d: %s", (int)status, error.message);
    CHECK(range.bytes == NULL && range.size == 0);
    spill_close(&range);
}

int main(void) {
    folder_make();
    mkdir(in_folder("spill"), 0755);
    char folder[4096];
    snprintf(folder, sizeof folder, "%s", in_folder("spill"));
    spill none;
    CHECK(spill_open(folder, 0, &none, NULL) == LMI_OK && none.bytes == NULL);
    test_range(NULL);
    test_range(folder);
#if !defined(__SANITIZE_ADDRESS__) && !defined(__SANITIZE_THREAD__)
    test_untouched_pages_are_free();
#endif
    refused(NULL, UINT64_MAX, LMI_OUT_OF_MEMORY);
    refused(NULL, (uint64_t)INT64_MAX, LMI_OUT_OF_MEMORY);
    refused("/no/such/folder", MIB, LMI_IO);
    refused("/proc/self/status", MIB, LMI_IO);
    signal(SIGXFSZ, SIG_IGN);
    const struct rlimit old = {RLIM_INFINITY, RLIM_INFINITY}, limit = {MIB, RLIM_INFINITY};
    if (setrlimit(RLIMIT_FSIZE, &limit) == 0) { /* as on a full disk */
        refused(folder, 2 * MIB, LMI_NO_SPACE);
        CHECK(files_in(folder) == 0);
        CHECK(setrlimit(RLIMIT_FSIZE, &old) == 0);
    }
    folder_remove();
    return check_report();
}
