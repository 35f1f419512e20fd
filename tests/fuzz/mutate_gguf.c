/* Mutated model files, in one process: the same ones for the same --seed.
 *
 *     mutate_gguf [--count 5000] [--seed 1] [--step 7]     mutations in all; one prefix of each seed every `step` bytes
 *     mutate_gguf --write-seeds DIR                        writes the seeds, as a corpus for the fuzz targets
 *
 * A file that breaks something is left as mutate-<seed>-<number>.gguf in the current folder. */
#define _GNU_SOURCE
#include <stdio.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "check_file.h"
#include "gguf_mutator.h"
#include "seeds.h"

extern void __sanitizer_set_death_callback(void (*callback)(void)) __attribute__((weak));

enum { MAX_FILE = 1 << 20 };

static const uint8_t *current_bytes;
static size_t current_size;
static char current_name[64];

static int write_file(const char *path, const uint8_t *bytes, size_t size) {
    FILE *file = fopen(path, "wb");
    if (file == NULL) {
        return 0;
    }
    size_t written = fwrite(bytes, 1, size, file);
    return fclose(file) == 0 && written == size;
}

static void keep_current(void) {
    if (current_bytes != NULL && write_file(current_name, current_bytes, current_size)) {
        fprintf(stderr, "kept as %s\n", current_name);
    }
}

static double seconds_now(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (double)now.tv_sec + 1e-9 * (double)now.tv_nsec;
}

static struct {
    long verdicts[3];
    double slowest;
} tally;

/* The file is checked from its own allocation, so that AddressSanitizer sees every byte beyond. */
static void check(const uint8_t *bytes, size_t size) {
    current_bytes = bytes;
    current_size = size;
    alarm(20); /* a hang ends the process, and the file can be had by running again up to its number */
    double begin = seconds_now();
    tally.verdicts[check_file(bytes, size)]++;
    double seconds = seconds_now() - begin;
    alarm(0);
    tally.slowest = seconds > tally.slowest ? seconds : tally.slowest;
    if (seconds > 2.0) {
        fprintf(stderr, "%s took %.1f s\n", current_name, seconds);
        keep_current();
        exit(1);
    }
    current_bytes = NULL;
}

static void run_mutations(const seed seeds[N_SEEDS], long count, uint64_t base) {
    uint8_t *bytes = malloc(MAX_FILE);
    for (long i = 0; i < count && bytes != NULL; i++) {
        uint64_t rng = base * 1000003 + (uint64_t)i;
        const builder *from = &seeds[mutator_below(&rng, N_SEEDS)].file, *other = &seeds[mutator_below(&rng, N_SEEDS)].file;
        size_t size = from->size, n = 1 + mutator_below(&rng, 2) * mutator_below(&rng, 5);
        memcpy(bytes, from->bytes, size);
        for (size_t k = 0; k < n; k++) {
            size = mutate_gguf(bytes, size, MAX_FILE, other->bytes, other->size, &rng);
        }
        snprintf(current_name, sizeof current_name, "mutate-%llu-%ld.gguf", (unsigned long long)base, i);
        check(bytes, size);
    }
    free(bytes);
}

static void run_cuts(const seed seeds[N_SEEDS], size_t step) {
    for (int s = 0; s < N_SEEDS && step > 0; s++) {
        for (size_t size = step; size < seeds[s].file.size && size < 20000; size += step) {
            snprintf(current_name, sizeof current_name, "cut-%s-%zu.gguf", seeds[s].name, size);
            check(seeds[s].file.bytes, size);
        }
    }
}

int main(int argc, char **argv) {
    long count = 5000, step = 7;
    uint64_t base = 1;
    const char *folder = NULL;
    for (int i = 1; i + 1 < argc; i += 2) {
        if (strcmp(argv[i], "--count") == 0) {
            count = atol(argv[i + 1]);
        } else if (strcmp(argv[i], "--seed") == 0) {
            base = strtoull(argv[i + 1], NULL, 10);
        } else if (strcmp(argv[i], "--step") == 0) {
            step = atol(argv[i + 1]);
        } else if (strcmp(argv[i], "--write-seeds") == 0) {
            folder = argv[i + 1];
        } else {
            fprintf(stderr, "mutate_gguf: unknown option %s\n", argv[i]);
            return 2;
        }
    }
    if (__sanitizer_set_death_callback != NULL) {
        __sanitizer_set_death_callback(keep_current);
    }
    seed seeds[N_SEEDS];
    build_seeds(seeds);
    int failed = 0;
    for (int s = 0; s < N_SEEDS; s++) {
        char path[4096];
        snprintf(path, sizeof path, "%s/%s.gguf", folder != NULL ? folder : ".", seeds[s].name);
        if (folder != NULL && !write_file(path, seeds[s].file.bytes, seeds[s].file.size)) {
            fprintf(stderr, "cannot write %s\n", path);
            failed = 1;
        }
        snprintf(current_name, sizeof current_name, "seed-%s.gguf", seeds[s].name);
        if (folder == NULL && s + 1 < N_SEEDS && check_file(seeds[s].file.bytes, seeds[s].file.size) != FILE_RAN) {
            fprintf(stderr, "seed %s does not run\n", seeds[s].name);
            failed = 1;
        }
    }
    if (folder == NULL && !failed) {
        double begin = seconds_now();
        run_mutations(seeds, count, base);
        run_cuts(seeds, step > 0 ? (size_t)step : 0);
        printf("%ld files refused by the reader, %ld by the model, %ld ran; %.1f s, slowest %.3f s\n",
               tally.verdicts[FILE_REFUSED], tally.verdicts[FILE_MODEL_REFUSED], tally.verdicts[FILE_RAN],
               seconds_now() - begin, tally.slowest);
    }
    free_seeds(seeds);
    return failed;
}
