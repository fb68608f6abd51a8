"""The kernels of csrc/gather.cu on this GPU, beside their plain C twins, bit by bit; and how many bytes a second they move.

python benchmarks/gpu_gather.py
compute-sanitizer --tool memcheck --error-exitcode 9 python benchmarks/gpu_gather.py
"""

from __future__ import annotations

import importlib
import itertools
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np

from edgerec._native import gather_pairs, gather_states
from edgerec.engine.trt_device import PTX, Device
from edgerec.engine.trt_mid_device import STORED, MidDevice
from edgerec.states import PRECISIONS

NUMBERS = {"fp32": (0, np.float32), "fp16": (2, np.uint16), "bf16": (3, np.uint16)}
"""What the kernel writes: its number in csrc/gather.h, and the type of its bits."""
THREADS = 256


@contextmanager
def kernels() -> Iterator[tuple[Any, Any, Any]]:
    """PyCUDA's driver and the two kernels, for states and for tokens, in the primary context."""
    cuda = importlib.import_module("pycuda.driver")
    cuda.init()
    context = cuda.Device(0).retain_primary_context()
    context.push()
    try:
        module = cuda.module_from_buffer(PTX.read_bytes() + b"\0")
        functions = []
        for name, types in (MidDevice.KERNEL, Device.KERNEL):
            functions.append(module.get_function(name))
            functions[-1].prepare(types)
        yield cuda, *functions
    finally:
        context.pop()


class Job:
    """Some memory on the GPU, and a kernel that reads and writes there."""

    def __init__(self, cuda: Any, function: Any, rows: int) -> None:
        self._cuda, self._function, self._rows, self._stream = cuda, function, rows, cuda.Stream()
        self._given: list[Any] = []

    def start(self) -> None:
        """Put one run on the stream."""
        given = [one if isinstance(one, int) else int(one) for one in self._given]
        self._function.prepared_async_call((self._rows, 1, 1), (THREADS, 1, 1), self._stream, *given)

    def seconds(self, runs: int) -> float:
        """Of one run, by CUDA events."""
        begin, end = self._cuda.Event(), self._cuda.Event()
        self.start()
        begin.record(self._stream)
        for _ in range(runs):
            self.start()
        end.record(self._stream)
        end.synchronize()
        return float(end.time_since(begin)) / 1e3 / runs

    def _there(self, array: np.ndarray[Any, Any]) -> Any:
        memory = self._cuda.mem_alloc(array.nbytes)
        self._cuda.memcpy_htod_async(memory, array, self._stream)
        self._stream.synchronize()
        return memory

    def _back(self, memory: Any, like: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        found = np.zeros_like(like)
        self._cuda.memcpy_dtoh_async(found, memory, self._stream)
        self._stream.synchronize()
        return found


class States(Job):
    """Rows of two tables of random states, gathered on the GPU."""

    def __init__(self, cuda: Any, function: Any, stored: str, number: str, *, rows: int, tokens: int, groups: int, width: int) -> None:
        super().__init__(cuda, function, rows)
        rng, kind = np.random.default_rng(rows + tokens), PRECISIONS[stored]
        self._number, self._sizes, self._tables = number, (tokens, groups, width), []
        for total in (3 * tokens + rows, 2 * tokens):
            values = (40 * rng.standard_normal((total, groups * width))).astype(kind)
            scales = rng.random((total, groups if stored == "int8" else 0)).astype(np.float32)
            self._tables.append((values.reshape(-1), scales.reshape(-1)))
        self._lengths = rng.integers(0, tokens + 1, rows).astype(np.int32)
        begins = [rng.integers(0, len(values) // (groups * width) - tokens + 1, rows) for values, _ in self._tables]
        self._starts = np.where(rng.random(rows) < 0.5, begins[0], ~begins[1]).astype(np.int64)
        self._held = [self._there(array) if array.size else 0 for table in self._tables for array in table]
        addresses = np.array([int(one) for one in self._held], np.uint64)
        self._out = cuda.mem_alloc(rows * tokens * groups * width * np.dtype(NUMBERS[number][1]).itemsize)
        self._given = [self._there(array) for array in (addresses, self._starts, self._lengths)]
        self._given += [self._out, *self._sizes, STORED[stored], NUMBERS[number][0]]

    def differences(self) -> int:
        """Run once; numbers whose bits are not those of the C twin."""
        tokens, groups, width = self._sizes
        expected = gather_states(self._tables, self._starts, self._lengths, tokens=tokens, groups=groups, width=width, number=self._number)
        self.start()
        kind = NUMBERS[self._number][1]
        return int(np.count_nonzero(self._back(self._out, expected).view(kind) != expected.view(kind)))

    @property
    def moved_bytes(self) -> int:
        """Read and written in one run, as far as rows reach."""
        tokens, groups, width = self._sizes
        numbers, (values, scales) = groups * width, self._tables[0]
        read = int(self._lengths.sum()) * (numbers * values.itemsize + (4 * groups if scales.size else 0))
        return read + self._rows * tokens * numbers * np.dtype(NUMBERS[self._number][1]).itemsize


class Pairs(Job):
    """A query joined with items of two tables of random tokens on the GPU; a row in eight is none."""

    def __init__(self, cuda: Any, function: Any, *, rows: int, tokens: int, head: int, suffix: int) -> None:
        super().__init__(cuda, function, rows)
        rng, room = np.random.default_rng(rows + tokens), tokens - head - suffix
        self._tokens, self._tables = tokens, [rng.integers(0, 30_000, total).astype(np.int32) for total in (3 * tokens + rows, 2 * tokens)]
        self._lengths = np.where(rng.random(rows) < 0.125, -1, rng.integers(0, room + 1, rows)).astype(np.int32)
        begins = [rng.integers(0, len(table) - room + 1, rows) for table in self._tables]
        self._starts = np.where(rng.random(rows) < 0.5, begins[0], ~begins[1]).astype(np.int64)
        self._frame = np.array([head, suffix, 1, 2, 3, *rng.integers(0, 30_000, head + suffix)], np.int32)
        self._held = [self._there(table) for table in self._tables]
        addresses = np.array([int(one) for one in self._held], np.uint64)
        self._outputs = [cuda.mem_alloc(4 * rows * tokens) for _ in range(3)]
        self._given = [self._there(array) for array in (addresses, self._starts, self._lengths, self._frame)] + [*self._outputs, tokens]

    def differences(self) -> int:
        """Run once; numbers that are not those of the C twin."""
        expected = gather_pairs(self._tables, self._starts, self._lengths, self._frame, tokens=self._tokens)
        self.start()
        return sum(int(np.count_nonzero(self._back(out, one) != one)) for out, one in zip(self._outputs, expected, strict=True))

    @property
    def moved_bytes(self) -> int:
        """Read and written in one run, as far as rows reach."""
        return 4 * int(np.maximum(self._lengths, 0).sum()) + 12 * self._rows * self._tokens


def rows(*, large: int = 1024) -> Iterator[dict[str, Any]]:
    """A row a pair of kinds, and one for tokens: numbers that differ (0 is right), and GB/s over `large` rows, of 16 tokens of 128 numbers
    or of 64 tokens."""
    with kernels() as (cuda, of_states, of_pairs):
        for stored, number in itertools.product(STORED, NUMBERS):
            shapes = ((1, 1, 1, 32), (7, 5, 3, 40), (65, 30, 2, 128), (large, 16, 1, 128))
            jobs = [States(cuda, of_states, stored, number, rows=r, tokens=t, groups=g, width=w) for r, t, g, w in shapes]
            yield {"stored": stored, "written": number, **measured(jobs)}
        sizes = ((1, 1, 0, 0), (7, 9, 4, 1), (65, 300, 7, 1), (large, 64, 8, 1))
        yield {
            "stored": "tokens",
            "written": "pairs",
            **measured([Pairs(cuda, of_pairs, rows=r, tokens=t, head=h, suffix=s) for r, t, h, s in sizes]),
        }


def measured(jobs: Sequence[States] | Sequence[Pairs]) -> dict[str, float]:
    """What differs in all of them, and the rate of the last."""
    return {"differ": sum(job.differences() for job in jobs), "GB/s": jobs[-1].moved_bytes / jobs[-1].seconds(20) / 1e9}


if __name__ == "__main__":
    found = list(rows())
    print(*found, sep="\n")
    sys.exit(any(row["differ"] for row in found))
