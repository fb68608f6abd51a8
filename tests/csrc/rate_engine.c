/* cc -std=c11 -O3 -Icsrc tests/csrc/rate_engine.c csrc/[a-z]*.c -lm -lpthread -o rate_engine
 * rate_engine [isa] [turns]: what the processor's int8 units give, for the floor in benchmarks/bench_engine.py. Prints the 1e9 operations
 * a second (a multiply-add is two) of the best of a few products whose operands lie in the cache: the engine's own, in
 * several shapes, and a bare loop of dot products, which has nothing to do with its sums. With `turns` it goes on: for each line of
 * input, a number of nanoseconds, it prints what that product gives over so long. */
#include "check.h"
#include "engine_kernels.h"
#include "internal.h"

#if defined(__x86_64__) && defined(__GNUC__)
#include <immintrin.h>
#define BARE 1
#endif

enum { MOST_K = 1024, MOST_ROWS = 96, SPAN = 20000000 /* ns a measurement */, TRIES = 50 /* short: another process may have the core in many of them */ };

static uint8_t x[MOST_ROWS * MOST_K];
static int8_t w[2 * EDR_PANEL * MOST_K];
static float scales[MOST_ROWS + 2 * EDR_PANEL], out[MOST_ROWS * 2 * EDR_PANEL];

#ifdef BARE
/* 6 rows x 64 columns: 24 sums, 4 vectors of weights and one of inputs in registers; nothing is kept but that it was done. */
#define EACH_ROW(DO) DO(0) DO(1) DO(2) DO(3) DO(4) DO(5)
#define ZERO(r) __m512i a##r = _mm512_setzero_si512(), b##r = a##r, c##r = a##r, d##r = a##r;
#define STEP(r)                                   \
    memcpy(&four, x + r * k + i, 4);              \
    spread = _mm512_set1_epi32(four);             \
    a##r = _mm512_dpbusd_epi32(a##r, spread, w0); \
    b##r = _mm512_dpbusd_epi32(b##r, spread, w1); \
    c##r = _mm512_dpbusd_epi32(c##r, spread, w2); \
    d##r = _mm512_dpbusd_epi32(d##r, spread, w3);
#define KEEP(r) __asm__ volatile("" : : "v"(a##r), "v"(b##r), "v"(c##r), "v"(d##r));

__attribute__((target("avx512f,avx512vnni"))) static void bare(int64_t k)
{
    EACH_ROW(ZERO)
    const int8_t *b = w;
    for (int64_t i = 0; i < k; i += 4, b += 256) {
        const __m512i w0 = _mm512_loadu_si512(b), w1 = _mm512_loadu_si512(b + 64), w2 = _mm512_loadu_si512(b + 128),
                      w3 = _mm512_loadu_si512(b + 192);
        int32_t four;
        __m512i spread;
        EACH_ROW(STEP)
    }
    EACH_ROW(KEEP)
}
#endif

#ifdef EDR_HAS_AMX
/* 32 rows x 32 columns: four tiles of sums, two of rows and two of columns, loaded anew at every step of 64 bytes. */
__attribute__((target("amx-tile,amx-int8"))) static void bare_tiles(int64_t k)
{
    for (int64_t i = 0; i < k; i += 64) {
        const int8_t *b = w + i * EDR_PANEL;
        _tile_loadd(4, x + i, k);
        _tile_loadd(5, x + 16 * k + i, k);
        _tile_loadd(6, b, 128);
        _tile_loadd(7, b + 64, 128);
        _tile_dpbusd(0, 4, 6);
        _tile_dpbusd(1, 4, 7);
        _tile_dpbusd(2, 5, 6);
        _tile_dpbusd(3, 5, 7);
    }
}
#endif

/* One product: the engine's when rows is above 0, else a bare loop. Returns its multiply-adds. */
static double once(const edr_engine_kernels *kernels, int64_t k, int64_t rows, int64_t panels)
{
#ifdef EDR_HAS_AMX
    if (rows == 0 && kernels == edr_engine_kernels_for(EDR_ISA_AMX)) {
        bare_tiles(k);
        return 32.0 * 32.0 * (double)k;
    }
#endif
#ifdef BARE
    if (rows == 0) {
        bare(k);
        return 6.0 * 64.0 * (double)k;
    }
#endif
    const edr_linear weights = {w, scales, scales, scales, k, panels * EDR_PANEL, 1};
    const edr_rows in = {x, scales, scales};
    kernels->product_u8(&weights, 0, panels, &in, rows, out, panels * EDR_PANEL, EDR_STORE);
    return (double)(k * rows * panels * EDR_PANEL);
}

/* 1e9 operations a second of a shape (K, rows, panels) over `span` ns. */
static double rate(const edr_engine_kernels *kernels, const int64_t *shape, int64_t span)
{
    double work = 0;
    const int64_t begin = edr_now();
    int64_t spent = 0;
    while (spent < span) {
        for (int j = 0; j < 50; j++) work += once(kernels, shape[0], shape[1], shape[2]);
        spent = edr_now() - begin;
    }
    return 2 * work / (double)spent;
}

int main(int argc, char **argv)
{
    int isa = edr_isa_best();
    for (int i = 0; argc > 1 && i < EDR_ISA_COUNT; i++) {
        if (strcmp(edr_isa_name(i), argv[1]) == 0) isa = i;
    }
    if (!edr_isa_supported(isa)) return 1;
    const edr_engine_kernels *kernels = edr_engine_kernels_for(isa);
    uint64_t state = 1;
    for (size_t i = 0; i < sizeof x; i++) x[i] = (uint8_t)random_below(&state, 256);
    for (size_t i = 0; i < sizeof w; i++) w[i] = (int8_t)(random_below(&state, 129) - 64);
    for (size_t i = 0; i < sizeof scales / sizeof *scales; i++) scales[i] = 0.01f;
    kernels->begin();
    /* The last three are the bare loop. */
    static const int64_t shapes[][3] = {{256, 48, 1}, {256, 96, 2}, {384, 96, 1}, {512, 48, 2}, {1024, 24, 1}, {1024, 12, 1}, {128, 0, 0}, {256, 0, 0}, {512, 0, 0}};
    const int bare_loop = isa == EDR_ISA_AVX512_VNNI || isa == EDR_ISA_AVX512_BF16 || isa == EDR_ISA_AMX;
    const int count = (int)(sizeof shapes / sizeof *shapes) - (bare_loop ? 0 : 3);
    double best = 0;
    int chosen = 0;
    for (int i = 0; i < count * TRIES; i++) {
        const double found = rate(kernels, shapes[i / TRIES], SPAN / TRIES);
        if (found > best) best = found, chosen = i / TRIES;
    }
    printf("%.1f\n", best);
    char line[32];
    while (argc > 2 && fflush(stdout) == 0 && fgets(line, sizeof line, stdin) != NULL) printf("%.1f\n", rate(kernels, shapes[chosen], atoll(line)));
    kernels->end();
    return 0;
}
