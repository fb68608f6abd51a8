/*
 * edr_wordpiece.h: WordPiece for BERT tokenizers, text to token ids, over a compiled table.
 *
 * What it does: gives exactly the ids that the tokenizers library gives for a text without special tokens, or says that the
 * library has to be asked. It knows no Unicode: `edgerec build-engine` asked the library about every code point and wrote the
 * answers, with the vocabulary, into tokenizer.bin (docs/formats.md), which is mapped and never parsed.
 *
 * How a text becomes ids
 * ----------------------
 * 1. Each code point is looked up, in a table of two stages. It is dropped; or is white space; or stands alone (punctuation,
 *    Chinese); or is part of a word, as it is or as other letters (lower case, without its accent); or the library must be
 *    asked, because what it becomes depends on its neighbours.
 * 2. A word is cut into pieces from its beginning, the longest that the vocabulary has first. The pieces are in one hash
 *    table. The hash of a word's first n bytes is kept for every n, which makes that of any part one multiplication; the
 *    bytes are compared before a piece counts as found.
 * 3. A word that cannot be cut, or has too many characters, is the unknown token.
 *
 * A text in which an added token ("[CLS]") stands is the library's as well.
 *
 * The house rules of edgerec.h hold: no allocation, no globals, no input or output; status codes; outputs are written only on
 * EDR_OK. An open tokenizer is never written again: any number of threads may share it. About 14 KB of stack are needed.
 *
 *     edr_wordpiece w;
 *     if (edr_wordpiece_open(bytes, size, &w, &at) != EDR_OK) ...   // bytes: the file, mapped; kept by w
 *     int32_t ids[64];
 *     int64_t count;
 *     edr_wordpiece_encode(&w, "red lamp", 8, 64, ids, &count);     // count = 2, or EDR_ASK
 */
#ifndef EDR_WORDPIECE_H
#define EDR_WORDPIECE_H

#include "edgerec.h"

#ifdef __cplusplus
extern "C" {
#endif

/* In place of a count: this text is the library's. */
#define EDR_ASK (-1)

/* The most characters that a word may have, whatever the tokenizer allows; the most bytes of a piece. */
#define EDR_WORD_CHARS 255
#define EDR_PIECE_BYTES 255

/* An open tokenizer: numbers, and pointers into the file. Private, but for longest_run. */
typedef struct edr_wordpiece {
    int64_t max_chars;   /* a word of more characters is unknown */
    int64_t longest;     /* bytes of the longest piece */
    int64_t longest_run; /* the most bytes that one code point becomes: a text of n bytes has at most n times as many ids */
    int64_t firsts;      /* pieces that begin a word; those from this number on continue one */
    int64_t pieces, added;
    int64_t slot_mask;   /* slots - 1; their number is a power of two */
    int probes;          /* a piece is found within so many slots, or is not there */
    int32_t unknown;     /* the id of the unknown token */
    const uint16_t *blocks;     /* [8704]: for each 128 code points the block that describes them */
    const uint32_t *points;     /* [blocks, 128]: what becomes of a code point, wordpiece.c has the codes */
    const uint8_t *runs;        /* the bytes that code points become; a space ends a word */
    const uint32_t *slots;      /* the hash table: 12 bits of the hash, and a piece's number + 1; 0 is empty */
    const uint32_t *places;     /* [pieces + 1]: where a piece's bytes begin in `letters` */
    const uint8_t *letters;
    const int32_t *ids;         /* [pieces] */
    const uint32_t *added_at;   /* [added + 1]: where the text of an added token begins in `added_text` */
    const uint8_t *added_text;
    uint8_t begins[256];        /* whether an added token's text begins with this byte */
    uint64_t powers[EDR_PIECE_BYTES + 1]; /* of the hash's base */
} edr_wordpiece;

/*
 * Read tokenizer.bin, whose bytes the caller keeps unchanged for as long as the tokenizer is used. Everything that is later
 * used as a place or a length is checked here, once: a damaged file is refused or gives wrong ids, and is never a reason to
 * read outside it or to search for ever.
 *
 * data     the file, at an address that is a multiple of 64 (a mapping is)
 * at       the last section that was looked for: the one at fault, or one that does not fit it; in the order of docs/formats.md, -1 for
 *          the header and the table
 * Fails with EDR_E_NULL, EDR_E_SIZE (the file is cut, or a section is not as large as another says), EDR_E_OFFSETS (a section
 * lies outside, is missing or is there twice, or places in it decrease or lie outside), EDR_E_VALUE (magic, version, dtype, or
 * a number outside its range).
 */
edr_status edr_wordpiece_open(const void *data, int64_t size, edr_wordpiece *w, int64_t *at);

/*
 * The first `limit` ids of a text.
 *
 * text     `size` bytes of UTF-8; may be NULL when size is 0. What is not UTF-8 is the library's: *count is EDR_ASK.
 * ids      room for `limit`
 * count    how many ids there are, or EDR_ASK; then ids holds nothing of use. The text is read no further than the limit
 *          needs, and what lies behind does not make it the library's.
 * Fails with EDR_E_NULL, EDR_E_SIZE (size or limit is negative).
 */
edr_status edr_wordpiece_encode(const edr_wordpiece *w, const char *text, int64_t size, int64_t limit, int32_t *ids, int64_t *count);

/*
 * Many texts, one after the other.
 *
 * texts, sizes  [n]; text i has sizes[i] bytes
 * limit         of each text's ids
 * ids, room     room for that many. min(limit, w->longest_run times the bytes), summed over the texts, is enough.
 * offsets       [n + 1]: text i has ids[offsets[i] .. offsets[i + 1])
 * asked         [n]: 1 for a text of the library's, which has no ids here, else 0
 * at            the text at fault
 * Fails with EDR_E_NULL, EDR_E_SIZE (a size or limit is negative), EDR_E_SPACE (room is too small).
 */
edr_status edr_wordpiece_encode_all(const edr_wordpiece *w, const char *const *texts, const int64_t *sizes, int64_t n, int64_t limit,
                                    int32_t *ids, int64_t room, int64_t *offsets, uint8_t *asked, int64_t *at);

#ifdef __cplusplus
}
#endif

#endif
