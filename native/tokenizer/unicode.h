/* Characters of UTF-8 text and their classes, as the patterns of pre-tokenizers name them. */
#ifndef LMI_TOKENIZER_UNICODE_H
#define LMI_TOKENIZER_UNICODE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/arena.h"

typedef enum unicode_class {
    UNICODE_OTHER, /* controls, unassigned, bytes that are not UTF-8 */
    UNICODE_LU,
    UNICODE_LL,
    UNICODE_LT,
    UNICODE_LM,
    UNICODE_LO,
    UNICODE_M,
    UNICODE_N,
    UNICODE_P,
    UNICODE_S,
    UNICODE_SPACE,   /* \s but for the next two */
    UNICODE_NEWLINE, /* \n and \r */
    UNICODE_END,     /* not a character: here the text ends */
    UNICODE_MORE     /* not a character: what stands here depends on text still to come */
} unicode_class;

#define UNICODE_BIT(class) (1u << (class))

enum {
    UNICODE_L = UNICODE_BIT(UNICODE_LU) | UNICODE_BIT(UNICODE_LL) | UNICODE_BIT(UNICODE_LT) | UNICODE_BIT(UNICODE_LM) |
        UNICODE_BIT(UNICODE_LO),
    UNICODE_BLANK = UNICODE_BIT(UNICODE_SPACE) | UNICODE_BIT(UNICODE_NEWLINE), /* \s */
    UNICODE_STOP = UNICODE_BIT(UNICODE_END) | UNICODE_BIT(UNICODE_MORE)
};

/* Class of each code point in two steps; 4352 pages of 256, of which some 200 differ. */
typedef struct unicode {
    uint8_t page[0x1100];
    uint8_t *classes; /* [n_pages][256] */
} unicode;

/* False if there is no memory. The table lives in `a`. */
bool unicode_open(unicode *u, arena *a);
const char *unicode_version(void);

/* A byte that is no part of valid UTF-8 is read as one character of this value plus the byte, of class OTHER. */
#define UNICODE_BYTE 0x110000u

/* Reads the character at text[at]; at < size. Returns its length, or 0 if the text ends within what may yet become a
 * character and more is to come (`closed` is false). */
size_t unicode_read(const uint8_t *text, size_t at, size_t size, bool closed, uint32_t *point);

static inline unicode_class unicode_class_of(const unicode *u, uint32_t point) {
    if (point >= UNICODE_BYTE) {
        return UNICODE_OTHER;
    }
    return (unicode_class)u->classes[(size_t)u->page[point >> 8] << 8 | (point & 255)];
}

/* Class of the character at text[at], at <= size, its length in *length (0 for END and MORE). */
static inline unicode_class unicode_at(const unicode *u, const uint8_t *text, size_t at, size_t size, bool closed,
                                       size_t *length) {
    if (at >= size) {
        *length = 0;
        return closed ? UNICODE_END : UNICODE_MORE;
    }
    if (text[at] < 128) {
        *length = 1;
        return (unicode_class)u->classes[text[at]];
    }
    uint32_t point;
    *length = unicode_read(text, at, size, closed, &point);
    return *length == 0 ? UNICODE_MORE : unicode_class_of(u, point);
}

/* Writes a code point as UTF-8; returns 1 to 4. */
size_t unicode_write(uint32_t point, uint8_t text[4]);

#endif
