/*
 * scan.c: the scores of many int8 vectors against one: a straight read of the vectors, at memory speed.
 *
 * A version differs only in how it takes the dot product of one vector; each is compiled for its instruction set through a
 * function attribute, as in topk_kernels.c. All products and sums are exact in 32 bits, so the integers are the same
 * whatever the order, and what follows is the same three float operations everywhere.
 */
#include "internal.h"

#if defined(__x86_64__) && defined(__GNUC__)
#include <immintrin.h>
#define EDR_X86 1
#elif defined(__aarch64__)
#include <arm_neon.h>
#define EDR_ARM 1
#endif
#if defined(__GNUC__)
#define TARGET(features) __attribute__((target(features)))
#else
#define TARGET(features)
#endif

/* Vectors whose sums are kept on the stack before they become scores. */
#define BLOCK 256

typedef void (*dots)(const int8_t *query, const int8_t *vectors, int64_t n, int64_t width, int32_t shift, int32_t *sums);

/* The numbers from `begin` on, one by one. */
static inline int32_t rest(const int8_t *a, const int8_t *b, int64_t begin, int64_t width)
{
    int32_t sum = 0;
    for (int64_t j = begin; j < width; j++) sum += a[j] * b[j];
    return sum;
}

/* DOT(query, vector, width, shift) is one dot product; shift is 128 times the sum of the query, for sets that want it. */
#define DEFINE_DOTS(NAME, ATTRIBUTE, DOT)                                                                                         \
    ATTRIBUTE static void NAME(const int8_t *query, const int8_t *vectors, int64_t n, int64_t width, int32_t shift, int32_t *sums) \
    {                                                                                                                             \
        for (int64_t i = 0; i < n; i++, vectors += width) sums[i] = DOT(query, vectors, width, shift);                            \
    }

/* ---- scalar ---- */

static inline int32_t dot_scalar(const int8_t *q, const int8_t *v, int64_t width, int32_t shift)
{
    (void)shift;
    return rest(q, v, 0, width);
}

DEFINE_DOTS(dots_scalar, , dot_scalar)

/* ---- x86: widened to 16 bits, or 8-bit products of unsigned with signed numbers ---- */

#ifdef EDR_X86
TARGET("avx2") static inline int32_t lanes_avx2(__m256i x)
{
    __m128i sum = _mm_add_epi32(_mm256_castsi256_si128(x), _mm256_extracti128_si256(x, 1));
    sum = _mm_add_epi32(sum, _mm_shuffle_epi32(sum, 0x4E));
    return _mm_cvtsi128_si32(_mm_add_epi32(sum, _mm_shuffle_epi32(sum, 0xB1)));
}

TARGET("avx2") static inline int32_t dot_avx2(const int8_t *q, const int8_t *v, int64_t width, int32_t shift)
{
    __m256i sum = _mm256_setzero_si256();
    int64_t j = 0;
    (void)shift;
    for (; j + 16 <= width; j += 16) {
        const __m256i a = _mm256_cvtepi8_epi16(_mm_loadu_si128((const __m128i *)(q + j)));
        const __m256i b = _mm256_cvtepi8_epi16(_mm_loadu_si128((const __m128i *)(v + j)));
        sum = _mm256_add_epi32(sum, _mm256_madd_epi16(a, b));
    }
    return lanes_avx2(sum) + rest(q, v, j, width);
}

DEFINE_DOTS(dots_avx2, TARGET("avx2"), dot_avx2)

/*
 * The unsigned operand is v + 128 (its top bit turned round), so a sum is that of q v plus 128 times that of q.
 * For 65536 numbers it is at most 65536 * 255 * 128 < 2^31.
 */
#ifdef EDR_HAS_AVX_VNNI
TARGET("avx2,avxvnni") static inline int32_t dot_avx_vnni(const int8_t *q, const int8_t *v, int64_t width, int32_t shift)
{
    const __m256i top = _mm256_set1_epi8((char)-128);
    __m256i sum = _mm256_setzero_si256();
    int64_t j = 0;
    if (width < 32) return rest(q, v, 0, width);
    for (; j + 32 <= width; j += 32) {
        const __m256i b = _mm256_xor_si256(_mm256_loadu_si256((const __m256i *)(v + j)), top);
        sum = _mm256_dpbusd_avx_epi32(sum, b, _mm256_loadu_si256((const __m256i *)(q + j)));
    }
    return lanes_avx2(sum) - shift + rest(q, v, j, width);
}

DEFINE_DOTS(dots_avx_vnni, TARGET("avx2,avxvnni"), dot_avx_vnni)
#endif

TARGET("avx512f,avx512vnni") static inline int32_t dot_avx512_vnni(const int8_t *q, const int8_t *v, int64_t width, int32_t shift)
{
    const __m512i top = _mm512_set1_epi32((int32_t)0x80808080u);
    __m512i sum = _mm512_setzero_si512();
    int64_t j = 0;
    if (width < 64) return rest(q, v, 0, width);
    for (; j + 64 <= width; j += 64) {
        const __m512i b = _mm512_xor_si512(_mm512_loadu_si512(v + j), top);
        sum = _mm512_dpbusd_epi32(sum, b, _mm512_loadu_si512(q + j));
    }
    return _mm512_reduce_add_epi32(sum) - shift + rest(q, v, j, width);
}

DEFINE_DOTS(dots_avx512_vnni, TARGET("avx512f,avx512vnni"), dot_avx512_vnni)
#endif

/* ---- NEON ---- */

#ifdef EDR_ARM
static inline int32_t dot_neon(const int8_t *q, const int8_t *v, int64_t width, int32_t shift)
{
    int32x4_t sum = vdupq_n_s32(0);
    int64_t j = 0;
    (void)shift;
    for (; j + 16 <= width; j += 16) {
        const int8x16_t a = vld1q_s8(q + j), b = vld1q_s8(v + j);
        sum = vpadalq_s16(sum, vmull_s8(vget_low_s8(a), vget_low_s8(b)));
        sum = vpadalq_s16(sum, vmull_s8(vget_high_s8(a), vget_high_s8(b)));
    }
    return vaddvq_s32(sum) + rest(q, v, j, width);
}

DEFINE_DOTS(dots_neon, , dot_neon)
#endif

#ifdef EDR_HAS_NEON_DOT
TARGET("arch=armv8.2-a+dotprod") static inline int32_t dot_neon_dotprod(const int8_t *q, const int8_t *v, int64_t width, int32_t shift)
{
    int32x4_t sum = vdupq_n_s32(0);
    int64_t j = 0;
    (void)shift;
    for (; j + 16 <= width; j += 16) sum = vdotq_s32(sum, vld1q_s8(q + j), vld1q_s8(v + j));
    return vaddvq_s32(sum) + rest(q, v, j, width);
}

DEFINE_DOTS(dots_neon_dotprod, TARGET("arch=armv8.2-a+dotprod"), dot_neon_dotprod)
#endif

static dots dots_for(int isa)
{
    switch (isa) {
#ifdef EDR_X86
    case EDR_ISA_AVX2:
    case EDR_ISA_AVX512: return dots_avx2; /* AVX-512F alone has no products of 8 or 16 bits, and always AVX2 */
    case EDR_ISA_AVX512_VNNI:
    case EDR_ISA_AVX512_BF16:
    case EDR_ISA_AMX: return dots_avx512_vnni;
#endif
#ifdef EDR_HAS_AVX_VNNI
    case EDR_ISA_AVX_VNNI: return dots_avx_vnni;
#endif
#ifdef EDR_ARM
    case EDR_ISA_NEON: return dots_neon;
#endif
#ifdef EDR_HAS_NEON_DOT
    case EDR_ISA_NEON_DOTPROD:
    case EDR_ISA_NEON_I8MM: return dots_neon_dotprod; /* every CPU with the latter has the former */
#endif
    default: return dots_scalar;
    }
}

/* 128 times the sum of the part of the query that a set with 8-bit products takes `step` numbers at a time. */
static int32_t shift_of(const int8_t *query, int64_t width, int64_t step)
{
    int32_t sum = 0;
    for (int64_t j = 0; j < width - width % step; j++) sum += query[j];
    return 128 * sum;
}

edr_status edr_scan(const int8_t *query, float query_scale, const int8_t *vectors, const float *scales, int64_t n, int64_t width, int isa,
                    float *scores)
{
    int32_t sums[BLOCK];
    if (n < 0 || width < 1 || width > EDR_SCAN_MAX_WIDTH || n > INT64_MAX / EDR_SCAN_MAX_WIDTH) return EDR_E_SIZE;
    if (!edr_isa_supported(isa)) return EDR_E_ISA;
    if (n == 0) return EDR_OK;
    if (query == NULL || vectors == NULL || scales == NULL || scores == NULL) return EDR_E_NULL;
    const dots kernel = dots_for(isa);
    const int32_t shift = shift_of(query, width, isa == EDR_ISA_AVX_VNNI ? 32 : 64);
    for (int64_t begin = 0; begin < n; begin += BLOCK) {
        const int64_t m = n - begin < BLOCK ? n - begin : BLOCK;
        kernel(query, vectors + begin * width, m, width, shift, sums);
        for (int64_t i = 0; i < m; i++) scores[begin + i] = (float)sums[i] * (query_scale * scales[begin + i]);
    }
    return EDR_OK;
}
