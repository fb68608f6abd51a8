/* cc -std=c11 -g -fsanitize=address,undefined -Icsrc tests/csrc/test_engine.c csrc/[a-z]*.c -lm -lpthread -o test_engine
 * A call on many threads gives the bits of a call on one, also when several callers share the pool. */
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
        int64_t at = -1;
        c->good &= edr_score_all(c->model, &in, edr_isa_best(), c->pool, WORKERS, c->rooms, c->room_size, logits, &at) == EDR_OK;
        c->good &= memcmp(logits, c->expected, (size_t)in.rows * 4) == 0;
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
    CHECK(edr_score_all(&m, &r.in, edr_isa_best(), NULL, 0, rooms, size, expected, &at) == EDR_OK);
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
    CHECK(edr_score_all(&m, &r.in, 0, pool, WORKERS, NULL, size, logits, &at) == EDR_E_NULL);
    CHECK(edr_score_all(&m, &r.in, 0, pool, WORKERS, rooms, size, NULL, &at) == EDR_E_NULL);
    CHECK(edr_score_all(&m, &r.in, 0, pool, WORKERS, rooms, size - 1, logits, &at) == EDR_E_SPACE);
    CHECK(edr_score_all(&m, &r.in, 99, pool, WORKERS, rooms, size, logits, &at) == EDR_E_ISA);
    r.ids[r.starts[7]] = VOCAB;
    CHECK(edr_score_all(&m, &r.in, 0, pool, WORKERS, rooms, size, logits, &at) == EDR_E_VALUE && at == 7);
    CHECK(untouched(logits, MOST_ROWS * 4));
    edr_inputs none = r.in;
    none.rows = 0;
    CHECK(edr_score_all(&m, &none, 0, pool, WORKERS, rooms, size, logits, &at) == EDR_OK && untouched(logits, MOST_ROWS * 4));
    free(logits);
    edr_pool_free(pool);
    for (int i = 0; i < WORKERS + CALLERS; i++) free(whole[i]);
    free_rows(&r);
    free(mapped);
    free(f.whole);
}

int main(void)
{
    for (int weights = 0; weights < KINDS_OF_WEIGHTS; weights++) test_threads(weights);
    return check_report();
}
