/* cc -std=c11 -g -fsanitize=address,undefined -Icsrc tests/csrc/test_engine.c csrc/[a-z]*.c -lm -lpthread -o test_engine
 * A call on many threads gives the bits of a call on one, also when several callers share the pool; a deadline leaves rows out. */
#include <pthread.h>

#include "engine_file.h"

enum { WORKERS = 3, CALLERS = 4 };

typedef struct caller {
    const edr_model *model;
    const rows *given;
    edr_pool *pool;
    void *rooms[WORKERS + 1]; /* the first is the caller's own */
    int64_t room_size;
    const float *expected;
    int good;
} caller;

static void *call(void *argument)
{
    caller *c = argument;
    c->good = 1;
    for (int round = 0; round < 12; round++) {
        edr_inputs in = c->given->in;
        in.rows = round % 3 == 0 ? MOST_ROWS : 1 + round;
        float logits[MOST_ROWS];
        uint8_t done[MOST_ROWS];
        int64_t at = -1, count = 0;
        const int64_t deadline = round % 2 == 0 ? 0 : edr_now() + INT64_C(60000000000);
        c->good &= edr_score_all(c->model, &in, edr_isa_best(), c->pool, WORKERS, c->rooms, c->room_size, deadline, logits, done, &at) == EDR_OK;
        c->good &= memcmp(logits, c->expected, (size_t)in.rows * 4) == 0;
        for (int64_t i = 0; i < in.rows; i++) count += done[i] == 1;
        c->good &= count == in.rows;
    }
    return NULL;
}

static void test_threads(int weights)
{
    engine_file f = build_file(weights, 1, 1);
    edr_model m;
    void *mapped;
    CHECK(edr_model_open(sealed(&f, &mapped), f.size, &m, NULL) == EDR_OK);
    rows r;
    make_rows(&r, MOST_ROWS, 1, 9);
    const int64_t size = edr_score_room(&m);
    void *rooms[WORKERS + CALLERS], *whole[WORKERS + CALLERS];
    for (int i = 0; i < WORKERS + CALLERS; i++) rooms[i] = aligned_room(size, &whole[i]);
    float expected[MOST_ROWS];
    int64_t at = -1;
    CHECK(edr_score_all(&m, &r.in, edr_isa_best(), NULL, 0, rooms, size, 0, expected, NULL, &at) == EDR_OK);
    edr_pool *pool = edr_pool_new(WORKERS);
    CHECK(pool != NULL);
    caller callers[CALLERS];
    pthread_t threads[CALLERS];
    for (int i = 0; i < CALLERS; i++) {
        callers[i] = (caller){&m, &r, pool, {rooms[WORKERS + i], rooms[0], rooms[1], rooms[2]}, size, expected, 0};
        if (pthread_create(&threads[i], NULL, call, &callers[i]) != 0) abort();
    }
    for (int i = 0; i < CALLERS; i++) {
        pthread_join(threads[i], NULL);
        CHECK(callers[i].good);
    }
    float *logits = exact_room(MOST_ROWS * 4);
    CHECK(edr_score_all(&m, &r.in, 0, pool, WORKERS, NULL, size, 0, logits, NULL, &at) == EDR_E_NULL);
    CHECK(edr_score_all(&m, &r.in, 0, pool, WORKERS, rooms, size, 0, NULL, NULL, &at) == EDR_E_NULL);
    CHECK(edr_score_all(&m, &r.in, 0, pool, WORKERS, rooms, size - 1, 0, logits, NULL, &at) == EDR_E_SPACE);
    CHECK(edr_score_all(&m, &r.in, 99, pool, WORKERS, rooms, size, 0, logits, NULL, &at) == EDR_E_ISA);
    r.ids[r.starts[7]] = VOCAB;
    CHECK(edr_score_all(&m, &r.in, 0, pool, WORKERS, rooms, size, 0, logits, NULL, &at) == EDR_E_VALUE && at == 7);
    CHECK(untouched(logits, MOST_ROWS * 4));
    edr_inputs none = r.in;
    none.rows = 0;
    CHECK(edr_score_all(&m, &none, 0, pool, WORKERS, rooms, size, 0, logits, NULL, &at) == EDR_OK && untouched(logits, MOST_ROWS * 4));
    free(logits);
    edr_pool_free(pool);
    for (int i = 0; i < WORKERS + CALLERS; i++) free(whole[i]);
    free_rows(&r);
    free(mapped);
    free(f.whole);
}

/* Deadlines from long ago to far away: what is done has its own bits, what is not is NaN, and more time never does less. */
static void test_deadlines(int workers)
{
    engine_file f = build_file(1, 1, 1);
    edr_model m;
    CHECK(edr_model_open(f.bytes, f.size, &m, NULL) == EDR_OK);
    rows r;
    make_rows(&r, MOST_ROWS, 1, 9);
    const int64_t size = edr_score_room(&m);
    void *rooms[WORKERS + 1], *whole[WORKERS + 1];
    for (int i = 0; i <= WORKERS; i++) rooms[i] = aligned_room(size, &whole[i]);
    edr_pool *pool = edr_pool_new(workers);
    float expected[MOST_ROWS], *logits = exact_room(MOST_ROWS * 4);
    uint8_t *done = exact_room(MOST_ROWS);
    int64_t at = -1, partial = 0;
    CHECK(edr_score_all(&m, &r.in, edr_isa_best(), NULL, 0, rooms, size, 0, expected, NULL, &at) == EDR_OK);
    const int64_t began = edr_now();
    CHECK(edr_score_all(&m, &r.in, edr_isa_best(), NULL, 0, rooms, size, 0, expected, NULL, &at) == EDR_OK);
    const int64_t spent = edr_now() - began;
    CHECK(spent > 0);
    for (int step = -2; step < 40; step++) {
        /* The machine may be busy: only what holds at any speed is asked for, but that in forty places of the call. */
        const int64_t deadline = step == -2 ? 1 : step == -1 ? edr_now() : step == 39 ? INT64_MAX : edr_now() + spent * step / 30;
        memset(logits, 0x5A, MOST_ROWS * 4);
        memset(done, 0x5A, MOST_ROWS);
        CHECK(edr_score_all(&m, &r.in, edr_isa_best(), pool, workers, rooms, size, deadline, logits, done, &at) == EDR_OK);
        int64_t count = 0, wrong = 0;
        for (int64_t i = 0; i < MOST_ROWS; i++) {
            count += done[i];
            wrong += done[i] > 1 || (done[i] ? memcmp(&logits[i], &expected[i], 4) != 0 : logits[i] == logits[i]);
            /* On one thread what is done is the beginning. */
            wrong += workers == 0 && i > 0 && done[i] > done[i - 1];
        }
        CHECK(wrong == 0);
        CHECK(step < 0 ? count == 0 : step < 39 || count == MOST_ROWS);
        partial += count > 0 && count < MOST_ROWS;
        CHECK(edr_score_all(&m, &r.in, edr_isa_best(), pool, workers, rooms, size, deadline, logits, NULL, &at) == EDR_OK);
    }
    printf("%lld of 40 deadlines fell inside the call\n", (long long)partial);
    int64_t scored = -1;
    CHECK(edr_score_until(&m, &r.in, 3, 9, edr_isa_best(), rooms[0], size, 0, logits, NULL) == EDR_E_NULL);
    CHECK(edr_score_until(&m, &r.in, 3, 9, edr_isa_best(), rooms[0], size, 1, logits, &scored) == EDR_OK && scored == 0);
    CHECK(edr_score_until(&m, &r.in, 3, 9, edr_isa_best(), rooms[0], size, INT64_MAX, logits, &scored) == EDR_OK && scored == 6);
    CHECK(edr_score_all(&m, &r.in, edr_isa_best(), NULL, 0, (void *[]){(uint8_t *)rooms[0] + 4}, size, 0, logits, NULL, &at) == EDR_E_SPACE);
    edr_pool_free(pool);
    for (int i = 0; i <= WORKERS; i++) free(whole[i]);
    free(logits);
    free(done);
    free_rows(&r);
    free(f.whole);
}

int main(void)
{
    test_deadlines(0);
    test_deadlines(WORKERS);
    for (int weights = 0; weights < KINDS_OF_WEIGHTS; weights++) test_threads(weights);
    return check_report();
}
