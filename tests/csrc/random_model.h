/* random_model.h: int8 models of seeded random weights, of real sizes, for counting the engine's instructions. */
#ifndef EDGEREC_RANDOM_MODEL_H
#define EDGEREC_RANDOM_MODEL_H

#include <math.h>

#include "check.h"
#include "edr_engine.h"

enum { IDS = 2000, LENGTH = 128, MOST = 4096 };

static uint64_t random_state = 1;

static inline float *random_floats(int64_t n, float least, float most)
{
    float *x = exact_room((size_t)n * 4);
    for (int64_t i = 0; i < n; i++) x[i] = least + (most - least) * (float)(random_u64(&random_state) >> 40) * (1.0f / 16777216.0f);
    return x;
}

static inline int8_t *random_bytes(int64_t n)
{
    int8_t *x = exact_room((size_t)n);
    for (int64_t i = 0; i < n; i++) x[i] = (int8_t)(random_below(&random_state, 255) - 127);
    return x;
}

static inline edr_linear random_linear(int64_t inputs, int64_t outputs)
{
    const float size = 1.0f / (127 * sqrtf((float)inputs));
    int8_t *weight = random_bytes(inputs * outputs);
    for (int64_t i = 0; i < inputs * outputs; i++) weight[i] /= 2; /* short pairs, as built models have */
    return (edr_linear){weight, random_floats(outputs, -0.1f, 0.1f), random_floats(outputs, size, 2 * size), random_floats(outputs, -0.1f, 0.1f), inputs, outputs, 1};
}

static inline float *random_norm(int64_t h)
{
    float *norm = random_floats(2 * h, -0.1f, 0.1f);
    for (int64_t i = 0; i < h; i++) norm[i] += 1.0f;
    return norm;
}

static inline edr_layer random_layer(int64_t h)
{
    return (edr_layer){h / 32, 4 * h, random_linear(h, 3 * h), random_linear(h, h), random_linear(h, 4 * h), random_linear(4 * h, h),
                       random_norm(h), random_norm(h)};
}

/* The maps of a last layer, float32, from `inputs` to `outputs` numbers; their sizes are those of maps over `size` numbers. */
static inline edr_linear random_fold(int64_t inputs, int64_t size, int64_t outputs)
{
    const float most = 1.0f / sqrtf((float)size);
    return (edr_linear){random_floats(inputs * outputs, -most, most), random_floats(outputs, 0, 0), NULL, NULL, inputs, outputs, 0};
}

/* Heads of 32 and an inner size of four times the hidden one, without pooler and features. Nothing is freed: the process ends. */
static inline edr_model random_model(int64_t layers, int64_t h)
{
    edr_model m = {.hidden = h, .head_size = 32, .layers = layers, .vocab = IDS, .positions = LENGTH, .types = 2, .int8 = 1};
    m.widest_inner = 4 * h;
    m.widest_heads = h;
    m.word = random_bytes(IDS * h);
    m.word_scale = random_floats(IDS, 0.004f, 0.008f);
    m.position = random_floats(LENGTH * h, -0.5f, 0.5f);
    m.type = random_floats(2 * h, -0.5f, 0.5f);
    m.embedding_norm = random_norm(h);
    for (int64_t i = 0; i < layers; i++) m.layer[i] = random_layer(h);
    m.fold = random_fold(32, h, h / 32 * h);
    m.unfold = random_fold(h, 32, h);
    m.head = random_floats(h + 1, -0.3f, 0.3f);
    return m;
}

static inline int chosen_isa(void)
{
    const char *name = getenv("EDGEREC_ISA");
    for (int isa = 0; name != NULL && isa < EDR_ISA_COUNT; isa++) {
        if (strcmp(edr_isa_name(isa), name) == 0) return isa;
    }
    return edr_isa_best();
}

#endif
