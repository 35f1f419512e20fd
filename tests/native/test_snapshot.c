/* Saved states: the layout byte by byte, every flipped byte, every truncation, every forged field, every failing write. After
 * whatever is refused the session's memory is as it was. */
#define _GNU_SOURCE
#include "files.h"

#include <sched.h>
#include <signal.h>
#include <sys/mount.h>
#include <sys/resource.h>
#include <time.h>

#include "base/file.h"
#include "base/hash.h"
#include "engine/snapshot.h"

enum { N_PARTS = 4, MIB = 1 << 20, HEADER = 256 };

/* ---- a session's memory ------------------------------------------------------------------------------------------ */

typedef struct memory {
    snapshot_part parts[N_PARTS];
    snapshot_header header;
} memory;

static void fill(memory *m, uint64_t seed) {
    for (int i = 0; i < N_PARTS; i++) {
        for (size_t k = 0; k < m->parts[i].size; k++) {
            ((uint8_t *)m->parts[i].data)[k] = (uint8_t)check_random(&seed);
        }
    }
}

static memory make(size_t a, size_t b, size_t c, size_t d, uint64_t seed) {
    const size_t sizes[N_PARTS] = {a, b, c, d};
    memory m = {.header = {.window = 4096,
                           .sinks = 16,
                           .chunk = 512,
                           .rollback = 64,
                           .kv_type = 0,
                           .placement = 0,
                           .ring_slots = 4607,
                           .n_vocab = 32000,
                           .start = 7,
                           .position = 1000007,
                           .furthest = 1000010,
                           .has_logits = 1,
                           .isa = 2}};
    for (int i = 0; i < 32; i++) {
        m.header.fingerprint[i] = (uint8_t)(200 + i);
    }
    for (int i = 0; i < N_PARTS; i++) {
        m.parts[i] = (snapshot_part){.data = sizes[i] == 0 ? NULL : malloc(sizes[i]), .size = sizes[i]};
    }
    fill(&m, seed);
    return m;
}

static void drop(memory *m) {
    for (int i = 0; i < N_PARTS; i++) {
        free(m->parts[i].data);
    }
}

static bool same(const memory *a, const memory *b) {
    bool equal = true;
    for (int i = 0; i < N_PARTS; i++) {
        equal = equal && a->parts[i].size == b->parts[i].size &&
                (a->parts[i].size == 0 || memcmp(a->parts[i].data, b->parts[i].data, a->parts[i].size) == 0);
    }
    return equal;
}

static bool same_header(const snapshot_header *a, const snapshot_header *b) {
    return memcmp(a->fingerprint, b->fingerprint, 32) == 0 && a->window == b->window && a->sinks == b->sinks &&
           a->chunk == b->chunk && a->rollback == b->rollback && a->kv_type == b->kv_type && a->placement == b->placement &&
           a->ring_slots == b->ring_slots && a->n_vocab == b->n_vocab && a->start == b->start && a->position == b->position &&
           a->furthest == b->furthest && a->has_logits == b->has_logits && a->isa == b->isa;
}

static uint8_t *written(const memory *m, size_t *size) {
    lmi_error error = {0};
    *size = snapshot_size(m->parts, N_PARTS);
    uint8_t *bytes = malloc(*size);
    CHECK(snapshot_write(&m->header, m->parts, N_PARTS, bytes, *size, &error) == LMI_OK, "%s", error.message);
    return bytes;
}

static uint64_t number(const uint8_t *bytes, int n) {
    uint64_t value = 0;
    while (n-- > 0) {
        value = value << 8 | bytes[n];
    }
    return value;
}

static void set_number(uint8_t *bytes, uint64_t value, int n) {
    for (int i = 0; i < n; i++) {
        bytes[i] = (uint8_t)(value >> 8 * i);
    }
}

/* Loads from a copy of exactly this size (so that a sanitizer sees a byte too many) into memory that must not change. */
static lmi_status refused(const memory *target, const uint8_t *bytes, size_t size, lmi_error *error) {
    static const snapshot_header untouched = {.window = -77};
    const size_t *s =
        (const size_t[]){target->parts[0].size, target->parts[1].size, target->parts[2].size, target->parts[3].size};
    memory mine = make(s[0], s[1], s[2], s[3], 99), before = make(s[0], s[1], s[2], s[3], 99);
    snapshot_header header = untouched;
    uint8_t *copy = malloc(size + !size);
    memcpy(copy, bytes, size);
    memset(error, 0, sizeof *error);
    lmi_status status = snapshot_read(&target->header, &header, mine.parts, N_PARTS, copy, size, NULL, NULL, error);
    CHECK(status != LMI_OK && error->status == status && error->message[0] != '\0' && error->remedy[0] != '\0',
          "status %d, %s | %s", (int)status, error->message, error->remedy);
    CHECK(same(&mine, &before) && memcmp(&header, &untouched, sizeof header) == 0, "something changed");
    free(copy);
    drop(&mine);
    drop(&before);
    return status;
}

/* ---- in memory --------------------------------------------------------------------------------------------------- */

static void test_layout(void) {
    memory m = make(100, 0, 37, 5, 1);
    size_t size;
    uint8_t *b = written(&m, &size);
    CHECK(size == HEADER + 142 + 4);
    CHECK(memcmp(b, "LMISTATE", 8) == 0 && number(b + 8, 4) == SNAPSHOT_VERSION && number(b + 12, 4) == HEADER);
    CHECK(memcmp(b + 16, m.header.fingerprint, 32) == 0);
    CHECK(number(b + 48, 8) == 4096 && number(b + 56, 8) == 16 && number(b + 64, 8) == 512 && number(b + 72, 8) == 64);
    CHECK(number(b + 80, 4) == 0 && number(b + 84, 4) == 0 && number(b + 88, 8) == 4607 && number(b + 96, 8) == 32000);
    CHECK(number(b + 104, 8) == 7 && number(b + 112, 8) == 1000007 && number(b + 120, 8) == 1000010);
    CHECK(number(b + 128, 4) == 1 && number(b + 132, 4) == 2 && number(b + 136, 4) == N_PARTS && number(b + 140, 4) == 0);
    CHECK(number(b + 144, 8) == 100 && number(b + 152, 8) == 0 && number(b + 160, 8) == 37 && number(b + 168, 8) == 5);
    size_t zeros = 0;
    for (int i = 176; i < 252; i++) {
        zeros += b[i] == 0;
    }
    CHECK(zeros == 76 && number(b + 252, 4) == crc32c(0, b, 252));
    CHECK(memcmp(b + HEADER, m.parts[0].data, 100) == 0 && memcmp(b + HEADER + 100, m.parts[2].data, 37) == 0);
    CHECK(number(b + size - 4, 4) == crc32c(0, b + HEADER, 142));
    free(b);
    drop(&m);
}

/* Sizes on and around whole MiB, blocks across parts: sums computed here from the stream. */
static void test_sums(void) {
    const size_t sizes[][N_PARTS] = {{0, 0, 0, 0},       {1, 0, 0, 0},         {MIB, 0, 0, 0},         {MIB - 1, 1, 0, 0},
                                     {MIB - 1, 5, 0, 3}, {3, 2 * MIB, MIB, 1}, {MIB / 2, MIB, 0, MIB}, {0, 0, 0, 2 * MIB - 1}};
    for (size_t t = 0; t < sizeof sizes / sizeof *sizes; t++) {
        memory m = make(sizes[t][0], sizes[t][1], sizes[t][2], sizes[t][3], t + 5),
               other = make(sizes[t][0], sizes[t][1], sizes[t][2], sizes[t][3], 1);
        size_t size, payload = sizes[t][0] + sizes[t][1] + sizes[t][2] + sizes[t][3], n_sums = (payload + MIB - 1) / MIB;
        uint8_t *b = written(&m, &size);
        CHECK(size == HEADER + payload + 4 * n_sums, "case %zu", t);
        for (size_t i = 0; i < n_sums; i++) {
            size_t n = payload - i * MIB < MIB ? payload - i * MIB : MIB;
            CHECK(number(b + HEADER + payload + 4 * i, 4) == crc32c(0, b + HEADER + i * MIB, n), "case %zu, sum %zu", t, i);
        }
        snapshot_header header;
        lmi_error error = {0};
        CHECK(snapshot_read(&m.header, &header, other.parts, N_PARTS, b, size, NULL, NULL, &error) == LMI_OK, "%s",
              error.message);
        CHECK(same(&m, &other) && same_header(&header, &m.header), "case %zu", t);
        for (size_t at = HEADER; at < size; at += MIB / 3 + 1) { /* a flip in every block, and its place in the message */
            b[at] ^= 1;
            CHECK(refused(&m, b, size, &error) == LMI_BAD_FORMAT);
            CHECK(at >= HEADER + payload || error.offset == (int64_t)(HEADER + (at - HEADER) / MIB * MIB), "%lld",
                  (long long)error.offset);
            b[at] ^= 1;
        }
        free(b);
        drop(&m);
        drop(&other);
    }
}

/* What may differ: positions, logits, instruction set. They come back. */
static void test_round_trip(void) {
    memory m = make(1000, 64, 0, 9, 3), session = make(1000, 64, 0, 9, 4);
    const int64_t timelines[][3] = {
        {0, 0, 0}, {0, 5, 5}, {5, 5, 5}, {(int64_t)1 << 62, (int64_t)1 << 62, (int64_t)1 << 62}, {1, 2, 3}};
    for (int t = 0; t < 5; t++) {
        m.header.start = timelines[t][0];
        m.header.position = timelines[t][1];
        m.header.furthest = timelines[t][2];
        m.header.has_logits = t & 1;
        m.header.isa = t * 1000;
        size_t size;
        uint8_t *b = written(&m, &size);
        snapshot_header header;
        lmi_error error = {0};
        fill(&session, 50);
        CHECK(snapshot_read(&session.header, &header, session.parts, N_PARTS, b, size, NULL, NULL, &error) == LMI_OK, "%s",
              error.message);
        CHECK(same(&m, &session) && same_header(&m.header, &header));
        free(b);
    }
    drop(&m);
    drop(&session);
}

static void test_every_byte(void) {
    memory m = make(100, 0, 37, 5, 1);
    size_t size;
    lmi_error error;
    uint8_t *b = written(&m, &size);
    for (size_t at = 0; at < size; at++) {
        for (int bit = 0; bit < 8; bit++) {
            b[at] ^= (uint8_t)(1 << bit);
            lmi_status status = refused(&m, b, size, &error);
            CHECK(status == (at >= 8 && at < 12 ? LMI_UNSUPPORTED : LMI_BAD_FORMAT), "byte %zu: %d", at, (int)status);
            b[at] ^= (uint8_t)(1 << bit);
        }
        b[at] ^= 0xff;
        refused(&m, b, size, &error);
        b[at] ^= 0xff;
    }
    for (size_t n = 0; n < size; n++) {
        CHECK(refused(&m, b, n, &error) == LMI_BAD_FORMAT, "cut at %zu", n);
        CHECK(strstr(error.message, n == 0 ? "not a saved state" : "the saved state is incomplete: it needs ") != NULL, "%s",
              error.message);
        CHECK(n == 0 || error.offset == (int64_t)n);
    }
    uint8_t *longer = calloc(1, size + 5000);
    memcpy(longer, b, size);
    const size_t more[] = {1, 4, 256, 5000};
    for (int i = 0; i < 4; i++) {
        CHECK(refused(&m, longer, size + more[i], &error) == LMI_BAD_FORMAT && strstr(error.message, "bytes too many") != NULL);
    }
    CHECK(refused(&m, (const uint8_t *)"GGUF and more", 13, &error) == LMI_BAD_FORMAT &&
          strstr(error.message, "not a saved state"));
    CHECK(snapshot_read(&m.header, &m.header, m.parts, N_PARTS, NULL, 10, NULL, NULL, &error) == LMI_INVALID_ARGUMENT);
    free(longer);
    free(b);
    drop(&m);
}

/* A header changed by somebody who can compute sums. */
static void test_forged(void) {
    const struct {
        size_t at;
        int n;
        uint64_t value;
        lmi_status status;
        const char *message;
    } cases[] = {
        {8, 4, 1, LMI_UNSUPPORTED, "version 1, this program reads 2"},
        {8, 4, 0xffffffff, LMI_UNSUPPORTED, "version 4294967295"},
        {12, 4, 255, LMI_BAD_FORMAT, "impossible form"},
        {16, 1, 0, LMI_STATE, "saved with another model"},
        {47, 1, 0, LMI_STATE, "saved with another model"},
        {48, 8, 512, LMI_STATE, "saved with window 512, this session has 4096"},
        {48, 8, 0, LMI_BAD_FORMAT, "options are out of range"},
        {48, 8, UINT64_MAX, LMI_BAD_FORMAT, "options are out of range"},
        {56, 8, 4, LMI_STATE, "saved with sinks 4, this session has 16"},
        {56, 8, UINT64_MAX, LMI_BAD_FORMAT, "options are out of range"},
        {64, 8, 1, LMI_STATE, "saved with chunk 1, this session has 512"},
        {64, 8, 0, LMI_BAD_FORMAT, "options are out of range"},
        {72, 8, 65, LMI_STATE, "saved with rollback 65, this session has 64"},
        {72, 8, (uint64_t)1 << 63, LMI_BAD_FORMAT, "options are out of range"},
        {80, 4, 1, LMI_STATE, "saved with kv_type q8_0, this session has f16"},
        {80, 4, 2, LMI_STATE, "saved with kv_type f32, this session has f16"},
        {80, 4, 3, LMI_BAD_FORMAT, "unknown"},
        {80, 4, UINT32_MAX, LMI_BAD_FORMAT, "unknown"},
        {84, 4, 1, LMI_STATE, "saved with placement contiguous, this session has ceiling"},
        {84, 4, 2, LMI_STATE, "saved with placement true, this session has ceiling"},
        {84, 4, 3, LMI_BAD_FORMAT, "unknown"},
        {88, 8, 4608, LMI_STATE, "4608 slots and 32000 tokens in the vocabulary, this session has 4607 and 32000"},
        {88, 8, 0, LMI_BAD_FORMAT, "buffer has no size"},
        {96, 8, 32001, LMI_STATE, "4607 slots and 32001 tokens"},
        {96, 8, UINT64_MAX, LMI_BAD_FORMAT, "buffer has no size"},
        {104, 8, UINT64_MAX, LMI_BAD_FORMAT, "positions are not in order"},
        {104, 8, 1000008, LMI_BAD_FORMAT, "positions are not in order"},
        {112, 8, 6, LMI_BAD_FORMAT, "positions are not in order"},
        {112, 8, 1000011, LMI_BAD_FORMAT, "positions are not in order"},
        {120, 8, 1000006, LMI_BAD_FORMAT, "positions are not in order"},
        {120, 8, ((uint64_t)1 << 62) + 1, LMI_BAD_FORMAT, "positions are not in order"},
        {128, 4, 2, LMI_BAD_FORMAT, "neither logits nor none"},
        {136, 4, 9, LMI_BAD_FORMAT, "impossible form"},
        {136, 4, UINT32_MAX, LMI_BAD_FORMAT, "impossible form"},
        {136, 4, 3, LMI_BAD_FORMAT, "impossible sizes"},
        {136, 4, 5, LMI_BAD_FORMAT, "empty parts at its end"},
        {136, 4, SNAPSHOT_MAX_PARTS, LMI_BAD_FORMAT, "empty parts at its end"},
        {140, 4, 1, LMI_BAD_FORMAT, "impossible form"},
        {144, 8, 99, LMI_BAD_FORMAT, "1 bytes too many"},
        {144, 8, 101, LMI_BAD_FORMAT, "it needs 403 bytes, there are 402"},
        {144, 8, UINT64_MAX, LMI_BAD_FORMAT, "impossible sizes"},
        {144, 8, UINT64_MAX - 42, LMI_BAD_FORMAT, "impossible sizes"},
        {144, 8, UINT64_MAX - 400, LMI_BAD_FORMAT, "impossible sizes"},
        {144, 8, (uint64_t)1 << 63, LMI_BAD_FORMAT, "incomplete"},
        {176, 8, 1, LMI_BAD_FORMAT, "impossible sizes"},
        {208, 4, 3, LMI_STATE, "saved with recall blocks 0x0 from layer 0"},
        {208, 4, 4, LMI_BAD_FORMAT, "what it recalls is unknown"},
        {212, 4, UINT32_MAX, LMI_BAD_FORMAT, "what it recalls is unknown"},
        {216, 8, 8, LMI_STATE, "saved with recall none"},
        {216, 8, UINT64_MAX, LMI_BAD_FORMAT, "what it recalls is unknown"},
        {224, 8, UINT64_MAX, LMI_BAD_FORMAT, "what it recalls is unknown"},
        {232, 8, UINT64_MAX, LMI_BAD_FORMAT, "what it recalls is unknown"},
        {240, 8, UINT64_MAX, LMI_BAD_FORMAT, "what it recalls is unknown"},
        {248, 4, 0x7fc00000, LMI_BAD_FORMAT, "what it recalls is unknown"}, /* NaN */
        {248, 4, 0x40000000, LMI_BAD_FORMAT, "what it recalls is unknown"}, /* 2 */
    };
    memory m = make(100, 0, 37, 5, 1);
    size_t size;
    lmi_error error;
    uint8_t *b = written(&m, &size), *forged = malloc(size);
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        memcpy(forged, b, size);
        set_number(forged + cases[i].at, cases[i].value, cases[i].n);
        set_number(forged + 252, crc32c(0, forged, 252), 4);
        CHECK(refused(&m, forged, size, &error) == cases[i].status, "case %zu: %d %s", i, (int)error.status, error.message);
        CHECK(strstr(error.message, cases[i].message) != NULL, "case %zu: %s", i, error.message);
    }
    /* sizes that add up to the same, parts of which differ */
    memcpy(forged, b, size);
    set_number(forged + 144, 101, 8);
    set_number(forged + 160, 36, 8);
    set_number(forged + 252, crc32c(0, forged, 252), 4);
    CHECK(refused(&m, forged, size, &error) == LMI_STATE && strstr(error.message, "part 0 of the state has 101 bytes") != NULL);
    memcpy(forged, b, size);
    set_number(forged + 48, 512, 8);
    set_number(forged + 252, crc32c(0, forged, 252), 4);
    refused(&m, forged, size, &error);
    CHECK(strstr(error.remedy, "window 512, sinks 16, kv_type f16, placement ceiling, chunk 512, rollback 64; ") != NULL, "%s",
          error.remedy);
    free(forged);
    free(b);
    drop(&m);
}

typedef struct watcher {
    const memory *expected;
    const uint8_t *target; /* the first part of the session, which must not have changed yet */
    int n_seen, refuse;
} watcher;

static lmi_status watch(void *context, int part, const void *bytes, size_t size, lmi_error *error) {
    watcher *w = context;
    CHECK(part == w->n_seen++ && size == w->expected->parts[part].size);
    CHECK(size == 0 || memcmp(bytes, w->expected->parts[part].data, size) == 0, "part %d", part);
    CHECK(w->target[0] == 0xee, "copied before all was checked");
    return part == w->refuse ? fail(error, LMI_BAD_FORMAT, "part %d is not to be had", part) : LMI_OK;
}

static void test_check(void) {
    memory m = make(100, 0, 37, 5, 1), mine = make(100, 0, 37, 5, 2);
    size_t size;
    lmi_error error;
    uint8_t *b = written(&m, &size);
    for (int refuse = 0; refuse <= N_PARTS; refuse++) {
        snapshot_header header = {.window = -1};
        watcher w = {.expected = &m, .target = mine.parts[0].data, .refuse = refuse};
        memset(mine.parts[0].data, 0xee, 100);
        memset(mine.parts[3].data, 0xee, 5);
        lmi_status status = snapshot_read(&m.header, &header, mine.parts, N_PARTS, b, size, watch, &w, &error);
        if (refuse < N_PARTS) {
            CHECK(status == LMI_BAD_FORMAT && strstr(error.message, "is not to be had") != NULL && w.n_seen == refuse + 1);
            CHECK(w.target[0] == 0xee && ((uint8_t *)mine.parts[3].data)[4] == 0xee && header.window == -1);
        } else {
            CHECK(status == LMI_OK && same(&m, &mine) && w.n_seen == N_PARTS);
        }
    }
    int n_damaged = 0; /* sums come before the checks: these never see damaged bytes */
    b[HEADER + 3] ^= 1;
    watcher w = {.expected = &m, .target = mine.parts[0].data, .refuse = 9};
    CHECK(snapshot_read(&m.header, &m.header, mine.parts, N_PARTS, b, size, watch, &w, &error) == LMI_BAD_FORMAT &&
          w.n_seen == n_damaged);
    free(b);
    drop(&m);
    drop(&mine);
}

static void test_writing_to_memory(void) {
    memory m = make(100, 0, 37, 5, 1);
    lmi_error error;
    uint8_t bytes[1000];
    memset(bytes, 0xaa, sizeof bytes);
    const size_t size = snapshot_size(m.parts, N_PARTS), wrong[] = {0, 1, size - 1, size + 1, 1000};
    for (int i = 0; i < 5; i++) {
        CHECK(snapshot_write(&m.header, m.parts, N_PARTS, bytes, wrong[i], &error) == LMI_INVALID_ARGUMENT);
        CHECK(strstr(error.message, "the state takes 402 bytes") != NULL && bytes[0] == 0xaa, "%s", error.message);
    }
    CHECK(snapshot_write(&m.header, m.parts, N_PARTS, NULL, size, &error) == LMI_INVALID_ARGUMENT);
    CHECK(snapshot_write(&m.header, m.parts, N_PARTS, bytes, size, &error) == LMI_OK && bytes[size] == 0xaa);
    m.header.position = 5;
    CHECK(snapshot_write(&m.header, m.parts, N_PARTS, bytes, size, &error) == LMI_INTERNAL,
          "what could not be loaded is not written");
    snapshot_part huge[2] = {{.data = bytes, .size = SIZE_MAX}, {.data = bytes, .size = 1}};
    snapshot_part many[SNAPSHOT_MAX_PARTS + 1] = {{.data = NULL}};
    CHECK(snapshot_size(many, SNAPSHOT_MAX_PARTS) == HEADER && snapshot_size(many, SNAPSHOT_MAX_PARTS + 1) == 0);
    CHECK(snapshot_size(huge, 2) == 0 && snapshot_size(huge, 1) == 0 && snapshot_size(huge, -1) == 0);
    drop(&m);
}

/* ---- parts that only functions reach -------------------------------------------------------------------------------- */

typedef struct distant {
    uint8_t *bytes;
    size_t size;
    uint64_t next;    /* pieces come in order */
    int64_t fails_at; /* the piece that fails, from 1 on; 0: none */
} distant;

static lmi_status reach(distant *d, uint64_t offset, size_t n, lmi_error *error) {
    CHECK(offset == d->next && n > 0 && n <= MIB && offset + n <= d->size, "%zu bytes at %llu", n, (unsigned long long)offset);
    d->next = offset + n == d->size ? 0 : offset + n;
    return d->fails_at > 0 && --d->fails_at == 0 ? fail(error, LMI_DEVICE, "out of reach") : LMI_OK;
}

static lmi_status get_distant(void *owner, uint64_t offset, size_t n, void *bytes, lmi_error *error) {
    distant *d = owner;
    memcpy(bytes, d->bytes + offset, n);
    return reach(d, offset, n, error);
}

static lmi_status put_distant(void *owner, uint64_t offset, size_t n, const void *bytes, lmi_error *error) {
    distant *d = owner;
    memcpy(d->bytes + offset, bytes, n);
    return reach(d, offset, n, error);
}

/* Parts 0 and 2 go through functions, 1 and 3 lie in memory. */
static void put_away(memory *m, distant away[2]) {
    for (int i = 0; i < 2; i++) {
        snapshot_part *part = &m->parts[2 * i];
        away[i] = (distant){.bytes = part->data, .size = part->size};
        *part = (snapshot_part){.size = part->size, .owner = &away[i], .get = get_distant, .put = put_distant};
    }
}

static void bring_back(memory *m, const distant away[2]) {
    for (int i = 0; i < 2; i++) {
        m->parts[2 * i] = (snapshot_part){.data = away[i].bytes, .size = away[i].size};
    }
}

/* The same bytes as if all lay in memory, wherever MiBs begin and end in the parts; and back. */
static void test_distant_parts(void) {
    const size_t sizes[][4] = {
        {5, 3, 7, 1}, {MIB, 1, MIB, 2}, {MIB - 1, 3, 2 * MIB + 5, 0}, {0, 9, 3 * MIB, 4}, {2 * MIB + 1, MIB, 0, 700}};
    const char *path = in_folder("state");
    lmi_error error = {0};
    snapshot_header header;
    for (size_t k = 0; k < sizeof sizes / sizeof *sizes; k++) {
        memory near = make(sizes[k][0], sizes[k][1], sizes[k][2], sizes[k][3], 1);
        memory far = make(sizes[k][0], sizes[k][1], sizes[k][2], sizes[k][3], 1);
        distant away[2];
        size_t size, far_size;
        uint8_t *bytes = written(&near, &size);
        put_away(&far, away);
        uint8_t *far_bytes = written(&far, &far_size);
        CHECK(size == far_size && memcmp(bytes, far_bytes, size) == 0, "case %zu", k);
        CHECK(snapshot_save(&far.header, far.parts, N_PARTS, path, &error) == LMI_OK && file_equals(path, bytes, size));
        for (int way = 0; way < 2; way++) {
            bring_back(&far, away);
            fill(&far, 9);
            put_away(&far, away);
            lmi_status status = way == 0
                                    ? snapshot_read(&near.header, &header, far.parts, N_PARTS, bytes, size, NULL, NULL, &error)
                                    : snapshot_load(&near.header, &header, far.parts, N_PARTS, path, NULL, NULL, &error);
            bring_back(&far, away);
            CHECK(status == LMI_OK && same(&near, &far) && same_header(&header, &near.header), "%s", error.message);
            put_away(&far, away);
        }
        /* A part out of reach: nothing is left behind of what was to be saved, nothing in memory changes of what was to be loaded. */
        for (int i = 0; i < 2; i++) {
            const int64_t n_pieces = (int64_t)((away[i].size + MIB - 1) / MIB);
            for (int64_t at = 1; at <= n_pieces; at++) {
                away[i].fails_at = at;
                away[i].next = 0;
                CHECK(snapshot_save(&far.header, far.parts, N_PARTS, path, &error) == LMI_DEVICE && partials() == 0);
                CHECK(file_equals(path, bytes, size), "the state that was there stays");
                uint8_t before[16] = {0}, *one = far.parts[1].data;
                const size_t n = far.parts[1].size < sizeof before ? far.parts[1].size : sizeof before;
                memset(one, 0x77, n);
                memcpy(before, one, n);
                away[0].next = away[1].next = 0;
                away[i].fails_at = at;
                header.window = -1;
                CHECK(snapshot_read(&near.header, &header, far.parts, N_PARTS, bytes, size, NULL, NULL, &error) == LMI_DEVICE);
                CHECK(header.window == -1 && memcmp(before, one, n) == 0, "parts in memory come last");
                away[0].next = away[1].next = 0;
            }
        }
        /* One that is damaged is not even begun. */
        bytes[HEADER + (size - HEADER) / 3] ^= 4;
        away[0].fails_at = away[1].fails_at = 1;
        CHECK(snapshot_read(&near.header, &header, far.parts, N_PARTS, bytes, size, NULL, NULL, &error) == LMI_BAD_FORMAT);
        CHECK(away[0].fails_at == 1 && away[1].fails_at == 1, "put was called");
        bring_back(&far, away);
        free(bytes);
        free(far_bytes);
        drop(&near);
        drop(&far);
    }
    remove(path);
}

/* ---- in files ---------------------------------------------------------------------------------------------------- */

static bool loads(const memory *m, const char *path) {
    memory mine = make(m->parts[0].size, m->parts[1].size, m->parts[2].size, m->parts[3].size, 5);
    snapshot_header header, peeked;
    lmi_error error = {0};
    bool good = snapshot_load(&m->header, &header, mine.parts, N_PARTS, path, NULL, NULL, &error) == LMI_OK && same(m, &mine) &&
                same_header(&m->header, &header) && snapshot_peek(path, &peeked, &error) == LMI_OK &&
                same_header(&m->header, &peeked);
    drop(&mine);
    return good;
}

static lmi_status load_refused(const memory *m, const char *path, lmi_error *error) {
    memory mine = make(m->parts[0].size, m->parts[1].size, m->parts[2].size, m->parts[3].size, 5),
           before = make(m->parts[0].size, m->parts[1].size, m->parts[2].size, m->parts[3].size, 5);
    snapshot_header header = {.window = -1};
    int n_open = open_files();
    lmi_status status = snapshot_load(&m->header, &header, mine.parts, N_PARTS, path, NULL, NULL, error);
    CHECK(same(&mine, &before) && header.window == -1 && open_files() == n_open);
    drop(&mine);
    drop(&before);
    return status;
}

static void test_files(void) {
    const char *path = in_folder("state");
    memory m = make(MIB + 5, 3, 0, 70000, 1), n = make(MIB + 5, 3, 0, 70000, 2);
    lmi_error error = {0};
    snapshot_header header;
    size_t size;
    int before = open_files();
    CHECK(load_refused(&m, path, &error) == LMI_IO && strstr(error.message, "no such file") != NULL);
    CHECK(load_refused(&m, folder, &error) == LMI_IO && snapshot_peek(path, &header, &error) == LMI_IO);
    CHECK(snapshot_save(&m.header, m.parts, N_PARTS, path, &error) == LMI_OK && loads(&m, path), "%s", error.message);
    uint8_t *bytes = written(&m, &size);
    CHECK(file_equals(path, bytes, size), "a file holds what memory would");
    CHECK(snapshot_save(&n.header, n.parts, N_PARTS, path, &error) == LMI_OK && loads(&n, path), "replaced");
    CHECK(partials() == 0 && open_files() == before);
    n.header.position = -1;
    CHECK(snapshot_save(&n.header, n.parts, N_PARTS, path, &error) == LMI_INTERNAL && partials() == 0);
    n.header = m.header;
    CHECK(loads(&n, path));
    for (size_t at = 0; at < size; at += at < HEADER ? 5 : 40009) { /* damaged on disk */
        bytes[at] ^= 0x10;
        put_file(in_folder("bad"), bytes, size);
        bytes[at] ^= 0x10;
        lmi_status status = load_refused(&m, in_folder("bad"), &error);
        CHECK(status == LMI_BAD_FORMAT || (status == LMI_UNSUPPORTED && at >= 8 && at < 12), "byte %zu: %d", at, (int)status);
        CHECK((snapshot_peek(in_folder("bad"), &header, &error) == LMI_OK) == (at >= HEADER), "byte %zu", at);
    }
    for (size_t cut = 0; cut < size; cut += cut < HEADER + 20 ? 7 : 40009) {
        put_file(in_folder("bad"), bytes, cut);
        CHECK(load_refused(&m, in_folder("bad"), &error) == LMI_BAD_FORMAT, "cut at %zu", cut);
        CHECK(snapshot_peek(in_folder("bad"), &header, &error) == LMI_BAD_FORMAT, "the length is looked at, cut at %zu", cut);
    }
    CHECK(open_files() == before);
    free(bytes);
    drop(&m);
    drop(&n);
}

/* The file becomes shorter while it is loaded: touching what is gone would be a bus error. */
static lmi_status cut_file(void *context, int part, const void *bytes, size_t size, lmi_error *error) {
    (void)bytes;
    (void)size;
    (void)error;
    return part < N_PARTS - 1 || truncate(context, 300) == 0 ? LMI_OK : LMI_INTERNAL;
}

static void test_shrinking_file(void) {
    memory m = make(3 * MIB, 3, 0, 70000, 1), mine = make(3 * MIB, 3, 0, 70000, 5), before = make(3 * MIB, 3, 0, 70000, 5);
    lmi_error error = {0};
    snapshot_header header;
    char path[600];
    snprintf(path, sizeof path, "%s", in_folder("state"));
    CHECK(snapshot_save(&m.header, m.parts, N_PARTS, path, &error) == LMI_OK);
    CHECK(snapshot_load(&m.header, &header, mine.parts, N_PARTS, path, cut_file, path, &error) == LMI_IO, "%s", error.message);
    CHECK(strstr(error.message, "became shorter while in use") != NULL && same(&mine, &before));
    drop(&m);
    drop(&mine);
    drop(&before);
}

static void test_failing_writes(void) {
    const char *path = in_folder("state");
    memory old = make(5000, 3, 0, 700, 1), next = make(5000, 3, 0, 700, 2);
    lmi_error error = {0};
    int before = open_files();
    CHECK(snapshot_save(&old.header, old.parts, N_PARTS, path, &error) == LMI_OK);
    for (int call = CALL_WRITE; call < N_CALLS; call++) {
        const int codes[] = {ENOSPC, EIO, EDQUOT, EACCES};
        for (int c = 0; c < 4; c++) {
            long n_failed = 0;
            for (long at = 1;; at++) {
                io_fail((file_call)call, at, codes[c], false);
                lmi_status status = snapshot_save(&next.header, next.parts, N_PARTS, path, &error);
                long calls = io_fault[call].calls;
                io_clear();
                if (calls < at ||
                    (call == CALL_FSYNC && at == 2)) { /* none was left to fail; or the folder, after the rename */
                    break;
                }
                n_failed++;
                CHECK(status == (c % 2 == 0 ? LMI_NO_SPACE : LMI_IO) &&
                          strstr(error.message, "nothing was left behind") != NULL,
                      "%s", error.message);
                CHECK(loads(&old, path) && partials() == 0 && open_files() == before, "call %d, %ld", call, at);
            }
            CHECK(n_failed >= 1 && loads(&next, path), "call %d: the next save works", call);
            CHECK(snapshot_save(&old.header, old.parts, N_PARTS, path, &error) == LMI_OK);
        }
    }
    drop(&old);
    drop(&next);
}

static int save_below_limit(void) {
    memory old = make(5000, 3, 0, 700, 1), next = make(5000, 3, 0, 700, 2);
    lmi_error error = {0};
    int failures = 0;
    signal(SIGXFSZ, SIG_DFL);
    size_t size = snapshot_size(next.parts, N_PARTS);
    for (size_t limit = 0; limit < size; limit += 97) {
        setrlimit(RLIMIT_FSIZE, &(struct rlimit){limit, RLIM_INFINITY});
        lmi_status status = snapshot_save(&next.header, next.parts, N_PARTS, in_folder("state"), &error);
        failures += status != LMI_IO || strstr(error.remedy, "ulimit -f") == NULL || !loads(&old, in_folder("state")) ||
                    partials() != 0;
    }
    return failures != 0;
}

/* 1 MiB of disk. Before writing it is seen that there is not enough; and when nobody looked, the write says so. */
static int save_to_full_disk(void) {
    if (unshare(CLONE_NEWNS) != 0 || mount("none", "/", NULL, MS_REC | MS_PRIVATE, NULL) != 0 ||
        mount("tmpfs", in_folder("tiny"), "tmpfs", 0, "size=1m") != 0) {
        return 99;
    }
    const char *path = in_folder("tiny/state");
    memory small = make(300000, 0, 0, 0, 1), large = make(900000, 0, 0, 0, 2);
    lmi_error error = {0};
    int failures = snapshot_save(&small.header, small.parts, N_PARTS, path, &error) != LMI_OK;
    failures += snapshot_save(&large.header, large.parts, N_PARTS, path, &error) != LMI_NO_SPACE;
    failures += strstr(error.message, "no space left (needs 879 KiB, ") == NULL ||
                strstr(error.message, " free); nothing was left") == NULL;
    failures += !loads(&small, path);
    file_writer writer;
    lmi_status status = file_create(path, 0, &writer, &error);
    for (int i = 0; i < 100 && status == LMI_OK; i++) {
        status = file_write(&writer, large.parts[0].data, 100000, &error);
    }
    failures += status != LMI_NO_SPACE || strstr(error.message, "no space left (needs ") == NULL || !loads(&small, path);
    int n_partial;
    failures += folder_count(in_folder("tiny"), &n_partial) != 1;
    failures += snapshot_save(&small.header, small.parts, N_PARTS, path, &error) != LMI_OK || !loads(&small, path);
    return failures;
}

static void test_limits(void) {
    memory old = make(5000, 3, 0, 700, 1);
    lmi_error error = {0};
    CHECK(snapshot_save(&old.header, old.parts, N_PARTS, in_folder("state"), &error) == LMI_OK);
    CHECK(in_child(save_below_limit) == 0);
    CHECK(loads(&old, in_folder("state")));
    drop(&old);
    mkdir(in_folder("tiny"), 0755);
    int result = in_child(save_to_full_disk);
    CHECK(result == 0 || result == 99, "%d", result);
    if (result == 99) {
        printf("skipped: a full disk (cannot mount)\n");
    }
}

/* Killed at any time, there is a whole state, the old or the new; and it can be saved again. */
static void test_killed(void) {
    memory one = make(3 * MIB, 3, 0, 700, 1), two = make(3 * MIB, 3, 0, 700, 2);
    lmi_error error = {0};
    uint64_t random = 6;
    int n_partial = 0, n_one = 0;
    struct timespec begin, end;
    clock_gettime(CLOCK_MONOTONIC, &begin);
    CHECK(snapshot_save(&one.header, one.parts, N_PARTS, in_folder("state"), &error) == LMI_OK, "%s", error.message);
    clock_gettime(CLOCK_MONOTONIC, &end);
    uint64_t one_save = (uint64_t)(1 + (end.tv_sec - begin.tv_sec) * 1000000 + (end.tv_nsec - begin.tv_nsec) / 1000);
    for (int i = 0; i < 20; i++) {
        fflush(NULL);
        pid_t child = fork();
        if (child == 0) {
            lmi_status saved = LMI_OK;
            for (int k = 0; saved == LMI_OK; k++) {
                const memory *m = k % 2 == 0 ? &two : &one;
                saved = snapshot_save(&m->header, m->parts, N_PARTS, in_folder("state"), NULL);
            }
            _exit(1);
        }
        usleep((useconds_t)(check_random(&random) % (one_save < 200000 ? 4 * one_save : 800000)));
        kill(child, SIGKILL);
        int status;
        waitpid(child, &status, 0);
        CHECK(WIFSIGNALED(status), "the child ended by itself");
        bool is_one = loads(&one, in_folder("state"));
        n_one += is_one;
        CHECK(is_one || loads(&two, in_folder("state")), "neither the old nor the new state");
    }
    n_partial = partials();
    CHECK(snapshot_save(&two.header, two.parts, N_PARTS, in_folder("state"), &error) == LMI_OK &&
          loads(&two, in_folder("state")));
    printf("killed 20 times: %d partial files were left beside; the first state was there %d times\n", n_partial, n_one);
    drop(&one);
    drop(&two);
}

int main(void) {
    folder_make();
    test_layout();
    test_sums();
    test_round_trip();
    test_every_byte();
    test_forged();
    test_check();
    test_writing_to_memory();
    test_distant_parts();
    test_files();
    test_shrinking_file();
    test_failing_writes();
    test_limits();
    test_killed();
    folder_remove();
    return check_report();
}
