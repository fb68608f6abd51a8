/*
 * encoder.c: the forward pass of a cross student. Read edr_score_until, at the end, first.
 *
 * Rows are taken in chunks of at most EDR_CHUNK rows, and the tokens of a chunk in blocks of about EDR_BLOCK tokens: a block
 * goes through all layers while its activations stay in L2, and the weights stream past it once. The last layer is needed
 * for the first token of a row alone, and asks what the others hold without keys and values of theirs (edr_fold); all that follows
 * is done once a chunk, because a product of five rows costs as much memory traffic as one of sixty.
 *
 * The rows of a ranking call all start with the query. What is the same for all of them whatever follows, the embeddings
 * of those tokens and their projections in the first layer, is computed once a call: the same numbers, so the same bits.
 * The first attention reads the projections where they are; the embeddings are copied into every row.
 */
#include <math.h>

#include "internal.h"
#include "layers.h"

#define SHARED 64 /* at most so many tokens in front of the rows are shared */
#define WORTH 8   /* ... if they are at least one in eight */

/* One call: what it was given, and its workspace. */
typedef struct run {
    edr_work w;
    const edr_inputs *in;
    int64_t shared;  /* the rows' common tokens, P; 0 when they are not shared */
    float *common;   /* [P, H]: x of the common tokens */
    float *given;    /* [P, columns of qkv]: their projections in the first layer */
} run;

/* Lay the buffers of a run out from `base` on; returns the bytes they take. */
static int64_t lay_out(const edr_model *m, uint8_t *base, run *z)
{
    int64_t used = edr_lay_out(m, base, &z->w);
    z->common = edr_take(base, &used, SHARED * m->hidden * 4);
    z->given = edr_take(base, &used, SHARED * 3 * m->widest_heads * 4);
    return used;
}

int64_t edr_score_room(const edr_model *model)
{
    run unused;
    return model->mid.query_layers != 0 ? edr_mid_room(model) : lay_out(model, NULL, &unused);
}

/* ------------------------------------------------------------------------------------- embeddings, first projections */

/* x of the tokens from .. to - 1 of a row; returns where the next token's goes. */
static float *embed(const run *z, int64_t row, int64_t from, int64_t to, float *out)
{
    const int64_t first = z->in->starts[row] + from;
    edr_embed(&z->w, z->in->ids + first, z->in->types + first, 0, from, to - from, out);
    return out + (to - from) * z->w.m->hidden;
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

/* x of a block's tokens, and in z->w.qkv what the first layer's attention reads of those that are the rows' own, unless it is the last. */
static void first_projections(const run *z, int64_t begin, int64_t end, int64_t tokens)
{
    const int64_t h = z->w.m->hidden;
    float *out = z->w.x;
    for (int64_t row = begin; row < end; row++) out = embed(z, row, z->shared, z->in->lengths[row], out);
    if (z->w.m->layers > 1) edr_qkv(&z->w, z->w.m->layer, 0, z->w.x, tokens - z->shared * (end - begin), z->w.qkv);
    if (z->shared == 0) return;
    /* The common x goes in front of each row's own, from the last row on, in place. */
    const size_t bytes = (size_t)h * sizeof(float);
    float *to = z->w.x + tokens * h, *from = to - (end - begin) * z->shared * h;
    for (int64_t row = end - 1; row >= begin; row--) {
        const int64_t own = z->in->lengths[row] - z->shared;
        memmove(to -= own * h, from -= own * h, (size_t)own * bytes);
        memcpy(to -= z->shared * h, z->common, (size_t)z->shared * bytes);
    }
}

/* ------------------------------------------------------------------------------------------------------- last layer */

/* Queries and context of the first token of each row: rows `at` on of first and answer. */
static void last_attention(const run *z, const edr_layer *layer, int64_t begin, int64_t end, int64_t at)
{
    const edr_work *w = &z->w;
    const int64_t h = w->m->hidden, s = w->m->head_size, width = layer->heads * s, rows = end - begin;
    float *first = w->first + at * h, *answer = w->answer + at * width;
    const float *x = w->x;
    for (int64_t row = begin; row < end; row++) {
        memcpy(first + (row - begin) * h, x, (size_t)h * sizeof(float));
        x += z->in->lengths[row] * h;
    }
    const edr_rows asking = edr_left_side(w, first, h, rows, &w->narrow);
    edr_product(w, &layer->qkv, 0, width, &asking, rows, w->asked, EDR_STORE);
    x = w->x;
    for (int64_t i = 0, count; i < rows; i += count) {
        count = edr_smaller(rows - i, EDR_FOLD);
        edr_fold(w, w->asked + i * width, width, count);
        for (int64_t j = 0; j < count; j++) {
            const edr_folded asks = {w->folded + j * h, w->folded + j * h, count * h, count * h, NULL, NULL, NULL, NULL};
            w->k->attend_folded(&asks, layer->heads, s, NULL, x, z->in->lengths[begin + i + j], h, w->room);
            x += z->in->lengths[begin + i + j] * h;
        }
        edr_unfold(w, w->folded, count, answer + i * width, EDR_STORE);
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
    if (model->mid.query_layers != 0) return edr_fail(EDR_E_VALUE, at, 0);
    if (in->rows < 0 || in->size < 0 || in->slots < 0 || (in->slots > 0 && model->buckets == 0)) return edr_fail(EDR_E_SIZE, at, 0);
    if (in->rows == 0) return EDR_OK;
    if (in->ids == NULL || in->types == NULL || in->starts == NULL || in->lengths == NULL) return edr_fail(EDR_E_NULL, at, 0);
    if (in->slots > 0 && (in->feature_ids == NULL || in->feature_weights == NULL)) return edr_fail(EDR_E_NULL, at, 0);
    const edr_slots slots = {in->feature_ids, in->feature_weights, in->slots};
    for (int64_t row = 0; row < in->rows; row++) {
        const int64_t start = in->starts[row], length = in->lengths[row];
        if (length < 1 || length > model->positions) return edr_fail(EDR_E_SPACE, at, row);
        if (start < 0 || start > in->size || length > in->size - start) return edr_fail(EDR_E_OFFSETS, at, row);
        int wrong = 0; /* as unsigned numbers negative ids are huge */
        for (int64_t t = start; t < start + length; t++) {
            wrong |= (uint32_t)in->ids[t] >= (uint64_t)model->vocab;
            wrong |= (uint32_t)in->types[t] >= (uint64_t)model->types;
        }
        if (wrong || !edr_slots_ok(model, &slots, row)) return edr_fail(EDR_E_VALUE, at, row);
    }
    return EDR_OK;
}

edr_status edr_score_until(const edr_model *model, const edr_inputs *in, int64_t begin, int64_t end, int isa, void *room, int64_t room_size,
                           int64_t deadline, float *logits, int64_t *scored)
{
    if (model == NULL || in == NULL || room == NULL || logits == NULL || scored == NULL) return EDR_E_NULL;
    if (begin < 0 || end < begin || end > in->rows) return EDR_E_SIZE;
    if (model->mid.query_layers != 0) return EDR_E_VALUE;
    if (room_size < edr_score_room(model) || (uintptr_t)room % 64 != 0) return EDR_E_SPACE;
    if (!edr_isa_supported(isa)) return EDR_E_ISA;
    run z = {.w = {.m = model, .k = edr_engine_kernels_for(isa)}, .in = in};
    (void)lay_out(model, room, &z);
    z.w.k->begin();
    z.shared = common_tokens(in, begin, end);
    if (z.shared != 0) {
        embed(&z, begin, 0, z.shared, z.common);
        if (model->layers > 1) edr_qkv(&z.w, model->layer, 0, z.common, z.shared, z.given);
    }
    const edr_layer *last = &model->layer[model->layers - 1];
    const int64_t width = model->layer->attention_output.inputs;
    const edr_seen front = {z.given, z.given + width, z.given + 2 * width, 3 * width, 3 * width};
    const edr_slots slots = {in->feature_ids, in->feature_weights, in->slots};
    int64_t row = begin, stop = begin;
    while (row == stop && row < end) { /* a chunk that was left early is the last */
        const int64_t chunk = row;
        stop = chunk + EDR_CHUNK < end ? chunk + EDR_CHUNK : end;
        for (int64_t next; row < stop && (deadline == 0 || edr_now() < deadline); row = next) {
            int64_t tokens = in->lengths[row];
            for (next = row + 1; next < stop && tokens + in->lengths[next] <= EDR_BLOCK; next++) tokens += in->lengths[next];
            first_projections(&z, row, next, tokens);
            if (model->layer < last) edr_projected_layer(&z.w, model->layer, in->lengths + row, next - row, tokens, &front, z.shared);
            for (const edr_layer *layer = model->layer + 1; layer < last; layer++) {
                edr_whole_layer(&z.w, layer, in->lengths + row, next - row, tokens);
            }
            last_attention(&z, last, row, next, row - chunk);
        }
        edr_after_attention(&z.w, last, z.w.answer, z.w.first, row - chunk, &z.w.narrow);
        edr_finish(&z.w, &slots, chunk, row - chunk, logits);
    }
    z.w.k->end();
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
