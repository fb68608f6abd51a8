"""One TensorRT plan on one GPU: memory, streams and contexts, all made before the first request.

PyCUDA owns memory and streams, in the device's primary context, which PyTorch in the same process uses, too. A lane serves one call at a
time and has a stream, scratch memory and, for each bucket, an execution context (they are not thread-safe), one packed pinned buffer and
one device buffer: a request is one copy there, one run, one copy back. Where ``cuda.bindings`` is installed the three are one CUDA graph.
"""

from __future__ import annotations

import importlib
import os
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from math import prod
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import EngineError, MissingExtraError
from .trt_plans import PARTS, Plan, Plans, module_name

_ALIGNED = 256
TOKENS = ("input_ids", "attention_mask", "token_type_ids")
FEATURES = ("feature_ids", "feature_weights")
OUTPUT = "logits"


class Launch:
    """Work on one stream, launched plainly or as one CUDA graph; what it does is its `enqueue`."""

    def __init__(self, device: Device, stream: Any) -> None:
        self._device, self._stream = device, stream
        self.graph: Any = None
        self._forget: Callable[[], object] = lambda: None

    def enqueue(self) -> None:
        """Put all of it on the stream, without waiting."""
        raise NotImplementedError

    def start(self) -> None:
        """Launch it, without waiting."""
        (self.graph or self.enqueue)()

    def capture(self, driver: Any) -> None:
        """Record `enqueue` as a CUDA graph. Raises EngineError when the driver or the plan does not allow it."""
        stream = driver.CUstream(int(self._stream.handle))
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

    def run(self) -> None:
        """Launch it and wait; afterwards what is copied back is there. Waiting does not hold the GIL."""
        self.start()
        self._stream.synchronize()


class Slot(Launch):
    """One bucket of one lane. ``views`` are the inputs in pinned memory, by name; ``logits`` is filled by a run, float32 [rows]."""

    def __init__(self, device: Device, stream: Any, scratch: Any, index: int) -> None:
        super().__init__(device, stream)
        cuda = device.cuda
        rows, tokens = device.plans.buckets[index]
        shapes = dict.fromkeys(TOKENS, (rows, tokens))
        if device.plans.slots:
            shapes |= dict.fromkeys(FEATURES, (rows, device.plans.slots))
        starts, size = {}, 0
        for name, shape in shapes.items():
            starts[name] = size
            size += -(-4 * prod(shape) // _ALIGNED) * _ALIGNED
        self._host = cuda.pagelocked_empty(size, np.uint8)
        self._host[:] = 0
        self._inputs, self._outputs = cuda.mem_alloc(size), cuda.mem_alloc(4 * rows)
        self.logits: NDArray[np.float32] = cuda.pagelocked_empty(rows, np.float32)
        self.views: dict[str, Any] = {}
        for name, shape in shapes.items():
            part = self._host[starts[name] : starts[name] + 4 * prod(shape)]
            self.views[name] = part.view(np.float32 if name == "feature_weights" else np.int32).reshape(shape)
        self._context = device.context(scratch)
        agreed(self._context.set_optimization_profile_async(index, stream.handle), f"profile {index}")
        for name, shape in shapes.items():
            agreed(self._context.set_input_shape(name, shape), f"{name} of {list(shape)}")
            agreed(self._context.set_tensor_address(name, int(self._inputs) + starts[name]), f"an address for {name}")
        agreed(self._context.set_tensor_address(OUTPUT, int(self._outputs)), f"an address for {OUTPUT}")
        if unknown := self._context.infer_shapes():
            raise EngineError(f"the plan needs more inputs than edgerec has: {', '.join(unknown)}; build the bundle again")

    def enqueue(self) -> None:
        """Copy there, run, copy back: on the stream, without waiting."""
        cuda = self._device.cuda
        cuda.memcpy_htod_async(self._inputs, self._host, self._stream)
        agreed(self._context.execute_async_v3(self._stream.handle), "to run")
        cuda.memcpy_dtoh_async(self.logits, self._outputs, self._stream)


class Device:
    """A deserialised plan and its lanes.

    Parameters
    ----------
    data : the plans by part, verified.
    plan, plans : what it is, and the buckets it was built for.
    lanes : calls that may be in flight at once; each has device memory of its own.
    graphs : record CUDA graphs where that is possible.

    Attributes
    ----------
    launches : ``CUDA graphs``, or ``plain launches: `` and why.

    Raises
    ------
    MissingExtraError : pycuda is not installed. EngineError : the plan is refused, is of other shapes, or the GPU has not enough memory.
    """

    def __init__(self, data: Mapping[str, bytes], plan: Plan, plans: Plans, *, lanes: int, graphs: bool = True) -> None:
        self.plans, self.launches, self._pid = plans, "plain launches: not asked for", os.getpid()
        self.cuda = _driver()
        self._trt: Any = importlib.import_module(module_name(plan.flavour))
        self.engines: dict[str, Any] = {}
        self._idle: list[Any] = []
        self._lanes, self._closed, self._change = lanes, False, threading.Condition()
        self._kept: list[Any] = []
        with self.guard():
            self.cuda.init()
            self._primary = self.cuda.Device(0).retain_primary_context()
        with self.current():
            self._runtime = self._trt.Runtime(self._trt.Logger(self._trt.Logger.ERROR))
            if plan.version_compatible:  # such a plan brings code of its own for the host; its hash was checked
                self._runtime.engine_host_code_allowed = True
            for name, part in data.items():
                self.engines[name] = self._runtime.deserialize_cuda_engine(part)
                if self.engines[name] is None:
                    raise EngineError(
                        f"{plan.flavour} {self._trt.__version__} refuses {plan.part(name)}, though it fits by plans.json; build it again"
                    )
            self._check_shapes(plan)
            self._idle = [self._lane() for _ in range(lanes)]
            for lane in self._idle:
                for slot in lane:
                    slot.run()  # what a first run sets up belongs here, and must not be captured
            if graphs:
                self._capture()

    @property
    def scratch_bytes(self) -> int:
        """What the scratch memory of a lane needs."""
        return max(1, *(int(engine.device_memory_size_v2) for engine in self.engines.values()))

    def context(self, scratch: Any, part: str = PARTS[0]) -> Any:
        """A new execution context of a part that computes in the lane's scratch memory."""
        strategy = self._trt.ExecutionContextAllocationStrategy.USER_MANAGED
        context = self.engines[part].create_execution_context(strategy)
        if context is None:
            raise EngineError("TensorRT could not make an execution context; is there GPU memory left?")
        context.set_device_memory(int(scratch), self.scratch_bytes)
        return context

    @contextmanager
    def lane(self) -> Iterator[Any]:
        """A free lane, one slot a bucket, for this thread; waits while all are busy. Raises EngineError once closed."""
        if self._pid != os.getpid():
            raise EngineError("the GPU was opened before a fork, and a child process cannot use it; open the bundle in the child")
        with self._change:
            while not self._idle:
                if self._closed:
                    break
                self._change.wait()
            if self._closed:
                raise EngineError("the engine is closed; open the bundle again")
            lane = self._idle.pop()
        try:
            with self.current():
                yield lane
        finally:
            with self._change:
                self._idle.append(lane)
                self._change.notify_all()

    def close(self) -> None:
        """Wait for runs in flight, then release contexts and memory."""
        if self._pid != os.getpid():
            return  # they are the parent's
        with self._change:
            if self._closed:
                return
            self._closed = True
            self._change.notify_all()
            self._change.wait_for(lambda: len(self._idle) == self._lanes)
        with self.current():
            for lane in self._idle:
                for slot in lane:
                    slot.drop_graph()
            # Contexts before their engine, memory while its context is current.
            self._release()
            self._idle.clear()
            self._kept.clear()
            self.engines.clear()
            del self._runtime

    @contextmanager
    def current(self) -> Iterator[None]:
        """Make the primary context this thread's for a while."""
        with self.guard():
            self._primary.push()
            try:
                yield
            finally:
                self._primary.pop()

    @contextmanager
    def guard(self) -> Iterator[None]:
        """Turn what CUDA raises into EngineError."""
        try:
            yield
        # PyCUDA's MemoryError and RuntimeError are its own classes, below its Error; TensorRT's bindings raise the builtin ones.
        except (self.cuda.Error, MemoryError, RuntimeError) as error:
            if isinstance(error, EngineError):
                raise
            raise EngineError(f"the GPU failed: {type(error).__name__}: {error}") from error

    def _workplace(self) -> tuple[Any, Any]:
        """A stream and scratch memory for one lane."""
        stream, scratch = self.cuda.Stream(), self.cuda.mem_alloc(self.scratch_bytes)
        self._kept += [stream, scratch]
        return stream, scratch

    def _release(self) -> None:
        """Give back what a subclass holds beside its lanes."""

    def _lane(self) -> Any:
        stream, scratch = self._workplace()
        return [Slot(self, stream, scratch, index) for index in range(len(self.plans.buckets))]

    def _capture(self) -> None:
        try:
            driver = importlib.import_module("cuda.bindings.driver")
        except ImportError as error:
            self.launches = f"plain launches: cuda.bindings cannot be imported ({error})"
            return
        try:
            for lane in self._idle:
                for slot in lane:
                    slot.capture(driver)
                    slot.run()
        except (EngineError, self.cuda.Error) as error:
            for lane in self._idle:
                for slot in lane:
                    slot.drop_graph()
            self.launches = f"plain launches: {error}"
            return
        self.launches = "CUDA graphs"

    def _check_shapes(self, plan: Plan) -> None:
        """The plan's inputs and profiles are those that plans.json says."""
        engine = self.engines[PARTS[0]]
        names = {engine.get_tensor_name(i) for i in range(engine.num_io_tensors)}
        wanted = {*TOKENS, *(FEATURES if self.plans.slots else ()), OUTPUT}
        if names != wanted or engine.num_optimization_profiles != len(self.plans.buckets):
            raise EngineError(
                f"{plan.file} has {', '.join(sorted(names))} and {engine.num_optimization_profiles} profiles, expected others"
            )
        for index, bucket in enumerate(self.plans.buckets):
            found = tuple(engine.get_tensor_profile_shape(TOKENS[0], index)[2])
            if found != bucket:
                raise EngineError(
                    f"{plan.file}: profile {index} is of {list(found)}, plans.json says {list(bucket)}; build the bundle again"
                )


def _driver() -> Any:
    try:
        return importlib.import_module("pycuda.driver")
    except ModuleNotFoundError as error:
        raise MissingExtraError("pycuda", "tensorrt") from error
    except ImportError as error:
        raise EngineError(f"pycuda cannot be imported: {error}; it needs the NVIDIA driver and CUDA's libraries") from error


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
