"""How long does it take to rank 100 real candidates, beside other libraries with the same weights?

    python benchmarks/bench_rank.py --weights TEACHER --data FOLDER
    python benchmarks/bench_rank.py --stand-in BASE_MODEL --data FOLDER       (untrained head: latency only)

All contestants run in one process, in rounds that interleave them, so that a busy moment of the machine hits all; ratios are taken within
a round. Every request has another query and that query's BM25 candidates. benchmarks/README.md says how to read the result.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import shlex
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from edgerec.training.data import load_dataset
from edgerec.training.first_stage import Bm25
from rivals import Rival, Setup
from rivals import fastembed as fastembed_rival
from rivals import flashrank as flashrank_rival
from rivals import sentence_transformers as sentence_transformers_rival
from rivals.edgerec_bundle import Edgerec, EdgerecBundle
from rivals.openvino import OpenVino
from rivals.sentence_transformers_onnx import SentenceTransformersOnnx

from edgerec.machine import describe_machine, installed_versions, utc_now
from edgerec.metrics import kendall_tau

CONTESTANTS: tuple[Rival, ...] = (
    Edgerec("int8", catalog=True, backend="native"),
    Edgerec("int8", catalog=True),
    Edgerec("int8", catalog=False),
    Edgerec("fp32", catalog=True),
    sentence_transformers_rival,
    flashrank_rival,
    fastembed_rival,
    OpenVino("fp32"),
    OpenVino("int8"),
)
PACKAGES = (
    *("edgerec", "numpy", "torch", "transformers", "onnxruntime", "tokenizers"),
    *("sentence-transformers", "flashrank", "fastembed", "openvino", "nncf"),
)
MAX_TOKENS = 64


def main() -> None:
    """Prepare, measure, print the table, write the JSON."""
    options = arguments()
    machine = describe_machine()  # first: the load it reports should be that of others
    # Before the libraries are imported: nothing is fetched, and no rival tokenises on one thread only.
    os.environ |= {
        "HF_HUB_OFFLINE": "1",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "TRANSFORMERS_VERBOSITY": "error",
        "TOKENIZERS_PARALLELISM": "true",
    }
    chosen = [rival for rival in CONTESTANTS if not options.only or rival.NAME in options.only]
    chosen += [EdgerecBundle(folder) for folder in options.bundle]
    chosen += [SentenceTransformersOnnx(python) for python in options.onnx_python]
    requests = real_requests(options.data, options.split, options.candidates, options.seed)
    with work_folder(options.work) as work:
        weights = options.weights or stand_in(options.stand_in, work / f"stand-in-{options.stand_in.name}", options.seed)
        digest = hashlib.sha256((weights / "model.safetensors").read_bytes()).hexdigest()
        made_from = f"{digest} {load_dataset(options.data).sha256}"
        setups = {rival.NAME: setup_of(rival, weights, options, work, made_from) for rival in chosen}
        models = {rival.NAME: rival.load(setups[rival.NAME]) for rival in chosen}
        rounds = measure(chosen, models, requests, rounds=options.rounds, calls=options.calls)
        agreement = agreements(chosen, models, requests[: options.calls])
    result = {
        "format": "edgerec-bench-rank",
        "version": 1,
        "candidates": options.candidates,
        "max_tokens": MAX_TOKENS,
        "rounds": options.rounds,
        "calls_per_round": options.calls,
        "weights": {"sha256": digest, "trained": options.weights is not None},
        "data_sha256": load_dataset(options.data).sha256,
        "contestants": [summary(rival, chosen[0].NAME, rounds, agreement) for rival in chosen],
        "command": shlex.join(sys.argv),
        "date": utc_now(),
        "machine": machine,
        "versions": installed_versions(PACKAGES),
    }
    print(to_markdown(result))
    if options.out is not None:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        partial = options.out.with_name(options.out.name + ".partial")
        partial.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
        os.replace(partial, options.out)


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--weights", type=Path, help="a one-logit teacher folder that `edgerec train` wrote")
    source.add_argument("--stand-in", type=Path, help="a pretrained BERT-type encoder; gets a seeded random head, good for latency only")
    parser.add_argument("--data", type=Path, required=True, help="data folder: queries and titles")
    parser.add_argument("--split", default="dev")
    parser.add_argument("--candidates", type=int, default=100)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--calls", type=int, default=20, help="timed requests for each contestant in each round")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", action="append", metavar="NAME", help=f"repeatable; of: {', '.join(rival.NAME for rival in CONTESTANTS)}")
    parser.add_argument(
        "--bundle", type=Path, action="append", default=[], help="a bundle of other weights, to be timed beside; repeatable"
    )
    parser.add_argument(
        "--onnx-python",
        type=Path,
        action="append",
        default=[],
        help="the interpreter of an environment with sentence-transformers[onnx], to be timed beside",
    )
    parser.add_argument("--work", type=Path, help="keep what was prepared here, and use it again next time")
    parser.add_argument("--out", type=Path, help="JSON result, e.g. benchmarks/results/rank.json")
    return parser.parse_args()


@contextmanager
def work_folder(kept: Path | None) -> Iterator[Path]:
    """A temporary folder, or the given one."""
    if kept is not None:
        kept.mkdir(parents=True, exist_ok=True)
        yield kept
        return
    with tempfile.TemporaryDirectory(prefix="edgerec-bench-") as folder:
        yield Path(folder)


def setup_of(rival: Rival, weights: Path, options: argparse.Namespace, work: Path, made_from: str) -> Setup:
    """Prepare a contestant, unless ``--work`` has it from an earlier run with the same weights and data."""
    own = work / rival.NAME.replace(" ", "-").replace(",", "")
    setup = Setup(weights, options.data, own, MAX_TOKENS, options.weights is not None)
    done = own / "prepared"
    if not done.exists():
        own.mkdir(parents=True, exist_ok=True)
        rival.prepare(setup)
        done.write_text(made_from, encoding="utf-8")
    elif done.read_text(encoding="utf-8") != made_from:
        raise SystemExit(f"{own} was prepared from other weights or data; give another --work or delete it")
    return setup


def real_requests(data: Path, split: str, candidates: int, seed: int) -> list[tuple[str, list[str]]]:
    """Queries of the split in random order, each with the titles BM25 finds, filled up with random ones; titles are distinct."""
    dataset = load_dataset(data)
    bm25, rng = Bm25(dataset), np.random.default_rng(seed)
    titles = sorted({item.title for item in dataset.items.values() if item.title})
    if len(titles) < candidates:
        raise SystemExit(f"{data} has {len(titles)} different titles; --candidates {candidates} needs more")
    requests = []
    for query_id in rng.permutation(list(dataset.qrels[split])).tolist():
        query = dataset.queries[query_id]
        found = dict.fromkeys(dataset.items[item_id].title for item_id, _ in bm25.search(query, 2 * candidates))
        found |= dict.fromkeys(titles[i] for i in rng.permutation(len(titles))[: 2 * candidates].tolist())
        found.pop("", None)
        requests.append((query, list(found)[:candidates]))
    return requests


def measure(
    rivals: Sequence[Rival], models: dict[str, Any], requests: Sequence[tuple[str, list[str]]], *, rounds: int, calls: int
) -> dict[str, list[list[float]]]:
    """Milliseconds by contestant, round and call. All contestants of a round see the same requests; who starts rotates."""
    times: dict[str, list[list[float]]] = {rival.NAME: [] for rival in rivals}
    for number in range(rounds):
        chosen = [requests[(number * calls + i) % len(requests)] for i in range(calls)]
        first = number % len(rivals)
        for rival in (*rivals[first:], *rivals[:first]):
            model = models[rival.NAME]
            # Another contestant's threads may still spin, OpenMP's for 0.2 s, and caches hold its weights: a pause, and three requests
            # that do not count.
            time.sleep(0.3)
            for query, titles in requests[-3:]:
                rival.rank(model, query, titles)
            found = []
            for query, titles in chosen:
                start = time.perf_counter()
                rival.rank(model, query, titles)
                found.append((time.perf_counter() - start) * 1e3)
            times[rival.NAME].append(found)
    return times


def agreements(rivals: Sequence[Rival], models: dict[str, Any], requests: Sequence[tuple[str, list[str]]]) -> dict[str, float]:
    """Mean Kendall tau of each contestant's order with that of the first fp32 one: proof that all run the same weights."""
    reference = next((rival for rival in rivals if "int8" not in rival.NAME), rivals[0])
    expected = [reference.rank(models[reference.NAME], query, titles) for query, titles in requests]
    return {
        rival.NAME: statistics.mean(
            kendall_tau(rival.rank(models[rival.NAME], query, titles), scores)
            for (query, titles), scores in zip(requests, expected, strict=True)
        )
        for rival in rivals
    }


def summary(rival: Rival, baseline: str, rounds: dict[str, list[list[float]]], agreement: dict[str, float]) -> dict[str, Any]:
    """Percentiles over all calls; the ratio to the first contestant is the median over rounds of the ratio of medians."""
    own = rounds[rival.NAME]
    ratios = [statistics.median(mine) / statistics.median(theirs) for mine, theirs in zip(own, rounds[baseline], strict=True)]
    p50, p99 = np.percentile(np.concatenate(own), (50, 99))
    return {
        "name": rival.NAME,
        "package": rival.PACKAGE,
        "version": getattr(rival, "VERSION", "") or installed_versions([rival.PACKAGE]).get(rival.PACKAGE, "unknown"),
        "p50_ms": round(float(p50), 3),
        "p99_ms": round(float(p99), 3),
        "ratio": round(statistics.median(ratios), 3),
        "ratio_min": round(min(ratios), 3),
        "ratio_max": round(max(ratios), 3),
        "tau": round(agreement[rival.NAME], 4),
    }


def to_markdown(result: dict[str, Any]) -> str:
    """The table, and what it was measured on."""
    lines = [
        f"| {result['candidates']} candidates | p50 ms | p99 ms | x {result['contestants'][0]['name']} (min to max over rounds) | tau |",
        "|---|---:|---:|---:|---:|",
    ]
    for one in result["contestants"]:
        ratio = f"{one['ratio']:.2f} ({one['ratio_min']:.2f} to {one['ratio_max']:.2f})"
        lines.append(f"| {one['name']} {one['version']} | {one['p50_ms']:.1f} | {one['p99_ms']:.1f} | {ratio} | {one['tau']:.3f} |")
    machine = result["machine"]
    weights = "trained weights" if result["weights"]["trained"] else "STAND-IN weights with a random head: latency only"
    return "\n".join(
        [
            *lines,
            "",
            f"{weights}, sha256 {result['weights']['sha256'][:12]}; {result['rounds']} rounds of {result['calls_per_round']} requests; "
            f"{machine['processor']}, {machine['cores']} cores, load {machine['load_1min']}; {result['date']}",
        ]
    )


def stand_in(base: Path, folder: Path, seed: int, *, max_tokens: int = MAX_TOKENS) -> Path:
    """A teacher folder whose head is random: the shape and the speed of a real one, none of its judgement."""
    import torch
    from edgerec.training.config import Recipe
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    from edgerec.text import text_spec_from_tokenizer

    if (folder / "training.json").exists():
        return folder
    torch.manual_seed(seed)
    model = AutoModelForSequenceClassification.from_pretrained(base, num_labels=1)
    model.save_pretrained(folder)
    tokenizer = AutoTokenizer.from_pretrained(base)
    tokenizer.save_pretrained(folder)
    tokenizer.backend_tokenizer.no_padding()
    tokenizer.backend_tokenizer.no_truncation()
    tokenizer.backend_tokenizer.save(str(folder / "tokenizer.json"))
    text = text_spec_from_tokenizer(folder / "tokenizer.json", max_tokens=max_tokens, max_query_tokens=24, item_fields=("title",))
    facts = {"identity": {}, "versions": {}, "machine": {}, "best_step": 0, "steps": 0, "dev": {}}
    info = {"kind": "teacher", "text": text.to_json(), "recipe": Recipe(name="stand-in").to_json(), **facts}
    (folder / "training.json").write_text(json.dumps(info, default=dict), encoding="utf-8")
    return folder


if __name__ == "__main__":
    main()
