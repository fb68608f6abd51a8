/*
 * mid.c: ranking with a mid-fusion student. Read edr_rank_part, at the end, first.
 *
 * The query's R rows go through the layers that see the query alone once a request, and so do their projections in the first
 * joint layer. For each candidate the joint layers update a copy of these rows, which look at each other and at the T states
 * of the item. Candidates are taken in chunks of at most EDR_CHUNK, and a chunk in blocks of about EDR_BLOCK query rows: a
 * block is one matrix for all products. The last layer is needed for the query's first row alone; what follows its attention
 * is done once a chunk.
 *
 * Keys and values of states are one product of the packed states of several candidates. An int8 state is its scale times s;
 * to an int8 product it is u = s + 128, with the least number -128 times the scale: nothing is rounded again.
 *
 * Shape letters: R rows of the query, T states of an item, H hidden, W here the width of a layer's heads; a state's numbers
 * are n, or `padded` with the zeros that fill them up to a multiple of 32.
 */
#include <math.h>

#include "internal.h"
#include "layers.h"

#if defined(__GNUC__)
#define PREFETCH(p) __builtin_prefetch(p)
#else
#define PREFETCH(p) ((void)(p))
#endif

typedef struct run {
    edr_work w;
    const edr_ranking *in;
    float *query_x;     /* [R, H]: the query's rows after the layers that see it alone. In the caller's workspace, read by all threads */
    float *query_qkv;   /* [R, 3 W]: what the first joint layer's attention reads of them; there too */
    float *kv;          /* [states of a few candidates, 2 W]: their keys and values */
    float *floats;      /* [the same, padded] */
    edr_operand states; /* [the same, padded] */
    float *mixed;       /* [A, EDR_FOLD, padded]: the weighted sums of states */
    float *extra;       /* [A] */
    float *weight;      /* [A] */
    float *folded_room; /* the kernel's */
} run;

static int64_t lay_out(const edr_model *m, uint8_t *base, run *z)
{
    const int64_t states = edr_block_rows(m), padded = edr_state_inputs(m);
    int64_t used = edr_lay_out(m, base, &z->w);
    z->query_x = edr_take(base, &used, m->mid.item_start * m->hidden * 4);
    z->query_qkv = edr_take(base, &used, m->mid.item_start * 3 * m->widest_heads * 4);
    z->kv = edr_take(base, &used, states * 2 * m->widest_heads * 4);
    z->floats = edr_take(base, &used, states * padded * 4);
    z->states = edr_take_operand(m, base, &used, states, padded);
    const int64_t heads = m->layer[m->layers - 1].heads;
    z->mixed = edr_take(base, &used, EDR_FOLD * heads * padded * 4);
    z->extra = edr_take(base, &used, heads * 4);
    z->weight = edr_take(base, &used, heads * 4);
    z->folded_room = edr_take(base, &used, EDR_FOLDED_ROOM(m->positions) * 4);
    return used;
}

int64_t edr_mid_room(const edr_model *m)
{
    run unused;
    return edr_larger(lay_out(m, NULL, &unused), edr_items_room(m));
}

/* The layers that see the query alone. */
const float *edr_read_query(const edr_model *m, const edr_ranking *in, int isa, void *room)
{
    run z = {.w = {.m = m, .k = edr_engine_kernels_for(isa)}, .in = in};
    (void)lay_out(m, room, &z);
    const int64_t r = in->query_size;
    z.w.k->begin();
    edr_embed(&z.w, in->query, NULL, m->mid.query_type, 0, r, z.w.x);
    for (int64_t i = 0; i < m->mid.query_layers; i++) edr_whole_layer(&z.w, &m->layer[i], &r, 1, r);
    memcpy(z.query_x, z.w.x, (size_t)(r * m->hidden) * sizeof(float));
    edr_qkv(&z.w, &m->layer[m->mid.query_layers], 0, z.w.x, r, z.query_qkv);
    z.w.k->end();
    return z.query_x;
}

/* ---------------------------------------------------------------------------------------------- states to keys and values */

/* float16 to float32: the exponent moves by 112, of what has all of its bits set (infinity, NaN) by as much again. */
static float widen_half(uint16_t h)
{
    const uint32_t sign = (uint32_t)(h & 0x8000u) << 16, rest = (uint32_t)(h & 0x7FFFu) << 13;
    float x;
    memcpy(&x, &rest, 4);
    x *= 5.192296858534828e33f; /* 2^112: exact, also for the smallest */
    uint32_t bits;
    memcpy(&bits, &x, 4);
    bits |= sign | ((h & 0x7C00u) == 0x7C00u ? 0x7F800000u : 0);
    memcpy(&x, &bits, 4);
    return x;
}

/* A stored state as float32 [padded]. */
static void state_floats(const run *z, const uint8_t *state, float scale, float *to)
{
    const edr_mid *mid = &z->w.m->mid;
    const int64_t n = mid->width;
    if (mid->state_kind == EDR_STATES_INT8) {
        for (int64_t i = 0; i < n; i++) to[i] = scale * (float)((const int8_t *)state)[i];
    } else if (mid->state_kind == EDR_STATES_FP16) {
        for (int64_t i = 0; i < n; i++) to[i] = widen_half(((const uint16_t *)(const void *)state)[i]);
    } else {
        memcpy(to, state, (size_t)n * sizeof(float));
    }
    for (int64_t i = n; i < edr_state_inputs(z->w.m); i++) to[i] = 0.0f;
}

/* Where a state of a token of the table is; the catalogue is large, so a candidate's are asked for while the one before is packed. */
static const uint8_t *state_at(const run *z, int64_t token, int64_t group)
{
    const edr_mid *mid = &z->w.m->mid;
    return (const uint8_t *)z->in->values + (token * mid->groups + group) * mid->width * edr_state_bytes(z->w.m);
}

static void prefetch_next(const run *z, int64_t row, int64_t t, int64_t group)
{
    if (row + 1 >= z->in->rows || t >= z->in->lengths[row + 1]) return;
    const uint8_t *next = state_at(z, z->in->starts[row + 1] + t, group);
    for (int64_t i = 0; i < z->w.m->mid.width * edr_state_bytes(z->w.m); i += 64) PREFETCH(next + i);
}

static float scale_at(const run *z, int64_t token, int64_t group)
{
    return z->in->scales != NULL ? z->in->scales[token * z->w.m->mid.groups + group] : 1.0f;
}

/* The states of candidates begin .. end - 1 that a layer reads, as the left side of its product; *tokens is how many. */
static edr_rows pack_states(const run *z, int64_t group, int64_t begin, int64_t end, int64_t *tokens)
{
    const edr_model *m = z->w.m;
    const edr_ranking *in = z->in;
    const int64_t n = m->mid.width, padded = edr_state_inputs(m);
    const int exact = m->int8 && m->mid.state_kind == EDR_STATES_INT8;
    int64_t packed = 0;
    for (int64_t row = begin; row < end; row++) {
        for (int64_t t = 0; t < in->lengths[row]; t++, packed++) {
            const uint8_t *state = state_at(z, in->starts[row] + t, group);
            const float scale = scale_at(z, in->starts[row] + t, group);
            prefetch_next(z, row, t, group);
            if (!exact) {
                state_floats(z, state, scale, z->floats + packed * padded);
                continue;
            }
            uint8_t *u = z->states.u + packed * padded;
            for (int64_t i = 0; i < n; i++) u[i] = state[i] ^ 0x80;
            for (int64_t i = n; i < padded; i++) u[i] = 0x80;
            z->states.scale[packed] = scale;
            z->states.least[packed] = -128.0f * scale;
        }
    }
    *tokens = packed;
    return exact ? (edr_rows){z->states.u, z->states.scale, z->states.least} : edr_left_side(&z->w, z->floats, padded, packed, &z->states);
}

/* ------------------------------------------------------------------------------------------------------------ joint layers */

/* Where a joint layer's attention finds what it asks with and the query rows' keys: for each candidate `step` floats further. */
typedef struct asking {
    const float *q, *k, *v;
    int64_t ldq, ldk, q_step, k_step;
    int64_t each; /* rows that ask */
} asking;

/* Attention of candidates begin .. end - 1 over the query's rows and the item's states: [candidates * each, W]. */
static void attend_states(const run *z, int64_t number, const asking *a, int64_t begin, int64_t end, float *out)
{
    const edr_model *m = z->w.m;
    const edr_layer *layer = &m->layer[number];
    const edr_linear *map = &m->mid.state[number];
    const int64_t s = m->head_size, width = layer->heads * s, r = z->in->query_size;
    const int64_t *lengths = z->in->lengths, group = m->mid.reads[number - m->mid.query_layers];
    for (int64_t row = begin, next; row < end; row = next) {
        int64_t tokens = lengths[row];
        for (next = row + 1; next < end && tokens + lengths[next] <= EDR_BLOCK; next++) tokens += lengths[next];
        const edr_rows states = pack_states(z, group, row, next, &tokens);
        edr_product(&z->w, map, 0, 2 * width, &states, tokens, z->kv, EDR_STORE);
        const float *kv = z->kv;
        for (int64_t i = row; i < next; i++) {
            const float *q = a->q + (i - begin) * a->q_step, *k = a->k + (i - begin) * a->k_step, *v = a->v + (i - begin) * a->k_step;
            for (int64_t c = 0; c < width; c += s) {
                const edr_asking asks = {q + c, a->ldq, a->each};
                const edr_keys own = {k + c, v + c, a->ldk, r}, item = {kv + c, kv + width + c, 2 * width, lengths[i]};
                z->w.k->attend(&asks, NULL, &own, &item, s, out + c, width, z->w.room);
            }
            kv += lengths[i] * 2 * width;
            out += a->each * width;
        }
    }
}

/* The last layer's attention, of at most EDR_FOLD candidates. The question is one for all of them where this layer is the only joint one. */
static void attend_folded(const run *z, const asking *a, int64_t begin, int64_t end, float *out)
{
    const edr_model *m = z->w.m;
    const edr_mid *mid = &m->mid;
    const edr_engine_kernels *k = z->w.k;
    const int64_t s = m->head_size, heads = m->layer[m->layers - 1].heads, width = heads * s, n = edr_state_inputs(m);
    const int64_t count = end - begin, asked = a->q_step == 0 ? 1 : count, group = mid->reads[m->layers - 1 - mid->query_layers];
    edr_fold(&z->w, a->q, a->q_step, asked);
    for (int64_t i = 0; i < count; i++) {
        const float *q = a->q + i * a->q_step;
        const edr_folded asks = {z->w.folded + (asked > 1 ? i : 0) * n, z->mixed + i * n, asked * n, count * n, q, z->extra, out + i * width, z->weight};
        const int64_t row = begin + i, tokens = z->in->lengths[row];
        const edr_keys own = {a->k + i * a->k_step, a->v + i * a->k_step, a->ldk, z->in->query_size};
        for (int64_t t = 0; t < tokens; t++) {
            const int64_t token = z->in->starts[row] + t;
            prefetch_next(z, row, t, group);
            state_floats(z, state_at(z, token, group), scale_at(z, token, group), z->floats + t * n);
        }
        for (int64_t h = 0; h < heads; h++) z->extra[h] = k->dot(q + h * s, mid->state_bias + h * s, s);
        k->attend_folded(&asks, heads, s, &own, z->floats, tokens, n, z->folded_room);
        for (int64_t h = 0; h < heads; h++) k->add_scaled(mid->state_bias + width + h * s, z->weight[h], s, out + i * width + h * s);
    }
    edr_unfold(&z->w, z->mixed, count, out, EDR_ADD);
}

/* The joint layers of one block of candidates; the last one's context becomes rows `at` on of w.answer, its input those of w.first. */
static void joint_layers(const run *z, int64_t begin, int64_t end, int64_t at)
{
    const edr_work *w = &z->w;
    const edr_model *m = w->m;
    const int64_t h = m->hidden, r = z->in->query_size, count = end - begin, first = m->mid.query_layers, last = m->layers - 1;
    for (int64_t i = 0; i < count && first < last; i++) memcpy(w->x + i * r * h, z->query_x, (size_t)(r * h) * sizeof(float));
    for (int64_t number = first; number < last; number++) {
        const edr_layer *layer = &m->layer[number];
        const int64_t width = layer->attention_output.inputs, step = number == first ? 0 : r * 3 * width;
        const float *qkv = number == first ? z->query_qkv : w->qkv;
        if (number != first) edr_qkv(w, layer, 0, w->x, count * r, w->qkv);
        const asking a = {qkv, qkv + width, qkv + 2 * width, 3 * width, 3 * width, step, step, r};
        attend_states(z, number, &a, begin, end, w->context);
        edr_after_attention(w, layer, w->context, w->x, count * r, &w->wide);
    }
    const edr_layer *layer = &m->layer[last];
    const int64_t width = layer->attention_output.inputs;
    float *rows = w->first + at * h, *answer = w->answer + at * width;
    for (int64_t i = 0; i < count; i++) memcpy(rows + i * h, first == last ? z->query_x : w->x + i * r * h, (size_t)h * sizeof(float));
    asking a = {z->query_qkv, z->query_qkv + width, z->query_qkv + 2 * width, 3 * width, 3 * width, 0, 0, 1};
    if (first < last) {
        edr_qkv(w, layer, width, w->x, count * r, w->qkv);
        const edr_rows asked = edr_left_side(w, rows, h, count, &w->narrow);
        edr_product(w, &layer->qkv, 0, width, &asked, count, w->asked, EDR_STORE);
        a = (asking){w->asked, w->qkv, w->qkv + width, width, 2 * width, width, r * 2 * width, 1};
    }
    for (int64_t i = 0; i < count; i += EDR_FOLD) {
        asking part = a;
        part.q += i * a.q_step, part.k += i * a.k_step, part.v += i * a.k_step;
        attend_folded(z, &part, begin + i, i + EDR_FOLD < count ? begin + i + EDR_FOLD : end, answer + i * width);
    }
}

/* ------------------------------------------------------------------------------------------------------------- the inputs */

edr_status edr_ranking_check(const edr_model *m, const edr_ranking *in, int64_t *at)
{
    if (m == NULL || in == NULL) return edr_fail(EDR_E_NULL, at, 0);
    if (m->mid.query_layers == 0) return edr_fail(EDR_E_VALUE, at, 0);
    if (in->rows < 0 || in->tokens < 0 || in->slots < 0 || (in->slots > 0 && m->buckets == 0)) return edr_fail(EDR_E_SIZE, at, 0);
    if (in->query == NULL) return edr_fail(EDR_E_NULL, at, 0);
    if (in->query_size < 1 || in->query_size > m->mid.item_start) return edr_fail(EDR_E_SPACE, at, -1);
    for (int64_t t = 0; t < in->query_size; t++) {
        if ((uint32_t)in->query[t] >= (uint64_t)m->vocab) return edr_fail(EDR_E_VALUE, at, -1);
    }
    if (in->rows == 0) return EDR_OK;
    if (in->starts == NULL || in->lengths == NULL) return edr_fail(EDR_E_NULL, at, 0);
    if (in->tokens > 0 && (in->values == NULL || (m->mid.state_kind == EDR_STATES_INT8 && in->scales == NULL))) return edr_fail(EDR_E_NULL, at, 0);
    if ((uintptr_t)in->values % (uintptr_t)edr_state_bytes(m) != 0) return edr_fail(EDR_E_OFFSETS, at, 0);
    if (in->slots > 0 && (in->feature_ids == NULL || in->feature_weights == NULL)) return edr_fail(EDR_E_NULL, at, 0);
    const edr_slots slots = {in->feature_ids, in->feature_weights, in->slots};
    for (int64_t row = 0; row < in->rows; row++) {
        const int64_t start = in->starts[row], length = in->lengths[row];
        if (length < 0 || length > m->positions - m->mid.item_start) return edr_fail(EDR_E_SPACE, at, row);
        if (start < 0 || start > in->tokens || length > in->tokens - start) return edr_fail(EDR_E_OFFSETS, at, row);
        if (!edr_slots_ok(m, &slots, row)) return edr_fail(EDR_E_VALUE, at, row);
    }
    return EDR_OK;
}

/* --------------------------------------------------------------------------------------------------------------- all of it */

int64_t edr_rank_part(const edr_model *m, const edr_ranking *in, int64_t begin, int64_t end, int isa, void *room, void *query_room,
                      int64_t deadline, float *logits)
{
    run z = {.w = {.m = m, .k = edr_engine_kernels_for(isa)}}, shared = z;
    (void)lay_out(m, room, &z);
    (void)lay_out(m, query_room, &shared);
    z.in = in;
    z.query_x = shared.query_x;
    z.query_qkv = shared.query_qkv;
    const edr_slots slots = {in->feature_ids, in->feature_weights, in->slots};
    const edr_layer *last = &m->layer[m->layers - 1];
    const int64_t most = edr_larger(1, EDR_BLOCK / in->query_size);
    int64_t row = begin, stop = begin;
    z.w.k->begin();
    while (row == stop && row < end) { /* a chunk that was left early is the last */
        const int64_t chunk = row;
        stop = chunk + EDR_CHUNK < end ? chunk + EDR_CHUNK : end;
        while (row < stop && (deadline == 0 || edr_now() < deadline)) {
            const int64_t blocks = (stop - row + most - 1) / most, next = row + (stop - row + blocks - 1) / blocks; /* of about one size */
            joint_layers(&z, row, next, row - chunk);
            row = next;
        }
        edr_after_attention(&z.w, last, z.w.answer, z.w.first, row - chunk, &z.w.narrow);
        edr_finish(&z.w, &slots, chunk, row - chunk, logits);
    }
    z.w.k->end();
    const int64_t scored = row - begin;
    for (; row < end; row++) logits[row] = NAN;
    return scored;
}
