"""The sections of gpu_suite.py about mid-fusion students: their plans, their catalogue on the GPU, the kernel that widens states."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from time import perf_counter
from typing import Any

import gpu_gather
import numpy as np
from fixtures_export import WORDS
from gpu_times import percentiles, rank_times

from edgerec import Item, Ranker
from edgerec.builder import GpuOptions, build_engine
from edgerec.catalog import build_catalog
from edgerec.engine import trt_kept
from edgerec.engine.trt_plans import module_name, this_runtime
from edgerec.errors import BuildError, EngineError

Rows = Iterator[dict[str, Any]]
ORDER = ("tensorrt_rtx", "tensorrt")
"""In which flavours are tried; TensorRT 8.6 comes after them."""
TARGET_MS = 1.0
"""`Ranker.rank` of an L6 mid-fusion student in fp16, 1,000 candidates, p50 (H100)."""


def gather(suite: Any, not_run: type[Exception]) -> Rows:
    """csrc/gather.cu against its C twin, its speed, and compute-sanitizer's word on it."""
    if reason := this_runtime().gpu.reason:
        raise not_run(reason)
    yield from gpu_gather.rows(large=64 if suite.args.rehearse else 1024)
    program = shutil.which("compute-sanitizer")
    if program is None or suite.args.rehearse:
        yield {"tool": "compute-sanitizer", "found": "not on PATH" if program is None else "not run in a rehearsal"}
        return
    for tool in ("memcheck", "initcheck", "racecheck"):
        command = [program, "--tool", tool, "--error-exitcode", "9", sys.executable, str(Path(__file__).with_name("gpu_gather.py"))]
        done = subprocess.run(command, capture_output=True, text=True, timeout=max(5.0, suite.left()), check=False)
        yield {"tool": tool, "found": f"exit {done.returncode}: " + " ".join((done.stdout + done.stderr).split())[-200:]}


def mid(suite: Any, not_run: type[Exception]) -> Rows:
    """Plans, the item encoder by items a second, and `Ranker.rank` with the catalogue's states on the GPU and without."""
    if reason := this_runtime().gpu.reason:
        raise not_run(reason)
    if suite.args.flavour == "tensorrt86":
        raise not_run("the adapter of 8.6 builds no mid-fusion student")
    export = suite.args.mid_export
    if export is None:
        if not suite.args.rehearse:
            raise not_run("give --mid-export, the folder that `edgerec export` wrote for a mid-fusion student")
        sys.path.append(str(Path(__file__).resolve().parent.parent / "tests" / "training"))
        import fixtures_once
        from fixtures_mid_export import mid_export

        fixtures_once.run_folder = suite.work  # where the fixture makes its student

        export = mid_export("narrow")
    for precision in suite.args.precision[:2]:
        yield from _precision(suite, export, precision)


def _precision(suite: Any, export: Path, precision: str) -> Rows:
    bundle, flavour = suite.work / f"mid-{precision}", ""
    for flavour in (one for one in ORDER if suite.args.flavour in (None, one) and module_name(one)):
        began, options = perf_counter(), GpuOptions(flavour=flavour, timeout_s=max(5.0, suite.left()))
        row = {"precision": precision, "flavour": flavour}
        try:
            gate = {"ndcg_drop": 1.0, "tau": -1.0}
            report = build_engine(export, bundle, backend="tensorrt", precision=precision, gpu=options, gate=gate)
        except (BuildError, EngineError) as error:
            yield {**row, "refused": " ".join(str(error).split())[:300]}
            continue
        size, differ = report.engine_bytes / 1e6, report.parity.max_abs_diff
        yield {**row, "build s": perf_counter() - began, "MB": size, "max |dlogit|": differ}
        break
    else:
        return
    rng, count = np.random.default_rng(0), 200 if suite.args.rehearse else 20_000
    items = [Item(str(i), " ".join(rng.choice(WORDS, 15))) for i in range(count)]
    catalog, began = suite.work / f"mid-{precision}-catalog", perf_counter()
    build_catalog(iter(items), bundle, catalog, threads=1)
    yield {"precision": precision, "flavour": flavour, "items": count, "items/s": count / (perf_counter() - began)}
    for share in (trt_kept.FREE_SHARE, 0.0):
        before, trt_kept.FREE_SHARE = trt_kept.FREE_SHARE, share
        try:
            with Ranker.open(bundle, catalog=catalog) as ranker:
                kept = getattr(ranker._engine, "kept", "")
                for candidates in (10, 100) if suite.args.rehearse else (100, 1000):
                    ids = [str(i) for i in rng.permutation(count)[:candidates]]
                    times, note = rank_times(ranker, ids, 1, suite.args.calls)
                    row = {
                        "precision": precision,
                        "flavour": flavour,
                        "candidates": candidates,
                        "kept": kept,
                        "note": note,
                        **percentiles(times),
                    }
                    wanted = share and candidates == 1000 and precision == "fp16"
                    yield row | ({"target ms": TARGET_MS, "kept to": "yes" if row["p50 ms"] <= TARGET_MS else "NO"} if wanted else {})
        finally:
            trt_kept.FREE_SHARE = before
