"""The GPU suite, rehearsed on the stand-in: no minute of a real GPU is to go into a typo."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def test_the_rehearsal_ends_with_a_report_that_says_it_is_one(tmp_path: Path) -> None:
    options = ["--rehearse", "--precision", "fp16", "--buckets", "16x128", "--calls", "2"]
    command = [sys.executable, "benchmarks/gpu_suite.py", "--out", str(tmp_path), *options]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    report = json.loads((tmp_path / "gpu.json").read_text())
    assert report["rehearsal"] is True
    status = {name: section["status"] for name, section in report["sections"].items()}
    assert {name for name, found in status.items() if found == "done"} == {
        "environment",
        "flavours",
        "builds",
        "engine latency",
        "end to end",
        "targets",
        "not yet",
    }
    assert all(found.startswith("not run: ") for found in status.values() if found != "done")
    assert report["sections"]["builds"]["rows"][0]["run on"] == "the GPU"
    assert "no figure here means anything" in (tmp_path / "gpu.md").read_text()


def test_when_time_is_up_every_section_says_so(tmp_path: Path) -> None:
    command = [sys.executable, "benchmarks/gpu_suite.py", "--rehearse", "--minutes", "0", "--out", str(tmp_path)]
    assert subprocess.run(command, cwd=ROOT, capture_output=True, check=False).returncode == 0
    sections = json.loads((tmp_path / "gpu.json").read_text())["sections"].values()
    assert {section["status"] for section in sections} == {"not run: no time was left"}
