/* cc -std=c11 -g -fsanitize=address,undefined -Icsrc tests/csrc/test_gather.c csrc/[a-z]*.c -lm -lpthread -o test_gather
 * The gather of item states, which defines what the CUDA kernel gives: conversions are exact over all bit patterns, rows come from the
 * table their sign names and end in zeros, and a row outside is refused before anything is written. */
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

int main(void)
{
    test_conversions();
    test_rows();
    test_refusals();
    return check_report();
}
