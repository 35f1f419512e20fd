/* Uses everything that an opened file offers, and counts the promises of gguf.h that it breaks (0, or the reader is wrong).
 * Under AddressSanitizer it also shows that no view leaves the file. */
#ifndef LMI_TESTS_GGUF_WALK_H
#define LMI_TESTS_GGUF_WALK_H

#include <stdlib.h>
#include <string.h>

#include "gguf/gguf.h"

static inline uint64_t walk_bytes(const void *bytes, size_t n) {
    const uint8_t *at = bytes;
    return n == 0 ? 0 : at[0] + (uint64_t)at[n / 2] + at[n - 1];
}

/* Finds an item by its own name; names with a NUL cannot be asked for. */
static inline int walk_is_found(const gguf *file, text_view name, const void *item, int is_tensor) {
    char *copy = malloc(name.size + 1);
    if (copy == NULL || memchr(name.data, 0, name.size) != NULL) {
        free(copy);
        return 1;
    }
    memcpy(copy, name.data, name.size);
    copy[name.size] = '\0';
    const void *found = is_tensor ? (const void *)gguf_find_tensor(file, copy) : (const void *)gguf_find_key(file, copy);
    free(copy);
    return found == item;
}

static inline int walk_is_inside(const gguf *file, const void *data, uint64_t n) {
    const uint8_t *at = data;
    return at >= file->bytes && at <= file->bytes + file->size && n <= (uint64_t)(file->bytes + file->size - at);
}

static inline long walk_key(const gguf *file, const gguf_key *key, uint64_t *sum) {
    long broken = !walk_is_found(file, key->name, key, 0) + !walk_is_inside(file, key->name.data, key->name.size);
    broken += key->type != GGUF_ARRAY && (key->count != 1 || key->element != key->type);
    broken += key->offset > file->size;
    uint64_t cursor = key->offset;
    for (uint64_t i = 0; i < key->count; i++) {
        if (key->element == GGUF_STRING) {
            text_view value = gguf_next_string(file, &cursor);
            broken += !walk_is_inside(file, value.data, value.size);
            *sum += walk_bytes(value.data, value.size);
        } else if (i < 4 || i + 4 >= key->count) {
            int64_t whole = gguf_int_at(file, key, i);
            double real = gguf_real_at(file, key, i);
            broken += key->element == GGUF_BOOL && whole != 0 && whole != 1;
            *sum += (uint64_t)whole + (real > 0.0);
        }
    }
    return broken;
}

static inline long walk_tensor(const gguf *file, const gguf_tensor *tensor, uint64_t *sum) {
    long broken = !walk_is_found(file, tensor->name, tensor, 1) + !walk_is_inside(file, tensor->name.data, tensor->name.size);
    broken += tensor->type == NULL || quant_find((uint32_t)tensor->type->type) != tensor->type;
    broken += tensor->n_dims < 1 || tensor->n_dims > 4;
    uint64_t n = 1;
    for (int i = 0; i < 4; i++) {
        broken += tensor->shape[i] < 1 || ((uint32_t)i >= tensor->n_dims && tensor->shape[i] != 1);
        n *= (uint64_t)tensor->shape[i];
    }
    broken += n != tensor->n_values || (uint64_t)tensor->shape[0] % tensor->type->block_values != 0;
    broken += tensor->n_bytes != n / tensor->type->block_values * tensor->type->block_bytes;
    broken += tensor->offset < file->data_offset || tensor->offset % file->alignment != 0;
    if (tensor->offset > file->size || tensor->n_bytes > file->size - tensor->offset) {
        return broken + 1;
    }
    *sum += walk_bytes(file->bytes + tensor->offset, (size_t)tensor->n_bytes);
    return broken;
}

static inline long gguf_walk(const gguf *file, uint64_t *sum) {
    long broken = 0;
    uint64_t end = 0;
    for (int64_t i = 0; i < file->n_keys; i++) {
        broken += walk_key(file, &file->keys[i], sum);
    }
    for (int64_t i = 0; i < file->n_tensors; i++) {
        broken += walk_tensor(file, &file->tensors[i], sum);
        broken += file->tensors[i].offset < end;
        end = file->tensors[i].offset + file->tensors[i].n_bytes;
    }
    return broken;
}

/* Opens a copy that ends where its allocation ends, walks it and closes it. */
static inline lmi_status walk_copy(const uint8_t *bytes, size_t size, lmi_error *error, long *broken) {
    uint8_t *copy = malloc(size > 0 ? size : 1);
    gguf *file = NULL;
    uint64_t sum = 0;
    if (copy == NULL) {
        return fail(error, LMI_OUT_OF_MEMORY, "no memory for a test file");
    }
    if (size > 0) {
        memcpy(copy, bytes, size);
    }
    lmi_status status = gguf_open(copy, size, &file, error);
    *broken = status == LMI_OK ? gguf_walk(file, &sum) : file != NULL;
    gguf_close(file);
    free(copy);
    return status;
}

#endif
