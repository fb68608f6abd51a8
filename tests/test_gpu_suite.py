"""The GPU suite, rehearsed on the stand-in: no minute of a real GPU is to go into a typo."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

ROOT = Path(__file__).resolve().parent.parent
BENCHMARKS = ROOT / "benchmarks"


def rehearse(out: Path, *options: str) -> dict[str, Any]:
    command = [sys.executable, "benchmarks/gpu_suite.py", "--rehearse", "--out", str(out), *options]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    report: dict[str, Any] = json.loads((out / "gpu.json").read_text())
    assert report["rehearsal"] is True
    assert "no figure here means anything" in (out / "gpu.md").read_text()
    return report


def done(report: dict[str, Any]) -> set[str]:
    """The sections that came to their end; the others must say why they did not."""
    status = {name: section["status"] for name, section in report["sections"].items()}
    assert all(found == "done" or found.startswith("not run: ") for found in status.values())
    return {name for name, found in status.items() if found == "done"}


def test_the_rehearsal_ends_with_a_report_that_says_it_is_one(tmp_path: Path) -> None:
    report = rehearse(tmp_path, "--flavour", "tensorrt", "--precision", "fp16", "--buckets", "16x128", "--calls", "2")
    assert done(report) == {"environment", "flavours", "builds", "engine latency", "end to end", "targets", "gather kernel", "mid-fusion"}
    (built,) = report["sections"]["builds"]["rows"]
    assert built["run on"] == "the GPU"
    for section in ("builds", "engine latency", "end to end", "targets"):
        assert all("flavour" in row for row in report["sections"][section]["rows"])
    *kinds, sanitizer = report["sections"]["gather kernel"]["rows"]
    assert ([row["differ"] for row in kinds], sanitizer["tool"]) == ([0] * 10, "compute-sanitizer")
    built, encoded, *ranked = report["sections"]["mid-fusion"]["rows"]
    assert min(built["MB"], encoded["items/s"]) > 0
    assert [(row["candidates"], row["kept"].split()[0] != "0") for row in ranked] == [(10, True), (100, True), (10, False), (100, False)]
    (rate,) = report["sections"]["fine-tuning"]["rows"]
    assert (rate["teacher"], rate["on"]) == ("small", "cpu")
    assert rate["pairs/s"] > 0


def test_what_no_newer_tensorrt_builds_is_built_and_run_by_8_6_and_by_a_later_runtime(tmp_path: Path) -> None:
    report = rehearse(
        tmp_path, "--flavour", "tensorrt86", "--precision", "fp16", "--precision", "int8", "--buckets", "4x16,8x32", "--calls", "2"
    )
    assert done(report) == {"environment", "flavours", "builds", "engine latency", "gather kernel"}
    loads = {row["flavour"]: row["loads"] for row in report["sections"]["flavours"]["rows"]}
    assert loads["tensorrt by trtpy"] == loads["tensorrt_dispatch by trtpy312"] == "8.6.0"
    fp16, int8 = report["sections"]["builds"]["rows"]
    assert (fp16["flavour"], fp16["version"]) == ("tensorrt 8.6, weakly typed, adapter", "8.6.0")
    assert int8["refused"] == "the adapter builds fp32 and fp16 alone"
    rows = report["sections"]["engine latency"]["rows"]
    assert sorted({row["flavour"] for row in rows}) == [
        "plan of 8.6 in the dispatch runtime (8.6.0)",
        "tensorrt 8.6, weakly typed, adapter (8.6.0)",
    ]
    assert sorted((row["bucket"], row["launch"]) for row in rows) == 2 * [("4x16", "graph")] + 2 * [("4x16", "plain")] + 2 * [
        ("8x32", "graph")
    ] + 2 * [("8x32", "plain")]
    assert all(row["max |dlogit|"] < 1e-4 and row["p50 ms"] > 0 for row in rows)


def test_without_a_driver_the_adapter_says_so_and_touches_nothing(tmp_path: Path) -> None:
    command = [sys.executable, str(BENCHMARKS / "trt86.py"), "--module", "no_such_module", "run", "plan", "--feeds", "f", "--logits", "l"]
    found = subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path)
    assert found.returncode == 3
    assert "driver" in (why := json.loads(found.stdout)["refused"]) or "no_such_module" in why
    assert not any(tmp_path.iterdir())


def test_when_time_is_up_every_section_says_so(tmp_path: Path) -> None:
    sections = rehearse(tmp_path, "--minutes", "0")["sections"].values()
    assert {section["status"] for section in sections} == {"not run: no time was left"}


# ---------------------------------------------------------------------------------------------------------------- roofline


@pytest.fixture(scope="module")
def gpu_roofline() -> Any:
    sys.path.insert(0, str(BENCHMARKS))
    try:
        import gpu_roofline
    finally:
        sys.path.remove(str(BENCHMARKS))
    return gpu_roofline


def products(layers: int, hidden: int, ffn: int, rows: int, tokens: int) -> list[tuple[int, int, int]]:
    """Every matrix product of a student, [m, k] times [k, n]; attention over all heads together as one of their total width."""
    found = []
    for layer in range(layers):
        asking = 1 if layer == layers - 1 else tokens
        found += [(rows * tokens, hidden, hidden)] * 2  # key, value
        found += [(rows * asking, hidden, hidden)] * 2  # query, output
        found += [(rows * asking, hidden, ffn), (rows * asking, ffn, hidden)]
        found += [(rows * asking, hidden, tokens), (rows * asking, tokens, hidden)]  # scores, what they weigh
    return found


@given(st.integers(1, 12), st.sampled_from([64, 384]), st.integers(1, 4), st.integers(1, 128), st.integers(1, 512))
def test_operations_are_those_of_all_products(gpu_roofline: Any, layers: int, hidden: int, wide: int, rows: int, tokens: int) -> None:
    work = gpu_roofline.Work.of(layers, hidden, wide * hidden, rows, tokens, 2)
    assert work.operations == sum(2 * m * k * n for m, k, n in products(layers, hidden, wide * hidden, rows, tokens))


def test_a_latency_is_a_multiple_of_the_bound(gpu_roofline: Any, tmp_path: Path) -> None:
    student = {"student": {"layers": 6, "hidden": 384, "intermediate": 1536}}
    (tmp_path / "model.json").write_text(json.dumps(student), encoding="utf-8")
    row = {"student": "L6", "precision": "fp16", "flavour": "f", "bucket": "128x64", "launch": "graph", "p50 ms": 3.0}
    latency = {"rows": [row, {**row, "precision": "int8"}, {"student": "L6", "note": "no graph"}]}
    rates = {"rivals": {"rows": [{"fp16 matmul TFLOP/s": 100.0}]}, "bandwidth": {"rows": [{"copy GB/s (read and write)": 1000.0}]}}
    suite = SimpleNamespace(found={"engine latency": latency, **rates}, exports={"L6": tmp_path})
    (found,) = gpu_roofline.roofline(suite, LookupError)
    assert found["p50 / least"] == pytest.approx(3.0 / found["least ms"])
    assert found["least ms"] == pytest.approx(max(found["GFLOP"] / 100, found["MB"] / 1000))
    del suite.found["bandwidth"]
    with pytest.raises(LookupError, match=r"no rate was measured of copies \(section bandwidth\)$"):
        next(gpu_roofline.roofline(suite, LookupError))
