/* cc -std=c11 -O3 -Icsrc tests/csrc/count_engine.c csrc/[a-z]*.c -lm -lpthread -o count_engine
 * count_engine LAYERS HIDDEN [ROWS] [PREFIX]: one call of edr_score, for `make bench-check` to count its instructions under
 * valgrind (--toggle-collect=edr_score). An int8 model of seeded random weights; PREFIX tokens in front of each row are the
 * same, 8 to 20 of its own follow, as a query and titles have them. Prints the number of tokens. EDGEREC_ISA forces the
 * kernels: valgrind has no AVX-512. */
#include "random_model.h"

int main(int argc, char **argv)
{
    const int64_t numbers[4] = {argc > 1 ? atoll(argv[1]) : 2, argc > 2 ? atoll(argv[2]) : 128, argc > 3 ? atoll(argv[3]) : 100, argc > 4 ? atoll(argv[4]) : 6};
    const int64_t layers = numbers[0], h = numbers[1], rows = numbers[2], prefix = numbers[3];
    if (layers < 1 || layers > EDR_MAX_LAYERS || h < 32 || h > 1024 || h % 32 != 0 || rows < 1 || rows > MOST || prefix < 0 || prefix > 100) {
        fprintf(stderr, "count_engine LAYERS HIDDEN [ROWS] [PREFIX]\n");
        return 2;
    }
    const edr_model model = random_model(layers, h);
    static int32_t ids[MOST * LENGTH], types[MOST * LENGTH];
    static int64_t starts[MOST], lengths[MOST];
    static float logits[MOST];
    int64_t tokens = 0;
    for (int64_t i = 0; i < rows; i++) {
        starts[i] = i * LENGTH;
        lengths[i] = prefix + 8 + random_below(&random_state, 13);
        tokens += lengths[i];
        for (int64_t t = 0; t < LENGTH; t++) {
            ids[i * LENGTH + t] = (int32_t)(t < prefix ? t : random_below(&random_state, IDS));
            types[i * LENGTH + t] = t >= prefix;
        }
    }
    const edr_inputs in = {ids, types, rows * LENGTH, starts, lengths, rows, NULL, NULL, 0};
    const int64_t size = edr_score_room(&model);
    void *whole, *room = aligned_room(size, &whole);
    int64_t at = -1;
    if (edr_inputs_check(&model, &in, &at) != EDR_OK || edr_score(&model, &in, 0, rows, chosen_isa(), room, size, logits) != EDR_OK) return 1;
    for (int64_t i = 0; i < rows; i++) {
        if (!isfinite(logits[i])) return 1;
    }
    printf("%lld\n", (long long)tokens);
    return 0;
}
