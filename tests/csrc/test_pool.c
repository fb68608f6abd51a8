/* cc -std=c11 -g -fsanitize=address,undefined -Icsrc tests/csrc/test_pool.c csrc/pool.c -lpthread -o test_pool
 * Every task runs once, whatever the number of tasks, workers and callers; a lane runs one task at a time. */
#define _POSIX_C_SOURCE 200809L
#ifdef __linux__
#define _GNU_SOURCE
#include <sched.h>
#endif
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <time.h>

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

#ifdef __linux__
typedef struct cores {
    _Atomic int shared, runs; /* runs of workers; of those, by one that could use the caller's core */
    int here;
} cores;

static void note_cores(void *context, int64_t i, int64_t lane)
{
    cores *c = context;
    cpu_set_t mine;
    (void)i;
    const struct timespec moment = {0, 200000}; /* so that others come to take a task */
    nanosleep(&moment, NULL);
    if (lane == 0 || sched_getaffinity(0, sizeof mine, &mine) != 0) return;
    c->runs++;
    c->shared += CPU_ISSET((size_t)c->here, &mine) != 0;
}

/* Workers leave the caller's core to it, where they have others. */
static void test_cores(void)
{
    cpu_set_t all, one;
    CHECK(sched_getaffinity(0, sizeof all, &all) == 0);
    edr_pool *pool = edr_pool_new(2);
    for (int cpu = 0, tried = 0; cpu < CPU_SETSIZE && tried < 4; cpu++) {
        if (!CPU_ISSET((size_t)cpu, &all)) continue;
        tried++;
        CPU_ZERO(&one);
        CPU_SET((size_t)cpu, &one);
        CHECK(sched_setaffinity(0, sizeof one, &one) == 0);
        cores c = {.here = cpu};
        edr_pool_run(pool, 40, note_cores, &c);
        CHECK(c.runs > 0 && (c.shared == 0 || CPU_COUNT(&all) == 1));
    }
    CHECK(sched_setaffinity(0, sizeof all, &all) == 0);
    edr_pool_free(pool);
}
#else
static void test_cores(void) {}
#endif

int main(void)
{
    atomic_int busy[WORKERS + 1] = {0};
    test_cores();
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
