/*
 * vector.h: one vocabulary of float vectors, for the instruction set that EDR_VECTOR names. Private, and meant to be
 * included several times: engine_kernels.c sets EDR_VECTOR to 1, 4, 8 or 16 lanes and gets the loops of
 * kernels_float.h and kernels_product.h compiled for scalar, NEON, AVX2 and AVX-512 code.
 *
 * VF, VI     a vector of VW float32 or int32
 * FN(name)   name with the instruction set's suffix;  TARGET   the attribute that switches the set on
 * LOADN and STOREN touch only the first n of VW lanes, 1 <= n <= VW; the other lanes load as 0, or with LOADN_OR as those of v.
 * PIN(v)   an empty statement that wants v in a register. After a loop over sums it keeps the compiler (GCC 12) from storing all of
 *          them at every step, for the sake of what follows; that costs up to half of the speed.
 * TURN_BLOCK(from, ldf, to, ldt) writes the TURN x TURN floats at from on their side to `to`; ldf and ldt are row lengths.
 * EVEN(p), ODD(p)   the first, or the second, number of each of VW pairs of bfloat16. STORE_BF16 rounds, of two to the even one.
 * SPREAD(p) is SET1 of the float at p. As an integer it costs the units that multiply nothing (AMD, Zen 4).
 * BITS(p), MAX_S, MAX_U, MOST_S, MOST_U   where it pays: the bits of VW floats, and the larger, lane by lane or of all, of them as integers.
 * PICK(table, v)   where a set can: the floats of a table of 32 that the lowest five bits of v's lanes number.
 * FMA(a, b, c) is a * b + c: rounded once where the set has it, twice in plain C.
 * SUM4(a, b, c, d, to) writes the sums over the lanes of four vectors to `to`.
 */
#undef VF
#undef VI
#undef VW
#undef FN
#undef TARGET
#undef LOAD
#undef STORE
#undef LOADN
#undef STOREN
#undef LOADN_OR
#undef TURN
#undef TURN_BLOCK
#undef SET1
#undef SPREAD
#undef PIN
#undef ADD
#undef SUB
#undef MUL
#undef DIV
#undef FMA
#undef MIN
#undef MAX
#undef SUM
#undef SUM4
#undef LEAST
#undef MOST
#undef POW2
#undef TO_FLOAT
#undef LOAD_S8
#undef STORE_U8
#undef LOAD_BF16
#undef STORE_BF16
#undef EVEN
#undef ODD
#undef ABS
#undef PICK
#undef BITS
#undef MAX_S
#undef MAX_U
#undef MOST_S
#undef MOST_U

#if EDR_VECTOR == 1 /* ------------------------------------------------------------------------ plain C, one lane */

#define VF float
#define VI int32_t
#define VW 1
#define FN(name) name##_scalar
#define TARGET
#define LOAD(p) (*(p))
#define STORE(p, v) (*(p) = (v))
#define LOADN(p, n) ((void)(n), *(p))
#define LOADN_OR(p, n, v) ((void)(n), (void)(v), *(p))
#define STOREN(p, n, v) ((void)(n), *(p) = (v))
#define TURN 1
#define TURN_BLOCK(from, ldf, to, ldt) ((void)(ldf), (void)(ldt), *(to) = *(from))
#define SET1(x) (x)
#define SPREAD(p) SET1(*(p))
#define PIN(v) ((void)(v))
#define ADD(a, b) ((a) + (b))
#define SUB(a, b) ((a) - (b))
#define MUL(a, b) ((a) * (b))
#define DIV(a, b) ((a) / (b))
#define FMA(a, b, c) ((a) * (b) + (c))
#define MIN(a, b) ((a) < (b) ? (a) : (b))
#define MAX(a, b) ((a) > (b) ? (a) : (b))
#define SUM(v) (v)
#define SUM4(a, b, c, d, to) ((to)[0] = (a), (to)[1] = (b), (to)[2] = (c), (to)[3] = (d))
#define LEAST(v) (v)
#define MOST(v) (v)
#define TO_FLOAT(i) ((float)(i))
#define LOAD_S8(p) ((float)*(p))
#define POW2(n) pow2_scalar(n)
#define STORE_U8(p, v) (*(p) = low_byte_scalar(v))
#define LOAD_BF16(p) widen(*(p))
#define STORE_BF16(p, v) (*(p) = bf16_scalar(v))
#define EVEN(p) widen((p)[0])
#define ODD(p) widen((p)[1])

/* x + 1.5 * 2^23 has round(x), to nearest even, in its lowest bits, whatever x is: no conversion that could overflow. */
static inline uint32_t rounded_bits(float x)
{
    const float moved = x + 12582912.0f;
    uint32_t bits;
    memcpy(&bits, &moved, 4);
    return bits;
}
static inline float pow2_scalar(float n)
{
    const uint32_t bits = (rounded_bits(n) - 0x4B400000u + 127u) << 23;
    float power;
    memcpy(&power, &bits, 4);
    return power;
}
static inline uint8_t low_byte_scalar(float x) { return (uint8_t)(rounded_bits(x) & 255u); }
/* Half a step is added, or a bit less when the number below is the even one. A NaN's last bits could carry into its sign. */
static inline uint16_t bf16_scalar(float x)
{
    uint32_t bits;
    memcpy(&bits, &x, 4);
    return x != x ? 0x7FC0u : (uint16_t)((bits + 0x7FFFu + (bits >> 16 & 1u)) >> 16);
}

#elif EDR_VECTOR == 4 /* ----------- NEON; EDR_DOT says which dot products go with it: none, dotprod's or i8mm's */

#define VF float32x4_t
#define VI int32x4_t
#define VW 4
#if EDR_DOT == 2
#define FN(name) name##_neon_i8mm
#define TARGET __attribute__((target("arch=armv8.2-a+i8mm")))
#elif EDR_DOT == 1
#define FN(name) name##_neon_dotprod
#define TARGET __attribute__((target("arch=armv8.2-a+dotprod")))
#else
#define FN(name) name##_neon
#define TARGET
#endif
#define LOAD(p) vld1q_f32(p)
#define STORE(p, v) vst1q_f32(p, v)
#define LOADN(p, n) loadn_neon(p, n, vdupq_n_f32(0.0f))
#define LOADN_OR(p, n, v) loadn_neon(p, n, v)
#define STOREN(p, n, v) storen_neon(p, n, v)
#define TURN 4
#define TURN_BLOCK(from, ldf, to, ldt) turn_neon(from, ldf, to, ldt)
#define SET1(x) vdupq_n_f32(x)
#define SPREAD(p) SET1(*(p))
#define PIN(v) __asm__("" : "+w"(v))
#define ADD(a, b) vaddq_f32(a, b)
#define SUB(a, b) vsubq_f32(a, b)
#define MUL(a, b) vmulq_f32(a, b)
#define DIV(a, b) vdivq_f32(a, b)
#define FMA(a, b, c) vfmaq_f32(c, a, b)
#define MIN(a, b) vminnmq_f32(a, b) /* of a number and a NaN it is the number */
#define MAX(a, b) vmaxnmq_f32(a, b)
#define SUM(v) vaddvq_f32(v)
#define SUM4(a, b, c, d, to) vst1q_f32(to, vpaddq_f32(vpaddq_f32(a, b), vpaddq_f32(c, d)))
#define LEAST(v) vminnmvq_f32(v)
#define MOST(v) vmaxnmvq_f32(v)
#define TO_FLOAT(i) vcvtq_f32_s32(i)
#define LOAD_S8(p) load_s8_neon(p)
#define POW2(n) vreinterpretq_f32_s32(vshlq_n_s32(vaddq_s32(vcvtnq_s32_f32(n), vdupq_n_s32(127)), 23))
#define STORE_U8(p, v) store_u8_neon(p, v)
#define LOAD_BF16(p) vreinterpretq_f32_u32(vshll_n_u16(vld1_u16(p), 16))
#define STORE_BF16(p, v) store_bf16_neon(p, v)
#define EVEN(p) vreinterpretq_f32_u32(vshlq_n_u32(vreinterpretq_u32_u16(vld1q_u16(p)), 16))
#define ODD(p) vreinterpretq_f32_u32(vandq_u32(vreinterpretq_u32_u16(vld1q_u16(p)), vdupq_n_u32(0xFFFF0000u)))

#if EDR_DOT == 0 /* once for all three */
static inline float32x4_t loadn_neon(const float *p, int64_t n, float32x4_t v)
{
    if (n >= 4) return vld1q_f32(p);
    v = vsetq_lane_f32(p[0], v, 0);
    if (n > 1) v = vsetq_lane_f32(p[1], v, 1);
    if (n > 2) v = vsetq_lane_f32(p[2], v, 2);
    return v;
}
static inline void storen_neon(float *p, int64_t n, float32x4_t v)
{
    if (n >= 4) {
        vst1q_f32(p, v);
        return;
    }
    p[0] = vgetq_lane_f32(v, 0);
    if (n > 1) p[1] = vgetq_lane_f32(v, 1);
    if (n > 2) p[2] = vgetq_lane_f32(v, 2);
}
static inline void turn_neon(const float *from, int64_t ldf, float *to, int64_t ldt)
{
    const float32x4x2_t a = vtrnq_f32(vld1q_f32(from), vld1q_f32(from + ldf));
    const float32x4x2_t b = vtrnq_f32(vld1q_f32(from + 2 * ldf), vld1q_f32(from + 3 * ldf));
    for (int i = 0; i < 2; i++) { /* a.val[i] is 0i 1i 0(i+2) 1(i+2), row first; b.val[i] the same of rows 2 and 3 */
        vst1q_f32(to + i * ldt, vcombine_f32(vget_low_f32(a.val[i]), vget_low_f32(b.val[i])));
        vst1q_f32(to + (i + 2) * ldt, vcombine_f32(vget_high_f32(a.val[i]), vget_high_f32(b.val[i])));
    }
}
static inline float32x4_t load_s8_neon(const int8_t *p)
{
    uint32_t four;
    memcpy(&four, p, 4);
    return vcvtq_f32_s32(vmovl_s16(vget_low_s16(vmovl_s8(vcreate_s8(four)))));
}
static inline void store_u8_neon(uint8_t *p, float32x4_t v)
{
    const uint16x4_t words = vqmovn_u32(vcvtnq_u32_f32(v));
    const uint32_t four = vget_lane_u32(vreinterpret_u32_u8(vqmovn_u16(vcombine_u16(words, words))), 0);
    memcpy(p, &four, 4);
}
static inline void store_bf16_neon(uint16_t *p, float32x4_t v)
{
    const uint32x4_t bits = vreinterpretq_u32_f32(v), even = vandq_u32(vshrq_n_u32(bits, 16), vdupq_n_u32(1));
    const uint32x4_t rounded = vaddq_u32(vaddq_u32(bits, vdupq_n_u32(0x7FFF)), even);
    vst1_u16(p, vshrn_n_u32(vbslq_u32(vceqq_f32(v, v), rounded, vdupq_n_u32(0x7FC00000)), 16));
}
#endif

#elif EDR_VECTOR == 8 /* ----------------------------------------- AVX2 and FMA, and AVX-VNNI where EDR_VNNI says so */

#define VF __m256
#define VI __m256i
#define VW 8
#ifdef EDR_VNNI
#define FN(name) name##_avxvnni
#define TARGET __attribute__((target("avx2,fma,avxvnni")))
#else
#define FN(name) name##_avx2
#define TARGET __attribute__((target("avx2,fma")))
#endif
#define LOAD(p) _mm256_loadu_ps(p)
#define STORE(p, v) _mm256_storeu_ps(p, v)
#define LOADN(p, n) _mm256_maskload_ps(p, lanes_avx2(n))
#define LOADN_OR(p, n, v) _mm256_blendv_ps(v, LOADN(p, n), _mm256_castsi256_ps(lanes_avx2(n)))
#define STOREN(p, n, v) _mm256_maskstore_ps(p, lanes_avx2(n), v)
#define TURN 8
#define TURN_BLOCK(from, ldf, to, ldt) turn_avx2(from, ldf, to, ldt)
#define SET1(x) _mm256_set1_ps(x)
#define SPREAD(p) SET1(*(p))
#define PIN(v) __asm__("" : "+x"(v))
#define ADD(a, b) _mm256_add_ps(a, b)
#define SUB(a, b) _mm256_sub_ps(a, b)
#define MUL(a, b) _mm256_mul_ps(a, b)
#define DIV(a, b) _mm256_div_ps(a, b)
#define FMA(a, b, c) _mm256_fmadd_ps(a, b, c)
#define MIN(a, b) _mm256_min_ps(a, b)
#define MAX(a, b) _mm256_max_ps(a, b)
#define SUM(v) sum_avx2(v)
#define SUM4(a, b, c, d, to) sum4_avx2(a, b, c, d, to)
#define LEAST(v) least_avx2(v)
#define MOST(v) most_avx2(v)
#define TO_FLOAT(i) _mm256_cvtepi32_ps(i)
#define LOAD_S8(p) _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64((const __m128i *)(const void *)(p))))
#define POW2(n) _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_add_epi32(_mm256_cvtps_epi32(n), _mm256_set1_epi32(127)), 23))
#define STORE_U8(p, v) store_u8_avx2(p, v)
#define LOAD_BF16(p) _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(_mm_loadu_si128((const __m128i *)(const void *)(p))), 16))
#define STORE_BF16(p, v) store_bf16_avx2(p, v)
#define EVEN(p) _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_loadu_si256((const __m256i *)(const void *)(p)), 16))
#define ODD(p) _mm256_castsi256_ps(_mm256_and_si256(_mm256_loadu_si256((const __m256i *)(const void *)(p)), _mm256_set1_epi32(-65536)))

#ifndef EDR_VNNI /* once for both */
TARGET static inline __m256i lanes_avx2(int64_t n)
{
    return _mm256_cmpgt_epi32(_mm256_set1_epi32((int)n), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
}
#define REDUCE(NAME, OP)                                                                        \
    TARGET static inline float NAME(__m256 v)                                                   \
    {                                                                                           \
        __m128 x = OP(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));                  \
        x = OP(x, _mm_movehl_ps(x, x));                                                         \
        return _mm_cvtss_f32(OP(x, _mm_shuffle_ps(x, x, 1)));                                   \
    }
REDUCE(sum_avx2, _mm_add_ps)
REDUCE(least_avx2, _mm_min_ps)
REDUCE(most_avx2, _mm_max_ps)
#undef REDUCE
/* Within 128-bit halves: two partial sums of a and of b in turns, then one of each of the four. */
TARGET static inline void sum4_avx2(__m256 a, __m256 b, __m256 c, __m256 d, float *to)
{
    const __m256 ab = _mm256_add_ps(_mm256_unpacklo_ps(a, b), _mm256_unpackhi_ps(a, b));
    const __m256 cd = _mm256_add_ps(_mm256_unpacklo_ps(c, d), _mm256_unpackhi_ps(c, d));
    const __m256 four = _mm256_add_ps(_mm256_shuffle_ps(ab, cd, 0x44), _mm256_shuffle_ps(ab, cd, 0xEE));
    _mm_storeu_ps(to, _mm_add_ps(_mm256_castps256_ps128(four), _mm256_extractf128_ps(four, 1)));
}
/* Pairs of rows, then pairs of pairs, within 128-bit halves; the halves are exchanged as the rows are loaded. */
TARGET static inline void turn_avx2(const float *from, int64_t ldf, float *to, int64_t ldt)
{
    for (int half = 0; half < 2; half++, from += 4, to += 4 * ldt) {
        __m256 row[4];
        for (int r = 0; r < 4; r++) {
            row[r] = _mm256_insertf128_ps(_mm256_castps128_ps256(_mm_loadu_ps(from + r * ldf)), _mm_loadu_ps(from + (r + 4) * ldf), 1);
        }
        const __m256 a = _mm256_unpacklo_ps(row[0], row[1]), b = _mm256_unpackhi_ps(row[0], row[1]);
        const __m256 c = _mm256_unpacklo_ps(row[2], row[3]), d = _mm256_unpackhi_ps(row[2], row[3]);
        _mm256_storeu_ps(to, _mm256_shuffle_ps(a, c, 0x44));
        _mm256_storeu_ps(to + ldt, _mm256_shuffle_ps(a, c, 0xEE));
        _mm256_storeu_ps(to + 2 * ldt, _mm256_shuffle_ps(b, d, 0x44));
        _mm256_storeu_ps(to + 3 * ldt, _mm256_shuffle_ps(b, d, 0xEE));
    }
}
TARGET static inline void store_u8_avx2(uint8_t *p, __m256 v)
{
    const __m256i i = _mm256_cvtps_epi32(v);
    const __m128i words = _mm_packus_epi32(_mm256_castsi256_si128(i), _mm256_extracti128_si256(i, 1));
    _mm_storel_epi64((__m128i *)(void *)p, _mm_packus_epi16(words, words));
}
TARGET static inline void store_bf16_avx2(uint16_t *p, __m256 v)
{
    const __m256i bits = _mm256_castps_si256(v), even = _mm256_and_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(1));
    const __m256i rounded = _mm256_srli_epi32(_mm256_add_epi32(bits, _mm256_add_epi32(even, _mm256_set1_epi32(0x7FFF))), 16);
    const __m256i nan = _mm256_castps_si256(_mm256_cmp_ps(v, v, _CMP_UNORD_Q));
    const __m256i all = _mm256_blendv_epi8(rounded, _mm256_set1_epi32(0x7FC0), nan);
    _mm_storeu_si128((__m128i *)(void *)p, _mm_packus_epi32(_mm256_castsi256_si128(all), _mm256_extracti128_si256(all, 1)));
}
#endif

#elif EDR_VECTOR == 16 /* ------------------------------- AVX-512F, VNNI where EDR_VNNI says so, and BF16 where EDR_BF16 does */

#define VF __m512
#define VI __m512i
#define VW 16
#if defined(EDR_BF16)
#define FN(name) name##_avx512bf16
#define TARGET __attribute__((target("avx512f,fma,avx512vnni,avx512bf16")))
#elif defined(EDR_VNNI)
#define FN(name) name##_vnni
#define TARGET __attribute__((target("avx512f,fma,avx512vnni")))
#else
#define FN(name) name##_avx512
#define TARGET __attribute__((target("avx512f,fma")))
#endif
#define LOAD(p) _mm512_loadu_ps(p)
#define STORE(p, v) _mm512_storeu_ps(p, v)
#define LOADN(p, n) _mm512_maskz_loadu_ps((__mmask16)((1u << (n)) - 1), p)
#define LOADN_OR(p, n, v) _mm512_mask_loadu_ps(v, (__mmask16)((1u << (n)) - 1), p)
#define STOREN(p, n, v) _mm512_mask_storeu_ps(p, (__mmask16)((1u << (n)) - 1), v)
#define TURN 8
#define TURN_BLOCK(from, ldf, to, ldt) turn_avx2(from, ldf, to, ldt)
#define SET1(x) _mm512_set1_ps(x)
#define SPREAD(p) spread_avx512(p)
#define PIN(v) __asm__("" : "+v"(v))
#define ADD(a, b) _mm512_add_ps(a, b)
#define SUB(a, b) _mm512_sub_ps(a, b)
#define MUL(a, b) _mm512_mul_ps(a, b)
#define DIV(a, b) _mm512_div_ps(a, b)
#define FMA(a, b, c) _mm512_fmadd_ps(a, b, c)
#define ABS(v) _mm512_abs_ps(v)
#define BITS(p) _mm512_loadu_si512(p)
#define MAX_S(a, b) _mm512_max_epi32(a, b)
#define MAX_U(a, b) _mm512_max_epu32(a, b)
#define MOST_S(v) _mm512_reduce_max_epi32(v)
#define MOST_U(v) (int32_t)_mm512_reduce_max_epu32(v)
#define PICK(table, v) _mm512_permutex2var_ps(LOAD(table), _mm512_castps_si512(v), LOAD((table) + 16))
#define MIN(a, b) _mm512_min_ps(a, b)
#define MAX(a, b) _mm512_max_ps(a, b)
#define SUM(v) _mm512_reduce_add_ps(v)
#define SUM4(a, b, c, d, to) sum4_avx512(a, b, c, d, to)
#define LEAST(v) _mm512_reduce_min_ps(v)
#define MOST(v) _mm512_reduce_max_ps(v)
#define TO_FLOAT(i) _mm512_cvtepi32_ps(i)
#define LOAD_S8(p) _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128((const __m128i *)(const void *)(p))))
#define POW2(n) _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_add_epi32(_mm512_cvtps_epi32(n), _mm512_set1_epi32(127)), 23))
#define STORE_U8(p, v) _mm_storeu_si128((__m128i *)(void *)(p), _mm512_cvtusepi32_epi8(_mm512_cvtps_epi32(v)))
#define LOAD_BF16(p) _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i *)(const void *)(p))), 16))
#define EVEN(p) _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_loadu_si512(p), 16))
#define ODD(p) _mm512_castsi512_ps(_mm512_and_si512(_mm512_loadu_si512(p), _mm512_set1_epi32(-65536)))
#ifdef EDR_BF16
#define STORE_BF16(p, v) _mm256_storeu_si256((__m256i *)(void *)(p), (__m256i)_mm512_cvtneps_pbh(v))
#else
#define STORE_BF16(p, v) store_bf16_avx512(p, v)
#endif

#ifndef EDR_VNNI /* once for all three */
TARGET static inline __m512 spread_avx512(const float *p)
{
    int32_t bits;
    memcpy(&bits, p, 4);
    return _mm512_castsi512_ps(_mm512_set1_epi32(bits));
}
TARGET static inline void sum4_avx512(__m512 a, __m512 b, __m512 c, __m512 d, float *to) /* see sum4_avx2 */
{
    const __m512 ab = _mm512_add_ps(_mm512_unpacklo_ps(a, b), _mm512_unpackhi_ps(a, b));
    const __m512 cd = _mm512_add_ps(_mm512_unpacklo_ps(c, d), _mm512_unpackhi_ps(c, d));
    const __m512 four = _mm512_add_ps(_mm512_shuffle_ps(ab, cd, 0x44), _mm512_shuffle_ps(ab, cd, 0xEE));
    const __m256 upper = _mm256_castpd_ps(_mm512_extractf64x4_pd(_mm512_castps_pd(four), 1));
    const __m256 half = _mm256_add_ps(_mm512_castps512_ps256(four), upper);
    _mm_storeu_ps(to, _mm_add_ps(_mm256_castps256_ps128(half), _mm256_extractf128_ps(half, 1)));
}
TARGET static inline void store_bf16_avx512(uint16_t *p, __m512 v)
{
    const __m512i bits = _mm512_castps_si512(v), even = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
    const __m512i rounded = _mm512_srli_epi32(_mm512_add_epi32(bits, _mm512_add_epi32(even, _mm512_set1_epi32(0x7FFF))), 16);
    const __m512i all = _mm512_mask_mov_epi32(rounded, _mm512_cmp_ps_mask(v, v, _CMP_UNORD_Q), _mm512_set1_epi32(0x7FC0));
    _mm256_storeu_si256((__m256i *)(void *)p, _mm512_cvtepi32_epi16(all));
}
#endif

#endif
