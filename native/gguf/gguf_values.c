/* Values of a file that gguf_open has checked: no length or type is tested again, only what the caller asks for. */
#include <stdio.h>
#include <string.h>

#include "gguf/gguf.h"

/* ---- elements ---------------------------------------------------------------------------------------------------- */

static uint64_t load_unsigned(const gguf *file, const gguf_key *key, uint64_t index) {
    const uint8_t *at = file->bytes + key->offset;
    switch (key->element) {
    case GGUF_U8:
    case GGUF_I8:
    case GGUF_BOOL:
        return at[index];
    case GGUF_U16:
    case GGUF_I16: {
        uint16_t value;
        memcpy(&value, at + index * sizeof value, sizeof value);
        return value;
    }
    case GGUF_U32:
    case GGUF_I32:
    case GGUF_F32: {
        uint32_t value;
        memcpy(&value, at + index * sizeof value, sizeof value);
        return value;
    }
    case GGUF_U64:
    case GGUF_I64:
    case GGUF_F64: {
        uint64_t value;
        memcpy(&value, at + index * sizeof value, sizeof value);
        return value;
    }
    default: /* strings have no fixed size */
        return 0;
    }
}

static int64_t to_int(double value) { /* towards zero; out of range: the nearest end; NaN: 0 */
    if (value >= 0x1p63) {
        return INT64_MAX;
    }
    return value >= -0x1p63 ? (int64_t)value : value < 0 ? INT64_MIN : 0;
}

int64_t gguf_int_at(const gguf *file, const gguf_key *key, uint64_t index) {
    uint64_t bits = load_unsigned(file, key, index);
    switch (key->element) {
    case GGUF_I8:
        return (int8_t)bits;
    case GGUF_I16:
        return (int16_t)bits;
    case GGUF_I32:
        return (int32_t)bits;
    case GGUF_I64:
        return (int64_t)bits;
    case GGUF_F32:
    case GGUF_F64:
        return to_int(gguf_real_at(file, key, index));
    default:
        return bits > INT64_MAX ? INT64_MAX : (int64_t)bits;
    }
}

double gguf_real_at(const gguf *file, const gguf_key *key, uint64_t index) {
    uint64_t bits = load_unsigned(file, key, index);
    if (key->element == GGUF_F32) {
        uint32_t low = (uint32_t)bits;
        float value;
        memcpy(&value, &low, sizeof value);
        return (double)value;
    }
    if (key->element == GGUF_F64) {
        double value;
        memcpy(&value, &bits, sizeof value);
        return value;
    }
    return key->element == GGUF_U64 ? (double)bits : (double)gguf_int_at(file, key, index);
}

text_view gguf_next_string(const gguf *file, uint64_t *cursor) {
    uint64_t length;
    memcpy(&length, file->bytes + *cursor, sizeof length);
    text_view value = {(const char *)file->bytes + *cursor + sizeof length, (size_t)length};
    *cursor += sizeof length + length;
    return value;
}

/* ---- by name ----------------------------------------------------------------------------------------------------- */

#define CONVERT_AGAIN "The file was written wrongly: convert the model again, or use another file of it."

static bool is_integer(gguf_type type) {
    return type != GGUF_F32 && type != GGUF_F64 && type != GGUF_BOOL && type != GGUF_STRING && type != GGUF_ARRAY;
}

static lmi_status wrong_value(lmi_error *error, const gguf_key *key, const char *name, const char *what) {
    fail_at(error, LMI_BAD_FORMAT, key->offset, "key \"%s\" %s", name, what);
    remedy(error, CONVERT_AGAIN);
    return LMI_BAD_FORMAT;
}

static lmi_status wrong_kind(lmi_error *error, const gguf_key *key, const char *name, const char *expected) {
    char what[128];
    snprintf(what, sizeof what, "is of type %s%s, expected %s", key->type == GGUF_ARRAY ? "array of " : "",
             gguf_type_name(key->element), expected);
    return wrong_value(error, key, name, what);
}

/* The key; if it is absent *status says whether that is an error. */
static const gguf_key *look_up(const gguf *file, const char *name, gguf_need need, lmi_status *status, lmi_error *error) {
    const gguf_key *key = gguf_find_key(file, name);
    *status = LMI_OK;
    if (key == NULL && need == GGUF_REQUIRED) {
        *status = fail(error, LMI_BAD_FORMAT, "key \"%s\" is missing", name);
        remedy(error, CONVERT_AGAIN);
    }
    return key;
}

lmi_status gguf_get_int(const gguf *file, const char *name, gguf_need need, int64_t min, int64_t max, int64_t *value,
                        lmi_error *error) {
    lmi_status status;
    const gguf_key *key = look_up(file, name, need, &status, error);
    if (key == NULL) {
        return status;
    }
    if (!is_integer(key->type)) {
        return wrong_kind(error, key, name, "an integer");
    }
    int64_t found = gguf_int_at(file, key, 0);
    bool beyond = key->type == GGUF_U64 && load_unsigned(file, key, 0) > INT64_MAX;
    if (beyond || found < min || found > max) {
        char what[128];
        if (beyond) {
            snprintf(what, sizeof what, "is %llu, not %lld to %lld", (unsigned long long)load_unsigned(file, key, 0),
                     (long long)min, (long long)max);
        } else {
            snprintf(what, sizeof what, "is %lld, not %lld to %lld", (long long)found, (long long)min, (long long)max);
        }
        return wrong_value(error, key, name, what);
    }
    *value = found;
    return LMI_OK;
}

lmi_status gguf_get_real(const gguf *file, const char *name, gguf_need need, double min, double max, double *value,
                         lmi_error *error) {
    lmi_status status;
    const gguf_key *key = look_up(file, name, need, &status, error);
    if (key == NULL) {
        return status;
    }
    if (key->type != GGUF_F32 && key->type != GGUF_F64) {
        return wrong_kind(error, key, name, "a real number");
    }
    double found = gguf_real_at(file, key, 0);
    if (!(found >= min && found <= max)) { /* NaN too */
        char what[128];
        snprintf(what, sizeof what, "is %g, not %g to %g", found, min, max);
        return wrong_value(error, key, name, what);
    }
    *value = found;
    return LMI_OK;
}

lmi_status gguf_get_bool(const gguf *file, const char *name, gguf_need need, bool *value, lmi_error *error) {
    lmi_status status;
    const gguf_key *key = look_up(file, name, need, &status, error);
    if (key == NULL) {
        return status;
    }
    if (key->type != GGUF_BOOL) {
        return wrong_kind(error, key, name, "bool");
    }
    *value = gguf_int_at(file, key, 0) != 0;
    return LMI_OK;
}

lmi_status gguf_get_string(const gguf *file, const char *name, gguf_need need, text_view *value, lmi_error *error) {
    lmi_status status;
    const gguf_key *key = look_up(file, name, need, &status, error);
    if (key == NULL) {
        return status;
    }
    if (key->type != GGUF_STRING) {
        return wrong_kind(error, key, name, "string");
    }
    uint64_t cursor = key->offset;
    *value = gguf_next_string(file, &cursor);
    return LMI_OK;
}

lmi_status gguf_get_array(const gguf *file, const char *name, gguf_need need, gguf_type element, int64_t count,
                          const gguf_key **value, lmi_error *error) {
    lmi_status status;
    *value = NULL;
    const gguf_key *key = look_up(file, name, need, &status, error);
    if (key == NULL) {
        return status;
    }
    if (key->type != GGUF_ARRAY || key->element != element) {
        char expected[32];
        snprintf(expected, sizeof expected, "array of %s", gguf_type_name(element));
        return wrong_kind(error, key, name, expected);
    }
    if (count >= 0 && key->count != (uint64_t)count) {
        char what[128];
        snprintf(what, sizeof what, "has %llu elements, expected %lld", (unsigned long long)key->count, (long long)count);
        return wrong_value(error, key, name, what);
    }
    *value = key;
    return LMI_OK;
}
