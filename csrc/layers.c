/* layers.c: what the forward passes share; layers.h says what each part does. */
#include "layers.h"
#include "internal.h"

#define SLAB 48 /* tokens of a feed-forward step: SLAB x I floats must stay in L2 beside the weights that stream past */

/* ------------------------------------------------------------------------------------------------------- workspace */

edr_operand edr_take_operand(const edr_model *m, uint8_t *base, int64_t *used, int64_t rows, int64_t n)
{
    edr_operand to = {NULL, NULL, NULL};
    if (!m->int8 && !m->bf16) return to;
    to.u = edr_take(base, used, EDR_OPERAND_BYTES(rows, n * edr_number_bytes(m)));
    to.scale = edr_take(base, used, rows * 4);
    to.least = edr_take(base, used, rows * 4);
    return to;
}

int64_t edr_lay_out(const edr_model *m, uint8_t *base, edr_work *z)
{
    const int64_t h = m->hidden, w = m->widest_heads, rows = edr_block_rows(m), wide = edr_larger(h, w);
    int64_t used = 0;
    z->x = edr_take(base, &used, rows * h * 4);
    z->qkv = edr_take(base, &used, rows * 3 * w * 4);
    z->context = edr_take(base, &used, rows * w * 4);
    z->inner = edr_take(base, &used, SLAB * m->widest_inner * 4);
    z->room = edr_take(base, &used, EDR_ATTENTION_ROOM(m->positions, m->head_size) * 4);
    z->part = edr_take(base, &used, EDR_FOLD * ((m->head_size + 31) / 32 * 32) * 4);
    z->folded = edr_take(base, &used, EDR_FOLD * m->layer[m->layers - 1].heads * edr_folded_numbers(m) * 4);
    z->first = edr_take(base, &used, EDR_CHUNK * h * 4);
    z->asked = edr_take(base, &used, EDR_CHUNK * w * 4);
    z->answer = edr_take(base, &used, EDR_CHUNK * w * 4);
    z->pooled = edr_take(base, &used, EDR_CHUNK * h * 4);
    z->bag = edr_take(base, &used, EDR_CHUNK * m->feature_width * 4);
    z->features = edr_take(base, &used, EDR_CHUNK * m->feature_mlp.outputs * 4);
    z->wide = edr_take_operand(m, base, &used, rows, wide);
    z->narrow = edr_take_operand(m, base, &used, EDR_CHUNK, wide);
    z->deep = edr_take_operand(m, base, &used, SLAB, m->widest_inner);
    return used;
}

/* --------------------------------------------------------------------------------------------------------- products */

edr_rows edr_left_side(const edr_work *z, const float *x, int64_t n, int64_t rows, const edr_operand *to)
{
    if (z->m->bf16) {
        z->k->round_bf16(x, rows * n, (uint16_t *)(void *)to->u);
        return (edr_rows){to->u, NULL, NULL};
    }
    if (!z->m->int8) return (edr_rows){x, NULL, NULL};
    z->k->quantise(x, rows, n, to->u, to->scale, to->least);
    return (edr_rows){to->u, to->scale, to->least};
}

void edr_product(const edr_work *z, const edr_linear *w, int64_t first, int64_t outputs, const edr_rows *x, int64_t rows, float *out, int then)
{
    const int64_t from = first / EDR_PANEL, panels = outputs / EDR_PANEL;
    (z->m->int8 ? z->k->product_u8 : z->m->bf16 ? z->k->product_bf16 : z->k->product_f32)(w, from, panels, x, rows, out, outputs, then);
}

/* ----------------------------------------------------------------------------------------------------------- layers */

void edr_embed(const edr_work *z, const int32_t *ids, const int32_t *types, int64_t type, int64_t position, int64_t tokens, float *out)
{
    const edr_model *m = z->m;
    const int64_t h = m->hidden;
    const int bytes = edr_number_bytes(m);
    for (int64_t t = 0; t < tokens; t++) {
        const void *word = (const uint8_t *)m->word + (int64_t)ids[t] * h * bytes;
        const float *kind = m->type + (types != NULL ? types[t] : type) * h;
        z->k->embed(word, bytes, m->int8 ? m->word_scale[ids[t]] : 1.0f, m->position + (position + t) * h, kind, h, out + t * h);
    }
    z->k->normalise(out, tokens, h, m->embedding_norm);
}

int64_t edr_qkv(const edr_work *z, const edr_layer *layer, int64_t first, const float *x, int64_t rows, float *out)
{
    const int64_t columns = layer->qkv.outputs - first;
    const edr_rows in = edr_left_side(z, x, z->m->hidden, rows, &z->wide);
    edr_product(z, &layer->qkv, first, columns, &in, rows, out, EDR_STORE);
    return columns;
}

void edr_attention(const edr_work *z, const edr_layer *layer, const int64_t *lengths, int64_t rows, const edr_seen *seen, const edr_seen *front,
                   int64_t common, float *out)
{
    const int64_t s = z->m->head_size, width = layer->heads * s;
    const float *q = seen->q, *k = seen->k, *v = seen->v;
    for (int64_t row = 0; row < rows; row++) {
        const int64_t own = lengths[row] - common;
        for (int64_t i = 0; i < width; i += s) {
            const edr_asking mine = {q + i, seen->ldq, own};
            const edr_keys keys = {k + i, v + i, seen->ldk, own};
            if (common == 0) {
                z->k->attend(&mine, NULL, &keys, NULL, s, out + i, width, z->room);
                continue;
            }
            const edr_keys shared = {front->k + i, front->v + i, front->ldk, common};
            const edr_asking ours = {front->q + i, front->ldq, common};
            z->k->attend(&ours, &mine, &shared, &keys, s, out + i, width, z->room);
        }
        q += own * seen->ldq;
        k += own * seen->ldk;
        v += own * seen->ldk;
        out += lengths[row] * width;
    }
}

void edr_after_attention(const edr_work *z, const edr_layer *layer, const float *context, float *x, int64_t rows, const edr_operand *to)
{
    const int64_t h = z->m->hidden, width = layer->attention_output.inputs;
    const edr_rows mixed = edr_left_side(z, context, width, rows, to);
    edr_product(z, &layer->attention_output, 0, h, &mixed, rows, x, EDR_ADD);
    z->k->normalise(x, rows, h, layer->attention_norm);
    for (int64_t begin = 0; begin < rows; begin += SLAB) {
        const int64_t count = rows - begin < SLAB ? rows - begin : SLAB;
        float *part = x + begin * h;
        const edr_rows in = edr_left_side(z, part, h, count, to);
        edr_product(z, &layer->up, 0, layer->inner, &in, count, z->inner, z->m->gelu_tanh ? EDR_GELU_TANH : EDR_GELU);
        const edr_rows inner = edr_left_side(z, z->inner, layer->inner, count, &z->deep);
        edr_product(z, &layer->down, 0, h, &inner, count, part, EDR_ADD);
        z->k->normalise(part, count, h, layer->output_norm);
    }
}

void edr_projected_layer(const edr_work *z, const edr_layer *layer, const int64_t *lengths, int64_t rows, int64_t tokens, const edr_seen *front,
                         int64_t common)
{
    const int64_t width = layer->attention_output.inputs;
    const edr_seen seen = {z->qkv, z->qkv + width, z->qkv + 2 * width, 3 * width, 3 * width};
    edr_attention(z, layer, lengths, rows, &seen, front, common, z->context);
    edr_after_attention(z, layer, z->context, z->x, tokens, &z->wide);
}

void edr_whole_layer(const edr_work *z, const edr_layer *layer, const int64_t *lengths, int64_t rows, int64_t tokens)
{
    edr_qkv(z, layer, 0, z->x, tokens, z->qkv);
    edr_projected_layer(z, layer, lengths, rows, tokens, NULL, 0);
}

/* ------------------------------------------------------------------------------------------- the last layer's attention */

int64_t edr_folded_numbers(const edr_model *m) { return m->mid.query_layers != 0 ? edr_state_inputs(m) : m->hidden; }

void edr_fold(const edr_work *z, const float *q, int64_t ldq, int64_t rows)
{
    const int64_t s = z->m->head_size, heads = z->m->layer[z->m->layers - 1].heads, n = edr_folded_numbers(z->m);
    const edr_rows x = {z->part, NULL, NULL};
    for (int64_t h = 0; h < heads; h++) {
        for (int64_t i = 0; i < rows; i++) memcpy(z->part + i * s, q + i * ldq + h * s, (size_t)s * sizeof(float));
        z->k->product_f32(&z->m->fold, h * n / EDR_PANEL, n / EDR_PANEL, &x, rows, z->folded + h * rows * n, n, EDR_STORE);
    }
}

void edr_unfold(const edr_work *z, const float *mixed, int64_t rows, float *out, int then)
{
    const int64_t s = z->m->head_size, heads = z->m->layer[z->m->layers - 1].heads, n = edr_folded_numbers(z->m), padded = (s + 31) / 32 * 32;
    for (int64_t h = 0; h < heads; h++) {
        const edr_rows x = {mixed + h * rows * n, NULL, NULL};
        const int64_t first = h * padded / EDR_PANEL, panels = padded / EDR_PANEL;
        if (padded == s) {
            z->k->product_f32(&z->m->unfold, first, panels, &x, rows, out + h * s, heads * s, then);
            continue;
        }
        z->k->product_f32(&z->m->unfold, first, panels, &x, rows, z->part, padded, EDR_STORE);
        for (int64_t i = 0; i < rows; i++) {
            float *to = out + i * heads * s + h * s;
            for (int64_t c = 0; c < s; c++) to[c] = z->part[i * padded + c] + (then == EDR_ADD ? to[c] : 0.0f);
        }
    }
}

/* ------------------------------------------------------------------------------------------------- features, head */

int edr_slots_ok(const edr_model *m, const edr_slots *in, int64_t row)
{
    int wrong = 0; /* as unsigned numbers negative ids are huge */
    for (int64_t i = row * in->count; i < (row + 1) * in->count; i++) {
        wrong |= in->weights[i] != 0.0f && (uint32_t)in->ids[i] >= (uint64_t)m->buckets;
    }
    return !wrong;
}

/* Features [C, feature_hidden] = gelu(W sum of weight * embedding + b). */
static void feature_rows(const edr_work *z, const edr_slots *in, int64_t begin, int64_t rows)
{
    const edr_model *m = z->m;
    const int64_t d = m->feature_width, f = in->count;
    memset(z->bag, 0, (size_t)(rows * d) * sizeof(float));
    for (int64_t r = 0; r < rows; r++) {
        const int32_t *ids = in->ids + (begin + r) * f;
        const float *weights = in->weights + (begin + r) * f;
        for (int64_t i = 0; i < f; i++) {
            if (weights[i] != 0.0f) z->k->add_scaled(m->feature_table + ids[i] * d, weights[i], d, z->bag + r * d);
        }
    }
    const edr_rows bag = {z->bag, NULL, NULL};
    const int64_t outputs = m->feature_mlp.outputs;
    z->k->product_f32(&m->feature_mlp, 0, outputs / EDR_PANEL, &bag, rows, z->features, outputs, EDR_GELU);
}

void edr_finish(const edr_work *z, const edr_slots *in, int64_t begin, int64_t rows, float *logits)
{
    const edr_model *m = z->m;
    const int64_t h = m->hidden;
    const float *joined = z->first;
    if (m->has_pooler) {
        const edr_rows first = {z->first, NULL, NULL};
        z->k->product_f32(&m->pooler, 0, h / EDR_PANEL, &first, rows, z->pooled, h, EDR_STORE);
        z->k->tanh(z->pooled, rows * h);
        joined = z->pooled;
    }
    if (m->buckets != 0) feature_rows(z, in, begin, rows);
    for (int64_t r = 0; r < rows; r++) {
        float logit = z->k->dot(joined + r * h, m->head, h) + m->head[h + m->feature_hidden];
        if (m->buckets != 0) logit += z->k->dot(z->features + r * m->feature_mlp.outputs, m->head + h, m->feature_hidden);
        logits[begin + r] = logit;
    }
}
