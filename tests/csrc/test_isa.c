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
    CHECK(edr_isa_best() == EDR_ISA_NEON);
    CHECK(edr_isa_supported(EDR_ISA_AVX2) == 0);
#elif defined(__x86_64__)
    CHECK(edr_isa_supported(EDR_ISA_NEON) == 0);
    /* AVX-512 machines have AVX2, and the wider one is preferred. */
    CHECK(!edr_isa_supported(EDR_ISA_AVX512) || (edr_isa_supported(EDR_ISA_AVX2) && edr_isa_best() >= EDR_ISA_AVX512));
#endif
    printf("best here: %s\n", edr_isa_name(edr_isa_best()));
    return check_report();
}
