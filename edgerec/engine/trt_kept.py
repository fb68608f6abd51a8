"""A catalogue's item states, or its items' tokens, on the GPU, so that a request brings the numbers of its rows and not what they hold.

The tables are those of the catalogue's segments, which never change: new items are new segments. They lie one after the other in
one piece of memory, because csrc/gather.cu reads one table that stays; a table that the catalogue has no more leaves its place to others
when the last request that reads it is over. What does not fit, or is still on its way, comes along with the requests.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import EngineError
from ..types import StoredTable, TableSource

FREE_SHARE = 0.5
"""Of the GPU memory that is free when the first table comes, so much may be taken."""
SPARE_TOKENS = 1 << 16
"""Room for what is added to a catalogue, beside a quarter of its size."""
UPLOAD_BYTES = 8 << 20
"""Copied at once."""


@dataclass(slots=True)
class _Place:
    """Of one table the first ``tokens``, from token ``first`` of the memory on; ``ready`` of them are there."""

    first: int
    tokens: int
    ready: int = 0
    users: int = 0
    wanted: bool = True


class KeptTables:
    """Copies of tables. Safe to share between threads.

    Parameters
    ----------
    device : the `edgerec.engine.trt_device.Device` whose memory it is.
    columns : of every table: how many numbers a token has, and their type.
    check : raises EngineError for values of the first column that must not be there; they are not copied.

    Attributes
    ----------
    addresses : of the columns; 0 before there are any.
    failed : empty; or why nothing more is copied: the GPU's error, or what is wrong with the values.
    """

    def __init__(self, device: Any, columns: Sequence[tuple[int, type[np.generic]]], check: Callable[[Any], None]) -> None:
        self._device, self._columns, self._check = device, columns, check
        self._sizes = [numbers * np.dtype(kind).itemsize for numbers, kind in columns]
        self.addresses, self.failed = (0,) * len(columns), ""
        self._change, self._uploading = threading.Condition(), threading.Lock()
        self._places: dict[str, _Place] = {}
        self._leaving: list[_Place] = []
        self._free: list[tuple[int, int]] = []
        self._pending: list[StoredTable] = []
        self._memory: tuple[Any, ...] = ()
        self._thread: threading.Thread | None = None
        self._busy = self._closed = False

    @property
    def tokens(self) -> int:
        """How many tokens are there."""
        with self._change:
            return sum(place.ready for place in self._places.values())

    def __str__(self) -> str:
        return f"{self.tokens} tokens" + (f": {self.failed}" if self.failed else "")

    def keep(self, tables: Sequence[StoredTable], *, wait: bool) -> None:
        """Hold these tables, as far as there is room, and no others; ``wait``: until they are there. Never raises: see ``failed``."""
        wanted = {table.key: table for table in tables if len(table.columns[0])}
        with self._change:
            if self._closed or self.failed:
                return
            for key in [key for key in self._places if key not in wanted]:
                self._leave(self._places.pop(key))
            self._pending = [table for key, table in wanted.items() if key not in self._places]
            self._change.notify_all()
            if not self._pending or (self._busy and not wait):
                return
            if not wait:
                self._busy = True
                self._thread = threading.Thread(target=self._upload, name="edgerec-keep", daemon=True)
                self._thread.start()
                return
        self._upload()

    @contextmanager
    def use(self, source: TableSource | None, lengths: NDArray[np.int64]) -> Iterator[NDArray[np.int64]]:
        """Where rows begin in the memory, int64 [B], and -1 for those that are not there; they stay where they are meanwhile."""
        places, held = np.full(len(lengths), -1, np.int64), []
        try:
            with self._change:
                for number in sorted(set(source.owners.tolist())) if source is not None and self._places else ():
                    assert source is not None
                    place = self._places.get(source.keys[number])
                    if place is None:
                        continue
                    place.users += 1
                    held.append(place)
                    there = (source.owners == number) & (source.starts + lengths <= place.ready)
                    places[there] = place.first + source.starts[there]
            yield places
        finally:
            with self._change:
                for place in held:
                    self._let_go(place)

    def close(self) -> None:
        """Give the memory back; nothing may be in use. The device's context must be current."""
        with self._change:
            self._closed = True
            self._change.notify_all()
        if self._thread is not None:
            self._thread.join()
        self._memory, self._places = (), {}

    def _leave(self, place: _Place) -> None:
        """The table is not wanted any more. Called with the lock held."""
        place.wanted = False
        if place.users:
            self._leaving.append(place)
        else:
            self._give_back(place)

    def _let_go(self, place: _Place) -> None:
        """One user less. Called with the lock held."""
        place.users -= 1
        if not place.users and not place.wanted:
            self._leaving.remove(place)
            self._give_back(place)
            self._change.notify_all()

    def _give_back(self, place: _Place) -> None:
        merged: list[tuple[int, int]] = []
        for first, tokens in sorted([*self._free, (place.first, place.tokens)]):
            if merged and sum(merged[-1]) == first:
                first, tokens = merged[-1][0], merged.pop()[1] + tokens
            merged.append((first, tokens))
        self._free = merged

    def _upload(self) -> None:
        """Copy what is pending, one table after the other."""
        try:
            with self._uploading, self._device.current():
                while (found := self._next()) is not None:
                    table, place = found
                    try:
                        self._copy(table, place)
                    finally:
                        with self._change:
                            self._let_go(place)
        except EngineError as error:
            with self._change:
                self.failed, self._busy = str(error), False
                self._pending = []

    def _next(self) -> tuple[StoredTable, _Place] | None:
        """A pending table and its place, with one user: who copies. Waits for room that is about to be free."""
        with self._change:
            while self._pending and not self._closed:
                if not self._memory:
                    self._allocate(sum(len(table.columns[0]) for table in self._pending))
                first, room = max(self._free, key=lambda gap: gap[1], default=(0, 0))
                wanted = len(self._pending[0].columns[0])
                if room < wanted and self._leaving:
                    self._change.wait()
                    continue
                table = self._pending.pop(0)
                if not room:
                    continue
                place = _Place(first, min(room, wanted), users=1)
                self._free.remove((first, room))
                if room > place.tokens:
                    self._free.append((first + place.tokens, room - place.tokens))
                self._places[table.key] = place
                return table, place
            self._busy = False  # with the lock held: what comes now needs another thread
        return None

    def _allocate(self, tokens: int) -> None:
        cuda, each = self._device.cuda, sum(self._sizes)
        with self._device.guard():
            free, _ = cuda.mem_get_info()
            room, step = min(int(FREE_SHARE * free) // each, tokens + tokens // 4 + SPARE_TOKENS), max(1, UPLOAD_BYTES // each)
            memory = [cuda.mem_alloc(max(1, room * size)) for size in self._sizes]
            staged = [cuda.pagelocked_empty((step, max(1, numbers)), kind) for numbers, kind in self._columns]
            self._memory = (memory, staged, cuda.Stream())
        self.addresses, self._free = tuple(int(one) for one in memory), [(0, room)] if room else []

    def _copy(self, table: StoredTable, place: _Place) -> None:
        _, staged, stream = self._memory
        step = len(staged[0])
        for begin in range(0, place.tokens, step):
            end = min(begin + step, place.tokens)
            if self._closed or not place.wanted:
                return
            self._check(table.columns[0][begin:end])
            with self._device.guard():
                for column, room, address, size in zip(table.columns, staged, self.addresses, self._sizes, strict=True):
                    if size:
                        room[: end - begin] = column[begin:end].reshape(end - begin, -1)
                        self._device.cuda.memcpy_htod_async(address + (place.first + begin) * size, room[: end - begin], stream)
                stream.synchronize()
            with self._change:
                place.ready = end


def along(starts: NDArray[np.int64], lengths: NDArray[np.int64], kept: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """What comes along with rows of a table, and where csrc/gather.cu finds each.

    Parameters
    ----------
    starts, lengths : int64 [B], of the rows.
    kept : int64 [B], from `KeptTables.use`.

    Returns
    -------
    places : int64 [total], the tokens of the table that come along, end to end.
    begins : int64 [B], as `kept`, or ``~`` the place among those that come along.
    """
    if kept.min(initial=0) >= 0:  # the usual case
        return np.empty(0, np.int64), kept
    sent = np.where(kept < 0, lengths, 0)
    ends = np.cumsum(sent)
    begins = ends - sent
    return np.arange(sent.sum()) + np.repeat(starts - begins, sent), np.where(kept < 0, ~begins, kept)
