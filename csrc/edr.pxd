# cython: language_level=3
"""edgerec.h, as Cython reads it. The header is the documentation."""

from libc.stdint cimport int8_t, int32_t, int64_t, uint8_t, uint64_t

cdef extern from "edgerec.h" nogil:
    enum: EDR_OK, EDR_E_SIZE, EDR_E_OFFSETS, EDR_E_ROW, EDR_E_VALUE, EDR_E_SPACE, EDR_MAX_TEMPLATES, EDR_MAX_NAMES, EDR_ISA_COUNT
    const char *edr_status_text(int status)
    int edr_isa_supported(int isa)
    int edr_isa_best()
    const char *edr_isa_name(int isa)
    uint64_t edr_hash64(const void *data, size_t size, uint64_t seed)
    uint64_t edr_hash64_pair(const void *first, size_t first_size, const void *second, size_t second_size, uint64_t seed)
    int edr_hash_packed(const uint8_t *data, int64_t size, const int64_t *offsets, int64_t m, uint64_t seed, uint64_t *out, int64_t *at)
    int edr_hash_trigrams(const uint8_t *text, int64_t size, const void *prefix, size_t prefix_size, uint64_t seed, uint64_t *out,
                          int64_t *n_out, int64_t *at)
    int edr_project(const uint64_t *hashes, int64_t n, int64_t buckets, int32_t *ids, float *signs)
    int edr_sort_unique(uint64_t *hashes, float *weights, int64_t n, uint64_t *room_h, float *room_w, int64_t *n_out, int64_t *at)
    int edr_sort_unique_rows(uint64_t *hashes, int64_t n, int64_t *counts, int64_t rows, uint64_t *room, int64_t *n_out, int64_t *at)
    ctypedef struct edr_field:
        const uint64_t *hashes
        const float *weights
        const int64_t *offsets
        int64_t size
        int64_t table
        int64_t gap
    ctypedef struct edr_template:
        int32_t op
        int32_t left
        int32_t right
        uint64_t seed
    int edr_templates_check(const edr_template *templates, int64_t m, int64_t fields, int64_t *at)
    int edr_encode_rows(const edr_template *templates, int64_t m, const edr_field *fields, int64_t field_count, const int64_t *rows,
                        int64_t n, int64_t buckets, int64_t slots, int32_t *ids, float *weights, int64_t *at)
    ctypedef struct edr_pair_frame:
        const int32_t *prefix
        const int32_t *query
        const int32_t *middle
        const int32_t *suffix
        int64_t prefix_size, query_size, middle_size, suffix_size
        int32_t pad_id, query_type, item_type
        int64_t max_tokens
    int edr_pack_width(const edr_pair_frame *frame, int64_t size, const int64_t *offsets, int64_t table, const int64_t *rows, int64_t n,
                       int64_t *width, int64_t *at)
    int edr_longest_first(int64_t size, const int64_t *offsets, int64_t table, const int64_t *rows, int64_t n, int64_t cap, int64_t *counts,
                          int64_t *order, int64_t *lengths, int64_t *at)
    int edr_pack_pairs(const edr_pair_frame *frame, const int32_t *tokens, int64_t size, const int64_t *offsets, int64_t table,
                       const int64_t *rows, int64_t n, int64_t width, int32_t *ids, int32_t *mask, int32_t *types, int64_t *at)
    int edr_ragged_size(const edr_pair_frame *frame, int64_t size, const int64_t *offsets, int64_t table, const int64_t *rows, int64_t n,
                        int64_t *total, int64_t *at)
    int edr_pack_ragged(const edr_pair_frame *frame, const int32_t *tokens, int64_t size, const int64_t *offsets, int64_t table,
                        const int64_t *rows, int64_t n, int64_t room, int32_t *ids, int32_t *types, int64_t *starts, int64_t *lengths,
                        int64_t *at)
    int64_t edr_index_capacity(int64_t n)
    int edr_index_build(const uint64_t *hashes, int64_t n, uint64_t *keys, int32_t *slots, int64_t capacity)
    ctypedef struct edr_slice:
        const uint8_t *data
        int64_t size
    int edr_index_find(const uint64_t *keys, const int32_t *slots, int64_t capacity, const uint8_t *bytes, int64_t size,
                       const int64_t *offsets, int64_t ids, const edr_slice *names, int64_t n, uint64_t seed, int64_t *out, int64_t *at)
    int64_t EDR_TOPK_ROOM(int64_t k)
    int64_t EDR_TOPK_MAX_K
    ctypedef struct edr_topk:
        pass
    int edr_topk_init(edr_topk *top, int64_t k, int isa, float *scores, int64_t *indices, int64_t room)
    int edr_topk_push(edr_topk *top, const float *scores, const uint8_t *mask, int64_t n, int64_t start)
    int edr_topk_push_at(edr_topk *top, const float *scores, const int64_t *indices, int64_t n)
    int64_t edr_topk_count(edr_topk *top)
    int edr_topk_finish(edr_topk *top, int64_t *indices, float *scores, int64_t *count)
    int64_t EDR_SCAN_MAX_WIDTH
    int edr_scan(const int8_t *query, float query_scale, const int8_t *vectors, const float *scales, int64_t n, int64_t width, int isa,
                 float *scores)
