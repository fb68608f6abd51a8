/* cc -std=c11 -g -fsanitize=address,undefined -Icsrc tests/csrc/test_mid.c csrc/[a-z]*.c -lm -lpthread -o test_mid
 * A tiny mid-fusion student: states and logits are the same bits in any company, on any number of threads, close to the scalar code on
 * every instruction set; what is behind a deadline is left out; bad inputs are refused. */
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

static shop open_shop(int weights, int features, int state_kind, int width)
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

static void close_shop(shop *s)
{
    void *all_of_them[] = {s->mapped, s->file.whole, s->ids, s->query, s->feature_ids, s->weights, s->scales, s->values, s->item_starts, s->item_lengths, s->starts, s->lengths};
    for (size_t i = 0; i < sizeof all_of_them / sizeof *all_of_them; i++) free(all_of_them[i]);
    for (int i = 0; i <= WORKERS; i++) free(s->whole[i]);
}

static edr_status encode(shop *s, const edr_items *items, int isa, edr_pool *pool, void *values, float *scales, int64_t *at)
{
    for (int i = 0; i <= WORKERS; i++) memset(s->rooms[i], 0xFF, (size_t)s->room_size); /* NaN all over */
    return edr_encode_all(&s->m, items, isa, pool, pool != NULL ? WORKERS : 0, s->rooms, s->room_size, values, s->scales_size > 0 ? scales : NULL, at);
}

static edr_status rank(shop *s, const edr_ranking *in, int isa, edr_pool *pool, int64_t deadline, float *logits, uint8_t *done, int64_t *at)
{
    for (int i = 0; i <= WORKERS; i++) memset(s->rooms[i], 0xFF, (size_t)s->room_size);
    return edr_rank_all(&s->m, in, isa, pool, pool != NULL ? WORKERS : 0, s->rooms, s->room_size, deadline, logits, done, at);
}

/* A stored number. */
static double number(const shop *s, const void *values, int64_t i)
{
    const int kind = s->m.mid.state_kind;
    if (kind == EDR_STATES_INT8) return ((const int8_t *)values)[i] * (double)s->scales[i / s->m.mid.width];
    if (kind == EDR_STATES_FP32) return ((const float *)values)[i];
    const uint16_t h = ((const uint16_t *)values)[i];
    const int exponent = h >> 10 & 31, fraction = h & 1023;
    const double size = exponent == 31 ? INFINITY : exponent == 0 ? ldexp(fraction, -24) : ldexp(1024 + fraction, exponent - 25);
    return h >> 15 ? -size : size;
}

static void test_states(int weights, int state_kind, int width)
{
    shop s = open_shop(weights, 0, state_kind, width);
    edr_pool *pool = edr_pool_new(WORKERS);
    void *alone = exact_room(s.values_size), *scalar = exact_room(s.values_size);
    float *alone_scales = exact_room(s.scales_size);
    int64_t at = -7;
    for (int isa = 0; isa < EDR_ISA_COUNT; isa++) {
        if (!edr_isa_supported(isa)) continue;
        memset(s.values, 0x5A, s.values_size);
        memset(alone, 0x5A, s.values_size);
        memset(s.scales, 0x5A, s.scales_size);
        memset(alone_scales, 0x5A, s.scales_size);
        CHECK(encode(&s, &s.items, isa, isa % 2 ? pool : NULL, s.values, s.scales, &at) == EDR_OK && at == -7);
        for (int64_t i = 0; i < ITEMS; i++) { /* one by one, from the last: gaps stay as they were */
            const edr_items one = {s.ids, s.tokens, s.item_starts + ITEMS - 1 - i, s.item_lengths + ITEMS - 1 - i, 1};
            CHECK(encode(&s, &one, isa, NULL, alone, alone_scales, &at) == EDR_OK);
        }
        CHECK(memcmp(alone, s.values, s.values_size) == 0 && memcmp(alone_scales, s.scales, s.scales_size) == 0);
        if (isa == EDR_ISA_SCALAR) memcpy(scalar, s.values, s.values_size);
        double off = 0, size = 0;
        for (int64_t item = 0; item < ITEMS; item++) {
            for (int64_t i = s.item_starts[item] * GROUPS * width; i < (s.item_starts[item] + s.item_lengths[item]) * GROUPS * width; i++) {
                off = fmax(off, fabs(number(&s, s.values, i) - number(&s, scalar, i)));
                size = fmax(size, fabs(number(&s, scalar, i)));
            }
        }
        /* A number between two steps of what is stored may go to either; 8 bits in the products lose more. */
        const double step = state_kind == EDR_STATES_INT8 ? size / 127 : state_kind == EDR_STATES_FP16 ? size / 1024 : 0;
        CHECK(size > 0.5 && off < (weights == FLOATS ? 2e-5 : 0.2) + 1.01 * step);
    }
    edr_pool_free(pool);
    free(alone);
    free(scalar);
    free(alone_scales);
    close_shop(&s);
}

static void test_logits(int weights, int features, int state_kind, int width)
{
    shop s = open_shop(weights, features, state_kind, width);
    edr_pool *pool = edr_pool_new(WORKERS);
    float *together = exact_room(CANDIDATES * 4), *threads = exact_room(CANDIDATES * 4), scalar[CANDIDATES], one[1];
    float *asked_rows = exact_room(7 * HIDDEN * 4), scalar_rows[7 * HIDDEN];
    int64_t at = -7;
    CHECK(encode(&s, &s.items, EDR_ISA_SCALAR, NULL, s.values, s.scales, &at) == EDR_OK);
    for (int isa = 0; isa < EDR_ISA_COUNT; isa++) {
        if (!edr_isa_supported(isa)) continue;
        for (s.in.query_size = 1; s.in.query_size <= 7; s.in.query_size += 6) { /* one row, and seven */
            CHECK(rank(&s, &s.in, isa, NULL, 0, together, NULL, &at) == EDR_OK && at == -7);
            CHECK(rank(&s, &s.in, isa, pool, 0, threads, NULL, &at) == EDR_OK);
            CHECK(memcmp(together, threads, CANDIDATES * 4) == 0);
            int same = 1;
            for (int64_t i = 0; i < CANDIDATES; i++) {
                edr_ranking in = s.in;
                in.starts += i, in.lengths += i, in.feature_ids += i * in.slots, in.feature_weights += i * in.slots, in.rows = 1;
                CHECK(rank(&s, &in, isa, NULL, 0, one, NULL, &at) == EDR_OK);
                same &= memcmp(one, together + i, 4) == 0;
            }
            CHECK(same);
        }
        s.in.query_size = 7;
        if (isa == EDR_ISA_SCALAR) memcpy(scalar, together, sizeof scalar);
        double off = 0, spread = 0;
        for (int64_t i = 0; i < CANDIDATES; i++) {
            off = fmax(off, fabs(together[i] - scalar[i]));
            spread = fmax(spread, fabs(together[i] - together[0]));
        }
        CHECK(off < (weights == FLOATS ? 2e-5 : 0.03) && spread > 0.1);
        memset(s.rooms[0], 0xFF, (size_t)s.room_size);
        CHECK(edr_query_rows(&s.m, s.query, 7, isa, s.rooms[0], s.room_size, asked_rows) == EDR_OK);
        if (isa == EDR_ISA_SCALAR) memcpy(scalar_rows, asked_rows, sizeof scalar_rows);
        off = spread = 0;
        for (int64_t i = 0; i < 7 * HIDDEN; i++) {
            off = fmax(off, fabs(asked_rows[i] - scalar_rows[i]));
            spread = fmax(spread, fabs(asked_rows[i] - asked_rows[0]));
        }
        CHECK(off < (weights == FLOATS ? 2e-5 : 0.2) && spread > 0.5);
    }
    free(asked_rows);
    free(together);
    free(threads);
    edr_pool_free(pool);
    close_shop(&s);
}

/* Deadlines from long ago to far away: what is done has its own bits, what is not is NaN. */
static void test_deadlines(int workers)
{
    shop s = open_shop(INTEGERS, 1, EDR_STATES_INT8, STATE_WIDTH);
    edr_pool *pool = workers > 0 ? edr_pool_new(WORKERS) : NULL;
    float *expected = exact_room(CANDIDATES * 4), *logits = exact_room(CANDIDATES * 4);
    uint8_t *done = exact_room(CANDIDATES);
    const int isa = edr_isa_best();
    CHECK(encode(&s, &s.items, isa, NULL, s.values, s.scales, NULL) == EDR_OK);
    const int64_t began = edr_now();
    CHECK(rank(&s, &s.in, isa, NULL, 0, expected, NULL, NULL) == EDR_OK);
    const int64_t spent = edr_now() - began;
    for (int step = -1; step < 30; step++) {
        const int64_t deadline = step < 0 ? 1 : step == 29 ? INT64_MAX : edr_now() + spent * step / 20;
        memset(logits, 0x5A, CANDIDATES * 4);
        memset(done, 0x5A, CANDIDATES);
        CHECK(rank(&s, &s.in, isa, pool, deadline, logits, done, NULL) == EDR_OK);
        int64_t count = 0, wrong = 0;
        for (int64_t i = 0; i < CANDIDATES; i++) {
            count += done[i];
            wrong += done[i] > 1 || (done[i] ? memcmp(&logits[i], &expected[i], 4) != 0 : !isnan(logits[i]));
            wrong += workers == 0 && i > 0 && done[i] > done[i - 1]; /* on one thread what is done is the beginning */
        }
        CHECK(wrong == 0 && (step < 0 ? count == 0 : step < 29 || count == CANDIDATES));
    }
    free(expected);
    free(logits);
    free(done);
    edr_pool_free(pool);
    close_shop(&s);
}

/* A scale that is not finite spoils the candidates that have it, and no other. */
static void test_nan(void)
{
    shop s = open_shop(INTEGERS, 0, EDR_STATES_INT8, STATE_WIDTH);
    float before[CANDIDATES], after[CANDIDATES];
    for (int isa = 0; isa < EDR_ISA_COUNT; isa++) {
        if (!edr_isa_supported(isa)) continue;
        CHECK(encode(&s, &s.items, isa, NULL, s.values, s.scales, NULL) == EDR_OK && rank(&s, &s.in, isa, NULL, 0, before, NULL, NULL) == EDR_OK);
        s.scales[s.starts[4] * GROUPS] = isa % 2 ? NAN : INFINITY;
        CHECK(rank(&s, &s.in, isa, NULL, 0, after, NULL, NULL) == EDR_OK);
        for (int i = 0; i < CANDIDATES; i++) {
            const int hit = s.starts[i] == s.starts[4] && s.lengths[i] > 0;
            CHECK(hit ? isnan(after[i]) : memcmp(&before[i], &after[i], 4) == 0);
        }
    }
    close_shop(&s);
}

static void test_refusals(void)
{
    shop s = open_shop(INTEGERS, 1, EDR_STATES_INT8, STATE_WIDTH);
    engine_file cross_file = build_file(INTEGERS, 1, 0);
    edr_model cross;
    CHECK(edr_model_open(cross_file.bytes, cross_file.size, &cross, NULL) == EDR_OK && edr_score_room(&cross) > 0);
    float *logits = exact_room(CANDIDATES * 4);
    int64_t at = -7;
    CHECK(encode(&s, &s.items, 0, NULL, s.values, s.scales, NULL) == EDR_OK);
    void *states = exact_copy(s.values, s.values_size);
#define REFUSED(change, back, status, row)                                                      \
    do {                                                                                        \
        change;                                                                                 \
        CHECK(rank(&s, &s.in, 0, NULL, 0, logits, NULL, &at) == (status) && at == (row));       \
        back;                                                                                   \
    } while (0)
    const edr_ranking good = s.in;
    const int64_t start = s.starts[9], length = s.lengths[9];
    REFUSED(s.starts[9] = -1, s.starts[9] = start, EDR_E_OFFSETS, 9);
    REFUSED(s.starts[9] = INT64_MAX, s.starts[9] = start, EDR_E_OFFSETS, 9);
    REFUSED(s.starts[9] = s.tokens - length + 1, s.starts[9] = start, EDR_E_OFFSETS, 9);
    REFUSED(s.lengths[9] = -1, s.lengths[9] = length, EDR_E_SPACE, 9);
    REFUSED(s.lengths[9] = MOST_ITEM + 1, s.lengths[9] = length, EDR_E_SPACE, 9);
    REFUSED(s.lengths[9] = INT64_MAX, s.lengths[9] = length, EDR_E_SPACE, 9);
    REFUSED(s.in.query_size = 0, s.in = good, EDR_E_SPACE, -1);
    REFUSED(s.in.query_size = ITEM_START + 1, s.in = good, EDR_E_SPACE, -1);
    const int32_t token = s.query[2], feature = s.feature_ids[SLOTS];
    REFUSED(s.query[2] = VOCAB, s.query[2] = token, EDR_E_VALUE, -1);
    REFUSED(s.query[2] = -1, s.query[2] = token, EDR_E_VALUE, -1);
    REFUSED(s.feature_ids[SLOTS] = BUCKETS, s.feature_ids[SLOTS] = feature, EDR_E_VALUE, 1);
    REFUSED(s.in.rows = -1, s.in = good, EDR_E_SIZE, 0);
    REFUSED(s.in.tokens = -1, s.in = good, EDR_E_SIZE, 0);
    REFUSED(s.in.slots = -1, s.in = good, EDR_E_SIZE, 0);
    REFUSED(s.in.values = NULL, s.in = good, EDR_E_NULL, 0);
    REFUSED(s.in.scales = NULL, s.in = good, EDR_E_NULL, 0);
    REFUSED(s.in.query = NULL, s.in = good, EDR_E_NULL, 0);
    REFUSED(s.in.lengths = NULL, s.in = good, EDR_E_NULL, 0);
    REFUSED(s.in.feature_ids = NULL, s.in = good, EDR_E_NULL, 0);
    const int64_t item_start = s.item_starts[5], item_length = s.item_lengths[5];
    const int32_t id = s.ids[item_start];
    const edr_items items = s.items;
#undef REFUSED
#define REFUSED(change, back, status, row)                                                      \
    do {                                                                                        \
        change;                                                                                 \
        CHECK(encode(&s, &s.items, 0, NULL, s.values, s.scales, &at) == (status) && at == (row)); \
        back;                                                                                   \
    } while (0)
    REFUSED(s.item_starts[5] = -1, s.item_starts[5] = item_start, EDR_E_OFFSETS, 5);
    REFUSED(s.item_starts[5] = s.tokens - item_length + 1, s.item_starts[5] = item_start, EDR_E_OFFSETS, 5);
    REFUSED(s.item_lengths[5] = -1, s.item_lengths[5] = item_length, EDR_E_SPACE, 5);
    REFUSED(s.item_lengths[5] = MOST_ITEM + 1, s.item_lengths[5] = item_length, EDR_E_SPACE, 5);
    REFUSED(s.ids[item_start] = VOCAB, s.ids[item_start] = id, EDR_E_VALUE, 5);
    REFUSED(s.ids[item_start] = -1, s.ids[item_start] = id, EDR_E_VALUE, 5);
    REFUSED(s.items.rows = -1, s.items = items, EDR_E_SIZE, 0);
    REFUSED(s.items.ids = NULL, s.items = items, EDR_E_NULL, 0);
    /* A student of one kind is not asked as one of the other; rooms, instruction sets and outputs are looked at too. */
    void *const *rooms = s.rooms;
    const int64_t size = s.room_size;
    const edr_inputs none = {.rows = 0};
    CHECK(edr_score_all(&s.m, &none, 0, NULL, 0, rooms, size, 0, logits, NULL, &at) == EDR_E_VALUE);
    CHECK(edr_score(&s.m, &none, 0, 0, 0, rooms[0], size, logits) == EDR_E_VALUE);
    CHECK(edr_rank_all(&cross, &s.in, 0, NULL, 0, rooms, size, 0, logits, NULL, &at) == EDR_E_VALUE);
    CHECK(edr_encode_all(&cross, &s.items, 0, NULL, 0, rooms, size, s.values, s.scales, &at) == EDR_E_VALUE);
    CHECK(edr_rank_all(&s.m, &s.in, 0, NULL, 0, rooms, size - 1, 0, logits, NULL, &at) == EDR_E_SPACE);
    CHECK(edr_rank_all(&s.m, &s.in, 99, NULL, 0, rooms, size, 0, logits, NULL, &at) == EDR_E_ISA);
    CHECK(edr_rank_all(&s.m, &s.in, 0, NULL, 0, NULL, size, 0, logits, NULL, &at) == EDR_E_NULL);
    CHECK(edr_rank_all(&s.m, &s.in, 0, NULL, 0, rooms, size, 0, NULL, NULL, &at) == EDR_E_NULL);
    CHECK(edr_rank_all(NULL, &s.in, 0, NULL, 0, rooms, size, 0, logits, NULL, &at) == EDR_E_NULL);
    CHECK(edr_encode_all(&s.m, &s.items, 0, NULL, 0, rooms, size - 1, s.values, s.scales, &at) == EDR_E_SPACE);
    CHECK(edr_encode_all(&s.m, &s.items, 0, NULL, 0, rooms, size, s.values, NULL, &at) == EDR_E_NULL);
    CHECK(edr_encode_all(&s.m, &s.items, 0, NULL, 0, rooms, size, NULL, s.scales, &at) == EDR_E_NULL);
    float *asked_rows = exact_room(ITEM_START * HIDDEN * 4);
    const int64_t asked = s.in.query_size;
    CHECK(edr_query_rows(&cross, s.query, asked, 0, rooms[0], size, asked_rows) == EDR_E_VALUE);
    CHECK(edr_query_rows(&s.m, s.query, 0, 0, rooms[0], size, asked_rows) == EDR_E_SPACE);
    CHECK(edr_query_rows(&s.m, s.query, ITEM_START + 1, 0, rooms[0], size, asked_rows) == EDR_E_SPACE);
    s.query[2] = VOCAB;
    CHECK(edr_query_rows(&s.m, s.query, asked, 0, rooms[0], size, asked_rows) == EDR_E_VALUE);
    s.query[2] = token;
    CHECK(edr_query_rows(&s.m, s.query, asked, 0, rooms[0], size - 1, asked_rows) == EDR_E_SPACE);
    CHECK(edr_query_rows(&s.m, s.query, asked, 99, rooms[0], size, asked_rows) == EDR_E_ISA);
    CHECK(edr_query_rows(&s.m, s.query, asked, 0, NULL, size, asked_rows) == EDR_E_NULL);
    CHECK(edr_query_rows(&s.m, s.query, asked, 0, rooms[0], size, NULL) == EDR_E_NULL);
    CHECK(edr_query_rows(&s.m, NULL, asked, 0, rooms[0], size, asked_rows) == EDR_E_NULL);
    CHECK(edr_query_rows(NULL, s.query, asked, 0, rooms[0], size, asked_rows) == EDR_E_NULL);
    CHECK(untouched(asked_rows, ITEM_START * HIDDEN * 4));
    free(asked_rows);
    s.in.rows = 0;
    CHECK(edr_rank_all(&s.m, &s.in, 0, NULL, 0, rooms, size, 0, logits, NULL, &at) == EDR_OK);
    CHECK(untouched(logits, CANDIDATES * 4) && memcmp(states, s.values, s.values_size) == 0);
    free(states);
    free(logits);
    free(cross_file.whole);
    close_shop(&s);
}

int main(void)
{
    for (int weights = 0; weights < KINDS_OF_WEIGHTS; weights++) {
        for (int kind = EDR_STATES_FP32; kind <= EDR_STATES_FP16; kind++) {
            test_states(weights, kind, kind == EDR_STATES_FP32 ? HIDDEN : STATE_WIDTH);
            test_logits(weights, kind != EDR_STATES_FP16, kind, kind == EDR_STATES_FP16 ? HIDDEN : STATE_WIDTH);
        }
    }
    test_states(FLOATS, EDR_STATES_INT8, HIDDEN);
    test_deadlines(0);
    test_deadlines(WORKERS);
    test_nan();
    test_refusals();
    return check_report();
}
