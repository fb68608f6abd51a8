/* rooms.h: the buffers of the kernels' tests, and their numbers. */
#ifndef EDGEREC_ROOMS_H
#define EDGEREC_ROOMS_H

#include <math.h>
#include <sys/mman.h>
#include <unistd.h>

#include "check.h"

/*
 * The kernels' buffers: in one pass heap blocks of their very size, for AddressSanitizer; in another, because it does not see
 * the masked loads and stores of AVX2 and AVX-512, mappings that end with a page that nobody may touch.
 */
enum { MOST_MAPPINGS = 16 };
static struct { void *base, *room; size_t size; } mappings[MOST_MAPPINGS];
static int guarded;

static inline void *make_room(size_t size)
{
    if (!guarded) return exact_room(size);
    const size_t page = (size_t)sysconf(_SC_PAGESIZE), pages = (size + page - 1) / page * page + page;
    int place = 0;
    while (place < MOST_MAPPINGS && mappings[place].base != NULL) place++;
    unsigned char *base = mmap(NULL, pages, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (place == MOST_MAPPINGS || base == MAP_FAILED || mprotect(base + pages - page, page, PROT_NONE) != 0) abort();
    mappings[place].base = base;
    mappings[place].size = pages;
    memset(base, 0x5A, pages - page);
    return mappings[place].room = base + pages - page - size;
}

static inline void free_room(void *room)
{
    if (!guarded) {
        free(room);
        return;
    }
    int place = 0;
    while (mappings[place].room != room || mappings[place].base == NULL) place++;
    munmap(mappings[place].base, mappings[place].size);
    mappings[place].base = NULL;
}

static inline float uniform(uint64_t *state, float size) { return size * ((float)(random_u64(state) >> 40) * (2.0f / 16777216.0f) - 1.0f); }

static inline double widened(uint16_t half)
{
    const uint32_t bits = (uint32_t)half << 16;
    float x;
    memcpy(&x, &bits, 4);
    return x;
}

/* A bfloat16 in -1 .. 1. */
static inline uint16_t random_half(uint64_t *state)
{
    const float x = uniform(state, 1);
    uint32_t bits;
    memcpy(&bits, &x, 4);
    return (uint16_t)(bits >> 16);
}

/* x Phi(x) */
static inline double exact_gelu(double x) { return 0.5 * x * erfc(-x / sqrt(2.0)); }

static inline double tanh_gelu(double x) { return 0.5 * x * (1 + tanh(sqrt(2 / acos(-1.0)) * (x + 0.044715 * x * x * x))); }

#endif
