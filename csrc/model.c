/* model.c: engine.bin, a section file (docs/formats.md), becomes an edr_model: sizes and pointers, nothing is copied. */
#include "engine_kernels.h"
#include "internal.h"

/* dtype codes of the section file. It has none for bfloat16, the upper half of a float32: that is stored as uint16. */
enum { INT8 = 2, BFLOAT16 = 3, INT32 = 5, FLOAT32 = 7 };
enum { HEADER_BYTES = 64, ENTRY_BYTES = 128, NAME_BYTES = EDR_NAME_ROOM - 1, MAX_SECTIONS = 4096, CONFIG = 11, MID = 8 };

/* The file, and the first fault found: after one, every look-up does nothing, so that callers check once. */
typedef struct reader {
    const uint8_t *data;
    int64_t size, sections;
    int64_t asked; /* how many sections were looked for */
    edr_status status;
    char name[EDR_NAME_ROOM]; /* of the last one */
} reader;

static uint64_t u64_at(const uint8_t *p)
{
    uint64_t value;
    memcpy(&value, p, 8);
    return value;
}

static uint32_t u32_at(const uint8_t *p)
{
    uint32_t value;
    memcpy(&value, p, 4);
    return value;
}

static void fault(reader *in, edr_status status)
{
    if (in->status == EDR_OK) in->status = status;
}

static const uint8_t *entry_at(const reader *in, int64_t i) { return in->data + HEADER_BYTES + i * ENTRY_BYTES; }

/* Sections lie behind the table, in its order, and do not overlap. */
static edr_status check_table(const reader *in)
{
    const uint64_t size = (uint64_t)in->size;
    uint64_t end = (uint64_t)(HEADER_BYTES + in->sections * ENTRY_BYTES);
    for (int64_t i = 0; i < in->sections; i++) {
        const uint8_t *entry = entry_at(in, i);
        const uint64_t offset = u64_at(entry + 72), bytes = u64_at(entry + 80);
        if (u32_at(entry + 36) > 4) return EDR_E_VALUE;
        if (offset % 64 != 0 || offset < end || offset > size || bytes > size - offset) return EDR_E_OFFSETS;
        end = offset + bytes;
    }
    return EDR_OK;
}

/* The entry of the name looked for; NULL when there is none, or more than one. */
static const uint8_t *entry_of(const reader *in)
{
    const uint8_t *found = NULL;
    for (int64_t i = 0; i < in->sections; i++) {
        if (memcmp(entry_at(in, i), in->name, NAME_BYTES) != 0) continue;
        if (found != NULL) return NULL;
        found = entry_at(in, i);
    }
    return found;
}

static void look_for(reader *in, const char *name)
{
    memset(in->name, 0, sizeof in->name);
    for (int i = 0; i < NAME_BYTES && name[i] != 0; i++) in->name[i] = name[i];
}

/* The data of a section that must have this dtype and this shape; sides past the rank are 1. */
static const void *section(reader *in, const char *name, uint32_t dtype, int64_t a, int64_t b, int64_t c, int64_t d)
{
    if (in->status != EDR_OK) return NULL;
    in->asked++;
    look_for(in, name);
    const uint8_t *entry = entry_of(in);
    if (entry == NULL) {
        fault(in, EDR_E_OFFSETS);
        return NULL;
    }
    if (u32_at(entry + 32) != dtype) {
        fault(in, EDR_E_VALUE);
        return NULL;
    }
    const int64_t shape[4] = {a, b, c, d};
    uint64_t bytes = dtype == INT8 ? 1 : dtype == BFLOAT16 ? 2 : 4;
    for (int i = 0; i < 4; i++) {
        /* The sides are below 2^31 and, each being in the file's header too, their product is checked step by step. */
        if (u64_at(entry + 40 + 8 * i) != (uint64_t)shape[i] || bytes > (uint64_t)in->size) {
            fault(in, EDR_E_SIZE);
            return NULL;
        }
        bytes *= (uint64_t)shape[i];
    }
    if (u64_at(entry + 80) != bytes) {
        fault(in, EDR_E_SIZE);
        return NULL;
    }
    return in->data + u64_at(entry + 72); /* within the file: check_table */
}

/* What the name of a section begins with: "layer07." or "item07.", or nothing. */
typedef struct place {
    const char *what;
    int64_t number;
} place;

static const place NOWHERE = {"", -1};

/* place + part + suffix, in a buffer that the next call writes again. */
static const char *name_of(char buffer[NAME_BYTES + 1], place at, const char *part, const char *suffix)
{
    const char number[4] = {(char)('0' + at.number / 10), (char)('0' + at.number % 10), '.', 0};
    const char *parts[4] = {at.what, at.number < 0 ? "" : number, part, suffix};
    int n = 0;
    for (int i = 0; i < 4; i++) {
        for (const char *c = parts[i]; *c != 0 && n < NAME_BYTES; c++) buffer[n++] = *c;
    }
    buffer[n] = 0;
    return buffer;
}

/*
 * 1 if no two neighbours along K, times any two bytes, leave 16 bits: 255 |q + q'| <= 32767. A file may hold any weights; those of
 * native_packer.py are of this kind.
 */
static int has_short_pairs(const int8_t *q, int64_t n)
{
    int most = 0;
    for (int64_t i = 0; i < n; i += 2) {
        const int sum = q[i] + q[i + 1], size = sum < 0 ? -sum : sum;
        most = size > most ? size : most;
    }
    return most <= 128;
}

static edr_linear linear(reader *in, place at, const char *part, int64_t inputs, int64_t outputs, uint32_t dtype)
{
    char name[NAME_BYTES + 1];
    edr_linear w = {NULL, NULL, NULL, NULL, inputs, outputs, 0};
    const int64_t panels = outputs / EDR_PANEL;
    if (dtype == INT8) {
        w.weight = section(in, name_of(name, at, part, ".weight"), INT8, panels, inputs / 4, EDR_PANEL, 4);
        w.scale = section(in, name_of(name, at, part, ".scale"), FLOAT32, outputs, 1, 1, 1);
        w.sums = section(in, name_of(name, at, part, ".sums"), FLOAT32, outputs, 1, 1, 1);
        w.short_pairs = w.weight != NULL && has_short_pairs(w.weight, outputs * inputs);
    } else if (dtype == BFLOAT16) {
        w.weight = section(in, name_of(name, at, part, ".weight"), BFLOAT16, panels, inputs / 2, EDR_PANEL, 2);
    } else {
        w.weight = section(in, name_of(name, at, part, ".weight"), FLOAT32, panels, inputs, EDR_PANEL, 1);
    }
    w.bias = section(in, name_of(name, at, part, ".bias"), FLOAT32, outputs, 1, 1, 1);
    return w;
}

static int64_t larger(int64_t a, int64_t b) { return a > b ? a : b; }

static int within(int64_t value, int64_t low, int64_t high) { return value >= low && value <= high; }

/* The sizes that section `config` gives, in order; the limits keep every later product of two or three within 2^62. */
static void read_sizes(reader *in, edr_model *m)
{
    const int32_t *c = section(in, "config", INT32, CONFIG, 1, 1, 1);
    if (c == NULL) return;
    m->hidden = c[0];
    m->head_size = c[1];
    m->layers = c[2];
    m->vocab = c[3];
    m->positions = c[4];
    m->types = c[5];
    m->has_pooler = c[6];
    m->buckets = c[7];
    m->feature_width = c[8];
    m->feature_hidden = c[9];
    m->int8 = c[10] == 1;
    m->bf16 = c[10] == 2;
    const int features = m->buckets != 0;
    const int ok = within(m->hidden, 32, 8192) && m->hidden % 32 == 0 && within(m->head_size, 1, 1024) && within(m->layers, 1, EDR_MAX_LAYERS) &&
                   within(m->vocab, 1, INT32_MAX) && within(m->positions, 1, 16384) && within(m->types, 1, 16384) &&
                   within(m->has_pooler, 0, 1) && within(c[10], 0, 2) && within(m->buckets, 0, INT32_MAX) &&
                   within(m->feature_width, features, features ? 4096 : 0) && within(m->feature_hidden, features, features ? 4096 : 0);
    if (!ok) fault(in, EDR_E_VALUE);
}

/* Of the layers' weights and of the word embeddings; the rest is float32. */
static uint32_t dtype_of(const edr_model *m) { return m->int8 ? INT8 : m->bf16 ? BFLOAT16 : FLOAT32; }

/* `count` layers, whose heads and inner sizes section `sizes` gives; of the last one only queries are projected where `folds` says so. */
static void read_layers(reader *in, edr_model *m, const char *what, const char *sizes, int64_t count, int folds, edr_layer *layers)
{
    const int64_t h = m->hidden;
    char name[NAME_BYTES + 1];
    const int32_t *given = section(in, sizes, INT32, count, 2, 1, 1);
    for (int64_t i = 0; i < count && in->status == EDR_OK; i++) {
        edr_layer *layer = &layers[i];
        const place at = {what, i};
        layer->heads = given[2 * i];
        layer->inner = given[2 * i + 1];
        const int64_t width = layer->heads * m->head_size;
        /* An inner size past 65536 could overflow 32-bit sums of int8 products. */
        if (!within(width, 32, 65536) || width % 32 != 0 || !within(layer->inner, 32, 65536) || layer->inner % 32 != 0) {
            fault(in, EDR_E_VALUE);
            return;
        }
        if (folds && i == count - 1) {
            layer->qkv = linear(in, at, "query", h, width, dtype_of(m));
        } else {
            layer->qkv = linear(in, at, "qkv", h, 3 * width, dtype_of(m));
        }
        layer->attention_output = linear(in, at, "attention_output", width, h, dtype_of(m));
        layer->attention_norm = section(in, name_of(name, at, "attention_norm", ""), FLOAT32, 2, h, 1, 1);
        layer->up = linear(in, at, "up", h, layer->inner, dtype_of(m));
        layer->down = linear(in, at, "down", layer->inner, h, dtype_of(m));
        layer->output_norm = section(in, name_of(name, at, "output_norm", ""), FLOAT32, 2, h, 1, 1);
        m->widest_inner = larger(m->widest_inner, layer->inner);
        m->widest_heads = larger(m->widest_heads, width);
    }
}

/* The last layer's maps from a head's question to the vectors of n numbers that it looks at, and from a mean of them to its answer. */
static void read_folds(reader *in, edr_model *m, int64_t n)
{
    const place last = {"layer", m->layers - 1};
    const int64_t heads = m->layer[last.number].heads, head = (m->head_size + 31) / 32 * 32;
    m->fold = linear(in, last, "fold", m->head_size, heads * n, FLOAT32);
    m->unfold = linear(in, last, "unfold", n, heads * head, FLOAT32);
}

/* Section `mid`, which a cross student lacks, and the sizes in it. */
static void read_mid_sizes(reader *in, edr_model *m)
{
    edr_mid *mid = &m->mid;
    const int32_t *c = section(in, "mid", INT32, MID, 1, 1, 1);
    if (c == NULL) return;
    mid->query_layers = c[0];
    mid->item_layers = c[1];
    mid->item_start = c[2];
    mid->query_type = c[3];
    mid->item_type = c[4];
    mid->groups = c[5];
    mid->width = c[6];
    mid->state_kind = c[7];
    const int ok = within(mid->query_layers, 1, m->layers - 1) && within(mid->item_layers, 1, EDR_MAX_LAYERS) &&
                   within(mid->item_start, 1, m->positions - 1) && within(mid->query_type, 0, m->types - 1) &&
                   within(mid->item_type, 0, m->types - 1) && within(mid->groups, 1, EDR_MAX_LAYERS) && within(mid->width, 1, m->hidden) &&
                   within(mid->state_kind, 0, EDR_STATES_FP16);
    if (!ok) fault(in, EDR_E_VALUE);
}

static void read_mid(reader *in, edr_model *m)
{
    edr_mid *mid = &m->mid;
    const int64_t joint = m->layers - mid->query_layers, padded = (mid->width + 31) / 32 * 32;
    int wrong = 0;
    mid->keeps = section(in, "keeps", INT32, mid->groups, 1, 1, 1);
    for (int64_t g = 0; g < mid->groups && in->status == EDR_OK; g++) {
        wrong |= !within(mid->keeps[g], g > 0 ? mid->keeps[g - 1] + (int64_t)1 : 0, mid->item_layers);
    }
    if (wrong) fault(in, EDR_E_VALUE);
    mid->reads = section(in, "reads", INT32, joint, 1, 1, 1);
    for (int64_t i = 0; i < joint && in->status == EDR_OK; i++) wrong |= !within(mid->reads[i], 0, mid->groups - 1);
    if (wrong) fault(in, EDR_E_VALUE);
    read_layers(in, m, "item", "items", mid->item_layers, 0, mid->item);
    for (int64_t g = 0; g < mid->groups && mid->width < m->hidden; g++) {
        mid->narrow[g] = linear(in, (place){"item", g}, "narrow", m->hidden, padded, FLOAT32);
    }
    const int64_t last = m->layers - 1;
    for (int64_t i = mid->query_layers; i < last; i++) {
        mid->state[i] = linear(in, (place){"layer", i}, "state", padded, 2 * m->layer[i].attention_output.inputs, dtype_of(m));
    }
    read_folds(in, m, padded);
    char name[NAME_BYTES + 1];
    mid->state_bias = section(in, name_of(name, (place){"layer", last}, "state_bias", ""), FLOAT32, 2, m->layer[last].heads * m->head_size, 1, 1);
}

static void read_rest(reader *in, edr_model *m)
{
    m->word = section(in, "word", dtype_of(m), m->vocab, m->hidden, 1, 1);
    if (m->int8) m->word_scale = section(in, "word.scale", FLOAT32, m->vocab, 1, 1, 1);
    m->position = section(in, "position", FLOAT32, m->positions, m->hidden, 1, 1);
    m->type = section(in, "type", FLOAT32, m->types, m->hidden, 1, 1);
    m->embedding_norm = section(in, "embedding_norm", FLOAT32, 2, m->hidden, 1, 1);
    if (m->has_pooler) m->pooler = linear(in, NOWHERE, "pooler", m->hidden, m->hidden, FLOAT32);
    if (m->buckets != 0) {
        m->feature_table = section(in, "feature_table", FLOAT32, m->buckets, m->feature_width, 1, 1);
        m->feature_mlp = linear(in, NOWHERE, "feature_mlp", m->feature_width, (m->feature_hidden + 31) / 32 * 32, FLOAT32);
    }
    m->head = section(in, "head", FLOAT32, m->hidden + m->feature_hidden + 1, 1, 1, 1);
}

static edr_status open_model(reader *in, edr_model *model)
{
    if (in->size < HEADER_BYTES || (uintptr_t)in->data % 64 != 0) return EDR_E_SIZE;
    in->sections = u32_at(in->data + 12);
    if (memcmp(in->data, "EDRSECT1", 8) != 0 || u32_at(in->data + 8) != 1) return EDR_E_VALUE;
    if (u64_at(in->data + 16) != (uint64_t)in->size || in->sections > MAX_SECTIONS || in->sections > (in->size - HEADER_BYTES) / ENTRY_BYTES) {
        return EDR_E_SIZE;
    }
    const edr_status table = check_table(in);
    if (table != EDR_OK) return table;
    memset(model, 0, sizeof *model);
    read_sizes(in, model);
    if (in->status != EDR_OK) return in->status;
    look_for(in, "gelu");
    if (entry_of(in) != NULL) { /* a model of the exact one has none */
        const int32_t *gelu = section(in, "gelu", INT32, 1, 1, 1, 1);
        if (gelu != NULL && !within(*gelu, 0, 1)) fault(in, EDR_E_VALUE);
        if (in->status != EDR_OK) return in->status;
        model->gelu_tanh = *gelu;
    }
    look_for(in, "mid");
    const int is_mid = entry_of(in) != NULL;
    if (is_mid) read_mid_sizes(in, model);
    if (in->status == EDR_OK) read_layers(in, model, "layer", "layers", model->layers, !is_mid, model->layer);
    if (in->status == EDR_OK && is_mid) read_mid(in, model);
    if (in->status == EDR_OK && !is_mid) read_folds(in, model, model->hidden);
    if (in->status == EDR_OK) read_rest(in, model);
    return in->status;
}

edr_status edr_model_open(const void *data, int64_t size, edr_model *model, int64_t *at)
{
    if (data == NULL || model == NULL) return edr_fail(EDR_E_NULL, at, -1);
    reader in = {.data = data, .size = size};
    edr_model m;
    const edr_status status = open_model(&in, &m);
    if (status != EDR_OK) return edr_fail(status, at, in.asked - 1);
    *model = m;
    return EDR_OK;
}

void edr_model_fault(const void *data, int64_t size, char name[EDR_NAME_ROOM])
{
    reader in = {.data = data, .size = size};
    edr_model m;
    const edr_status status = data != NULL ? open_model(&in, &m) : EDR_OK;
    memset(name, 0, EDR_NAME_ROOM);
    if (status != EDR_OK) memcpy(name, in.name, EDR_NAME_ROOM);
}
