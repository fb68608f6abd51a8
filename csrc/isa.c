/* isa.c: which instruction sets this build and this CPU have. */
#define _GNU_SOURCE /* for syscall */
#include "internal.h"

#if defined(__x86_64__) && defined(__GNUC__)
#define EDR_X86 1
#endif
#ifdef EDR_HAS_NEON_DOT
#include <sys/auxv.h>

/* Bits of what Linux says of the CPU; older headers lack their names. */
enum { ASIMDDP = 1 << 20, I8MM = 1 << 13 };
#endif

#ifdef EDR_HAS_AMX
#include <sys/syscall.h>
#include <unistd.h>

/*
 * Whether the CPU has tiles with products of bytes and of bfloat16, and the system saves both parts of their state. GCC's library has asked
 * once; asking again, as Clang's does not know, leaves a virtual machine each time, 30 microseconds in all.
 */
#if !defined(__clang__)
static int has_tiles(void)
{
    return __builtin_cpu_supports("amx-tile") && __builtin_cpu_supports("amx-int8") && __builtin_cpu_supports("amx-bf16");
}
#else
#include <cpuid.h>

static int has_tiles(void)
{
    enum { AVX = 1 << 28, OSXSAVE = 1 << 27, BF16 = 1 << 22, TILE = 1 << 24, INT8 = 1 << 25, TILE_STATE = 3 << 17 };
    unsigned a, b, c, d, low, high;
    if (!__get_cpuid(1, &a, &b, &c, &d) || (c & (unsigned)OSXSAVE) == 0 || (c & (unsigned)AVX) == 0) return 0;
    if (!__get_cpuid_count(7, 0, &a, &b, &c, &d) || (d & BF16) == 0 || (d & TILE) == 0 || (d & INT8) == 0) return 0;
    __asm__ volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
    return (low & TILE_STATE) == TILE_STATE;
}
#endif

/*
 * Whether this process may use tiles: Linux (from 5.16 on) keeps their 8 KB for those alone that asked, and a thread that does not ask is
 * killed at its first tile. One call answers for all threads, for good, and for forked children; asking again costs a tenth of a
 * microsecond. It is refused by older systems, by a filter of system calls, and while any thread has an alternate signal stack
 * that could not hold the larger state.
 */
static int may_use_tiles(void)
{
    enum { ASK = 0x1023, TILE_DATA = 18 }; /* ARCH_REQ_XCOMP_PERM, which older headers lack */
    return syscall(SYS_arch_prctl, ASK, TILE_DATA) == 0;
}
#endif

int edr_isa_supported(int isa)
{
    switch (isa) {
    case EDR_ISA_SCALAR: return 1;
#ifdef EDR_X86
    /* The compiler's runtime reads CPUID once, and XGETBV to learn whether the system saves the wide registers. */
    case EDR_ISA_AVX2: __builtin_cpu_init(); return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
    case EDR_ISA_AVX512: __builtin_cpu_init(); return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("fma");
    case EDR_ISA_AVX512_VNNI: return edr_isa_supported(EDR_ISA_AVX512) && __builtin_cpu_supports("avx512vnni");
#endif
#ifdef EDR_HAS_AVX512_BF16
    case EDR_ISA_AVX512_BF16: return edr_isa_supported(EDR_ISA_AVX512_VNNI) && __builtin_cpu_supports("avx512bf16");
#endif
#ifdef EDR_HAS_AMX
    case EDR_ISA_AMX: return edr_isa_supported(EDR_ISA_AVX512_BF16) && has_tiles() && may_use_tiles();
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
    static const int order[] = {EDR_ISA_AMX,  EDR_ISA_AVX512_BF16, EDR_ISA_AVX512_VNNI,  EDR_ISA_AVX512, EDR_ISA_AVX_VNNI,
                                EDR_ISA_AVX2, EDR_ISA_NEON_I8MM,   EDR_ISA_NEON_DOTPROD, EDR_ISA_NEON,   EDR_ISA_SCALAR};
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
    case EDR_ISA_AMX: return "amx";
    default: return NULL;
    }
}
