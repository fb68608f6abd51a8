/*
 * edgerec.h: the C core of edgerec.
 *
 * What it does: hashes strings, turns sets of hashes into the feature slots of a ranker's row, pads token rows,
 * looks identifiers up, and keeps the best k of a stream of scores. It knows nothing of Python, files or models.
 *
 * House rules, true of every function below
 * -----------------------------------------
 * - Plain C11. No allocation, no globals, no input or output, no locale, no environment.
 * - The caller owns every buffer and states its size; the library keeps no pointer after it returns, except inside
 *   an edr_topk, whose buffers stay the caller's.
 * - Functions that can fail return edr_status. Output buffers are written only when they return EDR_OK.
 *   `at`, where there is one, may be NULL; on failure it receives the position of the first fault (else it is untouched).
 * - Any function may run on any number of threads at once, as long as no two share a buffer that one of them writes.
 * - No input, however damaged, makes a function read or write outside the buffers it was given.
 * - Results do not depend on the machine: bytes are read little-endian, float32 sums have a stated order.
 *
 * Shape letters: N candidates or rows, T tokens, F feature slots, V hash buckets, K returned, n and m any count.
 * Sizes and positions are int64_t, as in NumPy; a negative size is EDR_E_SIZE.
 *
 * A first example: the three best of five scores.
 *
 *     float scores[5] = {0.1f, 0.7f, 0.7f, -1.0f, 0.3f}, best[3], room_s[EDR_TOPK_ROOM(3)];
 *     int64_t where[3], room_i[EDR_TOPK_ROOM(3)], got;
 *     edr_topk top;
 *     edr_topk_init(&top, 3, edr_isa_best(), room_s, room_i, EDR_TOPK_ROOM(3));
 *     edr_topk_push(&top, scores, NULL, 5, 0);
 *     edr_topk_finish(&top, where, best, &got);      // where = {1, 2, 4}, best = {0.7, 0.7, 0.3}, got = 3
 */
#ifndef EDGEREC_H
#define EDGEREC_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

/* ------------------------------------------------------------------------------------------------ status (status.c)
 * Every failure is the caller's input; there is no "internal error". */
typedef enum edr_status {
    EDR_OK = 0,
    EDR_E_NULL,    /* a pointer that may not be NULL is NULL */
    EDR_E_SIZE,    /* a size is negative, too large, or does not agree with another */
    EDR_E_OFFSETS, /* offsets decrease, start below 0, or point past the end of their data */
    EDR_E_ROW,     /* a row number is outside its table */
    EDR_E_VALUE,   /* a value is outside its documented range */
    EDR_E_SPACE,   /* the row does not fit the given width, or a buffer is too small */
    EDR_E_ISA      /* this CPU, or this build, has no such instruction set */
} edr_status;

/* One line of English for a status; never NULL, also for numbers that are no status. */
const char *edr_status_text(int status);

/* ----------------------------------------------------------------------------------------- instruction sets (isa.c)
 * Kernels exist several times, once per instruction set, and those of this header give the same answer bit for bit. The
 * caller picks one: usually edr_isa_best(), another to test or to compare. */
typedef enum edr_isa {
    EDR_ISA_SCALAR = 0, /* plain C, every machine */
    EDR_ISA_AVX2 = 1,   /* and FMA, which every CPU with AVX2 but one rare VIA has */
    EDR_ISA_AVX512 = 2, /* AVX-512F is enough */
    EDR_ISA_NEON = 3,   /* every 64-bit ARM */
    EDR_ISA_AVX512_VNNI = 4,
    EDR_ISA_AVX_VNNI = 5,     /* AVX2 with 8-bit dot products; compiled in by GCC from 11 on */
    EDR_ISA_NEON_DOTPROD = 6, /* 8-bit dot products of signed bytes; Linux, GCC from 10 or Clang from 16 on */
    EDR_ISA_NEON_I8MM = 7,    /* and of unsigned with signed ones; the same */
    EDR_ISA_AVX512_BF16 = 8,  /* AVX-512 VNNI, and products of bfloat16; compiled in by GCC from 10 on, and Clang */
    EDR_ISA_AMX = 9           /* the same, and tiles of bytes and of bfloat16; Linux, GCC from 11 or Clang from 12 on */
} edr_isa;
#define EDR_ISA_COUNT 10

/* 1 when the kernels were compiled in and this CPU (and operating system) runs them, else 0. To know this of EDR_ISA_AMX it asks
 * Linux to let this process use tiles; csrc/README.md, "AMX", says what that entails. */
int edr_isa_supported(int isa);

/* The fastest supported one. */
int edr_isa_best(void);

/* Its name: the enum's without EDR_ISA_, in lower case ("avx512_vnni"); NULL for any other number. */
const char *edr_isa_name(int isa);

/* --------------------------------------------------------------------------------------------------- hashing (hash.c)
 * The hash is XXH64, as its author specifies it: https://github.com/Cyan4973/xxHash/blob/dev/doc/xxhash_spec.md
 * (version 0.2.0). Its published test vectors are in tests/csrc/xxh64_vectors.txt. */

/* XXH64 of `size` bytes; `data` may be NULL when size is 0. */
uint64_t edr_hash64(const void *data, size_t size, uint64_t seed);

/* XXH64 of the concatenation of two byte strings, without building it. Used for "namespace=" + value. */
uint64_t edr_hash64_pair(const void *first, size_t first_size, const void *second, size_t second_size, uint64_t seed);

/* XXH64 of the 8 bytes of x, little-endian: edr_hash64(&x, 8, seed) on a little-endian machine, only faster. */
uint64_t edr_hash64_u64(uint64_t x, uint64_t seed);

/*
 * Hash m strings that lie end to end (the layout of an Arrow string array).
 *
 * data     uint8 [size]; may be NULL when size is 0
 * offsets  int64 [m + 1]; string i is data[offsets[i] .. offsets[i + 1]). They may start above 0 and end below size.
 * out      uint64 [m]
 * at       the i whose offsets are at fault
 * Fails with EDR_E_NULL, EDR_E_SIZE (m < 0, size < 0), EDR_E_OFFSETS.
 */
edr_status edr_hash_packed(const uint8_t *data, int64_t size, const int64_t *offsets, int64_t m, uint64_t seed, uint64_t *out, int64_t *at);

/*
 * Hash the trigrams of a text's words: every three code points in a row of ^word$, so that a word gives as many as it has code points.
 *
 * text         UTF-8 [size], words between spaces; may be NULL when size is 0
 * prefix       uint8 [prefix_size], hashed before each trigram, as "namespace=" is
 * out          uint64 [size]: as many as there can be
 * n_out        how many there are
 * at           the first byte of a code point that is longer than four
 * Fails with EDR_E_NULL, EDR_E_SIZE (size < 0), EDR_E_VALUE (such a code point; UTF-8 is not checked otherwise).
 */
edr_status edr_hash_trigrams(const uint8_t *text, int64_t size, const void *prefix, size_t prefix_size, uint64_t seed, uint64_t *out,
                             int64_t *n_out, int64_t *at);

/*
 * From 64-bit hash to feature id and sign: id = ((h >> 32) * buckets) >> 32 (multiply-shift on the high half, so any
 * number of buckets is fair), sign = +1 when the lowest bit of h is 1, else -1. The sign makes collisions cancel in
 * expectation instead of adding up (Weinberger et al., Feature Hashing for Large Scale Multitask Learning, 2009).
 *
 * hashes   uint64 [n]
 * buckets  1 .. 2^31 - 1
 * ids      int32 [n], in 0 .. buckets - 1
 * signs    float32 [n], +1 or -1
 * Fails with EDR_E_NULL, EDR_E_SIZE (n < 0), EDR_E_VALUE (buckets).
 */
edr_status edr_project(const uint64_t *hashes, int64_t n, int64_t buckets, int32_t *ids, float *signs);

/*
 * Make a set of a list: sort by hash, ascending, and keep one of each. Works in place.
 *
 * hashes   uint64 [n], in: any order, any duplicates; out: the first *n_out are the set, the rest is unspecified
 * weights  float32 [n] or NULL; weights of equal hashes are added in float32, in the order in which they were given
 * room_h   uint64 [n], scratch
 * room_w   float32 [n], scratch; may be NULL when weights is
 * n_out    the size of the set
 * at       the position of a weight that is NaN or infinite
 * Time O(n log n) for any input. Fails with EDR_E_NULL, EDR_E_SIZE (n < 0), EDR_E_VALUE (a weight not finite).
 */
edr_status edr_sort_unique(uint64_t *hashes, float *weights, int64_t n, uint64_t *room_h, float *room_w, int64_t *n_out, int64_t *at);

/*
 * The same for each of many rows of hashes without weights that lie end to end; what is left of them lies end to end again.
 *
 * hashes   uint64 [n]
 * counts   int64 [rows], how many hashes each row has; their sum is n. Afterwards, how many each has left
 * room     uint64 [n], scratch
 * n_out    how many are left in all
 * at       the row whose count is at fault, or `rows` where the sum is below n
 * Fails with EDR_E_NULL, EDR_E_SIZE (n < 0, rows < 0), EDR_E_OFFSETS (counts).
 */
edr_status edr_sort_unique_rows(uint64_t *hashes, int64_t n, int64_t *counts, int64_t rows, uint64_t *room, int64_t *n_out, int64_t *at);

/* ------------------------------------------------------------------------------------------- feature rows (features.c)
 * docs/formats.md, "Feature spec", says what a feature row is; this is its one implementation, in training and serving.
 * A field is a set of hashes with weights, either one set for all rows (a query) or one per row of a table (items). */

/*
 * A field.
 *
 * hashes   uint64 [size], strictly ascending within a set. Sets that are not give an unspecified row, never a fault.
 * weights  float32 [size], or NULL: every weight is 1
 * offsets  NULL: the whole array is one set, shared by all rows. Else int64: the set of table row r is
 *          hashes[offsets[r * (1 + gap)] .. offsets[r * (1 + gap) + 1])
 * size     the length of hashes
 * table    the number of sets when offsets is given; ignored otherwise
 * gap      0 for a table of one field, with offsets [table + 1]; C - 1 for one of C fields whose sets lie item by item in one
 *          array, with offsets [table * C + 1] of which field c has those from c on
 */
typedef struct edr_field {
    const uint64_t *hashes;
    const float *weights;
    const int64_t *offsets;
    int64_t size;
    int64_t table;
    int64_t gap;
} edr_field;

/* What a template does with its fields; the weights are those of docs/formats.md. */
typedef enum edr_op {
    EDR_OP_EMIT = 0,      /* each a in left; `right` is not read */
    EDR_OP_COMMON = 1,    /* each a in left and in right */
    EDR_OP_LEFT_ONLY = 2, /* each a in left and not in right */
    EDR_OP_MATCH = 3,     /* how much of left's weight is in right, as a number and as one of the steps 0/4 .. 4/4 */
    EDR_OP_CROSS = 4      /* each a in left with each b in right */
} edr_op;

/*
 * A template: an operation on one or two fields, and the seed that keeps its features apart from other templates'.
 * `left` and `right` are positions in the array of fields. `seed` is XXH64 of the template's name.
 */
typedef struct edr_template {
    int32_t op;
    int32_t left;
    int32_t right;
    uint64_t seed;
} edr_template;

/* A template needs 128 bytes of stack while rows are encoded; hence a limit. */
#define EDR_MAX_TEMPLATES 128

/*
 * Check templates once, before they are used often.
 *
 * at       the template at fault
 * Fails with EDR_E_NULL, EDR_E_SIZE (m outside 0 .. EDR_MAX_TEMPLATES), EDR_E_VALUE (op), EDR_E_ROW (left or right
 * outside 0 .. fields - 1; right of an EMIT is free).
 */
edr_status edr_templates_check(const edr_template *templates, int64_t m, int64_t fields, int64_t *at);

/*
 * Encode N rows of hashed features.
 *
 * templates  [m]; checked as by edr_templates_check
 * fields     [field_count]
 * rows       int64 [n]: row i of the output takes set rows[i] of every field that has offsets
 * buckets    V, 1 .. 2^31 - 1
 * slots      F, 0 .. 2^31 - 1
 * ids        int32 [n, F], 0 in unused slots
 * weights    float32 [n, F], 0 in unused slots
 * at         the i of rows[i], the template, or the field at fault
 *
 * Ids in a row are distinct, in order of first emission; weights of equal ids are added in order of emission, in
 * float32. When all slots are taken, an id that is new is dropped and one that is known is still added.
 * EDR_OP_MATCH sums weights in double, ascending; its ratio is rounded to float32 once. When the ratio is not finite
 * (weights were not) nothing is emitted.
 * Fails with EDR_E_NULL, EDR_E_SIZE, EDR_E_VALUE, EDR_E_ROW (rows[i] outside a table), EDR_E_OFFSETS (of a row asked for).
 */
edr_status edr_encode_rows(const edr_template *templates, int64_t m, const edr_field *fields, int64_t field_count, const int64_t *rows, int64_t n,
                           int64_t buckets, int64_t slots, int32_t *ids, float *weights, int64_t *at);

/* ---------------------------------------------------------------------------------------------- token rows (pack.c)
 * A row is prefix + query + middle + item + suffix, padded on the right or end to end with others; docs/formats.md, "model.json". */

/* The parts of a row that all rows share. Sizes are counts of tokens; a pointer may be NULL when its size is 0. */
typedef struct edr_pair_frame {
    const int32_t *prefix, *query, *middle, *suffix;
    int64_t prefix_size, query_size, middle_size, suffix_size;
    int32_t pad_id;     /* fills input_ids right of the row */
    int32_t query_type; /* token type of prefix + query + middle */
    int32_t item_type;  /* token type of item + suffix; padding has type 0 */
    int64_t max_tokens; /* the item is cut so that no row is longer */
} edr_pair_frame;

/*
 * The length of the longest row, so that the caller can provide buffers: the length of the frame when n is 0.
 *
 * offsets  int64 [table + 1]; item r is tokens[offsets[r] .. offsets[r + 1])
 * size     the length of tokens
 * rows     int64 [n], items to pack
 * width    receives T
 * at       the i of rows[i]
 * Fails with EDR_E_NULL, EDR_E_SIZE, EDR_E_SPACE (the frame alone is longer than max_tokens), EDR_E_ROW, EDR_E_OFFSETS.
 */
edr_status edr_pack_width(const edr_pair_frame *frame, int64_t size, const int64_t *offsets, int64_t table, const int64_t *rows, int64_t n,
                          int64_t *width, int64_t *at);

/*
 * Order rows by the length of their items, longest first; equal ones stay as they were. A counting sort.
 *
 * size, offsets, table, rows, n, at   as in edr_pack_width
 * cap      >= 0: a longer item counts as one of this length; at most the longest item is a good value
 * counts   int64 [cap + 1], scratch
 * order    int64 [n], positions in rows
 * lengths  int64 [n]: min(cap, length of the item of rows[order[i]]), descending
 * Fails with EDR_E_NULL, EDR_E_SIZE (also cap = INT64_MAX), EDR_E_ROW, EDR_E_OFFSETS.
 */
edr_status edr_longest_first(int64_t size, const int64_t *offsets, int64_t table, const int64_t *rows, int64_t n, int64_t cap, int64_t *counts,
                             int64_t *order, int64_t *lengths, int64_t *at);

/*
 * Write the rows.
 *
 * tokens    int32 [size]
 * width     T; at least what edr_pack_width says, else EDR_E_SPACE
 * ids       int32 [n, T]
 * mask      int32 [n, T], 1 for a token, 0 for padding
 * types     int32 [n, T]
 * The rest, and the faults, as in edr_pack_width.
 */
edr_status edr_pack_pairs(const edr_pair_frame *frame, const int32_t *tokens, int64_t size, const int64_t *offsets, int64_t table,
                          const int64_t *rows, int64_t n, int64_t width, int32_t *ids, int32_t *mask, int32_t *types, int64_t *at);

/* The tokens of all rows together, for the buffers of edr_pack_ragged; a row without any counts as one. Arguments and faults as in
 * edr_pack_width; EDR_E_SIZE also when the sum could overflow. */
edr_status edr_ragged_size(const edr_pair_frame *frame, int64_t size, const int64_t *offsets, int64_t table, const int64_t *rows, int64_t n,
                           int64_t *total, int64_t *at);

/*
 * Write the rows end to end, in the order of `rows`: for an engine that takes rows as they are.
 *
 * tokens    int32 [size]
 * room      the length of ids and of types; at least what edr_ragged_size says, else EDR_E_SPACE
 * ids       int32 [room]; a row without any token is one pad_id of type 0
 * types     int32 [room]
 * starts    int64 [n], where a row begins; lengths int64 [n], its tokens, at least 1
 * The rest, and the faults, as in edr_ragged_size.
 */
edr_status edr_pack_ragged(const edr_pair_frame *frame, const int32_t *tokens, int64_t size, const int64_t *offsets, int64_t table,
                           const int64_t *rows, int64_t n, int64_t room, int32_t *ids, int32_t *types, int64_t *starts, int64_t *lengths,
                           int64_t *at);

/* ---------------------------------------------------------------------------------------------- identifiers (index.c)
 * A hash table from identifier to row that can lie in a file: two arrays, open addressing, linear probing. */

/* Entries of the two arrays for n identifiers: the power of two at or above 2 n, at least 8; 0 when n is no valid count
 * (0 .. 2^30). */
int64_t edr_index_capacity(int64_t n);

/*
 * Build the table.
 *
 * hashes   uint64 [n]: hashes[i] is XXH64 of identifier i
 * keys     uint64 [capacity]: the hash of an entry, 0 in empty ones
 * slots    int32 [capacity]: the i of an entry, -1 in empty ones
 * capacity what edr_index_capacity(n) says
 * When several identifiers are equal, the first one is found.
 * Fails with EDR_E_NULL, EDR_E_SIZE.
 */
edr_status edr_index_build(const uint64_t *hashes, int64_t n, uint64_t *keys, int32_t *slots, int64_t capacity);

/* A byte string somewhere in memory. */
typedef struct edr_slice {
    const uint8_t *data;
    int64_t size;
} edr_slice;

/* Names of one look-up call; more are looked up in several calls. */
#define EDR_MAX_NAMES 64

/*
 * Look up n identifiers, 0 <= n <= EDR_MAX_NAMES.
 *
 * keys, slots, capacity   the table; capacity must be a power of two
 * bytes    uint8 [size], the identifiers end to end
 * offsets  int64 [ids + 1]; identifier i is bytes[offsets[i] .. offsets[i + 1])
 * names    [n], what to look for. A slice whose data is NULL and whose size is not 0 is never found.
 * seed     the seed of the hashes the table was built from
 * out      int64 [n]: the identifier's number, or -1. The bytes decide, so equal hashes do no harm.
 * at       the slot that points outside, or the identifier whose offsets are at fault
 * A damaged table ends in a status or in -1; a probe visits at most `capacity` entries.
 * Fails with EDR_E_NULL, EDR_E_SIZE, EDR_E_ROW, EDR_E_OFFSETS.
 */
edr_status edr_index_find(const uint64_t *keys, const int32_t *slots, int64_t capacity, const uint8_t *bytes, int64_t size,
                          const int64_t *offsets, int64_t ids, const edr_slice *names, int64_t n, uint64_t seed, int64_t *out, int64_t *at);

/* -------------------------------------------------------------------------------------------------- top-k (topk.c)
 * The k best of a stream. Order: higher score first, then lower index. NaN and masked scores are never selected;
 * infinities are scores like any other; -0.0 equals 0.0. The answer does not depend on how the stream was cut into
 * pushes, nor on the instruction set.
 *
 * How: scores that can still matter are appended to a buffer; when it fills up, a selection keeps the best k and the
 * k-th best becomes the bar that later scores must pass, so most of a long array is only compared with the bar, at
 * memory speed. When too many scores of a block pass, the bar is first raised by a bound from the block itself: the
 * k-th largest of the maxima of m > k disjoint groups is at most the k-th largest score.
 *
 * Cost: O(n + k log k), because a selection over k + c entries happens only after a number of appends in proportion;
 * O(n log k) if every selection degenerates to its heapsort. Sorted-ascending input, the classic worst case of a
 * threshold scan, is cheap by the group bound (up to k = 2000 or so; above, only the selection bounds the cost). */

/* Entries that each of the two buffers must have for a given k. */
#define EDR_TOPK_ROOM(k) (2 * (int64_t)(k) + 1024)

/* The largest k, chosen so that EDR_TOPK_ROOM and byte counts cannot overflow. */
#define EDR_TOPK_MAX_K ((int64_t)1 << 44)

/*
 * State of one selection. The caller owns it and the two buffers; its members are private.
 */
typedef struct edr_topk {
    float *scores;    /* candidates: unordered, all of the k best so far are among them */
    int64_t *indices; /* their indices */
    int64_t k, room, count;
    int64_t fresh;    /* candidates appended since the bar was set */
    float bar;        /* the k-th best at the last selection */
    int64_t bar_index;
    int full;         /* whether there is a bar */
    int isa;
} edr_topk;

/*
 * Start a selection.
 *
 * k        0 .. EDR_TOPK_MAX_K
 * isa      kernels to use, e.g. edr_isa_best()
 * scores   float32 [room], indices int64 [room]; room >= EDR_TOPK_ROOM(k)
 * Fails with EDR_E_NULL, EDR_E_VALUE (k), EDR_E_SPACE (room), EDR_E_ISA.
 */
edr_status edr_topk_init(edr_topk *top, int64_t k, int isa, float *scores, int64_t *indices, int64_t room);

/*
 * Offer n scores with the indices start, start + 1, ...
 *
 * scores   float32 [n]
 * mask     uint8 [n] or NULL; a score whose mask is not 0 is skipped
 * start    >= 0, start + n must fit int64
 * Fails with EDR_E_NULL, EDR_E_SIZE (n < 0), EDR_E_VALUE (start).
 */
edr_status edr_topk_push(edr_topk *top, const float *scores, const uint8_t *mask, int64_t n, int64_t start);

/*
 * Offer n scores with any indices. An index should be offered once; what is offered twice may be returned twice.
 *
 * scores   float32 [n]
 * indices  int64 [n]
 * Fails with EDR_E_NULL, EDR_E_SIZE (n < 0).
 */
edr_status edr_topk_push_at(edr_topk *top, const float *scores, const int64_t *indices, int64_t n);

/* How many edr_topk_finish will return: min(k, scores offered and not skipped). Runs a selection when one is due. */
int64_t edr_topk_count(edr_topk *top);

/*
 * Write the best, best first. The selection is not spent: more may be pushed, and finish called again.
 *
 * indices  int64 [edr_topk_count], scores float32 [same]
 * count    receives K
 * Fails with EDR_E_NULL.
 */
edr_status edr_topk_finish(edr_topk *top, int64_t *indices, float *scores, int64_t *count);

/* ---------------------------------------------------------------------------------------------------- scan (scan.c)
 * Scores for a whole catalogue when there is no first stage: one short int8 vector an item. Feed them to an edr_topk. */

/* The widest vectors: a sum of so many products of two int8 stays below 2^31 in every kernel. */
#define EDR_SCAN_MAX_WIDTH 65536

/*
 * Score n vectors against one: scores[i] = (float)(sum over j of query[j] * vectors[i * width + j]) * (query_scale * scales[i]).
 * The sum is an exact integer and the rest is rounded in this order, so every instruction set gives the same bits.
 *
 * query    int8 [width], any values; query_scale is what its numbers are multiples of
 * vectors  int8 [n, width], need not be aligned
 * scales   float32 [n]; NaN and infinity go through to the score
 * width    1 .. EDR_SCAN_MAX_WIDTH
 * isa      kernels to use, e.g. edr_isa_best()
 * scores   float32 [n]
 * Fails with EDR_E_NULL, EDR_E_SIZE (n < 0, width), EDR_E_ISA.
 */
edr_status edr_scan(const int8_t *query, float query_scale, const int8_t *vectors, const float *scales, int64_t n, int64_t width, int isa,
                    float *scores);

#ifdef __cplusplus
}
#endif

#endif
