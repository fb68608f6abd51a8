/* mid_shop.h: a tiny mid-fusion student with items, their states and candidates, for test_items.c and test_mid.c. */
#ifndef EDGEREC_MID_SHOP_H
#define EDGEREC_MID_SHOP_H

#include <math.h>

#include "engine_file.h"

enum { ITEMS = 40, CANDIDATES = 90, WORKERS = 3, MOST_ITEM = POSITIONS - ITEM_START };

/* A student, its items with gaps between them, their states, and candidates among them, some of them several times. */
typedef struct shop {
    engine_file file;
    void *mapped, *whole[WORKERS + 1], *rooms[WORKERS + 1];
    edr_model m;
    int64_t room_size, tokens;
    int32_t *ids, *query, *feature_ids;
    float *weights, *scales;
    int64_t *item_starts, *item_lengths, *starts, *lengths;
    void *values;
    size_t values_size, scales_size;
    edr_items items;
    edr_ranking in;
} shop;

static inline shop open_shop(int weights, int features, int state_kind, int width)
{
    shop s = {.file = build_student(weights, features, 1, state_kind, width)};
    uint64_t state = 21;
    CHECK(edr_model_open(sealed(&s.file, &s.mapped), s.file.size, &s.m, NULL) == EDR_OK);
    s.room_size = edr_score_room(&s.m);
    for (int i = 0; i <= WORKERS; i++) s.rooms[i] = aligned_room(s.room_size, &s.whole[i]);
    s.item_starts = exact_room(ITEMS * 8);
    s.item_lengths = exact_room(ITEMS * 8);
    for (int64_t i = 0; i < ITEMS; i++) {
        s.tokens += random_below(&state, 3);
        s.item_lengths[i] = i == 3 ? 0 : i == 5 ? MOST_ITEM : 1 + random_below(&state, random_below(&state, 6) == 0 ? MOST_ITEM : 20);
        s.item_starts[i] = s.tokens;
        s.tokens += s.item_lengths[i];
    }
    s.ids = exact_room((size_t)s.tokens * 4);
    for (int64_t i = 0; i < s.tokens; i++) s.ids[i] = (int32_t)random_below(&state, VOCAB);
    s.values_size = (size_t)(s.tokens * GROUPS * width) * (state_kind == EDR_STATES_INT8 ? 1 : state_kind == EDR_STATES_FP16 ? 2 : 4);
    s.scales_size = state_kind == EDR_STATES_INT8 ? (size_t)(s.tokens * GROUPS) * 4 : 0;
    s.values = exact_room(s.values_size);
    s.scales = exact_room(s.scales_size);
    s.items = (edr_items){s.ids, s.tokens, s.item_starts, s.item_lengths, ITEMS};
    s.query = exact_room(7 * 4);
    for (int i = 0; i < 7; i++) s.query[i] = (int32_t)random_below(&state, VOCAB);
    s.starts = exact_room(CANDIDATES * 8);
    s.lengths = exact_room(CANDIDATES * 8);
    s.feature_ids = exact_room(CANDIDATES * SLOTS * 4);
    s.weights = exact_room(CANDIDATES * SLOTS * 4);
    for (int64_t i = 0; i < CANDIDATES; i++) {
        const int64_t item = random_below(&state, ITEMS);
        s.starts[i] = s.item_starts[item];
        s.lengths[i] = s.item_lengths[item];
    }
    for (int64_t i = 0; i < CANDIDATES * SLOTS; i++) {
        s.feature_ids[i] = (int32_t)random_below(&state, BUCKETS);
        s.weights[i] = random_float(&state, -1, 1);
    }
    s.in = (edr_ranking){s.query, 7, s.values, s.scales_size > 0 ? s.scales : NULL, s.tokens, s.starts, s.lengths, CANDIDATES, s.feature_ids, s.weights, features ? SLOTS : 0};
    return s;
}

static inline void close_shop(shop *s)
{
    void *all_of_them[] = {s->mapped, s->file.whole, s->ids, s->query, s->feature_ids, s->weights, s->scales, s->values, s->item_starts, s->item_lengths, s->starts, s->lengths};
    for (size_t i = 0; i < sizeof all_of_them / sizeof *all_of_them; i++) free(all_of_them[i]);
    for (int i = 0; i <= WORKERS; i++) free(s->whole[i]);
}

static inline edr_status encode(shop *s, const edr_items *items, int isa, edr_pool *pool, void *values, float *scales, int64_t *at)
{
    for (int i = 0; i <= WORKERS; i++) memset(s->rooms[i], 0xFF, (size_t)s->room_size); /* NaN all over */
    return edr_encode_all(&s->m, items, isa, pool, pool != NULL ? WORKERS : 0, s->rooms, s->room_size, values, s->scales_size > 0 ? scales : NULL, at);
}

static inline edr_status rank(shop *s, const edr_ranking *in, int isa, edr_pool *pool, int64_t deadline, float *logits, uint8_t *done, int64_t *at)
{
    for (int i = 0; i <= WORKERS; i++) memset(s->rooms[i], 0xFF, (size_t)s->room_size);
    return edr_rank_all(&s->m, in, isa, pool, pool != NULL ? WORKERS : 0, s->rooms, s->room_size, deadline, logits, done, at);
}

/* A stored number. */
static inline double number(const shop *s, const void *values, int64_t i)
{
    const int kind = s->m.mid.state_kind;
    if (kind == EDR_STATES_INT8) return ((const int8_t *)values)[i] * (double)s->scales[i / s->m.mid.width];
    if (kind == EDR_STATES_FP32) return ((const float *)values)[i];
    const uint16_t h = ((const uint16_t *)values)[i];
    const int exponent = h >> 10 & 31, fraction = h & 1023;
    const double size = exponent == 31 ? INFINITY : exponent == 0 ? ldexp(fraction, -24) : ldexp(1024 + fraction, exponent - 25);
    return h >> 15 ? -size : size;
}

#endif
