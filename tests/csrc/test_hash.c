/* cc -std=c11 -g -fsanitize=address,undefined -Icsrc tests/csrc/test_hash.c csrc/hash.c -o test_hash
 * Run as: test_hash tests/csrc/xxh64_vectors.txt */
#include <inttypes.h>
#include <math.h>

#include "check.h"

/* The author's pseudo-random test input; the vectors' file describes it. */
static uint8_t *published_input(size_t size)
{
    uint8_t *data = exact_room(size);
    uint64_t g = UINT64_C(2654435761);
    for (size_t i = 0; i < size; i++) {
        data[i] = (uint8_t)(g >> 56);
        g *= UINT64_C(11400714785074694797);
    }
    return data;
}

static void test_published_vectors(const char *path)
{
    FILE *file = fopen(path, "r");
    char line[256];
    int vectors = 0;
    if (file == NULL) {
        fprintf(stderr, "cannot read %s\n", path);
        exit(2);
    }
    while (fgets(line, sizeof line, file) != NULL) {
        size_t size;
        uint64_t seed, expected;
        if (line[0] == '#') continue;
        if (sscanf(line, "%zu %" SCNu64 " %" SCNx64, &size, &seed, &expected) != 3) {
            fprintf(stderr, "bad line in %s: %s", path, line);
            exit(2);
        }
        uint8_t *data = published_input(size);
        CHECK(edr_hash64(data, size, seed) == expected);
        free(data);
        vectors++;
    }
    fclose(file);
    CHECK(vectors == 9);
}

/* The specification, read byte by byte, with no regard for speed: each step is a paragraph there. */
static uint64_t slow_read(const uint8_t *p, int bytes)
{
    uint64_t x = 0;
    for (int i = 0; i < bytes; i++) x += (uint64_t)p[i] << (8 * i);
    return x;
}

static uint64_t slow_turn(uint64_t x, int bits)
{
    for (int i = 0; i < bits; i++) x = (x << 1) | (x >> 63);
    return x;
}

static uint64_t slow_hash(const uint8_t *p, size_t size, uint64_t seed)
{
    const uint64_t prime1 = UINT64_C(11400714785074694791), prime2 = UINT64_C(14029467366897019727), prime3 = UINT64_C(1609587929392839161);
    const uint64_t prime4 = UINT64_C(9650029242287828579), prime5 = UINT64_C(2870177450012600261);
    uint64_t acc = seed + prime5;
    size_t left = size;
    if (size >= 32) {
        uint64_t v[4] = {seed + prime1 + prime2, seed + prime2, seed, seed - prime1};
        for (; left >= 32; left -= 32, p += 32) {
            for (int i = 0; i < 4; i++) v[i] = slow_turn(v[i] + slow_read(p + 8 * i, 8) * prime2, 31) * prime1;
        }
        acc = slow_turn(v[0], 1) + slow_turn(v[1], 7) + slow_turn(v[2], 12) + slow_turn(v[3], 18);
        for (int i = 0; i < 4; i++) acc = (acc ^ (slow_turn(v[i] * prime2, 31) * prime1)) * prime1 + prime4;
    }
    acc += size;
    for (; left >= 8; left -= 8, p += 8) acc = slow_turn(acc ^ (slow_turn(slow_read(p, 8) * prime2, 31) * prime1), 27) * prime1 + prime4;
    for (; left >= 4; left -= 4, p += 4) acc = slow_turn(acc ^ (slow_read(p, 4) * prime1), 23) * prime2 + prime3;
    for (; left >= 1; left -= 1, p += 1) acc = slow_turn(acc ^ (slow_read(p, 1) * prime5), 11) * prime1;
    acc = (acc ^ (acc >> 33)) * prime2;
    acc = (acc ^ (acc >> 29)) * prime3;
    return acc ^ (acc >> 32);
}

static void test_every_length_and_alignment(void)
{
    uint64_t state = 1;
    for (size_t size = 0; size <= 260; size++) {
        for (size_t shift = 0; shift < 8; shift += 3) {
            uint8_t *data = exact_room(size + shift);
            for (size_t i = 0; i < size + shift; i++) data[i] = (uint8_t)random_u64(&state);
            const uint64_t seed = random_u64(&state);
            CHECK(edr_hash64(data + shift, size, seed) == slow_hash(data + shift, size, seed));
            free(data);
        }
    }
    CHECK(edr_hash64(NULL, 0, 7) == slow_hash((const uint8_t *)"", 0, 7));
}

static void test_pair_is_concatenation(void)
{
    uint64_t state = 2;
    for (size_t first = 0; first <= 150; first += 1 + first / 20) {
        for (size_t second = 0; second <= 150; second += 1 + second / 20) {
            uint8_t *all = published_input(first + second);
            uint8_t *a = exact_copy(all, first), *b = exact_copy(all + first, second);
            const uint64_t seed = random_u64(&state);
            CHECK(edr_hash64_pair(a, first, b, second, seed) == slow_hash(all, first + second, seed));
            free(all);
            free(a);
            free(b);
        }
    }
}

static void test_u64_is_eight_bytes_little_endian(void)
{
    uint64_t state = 3;
    for (int i = 0; i < 100; i++) {
        const uint64_t x = random_u64(&state), seed = random_u64(&state);
        uint8_t bytes[8];
        for (int j = 0; j < 8; j++) bytes[j] = (uint8_t)(x >> (8 * j));
        CHECK(edr_hash64_u64(x, seed) == slow_hash(bytes, 8, seed));
    }
}

static void test_packed_is_one_by_one(void)
{
    uint64_t state = 4;
    for (int round = 0; round < 60; round++) {
        const int64_t m = random_below(&state, 1500), longest = round % 2 != 0 ? 40 : 300;
        int64_t *offsets = exact_room((size_t)(m + 1) * sizeof *offsets);
        offsets[0] = random_below(&state, 5);
        for (int64_t i = 0; i < m; i++) offsets[i + 1] = offsets[i] + random_below(&state, longest);
        const int64_t size = offsets[m] + random_below(&state, 5);
        uint8_t *data = published_input((size_t)size);
        uint64_t *out = exact_room((size_t)m * sizeof *out);
        CHECK(edr_hash_packed(data, size, offsets, m, 9, out, NULL) == EDR_OK);
        int same = 1;
        for (int64_t i = 0; i < m; i++) same &= out[i] == slow_hash(data + offsets[i], (size_t)(offsets[i + 1] - offsets[i]), 9);
        CHECK(same);
        free(offsets);
        free(data);
        free(out);
    }
}

static void test_packed_refuses_bad_offsets(void)
{
    const uint8_t data[4] = {1, 2, 3, 4};
    const int64_t bad[][3] = {{0, 3, 2}, {-1, 0, 4}, {0, 2, 5}, {0, INT64_MAX, 4}, {INT64_MIN, 0, 4}, {5, 5, 5}, {0, 2, INT64_MAX}};
    uint64_t *out = exact_room(2 * sizeof *out);
    for (size_t i = 0; i < sizeof bad / sizeof bad[0]; i++) {
        int64_t at = -1;
        CHECK(edr_hash_packed(data, 4, bad[i], 2, 0, out, &at) == EDR_E_OFFSETS);
        CHECK(at == 0 || at == 1);
        CHECK(untouched(out, 2 * sizeof *out));
    }
    const int64_t good[3] = {0, 0, 4};
    CHECK(edr_hash_packed(NULL, 4, good, 2, 0, out, NULL) == EDR_E_NULL);
    CHECK(edr_hash_packed(data, 4, NULL, 2, 0, out, NULL) == EDR_E_NULL);
    CHECK(edr_hash_packed(data, 4, good, 2, 0, NULL, NULL) == EDR_E_NULL);
    CHECK(edr_hash_packed(data, -1, good, 2, 0, out, NULL) == EDR_E_SIZE);
    CHECK(edr_hash_packed(data, 4, good, -1, 0, out, NULL) == EDR_E_SIZE);
    CHECK(edr_hash_packed(NULL, 0, NULL, 0, 0, NULL, NULL) == EDR_OK);
    CHECK(untouched(out, 2 * sizeof *out));
    free(out);
}

static void test_project(void)
{
    const uint64_t h[4] = {0, UINT64_MAX, UINT64_C(0x8000000000000000), UINT64_C(0x80000000FFFFFFFF)};
    int32_t ids[4];
    float signs[4];
    CHECK(edr_project(h, 4, 10, ids, signs) == EDR_OK);
    CHECK(ids[0] == 0 && ids[1] == 9 && ids[2] == 5 && ids[3] == 5);
    CHECK(signs[0] == -1.0f && signs[1] == 1.0f && signs[2] == -1.0f && signs[3] == 1.0f);
    CHECK(edr_project(h, 4, 1, ids, signs) == EDR_OK && ids[1] == 0);
    CHECK(edr_project(h, 4, INT32_MAX, ids, signs) == EDR_OK && ids[1] == INT32_MAX - 1);
    CHECK(edr_project(h, 4, 0, ids, signs) == EDR_E_VALUE);
    CHECK(edr_project(h, 4, INT64_C(1) << 31, ids, signs) == EDR_E_VALUE);
    CHECK(edr_project(h, -1, 10, ids, signs) == EDR_E_SIZE);
    CHECK(edr_project(NULL, 4, 10, ids, signs) == EDR_E_NULL);
    CHECK(edr_project(NULL, 0, 10, NULL, NULL) == EDR_OK);
    /* Fair: 64,000 hashes over 100 buckets; 640 are expected in each, 5.6 standard deviations are allowed. */
    int64_t count[100] = {0}, worst = 0;
    for (uint64_t i = 0; i < 64000; i++) {
        const uint64_t x = edr_hash64_u64(i, 0);
        if (edr_project(&x, 1, 100, ids, signs) == EDR_OK) count[ids[0]]++;
    }
    for (int i = 0; i < 100; i++) worst = llabs(count[i] - 640) > worst ? llabs(count[i] - 640) : worst;
    CHECK(worst < 142);
}

/* Slow: for each hash in ascending order, add the weights of its occurrences as they come. */
static int64_t slow_unique(const uint64_t *h, const float *w, int64_t n, uint64_t *to_h, float *to_w)
{
    int64_t kept = 0;
    for (;;) {
        int found = 0;
        uint64_t least = 0;
        for (int64_t i = 0; i < n; i++) {
            if ((kept == 0 || h[i] > to_h[kept - 1]) && (!found || h[i] < least)) {
                found = 1;
                least = h[i];
            }
        }
        if (!found) return kept;
        to_h[kept] = least;
        int first = 1;
        for (int64_t i = 0; i < n; i++) {
            if (h[i] != least) continue;
            to_w[kept] = first ? w[i] : to_w[kept] + w[i];
            first = 0;
        }
        kept++;
    }
}

static void test_sort_unique(void)
{
    uint64_t state = 5;
    for (int round = 0; round < 150; round++) {
        const int64_t n = random_below(&state, round < 100 ? 60 : 700), distinct = 1 + random_below(&state, 400);
        uint64_t *h = exact_room((size_t)n * 8), *room_h = exact_room((size_t)n * 8), *expected_h = exact_room((size_t)n * 8);
        float *w = exact_room((size_t)n * 4), *room_w = exact_room((size_t)n * 4), *expected_w = exact_room((size_t)n * 4);
        for (int64_t i = 0; i < n; i++) {
            h[i] = edr_hash64_u64((uint64_t)random_below(&state, distinct), 1);
            w[i] = (float)random_below(&state, 1000) / 7.0f - 60.0f;
        }
        uint64_t *plain = exact_copy(h, (size_t)n * 8);
        const int64_t expected = slow_unique(h, w, n, expected_h, expected_w);
        int64_t got = -1, got_plain = -1;
        CHECK(edr_sort_unique(h, w, n, room_h, room_w, &got, NULL) == EDR_OK);
        CHECK(got == expected);
        CHECK(memcmp(h, expected_h, (size_t)expected * 8) == 0);
        CHECK(memcmp(w, expected_w, (size_t)expected * 4) == 0);
        CHECK(edr_sort_unique(plain, NULL, n, room_h, NULL, &got_plain, NULL) == EDR_OK);
        CHECK(got_plain == expected && memcmp(plain, expected_h, (size_t)expected * 8) == 0);
        free(h);
        free(room_h);
        free(expected_h);
        free(w);
        free(room_w);
        free(expected_w);
        free(plain);
    }
    uint64_t h[3] = {3, 2, 1}, room_h[3];
    float w[3] = {1.0f, NAN, 1.0f}, room_w[3];
    int64_t got = 77, at = -1;
    CHECK(edr_sort_unique(h, w, 3, room_h, room_w, &got, &at) == EDR_E_VALUE);
    CHECK(at == 1 && got == 77 && h[0] == 3);
    w[1] = INFINITY;
    CHECK(edr_sort_unique(h, w, 3, room_h, room_w, &got, NULL) == EDR_E_VALUE);
    CHECK(edr_sort_unique(h, w, -1, room_h, room_w, &got, NULL) == EDR_E_SIZE);
    CHECK(edr_sort_unique(h, w, 3, room_h, NULL, &got, NULL) == EDR_E_NULL);
    CHECK(edr_sort_unique(NULL, NULL, 3, room_h, NULL, &got, NULL) == EDR_E_NULL);
    CHECK(edr_sort_unique(h, NULL, 3, room_h, NULL, NULL, NULL) == EDR_E_NULL);
    CHECK(edr_sort_unique(NULL, NULL, 0, NULL, NULL, &got, NULL) == EDR_OK && got == 0);
}

/* docs/formats.md, word by word: padded in full, then cut. */
static int64_t slow_trigrams(const uint8_t *text, int64_t size, const char *prefix, uint64_t seed, uint64_t *out)
{
    int64_t n = 0;
    for (int64_t begin = 0, end; begin < size; begin = end + 1) {
        for (end = begin; end < size && text[end] != ' ';) end++;
        if (end == begin) continue;
        uint8_t padded[128];
        int64_t points[128], count = 0, bytes = 0;
        padded[bytes++] = '^';
        memcpy(padded + bytes, text + begin, (size_t)(end - begin));
        bytes += end - begin;
        padded[bytes++] = '$';
        for (int64_t i = 0; i < bytes; i++) {
            if ((padded[i] & 0xC0) != 0x80) points[count++] = i;
        }
        points[count] = bytes;
        for (int64_t k = 0; k + 3 <= count; k++) {
            uint8_t all[64];
            const size_t head = strlen(prefix), length = (size_t)(points[k + 3] - points[k]);
            memcpy(all, prefix, head);
            memcpy(all + head, padded + points[k], length);
            out[n++] = slow_hash(all, head + length, seed);
        }
    }
    return n;
}

static void test_trigrams(void)
{
    static const char *const points[] = {"a", "b", "z", "\xC3\xA9", "\xE2\x82\xAC", "\xF0\x9F\x98\x80", " ", "^", "$"};
    uint64_t state = 6, expected[128];
    for (int round = 0; round < 500; round++) {
        uint8_t bytes[128];
        int64_t size = 0;
        for (int64_t k = random_below(&state, 24); k > 0; k--) {
            const char *point = points[random_below(&state, 9)];
            memcpy(bytes + size, point, strlen(point));
            size += (int64_t)strlen(point);
        }
        uint8_t *text = exact_copy(bytes, (size_t)size);
        uint64_t *out = exact_room((size_t)size * 8);
        const char *prefix = round % 3 != 0 ? "3=" : "";
        const uint64_t seed = random_u64(&state);
        const int64_t wanted = slow_trigrams(text, size, prefix, seed, expected);
        int64_t n = -1;
        CHECK(edr_hash_trigrams(text, size, prefix, strlen(prefix), seed, out, &n, NULL) == EDR_OK);
        CHECK(n == wanted && memcmp(out, expected, (size_t)n * 8) == 0);
        free(text);
        free(out);
    }
    const uint8_t long_point[6] = {'a', 0xF0, 0x80, 0x80, 0x80, 0x80};
    uint64_t out[6] = {7};
    int64_t n = 77, at = -1;
    CHECK(edr_hash_trigrams(long_point, 6, NULL, 0, 1, out, &n, &at) == EDR_E_VALUE);
    CHECK(at == 1 && n == 77 && out[0] == 7);
    CHECK(edr_hash_trigrams(long_point, 5, NULL, 0, 1, out, &n, NULL) == EDR_OK && n == 2);
    CHECK(edr_hash_trigrams(NULL, 0, NULL, 0, 1, NULL, &n, NULL) == EDR_OK && n == 0);
    CHECK(edr_hash_trigrams(long_point, -1, NULL, 0, 1, out, &n, NULL) == EDR_E_SIZE);
    CHECK(edr_hash_trigrams(NULL, 1, NULL, 0, 1, out, &n, NULL) == EDR_E_NULL);
    CHECK(edr_hash_trigrams(long_point, 1, NULL, 0, 1, NULL, &n, NULL) == EDR_E_NULL);
    CHECK(edr_hash_trigrams(long_point, 1, NULL, 0, 1, out, NULL, NULL) == EDR_E_NULL);
    CHECK(edr_hash_trigrams(long_point, 1, NULL, 1, 1, out, &n, NULL) == EDR_E_NULL);
}

static void test_sort_unique_rows(void)
{
    uint64_t state = 7;
    for (int round = 0; round < 100; round++) {
        const int64_t rows = random_below(&state, 12);
        int64_t *counts = exact_room((size_t)rows * 8), n = 0, expected = 0, got = -1;
        for (int64_t r = 0; r < rows; r++) n += counts[r] = random_below(&state, round < 90 ? 6 : 90);
        uint64_t *h = exact_room((size_t)n * 8), *room = exact_room((size_t)n * 8);
        for (int64_t i = 0; i < n; i++) h[i] = edr_hash64_u64((uint64_t)random_below(&state, 20), 1);
        uint64_t *by_one = exact_copy(h, (size_t)n * 8);
        int64_t *before = exact_copy(counts, (size_t)rows * 8);
        CHECK(edr_sort_unique_rows(h, n, counts, rows, room, &got, NULL) == EDR_OK);
        int same = 1;
        for (int64_t r = 0, begin = 0; r < rows; begin += before[r++]) {
            int64_t left = 0;
            CHECK(edr_sort_unique(by_one + begin, NULL, before[r], room, NULL, &left, NULL) == EDR_OK);
            same &= counts[r] == left && memcmp(h + expected, by_one + begin, (size_t)left * 8) == 0;
            expected += left;
        }
        CHECK(same && got == expected);
        free(counts);
        free(h);
        free(room);
        free(by_one);
        free(before);
    }
    uint64_t h[3] = {3, 2, 1}, room[3];
    const int64_t wrong[4][2] = {{2, 2}, {1, 1}, {-1, 4}, {INT64_MAX, INT64_MAX}};
    const int64_t where[4] = {1, 2, 0, 0};
    for (int k = 0; k < 4; k++) {
        int64_t counts[2] = {wrong[k][0], wrong[k][1]}, got = 77, at = -1;
        CHECK(edr_sort_unique_rows(h, 3, counts, 2, room, &got, &at) == EDR_E_OFFSETS);
        CHECK(at == where[k] && got == 77 && h[0] == 3 && counts[0] == wrong[k][0]);
    }
    int64_t counts[1] = {3}, got = 77;
    CHECK(edr_sort_unique_rows(h, -1, counts, 1, room, &got, NULL) == EDR_E_SIZE);
    CHECK(edr_sort_unique_rows(h, 3, counts, -1, room, &got, NULL) == EDR_E_SIZE);
    CHECK(edr_sort_unique_rows(NULL, 3, counts, 1, room, &got, NULL) == EDR_E_NULL);
    CHECK(edr_sort_unique_rows(h, 3, NULL, 1, room, &got, NULL) == EDR_E_NULL);
    CHECK(edr_sort_unique_rows(h, 3, counts, 1, NULL, &got, NULL) == EDR_E_NULL);
    CHECK(edr_sort_unique_rows(h, 3, counts, 1, room, NULL, NULL) == EDR_E_NULL);
    CHECK(edr_sort_unique_rows(NULL, 0, NULL, 0, NULL, &got, NULL) == EDR_OK && got == 0);
}

int main(int argc, char **argv)
{
    test_published_vectors(argc > 1 ? argv[1] : "tests/csrc/xxh64_vectors.txt");
    test_every_length_and_alignment();
    test_pair_is_concatenation();
    test_u64_is_eight_bytes_little_endian();
    test_packed_is_one_by_one();
    test_packed_refuses_bad_offsets();
    test_project();
    test_sort_unique();
    test_trigrams();
    test_sort_unique_rows();
    return check_report();
}
