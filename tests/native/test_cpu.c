/* What the CPU can do, against what the kernel says of it. */
#define _GNU_SOURCE
#include "check.h"

#include <sched.h>
#include <stdbool.h>
#include <stdint.h>

#include "base/cpu.h"

/* Whether a line "flags : ..." of /proc/cpuinfo has all the words; -1 without such a line. */
static int kernel_says(const char *const *words, size_t n) {
    char line[16384];
    FILE *file = fopen("/proc/cpuinfo", "r");
    int result = -1;
    while (file != NULL && result < 0 && fgets(line, sizeof line - 1, file) != NULL) {
        if (strncmp(line, "flags", 5) == 0) {
            result = 1;
            line[strcspn(line, "\n")] = '\0';
            strcat(line, " ");
            for (size_t i = 0; i < n; i++) {
                char word[32];
                snprintf(word, sizeof word, " %s ", words[i]);
                result = result && strstr(line, word) != NULL;
            }
        }
    }
    if (file != NULL) {
        fclose(file);
    }
    return result;
}

static void test_isas(void) {
    const char *const avx2[] = {"avx", "avx2", "fma", "f16c"};
    const char *const avx512[] = {"avx2", "fma", "f16c", "avx512f", "avx512bw", "avx512vl", "avx512dq", "avx512_vnni"};
    const char *const avxvnni[] = {"avx", "avx2", "fma", "f16c", "avx_vnni"};
    const char *const amx[] = {"amx_tile", "amx_int8", "amx_bf16"};
    int has_avx2 = kernel_says(avx2, 4), has_avxvnni = kernel_says(avxvnni, 5), has_avx512 = kernel_says(avx512, 8);
#if defined(__x86_64__)  /* elsewhere the file may be that of the machine below an emulator */
    if (has_avx2 >= 0) { /* the kernel hides what it does not save registers for */
        CHECK(cpu_has(LMI_ISA_AVX2) == (has_avx2 == 1));
        CHECK(cpu_has(LMI_ISA_AVXVNNI) == (has_avxvnni == 1));
        CHECK(cpu_has(LMI_ISA_AVX512) == (has_avx512 == 1));
        CHECK(!cpu_has(LMI_ISA_AMX) || kernel_says(amx, 3) == 1); /* it may be there and the kernel refuse it */
    }
#else
    (void)has_avx2;
    (void)has_avxvnni;
    (void)has_avx512;
    (void)amx;
#endif
    CHECK(cpu_has(LMI_ISA_AUTO) && cpu_has(LMI_ISA_REF));
    CHECK(!cpu_has(LMI_ISA_AVX512) || cpu_has(LMI_ISA_AVX2));
    CHECK(!cpu_has(LMI_ISA_AMX) || cpu_has(LMI_ISA_AVX512));
    CHECK(!cpu_has(LMI_ISA_AVXVNNI) || cpu_has(LMI_ISA_AVX2));
#if defined(__aarch64__)
    uint64_t isar, pfr; /* the registers of the CPU, which the kernel lets everyone read */
    __asm__("mrs %0, ID_AA64ISAR0_EL1" : "=r"(isar));
    __asm__("mrs %0, ID_AA64PFR0_EL1" : "=r"(pfr));
    const bool dot_products = (isar >> 44 & 15) == 1, halves = (pfr >> 20 & 15) == 1 && (pfr >> 16 & 15) == 1;
    CHECK(cpu_has(LMI_ISA_NEON) == (dot_products && halves) && !cpu_has(LMI_ISA_AVX2));
    CHECK(cpu_has(LMI_ISA_NEON) || !cpu_has_i8mm());
#else
    CHECK(!cpu_has(LMI_ISA_NEON) && !cpu_has_i8mm());
#endif
    CHECK(!cpu_has((lmi_isa)99) && !cpu_has((lmi_isa)-1));
    CHECK(strcmp(cpu_isa_name((lmi_isa)99), "unknown") == 0);
    for (int a = LMI_ISA_AUTO; a <= LMI_ISA_NEON; a++) {
        for (int b = LMI_ISA_AUTO; b < a; b++) {
            CHECK(strcmp(cpu_isa_name((lmi_isa)a), cpu_isa_name((lmi_isa)b)) != 0);
        }
    }
}

static void test_count(void) {
    cpu_set_t all, one;
    CHECK(cpu_count() >= 1);
    if (sched_getaffinity(0, sizeof all, &all) == 0) {
        CHECK(cpu_count() <= CPU_COUNT(&all));
        for (int i = 0; i < CPU_SETSIZE; i++) {
            if (CPU_ISSET(i, &all)) {
                CPU_ZERO(&one);
                CPU_SET(i, &one);
                CHECK(sched_setaffinity(0, sizeof one, &one) != 0 || cpu_count() == 1, "only cores that this process may use");
                break;
            }
        }
        sched_setaffinity(0, sizeof all, &all);
    }
}

int main(void) {
    test_isas();
    test_count();
    return check_report();
}
