/* index.c: identifier -> row, in two flat arrays. */
#include "internal.h"

#define MAX_IDS (INT64_C(1) << 30)

int64_t edr_index_capacity(int64_t n)
{
    if (n < 0 || n > MAX_IDS) return 0;
    int64_t capacity = 8;
    while (capacity < 2 * n) capacity *= 2;
    return capacity;
}

edr_status edr_index_build(const uint64_t *hashes, int64_t n, uint64_t *keys, int32_t *slots, int64_t capacity)
{
    if (n < 0 || n > MAX_IDS || capacity != edr_index_capacity(n)) return EDR_E_SIZE;
    if (keys == NULL || slots == NULL || (n > 0 && hashes == NULL)) return EDR_E_NULL;
    memset(keys, 0, (size_t)capacity * sizeof *keys);
    for (int64_t i = 0; i < capacity; i++) slots[i] = -1;
    const uint64_t wrap = (uint64_t)capacity - 1;
    for (int64_t i = 0; i < n; i++) {
        uint64_t place = hashes[i] & wrap;
        while (slots[place] != -1) place = (place + 1) & wrap; /* ends: at most half of the places are taken */
        keys[place] = hashes[i];
        slots[place] = (int32_t)i;
    }
    return EDR_OK;
}

typedef struct table {
    const uint64_t *keys;
    const int32_t *slots;
    int64_t capacity;
    const uint8_t *bytes;
    int64_t size;
    const int64_t *offsets;
    int64_t ids;
} table;

static edr_status find_one(const table *t, edr_slice name, uint64_t hash, int64_t *out, int64_t *at)
{
    const uint64_t wrap = (uint64_t)t->capacity - 1;
    uint64_t place = hash & wrap;
    *out = -1;
    for (int64_t probes = 0; probes < t->capacity; probes++, place = (place + 1) & wrap) {
        const int64_t id = t->slots[place];
        if (id == -1) return EDR_OK;
        if (t->keys[place] != hash) continue;
        if (id < 0 || id >= t->ids) return edr_fail(EDR_E_ROW, at, (int64_t)place);
        if (!edr_span_ok(t->offsets, id, t->size)) return edr_fail(EDR_E_OFFSETS, at, id);
        const int64_t begin = t->offsets[id], length = t->offsets[id + 1] - begin;
        if (length == name.size && (length == 0 || memcmp(t->bytes + begin, name.data, (size_t)length) == 0)) {
            *out = id;
            return EDR_OK;
        }
    }
    return EDR_OK;
}

edr_status edr_index_find(const uint64_t *keys, const int32_t *slots, int64_t capacity, const uint8_t *bytes, int64_t size,
                          const int64_t *offsets, int64_t ids, const edr_slice *names, int64_t n, uint64_t seed, int64_t *out, int64_t *at)
{
    if (n < 0 || n > EDR_MAX_NAMES || ids < 0 || size < 0 || capacity < 1 || (capacity & (capacity - 1)) != 0) return EDR_E_SIZE;
    if (n == 0) return EDR_OK;
    if (keys == NULL || slots == NULL || offsets == NULL || names == NULL || out == NULL || (size > 0 && bytes == NULL)) return EDR_E_NULL;
    const table t = {keys, slots, capacity, bytes, size, offsets, ids};
    uint64_t hashes[EDR_MAX_NAMES];
    int64_t found[EDR_MAX_NAMES];
    /* Look-ups are cache misses: hashing all names first lets their memory loads overlap. */
    for (int64_t i = 0; i < n; i++) {
        if (names[i].size < 0) return edr_fail(EDR_E_SIZE, at, i);
        hashes[i] = names[i].data != NULL ? edr_hash64(names[i].data, (size_t)names[i].size, seed) : edr_hash64(NULL, 0, seed);
#if defined(__GNUC__)
        __builtin_prefetch(&keys[hashes[i] & ((uint64_t)capacity - 1)]);
        __builtin_prefetch(&slots[hashes[i] & ((uint64_t)capacity - 1)]);
#endif
    }
    for (int64_t i = 0; i < n; i++) {
        found[i] = -1;
        if (names[i].data == NULL && names[i].size != 0) continue;
        const edr_status status = find_one(&t, names[i], hashes[i], &found[i], at);
        if (status != EDR_OK) return status;
    }
    memcpy(out, found, (size_t)n * sizeof *out);
    return EDR_OK;
}
