"""TensorRT: from an export to plans, each built in a child process, for the GPU here or ahead for named targets."""

from __future__ import annotations

import json
import platform
import re
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from ..engine import Engine
from ..engine.trt_plans import COMPATIBLE, FLAVOURS, PARTS, PLANS_FILE, Buckets, Plan, Plans, Runtime, module_name, this_runtime
from ..errors import BuildError
from ..manifest import ENGINE_FILES
from . import trt_child
from .compile import compile_graph, ort_graphs
from .contract import Export
from .native import native_engine
from .quantize import quantize_int8
from .trt_inspect import summarise
from .trt_parts import Part, make_parts, sizes_of

GRAPH_FILES = {"engine": "tensorrt.onnx", "query": "tensorrt.query.onnx", "items": "tensorrt.items.onnx"}
INSPECTOR_FILE = "inspector.json"
PRECISIONS = ("fp32", "fp16", "bf16", "int8", "fp8")
FALLBACKS = ("fp32", "bf16", "int8", "none")
_FP8_FROM = 89
_LOG_LINES = 12
Step = Callable[[str], AbstractContextManager[None]]


@dataclass(frozen=True, slots=True)
class GpuOptions:
    """How to build for GPUs.

    Attributes
    ----------
    buckets : (rows, tokens) that the plan is built for; empty: chosen from the lengths of the calibration rows.
    targets : compute capabilities, ``sm_89``, to build for ahead, with TensorRT for RTX; empty: the GPU of this machine.
    timing_cache : file of measured kernel times, read and written; a second build is then much faster.
    hardware_compat : ``ampere_plus``: run on any GPU from sm_80 on; ``same_cc``: on any of the same compute capability; both cost speed.
    version_compatible : let newer TensorRTs of the same major version run the plan.
    fallback : precision of the CPU engine packed beside the plans, or ``none``.
    flavour : a key of `edgerec.engine.trt_plans.FLAVOURS`; empty: full TensorRT where there is a GPU, else TensorRT for RTX.
    timeout_s : seconds that the build of one plan may take.
    workspace_bytes : GPU memory that kernels may use for scratch.
    """

    buckets: Buckets = ()
    targets: tuple[str, ...] = ()
    timing_cache: Path | None = None
    hardware_compat: str = "none"
    version_compatible: bool = False
    fallback: str = "fp32"
    flavour: str = ""
    timeout_s: float = 1800.0
    workspace_bytes: int = 2 << 30

    def check(self) -> None:
        """Raise BuildError for a value that no TensorRT takes."""
        if self.hardware_compat not in COMPATIBLE:
            raise BuildError(f"hardware_compat is {self.hardware_compat!r:.40}, expected one of {', '.join(COMPATIBLE)}")
        if self.fallback not in FALLBACKS:
            raise BuildError(f"fallback is {self.fallback!r:.40}, expected one of {', '.join(FALLBACKS)}")
        wrong = [target for target in self.targets if not re.fullmatch(r"sm_\d{2,3}", target)]
        if wrong or len(set(self.targets)) < len(self.targets):
            raise BuildError(f"targets are {', '.join(self.targets)}; expected different compute capabilities like sm_89")


@dataclass(frozen=True, slots=True)
class Compiled:
    """What `compile_tensorrt` made.

    Attributes
    ----------
    files : the bundle's engine files by name, ``plans.json`` first.
    plans : their description.
    emulation : opens the same arithmetic in float32, for a CPU.
    runtime : what this machine can run.
    fingerprint : more lines for the manifest.
    """

    files: dict[str, bytes]
    plans: Plans
    emulation: Callable[[], Engine]
    runtime: Runtime
    fingerprint: dict[str, str | list[str]]


def compile_tensorrt(export: Export, precision: str, options: GpuOptions, step: Step) -> Compiled:
    """Typed graphs, plans and CPU engine of a student.

    Parameters
    ----------
    precision : one of ``PRECISIONS``; in ``int8`` and ``fp8`` what is not a product of tokens with weights is as in ``fp16``.
    step : books the time of a step by its name.

    Raises
    ------
    BuildError : TensorRT is missing, refuses, crashes or takes too long; the GPU is missing and no target is named.
    """
    options.check()
    here = this_runtime()
    flavour, targets = _flavour(options, here)
    _check_fp8(precision, [target or here.gpu.target for target in targets])
    if flavour == "tensorrt_rtx" and options.timing_cache is not None:
        raise BuildError("TensorRT for RTX measures no kernels when it builds; leave --timing-cache out")
    if flavour == "tensorrt_rtx" and options.version_compatible:
        raise BuildError("TensorRT for RTX has no lean runtime to put into a plan; leave --version-compatible out")
    sizes = sizes_of(export, options.buckets)
    with step("quantize"):
        student = make_parts(export, precision, sizes)
    with step("compile"):
        fallback, cpu = _cpu_engine(export, options.fallback)
        plans, files, summaries = [], {}, {}
        for target in targets:
            on_gpu = "" if target else here.gpu.name
            plan = Plan(
                file=f"{PARTS[0]}.{target or here.gpu.target}.plan",
                target=target or here.gpu.target,
                flavour=flavour,
                version="",
                hardware_compat=options.hardware_compat,
                version_compatible=options.version_compatible,
                gpu=on_gpu,
                driver=here.gpu.driver if on_gpu else "",
                os=sys.platform,
                machine=platform.machine(),
            )
            for name, part in student.parts.items():
                version, files[plan.part(name)], inspector = _build(part, flavour, target, options)
                why = here.gpu.reason or f"the GPU here is {here.gpu.target}"
                summaries[plan.part(name)] = summarise(inspector) if inspector else {"not_run": why}
            plans.append(replace(plan, version=version))
    described = Plans(sizes.buckets, sizes.slots, fallback, tuple(plans), sizes.asking)
    fingerprint: dict[str, str | list[str]] = {
        "tensorrt": f"{flavour} {plans[0].version}",
        "targets": [plan.target for plan in plans],
        "gpu": here.gpu.name or "none",
        "driver": here.gpu.driver or "none",
    }
    graphs = {GRAPH_FILES[name]: part.typed for name, part in student.parts.items()}
    data = {PLANS_FILE: _json(described.to_json()), **files, **graphs, INSPECTOR_FILE: _json(summaries), **cpu}
    return Compiled(data, described, student.emulation, here, fingerprint)


def _check_fp8(precision: str, targets: Sequence[str]) -> None:
    old = [target for target in targets if int(target[3:]) < _FP8_FROM]
    if precision == "fp8" and old:
        raise BuildError(f"{', '.join(old)} has no fp8 arithmetic, GPUs have it from sm_89 on; build int8 or fp16 for it")


def _flavour(options: GpuOptions, here: Runtime) -> tuple[str, tuple[str, ...]]:
    """Which TensorRT builds, and for which targets; a target of ``""`` is the GPU of this machine."""
    if options.flavour and options.flavour not in FLAVOURS:
        raise BuildError(f"flavour is {options.flavour!r:.40}, expected one of {', '.join(FLAVOURS)}")
    ahead = bool(options.targets) and options.targets != (here.gpu.target,)
    if here.gpu.reason and not options.targets:
        raise BuildError(
            f"there is no GPU to build for: {here.gpu.reason}. Build on the machine that will serve, or ahead for named targets with "
            "TensorRT for RTX, for example --target sm_89"
        )
    # Without a driver full TensorRT crashes; it is not even imported there. It never builds for another GPU than the one at hand.
    wanted = [options.flavour] if options.flavour else ["tensorrt_rtx"] if here.gpu.reason or ahead else ["tensorrt", "tensorrt_rtx"]
    if wanted == ["tensorrt"] and here.gpu.reason:
        raise BuildError(f"full TensorRT builds on the GPU it will serve on alone: {here.gpu.reason}; for another, use TensorRT for RTX")
    found = [flavour for flavour in wanted if flavour in here.versions]
    if not found:
        raise BuildError(f"{' or '.join(wanted)} is not installed; run: pip install 'edgerec[{_EXTRAS[wanted[0]]}]'")
    if found[0] == "tensorrt":
        if ahead:
            raise BuildError(f"full TensorRT cannot build for {', '.join(options.targets)}: it builds for {here.gpu.target} here")
        return "tensorrt", ("",)
    # For the GPU at hand TensorRT for RTX is asked without naming it: it may run on more than it names.
    return "tensorrt_rtx", options.targets if ahead else ("",)


def _build(part: Part, flavour: str, target: str, options: GpuOptions) -> tuple[str, bytes, Any]:
    """One plan: the version that built it, its bytes, and what the inspector says."""
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        (folder / "student.onnx").write_bytes(part.typed)
        job = {
            "sys_path": sys.path,
            "module": module_name(flavour),
            "onnx": str(folder / "student.onnx"),
            "plan": str(folder / "engine.plan"),
            "answer": str(folder / "answer.json"),
            "profiles": part.profiles,
            "target": target,
            "hardware_compat": options.hardware_compat,
            "version_compatible": options.version_compatible,
            "timing_cache": str(options.timing_cache.absolute()) if options.timing_cache else "",
            "workspace_bytes": options.workspace_bytes,
            "inspect": not target,
        }
        answer = run_child(job, folder, options.timeout_s)
        if "error" in answer:
            raise BuildError(f"{flavour} {answer['version']}: {answer['error']}. {_ADVICE}")
        return str(answer["version"]), (folder / "engine.plan").read_bytes(), answer["inspector"]


_EXTRAS = {"tensorrt": "tensorrt", "tensorrt_rtx": "rtx"}
_ADVICE = "Try another precision or fewer buckets; --backend native or ort serves the student without a GPU"


def run_child(job: dict[str, Any], folder: Path, timeout_s: float) -> dict[str, Any]:
    """Have the child do a job. Raises BuildError, with the end of its log, when it crashes, hangs or gives no answer."""
    (folder / "job.json").write_text(json.dumps(job), encoding="utf-8")
    log = folder / "log.txt"
    # -I: nothing of the caller's environment or folder changes what the child imports; the job has the search path.
    command = [sys.executable, "-I", str(Path(trt_child.__file__)), str(folder / "job.json")]
    with open(log, "wb") as stream:
        try:
            done = subprocess.run(command, stdin=subprocess.DEVNULL, stdout=stream, stderr=stream, timeout=timeout_s, check=False)
        except subprocess.TimeoutExpired as error:
            raise BuildError(f"TensorRT did not finish within {timeout_s:g} s and was stopped{_tail(log)}") from error
    answer = folder / "answer.json"
    if done.returncode or not answer.exists():
        how = f"was ended by {signal.Signals(-done.returncode).name}" if done.returncode < 0 else f"ended with exit code {done.returncode}"
        raise BuildError(f"the TensorRT build process {how} and gave no answer{_tail(log)}")
    found: dict[str, Any] = json.loads(answer.read_text(encoding="utf-8"))
    return found


def _tail(log: Path) -> str:
    lines = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()[-_LOG_LINES:]
    return "; its log ends: " + " | ".join(lines) if lines else "; it logged nothing"


def _cpu_engine(export: Export, precision: str) -> tuple[tuple[str, ...], dict[str, bytes]]:
    """Backend and precision of the CPU engine, and its file: the native one where it runs the student."""
    if precision == "none":
        return (), {}
    try:
        return ("native", precision), {ENGINE_FILES["native"]: native_engine(export, precision)}
    except BuildError:
        if precision == "bf16":
            raise
    graphs = ort_graphs(export)
    if precision == "int8":
        graphs = {name: quantize_int8(graph, reduce_range=True) for name, graph in graphs.items()}
    return ("ort", precision), {name: compile_graph(graph) for name, graph in graphs.items()}


def _json(value: Any) -> bytes:
    return json.dumps(value, indent=1, default=asdict).encode() + b"\n"
