/* internal.h: what the sources share and the API does not show. */
#ifndef EDGEREC_INTERNAL_H
#define EDGEREC_INTERNAL_H

#include <string.h>

#include "edgerec.h"

/* Clang has the instructions, but its __builtin_cpu_supports does not know their name in every version. */
#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__) && __GNUC__ >= 11
#define EDR_HAS_AVX_VNNI 1
#endif

#if defined(__x86_64__) && defined(__GNUC__) && (defined(__clang__) || __GNUC__ >= 10)
#define EDR_HAS_AVX512_BF16 1
#endif

/* Linux alone is asked for the use of tiles. */
#if defined(__x86_64__) && defined(__linux__) && defined(EDR_HAS_AVX512_BF16) && (__GNUC__ >= 11 || (defined(__clang__) && __clang_major__ >= 12))
#define EDR_HAS_AMX 1
#endif

/* Clang before 16 declares these intrinsics only where the whole file is compiled for them. */
#if defined(__clang__)
#define EDR_NEW_COMPILER (__clang_major__ >= 16)
#else
#define EDR_NEW_COMPILER (__GNUC__ >= 10)
#endif
#if defined(__aarch64__) && defined(__linux__) && defined(__GNUC__) && EDR_NEW_COMPILER
#define EDR_HAS_NEON_DOT 1
#endif

/* Report a fault and where it is; `at` may be NULL. */
static inline edr_status edr_fail(edr_status status, int64_t *at, int64_t where)
{
    if (at != NULL) *at = where;
    return status;
}

/* Whether the set `row` of a table of offsets lies inside data of `size` entries. `row` must be a valid row. */
static inline int edr_span_ok(const int64_t *offsets, int64_t row, int64_t size)
{
    const int64_t begin = offsets[row], end = offsets[row + 1];
    return begin >= 0 && begin <= end && end <= size;
}

#endif
