"""The three plans of a mid-fusion student on one GPU, and the kernel that widens item states there (csrc/gather.cu).

A lane has the rows of one query, the numbers of one bucket's states, and room for stored states that come along with a request. Of these,
and of where the rows lie, the kernel makes what the joint layers read.

Shape letters: B rows, U items, R query tokens, T tokens, H hidden, G states of a token, W width of a state.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import chain
from math import prod
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import EngineError
from ..states import PRECISIONS, StateSpec
from .trt_device import FEATURES, OUTPUT, Device, Launch, agreed
from .trt_kept import KeptStates
from .trt_plans import PARTS, Plan, Plans, item_buckets

KERNEL, PTX = "edr_gather_rows", Path(__file__).with_name("gather.ptx")
STORED: Mapping[str, int] = {"fp32": 0, "int8": 1, "fp16": 2}
"""What csrc/gather.h calls the precisions of stored states."""
_NUMBER = {"fp32": (0, 4), "bf16": (3, 2)}  # others compute in fp16
_THREADS = 256
_ALIGNED = 256
STAGED_BYTES = 16 << 20
"""Stored states that come along with one launch."""


class Packed:
    """Arrays that travel in one copy: ``views`` in pinned memory by name, and ``addresses`` of the same on the GPU."""

    def __init__(self, cuda: Any, arrays: Mapping[str, tuple[tuple[int, ...], type[np.generic]]]) -> None:
        starts, size = {}, 0
        for name, (shape, kind) in arrays.items():
            starts[name] = size
            size += -(-max(1, np.dtype(kind).itemsize * prod(shape)) // _ALIGNED) * _ALIGNED
        self.host, self.memory = cuda.pagelocked_empty(size, np.uint8), cuda.mem_alloc(size)
        self.host[:] = 0
        self.addresses = {name: int(self.memory) + start for name, start in starts.items()}
        self.views: dict[str, Any] = {}
        for name, (shape, kind) in arrays.items():
            end = starts[name] + np.dtype(kind).itemsize * prod(shape)
            self.views[name] = self.host[starts[name] : end].view(kind).reshape(shape)


class Work(Launch):
    """Inputs there, some steps, a result back. ``result`` is in pinned memory, float32."""

    def __init__(
        self, device: Device, stream: Any, inputs: Packed, steps: Sequence[Callable[[], object]], back: tuple[Any, Any] | None = None
    ) -> None:
        super().__init__(device, stream)
        self.inputs, self.result = inputs, None if back is None else back[0]
        self._steps, self._back = steps, back

    def enqueue(self) -> None:
        """See `Launch`."""
        cuda = self._device.cuda
        cuda.memcpy_htod_async(self.inputs.memory, self.inputs.host, self._stream)
        for step in self._steps:
            step()
        if self._back is not None:
            cuda.memcpy_dtoh_async(*self._back, self._stream)


class MidLane:
    """What one call uses. ``query`` by length, ``joint`` by length and bucket, ``items`` by length: each a `Work`.

    ``queries`` on the GPU are the rows of the query that was asked last; ``staged`` is room for stored states.
    """

    def __init__(self, device: MidDevice, stream: Any, scratch: Any) -> None:
        cuda, plans, spec = device.cuda, device.plans, device.spec
        self._device, self._scratch, self.stream = device, scratch, stream
        self.queries = cuda.mem_alloc(4 * plans.asking[-1] * device.hidden)
        self.rows = cuda.pagelocked_empty((plans.asking[-1], device.hidden), np.float32)
        longest = max(tokens for _, tokens in plans.buckets)
        self.room = max(longest, STAGED_BYTES // spec.token_bytes)
        self.staged = Packed(
            cuda, {"values": ((self.room, spec.numbers), PRECISIONS[spec.precision]), "scales": ((self.room, spec.scales), np.float32)}
        )
        self._asked = Packed(cuda, {"query_lengths": ((1,), np.int32), "query_ids": ((1, plans.asking[-1]), np.int32)})
        most = max(prod(bucket) for bucket in plans.buckets)
        self._gathered = cuda.mem_alloc(most * spec.numbers * device.number[1])
        self.query = [self._query(place, length) for place, length in enumerate(plans.asking)]
        self.joint = [[self._joint(a, i) for i in range(len(plans.buckets))] for a in range(len(plans.asking))]
        self.items = [self._items(place, *bucket) for place, bucket in enumerate(item_buckets(plans.buckets))]

    def __iter__(self) -> Iterator[Work]:
        return chain(self.query, *self.joint, self.items)

    def _query(self, place: int, length: int) -> Work:
        addresses = {**self._asked.addresses, "queries": int(self.queries)}
        run = self._bind("query", place, {"query_ids": (1, length), "query_lengths": (1,)}, addresses)
        return Work(self._device, self.stream, self._asked, [run])

    def _joint(self, asking: int, place: int) -> Work:
        device, plans, spec = self._device, self._device.plans, self._device.spec
        rows, tokens = plans.buckets[place]
        features = dict.fromkeys(FEATURES, (rows, plans.slots)) if plans.slots else {}
        inputs = Packed(
            device.cuda,
            {
                "tables": ((4,), np.uint64),
                "starts": ((rows,), np.int64),
                "item_lengths": ((rows,), np.int32),
                **{name: (shape, np.float32 if name == FEATURES[1] else np.int32) for name, shape in features.items()},
            },
        )
        logits = device.cuda.mem_alloc(4 * rows)
        addresses = {**self._asked.addresses, **inputs.addresses, "queries": int(self.queries), "states": int(self._gathered)}
        shapes = {
            "queries": (1, plans.asking[asking], device.hidden),
            "query_lengths": (1,),
            "states": (rows, tokens, spec.numbers),
            "item_lengths": (rows,),
            **features,
        }
        run = self._bind("engine", asking * len(plans.buckets) + place, shapes, {**addresses, OUTPUT: int(logits)})
        given = (*(inputs.addresses[name] for name in ("tables", "starts", "item_lengths")), int(self._gathered))
        sizes = (tokens, spec.groups, spec.width, STORED[spec.precision], device.number[0])

        kernel, stream = device.kernel, self.stream  # and not the lane: memory is to go when the last lane does, without the collector

        def gather() -> None:
            kernel.prepared_async_call((rows, 1, 1), (_THREADS, 1, 1), stream, *given, *sizes)

        return Work(device, self.stream, inputs, [gather, run], (device.cuda.pagelocked_empty(rows, np.float32), logits))

    def _items(self, place: int, rows: int, tokens: int) -> Work:
        device, numbers = self._device, self._device.spec.numbers
        inputs = Packed(device.cuda, {"item_ids": ((rows, tokens), np.int32), "item_lengths": ((rows,), np.int32)})
        states = device.cuda.mem_alloc(4 * rows * tokens * numbers)
        shapes = {"item_ids": (rows, tokens), "item_lengths": (rows,)}
        run = self._bind("items", place, shapes, {**inputs.addresses, "states": int(states)})
        return Work(device, self.stream, inputs, [run], (device.cuda.pagelocked_empty((rows, tokens, numbers), np.float32), states))

    def _bind(self, part: str, profile: int, shapes: Mapping[str, tuple[int, ...]], addresses: Mapping[str, int]) -> Callable[[], None]:
        """A context of a part that reads and writes there; returns what puts a run of it on the stream."""
        context = self._device.context(self._scratch, part)
        agreed(context.set_optimization_profile_async(profile, self.stream.handle), f"profile {profile} of {part}")
        for name, shape in shapes.items():
            agreed(context.set_input_shape(name, shape), f"{name} of {list(shape)}")
        for name in (*shapes, _OUTPUTS[part]):
            agreed(context.set_tensor_address(name, addresses[name]), f"an address for {name}")
        if unknown := context.infer_shapes():
            raise EngineError(f"the plan needs more inputs than edgerec has: {', '.join(unknown)}; build the bundle again")
        stream = self.stream
        return lambda: agreed(context.execute_async_v3(stream.handle), f"to run {part}")


_OUTPUTS = {"engine": OUTPUT, "query": "queries", "items": "states"}


class MidDevice(Device):
    """The plans of a mid-fusion student and their lanes, each a `MidLane`. Parameters and errors as of `Device`.

    Attributes
    ----------
    spec, hidden : of the student.
    number : what the joint layers read: its number in csrc/gather.h, and its bytes.
    kernel : `edr_gather_rows`.
    states : those of the catalogue that are here.
    """

    def __init__(
        self, data: Mapping[str, bytes], plan: Plan, plans: Plans, spec: StateSpec, hidden: int, precision: str, *, lanes: int
    ) -> None:
        self.spec, self.hidden, self.number = spec, hidden, _NUMBER.get(precision, (2, 2))
        self.kernel: Any = None
        self.states = KeptStates(self, spec)
        super().__init__(data, plan, plans, lanes=lanes)

    def _lane(self) -> MidLane:
        if self.kernel is None:
            # The driver compiles it for the GPU at hand, and keeps what it compiled.
            module = self.cuda.module_from_buffer(PTX.read_bytes() + b"\0")
            self.kernel = module.get_function(KERNEL)
            self.kernel.prepare("PPPPiiiii")
            self._kept += [module]
        return MidLane(self, *self._workplace())

    def _release(self) -> None:
        self.states.close()

    def _check_shapes(self, plan: Plan) -> None:
        """The plans' names and profiles are those that plans.json says."""
        features = FEATURES if self.plans.slots else ()
        wanted = {
            "engine": ({"queries", "query_lengths", "states", "item_lengths", *features}, len(self.plans.asking) * len(self.plans.buckets)),
            "query": ({"query_ids", "query_lengths"}, len(self.plans.asking)),
            "items": ({"item_ids", "item_lengths"}, len(item_buckets(self.plans.buckets))),
        }
        for part in PARTS:
            engine, (names, profiles) = self.engines[part], wanted[part]
            found = {engine.get_tensor_name(i) for i in range(engine.num_io_tensors)}
            if found != names | {_OUTPUTS[part]} or engine.num_optimization_profiles != profiles:
                raise EngineError(
                    f"{plan.part(part)} has {', '.join(sorted(found))} and {engine.num_optimization_profiles} profiles, expected others; "
                    "build the bundle again"
                )
