# cython: language_level=3, boundscheck=False, wraparound=False, initializedcheck=False, embedsignature=False
"""Binding of csrc/edr_engine.h: a model, its threads and their workspaces; _native.pyi has the documentation."""

from operator import index

cimport cython
cimport numpy as cnp
from cpython.buffer cimport PyBUF_SIMPLE, PyBuffer_Release, PyObject_GetBuffer
from libc.stdint cimport int32_t, int64_t, uint8_t, uint64_t, uintptr_t
from libc.stdlib cimport calloc, free, malloc
from posix.unistd cimport getpid

from edr cimport *
from edr_engine cimport *
from edr_gather cimport *

from edgerec.errors import InputError

cnp.import_array()

include "_arguments.pxi"


def row_lengths(mask):
    if not cnp.PyArray_Check(mask) or mask.ndim != 2:
        raise InputError(f"mask must be a numpy array of int32 with two dimensions, got {type(mask).__name__}")
    cdef int64_t rows = mask.shape[0], width = mask.shape[1], at = -1
    flat = mask.reshape(-1)
    cdef const int32_t *m = <int32_t *> _array(flat, cnp.NPY_INT32, "mask", "int32")
    cdef cnp.ndarray lengths = _new(rows, cnp.NPY_INT64)
    if edr_row_lengths(m, rows, width, <int64_t *> cnp.PyArray_DATA(lengths), &at) != EDR_OK:
        raise InputError(f"attention_mask: row {at} must be ones, at least one, and then zeros")
    return lengths


def gather_states(tables, starts, lengths, *, tokens, groups, width, number):
    cdef edr_gather_job job
    cdef int64_t one = _integer(groups, "groups", 1, 1 << 16) * _integer(width, "width", 1, 1 << 16)
    kinds = {"float32": (0, cnp.NPY_FLOAT32), "int8": (1, cnp.NPY_INT8), "float16": (2, cnp.NPY_FLOAT16)}
    numbers = {"fp32": 0, "fp16": 2, "bf16": 3}
    (values, scales), (others, their_scales) = tables
    kind = str(getattr(values, "dtype", type(values).__name__))
    if kind not in kinds or number not in numbers:
        raise InputError(f"values are {kind} and number is {number!r:.40}; expected one of {', '.join(kinds)}, and of {', '.join(numbers)}")
    job.stored, job.number = kinds[kind][0], numbers[number]
    for place, (of_values, of_scales) in enumerate(((values, scales), (others, their_scales))):
        job.tables[place].values = _array(of_values, kinds[kind][1], "values", kind)
        job.tables[place].scales = <float *> _array(of_scales, cnp.NPY_FLOAT32, "scales", "float32")
        job.totals[place] = _size(of_values) // one
        if kind == "int8" and _size(of_scales) < job.totals[place] * <int64_t> groups:
            raise InputError(f"{_size(of_scales)} scales for {job.totals[place]} tokens of {groups}")
    _integer(one, "groups * width", 1, 1 << 16)
    job.starts = <int64_t *> _array(starts, cnp.NPY_INT64, "starts", "int64")
    job.lengths = <int32_t *> _array(lengths, cnp.NPY_INT32, "lengths", "int32")
    job.rows, job.tokens, job.groups, job.width = _size(starts), _integer(tokens, "tokens", 0, 1 << 16), groups, width
    if _size(lengths) != job.rows:
        raise InputError(f"{_size(lengths)} lengths for {job.rows} starts")
    cdef cnp.ndarray out = _new(job.rows * job.tokens * one, cnp.NPY_FLOAT32 if number == "fp32" else cnp.NPY_UINT16)
    job.out = cnp.PyArray_DATA(out)
    cdef int status
    with nogil:
        status = edr_gather_states(&job)
    if status != EDR_OK:
        _refuse(status, "gather", -1)
    return out.reshape(job.rows, job.tokens, one)


def gather_pairs(tables, starts, lengths, frame, *, tokens):
    cdef edr_pairs_job job
    for place in range(2):
        job.tables[place] = <int32_t *> _array(tables[place], cnp.NPY_INT32, "tables", "int32")
        job.totals[place] = _size(tables[place])
    job.starts = <int64_t *> _array(starts, cnp.NPY_INT64, "starts", "int64")
    job.lengths = <int32_t *> _array(lengths, cnp.NPY_INT32, "lengths", "int32")
    job.frame = <int32_t *> _array(frame, cnp.NPY_INT32, "frame", "int32")
    job.frame_size, job.rows, job.tokens = _size(frame), _size(starts), _integer(tokens, "tokens", 0, 1 << 16)
    if _size(lengths) != job.rows:
        raise InputError(f"{_size(lengths)} lengths for {job.rows} starts")
    outputs = [_new(job.rows * job.tokens, cnp.NPY_INT32) for _ in range(3)]
    job.ids = <int32_t *> cnp.PyArray_DATA(outputs[0])
    job.mask = <int32_t *> cnp.PyArray_DATA(outputs[1])
    job.types = <int32_t *> cnp.PyArray_DATA(outputs[2])
    cdef int status
    with nogil:
        status = edr_gather_pairs(&job)
    if status != EDR_OK:
        _refuse(status, "gather", -1)
    return tuple(one.reshape(job.rows, job.tokens) for one in outputs)


cdef str _place(const Py_buffer *data):
    """Where a file that was refused is damaged, in words."""
    cdef char name[33]
    edr_model_fault(data.buf, data.len, name)
    section = (<char *> name).decode("ascii")
    if not section:
        return "header or table of sections"
    layer = f"weights of layer {int(section[5:7])}: " if section.startswith("layer") and section[5:7].isdigit() else ""
    return f"{layer}section {section!r}"


cdef class _Workspace:
    """Memory of one thread at work, at a multiple of 64."""
    cdef void *memory
    cdef void *aligned

    def __cinit__(self, int64_t size):
        self.memory = malloc(size + 64)
        if self.memory is NULL:
            raise MemoryError(f"{size} bytes for the engine's workspace")
        self.aligned = <void *> ((<uintptr_t> self.memory + 63) // 64 * 64)

    def __dealloc__(self):
        free(self.memory)


cdef class _Rooms:
    """The workspaces of one call: its own, and those of the pool's threads."""
    cdef void **list
    cdef _Workspace mine

    def __cinit__(self, _Workspace mine, list others):
        self.mine = mine
        self.list = <void **> calloc(len(others) + 1, sizeof(void *))
        if self.list is NULL:
            raise MemoryError("the list of workspaces")
        self.list[0] = mine.aligned
        for i, other in enumerate(others):
            self.list[i + 1] = (<_Workspace> other).aligned

    def __dealloc__(self):
        free(self.list)


cdef int64_t _slots(feature_ids, feature_weights, int64_t rows, const int32_t **ids, const float **weights) except -1:
    """The features of so many rows: how many slots a row has."""
    ids[0] = <int32_t *> _array(feature_ids, cnp.NPY_INT32, "feature_ids", "int32")
    weights[0] = <float *> _array(feature_weights, cnp.NPY_FLOAT32, "feature_weights", "float32")
    cdef int64_t slots = _size(feature_ids) // rows if rows else 0
    if _size(feature_ids) != slots * rows or _size(feature_weights) != _size(feature_ids):
        raise InputError(f"{_size(feature_ids)} feature ids and {_size(feature_weights)} weights for {rows} rows")
    return slots


cdef uint8_t *_marks(done, int64_t rows) except? NULL:
    if done is None:
        return NULL
    cdef uint8_t *marks = <uint8_t *> _array(done, cnp.NPY_BOOL, "done", "bool")
    if _size(done) != rows or not cnp.PyArray_ISWRITEABLE(done):
        raise InputError(f"done must be writable and have {rows} entries, got {_size(done)}")
    return marks


@cython.final
cdef class Encoder:
    cdef edr_model model
    cdef Py_buffer data
    cdef edr_pool *pool
    cdef int64_t workers, room_size
    cdef int isa, pid
    cdef bint mapped
    cdef list idle, rooms

    def __cinit__(self, data, *, isa, threads):
        cdef int64_t at = -1, count = _integer(threads, "threads", 1, 1024)
        cdef int i
        self.isa = -1
        for i in range(EDR_ISA_COUNT):
            if edr_isa_name(i).decode() == isa:
                self.isa = i
        if self.isa < 0 or not edr_isa_supported(self.isa):
            raise InputError(f"instruction set {isa!r:.40} is unknown or not supported here")
        PyObject_GetBuffer(data, &self.data, PyBUF_SIMPLE)
        self.mapped = True
        cdef int status = edr_model_open(self.data.buf, self.data.len, &self.model, &at)
        if status != EDR_OK:
            raise InputError(f"{_place(&self.data)}: {edr_status_text(status).decode()}")
        self.room_size = edr_score_room(&self.model)
        self.workers = count - 1
        self.idle = []
        self.rooms = [_Workspace(self.room_size) for _ in range(self.workers)]
        self.pid = getpid()
        self._start()

    cdef int _start(self) except -1:
        if self.workers:
            self.pool = edr_pool_new(self.workers)
            if self.pool is NULL:
                raise MemoryError(f"the system has no {self.workers} threads for the engine")
        return 0

    def __dealloc__(self):
        # A forked child has no worker threads to end: what the parent made is left alone there.
        if self.pool is not NULL and self.pid == getpid():
            edr_pool_free(self.pool)
        if self.mapped:
            PyBuffer_Release(&self.data)

    @property
    def vocab(self):
        return self.model.vocab

    @property
    def positions(self):
        return self.model.positions

    @property
    def types(self):
        return self.model.types

    @property
    def buckets(self):
        return self.model.buckets

    @property
    def hidden(self):
        return self.model.hidden

    @property
    def states(self):
        if self.model.mid.query_layers == 0:
            return None
        kind = ("fp32", "int8", "fp16")[self.model.mid.state_kind]
        return self.model.mid.groups, self.model.mid.width, kind

    @property
    def sides(self):
        return self.model.mid.item_start, self.model.mid.query_type, self.model.mid.item_type

    cdef _Rooms _rooms(self):
        """Workspaces for a call; in a forked child, first of all, threads of its own."""
        if self.pid != getpid():
            # The parent's threads are not in this process, and its pool may be locked for ever. It is left alone.
            self.pool = NULL
            self._start()
            self.pid = getpid()
        # A call takes a workspace of its own; the pool's threads have theirs. The list is only touched with the GIL held.
        return _Rooms(self.idle.pop() if self.idle else _Workspace(self.room_size), self.rooms)

    def score(self, ids, types, starts, lengths, feature_ids, feature_weights, *, deadline_ns=0, done=None):
        cdef edr_inputs given
        cdef int64_t deadline = _integer(deadline_ns, "deadline_ns", 0, (1 << 63) - 1), at = -1
        given.ids = <int32_t *> _array(ids, cnp.NPY_INT32, "ids", "int32")
        given.types = <int32_t *> _array(types, cnp.NPY_INT32, "types", "int32")
        given.starts = <int64_t *> _array(starts, cnp.NPY_INT64, "starts", "int64")
        given.lengths = <int64_t *> _array(lengths, cnp.NPY_INT64, "lengths", "int64")
        given.size, given.rows = _size(ids), _size(lengths)
        given.slots = _slots(feature_ids, feature_weights, given.rows, &given.feature_ids, &given.feature_weights)
        if _size(types) != given.size or _size(starts) != given.rows:
            raise InputError(f"{given.size} ids but {_size(types)} types, or {given.rows} lengths but {_size(starts)} starts")
        cdef uint8_t *marks = _marks(done, given.rows)
        cdef cnp.ndarray logits = _new(given.rows, cnp.NPY_FLOAT32)
        cdef float *to = <float *> cnp.PyArray_DATA(logits)
        cdef _Rooms rooms = self._rooms()
        cdef int status
        with nogil:
            status = edr_score_all(&self.model, &given, self.isa, self.pool, self.workers, rooms.list, self.room_size, deadline, to, marks, &at)
        self.idle.append(rooms.mine)
        if status != EDR_OK:
            _refuse(status, "batch", at)
        return logits

    def encode(self, ids, starts, lengths, values, scales):
        cdef edr_items given
        cdef int64_t at = -1
        given.ids = <int32_t *> _array(ids, cnp.NPY_INT32, "ids", "int32")
        given.starts = <int64_t *> _array(starts, cnp.NPY_INT64, "starts", "int64")
        given.lengths = <int64_t *> _array(lengths, cnp.NPY_INT64, "lengths", "int64")
        given.size, given.rows = _size(ids), _size(lengths)
        if _size(starts) != given.rows:
            raise InputError(f"{given.rows} lengths but {_size(starts)} starts")
        cdef float *of_states = NULL
        cdef void *to = self._table(values, scales, given.size, &of_states)
        if not cnp.PyArray_ISWRITEABLE(values) or not cnp.PyArray_ISWRITEABLE(scales):
            raise InputError("values and scales must be writable")
        cdef _Rooms rooms = self._rooms()
        cdef int status
        with nogil:
            status = edr_encode_all(&self.model, &given, self.isa, self.pool, self.workers, rooms.list, self.room_size, to, of_states, &at)
        self.idle.append(rooms.mine)
        if status != EDR_OK:
            _refuse(status, "items", at)

    def rank(self, query, values, scales, starts, lengths, feature_ids, feature_weights, *, deadline_ns=0, done=None):
        cdef edr_ranking given
        cdef int64_t deadline = _integer(deadline_ns, "deadline_ns", 0, (1 << 63) - 1), at = -1
        cdef float *of_states = NULL
        given.query, given.query_size = <int32_t *> _array(query, cnp.NPY_INT32, "query", "int32"), _size(query)
        given.starts = <int64_t *> _array(starts, cnp.NPY_INT64, "starts", "int64")
        given.lengths = <int64_t *> _array(lengths, cnp.NPY_INT64, "lengths", "int64")
        given.rows = _size(lengths)
        if _size(starts) != given.rows:
            raise InputError(f"{given.rows} lengths but {_size(starts)} starts")
        given.tokens = _size(values) // max(1, self.model.mid.groups * self.model.mid.width)
        given.values = self._table(values, scales, given.tokens, &of_states)
        given.scales = of_states
        given.slots = _slots(feature_ids, feature_weights, given.rows, &given.feature_ids, &given.feature_weights)
        cdef uint8_t *marks = _marks(done, given.rows)
        cdef cnp.ndarray logits = _new(given.rows, cnp.NPY_FLOAT32)
        cdef float *to = <float *> cnp.PyArray_DATA(logits)
        cdef _Rooms rooms = self._rooms()
        cdef int status
        with nogil:
            status = edr_rank_all(&self.model, &given, self.isa, self.pool, self.workers, rooms.list, self.room_size, deadline, to, marks, &at)
        self.idle.append(rooms.mine)
        if status != EDR_OK:
            _refuse(status, "batch", at)
        return logits

    def query_rows(self, query):
        cdef const int32_t *ids = <int32_t *> _array(query, cnp.NPY_INT32, "query", "int32")
        cdef int64_t size = _size(query)
        cdef cnp.ndarray rows = _new(size * self.model.hidden, cnp.NPY_FLOAT32)
        cdef float *to = <float *> cnp.PyArray_DATA(rows)
        cdef _Rooms rooms = self._rooms()
        cdef int status
        with nogil:
            status = edr_query_rows(&self.model, ids, size, self.isa, rooms.list[0], self.room_size, to)
        self.idle.append(rooms.mine)
        if status != EDR_OK:
            _refuse(status, "query", -1)
        return rows.reshape(size, self.model.hidden)

    cdef void *_table(self, values, scales, int64_t tokens, float **of_states) except? NULL:
        """The memory of stored states, [tokens, G W] and [tokens, G]; NULL for the scales where the model has none."""
        if self.model.mid.query_layers == 0:
            raise InputError("the model is a cross student's: it has no item states")
        cdef int kind = self.model.mid.state_kind
        cdef int typenum = cnp.NPY_INT8 if kind == 1 else cnp.NPY_FLOAT16 if kind == 2 else cnp.NPY_FLOAT32
        cdef int64_t numbers = self.model.mid.groups * self.model.mid.width, sizes = self.model.mid.groups if kind == 1 else 0
        found = <float *> _array(scales, cnp.NPY_FLOAT32, "scales", "float32")
        cdef void *memory = _array(values, typenum, "values", ("float32", "int8", "float16")[kind])
        if _size(values) != tokens * numbers or _size(scales) != tokens * sizes:
            raise InputError(f"{_size(values)} numbers and {_size(scales)} scales for {tokens} tokens of {numbers} and {sizes}")
        of_states[0] = <float *> found if sizes else NULL
        return memory
