/* cc -std=c11 -O3 -Icsrc tests/csrc/count_mid.c csrc/[a-z]*.c -lm -lpthread -o count_mid
 * count_mid LAYERS HIDDEN QUERY_LAYERS GROUPS WIDTH [ROWS] [QUERY]: one call of edr_encode_all and one of edr_rank_all, for `make
 * bench-check` to count the instructions of either under valgrind (--toggle-collect). An int8 mid-fusion student of seeded random
 * weights: all layers but the first QUERY_LAYERS are joint, the item encoder has one layer less than the query's side, states are int8.
 * ROWS candidates of 9 to 21 tokens, suffix and all; QUERY tokens of query. Prints candidates and tokens. */
#include "random_model.h"

int main(int argc, char **argv)
{
    int64_t n[7] = {6, 384, 2, 4, 384, 100, 7};
    for (int i = 1; i < argc && i <= 7; i++) n[i - 1] = atoll(argv[i]);
    const int64_t layers = n[0], h = n[1], alone = n[2], groups = n[3], width = n[4], rows = n[5], query_size = n[6], joint = layers - alone;
    if (layers < 2 || layers > 12 || h < 32 || h > 1024 || h % 32 != 0 || alone < 1 || joint < 1 || groups < 1 || groups > joint ||
        width < 4 || width > h || rows < 1 || rows > MOST || query_size < 1 || query_size > 32) {
        fprintf(stderr, "count_mid LAYERS HIDDEN QUERY_LAYERS GROUPS WIDTH [ROWS] [QUERY]\n");
        return 2;
    }
    static int32_t keeps[EDR_MAX_LAYERS], reads[EDR_MAX_LAYERS];
    edr_model model = random_model(layers, h);
    edr_mid *mid = &model.mid;
    *mid = (edr_mid){.query_layers = alone, .item_layers = layers - 1, .item_start = 32, .item_type = 1, .groups = groups, .width = width,
                     .state_kind = EDR_STATES_INT8, .keeps = keeps, .reads = reads};
    const int64_t padded = (width + 31) / 32 * 32;
    for (int64_t i = 0; i < layers - 1; i++) mid->item[i] = random_layer(h);
    for (int64_t g = 0; g < groups; g++) {
        keeps[g] = (int32_t)(layers - groups + g);
        mid->narrow[g] = (edr_linear){random_floats(h * padded, -0.1f, 0.1f), random_floats(padded, -0.1f, 0.1f), NULL, NULL, h, padded, 0};
    }
    for (int64_t i = 0; i < joint; i++) {
        reads[i] = (int32_t)(i < groups ? i : groups - 1);
        mid->state[alone + i] = random_linear(padded, 2 * h);
    }
    model.fold = random_fold(32, padded, h / 32 * padded);
    model.unfold = random_fold(padded, padded, h);
    mid->state_bias = random_floats(2 * h, -0.1f, 0.1f);
    static int32_t ids[MOST * LENGTH], query[32];
    static int64_t starts[MOST], lengths[MOST];
    static float logits[MOST];
    int64_t tokens = 0, at = -1;
    for (int64_t i = 0; i < rows; i++) {
        starts[i] = tokens;
        lengths[i] = 9 + random_below(&random_state, 13);
        tokens += lengths[i];
    }
    for (int64_t i = 0; i < tokens; i++) ids[i] = (int32_t)random_below(&random_state, IDS);
    for (int64_t i = 0; i < query_size; i++) query[i] = (int32_t)random_below(&random_state, IDS);
    void *values = exact_room((size_t)(tokens * groups * width));
    float *scales = exact_room((size_t)(tokens * groups) * 4);
    const int64_t size = edr_score_room(&model);
    void *whole, *room = aligned_room(size, &whole);
    const edr_items items = {ids, tokens, starts, lengths, rows};
    const edr_ranking in = {query, query_size, values, scales, tokens, starts, lengths, rows, NULL, NULL, 0};
    if (edr_encode_all(&model, &items, chosen_isa(), NULL, 0, &room, size, values, scales, &at) != EDR_OK) return 1;
    if (edr_rank_all(&model, &in, chosen_isa(), NULL, 0, &room, size, 0, logits, NULL, &at) != EDR_OK) return 1;
    for (int64_t i = 0; i < rows; i++) {
        if (!isfinite(logits[i])) return 1;
    }
    printf("%lld %lld\n", (long long)rows, (long long)tokens);
    return 0;
}
