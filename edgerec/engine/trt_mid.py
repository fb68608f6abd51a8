"""The TensorRT backend for mid-fusion students."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..bundle import Manifest
from ..errors import EngineError
from . import Limits, MidEngine
from .trt import read_plans
from .trt_mid_fallback import open_mid_fallback
from .trt_plans import choose, rebuild_command, this_runtime


def open_mid_tensorrt(
    root: Path, manifest: Manifest, model: Mapping[str, Any], limits: Limits, *, threads: int | None, fallback: bool
) -> MidEngine:
    """Open the plans that fit this machine, and the CPU engine to take over. Parameters and errors as of `open_tensorrt`."""
    plans = read_plans(root, manifest)
    here = this_runtime()
    plan, why = choose(plans.plans, here)
    if plan is None:
        why = f"no TensorRT plan of {manifest.model_version} runs here: {why}; build one with: "
        why += rebuild_command(plans, manifest.precision, here)
    else:
        why = "this version of edgerec builds plans of mid-fusion students and does not run them yet"
    if not fallback or not plans.fallback:
        raise EngineError(why)
    cpu = open_mid_fallback(root, manifest, model, limits, plans.fallback, threads=threads)
    cpu.note = f"the CPU engine ({cpu.backend} {cpu.precision}) scores instead of the GPU: {why}"
    return cpu
