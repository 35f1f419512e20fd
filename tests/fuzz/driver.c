/* Runs a fuzz target (LLVMFuzzerTestOneInput) where the compiler has no libFuzzer.
 *
 *     fuzz_x FILE|FOLDER...                                          each input once: a replay
 *     fuzz_x --seconds 60 [--seed 1] [--max-size 65536] [--keep DIR] FILE|FOLDER...   and then mutations of them
 *
 * Inputs that reach a new branch (coverage.c) join the corpus, and are written to --keep if given. A target may define
 * LLVMFuzzerCustomMutator, as for libFuzzer, and may call LLVMFuzzerMutate from it. An input on which the process dies, or
 * which takes more than 20 s, is left as crash-<hash> in the current folder. */
#define _GNU_SOURCE
#include <dirent.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

enum { MAX_INPUTS = 8192, COVERAGE_SIZE = 1 << 16, SLOW_SECONDS = 20 };

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);
size_t LLVMFuzzerCustomMutator(uint8_t *data, size_t size, size_t max_size, unsigned seed) __attribute__((weak));
size_t LLVMFuzzerMutate(uint8_t *data, size_t size, size_t max_size);
extern void __sanitizer_set_death_callback(void (*callback)(void)) __attribute__((weak));
extern uint8_t fuzz_coverage[COVERAGE_SIZE] __attribute__((weak));

typedef struct input {
    uint8_t *bytes;
    size_t size;
} input;

static input corpus[MAX_INPUTS];
static size_t n_inputs;
static uint8_t seen[COVERAGE_SIZE]; /* bit per bucket of counts, per branch */
static uint64_t rng = 1;
static const uint8_t *current_bytes;
static size_t current_size;

static uint64_t next_random(void) { /* SplitMix64 */
    uint64_t z = (rng += 0x9e3779b97f4a7c15u);
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
    return z ^ (z >> 31);
}
static size_t below(size_t n) { return n == 0 ? 0 : (size_t)(next_random() % n); }

static void write_input(const char *folder, const char *prefix, const uint8_t *bytes, size_t size) {
    char path[4096];
    uint64_t hash = 0xcbf29ce484222325u;
    for (size_t i = 0; i < size; i++) {
        hash = (hash ^ bytes[i]) * 0x100000001b3u;
    }
    snprintf(path, sizeof path, "%s/%s%016llx", folder, prefix, (unsigned long long)hash);
    FILE *file = fopen(path, "wb");
    if (file != NULL) {
        fwrite(bytes, 1, size, file);
        fclose(file);
        if (prefix[0] != '\0') {
            fprintf(stderr, "input of %zu bytes kept as %s\n", size, path);
        }
    }
}

static void keep_current(void) {
    if (current_bytes != NULL) {
        write_input(".", "crash-", current_bytes, current_size);
        current_bytes = NULL;
    }
}

static void on_signal(int number) {
    keep_current();
    signal(number, SIG_DFL);
    raise(number);
}

/* Counts in buckets: 1, 2, 3, 4-7, 8-15, 16-31, 32-127, more. Returns how many (branch, bucket) pairs are new. */
static size_t note_coverage(void) {
    size_t fresh = 0;
    for (size_t word = 0; fuzz_coverage != NULL && word < COVERAGE_SIZE; word += 8) {
        uint64_t any;
        memcpy(&any, fuzz_coverage + word, 8);
        for (size_t i = word; any != 0 && i < word + 8; i++) { /* nearly all words are 0 */
            uint8_t n = fuzz_coverage[i];
            int bucket = n < 4 ? n - 1 : n < 8 ? 3 : n < 16 ? 4 : n < 32 ? 5 : n < 128 ? 6 : 7;
            if (n != 0) {
                fresh += (seen[i] >> bucket & 1) == 0;
                seen[i] |= (uint8_t)(1u << bucket);
            }
        }
    }
    return fresh;
}

/* From an allocation of exactly its size, so that AddressSanitizer sees every byte beyond. */
static size_t run_input(const uint8_t *bytes, size_t size) {
    uint8_t *copy = malloc(size > 0 ? size : 1);
    if (copy == NULL) {
        return 0;
    }
    if (size > 0) {
        memcpy(copy, bytes, size);
    }
    if (fuzz_coverage != NULL) {
        memset(fuzz_coverage, 0, COVERAGE_SIZE);
    }
    current_bytes = copy;
    current_size = size;
    alarm(SLOW_SECONDS);
    LLVMFuzzerTestOneInput(copy, size);
    alarm(0);
    current_bytes = NULL;
    free(copy);
    return note_coverage();
}

static int add_input(const uint8_t *bytes, size_t size) {
    if (n_inputs == MAX_INPUTS) {
        return 0;
    }
    uint8_t *copy = malloc(size > 0 ? size : 1);
    if (copy == NULL) {
        return 0;
    }
    if (size > 0) {
        memcpy(copy, bytes, size);
    }
    corpus[n_inputs++] = (input){copy, size};
    return 1;
}

/* ---- reading the corpus ------------------------------------------------------------------------------------------ */

static int read_file(const char *path, size_t size, size_t max_size) {
    FILE *file = fopen(path, "rb");
    uint8_t *bytes = malloc(size + 1);
    if (file == NULL || bytes == NULL) {
        fprintf(stderr, "cannot read %s\n", path);
        free(bytes);
        if (file != NULL) {
            fclose(file);
        }
        return 0;
    }
    size_t n = fread(bytes, 1, size, file);
    fclose(file);
    run_input(bytes, n);
    if (n <= max_size) {
        add_input(bytes, n);
    }
    free(bytes);
    return 1;
}

static int compare_names(const void *a, const void *b) { return strcmp(*(char *const *)a, *(char *const *)b); }

/* Files of a folder in the order of their names, so that a seed means the same everywhere. */
static int read_path(const char *path, size_t max_size) {
    struct stat info;
    char *names[MAX_INPUTS];
    size_t n = 0;
    if (stat(path, &info) != 0) {
        fprintf(stderr, "no such file or folder: %s\n", path);
        return 0;
    }
    if (!S_ISDIR(info.st_mode)) {
        return read_file(path, (size_t)info.st_size, max_size);
    }
    DIR *folder = opendir(path);
    struct dirent *entry;
    while (folder != NULL && n < MAX_INPUTS && (entry = readdir(folder)) != NULL) {
        if (entry->d_name[0] != '.' && (names[n] = strdup(entry->d_name)) != NULL) {
            n++;
        }
    }
    if (folder != NULL) {
        closedir(folder);
    }
    qsort(names, n, sizeof *names, compare_names);
    int good = folder != NULL;
    for (size_t i = 0; i < n; i++) {
        char full[4096];
        snprintf(full, sizeof full, "%s/%s", path, names[i]);
        if (stat(full, &info) == 0 && S_ISREG(info.st_mode)) {
            good &= read_file(full, (size_t)info.st_size, max_size);
        }
        free(names[i]);
    }
    return good;
}

/* ---- mutations --------------------------------------------------------------------------------------------------- */

static size_t insert_bytes(uint8_t *data, size_t size, size_t max_size, const uint8_t *from, size_t n) {
    size_t at = below(size + 1);
    n = n < max_size - size ? n : max_size - size;
    memmove(data + at + n, data + at, size - at);
    if (from != NULL) {
        memcpy(data + at, from, n);
    } else {
        memset(data + at, (int)(next_random() & 255), n);
    }
    return size + n;
}

static void overwrite_number(uint8_t *data, size_t size) {
    static const uint64_t edges[] = {0,
                                     1,
                                     2,
                                     16,
                                     127,
                                     128,
                                     255,
                                     256,
                                     1024,
                                     32767,
                                     32768,
                                     65535,
                                     65536,
                                     0x7fffffff,
                                     0x80000000,
                                     0xffffffff,
                                     0x100000000,
                                     0x7fffffffffffffff,
                                     0x8000000000000000,
                                     0xffffffffffffffff};
    size_t width = (size_t)1 << below(4);
    if (size >= width) {
        uint64_t value = edges[below(sizeof edges / sizeof *edges)] + (below(4) == 0 ? below(5) - 2 : 0);
        if (below(3) == 0) {
            memcpy(&value, data + below(size - width + 1), width);
            value += below(2) == 0 ? 1 : (uint64_t)-1;
        }
        memcpy(data + below(size - width + 1), &value, width);
    }
}

/* One change that knows nothing of the format. */
size_t LLVMFuzzerMutate(uint8_t *data, size_t size, size_t max_size) {
    size_t at = below(size), n = 1 + below(below(4) == 0 ? 256 : 8);
    const input *other = &corpus[below(n_inputs)];
    if (size == 0) {
        return insert_bytes(data, size, max_size, NULL, n);
    }
    switch (below(10)) {
    case 0:
        data[at] ^= (uint8_t)(1u << below(8));
        return size;
    case 1:
        data[at] = (uint8_t)next_random();
        return size;
    case 2:
    case 3:
        overwrite_number(data, size);
        return size;
    case 4:
        return insert_bytes(data, size, max_size, NULL, n);
    case 5: /* remove */
        n = n < size - at ? n : size - at;
        memmove(data + at, data + at + n, size - at - n);
        return size - n;
    case 6: { /* repeat a part */
        uint8_t part[256];
        n = n < size - at ? n : size - at;
        n = n < sizeof part ? n : sizeof part;
        memcpy(part, data + at, n);
        return insert_bytes(data, size, max_size, part, n);
    }
    case 7: /* a part of another input, inserted */
        if (n_inputs > 0 && other->size > 0) {
            size_t from = below(other->size);
            n = n < other->size - from ? n : other->size - from;
            return insert_bytes(data, size, max_size, other->bytes + from, n);
        }
        return size;
    case 8: /* the same, laid over */
        if (n_inputs > 0 && other->size > 0) {
            size_t from = below(other->size);
            n = n < other->size - from ? n : other->size - from;
            n = n < size - at ? n : size - at;
            memcpy(data + at, other->bytes + from, n);
        }
        return size;
    default:
        return below(8) == 0 ? at : size;
    }
}

static double seconds_now(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (double)now.tv_sec + 1e-9 * (double)now.tv_nsec;
}

static long fuzz(double seconds, size_t max_size, const char *keep) {
    uint8_t *data = malloc(max_size);
    const double end = seconds_now() + seconds;
    long runs = 0;
    while (data != NULL && seconds_now() < end) {
        /* Half of the time one of the latest: they are the least explored. */
        size_t which = below(2) == 0 && n_inputs > 8 ? n_inputs - 1 - below(n_inputs / 4) : below(n_inputs);
        size_t size = corpus[which].size;
        memcpy(data, corpus[which].bytes, size);
        for (size_t k = (size_t)1 << below(4); k > 0; k--) {
            size = LLVMFuzzerCustomMutator != NULL && below(4) != 0
                       ? LLVMFuzzerCustomMutator(data, size, max_size, (unsigned)next_random())
                       : LLVMFuzzerMutate(data, size, max_size);
        }
        runs++;
        if (run_input(data, size) > 0 && add_input(data, size) && keep != NULL) {
            write_input(keep, "", data, size);
        }
    }
    free(data);
    return runs;
}

int main(int argc, char **argv) {
    double seconds = 0.0;
    size_t max_size = 65536;
    const char *keep = NULL;
    int first = 1, good = 1;
    for (; first + 1 < argc && strncmp(argv[first], "--", 2) == 0; first += 2) {
        if (strcmp(argv[first], "--seconds") == 0) {
            seconds = strtod(argv[first + 1], NULL);
        } else if (strcmp(argv[first], "--seed") == 0) {
            rng = strtoull(argv[first + 1], NULL, 10);
        } else if (strcmp(argv[first], "--max-size") == 0) {
            max_size = (size_t)strtoull(argv[first + 1], NULL, 10);
        } else if (strcmp(argv[first], "--keep") == 0) {
            keep = argv[first + 1];
        } else {
            fprintf(stderr, "%s: unknown option %s\n", argv[0], argv[first]);
            return 2;
        }
    }
    if (__sanitizer_set_death_callback != NULL) {
        __sanitizer_set_death_callback(keep_current);
    }
    signal(SIGALRM, on_signal);
    signal(SIGILL, on_signal);
    signal(SIGTRAP, on_signal);
    signal(SIGABRT, on_signal);
    for (int i = first; i < argc; i++) {
        good &= read_path(argv[i], max_size);
    }
    if (n_inputs == 0) {
        add_input((const uint8_t *)"", 0);
    }
    const size_t replayed = n_inputs;
    long runs = seconds > 0.0 ? fuzz(seconds, max_size, keep) : 0;
    size_t pairs = 0;
    for (size_t i = 0; i < COVERAGE_SIZE; i++) {
        pairs += (size_t)__builtin_popcount(seen[i]);
    }
    printf("%zu inputs replayed, %ld mutations run, %zu inputs kept, %zu branches seen\n", replayed, runs, n_inputs - replayed,
           pairs);
    for (size_t i = 0; i < n_inputs; i++) {
        free(corpus[i].bytes);
    }
    return good ? 0 : 1;
}
