/* cc -std=c11 -O3 -Icsrc tests/csrc/count_engine.c csrc/[a-z]*.c -lm -lpthread -o count_engine
 * count_engine LAYERS HIDDEN [ROWS] [PREFIX]: one call of edr_score, for `make bench-check` to count its instructions under
 * valgrind (--toggle-collect=edr_score). An int8 model of seeded random weights; PREFIX tokens in front of each row are the
 * same, 8 to 20 of its own follow, as a query and titles have them. Prints the number of tokens. EDGEREC_ISA forces the
 * kernels: valgrind has no AVX-512. */
#include <math.h>

#include "check.h"
#include "edr_engine.h"

enum { IDS = 2000, LENGTH = 128, MOST = 4096 };

static uint64_t state = 1;

static float *random_floats(int64_t n, float least, float most)
{
    float *x = exact_room((size_t)n * 4);
    for (int64_t i = 0; i < n; i++) x[i] = least + (most - least) * (float)(random_u64(&state) >> 40) * (1.0f / 16777216.0f);
    return x;
}

static int8_t *random_bytes(int64_t n)
{
    int8_t *x = exact_room((size_t)n);
    for (int64_t i = 0; i < n; i++) x[i] = (int8_t)(random_below(&state, 255) - 127);
    return x;
}

static edr_linear random_linear(int64_t inputs, int64_t outputs)
{
    const float size = 1.0f / (127 * sqrtf((float)inputs));
    return (edr_linear){random_bytes(inputs * outputs), random_floats(outputs, -0.1f, 0.1f), random_floats(outputs, size / 2, size),
                        random_floats(outputs, -0.1f, 0.1f), inputs, outputs};
}

static float *random_norm(int64_t h)
{
    float *norm = random_floats(2 * h, -0.1f, 0.1f);
    for (int64_t i = 0; i < h; i++) norm[i] += 1.0f;
    return norm;
}

/* Heads of 32 and an inner size of four times the hidden one, without pooler and features. Nothing is freed: the process ends. */
static edr_model random_model(int64_t layers, int64_t h)
{
    edr_model m = {.hidden = h, .head_size = 32, .layers = layers, .vocab = IDS, .positions = LENGTH, .types = 2, .int8 = 1};
    m.widest_inner = 4 * h;
    m.widest_heads = h;
    m.word = random_bytes(IDS * h);
    m.word_scale = random_floats(IDS, 0.004f, 0.008f);
    m.position = random_floats(LENGTH * h, -0.5f, 0.5f);
    m.type = random_floats(2 * h, -0.5f, 0.5f);
    m.embedding_norm = random_norm(h);
    for (int64_t i = 0; i < layers; i++) {
        m.layer[i] = (edr_layer){h / 32, 4 * h, random_linear(h, 3 * h), random_linear(h, h), random_linear(h, 4 * h), random_linear(4 * h, h),
                                 random_norm(h), random_norm(h)};
    }
    m.head = random_floats(h + 1, -0.3f, 0.3f);
    return m;
}

static int chosen_isa(void)
{
    const char *name = getenv("EDGEREC_ISA");
    for (int isa = 0; name != NULL && isa < EDR_ISA_COUNT; isa++) {
        if (strcmp(edr_isa_name(isa), name) == 0) return isa;
    }
    return edr_isa_best();
}

int main(int argc, char **argv)
{
    const int64_t numbers[4] = {argc > 1 ? atoll(argv[1]) : 2, argc > 2 ? atoll(argv[2]) : 128, argc > 3 ? atoll(argv[3]) : 100, argc > 4 ? atoll(argv[4]) : 6};
    const int64_t layers = numbers[0], h = numbers[1], rows = numbers[2], prefix = numbers[3];
    if (layers < 1 || layers > EDR_MAX_LAYERS || h < 32 || h > 1024 || h % 32 != 0 || rows < 1 || rows > MOST || prefix < 0 || prefix > 100) {
        fprintf(stderr, "count_engine LAYERS HIDDEN [ROWS] [PREFIX]\n");
        return 2;
    }
    const edr_model model = random_model(layers, h);
    static int32_t ids[MOST * LENGTH], types[MOST * LENGTH];
    static int64_t starts[MOST], lengths[MOST];
    static float logits[MOST];
    int64_t tokens = 0;
    for (int64_t i = 0; i < rows; i++) {
        starts[i] = i * LENGTH;
        lengths[i] = prefix + 8 + random_below(&state, 13);
        tokens += lengths[i];
        for (int64_t t = 0; t < LENGTH; t++) {
            ids[i * LENGTH + t] = (int32_t)(t < prefix ? t : random_below(&state, IDS));
            types[i * LENGTH + t] = t >= prefix;
        }
    }
    const edr_inputs in = {ids, types, rows * LENGTH, starts, lengths, rows, NULL, NULL, 0};
    const int64_t size = edr_score_room(&model);
    void *whole, *room = aligned_room(size, &whole);
    int64_t at = -1;
    if (edr_inputs_check(&model, &in, &at) != EDR_OK || edr_score(&model, &in, 0, rows, chosen_isa(), room, size, logits) != EDR_OK) return 1;
    for (int64_t i = 0; i < rows; i++) {
        if (!isfinite(logits[i])) return 1;
    }
    printf("%lld\n", (long long)tokens);
    return 0;
}
