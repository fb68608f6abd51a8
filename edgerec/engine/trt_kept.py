"""A catalogue's item states on the GPU, so that a request brings the numbers of its rows and not their states.

The tables of states are those of the catalogue's segments, which never change: new items are new segments. They lie one after the other in
one piece of memory, because csrc/gather.cu reads one table that stays; a table that the catalogue has no more leaves its place to others
when the last request that reads it is over. What does not fit, or is still on its way, comes along with the requests.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import EngineError
from ..states import PRECISIONS, ItemStates, StateSpec
from ..types import StateSource

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


class KeptStates:
    """Copies of tables of states. Safe to share between threads.

    Parameters
    ----------
    device : the `edgerec.engine.trt_mid_device.MidDevice` whose memory it is.
    spec : how states are stored.

    Attributes
    ----------
    addresses : of the stored numbers and of their scales; 0 before there are any.
    failed : empty; or why no more is copied: the GPU's error.
    """

    def __init__(self, device: Any, spec: StateSpec) -> None:
        self._device, self._spec = device, spec
        self.addresses, self.failed = (0, 0), ""
        self._change, self._uploading = threading.Condition(), threading.Lock()
        self._places: dict[str, _Place] = {}
        self._leaving: list[_Place] = []
        self._free: list[tuple[int, int]] = []
        self._pending: list[ItemStates] = []
        self._memory: tuple[Any, ...] = ()
        self._thread: threading.Thread | None = None
        self._busy = self._closed = False

    @property
    def tokens(self) -> int:
        """How many tokens' states are there."""
        with self._change:
            return sum(place.ready for place in self._places.values())

    def keep(self, tables: Sequence[ItemStates], *, wait: bool) -> None:
        """Hold these tables, as far as there is room, and no others; ``wait``: until they are there. Never raises: see ``failed``."""
        wanted = {table.key: table for table in tables if table.key and len(table.values)}
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
                self._thread = threading.Thread(target=self._upload, name="edgerec-states", daemon=True)
                self._thread.start()
                return
        self._upload()

    @contextmanager
    def use(self, source: StateSource | None, lengths: NDArray[np.int64]) -> Iterator[NDArray[np.int64]]:
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

    def _next(self) -> tuple[ItemStates, _Place] | None:
        """A pending table and its place, with one user: who copies. Waits for room that is about to be free."""
        with self._change:
            while self._pending and not self._closed:
                if not self._memory:
                    self._allocate(sum(len(table.values) for table in self._pending))
                first, room = max(self._free, key=lambda gap: gap[1], default=(0, 0))
                wanted = len(self._pending[0].values)
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
        cuda, spec = self._device.cuda, self._spec
        with self._device.guard():
            free, _ = cuda.mem_get_info()
            room = min(int(FREE_SHARE * free) // spec.token_bytes, tokens + tokens // 4 + SPARE_TOKENS)
            kind, step = PRECISIONS[spec.precision], max(1, UPLOAD_BYTES // spec.token_bytes)
            values, scales = (cuda.mem_alloc(max(1, room * size)) for size in (spec.numbers * np.dtype(kind).itemsize, 4 * spec.scales))
            staged = cuda.pagelocked_empty((step, spec.numbers), kind), cuda.pagelocked_empty((step, max(1, spec.scales)), np.float32)
            self._memory = (values, scales, *staged, cuda.Stream())
        self.addresses, self._free = (int(values), int(scales)), [(0, room)] if room else []

    def _copy(self, table: ItemStates, place: _Place) -> None:
        _, _, values, scales, stream = self._memory
        bytes_each = values.shape[1] * values.itemsize, 4 * self._spec.scales
        for begin in range(0, place.tokens, len(values)):
            end = min(begin + len(values), place.tokens)
            if self._closed or not place.wanted:
                return
            with self._device.guard():
                for name, staged, address, size in zip(("values", "scales"), (values, scales), self.addresses, bytes_each, strict=True):
                    if size:
                        staged[: end - begin] = getattr(table, name)[begin:end]
                        self._device.cuda.memcpy_htod_async(address + (place.first + begin) * size, staged[: end - begin], stream)
                stream.synchronize()
            with self._change:
                place.ready = end
