/* cc -std=c11 -g -fsanitize=address,undefined -Icsrc tests/csrc/test_encoder.c csrc/[a-z]*.c -lm -lpthread -o test_encoder
 * Scoring a tiny model: the same bits however rows are cut, close to the scalar code on every instruction set, bad inputs refused. */
#include <math.h>

#include "engine_file.h"

static void test_cuts(int weights, int features, int pooler)
{
    engine_file f = build_file(weights, features, pooler);
    edr_model m;
    void *mapped;
    CHECK(edr_model_open(sealed(&f, &mapped), f.size, &m, NULL) == EDR_OK);
    rows r;
    make_rows(&r, MOST_ROWS, features, 5);
    CHECK(edr_inputs_check(&m, &r.in, NULL) == EDR_OK);
    const int64_t size = edr_score_room(&m);
    void *whole;
    void *room = aligned_room(size, &whole);
    float scalar[MOST_ROWS], whole_run[MOST_ROWS];
    uint64_t state = 6;
    for (int isa = 0; isa < EDR_ISA_COUNT; isa++) {
        if (!edr_isa_supported(isa)) continue;
        CHECK(edr_score(&m, &r.in, 0, MOST_ROWS, isa, room, size, whole_run) == EDR_OK);
        if (isa == EDR_ISA_SCALAR) memcpy(scalar, whole_run, sizeof scalar);
        double off = 0, spread = 0;
        for (int i = 0; i < MOST_ROWS; i++) {
            off = fmax(off, fabs(whole_run[i] - scalar[i]));
            spread = fmax(spread, fabs(whole_run[i] - whole_run[0]));
        }
        CHECK(off < (weights == FLOATS ? 2e-5 : 0.02) && spread > 0.1);
        for (int round = isa == EDR_ISA_SCALAR; round < 2; round++) { /* scalar code is slow under sanitizers */
            float *logits = exact_room(MOST_ROWS * 4);
            memset(room, 0xFF, (size_t)size); /* NaN all over: nothing is read that was not written in this call */
            for (int64_t begin = 0, end; begin < MOST_ROWS; begin = end) {
                end = begin + 1 + random_below(&state, round == 0 ? 1 : 40);
                if (end > MOST_ROWS) end = MOST_ROWS;
                CHECK(edr_score(&m, &r.in, begin, end, isa, room, size, logits) == EDR_OK);
                CHECK(untouched(logits + end, (size_t)(MOST_ROWS - end) * 4));
            }
            CHECK(memcmp(logits, whole_run, sizeof whole_run) == 0);
            free(logits);
        }
    }
    free(whole);
    free(mapped);
    free_rows(&r);
    free(f.whole);
}

/*
 * What rows have in common is computed once, and no row can tell: `common` tokens in front of all rows or, if `odd` is
 * above 0, of all but the last, which has only `odd` of them.
 */
static void test_common(int weights, int32_t layers, int64_t many, int64_t common, int64_t most, int64_t odd)
{
    cross_layers = layers; /* with one layer the first is the last */
    engine_file f = build_file(weights, 0, 0);
    cross_layers = LAYERS;
    edr_model m;
    void *mapped, *whole;
    CHECK(edr_model_open(sealed(&f, &mapped), f.size, &m, NULL) == EDR_OK);
    rows r;
    make_rows(&r, many, 0, 11);
    uint64_t state = 12;
    int32_t *ids = exact_room((size_t)(many * POSITIONS) * 4), *types = exact_room((size_t)(many * POSITIONS) * 4);
    for (int64_t i = 0; i < many; i++) {
        r.starts[i] = i * POSITIONS;
        r.lengths[i] = common + random_below(&state, most - common + 1);
        if (r.lengths[i] == 0) r.lengths[i] = 1;
        for (int64_t t = 0; t < POSITIONS; t++) {
            const int64_t from = t < common ? t : i * POSITIONS + t;
            ids[i * POSITIONS + t] = (int32_t)((from * 7 + from / 3) % VOCAB);
            types[i * POSITIONS + t] = (int32_t)(from / 5 % TYPES);
        }
    }
    if (odd > 0) types[(many - 1) * POSITIONS + odd] ^= 1;
    r.in.ids = ids, r.in.types = types, r.in.size = many * POSITIONS;
    CHECK(edr_inputs_check(&m, &r.in, NULL) == EDR_OK);
    const int64_t size = edr_score_room(&m);
    void *room = aligned_room(size, &whole);
    float *alone = exact_room((size_t)many * 4), *together = exact_room((size_t)many * 4);
    for (int isa = 0; isa < EDR_ISA_COUNT; isa++) {
        if (!edr_isa_supported(isa) || (isa == EDR_ISA_SCALAR && (most > 40 || layers < LAYERS))) continue; /* too slow */
        for (int64_t i = 0; i < many; i++) CHECK(edr_score(&m, &r.in, i, i + 1, isa, room, size, alone) == EDR_OK);
        memset(room, 0xFF, (size_t)size);
        CHECK(edr_score(&m, &r.in, 0, many, isa, room, size, together) == EDR_OK);
        CHECK(memcmp(alone, together, (size_t)many * 4) == 0);
    }
    free(alone);
    free(together);
    free(ids);
    free(types);
    free(whole);
    free(mapped);
    free_rows(&r);
    free(f.whole);
}

/* The id of a slot without weight may be anything, and changes no bit; NaN in a row's weights spoils that row alone. */
static void test_slots(int weights)
{
    engine_file f = build_file(weights, 1, 0);
    edr_model m;
    void *mapped, *whole;
    CHECK(edr_model_open(sealed(&f, &mapped), f.size, &m, NULL) == EDR_OK);
    rows r;
    make_rows(&r, 5, 1, 3);
    const int64_t size = edr_score_room(&m);
    void *room = aligned_room(size, &whole);
    float *before = exact_room(20), *after = exact_room(20);
    for (int isa = 0; isa < EDR_ISA_COUNT; isa++) {
        if (!edr_isa_supported(isa)) continue;
        for (int i = 0; i < 5 * SLOTS; i += 2) r.weights[i] = i % 4 ? -0.0f : 0.0f;
        for (int i = 0; i < 5 * SLOTS; i += 2) r.feature_ids[i] = 0;
        CHECK(edr_inputs_check(&m, &r.in, NULL) == EDR_OK && edr_score(&m, &r.in, 0, 5, isa, room, size, before) == EDR_OK);
        for (int i = 0; i < 5 * SLOTS; i += 2) r.feature_ids[i] = i % 3 == 0 ? INT32_MAX : i % 3 == 1 ? INT32_MIN : BUCKETS;
        CHECK(edr_inputs_check(&m, &r.in, NULL) == EDR_OK && edr_score(&m, &r.in, 0, 5, isa, room, size, after) == EDR_OK);
        CHECK(memcmp(before, after, 20) == 0);
        const float weight = r.weights[7];
        r.weights[7] = NAN;
        r.feature_ids[7] = BUCKETS;
        int64_t at = -1;
        CHECK(edr_inputs_check(&m, &r.in, &at) == EDR_E_VALUE && at == 7 / SLOTS);
        r.feature_ids[7] = 0;
        CHECK(edr_inputs_check(&m, &r.in, NULL) == EDR_OK && edr_score(&m, &r.in, 0, 5, isa, room, size, after) == EDR_OK);
        for (int i = 0; i < 5; i++) CHECK(i == 7 / SLOTS ? isnan(after[i]) : after[i] == before[i]);
        r.weights[7] = weight;
    }
    free(before);
    free(after);
    free(whole);
    free(mapped);
    free_rows(&r);
    free(f.whole);
}

static void test_inputs(void)
{
    engine_file f = build_file(0, 1, 0), plain = build_file(0, 0, 0);
    edr_model m, without;
    CHECK(edr_model_open(f.bytes, f.size, &m, NULL) == EDR_OK && edr_model_open(plain.bytes, plain.size, &without, NULL) == EDR_OK);
    rows r;
    make_rows(&r, 4, 1, 8);
    int64_t at = -1;
    r.weights[1] = 1.0f;
#define REFUSED(change, back, status, row)                                \
    do {                                                                  \
        change;                                                           \
        CHECK(edr_inputs_check(&m, &r.in, &at) == (status) && at == (row)); \
        back;                                                             \
        CHECK(edr_inputs_check(&m, &r.in, NULL) == EDR_OK);               \
    } while (0)
    const edr_inputs good = r.in;
    const int64_t start = r.starts[2], length = r.lengths[2];
    REFUSED(r.starts[2] = -1, r.starts[2] = start, EDR_E_OFFSETS, 2);
    REFUSED(r.starts[2] = INT64_MAX, r.starts[2] = start, EDR_E_OFFSETS, 2);
    REFUSED(r.starts[2] = r.in.size - length + 1, r.starts[2] = start, EDR_E_OFFSETS, 2);
    REFUSED(r.lengths[2] = 0, r.lengths[2] = length, EDR_E_SPACE, 2);
    REFUSED(r.lengths[2] = INT64_MIN, r.lengths[2] = length, EDR_E_SPACE, 2);
    REFUSED(r.lengths[2] = POSITIONS + 1, r.lengths[2] = length, EDR_E_SPACE, 2);
    const int32_t id = r.ids[r.starts[3]], type = r.types[r.starts[3]], feature = r.feature_ids[1];
    REFUSED(r.ids[r.starts[3]] = VOCAB, r.ids[r.starts[3]] = id, EDR_E_VALUE, 3);
    REFUSED(r.ids[r.starts[3]] = -1, r.ids[r.starts[3]] = id, EDR_E_VALUE, 3);
    REFUSED(r.types[r.starts[3]] = TYPES, r.types[r.starts[3]] = type, EDR_E_VALUE, 3);
    REFUSED(r.feature_ids[1] = BUCKETS, r.feature_ids[1] = feature, EDR_E_VALUE, 0);
    REFUSED(r.feature_ids[1] = INT32_MIN, r.feature_ids[1] = feature, EDR_E_VALUE, 0);
    REFUSED(r.in.rows = -1, r.in = good, EDR_E_SIZE, 0);
    REFUSED(r.in.slots = -1, r.in = good, EDR_E_SIZE, 0);
    REFUSED(r.in.ids = NULL, r.in = good, EDR_E_NULL, 0);
    REFUSED(r.in.feature_weights = NULL, r.in = good, EDR_E_NULL, 0);
    CHECK(edr_inputs_check(NULL, &r.in, NULL) == EDR_E_NULL && edr_inputs_check(&m, NULL, NULL) == EDR_E_NULL);
    CHECK(edr_inputs_check(&without, &r.in, NULL) == EDR_E_SIZE);
    const int64_t size = edr_score_room(&m);
    void *whole;
    uint8_t *room = aligned_room(size, &whole);
    float *logits = exact_room(16);
    CHECK(edr_score(NULL, &r.in, 0, 4, 0, room, size, logits) == EDR_E_NULL && edr_score(&m, &r.in, 0, 4, 0, NULL, size, logits) == EDR_E_NULL);
    CHECK(edr_score(&m, &r.in, 0, 5, 0, room, size, logits) == EDR_E_SIZE && edr_score(&m, &r.in, -1, 4, 0, room, size, logits) == EDR_E_SIZE);
    CHECK(edr_score(&m, &r.in, 3, 2, 0, room, size, logits) == EDR_E_SIZE);
    CHECK(edr_score(&m, &r.in, 0, 4, 0, room, size - 1, logits) == EDR_E_SPACE && edr_score(&m, &r.in, 0, 4, 0, room + 4, size, logits) == EDR_E_SPACE);
    CHECK(edr_score(&m, &r.in, 0, 4, -1, room, size, logits) == EDR_E_ISA && edr_score(&m, &r.in, 0, 4, 99, room, size, logits) == EDR_E_ISA);
    CHECK(untouched(logits, 16));
    CHECK(edr_score(&m, &r.in, 2, 2, 0, room, size, logits) == EDR_OK && untouched(logits, 16));
    free(logits);
    free(whole);
    free_rows(&r);
    free(f.whole);
    free(plain.whole);
}

static void test_lengths(void)
{
    const int32_t good[9] = {1, 1, 1, 1, 0, 0, 1, 1, 0};
    const int32_t bad[][6] = {{1, 0, 0, 0, 0, 0}, {1, 0, 0, 1, 0, 1}, {1, 1, 1, 1, 2, 0}, {1, 1, 1, 1, 0, -1}};
    int64_t *lengths = exact_room(3 * 8), at = -1;
    for (int i = 0; i < 4; i++) CHECK(edr_row_lengths(bad[i], 2, 3, lengths, &at) == EDR_E_VALUE && at == 1);
    CHECK(edr_row_lengths(good, -1, 3, lengths, &at) == EDR_E_SIZE && edr_row_lengths(good, 3, -1, lengths, &at) == EDR_E_SIZE);
    CHECK(edr_row_lengths(NULL, 3, 3, lengths, &at) == EDR_E_NULL && edr_row_lengths(good, 3, 3, NULL, &at) == EDR_E_NULL);
    CHECK(edr_row_lengths(good, 2, 0, lengths, &at) == EDR_E_VALUE && at == 0);
    CHECK(untouched(lengths, 24));
    CHECK(edr_row_lengths(good, 3, 3, lengths, NULL) == EDR_OK && lengths[0] == 3 && lengths[1] == 1 && lengths[2] == 2);
    CHECK(edr_row_lengths(NULL, 0, 3, NULL, NULL) == EDR_OK);
    free(lengths);
}

int main(void)
{
    for (int kind = 0; kind < 12; kind++) test_cuts(kind % 3, kind / 3 & 1, kind / 6);
    tanh_files = 1;
    for (int weights = 0; weights < KINDS_OF_WEIGHTS; weights++) test_cuts(weights, 1, 1);
    tanh_files = 0;
    for (int weights = 0; weights < KINDS_OF_WEIGHTS; weights++) {
        test_slots(weights);
        for (int layers = 1; layers <= LAYERS; layers++) {
            test_common(weights, layers, 70, 0, 20, 0);    /* more rows than a chunk, nothing in common */
            test_common(weights, layers, 70, 6, 20, 0);    /* a query and its item */
            test_common(weights, layers, 70, 6, 20, 4);    /* but for one row */
            test_common(weights, layers, 70, 1, 3, 0);     /* rows that end where the others go on */
            test_common(weights, layers, 70, 14, 14, 0);   /* all of every row */
            test_common(weights, layers, 9, 100, 150, 0);  /* more than is shared, a block for each row */
        }
    }
    test_inputs();
    test_lengths();
    return check_report();
}
