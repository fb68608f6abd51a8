/*
 * kernels_attention.h: attention of one sequence and one head, in the words of vector.h. Private; the second half of kernels_float.h, which
 * includes it once per instruction set.
 */

/* p[r][j ..] = q[r] . keys[.. j ..] for a strip of whole vectors of keys; keys is transposed, [s, tp]. */
TARGET static ALWAYS_INLINE void FN(scores)(const float *q, int64_t ldq, const float *keys, int64_t tp, int64_t s, float *p, const int rows,
                                            const int vectors)
{
    VF sum[EDR_ATTENTION_ROWS][2], key[2];
    UNROLL for (int r = 0; r < rows; r++) {
        UNROLL for (int c = 0; c < vectors; c++) sum[r][c] = SET1(0.0f);
    }
    for (int64_t i = 0; i < s; i++) {
        UNROLL for (int c = 0; c < vectors; c++) key[c] = LOAD(keys + i * tp + c * VW);
        UNROLL for (int r = 0; r < rows; r++) {
            const VF one = SPREAD(q + r * ldq + i);
            UNROLL for (int c = 0; c < vectors; c++) sum[r][c] = FMA(one, key[c], sum[r][c]);
        }
    }
    UNROLL for (int r = 0; r < rows; r++) {
        UNROLL for (int c = 0; c < vectors; c++) STORE(p + r * tp + c * VW, sum[r][c]);
    }
}

#if VW == 16
/* The same for one and a half vectors: of 17 to 24 keys the last half is not worth the time of a whole one. */
TARGET static ALWAYS_INLINE void FN(scores_of_24)(const float *q, int64_t ldq, const float *keys, int64_t tp, int64_t s, float *p, const int rows)
{
    __m512 sum[EDR_ATTENTION_ROWS];
    __m256 half[EDR_ATTENTION_ROWS];
    UNROLL for (int r = 0; r < rows; r++) {
        sum[r] = SET1(0.0f);
        half[r] = _mm256_setzero_ps();
    }
    for (int64_t i = 0; i < s; i++) {
        const __m512 key = LOAD(keys + i * tp);
        const __m256 rest = _mm256_loadu_ps(keys + i * tp + 16);
        UNROLL for (int r = 0; r < rows; r++) {
            const __m512 one = SPREAD(q + r * ldq + i);
            sum[r] = FMA(one, key, sum[r]);
            half[r] = _mm256_fmadd_ps(_mm512_castps512_ps256(one), rest, half[r]);
        }
    }
    UNROLL for (int r = 0; r < rows; r++) {
        STORE(p + r * tp, sum[r]);
        _mm256_storeu_ps(p + r * tp + 16, half[r]);
    }
}
#endif

/*
 * p becomes e^(p - its maximum) over the t keys; returns the reciprocal of the sum. exp clamps, so 0 times the score is added:
 * a score that is not finite makes the sum NaN. p has room for whole vectors.
 */
TARGET static inline float FN(softmax)(float *p, int64_t t)
{
    const int64_t whole = t / VW * VW, left = t - whole;
    VF most = SET1(p[0]), sum = SET1(0.0f);
    for (int64_t i = 0; i < whole; i += VW) most = MAX(most, LOAD(p + i));
    if (left > 0) most = MAX(most, LOADN_OR(p + whole, left, most));
    const VF bar = SET1(MOST(most)), zero = SET1(0.0f);
    for (int64_t i = 0; i < whole; i += VW) {
        const VF score = LOAD(p + i), e = FN(exp)(SUB(score, bar));
        sum = FMA(score, zero, ADD(sum, e));
        STORE(p + i, e);
    }
    if (left > 0) {
        const VF score = LOADN_OR(p + whole, left, SET1(-1e30f)), e = FN(exp)(SUB(score, bar)); /* 1.6e-38 in lanes without a key */
        sum = FMA(score, zero, ADD(sum, e));
        STORE(p + whole, e); /* whole, because a masked store makes the next load wait */
    }
    return 1.0f / SUM(sum);
}

/* sum[r] += p[r][j] v[j] over the keys j, for one or two vectors of columns, the last one of `last` lanes. */
TARGET static ALWAYS_INLINE void FN(mix_keys)(VF sum[EDR_ATTENTION_ROWS][2], const float *p, int64_t tp, const float *v, int64_t ldk, int64_t t,
                                              int64_t last, const int rows, const int vectors)
{
    VF value[2];
    for (int64_t j = 0; j < t; j++) {
        UNROLL for (int c = 0; c < vectors; c++) value[c] = LOADN(v + j * ldk + c * VW, c == vectors - 1 ? last : VW);
        UNROLL for (int r = 0; r < rows; r++) {
            const VF one = SPREAD(p + r * tp + j);
            UNROLL for (int c = 0; c < vectors; c++) sum[r][c] = FMA(one, value[c], sum[r][c]);
        }
    }
}

/* out[r] = scale[r] * sum over all keys, for columns i on. */
TARGET static ALWAYS_INLINE void FN(mix)(const float *p, int64_t tp, const float *scale, const edr_keys *keys, const edr_keys *more, int64_t i,
                                         float *out, int64_t ldo, int64_t last, const int rows, const int vectors)
{
    VF sum[EDR_ATTENTION_ROWS][2];
    UNROLL for (int r = 0; r < rows; r++) {
        UNROLL for (int c = 0; c < vectors; c++) sum[r][c] = SET1(0.0f);
    }
    FN(mix_keys)(sum, p, tp, keys->v + i, keys->ld, keys->t, last, rows, vectors);
    if (more != NULL) FN(mix_keys)(sum, p + keys->t, tp, more->v + i, more->ld, more->t, last, rows, vectors);
    UNROLL for (int r = 0; r < rows; r++) {
        UNROLL for (int c = 0; c < vectors; c++) {
            STOREN(out + r * ldo + i + c * VW, c == vectors - 1 ? last : VW, MUL(SET1(scale[r]), sum[r][c]));
        }
    }
}

/* From the scores p of `rows` query rows over t keys to their answers. */
TARGET static ALWAYS_INLINE void FN(answer)(float *p, int64_t tp, int64_t t, const edr_keys *keys, const edr_keys *more, int64_t s, float *out,
                                            int64_t ldo, const int rows)
{
    float scale[EDR_ATTENTION_ROWS];
    int64_t i = 0;
    for (int r = 0; r < rows; r++) scale[r] = FN(softmax)(p + r * tp, t);
    for (; i + VW < s; i += 2 * VW) FN(mix)(p, tp, scale, keys, more, i, out, ldo, s - i < 2 * VW ? s - i - VW : VW, rows, 2);
    if (i < s) FN(mix)(p, tp, scale, keys, more, i, out, ldo, s - i, rows, 1);
}

TARGET static ALWAYS_INLINE void FN(attend_rows)(const float *q, int64_t ldq, const float *turned, int64_t tp, int64_t t, const edr_keys *keys,
                                                 const edr_keys *more, int64_t s, float *out, int64_t ldo, float *p, const int rows)
{
    int64_t j = 0;
#if VW == 16
    if (t > 16 && t <= 24) {
        FN(scores_of_24)(q, ldq, turned, tp, s, p, rows);
        j = tp;
    }
#endif
    for (; j + 2 * VW <= tp; j += 2 * VW) FN(scores)(q, ldq, turned + j, tp, s, p + j, rows, 2);
    for (; j < tp; j += VW) FN(scores)(q, ldq, turned + j, tp, s, p + j, rows, 1);
    FN(answer)(p, tp, t, keys, more, s, out, ldo, rows);
}

/* Keys [t, s] on their side: columns `to` on of [s, tp]. */
TARGET static ALWAYS_INLINE void FN(turn_keys)(const edr_keys *from, int64_t s, float *to, int64_t tp)
{
    const float *k = from->k;
    const int64_t t = from->t, ldk = from->ld, parts = s / TURN * TURN;
    for (int64_t j = 0; j < t && t < TURN; j++) {
        for (int64_t i = 0; i < s; i++) to[i * tp + j] = k[j * ldk + i];
    }
    for (int64_t begin = 0; begin < t && t >= TURN; begin += TURN) {
        const int64_t j = begin + TURN <= t ? begin : t - TURN; /* keys that do not fill a block are turned with some of the last one's */
        for (int64_t i = 0; i < parts; i += TURN) TURN_BLOCK(k + j * ldk + i, ldk, to + i * tp + j, tp);
        for (int64_t i = parts; i < s; i++) {
            for (int64_t one = j; one < j + TURN; one++) to[i * tp + one] = k[one * ldk + i];
        }
    }
}

/* The lanes behind t keys on their side, [s, tp], become 0, and before that some of the keys' own: call it before turn_keys. */
TARGET static ALWAYS_INLINE void FN(clear_behind)(int64_t t, int64_t tp, int64_t s, float *turned)
{
    for (int64_t i = 0; i < s; i++) {
        for (int64_t j = t / VW * VW; j < EDR_ROUND16(t); j += VW) STORE(turned + i * tp + j, SET1(0.0f));
    }
}

/* Rows in groups as tall as the registers hold. The last group takes some rows again if it must: that costs less than rows alone. */
TARGET static ALWAYS_INLINE void FN(attend_list)(const edr_asking *a, const float *turned, int64_t tp, int64_t t, const edr_keys *keys,
                                                 const edr_keys *more, int64_t s, float *out, int64_t ldo, float *p)
{
    for (int64_t r = 0, rows; r < a->rows; r += rows) {
        const int64_t left = a->rows - r;
        if (VW == 16 && a->rows >= 8 && (left > 10 || left == 8 || left == 7)) {
            rows = 8;
        } else if (VW == 16 && a->rows >= 6 && left > 4 && left != 7) {
            rows = 6;
        } else {
            rows = a->rows >= 4 ? 4 : 1;
        }
        if (rows > left) r = a->rows - rows;
        const float *q = a->q + r * a->ld;
        float *to = out + r * ldo;
        if (VW == 16 && rows == 8) {
            FN(attend_rows)(q, a->ld, turned, tp, t, keys, more, s, to, ldo, p, 8);
        } else if (VW == 16 && rows == 6) {
            FN(attend_rows)(q, a->ld, turned, tp, t, keys, more, s, to, ldo, p, 6);
        } else if (rows == 4) {
            FN(attend_rows)(q, a->ld, turned, tp, t, keys, more, s, to, ldo, p, 4);
        } else {
            FN(attend_rows)(q, a->ld, turned, tp, t, keys, more, s, to, ldo, p, 1);
        }
    }
}

TARGET static NEVER_INLINE void FN(attend)(const edr_asking *first, const edr_asking *second, const edr_keys *keys, const edr_keys *more, int64_t s,
                                           float *out, int64_t ldo, float *room)
{
    const int64_t own = keys->t, t = own + (more != NULL ? more->t : 0), tp = EDR_ROUND16(t);
    float *p = room + s * tp;
    if (first->rows == 1 && second == NULL) { /* turning the keys would cost more than the scores */
        for (int64_t j = 0; j < own; j++) p[j] = FN(dot)(first->q, keys->k + j * keys->ld, s);
        for (int64_t j = own; j < t; j++) p[j] = FN(dot)(first->q, more->k + (j - own) * more->ld, s);
        FN(answer)(p, tp, t, keys, more, s, out, ldo, 1);
        return;
    }
    /* On their side a vector holds one component of many keys; the lanes past t are 0 and never read back. */
    FN(clear_behind)(t, tp, s, room);
    FN(turn_keys)(keys, s, room, tp);
    if (more != NULL) FN(turn_keys)(more, s, room + own, tp);
    for (const edr_asking *a = first; a != NULL; a = a == first ? second : NULL) {
        FN(attend_list)(a, room, tp, t, keys, more, s, out, ldo, p);
        out += a->rows * ldo;
    }
}

/* p[r][j ..] = folded[r] . x[j ..] for a few rows of x [.. , n] and heads r. */
TARGET static ALWAYS_INLINE void FN(folded_scores)(const float *folded, int64_t ldf, const float *x, int64_t n, float *p, int64_t tp, const int heads,
                                                   const int rows)
{
    VF sum[2][4], row[4];
    UNROLL for (int r = 0; r < heads; r++) {
        UNROLL for (int j = 0; j < rows; j++) sum[r][j] = SET1(0.0f);
    }
    for (int64_t i = 0; i < n; i += VW) {
        UNROLL for (int j = 0; j < rows; j++) row[j] = LOAD(x + j * n + i);
        UNROLL for (int r = 0; r < heads; r++) {
            const VF question = LOAD(folded + r * ldf + i);
            UNROLL for (int j = 0; j < rows; j++) sum[r][j] = FMA(question, row[j], sum[r][j]);
        }
    }
    UNROLL for (int r = 0; r < heads; r++) {
        if (rows == 4) {
            SUM4(sum[r][0], sum[r][1], sum[r][2], sum[r][3], p + r * tp);
        } else {
            p[r * tp] = SUM(sum[r][0]);
        }
    }
}

/* The same for all t rows, four at a time; the last four may take some again. */
TARGET static ALWAYS_INLINE void FN(all_folded_scores)(const float *folded, int64_t ldf, const float *x, int64_t n, int64_t t, float *p, int64_t tp,
                                                       const int heads)
{
    for (int64_t j = 0; j < t && t < 4; j++) FN(folded_scores)(folded, ldf, x + j * n, n, p + j, tp, heads, 1);
    for (int64_t begin = 0; begin < t && t >= 4; begin += 4) {
        const int64_t j = begin + 4 <= t ? begin : t - 4;
        FN(folded_scores)(folded, ldf, x + j * n, n, p + j, tp, heads, 4);
    }
}

/* attend_folded for 4, 2 or 1 of the heads; p has a row of tp scores for each. */
TARGET static ALWAYS_INLINE void FN(folded_heads)(const edr_folded *a, int64_t h, int64_t s, const edr_keys *keys, const float *x, int64_t t, int64_t n,
                                                  float *p, int64_t tp, const int heads)
{
    const edr_keys states = {x, x, n, t};
    const int64_t all = t + (keys != NULL ? keys->t : 0);
    const float *folded = a->questions + h * a->ld;
    float scale[4];
    FN(all_folded_scores)(folded, a->ld, x, n, t, p, tp, heads > 1 ? 2 : 1);
    if (heads == 4) FN(all_folded_scores)(folded + 2 * a->ld, a->ld, x, n, t, p + 2 * tp, tp, 2);
    for (int r = 0; r < heads; r++) {
        float *row = p + r * tp, sum = 0.0f;
        if (keys == NULL) {
            scale[r] = FN(softmax)(row, t);
            continue;
        }
        const int64_t own = (h + r) * s;
        for (int64_t j = 0; j < t; j++) row[j] += a->extra[h + r];
        for (int64_t j = t; j < all; j++) row[j] = FN(dot)(a->q + own, keys->k + (j - t) * keys->ld + own, s);
        scale[r] = FN(softmax)(row, all);
        for (int64_t j = 0; j < t; j++) sum += row[j];
        a->weight[h + r] = scale[r] * sum;
        const edr_keys rest = {keys->k + own, keys->v + own, keys->ld, keys->t};
        int64_t i = 0;
        for (; i + VW < s; i += 2 * VW) FN(mix)(row + t, tp, scale + r, &rest, NULL, i, a->out + own, 0, s - i < 2 * VW ? s - i - VW : VW, 1, 2);
        if (i < s) FN(mix)(row + t, tp, scale + r, &rest, NULL, i, a->out + own, 0, s - i, 1, 1);
    }
    for (int64_t i = 0; i < n; i += 2 * VW) FN(mix)(p, tp, scale, &states, NULL, i, a->mixed + h * a->ldm, a->ldm, VW, heads, 2);
}

TARGET static NEVER_INLINE void FN(attend_folded)(const edr_folded *a, int64_t heads, int64_t s, const edr_keys *keys, const float *x, int64_t t,
                                                  int64_t n, float *room)
{
    const int64_t tp = EDR_ROUND16(t + (keys != NULL ? keys->t : 0));
    int64_t h = 0;
    for (; h + 4 <= heads; h += 4) FN(folded_heads)(a, h, s, keys, x, t, n, room, tp, 4);
    if (h + 2 <= heads) {
        FN(folded_heads)(a, h, s, keys, x, t, n, room, tp, 2);
        h += 2;
    }
    if (h < heads) FN(folded_heads)(a, h, s, keys, x, t, n, room, tp, 1);
}
