"""``bench``: the right calls, counted and summed; no assertion on how fast anything is."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from fixtures_export import WORDS, make_export

from edgerec import bench as module
from edgerec.bench import BenchReport, Percentiles, bench
from edgerec.builder import build_engine
from edgerec.errors import InputError
from edgerec.types import Item

ITEMS = [Item(f"i{n}", " ".join(WORDS[(n * 7 + j) % len(WORDS)] for j in range(2 + n % 6))) for n in range(60)]
QUERIES = ["red lamp", "oak table", "large blue rug", "chair"]


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("bench")
    build_engine(make_export(root / "export"), root / "bundle", backend="reference")
    return root / "bundle"


@pytest.fixture(scope="module")
def report(bundle: Path) -> BenchReport:
    return bench(bundle, queries=QUERIES, items=ITEMS, candidates=(25, 5), repeat=6, warm_up=1, top_k=3, threads=1, command="test")


def test_each_size_has_its_calls_and_the_parts_do_not_exceed_the_whole(report: BenchReport) -> None:
    assert [(row.candidates, row.calls) for row in report.rows] == [(5, 6), (25, 6)]
    for row in report.rows:
        assert 0 < row.total.p50_us <= row.total.p95_us <= row.total.p99_us
        assert 0 < row.overhead.p50_us < row.total.p99_us
        assert set(row.stages) == {"lookup", "encode", "score", "select"}
        assert all(stage.p50_us > 0 for stage in row.stages.values())
        assert sum(stage.p50_us for stage in row.stages.values()) <= sum((row.total.p99_us,) * 2)


def test_a_size_above_the_shop_becomes_the_shop(bundle: Path) -> None:
    made = bench(bundle, queries=QUERIES, items=ITEMS, candidates=(1000, 2000, 1), repeat=1, warm_up=0, command="test")
    assert [row.candidates for row in made.rows] == [1, 60]


def test_requests_vary_and_repeat_with_the_seed(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[str, tuple[str, ...], int]] = []
    original = module._one_call

    def record(ranker: module.Ranker, query: str, candidates: list[str], top_k: int) -> object:
        seen.append((query, tuple(candidates), top_k))
        return original(ranker, query, candidates, top_k)

    monkeypatch.setattr(module, "_one_call", record)
    for _ in range(2):
        bench(bundle, queries=QUERIES, items=ITEMS, candidates=(4,), repeat=10, warm_up=2, top_k=2, command="test")
    first, second = seen[:12], seen[12:]
    assert first == second
    assert len({query for query, _, _ in first}) > 1
    assert len({chosen for _, chosen, _ in first}) == 12
    assert all(len(set(chosen)) == 4 for _, chosen, _ in first)
    assert {top_k for _, _, top_k in first} == {2}


def test_json_names_the_model_the_machine_and_the_load(report: BenchReport) -> None:
    value = json.loads(json.dumps(report.to_json(), allow_nan=False))
    assert value["format"] == "edgerec-bench"
    assert value["model_version"] == report.model_version
    assert set(value["rows"][0]) == {"candidates", "calls", "total", "overhead", "stages"}
    provenance = value["provenance"]
    assert (provenance["queries"], provenance["items"], provenance["top_k"], provenance["threads"]) == (4, 60, 3, 1)
    assert provenance["command"] == "test"
    assert provenance["machine"]["cores"] >= 1
    assert provenance["versions"]["numpy"] == np.__version__


def test_markdown_has_a_line_for_each_size(report: BenchReport) -> None:
    lines = report.to_markdown().splitlines()
    assert len({len(line) for line in lines[:4]}) == 1, "columns are aligned"
    assert lines[2].startswith("|          5 |")
    assert lines[3].startswith("|         25 |")
    assert "6 warm calls for each line, 4 queries, 60 items, top 3, 1 threads" in lines[5]


def test_percentiles_of_known_durations() -> None:
    assert Percentiles.of(list(range(101))) == Percentiles(50.0, 95.0, 99.0)


def test_nothing_to_time_is_refused(bundle: Path) -> None:
    for wrong in ({"queries": []}, {"items": []}, {"candidates": ()}, {"candidates": (0,)}, {"repeat": 0}, {"top_k": 0}, {"warm_up": -1}):
        with pytest.raises(InputError):
            bench(bundle, **({"queries": QUERIES, "items": ITEMS} | wrong))
