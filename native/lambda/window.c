#include "lambda/window.h"

static int64_t larger(int64_t a, int64_t b) { return a > b ? a : b; }

int64_t ring_capacity(int64_t window, int64_t chunk, int64_t rollback) { return window - 1 + larger(chunk, rollback); }

int64_t ring_slot(int64_t position, int64_t capacity) { return position % capacity; }

int band_slots(int64_t first_pos, int64_t last_pos, int64_t window, int64_t capacity, slot_range ranges[2]) {
    const int64_t oldest = larger(0, larger(first_pos - window, last_pos - capacity) + 1); /* older ones are overwritten */
    const int64_t begin = ring_slot(oldest, capacity);
    const int64_t end = begin + (last_pos - oldest + 1);
    if (end <= capacity) {
        ranges[0] = (slot_range){begin, end};
        return 1;
    }
    ranges[0] = (slot_range){begin, capacity};
    ranges[1] = (slot_range){0, end - capacity};
    return 2;
}

int64_t active_sinks(int64_t position, int64_t window, int64_t sinks) {
    const int64_t out_of_window = larger(0, position - window + 1);
    return out_of_window < sinks ? out_of_window : sinks;
}
