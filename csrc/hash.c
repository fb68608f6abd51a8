/*
 * hash.c: XXH64, written from its specification (doc/xxhash_spec.md 0.2.0 of github.com/Cyan4973/xxHash), and what
 * turns hashes into feature ids and sets.
 */
#include "internal.h"

#define P1 UINT64_C(0x9E3779B185EBCA87)
#define P2 UINT64_C(0xC2B2AE3D27D4EB4F)
#define P3 UINT64_C(0x165667B19E3779F9)
#define P4 UINT64_C(0x85EBCA77C2B2AE63)
#define P5 UINT64_C(0x27D4EB2F165667C5)

static inline uint64_t rotl(uint64_t x, int r)
{
    return (x << r) | (x >> (64 - r));
}

/* memcpy is the portable unaligned load; compilers turn it into one instruction. */
static inline uint64_t load64(const uint8_t *p)
{
    uint64_t x;
    memcpy(&x, p, 8);
#if defined(__BYTE_ORDER__) && __BYTE_ORDER__ == __ORDER_BIG_ENDIAN__
    x = __builtin_bswap64(x);
#endif
    return x;
}

static inline uint32_t load32(const uint8_t *p)
{
    uint32_t x;
    memcpy(&x, p, 4);
#if defined(__BYTE_ORDER__) && __BYTE_ORDER__ == __ORDER_BIG_ENDIAN__
    x = __builtin_bswap32(x);
#endif
    return x;
}

static inline uint64_t mix_lane(uint64_t acc, uint64_t lane)
{
    return rotl(acc + lane * P2, 31) * P1;
}

static inline uint64_t absorb_lane(uint64_t acc, uint64_t lane)
{
    return rotl(acc ^ mix_lane(0, lane), 27) * P1 + P4;
}

static inline uint64_t avalanche(uint64_t acc)
{
    acc = (acc ^ (acc >> 33)) * P2;
    acc = (acc ^ (acc >> 29)) * P3;
    return acc ^ (acc >> 32);
}

/* Step 5 and 6 of the specification: the last 0 .. 31 bytes, and the final mix. */
static inline uint64_t finish(uint64_t acc, const uint8_t *p, size_t left)
{
    for (; left >= 8; p += 8, left -= 8) acc = absorb_lane(acc, load64(p));
    if (left >= 4) {
        acc = rotl(acc ^ (load32(p) * P1), 23) * P2 + P3;
        p += 4;
        left -= 4;
    }
    for (; left > 0; p++, left--) acc = rotl(acc ^ (*p * P5), 11) * P1;
    return avalanche(acc);
}

static inline void stripes_begin(uint64_t acc[4], uint64_t seed)
{
    acc[0] = seed + P1 + P2;
    acc[1] = seed + P2;
    acc[2] = seed;
    acc[3] = seed - P1;
}

static inline void stripe(uint64_t acc[4], const uint8_t *p)
{
    for (int i = 0; i < 4; i++) acc[i] = mix_lane(acc[i], load64(p + 8 * i));
}

static inline uint64_t stripes_end(const uint64_t acc[4])
{
    uint64_t all = rotl(acc[0], 1) + rotl(acc[1], 7) + rotl(acc[2], 12) + rotl(acc[3], 18);
    for (int i = 0; i < 4; i++) all = (all ^ mix_lane(0, acc[i])) * P1 + P4;
    return all;
}

uint64_t edr_hash64(const void *data, size_t size, uint64_t seed)
{
    static const uint8_t nothing[1] = {0};
    const uint8_t *p = size != 0 ? (const uint8_t *)data : nothing; /* NULL + 0 is undefined in C */
    uint64_t acc = seed + P5;
    size_t left = size;
    if (size >= 32) {
        uint64_t lanes[4];
        stripes_begin(lanes, seed);
        for (; left >= 32; p += 32, left -= 32) stripe(lanes, p);
        acc = stripes_end(lanes);
    }
    return finish(acc + size, p, left);
}

/* Copy bytes begin .. begin + size of first + second. */
static void copy_of_pair(uint8_t *to, const uint8_t *first, size_t first_size, const uint8_t *second, size_t begin, size_t size)
{
    size_t from_first = 0;
    if (begin < first_size) {
        from_first = first_size - begin < size ? first_size - begin : size;
        memcpy(to, first + begin, from_first);
    }
    if (from_first < size) memcpy(to + from_first, second + (begin + from_first - first_size), size - from_first);
}

uint64_t edr_hash64_pair(const void *first, size_t first_size, const void *second, size_t second_size, uint64_t seed)
{
    if (first_size == 0) return edr_hash64(second, second_size, seed);
    if (second_size == 0) return edr_hash64(first, first_size, seed);
    const uint8_t *a = (const uint8_t *)first, *b = (const uint8_t *)second;
    const size_t size = first_size + second_size;
    uint8_t piece[128];
    if (size <= sizeof piece) {
        memcpy(piece, a, first_size);
        memcpy(piece + first_size, b, second_size);
        return edr_hash64(piece, size, seed);
    }
    uint64_t lanes[4];
    stripes_begin(lanes, seed);
    size_t begin = 0;
    for (; size - begin >= 32; begin += 32) {
        copy_of_pair(piece, a, first_size, b, begin, 32);
        stripe(lanes, piece);
    }
    copy_of_pair(piece, a, first_size, b, begin, size - begin);
    return finish(stripes_end(lanes) + size, piece, size - begin);
}

uint64_t edr_hash64_u64(uint64_t x, uint64_t seed)
{
    return avalanche(absorb_lane(seed + P5 + 8, x));
}

/*
 * Short strings of mixed lengths cost more in mispredicted branches than in arithmetic. So a batch is ordered by length
 * (a counting sort), and each length below 32 has its own loop, in which the compiler knows the length. Twice as fast.
 */
#define BATCH 512
#define LENGTHS 33 /* 0 .. 31, and all that have a stripe */

#define HASH_LENGTH(N)                                                                 \
    case (N):                                                                          \
        for (; i < end; i++) {                                                         \
            const int64_t s = order[i];                                                \
            out[s] = finish(seed + P5 + (N), (N) != 0 ? data + offsets[s] : data, (N)); \
        }                                                                              \
        break;
#define HASH_LENGTHS_4(N) HASH_LENGTH(N) HASH_LENGTH((N) + 1) HASH_LENGTH((N) + 2) HASH_LENGTH((N) + 3)

static void hash_batch(const uint8_t *data, const int64_t *offsets, int64_t m, uint64_t seed, uint64_t *out)
{
    uint16_t ends[LENGTHS + 1] = {0}, order[BATCH];
    uint8_t length[BATCH];
    for (int64_t s = 0; s < m; s++) {
        const int64_t size = offsets[s + 1] - offsets[s];
        length[s] = (uint8_t)(size < LENGTHS ? size : LENGTHS - 1);
        ends[length[s] + 1]++;
    }
    for (int k = 1; k <= LENGTHS; k++) ends[k] = (uint16_t)(ends[k] + ends[k - 1]);
    for (int64_t s = 0; s < m; s++) order[ends[length[s]]++] = (uint16_t)s;
    /* ends[k] is now where the strings of length k end. */
    int64_t i = 0;
    for (int k = 0; k < LENGTHS; k++) {
        const int64_t end = ends[k];
        if (i == end) continue;
        switch (k) {
            HASH_LENGTHS_4(0)
            HASH_LENGTHS_4(4)
            HASH_LENGTHS_4(8)
            HASH_LENGTHS_4(12)
            HASH_LENGTHS_4(16)
            HASH_LENGTHS_4(20)
            HASH_LENGTHS_4(24)
            HASH_LENGTHS_4(28)
        default:
            for (; i < end; i++) {
                const int64_t s = order[i];
                out[s] = edr_hash64(data + offsets[s], (size_t)(offsets[s + 1] - offsets[s]), seed);
            }
        }
    }
}

edr_status edr_hash_packed(const uint8_t *data, int64_t size, const int64_t *offsets, int64_t m, uint64_t seed, uint64_t *out, int64_t *at)
{
    if (m < 0 || size < 0) return EDR_E_SIZE;
    if (m == 0) return EDR_OK;
    if (offsets == NULL || out == NULL || (data == NULL && size != 0)) return EDR_E_NULL;
    for (int64_t i = 0; i < m; i++) {
        if (!edr_span_ok(offsets, i, size)) return edr_fail(EDR_E_OFFSETS, at, i);
    }
    for (int64_t i = 0; i < m; i += BATCH) hash_batch(data, offsets + i, m - i < BATCH ? m - i : BATCH, seed, out + i);
    return EDR_OK;
}

/* Bytes of the code point at i: it ends before the next byte that is not 10xxxxxx. */
static int64_t point_size(const uint8_t *text, int64_t size, int64_t i)
{
    int64_t end = i + 1;
    while (end < size && (text[end] & 0xC0) == 0x80) end++;
    return end - i;
}

/* The code points that were seen last, end to end. */
typedef struct window {
    uint8_t bytes[12];
    int64_t sizes[3];
} window;

static void slide(window *w, const uint8_t *point, int64_t size)
{
    const int64_t gone = w->sizes[0], kept = w->sizes[1] + w->sizes[2];
    memmove(w->bytes, w->bytes + gone, (size_t)kept);
    memcpy(w->bytes + kept, point, (size_t)size);
    w->sizes[0] = w->sizes[1];
    w->sizes[1] = w->sizes[2];
    w->sizes[2] = size;
}

edr_status edr_hash_trigrams(const uint8_t *text, int64_t size, const void *prefix, size_t prefix_size, uint64_t seed, uint64_t *out,
                             int64_t *n_out, int64_t *at)
{
    if (size < 0) return EDR_E_SIZE;
    if (n_out == NULL || (size > 0 && (text == NULL || out == NULL)) || (prefix_size > 0 && prefix == NULL)) return EDR_E_NULL;
    for (int64_t i = 0; i < size; i += point_size(text, size, i)) {
        if (point_size(text, size, i) > 4) return edr_fail(EDR_E_VALUE, at, i);
    }
    window w = {{0}, {0}};
    int64_t n = 0, points = 0; /* of the word so far */
    for (int64_t i = 0, length; i <= size; i += length) {
        length = 1;
        if (i < size && text[i] != ' ') {
            length = point_size(text, size, i);
            if (points++ == 0) slide(&w, (const uint8_t *)"^", 1);
            slide(&w, text + i, length);
            if (points == 1) continue;
        } else {
            if (points == 0) continue;
            slide(&w, (const uint8_t *)"$", 1);
            points = 0;
        }
        out[n++] = edr_hash64_pair(prefix, prefix_size, w.bytes, (size_t)(w.sizes[0] + w.sizes[1] + w.sizes[2]), seed);
    }
    *n_out = n;
    return EDR_OK;
}

edr_status edr_project(const uint64_t *hashes, int64_t n, int64_t buckets, int32_t *ids, float *signs)
{
    if (n < 0) return EDR_E_SIZE;
    if (buckets < 1 || buckets > INT32_MAX) return EDR_E_VALUE;
    if (n == 0) return EDR_OK;
    if (hashes == NULL || ids == NULL || signs == NULL) return EDR_E_NULL;
    for (int64_t i = 0; i < n; i++) {
        ids[i] = (int32_t)(((hashes[i] >> 32) * (uint64_t)buckets) >> 32);
        signs[i] = (hashes[i] & 1) != 0 ? 1.0f : -1.0f;
    }
    return EDR_OK;
}

/* Runs this long are sorted by insertion; most sets of words and trigrams are hardly longer. */
#define RUN 24

static void insertion_sort(uint64_t *h, float *w, int64_t n)
{
    for (int64_t i = 1; i < n; i++) {
        const uint64_t key = h[i];
        const float weight = w != NULL ? w[i] : 0.0f;
        int64_t j = i;
        for (; j > 0 && h[j - 1] > key; j--) {
            h[j] = h[j - 1];
            if (w != NULL) w[j] = w[j - 1];
        }
        h[j] = key;
        if (w != NULL) w[j] = weight;
    }
}

/* Stable merge of h[0 .. middle) and h[middle .. n) into to_h; stability is what fixes the order of float sums. */
static void merge(const uint64_t *h, const float *w, int64_t middle, int64_t n, uint64_t *to_h, float *to_w)
{
    int64_t i = 0, j = middle;
    for (int64_t out = 0; out < n; out++) {
        const int64_t from = (j >= n || (i < middle && h[i] <= h[j])) ? i++ : j++;
        to_h[out] = h[from];
        if (w != NULL) to_w[out] = w[from];
    }
}

static void stable_sort(uint64_t *hashes, float *weights, int64_t n, uint64_t *room_h, float *room_w)
{
    for (int64_t begin = 0; begin < n; begin += RUN) {
        insertion_sort(hashes + begin, weights != NULL ? weights + begin : NULL, n - begin < RUN ? n - begin : RUN);
    }
    uint64_t *from_h = hashes, *to_h = room_h;
    float *from_w = weights, *to_w = weights != NULL ? room_w : NULL;
    for (int64_t run = RUN; run < n; run *= 2) {
        for (int64_t begin = 0; begin < n; begin += 2 * run) {
            const int64_t size = n - begin < 2 * run ? n - begin : 2 * run;
            merge(from_h + begin, from_w != NULL ? from_w + begin : NULL, size < run ? size : run, size, to_h + begin,
                  to_w != NULL ? to_w + begin : NULL);
        }
        uint64_t *swap_h = from_h;
        from_h = to_h;
        to_h = swap_h;
        float *swap_w = from_w;
        from_w = to_w;
        to_w = swap_w;
    }
    if (from_h != hashes) {
        memcpy(hashes, from_h, (size_t)n * sizeof *hashes);
        if (weights != NULL) memcpy(weights, from_w, (size_t)n * sizeof *weights);
    }
}

edr_status edr_sort_unique(uint64_t *hashes, float *weights, int64_t n, uint64_t *room_h, float *room_w, int64_t *n_out, int64_t *at)
{
    if (n < 0) return EDR_E_SIZE;
    if (n_out == NULL) return EDR_E_NULL;
    if (n == 0) {
        *n_out = 0;
        return EDR_OK;
    }
    if (hashes == NULL || room_h == NULL || (weights != NULL && room_w == NULL)) return EDR_E_NULL;
    if (weights != NULL) {
        for (int64_t i = 0; i < n; i++) {
            if (!(weights[i] - weights[i] == 0.0f)) return edr_fail(EDR_E_VALUE, at, i); /* NaN or infinite */
        }
    }
    stable_sort(hashes, weights, n, room_h, room_w);
    int64_t kept = 0;
    for (int64_t i = 1; i < n; i++) {
        if (hashes[i] == hashes[kept]) {
            if (weights != NULL) weights[kept] += weights[i];
        } else {
            kept++;
            hashes[kept] = hashes[i];
            if (weights != NULL) weights[kept] = weights[i];
        }
    }
    *n_out = kept + 1;
    return EDR_OK;
}

edr_status edr_sort_unique_rows(uint64_t *hashes, int64_t n, int64_t *counts, int64_t rows, uint64_t *room, int64_t *n_out, int64_t *at)
{
    if (n < 0 || rows < 0) return EDR_E_SIZE;
    if (n_out == NULL || (n > 0 && (hashes == NULL || room == NULL)) || (rows > 0 && counts == NULL)) return EDR_E_NULL;
    int64_t total = 0;
    for (int64_t row = 0; row < rows; total += counts[row++]) {
        if (counts[row] < 0 || counts[row] > n - total) return edr_fail(EDR_E_OFFSETS, at, row);
    }
    if (total != n) return edr_fail(EDR_E_OFFSETS, at, rows);
    int64_t begin = 0, kept = 0;
    for (int64_t row = 0; row < rows; row++) {
        const int64_t count = counts[row];
        if (count == 0) continue;
        (void)edr_sort_unique(hashes + begin, NULL, count, room, NULL, &counts[row], NULL);
        memmove(hashes + kept, hashes + begin, (size_t)counts[row] * sizeof *hashes);
        kept += counts[row];
        begin += count;
    }
    *n_out = kept;
    return EDR_OK;
}
