#include "engine/shards.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { MAX_SHARDS = 999, MAX_PATH = 4096 };

/* "model-00001-of-00003.gguf": writes the path of shard `number` (from 1) next to that of the first. */
static lmi_status shard_path(const char *first, int64_t number, int64_t count, char path[MAX_PATH], lmi_error *error) {
    char end[32];
    const int n_end = snprintf(end, sizeof end, "-%05d-of-%05d.gguf", 1, (int)count);
    const size_t n = strlen(first);
    if (n_end < 0 || n < (size_t)n_end || n + 1 > MAX_PATH || strcmp(first + n - (size_t)n_end, end) != 0) {
        fail(error, LMI_BAD_FORMAT, "the model lies in %lld files, but the name of this one does not end in %s",
             (long long)count, end);
        remedy(error, "Give all its files the names that they were published with.");
        return LMI_BAD_FORMAT;
    }
    memcpy(path, first, n + 1);
    snprintf(path + n - (size_t)n_end, (size_t)n_end + 1, "-%05d-of-%05d.gguf", (int)number, (int)count);
    return LMI_OK;
}

static lmi_status read_split(const gguf *file, int64_t *number, int64_t *count, lmi_error *error) {
    *number = 0;
    *count = 1;
    lmi_status status = gguf_get_int(file, "split.count", GGUF_OPTIONAL, 0, MAX_SHARDS, count, error);
    if (status == LMI_OK && *count > 1) {
        status = gguf_get_int(file, "split.no", GGUF_REQUIRED, 0, *count - 1, number, error);
    }
    return status;
}

/* Puts the name of the file, without its folder, before a message that is about one of several. */
static void name_file(const char *path, lmi_error *error) {
    if (error == NULL) {
        return;
    }
    const lmi_error found = *error;
    const char *slash = strrchr(path, '/');
    fail(error, found.status, "%s: %s", slash == NULL ? path : slash + 1, found.message);
    error->offset = found.offset;
    if (found.remedy[0] != '\0') {
        remedy(error, "%s", found.remedy);
    }
}

static lmi_status open_shard(const char *path, bool map, int64_t number, int64_t count, model_shards *shards,
                             lmi_error *error) {
    file_view *view = &shards->views[shards->n];
    gguf **file = &shards->files[shards->n];
    view->fd = -1;
    *file = NULL;
    shards->n++;
    lmi_status status = file_open(path, map, view, error);
    if (status != LMI_OK) {
        remedy(error, "The model lies in %lld files: put all of them into one folder.", (long long)count);
        return status;
    }
    status = gguf_open(view->bytes, view->size, file, error);
    int64_t its_number = 0, its_count = 0;
    if (status == LMI_OK) {
        status = read_split(*file, &its_number, &its_count, error);
    }
    if (status != LMI_OK) {
        name_file(path, error);
    } else if (its_number != number - 1 || its_count != count) {
        status = fail(error, LMI_BAD_FORMAT, "%s says that it is file %lld of %lld", path, (long long)its_number + 1,
                      (long long)its_count);
        remedy(error, "Give the files of the model the names that they were published with.");
    }
    return status;
}

lmi_status shards_open(const char *path, bool map, gguf *first, model_shards *shards, lmi_error *error) {
    *shards = (model_shards){0};
    int64_t number, count;
    lmi_status status = read_split(first, &number, &count, error);
    if (status != LMI_OK || count <= 1) {
        return status;
    }
    if (number != 0) {
        fail(error, LMI_BAD_FORMAT, "this is file %lld of the %lld that hold the model", (long long)number + 1,
             (long long)count);
        remedy(error, "Open the first: its name ends in -00001-of-%05lld.gguf.", (long long)count);
        return LMI_BAD_FORMAT;
    }
    shards->views = calloc((size_t)count, sizeof *shards->views);
    shards->files = calloc((size_t)count, sizeof(gguf *));
    if (shards->views == NULL || shards->files == NULL) {
        return fail(error, LMI_OUT_OF_MEMORY, "no memory to open %lld files", (long long)count);
    }
    for (int64_t i = 2; i <= count && status == LMI_OK; i++) {
        char name[MAX_PATH];
        status = shard_path(path, i, count, name, error);
        if (status == LMI_OK) {
            status = open_shard(name, map, i, count, shards, error);
        }
    }
    if (status == LMI_OK) {
        status = gguf_join(first, shards->files, shards->n, error);
    }
    int64_t n_tensors = first->n_tensors;
    if (status == LMI_OK) {
        status = gguf_get_int(first, "split.tensors.count", GGUF_OPTIONAL, 0, INT64_MAX, &n_tensors, error);
    }
    if (status == LMI_OK && n_tensors != first->n_tensors) {
        status = fail(error, LMI_BAD_FORMAT, "the files hold %lld tensors, not the %lld that the first one announces",
                      (long long)first->n_tensors, (long long)n_tensors);
    }
    return status;
}

void shards_explain(const model_shards *shards, lmi_error *error) {
    if (shards->n > 0 && error != NULL && error->status == LMI_BAD_FORMAT && error->remedy[0] == '\0') {
        remedy(error, "The model lies in %lld files: take all of them from the same download.", (long long)shards->n + 1);
    }
}

lmi_status shards_check(const model_shards *shards, lmi_error *error) {
    lmi_status status = LMI_OK;
    for (int64_t i = 0; i < shards->n && status == LMI_OK; i++) {
        status = file_check(&shards->views[i], error);
    }
    return status;
}

void shards_close(model_shards *shards) {
    for (int64_t i = 0; i < shards->n; i++) {
        gguf_close(shards->files[i]);
        file_close(&shards->views[i]);
    }
    free(shards->files);
    free(shards->views);
    *shards = (model_shards){0};
}
