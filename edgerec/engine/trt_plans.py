"""Which TensorRT plan of a bundle fits this machine, and in words why one does not.

A plan is machine code for one TensorRT, one kind of GPU and one system; TensorRT's own refusals name none of them. So ``plans.json``
says what each plan was built for, and is compared before a byte of a plan is deserialised.
"""

from __future__ import annotations

import importlib.util
import platform
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib import metadata
from typing import Any

from ..errors import BundleError
from ..manifest import is_plain_name, json_object
from .gpu import Gpu, find_gpu

PLANS_FILE = "plans.json"
VERSION = 1
FLAVOURS: Mapping[str, tuple[str, ...]] = {
    "tensorrt": ("tensorrt", "tensorrt_bindings"),
    "tensorrt_rtx": ("tensorrt_rtx", "tensorrt_rtx_bindings"),
}
"""The two TensorRTs, and the names under which their packages are imported."""
_PACKAGES: Mapping[str, tuple[str, ...]] = {
    "tensorrt": ("tensorrt-cu13-bindings", "tensorrt-cu12-bindings", "tensorrt-cu13", "tensorrt-cu12", "tensorrt"),
    "tensorrt_rtx": ("tensorrt-rtx-cu13-bindings", "tensorrt-rtx-cu12-bindings", "tensorrt-rtx"),
}
COMPATIBLE = ("none", "ampere_plus", "same_cc")
MAX_ROWS, MAX_TOKENS, MAX_BUCKETS = 4096, 8192, 16
PARTS = ("engine", "query", "items")
"""A mid-fusion student's plans for one target: joint layers, layers that see the query alone, item encoder. Others have the first alone."""
Buckets = tuple[tuple[int, int], ...]
_ITEM_ROWS = 64
_TEXTS = ("file", "target", "flavour", "version", "hardware_compat", "gpu", "driver", "os", "machine")


@dataclass(frozen=True, slots=True)
class Plan:
    """One plan and what it was built for.

    Attributes
    ----------
    file : its name in the bundle.
    target : the compute capability, ``sm_89``.
    flavour, version : a key of ``FLAVOURS`` and the exact version that built it.
    hardware_compat : one of ``COMPATIBLE``: ``ampere_plus`` runs on any GPU from sm_80 on.
    version_compatible : a newer TensorRT of the same major version runs it, too.
    gpu, driver : where it was built; empty when it was built ahead, without a GPU.
    os, machine : ``linux``, ``x86_64``.
    """

    file: str
    target: str
    flavour: str
    version: str
    hardware_compat: str
    version_compatible: bool
    gpu: str
    driver: str
    os: str
    machine: str

    def part(self, name: str) -> str:
        """The file of one of ``PARTS``."""
        return name + self.file.removeprefix(PARTS[0])


@dataclass(frozen=True, slots=True)
class Plans:
    """``plans.json``.

    Attributes
    ----------
    buckets : (rows, tokens), the shapes that every plan was built for; profile i is bucket i. For a mid-fusion student, rows and tokens of
        items for each length of a query: profile ``a * len(buckets) + i`` is ``asking[a]`` with bucket i.
    slots : feature slots, F; 0 without features.
    fallback : backend and precision of the CPU engine beside the plans; empty without.
    plans : in the order in which they were built.
    asking : the lengths of a query's side that a mid-fusion student's plans were built for, ascending; empty of another.
    """

    buckets: Buckets
    slots: int
    fallback: tuple[str, ...]
    plans: tuple[Plan, ...]
    asking: tuple[int, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """The object ``plans.json`` holds."""
        return {"version": VERSION, **asdict(self)}

    @classmethod
    def from_json(cls, value: object, what: str) -> Plans:
        """Check every key, type and range. Raises BundleError."""
        top = json_object(value, what)
        if top.get("version") != VERSION:
            raise BundleError(f"{what}: version is {top.get('version')!r:.80}, this edgerec reads {VERSION}; build the bundle again")
        buckets, slots, fallback, listed = (top.get(key) for key in ("buckets", "slots", "fallback", "plans"))
        asking = top.get("asking", [])
        if not isinstance(buckets, list) or not 1 <= len(buckets) <= MAX_BUCKETS or not all(map(_is_bucket, buckets)):
            raise BundleError(f"{what}: buckets is {buckets!r:.80}, expected 1 to {MAX_BUCKETS} pairs of rows and tokens")
        lengths = isinstance(asking, list) and len(asking) <= MAX_BUCKETS and all(type(n) is int and 1 <= n <= MAX_TOKENS for n in asking)
        if not lengths or asking != sorted(set(asking)):
            raise BundleError(f"{what}: asking is {asking!r:.80}, expected at most {MAX_BUCKETS} lengths of a query, ascending")
        if type(slots) is not int or not 0 <= slots <= 1 << 16:
            raise BundleError(f"{what}: slots is {slots!r:.80}, expected an integer from 0 on")
        if fallback not in ([], *(["native", p] for p in ("fp32", "bf16", "int8")), ["ort", "fp32"], ["ort", "int8"]):
            raise BundleError(f"{what}: fallback is {fallback!r:.80}, expected nothing, or a CPU backend and its precision")
        if not isinstance(listed, list) or not listed:
            raise BundleError(f"{what}: plans must be a list of at least one plan")
        plans = tuple(_plan(json_object(entry, f"{what}: plans"), what) for entry in listed)
        return cls(tuple((b[0], b[1]) for b in buckets), slots, tuple(fallback), plans, tuple(asking))


@dataclass(frozen=True, slots=True)
class Runtime:
    """What this machine can run plans with: the GPU, and the version of each TensorRT that can be imported, by flavour."""

    gpu: Gpu
    versions: Mapping[str, str]
    os: str = sys.platform
    machine: str = platform.machine()


def this_runtime() -> Runtime:
    """Ask the driver and the installed packages; nothing of TensorRT is imported."""
    return Runtime(find_gpu(), {flavour: version for flavour in FLAVOURS if (version := installed_version(flavour))})


def item_buckets(buckets: Buckets) -> Buckets:
    """(rows, tokens) of the item encoder's profiles, by tokens, where those of the joint layers are ``buckets``."""
    return tuple((_ITEM_ROWS, tokens) for tokens in sorted({tokens for _, tokens in buckets}))


def module_name(flavour: str) -> str:
    """The name under which a flavour can be imported here; empty when it is not installed."""
    return next((name for name in FLAVOURS[flavour] if name in sys.modules or importlib.util.find_spec(name) is not None), "")


def installed_version(flavour: str) -> str:
    """The version of a flavour by its package's metadata, without importing it; empty when it is not installed."""
    name = module_name(flavour)
    if not name:
        return ""
    for package in _PACKAGES[flavour]:
        try:
            return metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return str(getattr(sys.modules.get(name), "__version__", "unknown"))


def why_not(plan: Plan, here: Runtime) -> str:
    """Why a plan does not run here, in words; empty when it does."""
    gpu = here.gpu
    if gpu.reason:
        return gpu.reason
    if (plan.os, plan.machine) != (here.os, here.machine):
        return f"it was built on {plan.os} {plan.machine}, this is {here.os} {here.machine}"
    if not _fits_gpu(plan, gpu.target):
        meant = {"ampere_plus": "GPUs from sm_80 on"}.get(plan.hardware_compat, plan.target)
        return f"it was built for {meant}, this GPU ({gpu.name}) is {gpu.target}"
    found = here.versions.get(plan.flavour)
    if found is None:
        return f"it needs {plan.flavour} {plan.version}, which is not installed"
    if found != plan.version and not (plan.version_compatible and _same_major_not_older(found, plan.version)):
        kind = "a version-compatible plan" if plan.version_compatible else "a plan"
        return f"it was built with {plan.flavour} {plan.version}, here is {found}; {kind} does not run there"
    if plan.driver and gpu.driver and _numbers(gpu.driver)[:1] < _numbers(plan.driver)[:1]:
        return f"it was built with a driver for CUDA {plan.driver}, the driver here is for CUDA {gpu.driver}; update it"
    return ""


def choose(plans: Sequence[Plan], here: Runtime) -> tuple[Plan | None, str]:
    """The first plan that runs here, one made for exactly this GPU first; or None and why none does, plan by plan."""
    reasons = []
    for plan in sorted(plans, key=lambda p: p.target != here.gpu.target):
        reason = why_not(plan, here)
        if not reason:
            return plan, ""
        reasons.append(f"{plan.file}: {reason}")
    # Without a GPU all plans fail for one reason, which needs to be said once.
    return None, here.gpu.reason or "; ".join(reasons)


def rebuild_command(plans: Plans, precision: str, here: Runtime) -> str:
    """The command that builds a plan for this machine; on one without a GPU, the command to run where the GPU is."""
    shapes = ",".join(f"{rows}x{tokens}" for rows, tokens in plans.buckets)
    target = f" --target {here.gpu.target}" if here.gpu.target else ""
    return f"edgerec build-engine EXPORT BUNDLE --backend tensorrt --precision {precision} --buckets {shapes}{target}"


def _fits_gpu(plan: Plan, target: str) -> bool:
    return plan.target == target or (plan.hardware_compat == "ampere_plus" and _capability(target) >= 80)


def _capability(target: str) -> int:
    digits = target.removeprefix("sm_")
    return int(digits) if digits.isdecimal() else 0


def _same_major_not_older(found: str, built: str) -> bool:
    here, there = _numbers(found), _numbers(built)
    return here[:1] == there[:1] and here >= there


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split(".") if part.isdecimal())


def _is_bucket(value: object) -> bool:
    limits = (MAX_ROWS, MAX_TOKENS)
    return isinstance(value, list) and len(value) == 2 and all(type(n) is int and 1 <= n <= m for n, m in zip(value, limits, strict=True))


def _plan(entry: dict[str, Any], what: str) -> Plan:
    wrong = [key for key in _TEXTS if not isinstance(entry.get(key), str)]
    if wrong or type(entry.get("version_compatible")) is not bool or entry.keys() != set(Plan.__dataclass_fields__):
        raise BundleError(f"{what}: a plan must have {', '.join(Plan.__dataclass_fields__)}; check {', '.join(wrong) or sorted(entry)}")
    plan = Plan(**entry)
    if not is_plain_name(plan.file) or plan.flavour not in FLAVOURS or plan.hardware_compat not in COMPATIBLE:
        raise BundleError(f"{what}: a plan names file {plan.file!r:.80}, flavour {plan.flavour!r:.40}, {plan.hardware_compat!r:.40}")
    return plan
