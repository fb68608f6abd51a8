/* cc -std=c11 -g -fsanitize=address,undefined -Icsrc tests/csrc/test_topk_kernels.c csrc/topk_kernels.c csrc/isa.c -o test_topk_kernels
 * The scalar kernels against a slow oracle, every other one against the scalar ones. */
#include <math.h>

#include "check.h"
#include "topk_kernels.h"

/* Scores with many ties and every special value. */
static float random_score(uint64_t *state)
{
    static const float special[] = {NAN, INFINITY, -INFINITY, 0.0f, -0.0f, 1e-45f, -1e-45f, 3.4028234e38f, -3.4028234e38f};
    const int64_t kind = random_below(state, 20);
    if (kind < 9) return special[kind];
    return (float)random_below(state, 64) / 8.0f - 4.0f;
}

/* Slow: look at one score after the other, with the rule of topk_kernels.h for stopping. */
static int64_t slow_collect(const float *x, int64_t n, float bar, int32_t *positions, int64_t room, int64_t *next)
{
    int64_t count = 0;
    for (int64_t begin = 0; begin < n; begin += EDR_GROUP) {
        const int64_t end = begin + EDR_GROUP < n ? begin + EDR_GROUP : n;
        int any = end - begin < EDR_GROUP; /* the last, partial group is looked at only when it certainly fits */
        for (int64_t i = begin; i < end; i++) any |= x[i] >= bar;
        if (any && count + EDR_GROUP > room) {
            *next = begin;
            return count;
        }
        for (int64_t i = begin; i < end; i++) {
            if (x[i] >= bar) positions[count++] = (int32_t)i;
        }
    }
    *next = n;
    return count;
}

static void test_collect(int isa)
{
    const edr_topk_kernels *kernels = edr_topk_kernels_for(isa), *scalar = edr_topk_kernels_for(EDR_ISA_SCALAR);
    uint64_t state = 1;
    for (int round = 0; round < 3000; round++) {
        const int64_t n = random_below(&state, 400), room = EDR_GROUP + random_below(&state, 300);
        const int sparse = random_below(&state, 2) != 0;
        float *x = exact_room((size_t)n * 4), bar = random_score(&state);
        for (int64_t i = 0; i < n; i++) x[i] = sparse && random_below(&state, 50) != 0 ? -5.0f : random_score(&state);
        int32_t *got = exact_room((size_t)room * 4), *plain = exact_room((size_t)room * 4), *slow = exact_room((size_t)room * 4);
        int64_t got_next = -1, plain_next = -1, slow_next = -1;
        const int64_t got_count = kernels->collect(x, n, bar, got, room, &got_next);
        const int64_t plain_count = scalar->collect(x, n, bar, plain, room, &plain_next);
        const int64_t slow_count = slow_collect(x, n, bar, slow, room, &slow_next);
        CHECK(plain_count == slow_count && plain_next == slow_next && memcmp(plain, slow, (size_t)slow_count * 4) == 0);
        CHECK(got_count == plain_count && got_next == plain_next && memcmp(got, plain, (size_t)plain_count * 4) == 0);
        free(x);
        free(got);
        free(plain);
        free(slow);
    }
}

static void test_column_max(int isa)
{
    const edr_topk_kernels *kernels = edr_topk_kernels_for(isa), *scalar = edr_topk_kernels_for(EDR_ISA_SCALAR);
    uint64_t state = 2;
    for (int round = 0; round < 500; round++) {
        const int64_t m = EDR_GROUP * (1 + random_below(&state, 5)), rows = random_below(&state, 6);
        float *x = exact_room((size_t)(m * rows) * 4), *got = exact_room((size_t)m * 4), *plain = exact_room((size_t)m * 4);
        for (int64_t i = 0; i < m * rows; i++) x[i] = random_score(&state);
        kernels->column_max(x, rows, m, got);
        scalar->column_max(x, rows, m, plain);
        int right = 1, same = 1;
        for (int64_t c = 0; c < m; c++) {
            float top = -INFINITY;
            for (int64_t r = 0; r < rows; r++) top = x[r * m + c] > top ? x[r * m + c] : top;
            right &= plain[c] == top;
            same &= got[c] == plain[c]; /* as numbers: which zero of -0.0 and 0.0 is the maximum is free */
        }
        CHECK(right);
        CHECK(same);
        free(x);
        free(got);
        free(plain);
    }
}

int main(void)
{
    for (int isa = 0; isa < EDR_ISA_COUNT; isa++) {
        if (!edr_isa_supported(isa)) continue;
        const long before = check_passed;
        test_collect(isa);
        test_column_max(isa);
        printf("%s: %ld checks\n", edr_isa_name(isa), check_passed - before);
    }
    return check_report();
}
