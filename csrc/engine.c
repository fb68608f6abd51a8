/* engine.c: one call over several threads. Rows are cut into tasks of whole rows; a result does not depend on the cut. */
#include "edr_engine.h"
#include "internal.h"
#include "layers.h"

/* The fewest and the most tokens of a task, about. */
#define LEAST_TOKENS 64
#define MOST_TOKENS 1536
#define MAX_TASKS 256

/* What all three calls have in common: where their threads work, and who does which rows. */
typedef struct shared {
    const edr_model *model;
    int isa;
    void *const *rooms;
    int64_t room_size, deadline;
    float *logits;
    uint8_t *done;
    union {
        const edr_inputs *score;
        const edr_items *encode;
        const edr_ranking *rank;
    } in;
    void *values; /* states, of encode */
    float *scales;
    int64_t bounds[MAX_TASKS + 1]; /* task i is rows bounds[i] .. bounds[i + 1] - 1 */
} shared;

static edr_status check_rooms(const edr_model *model, int isa, int64_t workers, void *const *rooms, int64_t room_size)
{
    for (int64_t i = 0; i <= workers; i++) {
        if (rooms[i] == NULL) return EDR_E_NULL;
        if ((uintptr_t)rooms[i] % 64 != 0) return EDR_E_SPACE;
    }
    if (room_size < edr_score_room(model)) return EDR_E_SPACE;
    return edr_isa_supported(isa) ? EDR_OK : EDR_E_ISA;
}

/*
 * Whole rows in tasks that grow smaller: each takes half of what would be a thread's share of the rest. A thread that wakes up late, or that a
 * busy machine held up, leaves more tasks to the others, and the last ones are so small that all end together. A row counts for `extra`
 * more than its length. Returns the number of tasks.
 */
static int64_t cut(const int64_t *lengths, int64_t rows, int64_t extra, int64_t tokens, int64_t threads, int64_t *bounds)
{
    const int64_t most = edr_larger(MOST_TOKENS, tokens / (MAX_TASKS / 2));
    int64_t cuts = 0, held = 0, size = 0;
    bounds[0] = 0;
    for (int64_t row = 0; row < rows; row++) {
        if (held == 0) size = edr_smaller(edr_larger(tokens / (2 * threads), LEAST_TOKENS), most);
        held += lengths[row] + extra;
        const int64_t next = row + 1 < rows ? lengths[row + 1] + extra : 0;
        if (row + 1 < rows && (2 * held + next < 2 * size || cuts == MAX_TASKS - 1)) continue; /* a cut is where a row ends nearest to it */
        bounds[++cuts] = row + 1;
        tokens -= held;
        held = 0;
    }
    return cuts;
}

/* All rows: on the caller alone, or as tasks. */
static void share_out(shared *s, edr_pool *pool, int64_t workers, const int64_t *lengths, int64_t rows, int64_t extra,
                      void (*task)(void *context, int64_t i, int64_t lane))
{
    if (pool == NULL || workers <= 0) {
        s->bounds[0] = 0;
        s->bounds[1] = rows;
        task(s, 0, 0);
        return;
    }
    int64_t tokens = rows * extra;
    for (int64_t row = 0; row < rows; row++) tokens += lengths[row];
    edr_pool_run(pool, cut(lengths, rows, extra, tokens, workers + 1, s->bounds), task, s);
}

static void mark_done(const shared *s, int64_t begin, int64_t end, int64_t scored)
{
    for (int64_t row = begin; s->done != NULL && row < end; row++) s->done[row] = row < begin + scored;
}

/* ----------------------------------------------------------------------------------------------------------------- scoring */

static void score_task(void *context, int64_t i, int64_t lane)
{
    const shared *s = context;
    const int64_t begin = s->bounds[i], end = s->bounds[i + 1];
    int64_t scored = 0;
    /* Arguments were checked before the first task; there is nothing left that can fail. */
    (void)edr_score_until(s->model, s->in.score, begin, end, s->isa, s->rooms[lane], s->room_size, s->deadline, s->logits, &scored);
    mark_done(s, begin, end, scored);
}

edr_status edr_score_all(const edr_model *model, const edr_inputs *in, int isa, edr_pool *pool, int64_t workers, void *const *rooms,
                         int64_t room_size, int64_t deadline, float *logits, uint8_t *done, int64_t *at)
{
    if (rooms == NULL || logits == NULL) return EDR_E_NULL;
    const edr_status checked = edr_inputs_check(model, in, at);
    if (checked != EDR_OK) return checked;
    const edr_status room = check_rooms(model, isa, workers, rooms, room_size);
    if (room != EDR_OK) return room;
    shared s = {.model = model, .isa = isa, .rooms = rooms, .room_size = room_size, .deadline = deadline, .logits = logits, .done = done};
    s.in.score = in;
    share_out(&s, pool, workers, in->lengths, in->rows, 0, score_task);
    return EDR_OK;
}

/* ---------------------------------------------------------------------------------------------------- mid-fusion students */

static void encode_task(void *context, int64_t i, int64_t lane)
{
    const shared *s = context;
    edr_encode_part(s->model, s->in.encode, s->bounds[i], s->bounds[i + 1], s->isa, s->rooms[lane], s->values, s->scales);
}

edr_status edr_encode_all(const edr_model *model, const edr_items *in, int isa, edr_pool *pool, int64_t workers, void *const *rooms,
                          int64_t room_size, void *values, float *scales, int64_t *at)
{
    if (rooms == NULL) return EDR_E_NULL;
    const edr_status checked = edr_items_check(model, in, at);
    if (checked != EDR_OK) return checked;
    if (in->size > 0 && (values == NULL || (scales == NULL && model->mid.state_kind == EDR_STATES_INT8))) return EDR_E_NULL;
    const edr_status room = check_rooms(model, isa, workers, rooms, room_size);
    if (room != EDR_OK) return room;
    shared s = {.model = model, .isa = isa, .rooms = rooms, .values = values, .scales = scales};
    s.in.encode = in;
    share_out(&s, pool, workers, in->lengths, in->rows, 0, encode_task);
    return EDR_OK;
}

static void rank_task(void *context, int64_t i, int64_t lane)
{
    const shared *s = context;
    const int64_t begin = s->bounds[i], end = s->bounds[i + 1];
    mark_done(s, begin, end, edr_rank_part(s->model, s->in.rank, begin, end, s->isa, s->rooms[lane], s->rooms[0], s->deadline, s->logits));
}

edr_status edr_rank_all(const edr_model *model, const edr_ranking *in, int isa, edr_pool *pool, int64_t workers, void *const *rooms,
                        int64_t room_size, int64_t deadline, float *logits, uint8_t *done, int64_t *at)
{
    if (rooms == NULL || logits == NULL) return EDR_E_NULL;
    const edr_status checked = edr_ranking_check(model, in, at);
    if (checked != EDR_OK) return checked;
    const edr_status room = check_rooms(model, isa, workers, rooms, room_size);
    if (room != EDR_OK) return room;
    if (in->rows == 0) return EDR_OK;
    if (deadline == 0 || edr_now() < deadline) (void)edr_read_query(model, in, isa, rooms[0]); /* else no block is begun that would look */
    shared s = {.model = model, .isa = isa, .rooms = rooms, .deadline = deadline, .logits = logits, .done = done};
    s.in.rank = in;
    share_out(&s, pool, workers, in->lengths, in->rows, in->query_size, rank_task);
    return EDR_OK;
}

edr_status edr_query_rows(const edr_model *model, const int32_t *query, int64_t query_size, int isa, void *room, int64_t room_size, float *rows)
{
    const edr_ranking in = {.query = query, .query_size = query_size};
    int64_t at;
    if (rows == NULL) return EDR_E_NULL;
    const edr_status checked = edr_ranking_check(model, &in, &at);
    if (checked != EDR_OK) return checked;
    const edr_status fits = check_rooms(model, isa, 0, &room, room_size);
    if (fits != EDR_OK) return fits;
    memcpy(rows, edr_read_query(model, &in, isa, room), (size_t)(query_size * model->hidden) * sizeof(float));
    return EDR_OK;
}
