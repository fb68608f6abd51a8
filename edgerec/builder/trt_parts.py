"""What becomes plans: the graphs of a student, typed, and the shapes of each; and the same arithmetic on a CPU."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ..engine import Engine
from ..engine.mid import MidLayout
from ..engine.trt_plans import Buckets, item_buckets
from ..errors import EngineError
from ..types import Batch
from .calibrate import calibrate, channel_ranges
from .contract import Export
from .parity import plain_session
from .quantize import Ranges
from .trt_half import HALVES, halve
from .trt_mid import STATES, cut_mid, emulated_mid, one_query, sample_mid
from .trt_qdq import EIGHTS, quantise
from .trt_shapes import FEW, MANY, check_buckets, choose_buckets, choose_lengths

Shapes = Mapping[str, tuple[int, ...]]


@dataclass(frozen=True, slots=True)
class Part:
    """One graph, which becomes one plan for each target.

    Attributes
    ----------
    typed : what TensorRT gets.
    profiles : the shape of each input; one for each bucket.
    """

    typed: bytes
    profiles: tuple[Shapes, ...]


@dataclass(frozen=True, slots=True)
class Parts:
    """A student in parts.

    Attributes
    ----------
    parts : by name, ``engine`` first; a plan is ``NAME.TARGET.plan``.
    emulation : opens the same arithmetic in float32, rounded wherever the graphs round: what the plans should give, where no GPU is.
    """

    parts: Mapping[str, Part]
    emulation: Callable[[], Engine]


@dataclass(frozen=True, slots=True)
class Sizes:
    """For what shapes plans are built; as in `Plans`."""

    buckets: Buckets
    asking: tuple[int, ...]
    slots: int


def sizes_of(export: Export, buckets: Buckets) -> Sizes:
    """Those asked for, else those that suit the calibration rows. Raises BuildError."""
    batch, limits = export.calibration.batch, export.limits
    slots = batch.feature_ids.shape[1] if limits.buckets else 0
    if export.states is None:
        return Sizes(check_buckets(buckets or choose_buckets(batch.attention_mask, limits.tokens), limits.tokens), (), slots)
    layout = MidLayout.from_model(export.model, limits)
    asking = (batch.attention_mask == 1) & (batch.token_type_ids == layout.query_type)
    item = batch.attention_mask - asking.astype(np.int32)
    found = buckets or choose_buckets(item, layout.item_tokens, rows=(FEW, MANY))
    return Sizes(check_buckets(found, layout.item_tokens, rows=MANY), choose_lengths(asking, layout.item_start), slots)


def make_parts(export: Export, precision: str, sizes: Sizes) -> Parts:
    """The graphs in a precision, for these shapes. Raises BuildError."""
    return _cross(export, precision, sizes) if export.states is None else _mid(export, precision, sizes)


def typed_graphs(
    graph: bytes, precision: str, ranges: Callable[[], Ranges], inputs: tuple[str, ...] = (), what: str = "student.onnx"
) -> tuple[bytes, bytes]:
    """The graph that TensorRT gets, and the same arithmetic in float32 for a CPU.

    Parameters
    ----------
    ranges : of the graph's products; asked for 8-bit ones alone.
    inputs : float32 inputs that are half where products are.

    Raises
    ------
    BuildError : a weight has no such number, or there is nothing to quantise.
    """
    if precision == "fp32":
        return graph, graph
    half = precision if precision in HALVES else "fp16"
    if precision in EIGHTS:
        graph = quantise(graph, precision, ranges())
    return halve(graph, half, inputs=inputs), halve(graph, half, emulate=True, inputs=inputs)


def _cross(export: Export, precision: str, sizes: Sizes) -> Parts:
    typed, emulated = typed_graphs(export.graph, precision, lambda: calibrate(export.graph, export.calibration.batch))
    tokens = ("input_ids", "attention_mask", "token_type_ids")
    profiles = tuple({**dict.fromkeys(tokens, bucket), **_features(bucket[0], sizes.slots)} for bucket in sizes.buckets)
    return Parts({"engine": Part(typed, profiles)}, lambda: EmulatedEngine(emulated, precision))


def _mid(export: Export, precision: str, sizes: Sizes) -> Parts:
    graphs, spec, hidden = cut_mid(export), export.states, int(export.model["student"]["hidden"])
    assert spec is not None
    samples = sample_mid(export, graphs) if precision in EIGHTS else {}
    both = {
        name: typed_graphs(
            graph,
            precision,
            lambda name=name, graph=graph: channel_ranges(graph, samples[name], name),  # type: ignore[misc]
            (STATES,) if name == "engine" else (),
            name,
        )
        for name, graph in graphs.items()
    }
    profiles: dict[str, list[Shapes]] = {
        "engine": [
            {
                "queries": (1, asking, hidden),
                "query_lengths": (1,),
                "states": (rows, tokens, spec.numbers),
                "item_lengths": (rows,),
                **_features(rows, sizes.slots),
            }
            for asking in sizes.asking
            for rows, tokens in sizes.buckets
        ],
        "query": [{"query_ids": (1, asking), "query_lengths": (1,)} for asking in sizes.asking],
        "items": [{"item_ids": bucket, "item_lengths": bucket[:1]} for bucket in item_buckets(sizes.buckets)],
    }
    typed = {name: one_query(pair[0]) if name == "engine" else pair[0] for name, pair in both.items()}
    emulated = {name: pair[1] for name, pair in both.items()}
    return Parts(
        {name: Part(typed[name], tuple(profiles[name])) for name in ("engine", "query", "items")},
        lambda: emulated_mid(export, emulated, precision),
    )


def _features(rows: int, slots: int) -> dict[str, tuple[int, ...]]:
    return dict.fromkeys(("feature_ids", "feature_weights"), (rows, slots)) if slots else {}


class EmulatedEngine:
    """A cross student's typed graph on the CPU."""

    backend = "tensorrt"

    def __init__(self, graph: bytes, precision: str) -> None:
        self.precision = precision
        self._session = plain_session(graph)
        self._names = [value.name for value in self._session.get_inputs()]

    def run(self, batch: Batch) -> NDArray[np.float32]:
        """Logits, float32 [B]. Raises EngineError."""
        try:
            return np.asarray(self._session.run(["logits"], {name: getattr(batch, name) for name in self._names})[0], np.float32)
        # ONNX Runtime's exceptions share no base class but Exception.
        except Exception as error:
            raise EngineError(f"onnxruntime cannot run the {self.precision} graph: {error}") from error

    def close(self) -> None:
        """Nothing is held that the garbage collector does not know."""
