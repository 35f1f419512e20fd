#include "tokenizer/unicode.h"

#include <string.h>

#include "tokenizer/unicode_tables.h"

const char *unicode_version(void) { return UNICODE_VERSION; }

bool unicode_open(unicode *u, arena *a) {
    /* Page 0 is ASCII and Latin-1, so that the class of an ASCII byte is classes[byte]. Pages of one class are shared. */
    enum { MAX_PAGES = 255 };
    uint8_t uniform[UNICODE_END];
    memset(uniform, 0, sizeof uniform);
    u->classes = arena_take_array(a, MAX_PAGES, 256);
    if (u->classes == NULL) {
        return false;
    }
    size_t n_pages = 0, range = 0;
    for (uint32_t page = 0; page < 0x1100; page++) {
        uint32_t first = page << 8;
        while (range + 1 < UNICODE_N_RANGES && unicode_ranges[range + 1] >> 4 <= first) {
            range++;
        }
        bool mixed = range + 1 < UNICODE_N_RANGES && unicode_ranges[range + 1] >> 4 < first + 256;
        uint8_t class = (uint8_t)(unicode_ranges[range] & 15);
        if (!mixed && uniform[class] != 0) {
            u->page[page] = uniform[class];
            continue;
        }
        if (n_pages == MAX_PAGES) {
            return false;
        }
        uint8_t *classes = u->classes + (n_pages << 8);
        for (uint32_t i = 0; i < 256; i++) {
            while (range + 1 < UNICODE_N_RANGES && unicode_ranges[range + 1] >> 4 <= first + i) {
                range++;
            }
            classes[i] = (uint8_t)(unicode_ranges[range] & 15);
        }
        if (!mixed) {
            uniform[class] = (uint8_t)n_pages;
        }
        u->page[page] = (uint8_t)n_pages++;
    }
    return true;
}

size_t unicode_read(const uint8_t *text, size_t at, size_t size, bool closed, uint32_t *point) {
    /* The Unicode standard, table 3-7: the second byte's range depends on the first, all others are 80..BF. */
    uint8_t lead = text[at];
    *point = lead;
    if (lead < 0x80) {
        return 1;
    }
    *point = UNICODE_BYTE + lead;
    if (lead < 0xC2 || lead > 0xF4) {
        return 1;
    }
    size_t length = lead < 0xE0 ? 2 : lead < 0xF0 ? 3 : 4;
    uint8_t low = lead == 0xE0 ? 0xA0 : lead == 0xF0 ? 0x90 : 0x80;
    uint8_t high = lead == 0xED ? 0x9F : lead == 0xF4 ? 0x8F : 0xBF;
    uint32_t value = lead & (0x7Fu >> length);
    for (size_t i = 1; i < length; i++) {
        if (at + i >= size) {
            return closed ? 1 : 0;
        }
        uint8_t byte = text[at + i];
        if (byte < low || byte > high) {
            return 1;
        }
        value = value << 6 | (byte & 63u);
        low = 0x80;
        high = 0xBF;
    }
    *point = value;
    return length;
}

size_t unicode_write(uint32_t point, uint8_t text[4]) {
    if (point < 0x80) {
        text[0] = (uint8_t)point;
        return 1;
    }
    size_t length = point < 0x800 ? 2 : point < 0x10000 ? 3 : 4;
    for (size_t i = length - 1; i > 0; i--) {
        text[i] = (uint8_t)(0x80 | (point & 63));
        point >>= 6;
    }
    text[0] = (uint8_t)((0xF00u >> length & 0xFFu) | point);
    return length;
}
