/* Rows of item states and of tokens on a GPU; gather.h says what they are, gather.c is the same in plain C. `make ptx` compiles it. */
#include "gather.h"

/*
 * A block of threads a row: grid (B), any number of threads. `tables`, `starts` and `lengths` lie in the request's own copy, so a request
 * names the tables that it reads. Neighbouring threads read and write neighbouring numbers.
 */
extern "C" __global__ void edr_gather_rows(
    const edr_states_table *tables, const int64_t *starts, const int32_t *lengths, void *out, int32_t tokens, int32_t groups, int32_t width,
    int32_t stored, int32_t number)
{
    const int64_t row = blockIdx.x, start = starts[row];
    const int32_t room = tokens * groups * width, end = lengths[row] * groups * width;
    const edr_states_table table = tables[start < 0];
    for (int32_t i = (int32_t)threadIdx.x; i < room; i += (int32_t)blockDim.x) {
        const float x = i < end ? edr_stored_number(&table, stored, groups, width, start < 0 ? ~start : start, i) : 0.0f;
        edr_write_number(out, number, row * room + i, x);
    }
}

/* The same for rows of tokens: `tables`, `starts`, `lengths` and `frame` lie in the request's own copy. */
extern "C" __global__ void edr_gather_pairs(
    const int32_t *const *tables, const int64_t *starts, const int32_t *lengths, const int32_t *frame, int32_t *ids, int32_t *mask,
    int32_t *types, int32_t tokens)
{
    const int64_t row = blockIdx.x, start = starts[row];
    const int32_t *item = tables[start < 0] + (start < 0 ? ~start : start);
    for (int32_t i = (int32_t)threadIdx.x; i < tokens; i += (int32_t)blockDim.x)
        edr_write_token(frame, item, lengths[row], i, row * tokens + i, ids, mask, types);
}
