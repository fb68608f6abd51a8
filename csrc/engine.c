/* engine.c: one call over several threads. Rows are cut into tasks of whole rows; a logit does not depend on the cut. */
#include "edr_engine.h"
#include "internal.h"

/* Fewer tokens than this are not worth waking a thread for. */
#define LEAST_TOKENS 96
/* More are cut, so that the threads end at about the same time. */
#define MOST_TOKENS 4096
#define MAX_TASKS 256

typedef struct shared {
    const edr_model *model;
    const edr_inputs *in;
    int isa;
    void *const *rooms;
    int64_t room_size, deadline;
    float *logits;
    uint8_t *done;
    int64_t bounds[MAX_TASKS + 1]; /* task i is rows bounds[i] .. bounds[i + 1] - 1 */
} shared;

static void score_task(void *context, int64_t i, int64_t lane)
{
    const shared *s = context;
    const int64_t begin = s->bounds[i], end = s->bounds[i + 1];
    int64_t scored = 0;
    /* Arguments were checked before the first task; there is nothing left that can fail. */
    (void)edr_score_until(s->model, s->in, begin, end, s->isa, s->rooms[lane], s->room_size, s->deadline, s->logits, &scored);
    if (s->done == NULL) return;
    for (int64_t row = begin; row < end; row++) s->done[row] = row < begin + scored;
}

/* Whole rows, about `tokens` of them a task; returns the number of tasks. */
static int64_t cut(const edr_inputs *in, int64_t tokens, int64_t *bounds)
{
    int64_t tasks = 0, held = 0;
    bounds[0] = 0;
    for (int64_t row = 0; row < in->rows; row++) {
        held += in->lengths[row];
        if (held >= tokens && tasks < MAX_TASKS - 1) {
            bounds[++tasks] = row + 1;
            held = 0;
        }
    }
    if (bounds[tasks] < in->rows) bounds[++tasks] = in->rows;
    return tasks;
}

edr_status edr_score_all(const edr_model *model, const edr_inputs *in, int isa, edr_pool *pool, int64_t workers, void *const *rooms,
                         int64_t room_size, int64_t deadline, float *logits, uint8_t *done, int64_t *at)
{
    if (rooms == NULL || logits == NULL) return EDR_E_NULL;
    const edr_status checked = edr_inputs_check(model, in, at);
    if (checked != EDR_OK) return checked;
    for (int64_t i = 0; i <= workers; i++) {
        if (rooms[i] == NULL) return EDR_E_NULL;
        if ((uintptr_t)rooms[i] % 64 != 0) return EDR_E_SPACE;
    }
    if (room_size < edr_score_room(model)) return EDR_E_SPACE;
    if (!edr_isa_supported(isa)) return EDR_E_ISA;
    shared s = {model, in, isa, rooms, room_size, deadline, logits, done, {0, in->rows}};
    if (pool == NULL || workers <= 0) {
        score_task(&s, 0, 0);
        return EDR_OK;
    }
    int64_t tokens = 0;
    for (int64_t row = 0; row < in->rows; row++) tokens += in->lengths[row];
    /* Two tasks a thread: the second evens out what a busy machine, or long rows, did to the first. */
    tokens = (tokens + 2 * workers + 1) / (2 * (workers + 1));
    tokens = tokens < LEAST_TOKENS ? LEAST_TOKENS : tokens > MOST_TOKENS ? MOST_TOKENS : tokens;
    edr_pool_run(pool, cut(in, tokens, s.bounds), score_task, &s);
    return EDR_OK;
}
