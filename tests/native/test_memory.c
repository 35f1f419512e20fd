/* Memory of the process and of the system, from made-up folders of /proc and /sys, and from the real ones. */
#define _GNU_SOURCE
#include "files.h"

#include <sys/resource.h>

#include "base/cpu.h"
#include "base/memory.h"

static const uint64_t GiB = 1 << 30;

static void put(const char *path, const char *text) {
    char command[700];
    snprintf(command, sizeof command, "mkdir -p \"$(dirname '%s%s')\"", folder, path);
    CHECK(system(command) == 0);
    put_file(in_folder(path + 1), text, strlen(text));
}

static void put_number(const char *path, uint64_t value) {
    char text[32];
    snprintf(text, sizeof text, "%llu\n", (unsigned long long)value);
    put(path, text);
}

static lmi_memory look(void) {
    lmi_memory memory;
    memory_at(folder, &memory);
    return memory;
}

static void check_available(uint64_t available, uint64_t total, const char *what) {
    lmi_memory m = look();
    CHECK(m.available_bytes == available && m.total_bytes == total, "%s: %llu of %llu", what,
          (unsigned long long)m.available_bytes, (unsigned long long)m.total_bytes);
}

static void clear(void) {
    folder_remove();
    folder_make();
    put("/proc/self/status",
        "Name:\tVmRSS: 7\nVmHWM:\t    3000 kB\nVmRSS:\t    2000 kB\nRssAnon:\t     500 kB\nRssFile:\t    1500 kB\n");
    put("/proc/meminfo", "MemTotal:       16777216 kB\nMemFree:         1000000 kB\nMemAvailable:    8388608 kB\n");
}

static void test_process(void) {
    clear();
    lmi_memory m = look();
    CHECK(m.resident_bytes == 2000 * 1024 && m.peak_resident_bytes == 3000 * 1024 && m.anonymous_bytes == 500 * 1024);
    check_available(8 * GiB, 16 * GiB, "no cgroups");
    folder_remove();
    folder_make();
    m = look();
    CHECK(m.resident_bytes == 0 && m.peak_resident_bytes == 0 && m.available_bytes == 0 && m.total_bytes == 0,
          "nothing is said");
    put("/proc/meminfo", "MemTotal:  99999999999999999999999 kB\nMemAvailable:");
    put("/proc/self/status", "VmRSS: -5 kB\nVmHWM: 18446744073709551615 kB\nRssAnon:");
    m = look();
    CHECK(m.resident_bytes == 0 && m.peak_resident_bytes == 0 && m.anonymous_bytes == 0 && m.total_bytes == 0,
          "nonsense is nothing");
}

static void test_version_2(void) {
    clear();
    put("/proc/self/cgroup", "0::/user/job\n");
    check_available(8 * GiB, 16 * GiB, "no files");
    put("/sys/fs/cgroup/user/job/memory.max", "max\n");
    put_number("/sys/fs/cgroup/user/job/memory.current", 3 * GiB);
    check_available(8 * GiB, 16 * GiB, "no limit");
    put_number("/sys/fs/cgroup/user/job/memory.max", 4 * GiB);
    check_available(1 * GiB, 4 * GiB, "a limit");
    put("/sys/fs/cgroup/user/job/memory.stat", "anon 5\nactive_file 1073741824\ninactive_file 1073741824\ninactive_file_x 7\n");
    check_available(2 * GiB, 4 * GiB, "cache is free");
    put_number("/sys/fs/cgroup/user/memory.max", 5 * GiB); /* larger, but fuller */
    put_number("/sys/fs/cgroup/user/memory.current", 5 * GiB - 7);
    check_available(7, 4 * GiB, "the group above");
    put_number("/sys/fs/cgroup/user/memory.current", 6 * GiB);
    check_available(0, 4 * GiB, "over the limit");
    put_number("/sys/fs/cgroup/user/memory.max", 64 * GiB);
    check_available(2 * GiB, 4 * GiB, "a limit above what there is");
}

static void test_version_1(void) {
    clear();
    put("/proc/self/cgroup", "9:name=systemd:/\n5:cpuset,cpu:/x\n4:hugetlb,memory:/a/b\n0::/\n");
    put_number("/sys/fs/cgroup/memory/memory.limit_in_bytes", 9223372036854771712u);
    put_number("/sys/fs/cgroup/memory/memory.usage_in_bytes", 12 * GiB);
    check_available(8 * GiB, 16 * GiB, "no limit");
    put_number("/sys/fs/cgroup/memory/memory.limit_in_bytes", 2 * GiB); /* a container: its own group is the root */
    put_number("/sys/fs/cgroup/memory/memory.usage_in_bytes", GiB);
    check_available(GiB, 2 * GiB, "a container");
    put("/sys/fs/cgroup/memory/memory.stat", "cache 1\ninactive_file 5\ntotal_inactive_file 536870912\n");
    check_available(GiB + GiB / 2, 2 * GiB, "cache is free");
    put_number("/sys/fs/cgroup/memory/a/b/memory.limit_in_bytes", GiB);
    put_number("/sys/fs/cgroup/memory/a/b/memory.usage_in_bytes", GiB / 4);
    check_available(3 * GiB / 4, GiB, "a group in it");
    put("/proc/self/cgroup", "4:memory"); /* cut off */
    check_available(8 * GiB, 16 * GiB, "cut off");
    put("/proc/self/cgroup", "4:memoryx:/a/b\n5:xmemory:/a/b\nmemory:memory\n");
    check_available(8 * GiB, 16 * GiB, "other controllers");
    char line[6000];
    memset(line, 'a', sizeof line);
    memcpy(line, "0::/", 4);
    line[sizeof line - 1] = '\0';
    put("/proc/self/cgroup", line);
    check_available(8 * GiB, 16 * GiB, "a path too long to be one");
}

static void check_cores(int expected, const char *what) {
    const int n = cpu_count_at(folder, 16);
    CHECK(n == expected, "%s: %d cores", what, n);
}

/* A container that may use 16 cores for the time of a few. */
static void test_quotas(void) {
    clear();
    check_cores(16, "no cgroups");
    put("/proc/self/cgroup", "0::/user/job\n");
    put("/sys/fs/cgroup/user/job/cpu.max", "max 100000\n");
    check_cores(16, "no quota");
    put("/sys/fs/cgroup/user/job/cpu.max", "400000 100000\n");
    check_cores(4, "a quota");
    put("/sys/fs/cgroup/user/cpu.max", "150000 100000\n");
    check_cores(2, "of the group above, rounded up");
    put("/sys/fs/cgroup/user/cpu.max", "1000 100000\n");
    check_cores(1, "less than one");
    put("/sys/fs/cgroup/user/cpu.max", "99999999999 100000\n");
    check_cores(4, "more than there are");
    put("/sys/fs/cgroup/user/job/cpu.max", "400000 0\n");
    check_cores(16, "no period");
    put("/sys/fs/cgroup/user/job/cpu.max", "400000");
    check_cores(16, "half a line");
    put("/proc/self/cgroup", "3:cpu,cpuacct:/x\n2:cpuset:/y\n");
    put("/sys/fs/cgroup/cpu/x/cpu.cfs_quota_us", "-1\n");
    put("/sys/fs/cgroup/cpu/x/cpu.cfs_period_us", "100000\n");
    check_cores(16, "version 1 without a quota");
    put("/sys/fs/cgroup/cpu/cpu.cfs_quota_us", "250000\n");
    put("/sys/fs/cgroup/cpu/cpu.cfs_period_us", "50000\n");
    check_cores(5, "version 1, the container's root");
}

static void test_this_process(void) {
    lmi_memory before, after;
    memory_now(&before);
    CHECK(before.resident_bytes > 100000 && before.peak_resident_bytes >= before.resident_bytes);
    CHECK(before.anonymous_bytes <= before.resident_bytes && before.available_bytes <= before.total_bytes &&
          before.total_bytes > 0);
    const size_t size = 64 << 20;
    volatile char *block = malloc(size);
    for (size_t i = 0; i < size; i += 4096) {
        block[i] = 1;
    }
    memory_now(&after);
    CHECK(after.resident_bytes > before.resident_bytes + size - (4 << 20), "64 MiB were touched");
    CHECK(after.anonymous_bytes > before.anonymous_bytes + size - (4 << 20));
    free((void *)block);
    memory_now(&after);
    CHECK(after.peak_resident_bytes > before.resident_bytes + size - (4 << 20), "the peak stays");
}

/* A sandbox without /proc must not look like a machine without memory. */
static void test_unreadable(void) {
    struct rlimit old, none;
    CHECK(getrlimit(RLIMIT_NOFILE, &old) == 0);
    none = (struct rlimit){.rlim_cur = 0, .rlim_max = old.rlim_max};
    CHECK(setrlimit(RLIMIT_NOFILE, &none) == 0);
    lmi_memory m;
    memory_now(&m);
    CHECK(setrlimit(RLIMIT_NOFILE, &old) == 0);
    CHECK(m.total_bytes > 0 && m.available_bytes > 0 && m.available_bytes <= m.total_bytes && m.peak_resident_bytes > 0);
}

int main(void) {
    folder_make();
    test_process();
    test_version_2();
    test_version_1();
    test_quotas();
    test_this_process();
    test_unreadable();
    folder_remove();
    return check_report();
}
