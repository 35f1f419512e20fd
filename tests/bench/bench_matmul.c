/* Speed of the matmul kernels on one core, next to what the core can do at that moment.
 *
 *   bench_matmul [isa] [type] [megabytes] [k]         all types on the best instruction set, 256 MB of weights, K = 4096
 *
 * Per type: one token over weights read once from memory (GB/s, and % of a plain read of the same bytes), the same for four
 * tokens, one token over weights in the L2 cache, and 512 tokens (G MAC/s, and % of the peak of the dot product
 * or multiply-add instruction in question). */
#include "bench.h"

#include "base/cpu.h"
#include "base/half.h"

/* ---- one type -------------------------------------------------------------------------------------------------------- */

/* Blocks whose scales are small whatever their place in the block (every byte below 0x20), and no subnormal numbers where
 * that would be slow. */
static void fill(quant_type type, void *bytes, size_t size) {
    uint32_t *words = bytes;
    uint32_t seed = 1, bits = 0, mask = 0x1f1f1f1fu;
    if (type == QUANT_F32 || type == QUANT_F16 || type == QUANT_BF16) {
        bits = type == QUANT_F32 ? 0x3f000000u : type == QUANT_F16 ? 0x30003000u : 0x3f003f00u;
        mask = type == QUANT_F32 ? 0x007fffffu : 0x007f007fu;
    }
    for (size_t i = 0; i < size / 4; i++) {
        words[i] = bits | (random_bits(&seed) & mask);
    }
    for (size_t at = 0; type == QUANT_MXFP4 && at < size; at += 17) {
        ((uint8_t *)bytes)[at] = 120;
    }
}

typedef struct pass {
    matmul_kernel *kernel;
    matmul_args args;
} pass;

static void run_in_pieces(void *context) { /* as a pool hands them out */
    const pass *p = context;
    for (int64_t r = 0; r < p->args.row1; r += 256) {
        matmul_args piece = p->args;
        piece.row0 = r;
        piece.row1 = r + 256 < p->args.row1 ? r + 256 : p->args.row1;
        p->kernel(&piece);
    }
}

static double run(const kernels *table, quant_type type, matmul_args a) {
    pass p = {table->matmul[type], a};
    return fastest(run_in_pieces, &p);
}

static void bench(const kernels *table, quant_type type, void *weights, size_t size, int64_t k) {
    enum { TOKENS = 512 };
    const quant_info *info = quant_find(type);
    if (k % info->block_values != 0) {
        return;
    }
    size_t row_bytes = (size_t)k / info->block_values * info->block_bytes;
    act_kind act = table->act[type];
    size_t x_stride = act_row_bytes(act, k);
    fill(type, weights, size);
    char *x = allocate(x_stride * TOKENS);
    float *values = allocate((size_t)k * sizeof *values);
    for (int64_t t = 0; t < TOKENS; t++) {
        for (int64_t c = 0; c < k; c++) {
            values[c] = (float)((t * 31 + c * 17) % 255 - 127) / 64;
        }
        table->pack[act](values, k, x + (size_t)t * x_stride);
    }
    int64_t rows = (int64_t)(size / row_bytes), few_rows = (int64_t)((size_t)768 * 1024 / row_bytes), gemm_rows = 256;
    rows = rows > 16 ? rows / 16 * 16 : 16;
    few_rows = few_rows > 16 ? few_rows / 16 * 16 : 16;
    float *y = allocate((size_t)(rows * 4 + gemm_rows * TOKENS) * sizeof *y);
    matmul_args a = {.w = weights,
                     .row_bytes = row_bytes,
                     .k = k,
                     .row1 = rows,
                     .x = x,
                     .x_stride = x_stride,
                     .n_tokens = 1,
                     .y = y,
                     .y_stride = rows,
                     .scratch = allocate(table->matmul_scratch(k) + 64)};

    double bytes = (double)rows * (double)row_bytes, read = read_peak(weights, (size_t)bytes);
    double one = bytes / run(table, type, a) * 1e-9;
    a.n_tokens = 4;
    double four = bytes / run(table, type, a) * 1e-9;
    a.n_tokens = 1;
    a.row1 = few_rows;
    double cached = (double)few_rows * (double)row_bytes / run(table, type, a) * 1e-9;
    a.row1 = gemm_rows;
    a.n_tokens = TOKENS;
    a.y_stride = gemm_rows;
    double peak = act == ACT_F32 ? fma_peak(table->isa) : dot_peak(table->isa);
    double macs = (double)gemm_rows * (double)k * TOKENS / run(table, type, a) * 1e-9;
    printf("%-7s %6.1f GB/s %4.0f%%  x4 %6.1f  cached %6.1f   %7.1f GMAC/s %4.0f%%   read %.1f GB/s, peak %.0f GMAC/s\n",
           info->name, one, 100 * one / read, four, cached, macs, 100 * macs / peak, read, peak);
    fflush(stdout);
    free(x);
    free(values);
    free(y);
    free(a.scratch);
}

int main(int argc, char **argv) {
    lmi_isa isa = LMI_ISA_AUTO;
    for (int i = LMI_ISA_REF; argc > 1 && i <= LMI_ISA_NEON; i++) {
        isa = strcmp(argv[1], cpu_isa_name((lmi_isa)i)) == 0 ? (lmi_isa)i : isa;
    }
    lmi_error error;
    const kernels *table;
    if (kernels_get(isa, &table, &error) != LMI_OK) {
        fprintf(stderr, "%s\n", error.message);
        return 1;
    }
    const char *only = argc > 2 ? argv[2] : "all";
    size_t size = (size_t)(argc > 3 ? atoi(argv[3]) : 256) << 20;
    int64_t k = argc > 4 ? atoi(argv[4]) : 4096;
    void *weights = allocate(size);
    printf("%s, K = %lld, %zu MB of weights; one token from memory, four, one from cache; 512 tokens\n",
           cpu_isa_name(table->isa), (long long)k, size >> 20);
    for (uint32_t type = 0; type < QUANT_TYPE_END; type++) {
        if (quant_find(type) != NULL && (strcmp(only, "all") == 0 || strcmp(only, quant_find(type)->name) == 0)) {
            bench(table, (quant_type)type, weights, size, k);
        }
    }
    free(weights);
    return 0;
}
