"""The states of items that are given whole: encoded when they first come, and kept for the requests that follow."""

from __future__ import annotations

import os
import threading
from collections import OrderedDict
from collections.abc import Sequence
from functools import partial
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from .engine import MidEngine
from .errors import InputError
from .ranker_deadline import Deadline
from .ranker_lanes import Lanes
from .states import ItemStates

INLINE_CACHE_BYTES = 64 << 20
ENTRY_BYTES = 640
"""What an entry takes beside its numbers: two arrays, its key's header, its places in the dictionary and in the order of use."""
TOGETHER = 32
"""Items of one call where company changes nothing."""

States: TypeAlias = tuple[NDArray[Any], NDArray[np.float32]]


class StateCache:
    """States by the item's tokens, the least recently used dropped first. Safe to share between threads, and empty after a fork.

    The tokens themselves are the key: a hash finds the entry and all of them are compared, so no item gets another's states. Nobody can
    write to an entry.

    Parameters
    ----------
    limit_bytes : of all entries, keys included; 0 keeps nothing. An entry that would not fit alone is not kept.
    """

    def __init__(self, limit_bytes: int) -> None:
        self._limit = check_limit(limit_bytes)
        self._clear()

    @property
    def size_bytes(self) -> int:
        """What the entries take."""
        return self._bytes

    def __len__(self) -> int:
        return len(self._entries)

    def find(self, keys: Sequence[bytes]) -> dict[bytes, States]:
        """Those of the keys that are kept; they count as used now, the last one last."""
        if not self._limit:
            return {}
        if self._pid != os.getpid():  # the lock may have been taken when the parent forked
            self._clear()
        found = {}
        with self._lock:
            for key in keys:
                entry = self._entries.get(key)
                if entry is not None:
                    self._entries.move_to_end(key)
                    found[key] = entry
        return found

    def keep(self, key: bytes, states: States) -> None:
        """Keep an entry, and drop old ones until all fit."""
        cost = _cost(key, states)
        if cost > self._limit:
            return
        with self._lock:
            if key in self._entries:  # another thread met the same item at the same time, and found the same
                return
            while self._bytes + cost > self._limit:
                self._bytes -= _cost(*self._entries.popitem(last=False))
            self._entries[key] = states
            self._bytes += cost

    def _clear(self) -> None:
        self._pid, self._lock, self._bytes = os.getpid(), threading.Lock(), 0
        self._entries: OrderedDict[bytes, States] = OrderedDict()


class InlineStates:
    """Encodes items for a mid-fusion student, each once while the cache holds it. Safe to share between threads.

    Parameters
    ----------
    engine : makes the states.
    lanes : on which it runs.
    limit_bytes : of the cache.
    together : the engine gives an item the same bits in any company. Where it does not, every item is encoded alone: its states must not
        depend on which others were in the cache.
    """

    def __init__(self, engine: MidEngine, lanes: Lanes, *, limit_bytes: int, together: bool) -> None:
        self.cache = StateCache(limit_bytes)
        self._engine, self._lanes, self._size = engine, lanes, TOGETHER if together else 1

    def encode(self, tokens: NDArray[np.int32], offsets: NDArray[np.int64], deadline: Deadline) -> tuple[ItemStates, NDArray[np.bool_]]:
        """States of the items ``tokens[offsets[i]:offsets[i + 1]]``, and for each, bool [R], whether there was time for it.

        Items are taken in their order; those there was no time for have no states. Raises EngineError.
        """
        keys = [tokens[start:end].tobytes() for start, end in zip(offsets[:-1].tolist(), offsets[1:].tolist(), strict=True)]
        unique = list(dict.fromkeys(keys))
        known = self.cache.find(unique)
        missing = [key for key in unique if key not in known]
        parts = [missing[begin : begin + self._size] for begin in range(0, len(missing), self._size)]
        for part, made in zip(parts, self._lanes.map(partial(self._encode, deadline), parts), strict=True):
            for key, states in zip(part, made, strict=False):  # none for a part that was too late
                self.cache.keep(key, states)
                known[key] = states
        chosen = [known.get(key) for key in keys]
        lengths = [len(states[0]) if states is not None else 0 for states in chosen]
        there = [states for states in chosen if states is not None]
        done = np.array([states is not None for states in chosen], np.bool_)
        if not there:
            there = [(np.zeros((0, 0), np.int8), np.zeros((0, 0), np.float32))]
        values, scales = (np.concatenate(column) for column in zip(*there, strict=True))
        return ItemStates(values, scales, np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)])), done

    def _encode(self, deadline: Deadline, keys: list[bytes]) -> list[States]:
        if deadline.over:
            return []
        rows = [np.frombuffer(key, np.int32) for key in keys]
        offsets = np.zeros(len(rows) + 1, np.int64)
        np.cumsum([len(row) for row in rows], out=offsets[1:])
        found = self._engine.encode_ragged(np.concatenate(rows), offsets)
        made = []
        for start, end in zip(found.offsets[:-1].tolist(), found.offsets[1:].tolist(), strict=True):
            values, scales = found.values[start:end].copy(), found.scales[start:end].copy()  # not the whole call's memory
            values.flags.writeable = scales.flags.writeable = False
            made.append((values, scales))
        return made


def check_limit(limit_bytes: object) -> int:
    """The argument as a limit in bytes. Raises InputError."""
    if isinstance(limit_bytes, bool) or not isinstance(limit_bytes, int) or limit_bytes < 0:
        raise InputError(f"inline_cache_bytes is {limit_bytes!r:.80}; expected a number of bytes, or 0 for no cache")
    return limit_bytes


def _cost(key: bytes, states: States) -> int:
    return len(key) + states[0].nbytes + states[1].nbytes + ENTRY_BYTES
