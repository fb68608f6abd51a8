/* check.h: the whole test harness: count, complain, exact-size buffers for AddressSanitizer, deterministic numbers. */
#ifndef EDGEREC_CHECK_H
#define EDGEREC_CHECK_H

#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "edgerec.h"

/* Make a part of a heap block as forbidden as what lies outside it. It ends at a multiple of 8, or where the block ends. */
#if defined(__has_feature) /* Clang's way to say it; GCC's is a macro */
#if __has_feature(address_sanitizer) && !defined(__SANITIZE_ADDRESS__)
#define __SANITIZE_ADDRESS__ 1
#endif
#endif
#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#define FORBID(from, size) ASAN_POISON_MEMORY_REGION(from, size)
#else
#define FORBID(from, size) ((void)(from), (void)(size))
#endif

static long check_passed, check_failed;

/* Count one expectation; on failure say where, and go on. */
#define CHECK(condition)                                                          \
    do {                                                                          \
        if (condition) {                                                          \
            check_passed++;                                                       \
        } else {                                                                  \
            check_failed++;                                                       \
            fprintf(stderr, "%s:%d: failed: %s\n", __FILE__, __LINE__, #condition); \
        }                                                                         \
    } while (0)

/* The last line of every test's main. */
static inline int check_report(void)
{
    printf("%ld passed, %ld failed\n", check_passed, check_failed);
    return check_failed == 0 ? 0 : 1;
}

/* A heap copy of exactly this size, so that a read past the end is caught. Freed by the caller. */
static inline void *exact_copy(const void *from, size_t size)
{
    void *copy = malloc(size != 0 ? size : 1);
    if (copy == NULL) abort();
    if (size != 0) memcpy(copy, from, size);
    return copy;
}

/* A heap buffer of exactly this size, filled with a pattern that no test expects. */
static inline void *exact_room(size_t size)
{
    void *room = malloc(size != 0 ? size : 1);
    if (room == NULL) abort();
    memset(room, 0x5A, size != 0 ? size : 1);
    return room;
}

/*
 * A heap buffer of exactly this size at a multiple of 64: AddressSanitizer refuses the byte before it and the byte behind it.
 * `*whole` is to be freed.
 */
static inline void *aligned_room(int64_t size, void **whole)
{
    unsigned char *block = (unsigned char *)malloc((size_t)size + 192);
    if (block == NULL) abort();
    unsigned char *room = block + 64 + (64 - (uintptr_t)block % 64) % 64;
    memset(room, 0x5A, (size_t)size);
    FORBID(block, (size_t)(room - block));
    FORBID(room + size, (size_t)(block + size + 192 - (room + size)));
    *whole = block;
    return room;
}

/* Whether a buffer from exact_room was left alone. */
static inline int untouched(const void *room, size_t size)
{
    const unsigned char *p = (const unsigned char *)room;
    for (size_t i = 0; i < size; i++) {
        if (p[i] != 0x5A) return 0;
    }
    return 1;
}

/* splitmix64 (Steele, Lea and Flood, 2014): the same numbers on every machine. */
static inline uint64_t random_u64(uint64_t *state)
{
    uint64_t z = (*state += UINT64_C(0x9E3779B97F4A7C15));
    z = (z ^ (z >> 30)) * UINT64_C(0xBF58476D1CE4E5B9);
    z = (z ^ (z >> 27)) * UINT64_C(0x94D049BB133111EB);
    return z ^ (z >> 31);
}

static inline int64_t random_below(uint64_t *state, int64_t n)
{
    return (int64_t)(random_u64(state) % (uint64_t)n);
}

#endif
