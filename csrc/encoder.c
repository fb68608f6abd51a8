/*
 * encoder.c: the forward pass. Read edr_score_until, at the end, first.
 *
 * Rows are taken in chunks of at most CHUNK rows, and the tokens of a chunk in blocks of about BLOCK tokens: a block goes
 * through all layers while its activations stay in L2, and the weights stream past it once. The last layer is needed for
 * the first token of a row alone: its keys and values are computed block by block, all that follows once a chunk, because
 * a product of five rows costs as much memory traffic as one of sixty.
 *
 * The rows of a ranking call all start with the query. What is the same for all of them whatever follows, the embeddings
 * of those tokens and their projections in the first layer, is computed once a call and copied into every
 * row: the same numbers, so the same bits.
 *
 * Shape letters: R rows of a block's matrix (tokens), C rows of a chunk, H hidden, W = A S heads, I inner.
 */
#include <math.h>

#include "engine_kernels.h"
#include "internal.h"

#define BLOCK 128 /* tokens of a block, unless one row alone is longer */
#define SLAB 48   /* tokens of a feed-forward step: SLAB x I floats must stay in L2 beside the weights that stream past */
#define CHUNK 64  /* rows of a chunk */
#define SHARED 64 /* at most so many tokens in front of the rows are shared */
#define WORTH 8   /* ... if they are at least one in eight: below, the copying costs more than it saves */

/* An input of products: the float rows as u8, or as bfloat16, when the model's products are. */
typedef struct operand {
    uint8_t *u;
    float *scale, *least;
} operand;

/* One call: what it was given, and its workspace. */
typedef struct run {
    const edr_model *m;
    const edr_inputs *in;
    const edr_engine_kernels *k;
    float *x;        /* [R, H], the residual stream */
    float *qkv;      /* [R, 3 W]; of the last layer only keys and values, [R, 2 W] */
    float *context;  /* [R, W] */
    float *inner;    /* [SLAB, I] */
    float *room;     /* attention's */
    float *first;    /* [C, H]: x of the rows' first tokens, from the last layer on */
    float *asked;    /* [C, W]: the last layer's queries */
    float *answer;   /* [C, W]: its context */
    float *pooled;   /* [C, H] */
    float *bag;      /* [C, D] */
    float *features; /* [C, feature_hidden, rounded up to panels] */
    int64_t shared;  /* the rows' common tokens, P; 0 when they are not shared */
    float *common;   /* [P, H]: x of the common tokens */
    float *given;    /* [P, columns of qkv]: their projections in the first layer */
    operand wide;    /* [R, H or W] */
    operand narrow;  /* [C, H or W] */
    operand deep;    /* [SLAB, I] */
} run;

static int64_t larger(int64_t a, int64_t b) { return a > b ? a : b; }

/* Bytes of a number of the layers' products, and of the word embeddings. */
static int number_bytes(const edr_model *m) { return m->int8 ? 1 : m->bf16 ? 2 : 4; }

/* ------------------------------------------------------------------------------------------------------- workspace */

/* Lay the buffers of a run out from `base` on, each at a multiple of 64 bytes; returns the bytes they take. */
static int64_t lay_out(const edr_model *m, uint8_t *base, run *z)
{
    int64_t used = 0;
#define PLACE(POINTER, TYPE, COUNT)                                    \
    do {                                                               \
        if (base != NULL) z->POINTER = (TYPE *)(void *)(base + used);  \
        used += ((int64_t)sizeof(TYPE) * (COUNT) + 63) / 64 * 64;      \
    } while (0)
    const int64_t h = m->hidden, w = m->widest_heads, rows = larger(BLOCK, m->positions), wide = larger(h, w);
    PLACE(x, float, rows * h);
    PLACE(qkv, float, rows * 3 * w);
    PLACE(context, float, rows * w);
    PLACE(inner, float, SLAB * m->widest_inner);
    PLACE(room, float, EDR_ATTENTION_ROOM(m->positions, m->head_size));
    PLACE(first, float, CHUNK * h);
    PLACE(asked, float, CHUNK * w);
    PLACE(answer, float, CHUNK * w);
    PLACE(pooled, float, CHUNK * h);
    PLACE(bag, float, CHUNK * m->feature_width);
    PLACE(features, float, CHUNK * m->feature_mlp.outputs);
    PLACE(common, float, SHARED * h);
    PLACE(given, float, SHARED * 3 * w);
    if (m->int8 || m->bf16) {
        const int bytes = number_bytes(m);
        PLACE(wide.u, uint8_t, rows * wide * bytes);
        PLACE(wide.scale, float, rows);
        PLACE(wide.least, float, rows);
        PLACE(narrow.u, uint8_t, CHUNK * wide * bytes);
        PLACE(narrow.scale, float, CHUNK);
        PLACE(narrow.least, float, CHUNK);
        PLACE(deep.u, uint8_t, SLAB * m->widest_inner * bytes);
        PLACE(deep.scale, float, SLAB);
        PLACE(deep.least, float, SLAB);
    }
#undef PLACE
    return used;
}

int64_t edr_score_room(const edr_model *model)
{
    run unused;
    return lay_out(model, NULL, &unused);
}

/* --------------------------------------------------------------------------------------------------------- products */

/* The float rows x [rows, n] as the left side of a layer's product. */
static edr_rows left_side(const run *z, const float *x, int64_t n, int64_t rows, const operand *to)
{
    if (z->m->bf16) {
        z->k->round_bf16(x, rows * n, (uint16_t *)(void *)to->u);
        return (edr_rows){to->u, NULL, NULL};
    }
    if (!z->m->int8) return (edr_rows){x, NULL, NULL};
    for (int64_t r = 0; r < rows; r++) z->k->quantise(x + r * n, n, to->u + r * n, to->scale + r, to->least + r);
    return (edr_rows){to->u, to->scale, to->least};
}

static void product(const run *z, const edr_linear *w, int64_t first, int64_t outputs, const edr_rows *x, int64_t rows, float *out, int then)
{
    const int64_t from = first / EDR_PANEL, panels = outputs / EDR_PANEL;
    (z->m->int8 ? z->k->product_u8 : z->m->bf16 ? z->k->product_bf16 : z->k->product_f32)(w, from, panels, x, rows, out, outputs, then);
}

static void normalise(const run *z, float *x, int64_t rows, const float *weight)
{
    for (int64_t r = 0; r < rows; r++) z->k->normalise(x + r * z->m->hidden, z->m->hidden, weight);
}

/* ------------------------------------------------------------------------------------- embeddings, first projections */

/* x of the tokens from .. to - 1 of a row; returns where the next token's goes. */
static float *embed(const run *z, int64_t row, int64_t from, int64_t to, float *out)
{
    const edr_model *m = z->m;
    const int64_t h = m->hidden;
    const int bytes = number_bytes(m);
    const int32_t *ids = z->in->ids + z->in->starts[row], *types = z->in->types + z->in->starts[row];
    for (int64_t t = from; t < to; t++, out += h) {
        const void *word = (const uint8_t *)m->word + (int64_t)ids[t] * h * bytes;
        const float scale = m->int8 ? m->word_scale[ids[t]] : 1.0f;
        z->k->embed(word, bytes, scale, m->position + t * h, m->type + types[t] * h, h, out);
        z->k->normalise(out, h, m->embedding_norm);
    }
    return out;
}

/* What attention reads of x [rows, H]: queries, keys and values, or in the last layer keys and values alone. Returns the columns. */
static int64_t project(const run *z, const edr_layer *layer, const float *x, int64_t rows, float *out)
{
    const int64_t width = layer->attention_output.inputs, first = layer == &z->m->layer[z->m->layers - 1] ? width : 0;
    const edr_rows in = left_side(z, x, z->m->hidden, rows, &z->wide);
    product(z, &layer->qkv, first, 3 * width - first, &in, rows, out, EDR_STORE);
    return 3 * width - first;
}

/* How many tokens, with their types, all rows start with; 0 when sharing them is not worth it. */
static int64_t common_tokens(const edr_inputs *in, int64_t begin, int64_t end)
{
    if (end - begin < 2) return 0;
    const int32_t *ids = in->ids + in->starts[begin], *types = in->types + in->starts[begin];
    int64_t common = SHARED, tokens = 0;
    for (int64_t row = begin; row < end; row++) {
        const int64_t at = in->starts[row], most = in->lengths[row] < common ? in->lengths[row] : common;
        common = 0;
        while (common < most && in->ids[at + common] == ids[common] && in->types[at + common] == types[common]) common++;
        tokens += in->lengths[row];
    }
    return WORTH * common * (end - begin) >= tokens ? common : 0;
}

/* Put the common rows in front of each row's own: `matrix` [tokens, n] has the own ones at its beginning. From the end, in place. */
static void spread(const run *z, int64_t begin, int64_t end, int64_t tokens, const float *common, int64_t n, float *matrix)
{
    const size_t bytes = (size_t)n * sizeof(float), shared = (size_t)z->shared * bytes;
    float *to = matrix + tokens * n, *from = to - (end - begin) * z->shared * n;
    for (int64_t row = end - 1; row >= begin; row--) {
        const int64_t own = z->in->lengths[row] - z->shared;
        memmove(to -= own * n, from -= own * n, (size_t)own * bytes);
        memcpy(to -= z->shared * n, common, shared);
    }
}

/* x of a block's tokens, and in z->qkv what the first layer's attention reads of them. */
static void first_projections(const run *z, int64_t begin, int64_t end, int64_t tokens)
{
    float *out = z->x;
    for (int64_t row = begin; row < end; row++) out = embed(z, row, z->shared, z->in->lengths[row], out);
    const int64_t columns = project(z, z->m->layer, z->x, tokens - z->shared * (end - begin), z->qkv);
    if (z->shared == 0) return;
    spread(z, begin, end, tokens, z->common, z->m->hidden, z->x);
    spread(z, begin, end, tokens, z->given, columns, z->qkv);
}

/* ----------------------------------------------------------------------------------------------------------- layers */

/* x [rows, H] becomes norm(x + W_o context), then norm(x + W_down gelu(W_up x)): a layer after its attention. */
static void after_attention(const run *z, const edr_layer *layer, const float *context, float *x, int64_t rows, const operand *to)
{
    const int64_t h = z->m->hidden, width = layer->attention_output.inputs;
    const edr_rows mixed = left_side(z, context, width, rows, to);
    product(z, &layer->attention_output, 0, h, &mixed, rows, x, EDR_ADD);
    normalise(z, x, rows, layer->attention_norm);
    for (int64_t begin = 0; begin < rows; begin += SLAB) {
        const int64_t count = rows - begin < SLAB ? rows - begin : SLAB;
        float *part = x + begin * h;
        const edr_rows in = left_side(z, part, h, count, to);
        product(z, &layer->up, 0, layer->inner, &in, count, z->inner, EDR_GELU);
        const edr_rows inner = left_side(z, z->inner, layer->inner, count, &z->deep);
        product(z, &layer->down, 0, h, &inner, count, part, EDR_ADD);
        normalise(z, part, count, layer->output_norm);
    }
}

/* Attention of each row of a block: queries [.., S] by `q`, the first `each` of every row (0: all of them). */
static void attention(const run *z, const edr_layer *layer, int64_t begin, int64_t end, const float *q, int64_t ldq, const float *k,
                      const float *v, int64_t ldk, int64_t each, float *out)
{
    const int64_t s = z->m->head_size, width = layer->heads * s;
    for (int64_t row = begin; row < end; row++) {
        const int64_t t = z->in->lengths[row], m = each != 0 ? each : t;
        for (int64_t i = 0; i < width; i += s) z->k->attend(q + i, ldq, m, k + i, v + i, ldk, t, s, out + i, width, z->room);
        q += m * ldq;
        k += t * ldk;
        v += t * ldk;
        out += m * width;
    }
}

/* Both kinds of layer find the projections of the first in z->qkv. */
static void layer_of_all(const run *z, const edr_layer *layer, int64_t begin, int64_t end, int64_t tokens)
{
    const int64_t width = layer->attention_output.inputs;
    if (layer != z->m->layer) project(z, layer, z->x, tokens, z->qkv);
    attention(z, layer, begin, end, z->qkv, 3 * width, z->qkv + width, z->qkv + 2 * width, 3 * width, 0, z->context);
    after_attention(z, layer, z->context, z->x, tokens, &z->wide);
}

/* Keys and values of all tokens, queries and context of the first token of each row: rows `at` on of first and answer. */
static void last_attention(const run *z, const edr_layer *layer, int64_t begin, int64_t end, int64_t tokens, int64_t at)
{
    const int64_t h = z->m->hidden, width = layer->attention_output.inputs, rows = end - begin;
    float *first = z->first + at * h;
    if (layer != z->m->layer) project(z, layer, z->x, tokens, z->qkv);
    int64_t token = 0;
    for (int64_t row = begin; row < end; row++) {
        memcpy(first + (row - begin) * h, z->x + token * h, (size_t)h * sizeof(float));
        token += z->in->lengths[row];
    }
    const edr_rows asking = left_side(z, first, h, rows, &z->narrow);
    product(z, &layer->qkv, 0, width, &asking, rows, z->asked, EDR_STORE);
    attention(z, layer, begin, end, z->asked, width, z->qkv, z->qkv + width, 2 * width, 1, z->answer + at * width);
}

/* ------------------------------------------------------------------------------------------------- features, head */

/* Features [C, feature_hidden] = gelu(W sum of weight * embedding + b). */
static void feature_rows(const run *z, int64_t begin, int64_t rows)
{
    const edr_model *m = z->m;
    const int64_t d = m->feature_width, f = z->in->slots;
    memset(z->bag, 0, (size_t)(rows * d) * sizeof(float));
    for (int64_t r = 0; r < rows; r++) {
        const int32_t *ids = z->in->feature_ids + (begin + r) * f;
        const float *weights = z->in->feature_weights + (begin + r) * f;
        for (int64_t i = 0; i < f; i++) {
            if (weights[i] != 0.0f) z->k->add_scaled(m->feature_table + ids[i] * d, weights[i], d, z->bag + r * d);
        }
    }
    const edr_rows in = {z->bag, NULL, NULL};
    const int64_t outputs = m->feature_mlp.outputs;
    z->k->product_f32(&m->feature_mlp, 0, outputs / EDR_PANEL, &in, rows, z->features, outputs, EDR_GELU);
}

/* The pooler, the features and the head: logits of `rows` rows whose last layer lies in z->first. */
static void finish(const run *z, int64_t begin, int64_t rows, float *logits)
{
    const edr_model *m = z->m;
    const int64_t h = m->hidden;
    const float *joined = z->first;
    if (m->has_pooler) {
        const edr_rows in = {z->first, NULL, NULL};
        z->k->product_f32(&m->pooler, 0, h / EDR_PANEL, &in, rows, z->pooled, h, EDR_STORE);
        z->k->tanh(z->pooled, rows * h);
        joined = z->pooled;
    }
    if (m->buckets != 0) feature_rows(z, begin, rows);
    for (int64_t r = 0; r < rows; r++) {
        float logit = z->k->dot(joined + r * h, m->head, h) + m->head[h + m->feature_hidden];
        if (m->buckets != 0) logit += z->k->dot(z->features + r * m->feature_mlp.outputs, m->head + h, m->feature_hidden);
        logits[begin + r] = logit;
    }
}

/* ----------------------------------------------------------------------------------------------------------- inputs */

edr_status edr_row_lengths(const int32_t *mask, int64_t rows, int64_t width, int64_t *lengths, int64_t *at)
{
    if (rows < 0 || width < 0) return edr_fail(EDR_E_SIZE, at, 0);
    if (rows > 0 && (mask == NULL || lengths == NULL)) return edr_fail(EDR_E_NULL, at, 0);
    for (int pass = 0; pass < 2; pass++) { /* outputs are written when all rows are known to be right */
        for (int64_t row = 0; row < rows; row++) {
            const int32_t *m = mask + row * width;
            int64_t length = 0, ones = 0;
            while (length < width && m[length] == 1) length++;
            for (int64_t i = length; i < width; i++) ones += m[i] != 0;
            if (pass == 0 && (length == 0 || ones != 0)) return edr_fail(EDR_E_VALUE, at, row);
            if (pass == 1) lengths[row] = length;
        }
    }
    return EDR_OK;
}

edr_status edr_inputs_check(const edr_model *model, const edr_inputs *in, int64_t *at)
{
    if (model == NULL || in == NULL) return edr_fail(EDR_E_NULL, at, 0);
    if (in->rows < 0 || in->size < 0 || in->slots < 0 || (in->slots > 0 && model->buckets == 0)) return edr_fail(EDR_E_SIZE, at, 0);
    if (in->rows == 0) return EDR_OK;
    if (in->ids == NULL || in->types == NULL || in->starts == NULL || in->lengths == NULL) return edr_fail(EDR_E_NULL, at, 0);
    if (in->slots > 0 && (in->feature_ids == NULL || in->feature_weights == NULL)) return edr_fail(EDR_E_NULL, at, 0);
    for (int64_t row = 0; row < in->rows; row++) {
        const int64_t start = in->starts[row], length = in->lengths[row];
        if (length < 1 || length > model->positions) return edr_fail(EDR_E_SPACE, at, row);
        if (start < 0 || start > in->size || length > in->size - start) return edr_fail(EDR_E_OFFSETS, at, row);
        int wrong = 0; /* as unsigned numbers negative ids are huge */
        for (int64_t t = start; t < start + length; t++) {
            wrong |= (uint32_t)in->ids[t] >= (uint64_t)model->vocab;
            wrong |= (uint32_t)in->types[t] >= (uint64_t)model->types;
        }
        for (int64_t i = row * in->slots; i < (row + 1) * in->slots; i++) {
            wrong |= in->feature_weights[i] != 0.0f && (uint32_t)in->feature_ids[i] >= (uint64_t)model->buckets;
        }
        if (wrong) return edr_fail(EDR_E_VALUE, at, row);
    }
    return EDR_OK;
}

edr_status edr_score_until(const edr_model *model, const edr_inputs *in, int64_t begin, int64_t end, int isa, void *room, int64_t room_size,
                           int64_t deadline, float *logits, int64_t *scored)
{
    if (model == NULL || in == NULL || room == NULL || logits == NULL || scored == NULL) return EDR_E_NULL;
    if (begin < 0 || end < begin || end > in->rows) return EDR_E_SIZE;
    if (room_size < edr_score_room(model) || (uintptr_t)room % 64 != 0) return EDR_E_SPACE;
    if (!edr_isa_supported(isa)) return EDR_E_ISA;
    run z = {.m = model, .in = in, .k = edr_engine_kernels_for(isa)};
    (void)lay_out(model, room, &z);
    z.shared = common_tokens(in, begin, end);
    if (z.shared != 0) {
        embed(&z, begin, 0, z.shared, z.common);
        project(&z, model->layer, z.common, z.shared, z.given);
    }
    const edr_layer *last = &model->layer[model->layers - 1];
    int64_t row = begin, stop = begin;
    while (row == stop && row < end) { /* a chunk that was left early is the last */
        const int64_t chunk = row;
        stop = chunk + CHUNK < end ? chunk + CHUNK : end;
        for (int64_t next; row < stop && (deadline == 0 || edr_now() < deadline); row = next) {
            int64_t tokens = in->lengths[row];
            for (next = row + 1; next < stop && tokens + in->lengths[next] <= BLOCK; next++) tokens += in->lengths[next];
            first_projections(&z, row, next, tokens);
            for (const edr_layer *layer = model->layer; layer < last; layer++) layer_of_all(&z, layer, row, next, tokens);
            last_attention(&z, last, row, next, tokens, row - chunk);
        }
        after_attention(&z, last, z.answer, z.first, row - chunk, &z.narrow);
        finish(&z, chunk, row - chunk, logits);
    }
    *scored = row - begin;
    for (; row < end; row++) logits[row] = NAN;
    return EDR_OK;
}

edr_status edr_score(const edr_model *model, const edr_inputs *in, int64_t begin, int64_t end, int isa, void *room, int64_t room_size,
                     float *logits)
{
    int64_t scored;
    return edr_score_until(model, in, begin, end, isa, room, room_size, 0, logits, &scored);
}
