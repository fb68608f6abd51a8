/* The gather of item states in plain C: what gather.cu does on a GPU is defined here. */
#include "gather.h"

#include "edgerec.h"

int edr_gather_states(const edr_gather_job *job)
{
    const int64_t numbers = (int64_t)job->groups * job->width, room = job->tokens * numbers;
    const int known = job->stored == EDR_GATHER_FP32 || job->stored == EDR_GATHER_INT8 || job->stored == EDR_GATHER_FP16;
    if (!known || (job->number != EDR_GATHER_FP32 && job->number != EDR_GATHER_FP16 && job->number != EDR_GATHER_BF16)) return EDR_E_VALUE;
    if (job->rows < 0 || job->tokens < 0 || job->groups < 1 || job->width < 1 || numbers > INT32_MAX || room > INT32_MAX) return EDR_E_SIZE;
    for (int64_t b = 0; b < job->rows; b++) {
        const int other = job->starts[b] < 0;
        const int64_t start = other ? ~job->starts[b] : job->starts[b], length = job->lengths[b];
        if (length < 0 || length > job->tokens || start > job->totals[other] || length > job->totals[other] - start) return EDR_E_ROW;
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
