#define _GNU_SOURCE
#include "base/library.h"

#include <dlfcn.h>
#include <stdio.h>
#include <string.h>

void *library_open(const char *name, char *why, size_t size) {
    void *library = dlopen(name, RTLD_NOW | RTLD_LOCAL | RTLD_NODELETE);
    if (library == NULL && why != NULL) {
        const char *reason = dlerror();
        snprintf(why, size, "%s", reason != NULL ? reason : "the loader does not say why");
    }
    return library;
}

void library_close(void *library) {
    if (library != NULL) {
        dlclose(library);
    }
}

bool library_find(void *library, const char *symbol, void *address) {
    void *found = dlsym(library, symbol);
    memcpy(address, &found, sizeof found);
    return found != NULL;
}

bool library_beside(const char *file, char *path, size_t size) {
    static const char here = 0; /* lies in this library */
    Dl_info info;
    if (dladdr(&here, &info) == 0 || info.dli_fname == NULL) {
        return false;
    }
    const char *slash = strrchr(info.dli_fname, '/');
    const int folder = slash != NULL ? (int)(slash - info.dli_fname) + 1 : 0;
    const int n = snprintf(path, size, "%.*s%s", folder, info.dli_fname, file);
    return n > 0 && (size_t)n < size;
}
