"""How fast is a bundle, how near to what the processor can do, and what does it cost to open it?

    python benchmarks/bench_engine.py runs/student-native runs/student-int8 --data FOLDER --out benchmarks/results/engine.json

Bundles of one model, ranked side by side, by candidates (10, 50, 100, 1,000), tokens of an item (8 to 128, as far as the model takes them)
and threads. Queries are those of the data folder, another every round; an item's text is titles of the folder, strung together and cut to
that many tokens; candidates are ids of a catalogue. `rank ms` is `Ranker.rank` end to end, `engine ms` its `timings_us["score"]`: both are
medians; `of the first` is the median over the rounds of the time divided by that of the first bundle.

The floor is 2 x the multiply-adds of the int8 products that the answer needs (no padding, of the last layer the first token alone, what the
rows share once; of a mid-fusion student the joint layers, and the query's own once) on the tokens of these rows, divided by what the int8
units give: the best bare product in cache (tests/csrc/rate_engine.c), on as many cores as there are threads, in turns with the rankers and
for as long as the first of them takes, because what else the machine does slows both. `engine / floor` is the median over the rounds;
`engine / peak` is to a floor at the best rate of any half millisecond. The keys and values of the last layer count in both. The engine has
none, its last layer's maps being folded (csrc/README.md): `engine / own` leaves them out.

`load ms` (open and first answer, 10 candidates) and the peak of resident memory are those of processes of their own, which have been busy
for a tenth of a second, as a server has: in a younger one Linux leaves a new thread on the first one's core for some milliseconds. Needs
make and a C compiler.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
from edgerec.training.data import load_dataset
from turns import describe_machine, ratio, report, table, take_turns

from edgerec import Item, Ranker
from edgerec._core import isa
from edgerec.catalog import build_catalog
from edgerec.text import TextEncoder, TextSpec

ROOT = Path(__file__).resolve().parent.parent
CANDIDATES = (10, 50, 100, 1000)
TOKENS = (8, 16, 32, 64, 128)
THREADS = (1, 2)
WARM_S = 1.0
"""Calls for so long go before those that count: the first second after a catalogue was built is up to a fifth slower."""
LOADS = 5
LOAD = r"""
import json, re, sys
from time import perf_counter
import edgerec.ranker, edgerec.engine.{backend}
from edgerec import Ranker
bundle, catalog, threads, query, *ids = sys.argv[1:]
until = perf_counter() + 0.1
while perf_counter() < until:
    pass
started = perf_counter()
ranker = Ranker.open(bundle, catalog=catalog, threads=int(threads))
ranker.rank(query, ids[:10])
load_ms = 1e3 * (perf_counter() - started)
for _ in range(20):
    ranker.rank(query, ids)
# Not getrusage: its peak is also that of the process this one was forked from.
peak = re.search(r"VmHWM:\s+(\d+) kB", open("/proc/self/status").read())
print(json.dumps({"load_ms": load_ms, "peak_rss_mb": int(peak.group(1)) / 1024 if peak else 0.0}))
"""


@dataclass
class Timed:
    """A ranker as a contestant: ranks, and notes what of it was the engine."""

    ranker: Ranker
    ids: list[str]
    engine_us: list[float] = field(default_factory=list)

    def __call__(self, query: str) -> None:
        self.engine_us.append(self.ranker.rank(query, self.ids).timings_us["score"])

    def engine_ms(self) -> list[float]:
        """Of the timed calls: each follows an untimed one."""
        return [us / 1e3 for us in self.engine_us[1::2]]


class Bare:
    """The best bare product in cache, on so many cores at once, as a contestant: runs for `span_ms`, and notes 1e9 operations a second.

    Attributes
    ----------
    peak : the best of any half millisecond.
    """

    def __init__(self, threads: int) -> None:
        command = [str(ROOT / "build" / "csrc" / "fast" / "rate_engine"), isa(), "turns"]
        self._runs = [subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) for _ in range(threads)]
        self.peak, self.span_ms = self._answers(), 1.0
        self.gops: list[float] = []

    def __call__(self, _: str) -> None:
        for run in self._runs:
            assert run.stdin is not None
            run.stdin.write(f"{int(1e6 * self.span_ms)}\n")
            run.stdin.flush()
        self.gops.append(self._answers())

    def _answers(self) -> float:
        return sum(float(run.stdout.readline()) for run in self._runs if run.stdout is not None)

    def close(self) -> None:
        """End the processes."""
        for run in self._runs:
            run.communicate()


def items_of(titles: list[str], encoder: TextEncoder, tokens: int, count: int) -> Iterator[Item]:
    """Items of words from the titles, as many as make at most `tokens` tokens and one word less than more would be."""
    words = " ".join(titles).split()
    lengths = np.diff(encoder.encode_items(words)[1])
    place = 0
    for number in range(count):
        text, held = [], 0
        while held + lengths[place % len(words)] <= tokens:
            held += lengths[place % len(words)]
            text.append(words[place % len(words)])
            place += 1
        place += 1  # the word that did not fit; alone it may be longer than an item
        yield Item(str(number), " ".join(text))


def multiply_adds(student: dict[str, Any], lengths: np.ndarray, shared: int, *, folded: bool) -> float:
    """Of the encoder's products for rows of these lengths, which begin with `shared` common tokens; `folded`: without the last layer's keys
    and values."""
    hidden, heads, layers = student["hidden"], student["heads"], student["layers"]
    widths = [hidden // heads * n for n in student.get("layer_heads", [heads] * layers)]
    inner = student.get("layer_intermediate", [student["intermediate"]] * layers)
    rows, tokens = len(lengths), int(lengths.sum())
    distinct = tokens - (rows - 1) * shared  # in the first layer
    total = 0.0
    for i in range(layers):
        projected = distinct if i == 0 else tokens
        last = i == layers - 1
        keys = 0 if last and folded else 2 * projected
        total += hidden * widths[i] * (keys + (rows if last else projected))
        total += (hidden * widths[i] + 2 * hidden * inner[i]) * (rows if last else tokens)
    return total


def mid_multiply_adds(student: dict[str, Any], states: dict[str, Any], asking: int, tokens: np.ndarray, *, folded: bool) -> float:
    """The same of a mid-fusion student, for a query of `asking` rows and items of so many states."""
    hidden, inner, items, total = student["hidden"], student["intermediate"], len(tokens), int(tokens.sum())
    square, rest = hidden * hidden, hidden * hidden + 2 * hidden * inner
    alone, joint = student["query_layers"], student["layers"] - student["query_layers"]
    needed = float(asking * (alone * (3 * square + rest) + 3 * square))  # once a request, with the first joint layer's projections
    needed += 2 * states["width"] * hidden * total * (joint - 1 if folded else joint)
    for layer in range(joint - 1):
        needed += items * asking * (rest + (3 * square if layer else 0))
    return needed + items * (rest + (square * (2 * asking + 1) if joint > 1 else 0))


def loads(bundle: Path, catalog: Path, backend: str, threads: int, query: str, ids: list[str]) -> dict[str, float]:
    """Medians of a few processes; the files are in the page cache."""
    command = [sys.executable, "-c", LOAD.replace("{backend}", backend), str(bundle), str(catalog), str(threads), query, *ids]
    found = [json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout) for _ in range(LOADS)]
    return {key: round(statistics.median(one[key] for one in found), 1) for key in found[0]}


def measure(
    rankers: dict[str, Ranker], queries: list[str], model: dict[str, Any], *, candidates: int, tokens: int, threads: int, bare: Bare
) -> list[dict[str, Any]]:
    """One line a bundle; a round a query."""
    contestants = {name: Timed(ranker, [str(i) for i in range(candidates)]) for name, ranker in rankers.items()}
    calls: dict[str, Callable[[str], object]] = {**contestants, "": bare}
    until = perf_counter() + WARM_S
    while perf_counter() < until:
        for call in contestants.values():
            call(queries[0])
    first = next(iter(rankers))
    bare.span_ms = statistics.median(contestants[first].engine_us) / 1e3
    bare.gops.clear()
    for timed in contestants.values():
        timed.engine_us.clear()
    times = take_turns(calls, queries, rounds=len(queries))
    text, catalog = rankers[first]._text, rankers[first].catalog
    assert catalog is not None
    item = np.diff(catalog.segments[0].item_tokens[1])[:candidates]
    work: dict[bool, list[float]] = {False: [], True: []}
    means = []
    for query in queries:
        shared = len(text.encode_query(query)) + len(text.spec.prefix) + len(text.spec.middle)
        lengths = np.minimum(shared + item + len(text.spec.suffix), text.spec.max_tokens)
        for folded, found in work.items():
            if "states" in model:
                needed = mid_multiply_adds(model["student"], model["states"], shared, lengths - shared, folded=folded)
            else:
                needed = multiply_adds(model["student"], lengths, shared, folded=folded)
            found.append(2 * needed / 1e6)
        means.append(float(lengths.mean()))
    rates = bare.gops[1::2]
    plain, own = ([ops / rate for ops, rate in zip(work[folded], rates, strict=True)] for folded in (False, True))
    peak = [ops / bare.peak for ops in work[False]]

    def against(timed: Timed, floors: list[float]) -> float:
        return round(statistics.median(ms / floor for ms, floor in zip(timed.engine_ms(), floors, strict=True)), 2)

    return [
        {
            "bundle": name,
            "threads": threads,
            "candidates": candidates,
            "item tokens": tokens,
            "row tokens": round(statistics.mean(means), 1),
            "rank ms": round(statistics.median(times[name]) / 1e6, 3),
            "of the first": round(ratio(times, name, first), 3),
            "engine ms": round(statistics.median(timed.engine_ms()), 3),
            "floor ms": round(statistics.median(plain), 4),
            "engine / floor": against(timed, plain),
            "engine / own": against(timed, own),
            "engine / peak": against(timed, peak),
        }
        for name, timed in contestants.items()
    ]


def scaling(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """How 1,000 candidates compare with ten times 100."""
    cell = {(r["bundle"], r["threads"], r["item tokens"], r["candidates"]): r for r in rows}
    found = []
    for (bundle, threads, tokens, candidates), row in cell.items():
        hundred = cell.get((bundle, threads, tokens, 100))
        if candidates == 1000 and hundred is not None:
            ratios = {key: round(row[f"{key} ms"] / (10 * hundred[f"{key} ms"]), 3) for key in ("rank", "engine")}
            found.append(
                {"bundle": bundle, "threads": threads, "item tokens": tokens, **{f"1,000 / (10 x 100), {k}": v for k, v in ratios.items()}}
            )
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundles", nargs="+", type=Path, help="of one model; ratios are to the first")
    parser.add_argument("--data", type=Path, required=True, help="data folder: queries and titles")
    parser.add_argument("--candidates", type=int, nargs="+", default=CANDIDATES)
    parser.add_argument("--tokens", type=int, nargs="+", default=TOKENS)
    parser.add_argument("--threads", type=int, nargs="+", default=THREADS)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    machine = describe_machine()
    models = [json.loads((bundle / "model.json").read_text(encoding="utf-8")) for bundle in options.bundles]
    if any((model["student"], model["text"]) != (models[0]["student"], models[0]["text"]) for model in models):
        raise SystemExit("the bundles are not of one model; run the benchmark once a model")
    student, text = models[0]["student"], TextSpec.from_json(models[0]["text"])
    encoder = TextEncoder(options.bundles[0] / "tokenizer.json", text)
    subprocess.run(["make", "--silent", "-C", str(ROOT / "tests" / "csrc"), "fast"], check=True, stdout=subprocess.DEVNULL)
    data, rng = load_dataset(options.data), np.random.default_rng(options.seed)
    queries = rng.choice(sorted(set(data.queries.values())), options.rounds).tolist()
    titles = rng.permutation(sorted({item.title for item in data.items.values() if item.title})).tolist()
    bare = {threads: Bare(threads) for threads in options.threads}
    rows: list[dict[str, Any]] = []
    opened: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        for tokens in options.tokens:
            if tokens + text.special_tokens + 1 > text.max_tokens:
                print(f"items of {tokens} tokens are left out: rows of this model have at most {text.max_tokens}")
                continue
            catalog = Path(folder) / str(tokens)
            build_catalog(items_of(titles, encoder, tokens, max(options.candidates)), options.bundles[0], catalog)
            for threads in options.threads:
                rankers = {bundle.name: Ranker.open(bundle, catalog=catalog, threads=threads) for bundle in options.bundles}
                for candidates in options.candidates:
                    how = {"candidates": candidates, "tokens": tokens, "threads": threads, "bare": bare[threads]}
                    rows += measure(rankers, queries, models[0], **how)
                for ranker in rankers.values():
                    ranker.close()
        ids = [str(i) for i in range(min(100, max(options.candidates)))]
        for bundle, threads in ((bundle, threads) for bundle in options.bundles for threads in options.threads):
            backend = json.loads((bundle / "manifest.json").read_text(encoding="utf-8"))["backend"]
            opened.append({"bundle": bundle.name, "threads": threads, **loads(bundle, catalog, backend, threads, queries[0], ids)})
    rates = [{"threads": n, "peak GOP/s": round(one.peak, 1)} for n, one in bare.items()]
    for one in bare.values():
        one.close()
    ratios = scaling(rows)
    print(*(table(part) for part in (rows, ratios, opened, rates) if part), f"instruction set {isa()}", sep="\n\n")
    if options.out:
        settings = {"rounds": options.rounds, "seed": options.seed, "isa": isa(), "student": student, "data_sha256": data.sha256}
        content = {**settings, "requests": rows, "scaling": ratios, "loads": opened, "rates": rates}
        report("edgerec-bench-engine", machine, ("onnxruntime", "numpy", "tokenizers"), content, options.out)


if __name__ == "__main__":
    main()
