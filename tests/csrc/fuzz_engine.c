/* cc -std=c11 -g -O1 -fsanitize=address,undefined -Icsrc tests/csrc/fuzz_engine.c csrc/[a-z]*.c -lm -lpthread -o fuzz_engine
 * fuzz_engine [rounds] [seed] [inputs]: damaged engine files, and ragged rows, items and candidates with faults. The sanitizers are the
 * judge of memory; the checks here are that a refusal writes nothing, and that what is accepted is scored.
 *
 * What is damaged, and how, are decisions, and each is a number from `choose`. They come from a generator, the same on every
 * machine; or from the bytes of an input, of which corpus_engine/ keeps some; or, with -DLIBFUZZER and clang -fsanitize=fuzzer,
 * from the inputs that libFuzzer invents. */
#include <math.h>

#define SMALLEST_MODEL
#include "engine_file.h"

enum { CROSS = 4 * KINDS_OF_WEIGHTS, KINDS = CROSS + KINDS_OF_WEIGHTS, TABLE = 24 };
static engine_file files[KINDS]; /* the last are mid-fusion students: float32, int8 and float16 states */

static uint64_t rng;
static const uint8_t *input; /* NULL: the generator decides */
static size_t input_left;    /* 0: every further decision is 0 */
static long opened, refused, scored;

/* `bytes` bytes of the input, or as many of the generator. */
static uint64_t number(int bytes)
{
    if (input == NULL) return random_u64(&rng) >> (64 - 8 * bytes);
    uint64_t value = 0;
    for (int i = 0; i < bytes && input_left > 0; i++, input_left--) value |= (uint64_t)*input++ << (8 * i);
    return value;
}

/* 0 .. n - 1 */
static int64_t choose(int64_t n) { return (int64_t)(number(n <= 256 ? 1 : 4) % (uint64_t)n); }

/* The numbers at which arithmetic on sizes goes wrong, or one near by, or any. */
static uint64_t odd_number(uint64_t was)
{
    static const int64_t traps[] = {0, 1, -1, 31, 64, INT32_MAX, (int64_t)INT32_MAX + 1, INT64_MIN, INT64_MAX, INT64_MAX / 64 * 64, INT64_C(1) << 40};
    switch (choose(5)) {
    case 0: return (uint64_t)traps[choose(11)];
    case 1: return was + (uint64_t)choose(5) - 2;
    case 2: return was ^ UINT64_C(1) << choose(64);
    case 3: return was + 64 * ((uint64_t)choose(5) - 2);
    default: return number(8);
    }
}

/* One damage where it hurts: a number of the header, of an entry, of the sizes; a name; any byte; two entries exchanged. */
static void damage(uint8_t *file, int64_t sections, int64_t size)
{
    static const int fields[] = {32, 36, 40, 48, 56, 64, 72, 80};
    uint8_t *entry = file + 64 + 128 * choose(sections);
    uint8_t *place = entry + fields[choose(8)], swap[128];
    const int64_t kind = choose(8);
    int bytes = place < entry + 40 ? 4 : 8;
    if (kind == 0) place = file + 8 * choose(4), bytes = 8;
    if (kind == 1) place = file + 64 + 128 * TABLE_ENTRIES + 4 * choose(11), bytes = 4; /* config */
    if (kind == 2) place = file + 64 + 128 * TABLE_ENTRIES + 128 + 4 * choose(2 * LAYERS), bytes = 4; /* layers */
    if (kind == 3) place = entry + choose(32), bytes = 1;
    if (kind == 4) place = file + choose(size - 8), bytes = 1;
    if (kind == 5) {
        uint8_t *other = file + 64 + 128 * choose(sections);
        memcpy(swap, entry, 128);
        memcpy(entry, other, 128);
        memcpy(other, swap, 128);
        return;
    }
    uint64_t value = 0;
    memcpy(&value, place, (size_t)bytes);
    value = odd_number(value);
    memcpy(place, &value, (size_t)bytes);
}

/* Rows of which some have, now and then, a start, a length, an id or a weight that is wrong, or only just right. */
static void odd_inputs(rows *r, const edr_model *m)
{
    const int64_t count = choose(4) == 0 ? 1 + choose(6) : 1;
    const int64_t edges[] = {0, 1, POSITIONS, POSITIONS + 1, m->positions, m->positions + 1};
    static const float weights[] = {NAN, INFINITY, -INFINITY, 0.0f, 3.4028234e38f};
    make_rows(r, count, m->buckets != 0, number(1));
    for (int64_t faults = choose(4) - 1; faults > 0; faults--) {
        const int64_t row = choose(count), token = choose(r->in.size);
        switch (choose(7)) {
        case 0: r->starts[row] = (int64_t)odd_number((uint64_t)r->starts[row]); break;
        case 1: r->lengths[row] = (int64_t)odd_number((uint64_t)r->lengths[row]); break;
        case 2: r->lengths[row] = edges[choose(6)]; break;
        case 3: r->ids[token] = (int32_t)odd_number((uint64_t)r->ids[token]); break;
        case 4: r->types[token] = (int32_t)odd_number((uint64_t)r->types[token]); break;
        case 5: r->feature_ids[row * SLOTS] = (int32_t)odd_number((uint64_t)r->feature_ids[row * SLOTS]); break;
        default: r->weights[row * SLOTS] = weights[choose(5)];
        }
    }
}

/* The workspace of scoring, kept for the next input when that wants as much; nothing before or behind it may be touched. */
static void *workspace_block;
static void *workspace(int64_t size)
{
    static void *room;
    static int64_t held;
    if (size != held) {
        free(workspace_block);
        room = aligned_room(size, &workspace_block);
        held = size;
    }
    return room;
}

static void fuzz_rows(const edr_model *m)
{
    rows r;
    odd_inputs(&r, m);
    int64_t at = -7;
    if (edr_inputs_check(m, &r.in, &at) == EDR_OK) {
        const int64_t size = edr_score_room(m);
        void *room = workspace(size);
        float *logits = exact_room((size_t)r.in.rows * 4);
        const int64_t isa = choose(EDR_ISA_COUNT);
        CHECK(at == -7);
        CHECK(edr_score_all(m, &r.in, edr_isa_supported((int)isa) ? (int)isa : edr_isa_best(), NULL, 0, &room, size, 0, logits, NULL, &at) == EDR_OK);
        free(logits);
        scored++;
    } else {
        CHECK(at >= 0 && at < r.in.rows);
    }
    free_rows(&r);
}

/* Candidates among the states of a small table, and items to encode, with faults as above. A refused ranking writes no logit. */
static void fuzz_candidates(const edr_model *m)
{
    const int kind = m->mid.state_kind, isa = (int)choose(EDR_ISA_COUNT), set = edr_isa_supported(isa) ? isa : edr_isa_best();
    const int64_t count = choose(4) == 0 ? 1 + choose(6) : 1, longest = m->positions - m->mid.item_start, slots = m->buckets != 0 ? SLOTS : 0;
    const int64_t edges[] = {0, 1, longest, longest + 1, TABLE, TABLE + 1}, states = TABLE * m->mid.groups, numbers = states * m->mid.width;
    const int64_t asked = choose(8) == 0 ? choose(70) : 1 + choose(ITEM_START), size = edr_score_room(m);
    const size_t bytes = (size_t)numbers * (kind == EDR_STATES_INT8 ? 1 : kind == EDR_STATES_FP16 ? 2 : 4);
    if (numbers > 1 << 16) return; /* a damaged width, and right */
    int32_t *query = exact_room((size_t)asked * 4), *ids = exact_room(TABLE * 4), *feature_ids = exact_room((size_t)(count * SLOTS) * 4);
    int64_t *starts = exact_room((size_t)count * 8), *lengths = exact_room((size_t)count * 8);
    uint8_t *values = exact_room(bytes);
    float *scales = kind == EDR_STATES_INT8 ? exact_room((size_t)states * 4) : NULL, *weights = exact_room((size_t)(count * SLOTS) * 4);
    float *logits = exact_room((size_t)count * 4);
    uint64_t state = number(1);
    for (int64_t i = 0; i < asked; i++) query[i] = (int32_t)random_below(&state, VOCAB);
    for (int64_t i = 0; i < TABLE; i++) ids[i] = (int32_t)random_below(&state, VOCAB);
    for (size_t i = 0; i < bytes; i++) values[i] = (uint8_t)random_below(&state, 256);
    for (int64_t i = 0; i < states && scales != NULL; i++) scales[i] = random_float(&state, 0, 1);
    for (int64_t i = 0; i < count; i++) {
        lengths[i] = random_below(&state, longest < TABLE ? longest + 1 : TABLE);
        starts[i] = random_below(&state, TABLE - lengths[i] + 1);
        logits[i] = 7.0f;
    }
    for (int64_t i = 0; i < count * SLOTS; i++) {
        feature_ids[i] = (int32_t)random_below(&state, BUCKETS);
        weights[i] = random_float(&state, -1, 1);
    }
    for (int64_t faults = choose(4) - 1; faults > 0; faults--) {
        const int64_t row = choose(count);
        switch (choose(6)) {
        case 0: starts[row] = (int64_t)odd_number((uint64_t)starts[row]); break;
        case 1: lengths[row] = (int64_t)odd_number((uint64_t)lengths[row]); break;
        case 2: lengths[row] = edges[choose(6)]; break;
        case 3: ids[choose(TABLE)] = (int32_t)odd_number(0); break;
        case 4: if (asked > 0) query[choose(asked)] = (int32_t)odd_number(0); break;
        default: feature_ids[row * SLOTS] = (int32_t)odd_number((uint64_t)feature_ids[row * SLOTS]);
        }
    }
    void *room = workspace(size);
    int64_t at = -7;
    const edr_ranking ranking = {query, asked, values, scales, TABLE, starts, lengths, count, feature_ids, weights, slots};
    if (edr_rank_all(m, &ranking, set, NULL, 0, &room, size, 0, logits, NULL, &at) == EDR_OK) {
        CHECK(at == -7);
        scored++;
    } else {
        CHECK(at >= -1 && at < count);
        for (int64_t i = 0; i < count; i++) CHECK(logits[i] == 7.0f);
    }
    const edr_items items = {ids, TABLE, starts, lengths, count};
    at = -7;
    const edr_status encoded = edr_encode_all(m, &items, set, NULL, 0, &room, size, values, scales, &at);
    CHECK(encoded == EDR_OK ? at == -7 : at >= 0 && at < count);
    void *all_of_them[] = {query, ids, feature_ids, starts, lengths, values, scales, weights, logits};
    for (int i = 0; i < 9; i++) free(all_of_them[i]);
}

/* One of the files, cut or damaged or neither; opened and, when that goes well, given rows to score. */
static void fuzz_once(void)
{
    for (int i = 0; i < KINDS && files[i].bytes == NULL; i++) {
        files[i] = i < CROSS ? build_file(i % 3, i / 3 & 1, i / 6) : build_student(i - CROSS, 1, 0, i - CROSS, STATE_WIDTH);
    }
    const engine_file *good = &files[choose(KINDS)];
    const int64_t flips = choose(4) - 1;
    int64_t size = choose(6) == 1 ? choose(good->size + 1) : good->size;
    void *whole;
    uint8_t *file = aligned_room(size, &whole);
    memcpy(file, good->bytes, (size_t)size);
    if (size != good->size && size >= 24 && choose(2)) memcpy(file + 16, &size, 8);
    for (int64_t i = 0; i < flips && size == good->size; i++) damage(file, good->sections, size);
    static edr_model before; /* compared as a whole: byte by byte would take longer than all the rest */
    memset(&before, 0x5A, sizeof before);
    edr_model m = before;
    int64_t at = -7;
    if (edr_model_open(file, size, &m, &at) == EDR_OK) {
        CHECK(at == -7);
        /* Damaged sizes may be large and right; scoring them is for the patient. */
        if (edr_score_room(&m) < 1 << 22) m.mid.query_layers != 0 ? fuzz_candidates(&m) : fuzz_rows(&m);
        opened++;
    } else {
        CHECK(at >= -1 && memcmp(&m, &before, sizeof m) == 0);
        refused++;
    }
    free(whole);
}

#ifdef LIBFUZZER
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static const uint8_t none;
    input = data != NULL ? data : &none;
    input_left = size;
    fuzz_once();
    if (check_failed != 0) abort();
    return 0;
}
#else
static void replay(const char *path)
{
    uint8_t bytes[4096];
    FILE *file = fopen(path, "rb");
    CHECK(file != NULL);
    if (file == NULL) return;
    input = bytes;
    input_left = fread(bytes, 1, sizeof bytes, file);
    fclose(file);
    fuzz_once();
    input = NULL;
}

int main(int argc, char **argv)
{
    const long rounds = argc > 1 ? strtol(argv[1], NULL, 10) : 20000;
    rng = argc > 2 ? strtoull(argv[2], NULL, 10) : 1;
    for (long round = 0; round < rounds; round++) fuzz_once();
    fprintf(stderr, "%ld opened, %ld refused, %ld scored\n", opened, refused, scored);
    CHECK(rounds < 100 || (opened > rounds / 5 && refused > rounds / 5 && scored > rounds / 10));
    for (int i = 3; i < argc; i++) replay(argv[i]);
    free(workspace_block);
    for (int i = 0; i < KINDS; i++) free(files[i].whole);
    return check_report();
}
#endif
