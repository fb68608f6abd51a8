# cython: language_level=3, boundscheck=False, wraparound=False, initializedcheck=False, embedsignature=False
"""Binding of csrc/edr_wordpiece.h; _wordpiece.pyi has the documentation."""

from operator import index

cimport cython
cimport numpy as cnp
from cpython.buffer cimport PyBUF_SIMPLE, PyBuffer_Release, PyObject_GetBuffer
from cpython.unicode cimport PyUnicode_AsUTF8AndSize
from libc.stdint cimport int32_t, int64_t, uint8_t, uint64_t
from libc.stdlib cimport free, malloc
from libc.string cimport memcpy

from edr cimport *
from edr_wordpiece cimport *

from edgerec.errors import InputError

cnp.import_array()

include "_arguments.pxi"

SECTIONS = ("config", "blocks", "points", "runs", "slots", "places", "letters", "ids", "added.places", "added")


cdef const char *_utf8(object text, int64_t *size) except NULL:
    """The text's bytes, which it keeps for as long as it lives."""
    cdef Py_ssize_t length = 0
    if not isinstance(text, str):
        raise InputError(f"expected text as str, got {type(text).__name__}")
    try:
        found = PyUnicode_AsUTF8AndSize(text, &length)
    except UnicodeEncodeError as error:
        raise InputError(f"text must have no lone surrogates: {error}") from None
    size[0] = length
    return found


cdef class _Room:
    """What one call of encode_all needs: where the texts are, how long, and room for their ids."""
    cdef const char **texts
    cdef int64_t *sizes
    cdef int32_t *ids
    cdef int64_t count, room

    def __cinit__(self, int64_t n):
        self.count = n
        self.texts = <const char **> malloc((n + 1) * sizeof(char *))
        self.sizes = <int64_t *> malloc((n + 1) * sizeof(int64_t))
        if self.texts is NULL or self.sizes is NULL:
            raise MemoryError(f"a list of {n} texts")

    cdef int reserve(self, int64_t room) except -1:
        self.room = room
        self.ids = <int32_t *> malloc((room + 1) * sizeof(int32_t))
        if self.ids is NULL:
            raise MemoryError(f"room for {room} token ids; encode fewer texts at once")
        return 0

    def __dealloc__(self):
        free(self.texts)
        free(self.sizes)
        free(self.ids)


@cython.final
cdef class Wordpiece:
    cdef edr_wordpiece w
    cdef Py_buffer data
    cdef bint mapped

    def __cinit__(self, data):
        cdef int64_t at = -1
        PyObject_GetBuffer(data, &self.data, PyBUF_SIMPLE)
        self.mapped = True
        cdef int status = edr_wordpiece_open(self.data.buf, self.data.len, &self.w, &at)
        if status != EDR_OK:
            where = f"section {SECTIONS[at]!r}, or one it must fit" if at >= 0 else "header or table of sections"
            raise InputError(f"{where}: {edr_status_text(status).decode()}")

    def __dealloc__(self):
        if self.mapped:
            PyBuffer_Release(&self.data)

    def encode(self, text, limit):
        cdef int64_t size = 0, count = 0, most = _integer(limit, "limit", 0, (1 << 31) - 1)
        cdef const char *found = _utf8(text, &size)
        most = min(most, size * self.w.longest_run)
        # The ids of a query fit here; those of a long text get memory of their own.
        cdef int32_t[256] few
        cdef int32_t *ids = few
        cdef _Room room
        if most > 256:
            room = _Room(0)
            room.reserve(most)
            ids = room.ids
        cdef int status = edr_wordpiece_encode(&self.w, found, size, most, ids, &count)
        if status != EDR_OK:
            _refuse(status, "text", -1)
        if count == EDR_ASK:
            return None
        cdef cnp.ndarray result = _new(count, cnp.NPY_INT32)
        memcpy(cnp.PyArray_DATA(result), ids, count * sizeof(int32_t))
        return result

    def encode_all(self, texts, limit):
        # A tuple of our own keeps every text, and so its bytes, alive while the GIL is released.
        cdef tuple kept = tuple(texts)
        cdef int64_t n = len(kept), most = _integer(limit, "limit", 0, (1 << 31) - 1), i, needed = 0, at = -1
        cdef _Room room = _Room(n)
        for i in range(n):
            room.texts[i] = _utf8(kept[i], &room.sizes[i])
            needed += min(most, room.sizes[i] * self.w.longest_run)
        room.reserve(needed)
        cdef cnp.ndarray offsets = _new(n + 1, cnp.NPY_INT64), asked = _new(n, cnp.NPY_BOOL)
        cdef int64_t *to = <int64_t *> cnp.PyArray_DATA(offsets)
        cdef uint8_t *marks = <uint8_t *> cnp.PyArray_DATA(asked)
        cdef int status
        with nogil:
            status = edr_wordpiece_encode_all(&self.w, room.texts, room.sizes, n, most, room.ids, needed, to, marks, &at)
        if status != EDR_OK:
            _refuse(status, "texts", at)
        cdef cnp.ndarray ids = _new(to[n], cnp.NPY_INT32)
        memcpy(cnp.PyArray_DATA(ids), room.ids, to[n] * sizeof(int32_t))
        return ids, offsets, asked
