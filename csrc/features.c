/*
 * features.c: hashed feature rows. docs/formats.md is the specification.
 *
 * A row costs about as many steps as its item has hashes: the side that all rows share (the query's) is entered once
 * in a small bit filter per template, and an item's hash is looked up in the query's set only when its bit is there.
 */
#include <math.h>

#include "internal.h"

#define FILTER_BITS 1024
#define AHEAD 4 /* rows */

/* A set of hashes with weights (NULL: all 1). */
typedef struct span {
    const uint64_t *h;
    const float *w;
    int64_t n;
} span;

/* One bit per hash, by its low bits; never says no to a member. */
typedef struct filter {
    uint64_t bits[FILTER_BITS / 64];
} filter;

static inline int filter_has(const filter *f, uint64_t h)
{
    return (int)(f->bits[(h / 64) % (FILTER_BITS / 64)] >> (h % 64)) & 1;
}

static inline void filter_add(filter *f, uint64_t h)
{
    f->bits[(h / 64) % (FILTER_BITS / 64)] |= UINT64_C(1) << (h % 64);
}

static inline float weight_at(const span *s, int64_t i)
{
    return s->w != NULL ? s->w[i] : 1.0f;
}

static double weight_sum(const span *s)
{
    if (s->w == NULL) return (double)s->n;
    double sum = 0.0;
    for (int64_t i = 0; i < s->n; i++) sum += (double)s->w[i];
    return sum;
}

/* The set of a field for one row; rows were checked before. */
static inline span field_span(const edr_field *f, int64_t row)
{
    span s = {f->hashes, f->weights, f->size};
    if (f->offsets != NULL) {
        const int64_t place = row * (1 + f->gap), begin = f->offsets[place];
        s.n = f->offsets[place + 1] - begin;
        if (s.n > 0) { /* an empty set may have no arrays to point into */
            s.h += begin;
            if (s.w != NULL) s.w += begin;
        }
    }
    return s;
}

/* Start loading a row's sets: items lie anywhere in a catalogue, and waiting for memory was most of the time. The offsets are in the cache
 * already, since check_fields has read them. */
static inline void fetch_row(const edr_field *fields, int64_t count, int64_t row)
{
#if defined(__GNUC__)
    for (int64_t f = 0; f < count; f++) {
        if (fields[f].offsets != NULL && fields[f].size > 0) __builtin_prefetch(fields[f].hashes + fields[f].offsets[row * (1 + fields[f].gap)]);
    }
#else
    (void)fields, (void)count, (void)row;
#endif
}

/* The first position >= from in h[0 .. n) whose hash is not below x. */
static inline int64_t lower_bound(const uint64_t *h, int64_t from, int64_t n, uint64_t x)
{
    int64_t size = n - from;
    while (size > 0) {
        const int64_t half = size / 2;
        const int below = h[from + half] < x;
        from = below ? from + half + 1 : from;
        size = below ? size - half - 1 : half;
    }
    return from;
}

/* ---- the row being written ---- */

typedef struct row_writer {
    int32_t *ids;
    float *weights;
    int64_t used, slots;
    uint64_t buckets;
    filter seen; /* of ids: most are new, and then no search is needed */
} row_writer;

static inline void row_emit(row_writer *row, uint64_t h, float weight)
{
    const uint64_t id = ((h >> 32) * row->buckets) >> 32;
    const float signed_weight = (h & 1) != 0 ? weight : -weight;
    if (filter_has(&row->seen, id)) {
        for (int64_t i = 0; i < row->used; i++) {
            if (row->ids[i] == (int32_t)id) {
                row->weights[i] += signed_weight;
                return;
            }
        }
    }
    if (row->used < row->slots) {
        row->ids[row->used] = (int32_t)id;
        row->weights[row->used++] = signed_weight;
        filter_add(&row->seen, id);
    }
}

/* ---- walking the common elements, in ascending order ---- */

typedef enum walk_kind { WALK_MERGE, WALK_LEFT_FILTER, WALK_RIGHT_FILTER } walk_kind;

/* What a template knows before the first row. */
typedef struct prepared {
    filter shared; /* of the shared side, when walk is not WALK_MERGE */
    double left_sum;
    walk_kind walk;
} prepared;

typedef struct walk {
    span left, right;
    int64_t i, j;
} walk;

/* The position in left of the next common element, or -1. */
static inline int64_t walk_next(walk *w, const prepared *p)
{
    switch (p->walk) {
    case WALK_LEFT_FILTER:
        while (w->j < w->right.n) {
            const uint64_t h = w->right.h[w->j++];
            if (!filter_has(&p->shared, h)) continue;
            w->i = lower_bound(w->left.h, w->i, w->left.n, h);
            if (w->i < w->left.n && w->left.h[w->i] == h) return w->i++;
        }
        return -1;
    case WALK_RIGHT_FILTER:
        while (w->i < w->left.n) {
            const uint64_t h = w->left.h[w->i++];
            if (!filter_has(&p->shared, h)) continue;
            w->j = lower_bound(w->right.h, w->j, w->right.n, h);
            if (w->j < w->right.n && w->right.h[w->j] == h) return w->i - 1;
        }
        return -1;
    case WALK_MERGE:
    default:
        while (w->i < w->left.n && w->j < w->right.n) {
            const uint64_t a = w->left.h[w->i], b = w->right.h[w->j];
            w->i += a <= b;
            w->j += b <= a;
            if (a == b) return w->i - 1;
        }
        return -1;
    }
}

static void prepare(const edr_template *t, const edr_field *fields, prepared *p)
{
    memset(p, 0, sizeof *p);
    p->walk = WALK_MERGE;
    if (t->op == EDR_OP_EMIT || t->op == EDR_OP_CROSS) return;
    const edr_field *shared = NULL;
    if (fields[t->left].offsets == NULL) {
        const span left = field_span(&fields[t->left], 0);
        p->left_sum = weight_sum(&left);
        p->walk = WALK_LEFT_FILTER;
        shared = &fields[t->left];
    } else if (fields[t->right].offsets == NULL) {
        p->walk = WALK_RIGHT_FILTER;
        shared = &fields[t->right];
    }
    for (int64_t i = 0; shared != NULL && i < shared->size; i++) filter_add(&p->shared, shared->hashes[i]);
}

/* ---- the five operations ---- */

static void op_emit(row_writer *row, const span *left, uint64_t seed)
{
    for (int64_t i = 0; i < left->n; i++) row_emit(row, edr_hash64_u64(left->h[i], seed), weight_at(left, i));
}

static void op_common(row_writer *row, walk *w, const prepared *p, uint64_t seed)
{
    for (int64_t i = walk_next(w, p); i >= 0; i = walk_next(w, p)) {
        row_emit(row, edr_hash64_u64(w->left.h[i], seed), weight_at(&w->left, i));
    }
}

static void op_left_only(row_writer *row, walk *w, const prepared *p, uint64_t seed)
{
    int64_t next = 0;
    for (;;) {
        const int64_t common = walk_next(w, p);
        const int64_t end = common >= 0 ? common : w->left.n;
        for (; next < end; next++) row_emit(row, edr_hash64_u64(w->left.h[next], seed), weight_at(&w->left, next));
        if (common < 0) return;
        next = common + 1;
    }
}

static void op_match(row_writer *row, walk *w, const prepared *p, uint64_t seed)
{
    const double total = p->walk == WALK_LEFT_FILTER ? p->left_sum : weight_sum(&w->left);
    if (!(total > 0.0)) return;
    double matched = 0.0;
    for (int64_t i = walk_next(w, p); i >= 0; i = walk_next(w, p)) matched += (double)weight_at(&w->left, i);
    const double c = matched / total;
    if (!isfinite(c)) return;
    /* Weights of any sign can make c large; the clamp keeps the conversion defined. */
    const double step = floor(4.0 * c);
    const int64_t bucket = step > 1e15 ? INT64_C(1000000000000000) : step < -1e15 ? -INT64_C(1000000000000000) : (int64_t)step;
    row_emit(row, seed, (float)c);
    row_emit(row, edr_hash64_u64((uint64_t)bucket, seed), 1.0f);
}

static uint64_t hash_two(uint64_t a, uint64_t b, uint64_t seed)
{
    uint8_t bytes[16];
    for (int i = 0; i < 8; i++) {
        bytes[i] = (uint8_t)(a >> (8 * i));
        bytes[8 + i] = (uint8_t)(b >> (8 * i));
    }
    return edr_hash64(bytes, sizeof bytes, seed);
}

static void op_cross(row_writer *row, const span *left, const span *right, uint64_t seed)
{
    for (int64_t i = 0; i < left->n; i++) {
        for (int64_t j = 0; j < right->n; j++) {
            const float product = weight_at(left, i) * weight_at(right, j);
            row_emit(row, hash_two(left->h[i], right->h[j], seed), product);
        }
    }
}

static void apply(row_writer *row, const edr_template *t, const prepared *p, const edr_field *fields, int64_t r)
{
    const span left = field_span(&fields[t->left], r);
    if (t->op == EDR_OP_EMIT) {
        op_emit(row, &left, t->seed);
        return;
    }
    walk w = {left, field_span(&fields[t->right], r), 0, 0};
    switch (t->op) {
    case EDR_OP_COMMON: op_common(row, &w, p, t->seed); break;
    case EDR_OP_LEFT_ONLY: op_left_only(row, &w, p, t->seed); break;
    case EDR_OP_MATCH: op_match(row, &w, p, t->seed); break;
    default: op_cross(row, &w.left, &w.right, t->seed); break;
    }
}

/* ---- entry points ---- */

edr_status edr_templates_check(const edr_template *templates, int64_t m, int64_t fields, int64_t *at)
{
    if (m < 0 || m > EDR_MAX_TEMPLATES) return EDR_E_SIZE;
    if (m > 0 && templates == NULL) return EDR_E_NULL;
    for (int64_t i = 0; i < m; i++) {
        const edr_template *t = &templates[i];
        if (t->op < EDR_OP_EMIT || t->op > EDR_OP_CROSS) return edr_fail(EDR_E_VALUE, at, i);
        if (t->left < 0 || t->left >= fields) return edr_fail(EDR_E_ROW, at, i);
        if (t->op != EDR_OP_EMIT && (t->right < 0 || t->right >= fields)) return edr_fail(EDR_E_ROW, at, i);
    }
    return EDR_OK;
}

static edr_status check_fields(const edr_field *fields, int64_t field_count, const int64_t *rows, int64_t n, int64_t *at)
{
    for (int64_t f = 0; f < field_count; f++) {
        const edr_field *field = &fields[f];
        if (field->size < 0) return edr_fail(EDR_E_SIZE, at, f);
        if (field->size > 0 && field->hashes == NULL) return edr_fail(EDR_E_NULL, at, f);
        if (field->offsets == NULL) continue;
        if (field->table < 0 || field->gap < 0 || field->gap > INT32_MAX || field->table > INT64_MAX / (1 + field->gap)) {
            return edr_fail(EDR_E_SIZE, at, f);
        }
        for (int64_t i = 0; i < n; i++) {
            if (rows[i] < 0 || rows[i] >= field->table) return edr_fail(EDR_E_ROW, at, i);
            if (!edr_span_ok(field->offsets, rows[i] * (1 + field->gap), field->size)) return edr_fail(EDR_E_OFFSETS, at, i);
        }
    }
    return EDR_OK;
}

edr_status edr_encode_rows(const edr_template *templates, int64_t m, const edr_field *fields, int64_t field_count, const int64_t *rows, int64_t n,
                           int64_t buckets, int64_t slots, int32_t *ids, float *weights, int64_t *at)
{
    if (n < 0 || field_count < 0) return EDR_E_SIZE;
    if (buckets < 1 || buckets > INT32_MAX || slots < 0 || slots > INT32_MAX) return EDR_E_VALUE;
    edr_status status = edr_templates_check(templates, m, field_count, at);
    if (status != EDR_OK) return status;
    if ((field_count > 0 && fields == NULL) || (n > 0 && rows == NULL)) return EDR_E_NULL;
    if (n > 0 && slots > 0 && (ids == NULL || weights == NULL)) return EDR_E_NULL;
    status = check_fields(fields, field_count, rows, n, at);
    if (status != EDR_OK) return status;

    prepared ready[EDR_MAX_TEMPLATES];
    for (int64_t t = 0; t < m; t++) prepare(&templates[t], fields, &ready[t]);
    if (slots == 0) return EDR_OK;
    for (int64_t i = 0; i < n; i++) {
        if (i + AHEAD < n) fetch_row(fields, field_count, rows[i + AHEAD]);
        row_writer row = {ids + i * slots, weights + i * slots, 0, slots, (uint64_t)buckets, {{0}}};
        for (int64_t t = 0; t < m; t++) apply(&row, &templates[t], &ready[t], fields, rows[i]);
        for (int64_t s = row.used; s < slots; s++) {
            row.ids[s] = 0;
            row.weights[s] = 0.0f;
        }
    }
    return EDR_OK;
}
