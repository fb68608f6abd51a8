"""8-bit products for TensorRT: QuantizeLinear and DequantizeLinear around them, with ranges calibrated beforehand.

TensorRT takes symmetric scales only, calibrated ones, and reads Q/DQ pairs as the wish for an 8-bit product. int8: one scale a tensor for
activations, one a column for weights; the activations' channels are evened out by multipliers that move into the weights. fp8 (E4M3): one
scale a tensor for both, and no multipliers: its exponent covers what they would.

Source: Xiao et al., SmoothQuant, arXiv 2211.10438; Micikevicius et al., FP8 formats for deep learning, arXiv 2209.05433.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper
from onnx.onnx_pb import NodeProto, TensorProto

from ..errors import BuildError
from .quantize import Ranges, product_inputs

EIGHTS: Mapping[str, tuple[int, float]] = {"int8": (TensorProto.INT8, 127.0), "fp8": (TensorProto.FLOAT8E4M3FN, 448.0)}
"""Type and largest number by precision."""


def quantise(graph: bytes, precision: str, ranges: Ranges) -> bytes:
    """An fp32 model whose products of tokens with constant weights are ``int8`` or ``fp8``.

    Parameters
    ----------
    ranges : of `edgerec.builder.calibrate.calibrate`: least and largest value of every channel, float32 [in] each.

    Raises
    ------
    BuildError : there is no product to quantise, or a range is missing.
    """
    model = onnx.load_model_from_string(graph)
    weights = {tensor.name: tensor for tensor in model.graph.initializer}
    wanted = set(product_inputs(graph))
    if not wanted:
        raise BuildError("student.onnx has no product of tokens with constant weights (MatMul) to quantise; build it with precision fp16")
    if missing := sorted(wanted - ranges.keys()):
        raise BuildError(f"no range was calibrated for {', '.join(missing[:3])}; calibrate the graph that is to be quantised")
    products = [n for n in model.graph.node if n.op_type == "MatMul" and n.input[0] in wanted and len(_dims(weights, n.input[1])) == 2]
    found = _Quantiser(precision)
    for x in dict.fromkeys(node.input[0] for node in products):
        readers = [numpy_helper.to_array(weights[node.input[1]]) for node in products if node.input[0] == x]
        found.activation(x, *ranges[x], np.maximum.reduce([np.abs(weight).max(axis=1) for weight in readers]))
    for node in products:
        found.product(node, numpy_helper.to_array(weights[node.input[1]]))
    changed = {id(node) for node in products}
    nodes = []
    for node in model.graph.node:
        if id(node) in changed:
            nodes += found.before.pop(node.input[0], []) + found.before.pop(node.input[1], [])
        nodes.append(node)
    used = {name for node in nodes for name in node.input}
    tensors = [t for t in (*weights.values(), *found.initializers.values()) if t.name in used]
    del model.graph.node[:], model.graph.initializer[:], model.graph.value_info[:]
    model.graph.node.extend(nodes)
    model.graph.initializer.extend(tensors)
    data: bytes = model.SerializeToString()
    return data


class _Quantiser:
    """Q/DQ pairs by the name that their product reads."""

    def __init__(self, precision: str) -> None:
        self.before: dict[str, list[NodeProto]] = {}
        self.initializers: dict[str, TensorProto] = {}
        self._kind, self._largest = EIGHTS[precision]
        self._smooth = precision == "int8"
        self._multipliers: dict[str, NDArray[np.float32]] = {}

    def activation(self, x: str, least: NDArray[np.float32], most: NDArray[np.float32], weight: NDArray[np.float32]) -> None:
        """``x`` rounded; ``weight`` is the largest weight of every channel, float32 [in]."""
        reach = np.maximum(np.maximum(np.abs(least), np.abs(most)), 1e-6)
        nodes, source = [], x
        self._multipliers[x] = np.ones(len(reach), np.float32)
        if self._smooth:
            multipliers = np.sqrt(reach / np.maximum(weight, 1e-6)).astype(np.float32)
            self._multipliers[x], reach = multipliers, reach / multipliers
            source = f"{x}.even"
            self._constant(f"{x}.shrink", 1 / multipliers)
            nodes.append(helper.make_node("Mul", [x, f"{x}.shrink"], [source], name=f"Mul.{source}"))
        scale = _half_scale(np.float32(reach.max() / self._largest))
        self._constant(f"{x}.scale", scale)
        self._constant(f"{x}.zero", np.zeros((), np.uint8), self._kind)
        eight, scaled = f"{x}.eight", [f"{x}.scale", f"{x}.zero"]
        nodes.append(helper.make_node("QuantizeLinear", [source, *scaled], [eight], name=f"QuantizeLinear.{x}"))
        nodes.append(helper.make_node("DequantizeLinear", [eight, *scaled], [f"{x}.dq"], name=f"DequantizeLinear.{x}"))
        self.before[f"{x}.dq"] = nodes

    def product(self, node: NodeProto, weight: NDArray[np.float32]) -> None:
        """Let the product read the rounded activations and weights [in, out]."""
        x, name = node.input[0], f"{node.input[1]}.{node.input[0]}"  # weights depend on the multipliers of their input
        weight = weight * self._multipliers[x][:, None]
        peak = np.abs(weight).max(axis=0) if self._smooth else np.abs(weight).max()
        scale = _half_scale(np.where(peak > 1e-30, peak / np.float32(self._largest), np.float32(1)).astype(np.float32))
        self._constant(f"{name}.scale", scale)
        bits = as_int8(weight / scale) if self._smooth else as_fp8(weight / scale)
        self._constant(f"{name}.eight", bits, self._kind)
        self._constant(f"{name}.zero", np.zeros(scale.shape, np.uint8), self._kind)
        parts = [f"{name}.{part}" for part in ("eight", "scale", "zero")]
        where: dict[str, Any] = {"axis": 1} if self._smooth else {}
        self.before[f"{name}.dq"] = [helper.make_node("DequantizeLinear", parts, [f"{name}.dq"], name=f"DequantizeLinear.{name}", **where)]
        node.input[0], node.input[1] = f"{x}.dq", f"{name}.dq"

    def _constant(self, name: str, value: NDArray[np.generic] | np.float32, kind: int = TensorProto.FLOAT) -> None:
        array = np.asarray(value)
        self.initializers[name] = helper.make_tensor(name, kind, array.shape, array.tobytes(), raw=True)


def as_int8(value: NDArray[np.float32]) -> NDArray[np.uint8]:
    """The nearest integers from -127 to 127; their bits."""
    return np.clip(np.rint(value), -127, 127).astype(np.int8).view(np.uint8)


_FP8 = np.array([(1 + m / 8) * 2.0 ** (e - 7) if e else m / 8 * 2.0**-6 for e in range(16) for m in range(8)][:127], np.float32)


def as_fp8(value: NDArray[np.float32]) -> NDArray[np.uint8]:
    """The nearest E4M3 numbers, half way to the even one, beyond 448 to 448; their bits."""
    size = np.minimum(np.abs(value), _FP8[-1])
    above = np.searchsorted(_FP8, size).clip(1, len(_FP8) - 1)
    low, high = size - _FP8[above - 1], _FP8[above] - size
    nearest = np.where((low < high) | ((low == high) & (above % 2 == 1)), above - 1, above)
    bits: NDArray[np.uint8] = (nearest | np.where(np.signbit(value), 128, 0)).astype(np.uint8)
    return bits


def _half_scale(scale: NDArray[np.float32] | np.float32) -> NDArray[np.float32]:
    """Scales that fp16 has exactly, rounded up so that the largest value still fits."""
    half = np.maximum(np.asarray(scale, np.float32), np.float32(2.0**-14)).astype(np.float16)
    return np.where(half.astype(np.float32) < scale, np.nextafter(half, np.float16(np.inf)), half).astype(np.float32)


def _dims(weights: Mapping[str, TensorProto], name: str) -> tuple[int, ...]:
    tensor = weights.get(name)
    return tuple(tensor.dims) if tensor is not None and tensor.data_type == TensorProto.FLOAT else ()
