/* Errors: a status code, one line that says what, one that says what to do. */
#ifndef LMI_BASE_STATUS_H
#define LMI_BASE_STATUS_H

#include "lmi.h"

#ifdef __cplusplus
extern "C" {
#endif

#define LMI_PRINTF(text, first) __attribute__((format(printf, text, first)))

/* Fills `error` (NULL is allowed) and returns `status`, so that a caller can write `return fail(...)`. */
lmi_status fail(lmi_error *error, lmi_status status, const char *format, ...) LMI_PRINTF(3, 4);

/* The same, for something seen at a byte of a file. */
lmi_status fail_at(lmi_error *error, lmi_status status, uint64_t offset, const char *format, ...) LMI_PRINTF(4, 5);

/* Adds what the user can do about it. */
void remedy(lmi_error *error, const char *format, ...) LMI_PRINTF(2, 3);

/* For messages: 1234567 -> "1,234,567"; 1610612736 -> "1.5 GiB". Writes into `text` and returns it. */
const char *group_digits(uint64_t value, char text[32]);
const char *human_bytes(uint64_t bytes, char text[32]);

#ifdef __cplusplus
}
#endif
#endif
