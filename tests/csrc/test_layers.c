/* cc -std=c11 -g -fsanitize=address,undefined -Icsrc tests/csrc/test_layers.c csrc/[a-z]*.c -lm -lpthread -o test_layers
 * What the forward passes share: buffers that do not touch, embeddings by the formula, a layer in one step or in two, rows that do not
 * feel each other, features looked at only where their weight is not 0. */
#include <math.h>

#include "engine_file.h"
#include "layers.h"

enum { TOKENS = 11 };

typedef struct bench {
    engine_file file;
    edr_model m;
    void *whole;
    edr_work z;
} bench;

static bench open_bench(int weights, int isa)
{
    bench b = {.file = build_file(weights, 1, 1)};
    CHECK(edr_model_open(b.file.bytes, b.file.size, &b.m, NULL) == EDR_OK);
    edr_work unused;
    const int64_t size = edr_lay_out(&b.m, NULL, &unused);
    void *room = aligned_room(size, &b.whole);
    memset(room, 0xFF, (size_t)size);
    CHECK(size % 64 == 0 && edr_lay_out(&b.m, room, &b.z) == size);
    b.z.k = edr_engine_kernels_for(isa);
    return b;
}

static void close_bench(bench *b)
{
    free(b->whole);
    free(b->file.whole);
}

static void test_buffers(void)
{
    bench b = open_bench(INTEGERS, EDR_ISA_SCALAR);
    b.z.m = &b.m; /* not before: the struct has moved */
    const edr_work *z = &b.z;
    const void *starts[] = {z->x, z->qkv, z->context, z->inner, z->room, z->first, z->asked, z->answer, z->pooled, z->bag, z->features, z->wide.u};
    for (size_t i = 0; i < sizeof starts / sizeof *starts; i++) {
        CHECK((uintptr_t)starts[i] % 64 == 0);
        CHECK(i == 0 || (uintptr_t)starts[i] > (uintptr_t)starts[i - 1]);
    }
    CHECK(z->qkv - z->x >= edr_block_rows(&b.m) * HIDDEN);
    close_bench(&b);
}

/* norm(word + position + type), in double. */
static void test_embeddings(int isa)
{
    bench b = open_bench(FLOATS, isa);
    b.z.m = &b.m; /* not before: the struct has moved */
    const edr_model *m = &b.m;
    float *out = exact_room(HIDDEN * 4);
    for (int32_t id = 0; id < VOCAB; id++) {
        const int64_t type = id % TYPES, position = (id * 7) % POSITIONS;
        double sum[HIDDEN], mean = 0, variance = 0;
        for (int i = 0; i < HIDDEN; i++) {
            sum[i] = (double)((const float *)m->word)[id * HIDDEN + i] + (double)m->position[position * HIDDEN + i] + (double)m->type[type * HIDDEN + i];
            mean += sum[i] / HIDDEN;
        }
        for (int i = 0; i < HIDDEN; i++) variance += (sum[i] - mean) * (sum[i] - mean) / HIDDEN;
        const int32_t kind = (int32_t)type;
        edr_embed(&b.z, &id, id % 2 ? &kind : NULL, id % 2 ? 0 : type, position, 1, out);
        double off = 0;
        for (int i = 0; i < HIDDEN; i++) {
            const double expected = (sum[i] - mean) / sqrt(variance + 1e-12) * (double)m->embedding_norm[i] + (double)m->embedding_norm[HIDDEN + i];
            off = fmax(off, fabs(expected - (double)out[i]));
        }
        CHECK(off < 1e-4);
    }
    free(out);
    close_bench(&b);
}

/* Three rows of 2, 8 and 1 tokens, which begin alike: projected by the layer or before it, what is common once or thrice, and the last row
 * alone, it is the same bits. */
static void test_layer(int weights, int isa)
{
    bench b = open_bench(weights, isa);
    b.z.m = &b.m; /* not before: the struct has moved */
    const edr_layer *layer = &b.m.layer[0];
    const int64_t lengths[3] = {2, 8, 1}, size = TOKENS * HIDDEN * 4;
    float *given = exact_room((size_t)size), *once = exact_room((size_t)size);
    uint64_t state = 5;
    for (int i = 0; i < TOKENS * HIDDEN; i++) given[i] = random_float(&state, -2, 2);
    memcpy(given + 2 * HIDDEN, given, HIDDEN * 4);
    memcpy(given + 10 * HIDDEN, given, HIDDEN * 4);
    memcpy(b.z.x, given, (size_t)size);
    edr_whole_layer(&b.z, layer, lengths, 3, TOKENS);
    memcpy(once, b.z.x, (size_t)size);
    memcpy(b.z.x, given, (size_t)size);
    CHECK(edr_qkv(&b.z, layer, 0, b.z.x, TOKENS, b.z.qkv) == layer->qkv.outputs);
    edr_projected_layer(&b.z, layer, lengths, 3, TOKENS, NULL, 0);
    CHECK(memcmp(once, b.z.x, (size_t)size) == 0);
    const int64_t width = layer->attention_output.inputs;
    float *own = exact_room(8 * HIDDEN * 4), *common = exact_room((size_t)layer->qkv.outputs * 4);
    memcpy(own, given + HIDDEN, HIDDEN * 4);
    memcpy(own + HIDDEN, given + 3 * HIDDEN, 7 * HIDDEN * 4);
    (void)edr_qkv(&b.z, layer, 0, given, 1, common);
    (void)edr_qkv(&b.z, layer, 0, own, 8, b.z.qkv);
    memcpy(b.z.x, given, (size_t)size);
    const edr_seen front = {common, common + width, common + 2 * width, 3 * width, 3 * width};
    edr_projected_layer(&b.z, layer, lengths, 3, TOKENS, &front, 1);
    CHECK(memcmp(once, b.z.x, (size_t)size) == 0);
    free(own);
    free(common);
    memcpy(b.z.x, given + (TOKENS - 1) * HIDDEN, HIDDEN * 4);
    edr_whole_layer(&b.z, layer, lengths + 2, 1, 1);
    CHECK(memcmp(once + (TOKENS - 1) * HIDDEN, b.z.x, HIDDEN * 4) == 0);
    CHECK(memcmp(once, given, (size_t)size) != 0);
    free(given);
    free(once);
    close_bench(&b);
}

static void test_slots(void)
{
    bench b = open_bench(INTEGERS, EDR_ISA_SCALAR);
    b.z.m = &b.m; /* not before: the struct has moved */
    int32_t ids[4] = {0, BUCKETS - 1, BUCKETS, -1};
    float weights[4] = {1, 1, 0, 0};
    const edr_slots two = {ids, weights, 2}, all = {ids, weights, 4}, none = {NULL, NULL, 0};
    CHECK(edr_slots_ok(&b.m, &two, 0) && edr_slots_ok(&b.m, &two, 1) && edr_slots_ok(&b.m, &all, 0) && edr_slots_ok(&b.m, &none, 0));
    weights[2] = 1;
    CHECK(edr_slots_ok(&b.m, &two, 0) && !edr_slots_ok(&b.m, &two, 1) && !edr_slots_ok(&b.m, &all, 0));
    weights[2] = 0;
    weights[3] = -1;
    CHECK(!edr_slots_ok(&b.m, &two, 1));
    close_bench(&b);
}

int main(void)
{
    test_buffers();
    test_slots();
    for (int isa = 0; isa < EDR_ISA_COUNT; isa++) {
        if (!edr_isa_supported(isa)) continue;
        test_embeddings(isa);
        edr_engine_kernels_for(isa)->begin();
        for (int weights = 0; weights < KINDS_OF_WEIGHTS; weights++) test_layer(weights, isa);
        edr_engine_kernels_for(isa)->end();
    }
    return check_report();
}
