/* pack.c: token rows of query and item, padded to one width or end to end. */
#include "internal.h"

static edr_status frame_size(const edr_pair_frame *f, int64_t *size)
{
    if (f == NULL) return EDR_E_NULL;
    const int64_t sizes[4] = {f->prefix_size, f->query_size, f->middle_size, f->suffix_size};
    const int32_t *parts[4] = {f->prefix, f->query, f->middle, f->suffix};
    int64_t sum = 0;
    if (f->max_tokens < 0) return EDR_E_SIZE;
    for (int i = 0; i < 4; i++) {
        if (sizes[i] < 0) return EDR_E_SIZE;
        if (sizes[i] > 0 && parts[i] == NULL) return EDR_E_NULL;
        if (sizes[i] > f->max_tokens - sum) return EDR_E_SPACE;
        sum += sizes[i];
    }
    *size = sum;
    return EDR_OK;
}

edr_status edr_pack_width(const edr_pair_frame *frame, int64_t size, const int64_t *offsets, int64_t table, const int64_t *rows, int64_t n,
                          int64_t *width, int64_t *at)
{
    int64_t fixed = 0, longest = 0;
    const edr_status status = frame_size(frame, &fixed);
    if (status != EDR_OK) return status;
    if (size < 0 || table < 0 || n < 0) return EDR_E_SIZE;
    if (width == NULL || (n > 0 && (rows == NULL || offsets == NULL))) return EDR_E_NULL;
    for (int64_t i = 0; i < n; i++) {
        if (rows[i] < 0 || rows[i] >= table) return edr_fail(EDR_E_ROW, at, i);
        if (!edr_span_ok(offsets, rows[i], size)) return edr_fail(EDR_E_OFFSETS, at, i);
        const int64_t length = offsets[rows[i] + 1] - offsets[rows[i]];
        if (length > longest) longest = length;
    }
    const int64_t room = frame->max_tokens - fixed;
    *width = fixed + (longest < room ? longest : room);
    return EDR_OK;
}

static inline int64_t item_length(const int64_t *offsets, int64_t row, int64_t cap)
{
    const int64_t length = offsets[row + 1] - offsets[row];
    return length < cap ? length : cap;
}

edr_status edr_longest_first(int64_t size, const int64_t *offsets, int64_t table, const int64_t *rows, int64_t n, int64_t cap, int64_t *counts,
                             int64_t *order, int64_t *lengths, int64_t *at)
{
    if (cap < 0 || cap == INT64_MAX) return EDR_E_SIZE;
    const edr_pair_frame items_only = {.max_tokens = cap};
    int64_t longest = 0;
    const edr_status status = edr_pack_width(&items_only, size, offsets, table, rows, n, &longest, at);
    if (status != EDR_OK) return status;
    if (n == 0) return EDR_OK;
    if (counts == NULL || order == NULL || lengths == NULL) return EDR_E_NULL;
    memset(counts, 0, ((size_t)longest + 1) * sizeof *counts);
    for (int64_t i = 0; i < n; i++) counts[item_length(offsets, rows[i], cap)]++;
    int64_t begin = 0; /* counts become places: where the next row of that length goes */
    for (int64_t length = longest; length >= 0; length--) {
        const int64_t count = counts[length];
        counts[length] = begin;
        begin += count;
    }
    for (int64_t i = 0; i < n; i++) {
        const int64_t length = item_length(offsets, rows[i], cap), place = counts[length]++;
        order[place] = i;
        lengths[place] = length;
    }
    return EDR_OK;
}

/* Append `size` tokens; returns the end. */
static inline int32_t *append(int32_t *to, const int32_t *from, int64_t size)
{
    if (size > 0) memcpy(to, from, (size_t)size * sizeof *to);
    return to + size;
}

static inline void fill(int32_t *to, int32_t value, int64_t size)
{
    for (int64_t i = 0; i < size; i++) to[i] = value;
}

/* The tokens of one row; returns their end. */
static inline int32_t *write_row(const edr_pair_frame *f, const int32_t *tokens, int64_t begin, int64_t length, int32_t *to)
{
    to = append(to, f->prefix, f->prefix_size);
    to = append(to, f->query, f->query_size);
    to = append(to, f->middle, f->middle_size);
    if (length > 0) to = append(to, tokens + begin, length);
    return append(to, f->suffix, f->suffix_size);
}

edr_status edr_pack_pairs(const edr_pair_frame *frame, const int32_t *tokens, int64_t size, const int64_t *offsets, int64_t table,
                          const int64_t *rows, int64_t n, int64_t width, int32_t *ids, int32_t *mask, int32_t *types, int64_t *at)
{
    int64_t needed = 0, fixed = 0;
    const edr_status status = edr_pack_width(frame, size, offsets, table, rows, n, &needed, at);
    if (status != EDR_OK) return status;
    if (width < needed) return EDR_E_SPACE;
    if (n == 0 || width == 0) return EDR_OK;
    if (ids == NULL || mask == NULL || types == NULL || (tokens == NULL && size > 0)) return EDR_E_NULL;
    (void)frame_size(frame, &fixed); /* edr_pack_width has checked it */
    const int64_t left = fixed - frame->suffix_size, room = frame->max_tokens - fixed;
    for (int64_t i = 0; i < n; i++, ids += width, mask += width, types += width) {
        const int64_t used = fixed + item_length(offsets, rows[i], room);
        fill(write_row(frame, tokens, offsets[rows[i]], used - fixed, ids), frame->pad_id, width - used);
        fill(mask, 1, used);
        fill(mask + used, 0, width - used);
        fill(types, frame->query_type, left);
        fill(types + left, frame->item_type, used - left);
        fill(types + used, 0, width - used);
    }
    return EDR_OK;
}

edr_status edr_ragged_size(const edr_pair_frame *frame, int64_t size, const int64_t *offsets, int64_t table, const int64_t *rows, int64_t n,
                           int64_t *total, int64_t *at)
{
    int64_t width = 0, fixed = 0, sum = 0;
    const edr_status status = edr_pack_width(frame, size, offsets, table, rows, n, &width, at);
    if (status != EDR_OK) return status;
    if (total == NULL) return EDR_E_NULL;
    if (width > 0 && n > INT64_MAX / 8 / width) return EDR_E_SIZE;
    (void)frame_size(frame, &fixed);
    for (int64_t i = 0; i < n; i++) {
        const int64_t length = fixed + item_length(offsets, rows[i], frame->max_tokens - fixed);
        sum += length > 0 ? length : 1;
    }
    *total = sum;
    return EDR_OK;
}

edr_status edr_pack_ragged(const edr_pair_frame *frame, const int32_t *tokens, int64_t size, const int64_t *offsets, int64_t table,
                           const int64_t *rows, int64_t n, int64_t room, int32_t *ids, int32_t *types, int64_t *starts, int64_t *lengths,
                           int64_t *at)
{
    int64_t total = 0, fixed = 0, start = 0;
    const edr_status status = edr_ragged_size(frame, size, offsets, table, rows, n, &total, at);
    if (status != EDR_OK) return status;
    if (room < total) return EDR_E_SPACE;
    if (n == 0) return EDR_OK;
    if (ids == NULL || types == NULL || starts == NULL || lengths == NULL || (tokens == NULL && size > 0)) return EDR_E_NULL;
    (void)frame_size(frame, &fixed);
    const int64_t left = fixed - frame->suffix_size, cap = frame->max_tokens - fixed;
    for (int64_t i = 0; i < n; i++) {
        const int64_t used = fixed + item_length(offsets, rows[i], cap);
        starts[i] = start;
        lengths[i] = used > 0 ? used : 1;
        if (used == 0) { /* no engine takes an empty row */
            ids[start] = frame->pad_id;
            types[start] = 0;
        }
        (void)write_row(frame, tokens, offsets[rows[i]], used - fixed, ids + start);
        fill(types + start, frame->query_type, left);
        fill(types + start + left, frame->item_type, used - left);
        start += lengths[i];
    }
    return EDR_OK;
}
