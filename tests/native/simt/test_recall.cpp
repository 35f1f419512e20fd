/* What is recalled, on the emulator: texts are read step by step by both attention kernels, against float64 that has no ring, no
 * tree and no slots:
 *   - keys that left the window are the raw ones, but for their roundings;
 *   - tokens that choose together see the blocks that can have the largest product with the sum of their queries, by brute force over
 *     the boxes of all whole blocks, and all that left and lies in none; what is chosen is marked, and nothing else;
 *   - outputs are one softmax over window, sinks and these, each by its distance;
 * and searches of large trees against lambda/boxes.c, pick for pick. */
#include "lambda/boxes.h"

#include <map>
#include <set>

#include "base/half.h"
#include "simt/on_device.h"

static const double TWO_PI = 6.283185307179586476925;
static const double ROWWISE_ERROR = 1e-5, ROWWISE_Q8_0_ERROR = 1e-4, TILED_ERROR = 5e-4, TILED_Q8_0_ERROR = 8e-4;

/* Sanitizers take their time, and look at other things than numbers: every other text, and a part of it. */
#if defined __SANITIZE_THREAD__
static const int64_t SHARE = 4;
#elif defined __SANITIZE_ADDRESS__
static const int64_t SHARE = 2;
#else
static const int64_t SHARE = 1;
#endif

typedef std::vector<float> floats;
typedef std::vector<double> doubles;

typedef struct text {
    const char *name;
    lmi_kv_type type;
    int32_t d, n_kv_heads, group, n_rot; /* n_rot 0: ALiBi */
    rope_pairing pairing;
    int64_t window, sinks, block, n, distance, n_slots;
    bool head_norm;
    float softcap, magnitude;
    int64_t start, length;
    int32_t steps[8]; /* tokens of launches, in turn: more than CUDA_ROWWISE_TOKENS, or negative: by the tiled kernel */
} text;

static floats normal(size_t n, uint64_t *seed) {
    floats row(n);
    for (float &x : row) {
        x = (float)check_normal(seed);
    }
    return row;
}

static kv_bank bank_at(uint8_t *memory, const text &s, int64_t n) { return kv_bank_at(memory, s.type, s.d, kv_round_slots(n)); }

struct reader {
    const text &s;
    int64_t n_heads = s.n_kv_heads * s.group, most = 0, index = 0, n_open = 0;
    rope_table table;
    cuda_attend a = {};
    uint64_t seed = 5;
    floats all_q, all_k, all_v, q_norm, k_norm, slopes; /* of every token */
    std::map<int64_t, int64_t> slot_of;                 /* of blocks that are kept */
    std::vector<int64_t> marked;                        /* as `chosen` must be */
    size_t ring_bytes, bank_bytes, head_bytes;
    std::vector<void *> taken;

    template <typename T> T *take(size_t n) {
        void *memory = nullptr;
        CHECK(device_alloc(stream, n * sizeof(T) + 1, &memory, nullptr) == LMI_OK);
        taken.push_back(memory);
        return (T *)memory;
    }
    template <typename T> T *put(const std::vector<T> &values) {
        T *at = take<T>(values.size());
        std::copy(values.begin(), values.end(), at);
        return at;
    }
    explicit reader(const text &of) : s(of) {
        for (int32_t step : s.steps) {
            most = std::max<int64_t>(most, abs(step));
        }
        const size_t width = (size_t)(n_heads * s.d), kv_width = (size_t)(s.n_kv_heads * s.d), chunk = (size_t)most;
        rope_params params = {};
        params.n_rot = s.n_rot > 0 ? s.n_rot : 2;
        params.theta = 1000;
        params.attention_factor = (double)s.magnitude;
        CHECK(rope_table_init(&table, &params, nullptr) == LMI_OK);
        q_norm = normal((size_t)s.d, &seed);
        k_norm = normal((size_t)s.d, &seed);
        for (int64_t h = 0; h < n_heads; h++) {
            slopes.push_back(exp2f(-8.0f * (float)(h + 1) / (float)n_heads));
        }
        n_open = most / s.block + 3;
        a.control = take<cuda_control>(1);
        a.n_heads = (int32_t)n_heads;
        a.n_kv_heads = s.n_kv_heads;
        a.head_dim = s.d;
        a.n_rot = s.n_rot;
        a.pairing = s.pairing;
        a.q = take<float>(chunk * width);
        a.k = take<float>(chunk * kv_width);
        a.v = take<float>(chunk * kv_width);
        a.a = take<float>(chunk * width);
        a.head_norm = s.head_norm ? 1 : 0;
        a.q_norm = s.head_norm ? put(q_norm) : nullptr;
        a.k_norm = s.head_norm ? put(k_norm) : nullptr;
        a.eps = 1e-5f;
        a.scale = 2.0f / sqrtf((float)s.d);
        a.softcap = s.softcap;
        a.slopes = s.n_rot == 0 ? put(slopes) : nullptr;
        const bool turns = s.n_rot > 0;
        a.turn = turns ? take<float>(chunk * (size_t)s.n_rot) : nullptr;
        a.turn_sink = turns ? take<float>((size_t)s.n_rot) : nullptr;
        a.turn_sink_key = turns ? take<float>((size_t)s.n_rot) : nullptr;
        a.kv_type = s.type;
        a.window = s.window;
        a.sinks = s.sinks;
        a.capacity = s.window - 1 + most;
        ring_bytes = kv_bank_bytes(s.type, s.d, kv_round_slots(a.capacity));
        head_bytes = ring_bytes + kv_bank_bytes(s.type, s.d, kv_round_slots(s.sinks));
        bank_bytes = kv_bank_bytes(s.type, s.d, s.block);
        a.head_stride = head_bytes;
        a.ring = put(std::vector<uint8_t>(head_bytes * (size_t)s.n_kv_heads, 0xff)); /* NaN */
        a.sinks_bank = a.ring + ring_bytes;

        cuda_recall &r = a.recall;
        const size_t n_slots = (size_t)s.n_slots, n_lists = (chunk + 63) / 64 * (size_t)s.n_kv_heads;
        r.block = s.block;
        r.n = s.n;
        r.n_open = n_open;
        r.distance = s.distance;
        r.table = turns ? put(std::vector<rope_table>(1, table)) : nullptr;
        r.turn = turns ? take<float>((size_t)s.n_rot) : nullptr;
        r.bank_bytes = bank_bytes;
        r.slot_stride = bank_bytes * (size_t)s.n_kv_heads;
        r.banks = put(std::vector<uint8_t>(r.slot_stride * n_slots, 0xff));
        r.now = take<int64_t>(1 + (size_t)n_open);
        r.number = take<int64_t>(n_slots);
        r.chosen = put(std::vector<int64_t>(n_slots, -1));
        marked.assign(n_slots, -1);
        r.tree_values = boxes_values(s.d, s.n_slots);
        r.tree = boxes_at(put(std::vector<uint16_t>((size_t)(r.tree_values * s.n_kv_heads), 0x7f00)), s.d, s.n_slots);
        r.most_seen = cuda_recall_most_seen(&r, most);
        r.seen = take<cuda_seen>(n_lists * (size_t)r.most_seen);
        r.n_seen = take<int32_t>(n_lists);
        const size_t search = cuda_recall_search_bytes(s.n);
        r.search = search > 0 ? take<uint8_t>(search * n_lists) : nullptr;

        const size_t rowwise = std::min<size_t>(chunk, CUDA_ROWWISE_TOKENS);
        const size_t n_parts = (size_t)(cuda_attend_segments(s.sinks, a.capacity) + cuda_recall_segments(&r, most));
        a.parts = take<float>(rowwise * (size_t)s.n_kv_heads * n_parts * (size_t)(s.group * (2 + s.d)));
        a.arrived = take<uint32_t>(rowwise * (size_t)s.n_kv_heads);
        a.work = take<uint8_t>(cuda_attend_tiled_bytes(most, n_heads, s.d, true));
        if (turns) {
            rope_row(&table, s.window, (float *)(void *)a.turn_sink);
            rope_row(&table, 0, (float *)(void *)a.turn_sink_key);
            rope_row(&table, s.distance, (float *)(void *)r.turn);
        }
    }
    ~reader() {
        for (void *memory : taken) {
            device_free(stream, memory);
        }
    }

    int64_t middle(int64_t n_read) const { return std::max<int64_t>(0, n_read - s.window + 1 - s.sinks); }

    /* Slots for the blocks that leaving tokens begin; where there is none, that of the oldest block that is not open. */
    void begin(int64_t n) {
        int64_t *now = (int64_t *)(void *)a.recall.now, *number = (int64_t *)(void *)a.recall.number;
        for (int64_t b = middle(index) / s.block; b * s.block < middle(index + n); b++) {
            if (slot_of.count(b) == 0) {
                int64_t slot = now[0];
                if (slot == s.n_slots) {
                    slot = slot_of.begin()->second;
                    slot_of.erase(slot_of.begin());
                } else {
                    now[0]++;
                }
                slot_of[b] = slot;
                number[slot] = b;
                marked[(size_t)slot] = a.recall.chosen[slot] = index;
            }
            now[1 + b % n_open] = slot_of[b];
        }
    }

    /* Of token j and head h, in double: normed, and scaled if it is a query. */
    doubles raw(const floats &all, int64_t j, int64_t h, int64_t heads, const floats &norm, double scale) const {
        const float *from = all.data() + (j * heads + h) * s.d;
        doubles x(from, from + s.d);
        double sum = 0;
        for (double v : x) {
            sum += v * v;
        }
        for (int32_t i = 0; i < s.d; i++) {
            x[(size_t)i] *= scale * (s.head_norm ? (double)norm[(size_t)i] / sqrt(sum / s.d + (double)a.eps) : 1.0);
        }
        return x;
    }

    /* Turned by a position, with the magnitude. */
    doubles turn(const doubles &x, int64_t position) const {
        doubles out = x;
        for (int i = 0; i < s.n_rot / 2; i++) {
            const size_t first = (size_t)(s.pairing == ROPE_ADJACENT ? 2 * i : i),
                         second = (size_t)(s.pairing == ROPE_ADJACENT ? 2 * i + 1 : i + s.n_rot / 2);
            const double angle = TWO_PI * ldexp((double)((uint64_t)position * table.turns[i]), -64);
            const double c = cos(angle) * (double)table.magnitude, sine = sin(angle) * (double)table.magnitude;
            out[first] = x[first] * c - x[second] * sine;
            out[second] = x[first] * sine + x[second] * c;
        }
        return out;
    }

    /* As stored, by the picture in kv_tile.h. */
    void stored(const kv_bank &bank, int64_t slot, doubles &key, doubles &value) const {
        const int64_t d = s.d, tile = slot / 16, lane = slot % 16;
        for (int64_t i = 0; i < d; i++) {
            double &k = key[(size_t)i], &v = value[(size_t)i];
            if (s.type == LMI_KV_F32) {
                k = ((const float *)bank.keys)[(tile * d + i) * 16 + lane];
                v = ((const float *)bank.values)[slot * d + i];
            } else if (s.type == LMI_KV_F16) {
                k = f16_to_f32(((const uint16_t *)bank.keys)[(tile * d + i) * 16 + lane]);
                v = f16_to_f32(((const uint16_t *)bank.values)[slot * d + i]);
            } else {
                k = f16_to_f32(bank.key_scales[(tile * (d / 32) + i / 32) * 16 + lane]) *
                    (((const uint8_t *)bank.keys)[((tile * (d / 4) + i / 4) * 16 + lane) * 4 + i % 4] - 128);
                v = f16_to_f32(bank.value_scales[slot * (d / 32) + i / 32]) * ((const int8_t *)bank.values)[slot * d + i];
            }
        }
    }
    kv_bank kept_bank(int64_t b, int64_t h) const {
        return bank_at(a.recall.banks + (size_t)slot_of.at(b) * a.recall.slot_stride + (size_t)h * bank_bytes, s, s.block);
    }

    /* A token that left the window is what it was when it was read, after two roundings. */
    void check_stored(int64_t j) const {
        const double step = s.type == LMI_KV_F32 ? 1e-6 : s.type == LMI_KV_F16 ? 1.1e-3 : 1.0 / 120;
        for (int64_t h = 0; h < s.n_kv_heads; h++) {
            const doubles key = turn(raw(all_k, j, h, s.n_kv_heads, k_norm, 1), 0);
            doubles got((size_t)s.d), value((size_t)s.d);
            stored(kept_bank((j - s.sinks) / s.block, h), (j - s.sinks) % s.block, got, value);
            double largest = 0, off = 0, off_value = 0, largest_value = 0;
            for (int32_t i = 0; i < s.d; i++) {
                const double v = (double)all_v[(size_t)((j * s.n_kv_heads + h) * s.d + i)];
                largest = fmax(largest, fabs(key[(size_t)i]));
                off = fmax(off, fabs(got[(size_t)i] - key[(size_t)i]));
                off_value = fmax(off_value, fabs(value[(size_t)i] - v));
                largest_value = fmax(largest_value, fabs(v));
            }
            CHECK(off <= 1.5 * step * largest && off_value <= step * largest_value,
                  "%s: token %lld left with a key off by %g of %g, a value by %g", s.name, (long long)j, off, largest,
                  off_value);
        }
    }

    /* Blocks that tokens first .. first + n - 1 of the chunk at `index` must see. False: two are too close to call. */
    bool choose(int64_t first, int64_t n, int64_t h, std::set<int64_t> &blocks) const {
        const int64_t n_whole = middle(first) / s.block;
        doubles look((size_t)s.d, 0.0);
        for (int64_t p = first; p < first + n; p++) {
            for (int64_t g = 0; g < s.group; g++) {
                const doubles q = turn(raw(all_q, p, h * s.group + g, n_heads, q_norm, (double)a.scale), s.distance);
                for (size_t i = 0; i < q.size(); i++) {
                    look[i] += q[i];
                }
            }
        }
        std::vector<std::pair<double, int64_t>> bounds;
        double size = 0;
        for (const auto &kept : slot_of) {
            if (kept.first >= n_whole) {
                continue;
            }
            doubles high((size_t)s.d, -INFINITY), low((size_t)s.d, INFINITY), key((size_t)s.d), value((size_t)s.d);
            for (int64_t t = 0; t < s.block; t++) {
                stored(kept_bank(kept.first, h), t, key, value);
                for (size_t i = 0; i < key.size(); i++) {
                    high[i] = fmax(high[i], key[i]);
                    low[i] = fmin(low[i], key[i]);
                }
            }
            double bound = 0, scale = 0;
            for (size_t i = 0; i < look.size(); i++) { /* the nearest of 8 bits that are not less, not more */
                int e;
                const double up = ceil(frexp(high[i], &e) * 256), most_here = ldexp(up, e - 8);
                const double down = floor(frexp(low[i], &e) * 256), least_here = ldexp(down, e - 8);
                bound += fmax(look[i] * most_here, look[i] * least_here);
                scale += fabs(look[i]) * fmax(fabs(most_here), fabs(least_here));
            }
            size = fmax(size, scale);
            bounds.push_back({-bound, kept.first});
        }
        std::sort(bounds.begin(), bounds.end());
        const size_t most_blocks = std::min(bounds.size(), (size_t)s.n);
        for (size_t i = 0; i < most_blocks; i++) {
            blocks.insert(bounds[i].second);
        }
        return most_blocks == bounds.size() || bounds[most_blocks].first - bounds[most_blocks - 1].first > 1e-5 * size;
    }

    /* One head of token p, which sees these whole blocks and what is in none. */
    doubles attend(int64_t p, int64_t head, const std::set<int64_t> &blocks, int64_t n_whole) const {
        const int64_t h = head / s.group;
        uint8_t *banks = a.ring + (size_t)h * head_bytes;
        const kv_bank ring = bank_at(banks, s, a.capacity), sinks = bank_at(banks + ring_bytes, s, s.sinks);
        const doubles q = raw(all_q, p, head, n_heads, q_norm, (double)a.scale);
        const doubles near = turn(q, s.start + p), far = turn(q, s.window), back = turn(q, s.distance);
        doubles key((size_t)s.d), value((size_t)s.d), out((size_t)s.d, 0.0);
        double sum = 0;
        for (int64_t j = 0; j <= p; j++) {
            const int64_t i = j - s.sinks;
            const doubles *query = &near;
            double distance = (double)(p - j);
            if (p - j < s.window) {
                stored(ring, j % a.capacity, key, value);
            } else if (j < s.sinks) {
                stored(sinks, j, key, value);
                query = &far;
                distance = (double)s.window;
            } else if (i / s.block >= n_whole || blocks.count(i / s.block) > 0) {
                stored(kept_bank(i / s.block, h), i % s.block, key, value);
                query = &back;
                distance = (double)s.distance;
            } else {
                continue;
            }
            double logit = 0;
            for (size_t k = 0; k < key.size(); k++) {
                logit += (*query)[k] * key[k];
            }
            logit = s.softcap > 0 ? (double)s.softcap * tanh(logit / (double)s.softcap) : logit;
            const double weight = exp(logit - (s.n_rot == 0 ? (double)slopes[(size_t)head] * distance : 0.0));
            sum += weight;
            for (size_t k = 0; k < value.size(); k++) {
                out[k] += weight * value[k];
            }
        }
        for (double &x : out) {
            x /= sum;
        }
        return out;
    }

    double check_tokens(int64_t n, bool rounds, int64_t *n_seen, int64_t *n_close) {
        double worst = 0;
        for (int64_t token0 = 0; token0 < n; token0 += CUDA_RECALL_TOGETHER) {
            const int64_t first = index + token0, together = std::min<int64_t>(n - token0, CUDA_RECALL_TOGETHER);
            const int64_t n_whole = middle(first) / s.block;
            for (int64_t h = 0; h < s.n_kv_heads; h++) {
                const int64_t list = token0 / CUDA_RECALL_TOGETHER * s.n_kv_heads + h;
                std::set<int64_t> expected, got;
                const bool clear = choose(first, together, h, expected);
                for (int32_t i = 0; i < a.recall.n_seen[list]; i++) {
                    const cuda_seen &one = a.recall.seen[list * a.recall.most_seen + i];
                    CHECK(slot_of.at(one.block) == one.slot, "%s: a block is not where it is said to be", s.name);
                    if (one.block < n_whole) {
                        CHECK(got.insert(one.block).second, "%s: chosen twice", s.name);
                        marked[(size_t)one.slot] = index;
                    }
                }
                CHECK(got.size() == expected.size() && (!clear || got == expected),
                      "%s: token %lld, kv head %lld chose other blocks", s.name, (long long)first, (long long)h);
                *n_seen += (int64_t)got.size();
                *n_close += clear ? 0 : 1;
                for (int64_t p = first; p < first + together; p++) {
                    for (int64_t g = 0; g < s.group; g++) {
                        const int64_t head = h * s.group + g;
                        const doubles out = attend(p, head, got, n_whole);
                        double off = 0, size = 0;
                        for (int32_t i = 0; i < s.d; i++) {
                            const double x = (double)a.a[((p - index) * n_heads + head) * s.d + i];
                            off = x == x ? fmax(off, fabs(x - out[(size_t)i])) : INFINITY;
                            size = fmax(size, fabs(out[(size_t)i]));
                        }
                        worst = fmax(worst, off / size);
                    }
                }
            }
        }
        const double allowed =
            s.type == LMI_KV_Q8_0 ? (rounds ? TILED_Q8_0_ERROR : ROWWISE_Q8_0_ERROR) : (rounds ? TILED_ERROR : ROWWISE_ERROR);
        CHECK(worst <= allowed, "%s: tokens from %lld on off by %g%s", s.name, (long long)index, worst,
              rounds ? ", tiled" : "");
        return worst;
    }

    void step(int32_t how, double worst[2], int64_t *n_seen, int64_t *n_close) {
        const int64_t n = abs(how);
        const size_t width = (size_t)(n_heads * s.d), kv_width = (size_t)(s.n_kv_heads * s.d);
        const bool tiled = how < 0 || n > CUDA_ROWWISE_TOKENS || (n > 1 && index < s.sinks);
        const floats q = normal((size_t)n * width, &seed), k = normal((size_t)n * kv_width, &seed),
                     v = normal((size_t)n * kv_width, &seed);
        all_q.insert(all_q.end(), q.begin(), q.end());
        all_k.insert(all_k.end(), k.begin(), k.end());
        all_v.insert(all_v.end(), v.begin(), v.end());
        std::copy(q.begin(), q.end(), (float *)(void *)a.q);
        std::copy(k.begin(), k.end(), (float *)(void *)a.k);
        std::copy(v.begin(), v.end(), (float *)(void *)a.v);
        for (int64_t t = 0; t < n && s.n_rot > 0; t++) {
            rope_row(&table, s.start + index + t, (float *)(void *)a.turn + t * s.n_rot);
        }
        *(cuda_control *)(void *)a.control = {index, s.start, 0};
        begin(n);
        a.n_tokens = (int32_t)n;
        std::vector<floats> got(SHARE == 1 && n < 65 ? 2 : 1);
        for (floats &out : got) { /* once more: the same bits */
            (tiled ? cuda_launch_attend_tiled : cuda_launch_attend_rowwise)(&a, stream);
            finish();
            out.assign(a.a, a.a + (size_t)n * width);
        }
        CHECK(memcmp(got.front().data(), got.back().data(), got[0].size() * sizeof(float)) == 0, "%s: not the same bits again",
              s.name);
        for (int64_t i = middle(index); i < middle(index + n); i++) {
            check_stored(s.sinks + i);
        }
        const bool rounds = tiled && s.type != LMI_KV_F32 && s.d % 8 == 0;
        worst[rounds] = fmax(worst[rounds], check_tokens(n, rounds, n_seen, n_close));
        CHECK(memcmp(marked.data(), a.recall.chosen, marked.size() * sizeof(int64_t)) == 0, "%s: other blocks are marked",
              s.name);
        index += n;
    }
};

/* clang-format off */
static const text TEXTS[] = {
    /* name, type, d, kv heads, group, n_rot, pairing, window, sinks, block, n, distance, slots,
     * head norm, softcap, magnitude, start, length, steps */
    {"exact",       LMI_KV_F32,  20, 2, 2, 12, ROPE_ADJACENT, 13, 3, 16, 2,  6, 40,
     false, 0, 1.2f, 1000000000, 150, {1, 5, 8, 1, 20, 1, 3, 8}},
    {"halves",      LMI_KV_F16,  32, 2, 2, 32, ROPE_HALVES,   24, 3, 16, 3, 12, 9,
     true,  0, 1,    0,          320, {70, 1, 1, 8, 130, 1, -7, 33}},
    {"bytes",       LMI_KV_Q8_0, 64, 1, 3, 32, ROPE_HALVES,   40, 5, 48, 2, 40, 6,
     false, 5, 1,    0,          410, {100, 1, 1, 8, 64, 1, 5, 200}},
    {"one by one",  LMI_KV_F16,  16, 1, 4, 16, ROPE_ADJACENT,  9, 0, 16, 1,  1, 40,
     false, 0, 1,    7,           90, {1, 1, 1, 1, 1, 1, 1, 1}},
    {"ALiBi",       LMI_KV_F16,  24, 1, 5,  0, ROPE_HALVES,   20, 2, 32, 2, 10, 30,
     false, 0, 1,    0,          230, {65, 1, 4, -3, 90, 1, 1, 1}},
    {"wide head",   LMI_KV_F16, 136, 1, 1, 64, ROPE_HALVES,   17, 4, 80, 1,  9, 20,
     true,  0, 1,    0,          250, {70, 1, 8, 70, 1, 64, 1, 1}},
    {"many blocks", LMI_KV_F16,  16, 1, 2, 16, ROPE_HALVES,    5, 1, 16, 130, 3, 100,
     false, 0, 1,    0,          260, {128, 1, 127, 1, 8, 1, 1, 1}},
};
/* clang-format on */

/* A tree of its own, with boxes that are equal and some that lie nowhere near: one query, the C search and the kernel's. */
static void test_large_tree(int64_t n_slots, int64_t n_used, int64_t n, bool again, uint64_t *seed) {
    const kernels *cpu = nullptr;
    CHECK(kernels_get(LMI_ISA_REF, &cpu, nullptr) == LMI_OK);
    const text s = {"tree", LMI_KV_F32, 6, 1, 1, 0, ROPE_HALVES, 4, 0, 16, n, 2, n_slots, false, 0, 1, 0, 0, {1}};
    reader x(s);
    const cuda_recall &r = x.a.recall;
    int64_t *number = (int64_t *)(void *)r.number;
    for (int64_t slot = 0; slot < n_used; slot++) {
        number[slot] = (slot * 7) % n_used;
        kv_bank bank = bank_at(r.banks + (size_t)slot * r.slot_stride, s, s.block);
        for (int64_t i = 0; i < 16 * s.d; i++) {
            const double y = check_normal(seed);
            ((float *)bank.keys)[i] = slot % 3 == 1 ? ((float *)(void *)(r.banks + (size_t)(slot - 1) * r.slot_stride))[i]
                                                    : (float)(slot % 50 == 0 ? 9 * y : y);
        }
    }
    *(int64_t *)(void *)r.now = n_used;
    const int64_t n_whole = n_used - n_used / 5; /* and some that were whole once */
    boxes reference = boxes_at((uint16_t *)calloc((size_t)r.tree_values, 2), s.d, n_slots);
    for (int64_t slot = 0; slot < n_used; slot++) {
        floats largest((size_t)s.d, -INFINITY), smallest((size_t)s.d, INFINITY);
        for (int64_t t = 0; t < 16; t++) {
            doubles k((size_t)s.d), v((size_t)s.d);
            x.stored(bank_at(r.banks + (size_t)slot * r.slot_stride, s, s.block), t, k, v);
            for (size_t i = 0; i < k.size(); i++) {
                largest[i] = std::max(largest[i], (float)k[i]);
                smallest[i] = std::min(smallest[i], (float)k[i]);
            }
        }
        boxes_enclose(&reference, slot, largest.data(), smallest.data(), n_used);
    }
    if (again) { /* all are there; then those that are not whole become empty */
        cuda_launch_boxes(&r, s.type, s.d, 1, n_used, n_used, true, stream);
        finish();
    }
    for (int64_t slot = 0; slot < n_used; slot++) {
        if (number[slot] >= n_whole) {
            boxes_empty(&reference, slot, n_used);
        }
    }
    cuda_launch_boxes(&r, s.type, s.d, 1, n_used, n_whole, !again, stream);
    finish();
    int64_t used = n_used;
    for (int level = 0; level < reference.n_levels; level++, used = (used + BOX_FAN - 1) / BOX_FAN) {
        for (int64_t box = 0; box < used; box++) {
            for (int64_t i = 0; i < 2 * s.d; i++) {
                const int64_t at = (box / BOX_FAN * 2 * s.d + i) * BOX_FAN + box % BOX_FAN;
                CHECK(reference.level[level][at] == r.tree.level[level][at], "box %lld of level %d", (long long)box, level);
            }
        }
    }
    const int64_t beam = n > 8 ? (3 * n + 3) / 4 : 6;
    for (int trial = 0; trial < 3; trial++) {
        const floats q = normal((size_t)s.d, seed), zero((size_t)s.d, 0.0f);
        std::copy(q.begin(), q.end(), (float *)(void *)x.a.q);
        floats look = q;
        for (float &v : look) {
            v *= x.a.scale;
        }
        /* Blocks below n_whole are whole for this query. */
        *(cuda_control *)(void *)x.a.control = {n_whole * s.block + s.window - 1, 0, 0};
        int64_t *now = (int64_t *)(void *)r.now;
        for (int64_t i = 0; i < x.n_open; i++) {
            now[1 + i] = n_slots - 1; /* the open block */
        }
        number[n_slots - 1] = n_slots > n_used ? n_whole : number[n_slots - 1];
        x.a.n_tokens = 1;
        cuda_launch_attend_rowwise(&x.a, stream);
        finish();
        /* What the launch itself made of boxes: the open block began, in a slot that is not in use. */
        std::vector<pick> picks((size_t)n), beams((size_t)(2 * beam));
        const int64_t found = boxes_find(&reference, cpu->box_bounds, look.data(), n_used, r.number, n_whole, n, picks.data(),
                                         beam, beams.data());
        CHECK(found == r.n_seen[0], "%lld and %d are found", (long long)found, r.n_seen[0]);
        for (int64_t i = 0; i < found && i < r.n_seen[0]; i++) {
            CHECK(picks[(size_t)i].slot == r.seen[i].slot, "pick %lld of %lld slots: %lld, not %lld", (long long)i,
                  (long long)n_used, (long long)r.seen[i].slot, (long long)picks[(size_t)i].slot);
        }
    }
    free(reference.level[0]);
}

int main(int argc, char **argv) {
    lmi_error error = {};
    CHECK(device_stream_open(0, &stream, &error) == LMI_OK, "%s", error.message);
    for (size_t t = 0; t < sizeof TEXTS / sizeof *TEXTS; t++) {
        const text &s = TEXTS[t];
        if ((SHARE > 1 && t % 2 != 0) || (argc > 1 && strcmp(argv[1], s.name) != 0)) {
            continue;
        }
        double worst[2] = {0, 0};
        int64_t n_seen = 0, n_close = 0;
        reader x(s);
        for (int i = 0; x.index < s.length / SHARE; i++) {
            x.step(s.steps[i % 8], worst, &n_seen, &n_close);
        }
        CHECK(n_seen > 5 || SHARE > 1, "%s: nothing was recalled", s.name);
        printf("%-12s off by %.1e, tiled %.1e; %lld blocks seen, %lld choices too close to call\n", s.name, worst[0], worst[1],
               (long long)n_seen, (long long)n_close);
    }
    uint64_t seed = 9;
    for (int again = 0; again < 2 && argc < 2; again++) {
        test_large_tree(20, 9, 2, again != 0, &seed);
        test_large_tree(500, 300, 5, again != 0, &seed);
        if (SHARE == 1) {
            test_large_tree(5000, 4500, 3, again != 0, &seed);
            test_large_tree(5000, 4500, 150, again != 0, &seed);
        }
    }
    device_stream_close(stream);
    return check_report();
}
