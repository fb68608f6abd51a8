"""One TensorRT plan on one GPU: memory, streams and contexts, all made before the first request.

PyCUDA owns memory and streams, in the device's primary context, which PyTorch in the same process uses, too. A lane serves one call at a
time and has a stream, scratch memory and, for each bucket, an execution context (they are not thread-safe), one packed pinned buffer and
one device buffer: a request is one copy there, one run, one copy back. Where ``cuda.bindings`` is installed they are one CUDA graph.
"""

from __future__ import annotations

import importlib
import os
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from math import prod
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import EngineError, MissingExtraError
from .trt_kept import KeptTables
from .trt_plans import PARTS, Plan, Plans, module_name
from .trt_work import Packed, Work, agreed

PTX, THREADS = Path(__file__).with_name("gather.ptx"), 256
"""csrc/gather.cu, and threads of a block of its kernels."""
FRAME = 5
"""Numbers of a frame before its tokens: `EDR_FRAME_TOKENS` of csrc/gather.h."""
TOKENS = ("input_ids", "attention_mask", "token_type_ids")
FEATURES = ("feature_ids", "feature_weights")
OUTPUT = "logits"


class Slot:
    """One bucket of one lane: a context of the plan, and the two ways in which rows come to it. The `Work` ``rows`` brings them whole,
    ``items`` the query, where each item's tokens lie, and the features: the GPU joins them (csrc/gather.cu); None without a kernel.

    Of the inputs, the tokens come first and what is joined last: each way is one copy, and the features in the middle belong to both.
    """

    def __init__(self, device: Device, stream: Any, scratch: Any, index: int) -> None:
        cuda, slots = device.cuda, device.plans.slots
        rows, tokens = device.plans.buckets[index]
        arrays: dict[str, tuple[tuple[int, ...], type[np.generic]]] = dict.fromkeys(TOKENS, ((rows, tokens), np.int32))
        if slots:
            arrays |= {FEATURES[0]: ((rows, slots), np.int32), FEATURES[1]: ((rows, slots), np.float32)}
        names = tuple(arrays)
        arrays |= {"tables": ((2,), np.uint64), "starts": ((rows,), np.int64), "lengths": ((rows,), np.int32)}
        arrays |= {"frame": ((FRAME + tokens,), np.int32)}
        inputs, logits = Packed(cuda, arrays), cuda.mem_alloc(4 * rows)
        addresses, back = {**inputs.addresses, OUTPUT: int(logits)}, (cuda.pagelocked_empty(rows, np.float32), logits)
        run = device.bind(PARTS[0], index, {name: arrays[name][0] for name in names}, addresses, OUTPUT, stream=stream, scratch=scratch)
        self.rows = Work(cuda, stream, inputs, [run], back, sent=inputs.part(names[0], "tables"))
        self.items: Work | None = None
        if (kernel := device.kernel) is not None:
            given = [addresses[name] for name in ("tables", "starts", "lengths", "frame", *TOKENS)]

            def join() -> None:
                kernel.prepared_async_call((rows, 1, 1), (THREADS, 1, 1), stream, *given, tokens)

            self.items = Work(cuda, stream, inputs, [join, run], back, sent=inputs.part(FEATURES[0] if slots else "tables"))


class Lane:
    """What one call uses: ``slots`` by bucket, and ``staged``, room for tokens of items that come along with a request."""

    def __init__(self, device: Device, stream: Any, scratch: Any) -> None:
        self.stream = stream
        self.slots = [Slot(device, stream, scratch, index) for index in range(len(device.plans.buckets))]
        most = max(prod(bucket) for bucket in device.plans.buckets)
        self.staged = Packed(device.cuda, {"tokens": ((most,), np.int32)}) if device.kernel is not None else None

    def __iter__(self) -> Iterator[Work]:
        for slot in self.slots:
            yield slot.rows
            if slot.items is not None:
                yield slot.items


class Device:
    """A deserialised plan and its lanes.

    Parameters
    ----------
    data : the plans by part, verified.
    plan, plans : what it is, and the buckets it was built for.
    lanes : calls that may be in flight at once; each has device memory of its own.
    columns, check : of a catalogue's tables, as of `KeptTables`.
    graphs : record CUDA graphs where that is possible.

    Attributes
    ----------
    launches : ``CUDA graphs``, or ``plain launches: `` and why.
    kernel : of csrc/gather.cu, the one in ``KERNEL``; None where the driver refuses it, and `kept` says why.
    kept : the tables of a catalogue that are here.

    Raises
    ------
    MissingExtraError : pycuda is not installed. EngineError : the plan is refused, is of other shapes, or the GPU has not enough memory.
    """

    KERNEL = ("edr_gather_pairs", "PPPPPPPi")
    """The kernel's name, and the types of what it is given, as PyCUDA names them."""

    def __init__(
        self,
        data: Mapping[str, bytes],
        plan: Plan,
        plans: Plans,
        *,
        lanes: int,
        graphs: bool = True,
        columns: Sequence[tuple[int, type[np.generic]]] = ((1, np.int32),),
        check: Callable[[Any], None] = lambda values: None,
    ) -> None:
        self.plans, self.launches, self._pid = plans, "plain launches: not asked for", os.getpid()
        self.cuda = _driver()
        self._trt: Any = importlib.import_module(module_name(plan.flavour))
        self.engines: dict[str, Any] = {}
        self._runtime: Any = None
        self._idle: list[Any] = []
        self._lanes, self._closed, self._change = lanes, False, threading.Condition()
        self._held: list[Any] = []
        self.kernel: Any = None
        self.kept = KeptTables(self, columns, check)
        with self.guard():
            self.cuda.init()
            self._primary = self.cuda.Device(0).retain_primary_context()
        try:
            with self.current():
                self._open(data, plan, graphs)
            return
        except EngineError as error:
            why = str(error)
        # After the error, whose traceback holds what it had come to; lanes and device hold each other. Nothing is left to the collector.
        with self.current():
            self._release()
        raise EngineError(why)

    def _open(self, data: Mapping[str, bytes], plan: Plan, graphs: bool) -> None:
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
        self._load_kernel()
        self._idle += [self._lane() for _ in range(self._lanes)]
        for lane in self._idle:
            for work in lane:
                work.run()  # what a first run sets up belongs here, and must not be captured
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
        """A free lane for this thread; waits while all are busy. Raises EngineError once closed."""
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
            self._release()

    def _release(self) -> None:
        """Contexts before their engine, memory while its context is current."""
        for lane in self._idle:
            for work in lane:
                work.drop_graph()
        self.kept.close()
        self._idle.clear()
        self._held.clear()
        self.kernel = None
        self.engines.clear()
        self._runtime = None

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

    def bind(
        self,
        part: str,
        profile: int,
        shapes: Mapping[str, tuple[int, ...]],
        addresses: Mapping[str, int],
        output: str,
        *,
        stream: Any,
        scratch: Any,
    ) -> Callable[[], None]:
        """A context of a part, with inputs of these shapes, that reads and writes at these addresses; returns what puts a run of it on the
        stream. Raises EngineError."""
        context = self.context(scratch, part)
        agreed(context.set_optimization_profile_async(profile, stream.handle), f"profile {profile} of {part}")
        for name, shape in shapes.items():
            agreed(context.set_input_shape(name, shape), f"{name} of {list(shape)}")
        for name in (*shapes, output):
            agreed(context.set_tensor_address(name, addresses[name]), f"an address for {name}")
        if unknown := context.infer_shapes():
            raise EngineError(f"the plan needs more inputs than edgerec has: {', '.join(unknown)}; build the bundle again")
        return lambda: agreed(context.execute_async_v3(stream.handle), f"to run {part}")

    def _workplace(self) -> tuple[Any, Any]:
        """A stream and scratch memory for one lane."""
        stream, scratch = self.cuda.Stream(), self.cuda.mem_alloc(self.scratch_bytes)
        self._held += [stream, scratch]
        return stream, scratch

    def _load_kernel(self) -> None:
        """The driver compiles it for the GPU at hand, and keeps what it compiled. Rows can do without: the host joins them then."""
        try:
            self.kernel = self._compiled()
        except self.cuda.Error as error:
            self.kept.failed = f"the driver refuses {PTX.name}: {error}"

    def _compiled(self) -> Any:
        module = self.cuda.module_from_buffer(PTX.read_bytes() + b"\0")
        name, types = self.KERNEL
        kernel = module.get_function(name)
        kernel.prepare(types)
        self._held += [module]
        return kernel

    def _lane(self) -> Any:
        return Lane(self, *self._workplace())

    def _capture(self) -> None:
        try:
            driver = importlib.import_module("cuda.bindings.driver")
        except ImportError as error:
            self.launches = f"plain launches: cuda.bindings cannot be imported ({error})"
            return
        try:
            for lane in self._idle:
                for work in lane:
                    work.capture(driver)
                    work.run()
        except (EngineError, self.cuda.Error) as error:
            for lane in self._idle:
                for work in lane:
                    work.drop_graph()
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
