/* status.c: what a status says. */
#include "edgerec.h"

const char *edr_status_text(int status)
{
    switch (status) {
    case EDR_OK: return "ok";
    case EDR_E_NULL: return "a required pointer is NULL";
    case EDR_E_SIZE: return "a size is negative, too large, or does not agree with another";
    case EDR_E_OFFSETS: return "offsets decrease or point outside their data";
    case EDR_E_ROW: return "a row number is outside its table";
    case EDR_E_VALUE: return "a value is outside its range";
    case EDR_E_SPACE: return "a buffer or width is too small";
    case EDR_E_ISA: return "this CPU or build has no such instruction set";
    default: return "unknown status";
    }
}
