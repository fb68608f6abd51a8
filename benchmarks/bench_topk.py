"""How fast is the C core's top-k, beside numpy, bottleneck and torch, and beside merely looking at every score?

    python benchmarks/bench_topk.py

One thread. Contestants take turns on the same float32 scores, which change from round to round; medians, minima, and the median over the
rounds of each ratio. `numpy.max` is no rival but the yardstick: nothing that reads all scores is much faster. Before anything is timed,
every contestant's answer is compared with sorting all scores.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

import bottleneck
import numpy as np
import torch
from numpy.typing import NDArray
from turns import describe_machine, ratio, report, summary, table, take_turns, target

from edgerec._core import isa, isas, set_isa, topk

Scores = NDArray[np.float32]
RESULT = Path(__file__).parent / "results" / "topk.json"
MANY = 200  # short arrays of one timed call


def with_numpy(scores: Scores, k: int) -> NDArray[np.int64]:
    """The usual two lines: partition, then sort the part."""
    part = np.argpartition(scores, len(scores) - k)[len(scores) - k :]
    return part[np.argsort(-scores[part], kind="stable")]


def with_bottleneck(scores: Scores, k: int) -> NDArray[np.int64]:
    """The same with bottleneck's partition."""
    part = bottleneck.argpartition(scores, len(scores) - k)[len(scores) - k :]
    return part[np.argsort(-scores[part], kind="stable")]


def with_torch(scores: Scores, k: int) -> NDArray[np.int64]:
    """torch.topk on the array's own memory."""
    return torch.topk(torch.from_numpy(scores), k)[1].numpy()


def contestants(k: int) -> dict[str, Callable[[Scores], object]]:
    """All that are timed, by name."""
    return {
        "edgerec": lambda scores: topk(scores, k),
        "numpy.max": np.max,
        "numpy argpartition + sort": lambda scores: with_numpy(scores, k),
        "bottleneck argpartition + sort": lambda scores: with_bottleneck(scores, k),
        "torch.topk": lambda scores: with_torch(scores, k),
    }


def check_answers(scores: Scores, k: int) -> None:
    """Random scores have no ties, so that all must agree."""
    expected = np.sort(scores)[::-1][:k].tolist()
    for name, select in (
        ("numpy", with_numpy),
        ("bottleneck", with_bottleneck),
        ("torch", with_torch),
        ("edgerec", lambda s, n: topk(s, n)[0]),
    ):
        if scores[select(scores, k)].tolist() != expected:
            raise SystemExit(f"{name} selects something else than sorting does: nothing to compare")


def over_all(run: Callable[[Scores], object]) -> Callable[[list[Scores]], None]:
    """One timed call = MANY calls, on different arrays."""

    def run_all(arrays: list[Scores]) -> None:
        for scores in arrays:
            run(scores)

    return run_all


def shapes(n: int, rng: np.random.Generator) -> dict[str, Scores]:
    """Inputs that are hard for a threshold scan, and the easy one."""
    i = np.arange(n)
    made = {
        "random": rng.standard_normal(n),
        "ascending": i,
        "descending": -i,
        "all equal": np.zeros(n),
        "three values": rng.integers(0, 3, n),
        "sawtooth of 1,000": i % 1000,
        "worst known": np.where(i % 320 < 99, i, -1),
    }
    return {name: scores.astype(np.float32) for name, scores in made.items()}


def main() -> None:
    """Print the tables, write the report, and exit with 1 when a target is missed."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=60, help="rounds per table (default 60)")
    parser.add_argument("--out", type=Path, default=RESULT, help="the JSON file to write (default benchmarks/results/topk.json)")
    arguments = parser.parse_args()
    machine = describe_machine()
    torch.set_num_threads(1)
    rng = np.random.default_rng(20240917)
    content: dict[str, Any] = {"isa": isa(), "rounds": arguments.rounds, "sizes": {}, "shapes": {}, "instruction_sets": {}}

    for n, k in ((1_000_000, 100), (100_000, 100), (10_000, 100)):
        inputs = [rng.standard_normal(n).astype(np.float32) for _ in range(4)]
        check_answers(inputs[0], k)
        times = take_turns(contestants(k), inputs, rounds=arguments.rounds)
        content["sizes"][f"{n},{k}"] = summary(times, "edgerec")
        print(f"\n{n:,} scores, k = {k}\n\n{table(content['sizes'][f'{n},{k}'])}")
        if n == 1_000_000:
            large = times
    batches = [[rng.standard_normal(1000).astype(np.float32) for _ in range(MANY)] for _ in range(4)]
    check_answers(batches[0][0], 10)
    small = take_turns({name: over_all(run) for name, run in contestants(10).items()}, batches, rounds=arguments.rounds, per=MANY)
    content["sizes"]["1000,10"] = summary(small, "edgerec")
    print(f"\n1,000 scores, k = 10, a Python call each\n\n{table(content['sizes']['1000,10'])}")

    hard = shapes(1_000_000, rng)
    by_shape = take_turns(
        {name: lambda _, scores=scores: topk(scores, 100) for name, scores in hard.items()}, [None], rounds=arguments.rounds
    )
    content["shapes"] = summary(by_shape, "random")
    print(f"\nedgerec by shape of the input, 1,000,000 scores, k = 100; ratio to random\n\n{table(content['shapes'])}")

    def forced(name: str) -> Callable[[Scores], object]:
        def run(scores: Scores) -> None:
            set_isa(name)
            topk(scores, 100)

        return run

    inputs = [rng.standard_normal(1_000_000).astype(np.float32) for _ in range(4)]
    by_isa = take_turns({name: forced(name) for name in isas()}, inputs, rounds=arguments.rounds)
    set_isa(content["isa"])
    content["instruction_sets"] = summary(by_isa, content["isa"])
    print(f"\nedgerec by instruction set, 1,000,000 random scores, k = 100\n\n{table(content['instruction_sets'])}")

    fastest = min(
        ("numpy argpartition + sort", "bottleneck argpartition + sort", "torch.topk"), key=lambda name: ratio(small, name, "edgerec")
    )
    content["targets"] = [
        target("1e6, k = 100: time over numpy.max", ratio(large, "edgerec", "numpy.max"), "<=", 2),
        target("1e6, k = 100: times faster than argpartition + sort", ratio(large, "numpy argpartition + sort", "edgerec"), ">=", 50),
        target("1e6, k = 100: times faster than torch.topk", ratio(large, "torch.topk", "edgerec"), ">=", 8),
        target("1e3, k = 10: microseconds a Python call", float(np.median(small["edgerec"])) / 1000, "<=", 2),
        target(f"1e3, k = 10: times faster than the best rival ({fastest})", ratio(small, fastest, "edgerec"), ">=", 1),
        target("ascending: time over random", ratio(by_shape, "ascending", "random"), "<=", 5),
        target("all equal: time over random", ratio(by_shape, "all equal", "random"), "<=", 5),
    ]
    print(f"\n{table(content['targets'])}")
    report("edgerec-bench-topk", machine, ("numpy", "bottleneck", "torch"), content, arguments.out)
    if not all(entry["kept"] for entry in content["targets"]):
        raise SystemExit("a target was missed; is the machine quiet?")


if __name__ == "__main__":
    main()
