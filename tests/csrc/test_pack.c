/* cc -std=c11 -g -fsanitize=address,undefined -Icsrc tests/csrc/test_pack.c csrc/pack.c -o test_pack */
#include "check.h"

static const int32_t part[32] = {9, 8, 7, 6, 5, 4, 3, 2, 1, 11, 12, 13, 14, 15, 16, 17, 18, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 29, 30, 31, 32, 33};

/* Slow: build the untrimmed row token by token, then trim and pad. */
static int slow_row(const edr_pair_frame *f, const int32_t *item, int64_t size, int64_t width, const int32_t *ids, const int32_t *mask,
                    const int32_t *types)
{
    const int64_t fixed = f->prefix_size + f->query_size + f->middle_size + f->suffix_size;
    int64_t at = 0;
    int same = 1;
    if (size > f->max_tokens - fixed) size = f->max_tokens - fixed;
    for (int64_t i = 0; i < f->prefix_size; i++, at++) same &= ids[at] == f->prefix[i] && types[at] == f->query_type;
    for (int64_t i = 0; i < f->query_size; i++, at++) same &= ids[at] == f->query[i] && types[at] == f->query_type;
    for (int64_t i = 0; i < f->middle_size; i++, at++) same &= ids[at] == f->middle[i] && types[at] == f->query_type;
    for (int64_t i = 0; i < size; i++, at++) same &= ids[at] == item[i] && types[at] == f->item_type;
    for (int64_t i = 0; i < f->suffix_size; i++, at++) same &= ids[at] == f->suffix[i] && types[at] == f->item_type;
    for (int64_t i = 0; i < width; i++) same &= mask[i] == (i < at);
    for (; at < width; at++) same &= ids[at] == f->pad_id && types[at] == 0;
    return same;
}

static void test_rows(void)
{
    uint64_t state = 1;
    for (int round = 0; round < 2000; round++) {
        const int64_t table = 1 + random_below(&state, 6), n = random_below(&state, 5);
        int64_t offsets[7] = {random_below(&state, 3)}, rows[5], longest = 0;
        for (int64_t r = 0; r < table; r++) offsets[r + 1] = offsets[r] + random_below(&state, 30);
        const int64_t size = offsets[table] + random_below(&state, 3);
        int32_t *tokens = exact_room((size_t)size * 4);
        for (int64_t i = 0; i < size; i++) tokens[i] = (int32_t)random_u64(&state);
        edr_pair_frame f = {part, part + 4, part + 20, part + 22, random_below(&state, 4), random_below(&state, 12), random_below(&state, 3),
                            random_below(&state, 3), (int32_t)random_below(&state, 3), (int32_t)random_below(&state, 3),
                            (int32_t)random_below(&state, 3), 0};
        const int64_t fixed = f.prefix_size + f.query_size + f.middle_size + f.suffix_size;
        f.max_tokens = fixed + random_below(&state, 25);
        for (int64_t i = 0; i < n; i++) {
            rows[i] = random_below(&state, table);
            const int64_t length = offsets[rows[i] + 1] - offsets[rows[i]];
            if (length > longest) longest = length;
        }
        int64_t width = -1;
        CHECK(edr_pack_width(&f, size, offsets, table, rows, n, &width, NULL) == EDR_OK);
        CHECK(width == (fixed + longest < f.max_tokens ? fixed + longest : f.max_tokens));
        width += random_below(&state, 3);
        const size_t bytes = (size_t)(n * width) * 4;
        int32_t *ids = exact_room(bytes), *mask = exact_room(bytes), *types = exact_room(bytes);
        CHECK(edr_pack_pairs(&f, tokens, size, offsets, table, rows, n, width, ids, mask, types, NULL) == EDR_OK);
        int same = 1;
        for (int64_t i = 0; i < n; i++) {
            const int64_t begin = offsets[rows[i]];
            same &= slow_row(&f, tokens + begin, offsets[rows[i] + 1] - begin, width, ids + i * width, mask + i * width, types + i * width);
        }
        CHECK(same);
        int64_t total = -1, sum = 0, *starts = exact_room((size_t)n * 8), *lengths = exact_room((size_t)n * 8);
        CHECK(edr_ragged_size(&f, size, offsets, table, rows, n, &total, NULL) == EDR_OK);
        int32_t *flat = exact_room((size_t)total * 4), *kinds = exact_room((size_t)total * 4);
        CHECK(edr_pack_ragged(&f, tokens, size, offsets, table, rows, n, total, flat, kinds, starts, lengths, NULL) == EDR_OK);
        for (int64_t i = 0; i < n; i++) { /* each is the padded row of its own length; an empty one is a single pad token */
            const int64_t begin = offsets[rows[i]], item = offsets[rows[i] + 1] - begin;
            int32_t ones[64];
            for (int64_t j = 0; j < lengths[i]; j++) ones[j] = fixed + item > 0 && f.max_tokens > 0;
            same &= starts[i] == sum && slow_row(&f, tokens + begin, item, lengths[i], flat + sum, ones, kinds + sum);
            sum += lengths[i];
        }
        CHECK(same && sum == total);
        free(starts);
        free(lengths);
        free(flat);
        free(kinds);
        free(tokens);
        free(ids);
        free(mask);
        free(types);
    }
}

static void test_longest_first(void)
{
    uint64_t state = 2;
    for (int round = 0; round < 2000; round++) {
        const int64_t table = 1 + random_below(&state, 6), n = random_below(&state, 40), cap = random_below(&state, 12);
        int64_t offsets[7] = {random_below(&state, 3)}, rows[40];
        for (int64_t r = 0; r < table; r++) offsets[r + 1] = offsets[r] + random_below(&state, 15);
        for (int64_t i = 0; i < n; i++) rows[i] = random_below(&state, table);
        int64_t *counts = exact_room((size_t)(cap + 1) * 8), *order = exact_room((size_t)n * 8), *lengths = exact_room((size_t)n * 8);
        CHECK(edr_longest_first(offsets[table], offsets, table, rows, n, cap, counts, order, lengths, NULL) == EDR_OK);
        int seen[40] = {0}, good = 1;
        for (int64_t i = 0; i < n; i++) {
            const int64_t length = offsets[rows[order[i]] + 1] - offsets[rows[order[i]]];
            good &= seen[order[i]]++ == 0 && lengths[i] == (length < cap ? length : cap);
            good &= i == 0 || lengths[i - 1] > lengths[i] || (lengths[i - 1] == lengths[i] && order[i - 1] < order[i]);
        }
        CHECK(good);
        free(counts);
        free(order);
        free(lengths);
    }
    const int64_t good[3] = {0, 4, 8}, back[3] = {0, 5, 4}, rows[2] = {0, 1}, outside[2] = {0, 2};
    int64_t *counts = exact_room(9 * 8), *order = exact_room(2 * 8), *lengths = exact_room(2 * 8), at = -1;
#define SORT(offsets, r, n, cap, c, o, l) edr_longest_first(8, offsets, 2, r, n, cap, c, o, l, &at)
    CHECK(SORT(back, rows, 2, 8, counts, order, lengths) == EDR_E_OFFSETS);
    CHECK(SORT(good, outside, 2, 8, counts, order, lengths) == EDR_E_ROW && at == 1);
    CHECK(SORT(good, rows, -1, 8, counts, order, lengths) == EDR_E_SIZE);
    CHECK(SORT(good, rows, 2, -1, counts, order, lengths) == EDR_E_SIZE);
    CHECK(SORT(good, rows, 2, INT64_MAX, counts, order, lengths) == EDR_E_SIZE);
    CHECK(SORT(NULL, rows, 2, 8, counts, order, lengths) == EDR_E_NULL && SORT(good, NULL, 2, 8, counts, order, lengths) == EDR_E_NULL);
    CHECK(SORT(good, rows, 2, 8, NULL, order, lengths) == EDR_E_NULL && SORT(good, rows, 2, 8, counts, NULL, lengths) == EDR_E_NULL);
    CHECK(SORT(good, rows, 2, 8, counts, order, NULL) == EDR_E_NULL);
    CHECK(untouched(order, 16) && untouched(lengths, 16));
    CHECK(SORT(good, NULL, 0, 8, NULL, NULL, NULL) == EDR_OK);
    free(counts);
    free(order);
    free(lengths);
}

static void test_faults(void)
{
    const int64_t good[3] = {0, 4, 8}, rows[2] = {0, 1};
    const edr_pair_frame f = {part, part, part, part, 1, 2, 1, 1, 0, 0, 1, 16};
    int32_t *ids = exact_room(2 * 9 * 4), *mask = exact_room(2 * 9 * 4), *types = exact_room(2 * 9 * 4);
    int64_t width = 77, at = -1;
#define PACK(frame, tokens, size, offsets, table, r, n, w) \
    edr_pack_pairs(frame, tokens, size, offsets, table, r, n, w, ids, mask, types, &at)
    const int64_t bad_offsets[][3] = {{0, 5, 4}, {-1, 4, 8}, {0, 4, 9}, {0, INT64_MAX, 8}, {INT64_MIN, 4, 8}};
    for (size_t i = 0; i < sizeof bad_offsets / sizeof bad_offsets[0]; i++) {
        CHECK(edr_pack_width(&f, 8, bad_offsets[i], 2, rows, 2, &width, &at) == EDR_E_OFFSETS);
        CHECK(PACK(&f, part, 8, bad_offsets[i], 2, rows, 2, 9) == EDR_E_OFFSETS);
    }
    const int64_t bad_rows[][2] = {{0, 2}, {-1, 0}, {INT64_MAX, 0}, {INT64_MIN, 0}};
    for (size_t i = 0; i < sizeof bad_rows / sizeof bad_rows[0]; i++) {
        CHECK(PACK(&f, part, 8, good, 2, bad_rows[i], 2, 9) == EDR_E_ROW);
        CHECK(at == (i == 0 ? 1 : 0));
    }
    CHECK(PACK(&f, part, 8, good, 2, rows, 2, 8) == EDR_E_SPACE);
    CHECK(PACK(&f, part, 8, good, 2, rows, 2, -1) == EDR_E_SPACE);
    edr_pair_frame g = f;
    g.max_tokens = 4;
    CHECK(PACK(&g, part, 8, good, 2, rows, 2, 9) == EDR_E_SPACE);
    g.max_tokens = -1;
    CHECK(PACK(&g, part, 8, good, 2, rows, 2, 9) == EDR_E_SIZE);
    g = f;
    g.query_size = -1;
    CHECK(PACK(&g, part, 8, good, 2, rows, 2, 9) == EDR_E_SIZE);
    g.query_size = INT64_MAX;
    CHECK(PACK(&g, part, 8, good, 2, rows, 2, 9) == EDR_E_SPACE);
    g = f;
    g.prefix = NULL;
    CHECK(PACK(&g, part, 8, good, 2, rows, 2, 9) == EDR_E_NULL);
    CHECK(PACK(NULL, part, 8, good, 2, rows, 2, 9) == EDR_E_NULL);
    CHECK(PACK(&f, NULL, 8, good, 2, rows, 2, 9) == EDR_E_NULL);
    CHECK(PACK(&f, part, 8, NULL, 2, rows, 2, 9) == EDR_E_NULL);
    CHECK(PACK(&f, part, 8, good, 2, NULL, 2, 9) == EDR_E_NULL);
    CHECK(PACK(&f, part, -8, good, 2, rows, 2, 9) == EDR_E_SIZE);
    CHECK(PACK(&f, part, 8, good, -2, rows, 2, 9) == EDR_E_SIZE);
    CHECK(PACK(&f, part, 8, good, 2, rows, -2, 9) == EDR_E_SIZE);
    CHECK(width == 77 && untouched(ids, 72) && untouched(mask, 72) && untouched(types, 72));
    int64_t *starts = exact_room(16), *lengths = exact_room(16), total = 77;
#define RAGGED(frame, tokens, size, offsets, table, r, n, room) \
    edr_pack_ragged(frame, tokens, size, offsets, table, r, n, room, ids, types, starts, lengths, &at)
    CHECK(RAGGED(&f, part, 8, bad_offsets[0], 2, rows, 2, 18) == EDR_E_OFFSETS && RAGGED(&f, part, 8, good, 2, bad_rows[0], 2, 18) == EDR_E_ROW);
    CHECK(RAGGED(&f, part, 8, good, 2, rows, 2, 17) == EDR_E_SPACE && RAGGED(&f, part, 8, good, 2, rows, 2, -1) == EDR_E_SPACE);
    CHECK(RAGGED(NULL, part, 8, good, 2, rows, 2, 18) == EDR_E_NULL && RAGGED(&f, NULL, 8, good, 2, rows, 2, 18) == EDR_E_NULL);
    CHECK(edr_pack_ragged(&f, part, 8, good, 2, rows, 2, 18, NULL, types, starts, lengths, &at) == EDR_E_NULL);
    CHECK(edr_pack_ragged(&f, part, 8, good, 2, rows, 2, 18, ids, types, starts, NULL, &at) == EDR_E_NULL);
    CHECK(edr_ragged_size(&f, 8, good, 2, rows, 2, NULL, &at) == EDR_E_NULL);
    CHECK(edr_ragged_size(&f, 8, good, 2, rows, -2, &total, &at) == EDR_E_SIZE && total == 77);
    CHECK(untouched(ids, 72) && untouched(types, 72) && untouched(starts, 16) && untouched(lengths, 16));
    CHECK(edr_ragged_size(&f, 8, good, 2, rows, 2, &total, &at) == EDR_OK && total == 18 && RAGGED(&f, part, 8, good, 2, rows, 2, 18) == EDR_OK);
    free(starts);
    free(lengths);
    CHECK(PACK(&f, part, 8, good, 2, rows, 2, 9) == EDR_OK);
    CHECK(edr_pack_width(&f, 8, good, 2, NULL, 0, &width, NULL) == EDR_OK && width == 5);
    free(ids);
    free(mask);
    free(types);
}

int main(void)
{
    test_rows();
    test_longest_first();
    test_faults();
    return check_report();
}
