/* A position in the metadata of a file, and the only way the reader moves it: nothing is read, skipped or allocated
 * before it is known to lie inside the file and inside the limits. Each call that fails has filled the error. */
#ifndef LMI_GGUF_SCAN_H
#define LMI_GGUF_SCAN_H

#include "base/status.h"
#include "base/text.h"

typedef struct scan {
    const uint8_t *bytes;
    uint64_t size; /* of the file */
    uint64_t end;  /* of the part that metadata may use: the smaller of size and the limit */
    uint64_t at;   /* always <= end */
    lmi_error *error;
    /* What is being read, for messages: "key" or "tensor", counted from 1, and its name once that is known. */
    const char *noun;
    uint64_t number;
    text_view name;
} scan;

static inline uint64_t scan_remaining(const scan *s) { return s->end - s->at; }

/* LMI_OK if n more bytes are there. If not, the file is incomplete, or its metadata too large. */
lmi_status scan_need(scan *s, uint64_t n);
lmi_status scan_skip(scan *s, uint64_t n);
lmi_status scan_u32(scan *s, uint32_t *value);
lmi_status scan_u64(scan *s, uint64_t *value);
/* A length and that many bytes; the length must be in [min, max]. `what` names it in messages: "key length". */
lmi_status scan_string(scan *s, const char *what, uint64_t min, uint64_t max, text_view *value);

/* LMI_BAD_FORMAT: "damaged file at byte N: ... (key "x")". */
lmi_status scan_damaged(scan *s, uint64_t at, const char *format, ...) LMI_PRINTF(3, 4);
/* LMI_BAD_FORMAT: "file is incomplete: ... needs bytes up to N, file has M (P %)"; the error's offset is M. */
lmi_status scan_incomplete(scan *s, const char *subject, uint64_t needed, bool whole);

/* "key 12", `key "general.name"`, "tensor blk.0.attn_q.weight": what is being read. */
enum { SCAN_SUBJECT = 320 };
const char *scan_subject(const scan *s, char text[SCAN_SUBJECT]);

#endif
