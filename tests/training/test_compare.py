"""Comparison of two rankers: the test of chance, slices, calibration, and what is said about losses."""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from edgerec.training.compare import Comparison, compare, randomisation_test
from edgerec.training.data import Dataset, load_dataset
from edgerec.training.evaluate import evaluate
from edgerec.training.judged import judged_lists
from edgerec.training.report import render_report
from edgerec.training.slices import candidate_slices, is_typo, query_slices
from edgerec.training.table import Table
from fixtures_judged import Constant, Perfect, Reversed, write_folder
from numpy.typing import NDArray

from edgerec.errors import InputError
from edgerec.types import Item


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_folder(tmp_path_factory.mktemp("data") / "toy")


@pytest.fixture(scope="module")
def dataset(folder: Path) -> Dataset:
    return load_dataset(folder)


@pytest.fixture(scope="module")
def table(folder: Path) -> Table:
    rankers = {"perfect": Perfect(), "reversed": Reversed(), "constant": Constant()}
    return evaluate(folder, "dev", scorers=rankers, samples=100, command="make test")


@pytest.fixture(scope="module")
def comparison(table: Table, dataset: Dataset) -> Comparison:
    return compare(table, "reversed", "perfect", dataset, samples=500)


def test_the_randomisation_test_counts_sign_flips() -> None:
    """Against all 2^6 assignments of signs, which is what the samples estimate."""
    differences = np.array([0.3, 0.1, -0.05, 0.2, 0.0, 0.15])
    means = [abs(float(np.mean(differences * signs))) for signs in itertools.product((1, -1), repeat=6)]
    exact = np.mean([m >= abs(differences.mean()) - 1e-12 for m in means])
    assert randomisation_test(differences, seed=0, samples=4000) == pytest.approx(exact, abs=0.03)
    with_nan = np.append(differences, math.nan)
    assert randomisation_test(with_nan, seed=0, samples=500) == randomisation_test(differences, seed=0, samples=500)
    assert randomisation_test(-differences, seed=0, samples=500) == randomisation_test(differences, seed=0, samples=500)
    assert randomisation_test(np.zeros(5), seed=0) == 1.0
    assert math.isnan(randomisation_test(np.array([math.nan]), seed=0))


def test_the_better_ranker_wins_everywhere_and_not_by_chance(comparison: Comparison) -> None:
    assert (comparison.wins, comparison.losses, comparison.ties) == (8, 0, 0)
    assert comparison.difference.low > 0
    assert comparison.p_value < 0.05  # 8 of 8: the exact value is 2 / 2^8
    assert comparison.slices[0].ndcg_b == pytest.approx(1.0)
    assert comparison.slices[0].difference.value == pytest.approx(comparison.difference.value)
    assert comparison.slices[0].auc_b == pytest.approx(1.0)
    assert comparison.slices[0].auc_a == pytest.approx(0.0)


def test_turned_round_it_is_the_negative_and_lists_the_losses(table: Table, dataset: Dataset, comparison: Comparison) -> None:
    other = compare(table, "perfect", "reversed", dataset, samples=500)
    assert other.difference.value == pytest.approx(-comparison.difference.value)
    assert (other.wins, other.losses) == (0, 8)
    body = json.loads(json.dumps(other.to_json(), allow_nan=False))
    assert len(body["worst"]) == 8
    changes = [query["change"] for query in body["worst"]]
    assert changes == sorted(changes)
    first = body["worst"][0]
    assert [item["grade"] for item in first["a"]] == sorted((item["grade"] for item in first["a"]), reverse=True)
    assert {q["id"] for q in body["queries"]} == {f"q{i}" for i in range(8)}


def test_a_ranker_against_one_that_is_its_equal_is_no_result(table: Table, dataset: Dataset) -> None:
    bm25 = table.row("BM25")
    same = compare(table, "BM25", "constant", dataset)
    assert same.wins + same.losses + same.ties == 8
    twin = evaluate_twice(table, dataset)
    assert (twin.ties, twin.p_value, twin.difference.value) == (8, 1.0, 0.0)
    assert bm25.scores is not None


def evaluate_twice(table: Table, dataset: Dataset) -> Comparison:
    copy = replace(table.row("perfect"), name="twin")
    return compare(replace(table, rows=(*table.rows, copy)), "perfect", "twin", dataset)


@pytest.mark.parametrize(("a", "b"), [("perfect", "perfect"), ("perfect", "nobody"), ("no rerank", "perfect")])
def test_rankers_that_cannot_be_compared_are_refused(table: Table, dataset: Dataset, a: str, b: str) -> None:
    with pytest.raises(InputError):
        compare(table, a, b, dataset)


def test_calibration_bins_hold_all_pairs_in_order_of_score(comparison: Comparison, table: Table) -> None:
    for name, bins in comparison.calibration.items():
        assert sum(part.pairs for part in bins) == table.pairs
        scores = [part.score for part in bins]
        assert scores == sorted(scores)
        grades = [part.grade for part in bins]
        assert grades == sorted(grades, reverse=name == "reversed")


class Calibrated:
    """Scores that are the logits of the labels."""

    def score(self, query: str, items: Sequence[Item]) -> NDArray[np.float32]:
        label = np.clip((Perfect().score(query, items) - 1) / 3, 1e-3, 1 - 1e-3)
        return np.log(label / (1 - label)).astype(np.float32)


def test_logits_of_the_labels_are_calibrated(folder: Path, dataset: Dataset) -> None:
    table = evaluate(folder, "dev", scorers={"logits": Calibrated(), "grades": Perfect()}, samples=20, command="make test")
    found = compare(table, "grades", "logits", dataset)
    assert found.ties == 8  # the order is the same
    assert found.calibration_error["logits"] < 0.002 < 0.1 < found.calibration_error["grades"]
    for part in found.calibration["logits"]:
        assert part.predicted == pytest.approx(part.grade, abs=0.01)


def test_query_slices(dataset: Dataset) -> None:
    lists = judged_lists(dataset, "dev")
    slices = query_slices(lists, dataset)
    assert slices["1-2 words"].all()
    assert not slices["3-4 words"].any()
    assert not slices["5 words or more"].any()
    assert (slices["head"] ^ slices["tail"]).all()
    assert not slices["typo"].any()


def test_a_typo_is_one_slip_from_a_known_word() -> None:
    known = {"lamp", "chair", "table"}
    for word in ("lmap", "lampp", "lamd", "chai"):
        assert is_typo(word, known), word
    for word in ("lamp", "lap", "xyzzy", "ch4ir", "chairs", "chairs-"):
        assert not is_typo(word, known), word


def test_candidates_and_brands_that_training_never_saw(folder: Path, tmp_path: Path) -> None:
    lines = (folder / "corpus.jsonl").read_text().splitlines()
    records = [json.loads(line) | {"brand": "old" if n < 10 else "new" if n < 15 else ""} for n, line in enumerate(lines)]
    shop = write_folder(tmp_path / "toy")
    (shop / "corpus.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    (shop / "qrels" / "train.tsv").write_text("query-id\tcorpus-id\tscore\nq0\ti0\t4\nq0\ti1\t1\n")
    dataset = load_dataset(shop)
    lists = judged_lists(dataset, "dev")
    slices = candidate_slices(lists, dataset)
    counts = {name: int(masks[0].sum()) for name, masks in slices.items()}
    assert counts == {"items in train": 2, "items not in train": 18, "brands in train": 10, "brands not in train": 5}


def test_the_report_shows_both_and_escapes(table: Table, comparison: Comparison) -> None:
    page = render_report(table, comparison=comparison)
    assert "perfect against reversed" in page
    assert page.count("<svg") == 2
    assert "brands not in train" in page
    assert "perfect against reversed" not in render_report(table)
    text = comparison.to_markdown()
    assert "p = 0.0" in text
    assert text.count("\n|") == 2 + len(comparison.slices)
