/*
 * kernels_product.h: y = x W + b, for the instruction set of vector.h. Private; included by engine_kernels.c.
 *
 *         panel p: 32 columns of W, packed so that one step of k is one straight read
 *              v
 *     x  [ row r     k -> ]   .  [ k = 0: c0 c1 .. c31 ]      float32: [N / 32, K, 32]
 *     x  [ row r + 1      ]      [ k = 1: ..           ]      int8:    [N / 32, K / 4, 32, 4], four k of a column
 *     :    ROWS rows             [  :                  ]               together, as the dot-product units read them
 *
 * A tile is ROWS rows times one panel. Its sums stay in registers for all of K: per step of k a tile loads the panel's
 * PARTS vectors once and one number of each row (spread over a vector), and does ROWS x PARTS multiply-adds with them.
 * Panels are the outer loop: a panel (12 KB for K = 384, int8) stays in L1 while all rows pass by.
 * What follows the sum (bias, GELU, residual) happens before the registers are stored: no second trip through memory.
 */
#undef PARTS
#define PARTS (EDR_PANEL / VW)

/* ------------------------------------------------------------------------------------------------- what follows a sum */

TARGET static ALWAYS_INLINE void FN(finish)(VF y, float *out, const int then)
{
    if (then == EDR_GELU) y = FN(gelu)(y);
    if (then == EDR_ADD) y = ADD(y, LOAD(out));
    STORE(out, y);
}

/* ----------------------------------------------------------------------------------------------------------- float32 */

TARGET static ALWAYS_INLINE void FN(tile_f32)(const edr_linear *w, int64_t panel, const float *x, float *out, int64_t ldo, const int rows,
                                              const int then)
{
    const int64_t k = w->inputs;
    const float *b = (const float *)w->weight + panel * k * EDR_PANEL, *bias = w->bias + panel * EDR_PANEL;
    VF sum[TILE_ROWS][PARTS], part[PARTS];
    UNROLL for (int r = 0; r < rows; r++) {
        UNROLL for (int c = 0; c < PARTS; c++) sum[r][c] = LOAD(bias + c * VW);
    }
    for (int64_t i = 0; i < k; i++, b += EDR_PANEL) {
        UNROLL for (int c = 0; c < PARTS; c++) part[c] = LOAD(b + c * VW);
        UNROLL for (int r = 0; r < rows; r++) {
            const VF one = SET1(x[r * k + i]);
            UNROLL for (int c = 0; c < PARTS; c++) sum[r][c] = FMA(one, part[c], sum[r][c]);
        }
    }
    UNROLL for (int r = 0; r < rows; r++) {
        UNROLL for (int c = 0; c < PARTS; c++) FN(finish)(sum[r][c], out + r * ldo + c * VW, then);
    }
}

TARGET static ALWAYS_INLINE void FN(panels_f32)(const edr_linear *w, int64_t first, int64_t panels, const edr_rows *x, int64_t m, float *out,
                                                int64_t ldo, const int then)
{
    const float *rows = (const float *)x->data;
    for (int64_t p = 0; p < panels; p++, out += EDR_PANEL) {
        int64_t r = 0;
        for (; r + TILE_F32 <= m; r += TILE_F32) FN(tile_f32)(w, first + p, rows + r * w->inputs, out + r * ldo, ldo, TILE_F32, then);
        for (; r < m; r++) FN(tile_f32)(w, first + p, rows + r * w->inputs, out + r * ldo, ldo, 1, then);
    }
}

TARGET static void FN(product_f32)(const edr_linear *w, int64_t first, int64_t panels, const edr_rows *x, int64_t m, float *out, int64_t ldo,
                                   int then)
{
    switch (then) {
    case EDR_GELU: FN(panels_f32)(w, first, panels, x, m, out, ldo, EDR_GELU); return;
    case EDR_ADD: FN(panels_f32)(w, first, panels, x, m, out, ldo, EDR_ADD); return;
    default: FN(panels_f32)(w, first, panels, x, m, out, ldo, EDR_STORE); return;
    }
}

/* -------------------------------------------------------------------------------------------------------------- int8 */

#ifdef DOT_TILE
/*
 * x = least + scale u and w = column scale * q, so  x . w = scale * column scale * (u . q) + least * column sum.
 * u . q is exact in 32 bits (K <= 65536): the same integer whatever the instruction set.
 */
TARGET static ALWAYS_INLINE void FN(tile_u8)(const edr_linear *w, int64_t panel, const edr_rows *x, int64_t row, float *out, int64_t ldo,
                                             const int rows, const int then)
{
    const int64_t k = w->inputs;
    const int8_t *b = (const int8_t *)w->weight + panel * k * EDR_PANEL;
    const float *bias = w->bias + panel * EDR_PANEL, *scale = w->scale + panel * EDR_PANEL, *sums = w->sums + panel * EDR_PANEL;
    VI sum[TILE_ROWS][PARTS];
    DOT_TILE(sum, (const uint8_t *)x->data + row * k, b, k, rows);
    UNROLL for (int r = 0; r < rows; r++) {
        const VF by = SET1(x->scale[row + r]), from = SET1(x->least[row + r]);
        UNROLL for (int c = 0; c < PARTS; c++) {
            const VF rest = FMA(from, LOAD(sums + c * VW), LOAD(bias + c * VW));
            FN(finish)(FMA(MUL(by, LOAD(scale + c * VW)), TO_FLOAT(sum[r][c]), rest), out + r * ldo + c * VW, then);
        }
    }
}

TARGET static ALWAYS_INLINE void FN(panels_u8)(const edr_linear *w, int64_t first, int64_t panels, const edr_rows *x, int64_t m, float *out,
                                               int64_t ldo, const int then)
{
    for (int64_t p = 0; p < panels; p++, out += EDR_PANEL) {
        int64_t r = 0;
        for (; r + TILE_U8 <= m; r += TILE_U8) FN(tile_u8)(w, first + p, x, r, out + r * ldo, ldo, TILE_U8, then);
        for (; r + TILE_TAIL <= m; r += TILE_TAIL) FN(tile_u8)(w, first + p, x, r, out + r * ldo, ldo, TILE_TAIL, then);
        for (; r < m; r++) FN(tile_u8)(w, first + p, x, r, out + r * ldo, ldo, 1, then);
    }
}

TARGET static void FN(product_u8)(const edr_linear *w, int64_t first, int64_t panels, const edr_rows *x, int64_t m, float *out, int64_t ldo,
                                  int then)
{
    switch (then) {
    case EDR_GELU: FN(panels_u8)(w, first, panels, x, m, out, ldo, EDR_GELU); return;
    case EDR_ADD: FN(panels_u8)(w, first, panels, x, m, out, ldo, EDR_ADD); return;
    default: FN(panels_u8)(w, first, panels, x, m, out, ldo, EDR_STORE); return;
    }
}
#endif
