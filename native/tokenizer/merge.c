#include "tokenizer/merge.h"

#include <stdlib.h>
#include <string.h>

enum { FEW = 48 };          /* characters that are merged with plain loops */
#define DEAD UINT32_MAX     /* the value of cells inside of symbols */
#define NO_LEVEL UINT64_MAX /* beyond every level */

static lmi_status out_of_memory(lmi_error *error) {
    fail(error, LMI_OUT_OF_MEMORY, "no memory to tokenize a long piece of text");
    remedy(error,
           "Text without blanks, such as one long run of a character, needs some 20 bytes of memory for each of its bytes.");
    return LMI_OUT_OF_MEMORY;
}

/* Makes room for `needed` items of `size` bytes. */
static bool reserve(void **items, size_t *capacity, size_t needed, size_t size) {
    if (needed <= *capacity) {
        return true;
    }
    size_t larger = *capacity < 256 ? 256 : *capacity + *capacity / 2;
    larger = larger < needed ? needed : larger;
    void *moved = larger > SIZE_MAX / size ? NULL : realloc(*items, larger * size);
    if (moved == NULL) {
        return false;
    }
    *items = moved;
    *capacity = larger;
    return true;
}

void merger_close(merger *m) {
    free(m->cells);
    free(m->heap);
    free(m->tokens);
}

void merger_trim(merger *m) {
    enum { KEEP = 65536 };
    if (m->cells_capacity > KEEP) {
        free(m->cells);
        m->cells = NULL;
        m->cells_capacity = 0;
    }
    if (m->heap_capacity > KEEP) {
        free(m->heap);
        m->heap = NULL;
        m->heap_capacity = 0;
    }
}

lmi_status merger_push(merger *m, int32_t token, lmi_error *error) {
    void *tokens = m->tokens;
    bool ok = reserve(&tokens, &m->tokens_capacity, m->n_tokens + 1, sizeof m->tokens[0]);
    m->tokens = tokens;
    if (!ok) {
        return out_of_memory(error);
    }
    m->tokens[m->n_tokens++] = token;
    m->after_unknown = false;
    return LMI_OK;
}

static lmi_status push_unknown(merger *m, lmi_error *error) {
    if (m->t->unk < 0 || m->after_unknown) {
        return LMI_OK;
    }
    lmi_status status = merger_push(m, m->t->unk, error);
    m->after_unknown = true;
    return status;
}

/* ---- what neighbours become ---------------------------------------------------------------------------------------- */

/* Level of the merge of two symbols, NO_LEVEL if there is none, and the token it makes. For spm their text runs from
 * byte `left` to byte `end`, for bpe `left` and `right` are tokens. */
static inline uint64_t level_of_pair(const tokenizer *t, const uint8_t *text, uint32_t left, uint32_t right, uint32_t end,
                                     uint32_t *token) {
    if (t->spm) {
        if (end - left > t->longest) {
            return NO_LEVEL;
        }
        *token = vocab_find_word(t, text + left, end - left);
        return *token == NO_TOKEN ? NO_LEVEL : t->levels[*token];
    }
    const merge_slot *merge = vocab_find_merge(t, left, right);
    if (merge == NULL) {
        return NO_LEVEL;
    }
    *token = merge->result;
    return merge->rank;
}

/* A symbol that is done, as tokens. */
static lmi_status push_symbol(merger *m, const uint8_t *text, uint32_t value, uint32_t end, lmi_error *error) {
    const tokenizer *t = m->t;
    if (!t->spm) {
        return merger_push(m, (int32_t)value, error);
    }
    uint32_t token = end - value > t->longest ? NO_TOKEN : vocab_find_word(t, text + value, end - value);
    if (token != NO_TOKEN) {
        return merger_push(m, (int32_t)token, error);
    }
    lmi_status status = LMI_OK;
    for (uint32_t at = value; at < end && status == LMI_OK; at++) {
        int32_t byte = t->byte_tokens[text[at]];
        status = byte >= 0 ? merger_push(m, byte, error) : push_unknown(m, error);
    }
    return status;
}

/* ---- first symbols ------------------------------------------------------------------------------------------------- */

/* Writes at most `capacity` values from text[*at] on and moves *at. bpe: a byte is a symbol; bytes without a token are left
 * out (as Hugging Face does), but those that cannot occur in UTF-8 become U+FFFD. spm: a character is a symbol. */
static size_t first_values(const tokenizer *t, const uint8_t *text, size_t *at, size_t size, uint32_t *values,
                           size_t capacity) {
    size_t n = 0;
    if (t->spm) {
        while (*at < size && n < capacity) {
            uint32_t point;
            values[n++] = (uint32_t)*at;
            *at += text[*at] < 128 ? 1 : unicode_read(text, *at, size, true, &point);
        }
        return n;
    }
    static const uint8_t REPLACEMENT[3] = {0xEF, 0xBF, 0xBD};
    for (; *at < size && n + 3 <= capacity; ++*at) {
        uint8_t byte = text[*at];
        if (t->byte_tokens[byte] >= 0) {
            values[n++] = (uint32_t)t->byte_tokens[byte];
        } else if (byte == 0xC0 || byte == 0xC1 || byte >= 0xF5) {
            for (int i = 0; i < 3; i++) {
                if (t->byte_tokens[REPLACEMENT[i]] >= 0) {
                    values[n++] = (uint32_t)t->byte_tokens[REPLACEMENT[i]];
                }
            }
        }
    }
    return n;
}

/* ---- few ----------------------------------------------------------------------------------------------------------- */

/* values[n] is the size for spm, anything for bpe. */
static lmi_status merge_few(merger *m, const uint8_t *text, uint32_t *values, size_t n, lmi_error *error) {
    const tokenizer *t = m->t;
    uint64_t levels[FEW];
    uint32_t tokens[FEW]; /* of the pair that begins here */
    size_t best = 0;
    for (size_t i = 0; i + 1 < n; i++) {
        levels[i] = level_of_pair(t, text, values[i], values[i + 1], values[i + 2], &tokens[i]);
        best = levels[i] < levels[best] ? i : best;
    }
    while (n > 1 && levels[best] != NO_LEVEL) {
        if (!t->spm) {
            values[best] = tokens[best];
        }
        /* The right one of the pair, best + 1, goes; so do its level and what it would have made. */
        for (size_t i = best + 1; i < n; i++) {
            values[i] = values[i + 1];
        }
        n--;
        for (size_t i = best + 1; i + 1 < n; i++) {
            levels[i] = levels[i + 1];
            tokens[i] = tokens[i + 1];
        }
        if (best + 1 < n) {
            levels[best] = level_of_pair(t, text, values[best], values[best + 1], values[best + 2], &tokens[best]);
        }
        if (best > 0) {
            levels[best - 1] = level_of_pair(t, text, values[best - 1], values[best], values[best + 1], &tokens[best - 1]);
        }
        best = 0;
        for (size_t i = 1; i + 1 < n; i++) {
            best = levels[i] < levels[best] ? i : best;
        }
    }
    lmi_status status = LMI_OK;
    for (size_t i = 0; i < n && status == LMI_OK; i++) {
        status = push_symbol(m, text, values[i], values[i + 1], error);
    }
    return status;
}

/* ---- many ---------------------------------------------------------------------------------------------------------- */

/* Eight children each: a step down reads one or two cache lines, and a million entries are seven steps deep. */
enum { CHILDREN = 8 };

static void sift_down(uint64_t *heap, size_t size, size_t at) {
    uint64_t moving = heap[at];
    for (;;) {
        size_t child = CHILDREN * at + 1, least = child;
        if (child >= size) {
            break;
        }
        size_t end = child + CHILDREN < size ? child + CHILDREN : size;
        for (child++; child < end; child++) {
            least = heap[child] < heap[least] ? child : least;
        }
        if (heap[least] >= moving) {
            break;
        }
        heap[at] = heap[least];
        at = least;
    }
    heap[at] = moving;
}

static bool heap_push(merger *m, uint64_t entry) {
    void *heap = m->heap;
    bool ok = reserve(&heap, &m->heap_capacity, m->heap_size + 1, sizeof m->heap[0]);
    m->heap = heap;
    if (!ok) {
        return false;
    }
    size_t at = m->heap_size++;
    while (at > 0 && m->heap[(at - 1) / CHILDREN] > entry) {
        m->heap[at] = m->heap[(at - 1) / CHILDREN];
        at = (at - 1) / CHILDREN;
    }
    m->heap[at] = entry;
    return true;
}

/* Level of the pair whose left symbol begins at cell `i`; NO_LEVEL if it is the last. */
static uint64_t level_at(const merger *m, const uint8_t *text, size_t size, size_t n, size_t i, uint32_t *token) {
    const merge_cell *cells = m->cells;
    size_t right = i + cells[i].span;
    if (right >= n) {
        return NO_LEVEL;
    }
    size_t after = right + cells[right].span;
    uint32_t end = after < n ? cells[after].value : (uint32_t)size;
    return level_of_pair(m->t, text, cells[i].value, cells[right].value, end, token);
}

static lmi_status merge_cells(merger *m, const uint8_t *text, size_t size, size_t n, lmi_error *error) {
    merge_cell *cells = m->cells;
    uint32_t token;
    m->heap_size = 0;
    for (size_t i = 0; i + 1 < n; i++) {
        uint64_t level = level_at(m, text, size, n, i, &token);
        if (level != NO_LEVEL) {
            void *heap = m->heap;
            bool ok = reserve(&heap, &m->heap_capacity, m->heap_size + 1, sizeof m->heap[0]);
            m->heap = heap;
            if (!ok) {
                return out_of_memory(error);
            }
            m->heap[m->heap_size++] = level << 32 | i;
        }
    }
    for (size_t i = (m->heap_size + CHILDREN - 2) / CHILDREN; i-- > 0;) {
        sift_down(m->heap, m->heap_size, i);
    }
    while (m->heap_size > 0) {
        uint64_t entry = m->heap[0];
        m->heap[0] = m->heap[--m->heap_size];
        if (m->heap_size > 0) {
            sift_down(m->heap, m->heap_size, 0);
        }
        size_t i = entry & UINT32_MAX;
        /* An entry holds for as long as the pair at its cell has its level: other symbols may stand there by now. */
        if (cells[i].value == DEAD || level_at(m, text, size, n, i, &token) != entry >> 32) {
            continue;
        }
        size_t right = i + cells[i].span;
        uint32_t span = cells[i].span + cells[right].span;
        cells[right].value = DEAD;
        cells[i].span = cells[i + span - 1].span = span;
        if (!m->t->spm) {
            cells[i].value = token;
        }
        const size_t starts[2] = {i, i > 0 ? i - cells[i - 1].span : SIZE_MAX};
        for (int k = 0; k < 2; k++) {
            uint64_t level = starts[k] == SIZE_MAX ? NO_LEVEL : level_at(m, text, size, n, starts[k], &token);
            if (level != NO_LEVEL && !heap_push(m, level << 32 | starts[k])) {
                return out_of_memory(error);
            }
        }
    }
    lmi_status status = LMI_OK;
    for (size_t i = 0; i < n && status == LMI_OK;) {
        size_t next = i + cells[i].span;
        status = push_symbol(m, text, cells[i].value, next < n ? cells[next].value : (uint32_t)size, error);
        i = next;
    }
    return status;
}

lmi_status merge_text_by_heap(merger *m, const uint8_t *text, size_t size, lmi_error *error) {
    size_t n = 0;
    if (size > UINT32_MAX / 3 - 2) {
        fail(error, LMI_UNSUPPORTED, "a piece of text without a place to cut has more than 1.4 billion bytes");
        remedy(error, "Break the text into lines or words.");
        return LMI_UNSUPPORTED;
    }
    for (size_t at = 0; at < size;) {
        uint32_t values[256];
        size_t more = first_values(m->t, text, &at, size, values, 256);
        void *cells = m->cells;
        bool ok = reserve(&cells, &m->cells_capacity, n + more, sizeof m->cells[0]);
        m->cells = cells;
        if (!ok) {
            return out_of_memory(error);
        }
        for (size_t i = 0; i < more; i++) {
            m->cells[n++] = (merge_cell){values[i], 1};
        }
    }
    return merge_cells(m, text, size, n, error);
}

lmi_status merge_text(merger *m, const uint8_t *text, size_t size, lmi_error *error) {
    uint32_t values[FEW + 1];
    size_t at = 0;
    if (size <= FEW * 4) {
        size_t n = first_values(m->t, text, &at, size, values, FEW);
        if (at == size) {
            values[n] = (uint32_t)size;
            return merge_few(m, text, values, n, error);
        }
    }
    return merge_text_by_heap(m, text, size, error);
}
