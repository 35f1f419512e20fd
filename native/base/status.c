#include "base/status.h"

#include <inttypes.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

static void write_message(char *text, size_t size, const char *format, va_list arguments) {
    if (vsnprintf(text, size, format, arguments) < 0) {
        text[0] = '\0';
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
    snprintf(text, 32, unit == 0 ? "%.0f %s" : value < 10.0 ? "%.2f %s" : value < 100.0 ? "%.1f %s" : "%.0f %s", value, units[unit]);
    return text;
}
