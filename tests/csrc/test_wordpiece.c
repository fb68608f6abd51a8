/* cc -std=c11 -g -fsanitize=address,undefined -Icsrc tests/csrc/test_wordpiece.c csrc/[a-z]*.c -lm -lpthread -o test_wordpiece
 * tokenizer.bin: what a good one gives, against a slow reading of the same vocabulary; what a bad one is refused for. */
#include "tokenizer_file.h"

static tokenizer_file file;
static edr_wordpiece w;

/* The ids of a text in heap blocks of exact size; their number, or EDR_ASK. */
static int64_t ids_of(const char *text, int64_t size, int64_t limit, int32_t *out)
{
    char *copy = exact_copy(text, (size_t)size);
    int32_t *ids = exact_room((size_t)limit * 4);
    int64_t count = -9;
    CHECK(edr_wordpiece_encode(&w, copy, size, limit, ids, &count) == EDR_OK);
    if (count > 0) memcpy(out, ids, (size_t)count * 4);
    free(copy);
    free(ids);
    return count;
}

static int gives(const char *text, int64_t limit, int64_t count, const int32_t *wanted)
{
    int32_t ids[64];
    return ids_of(text, (int64_t)strlen(text), limit, ids) == count && (count <= 0 || memcmp(ids, wanted, (size_t)count * 4) == 0);
}

#define GIVES(text, ...) gives(text, 64, sizeof((int32_t[]){__VA_ARGS__}) / 4, (int32_t[]){__VA_ARGS__})
#define ASKS(text) gives(text, 64, EDR_ASK, NULL)

static void test_texts(void)
{
    CHECK(gives("", 64, 0, NULL) && gives(" \t\n\x01", 64, 0, NULL));
    CHECK(GIVES("red", 101) && GIVES("  ReD\tLAMP", 101, 102) && GIVES("red\x02lamp", UNKNOWN));
    CHECK(GIVES("unaffable", UNKNOWN) && GIVES("unable", 103, 109) && GIVES("lamps", 102, 111));
    CHECK(GIVES("abre", 108, 113) && GIVES("abred", 108, 114) && GIVES("aa", 100, 110)); /* the longest first */
    CHECK(GIVES("q", UNKNOWN) && GIVES("redq red", UNKNOWN, 101));                       /* one unknown, whatever fitted before */
    CHECK(GIVES("able", UNKNOWN) && GIVES("lampun", UNKNOWN));                           /* a piece is for its place */
    CHECK(GIVES("red!lamp!!", 101, 105, 102, 105, 105));
    CHECK(GIVES("\xE4\xB8\xAD\xE4\xB8\xAD" "a", 106, 106, 100));
    CHECK(GIVES("\xF0\x9F\x98\x80s", 107, 111) && GIVES("a\xC3\x9F", 100, 115));
    CHECK(GIVES("r\xC3\xA9" "d", 101) && GIVES("re\xCC\x81" "d", 101));             /* an accent is no letter */
    CHECK(GIVES("a\xC2\xBC" "a", 100, 111, 105, UNKNOWN));                           /* a run with a word's end in it */
    CHECK(GIVES("aaaaaaaaaaaa", 100, 110, 110, 110, 110, 110, 110, 110, 110, 110, 110, 110) && GIVES("aaaaaaaaaaaaa", UNKNOWN));
    CHECK(ASKS("red \xCC\xAE") && ASKS("red[SEP]") && ASKS("[S") && ASKS("a<>") && GIVES("a <", 100, UNKNOWN) && GIVES("[ S", UNKNOWN, UNKNOWN));
}

static void test_what_is_not_utf8_is_asked(void)
{
    const char *const bad[] = {"\x80", "\xC0\x80", "\xC1\xBF", "\xC3", "\xE0\x80\x80", "\xE4\xB8", "\xED\xA0\x80", "\xED\xBF\xBF",
                               "\xF0\x80\x80\x80", "\xF4\x90\x80\x80", "\xF5\x80\x80\x80", "\xFF", "\xC3(", "\xF0\x9F\x98"};
    char text[16];
    for (size_t i = 0; i < sizeof bad / sizeof bad[0]; i++) {
        snprintf(text, sizeof text, "a %s", bad[i]);
        CHECK(ASKS(bad[i]) && ASKS(text));
    }
    CHECK(GIVES("\xED\x9F\xBF \xEE\x80\x80 \xF4\x8F\xBF\xBF \xF0\x90\x80\x80", UNKNOWN, UNKNOWN, UNKNOWN, UNKNOWN));
    int32_t ids[4];
    CHECK(ids_of("a\0s", 3, 4, ids) == 2 && ids[0] == 100 && ids[1] == 111);
}

static void test_a_limit_ends_the_reading(void)
{
    CHECK(gives("red lamp a", 2, 2, (int32_t[]){101, 102}) && gives("aaaa", 2, 2, (int32_t[]){100, 110}));
    CHECK(gives("red", 0, 0, NULL) && gives("[SEP]", 0, 0, NULL));
    CHECK(gives("red lamp [SEP] \xFF", 2, 2, (int32_t[]){101, 102}) && gives("red lamp [SEP]", 3, EDR_ASK, NULL));
    CHECK(gives("red!lamp", 1, 1, (int32_t[]){101}));
}

/* Greedy matching with strncmp, over words of letters a, b, d, e, r, s and u, n, l, m, p. */
static int64_t slow(const char *text, int32_t *out)
{
    int64_t count = 0;
    for (const char *word = text; *word != 0;) {
        if (*word == ' ') {
            word++;
            continue;
        }
        const int64_t n = (int64_t)strcspn(word, " "), first = count;
        for (int64_t start = 0; start < n;) {
            int best = -1;
            for (int i = start > 0 ? FIRSTS : 0; i < (start > 0 ? PIECES : FIRSTS); i++) {
                const int64_t length = (int64_t)strlen(PIECE_TEXTS[i]);
                if (length > n - start || strncmp(PIECE_TEXTS[i], word + start, (size_t)length) != 0) continue;
                if (best < 0 || length > (int64_t)strlen(PIECE_TEXTS[best])) best = i;
            }
            if (best < 0 || n > MAX_CHARS) {
                count = first;
                out[count++] = UNKNOWN;
                break;
            }
            out[count++] = 100 + best;
            start += (int64_t)strlen(PIECE_TEXTS[best]);
        }
        word += n;
    }
    return count;
}

static void test_random_words_against_a_slow_reading(void)
{
    uint64_t rng = 3;
    int unknown = 0, known = 0;
    for (int round = 0; round < 4000; round++) {
        char text[80] = "";
        for (int64_t n = random_below(&rng, 8); n >= 0; n--) {
            const int64_t kind = random_below(&rng, 8);
            strcat(text, kind == 0 ? " " : kind == 1 ? "q" : PIECE_TEXTS[random_below(&rng, 2) ? random_below(&rng, 5) : FIRSTS + random_below(&rng, 6)]);
        }
        int32_t found[80], wanted[80];
        const int64_t count = slow(text, wanted);
        CHECK(ids_of(text, (int64_t)strlen(text), 80, found) == count && memcmp(found, wanted, (size_t)count * 4) == 0);
        for (int64_t i = 0; i < count; i++) wanted[i] == UNKNOWN ? unknown++ : known++;
    }
    CHECK(unknown > 1000 && known > 1000);
}

static void test_many_texts_are_those_alone(void)
{
    const char *const texts[] = {"red lamp", "", "[SEP]", "unable a a a", "q"};
    int64_t sizes[5], offsets[6], at = -9;
    for (int i = 0; i < 5; i++) sizes[i] = (int64_t)strlen(texts[i]);
    uint8_t asked[5];
    int64_t room = 0;
    for (int i = 0; i < 5; i++) room += sizes[i] * w.longest_run < 3 ? sizes[i] * w.longest_run : 3;
    int32_t *ids = exact_room((size_t)room * 4);
    CHECK(edr_wordpiece_encode_all(&w, texts, sizes, 5, 3, ids, room, offsets, asked, &at) == EDR_OK && at == -9);
    const int32_t wanted[] = {101, 102, 103, 109, 100, UNKNOWN};
    const int64_t ends[] = {0, 2, 2, 2, 5, 6};
    CHECK(memcmp(ids, wanted, sizeof wanted) == 0 && memcmp(offsets, ends, sizeof ends) == 0);
    CHECK(asked[2] && !(asked[0] | asked[1] | asked[3] | asked[4]));
    memset(offsets, 0x5A, sizeof offsets);
#define ALL(texts, sizes, n, limit, room) edr_wordpiece_encode_all(&w, texts, sizes, n, limit, ids, room, offsets, asked, &at)
    CHECK(ALL(texts, sizes, 5, 3, room - 1) == EDR_E_SPACE && at == 4 && ALL(texts, sizes, 5, 3, 0) == EDR_E_SPACE && at == 0);
    CHECK(ALL(texts, sizes, -1, 3, room) == EDR_E_SIZE && ALL(texts, sizes, 5, -3, room) == EDR_E_SIZE && ALL(texts, sizes, 5, 3, -1) == EDR_E_SIZE);
    CHECK(ALL(NULL, sizes, 5, 3, room) == EDR_E_NULL && ALL(texts, NULL, 5, 3, room) == EDR_E_NULL);
    sizes[3] = -1;
    CHECK(ALL(texts, sizes, 5, 3, room) == EDR_E_SIZE && at == 3);
    sizes[3] = INT64_MAX;
    CHECK(ALL(texts, sizes, 5, INT64_MAX, INT64_MAX) == EDR_E_SPACE && at == 3);
    CHECK(untouched(offsets, sizeof offsets));
    CHECK(ALL(texts, sizes, 0, 3, 0) == EDR_OK && offsets[0] == 0);
    free(ids);
}

static void test_arguments(void)
{
    int32_t ids[4];
    int64_t count = -9;
    CHECK(edr_wordpiece_encode(NULL, "a", 1, 4, ids, &count) == EDR_E_NULL && edr_wordpiece_encode(&w, NULL, 1, 4, ids, &count) == EDR_E_NULL);
    CHECK(edr_wordpiece_encode(&w, "a", 1, 4, NULL, &count) == EDR_E_NULL && edr_wordpiece_encode(&w, "a", 1, 4, ids, NULL) == EDR_E_NULL);
    CHECK(edr_wordpiece_encode(&w, "a", -1, 4, ids, &count) == EDR_E_SIZE && edr_wordpiece_encode(&w, "a", 1, -4, ids, &count) == EDR_E_SIZE);
    CHECK(count == -9 && edr_wordpiece_encode(&w, NULL, 0, 0, NULL, &count) == EDR_OK && count == 0);
}

/* Section, number in it, bytes of a number, the bad value, what it is refused as. */
static const struct { int section, number, width; uint32_t value; edr_status status; } WRONG[] = {
    {0, 0, 4, 0, EDR_E_VALUE}, {0, 0, 4, 256, EDR_E_VALUE}, {0, 1, 4, UINT32_MAX, EDR_E_VALUE}, {0, 2, 4, UINT32_MAX, EDR_E_VALUE},
    {0, 3, 4, 0, EDR_E_VALUE}, {0, 3, 4, 256, EDR_E_VALUE}, {0, 4, 4, 0, EDR_E_VALUE}, {0, 4, 4, 65, EDR_E_VALUE},
    {1, 8703, 2, BLOCKS, EDR_E_VALUE}, {1, 0, 2, 65535, EDR_E_VALUE},
    {2, 5, 4, 6, EDR_E_OFFSETS}, {2, 5, 4, 5 | 1 << 3 | 31 << 8, EDR_E_OFFSETS}, {2, 639, 4, UINT32_MAX & ~2u, EDR_E_OFFSETS},
    {4, 7, 4, PIECES + 1, EDR_E_VALUE}, {4, 7, 4, UINT32_MAX, EDR_E_VALUE},
    {5, 0, 4, 1, EDR_E_OFFSETS}, {5, 3, 4, 1, EDR_E_OFFSETS}, {5, 3, 4, UINT32_MAX, EDR_E_OFFSETS}, {5, PIECES, 4, 1000, EDR_E_OFFSETS},
    {7, 2, 4, UINT32_MAX, EDR_E_VALUE},
    {8, 0, 4, 1, EDR_E_OFFSETS}, {8, 1, 4, 0, EDR_E_OFFSETS}, {8, ADDED, 4, 1000, EDR_E_OFFSETS},
};

static void test_faults(void)
{
    edr_wordpiece out, before;
    int64_t at = -9;
    memset(&before, 0x5A, sizeof before);
    out = before;
#define OPEN(data, size) edr_wordpiece_open(data, size, &out, &at)
    CHECK(OPEN(NULL, 64) == EDR_E_NULL && edr_wordpiece_open(file.bytes, file.size, NULL, NULL) == EDR_E_NULL);
    CHECK(OPEN(file.bytes, 63) == EDR_E_SIZE && OPEN(file.bytes, -1) == EDR_E_SIZE && OPEN(file.bytes + 4, file.size - 4) == EDR_E_SIZE);
    CHECK(OPEN(file.bytes, file.size - 1) == EDR_E_SIZE && at == -1);
    const int64_t last[SECTIONS_OF_FILE] = {0, 2, 3, 3, 7, 6, 6, 7, 9, 9}; /* with which a section is checked */
    for (size_t i = 0; i < sizeof WRONG / sizeof WRONG[0]; i++) {
        uint8_t *place = file.bytes + file.starts[WRONG[i].section] + WRONG[i].number * WRONG[i].width;
        uint32_t was;
        memcpy(&was, place, (size_t)WRONG[i].width);
        memcpy(place, &WRONG[i].value, (size_t)WRONG[i].width);
        CHECK(OPEN(file.bytes, file.size) == WRONG[i].status && at >= WRONG[i].section && at <= last[WRONG[i].section]);
        memcpy(place, &was, (size_t)WRONG[i].width);
    }
    for (int i = 0; i < SECTIONS_OF_FILE; i++) {
        uint8_t *entry = file.bytes + 64 + 128 * i, kept[128];
        memcpy(kept, entry, 128);
        entry[0] ^= 1; /* absent */
        CHECK(OPEN(file.bytes, file.size) == EDR_E_OFFSETS && at == i);
        memcpy(entry, kept, 128);
        entry[32] = 9; /* another dtype */
        CHECK(OPEN(file.bytes, file.size) == EDR_E_VALUE && at == i);
        memcpy(entry, kept, 128);
        memcpy(entry, file.bytes + 64 + 128 * ((i + 1) % SECTIONS_OF_FILE), 32); /* twice */
        CHECK(OPEN(file.bytes, file.size) == EDR_E_OFFSETS);
        memcpy(entry, kept, 128);
        entry[78] = 1; /* far outside */
        CHECK(OPEN(file.bytes, file.size) == EDR_E_OFFSETS && at == -1);
        memcpy(entry, kept, 128);
        entry[80]--; /* cut by a byte */
        CHECK(OPEN(file.bytes, file.size) != EDR_OK);
        memcpy(entry, kept, 128);
    }
    CHECK(memcmp(&out, &before, sizeof out) == 0 && OPEN(file.bytes, file.size) == EDR_OK);
}

static void test_a_full_table_is_not_searched_for_ever(void)
{
    void *whole;
    uint8_t *copy = exact_file(&file, file.bytes, file.size, &whole);
    uint32_t full = 1;
    for (int i = 0; i < SLOTS; i++) memcpy(copy + file.starts[4] + 4 * i, &full, 4);
    int32_t ids[8];
    int64_t count;
    edr_wordpiece other;
    CHECK(edr_wordpiece_open(copy, file.size, &other, NULL) == EDR_OK);
    CHECK(edr_wordpiece_encode(&other, "unable", 6, 8, ids, &count) == EDR_OK && count == 1 && ids[0] == UNKNOWN);
    free(whole);
}

int main(void)
{
    file = build_tokenizer();
    void *whole;
    uint8_t *copy = exact_file(&file, file.bytes, file.size, &whole);
    CHECK(edr_wordpiece_open(copy, file.size, &w, NULL) == EDR_OK && w.pieces == PIECES && w.firsts == FIRSTS && w.longest_run == 5);
    test_texts();
    test_what_is_not_utf8_is_asked();
    test_a_limit_ends_the_reading();
    test_random_words_against_a_slow_reading();
    test_many_texts_are_those_alone();
    test_arguments();
    test_faults();
    test_a_full_table_is_not_searched_for_ever();
    free(whole);
    free(file.whole);
    return check_report();
}
