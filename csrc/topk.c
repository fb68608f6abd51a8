/* topk.c: the k best of a stream of scores. The idea and its bound are described in edgerec.h. */
#include <math.h>

#include "internal.h"
#include "topk_kernels.h"

#define POSITIONS 256         /* candidates taken from a block before the bar is looked at again */
#define MAX_COLUMNS 4096      /* groups of the block bound; with 2 k above it, the bound is not used */
#define BLOCK 65536           /* 256 KiB: still in the second-level cache when it is read again */
#define MASKED_BLOCK 8192     /* scores copied at a time to take masked ones out */

/* ---- order ---- */

static inline int better(float score, int64_t index, float than_score, int64_t than_index)
{
    return score > than_score || (score == than_score && index < than_index);
}

static inline void swap_pair(float *s, int64_t *x, int64_t a, int64_t b)
{
    const float score = s[a];
    const int64_t index = x[a];
    s[a] = s[b];
    x[a] = x[b];
    s[b] = score;
    x[b] = index;
}

/* ---- selection: introselect, that is quickselect which turns to heapsort when pivots keep being bad ---- */

/* Heap whose root is the worst: sorted ascending by `better` when done, best first. */
static void sift_down(float *s, int64_t *x, int64_t root, int64_t n)
{
    for (;;) {
        int64_t worst = root;
        const int64_t child = 2 * root + 1;
        if (child < n && better(s[worst], x[worst], s[child], x[child])) worst = child;
        if (child + 1 < n && better(s[worst], x[worst], s[child + 1], x[child + 1])) worst = child + 1;
        if (worst == root) return;
        swap_pair(s, x, root, worst);
        root = worst;
    }
}

static void heap_sort(float *s, int64_t *x, int64_t n)
{
    for (int64_t root = n / 2 - 1; root >= 0; root--) sift_down(s, x, root, n);
    for (int64_t end = n - 1; end > 0; end--) {
        swap_pair(s, x, 0, end);
        sift_down(s, x, 0, end);
    }
}

static void insertion_sort(float *s, int64_t *x, int64_t n)
{
    for (int64_t i = 1; i < n; i++) {
        const float score = s[i];
        const int64_t index = x[i];
        int64_t j = i;
        for (; j > 0 && better(score, index, s[j - 1], x[j - 1]); j--) {
            s[j] = s[j - 1];
            x[j] = x[j - 1];
        }
        s[j] = score;
        x[j] = index;
    }
}

/* Move the median of three to the end, where the partition wants its pivot. */
static void pivot_to_end(float *s, int64_t *x, int64_t n)
{
    const int64_t a = n / 4, b = n / 2, c = n - 1 - n / 4;
    const int ab = better(s[a], x[a], s[b], x[b]), bc = better(s[b], x[b], s[c], x[c]), ac = better(s[a], x[a], s[c], x[c]);
    const int64_t median = ab == bc ? b : (ab == ac ? c : a);
    swap_pair(s, x, median, n - 1);
}

/* Put the k-th best (1 <= k <= n) at position k - 1, better ones before it. */
static void select_best(float *s, int64_t *x, int64_t n, int64_t k)
{
    int patience = 4;
    for (int64_t m = n; m > 1; m /= 2) patience += 2;
    while (n > 24) {
        if (patience-- == 0) {
            heap_sort(s, x, n);
            return;
        }
        pivot_to_end(s, x, n);
        const float pivot = s[n - 1];
        const int64_t pivot_index = x[n - 1];
        int64_t kept = 0;
        for (int64_t i = 0; i < n - 1; i++) { /* no branch on the data: half of them would be mispredicted */
            const float score = s[i];
            const int64_t index = x[i];
            s[i] = s[kept];
            x[i] = x[kept];
            s[kept] = score;
            x[kept] = index;
            kept += (score > pivot) | ((score == pivot) & (index < pivot_index));
        }
        swap_pair(s, x, kept, n - 1);
        if (kept == k - 1) return;
        if (kept > k - 1) {
            n = kept;
        } else {
            s += kept + 1;
            x += kept + 1;
            n -= kept + 1;
            k -= kept + 1;
        }
    }
    insertion_sort(s, x, n);
}

/* The k-th largest of v[0 .. n), n <= MAX_COLUMNS; v is reordered. A bound needs no exactness on bad pivots: after too
 * many of them the smallest of what is left is returned, which is still a valid (lower) bound. */
static float kth_largest(float *v, int64_t n, int64_t k)
{
    for (int patience = 40; n > 1; patience--) {
        const float a = v[0], b = v[n / 2], c = v[n - 1];
        float pivot = a > b ? (b > c ? b : (a > c ? c : a)) : (a > c ? a : (b > c ? c : b));
        int64_t above = 0, equal = 0;
        if (patience == 0) {
            for (int64_t i = 0; i < n; i++) pivot = v[i] < pivot ? v[i] : pivot;
            return pivot;
        }
        for (int64_t i = 0; i < n; i++) {
            const float value = v[i];
            v[i] = v[above];
            v[above] = value;
            above += value > pivot;
            equal += value == pivot;
        }
        if (k <= above) {
            n = above;
        } else if (k <= above + equal) {
            return pivot;
        } else {
            /* Drop what equals the pivot too, or equal values would never get fewer. */
            int64_t kept = 0;
            for (int64_t i = above; i < n; i++) {
                const float value = v[i];
                v[kept] = value;
                kept += value < pivot;
            }
            k -= above + equal;
            n = kept;
        }
    }
    return v[0];
}

/* ---- state ---- */

edr_status edr_topk_init(edr_topk *top, int64_t k, int isa, float *scores, int64_t *indices, int64_t room)
{
    if (top == NULL || scores == NULL || indices == NULL) return EDR_E_NULL;
    if (k < 0 || k > EDR_TOPK_MAX_K) return EDR_E_VALUE;
    if (room < EDR_TOPK_ROOM(k)) return EDR_E_SPACE;
    if (!edr_isa_supported(isa)) return EDR_E_ISA;
    const edr_topk fresh = {scores, indices, k, room, 0, 0, -INFINITY, 0, 0, isa};
    *top = fresh;
    return EDR_OK;
}

/* Keep the k best of the buffer and set the bar by the k-th. */
static void raise_bar(edr_topk *top)
{
    if (top->count < top->k || top->k == 0) return;
    if (top->fresh == 0 && top->full) return;
    select_best(top->scores, top->indices, top->count, top->k);
    top->count = top->k;
    top->bar = top->scores[top->k - 1];
    top->bar_index = top->indices[top->k - 1];
    top->full = 1;
    top->fresh = 0;
}

static inline void offer(edr_topk *top, float score, int64_t index)
{
    if (top->full && !better(score, index, top->bar, top->bar_index)) return;
    top->scores[top->count] = score;
    top->indices[top->count++] = index;
    top->fresh++;
    if (top->count == top->room) raise_bar(top);
}

/* The next float32 above a finite or infinite x; above +infinity NaN, which nothing is >= to. */
static float next_above(float x)
{
    uint32_t bits;
    if (x == 0.0f) return 0x1p-149f;
    memcpy(&bits, &x, sizeof bits);
    bits += x > 0.0f ? 1u : UINT32_MAX;
    memcpy(&x, &bits, sizeof x);
    return x;
}

/* A score below this cannot enter, given that indices are >= first (of all, when they are in ascending order). */
static float entry_bar(const edr_topk *top, int ascending, int64_t first)
{
    if (!top->full) return -INFINITY;
    return ascending && first > top->bar_index ? next_above(top->bar) : top->bar;
}

/*
 * Groups for the block bound: at least 2 k, so that the k-th largest maximum is near the k-th largest score; an odd
 * multiple of EDR_GROUP, so that scores which repeat with a power of two do not all meet in a few groups. 0: no bound.
 */
static int64_t columns_for(int64_t k)
{
    const int64_t m = EDR_GROUP * (((2 * k + EDR_GROUP - 1) / EDR_GROUP) | 1);
    return m <= MAX_COLUMNS ? m : 0;
}

static float block_bound(const edr_topk *top, const edr_topk_kernels *kernels, const float *x, int64_t n, int64_t m)
{
    float columns[MAX_COLUMNS];
    kernels->column_max(x, n / m, m, columns);
    return kth_largest(columns, m, top->k);
}

static inline float max_of(float a, float b)
{
    return b > a || b != b ? b : a; /* NaN is the highest bar */
}

/*
 * Offer a block; indices are indices[i] or, when NULL, start + i. `bound_first` says that many scores will pass the bar.
 * Returns whether many did.
 */
static int push_block(edr_topk *top, const edr_topk_kernels *kernels, const float *x, int64_t n, const int64_t *indices, int64_t start, int64_t m,
                      int bound_first)
{
    const int ascending = indices == NULL;
    const int64_t enough = top->k / 2 + EDR_GROUP; /* candidates that are worth a better bar */
    int32_t positions[POSITIONS];
    float bar = entry_bar(top, ascending, start);
    int bounded = m == 0;
    if (!bounded && bound_first && n >= 4 * m) {
        bar = max_of(bar, block_bound(top, kernels, x, n, m));
        bounded = 1;
    }
    int64_t taken = 0;
    for (int64_t done = 0; done < n;) {
        int64_t next = 0;
        const int64_t count = kernels->collect(x + done, n - done, bar, positions, POSITIONS, &next);
        for (int64_t i = 0; i < count; i++) {
            const int64_t place = done + positions[i];
            offer(top, x[place], ascending ? start + place : indices[place]);
        }
        done += next;
        taken += count;
        bar = max_of(bar, entry_bar(top, ascending, start + done));
        if (!bounded && taken > enough && n - done >= 4 * m) {
            bar = max_of(bar, block_bound(top, kernels, x + done, n - done, m));
            bounded = 1;
        }
    }
    if (top->fresh >= enough) raise_bar(top);
    return taken > top->k / 2;
}

static void push_blocks(edr_topk *top, const float *x, int64_t n, const int64_t *indices, int64_t start)
{
    const edr_topk_kernels *kernels = edr_topk_kernels_for(top->isa);
    const int64_t m = columns_for(top->k);
    int many = !top->full; /* a rising stream goes on rising: what one block met, the next will meet */
    for (int64_t begin = 0; begin < n; begin += BLOCK) {
        const int64_t size = n - begin < BLOCK ? n - begin : BLOCK;
        many = push_block(top, kernels, x + begin, size, indices != NULL ? indices + begin : NULL, start + begin, m, many);
    }
}

edr_status edr_topk_push(edr_topk *top, const float *scores, const uint8_t *mask, int64_t n, int64_t start)
{
    if (top == NULL) return EDR_E_NULL;
    if (n < 0) return EDR_E_SIZE;
    if (start < 0 || start > INT64_MAX - n) return EDR_E_VALUE;
    if (n == 0) return EDR_OK;
    if (scores == NULL) return EDR_E_NULL;
    if (top->k == 0) return EDR_OK;
    if (mask == NULL) {
        push_blocks(top, scores, n, NULL, start);
        return EDR_OK;
    }
    /* Masked scores become NaN in a copy: the kernels then need not know of masks. */
    float open[MASKED_BLOCK];
    for (int64_t begin = 0; begin < n; begin += MASKED_BLOCK) {
        const int64_t size = n - begin < MASKED_BLOCK ? n - begin : MASKED_BLOCK;
        for (int64_t i = 0; i < size; i++) open[i] = mask[begin + i] != 0 ? NAN : scores[begin + i];
        push_blocks(top, open, size, NULL, start + begin);
    }
    return EDR_OK;
}

edr_status edr_topk_push_at(edr_topk *top, const float *scores, const int64_t *indices, int64_t n)
{
    if (top == NULL) return EDR_E_NULL;
    if (n < 0) return EDR_E_SIZE;
    if (n == 0) return EDR_OK;
    if (scores == NULL || indices == NULL) return EDR_E_NULL;
    if (top->k != 0) push_blocks(top, scores, n, indices, 0);
    return EDR_OK;
}

int64_t edr_topk_count(edr_topk *top)
{
    if (top == NULL) return 0;
    raise_bar(top);
    return top->count;
}

/* Merge sorted s[0 .. middle) and s[middle .. n) into to. */
static void merge(const float *s, const int64_t *x, int64_t middle, int64_t n, float *to_s, int64_t *to_x)
{
    int64_t i = 0, j = middle;
    for (int64_t out = 0; out < n; out++) {
        const int64_t from = (j >= n || (i < middle && !better(s[j], x[j], s[i], x[i]))) ? i++ : j++;
        to_s[out] = s[from];
        to_x[out] = x[from];
    }
}

edr_status edr_topk_finish(edr_topk *top, int64_t *indices, float *scores, int64_t *count)
{
    if (top == NULL || count == NULL) return EDR_E_NULL;
    raise_bar(top);
    const int64_t n = top->count, run_size = 16;
    if (n > 0 && (indices == NULL || scores == NULL)) return EDR_E_NULL;
    *count = n;
    if (n == 0) return EDR_OK;
    /* Merge sort between the output and the free half of the buffer: no worst case, no allocation. */
    float *from_s = scores, *to_s = top->scores + n;
    int64_t *from_x = indices, *to_x = top->indices + n;
    memcpy(scores, top->scores, (size_t)n * sizeof *scores);
    memcpy(indices, top->indices, (size_t)n * sizeof *indices);
    for (int64_t begin = 0; begin < n; begin += run_size) {
        insertion_sort(scores + begin, indices + begin, n - begin < run_size ? n - begin : run_size);
    }
    for (int64_t run = run_size; run < n; run *= 2) {
        for (int64_t begin = 0; begin < n; begin += 2 * run) {
            const int64_t size = n - begin < 2 * run ? n - begin : 2 * run;
            merge(from_s + begin, from_x + begin, size < run ? size : run, size, to_s + begin, to_x + begin);
        }
        float *swap_s = from_s;
        from_s = to_s;
        to_s = swap_s;
        int64_t *swap_x = from_x;
        from_x = to_x;
        to_x = swap_x;
    }
    if (from_s != scores) {
        memcpy(scores, from_s, (size_t)n * sizeof *scores);
        memcpy(indices, from_x, (size_t)n * sizeof *indices);
    }
    return EDR_OK;
}
