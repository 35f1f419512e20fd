/* Which keys a query sees, and at which distance; which ring slots hold them. Index arithmetic only.
 *
 * All positions are 64-bit and absolute; a token j lives in ring slot j mod capacity. */
#ifndef LMI_LAMBDA_WINDOW_H
#define LMI_LAMBDA_WINDOW_H

#include <stdint.h>

/* Slots needed so that a chunk can be written before it is attended, and `rollback` tokens be taken back:
 * L - 1 + max(chunk, rollback). */
int64_t ring_capacity(int64_t window, int64_t chunk, int64_t rollback);

int64_t ring_slot(int64_t position, int64_t capacity);

/* The band of queries first_pos .. last_pos is tokens [max(0, first_pos - L + 1), last_pos]. In slots that is one range, or
 * two where it wraps. Ranges begin and end inside [0, capacity]; returns how many there are (1 or 2). */
typedef struct slot_range {
    int64_t begin, end;
} slot_range;
int band_slots(int64_t first_pos, int64_t last_pos, int64_t window, int64_t capacity, slot_range ranges[2]);

/* Sinks that the query at p sees out of its window: clamp(p - L + 1, 0, G). */
int64_t active_sinks(int64_t position, int64_t window, int64_t sinks);

#endif
