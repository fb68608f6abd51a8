"""The sections of gpu_suite.py, in the order in which they run: what costs least and says most comes first."""

from __future__ import annotations

import importlib
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import closing
from itertools import product
from time import perf_counter
from typing import Any

import gpu_trt86 as trt86
import numpy as np
from fixtures_export import WORDS, make_export
from gpu_mid import ORDER, gather, mid
from gpu_roofline import roofline
from gpu_times import percentiles, rank_times
from gpu_training import training

from edgerec import Item, Ranker
from edgerec.builder import GpuOptions, build_engine
from edgerec.builder.trt_shapes import parse_buckets
from edgerec.engine import open_engine
from edgerec.engine.trt import TensorRtEngine
from edgerec.engine.trt_device import Device
from edgerec.engine.trt_plans import FLAVOURS, module_name, this_runtime
from edgerec.engine.trt_work import Work
from edgerec.errors import BuildError, EngineError

Rows = Iterator[dict[str, Any]]
TARGETS = {
    # student, precision, candidates, tokens -> milliseconds: engine p50, end to end p50, end to end p99 (H100)
    ("L6", "fp16", 100, 64): (0.7, 1.2, 2.0),
    ("2x128", "fp16", 100, 64): (None, 0.4, None),
}


class NotRun(Exception):
    """A section, or the rest of one, does not apply here; says why."""


def environment(suite: Any) -> Rows:
    """The GPU by its driver, and nvidia-smi's own words."""
    gpu = this_runtime().gpu
    yield {"gpu": gpu.name or "none", "target": gpu.target, "cuda of the driver": gpu.driver, "reason": gpu.reason}
    query = "name,driver_version,memory.total,clocks.max.sm,clocks.sm,power.limit,mig.mode.current"
    try:
        done = subprocess.run(
            ["nvidia-smi", f"--query-gpu={query}", "--format=csv"], capture_output=True, text=True, timeout=20, check=False
        )
        yield {"nvidia-smi": " | ".join((done.stdout or done.stderr).split("\n"))}
    except (OSError, subprocess.TimeoutExpired) as error:
        yield {"nvidia-smi": f"cannot be run: {error}"}


def flavours(suite: Any) -> Rows:
    """Which TensorRT can be imported: each in a process of its own, because one may crash."""
    for flavour in FLAVOURS:
        name = module_name(flavour)
        if not name:
            yield {"flavour": flavour, "loads": "is not installed"}
            continue
        code = f"import sys; sys.path[:] = {sys.path!r}; import {name} as trt; print(trt.__version__)"
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
        yield {"flavour": flavour, "loads": done.stdout.strip() if not done.returncode else " ".join(done.stderr.split())[-200:]}
    yield from trt86.flavours(suite)


def builds(suite: Any) -> Rows:
    """Every student in every precision: time, size, parity on the GPU. A flavour that refuses is noted, and the next is tried."""
    if reason := this_runtime().gpu.reason:
        raise NotRun(reason)
    given = dict(pair.split("=", 1) for pair in suite.args.export)
    if given:
        suite.exports = {name: suite.work.__class__(folder) for name, folder in given.items()}
    else:
        for name, (layers, hidden, heads) in suite.args.students.items():
            folder = suite.work / "exports" / name
            # Weights so small that the logits of many layers stay in the range of a trained student's.
            suite.exports[name] = make_export(folder, layers=layers, hidden=hidden, heads=heads, max_tokens=128, scale=0.04, pooler=True)
    # The student and precision of the targets first: the time may end.
    for precision in suite.args.precision:
        for name, export in suite.exports.items():
            yield from _build(suite, name, export, precision)


def _build(suite: Any, name: str, export: Any, precision: str) -> Rows:
    for flavour in ORDER:
        if suite.args.flavour not in (None, flavour) or not module_name(flavour):
            continue
        bundle, began = suite.work / f"{name}-{precision}-{flavour}", perf_counter()
        options = GpuOptions(buckets=parse_buckets(suite.args.buckets), flavour=flavour, timeout_s=max(5.0, suite.left()))
        row = {"student": name, "precision": precision, "flavour": flavour}
        try:
            # Random weights rank nothing well: their rankings are no gate here, only NaN is.
            gate = {} if suite.args.export else {"ndcg_drop": 1.0, "tau": -1.0}
            report = build_engine(export, bundle, backend="tensorrt", precision=precision, gpu=options, gate=gate)
        except (BuildError, EngineError) as error:
            yield {**row, "refused": " ".join(str(error).split())[:300]}
            continue
        if report.measured:  # built, but this GPU does not take it
            yield {**row, "refused": " ".join(report.measured.split())[:300]}
            continue
        parity = report.parity
        suite.bundles[name, precision], suite.flavours[name, precision] = bundle, flavour
        yield {
            **row,
            "build s": perf_counter() - began,
            "MB": report.engine_bytes / 1e6,
            "max |dlogit|": parity.max_abs_diff,
            "tau": parity.tau,
            "NaN": parity.nan_count,
            "run on": "the GPU",
        }
        return
    if suite.args.flavour in (None, "tensorrt86"):
        yield from trt86.build(suite, name, export, precision)


def engine_latency(suite: Any) -> Rows:
    """Each bucket by CUDA events: copy there, run, copy back; rows that come whole, or items joined on the GPU; as one graph, and launched
    plainly."""
    if not suite.bundles and not suite.plans86:
        raise NotRun("no plan was built")
    yield from trt86.latency(suite)
    for (name, precision), bundle in suite.bundles.items():
        with closing(open_engine(bundle, fallback=False, threads=1)) as engine:
            assert isinstance(engine, TensorRtEngine)
            device = engine._device
            assert device is not None
            with device.lane() as lane:
                for (rows, tokens), slot in zip(device.plans.buckets, lane.slots, strict=True):
                    ways = {"rows": slot.rows} if slot.items is None else {"rows": slot.rows, "items": slot.items}
                    for (way, work), how in product(ways.items(), ("graph", "plain")):
                        row = {"student": name, "precision": precision, "flavour": suite.flavours[name, precision]}
                        row |= {"bucket": f"{rows}x{tokens}", "sent": way, "launch": how}
                        launch = work.graph if how == "graph" else work.enqueue
                        if launch is None:
                            yield {**row, "note": device.launches}
                        else:
                            yield {**row, **percentiles(_event_times(device, work, launch, suite.args.calls))}


def _event_times(device: Device, work: Work, launch: Callable[[], object], calls: int) -> list[float]:
    start, stop, times = device.cuda.Event(), device.cuda.Event(), []
    for call in range(calls + 20):
        start.record(work.stream)
        launch()
        stop.record(work.stream)
        stop.synchronize()
        if call >= 20:
            times.append(stop.time_since(start))
    return times


def end_to_end(suite: Any) -> Rows:
    """`Ranker.rank` by wall clock, by candidates, tokens of a row and concurrent callers, with catalogue ids."""
    _need_bundles(suite)
    from edgerec.catalog import build_catalog

    everything, usual = (
        (((10, 40), (16, 64)), ((10,), (64,))) if suite.args.rehearse else (((10, 100, 1000), (16, 64, 128)), ((100,), (64,)))
    )
    for (name, precision), bundle in suite.bundles.items():
        # All of one precision, the usual request of the others: 8 minutes are few.
        sizes, widths = everything if precision == suite.args.precision[0] else usual
        for tokens in widths:
            rng = np.random.default_rng(0)
            # A word is a token; 3 special tokens and a query of 3 words make up the rest of a row.
            items = [Item(str(i), " ".join(rng.choice(WORDS, max(1, tokens - 6)))) for i in range(max(sizes))]
            catalog = bundle.with_name(f"{bundle.name}-{tokens}")
            build_catalog(iter(items), bundle, catalog)
            with Ranker.open(bundle, catalog=catalog) as ranker:
                for count in sizes:
                    for callers in (1, 4, 16):
                        row = {"student": name, "precision": precision, "flavour": suite.flavours[name, precision]}
                        row |= {"candidates": count, "tokens": tokens, "callers": callers}
                        times, note = rank_times(ranker, [item.id for item in items[:count]], callers, suite.args.calls)
                        yield {**row, **percentiles(times), "rank/s": callers * 1e3 / float(np.mean(times)), "note": note}


def targets(suite: Any) -> Rows:
    """What was promised on an H100, beside what was measured here."""
    _need_bundles(suite)
    # Of the product's path alone: bundles. What 8.6 reaches stands in the section before.
    engine, whole = suite.found["engine latency"]["rows"], suite.found["end to end"]["rows"]
    for (name, precision, count, tokens), limits in TARGETS.items():
        same = {"student": name, "precision": precision}
        same |= {"flavour": suite.flavours.get((name, precision), "")}
        fast = [r["p50 ms"] for r in engine if same.items() <= r.items() and r.get("bucket") == f"128x{tokens}" and "p50 ms" in r]
        slow = [r for r in whole if {**same, "candidates": count, "tokens": tokens, "callers": 1}.items() <= r.items()]
        measured = (min(fast, default=None), *(r[key] for r in slow[:1] for key in ("p50 ms", "p99 ms")), None, None)
        for what, limit, value in zip(("engine p50", "end to end p50", "end to end p99"), limits, measured, strict=False):
            if limit is not None:
                kept = "not measured" if value is None else "yes" if value <= limit else "NO"
                yield {**same, "what": f"{what}, {count} x {tokens}", "target ms": limit, "measured ms": value, "kept": kept}


def bandwidth(suite: Any) -> Rows:
    """The roofline's second side: bytes a second of a copy on the device, by CUDA events."""
    if reason := this_runtime().gpu.reason:
        raise NotRun(reason)
    if suite.args.rehearse:
        raise NotRun("the stand-in copies nothing on the device")
    cuda = importlib.import_module("pycuda.driver")
    context = cuda.Device(0).retain_primary_context()
    context.push()
    try:
        size = 1 << 30
        source, target, stream = cuda.mem_alloc(size), cuda.mem_alloc(size), cuda.Stream()
        start, stop, best = cuda.Event(), cuda.Event(), float("inf")
        for _ in range(10):
            start.record(stream)
            cuda.memcpy_dtod_async(target, source, size, stream)
            stop.record(stream)
            stop.synchronize()
            best = min(best, stop.time_since(start))
        yield {"copy GB/s (read and write)": 2 * size / best / 1e6}
    finally:
        context.pop()


def rivals(suite: Any) -> Rows:
    """PyTorch on the same GPU, fp16: the student's tower by nn.TransformerEncoderLayer sizes, eager and compiled; and its matmul rate."""
    try:
        torch: Any = importlib.import_module("torch")
    except ImportError as error:
        raise NotRun(f"torch cannot be imported: {error}") from error
    if not torch.cuda.is_available():
        raise NotRun("torch sees no GPU")
    from gpu_rivals import torch_rows

    yield from torch_rows(torch, suite)


def _need_bundles(suite: Any) -> None:
    if not suite.bundles:
        raise NotRun("no plan was built")


SECTIONS: dict[str, Callable[[Any], Rows]] = {
    "environment": environment,
    "flavours": flavours,
    "builds": builds,
    "engine latency": engine_latency,
    "end to end": end_to_end,
    "targets": targets,
    "gather kernel": lambda suite: gather(suite, NotRun),
    "mid-fusion": lambda suite: mid(suite, NotRun),
    "rivals": rivals,
    "bandwidth": bandwidth,
    "roofline": lambda suite: roofline(suite, NotRun),
    "fine-tuning": lambda suite: training(suite, NotRun),
}
