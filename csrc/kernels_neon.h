/* kernels_neon.h: the integer dot products of the three NEON sets, and their tables. Private; the part of engine_kernels.c for 64-bit ARM. */

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
#define TILE_F32_MID 1
#define TILE_U8 3
#define TILE_U8_MID 2
#define TILE_U8_LOW 1
#define TILE_BF16 2
#define TILE_BF16_MID 1
#define TILE_BF16_LOW 1
#define DOT_TILE(sum, x, b, k, rows, start)                                                                       \
    do {                                                                                                          \
        for (int part = 0; part < 4; part++) dot_quarter_neon(sum, 2 * part, x, (b) + 32 * part, k, (start) + 8 * part, rows); \
    } while (0)
#include "kernels_float.h"
#include "kernels_product.h"
#undef DOT_TILE

TABLE(neon_kernels, neon, neon, neon)

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

TABLE(neon_dotprod_kernels, neon_dotprod, neon_dotprod, neon)

#undef START
#define START(start, b, k) ((void)(start))
#undef EDR_DOT
#define EDR_DOT 2
#include "vector.h"
DOT_ROWS(vsudotq_laneq_s32, uint8x16_t, AS_IS, vdupq_n_s32(0))
#include "kernels_float.h"
#include "kernels_product.h"

TABLE(neon_i8mm_kernels, neon_i8mm, neon_i8mm, neon)
#endif
