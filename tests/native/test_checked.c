/* Checked arithmetic against 128-bit arithmetic, on the numbers where it matters and on random ones. */
#include "check.h"

#include "base/checked.h"

__extension__ typedef unsigned __int128 u128;

static void check_pair(uint64_t a, uint64_t b) {
    uint64_t result;
    u128 sum = (u128)a + b, product = (u128)a * b;
    bool fits = ck_add(a, b, &result);
    CHECK(fits == (sum <= UINT64_MAX) && (!fits || result == (uint64_t)sum), "%llx + %llx", (unsigned long long)a,
          (unsigned long long)b);
    fits = ck_mul(a, b, &result);
    CHECK(fits == (product <= UINT64_MAX) && (!fits || result == (uint64_t)product), "%llx * %llx", (unsigned long long)a,
          (unsigned long long)b);
}

int main(void) {
    uint64_t edges[400], random = 1;
    int n = 0;
    for (int bit = 0; bit < 64; bit++) {
        for (int more = -2; more <= 2; more++) {
            edges[n++] = ((uint64_t)1 << bit) + (uint64_t)(int64_t)more;
        }
    }
    edges[n++] = UINT64_MAX;
    edges[n++] = UINT64_MAX / 3;
    for (int i = 0; i < n; i++) {
        for (int j = 0; j < n; j++) {
            check_pair(edges[i], edges[j]);
        }
    }
    for (int i = 0; i < 20000; i++) {
        check_pair(check_random(&random) >> (check_random(&random) & 63),
                   check_random(&random) >> (check_random(&random) & 63));
    }
    for (int i = 0; i < n; i++) {
        for (int shift = 0; shift < 64; shift++) {
            uint64_t alignment = (uint64_t)1 << shift, result;
            u128 exact = ((u128)edges[i] + alignment - 1) / alignment * alignment;
            bool fits = ck_align(edges[i], alignment, &result);
            CHECK(fits == (exact <= UINT64_MAX) && (!fits || result == (uint64_t)exact), "%llx to 2^%d",
                  (unsigned long long)edges[i], shift);
        }
    }
    return check_report();
}
