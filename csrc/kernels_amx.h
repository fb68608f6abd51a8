/*
 * kernels_amx.h: products by AMX. Private; the part of engine_kernels.c that goes beside AVX-512 BF16, whose float loops it uses.
 *
 *     x  [ 16 rows, 64 bytes of k -> ]  .  [ 16 lines of a panel, its left 16 columns | its right 16 ]
 *        [ 16 rows more              ]
 *
 * A tile register holds 16 rows of 64 bytes. A line of a panel is 128 bytes: four k of 32 columns of int8, two of bfloat16. So 16 lines are
 * two tiles side by side, as the multiplier wants them, and a group of 32 rows by 32 columns takes all eight registers: four of sums, two
 * of rows, two of columns. The sums are stored to `sum`, in L1, and finished from there as the other sets finish theirs in registers.
 *
 * All tiles are whole, so that the one configuration of a task serves every product. What lies behind the m rows, up to a multiple of 16, is
 * multiplied too and its sums are dropped (EDR_OPERAND_BYTES). Bytes of k behind the last multiple of 64 are multiplied with the
 * zeros that a copy of the panel's last lines has there: integers only, since K is a multiple of 32 numbers.
 */
#define AMX __attribute__((target("avx512f,fma,avx512vnni,avx512bf16,amx-tile,amx-int8,amx-bf16")))

enum { TILE_HEIGHT = 16, TILE_BYTES = 64, LINE = 4 * EDR_PANEL /* bytes of a panel's line */ };

/* 0 .. 3: sums, row of tiles by row; 4, 5: rows; 6, 7: columns. */
static const struct {
    uint8_t palette, start, none[14];
    uint16_t bytes[16];
    uint8_t rows[16];
} tile_shapes = {1, 0, {0}, {64, 64, 64, 64, 64, 64, 64, 64}, {16, 16, 16, 16, 16, 16, 16, 16}};

AMX static void begin_tiles(void) { _tile_loadconfig(&tile_shapes); }
AMX static void end_tiles(void) { _tile_release(); }

#define STEP_OF(PRODUCT, x, ldx, b, tall)           \
    do {                                            \
        _tile_loadd(4, x, ldx);                     \
        _tile_loadd(6, b, LINE);                    \
        _tile_loadd(7, (b) + TILE_BYTES, LINE);     \
        PRODUCT(0, 4, 6);                           \
        PRODUCT(1, 4, 7);                           \
        if (tall) {                                 \
            _tile_loadd(5, (x) + 16 * (ldx), ldx);  \
            PRODUCT(2, 5, 6);                       \
            PRODUCT(3, 5, 7);                       \
        }                                           \
    } while (0)

/* sum [32, 32], or half of it where the rows are not `tall`: rows x, `bytes` apart, times the panel b. `tail` are its last lines, with zeros. */
#define GROUP(NAME, PRODUCT)                                                                                                                 \
    AMX static ALWAYS_INLINE void NAME(void *sum, const uint8_t *x, int64_t bytes, const uint8_t *b, const uint8_t *tail, const int tall)    \
    {                                                                                                                                        \
        int64_t i = 0;                                                                                                                       \
        _tile_zero(0);                                                                                                                       \
        _tile_zero(1);                                                                                                                       \
        if (tall) {                                                                                                                          \
            _tile_zero(2);                                                                                                                   \
            _tile_zero(3);                                                                                                                   \
        }                                                                                                                                    \
        for (; i + TILE_BYTES <= bytes; i += TILE_BYTES, b += TILE_HEIGHT * LINE) STEP_OF(PRODUCT, x + i, bytes, b, tall);                   \
        if (i < bytes) STEP_OF(PRODUCT, x + i, bytes, tail, tall);                                                                           \
        _tile_stored(0, sum, LINE);                                                                                                          \
        _tile_stored(1, (uint8_t *)sum + TILE_BYTES, LINE);                                                                                  \
        if (tall) {                                                                                                                          \
            _tile_stored(2, (uint8_t *)sum + TILE_HEIGHT * LINE, LINE);                                                                      \
            _tile_stored(3, (uint8_t *)sum + TILE_HEIGHT * LINE + TILE_BYTES, LINE);                                                         \
        }                                                                                                                                    \
    }
GROUP(group_u8, _tile_dpbusd)
GROUP(group_bf16, _tile_dpbf16ps)

/* Sums of bfloat16 to what is stored; those of int8 are finished as AVX-512's. */
AMX static ALWAYS_INLINE void finish_bf16(const float *sum, const edr_linear *w, int64_t panel, int64_t rows, float *out, int64_t ldo, const int then)
{
    const float *bias = w->bias + panel * EDR_PANEL;
    for (int64_t r = 0; r < rows; r++) {
        UNROLL for (int c = 0; c < EDR_PANEL; c += VW) FN(finish)(ADD(LOAD(sum + r * EDR_PANEL + c), LOAD(bias + c)), out + r * ldo + c, then);
    }
}

typedef void (*panels_of_rows)(const edr_linear *w, int64_t panel, const edr_rows *x, int64_t m, float *out, int64_t ldo);

#define PANEL_U8(NAME, FINISH)                                                                                                             \
    AMX static NEVER_INLINE void NAME(const edr_linear *w, int64_t panel, const edr_rows *x, int64_t m, float *out, int64_t ldo)          \
    {                                                                                                                                     \
        int32_t sum[2 * TILE_HEIGHT * EDR_PANEL] __attribute__((aligned(64)));                                                            \
        uint8_t tail[TILE_HEIGHT * LINE] __attribute__((aligned(64)));                                                                    \
        const int64_t k = w->inputs, rest = k % TILE_BYTES;                                                                               \
        const uint8_t *b = (const uint8_t *)w->weight + panel * k * EDR_PANEL;                                                            \
        if (rest != 0) {                                                                                                                  \
            memcpy(tail, b + (k - rest) * EDR_PANEL, (size_t)(rest * EDR_PANEL));                                                         \
            memset(tail + rest * EDR_PANEL, 0, (size_t)((TILE_BYTES - rest) * EDR_PANEL));                                                \
        }                                                                                                                                 \
        for (int64_t r = 0; r < m; r += 2 * TILE_HEIGHT) {                                                                                \
            const uint8_t *rows = (const uint8_t *)x->data + r * k;                                                                       \
            if (m - r > TILE_HEIGHT) {                                                                                                    \
                group_u8(sum, rows, k, b, tail, 1);                                                                                       \
            } else {                                                                                                                      \
                group_u8(sum, rows, k, b, tail, 0);                                                                                       \
            }                                                                                                                             \
            FINISH(sum, w, x, panel, r, m - r < 2 * TILE_HEIGHT ? m - r : 2 * TILE_HEIGHT, out + r * ldo, ldo);                           \
        }                                                                                                                                 \
    }
PANEL_U8(panel_store_u8, FN(finish_store))
PANEL_U8(panel_gelu_u8, FN(finish_gelu))
PANEL_U8(panel_add_u8, FN(finish_add))
PANEL_U8(panel_tanh_u8, FN(finish_tanh))

#define PANEL_BF16(NAME, THEN)                                                                                                            \
    AMX static NEVER_INLINE void NAME(const edr_linear *w, int64_t panel, const edr_rows *x, int64_t m, float *out, int64_t ldo)          \
    {                                                                                                                                     \
        float sum[2 * TILE_HEIGHT * EDR_PANEL] __attribute__((aligned(64)));                                                              \
        const int64_t bytes = 2 * w->inputs;                                                                                              \
        const uint8_t *b = (const uint8_t *)w->weight + panel * bytes * EDR_PANEL;                                                        \
        for (int64_t r = 0; r < m; r += 2 * TILE_HEIGHT) {                                                                                \
            const uint8_t *rows = (const uint8_t *)x->data + r * bytes;                                                                   \
            if (m - r > TILE_HEIGHT) {                                                                                                    \
                group_bf16(sum, rows, bytes, b, NULL, 1);                                                                                 \
            } else {                                                                                                                      \
                group_bf16(sum, rows, bytes, b, NULL, 0);                                                                                 \
            }                                                                                                                             \
            finish_bf16(sum, w, panel, m - r < 2 * TILE_HEIGHT ? m - r : 2 * TILE_HEIGHT, out + r * ldo, ldo, THEN);                      \
        }                                                                                                                                 \
    }
PANEL_BF16(panel_store_bf16, EDR_STORE)
PANEL_BF16(panel_gelu_bf16, EDR_GELU)
PANEL_BF16(panel_add_bf16, EDR_ADD)
PANEL_BF16(panel_tanh_bf16, EDR_GELU_TANH)

static void product_u8_amx(const edr_linear *w, int64_t first, int64_t panels, const edr_rows *x, int64_t m, float *out, int64_t ldo, int then)
{
    static const panels_of_rows panel[4] = {panel_store_u8, panel_gelu_u8, panel_add_u8, panel_tanh_u8};
    for (int64_t p = first; p < first + panels; p++, out += EDR_PANEL) panel[then](w, p, x, m, out, ldo);
}

static void product_bf16_amx(const edr_linear *w, int64_t first, int64_t panels, const edr_rows *x, int64_t m, float *out, int64_t ldo, int then)
{
    static const panels_of_rows panel[4] = {panel_store_bf16, panel_gelu_bf16, panel_add_bf16, panel_tanh_bf16};
    for (int64_t p = first; p < first + panels; p++, out += EDR_PANEL) panel[then](w, p, x, m, out, ldo);
}

TABLE_OF_TASKS(amx_kernels, avx512bf16, amx, amx, begin_tiles, end_tiles)
