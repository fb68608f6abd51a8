/* Rows of item states and of tokens in plain C: what gather.cu does on a GPU is defined here. */
#include "gather.h"

#include "edgerec.h"

/* Whether `length` tokens from `start` on lie in the table that the sign of `start` names. */
static int inside(int64_t start, int64_t length, const int64_t totals[2])
{
    const int64_t total = totals[start < 0], from = start < 0 ? ~start : start;
    return from <= total && length <= total - from;
}

int edr_gather_states(const edr_gather_job *job)
{
    const int64_t numbers = (int64_t)job->groups * job->width, room = job->tokens * numbers;
    const int known = job->stored == EDR_GATHER_FP32 || job->stored == EDR_GATHER_INT8 || job->stored == EDR_GATHER_FP16;
    if (!known || (job->number != EDR_GATHER_FP32 && job->number != EDR_GATHER_FP16 && job->number != EDR_GATHER_BF16)) return EDR_E_VALUE;
    if (job->rows < 0 || job->tokens < 0 || job->groups < 1 || job->width < 1 || numbers > INT32_MAX || room > INT32_MAX) return EDR_E_SIZE;
    for (int64_t b = 0; b < job->rows; b++) {
        const int64_t length = job->lengths[b];
        if (length < 0 || length > job->tokens || !inside(job->starts[b], length, job->totals)) return EDR_E_ROW;
    }
    for (int64_t b = 0; b < job->rows; b++) {
        const int other = job->starts[b] < 0;
        const int64_t start = other ? ~job->starts[b] : job->starts[b], end = job->lengths[b] * numbers;
        for (int32_t i = 0; i < (int32_t)room; i++) {
            const float x = i < end ? edr_stored_number(&job->tables[other], job->stored, job->groups, job->width, start, i) : 0.0f;
            edr_write_number(job->out, job->number, b * room + i, x);
        }
    }
    return EDR_OK;
}

int edr_gather_pairs(const edr_pairs_job *job)
{
    if (job->rows < 0 || job->tokens < 0 || job->frame_size < 0) return EDR_E_SIZE;
    if (job->frame_size < EDR_FRAME_TOKENS) return EDR_E_VALUE;
    const int64_t head = job->frame[EDR_FRAME_HEAD], suffix = job->frame[EDR_FRAME_SUFFIX];
    if (head < 0 || suffix < 0 || job->frame_size != EDR_FRAME_TOKENS + head + suffix) return EDR_E_VALUE;
    for (int64_t b = 0; b < job->rows; b++) {
        const int64_t length = job->lengths[b], size = head + length + suffix;
        if (length < -1 || (length >= 0 && (size > 0 ? size : 1) > job->tokens)) return EDR_E_ROW;
        if (!inside(job->starts[b], length < 0 ? 0 : length, job->totals)) return EDR_E_ROW;
    }
    for (int64_t b = 0; b < job->rows; b++) {
        const int other = job->starts[b] < 0;
        const int32_t length = job->lengths[b];
        /* no item, no address: the table may be none */
        const int32_t *item = length > 0 ? job->tables[other] + (other ? ~job->starts[b] : job->starts[b]) : NULL;
        for (int32_t i = 0; i < job->tokens; i++) edr_write_token(job->frame, item, length, i, b * job->tokens + i, job->ids, job->mask, job->types);
    }
    return EDR_OK;
}
