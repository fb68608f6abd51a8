"""build_engine in six steps: contract, quantize, compile, parity, tokenizer, pack. Needs ``pip install 'edgerec[build]'``."""

from __future__ import annotations

from ..errors import MissingExtraError

try:
    import onnx as _onnx  # noqa: F401

    from ..engine import ort as _ort  # noqa: F401
except ImportError as error:
    raise MissingExtraError(getattr(error, "module", "onnx"), "build") from error

from .build import BuildReport, build_engine
from .parity import Parity, Tolerance, Tolerances
from .trt import GpuOptions

__all__ = ["BuildReport", "GpuOptions", "Parity", "Tolerance", "Tolerances", "build_engine"]
