/* cc -std=c11 -g -fsanitize=address,undefined -Icsrc tests/csrc/test_scan.c csrc/scan.c csrc/isa.c -o test_scan
 * The scores of every instruction set against a slow oracle, bit for bit. */
#include <math.h>

#include "check.h"

static int8_t random_byte(uint64_t *state, int extreme)
{
    static const int8_t ends[] = {-128, 127, -127, 0};
    return extreme ? ends[random_below(state, 4)] : (int8_t)(random_below(state, 256) - 128);
}

/* As edgerec.h says it, in 64 bits. */
static float slow_score(const int8_t *query, float query_scale, const int8_t *vector, float scale, int64_t width)
{
    int64_t sum = 0;
    for (int64_t j = 0; j < width; j++) sum += (int64_t)query[j] * vector[j];
    const float factor = query_scale * scale;
    return (float)(int32_t)sum * factor;
}

static int same_bits(float a, float b)
{
    return memcmp(&a, &b, sizeof a) == 0 || (isnan(a) && isnan(b));
}

static void test_scores(int isa)
{
    static const float special[] = {0.0f, -0.0f, 1.0f, INFINITY, NAN, 1e-45f, 3e38f, -2.5f};
    static const int64_t edges[] = {1, 15, 16, 17, 31, 32, 33, 63, 64, 65, 127, 128, 129, 192};
    uint64_t state = 1;
    for (int round = 0; round < 1500; round++) {
        const int64_t width = round % 2 ? edges[random_below(&state, 14)] : 1 + random_below(&state, 300);
        const int64_t n = round % 50 ? random_below(&state, 20) : 250 + random_below(&state, 300);
        const int extreme = random_below(&state, 3) == 0;
        int8_t *query = exact_room((size_t)width), *vectors = exact_room((size_t)(n * width));
        float *scales = exact_room((size_t)n * 4), *scores = exact_room((size_t)n * 4);
        const float query_scale = special[random_below(&state, 8)];
        for (int64_t j = 0; j < width; j++) query[j] = random_byte(&state, extreme);
        for (int64_t j = 0; j < n * width; j++) vectors[j] = random_byte(&state, extreme);
        for (int64_t i = 0; i < n; i++) scales[i] = i % 3 ? (float)random_below(&state, 1000) / 7.0f : special[random_below(&state, 8)];
        CHECK(edr_scan(query, query_scale, vectors, scales, n, width, isa, scores) == EDR_OK);
        int right = 1;
        for (int64_t i = 0; i < n; i++) right &= same_bits(scores[i], slow_score(query, query_scale, vectors + i * width, scales[i], width));
        CHECK(right);
        free(query);
        free(vectors);
        free(scales);
        free(scores);
    }
}

/* The widest vectors, of the numbers that come nearest to an overflow. */
static void test_nothing_overflows(int isa)
{
    const int64_t width = EDR_SCAN_MAX_WIDTH;
    int8_t *query = exact_room((size_t)width), *vector = exact_room((size_t)width);
    const float scale = 1.0f;
    for (int q = 0; q < 2; q++) {
        for (int v = 0; v < 2; v++) {
            float score = 0.0f;
            memset(query, q ? 127 : -128, (size_t)width);
            memset(vector, v ? 127 : -128, (size_t)width);
            CHECK(edr_scan(query, 1.0f, vector, &scale, 1, width, isa, &score) == EDR_OK);
            CHECK(score == (float)((q ? 127 : -128) * (v ? 127 : -128)) * 65536.0f);
        }
    }
    free(query);
    free(vector);
}

static void test_refusals(void)
{
    const int8_t query[2] = {1, 2}, vectors[4] = {1, 2, 3, 4};
    const float scales[2] = {1.0f, 1.0f};
    float scores[2] = {7.0f, 7.0f};
    const int isa = edr_isa_best();
    CHECK(edr_scan(query, 1, vectors, scales, -1, 2, isa, scores) == EDR_E_SIZE);
    CHECK(edr_scan(query, 1, vectors, scales, INT64_MAX, 2, isa, scores) == EDR_E_SIZE);
    CHECK(edr_scan(query, 1, vectors, scales, 2, 0, isa, scores) == EDR_E_SIZE);
    CHECK(edr_scan(query, 1, vectors, scales, 2, EDR_SCAN_MAX_WIDTH + 1, isa, scores) == EDR_E_SIZE);
    CHECK(edr_scan(query, 1, vectors, scales, 2, 2, -1, scores) == EDR_E_ISA);
    CHECK(edr_scan(query, 1, vectors, scales, 2, 2, EDR_ISA_COUNT, scores) == EDR_E_ISA);
    CHECK(edr_scan(NULL, 1, vectors, scales, 2, 2, isa, scores) == EDR_E_NULL);
    CHECK(edr_scan(query, 1, NULL, scales, 2, 2, isa, scores) == EDR_E_NULL);
    CHECK(edr_scan(query, 1, vectors, NULL, 2, 2, isa, scores) == EDR_E_NULL);
    CHECK(edr_scan(query, 1, vectors, scales, 2, 2, isa, NULL) == EDR_E_NULL);
    CHECK(edr_scan(NULL, 1, NULL, NULL, 0, 2, isa, NULL) == EDR_OK);
    CHECK(scores[0] == 7.0f && scores[1] == 7.0f);
    CHECK(edr_scan(query, 0.5f, vectors, scales, 2, 2, isa, scores) == EDR_OK);
    CHECK(scores[0] == 2.5f && scores[1] == 5.5f);
}

int main(void)
{
    for (int isa = 0; isa < EDR_ISA_COUNT; isa++) {
        if (!edr_isa_supported(isa)) continue;
        const long before = check_passed;
        test_scores(isa);
        test_nothing_overflows(isa);
        printf("%s: %ld checks\n", edr_isa_name(isa), check_passed - before);
    }
    test_refusals();
    return check_report();
}
