/* tokenizer_file.h: a tiny tokenizer.bin built in memory. */
#ifndef EDGEREC_TOKENIZER_FILE_H
#define EDGEREC_TOKENIZER_FILE_H

#include "check.h"
#include "edr_wordpiece.h"

enum { SECTIONS_OF_FILE = 10, LARGEST_FILE = 1 << 16, FIRSTS = 9, PIECES = 17, UNKNOWN = 1, MAX_CHARS = 12, SLOTS = 64, ADDED = 3 };
enum { IS_DROPPED = 0, IS_SPACE = 1, IS_ASK = 2, IS_LETTER = 3, IS_ALONE = 4, IS_RUN = 5 };
/* Blocks of 128 code points: ASCII, Latin, marks, the rest, ideographs. */
enum { ASCII = 0, LATIN = 1, MARKS = 2, REST = 3, IDEOGRAPHS = 4, BLOCKS = 5 };

/* The id of a piece is 100 + its number. Pieces from FIRSTS on continue a word. */
static const char *const PIECE_TEXTS[PIECES] = {"a", "red", "lamp", "un", "aff", "!", "\xE4\xB8\xAD", "\xF0\x9F\x98\x80", "ab",
                                                "able", "a", "s", "b", "re", "red", "\xC3\x9F", "ss"};
static const char *const ADDED_TEXTS[ADDED] = {"[SEP]", "[S", "<>"};

typedef struct tokenizer_file {
    uint8_t *bytes; /* LARGEST_FILE of room, at a multiple of 64, to be changed at will */
    void *whole;
    int64_t size, sections;
    int64_t starts[SECTIONS_OF_FILE], ends[SECTIONS_OF_FILE]; /* of the data, in the order of docs/formats.md */
} tokenizer_file;

static inline void *add_section(tokenizer_file *f, const char *name, uint32_t dtype, uint64_t width, int64_t count)
{
    uint8_t *entry = f->bytes + 64 + 128 * f->sections;
    const uint64_t shape[4] = {(uint64_t)count, 1, 1, 1}, offset = (uint64_t)f->size, bytes = (uint64_t)count * width;
    const uint32_t rank = 1;
    memcpy(entry, name, strlen(name));
    memcpy(entry + 32, &dtype, 4);
    memcpy(entry + 36, &rank, 4);
    memcpy(entry + 40, shape, 32);
    memcpy(entry + 72, &offset, 8);
    memcpy(entry + 80, &bytes, 8);
    f->starts[f->sections] = f->size;
    f->ends[f->sections++] = f->size + (int64_t)bytes;
    f->size = (f->size + (int64_t)bytes + 127) / 64 * 64;
    if (f->size > LARGEST_FILE) abort();
    return f->bytes + offset;
}

static inline void add_strings(tokenizer_file *f, const char *places_name, const char *name, const char *const *texts, int count)
{
    uint32_t *places = add_section(f, places_name, 6, 4, count + 1);
    int64_t total = 0;
    for (int i = 0; i < count; i++) {
        total += (int64_t)strlen(texts[i]);
        places[i + 1] = (uint32_t)total;
    }
    uint8_t *bytes = add_section(f, name, 1, 1, total);
    for (int i = 0; i < count; i++) memcpy(bytes + places[i], texts[i], strlen(texts[i]));
}

/* docs/formats.md, "tokenizer.bin", says how: this is its third reading, beside builder and library. */
static inline uint64_t hash_of(const char *text, int continues)
{
    uint64_t h = 0;
    for (; *text != 0; text++) h = h * UINT64_C(0x9E3779B185EBCA87) + (uint8_t)*text + 1;
    if (continues) h ^= UINT64_C(0x94D049BB133111EB);
    h = (h ^ h >> 32) * UINT64_C(0xBF58476D1CE4E5B9);
    return h ^ h >> 29;
}

static inline uint32_t run_code(uint32_t place, uint32_t length) { return IS_RUN | length << 3 | place << 8; }

static inline void describe_points(uint32_t *points)
{
    for (int i = 0; i < BLOCKS * 128; i++) points[i] = i / 128 == MARKS ? IS_DROPPED : i / 128 == IDEOGRAPHS ? IS_ALONE : IS_LETTER;
    uint32_t *ascii = points + ASCII * 128, *latin = points + LATIN * 128, *marks = points + MARKS * 128;
    for (int i = 0; i < 32; i++) ascii[i] = i == '\t' || i == '\n' ? IS_SPACE : IS_DROPPED;
    ascii[' '] = IS_SPACE;
    for (int i = 33; i < 48; i++) ascii[i] = IS_ALONE;
    for (uint32_t i = 'A'; i <= 'Z'; i++) ascii[i] = run_code(i - 'A', 1);
    latin[0xE9 - 128] = run_code(4, 1);   /* e with acute: e */
    latin[0xBC - 128] = run_code(26, 5);  /* one quarter: "1 / 4", as none does; a word, a mark, a word */
    marks[0x2E] = IS_ASK;
}

static inline tokenizer_file build_tokenizer(void)
{
    static const char runs[] = "abcdefghijklmnopqrstuvwxyzs ! s";
    tokenizer_file f = {.size = 64 + 128 * SECTIONS_OF_FILE};
    f.bytes = aligned_room(LARGEST_FILE, &f.whole);
    memset(f.bytes, 0, LARGEST_FILE);
    int32_t *config = add_section(&f, "config", 5, 4, 5);
    uint16_t *blocks = add_section(&f, "blocks", 3, 2, 8704);
    for (int i = 0; i < 8704; i++) blocks[i] = REST;
    blocks[0] = ASCII;
    blocks[1] = LATIN;
    blocks[0x300 / 128] = MARKS;
    for (int i = 0x4E00 / 128; i < 0xA000 / 128; i++) blocks[i] = IDEOGRAPHS;
    describe_points(add_section(&f, "points", 6, 4, BLOCKS * 128));
    memcpy(add_section(&f, "runs", 1, 1, 31), runs, 31);
    uint32_t *slots = add_section(&f, "slots", 6, 4, SLOTS);
    int probes = 0;
    for (uint32_t i = 0; i < PIECES; i++) {
        const uint64_t h = hash_of(PIECE_TEXTS[i], i >= FIRSTS);
        int tried = 1;
        uint64_t slot = h % SLOTS;
        for (; slots[slot] != 0; slot = (slot + 1) % SLOTS) tried++;
        slots[slot] = (uint32_t)(h >> 52) << 20 | (i + 1);
        if (tried > probes) probes = tried;
    }
    add_strings(&f, "places", "letters", PIECE_TEXTS, PIECES);
    int32_t *ids = add_section(&f, "ids", 5, 4, PIECES);
    for (int i = 0; i < PIECES; i++) ids[i] = 100 + i;
    add_strings(&f, "added.places", "added", ADDED_TEXTS, ADDED);
    const int32_t numbers[5] = {MAX_CHARS, UNKNOWN, FIRSTS, 4, probes};
    memcpy(config, numbers, sizeof numbers);
    const uint32_t head[2] = {1, SECTIONS_OF_FILE};
    const uint64_t size = (uint64_t)f.size;
    memcpy(f.bytes, "EDRSECT1", 8);
    memcpy(f.bytes + 8, head, 8);
    memcpy(f.bytes + 16, &size, 8);
    return f;
}

/* A copy in a heap block of its very size; to be freed by *whole. Between the sections lie forbidden bytes. */
static inline uint8_t *exact_file(const tokenizer_file *f, const uint8_t *bytes, int64_t size, void **whole)
{
    uint8_t *copy = aligned_room(size, whole);
    memcpy(copy, bytes, (size_t)size);
    for (int i = 0; i + 1 < SECTIONS_OF_FILE && size == f->size; i++) {
        const int64_t from = (f->ends[i] + 7) / 8 * 8;
        FORBID(copy + from, (size_t)(f->starts[i + 1] - from));
    }
    return copy;
}

#endif
