"""A graph in half precision, typed as TensorRT will run it: under strong typing the ONNX file alone says what is computed in what.

Products and their biases are fp16 or bf16. Softmax, LayerNorm, GELU, the residual stream and all that runs once a row (pooler, features,
head) stay float32, where half precision overflows or loses what ranking needs; the logits are float32.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper
from onnx.onnx_pb import NodeProto, TensorProto

from ..errors import BuildError
from .native_packer import as_bf16

HALVES: Mapping[str, int] = {"fp16": TensorProto.FLOAT16, "bf16": TensorProto.BFLOAT16}
# Below this many weights a product costs nothing, and its rounding goes straight into the logit.
_MIN_WEIGHTS = 1024
# What only moves numbers keeps their type, so that a cast stands behind it and not before.
_MOVES = frozenset({"Reshape", "Transpose", "Slice", "Squeeze", "Unsqueeze", "Identity", "Concat"})
_TOKENS = frozenset({"input_ids", "query_ids", "item_ids"})
_HALF = frozenset({"MatMul", "QuantizeLinear", "DequantizeLinear"})
_LARGEST = 65504.0


def halve(graph: bytes, precision: str, *, emulate: bool = False, inputs: Collection[str] = ()) -> bytes:
    """The graph with its products in ``fp16`` or ``bf16``; same inputs, float32 logits.

    Parameters
    ----------
    graph : an fp32 model; Q/DQ nodes of `edgerec.builder.trt_qdq` get half scales.
    emulate : compute the same in float32, rounding to half wherever the typed graph does: for a CPU that has no such arithmetic.
    inputs : float32 inputs that the typed graph takes in half precision; the emulation takes them as they are, and rounds.

    Raises
    ------
    BuildError : a weight is too large for fp16.
    """
    model = onnx.load_model_from_string(graph)
    rewriter = _Halver(model, HALVES[precision], emulate=emulate)
    nodes = [new for name in inputs for new in rewriter.take_half(name)]
    nodes += [new for node in model.graph.node for new in rewriter.rewrite(node)]
    used = {name for node in nodes for name in node.input}
    tensors = {tensor.name: tensor for tensor in model.graph.initializer} | rewriter.initializers
    del model.graph.node[:], model.graph.initializer[:], model.graph.value_info[:]
    model.graph.node.extend(nodes)
    model.graph.initializer.extend(tensor for name, tensor in tensors.items() if name in used)
    data: bytes = model.SerializeToString()
    return data


class _Halver:
    """Rewrites node by node, in the graph's order, and knows which values are half by then."""

    def __init__(self, model: onnx.ModelProto, kind: int, *, emulate: bool) -> None:
        self.initializers: dict[str, TensorProto] = {}
        self._kind, self._emulate = kind, emulate
        self._floats = {t.name: t for t in model.graph.initializer if t.data_type == TensorProto.FLOAT}
        self._inputs, self._outputs = list(model.graph.input), {value.name for value in model.graph.output}
        self._half: set[str] = set()
        self._products: set[str] = set()
        self._cast: dict[tuple[str, bool], str] = {}
        self._rounded: dict[str, str] = {}

    def take_half(self, name: str) -> Iterator[NodeProto]:
        """Let an input be half; emulated, round what it gives."""
        self._half.add(name)
        if self._emulate:
            self._rounded[name] = f"{name}.taken"
            yield _cast_node(name, f"{name}.rounded", self._kind)
            yield _cast_node(f"{name}.rounded", f"{name}.taken", TensorProto.FLOAT)
            self._half.add(f"{name}.taken")
            return
        next(value for value in self._inputs if value.name == name).type.tensor_type.elem_type = self._kind

    def rewrite(self, node: NodeProto) -> Iterator[NodeProto]:
        """The node, with casts before it (and, emulated, behind it) where its type asks for them."""
        if node.op_type == "Shape":
            yield node
            return
        node.input[:] = [self._rounded.get(name, name) for name in node.input]
        parts = node.input if node.op_type == "Concat" else node.input[:1]
        moves = node.op_type in _MOVES and self._half.issuperset(parts) and node.output[0] not in self._outputs
        if not moves and not self._is_half(node):
            for place, name in enumerate(node.input):
                if name in self._half:
                    yield from self._convert(node, place, half=False)
            yield node
            return
        if not moves:
            for place, name in enumerate(node.input):
                if self._is_float(node, place) and name not in self._half:
                    yield from self._convert(node, place, half=True)
        result = node.output[0]
        if node.op_type == "MatMul":
            self._products.add(result)
        if node.op_type != "QuantizeLinear":
            self._half.add(result)
        rounds = self._emulate and not moves and node.op_type not in ("QuantizeLinear", "Gather")
        if rounds:
            node.output[0] = f"{result}.exact"
        yield node
        if rounds:
            yield _cast_node(f"{result}.exact", f"{result}.rounded", self._kind)
            yield _cast_node(f"{result}.rounded", result, TensorProto.FLOAT)

    def _is_half(self, node: NodeProto) -> bool:
        if node.output[0] in self._outputs:
            return False
        if node.op_type == "MatMul":
            weight = self._floats.get(node.input[1])
            return weight is None or int(np.prod(weight.dims)) >= _MIN_WEIGHTS
        if node.op_type == "Add":  # the bias of a product
            return node.input[0] in self._products and len(getattr(self._floats.get(node.input[1]), "dims", ())) == 1
        if node.op_type == "Gather":  # the word table: half of it is half of most students
            return node.input[0] in self._floats and node.input[1] in _TOKENS
        return node.op_type in _HALF

    def _is_float(self, node: NodeProto, place: int) -> bool:
        if node.op_type == "QuantizeLinear":
            return place < 2
        if node.op_type == "DequantizeLinear":
            return place == 1
        return node.op_type != "Gather" or place == 0

    def _convert(self, node: NodeProto, place: int, *, half: bool) -> Iterator[NodeProto]:
        """Let the node read that input in the other type; one cast serves all who read it."""
        name = node.input[place]
        found = self._cast.get((name, half))
        if found is None:
            found = self._cast[name, half] = f"{name}.{'half' if half else 'float'}"
            if half and name in self._floats:
                self.initializers[found] = self._constant(found, numpy_helper.to_array(self._floats[name]), name)
            elif not self._emulate:
                yield _cast_node(name, found, self._kind if half else TensorProto.FLOAT)
            elif half:
                yield _cast_node(name, f"{found}.rounded", self._kind)
                yield _cast_node(f"{found}.rounded", found, TensorProto.FLOAT)
            else:
                found = self._cast[name, half] = name
        node.input[place] = found

    def _constant(self, name: str, value: NDArray[np.float32], source: str) -> TensorProto:
        bits, rounded = rounded_half(value, self._kind, source)
        if self._emulate:
            return numpy_helper.from_array(rounded, name)
        return helper.make_tensor(name, self._kind, value.shape, bits.tobytes(), raw=True)


def rounded_half(value: NDArray[np.float32], kind: int, what: str) -> tuple[NDArray[np.uint16], NDArray[np.float32]]:
    """The nearest fp16 or bf16 numbers: their bits, and as float32. Raises BuildError where fp16 has none."""
    if kind == TensorProto.BFLOAT16:
        bits = as_bf16(np.ascontiguousarray(value, np.float32))
        return bits, (bits.astype(np.uint32) << 16).view(np.float32).reshape(value.shape)
    largest = float(np.abs(value).max(initial=0.0))
    if not largest <= _LARGEST:
        raise BuildError(f"student.onnx: {what} holds {largest:.3g}, fp16 ends at {_LARGEST:g}; build with precision bf16 or fp32")
    half = np.ascontiguousarray(value).astype(np.float16)
    return half.view(np.uint16), half.astype(np.float32)


def _cast_node(source: str, result: str, kind: int) -> NodeProto:
    return helper.make_node("Cast", [source], [result], name=f"Cast.{result}", to=int(kind))
