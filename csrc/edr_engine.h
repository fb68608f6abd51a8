/*
 * edr_engine.h: the native engine, a BERT-type encoder with hashed features and one logit a row, in plain C.
 *
 * What it does: takes rows of token ids of any lengths and the model in engine.bin, and gives a logit for each row. All
 * tokens lie in one packed [sum of lengths, H] matrix; nothing is computed for padding, and the last layer only for the
 * first token of a row, the only one that is read. docs/formats.md has the file, csrc/README.md the design.
 *
 * The house rules of edgerec.h hold: no allocation, no globals, no input or output; status codes; outputs are written
 * only on EDR_OK. pool.c alone asks the system for something: threads, memory for them, the time.
 *
 * A row's logit is the same bits whatever other rows are in the call, in whatever order, on however many threads. It
 * differs between instruction sets in the last places: integer sums are exact everywhere, float sums are rounded in the
 * order that suits the set.
 *
 * A mid-fusion student is ranked over states of items that were encoded before: edr_encode_all and edr_rank_all, at the end.
 *
 * Shape letters: N rows, t tokens of a row, H hidden, A heads, S numbers of a head, I inner (feed-forward) size, F feature
 * slots, D feature width, V vocabulary.
 *
 *     edr_model model;
 *     if (edr_model_open(bytes, size, &model, &at) != EDR_OK) ...   // bytes: the file, mapped; kept by the model
 *     edr_inputs in = {...};
 *     edr_score(&model, &in, 0, in.rows, isa, room, edr_score_room(&model), logits, &at);
 */
#ifndef EDR_ENGINE_H
#define EDR_ENGINE_H

#include "edgerec.h"

#ifdef __cplusplus
extern "C" {
#endif

/* -------------------------------------------------------------------------------------------------- the model (model.c) */

#define EDR_MAX_LAYERS 64

/* A linear layer y = x W + b as the kernels want it: 32 outputs are a panel, see kernels_product.h. All pointers lie in the file. */
typedef struct edr_linear {
    const void *weight;         /* float32 [N / 32, K, 32], int8 [N / 32, K / 4, 32, 4], or bfloat16 [N / 32, K / 2, 32, 2] */
    const float *bias;          /* [N] */
    const float *scale, *sums;  /* int8: [N], of a column; its sum times its scale. Else NULL */
    int64_t inputs, outputs;    /* K, N */
    int short_pairs;            /* int8: 1 if q[n][2 i] + q[n][2 i + 1] is in -128 .. 128 everywhere: times bytes it fits 16 bits. Else 0 */
} edr_linear;

/* One transformer layer. Its head count and inner size are its own: a pruned layer is smaller. */
typedef struct edr_layer {
    int64_t heads, inner;
    edr_linear qkv, attention_output, up, down; /* qkv of a cross student's last layer has queries alone */
    const float *attention_norm, *output_norm; /* [2, H]: scale, shift */
} edr_layer;

/* How an item's states are stored (docs/formats.md, "A mid-fusion student"). */
enum { EDR_STATES_FP32 = 0, EDR_STATES_INT8 = 1, EDR_STATES_FP16 = 2 };

/*
 * What a mid-fusion student has more: an item encoder, and in the joint layers maps from an item's states to keys and values. The
 * first query_layers of the model's layers see the query alone, the others are joint. All 0 for a cross student.
 */
typedef struct edr_mid {
    int64_t query_layers, item_layers;
    int64_t item_start;            /* the position of an item's first token; the most tokens of a query */
    int64_t query_type, item_type; /* token types of the two sides */
    int64_t groups, width;         /* G, W: a token has G states of W numbers */
    int state_kind;                /* EDR_STATES_... */
    const int32_t *keeps;          /* [G]: after how many item layers a state is taken, ascending */
    const int32_t *reads;          /* [layers - query_layers]: the state that a joint layer reads, 0 .. G - 1 */
    edr_layer item[EDR_MAX_LAYERS];
    edr_linear narrow[EDR_MAX_LAYERS]; /* float32, [G]: H to W, rounded up to panels; unused where W is H */
    edr_linear state[EDR_MAX_LAYERS];  /* of a joint layer but the last: W, rounded up to 32, to the layer's keys and then its values */
    const float *state_bias;           /* [2, A S] of the last layer: of its keys and its values */
} edr_mid;

/* The model: sizes, and pointers into the file. Private, but for the sizes. */
typedef struct edr_model {
    int64_t hidden, head_size, layers, vocab, positions, types;
    int64_t buckets, feature_width, feature_hidden; /* 0 without features */
    int64_t widest_inner, widest_heads;             /* the largest I, the largest A S */
    int int8, bf16;                                 /* the layers' products are int8, or bfloat16, or (neither) float32 */
    int gelu_tanh;                                  /* the layers have the tanh approximation of the GELU */
    int has_pooler;
    const void *word;        /* [V, H], float32, int8 or bfloat16 */
    const float *word_scale; /* [V], int8 only */
    const float *position, *type, *embedding_norm;
    edr_layer layer[EDR_MAX_LAYERS];
    edr_linear fold, unfold;        /* of the last layer, float32: a head's S numbers to what it looks at, and back */
    edr_linear pooler, feature_mlp; /* float32 */
    const float *feature_table;     /* [buckets, D] */
    const float *head;              /* [H + feature_hidden + 1]: weights, then the bias */
    edr_mid mid;
} edr_model;

/*
 * Read the model out of the bytes of engine.bin, which the caller keeps unchanged for as long as the model is used.
 * Every length, offset and shape is checked against the size; numbers inside the weights are not: a damaged weight gives
 * a wrong logit, never a read out of bounds.
 *
 * data     the file, at an address that is a multiple of 64 (a mapping is)
 * at       the section at fault, in the order they are looked for; -1 for the header and the table
 * Fails with EDR_E_NULL, EDR_E_SIZE (the file is cut, or a section's size is not what the model's sizes ask for),
 * EDR_E_OFFSETS (a section lies outside or over another, is missing, or is there twice), EDR_E_VALUE (magic, version, rank,
 * dtype, or a size of the model that this engine does not run).
 */
edr_status edr_model_open(const void *data, int64_t size, edr_model *model, int64_t *at);

/* The name of the section for which edr_model_open refuses these bytes, e.g. "layer03.up.weight"; "" for the header and the table,
 * and when it refuses nothing. */
#define EDR_NAME_ROOM 33
void edr_model_fault(const void *data, int64_t size, char name[EDR_NAME_ROOM]);

/* --------------------------------------------------------------------------------------------------- scoring (encoder.c) */

/*
 * What is scored. Row i is ids[starts[i] .. starts[i] + lengths[i]): padded rows have starts i * T, ragged ones offsets.
 * The arrays of the features may be NULL when slots is 0. In a slot of weight 0 the id is not looked at and may be any number.
 */
typedef struct edr_inputs {
    const int32_t *ids, *types; /* [size] */
    int64_t size;
    const int64_t *starts, *lengths; /* [rows] */
    int64_t rows;
    const int32_t *feature_ids;   /* [rows, slots] */
    const float *feature_weights; /* [rows, slots] */
    int64_t slots;
} edr_inputs;

/*
 * The lengths of rows padded on the right.
 *
 * mask     int32 [rows, width]: 1 for a token, 0 for padding, at least one token, no gap
 * lengths  int64 [rows]
 * at       the row at fault
 * Fails with EDR_E_NULL, EDR_E_SIZE, EDR_E_VALUE.
 */
edr_status edr_row_lengths(const int32_t *mask, int64_t rows, int64_t width, int64_t *lengths, int64_t *at);

/*
 * Check all that edr_score relies on, once for all its calls.
 *
 * at       the row at fault
 * Fails with EDR_E_NULL, EDR_E_SIZE (rows, slots; slots of a model without features), EDR_E_OFFSETS (a row lies outside ids),
 * EDR_E_SPACE (a row is empty or longer than the model's positions), EDR_E_VALUE (an id, a type, or the id of a feature whose
 * weight is not 0, is outside its table; at 0: the model is a mid-fusion student's).
 */
edr_status edr_inputs_check(const edr_model *model, const edr_inputs *in, int64_t *at);

/* Bytes of workspace that edr_score needs for this model, whatever the inputs are; for a mid-fusion student edr_rank_all and edr_encode_all. */
int64_t edr_score_room(const edr_model *model);

/*
 * Logits of the rows begin .. end - 1 of inputs that edr_inputs_check has passed.
 *
 * isa      which kernels, e.g. edr_isa_best()
 * room     edr_score_room(model) bytes at an address that is a multiple of 64; no other thread may use them meanwhile
 * logits   float32 [rows]; only begin .. end - 1 are written. NaN where the arithmetic gave NaN
 * Fails with EDR_E_NULL, EDR_E_SIZE (begin, end), EDR_E_SPACE (room_size), EDR_E_ISA.
 */
edr_status edr_score(const edr_model *model, const edr_inputs *in, int64_t begin, int64_t end, int isa, void *room, int64_t room_size,
                     float *logits);

/*
 * edr_score of as many rows as there is time for, in their order. The clock is read before each block of rows (about 192
 * tokens, or one longer row): a call ends at most one block, and what follows it, after its deadline.
 *
 * deadline   the edr_now() after which no block is begun; 0: none
 * logits     NaN also in rows there was no time for
 * scored     how many rows are done: begin .. begin + *scored - 1
 */
edr_status edr_score_until(const edr_model *model, const edr_inputs *in, int64_t begin, int64_t end, int isa, void *room, int64_t room_size,
                           int64_t deadline, float *logits, int64_t *scored);

/* ------------------------------------------------------------------------------------------- threads, the clock (pool.c)
 * A few threads that sleep until there is work. The pool allocates its own state: this is the one part of the library
 * that does. A process that forked must not touch its parent's pool: it makes a new one. */

typedef struct edr_pool edr_pool;

/* A pool of `workers` threads (0 .. 1023: beside the caller, who works too); NULL when the system has none to give. No signal
 * that is meant for the process is delivered to them. */
edr_pool *edr_pool_new(int64_t workers);

/* Wait for the workers to end and free the pool; no edr_pool_run may be under way. NULL is fine. */
void edr_pool_free(edr_pool *pool);

/*
 * Run task(context, i, lane) for i in 0 .. tasks - 1, on the caller and the workers, and return when all are done. lane is
 * 0 for the caller and 1 .. workers for a worker. Several threads may run at once: they share the workers, and a worker's
 * lane runs one task at a time.
 */
void edr_pool_run(edr_pool *pool, int64_t tasks, void (*task)(void *context, int64_t i, int64_t lane), void *context);

/* Nanoseconds of the clock that deadlines are told in. It never goes back, and is that of Python's time.monotonic_ns. */
int64_t edr_now(void);

/* ------------------------------------------------------------------------------------------------------ parallel (engine.c) */

/*
 * edr_score_until of all rows, on the caller and a pool's workers, who take the rows in order too. A deadline is no error.
 *
 * pool       NULL: the caller alone
 * rooms      [1 + workers] workspaces of room_size bytes; rooms[0] is this call's own, the others belong to the workers
 * deadline   as for edr_score_until
 * logits     float32 [rows]; NaN in rows that are not done
 * done       uint8 [rows], 1 or 0: whether there was time for the row (a logit may also be NaN by arithmetic); may be NULL
 * at         the row at fault
 * Fails as edr_inputs_check and edr_score do.
 */
edr_status edr_score_all(const edr_model *model, const edr_inputs *in, int isa, edr_pool *pool, int64_t workers, void *const *rooms,
                         int64_t room_size, int64_t deadline, float *logits, uint8_t *done, int64_t *at);

/* ------------------------------------------------------------------------------------- mid-fusion students (items.c, mid.c)
 * G states of W numbers a token; a number is float32, int8 (with one float32 scale for each state) or float16. */

/* Items to encode: row i is ids[starts[i] .. starts[i] + lengths[i]), the tokens of item and suffix; it may be empty. */
typedef struct edr_items {
    const int32_t *ids; /* [size] */
    int64_t size;
    const int64_t *starts, *lengths; /* [rows] */
    int64_t rows;
} edr_items;

/*
 * The states of every token, at the token's place in `ids`, rounded as edgerec/states.py rounds. What no row covers is not written.
 * Rows that overlap are written by whoever comes last; otherwise the result does not depend on threads or company.
 *
 * values   [size, G W], of the model's kind;  scales  float32 [size, G], int8 only, else NULL
 * at       the row at fault
 * Fails with EDR_E_NULL, EDR_E_SIZE, EDR_E_OFFSETS (a row lies outside ids), EDR_E_SPACE (a row longer than an item may be, or the
 * rooms), EDR_E_VALUE (an id outside its table; no mid-fusion student), EDR_E_ISA.
 */
edr_status edr_encode_all(const edr_model *model, const edr_items *in, int isa, edr_pool *pool, int64_t workers, void *const *rooms,
                          int64_t room_size, void *values, float *scales, int64_t *at);

/*
 * One query, and items as states: candidate i has the tokens starts[i] .. starts[i] + lengths[i] - 1 of a table, in any order, as often
 * as one likes. Nothing is copied: the table may be a mapped catalogue.
 */
typedef struct edr_ranking {
    const int32_t *query; /* [query_size], with what stands before and behind it */
    int64_t query_size;
    const void *values;  /* [tokens, G W], of the model's kind, at a multiple of its numbers' size */
    const float *scales; /* [tokens, G], int8 only */
    int64_t tokens;
    const int64_t *starts, *lengths; /* [rows] */
    int64_t rows;
    const int32_t *feature_ids;   /* [rows, slots] */
    const float *feature_weights; /* [rows, slots] */
    int64_t slots;
} edr_ranking;

/*
 * Logits of all candidates. The query's own layers run once, on the caller; then candidates are taken in order, by the caller and the
 * pool's workers. Parameters as for edr_score_all; the clock is read before each block of candidates (about 192 query tokens).
 *
 * Fails with EDR_E_NULL, EDR_E_SIZE, EDR_E_OFFSETS (a candidate's states lie outside the table), EDR_E_SPACE (the query is empty or
 * too long: at -1; a candidate has too many tokens; the rooms), EDR_E_VALUE (an id or a feature outside its table; no mid-fusion
 * student), EDR_E_ISA.
 */
edr_status edr_rank_all(const edr_model *model, const edr_ranking *in, int isa, edr_pool *pool, int64_t workers, void *const *rooms,
                        int64_t room_size, int64_t deadline, float *logits, uint8_t *done, int64_t *at);

/*
 * The rows [query_size, H] of one query after the layers that see it alone: what the joint layers of edr_rank_all begin with.
 *
 * query  [query_size], as in edr_ranking
 * room   a workspace, as rooms[0] of edr_rank_all
 * Fails with EDR_E_NULL, EDR_E_SPACE (the query is empty or too long, or the room), EDR_E_VALUE (an id outside its table; no mid-fusion
 * student), EDR_E_ISA.
 */
edr_status edr_query_rows(const edr_model *model, const int32_t *query, int64_t query_size, int isa, void *room, int64_t room_size, float *rows);

#ifdef __cplusplus
}
#endif

#endif
