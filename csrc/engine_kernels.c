/*
 * engine_kernels.c: the encoder's loops for scalar, AVX2, AVX-VNNI, AVX-512, AVX-512 VNNI, AVX-512 BF16, AMX and NEON code.
 *
 * The loops are written once, in kernels_float.h and kernels_product.h, and compiled here once per instruction set
 * through a function attribute; only the integer dot products are spelled out for each. Tile heights are the largest
 * whose sums fit the registers: 32 of 512 bits hold 12 rows x 2 vectors, 16 of 256 bits 3 rows x 4, 32 of 128 bits 3 x 8.
 */
#include "engine_kernels.h"

#include <math.h>

#include "internal.h"

#if defined(__x86_64__) && defined(__GNUC__)
#include <immintrin.h>
#define EDR_X86 1
#elif defined(__aarch64__)
#include <arm_neon.h>
#define EDR_ARM 1
#endif

#if defined(__GNUC__)
#define ALWAYS_INLINE inline __attribute__((always_inline))
#define NEVER_INLINE __attribute__((noinline))
#else
#define ALWAYS_INLINE inline
#define NEVER_INLINE
#endif
#if defined(__GNUC__) && !defined(__clang__)
#define UNROLL _Pragma("GCC unroll 32")
#else
#define UNROLL
#endif

/* `start`: what the sums of an int8 panel's tiles start at, for sets that want it. */
typedef void (*tiles)(const edr_linear *w, int64_t panel, const edr_rows *x, int64_t begin, int64_t end, float *out, int64_t ldo,
                      const int32_t *start);

#define TABLE_OF_TASKS(NAME, FLOATS, BYTES, HALVES, BEGIN, END)                                                                    \
    static const edr_engine_kernels NAME = {product_f32_##FLOATS, product_u8_##BYTES, product_bf16_##HALVES, quantise_##FLOATS,    \
                                            round_bf16_##FLOATS,  normalise_##FLOATS, embed_##FLOATS,        attend_##FLOATS,      \
                                            attend_folded_##FLOATS, round_s8_##FLOATS, tanh_row_##FLOATS,    add_scaled_##FLOATS,  \
                                            dot_##FLOATS,         BEGIN,              END,                   gelu_row_##FLOATS,    \
                                            gelu_coarse_row_##FLOATS, gelu_tanh_row_##FLOATS, exp_row_##FLOATS};
#define TABLE(NAME, FLOATS, BYTES, HALVES) TABLE_OF_TASKS(NAME, FLOATS, BYTES, HALVES, nothing, nothing)

static void nothing(void) {}

static inline float widen(uint16_t bf16)
{
    const uint32_t bits = (uint32_t)bf16 << 16;
    float x;
    memcpy(&x, &bits, 4);
    return x;
}

/* ---- scalar ---- */

static inline void dot_tile_scalar(int32_t sum[1][EDR_PANEL], const uint8_t *x, const int8_t *b, int64_t k)
{
    for (int c = 0; c < EDR_PANEL; c++) sum[0][c] = 0;
    for (int64_t i = 0; i < k; i += 4, b += 4 * EDR_PANEL) {
        for (int c = 0; c < EDR_PANEL; c++) {
            for (int j = 0; j < 4; j++) sum[0][c] += (int32_t)x[i + j] * b[4 * c + j];
        }
    }
}

#define EDR_VECTOR 1
#include "vector.h"
#define TILE_ROWS 1
#define TILE_F32 1
#define TILE_F32_MID 1
#define TILE_U8 1
#define TILE_U8_MID 1
#define TILE_U8_LOW 1
#define TILE_BF16 1
#define TILE_BF16_MID 1
#define TILE_BF16_LOW 1
#define START(start, b, k) ((void)(start))
#define DOT_TILE(sum, x, b, k, rows, start) dot_tile_scalar(sum, x, b, k)
#include "kernels_float.h"
#include "kernels_product.h"
#undef EDR_VECTOR
#undef TILE_ROWS
#undef TILE_F32
#undef TILE_F32_MID
#undef TILE_U8
#undef TILE_U8_MID
#undef TILE_U8_LOW
#undef DOT_TILE

TABLE(scalar_kernels, scalar, scalar, scalar)

#ifdef EDR_X86

#include "kernels_avx2.h"

#undef EDR_VECTOR
/* |x| Phi(-|x|) around |x| = 4.5 i / 31, i = 0 .. 31: constants, slopes and curvatures of parabolas (Chebyshev fits), per 4.5 / 31. */
static const float gelu_pieces[3][32] = {
    {0.0f, 0.0642034262f, 0.112001829f, 0.144408762f, 0.163010135f, 0.169823229f, 0.167126447f, 0.157280564f,
     0.142562345f, 0.125026897f, 0.106410079f, 0.0880750269f, 0.0710011572f, 0.0558084287f, 0.0428070687f, 0.0320617668f,
     0.0234600455f, 0.0167767387f, 0.0117288884f, 0.00801833346f, 0.00536137633f, 0.00350674894f, 0.00224402617f, 0.00140505948f,
     0.000860886415f, 0.000516197062f, 0.000302923261f, 0.000173988985f, 9.78146491e-05f, 5.3826614e-05f, 2.89945692e-05f, 1.52921475e-05f},
    {0.0725774169f, 0.0559070893f, 0.0399235003f, 0.0252559967f, 0.0124117015f, 0.00173942326f, -0.00658939546f, -0.0125784744f,
     -0.0163854901f, -0.0182867777f, -0.0186343268f, -0.0178117212f, -0.016194731f, -0.0141206421f, -0.0118683195f, -0.00964906532f,
     -0.00760682486f, -0.00582528999f, -0.00433919206f, -0.00314720278f, -0.00222441694f, -0.00153307721f, -0.00103085081f, -0.000676548167f,
     -0.000433539273f, -0.00027134121f, -0.000165909689f, -9.91268316e-05f, -5.78836771e-05f, -3.30397997e-05f, -1.84372948e-05f, -9.85463521e-06f},
    {-0.00839352701f, -0.00822365656f, -0.00771381846f, -0.00691638002f, -0.0059023248f, -0.00475747325f, -0.00357179623f, -0.00242907624f,
     -0.00139844825f, -0.000528871955f, 0.000153025452f, 0.000641927356f, 0.000950306363f, 0.00110337557f, 0.00113354472f, 0.00107527443f,
     0.000960959296f, 0.000818151108f, 0.000668147055f, 0.000525746786f, 0.000399859826f, 0.000294613128f, 0.000210644008f, 0.000146341845f,
     9.88915272e-05f, 6.50550719e-05f, 4.16897165e-05f, 2.60402885e-05f, 1.58611929e-05f, 9.42479437e-06f, 5.46514639e-06f, 3.55741281e-06f},
};

/* ---- AVX-512F: floats only; it has no integer products of bytes or words ---- */

#define EDR_VECTOR 16
#include "vector.h"
#define TILE_ROWS 12
#define TILE_F32 12
#define TILE_F32_MID 4
#define TILE_BF16 6
#define TILE_BF16_MID 4
#define TILE_BF16_LOW 2
#include "kernels_float.h"
#include "kernels_product.h"

TABLE(avx512_kernels, avx512, avx2, avx512)

/* ---- AVX-512 VNNI: four 8-bit products added to 32 bits in one instruction, without saturation ---- */

#define EDR_VNNI
#include "vector.h"

/*
 * The sums have names: pinned in an array, GCC 12 still stores all 24 of them at every step of k. Row r is x + r k, reached from a pointer for
 * every four rows: with one for all, GCC runs out of registers and fetches distances from vector ones at every step.
 */
#define EACH_4(DO) DO(0, x0, 0) DO(1, x0, k) DO(2, x0, 2 * k) DO(3, x0, 3 * k)
#define EACH_8(DO) EACH_4(DO) DO(4, x4, 0) DO(5, x4, k) DO(6, x4, 2 * k) DO(7, x4, 3 * k)
#define EACH_12(DO) EACH_8(DO) DO(8, x8, 0) DO(9, x8, k) DO(10, x8, 2 * k) DO(11, x8, 3 * k)
#define ZERO(r, from, by) __m512i left##r = _mm512_setzero_si512(), right##r = left##r;
#define STEP(r, from, by)                                \
    memcpy(&four, from + by, 4);                         \
    spread = _mm512_set1_epi32(four);                    \
    left##r = _mm512_dpbusd_epi32(left##r, spread, b0);  \
    right##r = _mm512_dpbusd_epi32(right##r, spread, b1);
#define KEEP(r, from, by)                            \
    _mm512_store_si512(sum + EDR_PANEL * r, left##r); \
    _mm512_store_si512(sum + EDR_PANEL * r + 16, right##r);
#define DOT(ROWS)                                                                                                               \
    TARGET static NEVER_INLINE void dot_##ROWS##_vnni(int32_t *sum, const uint8_t *x, const int8_t *b, int64_t k, const int8_t *ahead, \
                                                      int64_t hop)                                                              \
    {                                                                                                                           \
        const uint8_t *x0 = x, *x4 = x + 4 * k, *x8 = x + 8 * k;                                                                \
        EACH_##ROWS(ZERO)                                                                                                       \
        for (const uint8_t *end = x + k; x0 < end; x0 += 4, x4 += 4, x8 += 4, b += 4 * EDR_PANEL, ahead += hop) {               \
            _mm_prefetch((const char *)ahead, _MM_HINT_T0);                                                                     \
            const __m512i b0 = _mm512_loadu_si512(b), b1 = _mm512_loadu_si512(b + 64);                                          \
            int32_t four;                                                                                                       \
            __m512i spread;                                                                                                     \
            EACH_##ROWS(STEP)                                                                                                   \
        }                                                                                                                       \
        EACH_##ROWS(KEEP)                                                                                                       \
    }
DOT(4)
DOT(8)
DOT(12)

/* The sums of up to 12 rows, of at least 4; what lies behind x's rows is multiplied too. */
#define TILE_U8 12
#define DOT_KEPT(sum, x, b, k, rows, ahead, hop) \
    ((rows) > 8 ? dot_12_vnni : (rows) > 4 ? dot_8_vnni : dot_4_vnni)(sum, x, b, k, ahead, hop)
#include "kernels_float.h"
#include "kernels_product.h"

TABLE(vnni_kernels, vnni, vnni, avx512)

#ifdef EDR_HAS_AVX512_BF16

/* ---- AVX-512 BF16 beside VNNI: two products of bfloat16 added to a float32 in one instruction ---- */

#define EDR_BF16
#include "vector.h"

#define BIAS(r, from, by) __m512 left##r = LOAD(bias), right##r = LOAD(bias + 16);
#define KEPT(r, from, by)                                                   \
    PIN(left##r);                                                           \
    PIN(right##r);                                                          \
    sum[r][0] = left##r, sum[r][1] = right##r;
#define PAIR(r, from, by)                                                   \
    memcpy(&two, from + by, 4);                                             \
    spread = (__m512bh)_mm512_set1_epi32(two);                              \
    left##r = _mm512_dpbf16_ps(left##r, spread, (__m512bh)b0);              \
    right##r = _mm512_dpbf16_ps(right##r, spread, (__m512bh)b1);
#define PAIRS(ROWS)                                                                                                            \
    TARGET static ALWAYS_INLINE void pairs_##ROWS##_bf16(__m512 sum[12][2], const uint16_t *x, const uint16_t *b,              \
                                                         const float *bias, int64_t k)                                         \
    {                                                                                                                          \
        const uint16_t *x0 = x, *x4 = x + 4 * k, *x8 = x + 8 * k;                                                              \
        EACH_##ROWS(BIAS)                                                                                                      \
        for (const uint16_t *end = x + k; x0 < end; x0 += 2, x4 += 2, x8 += 2, b += 2 * EDR_PANEL) {                           \
            const __m512i b0 = _mm512_loadu_si512(b), b1 = _mm512_loadu_si512(b + 32);                                         \
            int32_t two;                                                                                                       \
            __m512bh spread;                                                                                                   \
            EACH_##ROWS(PAIR)                                                                                                  \
        }                                                                                                                      \
        EACH_##ROWS(KEPT)                                                                                                      \
    }
PAIRS(4)
PAIRS(8)
PAIRS(12)

#define TILE_BF16 12
#define TILE_BF16_MID 8
#define TILE_BF16_LOW 4
#define BF16_TILE(sum, x, b, bias, k, rows) \
    (rows == 12 ? pairs_12_bf16(sum, x, b, bias, k) : rows == 8 ? pairs_8_bf16(sum, x, b, bias, k) : pairs_4_bf16(sum, x, b, bias, k))
#include "kernels_float.h"
#include "kernels_product.h"

TABLE(avx512_bf16_kernels, avx512bf16, avx512bf16, avx512bf16)

#ifdef EDR_HAS_AMX
#include "kernels_amx.h"
#endif
#endif
#endif

#ifdef EDR_ARM
#include "kernels_neon.h"
#endif

const edr_engine_kernels *edr_engine_kernels_for(int isa)
{
    switch (isa) {
#ifdef EDR_X86
    case EDR_ISA_AVX2: return &avx2_kernels;
    case EDR_ISA_AVX512: return &avx512_kernels;
    case EDR_ISA_AVX512_VNNI: return &vnni_kernels;
#endif
#ifdef EDR_HAS_AVX512_BF16
    case EDR_ISA_AVX512_BF16: return &avx512_bf16_kernels;
#endif
#ifdef EDR_HAS_AMX
    case EDR_ISA_AMX: return &amx_kernels;
#endif
#ifdef EDR_HAS_AVX_VNNI
    case EDR_ISA_AVX_VNNI: return &avxvnni_kernels;
#endif
#ifdef EDR_ARM
    case EDR_ISA_NEON: return &neon_kernels;
#endif
#ifdef EDR_HAS_NEON_DOT
    case EDR_ISA_NEON_DOTPROD: return &neon_dotprod_kernels;
    case EDR_ISA_NEON_I8MM: return &neon_i8mm_kernels;
#endif
    default: return &scalar_kernels;
    }
}
