/* engine_kernels.h: the loops of the native encoder that exist once per instruction set. Private. */
#ifndef EDGEREC_ENGINE_KERNELS_H
#define EDGEREC_ENGINE_KERNELS_H

#include "edr_engine.h"

/* Weights are packed in panels of this many output columns. */
#define EDR_PANEL 32

/* What a product does with its sums, while they are still in registers. */
enum {
    EDR_STORE = 0, /* out = y */
    EDR_GELU = 1,  /* out = gelu(y), the exact one */
    EDR_ADD = 2,   /* out = out + y: the residual */
    EDR_GELU_TANH = 3,  /* out = gelu(y), its approximation by tanh */
    EDR_GELU_COARSE = 4 /* no caller's: what EDR_GELU is to the kernels of int8, because the result is rounded to one of 256 numbers next */
};

/* The left side of a product: m rows of k numbers. For int8 weights a row is u8 with x = least + scale * u; bfloat16, the upper
 * half of a float32, is kept in a uint16. Of these two kinds EDR_OPERAND_BYTES can be read, whatever lies behind the m rows. */
typedef struct edr_rows {
    const void *data;    /* float32, uint8 or bfloat16 [m, k] */
    const float *scale;  /* [m], int8 only */
    const float *least;  /* [m], int8 only */
} edr_rows;

#define EDR_ROUND16(n) (((n) + 15) / 16 * 16)

/* Bytes of m rows, of `row` bytes each, up to whole tiles: to 16 rows, and to 64 bytes in the last of them. */
#define EDR_OPERAND_BYTES(m, row) (EDR_ROUND16(m) * (row) + 64)

/* Keys and values of one head, [t, s] each, rows ld apart. */
typedef struct edr_keys {
    const float *k, *v;
    int64_t ld, t;
} edr_keys;

/* Queries of one head, [rows, s], rows ld apart. */
typedef struct edr_asking {
    const float *q;
    int64_t ld, rows;
} edr_asking;

/*
 * The questions of one row to vectors x [t, n] that have no keys and values of their own: the row's questions q [A, s] were folded into
 * [A, n], rows ld apart. mixed [A, n], rows ldm apart, gets the weighted sums of x; it may be where the questions are. The other members
 * serve a row that looks at keys and values beside x.
 */
typedef struct edr_folded {
    const float *questions;
    float *mixed;
    int64_t ld, ldm;
    const float *q, *extra; /* [A, s]; [A], added to the scores of x */
    float *out, *weight;    /* [A, s], what the values give; [A], the sum of the weights of x */
} edr_folded;

typedef struct edr_engine_kernels {
    /* out[r][32 p .. ] for panels first <= p < first + panels of w, written from column 0 of out on; ldo is out's row length. */
    void (*product_f32)(const edr_linear *w, int64_t first, int64_t panels, const edr_rows *x, int64_t m, float *out, int64_t ldo, int then);
    void (*product_u8)(const edr_linear *w, int64_t first, int64_t panels, const edr_rows *x, int64_t m, float *out, int64_t ldo, int then);
    void (*product_bf16)(const edr_linear *w, int64_t first, int64_t panels, const edr_rows *x, int64_t m, float *out, int64_t ldo, int then);
    /* Each row of x [rows, n] to u8 over its own range: u = round((x - least) / scale), scale = (most - least) / 255. n is a multiple of 32. */
    void (*quantise)(const float *x, int64_t rows, int64_t n, uint8_t *u, float *scale, float *least);
    /* x to the nearest bfloat16, of two the even one; NaN stays NaN. n is a multiple of 32. */
    void (*round_bf16)(const float *x, int64_t n, uint16_t *out);
    /* LayerNorm of the rows of x [rows, n], in place: weight is [2, n], scale then shift; n is a multiple of 32. */
    void (*normalise)(float *x, int64_t rows, int64_t n, const float *weight);
    /* out = word + position + type; word is int8 times `scale`, bfloat16 or float32: numbers of 1, 2 or 4 bytes. */
    void (*embed)(const void *word, int bytes, float scale, const float *position, const float *type, int64_t n, float *out);
    /*
     * Attention of one sequence and one head. Queries are those of `first`, and then those of `second` unless that is NULL: m in all; keys
     * and values those of `keys`, and then those of `more` unless that is NULL: t in all, at least one. Scores are q.k (the caller folds
     * 1 / sqrt(s) into q); out [m, s], rows ldo apart. room: EDR_ATTENTION_ROOM(t, s) floats.
     */
    void (*attend)(const edr_asking *first, const edr_asking *second, const edr_keys *keys, const edr_keys *more, int64_t s, float *out,
                   int64_t ldo, float *room);
    /*
     * Attention of one row, all A heads, over x [t, n] and, unless `keys` is NULL, over keys as above, whose rows hold all heads. n is a
     * multiple of 32; without keys t is at least 1. room: EDR_FOLDED_ROOM(t + keys->t) floats.
     */
    void (*attend_folded)(const edr_folded *a, int64_t heads, int64_t s, const edr_keys *keys, const float *x, int64_t t, int64_t n, float *room);
    /*
     * A state as it is stored: scale = max(largest |x|, 1e-20) / 127, out = x / scale rounded to the nearest, of two the even one, as
     * edgerec/states.py does to the bit. The scale is NaN when a number of x is not finite. n is a multiple of 32.
     */
    void (*round_s8)(const float *x, int64_t n, int8_t *out, float *scale);
    void (*tanh)(float *x, int64_t n);                                 /* in place */
    void (*add_scaled)(const float *x, float w, int64_t n, float *y); /* y = y + w x */
    float (*dot)(const float *x, const float *y, int64_t n);
    /* Around the products of a task, by the thread that runs it: registers that the system keeps for those alone who use them. */
    void (*begin)(void);
    void (*end)(void);
    /* For tests: in place. */
    void (*gelu)(float *x, int64_t n);
    void (*gelu_coarse)(float *x, int64_t n);
    void (*gelu_tanh)(float *x, int64_t n);
    void (*exp)(float *x, int64_t n);
} edr_engine_kernels;

/* Keys transposed, and the scores of a few query rows; both with rows rounded up to whole vectors. */
#define EDR_ATTENTION_ROWS 8
#define EDR_ATTENTION_ROOM(t, s) (((s) + EDR_ATTENTION_ROWS) * EDR_ROUND16(t))
#define EDR_FOLDED_ROOM(t) (4 * EDR_ROUND16(t))

/* The kernels of an instruction set that edr_isa_supported. */
const edr_engine_kernels *edr_engine_kernels_for(int isa);

#endif
