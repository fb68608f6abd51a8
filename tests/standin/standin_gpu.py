"""The device behind the stand-ins: memory by address, streams that work when they are waited for, graphs."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable
from typing import Any

import numpy as np

GARBAGE = 0xAB


class Failure(Exception):
    """What the driver would report."""


class Memory:
    """Allocations by address. ``limit`` bytes in all; ``lost``: every use fails."""

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        self.blocks: dict[int, np.ndarray] = {}
        self.limit, self.lost = 1 << 30, ""
        self._next = 0x7F0000000000

    def allocate(self, size: int) -> int:
        self.check()
        if size < 1 or sum(map(len, self._now().values())) + size > self.limit:
            raise MemoryError(f"cuMemAlloc failed: out of memory ({size} bytes)")
        address, self._next = self._next, self._next + (size + 1023) // 512 * 512
        self.blocks[address] = np.full(size, GARBAGE, np.uint8)
        return address

    def free(self, address: int) -> None:
        self.blocks.pop(address, None)

    def view(self, address: int, size: int) -> np.ndarray:
        """The bytes at an address. Raises Failure unless they lie in one allocation."""
        self.check()
        for start, block in self._now().items():
            if start <= address and address + size <= start + len(block):
                return block[address - start : address - start + size]
        raise Failure(f"illegal address {address:#x} of {size} bytes")

    def rest(self, address: int) -> np.ndarray:
        """The bytes from an address to the end of its allocation; none at address 0."""
        self.check()
        for start, block in self._now().items():
            if start <= address < start + len(block):
                return block[address - start :]
        if address:
            raise Failure(f"illegal address {address:#x}")
        return np.zeros(0, np.uint8)

    def _now(self) -> dict[int, np.ndarray]:
        """A copy: the collector may free a block in the middle of a loop."""
        return self.blocks.copy()

    def check(self) -> None:
        if self.lost:
            raise Failure(self.lost)


class Queue:
    """A stream's work, done in order when somebody waits."""

    def __init__(self) -> None:
        self.work: list[Callable[[], None]] = []
        self.captured: list[Callable[[], None]] | None = None
        self.lock = threading.Lock()

    def put(self, work: Callable[[], None]) -> None:
        (self.work if self.captured is None else self.captured).append(work)

    def wait(self) -> None:
        if self.captured is not None:
            raise Failure("a stream that is being captured cannot be waited for")
        with self.lock:
            work, self.work = self.work, []
            for step in work:
                MEMORY.check()
                step()
                COUNTS["steps"] += 1


MEMORY = Memory()
QUEUES: dict[int, Queue] = {}
HANDLES = itertools.count(0x1000)
COUNTS: dict[str, int] = {"steps": 0, "launches": 0, "graphs": 0, "contexts": 0, "allocations": 0}
CURRENT = threading.local()
OPTIONS: dict[str, Any] = {"capture": True}


def reset() -> None:
    MEMORY.reset()
    QUEUES.clear()
    COUNTS.update(dict.fromkeys(COUNTS, 0))
    OPTIONS.update(capture=True)


def need_context() -> None:
    if not getattr(CURRENT, "depth", 0):
        raise Failure("invalid device context: no currently active context?")
