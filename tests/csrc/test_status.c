/* cc -std=c11 -g -fsanitize=address,undefined -Icsrc tests/csrc/test_status.c csrc/status.c -o test_status */
#include "check.h"

int main(void)
{
    for (int status = EDR_OK; status <= EDR_E_ISA; status++) {
        CHECK(edr_status_text(status) != NULL);
        CHECK(strcmp(edr_status_text(status), edr_status_text(-1)) != 0);
        for (int other = EDR_OK; other < status; other++) CHECK(strcmp(edr_status_text(status), edr_status_text(other)) != 0);
    }
    CHECK(strcmp(edr_status_text(EDR_E_ISA + 1), "unknown status") == 0);
    CHECK(strcmp(edr_status_text(-1), "unknown status") == 0);
    return check_report();
}
