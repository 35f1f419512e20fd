/* A strict reader of GGUF 2 and 3 over a range of bytes. It copies no data: names, strings and arrays are views.
 *
 * Everything is checked when the file is opened: limits, types, uniqueness, the extent of every tensor. What the getters
 * return can be used without further checks on the file. Errors name the byte. */
#ifndef LMI_GGUF_GGUF_H
#define LMI_GGUF_GGUF_H

#include <stdbool.h>
#include <stdint.h>

#include "base/status.h"
#include "base/text.h"
#include "quant/quant.h"

typedef enum gguf_type {
    GGUF_U8 = 0,
    GGUF_I8 = 1,
    GGUF_U16 = 2,
    GGUF_I16 = 3,
    GGUF_U32 = 4,
    GGUF_I32 = 5,
    GGUF_F32 = 6,
    GGUF_BOOL = 7,
    GGUF_STRING = 8,
    GGUF_ARRAY = 9,
    GGUF_U64 = 10,
    GGUF_I64 = 11,
    GGUF_F64 = 12
} gguf_type;

const char *gguf_type_name(gguf_type type);

typedef struct gguf_key {
    text_view name;
    gguf_type type;
    gguf_type element; /* of an array; else the type itself */
    uint64_t count;    /* of an array; else 1 */
    uint64_t offset;   /* byte of the first element in the file */
    uint64_t end;      /* and after the last one */
} gguf_key;

typedef struct gguf_tensor {
    text_view name;
    const quant_info *type;
    uint32_t n_dims;
    int64_t shape[4]; /* ne; shape[0] runs fastest; unused ones are 1 */
    uint64_t n_values;
    uint64_t n_bytes;
    uint64_t offset;     /* in its file */
    const uint8_t *data; /* [n_bytes] */
} gguf_tensor;

typedef struct gguf {
    const uint8_t *bytes;
    uint64_t size;
    uint32_t version;
    uint64_t alignment;
    uint64_t data_offset;
    int64_t n_keys;
    gguf_key *keys;
    int64_t n_tensors;
    gguf_tensor *tensors;
    struct gguf_index *index;
} gguf;

/* `bytes` must stay in place and unchanged until gguf_close. */
lmi_status gguf_open(const uint8_t *bytes, uint64_t size, gguf **out, lmi_error *error);
void gguf_close(gguf *file);

/* Adds the tensors of `parts` [n] to those of `file`: a model in several files. They must stay open as long as it. */
lmi_status gguf_join(gguf *file, gguf *const *parts, int64_t n, lmi_error *error);

const gguf_key *gguf_find_key(const gguf *file, const char *name); /* NULL if there is none */
const gguf_tensor *gguf_find_tensor(const gguf *file, const char *name);

/* Typed getters. A key that is absent leaves *value alone and is an error only if it is required; a key of another kind, or
 * a value outside [min, max], is always an error. Any integer type will do for integers, F32 and F64 for reals. */
typedef enum gguf_need { GGUF_OPTIONAL = 0, GGUF_REQUIRED = 1 } gguf_need;
lmi_status gguf_get_int(const gguf *file, const char *name, gguf_need need, int64_t min, int64_t max, int64_t *value,
                        lmi_error *error);
lmi_status gguf_get_real(const gguf *file, const char *name, gguf_need need, double min, double max, double *value,
                         lmi_error *error);
lmi_status gguf_get_bool(const gguf *file, const char *name, gguf_need need, bool *value, lmi_error *error);
lmi_status gguf_get_string(const gguf *file, const char *name, gguf_need need, text_view *value, lmi_error *error);

/* An array of `element` with exactly `count` elements (any number if count is -1). *value is NULL if it is absent. */
lmi_status gguf_get_array(const gguf *file, const char *name, gguf_need need, gguf_type element, int64_t count,
                          const gguf_key **value, lmi_error *error);

/* Elements of a fixed size; index < key->count. */
int64_t gguf_int_at(const gguf *file, const gguf_key *key, uint64_t index);
double gguf_real_at(const gguf *file, const gguf_key *key, uint64_t index);

/* Strings come one after the other: start with cursor = key->offset, call at most key->count times. */
text_view gguf_next_string(const gguf *file, uint64_t *cursor);

/* A name from a file as it may appear in a message: printable ASCII, the rest as \xNN, cut after 64 bytes. */
enum { GGUF_SHOWN = 64 * 4 + 4 };
const char *gguf_shown(text_view name, char text[GGUF_SHOWN]);

#endif
