/* Saved states: a header that says what they belong to, parts of known sizes, sums over everything.
 *
 * Layout, little-endian: header (fixed size, its own CRC32C last), the parts one after the other, then one CRC32C for every
 * MiB of the parts. Its size depends on the options only. A state is untrusted: every field must equal what the session
 * expects, every sum must hold, before one byte of the session changes. */
#ifndef LMI_ENGINE_SNAPSHOT_H
#define LMI_ENGINE_SNAPSHOT_H

#include <stddef.h>
#include <stdint.h>

#include "base/status.h"

enum { SNAPSHOT_VERSION = 2, SNAPSHOT_MAX_PARTS = 8 };

typedef struct snapshot_header {
    uint8_t fingerprint[32]; /* of the model: SHA-256 of metadata, tensor table and sampled blocks */
    int64_t window, sinks, chunk, rollback;
    int32_t kv_type, placement;
    int64_t ring_slots;
    int64_t n_vocab;
    /* the timeline; 0 <= start <= position <= furthest <= 2^62 */
    int64_t start, position, furthest;
    int32_t has_logits;
    int32_t isa; /* of the kernels that wrote it: told, not required */
    /* lmi_recall_options; all 0 without */
    int32_t recall, recall_layer;
    int64_t recall_n, recall_block, recall_distance, recall_budget;
    float recall_decay;
} snapshot_header;

/* Bytes that a session holds: in memory, or where only functions reach them, as on a device. */
typedef struct snapshot_part {
    void *data; /* NULL: through the functions, in order, by at most a MiB at a time */
    size_t size;
    size_t most; /* not 0: a saved one may have any size up to this; `check` says whether it is right */
    void *owner; /* of the functions */
    lmi_status (*get)(void *owner, uint64_t offset, size_t n, void *bytes, lmi_error *error);
    lmi_status (*put)(void *owner, uint64_t offset, size_t n, const void *bytes, lmi_error *error);
} snapshot_part;

size_t snapshot_size(const snapshot_part *parts, int n_parts);
lmi_status snapshot_write(const snapshot_header *header, const snapshot_part *parts, int n_parts, void *bytes, size_t size,
                          lmi_error *error);
/* `expected`: all fields but start, position, furthest, has_logits and isa must be equal; those come back in *header. On failure no part
 * has been changed, unless it was a part's own put that failed. `check`, if not NULL, sees the bytes of each part before anything is copied, and can refuse. */
typedef lmi_status snapshot_check(void *context, int part, const void *bytes, size_t size, lmi_error *error);
lmi_status snapshot_read(const snapshot_header *expected, snapshot_header *header, const snapshot_part *parts, int n_parts,
                         const void *bytes, size_t size, snapshot_check *check, void *context, lmi_error *error);

/* The same to and from a file. Saving is atomic: a partial file beside it, fsync, rename, fsync of the folder; on any failure
 * (a full disk is LMI_NO_SPACE) the old file is still there and nothing else is left. */
lmi_status snapshot_save(const snapshot_header *header, const snapshot_part *parts, int n_parts, const char *path,
                         lmi_error *error);
lmi_status snapshot_load(const snapshot_header *expected, snapshot_header *header, const snapshot_part *parts, int n_parts,
                         const char *path, snapshot_check *check, void *context, lmi_error *error);
/* Only the header of a file (sums of the rest unchecked). */
lmi_status snapshot_peek(const char *path, snapshot_header *header, lmi_error *error);

#endif
