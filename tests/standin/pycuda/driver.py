"""What edgerec uses of pycuda.driver."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import standin_gpu as gpu


class Error(Exception):
    """The base of PyCUDA's errors."""


class LogicError(Error):
    """A wrong call, or a lost device."""


class MemoryError(Error):
    """Out of memory."""


def _guarded(call: Callable[[], Any], *, context: bool = True) -> Any:
    try:
        if context:
            gpu.need_context()
        return call()
    except gpu.Failure as error:
        raise LogicError(str(error)) from error
    except __builtins__["MemoryError"] as error:  # type: ignore[index]
        raise MemoryError(str(error)) from error


def init() -> None:
    _guarded(gpu.MEMORY.check, context=False)


class Context:
    def push(self) -> None:
        gpu.CURRENT.depth = getattr(gpu.CURRENT, "depth", 0) + 1

    @staticmethod
    def pop() -> None:
        if not getattr(gpu.CURRENT, "depth", 0):
            raise LogicError("cuCtxPopCurrent failed: invalid device context")
        gpu.CURRENT.depth -= 1

    @staticmethod
    def synchronize() -> None:
        for queue in list(gpu.QUEUES.values()):
            _guarded(queue.wait)


class Device:
    def __init__(self, ordinal: int) -> None:
        assert ordinal == 0

    def retain_primary_context(self) -> Context:
        return Context()


class Stream:
    def __init__(self) -> None:
        _guarded(lambda: None)
        self.handle = next(gpu.HANDLES)
        gpu.QUEUES[self.handle] = gpu.Queue()

    def synchronize(self) -> None:
        _guarded(gpu.QUEUES[self.handle].wait)


class DeviceAllocation:
    _address = 0

    def __init__(self, size: int) -> None:
        self._address = _guarded(lambda: gpu.MEMORY.allocate(size))
        gpu.COUNTS["allocations"] += 1

    def __int__(self) -> int:
        return self._address

    def free(self) -> None:
        gpu.MEMORY.free(self._address)

    def __del__(self) -> None:
        self.free()


def mem_get_info() -> tuple[int, int]:
    return _guarded(lambda: (gpu.MEMORY.limit - sum(map(len, gpu.MEMORY.blocks.values())), gpu.MEMORY.limit))


def mem_alloc(size: int) -> DeviceAllocation:
    return DeviceAllocation(size)


def pagelocked_empty(shape: Any, dtype: Any) -> np.ndarray:
    _guarded(lambda: None)
    array = np.empty(shape, dtype)
    array.view(np.uint8)[...] = gpu.GARBAGE
    return array


def memcpy_htod_async(target: Any, source: np.ndarray, stream: Stream) -> None:
    def work() -> None:
        data = source.reshape(-1).view(np.uint8)
        gpu.MEMORY.view(int(target), len(data))[:] = data

    _guarded(lambda: gpu.QUEUES[stream.handle].put(work))


def memcpy_dtoh_async(target: np.ndarray, source: Any, stream: Stream) -> None:
    def work() -> None:
        data = target.reshape(-1).view(np.uint8)
        data[:] = gpu.MEMORY.view(int(source), len(data))

    _guarded(lambda: gpu.QUEUES[stream.handle].put(work))


class Event:
    def __init__(self) -> None:
        self.time = 0.0

    def record(self, stream: Stream) -> None:
        import time

        def work() -> None:
            self.time = 1e3 * time.perf_counter()

        _guarded(lambda: gpu.QUEUES[stream.handle].put(work))

    def synchronize(self) -> None:
        Context.synchronize()

    def time_since(self, other: Event) -> float:
        return self.time - other.time


class Function:
    """A kernel of csrc/gather.cu, which computes as its plain C twin does. Rows must lie in the allocations that the tables point to."""

    types = ""

    def prepare(self, types: str) -> None:
        assert types == self.types

    def prepared_async_call(self, grid: Any, block: Any, stream: Stream, *given: int) -> None:
        assert len(given) == len(self.types)
        assert grid[1:] == (1, 1)
        assert 1 <= block[0] <= 1024

        def work() -> None:
            try:
                outputs = self.compute(grid[0], *given)
            except Exception as error:
                raise gpu.Failure(f"an illegal memory access was encountered: {error}") from error
            for address, found in outputs:
                gpu.MEMORY.view(address, found.nbytes)[:] = found.reshape(-1).view(np.uint8)

        _guarded(lambda: gpu.QUEUES[stream.handle].put(work))

    def compute(self, rows: int, *given: int) -> list[tuple[int, np.ndarray]]:
        raise NotImplementedError


class GatherRows(Function):
    types = "PPPPiiiii"

    def compute(self, rows: int, *given: int) -> list[tuple[int, np.ndarray]]:
        from edgerec._native import gather_states

        tables, starts, lengths, out, tokens, groups, width, stored, number = given
        kind, written = (np.float32, np.int8, np.float16)[stored], ("fp32", "", "fp16", "bf16")[number]
        addresses = gpu.MEMORY.view(tables, 32).view(np.uint64).tolist()
        ends = [gpu.MEMORY.rest(address) for address in addresses]
        one = groups * width * np.dtype(kind).itemsize
        both = []
        for values, scales in (ends[:2], ends[2:]):
            count = min(len(values) // one, len(scales) // (4 * groups)) if stored == 1 else len(values) // one
            of_scales = scales[: 4 * count * groups].view(np.float32) if stored == 1 else np.zeros(0, np.float32)
            both.append((values[: one * count].view(kind), of_scales))
        begins, sizes = gpu.MEMORY.view(starts, 8 * rows).view(np.int64), gpu.MEMORY.view(lengths, 4 * rows).view(np.int32)
        return [(out, gather_states(both, begins, sizes, tokens=tokens, groups=groups, width=width, number=written))]


class GatherPairs(Function):
    types = "PPPPPPPi"

    def compute(self, rows: int, *given: int) -> list[tuple[int, np.ndarray]]:
        from edgerec._native import gather_pairs

        tables, starts, lengths, frame, *outputs, tokens = given
        ends = [gpu.MEMORY.rest(address) for address in gpu.MEMORY.view(tables, 16).view(np.uint64).tolist()]
        both = [end[: len(end) // 4 * 4].view(np.int32) for end in ends]
        begins, sizes = gpu.MEMORY.view(starts, 8 * rows).view(np.int64), gpu.MEMORY.view(lengths, 4 * rows).view(np.int32)
        head, suffix = gpu.MEMORY.view(frame, 8).view(np.int32).tolist()
        numbers = gpu.MEMORY.view(frame, 4 * (5 + head + suffix)).view(np.int32)
        return list(zip(outputs, gather_pairs(both, begins, sizes, numbers, tokens=tokens), strict=True))


KERNELS = {"edr_gather_rows": GatherRows, "edr_gather_pairs": GatherPairs}


class Module:
    def __init__(self, text: bytes) -> None:
        self.text = text

    def get_function(self, name: str) -> Function:
        assert f".entry {name}(".encode() in self.text
        return KERNELS[name]()


def module_from_buffer(text: bytes) -> Module:
    assert text.endswith(b"\0"), "the driver reads PTX up to a zero"
    return _guarded(lambda: Module(text))
