# cython: language_level=3
"""edr_engine.h, as Cython reads it. The header is the documentation."""

from libc.stdint cimport int32_t, int64_t, uint8_t

cdef extern from "edr_engine.h" nogil:
    ctypedef struct edr_mid:
        int64_t query_layers, item_start, query_type, item_type, groups, width
        int state_kind
    ctypedef struct edr_model:
        int64_t hidden, layers, vocab, positions, types, buckets
        edr_mid mid
    ctypedef struct edr_inputs:
        const int32_t *ids
        const int32_t *types
        int64_t size
        const int64_t *starts
        const int64_t *lengths
        int64_t rows
        const int32_t *feature_ids
        const float *feature_weights
        int64_t slots
    ctypedef struct edr_items:
        const int32_t *ids
        int64_t size
        const int64_t *starts
        const int64_t *lengths
        int64_t rows
    ctypedef struct edr_ranking:
        const int32_t *query
        int64_t query_size
        const void *values
        const float *scales
        int64_t tokens
        const int64_t *starts
        const int64_t *lengths
        int64_t rows
        const int32_t *feature_ids
        const float *feature_weights
        int64_t slots
    ctypedef struct edr_pool:
        pass
    int edr_model_open(const void *data, int64_t size, edr_model *model, int64_t *at)
    void edr_model_fault(const void *data, int64_t size, char *name)
    int edr_row_lengths(const int32_t *mask, int64_t rows, int64_t width, int64_t *lengths, int64_t *at)
    int64_t edr_score_room(const edr_model *model)
    edr_pool *edr_pool_new(int64_t workers)
    void edr_pool_free(edr_pool *pool)
    int edr_score_all(const edr_model *model, const edr_inputs *inputs, int isa, edr_pool *pool, int64_t workers, void **rooms,
                      int64_t room_size, int64_t deadline, float *logits, uint8_t *done, int64_t *at)
    int edr_encode_all(const edr_model *model, const edr_items *items, int isa, edr_pool *pool, int64_t workers, void **rooms,
                       int64_t room_size, void *values, float *scales, int64_t *at)
    int edr_rank_all(const edr_model *model, const edr_ranking *ranking, int isa, edr_pool *pool, int64_t workers, void **rooms,
                     int64_t room_size, int64_t deadline, float *logits, uint8_t *done, int64_t *at)
    int edr_query_rows(const edr_model *model, const int32_t *query, int64_t query_size, int isa, void *room, int64_t room_size, float *rows)
