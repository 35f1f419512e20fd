#define _GNU_SOURCE
#include "base/cpu.h"

#include <sched.h>
#include <stdint.h>
#include <string.h>
#include <unistd.h>

#include "base/cgroup.h"

#if defined(__x86_64__)
#include <cpuid.h>
#include <sys/syscall.h>

/* Which register files the operating system saves (XCR0). Without OSXSAVE the instruction itself would fault. */
static uint64_t enabled_state(void) {
    unsigned eax, ebx, ecx, edx;
    if (!__get_cpuid(1, &eax, &ebx, &ecx, &edx) || (ecx & bit_OSXSAVE) == 0) {
        return 0;
    }
    uint32_t low, high;
    __asm__ volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
    return ((uint64_t)high << 32) | low;
}

static bool has_avx2(void) {
    const uint64_t ymm = 0x6;
    unsigned eax, ebx, ecx, edx;
    if ((enabled_state() & ymm) != ymm || !__get_cpuid(1, &eax, &ebx, &ecx, &edx)) {
        return false;
    }
    if ((ecx & bit_FMA) == 0 || (ecx & bit_F16C) == 0) {
        return false;
    }
    return __get_cpuid_count(7, 0, &eax, &ebx, &ecx, &edx) && (ebx & bit_AVX2) != 0;
}

static bool has_avxvnni(void) {
    const unsigned avx_vnni = 1u << 4; /* bit_AVXVNNI, which older headers lack */
    unsigned eax, ebx, ecx, edx;
    if (!has_avx2() || !__get_cpuid_count(7, 0, &eax, &ebx, &ecx, &edx) || eax < 1) { /* eax: the last subleaf */
        return false;
    }
    return __get_cpuid_count(7, 1, &eax, &ebx, &ecx, &edx) && (eax & avx_vnni) != 0;
}

static bool has_avx512(void) {
    const uint64_t zmm = 0xe6;
    const unsigned needed = bit_AVX512F | bit_AVX512BW | bit_AVX512VL | bit_AVX512DQ;
    unsigned eax, ebx, ecx, edx;
    if (!has_avx2() || (enabled_state() & zmm) != zmm || !__get_cpuid_count(7, 0, &eax, &ebx, &ecx, &edx)) {
        return false;
    }
    return (ebx & needed) == needed && (ecx & bit_AVX512VNNI) != 0;
}

/* Linux (5.16 and later) gives a process the state of the tile registers when it asks, and may refuse. */
static bool has_amx(void) {
    const uint64_t tiles = 0x60000;
    const unsigned amx = 1u << 22 | 1u << 24 | 1u << 25; /* AMX-BF16, -TILE, -INT8; older headers lack them */
    unsigned eax, ebx, ecx, edx;
    if (!has_avx512() || (enabled_state() & tiles) != tiles || !__get_cpuid_count(7, 0, &eax, &ebx, &ecx, &edx) ||
        (edx & amx) != amx) {
        return false;
    }
    const long request = 0x1023, tile_data = 18; /* ARCH_REQ_XCOMP_PERM, XFEATURE_XTILE_DATA */
    return syscall(SYS_arch_prctl, request, tile_data) == 0;
}
#else
static bool has_avx2(void) { return false; }
static bool has_avxvnni(void) { return false; }
static bool has_avx512(void) { return false; }
static bool has_amx(void) { return false; }
#endif

#if defined(__aarch64__)
#include <sys/auxv.h>

/* NEON itself is always there; dot products of bytes and arithmetic with halves came with ARMv8.2, as options. */
static bool has_neon(void) {
    const unsigned long needed = HWCAP_ASIMD | HWCAP_ASIMDDP | HWCAP_FPHP | HWCAP_ASIMDHP;
    return (getauxval(AT_HWCAP) & needed) == needed;
}

bool cpu_has_i8mm(void) {
    const unsigned long i8mm = 1ul << 13; /* HWCAP2_I8MM, which older headers lack */
    return has_neon() && (getauxval(AT_HWCAP2) & i8mm) != 0;
}
#else
static bool has_neon(void) { return false; }
bool cpu_has_i8mm(void) { return false; }
#endif

bool cpu_has(lmi_isa isa) {
    switch (isa) {
    case LMI_ISA_AUTO:
    case LMI_ISA_REF:
        return true;
    case LMI_ISA_AVX2:
        return has_avx2();
    case LMI_ISA_AVXVNNI:
        return has_avxvnni();
    case LMI_ISA_AVX512:
        return has_avx512();
    case LMI_ISA_AMX:
        return has_amx();
    case LMI_ISA_NEON:
        return has_neon();
    }
    return false;
}

const char *cpu_isa_name(lmi_isa isa) {
    switch (isa) {
    case LMI_ISA_AUTO:
        return "auto";
    case LMI_ISA_REF:
        return "ref";
    case LMI_ISA_AVX2:
        return "avx2";
    case LMI_ISA_AVXVNNI:
        return "avxvnni";
    case LMI_ISA_AVX512:
        return "avx512";
    case LMI_ISA_AMX:
        return "amx";
    case LMI_ISA_NEON:
        return "neon";
    }
    return "unknown";
}

/* A group's share of time: microseconds of all its threads together in each period of so many. */
static void apply_quota(const char *system, const char *root, const char *group, int version, void *context) {
    int *count = context;
    char text[SMALL_TEXT];
    uint64_t quota, period = 0;
    small_text(system, root, group, version == 2 ? "/cpu.max" : "/cpu.cfs_quota_us", text);
    if (!small_number(text, &quota)) {
        return; /* "max 100000", -1 */
    }
    const char *second = strchr(text, ' '); /* version 2 has both in one file */
    if (version == 1) {
        small_text(system, root, group, "/cpu.cfs_period_us", text);
        second = text;
    }
    if (second != NULL && small_number(second, &period) && period > 0) {
        const uint64_t whole = quota / period + (quota % period != 0);
        *count = whole < (uint64_t)*count ? (int)(whole > 0 ? whole : 1) : *count;
    }
}

int cpu_count_at(const char *system, int n_cores) {
    cgroup_each(system, "cpu", "/sys/fs/cgroup/cpu", apply_quota, &n_cores);
    return n_cores;
}

static int usable_cores(void) {
    cpu_set_t set;
    if (sched_getaffinity(0, sizeof set, &set) == 0) {
        int n = CPU_COUNT(&set);
        if (n > 0) {
            return n;
        }
    }
    long n = sysconf(_SC_NPROCESSORS_ONLN);
    return n > 0 && n < 4096 ? (int)n : 1;
}

int cpu_count(void) { return cpu_count_at("", usable_cores()); }
