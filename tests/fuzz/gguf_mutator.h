/* Changes GGUF files the way that damage and malice do: at fields, entries and counts rather than at random bytes, so that
 * most results get past the first checks. Works on good and bad files alike; what it cannot follow it leaves to byte noise. */
#ifndef LMI_FUZZ_GGUF_MUTATOR_H
#define LMI_FUZZ_GGUF_MUTATOR_H

#include <stdint.h>
#include <stdlib.h>
#include <string.h>

enum { MUTATOR_FIELDS = 2048, MUTATOR_ENTRIES = 256 };

typedef enum field_kind { FIELD_TYPE, FIELD_TENSOR_TYPE, FIELD_COUNT, FIELD_LENGTH, FIELD_NUMBER, FIELD_TEXT } field_kind;

typedef struct gguf_map {
    int n_fields, n_keys, n_tensors;
    struct {
        size_t at, size;
        field_kind kind;
    } fields[MUTATOR_FIELDS];
    struct {
        size_t begin, end;
    } keys[MUTATOR_ENTRIES], tensors[MUTATOR_ENTRIES];
    size_t end;  /* of the metadata, as far as it could be followed */
    size_t data; /* where the tensors' bytes begin */
} gguf_map;

static inline uint64_t mutator_random(uint64_t *state) { /* SplitMix64 */
    uint64_t z = (*state += 0x9e3779b97f4a7c15u);
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
    return z ^ (z >> 31);
}
static inline size_t mutator_below(uint64_t *state, size_t n) { return n == 0 ? 0 : (size_t)(mutator_random(state) % n); }

/* ---- finding the fields ------------------------------------------------------------------------------------------ */

typedef struct map_scan {
    const uint8_t *bytes;
    size_t size, at;
    gguf_map *map;
    int lost;
} map_scan;

static inline uint64_t map_number(map_scan *s, size_t size, field_kind kind) {
    uint64_t value = 0;
    if (s->lost || s->size - s->at < size) {
        s->lost = 1;
        return 0;
    }
    memcpy(&value, s->bytes + s->at, size);
    if (s->map->n_fields < MUTATOR_FIELDS) {
        s->map->fields[s->map->n_fields].at = s->at;
        s->map->fields[s->map->n_fields].size = size;
        s->map->fields[s->map->n_fields++].kind = kind;
    }
    s->at += size;
    return value;
}

static inline void map_text(map_scan *s, int note) {
    const int kept = s->map->n_fields;
    uint64_t length = map_number(s, 8, FIELD_LENGTH);
    if (s->lost || s->size - s->at < length) {
        s->lost = 1;
        return;
    }
    if (!note) {
        s->map->n_fields = kept; /* one of very many: leave room for the others */
    } else if (length > 0 && s->map->n_fields < MUTATOR_FIELDS) {
        s->map->fields[s->map->n_fields].at = s->at;
        s->map->fields[s->map->n_fields].size = (size_t)length;
        s->map->fields[s->map->n_fields++].kind = FIELD_TEXT;
    }
    s->at += (size_t)length;
}

static inline void map_value(map_scan *s, uint64_t type) {
    static const uint8_t sizes[13] = {1, 1, 2, 2, 4, 4, 4, 1, 0, 0, 8, 8, 8};
    uint64_t count = 1;
    int is_array = type == 9;
    if (is_array) {
        type = map_number(s, 4, FIELD_TYPE);
        count = map_number(s, 8, FIELD_COUNT);
    }
    if (type == 9 || type > 12) {
        s->lost = 1;
    }
    for (uint64_t i = 0; i < count && !s->lost; i++) {
        int note = i < 8 || i + 2 > count || i % 61 == 0;
        if (type == 8) {
            map_text(s, note);
        } else if (note) {
            map_number(s, sizes[type], FIELD_NUMBER);
        } else if (s->size - s->at < sizes[type]) {
            s->lost = 1;
        } else {
            s->at += sizes[type];
        }
    }
}

static inline void map_gguf(const uint8_t *bytes, size_t size, gguf_map *map) {
    map_scan s = {.bytes = bytes, .size = size, .at = 4, .map = map};
    memset(map, 0, sizeof *map);
    map->end = size;
    map->data = size;
    if (size < 24) {
        return;
    }
    map_number(&s, 4, FIELD_NUMBER);
    uint64_t n_tensors = map_number(&s, 8, FIELD_COUNT), n_keys = map_number(&s, 8, FIELD_COUNT);
    for (uint64_t i = 0; i < n_keys && !s.lost; i++) {
        size_t begin = s.at;
        map_text(&s, 1);
        map_value(&s, map_number(&s, 4, FIELD_TYPE));
        if (!s.lost && map->n_keys < MUTATOR_ENTRIES) {
            map->keys[map->n_keys].begin = begin;
            map->keys[map->n_keys++].end = s.at;
        }
    }
    for (uint64_t i = 0; i < n_tensors && !s.lost; i++) {
        size_t begin = s.at;
        map_text(&s, 1);
        uint64_t n_dims = map_number(&s, 4, FIELD_NUMBER);
        for (uint64_t d = 0; d < n_dims && !s.lost; d++) {
            map_number(&s, 8, FIELD_NUMBER);
        }
        map_number(&s, 4, FIELD_TENSOR_TYPE);
        map_number(&s, 8, FIELD_NUMBER);
        if (!s.lost && map->n_tensors < MUTATOR_ENTRIES) {
            map->tensors[map->n_tensors].begin = begin;
            map->tensors[map->n_tensors++].end = s.at;
        }
    }
    map->end = s.at;
    map->data = (s.at + 31) / 32 * 32 < size ? (s.at + 31) / 32 * 32 : size;
}

/* ---- changing them ----------------------------------------------------------------------------------------------- */

/* Replaces [begin, end) of the metadata by `n` other bytes; the data moves along and stays aligned. Returns the new size. */
static inline size_t splice_bytes(uint8_t *bytes, size_t size, size_t max, const gguf_map *map, size_t begin, size_t end,
                                  const uint8_t *insert, size_t n) {
    const size_t data_bytes = size - map->data;
    const size_t meta = map->end - (end - begin) + n;
    const size_t start = data_bytes > 0 ? (meta + 31) / 32 * 32 : meta;
    if (meta < n || start + data_bytes > max) {
        return size;
    }
    uint8_t *copy = malloc(start + data_bytes + 1);
    if (copy == NULL) {
        return size;
    }
    memcpy(copy, bytes, begin);
    if (n > 0) {
        memcpy(copy + begin, insert, n);
    }
    memcpy(copy + begin + n, bytes + end, map->end - end);
    memset(copy + meta, 0, start - meta);
    memcpy(copy + start, bytes + map->data, data_bytes);
    memcpy(bytes, copy, start + data_bytes);
    free(copy);
    return start + data_bytes;
}

static inline void add_to_count(uint8_t *bytes, size_t size, size_t at, uint64_t n) {
    uint64_t count;
    if (size >= at + 8) {
        memcpy(&count, bytes + at, 8);
        count += n;
        memcpy(bytes + at, &count, 8);
    }
}

static inline uint64_t edge_number(uint64_t *rng) {
    static const uint64_t edges[] = {
        0,
        1,
        2,
        3,
        4,
        7,
        8,
        9,
        13,
        31,
        32,
        33,
        63,
        64,
        65,
        127,
        128,
        255,
        256,
        257,
        1024,
        32767,
        32768,
        65535,
        65536,
        65537,
        0x7fffffff,
        0x80000000,
        0xffffffff,
        0x100000000,
        0xffffffffff,
        0x10000000000,
        0x1000000000000000,
        0x1fffffffffffffff,
        0x2000000000000001,
        0x4000000000000000,
        0x7fffffffffffffff,
        0x8000000000000000,
        0xffffffffffffffe0,
        0xffffffffffffffff,
    };
    uint64_t value = edges[mutator_below(rng, sizeof edges / sizeof *edges)];
    return mutator_below(rng, 4) == 0 ? value + mutator_below(rng, 5) - 2 : value;
}

static inline void change_field(uint8_t *bytes, const gguf_map *map, uint64_t *rng) {
    if (map->n_fields == 0) {
        return;
    }
    const size_t i = mutator_below(rng, (size_t)map->n_fields), j = mutator_below(rng, (size_t)map->n_fields);
    uint8_t *at = bytes + map->fields[i].at;
    const size_t size = map->fields[i].size;
    if (map->fields[i].kind == FIELD_TEXT) {
        at[mutator_below(rng, size)] = (uint8_t)mutator_random(rng);
        return;
    }
    uint64_t value = 0;
    memcpy(&value, at, size);
    switch (mutator_below(rng, 6)) {
    case 0:
        value = edge_number(rng);
        break;
    case 1:
        value += mutator_below(rng, 2) == 0 ? 1 : UINT64_MAX;
        break;
    case 2:
        value ^= (uint64_t)1 << mutator_below(rng, 8 * size);
        break;
    case 3: /* the value of another field of this size */
        if (map->fields[j].size == size) {
            memcpy(&value, bytes + map->fields[j].at, size);
        }
        break;
    case 4: /* exchange */
        if (map->fields[j].size == size) {
            uint64_t other = 0;
            memcpy(&other, bytes + map->fields[j].at, size);
            memcpy(bytes + map->fields[j].at, &value, size);
            value = other;
        }
        break;
    default:
        value = map->fields[i].kind == FIELD_TENSOR_TYPE ? mutator_below(rng, 44)
                : map->fields[i].kind == FIELD_TYPE      ? mutator_below(rng, 14)
                                                         : value * mutator_below(rng, 5);
        break;
    }
    memcpy(at, &value, size);
}

/* Doubles, removes or takes from another file a key or a tensor; the count follows, most of the time. */
static inline size_t change_entries(uint8_t *bytes, size_t size, size_t max, const gguf_map *map, const uint8_t *other,
                                    size_t other_size, uint64_t *rng) {
    const int tensors = mutator_below(rng, 2) == 0;
    const int n = tensors ? map->n_tensors : map->n_keys;
    const size_t count_at = tensors ? 8 : 16, honest = mutator_below(rng, 8);
    if (n == 0) {
        return size;
    }
    const size_t i = mutator_below(rng, (size_t)n), j = mutator_below(rng, (size_t)n);
    const size_t begin = tensors ? map->tensors[i].begin : map->keys[i].begin,
                 end = tensors ? map->tensors[i].end : map->keys[i].end;
    const size_t from = tensors ? map->tensors[j].begin : map->keys[j].begin,
                 to = tensors ? map->tensors[j].end : map->keys[j].end;
    size_t changed = size;
    uint64_t step = 0;
    uint8_t *entry = NULL;
    switch (mutator_below(rng, 4)) {
    case 0:
        changed = splice_bytes(bytes, size, max, map, begin, end, NULL, 0);
        step = UINT64_MAX;
        break;
    case 1:
    case 2: /* a copy of entry j in front of i, or in place of it */
        step = mutator_below(rng, 2);
        if ((entry = malloc(to - from)) != NULL) {
            memcpy(entry, bytes + from, to - from);
            changed = splice_bytes(bytes, size, max, map, begin, step == 1 ? begin : end, entry, to - from);
        }
        break;
    default: {
        gguf_map *theirs = other != NULL ? malloc(sizeof *theirs) : NULL;
        if (theirs != NULL) {
            map_gguf(other, other_size, theirs);
            const int m = tensors ? theirs->n_tensors : theirs->n_keys;
            if (m > 0) {
                const size_t k = mutator_below(rng, (size_t)m);
                const size_t first = tensors ? theirs->tensors[k].begin : theirs->keys[k].begin;
                const size_t last = tensors ? theirs->tensors[k].end : theirs->keys[k].end;
                step = mutator_below(rng, 2);
                changed = splice_bytes(bytes, size, max, map, begin, step == 1 ? begin : end, other + first, last - first);
            }
            free(theirs);
        }
        break;
    }
    }
    free(entry);
    if (honest != 0 && changed != size) {
        add_to_count(bytes, changed, count_at, step);
    }
    return changed;
}

/* A text grows or shrinks together with its length. */
static inline size_t change_text(uint8_t *bytes, size_t size, size_t max, const gguf_map *map, uint64_t *rng) {
    uint8_t text[512];
    for (int tries = 0; tries < 20 && map->n_fields > 0; tries++) {
        const size_t i = mutator_below(rng, (size_t)map->n_fields);
        if (map->fields[i].kind == FIELD_TEXT && map->fields[i].at >= 8) {
            const size_t at = map->fields[i].at, n = mutator_below(rng, mutator_below(rng, 8) == 0 ? sizeof text : 80);
            for (size_t k = 0; k < n; k++) {
                text[k] = k < map->fields[i].size ? bytes[at + k] : (uint8_t)(mutator_random(rng) >> mutator_below(rng, 8));
            }
            uint64_t length = n;
            memcpy(bytes + at - 8, &length, 8);
            return splice_bytes(bytes, size, max, map, at, at + map->fields[i].size, text, n);
        }
    }
    return size;
}

/* One change. `bytes` has room for `max`; `other` (may be NULL) is a file to take entries from. Returns the new size. */
static inline size_t mutate_gguf(uint8_t *bytes, size_t size, size_t max, const uint8_t *other, size_t other_size,
                                 uint64_t *rng) {
    gguf_map *map = malloc(sizeof *map);
    if (map == NULL || size == 0) {
        free(map);
        return size;
    }
    map_gguf(bytes, size, map);
    switch (mutator_below(rng, 16)) {
    case 0:
    case 1:
    case 2:
    case 3:
    case 4:
    case 5:
    case 6:
        change_field(bytes, map, rng);
        break;
    case 7:
    case 8:
    case 9:
        size = change_entries(bytes, size, max, map, other, other_size, rng);
        break;
    case 10:
        size = change_text(bytes, size, max, map, rng);
        break;
    case 11:
        add_to_count(bytes, size, mutator_below(rng, 2) == 0 ? 8 : 16, mutator_below(rng, 2) == 0 ? 1 : UINT64_MAX);
        break;
    case 12:
        bytes[mutator_below(rng, map->end)] ^= (uint8_t)(1u << mutator_below(rng, 8));
        break;
    case 13:
        bytes[mutator_below(rng, map->end)] = (uint8_t)mutator_random(rng);
        break;
    case 14: /* a hole or noise in the data */
        if (map->data < size) {
            size_t at = map->data + mutator_below(rng, size - map->data), n = 1 + mutator_below(rng, 64);
            for (size_t i = at; i < size && i < at + n; i++) {
                bytes[i] = (uint8_t)(mutator_below(rng, 2) == 0 ? 0xff : mutator_random(rng));
            }
        }
        break;
    default:
        size = mutator_below(rng, 2) == 0 ? mutator_below(rng, size + 1) : size - mutator_below(rng, size < 64 ? size : 64);
        break;
    }
    free(map);
    return size;
}

#endif
