/* cc -std=c11 -g -fsanitize=address,undefined -Icsrc tests/csrc/test_topk_select.c csrc/topk_kernels.c csrc/isa.c -lm -o test_topk_select
 * The parts of topk.c that bound the worst case; the source is included to reach them. */
#include "../../csrc/topk.c"

#include "check.h"

#define MOST 5000

/* Whether the k best are in front: the worst in front is better than the best behind. */
static int selected(const float *s, const int64_t *x, int64_t n, int64_t k)
{
    for (int64_t i = 0; i < k - 1; i++) {
        if (better(s[k - 1], x[k - 1], s[i], x[i])) return 0;
    }
    for (int64_t i = k; i < n; i++) {
        if (better(s[i], x[i], s[k - 1], x[k - 1])) return 0;
    }
    return 1;
}

/*
 * Scores that make every pivot of select_best one of the best: the positions that a round looks at get the best scores
 * not given out yet, and the round's partition is then played on what is known (after McIlroy, A Killer Adversary for
 * Quicksort, 1999).
 */
static void make_killer(float *scores, int64_t n)
{
    static float known[MOST];
    static int64_t who[MOST];
    float next = (float)(2 * n);
    int64_t begin = 0;
    for (int64_t i = 0; i < n; i++) {
        scores[i] = known[i] = -1.0f - (float)i / (float)n;
        who[i] = i;
    }
    for (int round = 0; round < 60 && n - begin > 30; round++) {
        float *s = known + begin;
        int64_t *x = who + begin;
        const int64_t m = n - begin, looked_at[3] = {m / 4, m / 2, m - 1 - m / 4};
        for (int i = 0; i < 3; i++) {
            if (s[looked_at[i]] < 0.0f) scores[x[looked_at[i]]] = s[looked_at[i]] = next--;
        }
        pivot_to_end(s, x, m);
        const float pivot = s[m - 1];
        const int64_t pivot_index = x[m - 1];
        int64_t kept = 0;
        for (int64_t i = 0; i < m - 1; i++) {
            const int in_front = better(s[i], x[i], pivot, pivot_index);
            swap_pair(s, x, i, kept);
            kept += in_front;
        }
        swap_pair(s, x, kept, m - 1);
        begin += kept + 1;
    }
}

static void test_select_best(void)
{
    static float s[MOST], killer[MOST];
    static int64_t x[MOST];
    uint64_t state = 1;
    for (int round = 0; round < 400; round++) {
        const int64_t n = 1 + random_below(&state, round % 4 == 0 ? MOST : 200), k = 1 + random_below(&state, n);
        const int64_t distinct = 1 + random_below(&state, 1000);
        for (int64_t i = 0; i < n; i++) {
            s[i] = round % 3 == 0 ? (float)i : (float)random_below(&state, distinct);
            x[i] = i;
        }
        select_best(s, x, n, k);
        CHECK(selected(s, x, n, k));
    }
    for (int64_t n = 200; n <= MOST; n *= 5) {
        make_killer(killer, n);
        for (int64_t k = n / 2; k <= n; k += n / 4) {
            memcpy(s, killer, (size_t)n * sizeof *s);
            for (int64_t i = 0; i < n; i++) x[i] = i;
            select_best(s, x, n, k);
            CHECK(selected(s, x, n, k));
        }
    }
}

static void test_heap_sort(void)
{
    float s[300];
    int64_t x[300];
    uint64_t state = 2;
    for (int64_t n = 0; n < 300; n++) {
        for (int64_t i = 0; i < n; i++) {
            s[i] = (float)random_below(&state, 1 + n / 3);
            x[i] = random_below(&state, 1000) * 300 + i;
        }
        heap_sort(s, x, n);
        int ordered = 1;
        for (int64_t i = 1; i < n; i++) ordered &= better(s[i - 1], x[i - 1], s[i], x[i]);
        CHECK(ordered);
    }
}

/* A bound must be at most the k-th largest, and on honest input it is the k-th largest. */
static void test_kth_largest(void)
{
    static float v[MAX_COLUMNS], copy[MAX_COLUMNS];
    uint64_t state = 3;
    for (int round = 0; round < 500; round++) {
        const int64_t n = 1 + random_below(&state, round % 5 == 0 ? MAX_COLUMNS : 100), k = 1 + random_below(&state, n);
        const int64_t distinct = 1 + random_below(&state, 200);
        for (int64_t i = 0; i < n; i++) v[i] = copy[i] = random_below(&state, 9) == 0 ? -INFINITY : (float)random_below(&state, distinct);
        const float got = kth_largest(v, n, k);
        int64_t above = 0, at_least = 0;
        for (int64_t i = 0; i < n; i++) {
            above += copy[i] > got;
            at_least += copy[i] >= got;
        }
        CHECK(above < k && at_least >= k);
    }
    for (int shape = 0; shape < 3; shape++) {
        for (int64_t i = 0; i < MAX_COLUMNS; i++) v[i] = copy[i] = shape == 0 ? (float)i : shape == 1 ? 0.0f : (float)(i < 2000 ? i : 4096 - i);
        const float got = kth_largest(v, MAX_COLUMNS, 100);
        int64_t at_least = 0;
        for (int64_t i = 0; i < MAX_COLUMNS; i++) at_least += copy[i] >= got;
        CHECK(at_least >= 100);
    }
}

static void test_next_above(void)
{
    CHECK(next_above(1.0f) == nextafterf(1.0f, INFINITY));
    CHECK(next_above(-1.0f) == nextafterf(-1.0f, INFINITY));
    CHECK(next_above(0.0f) == nextafterf(0.0f, INFINITY));
    CHECK(next_above(-0.0f) == nextafterf(0.0f, INFINITY));
    CHECK(next_above(-0x1p-149f) == 0.0f);
    CHECK(next_above(3.4028234e38f) == INFINITY);
    CHECK(next_above(-INFINITY) == -3.4028234e38f);
    CHECK(isnan(next_above(INFINITY)));
    CHECK(isnan(max_of(1.0f, NAN)) && max_of(1.0f, 2.0f) == 2.0f && max_of(2.0f, 1.0f) == 2.0f);
}

/* Groups are whole, more than k, and few enough for the stack. */
static void test_columns_for(void)
{
    for (int64_t k = 1; k < 5000; k++) {
        const int64_t m = columns_for(k);
        if (m != 0 && !(m % EDR_GROUP == 0 && m / EDR_GROUP % 2 == 1 && m >= 2 * k && m <= MAX_COLUMNS)) CHECK(0);
    }
    CHECK(columns_for(100) != 0 && columns_for(2000) != 0 && columns_for(EDR_TOPK_MAX_K) == 0);
}

int main(void)
{
    test_select_best();
    test_heap_sort();
    test_kth_largest();
    test_next_above();
    test_columns_for();
    return check_report();
}
