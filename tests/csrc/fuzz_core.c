/* cc -std=c11 -g -O1 -fsanitize=address,undefined -Icsrc tests/csrc/fuzz_core.c csrc/[a-z]*.c -lm -o fuzz_core
 * fuzz_core [rounds] [seed]: every function of edgerec.h on damaged input, deterministic. The sanitizers are the judge of
 * memory; the checks here are that a failure writes nothing, and that what succeeds holds what the header promises. */
#include <math.h>

#include "check.h"

static uint64_t rng;

/* Small, or one of the numbers at which arithmetic goes wrong. */
static int64_t odd_number(int64_t usual)
{
    static const int64_t traps[] = {-1, INT64_MIN, INT64_MAX, INT32_MAX, (int64_t)INT32_MAX + 1, INT64_MAX / 8, INT64_C(1) << 40};
    return random_below(&rng, 12) == 0 ? traps[random_below(&rng, 7)] : random_below(&rng, usual);
}

/* n + 1 offsets into `size` entries: mostly valid, sometimes with one entry spoilt. */
static int64_t *odd_offsets(int64_t n, int64_t size)
{
    int64_t *offsets = exact_room((size_t)(n + 1) * 8);
    int64_t at = random_below(&rng, 2);
    for (int64_t i = 0; i <= n; i++) {
        offsets[i] = at < size ? at : size;
        at += random_below(&rng, n > 0 ? 2 * size / n + 2 : 2);
    }
    if (random_below(&rng, 4) == 0) offsets[random_below(&rng, n + 1)] = odd_number(size + 3);
    return offsets;
}

static int64_t *odd_rows(int64_t n, int64_t table)
{
    int64_t *rows = exact_room((size_t)n * 8);
    for (int64_t i = 0; i < n; i++) rows[i] = table > 0 ? random_below(&rng, table) : 0;
    if (n > 0 && random_below(&rng, 4) == 0) rows[random_below(&rng, n)] = odd_number(table + 2);
    return rows;
}

static float odd_float(void)
{
    static const float traps[] = {NAN, INFINITY, -INFINITY, 0.0f, -0.0f, 1e-45f, 3.4028234e38f, -3.4028234e38f};
    return random_below(&rng, 6) == 0 ? traps[random_below(&rng, 8)] : (float)random_below(&rng, 100) / 9.0f - 5.0f;
}

static uint8_t *odd_bytes(int64_t size)
{
    uint8_t *bytes = exact_room((size_t)size);
    for (int64_t i = 0; i < size; i++) bytes[i] = (uint8_t)random_u64(&rng);
    return bytes;
}

static uint64_t *odd_hashes(int64_t n, int sorted)
{
    uint64_t *h = exact_room((size_t)n * 8);
    uint64_t x = 0;
    for (int64_t i = 0; i < n; i++) {
        x = sorted ? x + 1 + (random_u64(&rng) >> (60 - random_below(&rng, 8))) : random_u64(&rng) >> random_below(&rng, 64);
        h[i] = x;
    }
    return h;
}

static void fuzz_hash_packed(void)
{
    const int64_t size = random_below(&rng, 400), m = random_below(&rng, 30);
    uint8_t *data = odd_bytes(size);
    int64_t *offsets = odd_offsets(m, size), at = -1;
    uint64_t *out = exact_room((size_t)m * 8);
    const edr_status status = edr_hash_packed(data, size, offsets, m, 1, out, &at);
    CHECK(status == EDR_OK || (status == EDR_E_OFFSETS && at >= 0 && at < m && untouched(out, (size_t)m * 8)));
    for (int64_t i = 0; status == EDR_OK && i < m; i++) {
        if (out[i] != edr_hash64(data + offsets[i], (size_t)(offsets[i + 1] - offsets[i]), 1)) CHECK(0);
    }
    free(data);
    free(offsets);
    free(out);
}

static void fuzz_sort_unique(void)
{
    const int64_t n = random_below(&rng, 200);
    uint64_t *h = odd_hashes(n, 0), *room_h = exact_room((size_t)n * 8);
    float *w = exact_room((size_t)n * 4), *room_w = exact_room((size_t)n * 4);
    const int finite_only = random_below(&rng, 2) != 0;
    for (int64_t i = 0; i < n; i++) w[i] = finite_only ? 1.0f : odd_float();
    int64_t kept = -1, at = -1;
    const edr_status status = edr_sort_unique(h, random_below(&rng, 2) != 0 ? w : NULL, n, room_h, room_w, &kept, &at);
    CHECK((status == EDR_OK && kept <= n && (kept > 0) == (n > 0)) || (status == EDR_E_VALUE && at >= 0 && at < n && kept == -1));
    for (int64_t i = 1; status == EDR_OK && i < kept; i++) {
        if (h[i - 1] >= h[i]) CHECK(0);
    }
    free(h);
    free(room_h);
    free(w);
    free(room_w);
}

static void fuzz_trigrams(void)
{
    const int64_t size = random_below(&rng, 200), spaces = random_below(&rng, 2);
    uint8_t *text = odd_bytes(size);
    for (int64_t i = 0; spaces && i < size; i++) text[i] = random_below(&rng, 4) == 0 ? ' ' : text[i];
    uint64_t *out = exact_room((size_t)size * 8);
    int64_t n = -1, at = -1;
    const edr_status status = edr_hash_trigrams(text, size, "3=", 2, 1, out, &n, &at);
    CHECK((status == EDR_OK && n >= 0 && n <= size) ||
          (status == EDR_E_VALUE && at >= 0 && at < size && n == -1 && untouched(out, (size_t)size * 8)));
    free(text);
    free(out);
}

static void fuzz_sort_unique_rows(void)
{
    const int64_t rows = random_below(&rng, 9), sum = random_below(&rng, 60);
    int64_t *counts = exact_room((size_t)rows * 8), n = 0, kept = -1, at = -1;
    for (int64_t r = 0; r < rows; r++) n += counts[r] = random_below(&rng, 1 + sum / (rows + 1));
    if (rows > 0 && random_below(&rng, 4) == 0) counts[random_below(&rng, rows)] = odd_number(n + 3);
    uint64_t *h = odd_hashes(n, 0), *room = exact_room((size_t)n * 8);
    const edr_status status = edr_sort_unique_rows(h, n, counts, rows, room, &kept, &at);
    CHECK((status == EDR_OK && kept >= 0 && kept <= n) || (status == EDR_E_OFFSETS && at >= 0 && at <= rows && kept == -1));
    free(counts);
    free(h);
    free(room);
}

static void fuzz_encode(void)
{
    const int64_t m = random_below(&rng, 6), count = random_below(&rng, 4), n = random_below(&rng, 5), table = random_below(&rng, 5);
    const int64_t slots = random_below(&rng, 40), buckets = odd_number(1000);
    edr_template templates[6];
    edr_field fields[4];
    for (int64_t t = 0; t < m; t++) {
        templates[t].op = (int32_t)random_below(&rng, 20) == 0 ? (int32_t)random_u64(&rng) : (int32_t)random_below(&rng, 5);
        templates[t].left = random_below(&rng, 20) == 0 ? (int32_t)random_u64(&rng) : (int32_t)random_below(&rng, count + 1);
        templates[t].right = random_below(&rng, 20) == 0 ? (int32_t)random_u64(&rng) : (int32_t)random_below(&rng, count + 1);
        templates[t].seed = random_u64(&rng);
    }
    for (int64_t f = 0; f < count; f++) {
        fields[f].size = random_below(&rng, 40);
        fields[f].hashes = odd_hashes(fields[f].size, random_below(&rng, 2) != 0);
        float *w = exact_room((size_t)fields[f].size * 4);
        for (int64_t i = 0; i < fields[f].size; i++) w[i] = odd_float();
        fields[f].weights = w;
        fields[f].table = table;
        const int64_t gap = random_below(&rng, 3), bad_gaps[4] = {-1, INT64_MIN, INT64_MAX, INT64_C(1) << 31};
        fields[f].gap = random_below(&rng, 20) == 0 ? bad_gaps[random_below(&rng, 4)] : gap;
        fields[f].offsets = random_below(&rng, 2) != 0 ? odd_offsets(table * (1 + gap), fields[f].size) : NULL;
        if (random_below(&rng, 2) != 0) {
            free(w);
            fields[f].weights = NULL;
        }
    }
    int64_t *rows = odd_rows(n, table), at = -1;
    const size_t bytes = (size_t)(n * slots) * 4;
    int32_t *ids = exact_room(bytes);
    float *weights = exact_room(bytes);
    const edr_status status = edr_encode_rows(templates, m, fields, count, rows, n, buckets, slots, ids, weights, &at);
    if (status != EDR_OK) {
        CHECK(untouched(ids, bytes) && untouched(weights, bytes));
    } else {
        int inside = 1;
        for (int64_t i = 0; i < n * slots; i++) inside &= ids[i] >= 0 && ids[i] < buckets;
        CHECK(inside);
    }
    for (int64_t f = 0; f < count; f++) {
        free((void *)(uintptr_t)fields[f].hashes);
        free((void *)(uintptr_t)fields[f].weights);
        free((void *)(uintptr_t)fields[f].offsets);
    }
    free(rows);
    free(ids);
    free(weights);
}

static void fuzz_pack(void)
{
    const int64_t size = random_below(&rng, 100), table = random_below(&rng, 6), n = random_below(&rng, 5);
    int32_t *tokens = exact_room((size_t)size * 4), *part = exact_room(10 * 4);
    int64_t *offsets = odd_offsets(table, size), *rows = odd_rows(n, table), width = -1, at = -1;
    const edr_pair_frame frame = {part, part, part, part, random_below(&rng, 3), random_below(&rng, 11), random_below(&rng, 3),
                                  random_below(&rng, 3), 7, 1, 2, odd_number(60)};
    const edr_status status = edr_pack_width(&frame, size, offsets, table, rows, n, &width, &at);
    CHECK((status == EDR_OK) == (width >= 0));
    const int64_t cap = random_below(&rng, 60);
    int64_t *counts = exact_room((size_t)(cap + 1) * 8), *order = exact_room((size_t)n * 8), *lengths = exact_room((size_t)n * 8);
    const edr_status sorted = edr_longest_first(size, offsets, table, rows, n, cap, counts, order, lengths, &at);
    CHECK(sorted == EDR_OK || (untouched(order, (size_t)n * 8) && untouched(lengths, (size_t)n * 8)));
    free(counts);
    free(order);
    free(lengths);
    if (status == EDR_OK && width < 1000) {
        const int64_t given = width + random_below(&rng, 4) - 1;
        const size_t bytes = given > 0 ? (size_t)(n * given) * 4 : 0;
        int32_t *ids = exact_room(bytes), *mask = exact_room(bytes), *types = exact_room(bytes);
        const edr_status packed = edr_pack_pairs(&frame, tokens, size, offsets, table, rows, n, given, ids, mask, types, &at);
        CHECK(packed == (given < width ? EDR_E_SPACE : EDR_OK));
        CHECK(packed == EDR_OK || (untouched(ids, bytes) && untouched(mask, bytes) && untouched(types, bytes)));
        int64_t total = -1, *starts = exact_room((size_t)n * 8), *row_lengths = exact_room((size_t)n * 8);
        CHECK(edr_ragged_size(&frame, size, offsets, table, rows, n, &total, &at) == EDR_OK && total >= 0);
        const int64_t held = total + random_below(&rng, 4) - 1;
        const size_t flat = held > 0 ? (size_t)held * 4 : 0;
        int32_t *flat_ids = exact_room(flat), *flat_types = exact_room(flat);
        const edr_status ragged = edr_pack_ragged(&frame, tokens, size, offsets, table, rows, n, held, flat_ids, flat_types, starts, row_lengths, &at);
        CHECK(ragged == (held < total ? EDR_E_SPACE : EDR_OK));
        CHECK(ragged == EDR_OK || (untouched(flat_ids, flat) && untouched(flat_types, flat) && untouched(starts, (size_t)n * 8)));
        void *all[] = {ids, mask, types, starts, row_lengths, flat_ids, flat_types};
        for (int i = 0; i < 7; i++) free(all[i]);
    }
    free(tokens);
    free(part);
    free(offsets);
    free(rows);
}

static void fuzz_index(void)
{
    const int64_t ids = random_below(&rng, 20), size = random_below(&rng, 100), n = random_below(&rng, 10);
    const int64_t capacity = random_below(&rng, 6) == 0 ? odd_number(64) : edr_index_capacity(ids);
    const int64_t entries = capacity >= 1 && capacity <= 4096 ? capacity : 0;
    uint8_t *bytes = odd_bytes(size);
    int64_t *offsets = odd_offsets(ids, size), at = -1, *out = exact_room((size_t)n * 8);
    uint64_t *keys = exact_room((size_t)entries * 8);
    int32_t *slots = exact_room((size_t)entries * 4);
    edr_slice names[10];
    for (int64_t i = 0; i < n; i++) {
        names[i].data = random_below(&rng, 10) == 0 ? NULL : bytes;
        names[i].size = random_below(&rng, size + 1);
    }
    for (int64_t i = 0; i < entries; i++) {
        keys[i] = n > 0 ? edr_hash64(names[i % n].data, names[i % n].data != NULL ? (size_t)names[i % n].size : 0, 0) : 0;
        slots[i] = random_below(&rng, 3) == 0 ? -1 : (int32_t)odd_number(ids + 1);
    }
    /* A capacity that the arrays do not have cannot be told from a true one; only impossible ones are tried. */
    if (entries == capacity || capacity < 1 || (capacity & (capacity - 1)) != 0) {
        const edr_status status = edr_index_find(keys, slots, capacity, bytes, size, offsets, ids, names, n, 0, out, &at);
        int inside = 1;
        for (int64_t i = 0; status == EDR_OK && i < n; i++) inside &= out[i] >= -1 && out[i] < ids;
        CHECK(inside && (status == EDR_OK || untouched(out, (size_t)n * 8)));
    }
    free(bytes);
    free(offsets);
    free(out);
    free(keys);
    free(slots);
}

static void fuzz_topk(void)
{
    const int64_t k = random_below(&rng, 60), room = EDR_TOPK_ROOM(k);
    float *room_s = exact_room((size_t)room * 4);
    int64_t *room_i = exact_room((size_t)room * 8);
    edr_topk top[EDR_ISA_COUNT];
    int tops = 0;
    float *rooms_s[EDR_ISA_COUNT];
    int64_t *rooms_i[EDR_ISA_COUNT];
    for (int isa = 0; isa < EDR_ISA_COUNT; isa++) {
        if (!edr_isa_supported(isa)) continue;
        rooms_s[tops] = exact_room((size_t)room * 4);
        rooms_i[tops] = exact_room((size_t)room * 8);
        CHECK(edr_topk_init(&top[tops], k, isa, rooms_s[tops], rooms_i[tops], room) == EDR_OK);
        tops++;
    }
    int64_t start = 0;
    const int64_t pushes = random_below(&rng, 8);
    for (int64_t p = 0; p < pushes; p++) {
        const int64_t n = random_below(&rng, random_below(&rng, 4) == 0 ? 5000 : 100);
        const int smooth = random_below(&rng, 2) != 0;
        float *x = exact_room((size_t)n * 4);
        uint8_t *mask = exact_room((size_t)n);
        int64_t *indices = exact_room((size_t)n * 8);
        for (int64_t i = 0; i < n; i++) {
            x[i] = smooth ? (float)(start + i) : odd_float();
            mask[i] = (uint8_t)random_below(&rng, 2);
            indices[i] = start + i;
        }
        const int64_t how = random_below(&rng, 3);
        for (int t = 0; t < tops; t++) {
            CHECK((how == 0 ? edr_topk_push_at(&top[t], x, indices, n) : edr_topk_push(&top[t], x, how == 1 ? mask : NULL, n, start)) == EDR_OK);
        }
        start += n;
        free(x);
        free(mask);
        free(indices);
    }
    int64_t *first_i = exact_room((size_t)k * 8), *other_i = exact_room((size_t)k * 8), first = 0, other = 0;
    float *first_s = exact_room((size_t)k * 4), *other_s = exact_room((size_t)k * 4);
    CHECK(edr_topk_finish(&top[0], first_i, first_s, &first) == EDR_OK);
    int ordered = 1;
    for (int64_t i = 1; i < first; i++) {
        ordered &= first_s[i - 1] > first_s[i] || (first_s[i - 1] == first_s[i] && first_i[i - 1] < first_i[i]);
    }
    CHECK(ordered);
    for (int t = 1; t < tops; t++) {
        CHECK(edr_topk_finish(&top[t], other_i, other_s, &other) == EDR_OK);
        CHECK(other == first && memcmp(other_i, first_i, (size_t)first * 8) == 0 && memcmp(other_s, first_s, (size_t)first * 4) == 0);
    }
    for (int t = 0; t < tops; t++) {
        free(rooms_s[t]);
        free(rooms_i[t]);
    }
    free(room_s);
    free(room_i);
    free(first_i);
    free(first_s);
    free(other_i);
    free(other_s);
}

int main(int argc, char **argv)
{
    static void (*const targets[])(void) = {fuzz_hash_packed, fuzz_trigrams, fuzz_sort_unique, fuzz_sort_unique_rows,
                                            fuzz_encode,      fuzz_pack,     fuzz_index,       fuzz_topk};
    const long rounds = argc > 1 ? strtol(argv[1], NULL, 10) : 20000;
    rng = argc > 2 ? strtoull(argv[2], NULL, 10) : 1;
    for (long round = 0; round < rounds; round++) targets[round % 6]();
    return check_report();
}
