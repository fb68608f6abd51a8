"""The three plans of a mid-fusion student on one GPU, and the kernel that widens item states there (csrc/gather.cu).

A lane has the rows of one query, the numbers of one bucket's states, and room for stored states that come along with a request. Of these,
and of where the rows lie, the kernel makes what the joint layers read.

Shape letters: B rows, U items, R query tokens, T tokens, H hidden, G states of a token, W width of a state.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from itertools import chain
from math import prod
from typing import Any

import numpy as np

from ..errors import EngineError
from ..states import PRECISIONS, StateSpec
from .trt_device import FEATURES, OUTPUT, THREADS, Device
from .trt_plans import PARTS, Plan, Plans, item_buckets
from .trt_work import Packed, Work

STORED: Mapping[str, int] = {"fp32": 0, "int8": 1, "fp16": 2}
"""What csrc/gather.h calls the precisions of stored states."""
_NUMBER = {"fp32": (0, 4), "bf16": (3, 2)}  # others compute in fp16
STAGED_BYTES = 16 << 20
"""Stored states that come along with one launch."""


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
        return Work(self._device.cuda, self.stream, self._asked, [run])

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
            kernel.prepared_async_call((rows, 1, 1), (THREADS, 1, 1), stream, *given, *sizes)

        return Work(device.cuda, self.stream, inputs, [gather, run], (device.cuda.pagelocked_empty(rows, np.float32), logits))

    def _items(self, place: int, rows: int, tokens: int) -> Work:
        device, numbers = self._device, self._device.spec.numbers
        inputs = Packed(device.cuda, {"item_ids": ((rows, tokens), np.int32), "item_lengths": ((rows,), np.int32)})
        states = device.cuda.mem_alloc(4 * rows * tokens * numbers)
        shapes = {"item_ids": (rows, tokens), "item_lengths": (rows,)}
        run = self._bind("items", place, shapes, {**inputs.addresses, "states": int(states)})
        return Work(device.cuda, self.stream, inputs, [run], (device.cuda.pagelocked_empty((rows, tokens, numbers), np.float32), states))

    def _bind(self, part: str, profile: int, shapes: Mapping[str, tuple[int, ...]], addresses: Mapping[str, int]) -> Callable[[], None]:
        device = self._device
        return device.bind(part, profile, shapes, addresses, _OUTPUTS[part], stream=self.stream, scratch=self._scratch)


_OUTPUTS = {"engine": OUTPUT, "query": "queries", "items": "states"}


class MidDevice(Device):
    """The plans of a mid-fusion student and their lanes, each a `MidLane`. Parameters and errors as of `Device`.

    Attributes
    ----------
    spec, hidden : of the student.
    number : what the joint layers read: its number in csrc/gather.h, and its bytes.
    """

    KERNEL = ("edr_gather_rows", "PPPPiiiii")

    def __init__(
        self, data: Mapping[str, bytes], plan: Plan, plans: Plans, spec: StateSpec, hidden: int, precision: str, *, lanes: int
    ) -> None:
        self.spec, self.hidden, self.number = spec, hidden, _NUMBER.get(precision, (2, 2))
        super().__init__(data, plan, plans, lanes=lanes, columns=((spec.numbers, PRECISIONS[spec.precision]), (spec.scales, np.float32)))

    def _load_kernel(self) -> None:
        self.kernel = self._compiled()

    def _lane(self) -> MidLane:
        return MidLane(self, *self._workplace())

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
