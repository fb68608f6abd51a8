/* cc -std=c11 -g -fsanitize=address,undefined -Icsrc tests/csrc/test_topk.c csrc/topk.c csrc/topk_kernels.c csrc/isa.c -lm -o test_topk */
#include <math.h>

#include "check.h"

/* ---- the oracle: sort everything ---- */

typedef struct entry {
    float score;
    int64_t index;
} entry;

static int by_rank(const void *a, const void *b)
{
    const entry *x = (const entry *)a, *y = (const entry *)b;
    if (x->score > y->score) return -1;
    if (x->score < y->score) return 1;
    return x->index < y->index ? -1 : x->index > y->index;
}

static int64_t slow_topk(const float *x, const uint8_t *mask, int64_t n, int64_t k, entry *to)
{
    int64_t kept = 0;
    for (int64_t i = 0; i < n; i++) {
        if (isnan(x[i]) || (mask != NULL && mask[i] != 0)) continue;
        to[kept].score = x[i];
        to[kept++].index = i;
    }
    qsort(to, (size_t)kept, sizeof *to, by_rank);
    return kept < k ? kept : k;
}

/* ---- shapes of input; each is somebody's worst case ---- */

enum { RANDOM, ASCENDING, DESCENDING, EQUAL, FEW_VALUES, SAWTOOTH, SPECIAL, COLUMNS, ORGAN_PIPE, SHAPES };

static float *make_scores(uint64_t *state, int shape, int64_t n)
{
    static const float special[] = {NAN, INFINITY, -INFINITY, 0.0f, -0.0f, 1e-45f, -1e-45f};
    float *x = exact_room((size_t)n * 4);
    for (int64_t i = 0; i < n; i++) {
        switch (shape) {
        case RANDOM: x[i] = (float)(random_u64(state) >> 40) / 65536.0f - 128.0f; break;
        case ASCENDING: x[i] = (float)i; break;
        case DESCENDING: x[i] = (float)-i; break;
        case EQUAL: x[i] = 0.25f; break;
        case FEW_VALUES: x[i] = (float)random_below(state, 3); break;
        case SAWTOOTH: x[i] = (float)(i % 1000); break;
        case SPECIAL: x[i] = special[random_below(state, 7)]; break;
        case COLUMNS: x[i] = i % 320 < 9 ? (float)i : -1.0f; break; /* defeats the group bound for k = 10 and k = 100 */
        default: x[i] = (float)(i < n / 2 ? i : n - i); break;
        }
    }
    return x;
}

static void check_answer(edr_topk *top, const entry *expected, int64_t count)
{
    CHECK(edr_topk_count(top) == count);
    int64_t *indices = exact_room((size_t)count * 8), got = -1;
    float *scores = exact_room((size_t)count * 4);
    for (int again = 0; again < 2; again++) { /* finish does not spend the selection */
        CHECK(edr_topk_finish(top, indices, scores, &got) == EDR_OK);
        CHECK(got == count);
        int same = 1;
        for (int64_t i = 0; i < count; i++) same &= indices[i] == expected[i].index && scores[i] == expected[i].score;
        CHECK(same);
    }
    free(indices);
    free(scores);
}

/* Push x in pieces, in any order of pieces, by either entry point. */
static void push_in_pieces(edr_topk *top, uint64_t *state, const float *x, const uint8_t *mask, int64_t n)
{
    int64_t cut[6] = {0, 0, 0, 0, 0, n};
    int order[5] = {0, 1, 2, 3, 4};
    for (int i = 1; i < 5; i++) cut[i] = n > 0 ? random_below(state, n + 1) : 0;
    for (int i = 1; i < 5; i++) {
        for (int j = i; j > 1 && cut[j] < cut[j - 1]; j--) {
            const int64_t swap = cut[j];
            cut[j] = cut[j - 1];
            cut[j - 1] = swap;
        }
    }
    for (int i = 4; i > 0; i--) {
        const int64_t j = random_below(state, i + 1);
        const int swap = order[i];
        order[i] = order[j];
        order[j] = swap;
    }
    for (int i = 0; i < 5; i++) {
        const int64_t begin = cut[order[i]], size = cut[order[i] + 1] - begin;
        float *piece = exact_copy(x + begin, (size_t)size * 4);
        if (mask == NULL && random_below(state, 2) != 0) {
            int64_t *indices = exact_room((size_t)size * 8);
            for (int64_t j = 0; j < size; j++) indices[j] = begin + j;
            CHECK(edr_topk_push_at(top, piece, indices, size) == EDR_OK);
            free(indices);
        } else {
            uint8_t *piece_mask = mask != NULL ? exact_copy(mask + begin, (size_t)size) : NULL;
            CHECK(edr_topk_push(top, piece, piece_mask, size, begin) == EDR_OK);
            free(piece_mask);
        }
        free(piece);
    }
}

static void test_selects_what_sorting_selects(int isa)
{
    static const int64_t sizes[] = {0, 1, 2, 63, 64, 65, 257, 1000, 5000, 70000};
    static const int64_t ks[] = {0, 1, 2, 10, 100, 1000, 3000};
    uint64_t state = 1;
    for (int shape = 0; shape < SHAPES; shape++) {
        for (size_t a = 0; a < sizeof sizes / sizeof sizes[0]; a++) {
            const int64_t n = sizes[a];
            float *x = make_scores(&state, shape, n);
            uint8_t *mask = exact_room((size_t)n);
            entry *expected = exact_room((size_t)n * sizeof *expected);
            for (int64_t i = 0; i < n; i++) mask[i] = random_below(&state, 4) == 0 ? (uint8_t)(1 + random_below(&state, 255)) : 0;
            for (size_t b = 0; b < sizeof ks / sizeof ks[0]; b++) {
                const int64_t k = ks[b], room = EDR_TOPK_ROOM(k);
                float *room_s = exact_room((size_t)room * 4);
                int64_t *room_i = exact_room((size_t)room * 8);
                for (int masked = 0; masked < 2; masked++) {
                    const int64_t count = slow_topk(x, masked ? mask : NULL, n, k, expected);
                    edr_topk top;
                    CHECK(edr_topk_init(&top, k, isa, room_s, room_i, room) == EDR_OK);
                    CHECK(edr_topk_push(&top, x, masked ? mask : NULL, n, 0) == EDR_OK);
                    check_answer(&top, expected, count);
                    CHECK(edr_topk_init(&top, k, isa, room_s, room_i, room) == EDR_OK);
                    push_in_pieces(&top, &state, x, masked ? mask : NULL, n);
                    check_answer(&top, expected, count);
                }
                free(room_s);
                free(room_i);
            }
            free(x);
            free(mask);
            free(expected);
        }
    }
}

/* Answers may be asked for in the middle of a stream. */
static void test_finish_then_go_on(void)
{
    uint64_t state = 2;
    const int64_t n = 3000, k = 37;
    float *x = make_scores(&state, FEW_VALUES, n), room_s[EDR_TOPK_ROOM(37)];
    int64_t room_i[EDR_TOPK_ROOM(37)];
    entry *expected = exact_room((size_t)n * sizeof *expected);
    edr_topk top;
    CHECK(edr_topk_init(&top, k, edr_isa_best(), room_s, room_i, EDR_TOPK_ROOM(37)) == EDR_OK);
    for (int64_t done = 0; done < n; done += 50) {
        CHECK(edr_topk_push(&top, x + done, NULL, 50, done) == EDR_OK);
        check_answer(&top, expected, slow_topk(x, NULL, done + 50, k, expected));
    }
    free(x);
    free(expected);
}

static void test_any_index_is_a_label(void)
{
    const float x[5] = {1.0f, 1.0f, 1.0f, 2.0f, 1.0f};
    const int64_t labels[5] = {INT64_MAX, -7, INT64_MIN, 0, 3};
    float room_s[EDR_TOPK_ROOM(3)], scores[3];
    int64_t room_i[EDR_TOPK_ROOM(3)], indices[3], got;
    edr_topk top;
    CHECK(edr_topk_init(&top, 3, EDR_ISA_SCALAR, room_s, room_i, EDR_TOPK_ROOM(3)) == EDR_OK);
    CHECK(edr_topk_push_at(&top, x, labels, 5) == EDR_OK);
    CHECK(edr_topk_finish(&top, indices, scores, &got) == EDR_OK && got == 3);
    CHECK(indices[0] == 0 && indices[1] == INT64_MIN && indices[2] == -7);
    CHECK(edr_topk_push(&top, x, NULL, 1, INT64_MAX - 1) == EDR_OK);
}

static void test_faults(void)
{
    float room_s[EDR_TOPK_ROOM(2)], x[3] = {1.0f, 2.0f, 3.0f}, scores[2];
    int64_t room_i[EDR_TOPK_ROOM(2)], indices[2] = {0, 0}, got = 77;
    edr_topk top;
    CHECK(edr_topk_init(NULL, 2, 0, room_s, room_i, EDR_TOPK_ROOM(2)) == EDR_E_NULL);
    CHECK(edr_topk_init(&top, 2, 0, NULL, room_i, EDR_TOPK_ROOM(2)) == EDR_E_NULL);
    CHECK(edr_topk_init(&top, 2, 0, room_s, NULL, EDR_TOPK_ROOM(2)) == EDR_E_NULL);
    CHECK(edr_topk_init(&top, -1, 0, room_s, room_i, EDR_TOPK_ROOM(2)) == EDR_E_VALUE);
    CHECK(edr_topk_init(&top, EDR_TOPK_MAX_K + 1, 0, room_s, room_i, INT64_MAX) == EDR_E_VALUE);
    CHECK(edr_topk_init(&top, 3, 0, room_s, room_i, EDR_TOPK_ROOM(2)) == EDR_E_SPACE);
    CHECK(edr_topk_init(&top, 2, -1, room_s, room_i, EDR_TOPK_ROOM(2)) == EDR_E_ISA);
    CHECK(edr_topk_init(&top, 2, EDR_ISA_COUNT, room_s, room_i, EDR_TOPK_ROOM(2)) == EDR_E_ISA);
    for (int isa = 0; isa < EDR_ISA_COUNT; isa++) {
        CHECK(edr_topk_init(&top, 2, isa, room_s, room_i, EDR_TOPK_ROOM(2)) == (edr_isa_supported(isa) ? EDR_OK : EDR_E_ISA));
    }
    CHECK(edr_topk_init(&top, 2, 0, room_s, room_i, EDR_TOPK_ROOM(2)) == EDR_OK);
    CHECK(edr_topk_push(NULL, x, NULL, 3, 0) == EDR_E_NULL);
    CHECK(edr_topk_push(&top, NULL, NULL, 3, 0) == EDR_E_NULL);
    CHECK(edr_topk_push(&top, x, NULL, -1, 0) == EDR_E_SIZE);
    CHECK(edr_topk_push(&top, x, NULL, 3, -1) == EDR_E_VALUE);
    CHECK(edr_topk_push(&top, x, NULL, 3, INT64_MAX - 2) == EDR_E_VALUE);
    CHECK(edr_topk_push(&top, NULL, NULL, 0, 0) == EDR_OK);
    CHECK(edr_topk_push_at(NULL, x, room_i, 3) == EDR_E_NULL);
    CHECK(edr_topk_push_at(&top, x, NULL, 3) == EDR_E_NULL);
    CHECK(edr_topk_push_at(&top, NULL, room_i, 3) == EDR_E_NULL);
    CHECK(edr_topk_push_at(&top, x, room_i, -3) == EDR_E_SIZE);
    CHECK(edr_topk_count(&top) == 0 && edr_topk_count(NULL) == 0);
    CHECK(edr_topk_finish(&top, NULL, NULL, &got) == EDR_OK && got == 0);
    got = 77;
    CHECK(edr_topk_push(&top, x, NULL, 3, 0) == EDR_OK);
    CHECK(edr_topk_finish(NULL, indices, scores, &got) == EDR_E_NULL);
    CHECK(edr_topk_finish(&top, indices, NULL, &got) == EDR_E_NULL);
    CHECK(edr_topk_finish(&top, NULL, scores, &got) == EDR_E_NULL);
    CHECK(edr_topk_finish(&top, indices, scores, NULL) == EDR_E_NULL);
    CHECK(got == 77 && indices[0] == 0);
    CHECK(edr_topk_finish(&top, indices, scores, &got) == EDR_OK && got == 2 && indices[0] == 2 && indices[1] == 1);
}

int main(void)
{
    for (int isa = 0; isa < EDR_ISA_COUNT; isa++) {
        if (!edr_isa_supported(isa)) continue;
        test_selects_what_sorting_selects(isa);
        printf("%s: done\n", edr_isa_name(isa));
    }
    test_finish_then_go_on();
    test_any_index_is_a_label();
    test_faults();
    return check_report();
}
