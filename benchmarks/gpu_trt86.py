"""The suite's side of trt86.py: builds and runs with TensorRT 8.6 in its own interpreter what no newer flavour builds here."""

from __future__ import annotations

import json
import shlex
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from edgerec.builder.trt_shapes import parse_buckets
from edgerec.engine.ort import ort
from edgerec.engine.probe import batch_from, read_arrays

Rows = Iterator[dict[str, Any]]
SCRIPT = Path(__file__).with_name("trt86.py")
PRECISIONS = ("fp32", "fp16")
FLAVOUR = "tensorrt 8.6, weakly typed, adapter"
DISPATCH = "plan of 8.6 in the dispatch runtime"
# Name of the suite's option -> the launcher that the kit writes, and the module that it imports.
LAUNCHERS = {"trt86": ("trtpy", "tensorrt"), "trt_dispatch": ("trtpy312", "tensorrt_dispatch")}


def launcher(suite: Any, option: str) -> list[str]:
    """The command that starts the interpreter with that TensorRT; empty when there is none."""
    given = getattr(suite.args, option)
    found = shutil.which(LAUNCHERS[option][0])
    return shlex.split(given) if given else [found] if found else []


def flavours(suite: Any) -> Rows:
    """Whether the interpreters of the kit are there, and what they import."""
    for option, (name, module) in LAUNCHERS.items():
        command = launcher(suite, option)
        if not command:
            yield {"flavour": f"{module} by {name}", "loads": f"no {name} on PATH, and no --{option.replace('_', '-')}"}
            continue
        rows, why = _call(suite, [*command, "-c", f"import json, {module} as trt; print(json.dumps({{'version': trt.__version__}}))"])
        yield {"flavour": f"{module} by {name}", "loads": rows[-1]["version"] if rows and not why else why}


def build(suite: Any, name: str, export: Path, precision: str) -> Rows:
    """A plan of the fp32 graph; the flag asks for fp16. Kept in ``suite.plans86``."""
    command, row = launcher(suite, "trt86"), {"student": name, "precision": precision, "flavour": FLAVOUR}
    if not command or precision not in PRECISIONS:
        why = "the adapter builds fp32 and fp16 alone" if command else "no interpreter with TensorRT 8.6 (--trt86)"
        yield {**row, "refused": why}
        return
    graph, folder = export / "student.onnx", suite.work / f"{name}-{precision}-trt86"
    folder.mkdir()
    feeds = _feeds(export, graph, suite.args.buckets)
    shapes = [{key: list(value.shape) for key, value in bucket.items()} for bucket in feeds.values()]
    (folder / "shapes.json").write_text(json.dumps(shapes), encoding="utf-8")
    np.savez(folder / "feeds.npz", **{f"{bucket}/{key}": value for bucket, arrays in feeds.items() for key, value in arrays.items()})
    options = ["--shapes", str(folder / "shapes.json"), "--precision", precision, "--version-compatible"]
    found, why = _call(suite, [*command, str(SCRIPT), "build", str(graph), str(folder / "plan"), *options])
    if why:
        yield {**row, "refused": why}
        return
    suite.plans86[name, precision] = folder
    yield {**row, **found[-1]}


def latency(suite: Any) -> Rows:
    """Each bucket by CUDA events, and how far its logits are from the fp32 graph's on the CPU: with 8.6, and in the dispatch runtime."""
    for (name, precision), folder in suite.plans86.items():
        with np.load(folder / "feeds.npz") as feeds:
            expected = _on_cpu(suite.exports[name] / "student.onnx", feeds)
        for option, flavour in (("trt86", FLAVOUR), ("trt_dispatch", DISPATCH)):
            row = {"student": name, "precision": precision, "flavour": flavour}
            if not (command := launcher(suite, option)):
                yield {**row, "note": f"no --{option.replace('_', '-')}"}
                continue
            logits = folder / f"{option}.npz"
            files = ["--feeds", str(folder / "feeds.npz"), "--logits", str(logits), "--calls", str(suite.args.calls)]
            module = ["--module", LAUNCHERS[option][1]]
            found, why = _call(suite, [*command, str(SCRIPT), *module, "run", str(folder / "plan"), *files])
            if why:
                yield {**row, "refused": why}
                continue
            version = found[0]["version"]
            with np.load(logits) as given:
                away = {bucket: float(np.abs(given[bucket].ravel() - value).max()) for bucket, value in expected.items()}
            for each in found[1:]:
                yield {**row, "flavour": f"{flavour} ({version})", **each, "max |dlogit|": away[each["bucket"]]}


def _call(suite: Any, command: list[str]) -> tuple[list[dict[str, Any]], str]:
    """The objects that a program printed, and why it failed; empty when it did not."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=max(5.0, suite.left()), check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        return [], f"{type(error).__name__}: {error}"
    rows = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    if rows and "refused" in rows[-1]:
        return rows, str(rows[-1]["refused"])
    if done.returncode:
        return rows, f"exit code {done.returncode}: {' '.join(done.stderr.split())[-300:]}"
    return rows, ""


def _feeds(export: Path, graph: Path, buckets: str) -> dict[str, dict[str, np.ndarray]]:
    """Rows of the calibration sample, cut or padded to each bucket; the graph's inputs alone."""
    file = export / "calibration.npz"
    sample = batch_from(read_arrays(file.read_bytes(), str(file)), str(file))
    wanted = [one.name for one in ort.InferenceSession(str(graph), providers=["CPUExecutionProvider"]).get_inputs()]
    found = {}
    for rows, tokens in parse_buckets(buckets):
        chosen, width = np.resize(np.arange(sample.size), rows), min(tokens, sample.input_ids.shape[1])
        arrays = {name: np.ascontiguousarray(getattr(sample, name)[chosen]) for name in wanted}
        for name in ("input_ids", "attention_mask", "token_type_ids"):
            padded = np.zeros((rows, tokens), np.int32)
            padded[:, :width] = arrays[name][:, :width]
            arrays[name] = padded
        found[f"{rows}x{tokens}"] = arrays
    return found


def _on_cpu(graph: Path, feeds: Any) -> dict[str, np.ndarray]:
    session = ort.InferenceSession(str(graph), providers=["CPUExecutionProvider"])
    names = [one.name for one in session.get_inputs()]
    buckets = dict.fromkeys(key.partition("/")[0] for key in feeds.files)
    return {bucket: session.run(["logits"], {name: feeds[f"{bucket}/{name}"] for name in names})[0].ravel() for bucket in buckets}
