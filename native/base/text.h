/* A piece of text that lives elsewhere (in the mapped file, in an arena): not NUL-terminated, any bytes. */
#ifndef LMI_BASE_TEXT_H
#define LMI_BASE_TEXT_H

#include <stdbool.h>
#include <stddef.h>
#include <string.h>

typedef struct text_view {
    const char *data;
    size_t size;
} text_view;

static inline text_view text_of(const char *literal) { return (text_view){literal, strlen(literal)}; }
static inline bool text_equal(text_view a, text_view b) {
    return a.size == b.size && (a.size == 0 || memcmp(a.data, b.data, a.size) == 0);
}
static inline bool text_is(text_view a, const char *literal) { return text_equal(a, text_of(literal)); }

#endif
