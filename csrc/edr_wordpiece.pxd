# cython: language_level=3
"""edr_wordpiece.h, as Cython reads it. The header is the documentation."""

from libc.stdint cimport int32_t, int64_t, uint8_t

cdef extern from "edr_wordpiece.h" nogil:
    enum:
        EDR_ASK
    ctypedef struct edr_wordpiece:
        int64_t longest_run
    int edr_wordpiece_open(const void *data, int64_t size, edr_wordpiece *w, int64_t *at)
    int edr_wordpiece_encode(const edr_wordpiece *w, const char *text, int64_t size, int64_t limit, int32_t *ids, int64_t *count)
    int edr_wordpiece_encode_all(const edr_wordpiece *w, const char *const *texts, const int64_t *sizes, int64_t n, int64_t limit,
                                 int32_t *ids, int64_t room, int64_t *offsets, uint8_t *asked, int64_t *at)
