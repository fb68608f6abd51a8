/* cc -std=c11 -g -fsanitize=address,undefined -Icsrc tests/csrc/test_gather.c csrc/[a-z]*.c -lm -lpthread -o test_gather
 * Rows of item states and of tokens, which define what the CUDA kernels give: conversions are exact over all bit patterns, rows come from
 * the table their sign names and end in zeros or padding, and a row outside is refused before anything is written. */
#include "gather.h"

#include <math.h>

#include "check.h"

static float from_bits(uint32_t bits)
{
    float x;
    memcpy(&x, &bits, 4);
    return x;
}

/* What a float16 means, by its definition. */
static double meaning(uint16_t h)
{
    const int exponent = h >> 10 & 31, fraction = h & 1023;
    const double size = exponent ? ldexp(1024 + fraction, exponent - 25) : ldexp(fraction, -24);
    return h & 0x8000 ? -size : size;
}

static void test_conversions(void)
{
    int wide = 1, back = 1, between = 1, brain = 1;
    for (uint32_t h = 0; h < 65536; h++) {
        const float x = edr_widen_f16((uint16_t)h);
        if ((h & 0x7c00) == 0x7c00) {
            wide &= (h & 1023) ? isnan(x) : isinf(x) && signbit(x) == (int)(h >> 15) * signbit(x);
            back &= (h & 1023) ? (edr_narrow_f16(x) & 0x7fff) > 0x7c00 : edr_narrow_f16(x) == h;
            continue;
        }
        wide &= (double)x == meaning((uint16_t)h) && (signbit(x) != 0) == (h >> 15);
        back &= edr_narrow_f16(x) == h;
        if ((h & 0x7fff) < 0x7bff) { /* half way to the next one goes to the even one, a little more or less to the nearer */
            const uint16_t next = (uint16_t)(h + 1), even = h & 1 ? next : (uint16_t)h;
            const float middle = (float)((meaning((uint16_t)h) + meaning(next)) / 2);
            between &= edr_narrow_f16(middle) == even && edr_narrow_f16(nextafterf(middle, 2 * x)) == (x == 0 ? edr_narrow_f16(0) + (h & 0x8000u) : next);
            between &= edr_narrow_f16(nextafterf(middle, 0)) == h;
        }
        const uint32_t bits = h << 16;
        const int number = (bits & 0x7f800000) != 0x7f800000;
        brain &= !number || (edr_narrow_bf16(from_bits(bits)) == h && edr_narrow_bf16(from_bits(bits + 0x7fff)) == h);
        brain &= !number || edr_narrow_bf16(from_bits(bits + 0x8000)) == (h & 1 ? h + 1 : h);
        brain &= !number || edr_narrow_bf16(from_bits(bits + 0x8001)) == h + 1;
    }
    CHECK(wide);
    CHECK(back);
    CHECK(between);
    CHECK(brain);
    CHECK(edr_narrow_f16(65519.996f) == 0x7bff && edr_narrow_f16(65520.0f) == 0x7c00 && edr_narrow_f16(-1e30f) == 0xfc00);
    CHECK((edr_narrow_bf16(NAN) & 0x7fff) > 0x7f80 && edr_narrow_bf16(INFINITY) == 0x7f80 && edr_narrow_bf16(3.4e38f) == 0x7f80);
    CHECK(edr_narrow_bf16(from_bits(0x7f800001)) == 0x7fc0); /* a NaN whose upper half alone would be infinite */
}

enum { GROUPS = 2, WIDTH = 3, NUMBERS = GROUPS * WIDTH, TOKENS = 4, ROWS = 4, TOTAL = 7, OTHER = 5 };

static void test_rows(void)
{
    int8_t values[TOTAL * NUMBERS], others[OTHER * NUMBERS];
    float scales[TOTAL * GROUPS], their_scales[OTHER * GROUPS];
    for (int i = 0; i < TOTAL * NUMBERS; i++) values[i] = (int8_t)(i * 37 % 255 - 127);
    for (int i = 0; i < OTHER * NUMBERS; i++) others[i] = (int8_t)(i * 11 % 255 - 127);
    for (int i = 0; i < TOTAL * GROUPS; i++) scales[i] = 0.01f * (float)(i + 1);
    for (int i = 0; i < OTHER * GROUPS; i++) their_scales[i] = -0.5f * (float)(i + 1);
    const int64_t starts[ROWS] = {3, 0, ~(int64_t)1, ~(int64_t)0};
    const int32_t lengths[ROWS] = {4, 0, 4, 1};
    int8_t *table = exact_copy(values, sizeof values), *second = exact_copy(others, sizeof others);
    float *out = exact_room(sizeof(float) * ROWS * TOKENS * NUMBERS);
    edr_gather_job job = {
        .tables = {{table, scales}, {second, their_scales}}, .totals = {TOTAL, OTHER}, .starts = starts, .lengths = lengths, .rows = ROWS,
        .tokens = TOKENS, .groups = GROUPS, .width = WIDTH, .stored = EDR_GATHER_INT8, .number = EDR_GATHER_FP32, .out = out};
    CHECK(edr_gather_states(&job) == EDR_OK);
    int right = 1;
    for (int b = 0; b < ROWS; b++) {
        for (int i = 0; i < TOKENS * NUMBERS; i++) {
            const int64_t from = starts[b] < 0 ? ~starts[b] : starts[b], at = from * NUMBERS + i;
            const float x = i >= lengths[b] * NUMBERS ? 0 : starts[b] < 0 ? (float)others[at] * their_scales[at / WIDTH] : (float)values[at] * scales[at / WIDTH];
            right &= out[b * TOKENS * NUMBERS + i] == x;
        }
    }
    CHECK(right);
    uint16_t *half = exact_room(sizeof(uint16_t) * ROWS * TOKENS * NUMBERS);
    job.out = half;
    for (job.number = EDR_GATHER_FP16; job.number <= EDR_GATHER_BF16; job.number++) {
        CHECK(edr_gather_states(&job) == EDR_OK);
        right = 1;
        for (int i = 0; i < ROWS * TOKENS * NUMBERS; i++) right &= half[i] == (job.number == EDR_GATHER_FP16 ? edr_narrow_f16(out[i]) : edr_narrow_bf16(out[i]));
        CHECK(right);
    }
    free(half);
    free(table);
    free(second);
    free(out);
}

static void test_refusals(void)
{
    const float values[TOTAL * NUMBERS] = {0};
    int64_t starts[1] = {5};
    int32_t lengths[1] = {2};
    float out[TOKENS * NUMBERS];
    edr_gather_job good = {
        .tables = {{values, NULL}, {values, NULL}}, .totals = {TOTAL, OTHER}, .starts = starts, .lengths = lengths, .rows = 1,
        .tokens = TOKENS, .groups = GROUPS, .width = WIDTH, .stored = EDR_GATHER_FP32, .number = EDR_GATHER_FP32, .out = out};
    memset(out, 0x5A, sizeof out);
    const struct {
        int64_t start;
        int32_t length;
    } wrong[] = {{6, 2}, {8, 0}, {INT64_MAX, 1}, {~(int64_t)4, 2}, {INT64_MIN, 1}, {0, -1}, {0, TOKENS + 1}};
    for (size_t i = 0; i < sizeof wrong / sizeof *wrong; i++) {
        starts[0] = wrong[i].start;
        lengths[0] = wrong[i].length;
        CHECK(edr_gather_states(&good) == EDR_E_ROW);
    }
    starts[0] = 5;
    lengths[0] = 2;
    edr_gather_job job = good;
    job.stored = EDR_GATHER_BF16;
    CHECK(edr_gather_states(&job) == EDR_E_VALUE);
    job = good;
    job.number = EDR_GATHER_INT8;
    CHECK(edr_gather_states(&job) == EDR_E_VALUE);
    job = good;
    job.width = 0;
    CHECK(edr_gather_states(&job) == EDR_E_SIZE);
    job = good;
    job.rows = -1;
    CHECK(edr_gather_states(&job) == EDR_E_SIZE);
    job = good;
    job.width = job.tokens = INT32_MAX;
    CHECK(edr_gather_states(&job) == EDR_E_SIZE);
    int untouched = 1;
    for (size_t i = 0; i < sizeof out; i++) untouched &= ((const uint8_t *)out)[i] == 0x5A;
    CHECK(untouched);
    CHECK(edr_gather_states(&good) == EDR_OK && out[0] == 0);
}

enum { WIDE = 8 };

/* A row by its words: head, item, suffix, one token after the other. */
static int row_is(const int32_t *ids, const int32_t *mask, const int32_t *types, const int32_t *expected, int32_t size, int32_t head)
{
    int right = 1;
    for (int32_t i = 0; i < WIDE; i++) {
        right &= ids[i] == (i < size ? expected[i] : 99) && mask[i] == (i < size);
        right &= types[i] == (i >= size ? 0 : i < head ? 3 : 4);
    }
    return right;
}

static void test_pairs(void)
{
    const int32_t table[TOTAL] = {10, 11, 12, 13, 14, 15, 16}, other[OTHER] = {20, 21, 22, 23, 24};
    const int32_t frame[] = {3, 2, 3, 4, 99, 1, 7, 2, 5, 6}, bare[] = {0, 0, 3, 4, 99};
    const int64_t starts[] = {4, ~(int64_t)2, 7, ~(int64_t)0, 0};
    const int32_t lengths[] = {3, 2, 0, -1, 1};
    int32_t *tokens = exact_copy(table, sizeof table), *framed = exact_copy(frame, sizeof frame);
    int32_t *ids = exact_room(sizeof(int32_t) * 5 * WIDE), *mask = exact_room(sizeof(int32_t) * 5 * WIDE), *types = exact_room(sizeof(int32_t) * 5 * WIDE);
    edr_pairs_job good = {.tables = {tokens, other}, .totals = {TOTAL, OTHER}, .starts = starts, .lengths = lengths, .frame = framed,
                          .frame_size = 10, .rows = 5, .tokens = WIDE, .ids = ids, .mask = mask, .types = types};
    CHECK(edr_gather_pairs(&good) == EDR_OK);
    const int32_t expected[5][WIDE] = {{1, 7, 2, 14, 15, 16, 5, 6}, {1, 7, 2, 22, 23, 5, 6}, {1, 7, 2, 5, 6}, {0}, {1, 7, 2, 10, 5, 6}};
    for (int b = 0; b < 5; b++)
        CHECK(row_is(ids + b * WIDE, mask + b * WIDE, types + b * WIDE, expected[b], lengths[b] < 0 ? 0 : 5 + lengths[b], 3));
    edr_pairs_job job = good; /* nothing at all is a row of padding, and no address of a table is read */
    job.frame = bare;
    job.frame_size = 5;
    job.tables[0] = job.tables[1] = NULL;
    job.totals[0] = job.totals[1] = job.rows = 1;
    job.starts = starts + 4;
    job.lengths = lengths + 2;
    CHECK(edr_gather_pairs(&job) == EDR_OK && ids[0] == 99 && mask[0] == 1 && types[0] == 0 && mask[1] == 0 && ids[WIDE - 1] == 99);
    memset(ids, 0x5A, sizeof(int32_t) * 5 * WIDE);
    const struct {
        int64_t start;
        int32_t length;
    } wrong[] = {{5, 3}, {8, 0}, {INT64_MAX, 1}, {~(int64_t)4, 2}, {INT64_MIN, 1}, {0, -2}, {0, WIDE - 4}, {9, -1}};
    for (size_t i = 0; i < sizeof wrong / sizeof *wrong; i++) {
        job = good;
        job.rows = 1;
        job.starts = &wrong[i].start;
        job.lengths = &wrong[i].length;
        CHECK(edr_gather_pairs(&job) == EDR_E_ROW);
    }
    const int32_t frames[][10] = {{2, 2}, {3, 3}, {-1, 6}, {6, -1}, {INT32_MAX, INT32_MAX}};
    for (size_t i = 0; i < sizeof frames / sizeof *frames; i++) {
        job = good;
        job.frame = frames[i];
        CHECK(edr_gather_pairs(&job) == EDR_E_VALUE);
    }
    job = good;
    job.frame_size = 4;
    CHECK(edr_gather_pairs(&job) == EDR_E_VALUE);
    job = good;
    job.rows = -1;
    CHECK(edr_gather_pairs(&job) == EDR_E_SIZE);
    int untouched = 1;
    for (int i = 0; i < 5 * WIDE; i++) untouched &= ids[i] == 0x5A5A5A5A;
    CHECK(untouched);
    free(tokens);
    free(framed);
    free(ids);
    free(mask);
    free(types);
}

int main(void)
{
    test_conversions();
    test_rows();
    test_refusals();
    test_pairs();
    return check_report();
}
