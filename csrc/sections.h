/* sections.h: a section file (docs/formats.md) in memory: its table checked, its sections found by name. */
#ifndef EDGEREC_SECTIONS_H
#define EDGEREC_SECTIONS_H

#include "internal.h"

enum { EDR_SECTION_HEADER = 64, EDR_SECTION_ENTRY = 128, EDR_SECTION_NAME = 32, EDR_SECTION_COUNT = 4096 };
enum { EDR_UINT8 = 1, EDR_UINT16 = 3, EDR_INT32 = 5, EDR_UINT32 = 6 };

/* The file, and the first fault found: after one, every look-up does nothing, so that callers check once. */
typedef struct edr_sections {
    const uint8_t *data;
    int64_t size, count;
    int64_t asked; /* how many sections were looked for */
    edr_status status;
} edr_sections;

static inline uint64_t edr_u64_at(const uint8_t *p)
{
    uint64_t value;
    memcpy(&value, p, 8);
    return value;
}

static inline uint32_t edr_u32_at(const uint8_t *p)
{
    uint32_t value;
    memcpy(&value, p, 4);
    return value;
}

/* Header and table. Sections lie behind the table, in its order, and do not overlap. */
static inline edr_status edr_sections_open(const void *data, int64_t size, edr_sections *in)
{
    *in = (edr_sections){.data = data, .size = size};
    if (size < EDR_SECTION_HEADER || (uintptr_t)data % 64 != 0) return EDR_E_SIZE;
    in->count = edr_u32_at(in->data + 12);
    if (memcmp(in->data, "EDRSECT1", 8) != 0 || edr_u32_at(in->data + 8) != 1) return EDR_E_VALUE;
    if (edr_u64_at(in->data + 16) != (uint64_t)size || in->count > EDR_SECTION_COUNT) return EDR_E_SIZE;
    if (in->count > (size - EDR_SECTION_HEADER) / EDR_SECTION_ENTRY) return EDR_E_SIZE;
    uint64_t end = (uint64_t)(EDR_SECTION_HEADER + in->count * EDR_SECTION_ENTRY);
    for (int64_t i = 0; i < in->count; i++) {
        const uint8_t *entry = in->data + EDR_SECTION_HEADER + i * EDR_SECTION_ENTRY;
        const uint64_t offset = edr_u64_at(entry + 72), bytes = edr_u64_at(entry + 80);
        if (offset % 64 != 0 || offset < end || offset > (uint64_t)size || bytes > (uint64_t)size - offset) return EDR_E_OFFSETS;
        end = offset + bytes;
    }
    return EDR_OK;
}

/* The data of a section of this dtype, and how many numbers of it there are; NULL after a fault. */
static inline const void *edr_section(edr_sections *in, const char *name, uint32_t dtype, int64_t *numbers)
{
    *numbers = 0;
    if (in->status != EDR_OK) return NULL;
    in->asked++;
    char label[EDR_SECTION_NAME] = {0};
    for (int i = 0; i < EDR_SECTION_NAME && name[i] != 0; i++) label[i] = name[i];
    const uint8_t *found = NULL;
    for (int64_t i = 0; i < in->count; i++) {
        const uint8_t *entry = in->data + EDR_SECTION_HEADER + i * EDR_SECTION_ENTRY;
        if (memcmp(entry, label, EDR_SECTION_NAME) != 0) continue;
        if (found != NULL) in->status = EDR_E_OFFSETS;
        found = entry;
    }
    const uint64_t width = dtype == EDR_UINT8 ? 1 : dtype == EDR_UINT16 ? 2 : 4;
    if (found == NULL || in->status != EDR_OK) {
        in->status = EDR_E_OFFSETS;
    } else if (edr_u32_at(found + 32) != dtype || edr_u64_at(found + 80) % width != 0) {
        in->status = EDR_E_VALUE;
    }
    if (in->status != EDR_OK) return NULL;
    *numbers = (int64_t)(edr_u64_at(found + 80) / width); /* within the file: edr_sections_open */
    return in->data + edr_u64_at(found + 72);
}

#endif
