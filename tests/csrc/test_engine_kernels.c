/* cc -std=c11 -g -fsanitize=address,undefined -Icsrc tests/csrc/test_engine_kernels.c csrc/engine_kernels.c csrc/isa.c -lm -o test_engine_kernels
 * Every instruction set of this machine against slow loops in double, on random shapes and with the bounds of the headers. */
#define _DEFAULT_SOURCE
#include <math.h>

#include "check.h"
#include "engine_kernels.h"
#include "rooms.h"

/* `tables`: the set looks the int8 products' GELU up. */
static void test_functions(const edr_engine_kernels *k, int tables)
{
    uint64_t state = 1;
    int exps = 1, gelus = 1, coarse = 1, approximations = 1, tanhs = 1;
    for (int round = 0; round < 4000; round++) {
        const int64_t n = 1 + random_below(&state, 50);
        const float size = round % 3 == 0 ? 1.0f : round % 3 == 1 ? 8.0f : 87.0f;
        float *x = make_room((size_t)n * 4), *y = make_room((size_t)n * 4);
        for (int64_t i = 0; i < n; i++) x[i] = uniform(&state, size);
        memcpy(y, x, (size_t)n * 4);
        k->exp(y, n);
        for (int64_t i = 0; i < n; i++) exps &= fabs(y[i] / exp(x[i]) - 1) < 3e-7;
        memcpy(y, x, (size_t)n * 4);
        k->gelu(y, n);
        for (int64_t i = 0; i < n; i++) gelus &= fabs(y[i] - exact_gelu(x[i])) < (fabs(x[i]) <= 5.25 ? 2e-6 : 4e-7 * fabs(x[i]));
        memcpy(y, x, (size_t)n * 4);
        k->gelu_coarse(y, n);
        for (int64_t i = 0; i < n; i++) coarse &= fabs(y[i] - exact_gelu(x[i])) < (tables ? 1.6e-5 + 2e-7 * fabs(x[i]) : fabs(x[i]) <= 4 ? 4.2e-5 : 4.5e-5 * fabs(x[i]));
        memcpy(y, x, (size_t)n * 4);
        k->gelu_tanh(y, n);
        for (int64_t i = 0; i < n; i++) approximations &= fabs(y[i] - tanh_gelu(x[i])) < 4e-7 * (1 + fabs(x[i]));
        memcpy(y, x, (size_t)n * 4);
        k->tanh(y, n);
        for (int64_t i = 0; i < n; i++) tanhs &= fabs(y[i] - tanh(x[i])) < 3e-7;
        free_room(x);
        free_room(y);
    }
    CHECK(exps);
    CHECK(gelus);
    CHECK(coarse);
    CHECK(approximations);
    CHECK(tanhs);
    float far[4] = {-1e30f, -88.0f, 1e30f, 88.0f};
    k->exp(far, 4);
    CHECK(far[0] == far[1] && fabs(far[0] / exp(-87.0) - 1) < 3e-7 && far[2] == far[3] && fabs(far[2] / exp(88.0) - 1) < 3e-7);
    float bad[2] = {NAN, 1.0f};
    k->tanh(bad, 2);
    CHECK(isnan(bad[0]) && fabs(bad[1] - tanh(1.0)) < 3e-7);
    k->gelu_tanh(bad, 2);
    CHECK(isnan(bad[0]));
    k->gelu_coarse(bad, 2);
    CHECK(isnan(bad[0]));
    float plain[3] = {0.0f, 1e30f, -1e30f};
    k->gelu_coarse(plain, 3);
    CHECK(!tables || (plain[0] == 0.0f && plain[1] == 1e30f && fabs(plain[2]) < 1.6e-5));
}

/* A row has the same bits whatever rows are beside it. */
static void test_companies(const edr_engine_kernels *k)
{
    uint64_t state = 11;
    for (int round = 0; round < 60; round++) {
        const int64_t n = 32 * (1 + random_below(&state, 6)), rows = 1 + random_below(&state, 7), size = rows * n;
        float *x = make_room((size_t)size * 4), *y = make_room((size_t)size * 4), *weight = make_room((size_t)n * 8);
        float *scale = make_room((size_t)rows * 8), *least = make_room((size_t)rows * 8);
        uint8_t *u = make_room((size_t)size), *v = make_room((size_t)size);
        /* Of both signs, of one, and around both ends. */
        static const float shifts[5] = {0, 5, -5, 3, -3};
        for (int64_t i = 0; i < size; i++) x[i] = y[i] = uniform(&state, 3) + shifts[(i / n + round) % 5];
        for (int64_t i = 0; i < 2 * n; i++) weight[i] = uniform(&state, 1);
        k->quantise(x, rows, n, u, scale, least);
        for (int64_t r = 0; r < rows; r++) k->quantise(x + r * n, 1, n, v + r * n, scale + rows + r, least + rows + r);
        CHECK(memcmp(u, v, (size_t)size) == 0 && memcmp(scale, scale + rows, (size_t)rows * 4) == 0 && memcmp(least, least + rows, (size_t)rows * 4) == 0);
        double off = 0;
        for (int64_t i = 0; i < size; i++) off = fmax(off, fabs(((double)x[i] - least[i / n]) / scale[i / n] - u[i]));
        CHECK(off < 0.5 + 1e-3);
        k->normalise(x, rows, n, weight);
        for (int64_t r = 0; r < rows; r++) k->normalise(y + r * n, 1, n, weight);
        CHECK(memcmp(x, y, (size_t)size * 4) == 0);
        void *all[] = {x, y, weight, scale, least, u, v};
        for (int i = 0; i < 7; i++) free_room(all[i]);
    }
}

static void test_rows(const edr_engine_kernels *k)
{
    uint64_t state = 4;
    for (int round = 0; round < 300; round++) {
        const int64_t n = 32 * (1 + random_below(&state, 6)), odd = 1 + random_below(&state, 70);
        float *x = make_room((size_t)n * 4), *y = make_room((size_t)n * 4), *weight = make_room((size_t)n * 8), *out = make_room((size_t)n * 4);
        int8_t *word = make_room((size_t)n);
        uint16_t *halves = make_room((size_t)n * 2);
        uint8_t *u = make_room((size_t)n);
        double mean = 0, variance = 0, close = 1;
        for (int64_t i = 0; i < n; i++) {
            x[i] = y[i] = uniform(&state, 3);
            weight[i] = uniform(&state, 1);
            weight[n + i] = uniform(&state, 1);
            word[i] = (int8_t)(random_below(&state, 256) - 128);
            halves[i] = random_half(&state);
            mean += x[i] / (double)n;
        }
        for (int64_t i = 0; i < n; i++) variance += (x[i] - mean) * (x[i] - mean) / (double)n;
        k->normalise(y, 1, n, weight);
        for (int64_t i = 0; i < n; i++) close = fmax(close, 1 + fabs(y[i] - ((x[i] - mean) / sqrt(variance + 1e-12) * weight[i] + weight[n + i])));
        CHECK(close < 1 + 1e-5);
        float scale, least, most = x[0], low = x[0];
        k->quantise(x, 1, n, u, &scale, &least);
        double off = 0;
        for (int64_t i = 0; i < n; i++) {
            most = x[i] > most ? x[i] : most;
            low = x[i] < low ? x[i] : low;
            off = fmax(off, fabs(((double)x[i] - least) / scale - u[i]));
        }
        CHECK(least == low && fabs(scale * 255 - (most - low)) < 1e-5 && off < 0.5 + 1e-4);
        int same = 1;
        k->embed(word, 1, 0.5f, x, weight, n, out);
        for (int64_t i = 0; i < n; i++) same &= out[i] == 0.5f * (float)word[i] + x[i] + weight[i];
        k->embed(weight + n, 4, 9.0f, x, weight, n, out);
        for (int64_t i = 0; i < n; i++) same &= out[i] == weight[n + i] + x[i] + weight[i];
        k->embed(halves, 2, 9.0f, x, weight, n, out);
        for (int64_t i = 0; i < n; i++) same &= out[i] == (float)widened(halves[i]) + x[i] + weight[i];
        CHECK(same);
        for (int64_t i = 0; i < n; i++) x[i] = 1.5f;
        k->quantise(x, 1, n, u, &scale, &least);
        for (int64_t i = 0; i < n; i++) same &= u[i] == 0;
        CHECK(same && scale == 0.0f && least == 1.5f);
        x[random_below(&state, n)] = round % 3 == 0 ? NAN : round % 3 == 1 ? INFINITY : -INFINITY;
        k->quantise(x, 1, n, u, &scale, &least);
        CHECK(isnan(scale));
        float *a = make_room((size_t)odd * 4), *b = make_room((size_t)odd * 4), *c = make_room((size_t)odd * 4);
        double dot = 0, size = 0;
        for (int64_t i = 0; i < odd; i++) {
            a[i] = uniform(&state, 1);
            b[i] = c[i] = uniform(&state, 1);
            dot += (double)a[i] * b[i];
            size += fabs((double)a[i] * b[i]);
        }
        CHECK(fabs(k->dot(a, b, odd) - dot) <= 6e-8 * (double)odd * (size + 1));
        k->add_scaled(a, 0.7f, odd, c);
        for (int64_t i = 0; i < odd; i++) same &= fabs(c[i] - ((double)b[i] + 0.7f * (double)a[i])) < 3e-7;
        CHECK(same);
        void *all[] = {x, y, weight, out, word, halves, u, a, b, c};
        for (int i = 0; i < 10; i++) free_room(all[i]);
    }
}

/* The nearest bfloat16 has the upper half of the float's bits, or one more; of two as near it is the even one. */
static void test_rounding(const edr_engine_kernels *k)
{
    uint64_t state = 6;
    int nearest = 1, special = 1;
    for (int round = 0; round < 2000; round++) {
        const int64_t n = 32 * (1 + random_below(&state, 3));
        float *x = make_room((size_t)n * 4);
        uint16_t *out = make_room((size_t)n * 2);
        for (int64_t i = 0; i < n; i++) {
            /* Any normal number, often half way between two. */
            const uint32_t exponent = 1 + (uint32_t)random_below(&state, 253), lower = (uint32_t)random_below(&state, 1 << 16);
            const uint32_t bits = (uint32_t)random_below(&state, 2) << 31 | exponent << 23 | (uint32_t)random_below(&state, 128) << 16 | (i % 2 ? 0x8000u : lower);
            memcpy(x + i, &bits, 4);
        }
        k->round_bf16(x, n, out);
        for (int64_t i = 0; i < n; i++) {
            uint32_t bits;
            memcpy(&bits, x + i, 4);
            const double below = widened((uint16_t)(bits >> 16)), above = widened((uint16_t)((bits >> 16) + 1)), y = widened(out[i]);
            const double down = fabs(x[i] - below), up = fabs(above - x[i]);
            nearest &= y == (down < up || (down == up && (bits >> 16) % 2 == 0) ? below : above);
        }
        const float odd[4] = {NAN, INFINITY, -INFINITY, 0.0f};
        memcpy(x, odd, sizeof odd);
        const uint32_t all_ones = 0x7FFFFFFF;
        memcpy(x + 4, &all_ones, 4);
        k->round_bf16(x, n, out);
        special &= isnan(widened(out[0])) && widened(out[1]) == INFINITY && widened(out[2]) == -INFINITY && widened(out[3]) == 0 && isnan(widened(out[4]));
        free_room(x);
        free_room(out);
    }
    CHECK(nearest);
    CHECK(special);
}

/* The keys are in one piece or in two, of which the second may be empty. */
static void test_attention(const edr_engine_kernels *k)
{
    uint64_t state = 5;
    for (int round = 0; round < 200; round++) {
        const int64_t t = 1 + random_below(&state, 40), m = 1 + random_below(&state, 24), s = 1 + random_below(&state, 70), ld = s + random_below(&state, 5);
        const int64_t own = round % 3 == 0 ? t : 1 + random_below(&state, t);
        const size_t query = (size_t)((m - 1) * ld + s) * 4, key = (size_t)((own - 1) * ld + s) * 4, rest = (size_t)((t - own) * s) * 4;
        float *q = make_room(query), *out = make_room(query), *room = make_room((size_t)EDR_ATTENTION_ROOM(t, s) * 4);
        float *keys = make_room(key), *v = make_room(key), *more_keys = make_room(rest), *more_v = make_room(rest);
        for (size_t i = 0; i < query / 4; i++) q[i] = uniform(&state, 1);
        for (size_t i = 0; i < key / 4; i++) keys[i] = uniform(&state, 1), v[i] = uniform(&state, 1);
        for (size_t i = 0; i < rest / 4; i++) more_keys[i] = uniform(&state, 1), more_v[i] = uniform(&state, 1);
        const edr_keys first = {keys, v, ld, own}, second = {more_keys, more_v, s, t - own}, *more = round % 6 == 0 ? NULL : &second;
        const int64_t before = random_below(&state, m); /* of the queries so many are a list of their own */
        const edr_asking some = {q, ld, before > 0 ? before : m}, other = {q + before * ld, ld, m - before}, *others = before > 0 ? &other : NULL;
        k->attend(&some, others, &first, more, s, out, ld, room);
        double off = 0;
        for (int64_t r = 0; r < m; r++) {
            double p[40], sum = 0;
            for (int64_t j = 0; j < t; j++) {
                const float *one = j < own ? keys + j * ld : more_keys + (j - own) * s;
                double score = 0;
                for (int64_t i = 0; i < s; i++) score += (double)q[r * ld + i] * one[i];
                sum += p[j] = exp(score);
            }
            for (int64_t i = 0; i < s; i++) {
                double y = 0;
                for (int64_t j = 0; j < t; j++) y += p[j] / sum * (j < own ? v[j * ld + i] : more_v[(j - own) * s + i]);
                off = fmax(off, fabs(out[r * ld + i] - y));
            }
        }
        CHECK(off < 1e-5);
        const int64_t odd_key = random_below(&state, t), place = random_below(&state, s);
        *(odd_key < own ? keys + odd_key * ld + place : more_keys + (odd_key - own) * s + place) = round % 2 ? NAN : INFINITY;
        k->attend(&some, others, &first, more, s, out, ld, room);
        int odd = 1;
        for (int64_t r = 0; r < m; r++) odd &= isnan(out[r * ld]) && isnan(out[r * ld + s - 1]);
        CHECK(odd);
        void *all_of_them[] = {q, out, room, keys, v, more_keys, more_v};
        for (int i = 0; i < 7; i++) free_room(all_of_them[i]);
    }
}

/* One row's folded questions, with keys and values beside what it looks at and without; the sums may take the questions' place. */
static void test_folded(const edr_engine_kernels *k)
{
    uint64_t state = 8;
    for (int round = 0; round < 200; round++) {
        const int64_t heads = 1 + random_below(&state, 13), s = 1 + random_below(&state, 40), n = 32 * (1 + random_below(&state, 4)), width = heads * s;
        const int64_t own = round % 2 ? 1 + random_below(&state, 9) : 0, t = (own > 0 ? 0 : 1) + random_below(&state, 40), ld = n + random_below(&state, 3) * 32;
        float *questions = make_room((size_t)((heads - 1) * ld + n) * 4), *x = make_room((size_t)(t * n) * 4), *q = make_room((size_t)width * 4);
        float *keys = make_room((size_t)(own * width) * 4), *v = make_room((size_t)(own * width) * 4), *extra = make_room((size_t)heads * 4);
        float *mixed = round % 4 < 2 ? questions : make_room((size_t)(heads * n) * 4), *out = make_room((size_t)width * 4), *weight = make_room((size_t)heads * 4);
        float *room = make_room((size_t)EDR_FOLDED_ROOM(t + own) * 4);
        const int64_t ldm = mixed == questions ? ld : n;
        for (int64_t h = 0; h < heads; h++) {
            for (int64_t i = 0; i < n; i++) questions[h * ld + i] = uniform(&state, 0.5f);
            extra[h] = uniform(&state, 1);
        }
        for (int64_t i = 0; i < t * n; i++) x[i] = uniform(&state, 1);
        for (int64_t i = 0; i < width; i++) q[i] = uniform(&state, 1);
        for (int64_t i = 0; i < own * width; i++) keys[i] = uniform(&state, 1), v[i] = uniform(&state, 1);
        const edr_keys beside = {keys, v, width, own};
        const edr_folded a = {questions, mixed, ld, ldm, own > 0 ? q : NULL, own > 0 ? extra : NULL, own > 0 ? out : NULL, own > 0 ? weight : NULL};
        double p[13][48], off = 0;
        for (int64_t h = 0; h < heads; h++) {
            double sum = 0;
            for (int64_t j = 0; j < t + own; j++) {
                double score = j < t && own > 0 ? extra[h] : 0;
                for (int64_t i = 0; i < n && j < t; i++) score += (double)questions[h * ld + i] * x[j * n + i];
                for (int64_t i = 0; i < s && j >= t; i++) score += (double)q[h * s + i] * keys[(j - t) * width + h * s + i];
                sum += p[h][j] = exp(score);
            }
            for (int64_t j = 0; j < t + own; j++) p[h][j] /= sum;
        }
        k->attend_folded(&a, heads, s, own > 0 ? &beside : NULL, x, t, n, room);
        for (int64_t h = 0; h < heads; h++) {
            double seen = 0;
            for (int64_t j = 0; j < t; j++) seen += p[h][j];
            for (int64_t i = 0; i < n; i++) {
                double y = 0;
                for (int64_t j = 0; j < t; j++) y += p[h][j] * x[j * n + i];
                off = fmax(off, fabs(mixed[h * ldm + i] - y));
            }
            for (int64_t i = 0; i < s && own > 0; i++) {
                double y = 0;
                for (int64_t j = 0; j < own; j++) y += p[h][t + j] * v[j * width + h * s + i];
                off = fmax(off, fabs(out[h * s + i] - y));
            }
            if (own > 0) off = fmax(off, fabs(weight[h] - seen));
        }
        CHECK(off < 2e-5);
        if (t > 0) {
            for (int64_t h = 0; h < heads; h++) {
                for (int64_t i = 0; i < n; i++) questions[h * ld + i] = uniform(&state, 0.5f);
            }
            x[random_below(&state, t) * n + random_below(&state, n)] = round % 3 ? NAN : INFINITY;
            k->attend_folded(&a, heads, s, own > 0 ? &beside : NULL, x, t, n, room);
            int odd = 1;
            for (int64_t h = 0; h < heads; h++) odd &= isnan(mixed[h * ldm]) && isnan(mixed[h * ldm + n - 1]);
            CHECK(odd);
        }
        void *all_of_them[] = {questions, x, q, keys, v, extra, out, weight, room};
        for (int i = 0; i < 9; i++) free_room(all_of_them[i]);
        if (mixed != questions) free_room(mixed);
    }
}

/* Exactly what float32 arithmetic gives, ties to even; a row of zeros; a number that is not finite spoils the scale. */
static void test_rounding_of_states(const edr_engine_kernels *k)
{
    uint64_t state = 7;
    for (int round = 0; round < 100; round++) {
        const int64_t n = 32 * (1 + random_below(&state, 5));
        float *x = make_room((size_t)n * 4), scale, top = 0;
        int8_t *out = make_room((size_t)n);
        for (int64_t i = 0; i < n; i++) {
            x[i] = round == 0 ? 0.0f : round % 2 ? uniform(&state, 3) : 0.25f * (float)(random_below(&state, 509) - 254);
            top = fmaxf(top, fabsf(x[i]));
        }
        if (round % 2 == 0 && round > 0) x[random_below(&state, n)] = top = 63.5f; /* a step of a half: every other number is a tie */
        k->round_s8(x, n, out, &scale);
        int exact = scale == fmaxf(top, 1e-20f) / 127.0f;
        for (int64_t i = 0; i < n; i++) exact &= out[i] == (int8_t)rintf(x[i] / scale);
        CHECK(exact);
        x[random_below(&state, n)] = round % 3 == 0 ? NAN : round % 3 == 1 ? INFINITY : -INFINITY;
        k->round_s8(x, n, out, &scale);
        CHECK(isnan(scale));
        free_room(x);
        free_room(out);
    }
}

int main(void)
{
    for (int isa = 0; isa < EDR_ISA_COUNT; isa++) {
        if (!edr_isa_supported(isa)) continue;
        const edr_engine_kernels *k = edr_engine_kernels_for(isa);
        const long failed = check_failed;
        for (guarded = 0; guarded < 2; guarded++) {
            test_functions(k, strstr(edr_isa_name(isa), "avx512") != NULL || isa == EDR_ISA_AMX);
            test_rows(k);
            test_companies(k);
            test_rounding(k);
            test_attention(k);
            test_folded(k);
            test_rounding_of_states(k);
        }
        if (check_failed != failed) fprintf(stderr, "  with %s\n", edr_isa_name(isa));
    }
    return check_report();
}
