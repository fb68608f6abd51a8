/* cc -std=c11 -g -fsanitize=address,undefined -Icsrc tests/csrc/test_products.c csrc/engine_kernels.c csrc/isa.c -lm -o test_products
 * The products of every instruction set of this machine against slow loops in double, on random shapes and with the bounds of the headers. */
#define _DEFAULT_SOURCE
#include <math.h>

#include "check.h"
#include "engine_kernels.h"
#include "rooms.h"

/* Kinds of products, and the bytes of a number in each. */
enum { FLOATS, INTEGERS, HALVES };
static const size_t CELL[] = {4, 1, 2};

/* What a product may read of its left side. */
static size_t operand_bytes(int kind, int64_t m, int64_t depth)
{
    return kind == FLOATS ? (size_t)(m * depth) * 4 : (size_t)EDR_OPERAND_BYTES(m, depth * (int64_t)CELL[kind]);
}

static void product(const edr_engine_kernels *k, int kind, const edr_linear *w, int64_t first, int64_t panels, const edr_rows *x, int64_t m,
                    float *out, int64_t ldo, int then)
{
    (kind == INTEGERS ? k->product_u8 : kind == HALVES ? k->product_bf16 : k->product_f32)(w, first, panels, x, m, out, ldo, then);
}

/* y and what it may be off by, of one output, in double. */
static double slow_y(const edr_linear *w, const edr_rows *x, int64_t row, int64_t c, int kind, double *size)
{
    double sum = w->bias[c];
    *size = fabs(sum);
    for (int64_t i = 0; i < w->inputs; i++) {
        const int64_t group = kind == INTEGERS ? 4 : kind == HALVES ? 2 : 1;
        const int64_t here = row * w->inputs + i, in_panel = (c / 32 * w->inputs + i / group * group) * 32 + c % 32 * group + i % group;
        double a, b, rest = 0;
        if (kind == INTEGERS) {
            const double u = ((const uint8_t *)x->data)[here];
            a = x->least[row] + (double)x->scale[row] * u;
            b = (double)w->scale[c] * ((const int8_t *)w->weight)[in_panel];
            rest = fabs(b) * (fabs((double)x->least[row]) + x->scale[row] * u);
        } else if (kind == HALVES) {
            a = widened(((const uint16_t *)x->data)[here]);
            b = widened(((const uint16_t *)w->weight)[in_panel]);
        } else {
            a = ((const float *)x->data)[here];
            b = ((const float *)w->weight)[in_panel];
        }
        sum += a * b;
        *size += fabs(a * b) + rest;
    }
    return sum;
}

/* A K: now and then one of a model, else any that the kind has. A tile's line of bytes has 64, so 96 leaves some over. */
static int64_t random_depth(uint64_t *state, int kind, int round)
{
    static const int64_t usual[] = {32, 64, 96, 384, 1536};
    if (round % 12 == 0) return usual[round / 12 % 5];
    return kind == HALVES ? 32 * (1 + random_below(state, 4)) : kind == INTEGERS ? 4 * (1 + random_below(state, 40)) : 1 + random_below(state, 80);
}

/* One of two whose sum is at most 128, whatever the other is. */
static int8_t short_weight(uint64_t *state) { return (int8_t)(random_below(state, 129) - 64); }

/* Products: within (K + 8) units of the last place of the sum of magnitudes; no column beside the asked ones is written. */
static void test_products(const edr_engine_kernels *k, int kind)
{
    uint64_t state = 2;
    for (int round = 0; round < 120; round++) {
        const int64_t depth = random_depth(&state, kind, round), all = 1 + random_below(&state, 4), n = 32 * all;
        const int64_t first = random_below(&state, all), panels = 1 + random_below(&state, all - first), m = random_below(&state, 41);
        const int64_t ldo = 32 * panels + random_below(&state, 3);
        const int then = round % 4;
        const size_t cell = CELL[kind];
        void *weight = make_room((size_t)(n * depth) * cell), *data = make_room(operand_bytes(kind, m, depth));
        float *bias = make_room((size_t)n * 4), *scale = make_room((size_t)n * 4), *sums = make_room((size_t)n * 4);
        float *row_scale = make_room((size_t)m * 4), *least = make_room((size_t)m * 4);
        const size_t room = m > 0 ? (size_t)((m - 1) * ldo + 32 * panels) * 4 : 0;
        float *out = make_room(room), *before = make_room(room);
        void *lone = make_room(operand_bytes(kind, 1, depth));
        memset(data, 0xFF, operand_bytes(kind, m, depth)); /* NaN: what lies behind the rows must not matter */
        const int short_pairs = kind == INTEGERS && round % 3 > 0;
        for (int64_t i = 0; i < n * depth; i++) {
            if (kind == INTEGERS) ((int8_t *)weight)[i] = short_pairs ? short_weight(&state) : (int8_t)(random_below(&state, 256) - 128);
            else if (kind == HALVES) ((uint16_t *)weight)[i] = random_half(&state);
            else ((float *)weight)[i] = uniform(&state, 1);
        }
        for (int64_t i = 0; i < m * depth; i++) {
            if (kind == INTEGERS) ((uint8_t *)data)[i] = (uint8_t)random_below(&state, 256);
            else if (kind == HALVES) ((uint16_t *)data)[i] = random_half(&state);
            else ((float *)data)[i] = uniform(&state, 1);
        }
        for (int64_t c = 0; c < n; c++) {
            bias[c] = uniform(&state, 1);
            scale[c] = 0.01f + 0.005f * uniform(&state, 1);
            double sum = 0;
            for (int64_t i = 0; kind == INTEGERS && i < depth; i++) sum += ((int8_t *)weight)[(c / 32 * depth + i / 4 * 4) * 32 + c % 32 * 4 + i % 4];
            sums[c] = (float)(sum * scale[c]);
        }
        for (int64_t r = 0; r < m; r++) {
            row_scale[r] = 0.01f + 0.005f * uniform(&state, 1);
            least[r] = uniform(&state, 1);
        }
        for (size_t i = 0; i < room / 4; i++) out[i] = before[i] = uniform(&state, 1);
        const edr_linear w = {weight, bias, scale, sums, depth, n, short_pairs};
        const edr_rows x = {data, row_scale, least};
        product(k, kind, &w, first, panels, &x, m, out, ldo, then);
        int close = 1, beside = 1, alone = 1;
        for (int64_t r = 0; r < m; r++) {
            for (int64_t c = 0; c < ldo && r * ldo + c < (int64_t)(room / 4); c++) {
                const float got = out[r * ldo + c], was = before[r * ldo + c];
                if (c >= 32 * panels) {
                    beside &= got == was;
                    continue;
                }
                double size, y = slow_y(&w, &x, r, 32 * first + c, kind, &size);
                const double bend = then == EDR_GELU ? kind == INTEGERS ? 4.2e-5 + 4.5e-5 * fabs(y) : 2e-6 + 4e-7 * fabs(y) : then == EDR_GELU_TANH ? 4e-7 * (1 + fabs(y)) : 0;
                const double bound = 6e-8 * (double)(depth + 8) * (size + 1) + bend;
                y = then == EDR_GELU ? exact_gelu(y) : then == EDR_GELU_TANH ? tanh_gelu(y) : then == EDR_ADD ? y + was : y;
                close &= fabs(got - y) <= bound;
            }
            /* A row by itself gives the same bits as among others. */
            float one[4 * 32];
            memcpy(one, before + r * ldo, (size_t)panels * 128);
            memcpy(lone, (const uint8_t *)data + (size_t)(r * depth) * cell, (size_t)depth * cell);
            const edr_rows only = {lone, row_scale + r, least + r};
            product(k, kind, &w, first, panels, &only, 1, one, 32 * panels, then);
            alone &= memcmp(one, out + r * ldo, (size_t)panels * 128) == 0;
        }
        CHECK(close);
        CHECK(beside);
        CHECK(alone);
        void *all_of_them[] = {weight, data, bias, scale, sums, row_scale, least, out, before, lone};
        for (int i = 0; i < 10; i++) free_room(all_of_them[i]);
    }
}

/* With scales of 1 a product is an integer below 2^24, and every instruction set must give exactly it. */
static void test_integers(const edr_engine_kernels *k)
{
    uint64_t state = 3;
    for (int round = 0; round < 60; round++) {
        const int64_t depth = round % 10 == 0 ? 1536 : 4 * (1 + random_below(&state, 64)), m = 1 + round % 40;
        int8_t *weight = make_room((size_t)(32 * depth));
        uint8_t *data = make_room(operand_bytes(INTEGERS, m, depth));
        float *out = make_room((size_t)m * 128), zeros[32] = {0}, ones[32], row_zero[40] = {0}, row_one[40];
        for (int i = 0; i < 40; i++) ones[i < 32 ? i : 0] = row_one[i] = 1.0f;
        /* Extremes in every other round: where 16-bit sums of pairs would saturate, or, of short pairs, just do not. */
        const int extreme = round % 2, short_pairs = round / 2 % 2;
        for (int64_t i = 0; i < 32 * depth; i++) {
            const int8_t least = short_pairs ? -64 : -128, most = short_pairs ? 64 : 127;
            weight[i] = extreme ? (random_below(&state, 2) ? most : least) : short_pairs ? short_weight(&state) : (int8_t)(random_below(&state, 256) - 128);
        }
        if (short_pairs && extreme) weight[0] = 127, weight[1] = 1; /* 128 of two that differ */
        for (int64_t i = 0; i < m * depth; i++) data[i] = (uint8_t)(extreme ? 255 : random_below(&state, 256));
        const edr_linear w = {weight, zeros, ones, zeros, depth, 32, short_pairs};
        const edr_rows x = {data, row_one, row_zero};
        k->product_u8(&w, 0, 1, &x, m, out, 32, EDR_STORE);
        int exact = 1;
        for (int64_t r = 0; r < m; r++) {
            for (int64_t c = 0; c < 32; c++) {
                int32_t sum = 0;
                for (int64_t i = 0; i < depth; i++) sum += data[r * depth + i] * weight[i / 4 * 128 + c * 4 + i % 4];
                exact &= out[r * 32 + c] == (float)sum;
            }
        }
        CHECK(exact);
        free_room(weight);
        free_room(data);
        free_room(out);
    }
}

int main(void)
{
    for (int isa = 0; isa < EDR_ISA_COUNT; isa++) {
        if (!edr_isa_supported(isa)) continue;
        const edr_engine_kernels *k = edr_engine_kernels_for(isa);
        const long failed = check_failed;
        k->begin();
        for (guarded = 0; guarded < 2; guarded++) {
            for (int kind = FLOATS; kind <= HALVES; kind++) test_products(k, kind);
            test_integers(k);
        }
        k->end();
        if (check_failed != failed) fprintf(stderr, "  with %s\n", edr_isa_name(isa));
    }
    return check_report();
}
