/* topk_kernels.h: the two loops of topk.c that exist once per instruction set. Private. */
#ifndef EDGEREC_TOPK_KERNELS_H
#define EDGEREC_TOPK_KERNELS_H

#include "edgerec.h"

/* Scores are compared in groups of this many; a collect call can return that many positions from one group. */
#define EDR_GROUP 64

typedef struct edr_topk_kernels {
    /*
     * Positions, ascending, of scores x[i] >= bar, i in 0 .. n - 1; NaN is never >=.
     * Stops before a group when fewer than EDR_GROUP of `room` positions are free. Returns how many were written;
     * *next receives the first i not looked at.
     */
    int64_t (*collect)(const float *x, int64_t n, float bar, int32_t *positions, int64_t room, int64_t *next);
    /* columns[c] = max over r of x[r * m + c], NaN ignored, -infinity when all are; m is a multiple of EDR_GROUP. */
    void (*column_max)(const float *x, int64_t rows, int64_t m, float *columns);
} edr_topk_kernels;

/* The kernels of an instruction set that edr_isa_supported. */
const edr_topk_kernels *edr_topk_kernels_for(int isa);

#endif
