/* What a sampler needs to know of a row of logits unless it looks deeper: a backend that keeps logits on a device makes this
 * there, so that 2 KiB a token leave it and not the whole row. And what a device needs to know to draw from them itself. Plain
 * C and C++. */
#ifndef LMI_BACKEND_CANDIDATES_H
#define LMI_BACKEND_CANDIDATES_H

#include <stdint.h>

enum { LOGIT_CANDIDATES = 256 };

/* The largest logits, descending, equal ones (-0 and 0 are equal) by ascending id: logit[0] is the largest of all. `sum` is
 * the sum of exp(logit - logit[0]) over the whole vocabulary, good to 8e-7 of itself; it means nothing where logit[0] is
 * infinite. -infinity sorts last and adds nothing. Where has_nan is set, there is a NaN in the row, and the rest means
 * nothing. */
typedef struct logit_candidates {
    int32_t n; /* LOGIT_CANDIDATES, or the size of the vocabulary if that is less */
    int32_t has_nan;
    double sum;
    int32_t id[LOGIT_CANDIDATES];
    float logit[LOGIT_CANDIDATES];
} logit_candidates;

/* How the sampler will draw a token from candidates, told before it does, so that a device can draw by the same rules and go on
 * with what it drew. That is a guess: the sampler decides, and rounding is not the same here and there. */
typedef struct draw_order {
    double uniform;    /* the random number that will be used, in [0, 1) */
    float temperature; /* not 0 */
    float top_p, min_p;
    int32_t top_k; /* 1: the first; 0: any number of candidates */
} draw_order;

#endif
