/* What is kept of the middle as a saved state holds it: numbers of slots and of drops, what lies in the used slots, then keys
 * and values. Boxes are made again. A state is untrusted: recall_check sees it before anything is put. */
#include <math.h>
#include <string.h>

#include "backend/cpu.h"

typedef struct region {
    void *bytes;
    uint64_t size;
} region;

enum { REGIONS = 5 };

typedef struct head {
    int64_t n_used, n_dropped;
} head;

static bool is_surprise(const backend_context *c) { return c->shape.middle.kind == LMI_RECALL_SURPRISE; }

static head head_of(const backend_context *c) {
    const cpu_recall *r = c->recall;
    return is_surprise(c) ? (head){r->surprises.n_used, 0} : (head){r->blocks.n_used, r->blocks.n_dropped};
}

/* With n_used slots in use; regions[0] is the head, which lies elsewhere. */
static void list_regions(const backend_context *c, int64_t n_used, region regions[REGIONS]) {
    const cpu_recall *r = c->recall;
    const uint64_t n = (uint64_t)n_used;
    regions[0] = (region){NULL, sizeof(head)};
    if (is_surprise(c)) {
        regions[1] = (region){r->surprises.token, n * sizeof(int64_t)};
        regions[2] = (region){r->surprises.rank, n * sizeof(double)};
        regions[3] = (region){r->surprises.surprisal, (uint64_t)r->surprises.n_ring * sizeof(float)};
        regions[4] = (region){r->store.bytes, r->store.size};
    } else {
        regions[1] = (region){r->blocks.block, n * sizeof(int64_t)};
        regions[2] = (region){(void *)r->blocks.chosen, n * sizeof(int64_t)};
        regions[3] = (region){NULL, 0};
        regions[4] = (region){r->store.bytes, n * (uint64_t)r->n_shelves * r->bank_bytes};
    }
}

static uint64_t size_with(const backend_context *c, int64_t n_used) {
    region regions[REGIONS];
    uint64_t size = 0;
    list_regions(c, n_used, regions);
    for (int i = 0; i < REGIONS; i++) {
        size += regions[i].size;
    }
    return size;
}

uint64_t cpu_recall_bytes(const backend_context *c) { return c->recall == NULL ? 0 : size_with(c, head_of(c).n_used); }
uint64_t cpu_recall_most(const backend_context *c) { return c->recall == NULL ? 0 : size_with(c, c->shape.middle.n_slots); }

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

void cpu_recall_get(backend_context *c, uint64_t offset, size_t n, void *bytes) {
    region regions[REGIONS];
    head h = head_of(c);
    list_regions(c, h.n_used, regions);
    regions[0].bytes = &h;
    copy(regions, offset, n, bytes, NULL);
}

static void finish(backend_context *c) {
    cpu_recall *r = c->recall;
    if (is_surprise(c)) {
        return;
    }
    middle_restore(&r->blocks, &c->shape.middle);
    r->end = INT64_MAX;
    for (int64_t shelf = 0; r->boxes != NULL && shelf < r->n_shelves; shelf++) {
        for (int64_t s = 0; s < r->blocks.n_used; s++) {
            cpu_recall_enclose(c, shelf, s, &c->workers[0]);
        }
    }
}

void cpu_recall_put(backend_context *c, uint64_t offset, size_t n, const void *bytes) {
    region regions[REGIONS];
    head h = head_of(c);
    if (offset == 0) {
        memcpy(&h, bytes, sizeof h); /* a part has a MiB, or all there is: recall_check saw that it has a head */
        c->recall->surprises.n_used = is_surprise(c) ? h.n_used : 0;
        c->recall->blocks.n_used = is_surprise(c) ? 0 : h.n_used;
        c->recall->blocks.n_dropped = h.n_dropped;
    }
    list_regions(c, h.n_used, regions);
    regions[0].bytes = &h;
    copy(regions, offset, n, NULL, bytes);
    if (offset + n == size_with(c, h.n_used)) {
        finish(c);
    }
}

static lmi_status senseless(lmi_error *error, const char *what) {
    fail(error, LMI_BAD_FORMAT, "damaged saved state: what it recalls %s", what);
    remedy(error, "Save it again, or start without it.");
    return LMI_BAD_FORMAT;
}

lmi_status cpu_recall_check(const backend_context *c, const void *bytes, size_t size, lmi_error *error) {
    const int64_t most = (int64_t)1 << 62;
    head h;
    if (size < sizeof h) {
        return senseless(error, "has no head");
    }
    memcpy(&h, bytes, sizeof h);
    if (h.n_used < 0 || h.n_used > c->shape.middle.n_slots || h.n_dropped < 0 || size != size_with(c, h.n_used)) {
        return senseless(error, "does not have the size that it says");
    }
    const uint8_t *at = (const uint8_t *)bytes + sizeof h, *next = at + (size_t)h.n_used * sizeof(int64_t);
    for (int64_t i = 0; i < h.n_used; i++, at += sizeof(int64_t), next += sizeof(int64_t)) {
        int64_t number, stamp;
        double rank;
        memcpy(&number, at, sizeof number);
        memcpy(&stamp, next, sizeof stamp);
        memcpy(&rank, next, sizeof rank);
        if (is_surprise(c) ? number < -1 || number > most || !isfinite(rank)
                           : number < 0 || number > most / c->shape.middle.block || stamp < 0 || stamp > most) {
            return senseless(error, "lies at impossible places");
        }
    }
    return LMI_OK;
}

void cpu_recall_surprise(backend_context *c, int64_t first, const float *surprisal, int64_t n) {
    middle_surprises *s = &c->recall->surprises;
    for (int64_t i = 0; i < n; i++) {
        s->surprisal[(first + i) % s->n_ring] = surprisal[i];
    }
}

void cpu_recall_counts(const backend_context *c, int64_t n_read, int64_t *kept, int64_t *dropped) {
    const middle_shape *m = &c->shape.middle;
    const int64_t size = middle_size(m, n_read);
    *kept = *dropped = 0;
    if (c->recall == NULL) {
        return;
    }
    if (is_surprise(c)) {
        for (int64_t i = 0; i < c->recall->surprises.n_used; i++) {
            const int64_t token = c->recall->surprises.token[i];
            *kept += token >= 0 && token <= n_read - m->window;
        }
        return;
    }
    const middle_blocks *b = &c->recall->blocks;
    for (int64_t s = 0; s < b->n_used; s++) {
        const int64_t left = size - b->block[s] * m->block;
        *kept += left < 0 ? 0 : left < m->block ? left : m->block;
    }
    *dropped = size > 0 ? b->n_dropped * m->block : 0; /* an emptied session counts from the start */
}
