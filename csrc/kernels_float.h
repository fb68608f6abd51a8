/*
 * kernels_float.h: the float32 loops of the encoder, written once in the words of vector.h. Private; included by
 * engine_kernels.c once per instruction set.
 *
 * Every row is computed by the same sequence of operations whatever rows are beside it, so that a logit does not depend
 * on how candidates are batched.
 */

/* ------------------------------------------------------------------------------------------- exp, GELU, tanh: by lanes */

/*
 * e^x, relative error below 3e-7 for x in -87 .. 88; below and above it gives e^-87 and e^88.
 * x = n ln 2 + r with |r| <= ln 2 / 2; 2^n goes into the exponent, e^r is a polynomial (Chebyshev fit, error 1.8e-8).
 * ln 2 is split in two, so that n ln 2 is exact enough (Cody and Waite, Software Manual for the Elementary Functions, 1980).
 */
TARGET static inline VF FN(exp)(VF x)
{
    const VF round = SET1(12582912.0f); /* 1.5 * 2^23: adding it leaves no bits for a fraction */
    x = MIN(MAX(x, SET1(-87.0f)), SET1(88.0f));
    const VF n = SUB(FMA(x, SET1(1.44269504f), round), round);
    VF r = FMA(n, SET1(-0.693359375f), x);
    r = FMA(n, SET1(2.12194440e-4f), r);
    VF p = SET1(0.00138294091f);
    p = FMA(p, r, SET1(0.00837477949f));
    p = FMA(p, r, SET1(0.0416683592f));
    p = FMA(p, r, SET1(0.166664213f));
    p = FMA(p, r, SET1(0.499999911f));
    p = FMA(p, r, SET1(1.0f));
    p = FMA(p, r, SET1(1.0f));
    return MUL(p, POW2(n));
}

/*
 * The exact GELU, x Phi(x), absolute error below 2e-6 for |x| <= 5.25, and below 4e-7 |x| beyond.
 * Phi(x) - 1/2 is x P(x^2): an odd function. P is a polynomial in u = x^2 scaled to -1 .. 1 (fitted to the error of
 * the product, weighted Chebyshev, degree 12); beyond 5.25 Phi is 1 to within 8e-8. No division, no table, no e^x.
 */
TARGET static inline VF FN(gelu)(VF x)
{
    static const float c[12] = {0.00099260686f, -0.00283770729f, 0.00307121035f, -0.00358853606f, 0.00791878533f, -0.0136783645f,
                                0.0188265108f,  -0.0248346683f,  0.0319678299f,  -0.0397830717f,  0.0496505313f,  -0.0671263114f};
    const VF near = MIN(MAX(x, SET1(-5.25f)), SET1(5.25f));
    const VF u = FMA(MUL(near, near), SET1(2.0f / (5.25f * 5.25f)), SET1(-1.0f));
    VF p = SET1(c[0]);
    for (int i = 1; i < 12; i++) p = FMA(p, u, SET1(c[i]));
    p = FMA(p, u, SET1(0.13465929f));
    return MUL(x, FMA(near, p, SET1(0.5f)));
}

/*
 * The same, coarser, for the int8 products: the number becomes one of 256 next, mostly of steps of 1e-2. Within 4.2e-5 for |x| <= 4, and
 * within 4.5e-5 |x| beyond: a fit of degree 7, and Phi counts as 1 from 4 on. Where a vector instruction looks things up (PICK), within
 * 1.6e-5 everywhere: max(x, 0) less |x| Phi(-|x|), which is a parabola in each of 32 pieces of 0 .. 4.5 and nothing to speak of
 * beyond. That takes five instructions of the units that multiply instead of twelve, and these are what the products wait for.
 */
#ifdef PICK
TARGET static ALWAYS_INLINE VF FN(gelu_coarse)(VF x)
{
    const VF round = SET1(12582912.0f); /* as in exp: what is added to it is rounded, and lies in its lowest bits */
    const VF along = MIN(MUL(ABS(x), SET1(31.0f / 4.5f)), SET1(31.0f)), moved = ADD(along, round), d = SUB(along, SUB(moved, round));
    const VF less = FMA(FMA(PICK(gelu_pieces[2], moved), d, PICK(gelu_pieces[1], moved)), d, PICK(gelu_pieces[0], moved));
    return SUB(MAX(SET1(0.0f), x), less); /* of 0 and a NaN, in this order, the NaN */
}
#else
TARGET static inline VF FN(gelu_coarse)(VF x)
{
    static const float c[8] = {-0.00272898169f, 0.00821126579f, -0.01326002f, 0.0216217261f, -0.0364953653f, 0.0560508064f, -0.0843574709f, 0.175947751f};
    const VF near = MIN(MAX(x, SET1(-4.0f)), SET1(4.0f));
    const VF u = FMA(MUL(near, near), SET1(0.125f), SET1(-1.0f));
    VF p = SET1(c[0]);
    for (int i = 1; i < 8; i++) p = FMA(p, u, SET1(c[i]));
    return MUL(x, FMA(near, p, SET1(0.5f)));
}
#endif

/*
 * x (1 + tanh u) / 2 with u = sqrt(2 / pi) (x + 0.044715 x^3), which is x / (1 + e^-2u): error below 4e-7 times 1 + |x|, up to 87.
 * Source: Hendrycks and Gimpel, Gaussian Error Linear Units, arXiv 1606.08415.
 */
TARGET static inline VF FN(gelu_tanh)(VF x)
{
    const VF inner = MUL(x, FMA(MUL(x, x), SET1(-0.07135481283f), SET1(-1.595769122f)));
    return DIV(x, ADD(SET1(1.0f), FN(exp)(inner)));
}

TARGET static void FN(gelu_tanh_row)(float *x, int64_t n)
{
    for (int64_t i = 0; i < n; i += VW) {
        const int64_t left = n - i < VW ? n - i : VW;
        STOREN(x + i, left, FN(gelu_tanh)(LOADN(x + i, left)));
    }
}

TARGET static void FN(gelu_coarse_row)(float *x, int64_t n)
{
    for (int64_t i = 0; i < n; i += VW) {
        const int64_t left = n - i < VW ? n - i : VW;
        STOREN(x + i, left, FN(gelu_coarse)(LOADN(x + i, left)));
    }
}

TARGET static void FN(gelu_row)(float *x, int64_t n)
{
    for (int64_t i = 0; i < n; i += VW) {
        const int64_t left = n - i < VW ? n - i : VW;
        STOREN(x + i, left, FN(gelu)(LOADN(x + i, left)));
    }
}

TARGET static void FN(exp_row)(float *x, int64_t n)
{
    for (int64_t i = 0; i < n; i += VW) {
        const int64_t left = n - i < VW ? n - i : VW;
        STOREN(x + i, left, FN(exp)(LOADN(x + i, left)));
    }
}

/* tanh x = 1 - 2 / (e^2x + 1), absolute error below 3e-7. MUL with 0 at the end carries a NaN through exp's clamp. */
TARGET static void FN(tanh_row)(float *x, int64_t n)
{
    for (int64_t i = 0; i < n; i += VW) {
        const int64_t left = n - i < VW ? n - i : VW;
        const VF v = LOADN(x + i, left);
        const VF e = FN(exp)(ADD(v, v));
        const VF t = SUB(SET1(1.0f), DIV(SET1(2.0f), ADD(e, SET1(1.0f))));
        STOREN(x + i, left, ADD(t, MUL(v, SET1(0.0f))));
    }
}

/* --------------------------------------------------------------------------------------------------------- by rows */

TARGET static void FN(add_scaled)(const float *x, float w, int64_t n, float *y)
{
    const VF by = SET1(w);
    for (int64_t i = 0; i < n; i += VW) {
        const int64_t left = n - i < VW ? n - i : VW;
        STOREN(y + i, left, FMA(by, LOADN(x + i, left), LOADN(y + i, left)));
    }
}

TARGET static float FN(dot)(const float *x, const float *y, int64_t n)
{
    VF sum = SET1(0.0f);
    for (int64_t i = 0; i < n; i += VW) {
        const int64_t left = n - i < VW ? n - i : VW;
        sum = FMA(LOADN(x + i, left), LOADN(y + i, left), sum);
    }
    return SUM(sum);
}

TARGET static void FN(embed)(const void *word, int bytes, float scale, const float *position, const float *type, int64_t n, float *out)
{
    const VF by = SET1(scale);
    for (int64_t i = 0; i < n; i += VW) {
        const VF row = bytes == 1   ? MUL(by, LOAD_S8((const int8_t *)word + i))
                       : bytes == 2 ? LOAD_BF16((const uint16_t *)word + i)
                                    : LOAD((const float *)word + i);
        STORE(out + i, ADD(ADD(row, LOAD(position + i)), LOAD(type + i)));
    }
}

TARGET static void FN(round_bf16)(const float *x, int64_t n, uint16_t *out)
{
    for (int64_t i = 0; i < n; i += VW) STORE_BF16(out + i, LOAD(x + i));
}

/*
 * Two rows are done side by side where there are two: each waits for its own sums across a vector, and the processor for neither.
 *
 * Two passes for the moments: the variance of x - mean loses nothing to cancellation, and the row is in L1 anyway.
 */
TARGET static ALWAYS_INLINE void FN(normalise_rows)(float *x, int64_t n, const float *weight, const int rows)
{
    const float *shift = weight + n;
    VF sum[2][2], mean[2], by[2];
    UNROLL for (int r = 0; r < rows; r++) sum[r][0] = sum[r][1] = SET1(0.0f);
    for (int64_t i = 0; i < n; i += 2 * VW) {
        UNROLL for (int r = 0; r < rows; r++) {
            sum[r][0] = ADD(sum[r][0], LOAD(x + r * n + i));
            sum[r][1] = ADD(sum[r][1], LOAD(x + r * n + i + VW));
        }
    }
    UNROLL for (int r = 0; r < rows; r++) {
        mean[r] = SET1(SUM(ADD(sum[r][0], sum[r][1])) / (float)n);
        sum[r][0] = sum[r][1] = SET1(0.0f);
    }
    for (int64_t i = 0; i < n; i += 2 * VW) {
        UNROLL for (int r = 0; r < rows; r++) {
            const VF a = SUB(LOAD(x + r * n + i), mean[r]), b = SUB(LOAD(x + r * n + i + VW), mean[r]);
            sum[r][0] = FMA(a, a, sum[r][0]);
            sum[r][1] = FMA(b, b, sum[r][1]);
        }
    }
    UNROLL for (int r = 0; r < rows; r++) by[r] = SET1(1.0f / sqrtf(SUM(ADD(sum[r][0], sum[r][1])) / (float)n + 1e-12f));
    for (int64_t i = 0; i < n; i += VW) {
        const VF w = LOAD(weight + i), b = LOAD(shift + i);
        UNROLL for (int r = 0; r < rows; r++) STORE(x + r * n + i, FMA(MUL(SUB(LOAD(x + r * n + i), mean[r]), by[r]), w, b));
    }
}

TARGET static void FN(normalise)(float *x, int64_t rows, int64_t n, const float *weight)
{
    int64_t r = 0;
    /* Two rows of 128 fit the registers of AVX-512: knowing n, the compiler loads each number once. */
    for (; VW == 16 && n == 128 && r + 2 <= rows; r += 2) FN(normalise_rows)(x + r * 128, 128, weight, 2);
    for (; r + 2 <= rows; r += 2) FN(normalise_rows)(x + r * n, n, weight, 2);
    if (r < rows) FN(normalise_rows)(x + r * n, n, weight, 1);
}

TARGET static ALWAYS_INLINE void FN(quantise_rows)(const float *x, int64_t n, uint8_t *u, float *scale, float *least, const int rows)
{
    const VF zero = SET1(0.0f);
    VF low[2][2], high[2][2], odd[2][2], by[2], from[2];
    UNROLL for (int r = 0; r < rows; r++) {
        UNROLL for (int c = 0; c < 2; c++) {
            low[r][c] = high[r][c] = LOAD(x + r * n + c * VW);
            odd[r][c] = MUL(low[r][c], zero);
        }
    }
    for (int64_t i = 2 * VW; i < n; i += 2 * VW) {
        UNROLL for (int r = 0; r < rows; r++) {
            UNROLL for (int c = 0; c < 2; c++) {
                const VF a = LOAD(x + r * n + i + c * VW);
                odd[r][c] = FMA(a, zero, odd[r][c]);
                low[r][c] = MIN(low[r][c], a);
                high[r][c] = MAX(high[r][c], a);
            }
        }
    }
    UNROLL for (int r = 0; r < rows; r++) {
        const float bottom = LEAST(MIN(low[r][0], low[r][1])), range = MOST(MAX(high[r][0], high[r][1])) - bottom;
        /* A row of equal values has range 0: every u is 0 and x = least, exactly. */
        by[r] = SET1(range > 0.0f ? 255.0f / range : 0.0f);
        from[r] = SET1(bottom);
        /* MIN and MAX drop a NaN; 0 times the row is 0, or NaN when a number is not finite, and then so is what comes of the row. */
        scale[r] = range * (1.0f / 255.0f) + SUM(ADD(odd[r][0], odd[r][1]));
        least[r] = bottom;
    }
    for (int64_t i = 0; i < n; i += VW) {
        UNROLL for (int r = 0; r < rows; r++) STORE_U8(u + r * n + i, MUL(SUB(LOAD(x + r * n + i), from[r]), by[r]));
    }
}

#ifdef BITS
/*
 * The same at half the cost for rows of both signs: of floats, the largest is the largest of their bits as signed integers, and the least, the
 * largest as unsigned ones; what is not finite would be either. With least < 0 < most, x * by - least * by loses nothing against
 * (x - least) * by. Returns 0 when it is not for one of the rows.
 */
TARGET static ALWAYS_INLINE int FN(quantise_signed)(const float *x, int64_t n, uint8_t *u, float *scale, float *least, const int rows)
{
    VI high[2][2], low[2][2];
    VF by[2], from[2];
    UNROLL for (int r = 0; r < rows; r++) {
        UNROLL for (int c = 0; c < 2; c++) high[r][c] = low[r][c] = BITS(x + r * n + c * VW);
    }
    for (int64_t i = 2 * VW; i < n; i += 2 * VW) {
        UNROLL for (int r = 0; r < rows; r++) {
            UNROLL for (int c = 0; c < 2; c++) {
                const VI bits = BITS(x + r * n + i + c * VW);
                high[r][c] = MAX_S(high[r][c], bits);
                low[r][c] = MAX_U(low[r][c], bits);
            }
        }
    }
    UNROLL for (int r = 0; r < rows; r++) {
        const int32_t top = MOST_S(MAX_S(high[r][0], high[r][1])), bottom = MOST_U(MAX_U(low[r][0], low[r][1]));
        float most, lowest;
        memcpy(&most, &top, 4);
        memcpy(&lowest, &bottom, 4);
        const float range = most - lowest;
        if (!(lowest < 0.0f && most > 0.0f && range > 1e-30f && range < INFINITY)) return 0;
        scale[r] = range * (1.0f / 255.0f);
        least[r] = lowest;
        by[r] = SET1(255.0f / range);
        from[r] = MUL(SET1(-lowest), by[r]);
    }
    for (int64_t i = 0; i < n; i += VW) {
        UNROLL for (int r = 0; r < rows; r++) STORE_U8(u + r * n + i, FMA(LOAD(x + r * n + i), by[r], from[r]));
    }
    return 1;
}
#endif

TARGET static void FN(quantise)(const float *x, int64_t rows, int64_t n, uint8_t *u, float *scale, float *least)
{
    for (int64_t r = 0, count; r < rows; r += count, x += count * n, u += count * n) {
        count = rows - r >= 2 ? 2 : 1;
#ifdef BITS
        /* A row takes the way that it would take alone. */
        if (count == 2 && FN(quantise_signed)(x, n, u, scale + r, least + r, 2)) continue;
        count = 1;
        if (FN(quantise_signed)(x, n, u, scale + r, least + r, 1)) continue;
#endif
        if (count == 2) {
            FN(quantise_rows)(x, n, u, scale + r, least + r, 2);
        } else {
            FN(quantise_rows)(x, n, u, scale + r, least + r, 1);
        }
    }
}

/* Adding 1.5 * 2^23 and taking it away leaves the nearest integer; 128 more is exact, and fits a byte without sign. */
TARGET static void FN(round_s8)(const float *x, int64_t n, int8_t *out, float *scale)
{
    const VF zero = SET1(0.0f), round = SET1(12582912.0f), half = SET1(128.0f);
    VF most = zero, odd = zero;
    for (int64_t i = 0; i < n; i += VW) {
        const VF v = LOAD(x + i);
        odd = FMA(v, zero, odd);
        most = MAX(most, MAX(v, SUB(zero, v)));
    }
    const float top = MOST(most), by = (top > 1e-20f ? top : 1e-20f) / 127.0f;
    const VF down = SET1(by);
    uint8_t *u = (uint8_t *)out;
    for (int64_t i = 0; i < n; i += VW) STORE_U8(u + i, ADD(SUB(ADD(DIV(LOAD(x + i), down), round), round), half));
    for (int64_t i = 0; i < n; i++) u[i] ^= 0x80;
    *scale = by + SUM(odd);
}

#include "kernels_attention.h"
