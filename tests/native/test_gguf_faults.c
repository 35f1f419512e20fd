/* Memory runs out at every allocation of the reader in turn, once and for good; and no file makes it ask for much. */
#include "check.h"
#include "faults.h"
#include "gguf_builder.h"
#include "gguf_walk.h"

static void test_each_allocation(const builder *b) {
    for (int kind = FAULT_ONCE; kind <= FAULT_FROM_THEN_ON; kind++) {
        long failures = 0;
        for (long k = 1;; k++) {
            lmi_error error = {0};
            gguf *file = NULL;
            faults_begin(k, (fault_mode)kind);
            lmi_status status = gguf_open(b->bytes, b->size, &file, &error);
            long calls = faults_end();
            if (calls < k) {
                CHECK(status == LMI_OK && file != NULL, "%s", error.message);
                gguf_close(file);
                break;
            }
            failures++;
            CHECK(status == LMI_OUT_OF_MEMORY && file == NULL && error.status == status, "allocation %ld: status %d", k,
                  (int)status);
            CHECK(error.message[0] != '\0', "allocation %ld", k);
            CHECK(gguf_open(b->bytes, b->size, &file, &error) == LMI_OK, "after allocation %ld: %s", k, error.message);
            gguf_close(file);
        }
        CHECK(failures >= 5, "only %ld allocations were seen", failures);
    }
}

static uint64_t bytes_asked_for(const uint8_t *bytes, size_t size, lmi_status *status) {
    gguf *file = NULL;
    faults_begin(0, FAULT_ONCE);
    *status = gguf_open(bytes, size, &file, NULL);
    gguf_close(file);
    faults_end();
    return fault_bytes;
}

/* Memory is bounded by the size of the file, whatever the file says, and by a constant: the two tables at their limits. */
static void test_amplification(const builder *model) {
    lmi_status status;
    uint64_t asked = bytes_asked_for(model->bytes, model->size, &status);
    CHECK(status == LMI_OK && asked < model->size, "%llu bytes asked for, file of %zu", (unsigned long long)asked, model->size);

    uint8_t *copy = malloc(model->size);
    static const uint64_t words[] = {1,
                                     255,
                                     65535,
                                     65536,
                                     1u << 20,
                                     0x7fffffff,
                                     1u << 31,
                                     UINT32_MAX,
                                     (uint64_t)1 << 32,
                                     (uint64_t)1 << 40,
                                     (uint64_t)1 << 61,
                                     UINT64_MAX};
    for (size_t at = 0; copy != NULL && at + 8 <= 2048; at++) {
        for (size_t i = 0; i < sizeof words / sizeof *words; i++) {
            memcpy(copy, model->bytes, model->size);
            memcpy(copy + at, &words[i], 8);
            asked = bytes_asked_for(copy, model->size, &status);
            CHECK(asked <= 2 * model->size + 65536, "%llu bytes asked for, word %zu at %zu", (unsigned long long)asked, i, at);
        }
    }
    free(copy);

    builder b = {0}; /* the densest tables that the limits allow */
    build_begin(&b, 3);
    for (int i = 0; i < 65536; i++) {
        char name[8];
        snprintf(name, sizeof name, "%x", (unsigned)i & 0xffff);
        build_bool(&b, name, 0);
    }
    for (int i = 0; i < 65536; i++) {
        char name[8];
        snprintf(name, sizeof name, "%x", (unsigned)i & 0xffff);
        build_raw_tensor(&b, name, 1, (uint64_t[]){1}, QUANT_F32, 32 * (uint64_t)i);
    }
    asked = bytes_asked_for(b.bytes, b.size, &status);
    CHECK(status == LMI_BAD_FORMAT && asked < 12 << 20, "%llu bytes asked for", (unsigned long long)asked);
    build_free(&b);
}

int main(void) {
    builder model = {0};
    build_llama(&model, QUANT_Q8_0, BUILD_SPM);
    test_each_allocation(&model);
    test_amplification(&model);
    build_free(&model);
    return check_report();
}
