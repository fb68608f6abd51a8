/* isa.c: which instruction sets this build and this CPU have. */
#include "internal.h"

#if defined(__x86_64__) && defined(__GNUC__)
#define EDR_X86 1
#endif
#ifdef EDR_HAS_NEON_DOT
#include <sys/auxv.h>

/* Bits of what Linux says of the CPU; older headers lack their names. */
enum { ASIMDDP = 1 << 20, I8MM = 1 << 13 };
#endif

int edr_isa_supported(int isa)
{
    switch (isa) {
    case EDR_ISA_SCALAR: return 1;
#ifdef EDR_X86
    /* The compiler's runtime reads CPUID once, and XGETBV to learn whether the system saves the wide registers. */
    case EDR_ISA_AVX2: __builtin_cpu_init(); return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
    case EDR_ISA_AVX512: __builtin_cpu_init(); return __builtin_cpu_supports("avx512f") != 0;
    case EDR_ISA_AVX512_VNNI:
        __builtin_cpu_init();
        return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512vnni");
#endif
#ifdef EDR_HAS_AVX512_BF16
    case EDR_ISA_AVX512_BF16: return edr_isa_supported(EDR_ISA_AVX512_VNNI) && __builtin_cpu_supports("avx512bf16");
#endif
#ifdef EDR_HAS_AVX_VNNI
    case EDR_ISA_AVX_VNNI: return edr_isa_supported(EDR_ISA_AVX2) && __builtin_cpu_supports("avxvnni");
#endif
#if defined(__aarch64__)
    case EDR_ISA_NEON: return 1;
#endif
#ifdef EDR_HAS_NEON_DOT
    case EDR_ISA_NEON_DOTPROD: return (getauxval(AT_HWCAP) & ASIMDDP) != 0;
    case EDR_ISA_NEON_I8MM: return (getauxval(AT_HWCAP2) & I8MM) != 0;
#endif
    default: return 0;
    }
}

int edr_isa_best(void)
{
    static const int order[] = {EDR_ISA_AVX512_BF16, EDR_ISA_AVX512_VNNI,  EDR_ISA_AVX512, EDR_ISA_AVX_VNNI, EDR_ISA_AVX2,
                                EDR_ISA_NEON_I8MM,   EDR_ISA_NEON_DOTPROD, EDR_ISA_NEON,   EDR_ISA_SCALAR};
    int i = 0;
    while (!edr_isa_supported(order[i])) i++;
    return order[i];
}

const char *edr_isa_name(int isa)
{
    switch (isa) {
    case EDR_ISA_SCALAR: return "scalar";
    case EDR_ISA_AVX2: return "avx2";
    case EDR_ISA_AVX512: return "avx512";
    case EDR_ISA_NEON: return "neon";
    case EDR_ISA_AVX512_VNNI: return "avx512_vnni";
    case EDR_ISA_AVX_VNNI: return "avx_vnni";
    case EDR_ISA_NEON_DOTPROD: return "neon_dotprod";
    case EDR_ISA_NEON_I8MM: return "neon_i8mm";
    case EDR_ISA_AVX512_BF16: return "avx512_bf16";
    default: return NULL;
    }
}
