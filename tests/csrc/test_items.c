/* cc -std=c11 -g -fsanitize=address,undefined -Icsrc tests/csrc/test_items.c csrc/[a-z]*.c -lm -lpthread -o test_items
 * The item encoder: states are the same bits in any company, on any number of threads, close to the scalar code on every instruction
 * set; bad items are refused. */
#include "mid_shop.h"

static void test_states(int weights, int state_kind, int width)
{
    shop s = open_shop(weights, 0, state_kind, width);
    edr_pool *pool = edr_pool_new(WORKERS);
    void *alone = exact_room(s.values_size), *scalar = exact_room(s.values_size);
    float *alone_scales = exact_room(s.scales_size);
    int64_t at = -7;
    for (int isa = 0; isa < EDR_ISA_COUNT; isa++) {
        if (!edr_isa_supported(isa)) continue;
        memset(s.values, 0x5A, s.values_size);
        memset(alone, 0x5A, s.values_size);
        memset(s.scales, 0x5A, s.scales_size);
        memset(alone_scales, 0x5A, s.scales_size);
        CHECK(encode(&s, &s.items, isa, isa % 2 ? pool : NULL, s.values, s.scales, &at) == EDR_OK && at == -7);
        for (int64_t i = 0; i < ITEMS; i++) { /* one by one, from the last: gaps stay as they were */
            const edr_items one = {s.ids, s.tokens, s.item_starts + ITEMS - 1 - i, s.item_lengths + ITEMS - 1 - i, 1};
            CHECK(encode(&s, &one, isa, NULL, alone, alone_scales, &at) == EDR_OK);
        }
        CHECK(memcmp(alone, s.values, s.values_size) == 0 && memcmp(alone_scales, s.scales, s.scales_size) == 0);
        if (isa == EDR_ISA_SCALAR) memcpy(scalar, s.values, s.values_size);
        double off = 0, size = 0;
        for (int64_t item = 0; item < ITEMS; item++) {
            for (int64_t i = s.item_starts[item] * GROUPS * width; i < (s.item_starts[item] + s.item_lengths[item]) * GROUPS * width; i++) {
                off = fmax(off, fabs(number(&s, s.values, i) - number(&s, scalar, i)));
                size = fmax(size, fabs(number(&s, scalar, i)));
            }
        }
        /* A number between two steps of what is stored may go to either; 8 bits in the products lose more. */
        const double step = state_kind == EDR_STATES_INT8 ? size / 127 : state_kind == EDR_STATES_FP16 ? size / 1024 : 0;
        CHECK(size > 0.5 && off < (weights == FLOATS ? 2e-5 : 0.2) + 1.01 * step);
    }
    edr_pool_free(pool);
    free(alone);
    free(scalar);
    free(alone_scales);
    close_shop(&s);
}

static void test_refusals(void)
{
    shop s = open_shop(INTEGERS, 0, EDR_STATES_INT8, STATE_WIDTH);
    engine_file cross_file = build_file(INTEGERS, 1, 0);
    edr_model cross;
    CHECK(edr_model_open(cross_file.bytes, cross_file.size, &cross, NULL) == EDR_OK);
    int64_t at = -7;
    CHECK(encode(&s, &s.items, 0, NULL, s.values, s.scales, NULL) == EDR_OK);
    void *states = exact_copy(s.values, s.values_size);
    const int64_t item_start = s.item_starts[5], item_length = s.item_lengths[5];
    const int32_t id = s.ids[item_start];
    const edr_items items = s.items;
#define REFUSED(change, back, status, row)                                                      \
    do {                                                                                        \
        change;                                                                                 \
        CHECK(encode(&s, &s.items, 0, NULL, s.values, s.scales, &at) == (status) && at == (row)); \
        back;                                                                                   \
    } while (0)
    REFUSED(s.item_starts[5] = -1, s.item_starts[5] = item_start, EDR_E_OFFSETS, 5);
    REFUSED(s.item_starts[5] = s.tokens - item_length + 1, s.item_starts[5] = item_start, EDR_E_OFFSETS, 5);
    REFUSED(s.item_lengths[5] = -1, s.item_lengths[5] = item_length, EDR_E_SPACE, 5);
    REFUSED(s.item_lengths[5] = MOST_ITEM + 1, s.item_lengths[5] = item_length, EDR_E_SPACE, 5);
    REFUSED(s.ids[item_start] = VOCAB, s.ids[item_start] = id, EDR_E_VALUE, 5);
    REFUSED(s.ids[item_start] = -1, s.ids[item_start] = id, EDR_E_VALUE, 5);
    REFUSED(s.items.rows = -1, s.items = items, EDR_E_SIZE, 0);
    REFUSED(s.items.ids = NULL, s.items = items, EDR_E_NULL, 0);
    void *const *rooms = s.rooms;
    const int64_t size = s.room_size;
    CHECK(edr_encode_all(&cross, &s.items, 0, NULL, 0, rooms, size, s.values, s.scales, &at) == EDR_E_VALUE);
    CHECK(edr_encode_all(&s.m, &s.items, 0, NULL, 0, rooms, size - 1, s.values, s.scales, &at) == EDR_E_SPACE);
    CHECK(edr_encode_all(&s.m, &s.items, 0, NULL, 0, rooms, size, s.values, NULL, &at) == EDR_E_NULL);
    CHECK(edr_encode_all(&s.m, &s.items, 0, NULL, 0, rooms, size, NULL, s.scales, &at) == EDR_E_NULL);
    CHECK(memcmp(states, s.values, s.values_size) == 0);
    free(states);
    free(cross_file.whole);
    close_shop(&s);
}

int main(void)
{
    for (int weights = 0; weights < KINDS_OF_WEIGHTS; weights++) {
        for (int kind = EDR_STATES_FP32; kind <= EDR_STATES_FP16; kind++) {
            test_states(weights, kind, kind == EDR_STATES_FP32 ? HIDDEN : STATE_WIDTH);
        }
    }
    test_states(FLOATS, EDR_STATES_INT8, HIDDEN);
    test_refusals();
    return check_report();
}
