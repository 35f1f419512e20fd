/* Bookkeeping of what is kept of the middle, and a saved state's form of it: numbers of slots and of drops, what lies in the used
 * slots, then keys and values. Boxes are made again. A state is untrusted: recall_store_check sees it before anything is put. */
#include "backend/recall_store.h"

#include <math.h>
#include <string.h>

#include "lambda/boxes.h"

/* A shelf has a bank for every block; SURPRISE one for all its tokens. */
static bool is_surprise(const recall_store *r) { return r->shape->kind == LMI_RECALL_SURPRISE; }

static uint64_t bank_bytes_of(const model_spec *spec, lmi_kv_type type, int64_t n_tokens) {
    return kv_bank_bytes(type, spec->head_dim, kv_round_slots(n_tokens));
}

uint64_t recall_slot_bytes(const model_spec *spec, lmi_kv_type type, int64_t n_layers, int64_t block) {
    const uint64_t box = (uint64_t)(2 * spec->head_dim) * sizeof(uint16_t), tree = box + box / (BOX_FAN - 1);
    return (uint64_t)(n_layers * spec->n_kv_heads) * (bank_bytes_of(spec, type, block) + tree) + 2 * sizeof(int64_t);
}

/* ---- memory -------------------------------------------------------------------------------------------------------------- */

recall_store recall_store_of(const backend_model *model, const context_shape *shape) {
    recall_store r = {.shape = &shape->middle};
    for (int64_t i = model->layer0; i < model->layer1; i++) {
        r.n_shelves += shape->layers[i].recalls ? model->spec->n_kv_heads : 0;
    }
    r.bank_tokens = is_surprise(&r) ? r.shape->n_slots : r.shape->block;
    r.bank_bytes = (size_t)bank_bytes_of(model->spec, shape->kv_type, r.bank_tokens);
    r.banks_size = (uint64_t)((is_surprise(&r) ? 1 : r.shape->n_slots) * r.n_shelves) * r.bank_bytes;
    return r;
}

void *recall_store_bank(const recall_store *r, int64_t shelf, int64_t slot) {
    return r->banks + (size_t)(slot * r->n_shelves + shelf) * r->bank_bytes;
}

/* ---- a chunk -------------------------------------------------------------------------------------------------------------- */

lmi_status recall_store_begin(recall_store *r, int64_t first, int64_t n, bool *went_back, lmi_error *error) {
    if (first == 0) { /* another text: what is there must not be taken for blocks of it */
        r->blocks.n_used = r->blocks.n_dropped = r->surprises.n_used = 0;
    }
    *went_back = first < r->end;
    r->end = first + n;
    if (is_surprise(r)) {
        middle_rank(&r->surprises, r->shape, first, n);
        return LMI_OK;
    }
    return middle_begin(&r->blocks, r->shape, first, n, error);
}

/* ---- saved states ------------------------------------------------------------------------------------------------------- */

typedef struct region {
    void *bytes;
    uint64_t size;
} region;

enum { REGIONS = 5 };

typedef struct head {
    int64_t n_used, n_dropped;
} head;

static head head_of(const recall_store *r) {
    return is_surprise(r) ? (head){r->surprises.n_used, 0} : (head){r->blocks.n_used, r->blocks.n_dropped};
}

/* With n_used slots in use; regions[0] is the head, which lies elsewhere. */
static void list_regions(const recall_store *r, int64_t n_used, region regions[REGIONS]) {
    const uint64_t n = (uint64_t)n_used;
    regions[0] = (region){NULL, sizeof(head)};
    if (is_surprise(r)) {
        regions[1] = (region){r->surprises.token, n * sizeof(int64_t)};
        regions[2] = (region){r->surprises.rank, n * sizeof(double)};
        regions[3] = (region){r->surprises.surprisal, (uint64_t)r->surprises.n_ring * sizeof(float)};
        regions[4] = (region){r->banks, r->banks_size};
    } else {
        regions[1] = (region){r->blocks.block, n * sizeof(int64_t)};
        regions[2] = (region){(void *)r->blocks.chosen, n * sizeof(int64_t)};
        regions[3] = (region){NULL, 0};
        regions[4] = (region){r->banks, n * (uint64_t)r->n_shelves * r->bank_bytes};
    }
}

static uint64_t size_with(const recall_store *r, int64_t n_used) {
    region regions[REGIONS];
    uint64_t size = 0;
    list_regions(r, n_used, regions);
    for (int i = 0; i < REGIONS; i++) {
        size += regions[i].size;
    }
    return size;
}

uint64_t recall_store_bytes(const recall_store *r) { return size_with(r, head_of(r).n_used); }
uint64_t recall_store_most(const recall_store *r) { return size_with(r, r->shape->n_slots); }

/* n bytes from `offset` on, between the regions, which lie one after the other, and `bytes`. */
static void copy(region regions[REGIONS], uint64_t offset, size_t n, uint8_t *to, const uint8_t *from) {
    for (int i = 0; i < REGIONS && n > 0; i++) {
        if (offset >= regions[i].size) {
            offset -= regions[i].size;
            continue;
        }
        const uint64_t left = regions[i].size - offset;
        const size_t part = n < left ? n : (size_t)left;
        uint8_t *at = (uint8_t *)regions[i].bytes + offset;
        if (to != NULL) {
            memcpy(to, at, part);
            to += part;
        } else {
            memcpy(at, from, part);
            from += part;
        }
        n -= part;
        offset = 0;
    }
}

void recall_store_get(const recall_store *r, uint64_t offset, size_t n, void *bytes) {
    region regions[REGIONS];
    head h = head_of(r);
    list_regions(r, h.n_used, regions);
    regions[0].bytes = &h;
    copy(regions, offset, n, bytes, NULL);
}

bool recall_store_put(recall_store *r, uint64_t offset, size_t n, const void *bytes) {
    region regions[REGIONS];
    head h = head_of(r);
    if (offset == 0) {
        memcpy(&h, bytes, sizeof h); /* a part has a MiB, or all there is: recall_store_check saw that it has a head */
        r->surprises.n_used = is_surprise(r) ? h.n_used : 0;
        r->blocks.n_used = is_surprise(r) ? 0 : h.n_used;
        r->blocks.n_dropped = h.n_dropped;
    }
    list_regions(r, h.n_used, regions);
    regions[0].bytes = &h;
    copy(regions, offset, n, NULL, bytes);
    if (offset + n < size_with(r, h.n_used)) {
        return false;
    }
    if (!is_surprise(r)) {
        middle_restore(&r->blocks, r->shape);
        r->end = INT64_MAX;
    }
    return true;
}

static lmi_status senseless(lmi_error *error, const char *what) {
    fail(error, LMI_BAD_FORMAT, "damaged saved state: what it recalls %s", what);
    remedy(error, "Save it again, or start without it.");
    return LMI_BAD_FORMAT;
}

lmi_status recall_store_check(const recall_store *r, const void *bytes, size_t size, lmi_error *error) {
    const int64_t most = (int64_t)1 << 62;
    head h;
    if (size < sizeof h) {
        return senseless(error, "has no head");
    }
    memcpy(&h, bytes, sizeof h);
    if (h.n_used < 0 || h.n_used > r->shape->n_slots || h.n_dropped < 0 || size != size_with(r, h.n_used)) {
        return senseless(error, "does not have the size that it says");
    }
    const uint8_t *at = (const uint8_t *)bytes + sizeof h, *next = at + (size_t)h.n_used * sizeof(int64_t);
    for (int64_t i = 0; i < h.n_used; i++, at += sizeof(int64_t), next += sizeof(int64_t)) {
        int64_t number, stamp;
        double rank;
        memcpy(&number, at, sizeof number);
        memcpy(&stamp, next, sizeof stamp);
        memcpy(&rank, next, sizeof rank);
        if (is_surprise(r) ? number < -1 || number > most || !isfinite(rank)
                           : number < 0 || number > most / r->shape->block || stamp < 0 || stamp > most) {
            return senseless(error, "lies at impossible places");
        }
    }
    return LMI_OK;
}

void recall_store_surprise(recall_store *r, int64_t first, const float *surprisal, int64_t n) {
    for (int64_t i = 0; i < n; i++) {
        r->surprises.surprisal[(first + i) % r->surprises.n_ring] = surprisal[i];
    }
}

void recall_store_counts(const recall_store *r, int64_t n_read, int64_t *kept, int64_t *dropped) {
    const middle_shape *m = r->shape;
    const int64_t size = middle_size(m, n_read);
    *kept = *dropped = 0;
    if (is_surprise(r)) {
        for (int64_t i = 0; i < r->surprises.n_used; i++) {
            const int64_t token = r->surprises.token[i];
            *kept += token >= 0 && token <= n_read - m->window;
        }
        return;
    }
    const middle_blocks *b = &r->blocks;
    for (int64_t s = 0; s < b->n_used; s++) {
        const int64_t left = size - b->block[s] * m->block;
        *kept += left < 0 ? 0 : left < m->block ? left : m->block;
    }
    *dropped = size > 0 ? b->n_dropped * m->block : 0; /* an emptied session counts from the start */
}
