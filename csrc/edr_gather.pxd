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
    int edr_gather_states(const edr_gather_job *job)
