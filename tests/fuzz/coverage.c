/* Which branches an input took, for driver.c, where the compiler is gcc: -fsanitize-coverage=trace-pc calls this function at
 * every one. Only the rooms that read untrusted bytes are compiled so (see CMakeLists.txt). */
#include <stdint.h>

enum { COVERAGE_SIZE = 1 << 16 };

extern uint8_t fuzz_coverage[COVERAGE_SIZE];
uint8_t fuzz_coverage[COVERAGE_SIZE];

void __sanitizer_cov_trace_pc(void);

__attribute__((no_sanitize_coverage, no_sanitize("address", "undefined", "thread"))) void __sanitizer_cov_trace_pc(void) {
    static _Thread_local uintptr_t previous;
    /* Relative to this function, so that numbers do not depend on where the program was loaded. */
    uintptr_t here = (uintptr_t)__builtin_return_address(0) - (uintptr_t)&__sanitizer_cov_trace_pc;
    here ^= here >> 16;
    uint8_t *count = &fuzz_coverage[(here ^ previous) % COVERAGE_SIZE];
    *count = (uint8_t)(*count + (*count < 255));
    previous = here >> 1;
}
