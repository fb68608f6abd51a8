# Token rows: their order, and packing. Part of _core.pyx: names come from there.

def longest_first(offsets, rows, cap):
    cdef const int64_t *r = <int64_t *> _array(rows, cnp.NPY_INT64, "rows", "int64")
    cdef int64_t table = 0, n = _size(rows), at = -1, most = _integer(cap, "cap", 0, 2**31 - 1)
    cdef const int64_t *begin = _offsets(offsets, "offsets", &table)
    cdef int64_t size = begin[table]
    most = max(0, min(most, size))  # no item has more tokens than all together
    cdef cnp.ndarray order = _new(n, cnp.NPY_INT64), lengths = _new(n, cnp.NPY_INT64), counts = _new(most + 1, cnp.NPY_INT64)
    cdef int64_t *po = <int64_t *> cnp.PyArray_DATA(order)
    cdef int64_t *pl = <int64_t *> cnp.PyArray_DATA(lengths)
    cdef int64_t *pc = <int64_t *> cnp.PyArray_DATA(counts)
    cdef int status
    with nogil:
        status = edr_longest_first(size, begin, table, r, n, most, pc, po, pl, &at)
    if status != EDR_OK:
        _refuse(status, f"rows of a table of {table} items", at)
    return order, lengths


def pack_pairs(query, tokens, offsets, rows, *, prefix, middle, suffix, pad_id, query_type, item_type, max_tokens, width=None):
    cdef edr_pair_frame frame
    frame.query = <int32_t *> _array(query, cnp.NPY_INT32, "query", "int32")
    frame.prefix = <int32_t *> _array(prefix, cnp.NPY_INT32, "prefix", "int32")
    frame.middle = <int32_t *> _array(middle, cnp.NPY_INT32, "middle", "int32")
    frame.suffix = <int32_t *> _array(suffix, cnp.NPY_INT32, "suffix", "int32")
    frame.query_size, frame.prefix_size, frame.middle_size, frame.suffix_size = _size(query), _size(prefix), _size(middle), _size(suffix)
    frame.pad_id = _integer(pad_id, "pad_id", -(2**31), 2**31 - 1)
    frame.query_type = _integer(query_type, "query_type", -(2**31), 2**31 - 1)
    frame.item_type = _integer(item_type, "item_type", -(2**31), 2**31 - 1)
    frame.max_tokens = _integer(max_tokens, "max_tokens", 0, 2**31 - 1)
    cdef const int32_t *t = <int32_t *> _array(tokens, cnp.NPY_INT32, "tokens", "int32")
    cdef const int64_t *r = <int64_t *> _array(rows, cnp.NPY_INT64, "rows", "int64")
    cdef int64_t table = 0, n = _size(rows), size = _size(tokens), at = -1, needed = 0, w
    cdef const int64_t *begin = _offsets(offsets, "offsets", &table)
    cdef int status = edr_pack_width(&frame, size, begin, table, r, n, &needed, &at)
    if status == EDR_E_SPACE:
        fixed = len(prefix) + len(query) + len(middle) + len(suffix)
        raise InputError(f"prefix + query + middle + suffix are {fixed} tokens, more than max_tokens = {max_tokens}; shorten the query")
    if status != EDR_OK:
        _refuse(status, f"rows of a table of {table} items", at)
    w = needed if width is None else _integer(width, "width", 0, 2**31 - 1)
    if w < needed:
        raise InputError(f"width {w} is less than the longest row, {needed} tokens")
    cdef cnp.ndarray ids = _new2(n, w, cnp.NPY_INT32), mask = _new2(n, w, cnp.NPY_INT32), types = _new2(n, w, cnp.NPY_INT32)
    cdef int32_t *pi = <int32_t *> cnp.PyArray_DATA(ids)
    cdef int32_t *pm = <int32_t *> cnp.PyArray_DATA(mask)
    cdef int32_t *pt = <int32_t *> cnp.PyArray_DATA(types)
    with nogil:
        status = edr_pack_pairs(&frame, t, size, begin, table, r, n, w, pi, pm, pt, &at)
    if status != EDR_OK:
        _refuse(status, "rows changed while they were packed", at)
    return ids, mask, types
