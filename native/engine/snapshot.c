/* A saved state, little-endian:
 *
 *      0  "LMISTATE"
 *      8  u32 version, u32 size of the header (256)
 *     16  fingerprint of the model, 32 bytes
 *     48  i64 window, sinks, chunk, rollback
 *     80  i32 kv_type, placement
 *     88  i64 ring_slots, n_vocab, start, position, furthest
 *    128  i32 has_logits, isa
 *    136  u32 number of parts, u32 0
 *    144  u64 size of each part, 0 for those that are not there [8]
 *    208  i32 recall, recall_layer
 *    216  i64 recall_n, recall_block, recall_distance, recall_budget
 *    248  f32 recall_decay
 *    252  u32 CRC32C of bytes 0 to 251
 *    256  the parts, without gaps; then u32 CRC32C of every MiB of them, the last one shorter
 *
 * A file is mapped for loading, not read into memory: a state can be as large as the context itself, of which there would be two.
 * It is checked whole, then copied. Saving never changes a file in place, so what was checked is what is copied. */
#include "engine/snapshot.h"

#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/checked.h"
#include "base/file.h"
#include "base/half.h"
#include "base/hash.h"

enum {
    HEADER_BYTES = 256,
    PARTS_AT = 144,
    RECALL_AT = PARTS_AT + 8 * SNAPSHOT_MAX_PARTS,
    SUM_AT = HEADER_BYTES - 4,
    BLOCK_BYTES = 1 << 20, /* per sum */
    SUM_BYTES = 4
};

#define LATEST_POSITION ((int64_t)1 << 62)

static const char magic[8] = {'L', 'M', 'I', 'S', 'T', 'A', 'T', 'E'};

/* ---- numbers ----------------------------------------------------------------------------------------------------- */

static void put(uint8_t *bytes, uint64_t value, int n) {
    for (int i = 0; i < n; i++) {
        bytes[i] = (uint8_t)(value >> 8 * i);
    }
}

static uint64_t get(const uint8_t *bytes, int n) {
    uint64_t value = 0;
    for (int i = 0; i < n; i++) {
        value |= (uint64_t)bytes[i] << 8 * i;
    }
    return value;
}

static int64_t get_i64(const uint8_t *bytes) { return (int64_t)get(bytes, 8); }
static int32_t get_i32(const uint8_t *bytes) { return (int32_t)(uint32_t)get(bytes, 4); }

static void write_header(const snapshot_header *h, const snapshot_part *parts, int n_parts, uint8_t bytes[HEADER_BYTES]) {
    const int64_t options[4] = {h->window, h->sinks, h->chunk, h->rollback};
    const int64_t timeline[5] = {h->ring_slots, h->n_vocab, h->start, h->position, h->furthest};
    memset(bytes, 0, HEADER_BYTES);
    memcpy(bytes, magic, sizeof magic);
    put(bytes + 8, SNAPSHOT_VERSION, 4);
    put(bytes + 12, HEADER_BYTES, 4);
    memcpy(bytes + 16, h->fingerprint, sizeof h->fingerprint);
    for (int i = 0; i < 4; i++) {
        put(bytes + 48 + 8 * i, (uint64_t)options[i], 8);
    }
    put(bytes + 80, (uint32_t)h->kv_type, 4);
    put(bytes + 84, (uint32_t)h->placement, 4);
    for (int i = 0; i < 5; i++) {
        put(bytes + 88 + 8 * i, (uint64_t)timeline[i], 8);
    }
    put(bytes + 128, (uint32_t)h->has_logits, 4);
    put(bytes + 132, (uint32_t)h->isa, 4);
    put(bytes + 136, (uint32_t)n_parts, 4);
    for (int i = 0; i < n_parts; i++) {
        put(bytes + PARTS_AT + 8 * i, parts[i].size, 8);
    }
    const int64_t recall[4] = {h->recall_n, h->recall_block, h->recall_distance, h->recall_budget};
    put(bytes + RECALL_AT, (uint32_t)h->recall, 4);
    put(bytes + RECALL_AT + 4, (uint32_t)h->recall_layer, 4);
    for (int i = 0; i < 4; i++) {
        put(bytes + RECALL_AT + 8 + 8 * i, (uint64_t)recall[i], 8);
    }
    put(bytes + RECALL_AT + 40, f32_to_bits(h->recall_decay), 4);
    put(bytes + SUM_AT, crc32c(0, bytes, SUM_AT), 4);
}

static void parse_header(const uint8_t bytes[HEADER_BYTES], snapshot_header *h) {
    *h = (snapshot_header){
        .window = get_i64(bytes + 48),
        .sinks = get_i64(bytes + 56),
        .chunk = get_i64(bytes + 64),
        .rollback = get_i64(bytes + 72),
        .kv_type = get_i32(bytes + 80),
        .placement = get_i32(bytes + 84),
        .ring_slots = get_i64(bytes + 88),
        .n_vocab = get_i64(bytes + 96),
        .start = get_i64(bytes + 104),
        .position = get_i64(bytes + 112),
        .furthest = get_i64(bytes + 120),
        .has_logits = get_i32(bytes + 128),
        .isa = get_i32(bytes + 132),
        .recall = get_i32(bytes + RECALL_AT),
        .recall_layer = get_i32(bytes + RECALL_AT + 4),
        .recall_n = get_i64(bytes + RECALL_AT + 8),
        .recall_block = get_i64(bytes + RECALL_AT + 16),
        .recall_distance = get_i64(bytes + RECALL_AT + 24),
        .recall_budget = get_i64(bytes + RECALL_AT + 32),
        .recall_decay = f32_from_bits((uint32_t)get(bytes + RECALL_AT + 40, 4)),
    };
    memcpy(h->fingerprint, bytes + 16, sizeof h->fingerprint);
}

/* ---- sizes ------------------------------------------------------------------------------------------------------- */

static uint64_t n_sums_of(uint64_t payload) { return payload / BLOCK_BYTES + (payload % BLOCK_BYTES != 0); }

/* Of a state whose parts hold `payload` bytes; false if no such thing exists. */
static bool whole_size(uint64_t payload, uint64_t *size) {
    return ck_add(payload, n_sums_of(payload) * SUM_BYTES, size) && ck_add(*size, HEADER_BYTES, size);
}

static bool sum_parts(const snapshot_part *parts, int n_parts, uint64_t *payload) {
    bool fits = n_parts >= 0 && n_parts <= SNAPSHOT_MAX_PARTS;
    *payload = 0;
    for (int i = 0; fits && i < n_parts; i++) {
        fits = ck_add(*payload, parts[i].size, payload);
    }
    return fits;
}

size_t snapshot_size(const snapshot_part *parts, int n_parts) {
    uint64_t payload, size;
    return sum_parts(parts, n_parts, &payload) && whole_size(payload, &size) && size <= SIZE_MAX ? (size_t)size : 0;
}

/* ---- writing ----------------------------------------------------------------------------------------------------- */

/* Where a state goes: a file, or memory of the right size. The parts are one stream, cut into blocks; each block's sum is kept until
 * the end, where the sums stand. */
typedef struct sink {
    file_writer *file; /* NULL: memory */
    uint8_t *next;
    uint8_t *sums;      /* of the parts' blocks */
    size_t n_sums;      /* bytes of them that are filled */
    uint8_t *staged;    /* [BLOCK_BYTES], where a part is not in memory */
    size_t filled;      /* bytes of the current block */
    uint32_t block_sum; /* of these */
} sink;

static lmi_status open_sink(sink *out, const snapshot_part *parts, int n_parts, lmi_error *error) {
    uint64_t payload = 0;
    bool staged = false;
    for (int i = 0; i < n_parts; i++) {
        payload += parts[i].size;
        staged |= parts[i].data == NULL && parts[i].size > 0;
    }
    const size_t n = (size_t)n_sums_of(payload) * SUM_BYTES;
    out->sums = malloc(n + (staged ? BLOCK_BYTES : 0) + 1);
    if (out->sums == NULL) {
        return fail(error, LMI_OUT_OF_MEMORY, "no memory to save a state");
    }
    out->staged = staged ? out->sums + n : NULL;
    return LMI_OK;
}

static lmi_status give(sink *out, const void *bytes, size_t size, lmi_error *error) {
    if (out->file != NULL) {
        return file_write(out->file, bytes, size, error);
    }
    if (size > 0) {
        memcpy(out->next, bytes, size);
    }
    out->next += size;
    return LMI_OK;
}

static void end_block(sink *out) {
    put(out->sums + out->n_sums, out->block_sum, SUM_BYTES);
    out->n_sums += SUM_BYTES;
    out->filled = 0;
    out->block_sum = 0;
}

static lmi_status give_payload(sink *out, const uint8_t *bytes, size_t size, lmi_error *error) {
    for (size_t at = 0; at < size;) {
        const size_t room = BLOCK_BYTES - out->filled, n = size - at < room ? size - at : room;
        out->block_sum = crc32c(out->block_sum, bytes + at, n);
        out->filled += n;
        at += n;
        if (out->filled == BLOCK_BYTES) {
            end_block(out);
        }
    }
    return give(out, bytes, size, error);
}

static lmi_status give_part(sink *out, const snapshot_part *part, lmi_error *error) {
    if (part->data != NULL) {
        return give_payload(out, part->data, part->size, error);
    }
    lmi_status status = LMI_OK;
    for (size_t at = 0; at < part->size && status == LMI_OK;) {
        const size_t n = part->size - at < BLOCK_BYTES ? part->size - at : BLOCK_BYTES;
        status = part->get(part->owner, at, n, out->staged, error);
        if (status == LMI_OK) {
            status = give_payload(out, out->staged, n, error);
        }
        at += n;
    }
    return status;
}

static lmi_status give_all(sink *out, const snapshot_header *header, const snapshot_part *parts, int n_parts,
                           lmi_error *error) {
    uint8_t bytes[HEADER_BYTES];
    write_header(header, parts, n_parts, bytes);
    lmi_status status = give(out, bytes, sizeof bytes, error);
    for (int i = 0; i < n_parts && status == LMI_OK; i++) {
        status = give_part(out, &parts[i], error);
    }
    if (out->filled > 0) {
        end_block(out);
    }
    return status == LMI_OK ? give(out, out->sums, out->n_sums, error) : status;
}

/* ---- checking ---------------------------------------------------------------------------------------------------- */

static const char *kv_name(int32_t kv_type) {
    return kv_type == LMI_KV_F16 ? "f16" : kv_type == LMI_KV_Q8_0 ? "q8_0" : kv_type == LMI_KV_F32 ? "f32" : NULL;
}

static const char *placement_name(int32_t placement) {
    return placement == LMI_PLACEMENT_CEILING      ? "ceiling"
           : placement == LMI_PLACEMENT_CONTIGUOUS ? "contiguous"
           : placement == LMI_PLACEMENT_TRUE       ? "true"
                                                   : NULL;
}

static const char *recall_name(int32_t recall) {
    static const char *const names[] = {"none", "topk", "surprise", "blocks"};
    return recall >= LMI_RECALL_NONE && recall <= LMI_RECALL_BLOCKS ? names[recall] : NULL;
}

/* What holds for every state, whatever session it is for. Returns what does not, or NULL. */
static const char *find_nonsense(const snapshot_header *h) {
    if (h->window < 1 || h->sinks < 0 || h->chunk < 1 || h->rollback < 0) {
        return "its options are out of range";
    }
    if (kv_name(h->kv_type) == NULL || placement_name(h->placement) == NULL) {
        return "its type of keys and values or its placement is unknown";
    }
    if (recall_name(h->recall) == NULL || h->recall_layer < 0 || h->recall_n < 0 || h->recall_block < 0 ||
        h->recall_distance < 0 || h->recall_budget < 0 || !(h->recall_decay >= 0.0f && h->recall_decay <= 1.0f)) {
        return "what it recalls is unknown";
    }
    if (h->ring_slots < 1 || h->n_vocab < 1) {
        return "its buffer has no size";
    }
    if (h->start < 0 || h->position < h->start || h->furthest < h->position || h->furthest > LATEST_POSITION) {
        return "its positions are not in order";
    }
    return h->has_logits == 0 || h->has_logits == 1 ? NULL : "it has neither logits nor none";
}

static lmi_status damaged(lmi_error *error, uint64_t offset, const char *what) {
    char text[32];
    fail_at(error, LMI_BAD_FORMAT, offset, "damaged saved state at byte %s: %s", group_digits(offset, text), what);
    remedy(error, "Save it again, or start without it.");
    return LMI_BAD_FORMAT;
}

static lmi_status incomplete(lmi_error *error, uint64_t size, uint64_t needed) {
    char has[32], needs[32];
    fail_at(error, LMI_BAD_FORMAT, size, "the saved state is incomplete: it needs %s bytes, there are %s",
            group_digits(needed, needs), group_digits(size, has));
    remedy(error, "Copy or save it again.");
    return LMI_BAD_FORMAT;
}

/* The header as such, and that the bytes are as many as it says. `sizes` gets those of the parts. */
static lmi_status check_header(const uint8_t *bytes, uint64_t size, snapshot_header *h, uint64_t sizes[SNAPSHOT_MAX_PARTS],
                               int *n_parts, lmi_error *error) {
    uint64_t known = size < sizeof magic ? size : sizeof magic;
    if (known == 0 || memcmp(bytes, magic, (size_t)known) != 0) {
        fail_at(error, LMI_BAD_FORMAT, 0, "not a saved state of lmi: it does not start with LMISTATE");
        remedy(error, "States are written by --save-state; models are given with the model's own argument.");
        return LMI_BAD_FORMAT;
    }
    if (size < HEADER_BYTES) {
        return incomplete(error, size, HEADER_BYTES);
    }
    if (get(bytes + 8, 4) != SNAPSHOT_VERSION) {
        fail_at(error, LMI_UNSUPPORTED, 8, "the saved state has version %u, this program reads %d", (unsigned)get(bytes + 8, 4),
                SNAPSHOT_VERSION);
        remedy(error, "Load it with the version of lmi that saved it, or save it again.");
        return LMI_UNSUPPORTED;
    }
    if (get(bytes + SUM_AT, 4) != crc32c(0, bytes, SUM_AT)) {
        return damaged(error, SUM_AT, "the sum of its header does not hold");
    }
    parse_header(bytes, h);
    if (get(bytes + 12, 4) != HEADER_BYTES || get(bytes + 136, 4) > SNAPSHOT_MAX_PARTS || get(bytes + 140, 4) != 0) {
        return damaged(error, 12, "its header has an impossible form");
    }
    const char *nonsense = find_nonsense(h);
    if (nonsense != NULL) {
        return damaged(error, 48, nonsense);
    }
    *n_parts = (int)get(bytes + 136, 4);
    uint64_t payload = 0, needed;
    for (int i = 0; i < SNAPSHOT_MAX_PARTS; i++) {
        sizes[i] = get(bytes + PARTS_AT + 8 * i, 8);
        if (!ck_add(payload, sizes[i], &payload) || (i >= *n_parts && sizes[i] != 0)) {
            return damaged(error, PARTS_AT + 8 * (uint64_t)i, "its parts have impossible sizes");
        }
    }
    if (!whole_size(payload, &needed)) {
        return damaged(error, PARTS_AT, "its parts have impossible sizes");
    }
    if (size < needed) {
        return incomplete(error, size, needed);
    }
    if (size > needed) {
        char text[32];
        fail_at(error, LMI_BAD_FORMAT, needed, "the saved state has %s bytes too many", group_digits(size - needed, text));
        remedy(error, "Copy or save it again.");
        return LMI_BAD_FORMAT;
    }
    return LMI_OK;
}

/* All that makes what is recalled fit, and no more than that. */
static const char *recall_text(const snapshot_header *h, char text[96]) {
    if (h->recall == LMI_RECALL_NONE) {
        return "none";
    }
    snprintf(text, 96, "%s %lldx%lld from layer %d at distance %lld, budget %lld", recall_name(h->recall),
             (long long)h->recall_n, (long long)h->recall_block, (int)h->recall_layer, (long long)h->recall_distance,
             (long long)h->recall_budget);
    return text;
}

static lmi_status differs(const snapshot_header *saved, lmi_error *error) {
    remedy(error,
           "Open it as it was saved: window %lld, sinks %lld, kv_type %s, placement %s, chunk %lld, rollback %lld; "
           "lmi run does so where no option says otherwise",
           (long long)saved->window, (long long)saved->sinks, kv_name(saved->kv_type), placement_name(saved->placement),
           (long long)saved->chunk, (long long)saved->rollback);
    return LMI_STATE;
}

/* That the state is one of this very session: `h` has passed check_header. */
static lmi_status check_fits(const snapshot_header *expected, const snapshot_header *h,
                             const uint64_t sizes[SNAPSHOT_MAX_PARTS], const snapshot_part *parts, lmi_error *error) {
    const struct {
        const char *option;
        int64_t saved, mine;
    } numbers[] = {
        {"window", h->window, expected->window},
        {"sinks", h->sinks, expected->sinks},
        {"chunk", h->chunk, expected->chunk},
        {"rollback", h->rollback, expected->rollback},
    };
    if (memcmp(h->fingerprint, expected->fingerprint, sizeof h->fingerprint) != 0) {
        fail(error, LMI_STATE, "the state was saved with another model");
        remedy(error, "Use the model file that it was saved with; a re-quantized or edited one counts as another.");
        return LMI_STATE;
    }
    for (size_t i = 0; i < sizeof numbers / sizeof *numbers; i++) {
        if (numbers[i].saved != numbers[i].mine) {
            fail(error, LMI_STATE, "the state was saved with %s %lld, this session has %lld", numbers[i].option,
                 (long long)numbers[i].saved, (long long)numbers[i].mine);
            return differs(h, error);
        }
    }
    if (h->kv_type != expected->kv_type) {
        const char *mine = kv_name(expected->kv_type);
        fail(error, LMI_STATE, "the state was saved with kv_type %s, this session has %s", kv_name(h->kv_type),
             mine ? mine : "?");
        return differs(h, error);
    }
    if (h->placement != expected->placement) {
        const char *mine = placement_name(expected->placement);
        fail(error, LMI_STATE, "the state was saved with placement %s, this session has %s", placement_name(h->placement),
             mine ? mine : "?");
        return differs(h, error);
    }
    if (h->recall != expected->recall || h->recall_layer != expected->recall_layer || h->recall_n != expected->recall_n ||
        h->recall_block != expected->recall_block || h->recall_distance != expected->recall_distance ||
        h->recall_budget != expected->recall_budget || f32_to_bits(h->recall_decay) != f32_to_bits(expected->recall_decay)) {
        char saved[96], mine[96];
        fail(error, LMI_STATE, "the state was saved with recall %s, this session has %s", recall_text(h, saved),
             recall_text(expected, mine));
        remedy(error, "Give the --recall options that it was saved with.");
        return LMI_STATE;
    }
    if (h->ring_slots != expected->ring_slots || h->n_vocab != expected->n_vocab) {
        fail(error, LMI_STATE, "the state has %lld slots and %lld tokens in the vocabulary, this session has %lld and %lld",
             (long long)h->ring_slots, (long long)h->n_vocab, (long long)expected->ring_slots, (long long)expected->n_vocab);
        remedy(error, "Load it with the version of lmi that saved it, or save it again.");
        return LMI_STATE;
    }
    for (int i = 0; i < SNAPSHOT_MAX_PARTS; i++) {
        if (parts[i].most != 0 ? sizes[i] > parts[i].most : sizes[i] != parts[i].size) {
            char saved[32], mine[32];
            fail(error, LMI_STATE, "part %d of the state has %s bytes, this session needs %s", i, group_digits(sizes[i], saved),
                 group_digits(parts[i].size, mine));
            remedy(error, "Load it with the version of lmi that saved it, or save it again.");
            return LMI_STATE;
        }
    }
    return LMI_OK;
}

static lmi_status check_sums(const uint8_t *payload, uint64_t size, lmi_error *error) {
    const uint8_t *sums = payload + size;
    for (uint64_t at = 0; at < size; at += BLOCK_BYTES, sums += SUM_BYTES) {
        uint64_t n = size - at < BLOCK_BYTES ? size - at : BLOCK_BYTES;
        if (crc32c(0, payload + at, (size_t)n) != get(sums, SUM_BYTES)) {
            return damaged(error, HEADER_BYTES + at, "the sum of the MiB that begins there does not hold");
        }
    }
    return LMI_OK;
}

/* All that can be known before a byte is copied. `parts` gets those given, with the sizes that they have in the state. */
static lmi_status check_all(const snapshot_header *expected, snapshot_header *h, const snapshot_part *given, int n_given,
                            snapshot_part parts[SNAPSHOT_MAX_PARTS], const uint8_t *bytes, uint64_t size, snapshot_check *check,
                            void *context, lmi_error *error) {
    uint64_t sizes[SNAPSHOT_MAX_PARTS], payload;
    int n_parts;
    if (!sum_parts(given, n_given, &payload)) {
        return fail(error, LMI_INTERNAL, "a session wants a state of %d parts", n_given);
    }
    for (int i = 0; i < SNAPSHOT_MAX_PARTS; i++) {
        parts[i] = i < n_given ? given[i] : (snapshot_part){0};
    }
    lmi_status status = check_header(bytes, size, h, sizes, &n_parts, error);
    if (status != LMI_OK || (status = check_fits(expected, h, sizes, parts, error)) != LMI_OK) {
        return status;
    }
    for (int i = 0; i < n_given; i++) {
        parts[i].size = (size_t)sizes[i];
    }
    (void)sum_parts(parts, n_given, &payload); /* as check_header did */
    if (n_parts != n_given) {                  /* all those beyond are empty; but there is one way to write a state */
        return damaged(error, 136, "it has empty parts at its end");
    }
    if ((status = check_sums(bytes + HEADER_BYTES, payload, error)) != LMI_OK || check == NULL) {
        return status;
    }
    const uint8_t *next = bytes + HEADER_BYTES;
    for (int i = 0; i < n_given && status == LMI_OK; i++) {
        status = check(context, i, next, parts[i].size, error);
        next += parts[i].size;
    }
    return status;
}

static lmi_status put_part(const snapshot_part *part, const uint8_t *bytes, lmi_error *error) {
    lmi_status status = LMI_OK;
    for (size_t at = 0; at < part->size && status == LMI_OK;) {
        const size_t n = part->size - at < BLOCK_BYTES ? part->size - at : BLOCK_BYTES;
        status = part->put(part->owner, at, n, bytes + at, error);
        at += n;
    }
    return status;
}

/* Those that can fail come first. */
static lmi_status copy_parts(const snapshot_part *parts, int n_parts, const uint8_t *bytes, lmi_error *error) {
    const uint8_t *next = bytes;
    for (int i = 0; i < n_parts; i++) {
        lmi_status status = parts[i].data == NULL ? put_part(&parts[i], next, error) : LMI_OK;
        if (status != LMI_OK) {
            return status;
        }
        next += parts[i].size;
    }
    next = bytes;
    for (int i = 0; i < n_parts; i++) {
        if (parts[i].data != NULL && parts[i].size > 0) {
            memcpy(parts[i].data, next, parts[i].size);
        }
        next += parts[i].size;
    }
    return LMI_OK;
}

/* ---- the four ways ----------------------------------------------------------------------------------------------- */

/* A state that could not be loaded must not be written. */
static lmi_status check_own(const snapshot_header *header, const snapshot_part *parts, int n_parts, lmi_error *error) {
    const char *nonsense = find_nonsense(header);
    if (nonsense != NULL || snapshot_size(parts, n_parts) == 0) {
        return fail(error, LMI_INTERNAL, "this session's state cannot be saved: %s",
                    nonsense ? nonsense : "its parts have no size");
    }
    return LMI_OK;
}

lmi_status snapshot_write(const snapshot_header *header, const snapshot_part *parts, int n_parts, void *bytes, size_t size,
                          lmi_error *error) {
    lmi_status status = check_own(header, parts, n_parts, error);
    if (status != LMI_OK) {
        return status;
    }
    size_t needed = snapshot_size(parts, n_parts);
    if (bytes == NULL || size != needed) {
        char has[32], needs[32];
        fail(error, LMI_INVALID_ARGUMENT, "the state takes %s bytes, there is room for %s", group_digits(needed, needs),
             group_digits(bytes == NULL ? 0 : size, has));
        remedy(error, "Give exactly as many bytes as lmi_session_state_size says.");
        return LMI_INVALID_ARGUMENT;
    }
    sink out = {.next = bytes};
    status = open_sink(&out, parts, n_parts, error);
    if (status == LMI_OK) {
        status = give_all(&out, header, parts, n_parts, error);
    }
    free(out.sums);
    return status;
}

lmi_status snapshot_read(const snapshot_header *expected, snapshot_header *header, const snapshot_part *parts, int n_parts,
                         const void *bytes, size_t size, snapshot_check *check, void *context, lmi_error *error) {
    if (bytes == NULL && size > 0) {
        return fail(error, LMI_INVALID_ARGUMENT, "no bytes of a saved state were given");
    }
    snapshot_header loaded;
    snapshot_part found[SNAPSHOT_MAX_PARTS];
    lmi_status status = check_all(expected, &loaded, parts, n_parts, found, bytes, size, check, context, error);
    if (status == LMI_OK) {
        status = copy_parts(found, n_parts, (const uint8_t *)bytes + HEADER_BYTES, error);
    }
    if (status == LMI_OK) {
        *header = loaded;
    }
    return status;
}

lmi_status snapshot_save(const snapshot_header *header, const snapshot_part *parts, int n_parts, const char *path,
                         lmi_error *error) {
    file_writer file;
    sink out = {.file = &file};
    lmi_status status = check_own(header, parts, n_parts, error);
    if (status != LMI_OK || (status = open_sink(&out, parts, n_parts, error)) != LMI_OK) {
        return status;
    }
    status = file_create(path, snapshot_size(parts, n_parts), &file, error);
    if (status == LMI_OK) {
        status = give_all(&out, header, parts, n_parts, error);
        if (status == LMI_OK) {
            status = file_commit(&file, error);
        }
        file_abandon(&file);
    }
    free(out.sums);
    return status;
}

lmi_status snapshot_load(const snapshot_header *expected, snapshot_header *header, const snapshot_part *parts, int n_parts,
                         const char *path, snapshot_check *check, void *context, lmi_error *error) {
    file_view view;
    snapshot_header loaded;
    snapshot_part found[SNAPSHOT_MAX_PARTS];
    lmi_status status = file_open(path, true, &view, error);
    if (status != LMI_OK) {
        return status;
    }
    file_prefetch(&view, 0, view.size);
    if ((status = check_all(expected, &loaded, parts, n_parts, found, view.bytes, view.size, check, context, error)) ==
            LMI_OK &&
        (status = file_check(&view, error)) == LMI_OK &&
        (status = copy_parts(found, n_parts, view.bytes + HEADER_BYTES, error)) == LMI_OK) {
        *header = loaded;
    }
    file_close(&view);
    return status;
}

lmi_status snapshot_peek(const char *path, snapshot_header *header, lmi_error *error) {
    file_view view;
    snapshot_header loaded;
    uint64_t sizes[SNAPSHOT_MAX_PARTS];
    int n_parts;
    lmi_status status = file_open(path, true, &view, error);
    if (status != LMI_OK) {
        return status;
    }
    if ((status = check_header(view.bytes, view.size, &loaded, sizes, &n_parts, error)) == LMI_OK) {
        *header = loaded;
    }
    file_close(&view);
    return status;
}
