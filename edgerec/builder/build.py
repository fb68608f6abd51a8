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

from ..bundle_writer import check_target
from ..engine import open_engine
from ..engine.machine import cpu_flags, int8_saturates
from ..errors import BuildError, BundleError, EngineError
from ..manifest import ENGINE_FILES
from .calibrate import calibrate
from .compile import compile_graph, ort_graphs
from .contract import Export, read_export
from .native import native_engine
from .pack import pack, probe
from .parity import Parity, Tolerance, Tolerances, fp32_logits, measure
from .quantize import ACTIVATIONS, quantize_int8
from .trt import PRECISIONS as TENSORRT_PRECISIONS
from .trt import Compiled, GpuOptions, compile_tensorrt
from .trt_parity import measured_engine, with_gpu
from .weights import reference_engine
from .wordpiece import compile_tokenizer

SUPPORTED = {"ort": ("fp32", "int8"), "native": ("fp32", "bf16", "int8"), "reference": ("fp32",), "tensorrt": TENSORRT_PRECISIONS}


@dataclass(frozen=True, slots=True)
class BuildReport:
    """What a build made and how well it matches.

    Attributes
    ----------
    bundle : the folder written.
    backend_reason : why this backend: it was asked for, or native runs the student, or why native does not.
    engine_bytes : size of the engine file, or of both graphs of a mid-fusion student.
    tokenizer : whether the tokenizer was compiled, or why the tokenizers library does its work.
    tolerance : the bounds it had to meet.
    measured : empty; or, of a TensorRT plan that could not be run here, why, and what stood in for it.
    reduced_range : int8 weights use 7 bits, because this CPU's 8-bit products saturate.
    timings_s : seconds by step: ``contract quantize compile parity tokenizer pack``.
    """

    bundle: Path
    model_version: str
    backend: str
    backend_reason: str
    precision: str
    engine_bytes: int
    reduced_range: bool
    tokenizer: str
    parity: Parity
    tolerance: Tolerance
    measured: str
    timings_s: dict[str, float]

    def to_json(self) -> dict[str, Any]:
        """Plain values, ready for ``json.dumps``."""
        return {
            "bundle": str(self.bundle),
            "model_version": self.model_version,
            "backend": self.backend,
            "backend_reason": self.backend_reason,
            "precision": self.precision,
            "engine_bytes": self.engine_bytes,
            "reduced_range": self.reduced_range,
            "tokenizer": self.tokenizer,
            "parity": self.parity.to_json(),
            "tolerance": {name: bound if math.isfinite(bound) else None for name, bound in asdict(self.tolerance).items()},
            "measured": self.measured,
            "timings_s": {step: round(seconds, 3) for step, seconds in self.timings_s.items()},
        }


def build_engine(
    export: str | os.PathLike[str],
    bundle: str | os.PathLike[str],
    *,
    backend: str | None = None,
    precision: str = "fp32",
    activations: str = "token",
    tolerances: Tolerances | None = None,
    gate: Mapping[str, float] | None = None,
    gpu: GpuOptions | None = None,
    replace: bool = False,
) -> BuildReport:
    """Build a bundle: contract, quantize, compile, parity, tokenizer, pack. Either a complete, checked bundle is written or nothing.

    Parameters
    ----------
    export : folder written by ``edgerec export``.
    bundle : folder to write; must not exist, unless ``replace`` is given and it is a bundle.
    backend : ``native`` (the C engine: BERT-type students, int8 by token), ``ort`` (ONNX Runtime: any student) or ``reference`` (numpy, the
        oracle). None: ``native`` where it runs the student, else ``ort``; `BuildReport.backend_reason` says why.
    precision : ``fp32``; but for ``reference`` ``int8``; for ``native`` and ``tensorrt`` ``bf16``; for ``tensorrt`` ``fp16`` and ``fp8``.
    activations : for int8 on ``ort``, what shares one activation scale: ``token`` (a row's logit does not depend on its batch, and is
        closer to fp32), ``batch`` (faster), ``static`` (ranges from the calibration sample); see `edgerec.builder.quantize.quantize_int8`.
    tolerances : the parity gates; by default `Tolerances` with the bounds that the model's recipe sets (``model.json: gate``).
    gate : bounds that go before those: ``ndcg_drop``, ``top_overlap``, ``tau``, ``nan_count``.
    gpu : for ``tensorrt``, which is never chosen by itself: buckets, targets, compatibility, the CPU engine beside the plans.

    Raises
    ------
    BuildError : the export is not understood, a step fails, or the engine does not match the exported graph.
    """
    if precision not in SUPPORTED.get(backend or "native", ()):
        known = "; ".join(f"{name}: {', '.join(precisions)}" for name, precisions in SUPPORTED.items())
        raise BuildError(f"backend {backend!r} with precision {precision!r} cannot be built; the builder knows {known}")
    if activations not in ACTIVATIONS:
        raise BuildError(f"activations is {activations!r}, expected one of {', '.join(ACTIVATIONS)}")
    if activations != "token" and (precision != "int8" or backend not in (None, "ort")):
        raise BuildError(
            f"activations = {activations!r} are of int8 on ort; {precision} on {backend or 'the default backend'} has no such choice"
        )
    clock = _Clock()
    try:
        check_target(bundle, replace=replace)
        with clock.step("contract"):
            source = read_export(export)
            bounds = tolerances or Tolerances().with_gate(source.model.get("gate") or {}, f"{export}: model.json")
            bounds = bounds.with_gate(gate or {}, "build_engine").for_states(source.states)
            reference = fp32_logits(source, bounds.export)
        compiled: Compiled | None = None
        if backend == "tensorrt":
            compiled = compile_tensorrt(source, precision, gpu or GpuOptions(), clock.step)
            reason, engine = "asked for", compiled.files
        else:
            backend, reason, engine = _engine(source, backend, precision, clock, activations)
        with clock.step("parity"), tempfile.TemporaryDirectory() as folder:
            # The draft is loaded by the code that will serve it: what is measured is what will run.
            draft = Path(folder) / "draft"
            pack(draft, source, engine, backend=backend, precision=precision, parity={})
            with closing(measured_engine(draft, compiled) if compiled else open_engine(draft, probe=False)) as built:
                grade_min = float(source.model["grades"]["min"])
                parity = measure(built, source.calibration, reference, grade_min=grade_min)
                parity.check(bounds.of(precision), f"the {precision} {backend} engine of {source.name}")
                rows = probe(built, source)
            figures, measured = with_gpu(parity, compiled, draft, source, reference, bounds) if compiled else (parity.to_json(), "")
        with clock.step("tokenizer"):
            tokenizer = compile_tokenizer(source.tokenizer)
        with clock.step("pack"):
            manifest = pack(
                bundle,
                source,
                engine,
                backend=backend,
                precision=precision,
                parity=figures,
                probe=rows,
                compiled_tokenizer=tokenizer.data,
                machine=compiled.fingerprint if compiled else None,
                replace=replace,
            )
    except (BundleError, EngineError) as error:
        raise BuildError(str(error)) from error
    return BuildReport(
        bundle=Path(bundle),
        model_version=manifest.model_version,
        backend=backend,
        backend_reason=reason,
        precision=precision,
        engine_bytes=sum(map(len, engine.values())),
        reduced_range=backend == "ort" and precision == "int8" and _narrow(),
        tokenizer=tokenizer.reason,
        parity=parity,
        tolerance=bounds.of(precision),
        measured=measured,
        timings_s=clock.seconds,
    )


def _engine(export: Export, backend: str | None, precision: str, clock: _Clock, activations: str) -> tuple[str, str, dict[str, bytes]]:
    """The backend, why it is this one, and the files that it loads, by name; the engine file first."""
    reason = "asked for"
    if backend is None and precision == "int8" and activations != "token":
        backend, reason = "ort", f"activations = {activations!r} are ONNX Runtime's"
    if backend in (None, "native"):
        try:
            with clock.step("compile"):
                engine = native_engine(export, precision)
            return "native", reason if backend else "the native engine runs this student", {ENGINE_FILES["native"]: engine}
        except BuildError as error:
            if backend or precision not in SUPPORTED["ort"]:
                raise
            reason = " ".join(str(error).split())
    if backend == "reference":
        with clock.step("compile"):
            return backend, reason, {ENGINE_FILES[backend]: reference_engine(export)}
    graphs = ort_graphs(export)
    if precision == "int8":
        if activations == "static" and export.states:
            raise BuildError(f"{export.folder}: static activations are calibrated for cross students only; leave --activations at token")
        with clock.step("quantize"):
            ranges = calibrate(export.graph, export.calibration.batch) if activations == "static" else None
            graphs = {
                name: quantize_int8(graph, reduce_range=_narrow(), activations=activations, ranges=ranges) for name, graph in graphs.items()
            }
    with clock.step("compile"):
        return "ort", reason, {name: compile_graph(graph) for name, graph in graphs.items()}


def _narrow() -> bool:
    """Whether ONNX Runtime's int8 weights get 7 bits here."""
    return int8_saturates(cpu_flags(), platform.machine())


class _Clock:
    """Seconds by step."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextmanager
    def step(self, name: str) -> Iterator[None]:
        start = time.perf_counter()
        yield
        self.seconds[name] = time.perf_counter() - start
