/* engine_file.h: a tiny engine.bin built in memory, and rows to score with it. */
#ifndef EDGEREC_ENGINE_FILE_H
#define EDGEREC_ENGINE_FILE_H

#include "check.h"
#include "edr_engine.h"

#ifdef SMALLEST_MODEL /* for fuzzing, where what counts is how many inputs there are */
enum { HIDDEN = 32, HEAD = 16, LAYERS = 1, VOCAB = 5, POSITIONS = 9, TYPES = 2, BUCKETS = 4, WIDTH = 3, DEPTH = 5 };
static const int32_t LAYER_SIZES[2 * LAYERS] = {2, 32};
enum { MID_LAYERS = 2, QUERY_LAYERS = 1, ITEM_LAYERS = 1, ITEM_START = 4, GROUPS = 1, STATE_WIDTH = 12 };
static const int32_t MID_SIZES[2 * MID_LAYERS] = {2, 32, 2, 32}, KEEPS[GROUPS] = {1}, READS[MID_LAYERS - QUERY_LAYERS] = {0};
#else
/* Both layers differ in heads and inner size, as in a pruned student. */
enum { HIDDEN = 64, HEAD = 16, LAYERS = 2, VOCAB = 50, POSITIONS = 150, TYPES = 2, BUCKETS = 20, WIDTH = 8, DEPTH = 24 };
static const int32_t LAYER_SIZES[2 * LAYERS] = {4, 96, 2, 64};
/* The mid-fusion student: one layer for the query alone, three joint ones, of which two read the same state. */
enum { MID_LAYERS = 4, QUERY_LAYERS = 1, ITEM_LAYERS = 2, ITEM_START = 60, GROUPS = 2, STATE_WIDTH = 40 };
static const int32_t MID_SIZES[2 * MID_LAYERS] = {4, 96, 2, 64, 4, 64, 2, 96}, KEEPS[GROUPS] = {1, 2}, READS[MID_LAYERS - QUERY_LAYERS] = {0, 1, 1};
#endif
enum { TABLE_ENTRIES = 160, LARGEST_FILE = 1 << 21 };

typedef struct engine_file {
    uint8_t *bytes; /* LARGEST_FILE of room, at a multiple of 64, to be changed at will */
    void *whole;
    int64_t size, sections;
    int64_t ends[TABLE_ENTRIES]; /* of the sections; the next one begins 64 to 127 bytes later */
    uint64_t state;
} engine_file;

static inline float random_float(uint64_t *state, float least, float most)
{
    return least + (most - least) * (float)(random_u64(state) >> 40) * (1.0f / 16777216.0f);
}

/* How the layers' weights are stored; dtype codes of a section file. */
enum { FLOATS = 0, INTEGERS = 1, HALVES = 2, KINDS_OF_WEIGHTS = 3, DTYPE_INT8 = 2, DTYPE_UINT16 = 3, DTYPE_FLOAT32 = 7 };

/* One more section; its data is random: int8 over all of its range, floats (uint16: their upper halves) in least .. most. */
static inline void *add(engine_file *f, const char *name, uint32_t dtype, int64_t a, int64_t b, int64_t c, int64_t d, float least, float most)
{
    uint8_t *entry = f->bytes + 64 + 128 * f->sections++;
    const uint64_t shape[4] = {(uint64_t)a, (uint64_t)b, (uint64_t)c, (uint64_t)d}, offset = (uint64_t)f->size;
    const int64_t count = a * b * c * d;
    const uint64_t bytes = (uint64_t)count * (dtype == DTYPE_INT8 ? 1 : dtype == DTYPE_UINT16 ? 2 : 4);
    const uint32_t rank = 4;
    if (f->sections > TABLE_ENTRIES || f->size + (int64_t)bytes + 64 > LARGEST_FILE) abort();
    memcpy(entry, name, strlen(name));
    memcpy(entry + 32, &dtype, 4);
    memcpy(entry + 36, &rank, 4);
    memcpy(entry + 40, shape, 32);
    memcpy(entry + 72, &offset, 8);
    memcpy(entry + 80, &bytes, 8);
    void *data = f->bytes + f->size;
    for (int64_t i = 0; i < count; i++) {
        const float value = random_float(&f->state, least, most);
        uint32_t bits;
        memcpy(&bits, &value, 4);
        if (dtype == DTYPE_INT8) ((int8_t *)data)[i] = (int8_t)(random_below(&f->state, 255) - 127);
        if (dtype == DTYPE_UINT16) ((uint16_t *)data)[i] = (uint16_t)(bits >> 16);
        if (dtype == DTYPE_FLOAT32) memcpy((float *)data + i, &value, 4);
    }
    f->ends[f->sections - 1] = f->size + (int64_t)bytes;
    f->size = (f->size + (int64_t)bytes + 127) / 64 * 64;
    return data;
}

static inline void add_norm(engine_file *f, const char *name)
{
    float *norm = add(f, name, 7, 2, HIDDEN, 1, 1, -0.1f, 0.1f);
    for (int i = 0; i < HIDDEN; i++) norm[i] += 1.0f;
}

/* Scales and sums are those of the int8 weights, so that fp32 and int8 logits are of one size. Layer 1 has short pairs, as built models have. */
static inline void add_linear(engine_file *f, const char *part, int64_t k, int64_t n, int weights)
{
    char name[64];
    const float size = 0.2f;
    snprintf(name, sizeof name, "%s.weight", part);
    if (weights == INTEGERS) {
        int8_t *weight = add(f, name, DTYPE_INT8, n / 32, k / 4, 32, 4, 0, 0);
        if (strstr(part, "01.") != NULL) {
            for (int64_t i = 0; i < n * k; i++) weight[i] /= 2;
        }
        snprintf(name, sizeof name, "%s.scale", part);
        float *scale = add(f, name, 7, n, 1, 1, 1, 0.5f * size / 127, size / 127);
        snprintf(name, sizeof name, "%s.sums", part);
        float *sums = add(f, name, 7, n, 1, 1, 1, 0, 0);
        for (int64_t c = 0; c < n; c++) {
            int64_t sum = 0;
            for (int64_t i = 0; i < k; i++) sum += weight[(c / 32 * (k / 4) + i / 4) * 128 + c % 32 * 4 + i % 4];
            sums[c] = scale[c] * (float)sum;
        }
    } else if (weights == HALVES) {
        add(f, name, DTYPE_UINT16, n / 32, k / 2, 32, 2, -size, size);
    } else {
        add(f, name, 7, n / 32, k, 32, 1, -size, size);
    }
    snprintf(name, sizeof name, "%s.bias", part);
    add(f, name, 7, n, 1, 1, 1, -size, size);
}

#define NUMBERED(what, part) (snprintf(name, sizeof name, "%s%02d.%s", what, (int)i, part), name)

/* The last layer's maps to vectors of n numbers, and back. */
static inline void add_folds(engine_file *f, int64_t i, int64_t heads, int64_t n)
{
    char name[32];
    add_linear(f, NUMBERED("layer", "fold"), HEAD, heads * n, 0);
    add_linear(f, NUMBERED("layer", "unfold"), n, heads * ((HEAD + 31) / 32 * 32), 0);
}

/* Of the last layer only queries are projected where it `folds`. */
static inline void add_layers(engine_file *f, const char *what, int64_t count, const int32_t *sizes, int folds, int weights)
{
    char name[32];
    for (int64_t i = 0; i < count; i++) {
        const int64_t width = sizes[2 * i] * HEAD, inner = sizes[2 * i + 1];
        if (folds && i == count - 1) {
            add_linear(f, NUMBERED(what, "query"), HIDDEN, width, weights);
        } else {
            add_linear(f, NUMBERED(what, "qkv"), HIDDEN, 3 * width, weights);
        }
        add_linear(f, NUMBERED(what, "attention_output"), width, HIDDEN, weights);
        add_norm(f, NUMBERED(what, "attention_norm"));
        add_linear(f, NUMBERED(what, "up"), HIDDEN, inner, weights);
        add_linear(f, NUMBERED(what, "down"), inner, HIDDEN, weights);
        add_norm(f, NUMBERED(what, "output_norm"));
    }
}

/* What a mid-fusion student has more; `width` is that of a state, HIDDEN or less. */
static inline void add_mid(engine_file *f, int weights, int state_kind, int width)
{
    const int32_t sizes[8] = {QUERY_LAYERS, ITEM_LAYERS, ITEM_START, 0, 1, GROUPS, width, state_kind};
    const int64_t padded = (width + 31) / 32 * 32;
    char name[32];
    memcpy(add(f, "mid", 5, 8, 1, 1, 1, 0, 0), sizes, sizeof sizes);
    memcpy(add(f, "keeps", 5, GROUPS, 1, 1, 1, 0, 0), KEEPS, sizeof KEEPS);
    memcpy(add(f, "reads", 5, MID_LAYERS - QUERY_LAYERS, 1, 1, 1, 0, 0), READS, sizeof READS);
    memcpy(add(f, "items", 5, ITEM_LAYERS, 2, 1, 1, 0, 0), MID_SIZES, sizeof(int32_t) * 2 * ITEM_LAYERS);
    add_layers(f, "item", ITEM_LAYERS, MID_SIZES, 0, weights);
    for (int64_t i = 0; i < GROUPS && width < HIDDEN; i++) add_linear(f, NUMBERED("item", "narrow"), HIDDEN, padded, 0);
    for (int64_t i = QUERY_LAYERS; i < MID_LAYERS - 1; i++) add_linear(f, NUMBERED("layer", "state"), padded, 2 * MID_SIZES[2 * i] * HEAD, weights);
    const int64_t i = MID_LAYERS - 1, heads = MID_SIZES[2 * i];
    add_folds(f, i, heads, padded);
    add(f, NUMBERED("layer", "state_bias"), 7, 2, heads * HEAD, 1, 1, -0.2f, 0.2f);
}

/* Whether the files say that their GELU is the tanh approximation. */
static int tanh_files;
/* How many of LAYERS a cross student has. */
static int32_t cross_layers = LAYERS;

/* The whole file: weights of one kind, with or without features and the pooler; of a mid-fusion student when `width` is above 0. */
static inline engine_file build_student(int weights, int features, int pooler, int state_kind, int width)
{
    engine_file f = {.size = 64 + 128 * TABLE_ENTRIES, .state = 7};
    f.bytes = aligned_room(LARGEST_FILE, &f.whole);
    memset(f.bytes, 0, LARGEST_FILE);
    const int32_t layers = width > 0 ? MID_LAYERS : cross_layers, *sizes = width > 0 ? MID_SIZES : LAYER_SIZES;
    const int32_t config[11] = {HIDDEN, HEAD, layers, VOCAB, POSITIONS, TYPES, pooler, features ? BUCKETS : 0, features ? WIDTH : 0, features ? DEPTH : 0, weights};
    memcpy(add(&f, "config", 5, 11, 1, 1, 1, 0, 0), config, sizeof config);
    memcpy(add(&f, "layers", 5, layers, 2, 1, 1, 0, 0), sizes, sizeof(int32_t) * 2 * (size_t)layers);
    add_layers(&f, "layer", layers, sizes, width == 0, weights);
    if (width == 0) add_folds(&f, layers - 1, sizes[2 * (layers - 1)], HIDDEN);
    add(&f, "word", weights == INTEGERS ? DTYPE_INT8 : weights == HALVES ? DTYPE_UINT16 : DTYPE_FLOAT32, VOCAB, HIDDEN, 1, 1, -1, 1);
    if (weights == INTEGERS) add(&f, "word.scale", 7, VOCAB, 1, 1, 1, 0.004f, 0.008f);
    add(&f, "position", 7, POSITIONS, HIDDEN, 1, 1, -0.5f, 0.5f);
    add(&f, "type", 7, TYPES, HIDDEN, 1, 1, -0.5f, 0.5f);
    add_norm(&f, "embedding_norm");
    if (pooler) add_linear(&f, "pooler", HIDDEN, HIDDEN, 0);
    if (features) {
        add(&f, "feature_table", 7, BUCKETS, WIDTH, 1, 1, -1, 1);
        add_linear(&f, "feature_mlp", WIDTH, 32, 0);
    }
    add(&f, "head", 7, HIDDEN + (features ? DEPTH : 0) + 1, 1, 1, 1, -0.3f, 0.3f);
    if (width > 0) add_mid(&f, weights, state_kind, width);
    const int32_t tanh_gelu_number = 1;
    if (tanh_files) memcpy(add(&f, "gelu", 5, 1, 1, 1, 1, 0, 0), &tanh_gelu_number, sizeof tanh_gelu_number);
    f.size = f.ends[f.sections - 1];
    const uint32_t version = 1, sections = (uint32_t)f.sections;
    const uint64_t size = (uint64_t)f.size;
    memcpy(f.bytes, "EDRSECT1", 8);
    memcpy(f.bytes + 8, &version, 4);
    memcpy(f.bytes + 12, &sections, 4);
    memcpy(f.bytes + 16, &size, 8);
    return f;
}

/* A cross student's. */
static inline engine_file build_file(int weights, int features, int pooler) { return build_student(weights, features, pooler, 0, 0); }

/* The file as a mapping has it, but that nothing may be read between the sections and behind the last. Free `*whole`. */
static inline uint8_t *sealed(const engine_file *f, void **whole)
{
    uint8_t *copy = aligned_room(f->size, whole);
    memcpy(copy, f->bytes, (size_t)f->size);
    for (int64_t i = 0; i + 1 < f->sections; i++) FORBID(copy + f->ends[i], (size_t)((f->ends[i] + 127) / 64 * 64 - f->ends[i]));
    return copy;
}

enum { MOST_ROWS = 70, SLOTS = 3 };

/* Rows of many lengths, the longest as long as the model allows; ragged, with gaps between rows. */
typedef struct rows {
    int32_t *ids, *types, *feature_ids;
    float *weights;
    int64_t *starts, *lengths;
    edr_inputs in;
} rows;

static inline void make_rows(rows *r, int64_t count, int features, uint64_t seed)
{
    uint64_t state = seed;
    int64_t size = 0;
    r->starts = exact_room((size_t)count * 8);
    r->lengths = exact_room((size_t)count * 8);
    for (int64_t i = 0; i < count; i++) {
        size += random_below(&state, 3);
        r->lengths[i] = i == 1 ? POSITIONS : 1 + random_below(&state, random_below(&state, 5) == 0 ? POSITIONS : 20);
        r->starts[i] = size;
        size += r->lengths[i];
    }
    r->ids = exact_room((size_t)size * 4);
    r->types = exact_room((size_t)size * 4);
    r->feature_ids = exact_room((size_t)(count * SLOTS) * 4);
    r->weights = exact_room((size_t)(count * SLOTS) * 4);
    for (int64_t i = 0; i < size; i++) {
        r->ids[i] = (int32_t)random_below(&state, VOCAB);
        r->types[i] = (int32_t)random_below(&state, TYPES);
    }
    for (int64_t i = 0; i < count * SLOTS; i++) {
        r->feature_ids[i] = (int32_t)random_below(&state, BUCKETS);
        r->weights[i] = random_below(&state, 4) == 0 ? 0.0f : random_float(&state, -1, 1);
    }
    r->in = (edr_inputs){r->ids, r->types, size, r->starts, r->lengths, count, r->feature_ids, r->weights, features ? SLOTS : 0};
}

static inline void free_rows(rows *r)
{
    free(r->starts);
    free(r->lengths);
    free(r->ids);
    free(r->types);
    free(r->feature_ids);
    free(r->weights);
}

#endif
