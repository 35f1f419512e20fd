/* Index arithmetic of the Λ window against plain loops over tokens. */
#include "check.h"

#include <stdbool.h>

#include "lambda/window.h"

static bool in_ranges(const slot_range *ranges, int n, int64_t slot) {
    for (int i = 0; i < n; i++) {
        if (slot >= ranges[i].begin && slot < ranges[i].end) {
            return true;
        }
    }
    return false;
}

static void check_band(int64_t first, int64_t last, int64_t window, int64_t capacity) {
    slot_range ranges[2];
    const int n = band_slots(first, last, window, capacity, ranges);
    CHECK(n == 1 || n == 2, "%d ranges", n);
    int64_t covered = 0;
    for (int i = 0; i < n; i++) {
        CHECK(ranges[i].begin >= 0 && ranges[i].begin < ranges[i].end && ranges[i].end <= capacity, "range %d", i);
        covered += ranges[i].end - ranges[i].begin;
    }
    CHECK(covered <= capacity, "ranges overlap");
    int64_t wanted = 0;
    for (int64_t j = last; j >= 0 && j > first - window && j > last - capacity; j--) {
        wanted++;
        CHECK(in_ranges(ranges, n, j % capacity), "first %lld last %lld L %lld cap %lld: token %lld", (long long)first,
              (long long)last, (long long)window, (long long)capacity, (long long)j);
    }
    CHECK(covered == wanted, "%lld slots for %lld tokens", (long long)covered, (long long)wanted);
}

int main(void) {
    for (int64_t window = 1; window <= 9; window++) {
        for (int64_t chunk = 1; chunk <= 5; chunk++) {
            for (int64_t rollback = 0; rollback <= 3; rollback++) {
                const int64_t capacity = ring_capacity(window, chunk, rollback);
                CHECK(capacity == window - 1 + (chunk > rollback ? chunk : rollback), "capacity");
                for (int64_t at = 0; at < 4 * capacity; at++) {
                    for (int64_t c = 1; c <= chunk; c++) {
                        check_band(at, at + c - 1, window, capacity);
                        check_band(at + 10000000000, at + 10000000000 + c - 1, window, capacity);
                    }
                }
            }
        }
        for (int64_t sinks = 0; sinks <= 12; sinks++) {
            for (int64_t p = 0; p < 40; p++) {
                int64_t seen = 0; /* literally: j < G and p - j >= L */
                for (int64_t j = 0; j < sinks && j <= p; j++) {
                    seen += p - j >= window;
                }
                CHECK(active_sinks(p, window, sinks) == seen, "L %d G %d p %d", (int)window, (int)sinks, (int)p);
            }
        }
    }
    check_band(70, 99, 20, 16); /* a ring too small: what it still holds */
    CHECK(active_sinks(5000000000, 4096, 16) == 16, "far");
    CHECK(ring_slot(10000000007, 10) == 7, "64 bits");
    return check_report();
}
