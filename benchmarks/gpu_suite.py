"""All that edgerec has to show on a GPU, in one command of at most 8 minutes.

    python benchmarks/gpu_suite.py --out benchmarks/results
    python benchmarks/gpu_suite.py --rehearse --out /tmp/rehearsal       # anywhere: the GPU of tests/standin; its figures mean nothing

It prints what it finds, as it finds it. Every section ends as `done`, `failed: ...` or `not run: ...` in the report; nothing is left out
silently, and a section that fails does not stop the others. Students are those of `--export NAME=FOLDER` (repeatable), else of real size
with random weights: the speed is that of trained ones, the logits mean nothing. Needs edgerec[build,tensorrt] or [build,rtx] and pycuda.

TensorRT for RTX is tried first, then full TensorRT, then, for what neither builds, 8.6 through trt86.py in an interpreter of its own
(`--trt86`); the flavour stands beside every figure.

Results: `gpu.json` and `gpu.md` under `--out`. Percentiles are of single calls. `engine` is copy, run, copy of one bucket, by CUDA events;
`end to end` is `Ranker.rank` by wall clock.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import traceback
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from time import monotonic
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests"), str(ROOT / "benchmarks")]

import gpu_sections as sections  # noqa: E402
from turns import describe_machine, table  # noqa: E402

from edgerec.machine import installed_versions, utc_now  # noqa: E402

# Of real size: layers, hidden, heads.
STUDENTS = {"L6": (6, 384, 12), "L3": (3, 384, 12), "2x128": (2, 128, 2)}
SMALL = {"L6": (2, 64, 2)}
PACKAGES = ("edgerec", "numpy", "onnx", "onnxruntime", "pycuda", "cuda-bindings", "torch", *("tensorrt", "tensorrt-rtx-cu13-bindings"))


@dataclass
class Suite:
    """What the sections share, and what they found."""

    args: argparse.Namespace
    work: Path
    until: float
    exports: dict[str, Path] = field(default_factory=dict)
    bundles: dict[tuple[str, str], Path] = field(default_factory=dict)
    flavours: dict[tuple[str, str], str] = field(default_factory=dict)
    plans86: dict[tuple[str, str], Path] = field(default_factory=dict)
    found: dict[str, dict[str, Any]] = field(default_factory=dict)

    def left(self) -> float:
        """Seconds that remain."""
        return self.until - monotonic()

    def section(self, name: str, run: Callable[[Suite], Iterator[dict[str, Any]]]) -> None:
        """Run a section to its end, its failure or the end of the time; rows that came before either are kept."""
        rows: list[dict[str, Any]] = []
        status, began = "done", monotonic()
        print(f"\n## {name}", flush=True)
        try:
            if self.left() <= 0:
                raise sections.NotRun("no time was left")
            for row in run(self):
                rows.append(row)
                print(json.dumps(row), flush=True)
                if self.left() <= 0:
                    raise sections.NotRun("no time was left for the rest")
        except sections.NotRun as error:
            status = f"not run: {error}"
        except Exception as error:  # whatever it is, the other sections are worth having
            traceback.print_exc()
            status = f"failed: {type(error).__name__}: {' '.join(str(error).split())}"
        print(status, flush=True)
        self.found[name] = {"status": status, "seconds": round(monotonic() - began, 1), "rows": rows}


def write(suite: Suite, out: Path, machine: dict[str, Any]) -> None:
    """``gpu.json`` and ``gpu.md``."""
    head = {
        "format": "edgerec-gpu-suite",
        "version": 1,
        "date": utc_now(),
        "rehearsal": suite.args.rehearse,
        "machine": machine,
        "versions": installed_versions(PACKAGES),
    }
    out.mkdir(parents=True, exist_ok=True)
    (out / "gpu.json").write_text(json.dumps({**head, "sections": suite.found}, indent=1) + "\n", encoding="utf-8")
    lines = ["# GPU suite", "", f"{head['date']}; {machine['processor']}, load {machine['load_1min']}"]
    if suite.args.rehearse:
        lines += ["", "**A rehearsal on a stand-in: no figure here means anything.**"]
    for name, section in suite.found.items():
        lines += ["", f"## {name}", "", f"{section['status']} ({section['seconds']} s)"]
        for columns in sorted({tuple(row) for row in section["rows"]}, key=len):
            lines += ["", table([row for row in section["rows"] if tuple(row) == columns])]
    (out / "gpu.md").write_text("\n".join(lines) + "\n", encoding="utf-8")


def main() -> int:
    """Run all sections; 1 when one failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--export", action="append", default=[], metavar="NAME=FOLDER")
    parser.add_argument("--mid-export", type=Path, metavar="FOLDER", help="of a mid-fusion student, from `edgerec export`")
    parser.add_argument("--precision", action="append", choices=["fp32", "fp16", "bf16", "int8", "fp8"])
    parser.add_argument("--flavour", choices=["tensorrt_rtx", "tensorrt", "tensorrt86"], help="default: the first that builds")
    parser.add_argument("--trt86", default="", metavar="COMMAND", help="python with TensorRT 8.6 and PyCUDA; default: trtpy, if on PATH")
    parser.add_argument("--trt-dispatch", default="", metavar="COMMAND", help="python with the dispatch runtime; default: trtpy312")
    parser.add_argument("--buckets", default="128x16,32x64,128x64,128x128")
    parser.add_argument("--calls", type=int, default=300)
    parser.add_argument("--minutes", type=float, default=8.0)
    parser.add_argument("--rehearse", action="store_true", help="small students on the GPU of tests/standin")
    args = parser.parse_args()
    args.precision = args.precision or (["fp16", "int8"] if args.rehearse else ["fp16", "int8", "fp8", "bf16", "fp32"])
    args.students = SMALL if args.rehearse else STUDENTS
    machine = describe_machine()
    with ExitStack() as stack:
        if args.rehearse:
            from fixtures_standin import standin

            stack.enter_context(standin())
            args.trt86 = args.trt_dispatch = f"{sys.executable} {ROOT / 'tests' / 'standin86' / 'launch.py'}"
        suite = Suite(args, Path(stack.enter_context(tempfile.TemporaryDirectory())), monotonic() + 60 * args.minutes)
        for name, run in sections.SECTIONS.items():
            suite.section(name, run)
            write(suite, args.out, machine)  # after each: a machine that is taken away leaves what there was
    failed = [name for name, section in suite.found.items() if section["status"].startswith("failed")]
    print(f"\n{len(suite.found)} sections, failed: {', '.join(failed) or 'none'}; see {args.out / 'gpu.md'}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
