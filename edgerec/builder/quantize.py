"""Step 2, quantise: int8 weights, activations scaled at run time."""

from __future__ import annotations

import tempfile
from pathlib import Path

import onnx
from onnx import numpy_helper
from onnxruntime.quantization import QuantType, quantize_dynamic
from onnxruntime.quantization.quant_utils import add_pre_process_metadata

# Below this many weights a product costs nothing, and its rounding goes straight into the logit (the head).
_MIN_WEIGHTS = 1024


def quantize_int8(graph: bytes, *, reduce_range: bool) -> bytes:
    """Quantise the weight matrices to int8, one scale a column; everything else stays fp32.

    Parameters
    ----------
    graph : an fp32 ONNX model.
    reduce_range : use 7 bits, for a CPU whose 8-bit products saturate; see `edgerec.engine.machine.int8_saturates`.

    Returns
    -------
    The quantised model. Activations get one scale for a whole batch, at run time: a row's logit depends a little on its batch.
    """
    model = onnx.load_model_from_string(graph)
    sizes = {tensor.name: numpy_helper.to_array(tensor).size for tensor in model.graph.initializer}
    products = [node for node in model.graph.node if node.op_type in ("MatMul", "Gemm")]
    for position, node in enumerate(model.graph.node):
        # The quantiser names nodes by name; an unnamed one could not be left out.
        node.name = node.name or f"node_{position}"
    small = [node.name for node in products if sizes.get(node.input[1], 0) < _MIN_WEIGHTS]
    # Says that shapes are inferred: without it the quantiser warns through the root logger, which configures logging for the caller.
    model = onnx.shape_inference.infer_shapes(model)
    add_pre_process_metadata(model)
    with tempfile.TemporaryDirectory() as folder:
        target = Path(folder) / "int8.onnx"
        quantize_dynamic(
            model,
            target,
            op_types_to_quantize=["MatMul", "Gemm"],
            per_channel=True,
            reduce_range=reduce_range,
            weight_type=QuantType.QInt8,
            nodes_to_exclude=small,
        )
        return target.read_bytes()
