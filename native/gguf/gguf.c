#include "gguf/gguf.h"

#include <stdlib.h>
#include <string.h>

#include "base/checked.h"
#include "gguf/foreign.h"
#include "gguf/limits.h"
#include "gguf/name_table.h"
#include "gguf/scan.h"

struct gguf_index {
    name_table keys;
    name_table tensors;
};

static const struct {
    const char *name;
    uint8_t size; /* bytes; 0: its own */
} types[] = {
    [GGUF_U8] = {"u8", 1},         [GGUF_I8] = {"i8", 1},       [GGUF_U16] = {"u16", 2}, [GGUF_I16] = {"i16", 2},
    [GGUF_U32] = {"u32", 4},       [GGUF_I32] = {"i32", 4},     [GGUF_F32] = {"f32", 4}, [GGUF_BOOL] = {"bool", 1},
    [GGUF_STRING] = {"string", 0}, [GGUF_ARRAY] = {"array", 0}, [GGUF_U64] = {"u64", 8}, [GGUF_I64] = {"i64", 8},
    [GGUF_F64] = {"f64", 8},
};

enum { N_TYPES = sizeof types / sizeof *types };

const char *gguf_type_name(gguf_type type) { return (unsigned)type < N_TYPES ? types[type].name : "unknown"; }

/* ---- header ------------------------------------------------------------------------------------------------------ */

static lmi_status read_header(scan *s, gguf *file) {
    uint64_t n_tensors, n_keys;
    char found[32], limit[32];
    lmi_status status = foreign_check(s->bytes, s->size, s->error);
    if (status != LMI_OK) {
        return status;
    }
    if ((status = scan_need(s, HEADER_BYTES)) != LMI_OK || (status = scan_skip(s, 4)) != LMI_OK ||
        (status = scan_u32(s, &file->version)) != LMI_OK || (status = scan_u64(s, &n_tensors)) != LMI_OK ||
        (status = scan_u64(s, &n_keys)) != LMI_OK) {
        return status;
    }
    if (n_tensors > MAX_TENSORS) {
        return scan_damaged(s, 8, "%s tensors, at most %s can be", group_digits(n_tensors, found),
                            group_digits(MAX_TENSORS, limit));
    }
    if (n_keys > MAX_KEYS) {
        return scan_damaged(s, 16, "%s keys, at most %s can be", group_digits(n_keys, found), group_digits(MAX_KEYS, limit));
    }
    /* Both counts are bounded now, so the tables that they size are bounded by a constant, and by the file. */
    uint64_t key_bytes, tensor_bytes, least;
    if (!ck_mul(n_keys, MIN_KEY_BYTES, &key_bytes) || !ck_mul(n_tensors, MIN_TENSOR_BYTES, &tensor_bytes) ||
        !ck_add(key_bytes, tensor_bytes, &least)) {
        return fail(s->error, LMI_INTERNAL, "limits of the GGUF reader overflow");
    }
    if (least > scan_remaining(s)) {
        uint64_t needed;
        return scan_incomplete(s, "the table of keys and tensors", ck_add(s->at, least, &needed) ? needed : UINT64_MAX, false);
    }
    file->n_keys = (int64_t)n_keys;
    file->n_tensors = (int64_t)n_tensors;
    return LMI_OK;
}

/* ---- keys -------------------------------------------------------------------------------------------------------- */

static lmi_status check_bools(scan *s, uint64_t begin, uint64_t count) {
    for (uint64_t i = 0; i < count; i++) {
        if (s->bytes[begin + i] > 1) {
            return scan_damaged(s, begin + i, "a bool is %d, not 0 or 1", s->bytes[begin + i]);
        }
    }
    return LMI_OK;
}

static lmi_status read_type(scan *s, const char *what, gguf_type *type) {
    const uint64_t begin = s->at;
    uint32_t number;
    lmi_status status = scan_u32(s, &number);
    if (status == LMI_OK && number >= N_TYPES) {
        char found[32];
        return scan_damaged(s, begin, "%s %s, at most %d can be", what, group_digits(number, found), N_TYPES - 1);
    }
    if (status == LMI_OK) {
        *type = (gguf_type)number;
    }
    return status;
}

static lmi_status read_array_header(scan *s, gguf_key *key) {
    char found[32], limit[32];
    uint64_t begin = s->at;
    lmi_status status = read_type(s, "element type", &key->element);
    if (status != LMI_OK) {
        return status;
    }
    if (key->element == GGUF_ARRAY) {
        return scan_damaged(s, begin, "an array of arrays, which is not allowed");
    }
    begin = s->at;
    if ((status = scan_u64(s, &key->count)) != LMI_OK) {
        return status;
    }
    if (key->count > MAX_ELEMENTS) {
        return scan_damaged(s, begin, "%s array elements, at most %s can be", group_digits(key->count, found),
                            group_digits(MAX_ELEMENTS, limit));
    }
    return LMI_OK;
}

static lmi_status read_key(scan *s, gguf_key *key) {
    lmi_status status = scan_string(s, "key length", 1, MAX_KEY_LENGTH, &key->name);
    if (status != LMI_OK) {
        return status;
    }
    s->name = key->name;
    if ((status = read_type(s, "value type", &key->type)) != LMI_OK) {
        return status;
    }
    key->element = key->type;
    key->count = 1;
    if (key->type == GGUF_ARRAY && (status = read_array_header(s, key)) != LMI_OK) {
        return status;
    }
    key->offset = s->at;

    uint64_t element_bytes = key->element == GGUF_STRING ? 8 : types[key->element].size, least;
    if (!ck_mul(key->count, element_bytes, &least)) {
        return scan_damaged(s, key->offset, "the array's size overflows");
    }
    if (key->element != GGUF_STRING) {
        if ((status = scan_skip(s, least)) != LMI_OK) {
            return status;
        }
        return key->element == GGUF_BOOL ? check_bools(s, key->offset, key->count) : LMI_OK;
    }
    /* Each string has at least its length: a count that cannot be true is found before the loop. */
    if ((status = scan_need(s, least)) != LMI_OK) {
        return status;
    }
    for (uint64_t i = 0; i < key->count; i++) {
        text_view value;
        if ((status = scan_string(s, "string length", 0, MAX_STRING, &value)) != LMI_OK) {
            return status;
        }
    }
    return LMI_OK;
}

/* Byte of the file where a view into it begins. */
static uint64_t offset_of(const gguf *file, text_view name) { return (uint64_t)((const uint8_t *)name.data - file->bytes); }

static lmi_status no_memory(scan *s, const char *what) {
    fail(s->error, LMI_OUT_OF_MEMORY, "no memory for the table of %s", what);
    return LMI_OUT_OF_MEMORY;
}

static lmi_status read_keys(scan *s, gguf *file) {
    lmi_status status = LMI_OK;
    if (file->n_keys > 0 && (file->keys = calloc((size_t)file->n_keys, sizeof *file->keys)) == NULL) {
        return no_memory(s, "keys");
    }
    s->noun = "key";
    for (int64_t i = 0; i < file->n_keys; i++) {
        s->number = (uint64_t)i + 1;
        s->name = (text_view){0};
        if ((status = read_key(s, &file->keys[i])) != LMI_OK) {
            return status;
        }
        file->keys[i].end = s->at;
    }
    if (!name_table_build(&file->index->keys, file->keys, (size_t)file->n_keys, sizeof *file->keys)) {
        return no_memory(s, "keys");
    }
    int64_t twice = name_table_duplicate(&file->index->keys);
    if (twice >= 0) {
        s->name = file->keys[twice].name;
        return scan_damaged(s, offset_of(file, s->name), "the same key again");
    }
    return LMI_OK;
}

static lmi_status read_alignment(scan *s, gguf *file) {
    file->alignment = DEFAULT_ALIGNMENT;
    const gguf_key *key = gguf_find_key(file, "general.alignment");
    if (key == NULL) {
        return LMI_OK;
    }
    s->name = key->name;
    if (key->type != GGUF_U32) {
        return scan_damaged(s, key->offset, "the alignment is of type %s, not u32", gguf_type_name(key->type));
    }
    uint64_t value = (uint64_t)gguf_int_at(file, key, 0);
    if (value < MIN_ALIGNMENT || value > MAX_ALIGNMENT || (value & (value - 1)) != 0) {
        char found[32];
        return scan_damaged(s, key->offset, "alignment %s is not a power of two from 8 to 65,536", group_digits(value, found));
    }
    file->alignment = value;
    return LMI_OK;
}

/* ---- tensors ----------------------------------------------------------------------------------------------------- */

static lmi_status read_shape(scan *s, gguf_tensor *tensor) {
    char found[32], limit[32];
    uint64_t begin = s->at;
    lmi_status status = scan_u32(s, &tensor->n_dims);
    if (status != LMI_OK) {
        return status;
    }
    if (tensor->n_dims < 1 || tensor->n_dims > 4) {
        return scan_damaged(s, begin, "%s dimensions, 1 to 4 can be", group_digits(tensor->n_dims, found));
    }
    tensor->n_values = 1;
    for (int i = 0; i < 4; i++) {
        tensor->shape[i] = 1;
    }
    for (uint32_t i = 0; i < tensor->n_dims; i++) {
        uint64_t dim;
        begin = s->at;
        if ((status = scan_u64(s, &dim)) != LMI_OK) {
            return status;
        }
        if (dim < 1 || dim > MAX_DIM) {
            return scan_damaged(s, begin, "dimension %s is not 1 to %s", group_digits(dim, found),
                                group_digits(MAX_DIM, limit));
        }
        if (!ck_mul(tensor->n_values, dim, &tensor->n_values) || tensor->n_values > INT64_MAX) {
            return scan_damaged(s, begin, "the dimensions' product does not fit 63 bits");
        }
        tensor->shape[i] = (int64_t)dim;
    }
    return LMI_OK;
}

static lmi_status refuse_type(scan *s, uint64_t at, uint32_t type) {
    char shown[GGUF_SHOWN];
    const char *name = quant_name(type);
    if (name == NULL && type > 255) { /* no version of the format is near it */
        char found[32];
        return scan_damaged(s, at, "tensor type %s", group_digits(type, found));
    }
    if (name == NULL) {
        fail_at(s->error, LMI_UNSUPPORTED, at, "tensor type %lu (%s) is not known", (unsigned long)type,
                gguf_shown(s->name, shown));
        remedy(s->error, "The file is newer than this version of lmi, or damaged: update lmi, or use a Q4_K_M file.");
    } else {
        fail_at(s->error, LMI_UNSUPPORTED, at, "tensor type %s (%s) is not supported", name, gguf_shown(s->name, shown));
        remedy(s->error,
               "Use a Q4_K_M file of this model, or make one from its F16 file: lmi quantize F16.gguf -o Q4_K_M.gguf");
    }
    return LMI_UNSUPPORTED;
}

/* `end`: where the tensor before this one ends, then where this one does; both count from the start of the data. */
static lmi_status read_tensor(scan *s, gguf_tensor *tensor, uint64_t alignment, uint64_t *end) {
    char a[32], b[32];
    uint64_t begin = s->at;
    uint32_t type;
    lmi_status status = scan_string(s, "tensor name length", 1, MAX_TENSOR_NAME, &tensor->name);
    if (status != LMI_OK) {
        return status;
    }
    s->name = tensor->name;
    if (memchr(tensor->name.data, 0, tensor->name.size) != NULL) {
        return scan_damaged(s, begin, "a NUL in the tensor's name");
    }
    if ((status = read_shape(s, tensor)) != LMI_OK) {
        return status;
    }

    begin = s->at;
    if ((status = scan_u32(s, &type)) != LMI_OK) {
        return status;
    }
    tensor->type = quant_find(type);
    if (tensor->type == NULL) {
        return refuse_type(s, begin, type);
    }
    const quant_info *info = tensor->type;
    if ((uint64_t)tensor->shape[0] % info->block_values != 0) {
        return scan_damaged(s, begin, "rows of %s values are not whole %s blocks of %lu",
                            group_digits((uint64_t)tensor->shape[0], a), info->name, (unsigned long)info->block_values);
    }
    if (!ck_mul(tensor->n_values / info->block_values, info->block_bytes, &tensor->n_bytes)) {
        return scan_damaged(s, begin, "the tensor's size does not fit 64 bits");
    }

    begin = s->at;
    if ((status = scan_u64(s, &tensor->offset)) != LMI_OK) {
        return status;
    }
    if (tensor->offset % alignment != 0) {
        return scan_damaged(s, begin, "offset %s is not a multiple of the alignment %s", group_digits(tensor->offset, a),
                            group_digits(alignment, b));
    }
    if (tensor->offset < *end) {
        return scan_damaged(s, begin, "offset %s lies before %s, where the tensor before it ends",
                            group_digits(tensor->offset, a), group_digits(*end, b));
    }
    if (!ck_add(tensor->offset, tensor->n_bytes, end)) {
        return scan_damaged(s, begin, "offset %s and size %s do not fit 64 bits", group_digits(tensor->offset, a),
                            group_digits(tensor->n_bytes, b));
    }
    return LMI_OK;
}

static lmi_status read_tensors(scan *s, gguf *file, uint64_t *data_bytes) {
    lmi_status status;
    *data_bytes = 0;
    if (file->n_tensors > 0 && (file->tensors = calloc((size_t)file->n_tensors, sizeof *file->tensors)) == NULL) {
        return no_memory(s, "tensors");
    }
    s->noun = "tensor";
    for (int64_t i = 0; i < file->n_tensors; i++) {
        s->number = (uint64_t)i + 1;
        s->name = (text_view){0};
        if ((status = read_tensor(s, &file->tensors[i], file->alignment, data_bytes)) != LMI_OK) {
            return status;
        }
    }
    if (!name_table_build(&file->index->tensors, file->tensors, (size_t)file->n_tensors, sizeof *file->tensors)) {
        return no_memory(s, "tensors");
    }
    int64_t twice = name_table_duplicate(&file->index->tensors);
    if (twice >= 0) {
        s->name = file->tensors[twice].name;
        return scan_damaged(s, offset_of(file, s->name), "the same tensor again");
    }
    return LMI_OK;
}

/* Every tensor lies inside the file, or the file ends too early: tensors ascend, so the last one decides. */
static lmi_status place_tensors(scan *s, gguf *file, uint64_t data_bytes) {
    uint64_t end;
    if (!ck_align(s->at, file->alignment, &file->data_offset) || !ck_add(file->data_offset, data_bytes, &end)) {
        return scan_damaged(s, s->at, "the tensors' size does not fit 64 bits");
    }
    if (file->n_tensors == 0) {
        return LMI_OK; /* a vocabulary: nothing follows, perhaps not even the padding */
    }
    if (end > s->size) {
        char subject[SCAN_SUBJECT];
        s->name = file->tensors[file->n_tensors - 1].name;
        return scan_incomplete(s, scan_subject(s, subject), end, true);
    }
    for (int64_t i = 0; i < file->n_tensors; i++) {
        if (!ck_add(file->data_offset, file->tensors[i].offset, &file->tensors[i].offset)) {
            return scan_damaged(s, s->at, "the tensors' size does not fit 64 bits");
        }
        file->tensors[i].data = file->bytes + file->tensors[i].offset;
    }
    return LMI_OK;
}

/* ---- the whole --------------------------------------------------------------------------------------------------- */

static lmi_status read_file(scan *s, gguf *file) {
    uint64_t data_bytes;
    lmi_status status;
    if ((status = read_header(s, file)) != LMI_OK || (status = read_keys(s, file)) != LMI_OK ||
        (status = read_alignment(s, file)) != LMI_OK || (status = read_tensors(s, file, &data_bytes)) != LMI_OK) {
        return status;
    }
    return place_tensors(s, file, data_bytes);
}

lmi_status gguf_open(const uint8_t *bytes, uint64_t size, gguf **out, lmi_error *error) {
    *out = NULL;
    gguf *file = calloc(1, sizeof *file);
    struct gguf_index *index = calloc(1, sizeof *index);
    if (file == NULL || index == NULL) {
        free(file);
        free(index);
        return fail(error, LMI_OUT_OF_MEMORY, "no memory to open the file");
    }
    file->bytes = bytes;
    file->size = size;
    file->index = index;

    scan s = {.bytes = bytes, .size = size, .end = size < MAX_METADATA ? size : MAX_METADATA, .error = error};
    lmi_status status = read_file(&s, file);
    if (status != LMI_OK) {
        gguf_close(file);
        return status;
    }
    *out = file;
    return LMI_OK;
}

lmi_status gguf_join(gguf *file, gguf *const *parts, int64_t n, lmi_error *error) {
    int64_t n_tensors = file->n_tensors;
    for (int64_t i = 0; i < n; i++) {
        n_tensors += parts[i]->n_tensors; /* each within the limit of one file: far from overflow */
    }
    if (n_tensors > (int64_t)MAX_TENSORS) {
        return fail(error, LMI_BAD_FORMAT, "the files hold %lld tensors together; at most %lld can be read",
                    (long long)n_tensors, (long long)MAX_TENSORS);
    }
    gguf_tensor *tensors = calloc((size_t)n_tensors + 1, sizeof *tensors);
    if (tensors == NULL) {
        return fail(error, LMI_OUT_OF_MEMORY, "no memory for the table of %lld tensors", (long long)n_tensors);
    }
    int64_t at = file->n_tensors;
    if (at > 0) {
        memcpy(tensors, file->tensors, (size_t)at * sizeof *tensors);
    }
    for (int64_t i = 0; i < n; i++) {
        if (parts[i]->n_tensors > 0) {
            memcpy(tensors + at, parts[i]->tensors, (size_t)parts[i]->n_tensors * sizeof *tensors);
        }
        at += parts[i]->n_tensors;
    }
    free(file->tensors);
    file->tensors = tensors;
    file->n_tensors = n_tensors;
    name_table_close(&file->index->tensors);
    if (!name_table_build(&file->index->tensors, tensors, (size_t)n_tensors, sizeof *tensors)) {
        return fail(error, LMI_OUT_OF_MEMORY, "no memory for the table of %lld tensors", (long long)n_tensors);
    }
    const int64_t twice = name_table_duplicate(&file->index->tensors);
    if (twice >= 0) {
        char shown[GGUF_SHOWN];
        return fail(error, LMI_BAD_FORMAT, "tensor %s is in two of the model's files", gguf_shown(tensors[twice].name, shown));
    }
    return LMI_OK;
}

void gguf_close(gguf *file) {
    if (file == NULL) {
        return;
    }
    name_table_close(&file->index->keys);
    name_table_close(&file->index->tensors);
    free(file->index);
    free(file->keys);
    free(file->tensors);
    free(file);
}

const gguf_key *gguf_find_key(const gguf *file, const char *name) {
    int64_t item = name_table_find(&file->index->keys, text_of(name));
    return item < 0 ? NULL : &file->keys[item];
}

const gguf_tensor *gguf_find_tensor(const gguf *file, const char *name) {
    int64_t item = name_table_find(&file->index->tensors, text_of(name));
    return item < 0 ? NULL : &file->tensors[item];
}
