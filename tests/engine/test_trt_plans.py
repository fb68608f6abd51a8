"""Which plan runs where, over invented machines, and what is said when none does."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from edgerec.engine.gpu import Gpu
from edgerec.engine.trt_plans import Plan, Plans, Runtime, choose, rebuild_command, why_not
from edgerec.errors import BundleError

PLAN = Plan(
    file="engine.sm_89.plan",
    target="sm_89",
    flavour="tensorrt",
    version="10.13.2.6",
    hardware_compat="none",
    version_compatible=False,
    gpu="NVIDIA L4",
    driver="12.9",
    os="linux",
    machine="x86_64",
)
HERE = Runtime(Gpu("sm_89", "NVIDIA L4", "13.0"), {"tensorrt": "10.13.2.6"}, "linux", "x86_64")


def gpu(target: str) -> Runtime:
    return replace(HERE, gpu=Gpu(target, f"some {target}", "13.0"))


def version(found: str) -> Runtime:
    return replace(HERE, versions={"tensorrt": found})


COMPATIBLE = replace(PLAN, version_compatible=True)
ANY_AMPERE = replace(PLAN, hardware_compat="ampere_plus", target="sm_80")
CASES = {
    "the same machine": (PLAN, HERE, ""),
    "no driver": (PLAN, replace(HERE, gpu=Gpu(reason="no NVIDIA driver on this machine")), "no NVIDIA driver"),
    "another system": (PLAN, replace(HERE, os="win32"), "built on linux x86_64, this is win32 x86_64"),
    "another processor": (PLAN, replace(HERE, machine="aarch64"), "this is linux aarch64"),
    "another GPU": (PLAN, gpu("sm_90"), "built for sm_89, this GPU (some sm_90) is sm_90"),
    "an older GPU, same major": (PLAN, gpu("sm_86"), "this GPU (some sm_86) is sm_86"),
    "any GPU from Ampere on": (ANY_AMPERE, gpu("sm_120"), ""),
    "a GPU before Ampere": (ANY_AMPERE, gpu("sm_75"), "built for GPUs from sm_80 on"),
    "same compute capability is not another": (replace(PLAN, hardware_compat="same_cc"), gpu("sm_90"), "built for sm_89"),
    "TensorRT is not installed": (PLAN, replace(HERE, versions={}), "needs tensorrt 10.13.2.6, which is not installed"),
    "only the other TensorRT": (PLAN, replace(HERE, versions={"tensorrt_rtx": "1.6.1"}), "which is not installed"),
    "a newer TensorRT": (PLAN, version("10.16.1.1"), "built with tensorrt 10.13.2.6, here is 10.16.1.1; a plan does not"),
    "a newer TensorRT, compatible plan": (COMPATIBLE, version("10.16.1.1"), ""),
    "an older TensorRT, compatible plan": (COMPATIBLE, version("10.9.0.34"), "a version-compatible plan does not run there"),
    "another major version, compatible plan": (COMPATIBLE, version("11.0.0"), "does not run there"),
    "a driver of an older CUDA": (PLAN, replace(HERE, gpu=Gpu("sm_89", "L4", "11.8")), "for CUDA 12.9, the driver here is for CUDA 11.8"),
    "a driver of an older minor version": (PLAN, replace(HERE, gpu=Gpu("sm_89", "L4", "12.2")), ""),
}


@pytest.mark.parametrize("name", CASES)
def test_why_a_plan_does_not_run(name: str) -> None:
    plan, here, reason = CASES[name]
    found = why_not(plan, here)
    assert (reason in found) if reason else found == ""


def test_a_plan_for_exactly_this_gpu_goes_first() -> None:
    assert choose([ANY_AMPERE, PLAN], HERE)[0] == PLAN
    assert choose([ANY_AMPERE, PLAN], gpu("sm_86"))[0] == ANY_AMPERE


def test_when_none_runs_every_plan_has_its_reason() -> None:
    other = replace(PLAN, file="engine.sm_90.plan", target="sm_90", version="11.0.0")
    plan, why = choose([PLAN, other], gpu("sm_90"))
    assert plan is None
    assert "engine.sm_89.plan: it was built for sm_89" in why
    assert "engine.sm_90.plan: it was built with tensorrt 11.0.0" in why
    assert choose([PLAN, other], replace(HERE, gpu=Gpu(reason="no driver"))) == (None, "no driver")


def test_the_command_builds_for_this_gpu() -> None:
    plans = Plans(((32, 16), (128, 64)), 12, ("native", "fp32"), (PLAN,))
    command = rebuild_command(plans, "fp16", gpu("sm_90"))
    assert command == "edgerec build-engine EXPORT BUNDLE --backend tensorrt --precision fp16 --buckets 32x16,128x64 --target sm_90"
    assert "--target" not in rebuild_command(plans, "fp16", replace(HERE, gpu=Gpu(reason="no driver")))


def test_plans_survive_json() -> None:
    import json

    plans = Plans(((32, 16), (128, 64)), 12, ("native", "fp32"), (PLAN, ANY_AMPERE))
    assert Plans.from_json(json.loads(json.dumps(plans.to_json())), "plans.json") == plans


def good() -> dict[str, Any]:
    import json

    return json.loads(json.dumps(Plans(((32, 16),), 12, ("native", "fp32"), (PLAN,)).to_json()))


BROKEN: dict[str, tuple[str, Any]] = {
    "version": ("version", 2),
    "no buckets": ("buckets", []),
    "a bucket of three": ("buckets", [[1, 2, 3]]),
    "a bucket of text": ("buckets", [["32", 16]]),
    "a huge bucket": ("buckets", [[1 << 40, 16]]),
    "a bool": ("buckets", [[True, 16]]),
    "negative slots": ("slots", -1),
    "slots as text": ("slots", "12"),
    "a fallback of one": ("fallback", ["native"]),
    "an unknown fallback": ("fallback", ["reference", "fp32"]),
    "no plans": ("plans", []),
    "plans as an object": ("plans", {}),
    "a plan that is none": ("plans", [1]),
    "a plan of nothing": ("plans", [{}]),
    "a path": ("plans", [{**good()["plans"][0], "file": "../x"}]),
    "an unknown flavour": ("plans", [{**good()["plans"][0], "flavour": "os"}]),
    "an unknown compatibility": ("plans", [{**good()["plans"][0], "hardware_compat": "all"}]),
    "one key more": ("plans", [{**good()["plans"][0], "more": 1}]),
    "a number for a text": ("plans", [{**good()["plans"][0], "target": 89}]),
    "compatible as text": ("plans", [{**good()["plans"][0], "version_compatible": "no"}]),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_description_is_a_bundle_error(name: str) -> None:
    key, value = BROKEN[name]
    with pytest.raises(BundleError, match=r"plans\.json"):
        Plans.from_json({**good(), key: value}, "plans.json")
    with pytest.raises(BundleError):
        Plans.from_json({k: v for k, v in good().items() if k != key}, "plans.json")
