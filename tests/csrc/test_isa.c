/* cc -std=c11 -g -fsanitize=address,undefined -Icsrc tests/csrc/test_isa.c csrc/isa.c -o test_isa */
#include "check.h"

int main(void)
{
    CHECK(edr_isa_supported(EDR_ISA_SCALAR) == 1);
    CHECK(edr_isa_supported(edr_isa_best()) == 1);
    CHECK(edr_isa_supported(-1) == 0);
    CHECK(edr_isa_supported(EDR_ISA_COUNT) == 0);
    CHECK(edr_isa_name(-1) == NULL);
    CHECK(edr_isa_name(EDR_ISA_COUNT) == NULL);
    for (int isa = 0; isa < EDR_ISA_COUNT; isa++) CHECK(edr_isa_name(isa) != NULL);
#if defined(__aarch64__)
    const int dot = edr_isa_supported(EDR_ISA_NEON_DOTPROD), mixed = edr_isa_supported(EDR_ISA_NEON_I8MM);
    CHECK(edr_isa_supported(EDR_ISA_NEON) && mixed <= dot);
    CHECK(edr_isa_best() == (mixed ? EDR_ISA_NEON_I8MM : dot ? EDR_ISA_NEON_DOTPROD : EDR_ISA_NEON));
    CHECK(edr_isa_supported(EDR_ISA_AVX2) == 0);
#elif defined(__x86_64__)
    CHECK(!edr_isa_supported(EDR_ISA_NEON) && !edr_isa_supported(EDR_ISA_NEON_DOTPROD) && !edr_isa_supported(EDR_ISA_NEON_I8MM));
    /* AVX-512 machines have AVX2, those with VNNI have AVX-512, and the most able one is preferred. */
    const int vnni = edr_isa_supported(EDR_ISA_AVX512_VNNI), wide = edr_isa_supported(EDR_ISA_AVX512), half = edr_isa_supported(EDR_ISA_AVX2);
    CHECK(wide <= half && vnni <= wide);
    const int half_vnni = edr_isa_supported(EDR_ISA_AVX_VNNI);
    CHECK(half_vnni <= half);
    const int halves = edr_isa_supported(EDR_ISA_AVX512_BF16);
    CHECK(halves <= vnni);
    const int tiles = edr_isa_supported(EDR_ISA_AMX);
    CHECK(tiles <= halves);
    CHECK(edr_isa_best() == (tiles       ? EDR_ISA_AMX
                             : halves    ? EDR_ISA_AVX512_BF16
                             : vnni      ? EDR_ISA_AVX512_VNNI
                             : wide      ? EDR_ISA_AVX512
                             : half_vnni ? EDR_ISA_AVX_VNNI
                             : half      ? EDR_ISA_AVX2
                                         : EDR_ISA_SCALAR));
#endif
    printf("best here: %s\n", edr_isa_name(edr_isa_best()));
    return check_report();
}
