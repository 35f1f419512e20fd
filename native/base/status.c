#include "base/status.h"

#include <inttypes.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

/* Bytes of the UTF-8 sequence at `text` (RFC 3629), 0 if it is not one. The NUL at the end of the text ends a sequence too. */
static int utf8_length(const unsigned char *text) {
    const unsigned char a = text[0], b = a < 0x80 ? 0 : text[1];
    const int n = a < 0x80 ? 1 : a >= 0xc2 && a < 0xe0 ? 2 : a >= 0xe0 && a < 0xf0 ? 3 : a >= 0xf0 && a < 0xf5 ? 4 : 0;
    if ((a == 0xe0 && b < 0xa0) || (a == 0xed && b > 0x9f) || (a == 0xf0 && b < 0x90) || (a == 0xf4 && b > 0x8f)) {
        return 0;
    }
    for (int i = 1; i < n; i++) {
        if ((text[i] & 0xc0) != 0x80) {
            return 0;
        }
    }
    return n;
}

/* Names and paths in messages may hold any bytes: what comes out is one line of UTF-8 that moves no terminal. */
static void write_message(char *text, size_t size, const char *format, va_list arguments) {
    if (vsnprintf(text, size, format, arguments) < 0) {
        text[0] = '\0';
    }
    for (unsigned char *at = (unsigned char *)text; *at != '\0';) {
        const int n = utf8_length(at);
        if (n == 0 || *at < 0x20 || *at == 0x7f) {
            *at = '?';
        }
        at += n == 0 ? 1 : n;
    }
}

static void reset(lmi_error *error, lmi_status status, int64_t offset) {
    error->status = status;
    error->offset = offset;
    error->message[0] = '\0';
    error->remedy[0] = '\0';
}

lmi_status fail(lmi_error *error, lmi_status status, const char *format, ...) {
    if (error != NULL) {
        va_list arguments;
        va_start(arguments, format);
        reset(error, status, -1);
        write_message(error->message, sizeof error->message, format, arguments);
        va_end(arguments);
    }
    return status;
}

lmi_status fail_at(lmi_error *error, lmi_status status, uint64_t offset, const char *format, ...) {
    if (error != NULL) {
        va_list arguments;
        va_start(arguments, format);
        reset(error, status, offset > INT64_MAX ? INT64_MAX : (int64_t)offset);
        write_message(error->message, sizeof error->message, format, arguments);
        va_end(arguments);
    }
    return status;
}

void remedy(lmi_error *error, const char *format, ...) {
    if (error != NULL) {
        va_list arguments;
        va_start(arguments, format);
        write_message(error->remedy, sizeof error->remedy, format, arguments);
        va_end(arguments);
    }
}

const char *group_digits(uint64_t value, char text[32]) {
    char digits[24];
    int n = snprintf(digits, sizeof digits, "%" PRIu64, value);
    int out = 0;
    for (int i = 0; i < n; i++) {
        if (i > 0 && (n - i) % 3 == 0) {
            text[out++] = ',';
        }
        text[out++] = digits[i];
    }
    text[out] = '\0';
    return text;
}

const char *human_bytes(uint64_t bytes, char text[32]) {
    static const char *const units[] = {"B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB"};
    double value = (double)bytes;
    size_t unit = 0;
    while (value >= 1024.0 && unit + 1 < sizeof units / sizeof *units) {
        value /= 1024.0;
        unit++;
    }
    snprintf(text, 32,
             unit == 0       ? "%.0f %s"
             : value < 10.0  ? "%.2f %s"
             : value < 100.0 ? "%.1f %s"
                             : "%.0f %s",
             value, units[unit]);
    return text;
}
