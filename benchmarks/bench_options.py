"""What do the options of the ONNX Runtime backend cost, in time and in closeness to fp32?

    python benchmarks/bench_options.py EXPORT --out benchmarks/results/options.json

Every contestant is a bundle of the same export, opened with its options, and scores the export's own calibration rows, sorted by length, in
batches of 16, as the ranker packs them. One call is one batch. "raw graph" is ONNX Runtime with its defaults on the exported file: what one
would write without edgerec. Each bundle's parity figures, and what loading it takes (with and without the probe), stand beside the times.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
from collections.abc import Callable
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
from turns import describe_machine, report, summary, table, take_turns

from edgerec.builder import Tolerance, Tolerances, build_engine
from edgerec.builder.contract import read_export
from edgerec.builder.parity import split, take
from edgerec.engine import open_engine
from edgerec.engine.ort import ort
from edgerec.types import Batch

BUNDLES: dict[str, dict[str, Any]] = {
    "fp32": {"backend": "ort"},
    "int8": {"backend": "ort", "precision": "int8", "activations": "batch"},
    "int8 by token": {"backend": "ort", "precision": "int8", "activations": "token"},
    "int8 static": {"backend": "ort", "precision": "int8", "activations": "static"},
}
# Gates are not the question here: a student that fails them is measured all the same.
OPEN = Tolerances(int8=Tolerance(max_abs_diff=float("inf"), ndcg_drop=1.0, top_overlap=0.0, tau=-1.0))
LOADS = 7


def raw_graph(graph: bytes) -> Callable[[Batch], object]:
    """ONNX Runtime as it comes."""
    session = ort.InferenceSession(graph, providers=["CPUExecutionProvider"])
    names = [value.name for value in session.get_inputs()]
    return lambda batch: session.run(["logits"], {name: getattr(batch, name) for name in names})


def load_ms(bundle: Path, *, probe: bool) -> float:
    """Median time to open and close."""
    times = []
    for _ in range(LOADS):
        started = perf_counter()
        open_engine(bundle, probe=probe).close()
        times.append(1e3 * (perf_counter() - started))
    return statistics.median(times)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("export", type=Path)
    parser.add_argument("--rounds", type=int, default=60)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    machine = describe_machine()
    export = read_export(options.export)
    rows = export.calibration.batch
    batches = split(take(rows, np.argsort(rows.attention_mask.sum(axis=1), kind="stable")), 16)
    with tempfile.TemporaryDirectory() as folder:
        bundles: list[dict[str, Any]] = []
        contestants: dict[str, Callable[[Batch], object]] = {}
        for name, how in BUNDLES.items():
            path = Path(folder) / name.replace(" ", "-")
            built = build_engine(options.export, path, tolerances=OPEN, **how)
            loads = {"load_ms": load_ms(path, probe=False), "load_with_probe_ms": load_ms(path, probe=True)}
            figures = ("mean_abs_diff", "max_abs_diff", "batch_max_abs_diff", "tau", "top_overlap", "ndcg_drop")
            parity = {key: round(built.parity.to_json()[key], 5) for key in figures}
            bundles.append({"name": name, "engine_bytes": built.engine_bytes, **loads, **parity})
            contestants[name] = open_engine(path).run
            if name in ("fp32", "int8"):
                contestants[f"{name}, spinning"] = open_engine(path, spinning=True).run
                contestants[f"{name}, 1 thread"] = open_engine(path, threads=1).run
        contestants["raw graph"] = raw_graph(export.graph)
        times = take_turns(contestants, batches, rounds=options.rounds)
    speed = summary(times, "fp32")
    print(table(speed), table(bundles), sep="\n\n")
    if options.out:
        content = {"export": export.name, "student": export.model["student"], "rows": rows.size, "speed": speed, "bundles": bundles}
        report("edgerec-bench-options", machine, ("onnxruntime", "numpy"), content, options.out)


if __name__ == "__main__":
    main()
