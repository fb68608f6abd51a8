/* cc -std=c11 -g -fsanitize=address,undefined -Icsrc tests/csrc/test_features.c csrc/features.c csrc/hash.c -lm -o test_features
 * tests/test_core_features.py holds the second oracle, in Python. */
#include <math.h>

#include "check.h"

/* ---- a slow reading of docs/formats.md: quadratic, one row at a time ---- */

typedef struct slow_row {
    int32_t ids[64];
    float weights[64];
    int64_t used, slots, buckets;
} slow_row;

static uint64_t slow_hash_bytes_of(uint64_t a, uint64_t b, int two, uint64_t seed)
{
    uint8_t bytes[16];
    for (int i = 0; i < 8; i++) {
        bytes[i] = (uint8_t)(a >> (8 * i));
        bytes[8 + i] = (uint8_t)(b >> (8 * i));
    }
    return edr_hash64(bytes, two ? 16 : 8, seed);
}

static void slow_emit(slow_row *row, uint64_t h, float weight)
{
    const int32_t id = (int32_t)(((h >> 32) * (uint64_t)row->buckets) >> 32);
    if ((h & 1) == 0) weight = -weight;
    for (int64_t i = 0; i < row->used; i++) {
        if (row->ids[i] == id) {
            row->weights[i] += weight;
            return;
        }
    }
    if (row->used == row->slots) return;
    row->ids[row->used] = id;
    row->weights[row->used++] = weight;
}

static int slow_find(const uint64_t *h, int64_t n, uint64_t x)
{
    for (int64_t i = 0; i < n; i++) {
        if (h[i] == x) return 1;
    }
    return 0;
}

static void slow_template(slow_row *row, const edr_template *t, const edr_field *fields, int64_t r)
{
    const edr_field *l = &fields[t->left], *g = t->op == EDR_OP_EMIT ? l : &fields[t->right];
    const int64_t lb = l->offsets != NULL ? l->offsets[r * (1 + l->gap)] : 0, le = l->offsets != NULL ? l->offsets[r * (1 + l->gap) + 1] : l->size;
    const int64_t gb = g->offsets != NULL ? g->offsets[r * (1 + g->gap)] : 0, ge = g->offsets != NULL ? g->offsets[r * (1 + g->gap) + 1] : g->size;
    double total = 0.0, matched = 0.0;
    for (int64_t i = lb; i < le; i++) {
        const float w = l->weights != NULL ? l->weights[i] : 1.0f;
        const int common = t->op != EDR_OP_EMIT && slow_find(g->hashes + gb, ge - gb, l->hashes[i]);
        const uint64_t h = slow_hash_bytes_of(l->hashes[i], 0, 0, t->seed);
        total += (double)w;
        if (common) matched += (double)w;
        if (t->op == EDR_OP_EMIT || (t->op == EDR_OP_COMMON && common) || (t->op == EDR_OP_LEFT_ONLY && !common)) slow_emit(row, h, w);
        if (t->op == EDR_OP_CROSS) {
            for (int64_t j = gb; j < ge; j++) {
                const float product = w * (g->weights != NULL ? g->weights[j] : 1.0f);
                slow_emit(row, slow_hash_bytes_of(l->hashes[i], g->hashes[j], 1, t->seed), product);
            }
        }
    }
    if (t->op == EDR_OP_MATCH && total > 0.0) {
        const double c = matched / total;
        slow_emit(row, t->seed, (float)c);
        slow_emit(row, slow_hash_bytes_of((uint64_t)(int64_t)floor(4.0 * c), 0, 0, t->seed), 1.0f);
    }
}

/* ---- random fields: sets of few distinct hashes, so that they meet ---- */

static int64_t random_set(uint64_t *state, uint64_t *to)
{
    int64_t n = 0;
    uint64_t all[40];
    for (uint64_t i = 0; i < 40; i++) all[i] = edr_hash64_u64(i, 0);
    for (int i = 1; i < 40; i++) { /* ascending */
        for (int j = i; j > 0 && all[j] < all[j - 1]; j--) {
            const uint64_t x = all[j];
            all[j] = all[j - 1];
            all[j - 1] = x;
        }
    }
    const int64_t one_in = 1 + random_below(state, 8);
    for (int i = 0; i < 40; i++) {
        if (random_below(state, one_in) == 0) to[n++] = all[i];
    }
    return n;
}

static void random_field(uint64_t *state, edr_field *f, int64_t table)
{
    const int shared = random_below(state, 2) == 0;
    f->gap = random_below(state, 3);
    const int64_t sets = shared ? 1 : table * (1 + f->gap);
    uint64_t hashes[40 * 8 * 3];
    int64_t offsets[8 * 3 + 1] = {0};
    for (int64_t r = 0; r < sets; r++) offsets[r + 1] = offsets[r] + random_set(state, hashes + offsets[r]);
    f->size = offsets[sets];
    f->hashes = exact_copy(hashes, (size_t)f->size * 8);
    f->offsets = shared ? NULL : exact_copy(offsets, (size_t)(sets + 1) * 8);
    f->table = table;
    f->weights = NULL;
    if (random_below(state, 2) == 0) {
        float weights[40 * 8 * 3];
        for (int64_t i = 0; i < f->size; i++) weights[i] = (float)random_below(state, 33) / 8.0f - 1.0f;
        f->weights = exact_copy(weights, (size_t)f->size * 4);
    }
}

static void free_field(edr_field *f)
{
    free((void *)(uintptr_t)f->hashes);
    free((void *)(uintptr_t)f->weights);
    free((void *)(uintptr_t)f->offsets);
}

static void test_rows_are_what_the_format_says(void)
{
    uint64_t state = 1;
    for (int round = 0; round < 3000; round++) {
        const int64_t table = 1 + random_below(&state, 8), n = random_below(&state, 6), m = random_below(&state, 7);
        const int64_t buckets_of[4] = {1, 50, 32768, INT32_MAX}, buckets = buckets_of[random_below(&state, 4)];
        const int64_t slots = random_below(&state, 64);
        edr_field fields[4];
        edr_template templates[7];
        int64_t rows[6];
        for (int f = 0; f < 4; f++) random_field(&state, &fields[f], table);
        for (int64_t t = 0; t < m; t++) {
            const edr_template one = {(int32_t)random_below(&state, 5), (int32_t)random_below(&state, 4), (int32_t)random_below(&state, 4),
                                      random_u64(&state)};
            templates[t] = one;
        }
        for (int64_t i = 0; i < n; i++) rows[i] = random_below(&state, table);
        int32_t *ids = exact_room((size_t)(n * slots) * 4);
        float *weights = exact_room((size_t)(n * slots) * 4);
        CHECK(edr_encode_rows(templates, m, fields, 4, rows, n, buckets, slots, ids, weights, NULL) == EDR_OK);
        int same = 1;
        for (int64_t i = 0; i < n; i++) {
            slow_row row = {{0}, {0.0f}, 0, slots, buckets};
            for (int64_t t = 0; t < m; t++) slow_template(&row, &templates[t], fields, rows[i]);
            same &= memcmp(ids + i * slots, row.ids, (size_t)slots * 4) == 0;
            same &= memcmp(weights + i * slots, row.weights, (size_t)slots * 4) == 0;
        }
        CHECK(same);
        free(ids);
        free(weights);
        for (int f = 0; f < 4; f++) free_field(&fields[f]);
    }
}

static void test_a_row_does_not_depend_on_its_neighbours(void)
{
    uint64_t state = 2;
    edr_field fields[2];
    random_field(&state, &fields[0], 8);
    random_field(&state, &fields[1], 8);
    const edr_template templates[3] = {{EDR_OP_CROSS, 0, 1, 5}, {EDR_OP_MATCH, 0, 1, 6}, {EDR_OP_LEFT_ONLY, 1, 0, 7}};
    const int64_t rows[8] = {7, 6, 5, 4, 3, 2, 1, 0};
    int32_t all[8 * 16], one[16];
    float all_w[8 * 16], one_w[16];
    CHECK(edr_encode_rows(templates, 3, fields, 2, rows, 8, 1000, 16, all, all_w, NULL) == EDR_OK);
    for (int i = 0; i < 8; i++) {
        CHECK(edr_encode_rows(templates, 3, fields, 2, rows + i, 1, 1000, 16, one, one_w, NULL) == EDR_OK);
        CHECK(memcmp(one, all + 16 * i, sizeof one) == 0 && memcmp(one_w, all_w + 16 * i, sizeof one_w) == 0);
    }
    free_field(&fields[0]);
    free_field(&fields[1]);
}

static void test_weights_without_a_finite_ratio_emit_nothing(void)
{
    const uint64_t h[2] = {1, 2};
    const float infinite[2] = {INFINITY, INFINITY}, not_a_number[2] = {NAN, 1.0f}, none[2] = {1.0f, -1.0f}, tiny[2] = {-1.0f, 1.0000001f};
    const edr_template match = {EDR_OP_MATCH, 0, 1, 9};
    const int64_t row = 0;
    const float *const bad[3] = {infinite, not_a_number, none};
    for (int i = 0; i < 3; i++) {
        const edr_field fields[2] = {{h, bad[i], NULL, 2, 0, 0}, {h, NULL, NULL, 2, 0, 0}};
        int32_t ids[2];
        float weights[2];
        CHECK(edr_encode_rows(&match, 1, fields, 2, &row, 1, 100, 2, ids, weights, NULL) == EDR_OK);
        CHECK(ids[0] == 0 && weights[0] == 0.0f && weights[1] == 0.0f);
    }
    /* A ratio of -8 million is unusual and defined. */
    const edr_field fields[2] = {{h, tiny, NULL, 2, 0, 0}, {h, NULL, NULL, 1, 0, 0}};
    int32_t ids[2];
    float weights[2];
    CHECK(edr_encode_rows(&match, 1, fields, 2, &row, 1, INT32_MAX, 2, ids, weights, NULL) == EDR_OK);
    CHECK(fabsf(weights[0]) > 8e6f);
}

static void test_unsorted_sets_do_no_harm(void)
{
    uint64_t state = 3;
    for (int round = 0; round < 300; round++) {
        uint64_t h[2][50];
        for (int i = 0; i < 50; i++) {
            h[0][i] = (uint64_t)random_below(&state, 20);
            h[1][i] = (uint64_t)random_below(&state, 20);
        }
        const int64_t split[3] = {0, 20, 50}, rows[2] = {0, 1};
        uint64_t *a = exact_copy(h[0], sizeof h[0]), *b = exact_copy(h[1], sizeof h[1]);
        const edr_field fields[2] = {{a, NULL, random_below(&state, 2) != 0 ? split : NULL, 50, 2, 0},
                                     {b, NULL, random_below(&state, 2) != 0 ? split : NULL, 50, 2, 0}};
        const edr_template templates[4] = {{EDR_OP_COMMON, 0, 1, 1}, {EDR_OP_LEFT_ONLY, 0, 1, 2}, {EDR_OP_MATCH, 0, 1, 3}, {EDR_OP_CROSS, 0, 1, 4}};
        int32_t ids[2 * 8];
        float weights[2 * 8];
        CHECK(edr_encode_rows(templates, 4, fields, 2, rows, 2, 100, 8, ids, weights, NULL) == EDR_OK);
        free(a);
        free(b);
    }
}

static void test_faults_are_found_before_anything_is_written(void)
{
    const uint64_t h[4] = {1, 2, 3, 4};
    const int64_t good[3] = {0, 2, 4}, rows[2] = {0, 1};
    const edr_template emit = {EDR_OP_EMIT, 0, -5, 1};
    int32_t ids[8];
    float *weights = exact_room(8 * 4);
    int64_t at;
    const edr_field field = {h, NULL, good, 4, 2, 0};
    memset(ids, 0x5A, sizeof ids);
#define ENCODE(t, m, f, count, r, n, v, s) edr_encode_rows(t, m, f, count, r, n, v, s, ids, weights, &at)
    const int64_t bad_offsets[][3] = {{0, 3, 2}, {-1, 2, 4}, {0, 2, 5}, {0, INT64_MAX, 4}, {3, 2, 4}};
    for (size_t i = 0; i < sizeof bad_offsets / sizeof bad_offsets[0]; i++) {
        const edr_field bad = {h, NULL, bad_offsets[i], 4, 2, 0};
        at = -1;
        CHECK(ENCODE(&emit, 1, &bad, 1, rows, 2, 10, 4) == EDR_E_OFFSETS);
        CHECK(at == 0 || at == 1);
    }
    const int64_t bad_rows[][2] = {{0, 2}, {-1, 0}, {INT64_MAX, 0}, {INT64_MIN, 0}};
    for (size_t i = 0; i < sizeof bad_rows / sizeof bad_rows[0]; i++) {
        CHECK(ENCODE(&emit, 1, &field, 1, bad_rows[i], 2, 10, 4) == EDR_E_ROW);
        CHECK(at == (i == 0 ? 1 : 0));
    }
    const edr_template bad_templates[] = {{5, 0, 0, 1}, {-1, 0, 0, 1}, {EDR_OP_EMIT, 1, 0, 1}, {EDR_OP_EMIT, -1, 0, 1}, {EDR_OP_CROSS, 0, 1, 1}};
    for (size_t i = 0; i < sizeof bad_templates / sizeof bad_templates[0]; i++) {
        CHECK(ENCODE(&bad_templates[i], 1, &field, 1, rows, 2, 10, 4) == (i < 2 ? EDR_E_VALUE : EDR_E_ROW));
    }
    const edr_field no_hashes = {NULL, NULL, good, 4, 2, 0}, negative = {h, NULL, NULL, -1, 0, 0}, no_table = {h, NULL, good, 4, -1, 0};
    CHECK(ENCODE(&emit, 1, &no_hashes, 1, rows, 2, 10, 4) == EDR_E_NULL);
    CHECK(ENCODE(&emit, 1, &negative, 1, rows, 2, 10, 4) == EDR_E_SIZE);
    CHECK(ENCODE(&emit, 1, &no_table, 1, rows, 2, 10, 4) == EDR_E_SIZE);
    const int64_t bad_gaps[] = {-1, INT64_MIN, INT64_MAX, INT64_C(1) << 31};
    for (size_t i = 0; i < sizeof bad_gaps / sizeof bad_gaps[0]; i++) {
        const edr_field bad = {h, NULL, good, 4, 2, bad_gaps[i]};
        CHECK(ENCODE(&emit, 1, &bad, 1, rows, 2, 10, 4) == EDR_E_SIZE);
    }
    CHECK(ENCODE(&emit, EDR_MAX_TEMPLATES + 1, &field, 1, rows, 2, 10, 4) == EDR_E_SIZE);
    CHECK(ENCODE(&emit, -1, &field, 1, rows, 2, 10, 4) == EDR_E_SIZE);
    CHECK(ENCODE(NULL, 1, &field, 1, rows, 2, 10, 4) == EDR_E_NULL);
    CHECK(ENCODE(&emit, 1, NULL, 1, rows, 2, 10, 4) == EDR_E_NULL);
    CHECK(ENCODE(&emit, 1, &field, 1, NULL, 2, 10, 4) == EDR_E_NULL);
    CHECK(ENCODE(&emit, 1, &field, 1, rows, -2, 10, 4) == EDR_E_SIZE);
    CHECK(ENCODE(&emit, 1, &field, 1, rows, 2, 0, 4) == EDR_E_VALUE);
    CHECK(ENCODE(&emit, 1, &field, 1, rows, 2, INT64_C(1) << 31, 4) == EDR_E_VALUE);
    CHECK(ENCODE(&emit, 1, &field, 1, rows, 2, 10, -4) == EDR_E_VALUE);
    CHECK(untouched(ids, sizeof ids) && untouched(weights, 8 * 4));
    CHECK(ENCODE(&emit, 1, &field, 1, rows, 2, 10, 4) == EDR_OK);
    CHECK(!untouched(ids, sizeof ids));
    CHECK(edr_encode_rows(&emit, 1, &field, 1, NULL, 0, 10, 4, NULL, NULL, NULL) == EDR_OK);
    CHECK(edr_encode_rows(&emit, 1, &field, 1, rows, 2, 10, 0, NULL, NULL, NULL) == EDR_OK);
    free(weights);
}

int main(void)
{
    test_rows_are_what_the_format_says();
    test_a_row_does_not_depend_on_its_neighbours();
    test_weights_without_a_finite_ratio_emit_nothing();
    test_unsorted_sets_do_no_harm();
    test_faults_are_found_before_anything_is_written();
    return check_report();
}
