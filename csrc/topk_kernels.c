/*
 * topk_kernels.c: scalar, AVX2, AVX-512 and NEON versions of the two loops of topk.c.
 *
 * A version differs only in how it compares a group of 64 scores and how it takes a maximum, so the loops are written
 * once, as macros, and compiled once per instruction set through a function attribute: the rest of the library, and
 * the file's own flags, stay those of the plain machine.
 */
#include "topk_kernels.h"

#include <math.h>

#if defined(__x86_64__) && defined(__GNUC__)
#include <immintrin.h>
#define EDR_X86 1
#elif defined(__aarch64__)
#include <arm_neon.h>
#define EDR_ARM 1
#endif

#if defined(__GNUC__)
#define CTZ64(x) __builtin_ctzll(x)
#define TARGET(features) __attribute__((target(features)))
#else
static int CTZ64(uint64_t x)
{
    int n = 0;
    for (; (x & 1) == 0; x >>= 1) n++;
    return n;
}
#define TARGET(features)
#endif

/* The scores after the last whole group, one by one. */
static int64_t collect_tail(const float *x, int64_t begin, int64_t n, float bar, int32_t *positions, int64_t count)
{
    for (int64_t i = begin; i < n; i++) {
        if (x[i] >= bar) positions[count++] = (int32_t)i;
    }
    return count;
}

/* PASSING(x, bar) is a 64-bit word whose bit i says whether x[i] >= bar. */
#define DEFINE_COLLECT(NAME, ATTRIBUTE, PASSING)                                                               \
    ATTRIBUTE static int64_t NAME(const float *x, int64_t n, float bar, int32_t *positions, int64_t room,      \
                                  int64_t *next)                                                               \
    {                                                                                                          \
        const int64_t whole = n - n % EDR_GROUP;                                                               \
        int64_t count = 0, i = 0;                                                                              \
        for (; i < whole; i += EDR_GROUP) {                                                                    \
            uint64_t bits = PASSING(x + i, bar);                                                               \
            if (bits == 0) continue;                                                                           \
            if (count + EDR_GROUP > room) {                                                                    \
                *next = i;                                                                                     \
                return count;                                                                                  \
            }                                                                                                  \
            for (; bits != 0; bits &= bits - 1) positions[count++] = (int32_t)(i + CTZ64(bits));               \
        }                                                                                                      \
        if (count + EDR_GROUP <= room) {                                                                       \
            count = collect_tail(x, i, n, bar, positions, count);                                              \
            i = n;                                                                                             \
        }                                                                                                      \
        *next = i;                                                                                             \
        return count;                                                                                          \
    }

/* ---- scalar ---- */

static inline uint64_t passing_scalar(const float *x, float bar)
{
    uint64_t bits = 0;
    int any = 0; /* nearly always stays 0, and compilers know how to vectorise this loop for the plain machine */
    for (int i = 0; i < EDR_GROUP; i++) any |= x[i] >= bar;
    for (int i = 0; any && i < EDR_GROUP; i++) bits |= (uint64_t)(x[i] >= bar) << i;
    return bits;
}

DEFINE_COLLECT(collect_scalar, , passing_scalar)

static void column_max_scalar(const float *x, int64_t rows, int64_t m, float *columns)
{
    for (int64_t c = 0; c < m; c++) columns[c] = -INFINITY;
    for (int64_t r = 0; r < rows; r++, x += m) {
        for (int64_t c = 0; c < m; c++) columns[c] = x[c] > columns[c] ? x[c] : columns[c];
    }
}

static const edr_topk_kernels scalar_kernels = {collect_scalar, column_max_scalar};

/* ---- AVX2 and AVX-512. max(a, b) gives b when a is NaN, so the running maximum goes second. ---- */

#ifdef EDR_X86
TARGET("avx2") static inline uint64_t passing_avx2(const float *x, float bar)
{
    const __m256 b = _mm256_set1_ps(bar);
    uint64_t bits = 0;
    for (int i = 0; i < 8; i++) {
        const __m256 ge = _mm256_cmp_ps(_mm256_loadu_ps(x + 8 * i), b, _CMP_GE_OQ);
        bits |= (uint64_t)(uint32_t)_mm256_movemask_ps(ge) << (8 * i);
    }
    return bits;
}

DEFINE_COLLECT(collect_avx2, TARGET("avx2"), passing_avx2)

TARGET("avx2") static void column_max_avx2(const float *x, int64_t rows, int64_t m, float *columns)
{
    for (int64_t c = 0; c < m; c += 32) {
        __m256 top[4];
        for (int i = 0; i < 4; i++) top[i] = _mm256_set1_ps(-INFINITY);
        const float *p = x + c;
        for (int64_t r = 0; r < rows; r++, p += m) {
            for (int i = 0; i < 4; i++) top[i] = _mm256_max_ps(_mm256_loadu_ps(p + 8 * i), top[i]);
        }
        for (int i = 0; i < 4; i++) _mm256_storeu_ps(columns + c + 8 * i, top[i]);
    }
}

static const edr_topk_kernels avx2_kernels = {collect_avx2, column_max_avx2};

TARGET("avx512f") static inline uint64_t passing_avx512(const float *x, float bar)
{
    const __m512 b = _mm512_set1_ps(bar);
    const uint64_t m0 = _mm512_cmp_ps_mask(_mm512_loadu_ps(x), b, _CMP_GE_OQ);
    const uint64_t m1 = _mm512_cmp_ps_mask(_mm512_loadu_ps(x + 16), b, _CMP_GE_OQ);
    const uint64_t m2 = _mm512_cmp_ps_mask(_mm512_loadu_ps(x + 32), b, _CMP_GE_OQ);
    const uint64_t m3 = _mm512_cmp_ps_mask(_mm512_loadu_ps(x + 48), b, _CMP_GE_OQ);
    return m0 | m1 << 16 | m2 << 32 | m3 << 48;
}

DEFINE_COLLECT(collect_avx512, TARGET("avx512f"), passing_avx512)

TARGET("avx512f") static void column_max_avx512(const float *x, int64_t rows, int64_t m, float *columns)
{
    for (int64_t c = 0; c < m; c += 64) {
        __m512 top[4];
        for (int i = 0; i < 4; i++) top[i] = _mm512_set1_ps(-INFINITY);
        const float *p = x + c;
        for (int64_t r = 0; r < rows; r++, p += m) {
            for (int i = 0; i < 4; i++) top[i] = _mm512_max_ps(_mm512_loadu_ps(p + 16 * i), top[i]);
        }
        for (int i = 0; i < 4; i++) _mm512_storeu_ps(columns + c + 16 * i, top[i]);
    }
}

static const edr_topk_kernels avx512_kernels = {collect_avx512, column_max_avx512};
#endif

/* ---- NEON: maxnm ignores a NaN operand ---- */

#ifdef EDR_ARM
static inline uint64_t passing_neon(const float *x, float bar)
{
    static const uint8_t place[16] = {1, 2, 4, 8, 16, 32, 64, 128, 1, 2, 4, 8, 16, 32, 64, 128};
    const float32x4_t b = vdupq_n_f32(bar);
    const uint8x16_t weights = vld1q_u8(place);
    uint64_t bits = 0;
    for (int i = 0; i < 4; i++) {
        const uint32x4_t c0 = vcgeq_f32(vld1q_f32(x + 16 * i), b), c1 = vcgeq_f32(vld1q_f32(x + 16 * i + 4), b);
        const uint32x4_t c2 = vcgeq_f32(vld1q_f32(x + 16 * i + 8), b), c3 = vcgeq_f32(vld1q_f32(x + 16 * i + 12), b);
        const uint16x8_t low = vcombine_u16(vmovn_u32(c0), vmovn_u32(c1)), high = vcombine_u16(vmovn_u32(c2), vmovn_u32(c3));
        const uint8x16_t all = vandq_u8(vcombine_u8(vmovn_u16(low), vmovn_u16(high)), weights);
        const uint64_t word = (uint64_t)vaddv_u8(vget_low_u8(all)) | (uint64_t)vaddv_u8(vget_high_u8(all)) << 8;
        bits |= word << (16 * i);
    }
    return bits;
}

DEFINE_COLLECT(collect_neon, , passing_neon)

static void column_max_neon(const float *x, int64_t rows, int64_t m, float *columns)
{
    for (int64_t c = 0; c < m; c += 16) {
        float32x4_t top[4];
        for (int i = 0; i < 4; i++) top[i] = vdupq_n_f32(-INFINITY);
        const float *p = x + c;
        for (int64_t r = 0; r < rows; r++, p += m) {
            for (int i = 0; i < 4; i++) top[i] = vmaxnmq_f32(vld1q_f32(p + 4 * i), top[i]);
        }
        for (int i = 0; i < 4; i++) vst1q_f32(columns + c + 4 * i, top[i]);
    }
}

static const edr_topk_kernels neon_kernels = {collect_neon, column_max_neon};
#endif

const edr_topk_kernels *edr_topk_kernels_for(int isa)
{
    switch (isa) {
#ifdef EDR_X86
    case EDR_ISA_AVX2:
    case EDR_ISA_AVX_VNNI: return &avx2_kernels;
    case EDR_ISA_AVX512:
    case EDR_ISA_AVX512_VNNI:
    case EDR_ISA_AVX512_BF16:
    case EDR_ISA_AMX: return &avx512_kernels;
#endif
#ifdef EDR_ARM
    case EDR_ISA_NEON:
    case EDR_ISA_NEON_DOTPROD:
    case EDR_ISA_NEON_I8MM: return &neon_kernels;
#endif
    default: return &scalar_kernels;
    }
}
