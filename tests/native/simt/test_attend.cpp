/* Both attention kernels on the emulator, step by step through texts that wrap their rings several times, against
 *   - float64 over the keys and values as stored, with explicit distances (p, j): section 1.2 of the definition in
 * lambda/window.h's words, a token sees itself and the window - 1 before it, and those of the first `sinks` tokens that are at
 * least `window` away;
 *   - with banks of float32 also over raw keys, turned by the difference of positions alone;
 *   - the CPU's kernels for the bytes in the banks, bit for bit.
 * Slots that hold no token are filled with NaN. Every launch is made twice and must give the same bits: the emulator changes
 * the order of blocks. */
#include <vector>

#include "../check.h"
#include "base/half.h"
#include "cuda/launch.h"
#include "kernels/kernels.h"
#include "lambda/rope.h"
#include "simt/device_simt.h"

static const double TWO_PI = 6.283185307179586476925;

/* ThreadSanitizer takes its time; it looks at barriers, not at numbers. */
#ifdef __SANITIZE_THREAD__
static const int64_t SHARE = 4;
#else
static const int64_t SHARE = 1;
#endif

/* How far outputs may be off, of the largest of their head. */
static const double ROWWISE_ERROR = 1e-5, TILED_ERROR = 5e-4, TILED_Q8_0_ERROR = 8e-4;

typedef struct shape {
    const char *name;
    lmi_kv_type type;
    int32_t d, n_kv_heads, group, n_rot; /* n_rot 0: no rotation */
    rope_pairing pairing;
    int64_t window, sinks, chunk;
    bool contiguous;
    int32_t head_norm;
    float softcap;
    bool slopes, sink_logits;
    float magnitude, spread; /* of cos and sin; of logits, about */
    int64_t start;
    int64_t length;
    int32_t steps[8]; /* tokens of launches, in turn: more than CUDA_ROWWISE_TOKENS, or negative: by the tiled kernel */
} shape;

typedef std::vector<float> floats;
typedef std::vector<double> doubles;

typedef struct worst_error {
    double rowwise, tiled, defined;
} worst_error;
static worst_error worst;

static const char *type_name(lmi_kv_type type) { return type == LMI_KV_F16 ? "f16" : type == LMI_KV_F32 ? "f32" : "q8_0"; }

template <typename T> static T *on_device(device_stream *stream, uint64_t n) {
    void *memory = NULL;
    lmi_error error = {};
    CHECK(device_alloc(stream, n * sizeof(T), &memory, &error) == LMI_OK, "no memory");
    return (T *)memory;
}

template <typename T> static T *uploaded(device_stream *stream, const std::vector<T> &values) {
    T *memory = on_device<T>(stream, values.size());
    device_upload(stream, memory, values.data(), values.size() * sizeof(T));
    return memory;
}

static floats random_row(int64_t n, double size, uint64_t *seed) {
    floats row((size_t)n);
    for (float &x : row) {
        x = (float)(size * check_normal(seed));
    }
    return row;
}

/* Reads a slot back, by the picture in kv_tile.h. */
static void read_slot(const kv_bank &bank, int64_t slot, double *key, double *value) {
    const int64_t d = bank.head_dim, tile = slot / 16, lane = slot % 16;
    for (int64_t i = 0; i < d; i++) {
        if (bank.type == LMI_KV_F32) {
            key[i] = ((const float *)bank.keys)[(tile * d + i) * 16 + lane];
            value[i] = ((const float *)bank.values)[slot * d + i];
        } else if (bank.type == LMI_KV_F16) {
            key[i] = f16_to_f32(((const uint16_t *)bank.keys)[(tile * d + i) * 16 + lane]);
            value[i] = f16_to_f32(((const uint16_t *)bank.values)[slot * d + i]);
        } else {
            const double key_step = f16_to_f32(bank.key_scales[(tile * (d / 32) + i / 32) * 16 + lane]);
            const double value_step = f16_to_f32(bank.value_scales[slot * (d / 32) + i / 32]);
            key[i] = key_step * (((const uint8_t *)bank.keys)[((tile * (d / 4) + i / 4) * 16 + lane) * 4 + i % 4] - 128);
            value[i] = value_step * ((const int8_t *)bank.values)[slot * d + i];
        }
    }
}

/* ---- a session: the device's side, and the CPU's ------------------------------------------------------------------------ */

typedef struct session {
    const shape *s;
    const kernels *cpu;
    device_stream *stream;
    int64_t n_heads, capacity, index;
    rope_table table;
    cuda_attend args;
    cuda_control *control;
    float *q, *k, *v, *turn, *turn_sink, *turn_sink_key;
    floats q_norm, k_norm, slopes, sink_logits;
    size_t ring_bytes, head_bytes;
    std::vector<uint8_t> shadow, read_back; /* the banks as the CPU writes them; as the device has them */
    uint8_t *banks;
    /* of every token and kv head: as stored in the ring, in the sinks (the first `sinks` tokens); raw keys after their norm */
    doubles ring_keys, ring_values, sink_keys, sink_values, raw_keys;
    uint64_t seed;
} session;

static kv_bank shadow_bank(session *x, int64_t h, bool sinks) {
    const shape *s = x->s;
    uint8_t *at = x->shadow.data() + (size_t)h * x->head_bytes + (sinks ? x->ring_bytes : 0);
    return kv_bank_at(at, s->type, s->d, kv_round_slots(sinks ? s->sinks : x->capacity));
}

static void open_session(session *x, const shape *s, device_stream *stream, uint64_t seed) {
    x->s = s;
    x->stream = stream;
    x->seed = seed;
    x->index = 0;
    lmi_error error = {};
    CHECK(kernels_get(LMI_ISA_REF, &x->cpu, &error) == LMI_OK, "no kernels");
    x->n_heads = (int64_t)s->n_kv_heads * s->group;
    x->capacity = s->window - 1 + s->chunk;
    rope_params params = {};
    params.n_rot = s->n_rot > 0 ? s->n_rot : 2;
    params.theta = 10000;
    params.attention_factor = s->magnitude > 0 ? (double)s->magnitude : 1.0;
    CHECK(rope_table_init(&x->table, &params, &error) == LMI_OK, "no table");
    const size_t width = (size_t)(x->n_heads * s->d), kv_width = (size_t)(s->n_kv_heads * s->d);
    const size_t chunk = (size_t)s->chunk;
    for (int which = 0; which < 2; which++) {
        floats &norm = which ? x->k_norm : x->q_norm;
        norm = random_row(s->head_norm == 2 ? (int64_t)(which ? kv_width : width) : s->d, 0.3, &x->seed);
        for (float &w : norm) {
            w += 1.0f;
        }
    }
    x->slopes = random_row(x->n_heads, 0.0, &x->seed);
    x->sink_logits = random_row(x->n_heads, 3.0, &x->seed);
    for (int64_t h = 0; h < x->n_heads; h++) {
        x->slopes[(size_t)h] = exp2f(-8.0f * (float)(h + 1) / (float)x->n_heads);
    }
    x->ring_bytes = kv_bank_bytes(s->type, s->d, kv_round_slots(x->capacity));
    x->head_bytes = x->ring_bytes + kv_bank_bytes(s->type, s->d, kv_round_slots(s->sinks));
    x->shadow.assign(x->head_bytes * (size_t)s->n_kv_heads, 0xff); /* NaN as float, as half and as a scale */
    x->read_back = x->shadow;
    x->banks = uploaded(stream, x->shadow);
    x->control = on_device<cuda_control>(stream, 1);
    x->q = on_device<float>(stream, chunk * width);
    x->k = on_device<float>(stream, chunk * kv_width);
    x->v = on_device<float>(stream, chunk * kv_width);
    x->turn = on_device<float>(stream, chunk * (size_t)s->n_rot + 1);
    x->turn_sink = on_device<float>(stream, chunk * (size_t)s->n_rot + 1);
    x->turn_sink_key = on_device<float>(stream, chunk * (size_t)s->n_rot + 1);
    const int64_t n_segments = cuda_attend_segments(s->sinks, x->capacity);
    cuda_attend a = {};
    a.control = x->control;
    a.n_heads = (int32_t)x->n_heads;
    a.n_kv_heads = s->n_kv_heads;
    a.head_dim = s->d;
    a.n_rot = s->n_rot;
    a.pairing = s->pairing;
    a.q = x->q;
    a.k = x->k;
    a.v = x->v;
    a.a = on_device<float>(stream, chunk * width);
    a.head_norm = s->head_norm;
    a.q_norm = s->head_norm != 0 ? uploaded(stream, x->q_norm) : NULL;
    a.k_norm = s->head_norm != 0 ? uploaded(stream, x->k_norm) : NULL;
    a.eps = 1e-5f;
    a.scale = s->spread / sqrtf((float)s->d);
    a.softcap = s->softcap;
    a.slopes = s->slopes ? uploaded(stream, x->slopes) : NULL;
    a.sink_logits = s->sink_logits ? uploaded(stream, x->sink_logits) : NULL;
    a.turn = s->n_rot > 0 ? x->turn : NULL;
    a.turn_sink = s->n_rot > 0 ? x->turn_sink : NULL;
    a.turn_sink_key = s->n_rot > 0 ? x->turn_sink_key : NULL;
    a.contiguous = s->contiguous;
    a.kv_type = s->type;
    a.window = s->window;
    a.sinks = s->sinks;
    a.capacity = x->capacity;
    a.ring = x->banks;
    a.sinks_bank = x->banks + x->ring_bytes;
    a.head_stride = x->head_bytes;
    a.parts = on_device<float>(stream, (size_t)(CUDA_ROWWISE_TOKENS * s->n_kv_heads * n_segments * s->group * (2 + s->d)));
    a.arrived = on_device<uint32_t>(stream, (size_t)(CUDA_ROWWISE_TOKENS * s->n_kv_heads));
    a.work = on_device<uint8_t>(stream, cuda_attend_tiled_bytes(s->chunk, x->n_heads, s->d, false));
    x->args = a;
}

static void close_session(session *x) {
    void *all[] = {x->banks,
                   x->control,
                   x->q,
                   x->k,
                   x->v,
                   x->turn,
                   x->turn_sink,
                   x->turn_sink_key,
                   x->args.a,
                   (void *)x->args.q_norm,
                   (void *)x->args.k_norm,
                   (void *)x->args.slopes,
                   (void *)x->args.sink_logits,
                   x->args.parts,
                   x->args.arrived,
                   x->args.work};
    for (void *memory : all) {
        device_free(x->stream, memory);
    }
}

/* The rows of turns for tokens index .. index + n. */
static void fill_turns(session *x, int64_t n, floats &turn, floats &turn_sink, floats &turn_sink_key) {
    const shape *s = x->s;
    const size_t width = (size_t)s->n_rot;
    const int64_t furthest = s->window + s->sinks - 1;
    turn.assign((size_t)n * width, 0);
    turn_sink = turn_sink_key = turn;
    for (int64_t t = 0; t < n && s->n_rot > 0; t++) {
        const int64_t index = x->index + t, sink_query = s->contiguous ? (index < furthest ? index : furthest) : s->window;
        rope_row(&x->table, s->start + index, turn.data() + (size_t)t * width);
        rope_row(&x->table, sink_query, turn_sink.data() + (size_t)t * width);
        rope_row(&x->table, s->contiguous && index < s->sinks ? index : 0, turn_sink_key.data() + (size_t)t * width);
    }
}

/* ---- what must come out ---------------------------------------------------------------------------------------------------
 */

/* The CPU's way: norm of heads, as floats. */
static floats normed_heads(const session *x, const floats &row, const floats &norm, int64_t n_heads) {
    const shape *s = x->s;
    floats out = row;
    if (s->head_norm == 1) {
        for (int64_t h = 0; h < n_heads; h++) {
            x->cpu->rms_norm(row.data() + h * s->d, norm.data(), s->d, x->args.eps, out.data() + h * s->d);
        }
    } else if (s->head_norm == 2) {
        x->cpu->rms_norm(row.data(), norm.data(), n_heads * s->d, x->args.eps, out.data());
    }
    return out;
}

static void rotate(const session *x, floats &heads, const float *turn) {
    if (x->s->n_rot > 0) {
        x->cpu->rope(heads.data(), (int64_t)heads.size() / x->s->d, x->s->d, x->s->n_rot, turn, x->s->pairing);
    }
}

/* A token's keys and values, by the CPU, and what it then holds. */
static void store_on_cpu(session *x, int64_t index, const floats &keys, const floats &values, const float *turn,
                         const float *turn_sink_key) {
    const shape *s = x->s;
    const int64_t d = s->d;
    const floats raw = normed_heads(x, keys, x->k_norm, s->n_kv_heads);
    floats near = raw, far = raw;
    rotate(x, near, turn);
    rotate(x, far, turn_sink_key);
    for (int64_t h = 0; h < s->n_kv_heads; h++) {
        doubles key((size_t)d), value((size_t)d);
        const kv_bank ring = shadow_bank(x, h, false);
        x->cpu->kv_store[s->type](&ring, index % x->capacity, near.data() + h * d, values.data() + h * d);
        read_slot(ring, index % x->capacity, key.data(), value.data());
        x->ring_keys.insert(x->ring_keys.end(), key.begin(), key.end());
        x->ring_values.insert(x->ring_values.end(), value.begin(), value.end());
        x->raw_keys.insert(x->raw_keys.end(), raw.begin() + h * d, raw.begin() + (h + 1) * d);
        if (index < s->sinks) {
            const kv_bank sinks = shadow_bank(x, h, true);
            x->cpu->kv_store[s->type](&sinks, index, far.data() + h * d, values.data() + h * d);
            read_slot(sinks, index, key.data(), value.data());
            x->sink_keys.insert(x->sink_keys.end(), key.begin(), key.end());
            x->sink_values.insert(x->sink_values.end(), value.begin(), value.end());
        }
    }
}

/* 16-bit levels per 32 values, which is what a query is when the row-wise kernels meet Q8_0 banks. */
static void round_levels(const float *q, int64_t d, double *rounded) {
    for (int64_t b = 0; b < d; b += 32) {
        float max = 0;
        for (int64_t i = b; i < b + 32; i++) {
            max = fmaxf(max, fabsf(q[i]));
        }
        for (int64_t i = b; i < b + 32; i++) {
            rounded[i] = max > 0 ? rint((double)(q[i] * (32767.0f / max))) * (double)(max / 32767.0f) : 0;
        }
    }
}

/* q turned by `distance` positions, times k: the pairs by themselves. */
static double turned_product(const session *x, const double *q, const double *k, int64_t distance) {
    const shape *s = x->s;
    double sum = 0;
    for (int i = s->n_rot; i < s->d; i++) {
        sum += q[i] * k[i];
    }
    for (int i = 0; i < s->n_rot / 2; i++) {
        const int first = s->pairing == ROPE_ADJACENT ? 2 * i : i,
                  second = s->pairing == ROPE_ADJACENT ? 2 * i + 1 : i + s->n_rot / 2;
        const double angle = TWO_PI * ldexp((double)((uint64_t)distance * x->table.turns[i]), -64), c = cos(angle),
                     sine = sin(angle);
        const double m2 = (double)x->table.magnitude * (double)x->table.magnitude;
        sum += m2 * ((q[first] * c - q[second] * sine) * k[first] + (q[first] * sine + q[second] * c) * k[second]);
    }
    return sum;
}

/* One head of one token: out [d]. `defined`: from raw keys, by distances alone. */
static void attend_in_double(const session *x, int64_t p, int64_t head, const double *near, const double *far,
                             const double *raw, bool defined, double *out) {
    const shape *s = x->s;
    const int64_t d = s->d, h = head / s->group;
    doubles logits, weights;
    std::vector<const double *> values;
    for (int64_t j = 0; j <= p; j++) {
        const int64_t n = p - j, at = (j * s->n_kv_heads + h) * d;
        const bool in_window = n < s->window;
        if (!in_window && j >= s->sinks) {
            continue;
        }
        const double *key = in_window ? &x->ring_keys[(size_t)at] : &x->sink_keys[(size_t)at], *q = in_window ? near : far;
        double logit = 0;
        if (defined) {
            const int64_t capped = s->contiguous ? s->window + s->sinks - 1 - j : s->window;
            logit = turned_product(x, raw, &x->raw_keys[(size_t)at], in_window || n < capped ? n : capped);
        } else {
            for (int64_t i = 0; i < d; i++) {
                logit += q[i] * key[i];
            }
        }
        if (s->softcap > 0) {
            logit = (double)s->softcap * tanh(logit / (double)s->softcap);
        }
        if (s->slopes) {
            logit -= (double)x->slopes[(size_t)head] * (double)(in_window ? n : s->window);
        }
        logits.push_back(logit);
        values.push_back(in_window ? &x->ring_values[(size_t)at] : &x->sink_values[(size_t)at]);
    }
    double largest = s->sink_logits ? (double)x->sink_logits[(size_t)head] : -INFINITY;
    for (double logit : logits) {
        largest = fmax(largest, logit);
    }
    double sum = s->sink_logits ? exp((double)x->sink_logits[(size_t)head] - largest) : 0;
    for (int64_t i = 0; i < d; i++) {
        out[i] = 0;
    }
    for (size_t j = 0; j < logits.size(); j++) {
        const double weight = exp(logits[j] - largest);
        sum += weight;
        for (int64_t i = 0; i < d; i++) {
            out[i] += weight * values[j][i];
        }
    }
    for (int64_t i = 0; i < d; i++) {
        out[i] /= sum;
    }
}

static double distance_of(const float *got, const doubles &expected) {
    double far = 0, size = 0;
    for (size_t i = 0; i < expected.size(); i++) {
        const double off = fabs((double)got[i] - expected[i]);
        far = off == off ? fmax(far, off) : INFINITY;
        size = fmax(size, fabs(expected[i]));
    }
    return far / size;
}

static void compare_token(session *x, int64_t p, const floats &queries, const float *turn, const float *turn_sink,
                          const float *got, bool tiled) {
    const shape *s = x->s;
    const int64_t d = s->d;
    floats raw = normed_heads(x, queries, x->q_norm, x->n_heads);
    x->cpu->scale(raw.data(), x->args.scale, (int64_t)raw.size());
    floats near = raw, far = raw;
    rotate(x, near, turn);
    rotate(x, far, turn_sink);
    for (int64_t head = 0; head < x->n_heads; head++) {
        doubles near_head(near.begin() + head * d, near.begin() + (head + 1) * d),
            far_head(far.begin() + head * d, far.begin() + (head + 1) * d);
        const doubles raw_head(raw.begin() + head * d, raw.begin() + (head + 1) * d);
        if (s->type == LMI_KV_Q8_0 && !tiled) {
            round_levels(near.data() + head * d, d, near_head.data());
            round_levels(far.data() + head * d, d, far_head.data());
        }
        doubles expected((size_t)d);
        attend_in_double(x, p, head, near_head.data(), far_head.data(), raw_head.data(), false, expected.data());
        const double off = distance_of(got + head * d, expected);
        const bool rounds = tiled && s->type != LMI_KV_F32 && d % 8 == 0;
        const double allowed = !rounds ? ROWWISE_ERROR : s->type == LMI_KV_Q8_0 ? TILED_Q8_0_ERROR : TILED_ERROR;
        double &most = rounds ? worst.tiled : worst.rowwise;
        most = fmax(most, off);
        CHECK(off <= allowed, "%s %s: token %lld, head %lld off by %g%s", s->name, type_name(s->type), (long long)p,
              (long long)head, off, tiled ? ", tiled" : "");
        if (s->type == LMI_KV_F32) {
            attend_in_double(x, p, head, NULL, NULL, raw_head.data(), true, expected.data());
            const double off_definition = distance_of(got + head * d, expected);
            worst.defined = fmax(worst.defined, off_definition);
            CHECK(off_definition <= ROWWISE_ERROR, "%s: token %lld, head %lld off the definition by %g", s->name, (long long)p,
                  (long long)head, off_definition);
        }
    }
}

/* ---- a text -----------------------------------------------------------------------------------------------------------------
 */

static void check_banks(session *x, const char *when) {
    device_download(x->stream, x->read_back.data(), x->banks, x->read_back.size());
    lmi_error error = {};
    CHECK(device_check(x->stream, &error) == LMI_OK, "device");
    size_t at = 0;
    while (at < x->shadow.size() && x->shadow[at] == x->read_back[at]) {
        at++;
    }
    CHECK(at == x->shadow.size(), "%s %s d %d: %s index %lld byte %zu of the banks is %d, not %d", x->s->name,
          type_name(x->s->type), (int)x->s->d, when, (long long)x->index, at, at < x->shadow.size() ? x->read_back[at] : 0,
          at < x->shadow.size() ? x->shadow[at] : 0);
}

/* Numbers at which roundings turn, overflow and vanish; the first of each head is no number. */
static void make_hostile(floats &row, int64_t head_dim, uint64_t *seed) {
    static const float numbers[] = {0.0f,   -0.0f,   INFINITY, -INFINITY, 65504.0f, 65519.9f, 65520.0f, 1e9f,   -3e38f,
                                    8.3e6f, 8.33e6f, 1e-40f,   6e-8f,     2.9e-8f,  6.1e-5f,  0.5f,     127.0f, 63.5f};
    for (size_t i = 0; i < row.size(); i++) {
        const size_t block = i / 32 % 4; /* blocks of ties, of tiny ones, of zeros, and a mixture */
        const uint64_t random = check_random(seed);
        row[i] = block == 0   ? numbers[random % (sizeof numbers / sizeof *numbers)]
                 : block == 1 ? (i % 32 == 0 ? 127.0f : (float)((int)(random % 253) - 126) + 0.5f)
                 : block == 2 ? (float)(random % 7) * 1e-9f
                              : 0.0f;
        row[i] = (int64_t)i % head_dim == 0 ? NAN : row[i];
    }
}

static void step_text(session *x, int64_t n, bool tiled, bool hostile) {
    const shape *s = x->s;
    const size_t width = (size_t)(x->n_heads * s->d), kv_width = (size_t)(s->n_kv_heads * s->d), turn_width = (size_t)s->n_rot;
    const floats q = random_row(n * (int64_t)width, 1.0, &x->seed);
    floats k = random_row(n * (int64_t)kv_width, 1.0, &x->seed), v = random_row(n * (int64_t)kv_width, 1.0, &x->seed);
    if (hostile) {
        make_hostile(k, s->d, &x->seed);
        make_hostile(v, s->d, &x->seed);
    }
    floats turn, turn_sink, turn_sink_key;
    fill_turns(x, n, turn, turn_sink, turn_sink_key);
    const cuda_control control = {x->index, s->start, 0};
    device_upload(x->stream, x->control, &control, sizeof control);
    device_upload(x->stream, x->q, q.data(), q.size() * sizeof(float));
    device_upload(x->stream, x->k, k.data(), k.size() * sizeof(float));
    device_upload(x->stream, x->v, v.data(), v.size() * sizeof(float));
    const size_t sink_rows = s->contiguous ? turn_sink.size() : turn_width;
    device_upload(x->stream, x->turn, turn.data(), turn.size() * sizeof(float));
    device_upload(x->stream, x->turn_sink, turn_sink.data(), sink_rows * sizeof(float));
    device_upload(x->stream, x->turn_sink_key, turn_sink_key.data(), sink_rows * sizeof(float));
    floats got[2];
    x->args.n_tokens = (int32_t)n;
    for (floats &out : got) {
        (tiled ? cuda_launch_attend_tiled : cuda_launch_attend_rowwise)(&x->args, x->stream);
        out.assign((size_t)n * width, NAN);
        device_download(x->stream, out.data(), x->args.a, out.size() * sizeof(float));
        lmi_error error = {};
        CHECK(device_check(x->stream, &error) == LMI_OK, "device");
    }
    CHECK(hostile || memcmp(got[0].data(), got[1].data(), got[0].size() * sizeof(float)) == 0,
          "%s: not the same bits again at %lld", s->name, (long long)x->index);
    for (int64_t t = 0; t < n; t++) {
        const floats keys(k.begin() + t * (int64_t)kv_width, k.begin() + (t + 1) * (int64_t)kv_width);
        const floats values(v.begin() + t * (int64_t)kv_width, v.begin() + (t + 1) * (int64_t)kv_width);
        store_on_cpu(x, x->index + t, keys, values, turn.data() + (size_t)t * turn_width,
                     turn_sink_key.data() + (size_t)t * turn_width);
    }
    check_banks(x, tiled ? "after the tiled kernel at" : "after the row-wise kernel at");
    for (size_t i = 0; hostile && i < got[0].size(); i += (size_t)s->d) {
        CHECK(got[0][i] != got[0][i], "%s: a value that is no number does not show", s->name);
    }
    for (int64_t t = 0; t < n && !hostile; t++) {
        const floats queries(q.begin() + t * (int64_t)width, q.begin() + (t + 1) * (int64_t)width);
        compare_token(x, x->index + t, queries, turn.data() + (size_t)t * turn_width, turn_sink.data() + (size_t)t * turn_width,
                      got[0].data() + (size_t)t * width, tiled);
    }
    std::vector<uint32_t> arrived((size_t)(CUDA_ROWWISE_TOKENS * s->n_kv_heads), 1);
    device_download(x->stream, arrived.data(), x->args.arrived, arrived.size() * sizeof(uint32_t));
    for (uint32_t count : arrived) {
        CHECK(count == 0, "%s: a counter is left at %u", s->name, count);
    }
    x->index += n;
}

static void run_text(const shape *s, device_stream *stream, uint64_t seed) {
    session x;
    open_session(&x, s, stream, seed);
    for (int i = 0; x.index < s->length / SHARE; i++) {
        const int32_t step = s->steps[i % 8] != 0 ? s->steps[i % 8] : s->steps[0];
        const int64_t n = step < 0 ? -step : step;
        step_text(&x, n, step < 0 || n > CUDA_ROWWISE_TOKENS, false);
    }
    close_session(&x);
}

/* clang-format off */
static const shape SHAPES[] = {
    /* name, type, d, kv heads, group, n_rot, pairing, window, sinks, chunk,
     * contiguous, head norm, softcap, slopes, sink logits, magnitude, spread, start, length, steps */
    {"tiny ring",           LMI_KV_F16,   32, 2, 2,  32, ROPE_ADJACENT,   5,  2,  20,
     false, 0,  0, false, false, 1,    1, 0,          200, {20, 1, 1, 1, 3, 8, 9, 1}},
    {"tiny ring, f32",      LMI_KV_F32,   32, 2, 2,  32, ROPE_ADJACENT,   5,  2,   9,
     false, 0,  0, false, false, 1,    1, 0,          120, {1, 1, 1, 1, 1, 1, 1, 9}},
    {"contiguous, f32",     LMI_KV_F32,   32, 1, 4,  16, ROPE_HALVES,    70, 16,  12,
     true,  0,  0, false, true,  1.2f, 2, 1000000000, 230, {12, 1, 5, 8, 12, 12, 12, 12}},
    {"contiguous",          LMI_KV_F16,   64, 1, 4,  64, ROPE_HALVES,    70, 16, 100,
     true,  1,  0, false, true,  1,    2, 0,          420, {100, 1, 5, 1, 70, 8, 1, 33}},
    {"no window yet",       LMI_KV_F16,  128, 1, 8, 128, ROPE_HALVES,   300,  3,  64,
     false, 0,  0, false, false, 1,    2, 0,          140, {-2, 1, 60, 1, -8, 4, 0, 0}},
    {"several segments",    LMI_KV_F16,  128, 1, 2, 128, ROPE_HALVES,   300,  3, 300,
     false, 1,  0, false, false, 1,    2, 1000000000, 1300, {300, 1, 299, 1, 7, 64, 1, 1}},
    {"eighty, ALiBi",       LMI_KV_F16,   80, 1, 1,   0, ROPE_ADJACENT,  70, 16,  90,
     false, 0,  0, true,  false, 1,    2, 0,          330, {90, 1, 8, 65, 1, 1, 80, 1}},
    {"capped",              LMI_KV_F16,   96, 1, 3,  48, ROPE_ADJACENT,  70,  1,  90,
     false, 2,  5, false, false, 1,    4, 0,          330, {90, 1, 8, 65, 1, 1, 80, 1}},
    {"odd pieces",          LMI_KV_F16,   36, 1, 3,  12, ROPE_ADJACENT,  40,  3,  20,
     false, 0, 20, true,  true,  1,    2, 0,          130, {20, 1, 8, 15, 1, 1, 12, 1}},
    {"wide head",           LMI_KV_F16,  256, 1, 2, 256, ROPE_HALVES,    70,  4,  70,
     false, 1, 50, false, false, 1,    2, 0,          230, {70, 1, 3, 64, 1, 9, 0, 0}},
    {"many heads",          LMI_KV_F16,   64, 1, 19, 64, ROPE_HALVES,    70,  4,  30,
     false, 0,  0, true,  true,  1,    2, 0,          150, {30, 1, 3, 12, 1, 1, 25, 1}},
    {"bytes",               LMI_KV_Q8_0,  64, 2, 2,  64, ROPE_HALVES,    70, 16, 100,
     false, 1,  0, false, false, 1,    2, 0,          420, {100, 1, 5, 1, 70, 8, 1, 33}},
    {"bytes, contiguous",   LMI_KV_Q8_0, 128, 1, 8, 128, ROPE_ADJACENT, 300,  5,  64,
     true,  0, 30, true,  true,  1,    2, 1000000000, 420, {64, 1, 64, 1, 7, 64, 1, 1}},
    {"bytes, wide",         LMI_KV_Q8_0, 256, 1, 1, 128, ROPE_HALVES,    30,  2,  30,
     false, 0,  0, false, false, 1,    2, 0,          130, {30, 1, 3, 25, 1, 9, 0, 0}},
    {"bytes, narrow",       LMI_KV_Q8_0,  32, 1, 4,  32, ROPE_HALVES,    50,  4,  40,
     false, 0,  0, false, false, 1,    2, 0,          160, {40, 1, 3, 25, 1, 9, 0, 0}},
    {"bytes, odd width",    LMI_KV_Q8_0, 160, 1, 2, 160, ROPE_HALVES,    50,  4,  40,
     false, 2,  0, true,  false, 1,    2, 0,          140, {40, 1, 3, 25, 1, 9, 0, 0}},
    {"odd width",           LMI_KV_F16,  104, 1, 5,  64, ROPE_HALVES,    50,  4,  40,
     false, 0,  0, false, true,  1,    2, 0,          140, {40, 1, 3, 25, 1, 9, 0, 0}},
    {"many sinks",          LMI_KV_F16,   64, 1, 2,  64, ROPE_HALVES,    40, 300, 128,
     true, 0,  0, false, false, 1,    2, 0,          520, {128, 128, 128, 1, 2, 100, 1, 5}},
    {"no sinks",            LMI_KV_F16,   64, 1, 2,  64, ROPE_HALVES,     1,  0,  10,
     false, 0,  0, false, false, 1,    2, 0,           40, {10, 1, 1, 2, 10, 1, 0, 0}},
    {"one by one",          LMI_KV_F16,   64, 1, 4,  64, ROPE_HALVES,    70, 16,   8,
     false, 0,  0, false, false, 1,    2, 0,          260, {1, 1, 1, 1, 1, 1, 1, 8}},
};
/* clang-format on */

/* What is stored of numbers that are hard to store, by every way there is. */
static void run_hostile(device_stream *stream) {
    const lmi_kv_type types[] = {LMI_KV_F16, LMI_KV_Q8_0, LMI_KV_F32};
    for (lmi_kv_type type : types) {
        for (int32_t head_norm = 0; head_norm < 3; head_norm++) {
            shape s = SHAPES[0];
            s.name = "hostile";
            s.type = type;
            s.d = 128;
            s.n_rot = head_norm == 2 ? 32 : 0; /* what turns mixes its neighbours */
            s.head_norm = head_norm;
            session x;
            open_session(&x, &s, stream, 77);
            step_text(&x, 1, false, true);
            step_text(&x, 3, false, true);
            step_text(&x, 12, true, true);
            close_session(&x);
        }
    }
}

/* A device with little shared memory: heads of 256 go row by row. */
static void run_small_device(void) {
    lmi_error error = {};
    const uint64_t before = simt_device_now()->shared_bytes;
    simt_device_now()->shared_bytes = 64 * 1024;
    device_stream *stream = NULL;
    CHECK(device_stream_open(0, &stream, &error) == LMI_OK, "no stream");
    shape s = SHAPES[9];
    s.length = 71;
    run_text(&s, stream, 7);
    device_stream_close(stream);
    simt_device_now()->shared_bytes = before;
}

int main(int argc, char **argv) {
    lmi_error error = {};
    device_stream *stream = NULL;
    CHECK(device_stream_open(0, &stream, &error) == LMI_OK, "no stream");
    for (size_t i = 0; i < sizeof SHAPES / sizeof *SHAPES; i++) {
        if (argc < 2 || strcmp(argv[1], SHAPES[i].name) == 0) {
            worst = {};
            run_text(&SHAPES[i], stream, i);
            printf("%-20s %s d %3d group %2d: off by %.1e row-wise, %.1e tiled, %.1e from the definition\n", SHAPES[i].name,
                   type_name(SHAPES[i].type), (int)SHAPES[i].d, (int)SHAPES[i].group, worst.rowwise, worst.tiled,
                   worst.defined);
        }
    }
    if (argc < 2) {
        run_hostile(stream);
    }
    device_stream_close(stream);
    if (argc < 2) {
        run_small_device();
    }
    return check_report();
}
