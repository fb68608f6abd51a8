"""``build_engine``: from an export folder to a bundle, on the device that will serve it."""

from __future__ import annotations

import math
import os
import platform
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ..bundle import check_target
from ..engine import open_engine
from ..engine.machine import cpu_flags, int8_saturates
from ..errors import BuildError, BundleError, EngineError
from ..manifest import ENGINE_FILES, ITEM_ENGINE_FILE
from .compile import compile_graph
from .contract import Export, read_export
from .native import native_engine
from .pack import pack, probe
from .parity import Parity, Tolerance, Tolerances, fp32_logits, measure
from .quantize import ACTIVATIONS, quantize_int8
from .weights import reference_engine

SUPPORTED = {"ort": ("fp32", "int8"), "native": ("fp32", "int8"), "reference": ("fp32",)}


@dataclass(frozen=True, slots=True)
class BuildReport:
    """What a build made and how well it matches.

    Attributes
    ----------
    bundle : the folder written.
    engine_bytes : size of the engine file, or of both graphs of a mid-fusion student.
    tolerance : the bounds it had to meet.
    reduced_range : int8 weights use 7 bits, because this CPU's 8-bit products saturate.
    timings_s : seconds by step: ``contract quantize compile parity pack``.
    """

    bundle: Path
    model_version: str
    backend: str
    precision: str
    engine_bytes: int
    reduced_range: bool
    parity: Parity
    tolerance: Tolerance
    timings_s: dict[str, float]

    def to_json(self) -> dict[str, Any]:
        """Plain values, ready for ``json.dumps``."""
        return {
            "bundle": str(self.bundle),
            "model_version": self.model_version,
            "backend": self.backend,
            "precision": self.precision,
            "engine_bytes": self.engine_bytes,
            "reduced_range": self.reduced_range,
            "parity": self.parity.to_json(),
            "tolerance": {name: bound if math.isfinite(bound) else None for name, bound in asdict(self.tolerance).items()},
            "timings_s": {step: round(seconds, 3) for step, seconds in self.timings_s.items()},
        }


def build_engine(
    export: str | os.PathLike[str],
    bundle: str | os.PathLike[str],
    *,
    backend: str = "ort",
    precision: str = "fp32",
    activations: str = "token",
    tolerances: Tolerances | None = None,
    gate: Mapping[str, float] | None = None,
    replace: bool = False,
) -> BuildReport:
    """Build a bundle: contract, quantize, compile, parity, pack. Either a complete, checked bundle is written or nothing.

    Parameters
    ----------
    export : folder written by ``edgerec export``.
    bundle : folder to write; must not exist, unless ``replace`` is given and it is a bundle.
    backend : ``ort`` (ONNX Runtime), ``native`` (the C engine: BERT-type students, int8 by token) or ``reference`` (numpy, the oracle).
        Mid-fusion students: ``ort`` and ``reference``.
    precision : ``fp32``; for ``ort`` and ``native`` also ``int8``.
    activations : for int8 on ``ort``, what shares one activation scale: ``token`` (a row's logit does not depend on its batch, and is
        closer to fp32) or ``batch`` (faster); see `edgerec.builder.quantize.quantize_int8`.
    tolerances : the parity gates; by default `Tolerances` with the bounds that the model's recipe sets (``model.json: gate``).
    gate : bounds that go before those: ``ndcg_drop``, ``tau``, ``nan_count``.

    Raises
    ------
    BuildError : the export is not understood, a step fails, or the engine does not match the exported graph.
    """
    if precision not in SUPPORTED.get(backend, ()):
        known = "; ".join(f"{name}: {', '.join(precisions)}" for name, precisions in SUPPORTED.items())
        raise BuildError(f"backend {backend!r} with precision {precision!r} cannot be built; the builder knows {known}")
    if activations not in ACTIVATIONS:
        raise BuildError(f"activations is {activations!r}, expected one of {', '.join(ACTIVATIONS)}")
    clock = _Clock()
    try:
        check_target(bundle, replace=replace)
        with clock.step("contract"):
            source = read_export(export)
            bounds = tolerances or Tolerances().with_gate(source.model.get("gate") or {}, f"{export}: model.json")
            bounds = bounds.with_gate(gate or {}, "build_engine")
            if source.states and backend == "native":
                raise BuildError(f"{export}: the native engine does not run mid-fusion students yet; build it with --backend ort")
            reference = fp32_logits(source, bounds.export)
        reduced = backend == "ort" and precision == "int8" and int8_saturates(cpu_flags(), platform.machine())
        engine = _engine(source, backend, precision, clock, reduce_range=reduced, activations=activations)
        with clock.step("parity"), tempfile.TemporaryDirectory() as folder:
            # The draft is loaded by the code that will serve it: what is measured is what will run.
            draft = Path(folder) / "draft"
            pack(draft, source, engine, backend=backend, precision=precision, parity={})
            with closing(open_engine(draft, probe=False)) as built:
                grade_min = float(source.model["grades"]["min"])
                parity = measure(built, source.calibration, reference, grade_min=grade_min)
                parity.check(bounds.of(precision), f"the {precision} {backend} engine of {source.name}")
                rows = probe(built, source)
        with clock.step("pack"):
            manifest = pack(
                bundle, source, engine, backend=backend, precision=precision, parity=parity.to_json(), probe=rows, replace=replace
            )
    except (BundleError, EngineError) as error:
        raise BuildError(str(error)) from error
    return BuildReport(
        bundle=Path(bundle),
        model_version=manifest.model_version,
        backend=backend,
        precision=precision,
        engine_bytes=sum(map(len, engine.values())),
        reduced_range=reduced,
        parity=parity,
        tolerance=bounds.of(precision),
        timings_s=clock.seconds,
    )


def _engine(export: Export, backend: str, precision: str, clock: _Clock, *, reduce_range: bool, activations: str) -> dict[str, bytes]:
    """The files that the backend loads, by name; the engine file first."""
    if backend != "ort":
        with clock.step("compile"):
            return {ENGINE_FILES[backend]: reference_engine(export) if backend == "reference" else native_engine(export, precision)}
    graphs = {ENGINE_FILES[backend]: export.graph, **({ITEM_ENGINE_FILE: export.item_graph} if export.states else {})}
    if precision == "int8":
        with clock.step("quantize"):
            graphs = {name: quantize_int8(graph, reduce_range=reduce_range, activations=activations) for name, graph in graphs.items()}
    with clock.step("compile"):
        return {name: compile_graph(graph) for name, graph in graphs.items()}


class _Clock:
    """Seconds by step."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextmanager
    def step(self, name: str) -> Iterator[None]:
        start = time.perf_counter()
        yield
        self.seconds[name] = time.perf_counter() - start
