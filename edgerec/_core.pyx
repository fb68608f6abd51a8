# cython: language_level=3, boundscheck=False, wraparound=False, initializedcheck=False, embedsignature=False
"""Binding of csrc/edgerec.h. Arrays are checked here once, then C works on their memory; _core.pyi has the documentation."""

import os
from operator import index

cimport cython
cimport numpy as cnp
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_Check, PyBytes_GET_SIZE
from cpython.list cimport PyList_CheckExact, PyList_GET_ITEM, PyList_GET_SIZE
from cpython.mem cimport PyMem_RawFree, PyMem_RawMalloc
from cpython.object cimport PyObject
from cpython.unicode cimport PyUnicode_Check
from libc.stdint cimport int8_t, int32_t, int64_t, uint8_t, uint64_t

from edr cimport *

from edgerec.errors import InputError

cnp.import_array()


cdef extern from "Python.h":
    # Declared here to get NULL back instead of an exception check per call: the caller words the error.
    const char *PyUnicode_AsUTF8AndSize(object text, Py_ssize_t *size) except NULL


cdef enum:
    # Below this many elements a call is over sooner than another thread could take the GIL.
    FEW = 2048
    # Fields of one FeaturePlan.encode call: they are described on the stack.
    MAX_FIELDS = 256
    # Up to this k, topk works on the stack.
    SMALL_K = 256
    SMALL_ROOM = 1536  # EDR_TOPK_ROOM(SMALL_K)


include "_arguments.pxi"


# ---- instruction set ----

cdef int _isa = 0


def set_isa(name):
    global _isa
    cdef int i
    if name == "auto":
        _isa = edr_isa_best()
        return
    for i in range(EDR_ISA_COUNT):
        if edr_isa_name(i).decode() == name:
            if not edr_isa_supported(i):
                raise InputError(f"instruction set {name!r} is not supported by this CPU or build; supported: {', '.join(isas())}")
            _isa = i
            return
    raise InputError(f"unknown instruction set {name!r}; expected auto or one of: {', '.join(isas())} (see EDGEREC_ISA)")


def isas():
    return [edr_isa_name(i).decode() for i in range(EDR_ISA_COUNT) if edr_isa_supported(i)]


def isa():
    return edr_isa_name(_isa).decode()


set_isa(os.environ.get("EDGEREC_ISA") or "auto")


include "_hashes.pxi"


# ---- feature rows ----

@cython.final
cdef class FeaturePlan:
    cdef edr_template[EDR_MAX_TEMPLATES] templates
    cdef int64_t m, v, f
    cdef readonly int fields

    def __init__(self, ops, lefts, rights, seeds, *, buckets, slots):
        cdef const int32_t *op = <int32_t *> _array(ops, cnp.NPY_INT32, "ops", "int32")
        cdef const int32_t *left = <int32_t *> _array(lefts, cnp.NPY_INT32, "lefts", "int32")
        cdef const int32_t *right = <int32_t *> _array(rights, cnp.NPY_INT32, "rights", "int32")
        cdef const uint64_t *seed = <uint64_t *> _array(seeds, cnp.NPY_UINT64, "seeds", "uint64")
        cdef int64_t m = _size(ops), at = -1, i
        if not (_size(lefts) == _size(rights) == _size(seeds) == m):
            raise InputError(f"ops, lefts, rights and seeds must have one length, got {m}, {len(lefts)}, {len(rights)}, {len(seeds)}")
        if m > EDR_MAX_TEMPLATES:
            raise InputError(f"at most {EDR_MAX_TEMPLATES} templates, got {m}")
        self.v = _integer(buckets, "buckets", 1, 2**31 - 1)
        self.f = _integer(slots, "slots", 0, 2**31 - 1)
        self.m = m
        self.fields = 0
        for i in range(m):
            self.templates[i] = edr_template(op[i], left[i], right[i], seed[i])
        cdef int status = edr_templates_check(self.templates, m, MAX_FIELDS, &at)
        if status == EDR_E_VALUE:
            raise InputError(f"ops[{at}] is {op[at]}; expected 0 emit, 1 common, 2 left_only, 3 match or 4 cross")
        if status != EDR_OK:
            raise InputError(f"template {at}: lefts[{at}] is {left[at]}, rights[{at}] is {right[at]}; field numbers are 0 .. {MAX_FIELDS - 1}")
        for i in range(m):
            self.fields = max(self.fields, left[i] + 1, 0 if op[i] == 0 else right[i] + 1)

    def encode(self, fields, rows):
        cdef const int64_t *r = <int64_t *> _array(rows, cnp.NPY_INT64, "rows", "int64")
        cdef int64_t n = _size(rows), at = -1
        cdef edr_field[MAX_FIELDS] c
        cdef int count, i, status
        try:
            held = tuple(fields)  # keeps the arrays alive while the GIL is released
        except TypeError:
            raise InputError(f"fields must be a sequence of (hashes, weights, offsets) tuples, got {type(fields).__name__}") from None
        count = len(held)
        if count < self.fields or count > MAX_FIELDS:
            raise InputError(f"the templates use {self.fields} fields, and at most {MAX_FIELDS} are taken; got {count}")
        for i in range(count):
            _field(held[i], i, &c[i])
        cdef cnp.ndarray ids = _new2(n, self.f, cnp.NPY_INT32), weights = _new2(n, self.f, cnp.NPY_FLOAT32)
        cdef int32_t *to = <int32_t *> cnp.PyArray_DATA(ids)
        cdef float *w = <float *> cnp.PyArray_DATA(weights)
        with nogil:
            status = edr_encode_rows(self.templates, self.m, c, count, r, n, self.v, self.f, to, w, &at)
        if status != EDR_OK:
            _refuse(status, f"rows[{at}] = {r[at]} of {n}" if 0 <= at < n else "fields", at)
        return ids, weights


cdef int _field(object field, int i, edr_field *c) except -1:
    if type(field) is not tuple or not 3 <= len(field) <= 4:
        raise InputError(f"fields[{i}] must be a tuple (hashes, weights or None, offsets or None), got {type(field).__name__}")
    hashes, weights, offsets = field[:3]
    c.weights = NULL
    c.offsets = NULL
    c.table = 0
    c.gap = 0
    try:
        c.hashes = <uint64_t *> _array(hashes, cnp.NPY_UINT64, "hashes", "uint64")
        c.size = _size(hashes)
        if weights is not None:
            c.weights = <float *> _array(weights, cnp.NPY_FLOAT32, "weights", "float32")
            if _size(weights) != c.size:
                raise InputError(f"{c.size} hashes but {len(weights)} weights")
        if offsets is not None:
            c.offsets = _offsets(offsets, "offsets", &c.table)
            if len(field) == 4:
                c.gap = _integer(field[3], "gap", 0, 2**31 - 1)
                c.table = (c.table + c.gap) // (c.gap + 1)
    except InputError as error:
        raise InputError(f"fields[{i}]: {error}") from None
    return 0


include "_rows.pxi"


# ---- identifiers ----

def index_build(hashes):
    cdef const uint64_t *h = <uint64_t *> _array(hashes, cnp.NPY_UINT64, "hashes", "uint64")
    cdef int64_t n = _size(hashes), capacity = edr_index_capacity(n)
    if capacity == 0:
        raise InputError(f"at most 2**30 identifiers fit an index, got {n}")
    cdef cnp.ndarray keys = _new(capacity, cnp.NPY_UINT64), slots = _new(capacity, cnp.NPY_INT32)
    cdef uint64_t *pk = <uint64_t *> cnp.PyArray_DATA(keys)
    cdef int32_t *ps = <int32_t *> cnp.PyArray_DATA(slots)
    with nogil:
        edr_index_build(h, n, pk, ps, capacity)
    return keys, slots


def index_find(keys, slots, id_bytes, id_offsets, ids, seed=0):
    cdef const uint64_t *k = <uint64_t *> _array(keys, cnp.NPY_UINT64, "keys", "uint64")
    cdef const int32_t *s = <int32_t *> _array(slots, cnp.NPY_INT32, "slots", "int32")
    cdef const uint8_t *b = <uint8_t *> _array(id_bytes, cnp.NPY_UINT8, "id_bytes", "uint8")
    cdef int64_t table = 0, at = -1, capacity = _size(keys), size = _size(id_bytes), n, begin, i, count
    cdef const int64_t *o = _offsets(id_offsets, "id_offsets", &table)
    cdef uint64_t hash_seed = _seed(seed)
    if not PyList_CheckExact(ids):
        raise InputError(f"ids must be a list of str, got {type(ids).__name__}")
    if _size(slots) != capacity or capacity < 1 or capacity & (capacity - 1):
        raise InputError(f"keys and slots must have one length, a power of two; got {capacity} and {len(slots)}")
    n = PyList_GET_SIZE(ids)
    cdef cnp.ndarray out = _new(n, cnp.NPY_INT64)
    cdef int64_t *to = <int64_t *> cnp.PyArray_DATA(out)
    cdef edr_slice[EDR_MAX_NAMES] names
    cdef Py_ssize_t length = 0
    cdef int status
    for begin in range(0, n, EDR_MAX_NAMES):
        count = min(n - begin, EDR_MAX_NAMES)
        for i in range(count):
            name = <object> PyList_GET_ITEM(ids, begin + i)
            if not PyUnicode_Check(name):
                raise InputError(f"ids[{begin + i}] must be str, got {type(name).__name__}")
            try:
                names[i].data = <const uint8_t *> PyUnicode_AsUTF8AndSize(name, &length)
                names[i].size = length
            except UnicodeEncodeError:  # has no UTF-8 form, so it is in no table: the C side answers -1
                names[i].data = NULL
                names[i].size = 1
        status = edr_index_find(k, s, capacity, b, size, o, table, names, count, hash_seed, to + begin, &at)
        if status != EDR_OK:
            _refuse(status, f"damaged index of {table} identifiers", at)
    return out


# ---- top-k ----

cdef tuple _finish(edr_topk *top):
    cdef int64_t count = edr_topk_count(top)
    cdef cnp.ndarray indices = _new(count, cnp.NPY_INT64), scores = _new(count, cnp.NPY_FLOAT32)
    edr_topk_finish(top, <int64_t *> cnp.PyArray_DATA(indices), <float *> cnp.PyArray_DATA(scores), &count)
    return indices, scores


def topk(scores, k, mask=None):
    cdef const float *s = <float *> _array(scores, cnp.NPY_FLOAT32, "scores", "float32")
    cdef int64_t n = _size(scores), want = min(_integer(k, "k", 0, EDR_TOPK_MAX_K), n)
    cdef const uint8_t *skip = _mask(mask, n)
    cdef float[SMALL_ROOM] few_scores
    cdef int64_t[SMALL_ROOM] few_indices
    cdef edr_topk top
    if want <= SMALL_K:
        edr_topk_init(&top, want, _isa, few_scores, few_indices, SMALL_ROOM)
        if n <= FEW:
            edr_topk_push(&top, s, skip, n, 0)
        else:
            with nogil:
                edr_topk_push(&top, s, skip, n, 0)
        return _finish(&top)
    selection = TopK(want)
    selection.push(scores, 0, mask)
    return selection.finish()


@cython.final
cdef class TopK:
    cdef edr_topk top
    cdef float *scores
    cdef int64_t *indices
    cdef bint busy

    def __init__(self, k):
        cdef int64_t want = _integer(k, "k", 0, EDR_TOPK_MAX_K), room = EDR_TOPK_ROOM(want)
        if self.scores != NULL:
            raise InputError("this TopK has its k already; make a new one")
        self.scores = <float *> PyMem_RawMalloc(room * sizeof(float))
        self.indices = <int64_t *> PyMem_RawMalloc(room * sizeof(int64_t))
        if self.scores == NULL or self.indices == NULL:
            raise MemoryError(f"no memory for a top-k of k = {want}")
        edr_topk_init(&self.top, want, _isa, self.scores, self.indices, room)

    def __dealloc__(self):
        PyMem_RawFree(self.scores)
        PyMem_RawFree(self.indices)

    cdef int claim(self) except -1:
        # Threads that share a selection would write one buffer at once, with the GIL released.
        if self.busy:
            raise InputError("this TopK is in use by another thread; use one TopK per thread")
        self.busy = True
        return 0

    def push(self, scores, start=0, mask=None):
        cdef const float *s = <float *> _array(scores, cnp.NPY_FLOAT32, "scores", "float32")
        cdef int64_t n = _size(scores), first = _integer(start, "start", 0, 2**62)
        cdef const uint8_t *skip = _mask(mask, n)
        self.claim()
        with nogil:
            edr_topk_push(&self.top, s, skip, n, first)
        self.busy = False

    def push_at(self, scores, indices):
        cdef const float *s = <float *> _array(scores, cnp.NPY_FLOAT32, "scores", "float32")
        cdef const int64_t *x = <int64_t *> _array(indices, cnp.NPY_INT64, "indices", "int64")
        cdef int64_t n = _size(scores), i, nans = 0
        if _size(indices) != n:
            raise InputError(f"indices must have as many entries as scores ({n}), got {len(indices)}")
        self.claim()
        with nogil:
            edr_topk_push_at(&self.top, s, x, n)
            for i in range(n):
                nans += s[i] != s[i]
        self.busy = False
        return nans

    def finish(self):
        self.claim()
        try:
            return _finish(&self.top)
        finally:
            self.busy = False


# ---- scan ----

def scan(query, query_scale, vectors, scales):
    cdef const int8_t *q = <int8_t *> _array(query, cnp.NPY_INT8, "query", "int8")
    cdef const int8_t *v = <int8_t *> _array(vectors, cnp.NPY_INT8, "vectors", "int8")
    cdef const float *s = <float *> _array(scales, cnp.NPY_FLOAT32, "scales", "float32")
    cdef int64_t width = _size(query), n = _size(scales)
    cdef float factor
    try:
        factor = query_scale
    except TypeError:
        raise InputError(f"query_scale must be a number, got {type(query_scale).__name__}") from None
    if not 1 <= width <= EDR_SCAN_MAX_WIDTH or _size(vectors) != n * width:
        raise InputError(
            f"query must have 1 .. {EDR_SCAN_MAX_WIDTH} numbers and vectors as many for each of the {n} scales; got {width} and {len(vectors)}"
        )
    cdef cnp.ndarray scores = _new(n, cnp.NPY_FLOAT32)
    cdef float *to = <float *> cnp.PyArray_DATA(scores)
    with nogil:
        edr_scan(q, factor, v, s, n, width, _isa, to)
    return scores
