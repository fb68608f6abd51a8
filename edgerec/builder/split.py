"""The query's lower layers as a graph of their own: cut out of ``ranker.onnx``, so that they run once a request, not once a batch."""

from __future__ import annotations

from collections.abc import Iterable

import onnx
from onnx.onnx_pb import GraphProto, NodeProto, TensorProto, ValueInfoProto

from ..errors import BuildError

QUERY_INPUTS = ("query_ids", "query_lengths")
QUERIES = "queries"
"""float32 [Q, R, H]: what the one graph gives and the other takes."""


def split_query(graph: bytes) -> tuple[bytes, bytes]:
    """Cut the ranker of a mid-fusion student where each row looks up its query.

    Returns
    -------
    query : takes `QUERY_INPUTS`, gives `QUERIES`.
    joint : takes what ``graph`` takes and `QUERIES`; gives ``logits``. Of ``query_ids`` it reads the shape alone.

    Raises
    ------
    BuildError : there is not exactly one such place.
    """
    model = onnx.load_model_from_string(graph)
    cut = _cut(model.graph)
    for node in model.graph.node:
        for names in (node.input, node.output):
            names[:] = [QUERIES if name == cut else name for name in names]
    queries = onnx.helper.make_tensor_value_info(QUERIES, TensorProto.FLOAT, ["queries", "query_length", "hidden"])
    inputs = list(model.graph.input)
    asking = [value for value in inputs if value.name in QUERY_INPUTS]
    return part(model, asking, [queries]), part(model, [*inputs, queries], list(model.graph.output))


def map_before_rows(joint: bytes) -> bytes:
    """Have what a row's query goes through first, maps with a bias, computed once a query: rows are taken of what they give.

    Parameters
    ----------
    joint : of `split_query`. The logits stay what they are.
    """
    model = onnx.load_model_from_string(joint)
    nodes, constants = list(model.graph.node), {tensor.name for tensor in model.graph.initializer}
    for rows in [node for node in nodes if node.op_type in ("Gather", "GatherND") and node.input[0] == QUERIES]:
        for product in [node for node in nodes if node.op_type == "MatMul" and node.input[0] == rows.output[0]]:
            readers = [node for node in nodes if product.output[0] in node.input]
            if len(readers) == 1 and readers[0].op_type == "Add" and {product.input[1], readers[0].input[1]} <= constants:
                _move(nodes, rows, product, readers[0])
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    data: bytes = model.SerializeToString()
    return data


def _move(nodes: list[NodeProto], rows: NodeProto, product: NodeProto, bias: NodeProto) -> None:
    """Put a map before the node that takes rows, and take rows of its result."""
    result = bias.output[0]
    product.input[0], bias.output[0] = QUERIES, f"{result}.of_queries"
    taken = NodeProto()
    taken.CopyFrom(rows)
    taken.name, taken.input[0], taken.output[0] = f"{rows.op_type}.{result}", bias.output[0], result
    nodes.remove(product)
    nodes.remove(bias)
    place = nodes.index(rows)
    nodes[place:place] = [product, bias, taken]


def _cut(graph: GraphProto) -> str:
    """The value computed from the query alone from which rows are taken by something else."""
    alone, mixed = set(QUERY_INPUTS), {value.name for value in graph.input} - set(QUERY_INPUTS)
    computed: set[str] = set()
    found: set[str] = set()
    for node in graph.node:  # in an order in which values are made before they are read
        if mixed.isdisjoint(node.input):
            if not alone.isdisjoint(node.input):
                alone.update(node.output)
                computed.update(node.output)
            continue
        mixed.update(node.output)
        if node.op_type in ("Gather", "GatherND") and node.input[0] in computed:
            found.add(node.input[0])
    if len(found) != 1:
        raise BuildError(
            f"ranker.onnx takes rows from {len(found)} values that depend on the query alone, expected 1; export the student again"
        )
    return found.pop()


def part(model: onnx.ModelProto, inputs: list[ValueInfoProto], outputs: list[ValueInfoProto]) -> bytes:
    """The nodes that the outputs need, back to the inputs."""
    graph, given = model.graph, {value.name for value in inputs}
    wanted, nodes = {value.name for value in outputs} - given, list[NodeProto]()
    for node in reversed(graph.node):
        if not wanted.isdisjoint(node.output):
            nodes.append(node)
            wanted |= set(node.input) - given
    made = onnx.helper.make_graph(nodes[::-1], graph.name, inputs, outputs, _used(graph.initializer, wanted))
    part = onnx.helper.make_model(made, opset_imports=model.opset_import, ir_version=model.ir_version)
    data: bytes = part.SerializeToString()
    return data


def _used(initializers: Iterable[TensorProto], names: set[str]) -> list[TensorProto]:
    return [tensor for tensor in initializers if tensor.name in names]
