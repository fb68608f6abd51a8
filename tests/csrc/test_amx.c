/* cc -std=c11 -g -fsanitize=address,undefined -Icsrc tests/csrc/test_amx.c csrc/[a-z]*.c -lm -lpthread -o test_amx
 * AMX in somebody else's process: a system that says no makes the set unsupported, no call leaves tiles behind, a forked child may go on, and
 * the integers are those of the other sets. What the products are worth is test_products.c's. */
#define _DEFAULT_SOURCE
#include "internal.h"

#ifndef EDR_HAS_AMX
#include "check.h"

int main(void)
{
    CHECK(!edr_isa_supported(EDR_ISA_AMX) && strcmp(edr_isa_name(EDR_ISA_AMX), "amx") == 0);
    return check_report();
}
#else

#include <errno.h>
#include <immintrin.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <signal.h>
#include <stddef.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include "engine_kernels.h"
#include "mid_shop.h"

/* What f returns in a forked child. */
static int in_child(int (*f)(void *), void *context)
{
    const pid_t child = fork();
    if (child < 0) abort();
    if (child == 0) _exit(f(context));
    int status = 0;
    if (waitpid(child, &status, 0) != child) abort();
    return WIFEXITED(status) ? WEXITSTATUS(status) : -1;
}

/* ------------------------------------------------------------------------------------------------------------------ refusals */

enum { REFUSED = 1, OFFERED = 2, UNTRIED = 3 };

static int answer(void)
{
    if (edr_isa_supported(EDR_ISA_AMX)) return OFFERED;
    return edr_isa_best() == EDR_ISA_AMX || !edr_isa_supported(edr_isa_best()) ? OFFERED : REFUSED;
}

/* A filter of system calls, as containers have them, under which the one that asks for tiles fails. */
static int filtered(void *unused)
{
    (void)unused;
    struct sock_filter program[] = {
        BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr)),
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_arch_prctl, 0, 1),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ERRNO | EPERM),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
    };
    const struct sock_fprog filter = {sizeof program / sizeof *program, program};
    if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) != 0 || prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &filter) != 0) return UNTRIED;
    return answer();
}

/* An alternate signal stack of 8 KB, as many programs have one: tiles would not fit on it. */
static int cramped(void *unused)
{
    static char room[8192];
    const stack_t stack = {.ss_sp = room, .ss_size = sizeof room};
    (void)unused;
    if (sigaltstack(&stack, NULL) != 0) return UNTRIED;
    return answer();
}

/* -------------------------------------------------------------------------------------------------------------- what is left */

/* Whether this thread has no configuration of tiles, and so no state of them. */
__attribute__((target("amx-tile"))) static int released(void)
{
    uint8_t config[64] __attribute__((aligned(64)));
    memset(config, 0xFF, sizeof config);
    _tile_storeconfig(config);
    for (int i = 0; i < 64; i++) {
        if (config[i] != 0) return 0;
    }
    return 1;
}

static void test_release(int weights)
{
    const int isa = EDR_ISA_AMX;
    shop s = open_shop(weights, 1, EDR_STATES_INT8, HIDDEN);
    float logits[CANDIDATES], *asked = exact_room(7 * HIDDEN * 4);
    int64_t at;
    edr_engine_kernels_for(isa)->begin();
    CHECK(!released());
    edr_engine_kernels_for(isa)->end();
    CHECK(released());
    CHECK(encode(&s, &s.items, isa, NULL, s.values, s.scales, &at) == EDR_OK && released());
    CHECK(rank(&s, &s.in, isa, NULL, 0, logits, NULL, &at) == EDR_OK && released());
    CHECK(rank(&s, &s.in, isa, NULL, 1, logits, NULL, &at) == EDR_OK && released()); /* no time at all */
    CHECK(edr_query_rows(&s.m, s.query, 7, isa, s.rooms[0], s.room_size, asked) == EDR_OK && released());
    free(asked);
    close_shop(&s);
}

/* ------------------------------------------------------------------------------------------------------------------ the rows */

typedef struct scored {
    edr_model m;
    rows r;
    void *room;
    float expected[MOST_ROWS];
} scored;

static int score(const scored *s, int isa, float *logits)
{
    return edr_score(&s->m, &s->r.in, 0, MOST_ROWS, isa, s->room, edr_score_room(&s->m), logits) == EDR_OK && released();
}

static int same_again(void *context)
{
    const scored *s = context;
    float logits[MOST_ROWS];
    return score(s, EDR_ISA_AMX, logits) && memcmp(logits, s->expected, sizeof logits) == 0;
}

/* A parent's child scores as its parent does; int8 sums are exact and what follows them is AVX-512's: the same logits to the bit. */
static void test_scores(int weights)
{
    scored s;
    engine_file f = build_file(weights, 1, 1);
    void *mapped, *whole;
    CHECK(edr_model_open(sealed(&f, &mapped), f.size, &s.m, NULL) == EDR_OK);
    make_rows(&s.r, MOST_ROWS, 1, 9);
    s.room = aligned_room(edr_score_room(&s.m), &whole);
    CHECK(score(&s, EDR_ISA_AMX, s.expected));
    CHECK(in_child(same_again, &s) == 1);
    CHECK(same_again(&s));
    float logits[MOST_ROWS];
    CHECK(score(&s, EDR_ISA_AVX512_VNNI, logits));
    CHECK(s.m.bf16 || memcmp(logits, s.expected, sizeof logits) == 0);
    free(whole);
    free_rows(&s.r);
    free(mapped);
    free(f.whole);
}

int main(void)
{
    /* Before this process asks: permission is for good. */
    CHECK(in_child(filtered, NULL) != OFFERED); /* where a filter is not allowed it stays untried */
    CHECK(in_child(cramped, NULL) == REFUSED);
    if (!edr_isa_supported(EDR_ISA_AMX)) {
        printf("no AMX here\n");
        return check_report();
    }
    CHECK(edr_isa_best() == EDR_ISA_AMX && released());
    for (int weights = 0; weights < KINDS_OF_WEIGHTS; weights++) {
        test_release(weights);
        test_scores(weights);
    }
    return check_report();
}
#endif
