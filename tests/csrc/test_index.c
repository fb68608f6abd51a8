/* cc -std=c11 -g -fsanitize=address,undefined -Icsrc tests/csrc/test_index.c csrc/index.c csrc/hash.c -o test_index */
#include "check.h"

/* n identifiers of random length and few letters, some of them equal and some empty. */
typedef struct shelf {
    uint8_t *bytes;
    int64_t *offsets;
    uint64_t *hashes, *keys;
    int32_t *slots;
    int64_t n, capacity;
} shelf;

static edr_slice name_of(const shelf *s, int64_t i)
{
    const edr_slice name = {s->bytes + s->offsets[i], s->offsets[i + 1] - s->offsets[i]};
    return name;
}

static shelf make_shelf(uint64_t *state, int64_t n, uint64_t seed)
{
    shelf s = {NULL, exact_room((size_t)(n + 1) * 8), exact_room((size_t)n * 8), NULL, NULL, n, edr_index_capacity(n)};
    s.offsets[0] = 0;
    for (int64_t i = 0; i < n; i++) s.offsets[i + 1] = s.offsets[i] + random_below(state, 9);
    s.bytes = exact_room((size_t)s.offsets[n]);
    for (int64_t i = 0; i < s.offsets[n]; i++) s.bytes[i] = (uint8_t)('a' + random_below(state, 5));
    for (int64_t i = 0; i < n; i++) s.hashes[i] = edr_hash64(name_of(&s, i).data, (size_t)name_of(&s, i).size, seed);
    s.keys = exact_room((size_t)s.capacity * 8);
    s.slots = exact_room((size_t)s.capacity * 4);
    return s;
}

static void free_shelf(shelf *s)
{
    free(s->bytes);
    free(s->offsets);
    free(s->hashes);
    free(s->keys);
    free(s->slots);
}

static edr_status find(const shelf *s, const edr_slice *names, int64_t n, uint64_t seed, int64_t *out, int64_t *at)
{
    return edr_index_find(s->keys, s->slots, s->capacity, s->bytes, s->offsets[s->n], s->offsets, s->n, names, n, seed, out, at);
}

/* Slow: the first identifier with the same bytes. */
static int64_t slow_find(const shelf *s, edr_slice name)
{
    for (int64_t i = 0; i < s->n; i++) {
        const edr_slice other = name_of(s, i);
        if (other.size == name.size && memcmp(other.data, name.data, (size_t)name.size) == 0) return i;
    }
    return -1;
}

static void test_finds_what_a_search_finds(void)
{
    uint64_t state = 1;
    for (int round = 0; round < 40; round++) {
        const uint64_t seed = random_u64(&state);
        shelf s = make_shelf(&state, random_below(&state, 300), seed);
        CHECK(edr_index_build(s.hashes, s.n, s.keys, s.slots, s.capacity) == EDR_OK);
        for (int64_t i = 0; i < s.n; i++) {
            const edr_slice name = name_of(&s, i);
            int64_t got = -2;
            CHECK(find(&s, &name, 1, seed, &got, NULL) == EDR_OK);
            CHECK(got == slow_find(&s, name));
        }
        for (int i = 0; i < 50; i++) {
            uint8_t letters[9];
            const edr_slice name = {letters, random_below(&state, 10)};
            int64_t got = -2;
            for (int j = 0; j < 9; j++) letters[j] = (uint8_t)('a' + random_below(&state, 6));
            CHECK(find(&s, &name, 1, seed, &got, NULL) == EDR_OK);
            CHECK(got == slow_find(&s, name));
        }
        free_shelf(&s);
    }
}

/* All hashes equal: only the bytes can tell. */
static void test_equal_hashes_do_no_harm(void)
{
    uint64_t state = 2;
    shelf s = make_shelf(&state, 30, 0);
    const edr_slice wanted = name_of(&s, 17);
    const uint64_t hash = edr_hash64(wanted.data, (size_t)wanted.size, 0);
    for (int64_t i = 0; i < s.n; i++) s.hashes[i] = hash;
    CHECK(edr_index_build(s.hashes, s.n, s.keys, s.slots, s.capacity) == EDR_OK);
    int64_t got = -2;
    CHECK(find(&s, &wanted, 1, 0, &got, NULL) == EDR_OK && got == slow_find(&s, wanted));
    free_shelf(&s);
}

static void test_batches(void)
{
    uint64_t state = 3;
    shelf s = make_shelf(&state, 100, 0);
    CHECK(edr_index_build(s.hashes, s.n, s.keys, s.slots, s.capacity) == EDR_OK);
    edr_slice names[EDR_MAX_NAMES];
    int64_t *out = exact_room(EDR_MAX_NAMES * 8);
    for (int i = 0; i < EDR_MAX_NAMES; i++) names[i] = name_of(&s, i);
    names[5].data = NULL; /* no such bytes, by definition */
    names[5].size = 3;
    CHECK(find(&s, names, EDR_MAX_NAMES, 0, out, NULL) == EDR_OK);
    for (int i = 0; i < EDR_MAX_NAMES; i++) CHECK(out[i] == (i == 5 ? -1 : slow_find(&s, names[i])));
    CHECK(find(&s, names, EDR_MAX_NAMES + 1, 0, out, NULL) == EDR_E_SIZE);
    CHECK(find(&s, names, 0, 0, NULL, NULL) == EDR_OK);
    free(out);
    free_shelf(&s);
}

static void test_capacity_and_build(void)
{
    CHECK(edr_index_capacity(-1) == 0);
    CHECK(edr_index_capacity(0) == 8);
    CHECK(edr_index_capacity(4) == 8);
    CHECK(edr_index_capacity(5) == 16);
    CHECK(edr_index_capacity(INT64_C(1) << 30) == INT64_C(1) << 31);
    CHECK(edr_index_capacity((INT64_C(1) << 30) + 1) == 0);
    uint64_t hashes[2] = {1, 1}, keys[8];
    int32_t slots[8];
    CHECK(edr_index_build(hashes, 2, keys, slots, 16) == EDR_E_SIZE);
    CHECK(edr_index_build(hashes, -1, keys, slots, 8) == EDR_E_SIZE);
    CHECK(edr_index_build(NULL, 2, keys, slots, 8) == EDR_E_NULL);
    CHECK(edr_index_build(hashes, 2, NULL, slots, 8) == EDR_E_NULL);
    CHECK(edr_index_build(hashes, 2, keys, slots, 8) == EDR_OK);
    CHECK(keys[1] == 1 && slots[1] == 0 && slots[2] == 1 && slots[3] == -1);
}

/* Tables as a damaged file would hold them: an answer or a status, never a stray read (AddressSanitizer watches). */
static void test_damaged_tables(void)
{
    uint64_t state = 4;
    shelf s = make_shelf(&state, 20, 0);
    CHECK(edr_index_build(s.hashes, s.n, s.keys, s.slots, s.capacity) == EDR_OK);
    int64_t which = 0; /* one that has letters and no equal before it */
    while (s.offsets[which] == s.offsets[which + 1] || slow_find(&s, name_of(&s, which)) != which) which++;
    const edr_slice name = name_of(&s, which);
    const uint64_t hash = s.hashes[which];
    int64_t *out = exact_room(8), at = -1;
    /* every slot points outside, every key fits */
    const int32_t outside[4] = {20, INT32_MAX, -2, INT32_MIN};
    for (int k = 0; k < 4; k++) {
        for (int64_t i = 0; i < s.capacity; i++) {
            s.keys[i] = hash;
            s.slots[i] = outside[k];
        }
        CHECK(find(&s, &name, 1, 0, out, &at) == EDR_E_ROW);
        CHECK(at >= 0 && at < s.capacity);
    }
    /* no empty slot and no fitting key: the probe ends */
    for (int64_t i = 0; i < s.capacity; i++) {
        s.keys[i] = hash + 1;
        s.slots[i] = 0;
    }
    CHECK(untouched(out, 8));
    CHECK(find(&s, &name, 1, 0, out, NULL) == EDR_OK && *out == -1);
    memset(out, 0x5A, 8);
    /* offsets that lie */
    const int64_t lies[3] = {-1, INT64_MAX, s.offsets[20] + 1};
    CHECK(edr_index_build(s.hashes, s.n, s.keys, s.slots, s.capacity) == EDR_OK);
    for (int k = 0; k < 3; k++) {
        const int64_t true_end = s.offsets[which + 1];
        s.offsets[which + 1] = lies[k];
        CHECK(edr_index_find(s.keys, s.slots, s.capacity, s.bytes, s.offsets[20], s.offsets, s.n, &name, 1, 0, out, &at) == EDR_E_OFFSETS);
        CHECK(at == which);
        s.offsets[which + 1] = true_end;
    }
    CHECK(edr_index_find(s.keys, s.slots, 3, s.bytes, 1, s.offsets, s.n, &name, 1, 0, out, NULL) == EDR_E_SIZE);
    CHECK(edr_index_find(s.keys, s.slots, 0, s.bytes, 1, s.offsets, s.n, &name, 1, 0, out, NULL) == EDR_E_SIZE);
    CHECK(edr_index_find(s.keys, s.slots, s.capacity, s.bytes, -1, s.offsets, s.n, &name, 1, 0, out, NULL) == EDR_E_SIZE);
    CHECK(edr_index_find(s.keys, s.slots, s.capacity, s.bytes, 1, s.offsets, -1, &name, 1, 0, out, NULL) == EDR_E_SIZE);
    CHECK(edr_index_find(s.keys, s.slots, s.capacity, NULL, 1, s.offsets, s.n, &name, 1, 0, out, NULL) == EDR_E_NULL);
    CHECK(edr_index_find(NULL, s.slots, s.capacity, s.bytes, 1, s.offsets, s.n, &name, 1, 0, out, NULL) == EDR_E_NULL);
    const edr_slice negative = {name.data, -1};
    CHECK(find(&s, &negative, 1, 0, out, &at) == EDR_E_SIZE && at == 0);
    CHECK(untouched(out, 8));
    free(out);
    free_shelf(&s);
}

int main(void)
{
    test_finds_what_a_search_finds();
    test_equal_hashes_do_no_harm();
    test_batches();
    test_capacity_and_build();
    test_damaged_tables();
    return check_report();
}
