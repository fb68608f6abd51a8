/* cc -std=c11 -g -O1 -fsanitize=address,undefined -Icsrc tests/csrc/fuzz_wordpiece.c csrc/[a-z]*.c -lm -lpthread -o fuzz_wordpiece
 * fuzz_wordpiece [rounds] [seed]: damaged tokenizer files, and any bytes as text. The sanitizers are the judge of memory; the checks here
 * are that a refusal writes nothing, and that what is accepted gives no more ids than there is room for. */
#include "tokenizer_file.h"

static uint64_t rng;
static long opened, refused, asked_for;

static uint32_t odd_number(uint32_t was)
{
    static const uint32_t traps[] = {0, 1, UINT32_MAX, INT32_MAX, 1u << 31, 255, 256, 64, 5 | 31u << 3, UINT32_MAX & ~2u};
    switch (random_below(&rng, 4)) {
    case 0: return traps[random_below(&rng, 10)];
    case 1: return was + (uint32_t)random_below(&rng, 5) - 2;
    case 2: return was ^ 1u << random_below(&rng, 32);
    default: return (uint32_t)random_u64(&rng);
    }
}

/* A number of the header or of the table, or of a section; mostly of one, so that many files still open. */
static void damage(uint8_t *bytes, const tokenizer_file *f)
{
    uint8_t *place = bytes + 4 * random_below(&rng, (64 + 128 * SECTIONS_OF_FILE) / 4);
    if (random_below(&rng, 4) != 0) {
        const int64_t section = random_below(&rng, SECTIONS_OF_FILE), size = f->ends[section] - f->starts[section];
        place = bytes + f->starts[section] + 4 * random_below(&rng, size / 4);
    }
    uint32_t value;
    memcpy(&value, place, 4);
    value = odd_number(value);
    memcpy(place, &value, 4);
}

/* Pieces, code points of interest, and now and then any bytes. */
static int64_t odd_text(char text[256])
{
    static const char *const parts[] = {" ", "[SEP]", "[", "\xCC\x81", "\xC2\xBC", "\xE4\xB8\xAD", "\xF0\x9F\x98\x80", "\xC3\xA9", "!", "Q"};
    int64_t size = 0;
    for (int64_t n = random_below(&rng, 24); n > 0; n--) {
        char any[2] = {(char)random_u64(&rng), 0};
        const int64_t kind = random_below(&rng, 12);
        const char *part = kind == 0 ? any : kind < 6 ? parts[random_below(&rng, 10)] : PIECE_TEXTS[random_below(&rng, PIECES)];
        memcpy(text + size, part, strlen(part));
        size += (int64_t)strlen(part);
    }
    return size;
}

static void encode_some(const edr_wordpiece *w)
{
    char room[4][256];
    const char *texts[4];
    void *copies[4];
    int64_t sizes[4], needed = 0, alone[4], offsets[5];
    uint8_t asked[4];
    const int64_t limit = random_below(&rng, 3) == 0 ? random_below(&rng, 4) : 1000;
    for (int i = 0; i < 4; i++) {
        sizes[i] = odd_text(room[i]);
        texts[i] = copies[i] = exact_copy(room[i], (size_t)sizes[i]);
        needed += sizes[i] * w->longest_run < limit ? sizes[i] * w->longest_run : limit;
        int32_t *ids = exact_room((size_t)limit * 4);
        CHECK(edr_wordpiece_encode(w, texts[i], sizes[i], limit, ids, &alone[i]) == EDR_OK && alone[i] >= EDR_ASK && alone[i] <= limit);
        asked_for += alone[i] == EDR_ASK;
        free(ids);
    }
    int32_t *ids = exact_room((size_t)needed * 4);
    CHECK(edr_wordpiece_encode_all(w, texts, sizes, 4, limit, ids, needed, offsets, asked, NULL) == EDR_OK);
    for (int i = 0; i < 4; i++) CHECK(asked[i] == (alone[i] == EDR_ASK) && offsets[i + 1] - offsets[i] == (asked[i] ? 0 : alone[i]));
    free(ids);
    for (int i = 0; i < 4; i++) free(copies[i]);
}

int main(int argc, char **argv)
{
    const long rounds = argc > 1 ? strtol(argv[1], NULL, 10) : 20000;
    rng = argc > 2 ? strtoull(argv[2], NULL, 10) : 1;
    tokenizer_file f = build_tokenizer();
    uint8_t *bytes = exact_room((size_t)f.size);
    for (long round = 0; round < rounds; round++) {
        memcpy(bytes, f.bytes, (size_t)f.size);
        for (int64_t n = random_below(&rng, 3); n >= 0; n--) damage(bytes, &f);
        const int64_t size = random_below(&rng, 20) == 0 ? random_below(&rng, f.size) : f.size;
        void *whole;
        /* A damaged table may rightly lead to bytes between the sections, which are therefore not forbidden here. */
        uint8_t *copy = aligned_room(size, &whole);
        memcpy(copy, bytes, (size_t)size);
        edr_wordpiece w, before;
        memset(&before, 0x5A, sizeof before);
        w = before;
        int64_t at = -7;
        if (edr_wordpiece_open(copy, size, &w, &at) == EDR_OK) {
            CHECK(at == -7);
            encode_some(&w);
            opened++;
        } else {
            CHECK(at >= -1 && at < SECTIONS_OF_FILE && memcmp(&w, &before, sizeof w) == 0);
            refused++;
        }
        free(whole);
    }
    fprintf(stderr, "%ld opened, %ld refused, %ld texts to be asked for\n", opened, refused, asked_for);
    CHECK(rounds < 100 || (opened > rounds / 5 && refused > rounds / 5 && asked_for > rounds / 10));
    free(bytes);
    free(f.whole);
    return check_report();
}
