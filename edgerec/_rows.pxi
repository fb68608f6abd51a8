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


cdef int _refuse_rows(int status, const edr_pair_frame *frame, int64_t table, int64_t at) except -1:
    if status == EDR_E_SPACE:
        fixed = frame.prefix_size + frame.query_size + frame.middle_size + frame.suffix_size
        raise InputError(f"prefix + query + middle + suffix are {fixed} tokens, more than max_tokens = {frame.max_tokens}; shorten the query")
    _refuse(status, f"rows of a table of {table} items", at)


@cython.final
cdef class PairFrame:
    cdef edr_pair_frame shared
    cdef object held  # the arrays that `shared` points into

    def __init__(self, prefix, middle, suffix, *, pad_id, query_type, item_type, max_tokens):
        if self.held is not None:
            raise InputError("this PairFrame has its parts already; make a new one")
        for part, name in ((prefix, "prefix"), (middle, "middle"), (suffix, "suffix")):
            _array(part, cnp.NPY_INT32, name, "int32")
        self.shared.pad_id = _integer(pad_id, "pad_id", -(2**31), 2**31 - 1)
        self.shared.query_type = _integer(query_type, "query_type", -(2**31), 2**31 - 1)
        self.shared.item_type = _integer(item_type, "item_type", -(2**31), 2**31 - 1)
        self.shared.max_tokens = _integer(max_tokens, "max_tokens", 0, 2**31 - 1)
        prefix, middle, suffix = self.held = (prefix.copy(), middle.copy(), suffix.copy())
        self.shared.prefix, self.shared.prefix_size = <int32_t *> cnp.PyArray_DATA(prefix), _size(prefix)
        self.shared.middle, self.shared.middle_size = <int32_t *> cnp.PyArray_DATA(middle), _size(middle)
        self.shared.suffix, self.shared.suffix_size = <int32_t *> cnp.PyArray_DATA(suffix), _size(suffix)

    def pack(self, query, tokens, offsets, rows, width=None):
        cdef edr_pair_frame frame = self.shared
        frame.query, frame.query_size = <int32_t *> _array(query, cnp.NPY_INT32, "query", "int32"), _size(query)
        cdef const int32_t *t = <int32_t *> _array(tokens, cnp.NPY_INT32, "tokens", "int32")
        cdef const int64_t *r = <int64_t *> _array(rows, cnp.NPY_INT64, "rows", "int64")
        cdef int64_t table = 0, n = _size(rows), size = _size(tokens), at = -1, needed = 0, w
        cdef const int64_t *begin = _offsets(offsets, "offsets", &table)
        cdef int status = edr_pack_width(&frame, size, begin, table, r, n, &needed, &at)
        if status != EDR_OK:
            _refuse_rows(status, &frame, table, at)
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

    def pack_ragged(self, query, tokens, offsets, rows):
        cdef edr_pair_frame frame = self.shared
        frame.query, frame.query_size = <int32_t *> _array(query, cnp.NPY_INT32, "query", "int32"), _size(query)
        cdef const int32_t *t = <int32_t *> _array(tokens, cnp.NPY_INT32, "tokens", "int32")
        cdef const int64_t *r = <int64_t *> _array(rows, cnp.NPY_INT64, "rows", "int64")
        cdef int64_t table = 0, n = _size(rows), size = _size(tokens), at = -1, total = 0
        cdef const int64_t *begin = _offsets(offsets, "offsets", &table)
        cdef int status = edr_ragged_size(&frame, size, begin, table, r, n, &total, &at)
        if status != EDR_OK:
            _refuse_rows(status, &frame, table, at)
        cdef cnp.ndarray ids = _new(total, cnp.NPY_INT32), types = _new(total, cnp.NPY_INT32)
        cdef cnp.ndarray starts = _new(n, cnp.NPY_INT64), lengths = _new(n, cnp.NPY_INT64)
        cdef int32_t *pi = <int32_t *> cnp.PyArray_DATA(ids)
        cdef int32_t *pt = <int32_t *> cnp.PyArray_DATA(types)
        cdef int64_t *ps = <int64_t *> cnp.PyArray_DATA(starts)
        cdef int64_t *pl = <int64_t *> cnp.PyArray_DATA(lengths)
        with nogil:
            status = edr_pack_ragged(&frame, t, size, begin, table, r, n, total, pi, pt, ps, pl, &at)
        if status != EDR_OK:
            _refuse(status, "rows changed while they were packed", at)
        return ids, types, starts, lengths
