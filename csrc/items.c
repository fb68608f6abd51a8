/* items.c: the item encoder of a mid-fusion student. Rows of tokens pass through its layers in blocks, as in encoder.c, and after some of
 * the layers the state of every token is made narrow, rounded and written to its place. */
#include <math.h>

#include "internal.h"
#include "layers.h"

typedef struct run {
    edr_work w;
    const edr_items *in;
    float *narrow;  /* [R, W rounded up] */
    int8_t *rounded; /* [W rounded up] */
    uint8_t *values;
    float *scales;
} run;

static int64_t lay_out(const edr_model *m, uint8_t *base, run *z)
{
    int64_t used = edr_lay_out(m, base, &z->w);
    z->narrow = edr_take(base, &used, edr_block_rows(m) * edr_state_inputs(m) * 4);
    z->rounded = edr_take(base, &used, edr_state_inputs(m));
    return used;
}

int64_t edr_items_room(const edr_model *m)
{
    run unused;
    return lay_out(m, NULL, &unused);
}

/* x as float16: the nearest, of two the even one; what is too large becomes infinity. */
static uint16_t half(float x)
{
    uint32_t bits;
    memcpy(&bits, &x, 4);
    const uint16_t sign = (uint16_t)(bits >> 16 & 0x8000u);
    bits &= 0x7FFFFFFFu;
    if (bits > 0x7F800000u) return (uint16_t)(sign | 0x7E00u);
    if (bits >= 0x47800000u) return (uint16_t)(sign | 0x7C00u); /* from 65536 on; what rounds up to it gets there by itself */
    if (bits < 0x38800000u) { /* below 2^-14 steps are of 2^-24: adding 0.5, whose steps are as wide, rounds */
        memcpy(&x, &bits, 4);
        x += 0.5f;
        memcpy(&bits, &x, 4);
        return (uint16_t)(sign | (bits - 0x3F000000u));
    }
    return (uint16_t)(sign | ((bits - 0x38000000u + 0xFFFu + (bits >> 13 & 1u)) >> 13));
}

/* States [W] of one token, wherever they are stored. */
static void store(const run *z, const float *state, int64_t token, int64_t group)
{
    const edr_mid *mid = &z->w.m->mid;
    const int64_t place = token * mid->groups + group, n = mid->width;
    uint8_t *to = z->values + place * n * edr_state_bytes(z->w.m);
    if (mid->state_kind == EDR_STATES_INT8) {
        z->w.k->round_s8(state, edr_state_inputs(z->w.m), z->rounded, z->scales + place);
        memcpy(to, z->rounded, (size_t)n);
    } else if (mid->state_kind == EDR_STATES_FP16) {
        for (int64_t i = 0; i < n; i++) ((uint16_t *)(void *)to)[i] = half(state[i]);
    } else {
        memcpy(to, state, (size_t)n * 4);
    }
}

/* What is kept of x [tokens of the rows, H]. */
static void keep(const run *z, int64_t group, int64_t begin, int64_t end, int64_t tokens)
{
    const edr_model *m = z->w.m;
    const edr_linear *map = &m->mid.narrow[group];
    const float *states = z->w.x;
    if (m->mid.width < m->hidden) {
        const edr_rows x = {z->w.x, NULL, NULL};
        z->w.k->product_f32(map, 0, map->outputs / EDR_PANEL, &x, tokens, z->narrow, map->outputs, EDR_STORE);
        states = z->narrow;
    }
    for (int64_t row = begin; row < end; row++) {
        for (int64_t t = 0; t < z->in->lengths[row]; t++, states += edr_state_inputs(m)) store(z, states, z->in->starts[row] + t, group);
    }
}

/* Rows of `tokens` tokens, at least one. */
static void encode_block(const run *z, int64_t begin, int64_t end, int64_t tokens)
{
    const edr_model *m = z->w.m;
    const edr_mid *mid = &m->mid;
    float *x = z->w.x;
    for (int64_t row = begin; row < end; row++) {
        edr_embed(&z->w, z->in->ids + z->in->starts[row], NULL, mid->item_type, mid->item_start, z->in->lengths[row], x);
        x += z->in->lengths[row] * m->hidden;
    }
    int64_t layer = 0;
    for (int64_t group = 0; group < mid->groups; group++) {
        for (; layer < mid->keeps[group]; layer++) {
            edr_whole_layer(&z->w, &mid->item[layer], z->in->lengths + begin, end - begin, tokens);
        }
        keep(z, group, begin, end, tokens);
    }
}

void edr_encode_part(const edr_model *m, const edr_items *in, int64_t begin, int64_t end, int isa, void *room, void *values, float *scales)
{
    run z = {.w = {.m = m, .k = edr_engine_kernels_for(isa)}, .in = in, .values = values, .scales = scales};
    (void)lay_out(m, room, &z);
    z.w.k->begin();
    for (int64_t row = begin, next; row < end; row = next) {
        int64_t tokens = in->lengths[row];
        for (next = row + 1; next < end && tokens + in->lengths[next] <= EDR_BLOCK; next++) tokens += in->lengths[next];
        if (tokens > 0) encode_block(&z, row, next, tokens);
    }
    z.w.k->end();
}

edr_status edr_items_check(const edr_model *m, const edr_items *in, int64_t *at)
{
    if (m == NULL || in == NULL) return edr_fail(EDR_E_NULL, at, 0);
    if (m->mid.query_layers == 0) return edr_fail(EDR_E_VALUE, at, 0);
    if (in->rows < 0 || in->size < 0) return edr_fail(EDR_E_SIZE, at, 0);
    if (in->rows > 0 && (in->starts == NULL || in->lengths == NULL || (in->size > 0 && in->ids == NULL))) return edr_fail(EDR_E_NULL, at, 0);
    for (int64_t row = 0; row < in->rows; row++) {
        const int64_t start = in->starts[row], length = in->lengths[row];
        if (length < 0 || length > m->positions - m->mid.item_start) return edr_fail(EDR_E_SPACE, at, row);
        if (start < 0 || start > in->size || length > in->size - start) return edr_fail(EDR_E_OFFSETS, at, row);
        int wrong = 0; /* as unsigned numbers negative ids are huge */
        for (int64_t t = start; t < start + length; t++) wrong |= (uint32_t)in->ids[t] >= (uint64_t)m->vocab;
        if (wrong) return edr_fail(EDR_E_VALUE, at, row);
    }
    return EDR_OK;
}
