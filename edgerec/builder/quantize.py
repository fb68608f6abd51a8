"""Step 2, quantise: int8 weights; activations become 8-bit at run time.

Written out here because ``onnxruntime.quantization`` logs through the root logger (and so configures logging for the host), infers
shapes, which makes ONNX Runtime fuse a slower LayerNorm, and quantises embeddings with one scale for the whole table.

Source: Jacob et al., Quantization and training of neural networks for efficient integer-arithmetic-only inference, CVPR 2018; the operators
are those of the ONNX specification, opset 20.
"""

from __future__ import annotations

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper
from onnx.onnx_pb import NodeProto, TensorProto

from ..errors import BuildError

# Below this many weights a product costs nothing, and its rounding goes straight into the logit.
_MIN_WEIGHTS = 1024
# Tables below this many rows (token types, positions) are not worth a second look-up.
_MIN_ROWS = 1024


def quantize_int8(graph: bytes, *, reduce_range: bool) -> bytes:
    """Quantise an fp32 model: products with constant weights, and large embedding tables.

    A weight matrix [in, out] gets one scale a column, an embedding table [V, H] one a row, both symmetric. The input of a product gets
    one scale and zero point for the whole batch, at run time: a row's logit depends a little on its batch. Products after the [CLS] row
    was taken (``Gemm``) run once a row, not once a token, and stay fp32.

    Parameters
    ----------
    graph : an fp32 ONNX model.
    reduce_range : use 7 bits in products, for a CPU whose 8-bit ones saturate; see `edgerec.engine.machine.int8_saturates`.

    Raises
    ------
    BuildError : there is no weight to quantise.
    """
    model = onnx.load_model_from_string(graph)
    weights = {tensor.name: tensor for tensor in model.graph.initializer}
    rewriter = _Rewriter(127 if not reduce_range else 63)
    for node in model.graph.node:
        place = {"MatMul": 1, "Gather": 0}.get(node.op_type)
        tensor = weights.get(node.input[place]) if place is not None else None
        if tensor is None or tensor.data_type != TensorProto.FLOAT or len(tensor.dims) != 2:
            rewriter.nodes.append(node)
        elif node.op_type == "MatMul" and tensor.dims[0] * tensor.dims[1] >= _MIN_WEIGHTS:
            rewriter.product(node, numpy_helper.to_array(tensor))
        elif node.op_type == "Gather" and tensor.dims[0] >= _MIN_ROWS and _axis(node) == 0:
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
    # Shapes recorded for values that no longer exist would be wrong.
    del model.graph.value_info[:]
    data: bytes = model.SerializeToString()
    return data


class _Rewriter:
    """Collects the new graph's nodes in order, and its new initializers by name."""

    def __init__(self, largest: int) -> None:
        self.nodes: list[NodeProto] = []
        self.initializers: dict[str, TensorProto] = {}
        self.products = 0
        self._largest = largest

    def product(self, node: NodeProto, weight: NDArray[np.float32]) -> None:
        """``x @ W`` becomes ``(q(x) @ q(W)) * (scale(x) * scale(W))``; ONNX Runtime fuses the five nodes into one or two."""
        x, name, result = node.input[0], node.input[1], node.output[0]
        scale = _scale(weight, axis=0, largest=self._largest)
        self._constant(f"{name}.int8", np.rint(weight / scale).astype(np.int8))
        self._constant(f"{name}.scale", scale[0])
        # Query, key and value read the same input: it is quantised once.
        if not any(done.op_type == "DynamicQuantizeLinear" and done.input[0] == x for done in self.nodes):
            self._node("DynamicQuantizeLinear", [x], [f"{x}.in_uint8", f"{x}.in_scale", f"{x}.in_zero"])
        self._node("MatMulInteger", [f"{x}.in_uint8", f"{name}.int8", f"{x}.in_zero"], [f"{result}.int32"])
        self._cast(f"{result}.int32", f"{result}.product")
        self._node("Mul", [f"{x}.in_scale", f"{name}.scale"], [f"{result}.product_scale"])
        self._node("Mul", [f"{result}.product", f"{result}.product_scale"], [result])
        self.products += 1

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

    def _constant(self, name: str, value: NDArray[np.generic]) -> None:
        self.initializers[name] = numpy_helper.from_array(np.ascontiguousarray(value), name)

    def _node(self, kind: str, inputs: list[str], outputs: list[str]) -> None:
        self.nodes.append(helper.make_node(kind, inputs, outputs, name=f"{kind}.{outputs[0]}"))

    def _cast(self, integers: str, result: str) -> None:
        self.nodes.append(helper.make_node("Cast", [integers], [result], name=f"Cast.{result}", to=int(TensorProto.FLOAT)))


def _scale(weight: NDArray[np.float32], *, axis: int, largest: int) -> NDArray[np.float32]:
    """Symmetric scales along an axis, kept as a dimension of 1; 1 where all weights are 0, or so small that a scale would be."""
    peak = np.abs(weight).max(axis=axis, keepdims=True)
    return np.where(peak > 1e-30, peak / np.float32(largest), np.float32(1)).astype(np.float32)


def _axis(node: NodeProto) -> int:
    return next((int(attribute.i) for attribute in node.attribute if attribute.name == "axis"), 0)
