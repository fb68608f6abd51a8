"""Work on a GPU's stream: what travels there in one copy, the steps, what comes back; launched plainly or as one CUDA graph."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from math import prod
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import EngineError

_ALIGNED = 256
Step = Callable[[], object]
Arrays = Mapping[str, tuple[tuple[int, ...], type[np.generic]]]


class Packed:
    """Arrays that lie one after the other: ``views`` in pinned memory by name, and ``addresses`` of the same on the GPU.

    Parameters
    ----------
    cuda : PyCUDA's driver.
    arrays : their shapes and types, by name, in this order.
    """

    def __init__(self, cuda: Any, arrays: Arrays) -> None:
        sizes = {name: np.dtype(kind).itemsize * prod(shape) for name, (shape, kind) in arrays.items()}
        self._starts, self._end = {}, 0
        for name, size in sizes.items():
            self._starts[name] = self._end
            self._end += -(-max(1, size) // _ALIGNED) * _ALIGNED
        self._host, self._memory = cuda.pagelocked_empty(self._end, np.uint8), cuda.mem_alloc(self._end)
        self._host[:] = 0
        self.addresses = {name: int(self._memory) + start for name, start in self._starts.items()}
        self.views: dict[str, Any] = {}
        for name, (shape, kind) in arrays.items():
            part = self._host[self._starts[name] : self._starts[name] + sizes[name]]
            self.views[name] = part.view(kind).reshape(shape)

    def part(self, first: str, end: str = "") -> tuple[int, NDArray[np.uint8]]:
        """The address and the bytes from one array on, up to another: what one copy takes there."""
        begin, stop = self._starts[first], self._starts[end] if end else self._end
        return int(self._memory) + begin, self._host[begin:stop]

    @property
    def whole(self) -> tuple[int, NDArray[np.uint8]]:
        """All of them, as `part`."""
        return self.part(next(iter(self._starts)))


class Work:
    """Inputs there, some steps, a result back, on one stream. ``result`` is in pinned memory, float32.

    Parameters
    ----------
    cuda, stream : PyCUDA's driver, and one of its streams.
    inputs : where `sent` lies.
    sent : the address and the bytes that travel.
    steps : each puts something on the stream, without waiting.
    back : where the result goes, and where it is on the GPU.
    """

    def __init__(
        self,
        cuda: Any,
        stream: Any,
        inputs: Packed,
        steps: Sequence[Step],
        back: tuple[Any, Any] | None = None,
        *,
        sent: tuple[int, NDArray[np.uint8]] | None = None,
    ) -> None:
        self.inputs = inputs
        self.result: Any = None if back is None else back[0]
        self.stream = stream
        self.graph: Step | None = None
        self._cuda, self._sent, self._steps, self._back = cuda, sent or inputs.whole, steps, back
        self._forget: Step = lambda: None

    def enqueue(self) -> None:
        """Put all of it on the stream, without waiting."""
        self._cuda.memcpy_htod_async(*self._sent, self.stream)
        for step in self._steps:
            step()
        if self._back is not None:
            self._cuda.memcpy_dtoh_async(*self._back, self.stream)

    def start(self) -> None:
        """Launch it, without waiting."""
        (self.graph or self.enqueue)()

    def run(self) -> None:
        """Launch it and wait; afterwards what is copied back is there. Waiting does not hold the GIL."""
        self.start()
        self.stream.synchronize()

    def capture(self, driver: Any) -> None:
        """Record `enqueue` as a CUDA graph. Raises EngineError when the driver or the plan does not allow it."""
        stream = driver.CUstream(int(self.stream.handle))
        _status(driver.cuStreamBeginCapture(stream, driver.CUstreamCaptureMode.CU_STREAM_CAPTURE_MODE_THREAD_LOCAL))
        try:
            self.enqueue()
        finally:
            graph = _status(driver.cuStreamEndCapture(stream))
        executable = _status(driver.cuGraphInstantiate(graph, 0))
        _status(driver.cuGraphDestroy(graph))
        self.graph = lambda: _status(driver.cuGraphLaunch(executable, stream))
        self._forget = lambda: driver.cuGraphExecDestroy(executable)

    def drop_graph(self) -> None:
        """Launch plainly from now on."""
        self.graph, forget, self._forget = None, self._forget, lambda: None
        forget()


def agreed(value: Any, what: str) -> None:
    """Raise EngineError unless TensorRT said yes."""
    if not value:
        raise EngineError(f"TensorRT refuses {what}")


def _status(result: Any) -> Any:
    """What a call of ``cuda.bindings`` returned beside its status. Raises EngineError."""
    status, *rest = result
    if int(status):
        raise EngineError(f"the GPU failed: {status}")
    return rest[0] if rest else None
