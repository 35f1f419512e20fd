/* Saved states: whatever the bytes are, they are refused with one clear line and nothing changes, or they are a state of this
 * session in every field. The first byte of the input says how the rest is used:
 *
 *     0  the bytes of a state, as they are
 *     1  the same, all sums made right: what somebody could send who knows the format
 *     2  changes to a good state, four bytes each (place, place, operation, value)
 *     3  the same, all sums made right
 *
 * An accepted sampler has to draw. */
#define _GNU_SOURCE
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "base/hash.h"
#include "engine/sampler.h"
#include "engine/snapshot.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

enum { N_PARTS = 4, N_VOCAB = 50, CONTEXT = 300, HISTORY = 64, HEADER = 256, MIB = 1 << 20, MOST = HEADER + 8192 };

#define PROMISE(condition)                                                                                                     \
    do {                                                                                                                       \
        if (!(condition)) {                                                                                                    \
            fprintf(stderr, "%s:%d: broken: %s\n", __FILE__, __LINE__, #condition);                                            \
            abort();                                                                                                           \
        }                                                                                                                      \
    } while (0)

static const snapshot_header expected = {.window = 48,
                                         .sinks = 4,
                                         .chunk = 8,
                                         .rollback = 16,
                                         .kv_type = 2,
                                         .placement = 1,
                                         .ring_slots = 63,
                                         .n_vocab = N_VOCAB,
                                         .start = 10,
                                         .position = 500,
                                         .furthest = 510,
                                         .has_logits = 1,
                                         .isa = 1,
                                         .fingerprint = {1, 2, 3}};

typedef struct session {
    uint8_t context[CONTEXT];
    float logits[N_VOCAB];
    uint8_t history[HISTORY];
    uint8_t sampler[256];
} session;

static void parts_of(session *s, snapshot_part parts[N_PARTS]) {
    parts[0] = (snapshot_part){.data = s->context, .size = sizeof s->context};
    parts[1] = (snapshot_part){.data = s->logits, .size = sizeof s->logits};
    parts[2] = (snapshot_part){.data = s->history, .size = sizeof s->history};
    parts[3] = (snapshot_part){.data = s->sampler, .size = sampler_state_bytes()};
}

static void put(uint8_t *bytes, uint32_t value) {
    for (int i = 0; i < 4; i++) {
        bytes[i] = (uint8_t)(value >> 8 * i);
    }
}

static uint64_t get(const uint8_t *bytes) {
    uint64_t value = 0;
    for (int i = 7; i >= 0; i--) {
        value = value << 8 | bytes[i];
    }
    return value;
}

/* All sums as the bytes now are, as far as they can be placed. */
static void repair(uint8_t *bytes, size_t size) {
    if (size < HEADER) {
        return;
    }
    put(bytes + 252, crc32c(0, bytes, 252));
    uint64_t payload = 0;
    for (int i = 0; i < SNAPSHOT_MAX_PARTS; i++) {
        payload += get(bytes + 144 + 8 * i);
    }
    if (payload > 0 && payload <= MIB && payload + 4 <= size - HEADER) {
        put(bytes + HEADER + payload, crc32c(0, bytes + HEADER, (size_t)payload));
    }
}

static sampler *open_sampler(void) {
    void *memory = aligned_alloc(64, sampler_bytes(N_VOCAB));
    PROMISE(memory != NULL);
    memset(memory, 0, sampler_bytes(N_VOCAB));
    return sampler_at(memory, N_VOCAB);
}

static size_t make_good(uint8_t *bytes, size_t room) {
    session s;
    snapshot_part parts[N_PARTS];
    sampler *draws = open_sampler();
    memset(&s, 7, sizeof s);
    memcpy(s.sampler, sampler_state(draws), sampler_state_bytes());
    free(draws);
    parts_of(&s, parts);
    size_t size = snapshot_size(parts, N_PARTS);
    PROMISE(size <= room && snapshot_write(&expected, parts, N_PARTS, bytes, size, NULL) == LMI_OK);
    return size;
}

static size_t change_good(const uint8_t *changes, size_t n, uint8_t *bytes) {
    size_t size = make_good(bytes, MOST);
    for (size_t i = 0; i + 4 <= n && i < 400; i += 4) {
        size_t at = (changes[i] | (size_t)changes[i + 1] << 8) % MOST;
        uint8_t value = changes[i + 3];
        switch (changes[i + 2] % 4) {
        case 0:
            bytes[at % size] = value;
            break;
        case 1:
            bytes[at % size] ^= value;
            break;
        case 2: /* a whole number: the header's fields are of 8 or 4 bytes, at multiples of 8 or 4 */
            memset(bytes + at % (HEADER / 8) * 8, value, 8);
            break;
        default:
            size = at < 1 ? 1 : at;
            break;
        }
    }
    return size;
}

static lmi_status check_part(void *context, int part, const void *bytes, size_t size, lmi_error *error) {
    (void)context;
    (void)size;
    return part == 3 ? sampler_check_state(bytes, error) : LMI_OK;
}

static void check_refused(lmi_status status, const lmi_error *error) {
    PROMISE(status < 0 && status != LMI_INTERNAL && error->status == status && error->message[0] != '\0');
    for (const char *c = error->message; *c != '\0'; c++) {
        PROMISE((unsigned char)*c >= 0x20 && *c != 0x7f);
    }
}

static int same_header(const snapshot_header *a, const snapshot_header *b) {
    return memcmp(a->fingerprint, b->fingerprint, 32) == 0 && a->window == b->window && a->sinks == b->sinks &&
           a->chunk == b->chunk && a->rollback == b->rollback && a->kv_type == b->kv_type && a->placement == b->placement &&
           a->ring_slots == b->ring_slots && a->n_vocab == b->n_vocab;
}

static void check_accepted(const snapshot_header *h, session *s, const uint8_t *bytes, size_t size) {
    snapshot_part parts[N_PARTS];
    uint8_t again[MOST];
    parts_of(s, parts);
    PROMISE(same_header(h, &expected) && 0 <= h->start && h->start <= h->position && h->position <= h->furthest &&
            h->furthest <= (int64_t)1 << 62 && (h->has_logits == 0 || h->has_logits == 1));
    /* There is one way to write a state. */
    PROMISE(snapshot_write(h, parts, N_PARTS, again, size, NULL) == LMI_OK && memcmp(again, bytes, size) == 0);
    sampler *draws = open_sampler();
    memcpy(sampler_state(draws), s->sampler, sampler_state_bytes());
    int32_t history[SAMPLER_HISTORY] = {3, 4, 5}, token = -1;
    s->logits[9] = 1; /* so that there is one to draw */
    PROMISE(sampler_draw(draws, s->logits, history, 5000, SAMPLER_HISTORY, &token, NULL, NULL) == LMI_OK && token >= 0 &&
            token < N_VOCAB);
    free(draws);
}

/* The same bytes as a file: the header alone, and the whole. */
static void check_file(const uint8_t *bytes, size_t size, lmi_status in_memory, const snapshot_header *loaded) {
    char path[64];
    session s;
    snapshot_part parts[N_PARTS];
    snapshot_header header;
    lmi_error error = {0};
    int fd = memfd_create("state", MFD_CLOEXEC);
    PROMISE(fd >= 0 && write(fd, bytes, size) == (ssize_t)size);
    snprintf(path, sizeof path, "/proc/self/fd/%d", fd);
    lmi_status status = snapshot_peek(path, &header, &error);
    if (status != LMI_OK) {
        check_refused(status, &error);
    }
    PROMISE(in_memory != LMI_OK || (status == LMI_OK && same_header(&header, loaded)));
    parts_of(&s, parts);
    status = snapshot_load(&expected, &header, parts, N_PARTS, path, check_part, NULL, &error);
    PROMISE(status == in_memory || size == 0); /* an empty file has its own message */
    close(fd);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    static unsigned count;
    if (size < 1) {
        return 0;
    }
    uint8_t work[MOST] = {0};
    int mode = data[0] & 3;
    size_t n = size - 1 < MOST ? size - 1 : MOST;
    if (mode < 2) {
        memcpy(work, data + 1, n);
    } else {
        n = change_good(data + 1, size - 1, work);
    }
    if (mode & 1) {
        repair(work, n);
    }
    uint8_t *bytes = malloc(n + !n); /* of exactly that size: a byte read beyond it is seen */
    PROMISE(bytes != NULL);
    memcpy(bytes, work, n);

    session s, before;
    snapshot_part parts[N_PARTS];
    snapshot_header header, untouched;
    lmi_error error = {0};
    memset(&s, 0x5a, sizeof s);
    memset(&header, 0x5a, sizeof header);
    before = s;
    untouched = header;
    parts_of(&s, parts);
    lmi_status status = snapshot_read(&expected, &header, parts, N_PARTS, bytes, n, check_part, NULL, &error);
    if (status != LMI_OK) {
        check_refused(status, &error);
        PROMISE(memcmp(&s, &before, sizeof s) == 0 && memcmp(&header, &untouched, sizeof header) == 0);
    }
    if (status == LMI_OK || count++ % 64 == 0) { /* files are slower than memory */
        check_file(bytes, n, status, &header);
    }
    if (status == LMI_OK) {
        check_accepted(&header, &s, bytes, n);
    }
    free(bytes);
    return 0;
}
