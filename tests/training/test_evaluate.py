"""``evaluate`` on a small generated shop: conventions, rows, refusals, formats."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from edgerec.training.data import load_dataset
from edgerec.training.evaluate import _expected_mrr, evaluate, expected_ndcg
from edgerec.training.first_stage import Bm25
from edgerec.training.judged import judged_lists, relevant_from
from edgerec.training.latency import first_stage_requests, measure_latency
from edgerec.training.table import Estimate
from fixtures_judged import Constant, Perfect, Reversed, write_folder
from numpy.typing import NDArray

from edgerec import metrics
from edgerec.errors import BundleError, InputError
from edgerec.types import Item

QUICK = {"samples": 50, "command": "test"}


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_folder(tmp_path_factory.mktemp("data") / "toy")


def test_the_baselines_come_first_and_the_perfect_ranker_is_perfect(shop: Path) -> None:
    table = evaluate(shop, "dev", scorers={"perfect": Perfect(), "reversed": Reversed()}, **QUICK)
    assert [row.name for row in table.rows] == ["no rerank", "BM25", "perfect", "reversed"]
    perfect, backwards, bm25 = table.row("perfect"), table.row("reversed"), table.row("BM25")
    assert perfect.ndcg == Estimate(pytest.approx(1.0), pytest.approx(1.0), pytest.approx(1.0), 8)
    assert perfect.mrr.value == perfect.auc.value == perfect.auc_by_query.value == 1.0
    assert backwards.auc.value == 0.0
    assert backwards.ndcg.value < table.row("no rerank").ndcg.value < bm25.ndcg.value < perfect.ndcg.value
    assert perfect.ndcg_gain is not None
    assert perfect.ndcg_gain.value == pytest.approx(1 - bm25.ndcg.value)
    assert bm25.ndcg_gain is None
    assert (table.queries, table.pairs, table.left_out) == (8, 160, 0)


def test_the_same_seed_gives_the_same_table(shop: Path) -> None:
    first, second = (evaluate(shop, "dev", scorers={"constant": Constant()}, seed=3, **QUICK) for _ in range(2))
    assert first.rows == second.rows
    assert first.rows != evaluate(shop, "dev", scorers={"constant": Constant()}, seed=4, **QUICK).rows


def test_no_rerank_is_the_mean_over_shuffles(shop: Path) -> None:
    dataset = load_dataset(shop)
    rng = np.random.default_rng(0)
    for judged in judged_lists(dataset, "dev"):
        gains, relevant = metrics.gain(judged.grades, 1), judged.grades >= 2.8
        shuffles = [rng.random(len(gains)) for _ in range(2000)]
        assert expected_ndcg(gains, 10) == pytest.approx(np.mean([metrics.ndcg(gains, s, 10) for s in shuffles]), abs=0.02)
        assert _expected_mrr(relevant, 3) == pytest.approx(np.mean([metrics.mrr(relevant, s, 3) for s in shuffles]), abs=0.03)


def test_no_rerank_by_hand() -> None:
    # Two candidates, one relevant: first or second with equal chance.
    assert expected_ndcg(np.array([1.0, 0.0]), 10) == pytest.approx((1 + 1 / math.log2(3)) / 2)
    assert _expected_mrr(np.array([True, False]), 10) == pytest.approx(0.75)
    assert _expected_mrr(np.array([True, False]), 1) == pytest.approx(0.5)
    assert math.isnan(expected_ndcg(np.zeros(3), 10))
    assert math.isnan(_expected_mrr(np.zeros(3, bool), 10))


def test_a_constant_scorer_has_an_auc_of_one_half(shop: Path) -> None:
    row = evaluate(shop, "dev", scorers={"constant": Constant()}, **QUICK).row("constant")
    assert (row.auc.value, row.auc.low, row.auc.high) == (0.5, 0.5, 0.5)


def test_candidates_are_shuffled_the_same_way_whatever_is_left_out(shop: Path) -> None:
    dataset = load_dataset(shop)
    lists = judged_lists(dataset, "dev", seed=1)
    assert [item.id for item in lists[0].items] != list(dataset.qrels["dev"]["q0"])
    assert sorted(item.id for item in lists[0].items) == sorted(dataset.qrels["dev"]["q0"])
    for item, grade in zip(lists[0].items, lists[0].grades, strict=True):
        assert dataset.qrels["dev"]["q0"][item.id] == grade
    everything, longer = judged_lists(dataset, "tiny", seed=1), judged_lists(dataset, "tiny", seed=1, min_judged=2)
    assert [judged.query_id for judged in longer] == ["q1"]
    assert longer[0].items == everything[1].items


def test_short_and_undefined_lists_are_counted_not_scored(shop: Path) -> None:
    table = evaluate(shop, "tiny", scorers={"perfect": Perfect()}, **QUICK)
    assert (table.queries, table.left_out) == (1, 1)
    row = table.row("perfect")
    assert math.isnan(row.ndcg.value)
    assert row.ndcg.count == 0
    assert row.to_json()["ndcg"] == {"value": None, "low": None, "high": None, "count": 0}
    assert "–" in table.to_markdown()


def test_relevant_is_from_six_tenths_of_the_grade_range(shop: Path) -> None:
    assert relevant_from(load_dataset(shop)) == pytest.approx(2.8)
    assert evaluate(shop, "dev", **QUICK).relevant_from == pytest.approx(2.8)
    assert evaluate(shop, "dev", relevant_at=4.0, **QUICK).relevant_from == 4.0


class Failing:
    """Cannot score the best item of any query."""

    def score(self, query: str, items: Sequence[Item]) -> NDArray[np.float32]:
        scores = Perfect().score(query, items)
        scores[np.argmax(scores)] = np.nan
        return scores


def test_an_item_that_could_not_be_scored_ranks_last(shop: Path) -> None:
    table = evaluate(shop, "dev", scorers={"failing": Failing(), "perfect": Perfect()}, **QUICK)
    assert table.row("failing").ndcg.value < table.row("perfect").ndcg.value
    assert table.row("failing").auc.value < 1.0


class WrongShape:
    def score(self, query: str, items: Sequence[Item]) -> NDArray[np.float32]:
        return np.zeros((len(items), 1), np.float32)


def test_wrong_arguments_and_scorers_are_refused(shop: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="odd returned scores of shape"):
        evaluate(shop, "dev", scorers={"odd": WrongShape()}, **QUICK)
    with pytest.raises(InputError, match=r"no split 'test'; it has \['dev', 'tiny'\]"):
        evaluate(shop, "test", **QUICK)
    with pytest.raises(InputError, match="two rankers are called 'BM25'"):
        evaluate(shop, "dev", scorers={"BM25": Perfect()}, **QUICK)
    with pytest.raises(InputError, match="no query has 50 judged"):
        evaluate(shop, "dev", min_judged=50, **QUICK)
    with pytest.raises(InputError, match="must be at least 1"):
        evaluate(shop, "dev", k=0, **QUICK)
    with pytest.raises(BundleError, match=r"training\.json"):
        evaluate(shop, "dev", models=[tmp_path / "nothing"], **QUICK)
    (tmp_path / "training.json").write_text('{"kind": "oracle"}')
    with pytest.raises(BundleError, match="expected 'teacher' or 'student'"):
        evaluate(shop, "dev", models=[tmp_path], **QUICK)


def test_json_holds_figures_and_provenance_but_no_text(shop: Path) -> None:
    table = evaluate(shop, "dev", scorers={"perfect": Perfect()}, latency=True, latency_candidates=10, latency_calls=4, **QUICK)
    value = json.loads(json.dumps(table.to_json(), allow_nan=False))
    assert value["format"] == "edgerec-evaluation"
    assert value["provenance"]["data_sha256"] == load_dataset(shop).sha256
    assert value["provenance"]["command"] == "test"
    assert value["provenance"]["versions"]["numpy"] == np.__version__
    assert set(value["rows"][2]) == {"name", "kind", "ndcg", "ndcg_gain", "mrr", "auc", "auc_by_query", "latency", "detail"}
    assert value["rows"][2]["latency"]["candidates"] == 10
    assert value["rows"][0]["latency"] is None
    assert "lamp" not in json.dumps(value)


def test_markdown_is_a_table_with_a_caption(shop: Path) -> None:
    table = evaluate(shop, "dev", scorers={"a|b": Perfect()}, **QUICK)
    lines = table.to_markdown().splitlines()
    assert len({len(line) for line in lines[:5]}) == 1, "columns are aligned"
    assert lines[0].startswith("| ranker ")
    assert "p50" not in lines[0]
    assert "a\\|b" in lines[4]
    assert "1.000 [1.000, 1.000]" in lines[4]
    assert "toy, split dev: 8 queries, 160 judged pairs" in lines[6]
    timed = replace(table, rows=(replace(table.rows[2], latency=measure_latency(Perfect(), [("red lamps", (Item("a", "red lamp"),))])),))
    assert timed.header()[-1] == "p50 ms / 1"


def test_requests_for_timing_are_the_first_stage_filled_up(shop: Path) -> None:
    dataset = load_dataset(shop)
    lists, bm25 = judged_lists(dataset, "dev"), Bm25(dataset)
    requests = first_stage_requests(dataset, lists, bm25, candidates=15, calls=12, seed=0)
    assert len(requests) == 12
    for query, items in requests:
        found = [item_id for item_id, _ in bm25.search(query, 15)]
        ids = [item.id for item in items]
        assert ids[: len(found)] == found
        assert len(set(ids)) == 15
    assert len(first_stage_requests(dataset, lists, bm25, candidates=100, calls=1, seed=0)[0][1]) == len(dataset.items)
    assert requests == first_stage_requests(dataset, lists, bm25, candidates=15, calls=12, seed=0)


def test_every_request_is_timed_once_after_warming_up() -> None:
    class Counting:
        calls = 0

        def score(self, query: str, items: Sequence[Item]) -> NDArray[np.float32]:
            self.calls += 1
            return np.zeros(len(items), np.float32)

    scorer = Counting()
    latency = measure_latency(scorer, [("q", (Item("a", "x"),))] * 5, warm_up=2)
    assert scorer.calls == 7
    assert (latency.calls, latency.candidates) == (5, 1)
    assert 0 < latency.p50_ms <= latency.p95_ms


@pytest.mark.parametrize(("kind", "owner"), [("teacher", "Teacher"), ("student", "StudentScorer")])
def test_a_model_folder_is_opened_by_its_kind(shop: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, owner: str) -> None:
    opened: list[Path] = []

    def load(folder: Path) -> Perfect:
        opened.append(folder)
        return Perfect()

    # In place of the module itself: this test is about the choice, and torch takes seconds to import.
    monkeypatch.setitem(sys.modules, f"edgerec.training.{kind}", SimpleNamespace(**{owner: SimpleNamespace(load=load)}))
    folder = tmp_path / "my-model"
    folder.mkdir()
    (folder / "training.json").write_text(json.dumps({"kind": kind}))
    row = evaluate(shop, "dev", models=[folder], **QUICK).row("my-model")
    assert row.kind == kind
    assert row.auc.value == 1.0
    assert opened == [folder]
