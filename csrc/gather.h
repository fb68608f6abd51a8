/*
 * Rows of a request, made where a catalogue's copy lies: item states widened to the numbers that a graph reads, for mid-fusion students, or
 * item tokens joined with the query's, for cross students.
 *
 * One definition, two programs: gather.c, plain C, which defines the result and runs in the tests; gather.cu, the same on a GPU, a block of
 * threads a row, which is compiled to edgerec/engine/gather.ptx (`make ptx`) and loaded through the driver. Both compute a number with the
 * functions at the end of this header, whose bits depend on no compiler: integers, and one product of float32 numbers.
 *
 * Shapes: B rows, T tokens of an output row, G states of a token, W numbers of a state.
 */
#ifndef EDR_GATHER_H
#define EDR_GATHER_H

#include <stdint.h>
#include <string.h>

/* How a number is stored, or written. A float16 or bfloat16 is its bits, in a uint16. */
enum { EDR_GATHER_FP32 = 0, EDR_GATHER_INT8 = 1, EDR_GATHER_FP16 = 2, EDR_GATHER_BF16 = 3 };

/* Where states lie: `values` [total, G W] as they are stored, and for int8 `scales` [total, G]; else NULL. */
typedef struct {
    const void *values;
    const float *scales;
} edr_states_table;

/* What a gather reads and writes.
 *
 * Row b is the `lengths[b]` tokens from `starts[b]` of tables[0] on, or, where starts[b] is negative, from `~starts[b]` of tables[1] on: a
 * copy that stays, and what came along with a request. `out` [B, T, G W] gets their numbers, and zeros behind a row's end. */
typedef struct {
    edr_states_table tables[2];
    int64_t totals[2];      /* tokens of each table: the C program refuses a row that lies outside, the GPU reads what there is */
    const int64_t *starts;  /* [B] */
    const int32_t *lengths; /* [B], 0 to T */
    int64_t rows;           /* B */
    int32_t tokens;         /* T */
    int32_t groups, width;  /* G, W */
    int32_t stored, number; /* of the tables: FP32, INT8 or FP16; of the output: FP32, FP16 or BF16 */
    void *out;
} edr_gather_job;

/* What a request's rows have in common, as int32 numbers: these, and then the tokens before the item and those after it. */
enum { EDR_FRAME_HEAD, EDR_FRAME_SUFFIX, EDR_FRAME_HEAD_TYPE, EDR_FRAME_ITEM_TYPE, EDR_FRAME_PAD, EDR_FRAME_TOKENS };

/* What a join of the query with items reads and writes.
 *
 * Row b is the frame's head (prefix, query, middle), `lengths[b]` tokens from `starts[b]` on, of the table that its sign names, as above, and
 * the suffix; a length of -1 is no row at all. Behind a row's end `ids` [B, T] have the frame's padding, `mask` and `types` zeros. No engine
 * takes an empty row: a row without any token is one of padding. */
typedef struct {
    const int32_t *tables[2];
    int64_t totals[2];      /* tokens of each table: the C program refuses a row that lies outside, the GPU reads what there is */
    const int64_t *starts;  /* [B] */
    const int32_t *lengths; /* [B] */
    const int32_t *frame;   /* sizes of head and suffix, token types of head and of the rest, padding, head, suffix */
    int64_t frame_size;
    int64_t rows;   /* B */
    int32_t tokens; /* T */
    int32_t *ids, *mask, *types;
} edr_pairs_job;

#ifdef __CUDACC__
#define EDR_NUMBER __host__ __device__ static __forceinline__
#else
#define EDR_NUMBER static inline

#ifdef __cplusplus
extern "C" {
#endif
/* Fill `out`, or write nothing and return EDR_E_VALUE: a kind that is none; EDR_E_SIZE: a size below 0, or a row of 2^31 numbers; EDR_E_ROW:
 * a row outside of its table, or longer than T. */
int edr_gather_states(const edr_gather_job *job);
/* Fill `ids`, `mask` and `types`, or write nothing and return EDR_E_VALUE: a frame whose sizes are not its own; EDR_E_SIZE, EDR_E_ROW: as above. */
int edr_gather_pairs(const edr_pairs_job *job);
#ifdef __cplusplus
}
#endif
#endif

/* float16 to float32, exact. */
EDR_NUMBER float edr_widen_f16(uint16_t h)
{
    const uint32_t sign = (uint32_t)(h & 0x8000u) << 16, magnitude = h & 0x7fffu;
    uint32_t bits;
    float x;
    if (magnitude >= 0x7c00u) bits = magnitude << 13 | 0x7f800000u; /* infinite, or no number */
    else if (magnitude >= 0x0400u) bits = (magnitude << 13) + (112u << 23);
    else { /* magnitude * 2^-24; the product is exact */
        x = (float)(int32_t)magnitude * 5.9604644775390625e-8f;
        memcpy(&bits, &x, 4);
    }
    bits |= sign;
    memcpy(&x, &bits, 4);
    return x;
}

/* float32 to the nearest float16, of two as near the even one; beyond the largest: infinite; no number stays none. */
EDR_NUMBER uint16_t edr_narrow_f16(float x)
{
    uint32_t bits;
    memcpy(&bits, &x, 4);
    const uint32_t sign = bits >> 16 & 0x8000u, magnitude = bits & 0x7fffffffu;
    if (magnitude > 0x7f800000u) return (uint16_t)(sign | 0x7e00u);
    if (magnitude >= 0x477ff000u) return (uint16_t)(sign | 0x7c00u); /* 65520 and more */
    if (magnitude >= 0x38800000u) {                                  /* 2^-14 and more: normal */
        const uint32_t moved = magnitude - (112u << 23);
        return (uint16_t)(sign | (moved + 0xfffu + (moved >> 13 & 1u)) >> 13);
    }
    if (magnitude <= 0x33000000u) return (uint16_t)sign; /* half of the smallest, and less */
    const uint32_t shift = 126u - (magnitude >> 23), fraction = (magnitude & 0x7fffffu) | 0x800000u;
    const uint32_t kept = fraction >> shift, rest = fraction & ((1u << shift) - 1u), half = 1u << (shift - 1u);
    return (uint16_t)(sign | (kept + (rest > half || (rest == half && (kept & 1u)))));
}

/* float32 to the nearest bfloat16, of two as near the even one; no number stays none. */
EDR_NUMBER uint16_t edr_narrow_bf16(float x)
{
    uint32_t bits;
    memcpy(&bits, &x, 4);
    if ((bits & 0x7fffffffu) > 0x7f800000u) return (uint16_t)(bits >> 16 | 0x40u);
    return (uint16_t)((bits + 0x7fffu + (bits >> 16 & 1u)) >> 16);
}

/* Number `i` of a row that begins at token `start` of a table, as float32. A row has fewer than 2^31 numbers. */
EDR_NUMBER float edr_stored_number(const edr_states_table *table, int32_t stored, int32_t groups, int32_t width, int64_t start, int32_t i)
{
    const int64_t at = start * groups * width + i;
    if (stored == EDR_GATHER_INT8) return (float)((const int8_t *)table->values)[at] * table->scales[start * groups + i / width];
    if (stored == EDR_GATHER_FP16) return edr_widen_f16(((const uint16_t *)table->values)[at]);
    return ((const float *)table->values)[at];
}

/* Write it as number `at` of the output. */
EDR_NUMBER void edr_write_number(void *out, int32_t number, int64_t at, float x)
{
    if (number == EDR_GATHER_FP32) ((float *)out)[at] = x;
    else ((uint16_t *)out)[at] = number == EDR_GATHER_FP16 ? edr_narrow_f16(x) : edr_narrow_bf16(x);
}

/* Token `i` of a row whose item is `item`, of `length` tokens, written to place `at` of the outputs. */
EDR_NUMBER void edr_write_token(const int32_t *frame, const int32_t *item, int32_t length, int32_t i, int64_t at, int32_t *ids, int32_t *mask,
                                int32_t *types)
{
    const int32_t head = frame[EDR_FRAME_HEAD], end = length < 0 ? 0 : head + length + frame[EDR_FRAME_SUFFIX];
    if (i >= end) ids[at] = frame[EDR_FRAME_PAD];
    else if (i < head) ids[at] = frame[EDR_FRAME_TOKENS + i];
    else ids[at] = i < head + length ? item[i - head] : frame[EDR_FRAME_TOKENS + i - length];
    mask[at] = i < end || (i == 0 && length == 0);
    types[at] = i >= end ? 0 : frame[i < head ? EDR_FRAME_HEAD_TYPE : EDR_FRAME_ITEM_TYPE];
}

#endif
