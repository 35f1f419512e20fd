#include <stdint.h>

#include "internals_tokenizer.h"

#include "tokenizer/pretokenize.h"

int32_t internals_char_classes(uint8_t *classes) {
    unicode u;
    arena memory;
    arena_open(&memory);
    bool ok = unicode_open(&u, &memory);
    for (uint32_t point = 0; ok && point < UNICODE_BYTE; point++) {
        classes[point] = (uint8_t)unicode_class_of(&u, point);
    }
    arena_close(&memory);
    return ok ? 0 : -1;
}

int64_t internals_pretokenize(const char *name, const uint8_t *text, int64_t size, int64_t step, int64_t *ends) {
    const pretokenizer *p = pretokenizer_find(text_of(name));
    unicode u;
    arena memory;
    arena_open(&memory);
    int64_t n = p != NULL && unicode_open(&u, &memory) ? 0 : -1;
    cuts cuts = {0};
    int64_t at = 0, shown = 0;
    while (n >= 0 && at < size) {
        shown = step > 0 && shown + step < size ? shown + step : size;
        scan rest = {&u, text + at, (size_t)(shown - at), shown == size};
        size_t length = rest.size == 0 ? 0 : pretokenize(p, &cuts, &rest);
        if (length > 0) {
            at += (int64_t)length;
            ends[n++] = at;
        } else if (shown == size) {
            n = -2; /* the whole text is there: the promise of pretokenize is broken */
        }
    }
    arena_close(&memory);
    return n;
}
