"""The kernel of csrc/gather.cu on this GPU, beside its plain C twin, bit by bit; and how many bytes a second it moves.

python benchmarks/gpu_gather.py
compute-sanitizer --tool memcheck --error-exitcode 9 python benchmarks/gpu_gather.py
"""

from __future__ import annotations

import importlib
import itertools
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

from edgerec._native import gather_states
from edgerec.engine.trt_mid_device import KERNEL, PTX, STORED
from edgerec.states import PRECISIONS

NUMBERS = {"fp32": (0, np.float32), "fp16": (2, np.uint16), "bf16": (3, np.uint16)}
"""What the kernel writes: its number in csrc/gather.h, and the type of its bits."""
TYPES = "PPPPiiiii"


@contextmanager
def kernel() -> Iterator[tuple[Any, Any]]:
    """PyCUDA's driver and the kernel, in the primary context."""
    cuda = importlib.import_module("pycuda.driver")
    cuda.init()
    context = cuda.Device(0).retain_primary_context()
    context.push()
    try:
        module = cuda.module_from_buffer(PTX.read_bytes() + b"\0")
        function = module.get_function(KERNEL)
        function.prepare(TYPES)
        yield cuda, function
    finally:
        context.pop()


class Job:
    """Rows of two tables of random states, gathered on the GPU."""

    def __init__(self, cuda: Any, function: Any, stored: str, number: str, *, rows: int, tokens: int, groups: int, width: int) -> None:
        self._cuda, self._function, self._sizes = cuda, function, (tokens, groups, width)
        rng, kind = np.random.default_rng(rows + tokens), PRECISIONS[stored]
        self.number, self.rows = number, rows
        self.tables = []
        for total in (3 * tokens + rows, 2 * tokens):
            values = (40 * rng.standard_normal((total, groups * width))).astype(kind)
            scales = rng.random((total, groups if stored == "int8" else 0)).astype(np.float32)
            self.tables.append((values.reshape(-1), scales.reshape(-1)))
        self.lengths = rng.integers(0, tokens + 1, rows).astype(np.int32)
        begins = [rng.integers(0, len(values) // (groups * width) - tokens + 1, rows) for values, _ in self.tables]
        self.starts = np.where(rng.random(rows) < 0.5, begins[0], ~begins[1]).astype(np.int64)
        self._stream = cuda.Stream()
        self._held = [[self._there(array) if array.size else None for array in table] for table in self.tables]
        addresses = np.array([0 if one is None else int(one) for table in self._held for one in table], np.uint64)
        self._given = [self._there(array) for array in (addresses, self.starts, self.lengths)]
        self._out = cuda.mem_alloc(rows * tokens * groups * width * np.dtype(NUMBERS[number][1]).itemsize)
        self._kinds = STORED[stored], NUMBERS[number][0]

    def start(self) -> None:
        """Put one run on the stream."""
        given = [int(one) for one in (*self._given, self._out)]
        self._function.prepared_async_call((self.rows, 1, 1), (256, 1, 1), self._stream, *given, *self._sizes, *self._kinds)

    def differences(self) -> int:
        """Run once; numbers whose bits are not those of the C twin."""
        tokens, groups, width = self._sizes
        kind = NUMBERS[self.number][1]
        found = np.zeros((self.rows, tokens, groups * width), kind)
        self.start()
        self._cuda.memcpy_dtoh_async(found, self._out, self._stream)
        self._stream.synchronize()
        expected = gather_states(self.tables, self.starts, self.lengths, tokens=tokens, groups=groups, width=width, number=self.number)
        return int(np.count_nonzero(found.reshape(-1).view(kind) != expected.reshape(-1).view(kind)))

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

    @property
    def moved_bytes(self) -> int:
        """Read and written in one run, as far as rows reach."""
        tokens, groups, width = self._sizes
        numbers = groups * width
        read = int(self.lengths.sum()) * (numbers * self.tables[0][0].itemsize + (4 * groups if self.tables[0][1].size else 0))
        return read + self.rows * tokens * numbers * np.dtype(NUMBERS[self.number][1]).itemsize

    def _there(self, array: np.ndarray[Any, Any]) -> Any:
        memory = self._cuda.mem_alloc(array.nbytes)
        self._cuda.memcpy_htod_async(memory, array, self._stream)
        self._stream.synchronize()
        return memory


def rows(*, large: int = 1024) -> Iterator[dict[str, Any]]:
    """A row a pair of kinds: numbers that differ (0 is right), and GB/s over `large` rows of 16 tokens of 128 numbers."""
    with kernel() as (cuda, function):
        for stored, number in itertools.product(STORED, NUMBERS):
            shapes = ((1, 1, 1, 32), (7, 5, 3, 40), (65, 30, 2, 128))
            wrong = sum(Job(cuda, function, stored, number, rows=r, tokens=t, groups=g, width=w).differences() for r, t, g, w in shapes)
            job = Job(cuda, function, stored, number, rows=large, tokens=16, groups=1, width=128)
            yield {
                "stored": stored,
                "written": number,
                "differ": wrong + job.differences(),
                "GB/s": job.moved_bytes / job.seconds(20) / 1e9,
            }


if __name__ == "__main__":
    found = list(rows())
    print(*found, sep="\n")
    sys.exit(any(row["differ"] for row in found))
