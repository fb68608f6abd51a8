/* cc -std=c11 -g -fsanitize=address,undefined -Icsrc tests/csrc/test_pool.c csrc/pool.c -lpthread -o test_pool
 * Every task runs once, whatever the number of tasks, workers and callers; a lane runs one task at a time. */
#define _POSIX_C_SOURCE 200809L
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>

#include "check.h"
#include "edr_engine.h"

enum { TASKS = 300, CALLERS = 6, WORKERS = 5 };

typedef struct work {
    atomic_int ran[TASKS], wrong;
    atomic_int *busy; /* [WORKERS + 1], shared by all callers; lane 0 is each caller's own */
    int64_t workers;
} work;

static void task(void *context, int64_t i, int64_t lane)
{
    work *w = context;
    sigset_t now;
    pthread_sigmask(SIG_SETMASK, NULL, &now);
    if (sigismember(&now, SIGINT) != (lane > 0) || sigismember(&now, SIGSEGV)) atomic_fetch_add(&w->wrong, 1);
    if (lane < 0 || lane > w->workers || (lane > 0 && atomic_fetch_add(&w->busy[lane], 1) != 0)) atomic_fetch_add(&w->wrong, 1);
    atomic_fetch_add(&w->ran[i], 1);
    if (lane > 0) atomic_fetch_sub(&w->busy[lane], 1);
}

/* One run of `tasks` tasks; whether each of them, and nothing else, ran once. */
static int run_once(edr_pool *pool, int64_t workers, atomic_int *busy, int64_t tasks)
{
    work w = {.busy = busy, .workers = workers};
    edr_pool_run(pool, tasks, task, &w);
    int good = atomic_load(&w.wrong) == 0;
    for (int64_t i = 0; i < TASKS; i++) good &= atomic_load(&w.ran[i]) == (i < tasks);
    return good;
}

typedef struct caller {
    edr_pool *pool;
    atomic_int *busy;
    uint64_t seed;
    int good;
} caller;

static void *call(void *argument)
{
    caller *c = argument;
    uint64_t state = c->seed;
    c->good = 1;
    for (int round = 0; round < 300; round++) c->good &= run_once(c->pool, WORKERS, c->busy, random_below(&state, round % 10 ? 12 : TASKS + 1));
    return NULL;
}

int main(void)
{
    atomic_int busy[WORKERS + 1] = {0};
    for (int64_t workers = 0; workers <= WORKERS; workers++) {
        edr_pool *pool = edr_pool_new(workers);
        CHECK(pool != NULL);
        if (pool == NULL) continue;
        const int64_t counts[] = {-1, 0, 1, 2, WORKERS, TASKS};
        for (size_t i = 0; i < sizeof counts / sizeof counts[0]; i++) CHECK(run_once(pool, workers, busy, counts[i]));
        edr_pool_free(pool);
    }
    edr_pool *pool = edr_pool_new(WORKERS);
    CHECK(pool != NULL);
    caller callers[CALLERS];
    pthread_t threads[CALLERS];
    for (int i = 0; i < CALLERS; i++) {
        callers[i] = (caller){pool, busy, (uint64_t)i, 0};
        if (pthread_create(&threads[i], NULL, call, &callers[i]) != 0) abort();
    }
    for (int i = 0; i < CALLERS; i++) {
        pthread_join(threads[i], NULL);
        CHECK(callers[i].good);
    }
    edr_pool_free(pool);
    for (int i = 0; i < 200; i++) edr_pool_free(edr_pool_new(2)); /* closed before the workers have begun */
    edr_pool_free(NULL);
    CHECK(edr_pool_new(-1) == NULL && edr_pool_new(1024) == NULL);
    return check_report();
}
