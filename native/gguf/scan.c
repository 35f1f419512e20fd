#include "gguf/scan.h"

#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include "base/checked.h"
#include "gguf/gguf.h"

const char *gguf_shown(text_view name, char text[GGUF_SHOWN]) {
    static const char digits[] = "0123456789abcdef";
    size_t out = 0, shown = name.size < 64 ? name.size : 64;
    for (size_t i = 0; i < shown; i++) {
        unsigned char c = (unsigned char)name.data[i];
        if (c >= 0x20 && c < 0x7f && c != '\\') {
            text[out++] = (char)c;
        } else {
            text[out++] = '\\';
            text[out++] = 'x';
            text[out++] = digits[c >> 4];
            text[out++] = digits[c & 15];
        }
    }
    memcpy(text + out, shown < name.size ? "..." : "", shown < name.size ? 4 : 1);
    return text;
}

const char *scan_subject(const scan *s, char text[SCAN_SUBJECT]) {
    char shown[GGUF_SHOWN];
    if (s->noun == NULL) {
        snprintf(text, SCAN_SUBJECT, "the header");
    } else if (s->name.size == 0) {
        snprintf(text, SCAN_SUBJECT, "%s %llu", s->noun, (unsigned long long)s->number);
    } else {
        const char *quote = s->noun[0] == 'k' ? "\"" : "";
        snprintf(text, SCAN_SUBJECT, "%s %s%s%s", s->noun, quote, gguf_shown(s->name, shown), quote);
    }
    return text;
}

lmi_status scan_damaged(scan *s, uint64_t at, const char *format, ...) {
    char text[288], subject[SCAN_SUBJECT], digits[32];
    va_list arguments;
    va_start(arguments, format);
    int length = vsnprintf(text, sizeof text, format, arguments);
    va_end(arguments);
    if (s->noun != NULL) {
        fail_at(s->error, LMI_BAD_FORMAT, at, "damaged file at byte %s: %s (%s)", group_digits(at, digits),
                length < 0 ? "" : text, scan_subject(s, subject));
    } else {
        fail_at(s->error, LMI_BAD_FORMAT, at, "damaged file at byte %s: %s", group_digits(at, digits), length < 0 ? "" : text);
    }
    remedy(s->error, "Download it again; if the error stays, the file was written wrongly: convert the model again.");
    return LMI_BAD_FORMAT;
}

lmi_status scan_incomplete(scan *s, const char *subject, uint64_t needed, bool whole) {
    char up_to[32], has[32], share[16] = "";
    if (whole) { /* `needed` is what the file should have */
        snprintf(share, sizeof share, " (%d %%)", (int)(100.0 * ((double)s->size / (double)needed)));
    }
    fail_at(s->error, LMI_BAD_FORMAT, s->size, "file is incomplete: %s needs bytes up to %s, file has %s%s", subject,
            group_digits(needed, up_to), group_digits(s->size, has), share);
    remedy(s->error, "Download it again.");
    return LMI_BAD_FORMAT;
}

lmi_status scan_need(scan *s, uint64_t n) {
    char subject[SCAN_SUBJECT];
    if (n <= scan_remaining(s)) {
        return LMI_OK;
    }
    if (s->end < s->size) {
        return scan_damaged(s, s->at, "metadata is larger than 256 MiB");
    }
    uint64_t needed;
    if (!ck_add(s->at, n, &needed)) {
        needed = UINT64_MAX;
    }
    return scan_incomplete(s, scan_subject(s, subject), needed, false);
}

lmi_status scan_skip(scan *s, uint64_t n) {
    lmi_status status = scan_need(s, n);
    if (status == LMI_OK) {
        s->at += n; /* proved: at + n <= end */
    }
    return status;
}

static lmi_status copy_bytes(scan *s, void *value, size_t n) {
    const uint64_t begin = s->at;
    lmi_status status = scan_skip(s, n);
    if (status == LMI_OK) {
        memcpy(value, s->bytes + begin, n);
    }
    return status;
}

lmi_status scan_u32(scan *s, uint32_t *value) { return copy_bytes(s, value, sizeof *value); }
lmi_status scan_u64(scan *s, uint64_t *value) { return copy_bytes(s, value, sizeof *value); }

lmi_status scan_string(scan *s, const char *what, uint64_t min, uint64_t max, text_view *value) {
    const uint64_t begin = s->at;
    uint64_t length;
    lmi_status status = scan_u64(s, &length);
    if (status != LMI_OK) {
        return status;
    }
    if (length < min || length > max) {
        char found[32], limit[32];
        return scan_damaged(s, begin, "%s %s is not %d to %s", what, group_digits(length, found), (int)min,
                            group_digits(max, limit));
    }
    *value = (text_view){(const char *)s->bytes + s->at, (size_t)length};
    return scan_skip(s, length);
}
