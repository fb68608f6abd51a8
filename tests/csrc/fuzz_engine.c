/* cc -std=c11 -g -O1 -fsanitize=address,undefined -Icsrc tests/csrc/fuzz_engine.c csrc/[a-z]*.c -lm -lpthread -o fuzz_engine
 * fuzz_engine [rounds] [seed]: damaged engine files and damaged rows, deterministic. The sanitizers are the judge of memory; the
 * checks here are that a refusal writes nothing, and that what is accepted is scored. */
#include <math.h>

#include "engine_file.h"

static uint64_t rng;
static long opened, refused, scored;

/* The numbers at which arithmetic on sizes goes wrong, or one near by. */
static uint64_t odd_number(uint64_t was)
{
    static const int64_t traps[] = {0, 1, -1, 31, 64, INT32_MAX, (int64_t)INT32_MAX + 1, INT64_MIN, INT64_MAX, INT64_MAX / 64 * 64, INT64_C(1) << 40};
    switch (random_below(&rng, 4)) {
    case 0: return (uint64_t)traps[random_below(&rng, 11)];
    case 1: return was + (uint64_t)random_below(&rng, 5) - 2;
    case 2: return was ^ UINT64_C(1) << random_below(&rng, 64);
    default: return was + 64 * ((uint64_t)random_below(&rng, 5) - 2);
    }
}

/* One damage where it hurts: a number of the header, of an entry, of the sizes; a name; any byte; two entries exchanged. */
static void damage(uint8_t *file, int64_t sections, int64_t size)
{
    static const int fields[] = {32, 36, 40, 48, 56, 64, 72, 80};
    uint8_t *entry = file + 64 + 128 * random_below(&rng, sections);
    uint8_t *place = entry + fields[random_below(&rng, 8)], swap[128];
    uint64_t value;
    const int64_t kind = random_below(&rng, 8);
    int bytes = place < entry + 40 ? 4 : 8;
    if (kind == 0) place = file + 8 * random_below(&rng, 4), bytes = 8;
    if (kind == 1) place = file + 64 + 128 * TABLE_ENTRIES + 4 * random_below(&rng, 11), bytes = 4; /* config */
    if (kind == 2) place = file + 64 + 128 * TABLE_ENTRIES + 128 + 4 * random_below(&rng, 4), bytes = 4; /* layers */
    if (kind == 3) place = entry + random_below(&rng, 32), bytes = 1;
    if (kind == 4) place = file + random_below(&rng, size - 8), bytes = 1;
    if (kind == 5) {
        uint8_t *other = file + 64 + 128 * random_below(&rng, sections);
        memcpy(swap, entry, 128);
        memcpy(entry, other, 128);
        memcpy(other, swap, 128);
        return;
    }
    value = 0;
    memcpy(&value, place, (size_t)bytes);
    value = odd_number(value);
    memcpy(place, &value, (size_t)bytes);
}

/* Rows of which one has, now and then, a start, a length, an id or a weight that is wrong. */
static void odd_inputs(rows *r, const edr_model *m)
{
    const int64_t count = 1 + random_below(&rng, random_below(&rng, 4) == 0 ? 6 : 1), row = random_below(&rng, count);
    make_rows(r, count, m->buckets != 0, random_u64(&rng));
    int64_t *const numbers[] = {r->starts + row, r->lengths + row};
    int32_t *const ids[] = {r->ids + random_below(&rng, r->in.size), r->types + random_below(&rng, r->in.size), r->feature_ids + row * SLOTS};
    static const float weights[] = {NAN, INFINITY, -INFINITY, 0.0f, 3.4028234e38f};
    const int64_t kind = random_below(&rng, 5);
    if (kind == 0) *numbers[random_below(&rng, 2)] = (int64_t)odd_number((uint64_t)*numbers[0]);
    if (kind == 1) *ids[random_below(&rng, 3)] = (int32_t)odd_number(0);
    if (kind == 2) r->weights[row * SLOTS] = weights[random_below(&rng, 5)];
}

static void fuzz_rows(const edr_model *m)
{
    rows r;
    odd_inputs(&r, m);
    int64_t at = -7;
    if (edr_inputs_check(m, &r.in, &at) == EDR_OK) {
        const int64_t size = edr_score_room(m);
        void *whole, *room = aligned_room(size, &whole);
        float *logits = exact_room((size_t)r.in.rows * 4);
        int64_t tokens = 0;
        for (int64_t i = 0; i < r.in.rows; i++) tokens += r.in.lengths[i];
        /* The scalar kernels are slow under sanitizers: they get short rows, now and then. */
        const int isa = tokens < 40 && random_below(&rng, 4) == 0 ? EDR_ISA_SCALAR : edr_isa_best();
        CHECK(at == -7 && edr_score_all(m, &r.in, isa, NULL, 0, &room, size, 0, logits, NULL, &at) == EDR_OK);
        free(logits);
        free(whole);
        scored++;
    } else {
        CHECK(at >= 0 && at < r.in.rows);
    }
    free_rows(&r);
}

static void fuzz_file(const engine_file *good)
{
    const int64_t flips = random_below(&rng, 4);
    int64_t size = random_below(&rng, 6) == 0 ? random_below(&rng, good->size + 1) : good->size;
    void *whole;
    uint8_t *file = aligned_room(size, &whole);
    memcpy(file, good->bytes, (size_t)size);
    if (size != good->size && size >= 24 && random_below(&rng, 2)) memcpy(file + 16, &size, 8);
    for (int64_t i = 0; i < flips && size == good->size; i++) damage(file, good->sections, size);
    edr_model m;
    memset(&m, 0x5A, sizeof m);
    int64_t at = -7;
    if (edr_model_open(file, size, &m, &at) == EDR_OK) {
        CHECK(at == -7);
        /* Damaged sizes may be large and right; scoring them is for the patient. */
        if (edr_score_room(&m) < 1 << 22) fuzz_rows(&m);
        opened++;
    } else {
        CHECK(at >= -1 && untouched(&m, sizeof m));
        refused++;
    }
    free(whole);
}

int main(int argc, char **argv)
{
    const long rounds = argc > 1 ? strtol(argv[1], NULL, 10) : 20000;
    rng = argc > 2 ? strtoull(argv[2], NULL, 10) : 1;
    engine_file files[4];
    for (int i = 0; i < 4; i++) files[i] = build_file(i & 1, i >> 1, i & 1);
    for (long round = 0; round < rounds; round++) fuzz_file(&files[round % 4]);
    for (int i = 0; i < 4; i++) free(files[i].whole);
    fprintf(stderr, "%ld opened, %ld refused, %ld scored\n", opened, refused, scored);
    CHECK(rounds < 100 || (opened > rounds / 5 && refused > rounds / 5 && scored > rounds / 10));
    return check_report();
}
