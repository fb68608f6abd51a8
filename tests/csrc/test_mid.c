/* cc -std=c11 -g -fsanitize=address,undefined -Icsrc tests/csrc/test_mid.c csrc/[a-z]*.c -lm -lpthread -o test_mid
 * A tiny mid-fusion student: logits are the same bits in any company, on any number of threads, close to the scalar code on
 * every instruction set; what is behind a deadline is left out; bad inputs are refused. */
#include "mid_shop.h"

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
            for (int64_t i = 0; i < CANDIDATES; i += isa == EDR_ISA_SCALAR ? 5 : 1) { /* scalar code is slow under sanitizers */
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
    /* A student of one kind is not asked as one of the other; rooms, instruction sets and outputs are looked at too. */
    void *const *rooms = s.rooms;
    const int64_t size = s.room_size;
    const edr_inputs none = {.rows = 0};
    CHECK(edr_score_all(&s.m, &none, 0, NULL, 0, rooms, size, 0, logits, NULL, &at) == EDR_E_VALUE);
    CHECK(edr_score(&s.m, &none, 0, 0, 0, rooms[0], size, logits) == EDR_E_VALUE);
    CHECK(edr_rank_all(&cross, &s.in, 0, NULL, 0, rooms, size, 0, logits, NULL, &at) == EDR_E_VALUE);
    CHECK(edr_rank_all(&s.m, &s.in, 0, NULL, 0, rooms, size - 1, 0, logits, NULL, &at) == EDR_E_SPACE);
    CHECK(edr_rank_all(&s.m, &s.in, 99, NULL, 0, rooms, size, 0, logits, NULL, &at) == EDR_E_ISA);
    CHECK(edr_rank_all(&s.m, &s.in, 0, NULL, 0, NULL, size, 0, logits, NULL, &at) == EDR_E_NULL);
    CHECK(edr_rank_all(&s.m, &s.in, 0, NULL, 0, rooms, size, 0, NULL, NULL, &at) == EDR_E_NULL);
    CHECK(edr_rank_all(NULL, &s.in, 0, NULL, 0, rooms, size, 0, logits, NULL, &at) == EDR_E_NULL);
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
            test_logits(weights, kind != EDR_STATES_FP16, kind, kind == EDR_STATES_FP16 ? HIDDEN : STATE_WIDTH);
        }
    }
    test_deadlines(0);
    test_deadlines(WORKERS);
    test_nan();
    test_refusals();
    return check_report();
}
