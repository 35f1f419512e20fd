/* Small kernels (begin.cu, mix.cu, choose.cu) on the emulator, against the CPU's own functions and against float64. */
#include "lambda/rope.h"
#include "quant/quant.h"
#include "simt/on_device.h"

extern "C" {
#include "engine/sampler.h"
float exp_f32(float x);
}

/* Under ThreadSanitizer, where each barrier takes long: every so many of the cases. */
#ifdef __SANITIZE_THREAD__
enum { APART = 11, LARGEST = 2049 };
#else
enum { APART = 1, LARGEST = INT32_MAX };
#endif

/* ---- begin --------------------------------------------------------------------------------------------------------- */

static void test_embedding(uint64_t *random) {
    int n_types = 0;
    for (uint32_t type = 0; type < QUANT_TYPE_END; type++) {
        const quant_info *info = quant_find(type);
        if (info == nullptr) {
            continue;
        }
        n_types++;
        const bool plain = info->block_values == 1;
        const int64_t widths[] = {plain ? 33 : (int64_t)info->block_values, 2560, plain ? 4 : 768};
        for (const int64_t cols : widths) {
            const int64_t rows = 5, n_blocks = rows * cols / info->block_values;
            std::vector<uint8_t> file((size_t)n_blocks * info->block_bytes);
            for (uint8_t &byte : file) {
                byte = (uint8_t)check_random(random);
            }
            const plane_layout *layout = plane_layout_of((quant_type)type);
            buffer<uint8_t> planes(plane_offset(layout, (uint64_t)n_blocks, layout->n));
            cuda_begin args = {};
            fill_planes(info, file, planes.at);
            point_at_planes(info, (uint64_t)n_blocks, planes.at, &args.table);
            const int32_t tokens[] = {4, 0, 3};
            buffer<int32_t> on_device(3);
            memcpy(on_device.at, tokens, sizeof tokens);
            buffer<cuda_control> control(1);
            buffer<float> x((size_t)(3 * cols) + 4);
            x[(size_t)(3 * cols)] = 77.0f;
            args.control = control.at;
            args.tokens = on_device.at;
            args.n_tokens = 3;
            args.table.type = (quant_type)type;
            args.table.rows = rows;
            args.table.cols = cols;
            args.table.n_matrices = 1;
            args.scale = 1.5f;
            args.x = x.at;
            cuda_launch_begin(&args, stream);
            finish();
            std::vector<float> expected((size_t)cols);
            int64_t differing = 0;
            for (int t = 0; t < 3; t++) {
                const size_t row_bytes = (size_t)cols / info->block_values * info->block_bytes;
                info->to_f32(file.data() + (size_t)tokens[t] * row_bytes, expected.data(), cols);
                for (int64_t i = 0; i < cols; i++) {
                    const float e = expected[(size_t)i] * 1.5f, g = x[(size_t)(t * cols + i)];
                    differing += !(e == g || (isnan(e) && isnan(g)));
                }
            }
            CHECK(differing == 0, "%s, %d columns: %lld differ", info->name, (int)cols, (long long)differing);
            CHECK(x[(size_t)(3 * cols)] == 77.0f, "%s: written beyond the end", info->name);
        }
    }
    CHECK(n_types == 16, "%d", n_types);
}

static double worst_difference(const float *row, const rope_table *table, int64_t position) {
    std::vector<float> expected((size_t)table->n_rot);
    rope_row(table, position, expected.data());
    double worst = 0;
    for (int32_t i = 0; i < table->n_rot; i++) {
        const double difference = fabs((double)row[i] - (double)expected[(size_t)i]);
        worst = difference <= worst ? worst : difference; /* NaN is kept */
    }
    return worst;
}

static void test_turns(uint64_t *random) {
    rope_params params = {};
    params.theta = 10000;
    params.attention_factor = 1;
    rope_table narrow, wide;
    params.n_rot = 64;
    CHECK(rope_table_init(&narrow, &params, nullptr) == LMI_OK);
    params.n_rot = 300;
    params.attention_factor = 1.25;
    CHECK(rope_table_init(&wide, &params, nullptr) == LMI_OK);
    for (int i = 0; i < 150; i++) { /* the joints between quarters, and anything */
        wide.turns[i] = i % 2 != 0 ? check_random(random) : ((uint64_t)(i % 16) << 60) + (check_random(random) >> i % 62) - 7;
    }
    buffer<rope_table> tables(2);
    tables[0] = narrow;
    tables[1] = wide;
    buffer<cuda_control> control(1);
    const int64_t places[][2] = {{0, 0},  {3, 0},          {5, 1000000}, {1000000, 0},           {1000000000, 5},
                                 {30, 7}, {2, 1000000000}, {7, -4},      {(int64_t)1 << 40, 100}};
    const int32_t n_tokens = 4;
    double worst = 0;
    for (const auto &place : places) {
        for (int contiguous = 0; contiguous < 3; contiguous++) { /* 2: sinks at their true distance */
            const int64_t window = 23, sinks = 4, furthest = contiguous == 2 ? INT64_MAX : window + sinks - 1;
            buffer<float> a(4 * 64), a_sink(4 * 64), a_key(4 * 64), b(4 * 300), b_sink(4 * 300), b_key(4 * 300);
            for (buffer<float> *all : {&a_sink, &a_key, &b_sink, &b_key}) {
                std::fill(all->at, all->at + all->n, 99.0f);
            }
            *control.at = {place[0], place[1], 0};
            cuda_begin args = {};
            args.control = control.at;
            args.n_tokens = n_tokens;
            args.n_turns = 2;
            args.turns[0] = {tables.at, a.at, a_sink.at, a_key.at, window, sinks, 64, contiguous != 0, furthest};
            args.turns[1] = {tables.at + 1, b.at, b_sink.at, b_key.at, 0, 0, 300, contiguous != 0, furthest};
            cuda_launch_begin(&args, stream);
            finish();
            for (int64_t t = 0; t < n_tokens; t++) {
                const int64_t index = place[0] + t;
                worst = fmax(worst, worst_difference(a.at + 64 * t, &narrow, place[1] + index));
                worst = fmax(worst, worst_difference(b.at + 300 * t, &wide, place[1] + index) / 1.25);
                if (contiguous != 0) {
                    const int64_t query = index < furthest ? index : furthest, key = index < sinks ? index : 0;
                    worst = fmax(worst, worst_difference(a_sink.at + 64 * t, &narrow, query));
                    worst = fmax(worst, worst_difference(a_key.at + 64 * t, &narrow, key));
                }
            }
            if (contiguous == 0) {
                worst = fmax(worst, worst_difference(a_sink.at, &narrow, window));
                worst = fmax(worst, worst_difference(a_key.at, &narrow, 0));
                CHECK(a_sink[64] == 99.0f && a_key[64] == 99.0f, "there is one row");
            }
            CHECK(b_sink[0] == 99.0f && b_key[0] == 99.0f && b_sink[300] == 99.0f, "without sinks these rows stay");
            cuda_launch_advance(control.at, n_tokens, stream);
            finish();
            CHECK(control[0].first == place[0] + n_tokens && control[0].start == place[1]);
        }
    }
    CHECK(worst <= 3e-7, "cos, sin off by %g", worst);
    cuda_begin nothing = {};
    nothing.n_tokens = 1;
    cuda_launch_begin(&nothing, stream); /* no rotation, and x from elsewhere: nothing to do */
    finish();
}

/* ---- norms --------------------------------------------------------------------------------------------------------- */

static void test_norms(uint64_t *random) {
    const int64_t widths[] = {1, 31, 256, 1000, 4096};
    const float sizes[] = {1.0f, 1e-3f, 1e20f};
    for (int trial = 0; trial < 90; trial += APART) {
        const int64_t width = widths[trial % 5], n_tokens = 3;
        const float size = sizes[trial / 5 % 3];
        const int kind = trial / 15 % 3;
        const bool with_scale = trial / 45 != 0, with_bias = with_scale && kind == CUDA_NORM_LAYER;
        buffer<float> x((size_t)(n_tokens * width)), y((size_t)(n_tokens * width)), scale((size_t)width), bias((size_t)width);
        std::vector<double> before((size_t)(n_tokens * width));
        for (int64_t i = 0; i < n_tokens * width; i++) {
            const double offset = kind == CUDA_NORM_LAYER && i / width == 1 ? 1e5 : 0;
            x[(size_t)i] = (float)((check_normal(random) + offset) * (double)size);
            y[(size_t)i] = (float)check_normal(random);
            before[(size_t)i] = (double)y[(size_t)i];
            scale[(size_t)(i % width)] = (float)check_normal(random);
            bias[(size_t)(i % width)] = (float)check_normal(random);
        }
        cuda_norm norm = {};
        norm.kind = (cuda_norm_kind)kind;
        norm.scale = with_scale ? scale.at : nullptr;
        norm.bias = with_bias ? bias.at : nullptr;
        norm.eps = 1e-5f;
        buffer<float> alone((size_t)(n_tokens * width));
        cuda_launch_norm(x.at, alone.at, norm, width, (int32_t)n_tokens, stream);
        cuda_launch_add_norm(x.at, y.at, norm, width, (int32_t)n_tokens, stream);
        finish();
        double worst = 0;
        for (int64_t t = 0; t < n_tokens; t++) {
            double mean = 0, squares = 0;
            for (int64_t i = 0; kind == CUDA_NORM_LAYER && i < width; i++) {
                mean += (double)x[(size_t)(t * width + i)] / (double)width;
            }
            for (int64_t i = 0; i < width; i++) {
                squares += ((double)x[(size_t)(t * width + i)] - mean) * ((double)x[(size_t)(t * width + i)] - mean);
            }
            const double factor = kind == CUDA_NORM_NONE ? 1 : 1 / sqrt(squares / (double)width + (double)norm.eps);
            for (int64_t i = 0; i < width; i++) {
                const size_t at = (size_t)(t * width + i);
                const double part = ((double)x[at] - mean) * factor * (with_scale ? (double)scale[(size_t)i] : 1);
                const double expected = before[at] + (part + (with_bias ? (double)bias[(size_t)i] : 0));
                const double error = fabs((double)y[at] - expected) / (fabs(part) + fabs(before[at]) + 1);
                const double other = fabs((double)alone[at] - (expected - before[at])) / (fabs(part) + 1);
                worst = error <= worst ? worst : error;
                const bool as_product = size < 1e10f && t != 1; /* that norm is not made for rows as large as those */
                worst = !as_product || (kind == CUDA_NORM_NONE && with_scale) || other <= worst ? worst : other;
            }
        }
        CHECK(worst < 1e-6, "kind %d, width %d, size %g: off by %g", kind, (int)width, (double)size, worst);
    }
    buffer<float> x(300), y(300);
    std::fill(x.at, x.at + 300, 1.0f);
    x[299] = NAN;
    cuda_norm norm = {};
    norm.kind = CUDA_NORM_RMS;
    cuda_launch_add_norm(x.at, y.at, norm, 300, 1, stream);
    finish();
    CHECK(isnan(y[0]) && isnan(y[299]), "a NaN shows");
}

/* ---- experts ------------------------------------------------------------------------------------------------------- */

/* route_token of backend/cpu_experts.c, said once more. */
static void route_on_cpu(const float *logits, int n, int n_used, bool normed, int32_t *expert, double *share) {
    std::vector<float> odds((size_t)n);
    float top = -INFINITY;
    double all = 0, chosen = 0;
    for (int e = 0; e < n; e++) {
        top = logits[e] > top ? logits[e] : top;
    }
    for (int e = 0; e < n; e++) {
        odds[(size_t)e] = exp_f32(logits[e] - top);
        all += (double)odds[(size_t)e];
    }
    std::vector<bool> taken((size_t)n);
    for (int i = 0; i < n_used; i++) {
        int best = -1;
        for (int e = 0; e < n; e++) {
            const float o = odds[(size_t)e];
            if (!taken[(size_t)e] && !isnan(o) && (best < 0 || o > odds[(size_t)best])) {
                best = e;
            }
        }
        share[i] = best >= 0 ? (double)odds[(size_t)best] : (double)NAN;
        for (int e = 0; best < 0 && e < n; e++) {
            best = taken[(size_t)e] ? best : e;
        }
        taken[(size_t)best] = true;
        expert[i] = best;
        chosen += share[i];
    }
    for (int i = 0; i < n_used; i++) {
        share[i] /= normed ? chosen : all;
    }
}

static void test_route(uint64_t *random) {
    const int counts[] = {1, 2, 8, 31, 32, 33, 64, 128, 257, 512};
    int64_t differing = 0, cases = 0;
    double worst = 0;
    for (int trial = 0; trial < 600; trial += APART) {
        const int n = counts[trial % 10], n_tokens = 3;
        const int most = n < 12 ? n : 12, n_used = 1 + (int)(check_random(random) % (uint64_t)most);
        const bool normed = check_random(random) % 2 != 0;
        const int kind = trial / 10 % 8;
        buffer<float> logits((size_t)(n_tokens * n)), share((size_t)(n_tokens * n_used));
        buffer<int32_t> expert((size_t)(n_tokens * n_used));
        for (int i = 0; i < n_tokens * n; i++) {
            double z = check_normal(random) * 3;
            z = kind == 1 ? floor(z) : kind == 2 ? 1 + (double)(check_random(random) % 16) * 0x1p-23 : kind == 3 ? z * 80 : z;
            logits[(size_t)i] = (float)z;
            if (kind >= 4 && check_uniform(random) < (kind == 7 ? 0.97 : 0.3)) {
                logits[(size_t)i] = kind == 4 ? NAN : kind == 5 ? -INFINITY : kind == 6 ? INFINITY : NAN;
            }
        }
        cuda_launch_route(logits.at, n, n_used, normed, expert.at, share.at, n_tokens, stream);
        finish();
        for (int t = 0; t < n_tokens; t++) {
            std::vector<int32_t> chosen((size_t)n_used);
            std::vector<double> expected((size_t)n_used);
            route_on_cpu(logits.at + t * n, n, n_used, normed, chosen.data(), expected.data());
            for (int i = 0; i < n_used; i++) {
                const double s = (double)share[(size_t)(t * n_used + i)], e = expected[(size_t)i];
                differing += chosen[(size_t)i] != expert[(size_t)(t * n_used + i)] || isnan(s) != isnan(e);
                worst = isnan(e) ? worst : fmax(worst, fabs(s - e));
                cases++;
            }
        }
    }
    CHECK(differing == 0, "%lld of %lld", (long long)differing, (long long)cases);
    CHECK(worst < 1e-6, "weights off by %g", worst);
}

/* ---- candidates ---------------------------------------------------------------------------------------------------- */

static void check_candidates(const float *logits, int64_t n, const char *what) {
    buffer<uint8_t> work(cuda_candidates_bytes(n)), again_work(cuda_candidates_bytes(n) + 64);
    std::fill(work.at, work.at + work.n, 0xa5);
    buffer<logit_candidates> out(2);
    memset(out.at, 0xff, 2 * sizeof *out.at);
    cuda_launch_candidates(logits, n, out.at, {}, work.at, stream);
    cuda_launch_candidates(logits, n, out.at + 1, {}, again_work.at, stream);
    finish();
    const logit_candidates &got = out[0];
    std::vector<int32_t> order((size_t)n);
    int has_nan = 0;
    for (int64_t i = 0; i < n; i++) {
        order[(size_t)i] = (int32_t)i;
        has_nan |= isnan(logits[i]);
    }
    CHECK(got.has_nan == has_nan, "%s, %d: NaN", what, (int)n);
    CHECK(memcmp(out.at, out.at + 1, sizeof got) == 0 || has_nan != 0, "%s, %d: twice, not the same", what, (int)n);
    const int64_t most = n < (int64_t)LOGIT_CANDIDATES ? n : (int64_t)LOGIT_CANDIDATES;
    CHECK(got.n == most, "%s, %d: %d", what, (int)n, (int)got.n);
    if (has_nan != 0) {
        return;
    }
    std::partial_sort(order.begin(), order.begin() + most, order.end(),
                      [logits](int32_t a, int32_t b) { return logits[a] != logits[b] ? logits[a] > logits[b] : a < b; });
    int64_t differing = 0;
    for (int64_t i = 0; i < most; i++) {
        differing += got.id[i] != order[(size_t)i] || got.logit[i] != logits[order[(size_t)i]];
    }
    CHECK(differing == 0, "%s, %d: %d differ", what, (int)n, (int)differing);
    const double largest = (double)logits[order[0]];
    if (isfinite(largest)) {
        double sum = 0;
        for (int64_t i = 0; i < n; i++) {
            sum += exp((double)logits[i] - largest);
        }
        CHECK(fabs(got.sum - sum) < 8e-7 * sum, "%s, %d: sum %.9g, not %.9g", what, (int)n, got.sum, sum);
    }
}

static void test_candidates(uint64_t *random) {
    const int64_t sizes[] = {1,    2,    255,  256,   257,   1000,  2047,  2048,   2049,
                             4096, 4097, 5000, 32000, 32768, 32769, 65537, 151936, 262144 * 2 + 1};
    for (const int64_t n : sizes) {
        buffer<float> z((size_t)n);
        if (n > LARGEST) {
            break;
        }
        const int n_kinds = n > 200000 ? 1 : n > 40000 || APART > 1 ? 3 : 10;
        for (int kind = 0; kind < n_kinds; kind++) {
            const char *const names[] = {"normal",    "whole numbers", "rising", "falling",  "all equal",
                                         "far apart", "mostly -inf",   "a NaN",  "extremes", "two values"};
            const float extremes[] = {-INFINITY, -3.4e38f, -1e20f, -1e-45f, -0.0f, 0.0f, 1e-45f, 1.0f, 88.0f};
            for (int64_t i = 0; i < n; i++) {
                const double normal = check_normal(random) * 4;
                const double x = kind == 1   ? floor(normal)
                                 : kind == 2 ? (double)i * 1e-3
                                 : kind == 3 ? (double)-i * 1e-3
                                 : kind == 4 ? -3
                                 : kind == 5 ? normal * 1e3 + 1e5
                                             : normal;
                z[(size_t)i] = (float)x;
                if (kind == 6 && check_uniform(random) < 0.995) {
                    z[(size_t)i] = -INFINITY;
                }
                if (kind == 8) {
                    z[(size_t)i] = extremes[check_random(random) % 9];
                }
            }
            if (kind == 9) {
                std::fill(z.at, z.at + n, -8.2f);
                z[(size_t)n / 3] = 0.1f;
            }
            if (kind == 7) {
                z[check_random(random) % (uint64_t)n] = check_random(random) % 2 != 0 ? NAN : -NAN;
            }
            check_candidates(z.at, n, names[kind]);
        }
    }
    buffer<float> z(3000);
    for (const float all : {-INFINITY, INFINITY, 3.4e38f, (float)NAN}) {
        std::fill(z.at, z.at + 3000, all);
        check_candidates(z.at, 3000, "one value");
    }
    for (int i = 0; i < 3000; i++) {
        z[(size_t)i] = i == 2999 || i == 7 ? INFINITY : (float)i;
    }
    check_candidates(z.at, 3000, "two infinities");
}

/* ---- a token drawn from them ---------------------------------------------------------------------------------------- */

struct draw_counts {
    int64_t cases, told, differing;
};

/* What the kernel draws is what the sampler draws with the random number that it foresaw, wherever candidates tell. */
static void check_draw(const float *logits, int64_t n, const lmi_sampling &options, draw_counts *counts) {
    alignas(64) static uint8_t memory[1 << 17];
    CHECK(sampler_bytes(n) <= sizeof memory);
    memset(memory, 0, sizeof memory);
    sampler *s = sampler_at(memory, n);
    lmi_error error = {};
    CHECK(sampler_set(s, &options, &error) == LMI_OK, "%s", error.message);
    draw_order next[2], after[2];
    CHECK(sampler_foresee(s, next));
    buffer<uint8_t> work(cuda_candidates_bytes(n));
    buffer<logit_candidates> top(1);
    buffer<draw_order> order(1);
    buffer<cuda_control> control(1);
    buffer<int32_t> told(1);
    order[0] = next[0];
    *control.at = {7, 8, -9};
    cuda_launch_candidates(logits, n, top.at, {order.at, control.at, told.at}, work.at, stream);
    finish();
    CHECK(control[0].first == 7 && control[0].start == 8 && control[0].drawn == told[0], "one token, told twice");
    CHECK(told[0] >= 0 && told[0] < n, "%d of %d", (int)told[0], (int)n);
    int32_t token = -1, of_all = -1;
    counts->cases++;
    if (sampler_draw_candidates(s, top.at, NULL, 0, 0, &token, NULL)) {
        counts->told++;
        counts->differing += token != told[0];
        sampler_foresee(s, after);
        const bool random = next[0].top_k != 1;
        CHECK(!random || after[0].uniform == next[1].uniform, "the number after it was foreseen, too");
        CHECK(sampler_set(s, &options, &error) == LMI_OK &&
              sampler_draw(s, logits, NULL, 0, 0, &of_all, NULL, &error) == LMI_OK);
        CHECK(of_all == token);
    }
}

static void test_draw(uint64_t *random) {
    struct cut {
        float temperature;
        int32_t top_k;
        float top_p, min_p;
    };
    const cut cuts[] = {{0, 0, 1, 0},         {0.8f, 40, 0.95f, 0.05f},
                        {1.7f, 5, 1, 0},      {1, 0, 0.9f, 0},
                        {2, 0, 0.5f, 0.1f},   {3, 0, 1, 0.2f},
                        {1, 0, 1, 0},         {0.6f, 0, 1, 0},
                        {1, 256, 1, 0},       {1e-3f, 40, 1, 0},
                        {1, 100, 1e-6f, 0},   {1, 1, 0.9f, 0.1f},
                        {100, 256, 0.99f, 0}, {1, 0, 1, 1},
                        {1, 7, 1, 1e-3f}};
    const int64_t sizes[] = {1, 3, 200, 256, 257, 2050};
    draw_counts counts = {0, 0, 0};
    int64_t at = 0;
    for (const int64_t n : sizes) {
        buffer<float> z((size_t)n);
        for (int kind = 0; kind < 6; kind++) {
            for (const cut &c : cuts) {
                if (at++ % APART != 0 || n > LARGEST) {
                    continue;
                }
                for (int64_t i = 0; i < n; i++) {
                    const double normal = check_normal(random);
                    z[(size_t)i] = (float)(kind == 0   ? 3 * normal
                                           : kind == 1 ? floor(2 * normal)                     /* ties */
                                           : kind == 2 ? 0.01 * normal                         /* nearly flat */
                                           : kind == 3 ? (i == n / 2 ? 20 : normal)            /* a peak */
                                           : kind == 4 ? 2 * normal - 3 * (double)(i % 50) / 5 /* a slope */
                                                       : normal + 1e4);
                    if (kind == 4 && i % 3 == 1) {
                        z[(size_t)i] = -INFINITY;
                    }
                }
                lmi_sampling o;
                lmi_sampling_default(&o);
                o.temperature = c.temperature;
                o.top_k = c.top_k;
                o.top_p = c.top_p;
                o.min_p = c.min_p;
                o.seed = check_random(random);
                check_draw(z.at, n, o, &counts);
            }
        }
    }
    CHECK(counts.differing == 0, "%d of %d", (int)counts.differing, (int)counts.told);
    CHECK(counts.told * 10 > counts.cases * 8, "candidates tell %d of %d", (int)counts.told, (int)counts.cases);

    /* Where candidates mean nothing, a token of the vocabulary all the same. */
    buffer<float> z(300);
    lmi_sampling o;
    lmi_sampling_default(&o);
    counts = {0, 0, 0};
    for (const float bad : {(float)NAN, INFINITY, -INFINITY}) {
        std::fill(z.at, z.at + 300, 1.0f);
        z[17] = bad;
        check_draw(z.at, 300, o, &counts);
        std::fill(z.at, z.at + 300, bad);
        check_draw(z.at, 300, o, &counts);
    }
    CHECK(counts.told == 1, "%d", (int)counts.told);
}

int main() {
    uint64_t random = 41;
    lmi_error error;
    CHECK(device_stream_open(0, &stream, &error) == LMI_OK, "%s", error.message);
    test_embedding(&random);
    test_turns(&random);
    test_norms(&random);
    test_route(&random);
    test_candidates(&random);
    test_draw(&random);
    device_stream_close(stream);
    return check_report();
}
