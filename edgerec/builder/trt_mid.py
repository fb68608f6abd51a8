"""A mid-fusion student for TensorRT: three graphs, cut so that a request has to move little.

``query``: the layers that see the query alone, once a request. ``engine``: the joint layers, over states that lie on the GPU already, as
the numbers that its products read. ``items``: the item encoder. A plan of ``engine`` ranks the candidates of one query.

Shape letters: B rows, Q queries, R query tokens, T tokens, G states of a token, W width of a state.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper
from onnx.onnx_pb import GraphProto

from ..engine.mid import Ints, MidRunner
from ..errors import BuildError, EngineError
from ..types import StateBatch
from .calibrate import Sample
from .contract import Export
from .parity import plain_session, split
from .split import QUERIES, map_before_rows, part, split_query

Floats = NDArray[np.float32]
STATES, SCALES = "states", "state_scales"
_ROWS = 32
_READING = frozenset({"Cast", "Reshape", "Unsqueeze", "Mul"})
"""What a ranker does with stored states to get numbers."""


def cut_mid(export: Export) -> dict[str, bytes]:
    """The three graphs in fp32, by name; ``engine`` still tells queries apart, and takes states as `plain_states` makes it.

    What a query's rows go through first, before they meet an item, ``engine`` computes once a query.

    Raises
    ------
    BuildError : the ranker is not built as an exporter builds it.
    """
    query, joint = split_query(export.graph)
    return {"query": query, "engine": plain_states(map_before_rows(joint)), "items": export.item_graph}


def plain_states(graph: bytes) -> bytes:
    """The ranker with ``states`` as float32 numbers [B, T, G * W], whatever was stored: what turns one into the other is cut off.

    Raises
    ------
    BuildError : it is not cut off in one place.
    """
    model = onnx.load_model_from_string(graph)
    made = {STATES, SCALES}
    for node in model.graph.node:
        if node.op_type in _READING and not made.isdisjoint(node.input):
            made.update(node.output)
    readers = [node for node in model.graph.node if node.op_type not in (*_READING, "Shape")]
    ends = {name for node in readers for name in node.input if name in made}
    if len(ends) != 1:
        raise BuildError(f"ranker.onnx reads its states in {len(ends)} places, expected 1; export the student again")
    _rename(model.graph, ends.pop(), STATES)
    inputs = [value for value in model.graph.input if value.name != SCALES]
    next(value for value in inputs if value.name == STATES).type.tensor_type.elem_type = TensorProto.FLOAT
    return part(model, inputs, list(model.graph.output))


def one_query(graph: bytes) -> bytes:
    """The ranker for the candidates of one query: ``query_index`` is 0 in every row, and no token ids are left to give.

    Raises
    ------
    BuildError : it reads the ids themselves.
    """
    model = onnx.load_model_from_string(graph)
    asking = [node for node in model.graph.node if "query_ids" in node.input]
    if any(node.op_type != "Shape" for node in asking):
        raise BuildError("ranker.onnx reads the query's ids where its layers join; export the student again")
    for node in asking:  # the first two sides are the same
        node.input[:] = [QUERIES]
    zeros = helper.make_node("Sub", ["item_lengths", "item_lengths"], ["query_index"], name="Sub.query_index")
    nodes = [zeros, *model.graph.node]
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    inputs = [value for value in model.graph.input if value.name not in ("query_ids", "query_index")]
    return part(model, inputs, list(model.graph.output))


def sample_mid(export: Export, graphs: Mapping[str, bytes]) -> dict[str, list[Sample]]:
    """What each of the graphs reads when the calibration rows are scored. Raises EngineError."""
    seen: dict[str, list[Sample]] = {name: [] for name in graphs}
    runner = emulated_mid(export, graphs, "fp32", lambda name, sample: seen[name].append(sample))
    for rows in split(export.calibration.batch, _ROWS):
        runner.run(rows)
    return seen


def emulated_mid(
    export: Export, graphs: Mapping[str, bytes], precision: str, see: Callable[[str, Sample], object] = lambda name, sample: None
) -> MidRunner:
    """The student on the CPU, by the graphs of `cut_mid` or what emulates them; ``see`` is told of every run."""
    sessions = {name: plain_session(graph) for name, graph in graphs.items()}
    spec = export.states
    assert spec is not None

    def run(name: str, output: str, sample: Sample) -> Floats:
        see(name, sample)
        feeds = {value.name: sample[0][value.name] for value in sessions[name].get_inputs()}
        try:
            return np.asarray(sessions[name].run([output], feeds)[0], np.float32)
        # ONNX Runtime's exceptions share no base class but Exception.
        except Exception as error:
            raise EngineError(f"onnxruntime cannot run the {precision} graph {name}: {error}") from error

    def encode(ids: Ints, lengths: Ints) -> Floats:
        return run("items", "states", ({"item_ids": ids, "item_lengths": lengths}, [_real(ids.shape[1], lengths)]))

    def ask(ids: Ints, lengths: Ints) -> Floats:
        return run("query", QUERIES, ({"query_ids": ids, "query_lengths": lengths}, [_real(ids.shape[1], lengths)]))

    def rank(batch: StateBatch) -> Floats:
        feeds = {name: getattr(batch, name) for name in StateBatch.__dataclass_fields__}
        states = spec.restore(batch.states, batch.scales)
        if states.shape[1] == batch.query_ids.shape[1]:  # so that a value's sides tell whose tokens it has
            states = np.pad(states, ((0, 0), (0, 1), (0, 0)))
        asking = _real(batch.query_ids.shape[1], batch.query_lengths)
        masks = [asking[batch.query_index], asking, _real(states.shape[1], batch.item_lengths)]
        return run("engine", "logits", ({**feeds, STATES: states}, masks))

    return MidRunner(export.model, export.limits, encode, rank, backend="tensorrt", precision=precision, close=lambda: None, ask=ask)


def _real(width: int, lengths: Ints) -> NDArray[np.bool_]:
    return np.arange(width) < lengths[:, None]


def _rename(graph: GraphProto, old: str, new: str) -> None:
    """Let those that read ``old`` read ``new``."""
    for node in graph.node:
        node.input[:] = [new if name == old else name for name in node.input]
