"""How fast does the C core hash feature strings, beside scikit-learn's FeatureHasher and hash packages in a loop?

    python benchmarks/bench_hash.py

One thread. The strings are `field=value`, 9 to 31 bytes and some not ASCII, all different and new in every round. To be fair to
FeatureHasher, which also merges and builds a matrix, edgerec is timed with projection to ids and signs too. xxhash and mmh3 are called in
a list comprehension, as one does. Before anything is timed, edgerec's hashes are compared with PyPI xxhash.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import xxhash
from numpy.typing import NDArray
from sklearn.feature_extraction import FeatureHasher
from turns import describe_machine, ratio, report, summary, table, take_turns, target

from edgerec._core import FeaturePlan, hash_packed, hash_strings, project

RESULT = Path(__file__).parent / "results" / "hash.json"
COUNT = 20_000
BUCKETS = 32_768
ROW = 20  # strings of one FeatureHasher row, about what an item has


@dataclass(frozen=True, slots=True)
class Strings:
    """The same strings in every form that somebody takes."""

    flat: list[str]
    rows: list[list[str]]
    data: NDArray[np.uint8]
    offsets: NDArray[np.int64]


def make_strings(rng: np.random.Generator) -> Strings:
    """COUNT strings, the lengths of real fields."""
    fields = ["w", "3", "brand", "category", "price", "colour"]
    syllables = ["lam", "red", "ste", "el", "dri", "ll", "fau", "cet", "kit", "chen", "é", "wood", "ny", "lon"]
    flat = []
    for number in range(COUNT):
        value = "".join(rng.choice(syllables, rng.integers(1, 5)))
        flat.append(f"{rng.choice(fields)}={value}{number:x}"[:31].ljust(9, "s"))
    packed = [value.encode() for value in flat]
    return Strings(
        flat,
        [flat[i : i + ROW] for i in range(0, COUNT, ROW)],
        np.frombuffer(b"".join(packed), np.uint8),
        np.cumsum([0, *map(len, packed)]).astype(np.int64),
    )


def contestants() -> dict[str, Callable[[Strings], object]]:
    """All that are timed, by name; mmh3 only where it is installed."""
    hasher = FeatureHasher(n_features=BUCKETS, input_type="string")
    found: dict[str, Callable[[Strings], object]] = {
        "edgerec hash_strings": lambda s: hash_strings(s.flat),
        "edgerec hash_strings + project": lambda s: project(hash_strings(s.flat), BUCKETS),
        "edgerec hash_packed": lambda s: hash_packed(s.data, s.offsets),
        "scikit-learn FeatureHasher": lambda s: hasher.transform(s.rows),
        "xxhash in a list comprehension": lambda s: [xxhash.xxh64_intdigest(value.encode()) for value in s.flat],
    }
    try:
        import mmh3
    except ImportError:
        print("mmh3 is not installed and takes no part")
    else:
        found["mmh3 in a list comprehension"] = lambda s: [mmh3.hash(value) for value in s.flat]
    return found


def rows_of_features(rng: np.random.Generator, n: int) -> tuple[FeaturePlan, list[Any], NDArray[np.int64]]:
    """A query of 5 words against n items of 12 title words and 30 trigrams: the templates of docs/formats.md, and one on trigrams."""

    def sets(count: int, size: int, vocabulary: int) -> tuple[Any, None, Any]:
        known = rng.integers(0, 2**64, vocabulary, dtype=np.uint64)
        chosen = [np.unique(rng.choice(known, size)) for _ in range(count)]
        return np.concatenate(chosen), None, np.cumsum([0, *map(len, chosen)]).astype(np.int64)

    words, trigrams, brands = sets(n, 12, 400), sets(n, 30, 900), sets(n, 1, 50)
    query, query_trigrams = np.unique(words[0][:5]), np.unique(trigrams[0][:25])
    tastes = np.unique(brands[0][:4])
    fields = [(query, None, None), words, (query_trigrams, None, None), trigrams, brands, (tastes, np.ones(len(tastes), np.float32), None)]
    # match words, left_only words, common words, match trigrams, emit brand, match user's brands
    plan = FeaturePlan(
        np.array([3, 2, 1, 3, 0, 3], np.int32),
        np.array([0, 0, 0, 2, 4, 5], np.int32),
        np.array([1, 1, 1, 3, 0, 4], np.int32),
        rng.integers(0, 2**64, 6, dtype=np.uint64),
        buckets=BUCKETS,
        slots=32,
    )
    return plan, fields, rng.permutation(n).astype(np.int64)


def main() -> None:
    """Print the tables, write the report, and exit with 1 when a target is missed."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=40, help="rounds per table (default 40)")
    parser.add_argument("--out", type=Path, default=RESULT, help="the JSON file to write (default benchmarks/results/hash.json)")
    arguments = parser.parse_args()
    machine = describe_machine()
    rng = np.random.default_rng(20240917)
    inputs = [make_strings(rng) for _ in range(arguments.rounds)]
    expected = [xxhash.xxh64_intdigest(value.encode()) for value in inputs[0].flat]
    if not expected == hash_strings(inputs[0].flat).tolist() == hash_packed(inputs[0].data, inputs[0].offsets).tolist():
        raise SystemExit("edgerec does not compute XXH64: nothing to compare")

    times = take_turns(contestants(), inputs, rounds=arguments.rounds, per=COUNT)
    mean = len(inputs[0].data) / COUNT
    content: dict[str, Any] = {
        "strings": COUNT,
        "mean_bytes": mean,
        "rounds": arguments.rounds,
        "per_string": summary(times, "edgerec hash_strings"),
    }
    print(f"\nOne string of {mean:.1f} bytes on average\n\n{table(content['per_string'])}")

    encoders: dict[str, Callable[[None], object]] = {}
    for n in (1, 100, 1000):
        plan, fields, rows = rows_of_features(rng, n)
        encoders[f"{n} candidates"] = lambda _, plan=plan, fields=fields, rows=rows: plan.encode(fields, rows)
    encoding = take_turns(encoders, [None], rounds=10 * arguments.rounds)
    content["encode_rows"] = summary(encoding, "1 candidates")
    print(f"\nFeaturePlan.encode, 6 templates, 32 slots, one call\n\n{table(content['encode_rows'])}")

    content["targets"] = [
        target(
            "hash_strings: times faster than FeatureHasher", ratio(times, "scikit-learn FeatureHasher", "edgerec hash_strings"), ">=", 6
        ),
        target(
            "hash_strings + project: times faster", ratio(times, "scikit-learn FeatureHasher", "edgerec hash_strings + project"), ">=", 6
        ),
        target("hash_packed: ns a string", float(np.median(times["edgerec hash_packed"])), "<=", 10),
        target("encode, 100 candidates: us", float(np.median(encoding["100 candidates"])) / 1000, "<=", 100),
        target("encode, 1,000 candidates: us", float(np.median(encoding["1000 candidates"])) / 1000, "<=", 1000),
    ]
    print(f"\n{table(content['targets'])}")
    report("edgerec-bench-hash", machine, ("numpy", "scikit-learn", "xxhash", "mmh3"), content, arguments.out)
    if not all(entry["kept"] for entry in content["targets"]):
        raise SystemExit("a target was missed; is the machine quiet?")


if __name__ == "__main__":
    main()
