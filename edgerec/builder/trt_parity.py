"""Parity of TensorRT plans: run on the GPU where there is one; else the typed graph on the CPU, and it is said that no GPU ran it."""

from __future__ import annotations

from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..bundle import read_manifest
from ..engine import Engine, open_engine
from ..engine.trt_fallback import open_fallback
from ..engine.trt_mid_fallback import open_mid_fallback
from ..engine.trt_plans import choose
from .contract import Export
from .parity import Parity, Tolerances, measure
from .trt import Compiled

# What two roundings of one number may be apart, beside what one is from the number itself.
_EMULATED = 2.0


def measured_engine(draft: Path, compiled: Compiled) -> Engine:
    """The engine that parity is measured on: the plan on this machine's GPU, or its emulation. Raises EngineError, BundleError."""
    plan, _ = choose(compiled.plans.plans, compiled.runtime)
    return compiled.emulation() if plan is None else open_engine(draft, probe=False, fallback=False)


def with_gpu(
    parity: Parity, compiled: Compiled, draft: Path, export: Export, reference: NDArray[np.float32], bounds: Tolerances
) -> tuple[dict[str, Any], str]:
    """``parity.json`` of the bundle, and why the plan was not run here (empty when it was).

    ``gpu`` says what ran it or why nothing did; ``fallback`` has the figures of the CPU engine, which has a gate of its own.

    Raises
    ------
    BuildError : the CPU engine does not match the exported graph.
    """
    plan, why = choose(compiled.plans.plans, compiled.runtime)
    if plan is None:
        parity = replace(parity, probe_tolerance=_EMULATED * parity.probe_tolerance)
    figures = {**parity.to_json(), "gpu": compiled.runtime.gpu.name if plan else f"not run: {why}"}
    if compiled.plans.fallback:
        backend, precision = compiled.plans.fallback
        with closing(_cpu_engine(draft, compiled, export)) as cpu:
            found = measure(cpu, export.calibration, reference, grade_min=float(export.model["grades"]["min"]))
        found.check(bounds.of(precision), f"the {precision} {backend} engine beside the plans of {export.name}")
        figures["fallback"] = found.to_json()
        # The probe must pass on either engine.
        figures["probe_tolerance"] = max(figures["probe_tolerance"], parity.probe_tolerance + found.probe_tolerance)
    return figures, "" if plan else f"no plan was run: {why}; the figures are those of the typed graph, emulated on the CPU"


def _cpu_engine(draft: Path, compiled: Compiled, export: Export) -> Engine:
    manifest, fallback = read_manifest(draft), compiled.plans.fallback
    if export.states:
        return open_mid_fallback(draft, manifest, export.model, export.limits, fallback, threads=None)
    return open_fallback(draft, manifest, export.limits, fallback, threads=None)
