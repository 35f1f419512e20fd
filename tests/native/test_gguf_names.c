/* The table of names against a plain search, and against names chosen to have one and the same hash. */
#include <time.h>

#include "check.h"
#include "gguf/name_table.h"

typedef struct item {
    text_view name;
    int other;
} item;

enum { N = 65536 };

static char texts[N][24];
static item items[N];

/* The hash of name_table.c, undone: the second word of a 16-byte name that leads to the state `target` before its last mix. */
static uint64_t mix(uint64_t state, uint64_t word) {
    uint64_t hash = (state ^ word) * UINT64_C(0xd6e8feb86659fd93);
    return hash ^ hash >> 32;
}
static uint64_t start_of(uint64_t size) { return size * UINT64_C(0x9e3779b97f4a7c15); }

static void set_words(int i, uint64_t first, uint64_t second, size_t size) {
    memcpy(texts[i], &first, 8);
    memcpy(texts[i] + 8, &second, 8);
    items[i] = (item){{texts[i], size}, 0};
}

static void test_small(void) {
    uint64_t seed = 5;
    for (int round = 0; round < 400; round++) {
        const size_t n = check_random(&seed) % 40;
        for (size_t i = 0; i < n; i++) { /* few letters, so that names repeat */
            size_t size = check_random(&seed) % 4;
            for (size_t k = 0; k < size; k++) {
                texts[i][k] = (char)('a' + check_random(&seed) % 3);
            }
            items[i] = (item){{texts[i], size}, 0};
        }
        int64_t duplicate = -1;
        for (size_t i = 0; i < n && duplicate < 0; i++) {
            for (size_t j = 0; j < i; j++) {
                duplicate = text_equal(items[i].name, items[j].name) ? (int64_t)i : duplicate;
            }
        }
        name_table table;
        CHECK(name_table_build(&table, items, n, sizeof *items), " ");
        CHECK(name_table_duplicate(&table) == duplicate, "%lld, expected %lld", (long long)name_table_duplicate(&table),
              (long long)duplicate);
        for (size_t i = 0; i < n; i++) {
            int64_t first = 0;
            while (!text_equal(items[first].name, items[i].name)) {
                first++;
            }
            CHECK(name_table_find(&table, items[i].name) == first, "item %zu of %zu", i, n);
        }
        CHECK(name_table_find(&table, text_of("d")) == -1 && name_table_find(&table, text_of("abcd")) == -1, " ");
        name_table_close(&table);
    }
}

/* 65,536 names with one hash: sorting falls back to the names, and stays n log n. */
static void test_collisions(void) {
    uint64_t seed = 6;
    const uint64_t target = 0x1234567890abcdef;
    set_words(0, target ^ start_of(8), 0, 8); /* one of another length */
    for (int i = 1; i < N; i++) {
        uint64_t first = check_random(&seed);
        set_words(i, first, mix(start_of(16), first) ^ target, 16);
    }
    name_table table;
    clock_t begin = clock();
    CHECK(name_table_build(&table, items, N, sizeof *items), " ");
    CHECK(name_table_duplicate(&table) == -1, " ");
    double seconds = (double)(clock() - begin) / CLOCKS_PER_SEC;
    CHECK(seconds < 3.0, "%.2f s", seconds);
    for (int i = 0; i < N; i += i < 100 ? 1 : 97) {
        CHECK(table.entries[i].hash == table.entries[0].hash, "the names do not collide: is the hash another one?");
        CHECK(name_table_find(&table, items[i].name) == i, "item %d", i);
    }
    char absent[24];
    uint64_t first = 42, second = mix(start_of(16), first) ^ target;
    memcpy(absent, &first, 8);
    memcpy(absent + 8, &second, 8);
    CHECK(name_table_find(&table, (text_view){absent, 16}) == -1, " ");
    name_table_close(&table);

    memcpy(texts[60000], texts[777], 16);
    memcpy(texts[50000], texts[40001], 16);
    CHECK(name_table_build(&table, items, N, sizeof *items), " ");
    CHECK(name_table_duplicate(&table) == 50000, "%lld", (long long)name_table_duplicate(&table));
    CHECK(name_table_find(&table, items[60000].name) == 777, " ");
    name_table_close(&table);
}

int main(void) {
    test_small();
    test_collisions();
    return check_report();
}
