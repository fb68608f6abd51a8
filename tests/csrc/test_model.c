/* cc -std=c11 -g -fsanitize=address,undefined -Icsrc tests/csrc/test_model.c csrc/[a-z]*.c -lm -lpthread -o test_model
 * engine.bin: what a good one opens to, what a bad one is refused for; thousands of damaged ones are refused or scored. */
#include "engine_file.h"

/* A copy in a heap block of its very size, opened, and scored when it opens. */
static edr_status open_and_score(const uint8_t *bytes, int64_t size, int isa)
{
    void *whole, *whole_room;
    uint8_t *copy = aligned_room(size, &whole);
    memcpy(copy, bytes, (size_t)size);
    edr_model model;
    int64_t at = -9;
    const edr_status status = edr_model_open(copy, size, &model, &at);
    if (status == EDR_OK) {
        rows r;
        make_rows(&r, 1, model.buckets != 0, 3);
        const int64_t room_size = edr_score_room(&model);
        void *room = aligned_room(room_size, &whole_room);
        float logits[1];
        if (edr_inputs_check(&model, &r.in, &at) == EDR_OK) CHECK(edr_score(&model, &r.in, 0, 1, isa, room, room_size, logits) == EDR_OK);
        free(whole_room);
        free_rows(&r);
    }
    free(whole);
    return status;
}

static void test_good(void)
{
    for (int kind = 0; kind < 12; kind++) {
        const int weights = kind % 3, features = kind / 3 & 1, pooler = kind / 6;
        engine_file f = build_file(weights, features, pooler);
        edr_model m;
        CHECK(edr_model_open(f.bytes, f.size, &m, NULL) == EDR_OK);
        CHECK(m.hidden == HIDDEN && m.layers == LAYERS && m.vocab == VOCAB && m.positions == POSITIONS && m.types == TYPES);
        CHECK(m.buckets == (features ? BUCKETS : 0) && m.int8 == (weights == INTEGERS) && m.bf16 == (weights == HALVES) && m.has_pooler == pooler);
        CHECK(m.layer[1].up.short_pairs == (weights == INTEGERS) && !m.layer[0].up.short_pairs && !m.fold.short_pairs);
        CHECK(m.widest_inner == 96 && m.widest_heads == 64 && m.layer[1].heads == 2 && m.layer[1].inner == 64);
        CHECK(m.layer[0].qkv.outputs == 192 && m.layer[1].qkv.outputs == 32 && m.fold.outputs == 2 * HIDDEN && m.unfold.inputs == HIDDEN && m.layer[1].attention_output.inputs == 32);
        CHECK(open_and_score(f.bytes, f.size, EDR_ISA_SCALAR) == EDR_OK);
        free(f.whole);
    }
}

/* Two neighbours may add up to 128, either way, and no further. */
static void test_short_pairs(void)
{
    const int8_t pairs[6][3] = {{64, 64, 1}, {-64, -64, 1}, {127, 1, 1}, {127, -127, 1}, {64, 65, 0}, {-65, -64, 0}};
    engine_file f = build_file(INTEGERS, 0, 0);
    edr_model m;
    CHECK(edr_model_open(f.bytes, f.size, &m, NULL) == EDR_OK);
    int8_t *weight = (int8_t *)f.bytes + ((const uint8_t *)m.layer[1].up.weight - f.bytes);
    for (int i = 0; i < 6; i++) {
        weight[0] = pairs[i][0], weight[1] = pairs[i][1];
        CHECK(edr_model_open(f.bytes, f.size, &m, NULL) == EDR_OK && m.layer[1].up.short_pairs == pairs[i][2]);
    }
    free(f.whole);
}

static void set32(uint8_t *at, int32_t value) { memcpy(at, &value, 4); }

static void test_faults(void)
{
    engine_file f = build_file(1, 1, 1);
    edr_model m;
    int64_t at = -9;
    memset(&m, 0x5A, sizeof m);
#define OPEN(data, size) edr_model_open(data, size, &m, &at)
    char name[EDR_NAME_ROOM];
#define FAULT_IN(wanted) (edr_model_fault(f.bytes, f.size, name), strcmp(name, wanted) == 0)
    CHECK(FAULT_IN(""));
    edr_model_fault(NULL, f.size, name);
    CHECK(name[0] == 0);
    CHECK(OPEN(NULL, f.size) == EDR_E_NULL && edr_model_open(f.bytes, f.size, NULL, NULL) == EDR_E_NULL);
    CHECK(OPEN(f.bytes, 63) == EDR_E_SIZE && OPEN(f.bytes, -1) == EDR_E_SIZE && OPEN(f.bytes + 4, f.size - 4) == EDR_E_SIZE);
    CHECK(OPEN(f.bytes, f.size - 1) == EDR_E_SIZE && at == -1);
    /* What a config may not say, by place: each is put back afterwards. */
    const struct { int place, value; } wrong[] = {{0, 0}, {0, 33}, {0, -32}, {0, 1 << 30}, {1, 0}, {1, 2048}, {2, 0}, {2, 65}, {3, 0}, {3, -1}, {4, 0},
                                                  {4, 1 << 20}, {5, 0}, {6, 2}, {7, -1}, {8, 0}, {8, 5000}, {9, 0}, {9, INT32_MIN}, {10, 3}, {10, -1}};
    uint8_t *config = f.bytes + 64 + 128 * TABLE_ENTRIES;
    for (size_t i = 0; i < sizeof wrong / sizeof wrong[0]; i++) {
        int32_t was;
        memcpy(&was, config + 4 * wrong[i].place, 4);
        set32(config + 4 * wrong[i].place, wrong[i].value);
        CHECK(OPEN(f.bytes, f.size) == EDR_E_VALUE && at == 0 && FAULT_IN("config"));
        set32(config + 4 * wrong[i].place, was);
    }
    uint8_t *layers = config + 128; /* behind the gap that add leaves */
    const int32_t heads[] = {0, -4, 3, 1 << 30, INT32_MAX};
    for (int i = 0; i < 5; i++) {
        set32(layers, heads[i]);
        CHECK(OPEN(f.bytes, f.size) == EDR_E_VALUE && at == 1);
        set32(layers, 4);
    }
    set32(layers, 6); /* a width that is fine, and not that of the weights */
    CHECK(OPEN(f.bytes, f.size) == EDR_E_SIZE && at == 2 && FAULT_IN("layer00.qkv.weight"));
    set32(layers, 4);
    uint8_t *entry = f.bytes + 64 + 2 * 128; /* of layer00.qkv.weight */
    entry[0] = 'x';
    CHECK(OPEN(f.bytes, f.size) == EDR_E_OFFSETS && at == 2);
    entry[0] = 'l';
    entry[32] = 7;
    CHECK(OPEN(f.bytes, f.size) == EDR_E_VALUE && at == 2);
    entry[32] = 2;
    entry[72] ^= 1;
    CHECK(OPEN(f.bytes, f.size) == EDR_E_OFFSETS);
    entry[72] ^= 1;
    entry[79] = 0xFF;
    CHECK(OPEN(f.bytes, f.size) == EDR_E_OFFSETS && at == -1 && FAULT_IN(""));
    entry[79] = 0;
    entry[36] = 5;
    CHECK(OPEN(f.bytes, f.size) == EDR_E_VALUE && at == -1);
    entry[36] = 4;
    uint8_t other[32];
    memcpy(other, entry + 128, 32);
    memcpy(entry + 128, entry, 32); /* the name twice */
    CHECK(OPEN(f.bytes, f.size) == EDR_E_OFFSETS && at == 2);
    memcpy(entry + 128, other, 32);
    uint8_t place[8];
    memcpy(place, entry + 72, 8);
    const int64_t lies[] = {64, 64 + 128 * 3, f.ends[1] / 64 * 64, f.ends[2] / 64 * 64 + 64, f.size / 64 * 64, INT64_MAX / 64 * 64};
    for (int i = 0; i < 6; i++) { /* in the table, over its neighbours, past the end */
        memcpy(entry + 72, &lies[i], 8);
        CHECK(OPEN(f.bytes, f.size) == EDR_E_OFFSETS && at == -1);
    }
    memcpy(entry + 72, place, 8);
    entry[80] ^= 1;
    CHECK(OPEN(f.bytes, f.size) == EDR_E_SIZE && at == 2);
    entry[80] ^= 1;
    CHECK(untouched(&m, sizeof m));
    CHECK(OPEN(f.bytes, f.size) == EDR_OK);
    free(f.whole);
}

static void test_damage(void)
{
    uint64_t state = 11;
    long opened = 0;
    for (int kind = 0; kind < 6; kind++) {
        engine_file f = build_file(kind % 3, kind / 3, 1);
        const int64_t table = 64 + 128 * f.sections, config = 64 + 128 * TABLE_ENTRIES;
        for (int round = 0; round < 400; round++) {
            const int64_t size = random_below(&state, round % 2 ? f.size : config);
            CHECK(open_and_score(f.bytes, size, EDR_ISA_SCALAR) == EDR_E_SIZE);
            uint8_t *cut = exact_copy(f.bytes, (size_t)f.size);
            memcpy(cut + 16, &size, 8); /* and with a header that agrees with the cut */
            CHECK(open_and_score(cut, size, EDR_ISA_SCALAR) != EDR_OK);
            free(cut);
        }
        for (int round = 0; round < 600; round++) {
            const int64_t begin = round % 3 == 1 ? config : 0, end = round % 3 == 0 ? table : round % 3 == 1 ? config + 192 : f.size;
            int64_t places[3];
            uint8_t bits[3];
            const int64_t flips = 1 + random_below(&state, 3);
            for (int64_t i = 0; i < flips; i++) {
                places[i] = begin + random_below(&state, end - begin);
                bits[i] = (uint8_t)(1 << random_below(&state, 8));
                f.bytes[places[i]] ^= bits[i];
            }
            opened += open_and_score(f.bytes, f.size, round % 2 ? edr_isa_best() : EDR_ISA_SCALAR) == EDR_OK;
            for (int64_t i = 0; i < flips; i++) f.bytes[places[i]] ^= bits[i];
        }
        CHECK(open_and_score(f.bytes, f.size, EDR_ISA_SCALAR) == EDR_OK);
        free(f.whole);
    }
    CHECK(opened > 450 && opened < 3450);
}

/* Section `gelu`, the last one of the file: which of the two. */
static void test_gelu(void)
{
    tanh_files = 1;
    engine_file f = build_file(INTEGERS, 1, 1);
    tanh_files = 0;
    uint8_t *number = f.bytes + f.ends[f.sections - 1] - 4;
    edr_model m;
    CHECK(edr_model_open(f.bytes, f.size, &m, NULL) == EDR_OK && m.gelu_tanh == 1);
    set32(number, 0);
    CHECK(edr_model_open(f.bytes, f.size, &m, NULL) == EDR_OK && m.gelu_tanh == 0);
    set32(number, 2);
    int64_t at = -9;
    char name[EDR_NAME_ROOM];
    CHECK(edr_model_open(f.bytes, f.size, &m, &at) == EDR_E_VALUE);
    edr_model_fault(f.bytes, f.size, name);
    CHECK(strcmp(name, "gelu") == 0);
    free(f.whole);
}

int main(void)
{
    test_good();
    test_short_pairs();
    test_gelu();
    test_faults();
    test_damage();
    return check_report();
}
