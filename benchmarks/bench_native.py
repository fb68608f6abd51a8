"""How long does the native engine take for a query's candidates, beside ONNX Runtime with the same weights?

    python benchmarks/bench_native.py EXPORT --out benchmarks/results/native.json

Bundles of one export (native and ONNX Runtime, int8 and fp32), each with 1 thread and with 2. "ort int8" has one activation scale a token,
as native has; "by batch" one for a whole batch, which is faster and less exact. A request is `--candidates` rows drawn
from the export's own calibration rows, another draw every round, and every contestant scores the same rows. What is timed is the engine
alone, each fed as the ranker feeds it: native gets all rows end to end in one call, ONNX Runtime batches of at most 16 rows, sorted by
length and padded to the longest. Packing is done beforehand for both. Ratios are taken within a round, to "ort int8" with as many
threads; `off` is the mean distance of a contestant's logits from those of fp32 in ONNX Runtime.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from turns import Times, describe_machine, ratio, report, table, take_turns

from edgerec._core import isa
from edgerec.builder import Tolerance, Tolerances, build_engine
from edgerec.builder.contract import read_export
from edgerec.builder.parity import split, take
from edgerec.engine import Engine, RaggedEngine, open_engine
from edgerec.types import Batch, RaggedBatch

BUNDLES: dict[str, dict[str, Any]] = {
    "native int8": {"backend": "native", "precision": "int8"},
    "native fp32": {"backend": "native"},
    "ort int8": {"backend": "ort", "precision": "int8"},
    "ort int8 by batch": {"backend": "ort", "precision": "int8", "activations": "batch"},
    "ort fp32": {"backend": "ort"},
}
THREADS = (1, 2)
BATCH_ROWS = 16
# Gates are not the question here: a student that fails them is measured all the same.
OPEN = Tolerances(int8=Tolerance(max_abs_diff=float("inf"), ndcg_drop=1.0, top_overlap=0.0, tau=-1.0))


def trimmed(batch: Batch) -> Batch:
    """Without the columns that are padding in all rows."""
    width = int(batch.attention_mask.sum(axis=1).max())
    parts = ("input_ids", "attention_mask", "token_type_ids")
    return replace(batch, **{name: np.ascontiguousarray(getattr(batch, name)[:, :width]) for name in parts})


def ragged(batch: Batch) -> RaggedBatch:
    """The same rows end to end."""
    kept, lengths = batch.attention_mask == 1, batch.attention_mask.sum(axis=1, dtype=np.int64)
    features = np.ascontiguousarray(batch.feature_ids), np.ascontiguousarray(batch.feature_weights)
    return RaggedBatch(batch.input_ids[kept], batch.token_type_ids[kept], np.cumsum(lengths) - lengths, lengths, *features)


@dataclass(frozen=True, slots=True)
class Request:
    """The rows of one query, both ways: `batches` hold them by length, and `order` is where each came from."""

    whole: RaggedBatch
    batches: list[Batch]
    order: NDArray[np.intp]


def make_request(rows: Batch, places: NDArray[np.intp]) -> Request:
    """The rows at `places`."""
    order = np.argsort(-rows.attention_mask[places].sum(axis=1), kind="stable")
    return Request(ragged(take(rows, places)), [trimmed(part) for part in split(take(rows, places[order]), BATCH_ROWS)], order)


def runner(engine: Engine) -> Callable[[Request], NDArray[np.float32]]:
    """Logits of a request, in the order of its rows."""
    if isinstance(engine, RaggedEngine):
        return lambda request: engine.run_ragged(request.whole)

    def run(request: Request) -> NDArray[np.float32]:
        logits = np.empty(len(request.order), np.float32)
        logits[request.order] = np.concatenate([engine.run(batch) for batch in request.batches])
        return logits

    return run


def rows_of(times: Times, off: dict[str, float]) -> list[dict[str, Any]]:
    """The table: a line for each contestant."""
    found = []
    for name, spent in times.items():
        found.append(
            {
                "name": name,
                "p50_ms": round(statistics.median(spent) / 1e6, 3),
                "p99_ms": round(float(np.quantile(spent, 0.99)) / 1e6, 3),
                "ratio": round(ratio(times, name, f"ort int8, {name.rpartition(', ')[2]}"), 3),
                "off": round(off[name], 5),
            }
        )
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("export", type=Path)
    parser.add_argument("--candidates", type=int, default=100)
    parser.add_argument("--rounds", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    machine = describe_machine()
    export = read_export(options.export)
    rows, rng = export.calibration.batch, np.random.default_rng(options.seed)
    requests = [make_request(rows, rng.integers(0, rows.size, options.candidates)) for _ in range(options.rounds)]
    with tempfile.TemporaryDirectory() as folder:
        contestants: dict[str, Callable[[Request], NDArray[np.float32]]] = {}
        for bundle, how in BUNDLES.items():
            path = Path(folder) / bundle.replace(" ", "-")
            build_engine(options.export, path, tolerances=OPEN, **how)
            for threads in THREADS:
                name = f"{bundle}, {threads} thread{'s' if threads > 1 else ''}"
                contestants[name] = runner(open_engine(path, threads=threads))
        exact = contestants["ort fp32, 1 thread"](requests[0])
        off = {name: float(np.abs(run(requests[0]) - exact).mean()) for name, run in contestants.items()}
        times = take_turns(contestants, requests, rounds=options.rounds)
    found = rows_of(times, off)
    tokens = statistics.mean(int(request.whole.lengths.sum()) for request in requests)
    print(f"{options.candidates} rows of {tokens / options.candidates:.1f} tokens, {isa()}\n", table(found), sep="\n")
    if options.out:
        settings = {"candidates": options.candidates, "rounds": options.rounds, "seed": options.seed, "tokens": round(tokens, 1)}
        settings["isa"] = isa()
        content = {"export": export.name, "student": export.model["student"], **settings, "contestants": found}
        report("edgerec-bench-native", machine, ("onnxruntime", "numpy"), content, options.out)


if __name__ == "__main__":
    main()
