/*
 * kernels_product.h: y = x W + b, for the instruction set of vector.h. Private; included by engine_kernels.c.
 *
 *         panel p: 32 columns of W, packed so that one step of k is one straight read
 *              v
 *     x  [ row r     k -> ]   .  [ k = 0: c0 c1 .. c31 ]      float32: [N / 32, K, 32]
 *     x  [ row r + 1      ]      [ k = 1: ..           ]      int8:    [N / 32, K / 4, 32, 4], four k of a column
 *     :    ROWS rows             [  :                  ]               together, as the dot-product units read them;
 *                                                                     bfloat16: [N / 32, K / 2, 32, 2], two k of a column
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
    if (then == EDR_GELU_COARSE) y = FN(gelu_coarse)(y);
    if (then == EDR_GELU_TANH) y = FN(gelu_tanh)(y);
    if (then == EDR_ADD) y = ADD(y, LOAD(out));
    STORE(out, y);
}

/*
 * Tiles of one height down a panel. Each height and ending is a function of its own that is not inlined: in a small
 * function the compiler keeps all sums in registers, in a large one it also stores them at every step of k, which halves
 * the speed. Of int8 and bfloat16 there are three heights. Rows that fill no tall tile are the first ones of the lowest that holds
 * them all: what lies behind them (EDR_OPERAND_BYTES) is multiplied too, which costs less than tiles of one row, and dropped.
 */
#undef TILES
#define TILES(NAME, TILE, HEIGHT, THEN)                                                                                                  \
    TARGET static NEVER_INLINE void FN(NAME)(const edr_linear *w, int64_t panel, const edr_rows *x, int64_t begin, int64_t end, float *out, \
                                             int64_t ldo, const int32_t *start)                                                      \
    {                                                                                                                                    \
        for (int64_t r = begin; r < end; r += HEIGHT) FN(TILE)(w, panel, x, r, end - r, out + r * ldo, ldo, start, HEIGHT, THEN);   \
    }

#undef ENDINGS
#define ENDINGS(HEIGHT, KIND, ROWS, GELU)                             \
    TILES(HEIGHT##_store_##KIND, tile_##KIND, ROWS, EDR_STORE)        \
    TILES(HEIGHT##_gelu_##KIND, tile_##KIND, ROWS, GELU)              \
    TILES(HEIGHT##_add_##KIND, tile_##KIND, ROWS, EDR_ADD)            \
    TILES(HEIGHT##_tanh_##KIND, tile_##KIND, ROWS, EDR_GELU_TANH)

/* ----------------------------------------------------------------------------------------------------------- float32 */

TARGET static ALWAYS_INLINE void FN(tile_f32)(const edr_linear *w, int64_t panel, const edr_rows *in, int64_t row, int64_t left, float *out,
                                              int64_t ldo, const int32_t *start, const int rows, const int then)
{
    (void)start; /* the sums of float32 start at the bias */
    (void)left;   /* ... and its tiles are whole */
    const int64_t k = w->inputs;
    const float *x = (const float *)in->data + row * k;
    const float *b = (const float *)w->weight + panel * k * EDR_PANEL, *bias = w->bias + panel * EDR_PANEL;
    VF sum[TILE_ROWS][PARTS], part[PARTS];
    UNROLL for (int r = 0; r < rows; r++) {
        UNROLL for (int c = 0; c < PARTS; c++) sum[r][c] = LOAD(bias + c * VW);
    }
    for (int64_t i = 0; i < k; i++, b += EDR_PANEL) {
        UNROLL for (int c = 0; c < PARTS; c++) part[c] = LOAD(b + c * VW);
        UNROLL for (int r = 0; r < rows; r++) {
            const VF one = SPREAD(x + r * k + i);
            UNROLL for (int c = 0; c < PARTS; c++) sum[r][c] = FMA(one, part[c], sum[r][c]);
        }
    }
    UNROLL for (int r = 0; r < rows; r++) {
        UNROLL for (int c = 0; c < PARTS; c++) FN(finish)(sum[r][c], out + r * ldo + c * VW, then);
    }
}

ENDINGS(tall, f32, TILE_F32, EDR_GELU)
ENDINGS(mid, f32, TILE_F32_MID, EDR_GELU)
ENDINGS(low, f32, 1, EDR_GELU)

TARGET static void FN(product_f32)(const edr_linear *w, int64_t first, int64_t panels, const edr_rows *x, int64_t m, float *out, int64_t ldo,
                                   int then)
{
    static const tiles tall[4] = {FN(tall_store_f32), FN(tall_gelu_f32), FN(tall_add_f32), FN(tall_tanh_f32)};
    static const tiles mid[4] = {FN(mid_store_f32), FN(mid_gelu_f32), FN(mid_add_f32), FN(mid_tanh_f32)};
    static const tiles low[4] = {FN(low_store_f32), FN(low_gelu_f32), FN(low_add_f32), FN(low_tanh_f32)};
    const int64_t whole = m / TILE_F32 * TILE_F32, most = m - (m - whole) % TILE_F32_MID;
    for (int64_t p = first; p < first + panels; p++, out += EDR_PANEL) {
        tall[then](w, p, x, 0, whole, out, ldo, NULL);
        mid[then](w, p, x, whole, most, out, ldo, NULL);
        low[then](w, p, x, most, m, out, ldo, NULL);
    }
}

/* -------------------------------------------------------------------------------------------------------------- int8 */

#if defined(DOT_TILE) || defined(DOT_KEPT)
/*
 * x = least + scale u and w = column scale * q, so  x . w = scale * column scale * (u . q) + least * column sum.
 * u . q is exact in 32 bits (K <= 65536): the same integer whatever the instruction set. These are the sums of a row, PARTS vectors, on
 * their way to what is stored.
 */
TARGET static ALWAYS_INLINE void FN(finish_u8)(const VI *sum, const VF *bias, const VF *scale, const VF *sums, const edr_rows *x, int64_t row,
                                               float *out, const int then)
{
    const VF by = SET1(x->scale[row]), from = SET1(x->least[row]);
    UNROLL for (int c = 0; c < PARTS; c++) {
        FN(finish)(FMA(MUL(by, scale[c]), TO_FLOAT(sum[c]), FMA(from, sums[c], bias[c])), out + c * VW, then);
    }
}

#ifdef DOT_KEPT
/*
 * DOT_KEPT stores the sums of a tile, 32 to a row, and a tile is finished after the sums of the next one: the processor, which looks some
 * hundred instructions ahead, then has products to do while it waits for what a sum becomes. Finished at once, all sums of a tile
 * end together, and the units that multiply stand still until the first is through. A loop of its own also has room in registers
 * for the tables of the GELU. While the tiles go down a panel, each asks for its share of the next one, a little at every step: all of
 * it at once, in the first tile, is more than the cache behind L2 gives.
 */
typedef void (*FN(finisher))(const int32_t *sum, const edr_linear *w, const edr_rows *x, int64_t panel, int64_t row, int64_t rows, float *out,
                             int64_t ldo);

#define FINISHER(NAME, THEN)                                                                                                            \
    TARGET static NEVER_INLINE void FN(NAME)(const int32_t *sum, const edr_linear *w, const edr_rows *x, int64_t panel, int64_t row,    \
                                             int64_t rows, float *out, int64_t ldo)                                                     \
    {                                                                                                                                   \
        VF bias[PARTS], scale[PARTS], sums[PARTS];                                                                                      \
        UNROLL for (int c = 0; c < PARTS; c++) {                                                                                        \
            bias[c] = LOAD(w->bias + panel * EDR_PANEL + c * VW);                                                                       \
            scale[c] = LOAD(w->scale + panel * EDR_PANEL + c * VW);                                                                     \
            sums[c] = LOAD(w->sums + panel * EDR_PANEL + c * VW);                                                                       \
        }                                                                                                                               \
        for (int64_t r = 0; r < rows; r++, sum += EDR_PANEL) {                                                                          \
            FN(finish_u8)((const VI *)(const void *)sum, bias, scale, sums, x, row + r, out + r * ldo, THEN);                           \
        }                                                                                                                               \
    }
FINISHER(finish_store, EDR_STORE)
FINISHER(finish_gelu, EDR_GELU_COARSE)
FINISHER(finish_add, EDR_ADD)
FINISHER(finish_tanh, EDR_GELU_TANH)
#undef FINISHER

TARGET static void FN(product_u8)(const edr_linear *w, int64_t first, int64_t panels, const edr_rows *x, int64_t m, float *out, int64_t ldo,
                                  int then)
{
    static const FN(finisher) finishers[4] = {FN(finish_store), FN(finish_gelu), FN(finish_add), FN(finish_tanh)};
    const FN(finisher) finish = finishers[then];
    int32_t sum[2][TILE_U8 * EDR_PANEL] __attribute__((aligned(64)));
    const int64_t k = w->inputs, hop = 4 * EDR_PANEL * TILE_U8 / (m + 1);
    int64_t turn = 0, last_panel = 0, last_row = 0, last_rows = 0;
    float *last_out = out;
    for (int64_t p = first; p < first + panels; p++, out += EDR_PANEL) {
        const int8_t *b = (const int8_t *)w->weight + p * k * EDR_PANEL, *next = p + 1 < w->outputs / EDR_PANEL ? b + k * EDR_PANEL : b;
        for (int64_t row = 0; row < m; row += last_rows, turn = !turn) {
            DOT_KEPT(sum[turn], (const uint8_t *)x->data + row * k, b, k, m - row, next + row / TILE_U8 * (k / 4 * hop), hop);
            if (last_rows > 0) finish(sum[!turn], w, x, last_panel, last_row, last_rows, last_out, ldo);
            last_panel = p, last_row = row, last_rows = m - row < TILE_U8 ? m - row : TILE_U8, last_out = out + row * ldo;
        }
    }
    if (last_rows > 0) finish(sum[!turn], w, x, last_panel, last_row, last_rows, last_out, ldo);
}
#else
/* START makes, once a panel, the numbers that DOT_TILE's sums start at, for sets whose products want them. DOT_PAIRS is for weights with
 * short pairs, in sets that have something faster for those. */
TARGET static ALWAYS_INLINE void FN(tile_any)(const edr_linear *w, int64_t panel, const edr_rows *x, int64_t row, int64_t left, float *out,
                                              int64_t ldo, const int32_t *start, const int rows, const int then, const int pairs)
{
    const int64_t k = w->inputs;
    const uint8_t *a = (const uint8_t *)x->data + row * k;
    const int8_t *b = (const int8_t *)w->weight + panel * k * EDR_PANEL;
    VI sum[TILE_ROWS][PARTS];
    VF bias[PARTS], scale[PARTS], sums[PARTS];
    (void)start; /* DOT_TILE may have no use for it */
#ifdef DOT_PAIRS
    if (pairs) DOT_PAIRS(sum, a, b, k, rows);
    else DOT_TILE(sum, a, b, k, rows, start);
#else
    (void)pairs;
    DOT_TILE(sum, a, b, k, rows, start);
#endif
    UNROLL for (int c = 0; c < PARTS; c++) {
        bias[c] = LOAD(w->bias + panel * EDR_PANEL + c * VW);
        scale[c] = LOAD(w->scale + panel * EDR_PANEL + c * VW);
        sums[c] = LOAD(w->sums + panel * EDR_PANEL + c * VW);
    }
    UNROLL for (int r = 0; r < rows; r++) {
        if (r >= left) return;
        FN(finish_u8)(sum[r], bias, scale, sums, x, row + r, out + r * ldo, then);
    }
}

#define HEIGHTS(KIND, PAIRS)                                                                                                                 \
    TARGET static ALWAYS_INLINE void FN(tile_##KIND)(const edr_linear *w, int64_t panel, const edr_rows *x, int64_t row, int64_t left,       \
                                                     float *out, int64_t ldo, const int32_t *start, const int rows, const int then)          \
    {                                                                                                                                        \
        FN(tile_any)(w, panel, x, row, left, out, ldo, start, rows, then, PAIRS);                                                            \
    }                                                                                                                                        \
    ENDINGS(tall, KIND, TILE_U8, EDR_GELU_COARSE)                                                                                            \
    ENDINGS(mid, KIND, TILE_U8_MID, EDR_GELU_COARSE)                                                                                         \
    ENDINGS(low, KIND, TILE_U8_LOW, EDR_GELU_COARSE)                                                                                         \
    static const tiles FN(heights_##KIND)[3][4] = {                                                                                          \
        {FN(low_store_##KIND), FN(low_gelu_##KIND), FN(low_add_##KIND), FN(low_tanh_##KIND)},                                                \
        {FN(mid_store_##KIND), FN(mid_gelu_##KIND), FN(mid_add_##KIND), FN(mid_tanh_##KIND)},                                                \
        {FN(tall_store_##KIND), FN(tall_gelu_##KIND), FN(tall_add_##KIND), FN(tall_tanh_##KIND)}};

HEIGHTS(u8, 0)
#ifdef DOT_PAIRS
HEIGHTS(pairs_u8, 1)
#endif
#undef HEIGHTS

TARGET static void FN(product_u8)(const edr_linear *w, int64_t first, int64_t panels, const edr_rows *x, int64_t m, float *out, int64_t ldo,
                                  int then)
{
#ifdef DOT_PAIRS
    const tiles(*heights)[4] = w->short_pairs ? FN(heights_pairs_u8) : FN(heights_u8);
#else
    const tiles(*heights)[4] = FN(heights_u8);
#endif
    const int64_t whole = m / TILE_U8 * TILE_U8, left = m - whole;
    const tiles last = heights[left <= TILE_U8_LOW ? 0 : left <= TILE_U8_MID ? 1 : 2][then];
    for (int64_t p = first; p < first + panels; p++, out += EDR_PANEL) {
        int32_t start[EDR_PANEL];
        START(start, (const int8_t *)w->weight + p * w->inputs * EDR_PANEL, w->inputs);
        heights[2][then](w, p, x, 0, whole, out, ldo, start);
        last(w, p, x, whole, m, out, ldo, start);
    }
}
#endif
#endif

/* ---------------------------------------------------------------------------------------------------------- bfloat16 */

#ifdef TILE_BF16
/*
 * The product of two bfloat16 is whole in a float32, and so are the sums, rounded as float32 sums are. Where the CPU has no
 * products of bfloat16, numbers are widened: EVEN and ODD take the first and the second of each pair of a panel's line.
 */
#ifndef BF16_TILE
TARGET static ALWAYS_INLINE void FN(widened)(VF sum[TILE_ROWS][PARTS], const uint16_t *x, const uint16_t *b, const float *bias, int64_t k,
                                             const int rows)
{
    UNROLL for (int r = 0; r < rows; r++) {
        UNROLL for (int c = 0; c < PARTS; c++) sum[r][c] = LOAD(bias + c * VW);
    }
    for (int64_t i = 0; i < k; i += 2, b += 2 * EDR_PANEL) {
        VF first[TILE_ROWS], second[TILE_ROWS];
        UNROLL for (int r = 0; r < rows; r++) {
            first[r] = SET1(widen(x[r * k + i]));
            second[r] = SET1(widen(x[r * k + i + 1]));
        }
        UNROLL for (int c = 0; c < PARTS; c++) {
            const VF even = EVEN(b + 2 * c * VW), odd = ODD(b + 2 * c * VW);
            UNROLL for (int r = 0; r < rows; r++) sum[r][c] = FMA(second[r], odd, FMA(first[r], even, sum[r][c]));
        }
    }
}
#define BF16_TILE(sum, x, b, bias, k, rows) FN(widened)(sum, x, b, bias, k, rows)
#endif

TARGET static ALWAYS_INLINE void FN(tile_bf16)(const edr_linear *w, int64_t panel, const edr_rows *x, int64_t row, int64_t left, float *out,
                                               int64_t ldo, const int32_t *start, const int rows, const int then)
{
    const int64_t k = w->inputs;
    (void)start;
    VF sum[TILE_ROWS][PARTS];
    BF16_TILE(sum, (const uint16_t *)x->data + row * k, (const uint16_t *)w->weight + panel * k * EDR_PANEL, w->bias + panel * EDR_PANEL, k, rows);
    UNROLL for (int r = 0; r < rows; r++) {
        if (r >= left) return;
        UNROLL for (int c = 0; c < PARTS; c++) FN(finish)(sum[r][c], out + r * ldo + c * VW, then);
    }
}

ENDINGS(tall, bf16, TILE_BF16, EDR_GELU)
ENDINGS(mid, bf16, TILE_BF16_MID, EDR_GELU)
ENDINGS(low, bf16, TILE_BF16_LOW, EDR_GELU)

TARGET static void FN(product_bf16)(const edr_linear *w, int64_t first, int64_t panels, const edr_rows *x, int64_t m, float *out, int64_t ldo,
                                    int then)
{
    static const tiles tall[4] = {FN(tall_store_bf16), FN(tall_gelu_bf16), FN(tall_add_bf16), FN(tall_tanh_bf16)};
    static const tiles mid[4] = {FN(mid_store_bf16), FN(mid_gelu_bf16), FN(mid_add_bf16), FN(mid_tanh_bf16)};
    static const tiles low[4] = {FN(low_store_bf16), FN(low_gelu_bf16), FN(low_add_bf16), FN(low_tanh_bf16)};
    const int64_t whole = m / TILE_BF16 * TILE_BF16, left = m - whole;
    const tiles *last = left <= TILE_BF16_LOW ? low : left <= TILE_BF16_MID ? mid : tall;
    for (int64_t p = first; p < first + panels; p++, out += EDR_PANEL) {
        tall[then](w, p, x, 0, whole, out, ldo, NULL);
        last[then](w, p, x, whole, m, out, ldo, NULL);
    }
}
#undef TILE_BF16
#undef TILE_BF16_MID
#undef TILE_BF16_LOW
#undef BF16_TILE
#endif
