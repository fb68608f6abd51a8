/* wordpiece.c: text to token ids by tokenizer.bin, a section file (docs/formats.md). */
#include "edr_wordpiece.h"

#include "sections.h"

/* What becomes of a code point: its kind in the lowest 3 bits; of a RUN, 5 bits of length and 24 of place in `runs` above. */
enum { DROPPED = 0, SPACE = 1, ASK = 2, LETTER = 3, ALONE = 4, RUN = 5, KINDS = 6 };
enum { POINTS = 0x110000, BLOCK = 128, CONFIG = 5, WORD_BYTES = 4 * EDR_WORD_CHARS, MAX_PROBES = 64, TAG_SHIFT = 20 };
#define PIECE_MASK ((UINT32_C(1) << TAG_SHIFT) - 1)

/* Any odd numbers do that mix well: those of splitmix64 and of XXH64. */
#define BASE UINT64_C(0x9E3779B185EBCA87)
#define MIX UINT64_C(0xBF58476D1CE4E5B9)
#define CONTINUES UINT64_C(0x94D049BB133111EB)

static int within(int64_t value, int64_t low, int64_t high) { return value >= low && value <= high; }

static void need(edr_sections *in, int ok, edr_status otherwise)
{
    if (in->status == EDR_OK && !ok) in->status = otherwise;
}

/* Places of `count` strings in `end` bytes: they begin at 0, never decrease, and end at the end. Each has 1 to `most` bytes. */
static int places_ok(const uint32_t *places, int64_t count, int64_t end, int64_t most)
{
    int wrong = places[0] != 0 || places[count] != (uint64_t)end;
    for (int64_t i = 0; i < count; i++) wrong |= places[i + 1] <= places[i] || places[i + 1] - places[i] > (uint64_t)most;
    return !wrong;
}

static void read_config(edr_sections *in, edr_wordpiece *w)
{
    int64_t n;
    const int32_t *c = edr_section(in, "config", EDR_INT32, &n);
    need(in, n == CONFIG, EDR_E_SIZE);
    if (in->status != EDR_OK) return;
    w->max_chars = c[0];
    w->unknown = c[1];
    w->firsts = c[2];
    w->longest = c[3];
    w->probes = c[4];
    need(in, within(c[0], 1, EDR_WORD_CHARS) && c[1] >= 0 && c[2] >= 0 && within(c[3], 1, EDR_PIECE_BYTES) && within(c[4], 1, MAX_PROBES),
         EDR_E_VALUE);
}

static void read_points(edr_sections *in, edr_wordpiece *w)
{
    int64_t blocks, points, bytes;
    w->blocks = edr_section(in, "blocks", EDR_UINT16, &blocks);
    need(in, blocks == POINTS / BLOCK, EDR_E_SIZE);
    w->points = edr_section(in, "points", EDR_UINT32, &points);
    need(in, points > 0 && points % BLOCK == 0, EDR_E_SIZE);
    for (int64_t i = 0; i < blocks && in->status == EDR_OK; i++) need(in, w->blocks[i] < points / BLOCK, EDR_E_VALUE);
    w->runs = edr_section(in, "runs", EDR_UINT8, &bytes);
    if (in->status != EDR_OK) return;
    uint32_t wrong = 0, longest = 4; /* a code point that stays as it is has up to 4 bytes */
    for (int64_t i = 0; i < points; i++) {
        const uint32_t kind = w->points[i] & 7, length = w->points[i] >> 3 & 31, place = w->points[i] >> 8;
        wrong |= kind >= KINDS;
        wrong |= kind == RUN && (int64_t)place + length > bytes;
        if (kind == RUN && length > longest) longest = length;
    }
    w->longest_run = longest;
    need(in, !wrong, EDR_E_OFFSETS);
}

static void read_pieces(edr_sections *in, edr_wordpiece *w)
{
    int64_t slots, places, letters, ids;
    w->slots = edr_section(in, "slots", EDR_UINT32, &slots);
    need(in, slots > 0 && (slots & (slots - 1)) == 0, EDR_E_SIZE);
    w->places = edr_section(in, "places", EDR_UINT32, &places);
    need(in, within(places, 2, PIECE_MASK), EDR_E_SIZE);
    w->letters = edr_section(in, "letters", EDR_UINT8, &letters);
    need(in, in->status == EDR_OK && places_ok(w->places, places - 1, letters, w->longest), EDR_E_OFFSETS);
    w->ids = edr_section(in, "ids", EDR_INT32, &ids);
    need(in, ids == places - 1 && w->firsts <= ids, EDR_E_SIZE);
    if (in->status != EDR_OK) return;
    w->slot_mask = slots - 1;
    w->pieces = ids;
    uint32_t most = 0;
    int32_t negative = 0;
    for (int64_t i = 0; i < slots; i++) most = (w->slots[i] & PIECE_MASK) > most ? w->slots[i] & PIECE_MASK : most;
    for (int64_t i = 0; i < ids; i++) negative |= w->ids[i];
    need(in, most <= ids && negative >= 0, EDR_E_VALUE);
}

static void read_added(edr_sections *in, edr_wordpiece *w)
{
    int64_t places, bytes;
    w->added_at = edr_section(in, "added.places", EDR_UINT32, &places);
    need(in, within(places, 1, PIECE_MASK), EDR_E_SIZE);
    w->added_text = edr_section(in, "added", EDR_UINT8, &bytes);
    need(in, in->status == EDR_OK && places_ok(w->added_at, places - 1, bytes, bytes), EDR_E_OFFSETS);
    if (in->status != EDR_OK) return;
    w->added = places - 1;
    for (int64_t i = 0; i < w->added; i++) w->begins[w->added_text[w->added_at[i]]] = 1;
}

edr_status edr_wordpiece_open(const void *data, int64_t size, edr_wordpiece *w, int64_t *at)
{
    if (data == NULL || w == NULL) return edr_fail(EDR_E_NULL, at, -1);
    edr_sections in;
    const edr_status table = edr_sections_open(data, size, &in);
    if (table != EDR_OK) return edr_fail(table, at, -1);
    edr_wordpiece found;
    memset(&found, 0, sizeof found);
    read_config(&in, &found);
    read_points(&in, &found);
    read_pieces(&in, &found);
    read_added(&in, &found);
    if (in.status != EDR_OK) return edr_fail(in.status, at, in.asked - 1);
    found.powers[0] = 1;
    for (int i = 1; i <= EDR_PIECE_BYTES; i++) found.powers[i] = found.powers[i - 1] * BASE;
    *w = found;
    return EDR_OK;
}

/* The word being read, and where its pieces' ids go. */
typedef struct word {
    int64_t bytes, chars;
    uint8_t text[WORD_BYTES];
    uint64_t hashes[WORD_BYTES + 1]; /* of the first n bytes, modulo 2^64 */
    int32_t found[WORD_BYTES];
} word;

typedef struct output {
    int32_t *ids;
    int64_t count, limit;
} output;

/* The id of the piece with these bytes, or -1. */
static int32_t find(const edr_wordpiece *w, const word *of, int64_t start, int64_t length)
{
    uint64_t h = of->hashes[start + length] - of->hashes[start] * w->powers[length];
    if (start > 0) h ^= CONTINUES;
    h = (h ^ h >> 32) * MIX;
    h ^= h >> 29;
    const uint32_t tag = (uint32_t)(h >> 52);
    int64_t slot = (int64_t)h & w->slot_mask;
    for (int i = 0; i < w->probes; i++, slot = (slot + 1) & w->slot_mask) {
        const uint32_t entry = w->slots[slot];
        if ((entry & PIECE_MASK) == 0) return -1;
        if (entry >> TAG_SHIFT != tag) continue;
        const int64_t piece = (int64_t)(entry & PIECE_MASK) - 1;
        if ((piece >= w->firsts) != (start > 0) || w->places[piece + 1] - w->places[piece] != (uint64_t)length) continue;
        if (memcmp(w->letters + w->places[piece], of->text + start, (size_t)length) == 0) return w->ids[piece];
    }
    return -1;
}

/* How many ids the word has, in of->found; 0 when it cannot be cut. */
static int64_t cut(const edr_wordpiece *w, word *of)
{
    const int64_t n = of->bytes;
    of->hashes[0] = 0;
    for (int64_t i = 0; i < n; i++) of->hashes[i + 1] = of->hashes[i] * BASE + of->text[i] + 1;
    int64_t count = 0;
    for (int64_t start = 0; start < n;) {
        int64_t length = n - start < w->longest ? n - start : w->longest;
        int32_t id = -1;
        for (; length > 0; length--) {
            /* A piece ends where a character does. */
            if (start + length < n && (of->text[start + length] & 0xC0) == 0x80) continue;
            id = find(w, of, start, length);
            if (id >= 0) break;
        }
        if (id < 0) return 0;
        of->found[count++] = id;
        start += length;
    }
    return count;
}

static void end_word(const edr_wordpiece *w, word *of, output *out)
{
    if (of->chars == 0) return;
    int64_t count = of->chars <= w->max_chars ? cut(w, of) : 0;
    if (count == 0) of->found[count++] = w->unknown;
    if (count > out->limit - out->count) count = out->limit - out->count;
    memcpy(out->ids + out->count, of->found, (size_t)count * sizeof *out->ids);
    out->count += count;
    of->bytes = of->chars = 0;
}

/* Bytes of whole characters. Those of a word that is too long are counted and not kept. */
static void add_bytes(word *of, const uint8_t *bytes, int64_t n)
{
    for (int64_t i = 0; i < n; i++) {
        of->chars += (bytes[i] & 0xC0) != 0x80;
        if (of->bytes < WORD_BYTES) of->text[of->bytes++] = bytes[i];
    }
}

/* A code point of valid UTF-8 (The Unicode Standard, table 3-7) and its length in bytes; 0 when it is none. */
static int decode(const uint8_t *p, int64_t left, uint32_t *point)
{
    const uint32_t a = p[0];
    if (a < 0x80) {
        *point = a;
        return 1;
    }
    const int length = a >= 0xF0 ? 4 : a >= 0xE0 ? 3 : 2;
    if (a < 0xC2 || a > 0xF4 || left < length) return 0;
    uint32_t value = a & (0x7Fu >> length);
    for (int i = 1; i < length; i++) {
        if ((p[i] & 0xC0) != 0x80) return 0;
        value = value << 6 | (p[i] & 0x3Fu);
    }
    if (length == 3 && (value < 0x800 || (value >= 0xD800 && value < 0xE000))) return 0;
    if (length == 4 && (value < 0x10000 || value >= POINTS)) return 0;
    *point = value;
    return length;
}

static int is_added(const edr_wordpiece *w, const uint8_t *p, int64_t left)
{
    for (int64_t i = 0; i < w->added; i++) {
        const int64_t length = (int64_t)w->added_at[i + 1] - w->added_at[i];
        if (length <= left && memcmp(w->added_text + w->added_at[i], p, (size_t)length) == 0) return 1;
    }
    return 0;
}

/* The ids of one text; whether they are the library's, too. */
static int encode(const edr_wordpiece *w, const uint8_t *text, int64_t size, word *now, output *out)
{
    now->bytes = now->chars = 0;
    for (int64_t i = 0; i < size && out->count < out->limit;) {
        uint32_t point = 0;
        const int length = decode(text + i, size - i, &point);
        if (length == 0 || (w->begins[text[i]] && is_added(w, text + i, size - i))) return 0;
        const uint32_t code = w->points[w->blocks[point / BLOCK] * BLOCK + point % BLOCK];
        switch (code & 7) {
        case LETTER: add_bytes(now, text + i, length); break;
        case SPACE: end_word(w, now, out); break;
        case ALONE:
            end_word(w, now, out);
            add_bytes(now, text + i, length);
            end_word(w, now, out);
            break;
        case RUN: {
            const uint8_t *run = w->runs + (code >> 8);
            for (int64_t n = code >> 3 & 31; n > 0; n--, run++) {
                if (*run == ' ') {
                    end_word(w, now, out);
                } else {
                    add_bytes(now, run, 1);
                }
            }
            break;
        }
        case DROPPED: break;
        default: return 0;
        }
        i += length;
    }
    end_word(w, now, out);
    return 1;
}

edr_status edr_wordpiece_encode(const edr_wordpiece *w, const char *text, int64_t size, int64_t limit, int32_t *ids, int64_t *count)
{
    if (size < 0 || limit < 0) return EDR_E_SIZE;
    if (w == NULL || count == NULL || (text == NULL && size > 0) || (ids == NULL && limit > 0)) return EDR_E_NULL;
    word now;
    output out = {ids, 0, limit};
    *count = encode(w, (const uint8_t *)text, size, &now, &out) ? out.count : EDR_ASK;
    return EDR_OK;
}

edr_status edr_wordpiece_encode_all(const edr_wordpiece *w, const char *const *texts, const int64_t *sizes, int64_t n, int64_t limit,
                                    int32_t *ids, int64_t room, int64_t *offsets, uint8_t *asked, int64_t *at)
{
    if (n < 0 || limit < 0 || room < 0) return edr_fail(EDR_E_SIZE, at, -1);
    if (w == NULL || offsets == NULL || (n > 0 && (texts == NULL || sizes == NULL || asked == NULL)) || (ids == NULL && room > 0)) {
        return edr_fail(EDR_E_NULL, at, -1);
    }
    int64_t needed = 0;
    for (int64_t i = 0; i < n; i++) {
        if (sizes[i] < 0) return edr_fail(EDR_E_SIZE, at, i);
        if (texts[i] == NULL && sizes[i] > 0) return edr_fail(EDR_E_NULL, at, i);
        /* The product is only made where it cannot overflow. */
        const int64_t most = sizes[i] > limit / w->longest_run ? limit : sizes[i] * w->longest_run;
        if (most > room - needed) return edr_fail(EDR_E_SPACE, at, i);
        needed += most;
    }
    word now;
    int64_t total = 0;
    offsets[0] = 0;
    for (int64_t i = 0; i < n; i++) {
        output out = {ids != NULL ? ids + total : NULL, 0, limit};
        asked[i] = !encode(w, (const uint8_t *)texts[i], sizes[i], &now, &out);
        total += asked[i] ? 0 : out.count;
        offsets[i + 1] = total;
    }
    return EDR_OK;
}
