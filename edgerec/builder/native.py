"""The native backend's engine file, made of the exported weights: ``engine.bin``."""

from __future__ import annotations

import tempfile
from pathlib import Path

import onnx

from ..errors import BuildError
from ..segment import write_sections
from .contract import Export, read_bytes
from .native_mid import mid_sections
from .native_packer import Packer
from .weights import read_safetensors

# fmt: off
_OPERATORS = frozenset([
    "Add", "Cast", "Concat", "Constant", "Div", "Erf", "Expand", "Flatten", "Gather", "GatherND", "Gelu", "Gemm", "GreaterOrEqual",
    "Identity", "LayerNormalization", "MatMul", "Mul", "Range", "ReduceSum", "Reshape", "Shape", "Slice", "Softmax", "Squeeze", "Sub",
    "Tanh", "Transpose", "Unsqueeze",
])
# fmt: on


def native_engine(export: Export, precision: str) -> bytes:
    """``engine.bin`` made of ``student.safetensors``.

    Parameters
    ----------
    precision : ``fp32``, ``bf16`` or ``int8``.

    Raises
    ------
    BuildError : the graph has an operator, or the student a size, that the native engine does not run. That the engine computes what the
        graph does is not taken on trust: parity compares them.
    """
    for name, graph in (
        (("ranker.onnx", export.graph), ("item_encoder.onnx", export.item_graph)) if export.states else (("student.onnx", export.graph),)
    ):
        _check_operators(export.folder / name, graph, tanh=export.model["student"].get("gelu") == "tanh")
    path = export.folder / "student.safetensors"
    packer = Packer(read_safetensors(read_bytes(path), str(path)), export, precision)
    if export.states is None:
        packer.frame("tower", "tower.pooler", "tower.layers")
    else:
        mid_sections(packer, export.model["student"], export.states)
    sections = packer.done()
    with tempfile.TemporaryDirectory() as folder:
        target = Path(folder) / "engine.bin"
        write_sections(target, sections)
        return target.read_bytes()


def _check_operators(path: Path, graph: bytes, *, tanh: bool) -> None:
    """Refuse a graph that is visibly no BERT-type student: the weights could fit all the same. `tanh`: its layers' GELU is that."""
    for node in onnx.load_model_from_string(graph).graph.node:
        other = node.op_type == "Gelu" and any(a.name == "approximate" and a.s not in (b"", b"none") for a in node.attribute)
        tanh_gelu = other and not tanh
        if node.op_type not in _OPERATORS or tanh_gelu:
            kind = f"{node.op_type} with the tanh approximation, of which model.json says nothing" if tanh_gelu else node.op_type
            raise BuildError(
                f"{path.parent}: {path.name}: the native engine does not run operator {kind} (node {node.name!r:.80}); "
                "--backend ort will take it"
            )
