/*
 * pool.c: a few sleeping threads, and the clock. The only file of the library that asks the system for something.
 *
 * A run is a job on the caller's stack, put in a list. Workers take the next task of the first job that has one; the
 * caller takes tasks of its own job alone, then waits until the last of them is done: awake for a fifth of a millisecond,
 * then asleep. One lock guards it all: a task is a few hundred microseconds of products, taking one is some ten nanoseconds.
 *
 * Where Linux puts a worker that wakes up on the caller's own core, it waits there until the caller has done all the work
 * alone, and Linux parts the two only some ten milliseconds later: a caller that sleeps between its calls may never see two
 * cores. So the workers of a small pool may run on any core of the caller's but the one that it is on.
 */
#define _POSIX_C_SOURCE 200809L
#define _DARWIN_C_SOURCE /* for CLOCK_UPTIME_RAW */
#ifdef __linux__
#define _GNU_SOURCE /* for the sets of CPUs */
#include <sched.h>
#endif
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <time.h>

#include "edr_engine.h"

#if defined(__x86_64__) && defined(__GNUC__)
#define RELAX() __builtin_ia32_pause()
#else
#define RELAX() ((void)0)
#endif

#define AWAKE_NS 200000 /* how long a caller waits for others' tasks before it sleeps */

typedef struct job {
    void (*task)(void *context, int64_t i, int64_t lane);
    void *context;
    int64_t tasks, next;
    _Atomic int64_t done; /* written with the lock held */
    pthread_cond_t finished;
    struct job *later;
} job;

struct edr_pool {
    pthread_mutex_t lock;
    pthread_cond_t work; /* a job was added, or the pool closes */
    job *first;          /* jobs with tasks that nobody has taken yet, oldest first */
    int closing;
    int64_t workers, started;
#ifdef __linux__
    cpu_set_t cores; /* those of the pool's maker; none when it has too many to tell */
    int avoided;     /* the core that the workers may not use, or -1 */
#endif
    pthread_t threads[];
};

/* Hand out the next task of a job; a job without more leaves the list. Called with the lock held. */
static int64_t take(edr_pool *pool, job *from)
{
    const int64_t i = from->next++;
    if (from->next < from->tasks) return i;
    job **link = &pool->first;
    while (*link != from) link = &(*link)->later;
    *link = from->later;
    return i;
}

/* Run one task outside the lock. The job lives on its caller's stack, and the caller waits for `done`. */
static void work(edr_pool *pool, job *on, int64_t i, int64_t lane)
{
    pthread_mutex_unlock(&pool->lock);
    on->task(on->context, i, lane);
    pthread_mutex_lock(&pool->lock);
    if (atomic_fetch_add(&on->done, 1) + 1 == on->tasks) pthread_cond_signal(&on->finished);
}

static void *worker(void *argument)
{
    edr_pool *pool = argument;
    pthread_mutex_lock(&pool->lock);
    const int64_t lane = ++pool->started;
    for (;;) {
        while (pool->first == NULL && !pool->closing) pthread_cond_wait(&pool->work, &pool->lock);
        job *on = pool->first;
        if (on == NULL) break;
        work(pool, on, take(pool, on), lane);
    }
    pthread_mutex_unlock(&pool->lock);
    return NULL;
}

#ifdef __linux__
#define SMALL 8 /* more workers, and so more cores: a free one is found without help */

/* Keep the workers off the core that the caller is on. It is advice: where it cannot be given, they run where they ran. Called with the lock
 * held. */
static void keep_off(edr_pool *pool)
{
    const int here = sched_getcpu();
    if (here == pool->avoided || here < 0 || here >= CPU_SETSIZE || pool->workers > SMALL) return;
    cpu_set_t others = pool->cores;
    CPU_CLR((size_t)here, &others);
    if (CPU_COUNT(&others) == 0) return;
    for (int64_t i = 0; i < pool->workers; i++) (void)pthread_setaffinity_np(pool->threads[i], sizeof others, &others);
    pool->avoided = here;
}
#else
static void keep_off(edr_pool *pool) { (void)pool; }
#endif

edr_pool *edr_pool_new(int64_t workers)
{
    if (workers < 0 || workers > 1023) return NULL;
    edr_pool *pool = calloc(1, sizeof *pool + (size_t)workers * sizeof(pthread_t));
    if (pool == NULL) return NULL;
#ifdef __linux__
    pool->avoided = -1;
    if (sched_getaffinity(0, sizeof pool->cores, &pool->cores) != 0) CPU_ZERO(&pool->cores);
#endif
    pthread_mutex_init(&pool->lock, NULL);
    pthread_cond_init(&pool->work, NULL);
    /* A signal sent to the process is for the host's threads: a worker starts with all of them blocked, but for its own faults. */
    sigset_t blocked, before;
    sigfillset(&blocked);
    const int faults[] = {SIGSEGV, SIGBUS, SIGFPE, SIGILL};
    for (int i = 0; i < 4; i++) sigdelset(&blocked, faults[i]);
    pthread_sigmask(SIG_SETMASK, &blocked, &before);
    while (pool->workers < workers && pthread_create(&pool->threads[pool->workers], NULL, worker, pool) == 0) pool->workers++;
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    if (pool->workers == workers) return pool;
    edr_pool_free(pool);
    return NULL;
}

void edr_pool_free(edr_pool *pool)
{
    if (pool == NULL) return;
    pthread_mutex_lock(&pool->lock);
    pool->closing = 1;
    pthread_cond_broadcast(&pool->work);
    pthread_mutex_unlock(&pool->lock);
    for (int64_t i = 0; i < pool->workers; i++) pthread_join(pool->threads[i], NULL);
    pthread_cond_destroy(&pool->work);
    pthread_mutex_destroy(&pool->lock);
    free(pool);
}

void edr_pool_run(edr_pool *pool, int64_t tasks, void (*task)(void *context, int64_t i, int64_t lane), void *context)
{
    if (tasks <= 0) return;
    if (tasks == 1 || pool->workers == 0) {
        for (int64_t i = 0; i < tasks; i++) task(context, i, 0);
        return;
    }
    job mine = {.task = task, .context = context, .tasks = tasks};
    pthread_cond_init(&mine.finished, NULL);
    pthread_mutex_lock(&pool->lock);
    keep_off(pool);
    job **end = &pool->first;
    while (*end != NULL) end = &(*end)->later;
    *end = &mine;
    if (tasks > pool->workers) {
        pthread_cond_broadcast(&pool->work);
    } else {
        for (int64_t i = 1; i < tasks; i++) pthread_cond_signal(&pool->work);
    }
    while (mine.next < tasks) work(pool, &mine, take(pool, &mine), 0);
    if (mine.done < tasks) {
        pthread_mutex_unlock(&pool->lock);
        const int64_t until = edr_now() + AWAKE_NS;
        while (mine.done < tasks && edr_now() < until) RELAX();
        pthread_mutex_lock(&pool->lock); /* the last worker lets go of the job with it */
    }
    while (mine.done < tasks) pthread_cond_wait(&mine.finished, &pool->lock);
    pthread_mutex_unlock(&pool->lock);
    pthread_cond_destroy(&mine.finished);
}

/* CLOCK_MONOTONIC of macOS is not the clock that Python's time.monotonic reads there. */
#ifdef CLOCK_UPTIME_RAW
#define CLOCK CLOCK_UPTIME_RAW
#else
#define CLOCK CLOCK_MONOTONIC
#endif

int64_t edr_now(void)
{
    struct timespec now;
    clock_gettime(CLOCK, &now);
    return (int64_t)now.tv_sec * 1000000000 + now.tv_nsec;
}
