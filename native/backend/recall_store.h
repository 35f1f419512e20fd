/* What a backend keeps of the middle: which blocks or tokens lie in which slots, and their banks, in host memory. The CPU and
 * devices keep it alike, so that saved states move between them; who moves tokens there and chooses is the backend's own. */
#ifndef LMI_BACKEND_RECALL_STORE_H
#define LMI_BACKEND_RECALL_STORE_H

#include "backend/backend.h"

/* A shelf is one layer's kv head. */
typedef struct recall_store {
    const middle_shape *shape;
    middle_blocks blocks;
    middle_surprises surprises;
    int64_t n_shelves;
    int64_t bank_tokens; /* of a slot of a shelf; SURPRISE: of the shelf */
    size_t bank_bytes;
    uint8_t *banks; /* [n_slots][n_shelves]; SURPRISE: [n_shelves] */
    uint64_t banks_size;
    int64_t end; /* tokens read with the last chunk that was begun; after loading, more than can be */
} recall_store;

/* Its sizes, for the layers of the part; memory for banks, blocks and surprises is the backend's to take. */
recall_store recall_store_of(const backend_model *model, const context_shape *shape);
void *recall_store_bank(const recall_store *store, int64_t shelf, int64_t slot);

/* Decides, before a chunk is read, where its leaving tokens go. `went_back`: blocks that were whole may not be any more, and a
 * search must not depend on what they were. */
lmi_status recall_store_begin(recall_store *store, int64_t first, int64_t n, bool *went_back, lmi_error *error);

/* As backend.h has them. put: true when that was the last of it. */
uint64_t recall_store_bytes(const recall_store *store);
uint64_t recall_store_most(const recall_store *store);
void recall_store_get(const recall_store *store, uint64_t offset, size_t n, void *bytes);
bool recall_store_put(recall_store *store, uint64_t offset, size_t n, const void *bytes);
lmi_status recall_store_check(const recall_store *store, const void *bytes, size_t size, lmi_error *error);
void recall_store_surprise(recall_store *store, int64_t first, const float *surprisal, int64_t n);
void recall_store_counts(const recall_store *store, int64_t n_read, int64_t *kept, int64_t *dropped);

#endif
