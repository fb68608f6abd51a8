# What _core.pyx asks of its arguments, and the arrays that it makes. Part of _core.pyx: names come from there.

cdef int _refuse(int status, str what, int64_t at) except -1:
    raise InputError(f"{what}: {edr_status_text(status).decode()}" + (f" (at position {at})" if at >= 0 else ""))


cdef int64_t _integer(object value, str name, object low, object high) except? -1:
    """value as an integer in low .. high; a float is refused even when it is whole."""
    try:
        number = index(value)
    except TypeError:
        raise InputError(f"{name} must be an integer, got {type(value).__name__} {value!r:.80}") from None
    if not low <= number <= high:
        raise InputError(f"{name} must be in {low} .. {high}, got {number}")
    return number


cdef uint64_t _seed(object value) except? 7:
    try:
        number = index(value)
    except TypeError:
        raise InputError(f"seed must be an integer, got {type(value).__name__} {value!r:.80}") from None
    if not 0 <= number < 1 << 64:
        raise InputError(f"seed must be in 0 .. 2**64 - 1, got {number}")
    return number


cdef void *_array(object a, int typenum, str name, str dtype) except NULL:
    """The memory of a 1-D, C-contiguous, aligned, native array of the given type."""
    if not cnp.PyArray_Check(a):
        raise InputError(f"{name} must be a numpy array of {dtype}, got {type(a).__name__}")
    if cnp.PyArray_TYPE(a) != typenum and a.dtype != dtype:
        raise InputError(f"{name} must have dtype {dtype}, got {a.dtype}; convert it with {name}.astype('{dtype}')")
    if cnp.PyArray_NDIM(a) != 1:
        raise InputError(f"{name} must have one dimension, got shape {a.shape}")
    if not cnp.PyArray_ISCARRAY_RO(a):
        raise InputError(f"{name} must be C-contiguous, aligned and in native byte order; use np.ascontiguousarray(..., dtype='{dtype}')")
    return cnp.PyArray_DATA(a)


cdef int64_t *_offsets(object a, str name, int64_t *table) except NULL:
    cdef int64_t *data = <int64_t *> _array(a, cnp.NPY_INT64, name, "int64")
    if cnp.PyArray_DIM(a, 0) < 1:
        raise InputError(f"{name} must have at least one entry (n + 1 offsets for n strings or sets), got none")
    table[0] = cnp.PyArray_DIM(a, 0) - 1
    return data


cdef uint8_t *_mask(object a, int64_t n) except? NULL:
    if a is None:
        return NULL
    cdef int typenum = cnp.NPY_BOOL if cnp.PyArray_Check(a) and cnp.PyArray_TYPE(a) == cnp.NPY_BOOL else cnp.NPY_UINT8
    cdef void *data = _array(a, typenum, "mask", "bool" if typenum == cnp.NPY_BOOL else "uint8")
    if cnp.PyArray_DIM(a, 0) != n:
        raise InputError(f"mask must have as many entries as scores ({n}), got {len(a)}")
    return <uint8_t *> data


cdef int64_t _size(object a) noexcept:
    return cnp.PyArray_DIM(a, 0)


cdef cnp.ndarray _new(int64_t n, int typenum):
    cdef cnp.npy_intp shape = n
    return cnp.PyArray_EMPTY(1, &shape, typenum, 0)


cdef cnp.ndarray _new2(int64_t n, int64_t m, int typenum):
    cdef cnp.npy_intp[2] shape
    shape[0] = n
    shape[1] = m
    return cnp.PyArray_EMPTY(2, shape, typenum, 0)
