/* What a saved state says about what is recalled, with all sums right: nonsense is refused and changes nothing; what is accepted
 * may be false, but reading goes on in the session's own memory (run under AddressSanitizer). */
#define _GNU_SOURCE

#include "base/hash.h"
#include "memory_llama.h"

enum { N_TOKENS = 420, MIB = 1 << 20, HEADER = 256, SIZES_AT = 144, RECALL = 4, SLOTS = 9 };

static lmi_session *open_session(lmi_model *model, lmi_recall kind) {
    lmi_session_options options;
    lmi_session_options_default(&options);
    options.window = 20;
    options.sinks = 3;
    options.chunk = 16;
    options.rollback = 16;
    options.recall = (lmi_recall_options){.kind = kind, .n = (int64_t[]){0, 5, SLOTS, 2}[kind], .block = 16};
    options.recall.budget = kind == LMI_RECALL_BLOCKS ? 1 : 0;
    lmi_session *session = NULL;
    lmi_error error = {0};
    while (lmi_session_open(model, &options, &session, &error) == LMI_INVALID_ARGUMENT && options.recall.budget < MIB) {
        options.recall.budget += 512; /* as small as can be */
    }
    CHECK(session != NULL, "%s", error.message);
    return session;
}

static void fill_tokens(int32_t tokens[N_TOKENS], const lmi_model *model) {
    lmi_model_info info;
    lmi_model_get_info(model, &info);
    uint64_t seed = 7;
    for (int i = 0; i < N_TOKENS; i++) {
        tokens[i] = (int32_t)(check_random(&seed) % (uint64_t)info.n_vocab);
    }
}

/* ---- a state's bytes ---------------------------------------------------------------------------------------------------- */

typedef struct state {
    uint8_t *bytes, *part; /* part: of what is recalled */
    size_t size, part_size;
} state;

static uint64_t get(const uint8_t *at) {
    uint64_t value;
    memcpy(&value, at, sizeof value);
    return value;
}
static void put(uint8_t *at, uint64_t value) { memcpy(at, &value, sizeof value); }
static void put_sum(uint8_t *at, uint32_t sum) { memcpy(at, &sum, sizeof sum); }

static state locate(uint8_t *bytes, size_t size) {
    state s = {.bytes = bytes, .part = bytes + HEADER, .size = size, .part_size = (size_t)get(bytes + SIZES_AT + 8 * RECALL)};
    for (int i = 0; i < RECALL; i++) {
        s.part += get(bytes + SIZES_AT + 8 * i);
    }
    return s;
}

static void repair(state *s) {
    const uint8_t *end = s->part + s->part_size;
    const size_t payload = (size_t)(end - s->bytes) - HEADER;
    s->size = HEADER + payload + (payload + MIB - 1) / MIB * 4;
    for (size_t i = 0; i * MIB < payload; i++) {
        const size_t n = payload - i * MIB < MIB ? payload - i * MIB : MIB;
        put_sum(s->bytes + HEADER + payload + 4 * i, crc32c(0, s->bytes + HEADER + i * MIB, n));
    }
    put(s->bytes + SIZES_AT + 8 * RECALL, s->part_size);
    put_sum(s->bytes + HEADER - 4, crc32c(0, s->bytes, HEADER - 4));
}

static state save(lmi_session *session) {
    const size_t size = lmi_session_state_size(session);
    uint8_t *bytes = malloc(size + 4096);
    lmi_error error = {0};
    CHECK(lmi_session_state_write(session, bytes, size, &error) == LMI_OK, "%s", error.message);
    return locate(bytes, size);
}

static state copy(const state *s) {
    uint8_t *bytes = malloc(s->size + 4096);
    memcpy(bytes, s->bytes, s->size);
    return locate(bytes, s->size);
}

static lmi_status load(lmi_session *session, state *s, lmi_error *error) {
    repair(s);
    uint8_t *exact = malloc(s->size); /* so that a byte too many is seen */
    memcpy(exact, s->bytes, s->size);
    memset(error, 0, sizeof *error);
    const lmi_status status = lmi_session_state_read(session, exact, s->size, error);
    free(exact);
    return status;
}

static void go_on(lmi_session *session, const int32_t *tokens) {
    lmi_error error = {0};
    lmi_view view;
    lmi_status status = lmi_session_read(session, tokens, 90, NULL, &error);
    for (int i = 0; i < 40 && status == LMI_OK; i++) {
        status = lmi_session_read(session, tokens + 90 + i, 1, NULL, &error);
    }
    CHECK(status == LMI_OK || status == LMI_OUT_OF_MEMORY, "%s", error.message); /* TOPK that says that it has kept all */
    lmi_session_get_view(session, &view);
    state again = save(session);
    status = load(session, &again, &error);
    CHECK(status == LMI_OK, "what was accepted cannot be loaded again: %s", error.message);
    free(again.bytes);
}

static void refused(lmi_session *session, state *bad, const char *what) {
    lmi_error error;
    state before = save(session), after;
    const lmi_status status = load(session, bad, &error);
    CHECK(status == LMI_BAD_FORMAT || status == LMI_STATE, "%s: %d %s", what, (int)status, error.message);
    CHECK(error.message[0] != '\0' && error.remedy[0] != '\0', "%s", what);
    after = save(session);
    CHECK(before.size == after.size && memcmp(before.bytes, after.bytes, before.size) == 0, "%s changed something", what);
    free(before.bytes);
    free(after.bytes);
    free(bad->bytes);
}

/* ---- tests -------------------------------------------------------------------------------------------------------------- */

static void test_nonsense(lmi_session *session, const state *good, bool surprise) {
    const uint64_t n_used = get(good->part), huge = (uint64_t)1 << 62, nan = 0x7ff8000000000000u,
                   infinite = 0x7ff0000000000000u;
    const size_t numbers = 16, seconds = 16 + 8 * n_used;
    const struct {
        const char *what;
        size_t at;
        uint64_t value;
    } bad[] = {
        {"one slot fewer", 0, n_used - 1},
        {"one slot more", 0, n_used + 1},
        {"fewer than no slots", 0, (uint64_t)-1},
        {"2^62 slots", 0, huge},
        {"a number of slots whose bytes overflow", 0, (uint64_t)1 << 60},
        {"fewer than none dropped", 8, (uint64_t)INT64_MIN},
        {"a block or token before the first", numbers, surprise ? (uint64_t)-2 : (uint64_t)-1},
        {"a token beyond 2^62", numbers + 8 * (n_used - 1), huge + 1},
        {surprise ? "NaN" : "chosen before the text began", seconds, surprise ? nan : (uint64_t)-1},
        {surprise ? "infinite" : "chosen beyond 2^62", seconds + 8 * (n_used - 1), surprise ? infinite : huge + 1},
    };
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        state s = copy(good);
        put(s.part + bad[i].at, bad[i].value);
        if (!surprise || i != 0) { /* of surprises the slots have a size of their own: fewer of them lie elsewhere */
            refused(session, &s, bad[i].what);
        } else {
            free(s.bytes);
        }
    }
    for (size_t size = 0; size < good->part_size; size += size < 40 ? 1 : good->part_size / 7) {
        state s = copy(good);
        s.part_size = size;
        if (surprise || size != 16) {
            refused(session, &s, "a part cut short");
        } else {
            free(s.bytes);
        }
    }
    state s = copy(good);
    memset(s.part + s.part_size, 0, 64);
    s.part_size += 64;
    refused(session, &s, "a part too long");
}

/* Accepted, and false: no blocks at all; the block that is begun in every slot; blocks of the future. */
static void test_false_blocks(lmi_session *session, const state *good, const int32_t *tokens) {
    lmi_error error;
    const uint64_t n_used = get(good->part);
    state s = copy(good);
    s.part_size = 16;
    put(s.part, 0);
    CHECK(load(session, &s, &error) == LMI_OK, "%s", error.message);
    go_on(session, tokens);
    free(s.bytes);
    for (int64_t shift = -12; shift < 12; shift++) {
        s = copy(good);
        const int64_t newest = (int64_t)((lmi_session_position(session) + 39) / 16);
        for (uint64_t i = 0; i < n_used; i++) {
            const int64_t number = newest + shift + (shift % 2 == 0 ? 0 : (int64_t)i);
            put(s.part + 16 + 8 * i, (uint64_t)(number < 0 ? 0 : number));
        }
        CHECK(load(session, &s, &error) == LMI_OK, "%s", error.message);
        go_on(session, tokens);
        free(s.bytes);
        state back = copy(good);
        CHECK(load(session, &back, &error) == LMI_OK);
        free(back.bytes);
    }
}

static void test_damage(lmi_session *session, const state *good, const int32_t *tokens, lmi_recall kind) {
    uint64_t seed = (uint64_t)kind;
    const size_t head = 16 + 16 * (size_t)get(good->part);
    long n_accepted = 0;
    for (int round = 0; round < 60; round++) {
        state s = copy(good);
        for (int i = 0; i < 4; i++) {
            const uint64_t r = check_random(&seed);
            const size_t range = r % 3 == 0 ? s.part_size : head;
            s.part[(r >> 8) % range] ^= (uint8_t)(1u << (r >> 4) % 8);
        }
        lmi_error error;
        if (load(session, &s, &error) == LMI_OK) {
            n_accepted++;
            go_on(session, tokens + round);
        }
        free(s.bytes);
    }
    CHECK(n_accepted > 3 && n_accepted < 57, "%ld of 60 accepted", n_accepted);
}

int main(void) {
    lmi_model *model = open_model(QUANT_Q8_0, 2);
    int32_t tokens[N_TOKENS];
    fill_tokens(tokens, model);
    for (int kind = LMI_RECALL_TOPK; kind <= LMI_RECALL_BLOCKS; kind++) {
        lmi_session *session = open_session(model, (lmi_recall)kind);
        lmi_error error = {0};
        CHECK(lmi_session_read(session, tokens, 203, NULL, &error) == LMI_OK, "%s", error.message);
        state good = save(session);
        test_nonsense(session, &good, kind == LMI_RECALL_SURPRISE);
        if (kind == LMI_RECALL_BLOCKS) {
            lmi_view view;
            lmi_session_get_view(session, &view);
            CHECK(view.dropped > 0, "the budget is not used up");
            test_false_blocks(session, &good, tokens);
        }
        test_damage(session, &good, tokens, (lmi_recall)kind);
        free(good.bytes);
        lmi_session_close(session);
    }
    lmi_model_close(model);
    return check_report();
}
