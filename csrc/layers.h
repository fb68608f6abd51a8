/* layers.h: what the forward passes (encoder.c, mid.c, items.c) share: a call's buffers, products, attention, the rest of a layer, the
 * head. Private.
 *
 * Shape letters: R rows of a block's matrix (tokens), C rows of a chunk, H hidden, W = A S heads, I inner. */
#ifndef EDGEREC_LAYERS_H
#define EDGEREC_LAYERS_H

#include "engine_kernels.h"

#define EDR_BLOCK 192 /* tokens of a block, unless one row alone is longer */
#define EDR_CHUNK 64  /* rows of a chunk: what is done once a row, not once a token, is done for so many together */
#define EDR_FOLD 16   /* rows whose last attention is done together */

/* An input of products: the float rows as u8, or as bfloat16, when the model's products are. */
typedef struct edr_operand {
    uint8_t *u;
    float *scale, *least;
} edr_operand;

/* A call's model, kernels and workspace. */
typedef struct edr_work {
    const edr_model *m;
    const edr_engine_kernels *k;
    float *x;           /* [R, H], the residual stream */
    float *qkv;         /* [R, 3 W]; of a mid-fusion student's last layer only keys and values, [R, 2 W] */
    float *context;     /* [R, W] */
    float *inner;       /* [a few rows, I] */
    float *room;        /* attention's */
    float *part;        /* [EDR_FOLD, S rounded up to panels]: one head's questions, or answers */
    float *folded;      /* [A, EDR_FOLD, n]: the last layer's questions to vectors of n numbers, and the weighted sums of these */
    float *first;       /* [C, H]: x of the rows' first tokens, from the last layer on */
    float *asked;       /* [C, W]: the last layer's queries */
    float *answer;      /* [C, W]: its context */
    float *pooled;      /* [C, H] */
    float *bag;         /* [C, D] */
    float *features;    /* [C, feature_hidden, rounded up to panels] */
    edr_operand wide;   /* [R, H or W] */
    edr_operand narrow; /* [C, H or W] */
    edr_operand deep;   /* [a few rows, I] */
} edr_work;

static inline int64_t edr_larger(int64_t a, int64_t b) { return a > b ? a : b; }
static inline int64_t edr_smaller(int64_t a, int64_t b) { return a < b ? a : b; }

/* Bytes of a number of the layers' products, and of the word embeddings. */
static inline int edr_number_bytes(const edr_model *m) { return m->int8 ? 1 : m->bf16 ? 2 : 4; }

/* The most tokens of a block. */
static inline int64_t edr_block_rows(const edr_model *m) { return edr_larger(EDR_BLOCK, m->positions); }

/* The next buffer of a workspace, at a multiple of 64 bytes; `base` NULL: only *used, the bytes taken so far, grows. */
static inline void *edr_take(uint8_t *base, int64_t *used, int64_t bytes)
{
    void *taken = base != NULL ? base + *used : NULL;
    *used += (bytes + 63) / 64 * 64;
    return taken;
}

/* The same for an operand of `rows` rows of n numbers; nothing for a float32 model. */
edr_operand edr_take_operand(const edr_model *m, uint8_t *base, int64_t *used, int64_t rows, int64_t n);

/* Lay out the buffers of edr_work from `base` on; returns the bytes they take. */
int64_t edr_lay_out(const edr_model *m, uint8_t *base, edr_work *z);

/* The float rows x [rows, n] as the left side of a layer's product. */
edr_rows edr_left_side(const edr_work *z, const float *x, int64_t n, int64_t rows, const edr_operand *to);

/* y = x W + b for `outputs` outputs of w from `first` on; out is [rows, outputs]. Both are multiples of EDR_PANEL. As all that multiplies,
 * between the kernels' begin and end. */
void edr_product(const edr_work *z, const edr_linear *w, int64_t first, int64_t outputs, const edr_rows *x, int64_t rows, float *out, int then);

/* x [tokens, H] of tokens that stand at `position` and behind it; `types` NULL: all have `type`. */
void edr_embed(const edr_work *z, const int32_t *ids, const int32_t *types, int64_t type, int64_t position, int64_t tokens, float *out);

/* What attention reads of x [rows, H], from column `first` of queries, keys and values on. Returns the columns. */
int64_t edr_qkv(const edr_work *z, const edr_layer *layer, int64_t first, const float *x, int64_t rows, float *out);

/*
 * In the last layer one row asks for each candidate, and what it looks at needs no keys and values: with q a head's question,
 * q . (W_k x + b_k) = (W_k^T q) . x + q . b_k, and a weighted sum of values is W_v times that of the x, with b_v as often as the weights
 * say. A question and an answer are two small products; keys and values would be two for every token.
 *
 * edr_folded_numbers: n, of a vector that it looks at. edr_fold: the questions q of `rows` rows (EDR_FOLD at most), ldq apart, to z->folded [A, rows, n]. edr_unfold: from `mixed` [A, rows, n]
 * to the heads' answers, which are stored in out [rows, W], or added, as `then` says.
 */
int64_t edr_folded_numbers(const edr_model *m);
void edr_fold(const edr_work *z, const float *q, int64_t ldq, int64_t rows);
void edr_unfold(const edr_work *z, const float *mixed, int64_t rows, float *out, int then);

/* Where tokens have what attention reads of them: one after the other, ldq and ldk apart. */
typedef struct edr_seen {
    const float *q, *k, *v;
    int64_t ldq, ldk;
} edr_seen;

/* Attention of some rows of tokens over their own keys. All rows may begin with the same `common` tokens: these stand apart then, once,
 * at `front`, and `seen` has the others only. out [tokens, W]. */
void edr_attention(const edr_work *z, const edr_layer *layer, const int64_t *lengths, int64_t rows, const edr_seen *seen, const edr_seen *front,
                   int64_t common, float *out);

/* x [rows, H] becomes norm(x + W_o context), then norm(x + W_down gelu(W_up x)): a layer after its attention. */
void edr_after_attention(const edr_work *z, const edr_layer *layer, const float *context, float *x, int64_t rows, const edr_operand *to);

/* x [tokens, H] through a whole layer. */
void edr_whole_layer(const edr_work *z, const edr_layer *layer, const int64_t *lengths, int64_t rows, int64_t tokens);

/* The same when what attention reads of x lies in z->qkv already, that of common tokens at `front`. */
void edr_projected_layer(const edr_work *z, const edr_layer *layer, const int64_t *lengths, int64_t rows, int64_t tokens, const edr_seen *front,
                         int64_t common);

/* Hashed features of rows: `slots` ids and weights each. */
typedef struct edr_slots {
    const int32_t *ids;
    const float *weights;
    int64_t count;
} edr_slots;

/* Whether every id of row `row` whose weight is not 0 is in the table. */
int edr_slots_ok(const edr_model *m, const edr_slots *in, int64_t row);

/* The pooler, the features and the head: logits of the rows begin .. begin + rows - 1, whose last layer lies in z->first. */
void edr_finish(const edr_work *z, const edr_slots *in, int64_t begin, int64_t rows, float *logits);

/* ----------------------------------------------------------------- mid-fusion students: items.c, mid.c, called by engine.c */

/* Numbers of a state as the products read it: W rounded up. */
static inline int64_t edr_state_inputs(const edr_model *m) { return (m->mid.width + 31) / 32 * 32; }

/* Bytes of a stored number. */
static inline int edr_state_bytes(const edr_model *m)
{
    return m->mid.state_kind == EDR_STATES_INT8 ? 1 : m->mid.state_kind == EDR_STATES_FP16 ? 2 : 4;
}

/* Bytes of workspace of a mid-fusion student. */
int64_t edr_mid_room(const edr_model *m);
int64_t edr_items_room(const edr_model *m);

edr_status edr_items_check(const edr_model *m, const edr_items *in, int64_t *at);

/* States of the rows begin .. end - 1. */
void edr_encode_part(const edr_model *m, const edr_items *in, int64_t begin, int64_t end, int isa, void *room, void *values, float *scales);

edr_status edr_ranking_check(const edr_model *m, const edr_ranking *in, int64_t *at);

/* The query's own layers, in the workspace of the caller of edr_rank_all; every thread ranks with what lies there. Returns [R, H]. */
const float *edr_read_query(const edr_model *m, const edr_ranking *in, int isa, void *room);

/* Logits of candidates begin .. end - 1, or as many of them, from the first, as there is time for: returns how many. */
int64_t edr_rank_part(const edr_model *m, const edr_ranking *in, int64_t begin, int64_t end, int isa, void *room, void *query_room,
                      int64_t deadline, float *logits);

#endif
