/* Two backends that share a model: the first runs the first layers, the second the rest and the output. A chunk goes through one and
 * then the other, and its hidden state from the one to the other. */
#ifndef LMI_BACKEND_SPLIT_H
#define LMI_BACKEND_SPLIT_H

#include "backend/backend.h"

typedef struct split_model {
    const backend *device[2];
    backend_model part[2]; /* layers 0 to n, n to the last */
} split_model;

/* The table of the two together, with what both can do. It takes models whose `weights` is a split_model. */
backend split_backend(const split_model *halves);

/* Steps of a model's part: those of layers layer0 <= i < layer1, with EMBED and the output where they belong to them. */
backend_model split_part(const backend_model *whole, int64_t layer0, int64_t layer1);

#endif
