/* The arena: zeroed, aligned, apart from each other, refused when sealed, and impossible sizes. */
#include "check.h"

#include "base/arena.h"

enum { N = 2000 };

static void test_pieces(void) {
    static unsigned char *pieces[N];
    static size_t sizes[N];
    uint64_t random = 3;
    arena a;
    arena_open(&a);
    for (int i = 0; i < N; i++) {
        /* mostly small, some of the size of a block, some larger */
        uint64_t kind = check_random(&random) % 20;
        sizes[i] = 1 + check_random(&random) % (kind == 0 ? 200000 : kind < 3 ? 70000 : 300);
        pieces[i] = arena_take(&a, sizes[i]);
        CHECK(pieces[i] != NULL && (uintptr_t)pieces[i] % 64 == 0);
        size_t zeros = 0;
        for (size_t k = 0; k < sizes[i]; k++) {
            zeros += pieces[i][k] == 0;
        }
        CHECK(zeros == sizes[i], "piece %d of %zu bytes has %zu zeros", i, sizes[i], zeros);
        memset(pieces[i], i & 255, sizes[i]);
    }
    uint64_t taken = 0;
    for (int i = 0; i < N; i++) {
        size_t own = 0;
        for (size_t k = 0; k < sizes[i]; k++) {
            own += pieces[i][k] == (i & 255);
        }
        CHECK(own == sizes[i], "piece %d was overwritten", i);
        taken += sizes[i];
    }
    CHECK(a.reserved >= taken && a.reserved < taken + taken / 4 + N * 64 + (1 << 20), "%llu reserved for %llu",
          (unsigned long long)a.reserved, (unsigned long long)taken);
    arena_close(&a);
    CHECK(a.blocks == NULL && a.reserved == 0);
    arena_close(&a); /* an empty one may be closed again */
}

static void test_small_after_large(void) {
    arena a;
    arena_open(&a);
    CHECK(arena_take(&a, 64) != NULL);
    uint64_t before = a.reserved;
    CHECK(arena_take(&a, 1 << 20) != NULL);
    uint64_t after = a.reserved;
    CHECK(after > before);
    for (int i = 0; i < 100; i++) { /* these fit the first block */
        CHECK(arena_take(&a, 64) != NULL);
    }
    CHECK(a.reserved == after, "the room left in the older block is used");
    arena_close(&a);
}

static void test_seal(void) {
    arena a;
    arena_open(&a);
    CHECK(arena_take(&a, 100) != NULL);
    arena_seal(&a);
    CHECK(arena_take(&a, 1) == NULL && arena_take_array(&a, 4, 4) == NULL);
    CHECK(a.refused == 2);
    arena_unseal(&a);
    CHECK(arena_take(&a, 1) != NULL && a.refused == 2);
    arena_close(&a);
}

static void test_impossible(void) {
    arena a;
    arena_open(&a);
    CHECK(arena_take(&a, 0) == NULL);
    CHECK(arena_take(&a, SIZE_MAX) == NULL);
    CHECK(arena_take(&a, SIZE_MAX - 63) == NULL);
    CHECK(arena_take(&a, SIZE_MAX - 100) == NULL);
    CHECK(arena_take_array(&a, SIZE_MAX / 8 + 1, 8) == NULL);
    CHECK(arena_take_array(&a, (size_t)1 << 33, (size_t)1 << 33) == NULL);
    CHECK(arena_take_array(&a, 0, 8) == NULL && arena_take_array(&a, 8, 0) == NULL);
    CHECK(a.reserved == 0 && a.blocks == NULL, "nothing was kept after a refusal");
    CHECK(arena_take_array(&a, 3, 8) != NULL);
    arena_close(&a);
}

int main(void) {
    test_pieces();
    test_small_after_large();
    test_seal();
    test_impossible();
    return check_report();
}
