# cython: language_level=3
"""gather.h, as Cython reads it. The header is the documentation."""

from libc.stdint cimport int32_t, int64_t

cdef extern from "gather.h" nogil:
    ctypedef struct edr_states_table:
        const void *values
        const float *scales
    ctypedef struct edr_gather_job:
        edr_states_table tables[2]
        int64_t totals[2]
        const int64_t *starts
        const int32_t *lengths
        int64_t rows
        int32_t tokens
        int32_t groups, width
        int32_t stored, number
        void *out
    ctypedef struct edr_pairs_job:
        const int32_t *tables[2]
        int64_t totals[2]
        const int64_t *starts
        const int32_t *lengths
        const int32_t *frame
        int64_t frame_size
        int64_t rows
        int32_t tokens
        int32_t *ids
        int32_t *mask
        int32_t *types
    int edr_gather_states(const edr_gather_job *job)
    int edr_gather_pairs(const edr_pairs_job *job)
