/* kernels_avx2.h: the integer dot products of AVX2 and AVX-VNNI, and their tables. Private; the part of engine_kernels.c for 256-bit x86. */

/* ---- AVX2: products of bytes added up in pairs of 16 bits where no pair can saturate, else products of 16-bit numbers ---- */

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

/* Of weights with short pairs: four products of a column become two sums of 16 bits, and these one of 32. 3 rows x 4 sums. */
TARGET static ALWAYS_INLINE void dot_pairs_avx2(__m256i sum[3][4], const uint8_t *x, const int8_t *b, int64_t k, const int rows)
{
    const __m256i ones = _mm256_set1_epi16(1);
    __m256i s[3][4];
    UNROLL for (int r = 0; r < rows; r++) {
        UNROLL for (int c = 0; c < 4; c++) s[r][c] = _mm256_setzero_si256();
    }
    for (int64_t i = 0; i < k; i += 4, b += 4 * EDR_PANEL) {
        UNROLL for (int r = 0; r < rows; r++) {
            int32_t four;
            memcpy(&four, x + r * k + i, 4);
            const __m256i spread = _mm256_set1_epi32(four);
            UNROLL for (int c = 0; c < 4; c++) {
                const __m256i weights = _mm256_loadu_si256((const __m256i *)(const void *)(b + 32 * c));
                s[r][c] = _mm256_add_epi32(s[r][c], _mm256_madd_epi16(_mm256_maddubs_epi16(spread, weights), ones));
            }
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
#define TILE_F32_MID 1
#define TILE_U8 3
#define TILE_U8_MID 2
#define TILE_U8_LOW 1
#define TILE_BF16 2
#define TILE_BF16_MID 1
#define TILE_BF16_LOW 1
#define DOT_TILE(sum, x, b, k, rows, start) \
    do {                                             \
        dot_half_avx2(sum, 0, x, b, k, rows);        \
        dot_half_avx2(sum, 2, x, (b) + 64, k, rows); \
    } while (0)
#define DOT_PAIRS(sum, x, b, k, rows) dot_pairs_avx2(sum, x, b, k, rows)
#include "kernels_float.h"
#include "kernels_product.h"
#undef DOT_PAIRS
#undef TILE_ROWS
#undef TILE_F32
#undef TILE_F32_MID
#undef TILE_U8
#undef TILE_U8_MID
#undef TILE_U8_LOW
#undef DOT_TILE

TABLE(avx2_kernels, avx2, avx2, avx2)

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
#define TILE_F32_MID 1
#define TILE_U8 3
#define TILE_U8_MID 2
#define TILE_U8_LOW 1
#define DOT_TILE(sum, x, b, k, rows, start) dot_tile_avxvnni(sum, x, b, k, rows)
#include "kernels_float.h"
#include "kernels_product.h"
#undef EDR_VNNI
#undef TILE_ROWS
#undef TILE_F32
#undef TILE_F32_MID
#undef TILE_U8
#undef TILE_U8_MID
#undef TILE_U8_LOW
#undef DOT_TILE

TABLE(avxvnni_kernels, avxvnni, avxvnni, avx2)
#endif
