/* attend_ring, attend_sinks and kv_store of every column against float64 with explicit distances (p, j), over what the bank holds.
 * Slots that no query may see are filled with NaN. */
#include "check.h"

#include "base/cpu.h"
#include "base/half.h"
#include "kernels/kernels.h"

enum { MAX_D = 1024, MAX_SLOTS = 1024, MAX_GROUP = 16 };

static const lmi_kv_type TYPES[] = {LMI_KV_F32, LMI_KV_F16, LMI_KV_Q8_0};
static const char *const TYPE_NAMES[] = {"f16", "q8_0", "f32"};

typedef struct fixture {
    lmi_kv_type type;
    int32_t d;
    int64_t n_slots;
    void *memory;
    kv_bank bank;
    double *keys, *values; /* [n_slots][d] as stored, read back by the rules of kv_tile.h */
} fixture;

/* Reads a slot back, by the picture in kv_tile.h. */
static void read_slot(const kv_bank *bank, int64_t slot, double *key, double *value) {
    const int64_t d = bank->head_dim, tile = slot / 16, lane = slot % 16;
    for (int64_t i = 0; i < d; i++) {
        if (bank->type == LMI_KV_F32) {
            key[i] = (double)((const float *)bank->keys)[(tile * d + i) * 16 + lane];
            value[i] = (double)((const float *)bank->values)[slot * d + i];
        } else if (bank->type == LMI_KV_F16) {
            key[i] = (double)f16_to_f32(((const uint16_t *)bank->keys)[(tile * d + i) * 16 + lane]);
            value[i] = (double)f16_to_f32(((const uint16_t *)bank->values)[slot * d + i]);
        } else {
            const double key_step = (double)f16_to_f32(bank->key_scales[(tile * (d / 32) + i / 32) * 16 + lane]);
            const double value_step = (double)f16_to_f32(bank->value_scales[slot * (d / 32) + i / 32]);
            key[i] =
                key_step * ((double)((const uint8_t *)bank->keys)[((tile * (d / 4) + i / 4) * 16 + lane) * 4 + i % 4] - 128);
            value[i] = value_step * (double)((const int8_t *)bank->values)[slot * d + i];
        }
    }
}

static fixture fixture_open(lmi_kv_type type, int32_t d, int64_t n_slots) {
    fixture f = {.type = type, .d = d, .n_slots = n_slots};
    const size_t bytes = kv_bank_bytes(type, d, n_slots);
    f.memory = aligned_alloc(64, bytes);
    memset(f.memory, 0xff, bytes); /* NaN as float, as half and as a scale */
    f.bank = kv_bank_at(f.memory, type, d, n_slots);
    f.keys = calloc((size_t)(n_slots * d), sizeof(double));
    f.values = calloc((size_t)(n_slots * d), sizeof(double));
    return f;
}

static void fixture_close(fixture *f) {
    free(f->memory);
    free(f->keys);
    free(f->values);
}

static void store_random(fixture *f, const kernels *k, int64_t slot, uint64_t *seed) {
    float key[MAX_D], value[MAX_D];
    for (int32_t i = 0; i < f->d; i++) {
        key[i] = (float)check_normal(seed);
        value[i] = (float)check_normal(seed);
    }
    k->kv_store[f->type](&f->bank, slot, key, value);
    double *keys = f->keys + slot * f->d, *values = f->values + slot * f->d;
    read_slot(&f->bank, slot, keys, values);
    kv_load(&f->bank, slot, key, value); /* exactly: a half times a byte is a float */
    for (int32_t i = 0; i < f->d; i++) {
        CHECK((double)key[i] == keys[i] && (double)value[i] == values[i], "%s slot %lld", TYPE_NAMES[f->type], (long long)slot);
    }
}

/* The token in a slot, or -1: by the words of kernels.h. */
static int64_t token_of(const attend_args *a, bool sinks, int64_t slot) {
    if (sinks) {
        return slot < a->n_slots_used ? slot : -1;
    }
    if (slot >= a->n_slots_used) {
        return -1;
    }
    int64_t j = a->newest;
    while (j >= 0 && j % a->n_slots_used != slot) {
        j--;
    }
    return j;
}

static bool sees(const attend_args *a, bool sinks, int64_t p, int64_t j) {
    if (j < 0) {
        return false;
    }
    return sinks ? p - j >= a->window : p - j >= 0 && p - j < a->window;
}

/* float64: output, log of the normaliser and, for the error that float arithmetic may make, the largest sum of |q_i k_i|, the
 * largest |v| and what capping and biasing may add to an average logit, in units of 2^-24; false if nothing is seen. */
static bool oracle(const fixture *f, const attend_args *a, bool sinks, const int64_t *tokens, int64_t row, const double *q,
                   double *out, double *log_sum, double *reach, double *height, double *shaping) {
    const int64_t d = f->d, p = a->first_pos + row / a->rows_per_token;
    double largest = -INFINITY, sum = 0;
    *reach = *height = *shaping = 0;
    static double logits[MAX_SLOTS], units[MAX_SLOTS];
    for (int64_t s = a->slot0; s < a->slot1; s++) {
        logits[s] = -INFINITY;
        if (sees(a, sinks, p, tokens[s])) {
            logits[s] = 0;
            double size = 0;
            for (int64_t i = 0; i < d; i++) {
                logits[s] += q[i] * f->keys[s * d + i];
                size += fabs(q[i] * f->keys[s * d + i]);
                *height = fmax(*height, fabs(f->values[s * d + i]));
            }
            *reach = fmax(*reach, size);
            units[s] = 0;
            if (a->softcap > 0) {
                logits[s] = (double)a->softcap * tanh(logits[s] / (double)a->softcap);
                units[s] += 8 * fabs(logits[s]);
            }
            if (a->slopes != NULL) {
                const double distance = (double)(sinks ? a->distance : p - tokens[s]);
                const double bias = (double)a->slopes[row % a->rows_per_token] * distance;
                logits[s] -= bias;
                units[s] += 2 * bias;
            }
            largest = logits[s] > largest ? logits[s] : largest;
        }
    }
    for (int64_t i = 0; i < d; i++) {
        out[i] = 0;
    }
    for (int64_t s = a->slot0; s < a->slot1; s++) {
        if (logits[s] > -INFINITY) {
            const double weight = exp(logits[s] - largest);
            sum += weight;
            *shaping += weight * units[s];
            for (int64_t i = 0; i < d; i++) {
                out[i] += weight * f->values[s * d + i];
            }
        }
    }
    for (int64_t i = 0; i < d; i++) {
        out[i] /= sum;
    }
    *shaping /= sum;
    *log_sum = largest + log(sum);
    return largest > -INFINITY;
}

/* The query that a Q8_0 bank meets: 16-bit levels per 32 values. */
static void round_like_kernel(const fixture *f, const float *q, double *rounded) {
    for (int32_t b = 0; b < f->d; b += 32) {
        const int32_t end = b + 32 < f->d ? b + 32 : f->d;
        float max = 0;
        for (int32_t i = b; i < end; i++) {
            max = fabsf(q[i]) > max ? fabsf(q[i]) : max;
        }
        for (int32_t i = b; i < end; i++) {
            rounded[i] = (double)q[i];
            if (f->type == LMI_KV_Q8_0) {
                rounded[i] = max > 0 ? rint((double)(q[i] * (32767.0f / max))) * (double)(max / 32767.0f) : 0;
            }
        }
    }
}

typedef struct errors {
    double output, log_sum; /* largest, as a share of what is allowed */
    double moved, of;       /* sums of squares: what rounding the query to 16 bits changes, and the output */
} errors;
static errors worst[LMI_ISA_NEON + 1][KV_TYPES];

static void *scratch_for(const kernels *k, int64_t n_rows, int64_t d) {
    const size_t bytes = (k->attend_scratch(n_rows, d) + 63) / 64 * 64;
    void *scratch = aligned_alloc(64, bytes + 64);
    memset(scratch, 0xff, bytes);
    return scratch;
}

/* One call of a kernel, compared row by row; then the same rows one at a time, and cut in two at a slot. */
static void compare(const kernels *k, const fixture *f, attend_args a, bool sinks, uint64_t *seed) {
    const int64_t n = a.n_rows, d = f->d;
    attend_kernel *attend = (sinks ? k->attend_sinks : k->attend_ring)[f->type];
    float *q = malloc((size_t)(n * d) * sizeof *q), *o = calloc((size_t)(n * d), sizeof *o),
          *alone = malloc((size_t)d * sizeof *alone);
    float *m = malloc((size_t)n * sizeof *m), *z = calloc((size_t)n, sizeof *z);
    int64_t tokens[MAX_SLOTS];
    for (int64_t s = 0; s < a.slot1; s++) {
        tokens[s] = token_of(&a, sinks, s);
    }
    for (int64_t i = 0; i < n * d; i++) {
        q[i] = (float)(check_normal(seed) * 2 / sqrt((double)d));
    }
    for (int64_t r = 0; r < n; r++) {
        m[r] = -INFINITY;
    }
    void *scratch = scratch_for(k, n, d);
    a.bank = &f->bank;
    a.q = q;
    a.m = m;
    a.z = z;
    a.o = o;
    a.scratch = scratch;
    attend(&a);
    errors *e = &worst[k->isa][f->type];
    for (int64_t r = 0; r < n; r++) {
        double given[MAX_D], rounded[MAX_D], expected[MAX_D], exact[MAX_D], log_sum, log_exact, reach, height, shaping;
        for (int64_t i = 0; i < d; i++) {
            given[i] = (double)q[r * d + i];
        }
        round_like_kernel(f, q + r * d, rounded);
        const bool any = oracle(f, &a, sinks, tokens, r, rounded, expected, &log_sum, &reach, &height, &shaping);
        oracle(f, &a, sinks, tokens, r, given, exact, &log_exact, &reach, &height, &shaping);
        if (!any) {
            CHECK(m[r] == -INFINITY && z[r] == 0, "empty row %d: m %g z %g", (int)r, (double)m[r], (double)z[r]);
            for (int64_t i = 0; i < d; i++) {
                CHECK(o[r * d + i] == 0, "empty row %d", (int)r);
            }
            continue;
        }
        double far = 0;
        for (int64_t i = 0; i < d; i++) {
            const double got = (double)o[r * d + i] / (double)z[r];
            far = fmax(far, got == got ? fabs(got - expected[i]) : INFINITY);
            e->moved += (exact[i] - expected[i]) * (exact[i] - expected[i]);
            e->of += exact[i] * exact[i];
        }
        const double sum_error = fabs((double)m[r] + log((double)z[r]) - log_sum);
        /* Units of 2^-24 of the sum of |q_i k_i|: the worst logit is off by 4 at most (a sum of d roundings would allow d), outputs, in
         * which many logits weigh, by 2 relative to the largest value, and all by a few roundings of their own. */
        const double unit = 0x1p-24, sum_allowed = unit * (4 * reach + 8 + shaping),
                     output_allowed = unit * (2 * reach + 8 + 2 * shaping) * height;
        e->output = fmax(e->output, far / output_allowed);
        e->log_sum = fmax(e->log_sum, (sum_error == sum_error ? sum_error : INFINITY) / sum_allowed);
        CHECK(far <= output_allowed, "%s %s %s%s%s d %d slots %d-%d row %d of %d: off by %g", cpu_isa_name(k->isa),
              TYPE_NAMES[f->type], sinks ? "sinks" : "ring", a.softcap > 0 ? " capped" : "", a.slopes != NULL ? " biased" : "",
              (int)d, (int)a.slot0, (int)a.slot1, (int)r, (int)n, far);
        CHECK(sum_error <= sum_allowed, "log of the sum off by %g", sum_error);

        /* What a row gets does not depend on its neighbours: bit for bit. */
        float m1 = -INFINITY, z1 = 0;
        attend_args one = a;
        memset(alone, 0, (size_t)d * sizeof *alone);
        one.q = q + r * d;
        one.n_rows = 1;
        one.rows_per_token = 1;
        one.slopes = a.slopes != NULL ? a.slopes + r % a.rows_per_token : NULL;
        one.first_pos = a.first_pos + r / a.rows_per_token;
        one.m = &m1;
        one.z = &z1;
        one.o = alone;
        attend(&one);
        CHECK(m1 == m[r] && z1 == z[r] && memcmp(alone, o + r * d, (size_t)d * sizeof *alone) == 0,
              "%s %s d %d: row %d of %d alone differs", cpu_isa_name(k->isa), TYPE_NAMES[f->type], (int)d, (int)r, (int)n);
    }

    /* Cut at any slot, the running state goes on. */
    const int64_t cut = a.slot0 + (int64_t)(check_random(seed) % (uint64_t)(a.slot1 - a.slot0 + 1));
    float *o2 = calloc((size_t)(n * d), sizeof *o2), *m2 = malloc((size_t)n * sizeof *m2), *z2 = calloc((size_t)n, sizeof *z2);
    for (int64_t r = 0; r < n; r++) {
        m2[r] = -INFINITY;
    }
    attend_args part = a;
    part.m = m2;
    part.z = z2;
    part.o = o2;
    part.slot1 = cut;
    attend(&part);
    for (int64_t r = 0; r < n; r++) { /* these queries need not be prepared again */
        part.again = part.again || m2[r] > -INFINITY;
    }
    part.then = f->bank.keys;
    part.slot0 = cut;
    part.slot1 = a.slot1;
    attend(&part);
    for (int64_t r = 0; r < n; r++) {
        CHECK(m2[r] == m[r], "cut at %d: m %g, not %g", (int)cut, (double)m2[r], (double)m[r]);
        CHECK(fabsf(z2[r] - z[r]) <= 1e-6f * z[r], "cut at %d: z %g, not %g", (int)cut, (double)z2[r], (double)z[r]);
        for (int64_t i = 0; i < d; i++) {
            CHECK(fabsf(o2[r * d + i] - o[r * d + i]) <= 4e-6f * z[r], "cut at %d, row %d", (int)cut, (int)r);
        }
    }
    free(o2);
    free(m2);
    free(z2);
    free(scratch);
    free(q);
    free(o);
    free(alone);
    free(m);
    free(z);
}

/* Plain, and capped, biased or both in turn. */
static void compare_forms(const kernels *k, const fixture *f, attend_args a, bool sinks, uint64_t *seed) {
    static int turn;
    float slopes[MAX_GROUP];
    for (int h = 0; h < MAX_GROUP; h++) { /* steep ones, and some that reach far */
        slopes[h] = exp2f(-0.5f * (float)(1 + (h * 5 + turn) % 20));
    }
    compare(k, f, a, sinks, seed);
    turn++;
    a.softcap = turn % 3 == 0 ? 0.0f : turn % 2 ? 3.0f : 50.0f;
    a.slopes = turn % 3 == 1 ? NULL : slopes;
    compare(k, f, a, sinks, seed);
}

/* A ring of n_used slots of which token `newest` was stored last. Far positions: newest is moved by whole turns of the ring. */
static void ring_case(const kernels *k, lmi_kv_type type, int32_t d, int64_t n_used, int64_t window, int64_t n_tokens,
                      int64_t group, int64_t newest, int64_t slot0, int64_t slot1, uint64_t *seed) {
    const int64_t n_slots = kv_round_slots(n_used);
    fixture f = fixture_open(type, d, n_slots);
    for (int64_t j = newest < n_used ? 0 : newest - n_used + 1; j <= newest; j++) {
        /* A token that no query of the call can see is left as NaN, whether it is stored or not. */
        if (j > newest - n_tokens - window) {
            store_random(&f, k, j % n_used, seed);
        }
    }
    const attend_args a = {.n_rows = n_tokens * group,
                           .rows_per_token = group,
                           .first_pos = newest - n_tokens + 1,
                           .newest = newest,
                           .n_slots_used = n_used,
                           .window = window,
                           .slot0 = slot0,
                           .slot1 = slot1 < 0 ? n_used : slot1};
    compare_forms(k, &f, a, false, seed);
    fixture_close(&f);
}

static void sink_case(const kernels *k, lmi_kv_type type, int32_t d, int64_t sinks, int64_t window, int64_t n_tokens,
                      int64_t group, int64_t first_pos, uint64_t *seed) {
    fixture f = fixture_open(type, d, kv_round_slots(sinks));
    const int64_t last = first_pos + n_tokens - 1;
    for (int64_t j = 0; j < sinks && last - j >= window; j++) {
        store_random(&f, k, j, seed);
    }
    const attend_args a = {.n_rows = n_tokens * group,
                           .rows_per_token = group,
                           .first_pos = first_pos,
                           .n_slots_used = sinks,
                           .window = window,
                           .distance = (first_pos + window) / 2 + 1,
                           .slot1 = sinks};
    compare_forms(k, &f, a, true, seed);
    fixture_close(&f);
}

static void check_cases(const kernels *k, lmi_kv_type type) {
    uint64_t seed = 7 + (uint64_t)type;
    const int32_t sizes[] = {2, 6, 16, 30, 40, 64, 80, 96, 100, 128, 256};
    for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++) {
        const int32_t d = type == LMI_KV_Q8_0 ? (sizes[i] + 31) / 32 * 32 : sizes[i];
        for (int64_t group = 1; group <= 9; group++) { /* decode, wrapped: the seam at every place of a tile */
            ring_case(k, type, d, 130 + group, 100, 1, group, 1000 + 3 * group, 0, -1, &seed);
        }
        ring_case(k, type, d, 96, 96, 1, 4, 40, 0, -1, &seed);       /* not full yet */
        ring_case(k, type, d, 96, 96, 1, 2, 0, 0, -1, &seed);        /* one token */
        ring_case(k, type, d, 300, 257, 1, 5, 777, 128, 256, &seed); /* a segment */
        ring_case(k, type, d, 300, 257, 1, 3, 777, 256, 300, &seed);
        ring_case(k, type, d, 163, 100, 64, 1, 500, 0, -1, &seed); /* prefill across the seam */
        ring_case(k, type, d, 163, 100, 17, 3, 64, 0, -1, &seed);
        ring_case(k, type, d, 50, 1, 50, 2, 1049, 0, -1, &seed); /* L = 1: each sees itself */
        ring_case(k, type, d, 20, 5, 16, 4, 15, 0, -1, &seed);
        ring_case(k, type, d, 50, 500, 8, 2, 321, 0, -1, &seed); /* a window wider than the ring: what it still holds */
        sink_case(k, type, d, 4, 10, 1, 4, 12, &seed);
        sink_case(k, type, d, 4, 10, 30, 2, 0, &seed);
        sink_case(k, type, d, 100, 10, 64, 1, 40, &seed);
        sink_case(k, type, d, 17, 1, 20, 9, 0, &seed);
        sink_case(k, type, d, 3, 50, 8, 2, 20, &seed); /* none is out of the window yet */
    }
    for (int64_t residue = 0; residue < 37; residue++) { /* wrap at every residue, chunk of 5 */
        ring_case(k, type, 32, 37, 33, 5, 2, 37 * 4 + residue, 0, -1, &seed);
        ring_case(k, type, 32, 37, 33, 5, 2, 37 * 200000000LL + residue, 0, -1, &seed);
    }
    for (int64_t window = 1; window < 40; window++) {
        ring_case(k, type, 32, 39 + 7, window, 8, 1, 300 + window, 0, -1, &seed);
    }
    const bool q8 = type == LMI_KV_Q8_0;
    for (int32_t d = q8 ? 32 : 8; d <= 1024; d += q8 ? 32 : d < 130 ? 2 : 62) {
        ring_case(k, type, d, 41, 37, 3, 2, 100, 0, -1, &seed);
        ring_case(k, type, d, 41, 37, 6, 3, 100, 0, -1, &seed); /* more rows than are read from the bank directly */
    }
    ring_case(k, type, 64, 640, 600, 40, 4, 5000, 0, -1, &seed);
    ring_case(k, type, 128, 700, 600, 64, 2, 5000, 0, -1, &seed);
    ring_case(k, type, 64, 256, 10, 100, 1, 1000000007, 0, -1, &seed);
}

/* Distances beyond 2^24 are rounded once, to the sinks beyond 2^31 as well. Keys of zeros: the bias is all there is. */
static void check_far_bias(const kernels *k) {
    const int64_t n = ((int64_t)1 << 24) + 5008, newest = 3 * n + 5000, seam = newest % n + 1;
    const size_t bytes = kv_bank_bytes(LMI_KV_F16, 2, n);
    char *memory = calloc(bytes + 64, 1);
    const kv_bank bank = kv_bank_at(memory + (64 - (uintptr_t)memory % 64) % 64, LMI_KV_F16, 2, n);
    const float slope = 0x1p-6f, q[2] = {1, 1};
    void *scratch = scratch_for(k, 1, 2);
    for (int part = 0; part < 3; part++) {
        float m = -INFINITY, z = 0, o[2] = {0};
        const attend_args a = {.bank = &bank,
                               .q = q,
                               .n_rows = 1,
                               .rows_per_token = 1,
                               .first_pos = part < 2 ? newest : 5000000000,
                               .newest = newest,
                               .n_slots_used = part < 2 ? n : 10,
                               .window = part < 2 ? n : 3000000001,
                               .distance = 2999999999,
                               .slot0 = part < 2 ? seam - 20 : 0,
                               .slot1 = part == 0   ? seam
                                        : part == 1 ? seam - 20 + 40
                                                    : 10,
                               .slopes = &slope,
                               .m = &m,
                               .z = &z,
                               .o = o,
                               .scratch = scratch};
        attend_args far = a;
        far.slot0 = part == 1 ? seam : a.slot0;
        (part < 2 ? k->attend_ring : k->attend_sinks)[LMI_KV_F16](&far);
        double sum = 0, top = -INFINITY;
        for (int64_t slot = far.slot0; slot < far.slot1; slot++) {
            const int64_t distance = part == 2 ? far.distance : slot < seam ? seam - 1 - slot : seam - 1 - slot + n;
            const double logit = -(double)slope * (double)(float)distance;
            sum = logit > top ? sum * exp(top - logit) + 1 : sum + exp(logit - top);
            top = fmax(top, logit);
        }
        CHECK((double)m == top && fabs((double)z - sum) <= 1e-6 * sum, "%s: m %.9g z %.9g, not %.9g %.9g", cpu_isa_name(k->isa),
              (double)m, (double)z, top, sum);
    }
    free(scratch);
    free(memory);
}

/* What a Q8_0 slot reads back is within half a step of what was stored, for every kind of row. */
static void check_q8_store(const kernels *k) {
    uint64_t seed = 3;
    fixture f = fixture_open(LMI_KV_Q8_0, 64, 16);
    const float sizes[] = {0.0f, 1e-12f, 1e-6f, 3e-4f, 1.0f, 300.0f, 8e6f};
    for (size_t c = 0; c < sizeof sizes / sizeof *sizes; c++) {
        float key[64], value[64];
        double got_key[64], got_value[64];
        for (int i = 0; i < 64; i++) {
            key[i] = sizes[c] * (float)(2 * check_uniform(&seed) - 1);
            value[i] = i == 40 ? -sizes[c] : sizes[c] * (float)(2 * check_uniform(&seed) - 1);
        }
        k->kv_store[LMI_KV_Q8_0](&f.bank, 5, key, value);
        read_slot(&f.bank, 5, got_key, got_value);
        /* Half a step of max/127, which is itself rounded to 11 bits, or to 2^-24 where f16 becomes subnormal. */
        const double step = (double)sizes[c] / 127, bound = fmax(0.5 * step * (1 + 0x1p-10), 0.5 * step + 0x1p-25 * 127);
        for (int i = 0; i < 64; i++) {
            CHECK(fabs(got_key[i] - (double)key[i]) <= bound, "%g stored as %g", (double)key[i], got_key[i]);
            CHECK(fabs(got_value[i] - (double)value[i]) <= bound, "%g stored as %g", (double)value[i], got_value[i]);
        }
    }
    float bad[64] = {0};
    double got[64], other[64];
    bad[3] = NAN;
    k->kv_store[LMI_KV_Q8_0](&f.bank, 0, bad, bad);
    read_slot(&f.bank, 0, got, other);
    CHECK(got[0] != got[0] && other[3] != other[3], "a NaN must show");
    CHECK(got[40] == 0 && other[40] == 0, "a NaN stays in its block of 32");
    bad[3] = 1e9f;
    k->kv_store[LMI_KV_Q8_0](&f.bank, 0, bad, bad);
    read_slot(&f.bank, 0, got, other);
    CHECK(got[3] != got[3], "a value beyond the scale must show");
    fixture_close(&f);
}

/* NaN and infinity in what is seen must show in the row that sees it, and in no other. */
static void check_nan_shows(const kernels *k, lmi_kv_type type) {
    uint64_t seed = 11;
    for (int where = 0; where < 4; where++) {
        fixture f = fixture_open(type, 64, 64);
        for (int64_t j = 0; j < 60; j++) {
            store_random(&f, k, j, &seed);
        }
        float key[64] = {0}, value[64] = {0};
        (where % 2 ? value : key)[10] = NAN;
        k->kv_store[type](&f.bank, 50, key, value);
        float q[20 * 64], o[20 * 64] = {0}, m[20], z[20] = {0};
        for (int i = 0; i < 20 * 64; i++) {
            q[i] = (float)check_normal(&seed);
        }
        for (int r = 0; r < 20; r++) {
            m[r] = -INFINITY;
        }
        void *scratch = scratch_for(k, 20, 64);
        const attend_args a = {.bank = &f.bank,
                               .softcap = where < 2 ? 0.0f : 30.0f,
                               .q = q,
                               .n_rows = 20,
                               .rows_per_token = 1,
                               .first_pos = 40,
                               .newest = 59,
                               .n_slots_used = 64,
                               .window = 64,
                               .slot1 = 64,
                               .m = m,
                               .z = z,
                               .o = o,
                               .scratch = scratch};
        k->attend_ring[type](&a);
        for (int r = 0; r < 20; r++) {
            const float seen = o[r * 64 + 10] / z[r];
            CHECK((seen != seen) == (r >= 10), "%s %s row %d: %g", cpu_isa_name(k->isa), TYPE_NAMES[type], r, (double)seen);
        }
        free(scratch);
        fixture_close(&f);
    }
}

int main(void) {
    const kernels *k, *last = NULL;
    for (int isa = LMI_ISA_REF; isa <= LMI_ISA_NEON; isa++) {
        if (kernels_get((lmi_isa)isa, &k, NULL) != LMI_OK) {
            continue;
        }
        if (last != NULL && last->attend_ring[LMI_KV_Q8_0] == k->attend_ring[LMI_KV_Q8_0]) {
            continue; /* AVX-VNNI has the attention of AVX2, AMX that of AVX-512 */
        }
        last = k;
        for (size_t t = 0; t < 3; t++) {
            check_cases(k, TYPES[t]);
            check_nan_shows(k, TYPES[t]);
            const errors *e = &worst[isa][TYPES[t]];
            const double budget = e->moved / e->of; /* 8 bits would give 1e-5 */
            CHECK(budget <= (TYPES[t] == LMI_KV_Q8_0 ? 1e-8 : 0.0), "rounding the query: NMSE %g", budget);
            fprintf(stderr,
                    "%s %s: largest errors, as a share of what is allowed: output %.2f, log of sum %.2f; NMSE by rounding the "
                    "query %.1e\n",
                    cpu_isa_name((lmi_isa)isa), TYPE_NAMES[TYPES[t]], e->output, e->log_sum, budget);
        }
        check_q8_store(k);
        check_far_bias(k);
    }
    return check_report();
}
