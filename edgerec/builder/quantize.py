"""Step 2, quantise: int8 weights; activations become 8-bit at run time, in ranges found then or calibrated now.

Written out here because ``onnxruntime.quantization`` logs through the root logger (and so configures logging for the host), infers
shapes, which makes ONNX Runtime fuse a slower LayerNorm, and quantises embeddings with one scale for the whole table.

Source: Jacob et al., Quantization and training of neural networks for efficient integer-arithmetic-only inference, CVPR 2018; Xiao et al.,
SmoothQuant, arXiv 2211.10438, for calibrated ranges; the operators are those of the ONNX specification, opset 20.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper
from onnx.onnx_pb import GraphProto, NodeProto, TensorProto

from ..errors import BuildError

# Below this many weights a product costs nothing, and its rounding goes straight into the logit.
_MIN_WEIGHTS = 1024
# Tables below this many rows (token types, positions) are not worth a second look-up.
_MIN_ROWS = 1024


FUSED = "com.microsoft"
"""The domain of ONNX Runtime's own operators."""
ACTIVATIONS = ("batch", "token", "static")
Ranges = Mapping[str, tuple[NDArray[np.float32], NDArray[np.float32]]]


def product_inputs(graph: bytes) -> list[str]:
    """Names of the values that `quantize_int8` would make 8-bit, in the graph's order."""
    model = onnx.load_model_from_string(graph)
    weights = {tensor.name: tensor for tensor in model.graph.initializer}
    return list(dict.fromkeys(node.input[0] for node in model.graph.node if _is_product(node, _weight(node, weights))))


def quantize_int8(graph: bytes, *, reduce_range: bool, activations: str = "token", ranges: Ranges | None = None) -> bytes:
    """Quantise an fp32 model: products with constant weights, and large embedding tables.

    A weight matrix [in, out] gets one scale a column, an embedding table [V, H] one a row, both symmetric. Products after the [CLS] row
    was taken (``Gemm``) run once a row, not once a token, and stay fp32. Item states that are stored in int8 are multiplied as they are.

    Parameters
    ----------
    graph : an fp32 ONNX model.
    activations : how the input of a product is scaled at run time. ``batch``: one scale and zero point for all tokens of the batch; fast,
        but a row's logit depends a little on its company, and one token with a large value costs all others precision. ``token``: the
        values of each token are first moved to 0 .. 1; a logit then depends on its own row alone, and is several times closer to fp32.
        ``static``: calibrated beforehand, so that nothing is searched at run time; a logit depends on its own row alone.
    ranges : for ``static``: for the input of every product the least and the largest value of each of its channels, float32 [in] each;
        see `edgerec.builder.calibrate`. Channels are brought to one scale by multipliers that move into the weights.
    reduce_range : use 7 bits in products, for a CPU whose 8-bit ones saturate; see `edgerec.engine.machine.int8_saturates`.

    Raises
    ------
    BuildError : there is no weight to quantise.
    """
    model = onnx.load_model_from_string(graph)
    weights = {tensor.name: tensor for tensor in model.graph.initializer}
    if activations == "static" and ranges is None:
        raise BuildError("static activations need ranges; calibrate the graph first")
    rewriter = _Rewriter(
        63 if reduce_range else 127,
        by_token=activations == "token",
        ranges=ranges if activations == "static" else None,
        stored=_stored(model.graph),
    )
    for node in model.graph.node:
        tensor = _weight(node, weights)
        if tensor is not None and _is_product(node, tensor):
            rewriter.product(node, numpy_helper.to_array(tensor))
        elif tensor is not None and node.op_type == "Gather" and tensor.dims[0] >= _MIN_ROWS and _axis(node) == 0:
            rewriter.look_up(node, numpy_helper.to_array(tensor))
        else:
            rewriter.nodes.append(node)
    if not rewriter.products:
        raise BuildError("student.onnx has no product of tokens with constant weights (MatMul) to quantise; build it with precision fp32")
    used = {name for node in rewriter.nodes for name in node.input}
    kept = [tensor for tensor in model.graph.initializer if tensor.name in used]
    del model.graph.node[:], model.graph.initializer[:]
    model.graph.node.extend(rewriter.nodes)
    model.graph.initializer.extend([*kept, *rewriter.initializers.values()])
    if any(node.domain == FUSED for node in rewriter.nodes):
        model.opset_import.append(helper.make_opsetid(FUSED, 1))
    # Shapes recorded for values that no longer exist would be wrong.
    del model.graph.value_info[:]
    data: bytes = model.SerializeToString()
    return data


def _weight(node: NodeProto, weights: Mapping[str, TensorProto]) -> TensorProto | None:
    """The constant float matrix of a product or a look-up."""
    place = {"MatMul": 1, "Gather": 0}.get(node.op_type)
    tensor = weights.get(node.input[place]) if place is not None else None
    return tensor if tensor is not None and tensor.data_type == TensorProto.FLOAT and len(tensor.dims) == 2 else None


def _is_product(node: NodeProto, tensor: TensorProto | None) -> bool:
    return tensor is not None and node.op_type == "MatMul" and tensor.dims[0] * tensor.dims[1] >= _MIN_WEIGHTS


def _stored(graph: GraphProto) -> dict[str, tuple[str, str]]:
    """Values that are an int8 input [B, T, W] times a float32 input [B, T, 1], as an item's states are: the names of the two."""
    inputs = {value.name: value.type.tensor_type for value in graph.input if len(value.type.tensor_type.shape.dim) == 3}
    values = {name for name, kind in inputs.items() if kind.elem_type == TensorProto.INT8}
    scales = {name for name, kind in inputs.items() if kind.elem_type == TensorProto.FLOAT and kind.shape.dim[2].dim_value == 1}
    made_of: dict[str, tuple[str, ...]] = {name: (name,) for name in values | scales}
    for node in graph.node:
        parts = tuple(made_of.get(name, ()) for name in node.input)
        if node.op_type in ("Cast", "Reshape", "Unsqueeze"):
            made_of[node.output[0]] = parts[0]
        elif node.op_type == "Mul":
            made_of[node.output[0]] = parts[0] + parts[1]
    return {name: (p[0], p[1]) for name, p in made_of.items() if len(p) == 2 and p[0] in values and p[1] in scales}


class _Rewriter:
    """Collects the new graph's nodes in order, and its new initializers by name."""

    def __init__(self, largest: int, *, by_token: bool, ranges: Ranges | None, stored: Mapping[str, tuple[str, str]]) -> None:
        self.nodes: list[NodeProto] = []
        self.initializers: dict[str, TensorProto] = {}
        self.products = 0
        self._largest, self._by_token, self._ranges, self._stored = largest, by_token, ranges, stored
        self._quantised: set[str] = set()
        self._multipliers: dict[str, NDArray[np.float32]] = {}

    def product(self, node: NodeProto, weight: NDArray[np.float32]) -> None:
        """``x @ W`` becomes ``(q(x) @ q(W)) * (scale(x) * scale(W))``; ONNX Runtime fuses the five nodes into one or two.

        By token, x is ``least + range * u`` with u in 0 .. 1, so ``x @ W = range * (u @ W) + least * (column sums of W)``.
        """
        x, name, result = node.input[0], node.input[1], node.output[0]
        # Query, key and value read the same input: it is quantised once.
        if x not in self._quantised:
            self._quantised.add(x)
            if x in self._stored:
                self._take_stored(x)
            elif self._ranges is None:
                self._quantise_input(x)
            else:
                self._multipliers[x] = self._quantise_calibrated(x, *self._ranges[x], weight)
        weight = weight * self._multipliers[x][:, None] if x in self._multipliers else weight
        scale = _scale(weight, axis=0, largest=self._largest)
        rounded = np.rint(weight / scale).astype(np.int8)
        self._constant(f"{name}.int8", rounded)
        self._constant(f"{name}.scale", scale[0])
        self.products += 1
        if x in self._stored:
            # ONNX Runtime fuses the five nodes below where the input's scale is found at run time alone: here it is told of the fused one.
            inputs = [f"{x}.in_uint8", f"{name}.int8", f"{x}.in_scale", f"{name}.scale", f"{x}.in_zero"]
            self.nodes.append(helper.make_node("MatMulIntegerToFloat", inputs, [f"{result}.unit"], name=f"{result}.unit", domain=FUSED))
            self._node("Mul", [f"{result}.unit", self._stored[x][1]], [result])
            return
        self._node("MatMulInteger", [f"{x}.in_uint8", f"{name}.int8", f"{x}.in_zero"], [f"{result}.int32"])
        self._cast(f"{result}.int32", f"{result}.product")
        self._node("Mul", [f"{x}.in_scale", f"{name}.scale"], [f"{result}.product_scale"])
        unit = f"{result}.unit" if self._by_token else result
        self._node("Mul", [f"{result}.product", f"{result}.product_scale"], [unit])
        if self._by_token:
            self._constant(f"{name}.sums", (rounded.sum(axis=0, dtype=np.float64) * scale[0]).astype(np.float32))
            self._node("Mul", [unit, f"{x}.in_range"], [f"{result}.ranged"])
            self._node("Mul", [f"{x}.in_least", f"{name}.sums"], [f"{result}.shift"])
            self._node("Add", [f"{result}.ranged", f"{result}.shift"], [result])

    def _quantise_input(self, x: str) -> None:
        source = x
        if self._by_token:
            self._constant("last_axis", np.array([-1], np.int64))
            # A token whose values are all equal has range 0: any positive divisor gives the right u, 0.
            self._constant("least_range", np.float32(1e-30))
            self._node("ReduceMin", [x, "last_axis"], [f"{x}.in_least"])
            self._node("ReduceMax", [x, "last_axis"], [f"{x}.in_most"])
            self._node("Sub", [f"{x}.in_most", f"{x}.in_least"], [f"{x}.in_spread"])
            self._node("Max", [f"{x}.in_spread", "least_range"], [f"{x}.in_range"])
            self._node("Sub", [x, f"{x}.in_least"], [f"{x}.in_moved"])
            source = f"{x}.in_unit"
            self._node("Div", [f"{x}.in_moved", f"{x}.in_range"], [source])
        # By token the batch's least and largest value are 0 and 1 whatever is in it, and this scale is a constant, 1 / 255.
        self._node("DynamicQuantizeLinear", [source], [f"{x}.in_uint8", f"{x}.in_scale", f"{x}.in_zero"])

    def _take_stored(self, x: str) -> None:
        """The integers that are stored, moved from -127 .. 127 to 1 .. 255: rounding them again would lose something and take time."""
        self._constant("stored_zero", np.float32(128))
        self._constant(f"{x}.in_scale", np.float32(1))
        self._constant(f"{x}.in_zero", np.uint8(128))
        self._cast(self._stored[x][0], f"{x}.in_float")
        self._node("Add", [f"{x}.in_float", "stored_zero"], [f"{x}.in_moved"])
        self._cast(f"{x}.in_moved", f"{x}.in_uint8", TensorProto.UINT8)

    def _quantise_calibrated(
        self, x: str, least: NDArray[np.float32], most: NDArray[np.float32], weight: NDArray[np.float32]
    ) -> NDArray[np.float32]:
        """Divide the channels by multipliers [in], which are returned, and round them in one constant range."""
        reach = np.maximum(np.maximum(np.abs(least), np.abs(most)), 1e-6)
        multipliers: NDArray[np.float32] = np.sqrt(reach / np.maximum(np.abs(weight).max(axis=1), 1e-6)).astype(np.float32)
        # Zero must be a number that the integers have, or padding and bias would shift.
        low, high = min(0.0, float((least / multipliers).min())), max(0.0, float((most / multipliers).max()))
        scale = np.float32(max(high - low, 1e-6) / 255)
        self._constant(f"{x}.in_shrink", 1 / multipliers)
        self._constant(f"{x}.in_scale", scale)
        self._constant(f"{x}.in_zero", np.clip(np.rint(-low / scale), 0, 255).astype(np.uint8))
        self._node("Mul", [x, f"{x}.in_shrink"], [f"{x}.in_even"])
        self._node("QuantizeLinear", [f"{x}.in_even", f"{x}.in_scale", f"{x}.in_zero"], [f"{x}.in_uint8"])
        return multipliers

    def look_up(self, node: NodeProto, table: NDArray[np.float32]) -> None:
        """``table[i]`` becomes ``q(table)[i] * scale(table)[i]``; no product of 8-bit numbers, so all 8 bits are used."""
        name, ids, result = node.input[0], node.input[1], node.output[0]
        scale = _scale(table, axis=1, largest=127)
        self._constant(f"{name}.rows_int8", np.rint(table / scale).astype(np.int8))
        self._constant(f"{name}.rows_scale", scale)
        self._node("Gather", [f"{name}.rows_int8", ids], [f"{result}.row_int8"])
        self._cast(f"{result}.row_int8", f"{result}.row")
        self._node("Gather", [f"{name}.rows_scale", ids], [f"{result}.row_scale"])
        self._node("Mul", [f"{result}.row", f"{result}.row_scale"], [result])

    def _constant(self, name: str, value: NDArray[np.generic] | np.generic) -> None:
        self.initializers[name] = numpy_helper.from_array(np.asarray(value), name)

    def _node(self, kind: str, inputs: list[str], outputs: list[str]) -> None:
        self.nodes.append(helper.make_node(kind, inputs, outputs, name=f"{kind}.{outputs[0]}"))

    def _cast(self, value: str, result: str, kind: int = TensorProto.FLOAT) -> None:
        self.nodes.append(helper.make_node("Cast", [value], [result], name=f"Cast.{result}", to=int(kind)))


def _scale(weight: NDArray[np.float32], *, axis: int, largest: int) -> NDArray[np.float32]:
    """Symmetric scales along an axis, kept as a dimension of 1; 1 where all weights are 0, or so small that a scale would be."""
    peak = np.abs(weight).max(axis=axis, keepdims=True)
    return np.where(peak > 1e-30, peak / np.float32(largest), np.float32(1)).astype(np.float32)


def _axis(node: NodeProto) -> int:
    return next((int(attribute.i) for attribute in node.attribute if attribute.name == "axis"), 0)
