# Hashes of strings and trigrams, and sets of them in order. Part of _core.pyx: names come from there.

cdef const char *_utf8(object value, str name, int64_t i, Py_ssize_t *size) except NULL:
    if not PyUnicode_Check(value):
        raise InputError(f"{name}[{i}] must be str, got {type(value).__name__}")
    try:
        return PyUnicode_AsUTF8AndSize(value, size)
    except UnicodeEncodeError as error:
        raise InputError(f"{name}[{i}] cannot be encoded as UTF-8: {error}; replace lone surrogates first") from None


def hash64(data, seed=0):
    if not PyBytes_Check(data):
        raise InputError(f"data must be bytes, got {type(data).__name__}")
    return edr_hash64(PyBytes_AS_STRING(data), PyBytes_GET_SIZE(data), _seed(seed))


def hash_strings(values, seed=0, prefix=b""):
    # The GIL is kept: strings belong to the interpreter, and another thread could change the list.
    if not PyList_CheckExact(values):
        raise InputError(f"values must be a list of str, got {type(values).__name__}")
    if not PyBytes_Check(prefix):
        raise InputError(f"prefix must be bytes, got {type(prefix).__name__}")
    cdef int64_t n = PyList_GET_SIZE(values), i
    cdef uint64_t s = _seed(seed)
    cdef const char *head = PyBytes_AS_STRING(prefix)
    cdef size_t head_size = PyBytes_GET_SIZE(prefix)
    cdef cnp.ndarray out = _new(n, cnp.NPY_UINT64)
    cdef uint64_t *to = <uint64_t *> cnp.PyArray_DATA(out)
    cdef Py_ssize_t size = 0
    cdef const char *text
    for i in range(n):
        text = _utf8(<object> PyList_GET_ITEM(values, i), "values", i, &size)
        to[i] = edr_hash64_pair(head, head_size, text, size, s)
    return out


def hash_trigrams(texts, seed=0, prefix=b""):
    # The GIL is kept, as in hash_strings.
    if not PyList_CheckExact(texts):
        raise InputError(f"texts must be a list of str, got {type(texts).__name__}")
    if not PyBytes_Check(prefix):
        raise InputError(f"prefix must be bytes, got {type(prefix).__name__}")
    cdef tuple held = tuple(texts)  # as many bytes in the second loop as in the first
    cdef int64_t n = len(held), i, room = 0, total = 0, found = 0, at = -1
    cdef uint64_t s = _seed(seed)
    cdef Py_ssize_t size = 0
    cdef const char *text
    for i in range(n):
        _utf8(held[i], "texts", i, &size)
        room += size
    cdef cnp.ndarray out = _new(room, cnp.NPY_UINT64), counts = _new(n, cnp.NPY_INT64)
    cdef uint64_t *to = <uint64_t *> cnp.PyArray_DATA(out)
    cdef int64_t *count = <int64_t *> cnp.PyArray_DATA(counts)
    cdef const char *head = PyBytes_AS_STRING(prefix)
    cdef size_t head_size = PyBytes_GET_SIZE(prefix)
    cdef int status
    for i in range(n):
        text = _utf8(held[i], "texts", i, &size)
        status = edr_hash_trigrams(<const uint8_t *> text, size, head, head_size, s, to + total, &found, &at)
        if status != EDR_OK:
            _refuse(status, f"texts[{i}]", at)
        count[i] = found
        total += found
    return out[:total].copy(), counts


def hash_packed(data, offsets, seed=0):
    cdef const uint8_t *bytes_ = <uint8_t *> _array(data, cnp.NPY_UINT8, "data", "uint8")
    cdef int64_t m = 0, at = -1, size = _size(data)
    cdef const int64_t *begin = _offsets(offsets, "offsets", &m)
    cdef uint64_t s = _seed(seed)
    cdef cnp.ndarray out = _new(m, cnp.NPY_UINT64)
    cdef uint64_t *to = <uint64_t *> cnp.PyArray_DATA(out)
    cdef int status
    with nogil:
        status = edr_hash_packed(bytes_, size, begin, m, s, to, &at)
    if status != EDR_OK:
        _refuse(status, f"offsets for {size} bytes of data", at)
    return out


def project(hashes, buckets):
    cdef const uint64_t *h = <uint64_t *> _array(hashes, cnp.NPY_UINT64, "hashes", "uint64")
    cdef int64_t v = _integer(buckets, "buckets", 1, 2**31 - 1), n = _size(hashes)
    cdef cnp.ndarray ids = _new(n, cnp.NPY_INT32), signs = _new(n, cnp.NPY_FLOAT32)
    cdef int32_t *to = <int32_t *> cnp.PyArray_DATA(ids)
    cdef float *sign = <float *> cnp.PyArray_DATA(signs)
    with nogil:
        edr_project(h, n, v, to, sign)
    return ids, signs


def sort_unique(hashes, weights=None):
    _array(hashes, cnp.NPY_UINT64, "hashes", "uint64")
    cdef int64_t n = _size(hashes), kept = 0, at = -1
    cdef cnp.ndarray h = hashes.copy(), room_h = _new(n, cnp.NPY_UINT64), w, room_w
    cdef uint64_t *ph = <uint64_t *> cnp.PyArray_DATA(h)
    cdef uint64_t *prh = <uint64_t *> cnp.PyArray_DATA(room_h)
    cdef float *pw = NULL
    cdef float *prw = NULL
    if weights is not None:
        _array(weights, cnp.NPY_FLOAT32, "weights", "float32")
        if _size(weights) != n:
            raise InputError(f"weights must have as many entries as hashes ({n}), got {len(weights)}")
        w = weights.copy()
        room_w = _new(n, cnp.NPY_FLOAT32)
        pw = <float *> cnp.PyArray_DATA(w)
        prw = <float *> cnp.PyArray_DATA(room_w)
    cdef int status
    with nogil:
        status = edr_sort_unique(ph, pw, n, prh, prw, &kept, &at)
    if status != EDR_OK:
        raise InputError(f"weights[{at}] is {weights[at]}; weights must be finite")
    return h[:kept].copy(), (None if weights is None else w[:kept].copy())


def sort_unique_rows(hashes, counts):
    _array(hashes, cnp.NPY_UINT64, "hashes", "uint64")
    _array(counts, cnp.NPY_INT64, "counts", "int64")
    cdef int64_t n = _size(hashes), rows = _size(counts), kept = 0, at = -1
    cdef cnp.ndarray h = hashes.copy(), room = _new(n, cnp.NPY_UINT64), left = counts.copy()
    cdef uint64_t *ph = <uint64_t *> cnp.PyArray_DATA(h)
    cdef uint64_t *pr = <uint64_t *> cnp.PyArray_DATA(room)
    cdef int64_t *pc = <int64_t *> cnp.PyArray_DATA(left)
    cdef int status
    with nogil:
        status = edr_sort_unique_rows(ph, n, pc, rows, pr, &kept, &at)
    if status != EDR_OK:
        _refuse(status, f"counts for {n} hashes", at)
    return h[:kept].copy(), left
