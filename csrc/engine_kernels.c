/*
 * engine_kernels.c: the encoder's loops for scalar, AVX2, AVX-VNNI, AVX-512, AVX-512 VNNI and NEON code.
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

typedef void (*tiles)(const edr_linear *w, int64_t panel, const edr_rows *x, int64_t begin, int64_t end, float *out, int64_t ldo,
                      const int32_t *start);

#define TABLE(NAME, FLOATS, BYTES)                                                                                                    \
    static const edr_engine_kernels NAME = {product_f32_##FLOATS, product_u8_##BYTES, quantise_##FLOATS, normalise_##FLOATS,           \
                                            embed_##FLOATS,       attend_##FLOATS,    tanh_row_##FLOATS, add_scaled_##FLOATS,          \
                                            dot_##FLOATS,         gelu_row_##FLOATS,  exp_row_##FLOATS};

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
#define TILE_U8 1
#define TILE_MID 1
#define START(start, b, k) ((void)(start))
#define DOT_TILE(sum, x, b, k, rows, start) dot_tile_scalar(sum, x, b, k)
#include "kernels_float.h"
#include "kernels_product.h"
#undef EDR_VECTOR
#undef TILE_ROWS
#undef TILE_F32
#undef TILE_U8
#undef TILE_MID
#undef DOT_TILE

TABLE(scalar_kernels, scalar, scalar)

#ifdef EDR_X86

/* ---- AVX2: products of 16-bit numbers, because the 8-bit instruction adds pairs in 16 bits and saturates ---- */

#define EDR_VECTOR 8
#include "vector.h"

/*
 * One vector of 16-bit weights holds four columns, four k each; multiply-add leaves two 32-bit sums a column, which are
 * added at the end. A half panel (16 columns) at a time: 3 rows x 4 sums, 1 vector of weights, 3 of inputs.
 */
TARGET static ALWAYS_INLINE void dot_half_avx2(__m256i sum[3][4], int from, const uint8_t *x, const int8_t *b, int64_t k, const int rows)
{
    __m256i pairs[3][4];
    UNROLL for (int r = 0; r < rows; r++) {
        UNROLL for (int c = 0; c < 4; c++) pairs[r][c] = _mm256_setzero_si256();
    }
    for (int64_t i = 0; i < k; i += 4, b += 4 * EDR_PANEL) {
        __m256i wide[3];
        UNROLL for (int r = 0; r < rows; r++) {
            int32_t four;
            memcpy(&four, x + r * k + i, 4);
            wide[r] = _mm256_cvtepu8_epi16(_mm_set1_epi32(four));
        }
        UNROLL for (int c = 0; c < 4; c++) {
            const __m256i weights = _mm256_cvtepi8_epi16(_mm_loadu_si128((const __m128i *)(const void *)(b + 16 * c)));
            UNROLL for (int r = 0; r < rows; r++) pairs[r][c] = _mm256_add_epi32(pairs[r][c], _mm256_madd_epi16(wide[r], weights));
        }
    }
    UNROLL for (int r = 0; r < rows; r++) {
        UNROLL for (int c = 0; c < 4; c++) PIN(pairs[r][c]);
    }
    UNROLL for (int r = 0; r < rows; r++) {
        UNROLL for (int c = 0; c < 2; c++) {
            /* hadd works within 128-bit halves: it leaves columns 0 1 4 5 2 3 6 7. */
            const __m256i mixed = _mm256_hadd_epi32(pairs[r][2 * c], pairs[r][2 * c + 1]);
            sum[r][from + c] = _mm256_permute4x64_epi64(mixed, 0xD8);
        }
    }
}

#define TILE_ROWS 3
#define TILE_F32 3
#define TILE_U8 3
#define TILE_MID 1
#define DOT_TILE(sum, x, b, k, rows, start)          \
    do {                                             \
        dot_half_avx2(sum, 0, x, b, k, rows);        \
        dot_half_avx2(sum, 2, x, (b) + 64, k, rows); \
    } while (0)
#include "kernels_float.h"
#include "kernels_product.h"
#undef TILE_ROWS
#undef TILE_F32
#undef TILE_U8
#undef TILE_MID
#undef DOT_TILE

TABLE(avx2_kernels, avx2, avx2)

#ifdef EDR_HAS_AVX_VNNI

/* ---- AVX-VNNI: the 8-bit products of AVX-512 VNNI on 256 bits ---- */

#define EDR_VNNI
#include "vector.h"

/* 3 rows x 4 sums, 3 of inputs, 1 vector of weights: all sixteen registers. */
TARGET static ALWAYS_INLINE void dot_tile_avxvnni(__m256i sum[3][4], const uint8_t *x, const int8_t *b, int64_t k, const int rows)
{
    __m256i s[3][4], spread[3];
    UNROLL for (int r = 0; r < rows; r++) {
        UNROLL for (int c = 0; c < 4; c++) s[r][c] = _mm256_setzero_si256();
    }
    for (int64_t i = 0; i < k; i += 4, b += 4 * EDR_PANEL) {
        UNROLL for (int r = 0; r < rows; r++) {
            int32_t four;
            memcpy(&four, x + r * k + i, 4);
            spread[r] = _mm256_set1_epi32(four);
        }
        UNROLL for (int c = 0; c < 4; c++) {
            const __m256i weights = _mm256_loadu_si256((const __m256i *)(const void *)(b + 32 * c));
            UNROLL for (int r = 0; r < rows; r++) s[r][c] = _mm256_dpbusd_avx_epi32(s[r][c], spread[r], weights);
        }
    }
    UNROLL for (int r = 0; r < rows; r++) {
        UNROLL for (int c = 0; c < 4; c++) {
            PIN(s[r][c]);
            sum[r][c] = s[r][c];
        }
    }
}

#define TILE_ROWS 3
#define TILE_F32 3
#define TILE_U8 3
#define TILE_MID 1
#define DOT_TILE(sum, x, b, k, rows, start) dot_tile_avxvnni(sum, x, b, k, rows)
#include "kernels_float.h"
#include "kernels_product.h"
#undef EDR_VNNI
#undef TILE_ROWS
#undef TILE_F32
#undef TILE_U8
#undef TILE_MID
#undef DOT_TILE

TABLE(avxvnni_kernels, avxvnni, avxvnni)
#endif

#undef EDR_VECTOR
/* ---- AVX-512F: floats only; it has no integer products of bytes or words ---- */

#define EDR_VECTOR 16
#include "vector.h"
#define TILE_ROWS 12
#define TILE_F32 12
#include "kernels_float.h"
#include "kernels_product.h"

TABLE(avx512_kernels, avx512, avx2)

/* ---- AVX-512 VNNI: four 8-bit products added to 32 bits in one instruction, without saturation ---- */

#define EDR_VNNI
#include "vector.h"

/* The sums have names: pinned in an array, GCC 12 still stores all 24 of them at every step of k. */
#define EACH_1(DO) DO(0)
#define EACH_4(DO) DO(0) DO(1) DO(2) DO(3)
#define EACH_12(DO) EACH_4(DO) DO(4) DO(5) DO(6) DO(7) DO(8) DO(9) DO(10) DO(11)
#define ZERO(r) __m512i left##r = _mm512_setzero_si512(), right##r = left##r;
#define STEP(r)                                          \
    memcpy(&four, x + r * k + i, 4);                     \
    spread = _mm512_set1_epi32(four);                    \
    left##r = _mm512_dpbusd_epi32(left##r, spread, b0);  \
    right##r = _mm512_dpbusd_epi32(right##r, spread, b1);
#define KEEP(r)                                         \
    PIN(left##r);                                       \
    PIN(right##r);                                      \
    sum[r][0] = left##r, sum[r][1] = right##r;
#define DOT(ROWS)                                                                                                              \
    TARGET static ALWAYS_INLINE void dot_##ROWS##_vnni(__m512i sum[12][2], const uint8_t *x, const int8_t *b, int64_t k)       \
    {                                                                                                                          \
        EACH_##ROWS(ZERO)                                                                                                      \
        for (int64_t i = 0; i < k; i += 4, b += 4 * EDR_PANEL) {                                                               \
            const __m512i b0 = _mm512_loadu_si512(b), b1 = _mm512_loadu_si512(b + 64);                                         \
            int32_t four;                                                                                                      \
            __m512i spread;                                                                                                    \
            EACH_##ROWS(STEP)                                                                                                  \
        }                                                                                                                      \
        EACH_##ROWS(KEEP)                                                                                                      \
    }
DOT(1)
DOT(4)
DOT(12)

#define TILE_U8 12
#define TILE_MID 4
#define DOT_TILE(sum, x, b, k, rows, start) (rows == 12 ? dot_12_vnni(sum, x, b, k) : rows == 4 ? dot_4_vnni(sum, x, b, k) : dot_1_vnni(sum, x, b, k))
#include "kernels_float.h"
#include "kernels_product.h"

TABLE(vnni_kernels, vnni, vnni)
#endif

#ifdef EDR_ARM

/* ---- NEON. Its products of bytes are of two signed ones, so u becomes u - 128, and the sums start at 128 times those of q ---- */

#undef START
#define START(start, b, k) start_neon(start, b, k)
static void start_neon(int32_t start[EDR_PANEL], const int8_t *b, int64_t k)
{
    int32x4_t sum[8];
    for (int c = 0; c < 8; c++) sum[c] = vdupq_n_s32(0);
    for (int64_t i = 0; i < k; i += 4, b += 4 * EDR_PANEL) {
        for (int c = 0; c < 8; c++) sum[c] = vpadalq_s16(sum[c], vpaddlq_s8(vld1q_s8(b + 16 * c)));
    }
    for (int c = 0; c < 8; c++) vst1q_s32(start + 4 * c, vshlq_n_s32(sum[c], 7));
}

#define EDR_VECTOR 4
#define EDR_DOT 0
#include "vector.h"

/*
 * Products of 8 bits are whole in 16, and their pairs are added to 32 at once. A vector of sums holds two columns, two halves
 * each, which are added at the end. A quarter panel (8 columns) at a time: 3 rows x 4 sums.
 */
TARGET static ALWAYS_INLINE void dot_quarter_neon(int32x4_t sum[3][8], int from, const uint8_t *x, const int8_t *b, int64_t k,
                                                  const int32_t *start, const int rows)
{
    int32x4_t halves[3][4];
    UNROLL for (int r = 0; r < rows; r++) {
        UNROLL for (int c = 0; c < 4; c++) halves[r][c] = vdupq_n_s32(0);
    }
    for (int64_t i = 0; i < k; i += 4, b += 4 * EDR_PANEL) {
        int8x8_t spread[3];
        UNROLL for (int r = 0; r < rows; r++) {
            uint32_t four;
            memcpy(&four, x + r * k + i, 4);
            spread[r] = vreinterpret_s8_u32(vdup_n_u32(four ^ 0x80808080u));
        }
        UNROLL for (int c = 0; c < 4; c++) {
            const int8x8_t weights = vld1_s8(b + 8 * c);
            UNROLL for (int r = 0; r < rows; r++) halves[r][c] = vpadalq_s16(halves[r][c], vmull_s8(spread[r], weights));
        }
    }
    UNROLL for (int r = 0; r < rows; r++) {
        UNROLL for (int c = 0; c < 2; c++) {
            sum[r][from + c] = vaddq_s32(vld1q_s32(start + 4 * c), vpaddq_s32(halves[r][2 * c], halves[r][2 * c + 1]));
        }
    }
}

#define TILE_ROWS 3
#define TILE_F32 3
#define TILE_U8 3
#define TILE_MID 1
#define DOT_TILE(sum, x, b, k, rows, start)                                                                       \
    do {                                                                                                          \
        for (int part = 0; part < 4; part++) dot_quarter_neon(sum, 2 * part, x, (b) + 32 * part, k, (start) + 8 * part, rows); \
    } while (0)
#include "kernels_float.h"
#include "kernels_product.h"
#undef DOT_TILE

TABLE(neon_kernels, neon, neon)

#ifdef EDR_HAS_NEON_DOT

/* ---- dotprod and i8mm: four 8-bit products added to 32 bits at once, of four bytes of x, a lane, with four of each of four
 * columns. dotprod's are of signed bytes; i8mm has them of unsigned with signed ones, and needs no START ---- */

#define DOT_LANE(NAME, lane)                                                                                                \
    UNROLL for (int c = 0; c < 8; c++) {                                                                                    \
        const int8x16_t weights = vld1q_s8(b + 16 * c);                                                                     \
        UNROLL for (int r = 0; r < rows; r++) s[r][c] = NAME(s[r][c], weights, four[r], lane);                              \
    }                                                                                                                       \
    b += 4 * EDR_PANEL;

/* 3 rows x 8 sums, 3 of inputs, which are read 16 bytes at a time: 4 steps of k. */
#define DOT_ROWS(NAME, BYTES, OF, FIRST)                                                                                    \
    TARGET static ALWAYS_INLINE void FN(dot_tile)(int32x4_t sum[3][8], const uint8_t *x, const int8_t *b, int64_t k,        \
                                                  const int32_t *start, const int rows)                                     \
    {                                                                                                                       \
        int32x4_t s[3][8];                                                                                                  \
        BYTES four[3];                                                                                                      \
        int64_t i = 0;                                                                                                      \
        (void)start;                                                                                                        \
        UNROLL for (int r = 0; r < rows; r++) {                                                                             \
            UNROLL for (int c = 0; c < 8; c++) s[r][c] = FIRST;                                                             \
        }                                                                                                                   \
        for (; i + 16 <= k; i += 16) {                                                                                      \
            UNROLL for (int r = 0; r < rows; r++) four[r] = OF(vld1q_u8(x + r * k + i));                                    \
            DOT_LANE(NAME, 0) DOT_LANE(NAME, 1) DOT_LANE(NAME, 2) DOT_LANE(NAME, 3)                                         \
        }                                                                                                                   \
        for (; i < k; i += 4) {                                                                                             \
            UNROLL for (int r = 0; r < rows; r++) {                                                                         \
                uint32_t bytes;                                                                                             \
                memcpy(&bytes, x + r * k + i, 4);                                                                           \
                four[r] = OF(vreinterpretq_u8_u32(vdupq_n_u32(bytes)));                                                     \
            }                                                                                                               \
            DOT_LANE(NAME, 0)                                                                                               \
        }                                                                                                                   \
        UNROLL for (int r = 0; r < rows; r++) {                                                                             \
            UNROLL for (int c = 0; c < 8; c++) {                                                                            \
                PIN(s[r][c]);                                                                                               \
                sum[r][c] = s[r][c];                                                                                        \
            }                                                                                                               \
        }                                                                                                                   \
    }
#define DOT_TILE(sum, x, b, k, rows, start) FN(dot_tile)(sum, x, b, k, start, rows)
#define AS_SIGNED(u) vreinterpretq_s8_u8(veorq_u8(u, vdupq_n_u8(128)))
#define AS_IS(u) (u)

#undef EDR_DOT
#define EDR_DOT 1
#include "vector.h"
DOT_ROWS(vdotq_laneq_s32, int8x16_t, AS_SIGNED, vld1q_s32(start + 4 * c))
#include "kernels_float.h"
#include "kernels_product.h"

TABLE(neon_dotprod_kernels, neon_dotprod, neon_dotprod)

#undef START
#define START(start, b, k) ((void)(start))
#undef EDR_DOT
#define EDR_DOT 2
#include "vector.h"
DOT_ROWS(vsudotq_laneq_s32, uint8x16_t, AS_IS, vdupq_n_s32(0))
#include "kernels_float.h"
#include "kernels_product.h"

TABLE(neon_i8mm_kernels, neon_i8mm, neon_i8mm)
#endif
#endif

const edr_engine_kernels *edr_engine_kernels_for(int isa)
{
    switch (isa) {
#ifdef EDR_X86
    case EDR_ISA_AVX2: return &avx2_kernels;
    case EDR_ISA_AVX512: return &avx512_kernels;
    case EDR_ISA_AVX512_VNNI: return &vnni_kernels;
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
