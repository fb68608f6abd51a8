"""The generated shop: same bytes for the same seed, true grades, known propensities, and neither too easy nor hopeless for BM25."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import bm25s
import numpy as np
import pytest
from edgerec.training.data import load_dataset
from edgerec.training.dice import Dice
from edgerec.training.lexicon import Lexicon, misspell
from edgerec.training.shop import brands, dimensions, kinds
from edgerec.training.simulate import _ask, _stock, simulate
from edgerec.training.twins import twin_groups
from edgerec.training.validate import validate

from edgerec.errors import InputError
from edgerec.events import Action, Impression, read_events
from edgerec.metrics import ndcg

SMALL: dict[str, int] = {"items": 500, "queries": 120, "users": 20, "events": 1500}


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return simulate(tmp_path_factory.mktemp("shop") / "shop", **SMALL, seed=0)


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_the_same_seed_gives_the_same_bytes_in_another_process(shop: Path, tmp_path: Path) -> None:
    code = f"from edgerec.training.simulate import simulate; simulate({str(tmp_path / 'again')!r}, **{SMALL}, seed=0)"
    subprocess.run([sys.executable, "-c", code], check=True, env={**os.environ, "PYTHONHASHSEED": "7"})
    assert contents(tmp_path / "again") == contents(shop)


def test_another_seed_gives_another_shop(shop: Path, tmp_path: Path) -> None:
    other = contents(simulate(tmp_path / "other", **SMALL, seed=1))
    assert all(other[name] != raw for name, raw in contents(shop).items())


def test_more_users_and_events_do_not_change_items_and_judgements(shop: Path, tmp_path: Path) -> None:
    other = contents(simulate(tmp_path / "other", **SMALL | {"users": 30, "events": 10}, seed=0))
    same = [name for name, raw in contents(shop).items() if other[name] == raw]
    assert same == ["corpus.jsonl", "qrels/dev.tsv", "qrels/test.tsv", "qrels/train.tsv", "queries.jsonl"]


def test_it_has_the_sizes_asked_for_and_no_fault(shop: Path) -> None:
    report = validate(shop)
    assert report.errors == ()
    assert set(report.totals) <= {"duplicate-title"}
    assert (report.counts["items"], report.counts["queries"], report.counts["users"]) == (500, 120, 20)
    assert sum(report.counts["events"].values()) == 1500
    assert report.counts["queries without judgements"] == 0
    assert set(report.counts["judgements"]) == {"train", "dev", "test"}
    assert sum(report.counts["judgements"].values()) == 120 * 30
    items = load_dataset(shop).items.values()
    assert all(item.brand and item.category and item.attributes and (item.price or 0) > 0 for item in items)


def test_all_grades_occur_and_every_query_has_a_best_item(shop: Path) -> None:
    for judged in load_dataset(shop).qrels.values():
        assert {grade for grades in judged.values() for grade in grades.values()} == {0.0, 1.0, 2.0, 3.0}
        assert all(3.0 in grades.values() for grades in judged.values())


def test_near_twins_are_on_one_side(tmp_path: Path) -> None:
    data = load_dataset(simulate(tmp_path / "shop", items=50, queries=400, users=0, events=0, seed=0))
    sides = {query_id: split for split, judged in data.qrels.items() for query_id in judged}
    ids = list(data.queries)
    groups = twin_groups(list(data.queries.values()))
    assert len(set(groups)) < len(ids), "the shop has twins, or this shows nothing"
    assert all(sides[query_id] == sides[ids[group]] for query_id, group in zip(ids, groups, strict=True))


@pytest.mark.parametrize("seed", range(5))
def test_bm25_is_beatable_and_not_hopeless(tmp_path: Path, seed: int) -> None:
    data = load_dataset(simulate(tmp_path / "shop", items=500, queries=120, users=0, events=0, seed=seed))
    places = {item_id: place for place, item_id in enumerate(data.items)}
    index = bm25s.BM25(method="lucene")
    titles = [item.title for item in data.items.values()]
    index.index(bm25s.tokenize(titles, show_progress=False), show_progress=False)
    chance = np.random.default_rng(0)
    found, guessed = [], []
    for judged in data.qrels.values():
        for query_id, grades in judged.items():
            words = bm25s.tokenize([data.queries[query_id]], return_ids=False, show_progress=False)[0]
            scores = index.get_scores(words)[[places[item_id] for item_id in grades]]
            gains = [2.0**grade - 1 for grade in grades.values()]
            found.append(ndcg(gains, scores, 10))
            guessed.append(ndcg(gains, chance.random(len(gains)), 10))
    assert 0.55 < np.mean(found) < 0.85
    assert np.mean(guessed) < np.mean(found) - 0.15


def test_clicks_follow_the_published_propensities(tmp_path: Path) -> None:
    folder = simulate(tmp_path / "shop", items=300, queries=60, users=50, events=12_000, seed=3)
    meta = json.loads((folder / "dataset.json").read_text())
    pages = {event.request_id: event for _, event in read_events(folder / "events.jsonl") if isinstance(event, Impression)}
    clicked: Counter[tuple[str, str]] = Counter()
    kinds_of: dict[tuple[str, str], list[str]] = {}
    for _, event in read_events(folder / "events.jsonl"):
        if isinstance(event, Action):
            page = pages[event.request_id]
            assert event.item_id in page.items
            assert event.ts > page.ts
            clicked[(event.request_id, event.item_id)] += event.kind == "click"
            kinds_of.setdefault((event.request_id, event.item_id), []).append(event.kind)
    assert max(clicked.values()) == 1
    assert {tuple(its) for its in kinds_of.values()} == {("click",), ("click", "cart"), ("click", "cart", "purchase")}
    shown: Counter[int] = Counter()
    clicks: Counter[int] = Counter()
    for page in pages.values():
        assert page.propensities == tuple(round(1 / position ** meta["click_model"]["eta"], 6) for position in page.positions)
        for item_id, position in zip(page.items, page.positions, strict=True):
            shown[position] += 1
            clicks[position] += clicked[(page.request_id, item_id)]
    # Divided by its propensity, the click rate falls with the relevance of what the shop put there, no longer with 1 / position.
    rates = {position: clicks[position] / shown[position] for position in shown}
    assert rates[1] > 3 * rates[5]
    assert 0.4 < (rates[5] * 5) / (rates[2] * 2) < 1.4


def test_test_queries_are_never_searched_for_in_the_log(shop: Path) -> None:
    data = load_dataset(shop)
    searched = {event.query for _, event in read_events(shop / "events.jsonl") if isinstance(event, Impression)}
    assert searched <= {data.queries[query_id] for query_id in data.qrels["train"]}


def test_no_events_means_no_log(tmp_path: Path) -> None:
    assert not (simulate(tmp_path / "shop", items=60, queries=10, users=0, events=0, seed=0) / "events.jsonl").exists()


@pytest.mark.parametrize("wrong", [{"items": 49}, {"queries": 9}, {"users": 0}, {"events": -1}])
def test_sizes_it_cannot_serve_are_refused_and_nothing_is_written(tmp_path: Path, wrong: dict[str, int]) -> None:
    with pytest.raises(InputError):
        simulate(tmp_path / "shop", **SMALL | wrong, seed=0)
    assert list(tmp_path.iterdir()) == []


def test_more_queries_than_the_items_can_give_are_refused() -> None:
    cheapest = min(_stock(50, Dice(0, "items")), key=lambda product: len(product.traits))
    with pytest.raises(InputError, match="different queries"):
        _ask([cheapest], 10**6, Dice(0, "queries"))


def test_a_folder_in_use_is_refused_and_left_alone(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(InputError, match="not empty"):
        simulate(tmp_path, **SMALL, seed=0)
    assert contents(tmp_path) == {"mine.txt": b"mine"}


def test_the_words_of_the_shop_hold_together() -> None:
    first = [kind.names[0] for kind in kinds()]
    assert len(set(first)) == len(first)
    for kind in kinds():
        assert kind.category in brands()
        assert set(kind.dimensions) <= set(dimensions())
        assert len({dimensions()[key].attribute for key in kind.dimensions}) == len(kind.dimensions)
        assert kind.accessory_of in {"", *first}
        assert 0 < kind.prices[0] < kind.prices[1]
    for dimension in dimensions().values():
        spoken = [name for names in dimension.values for name in names]
        assert len(set(spoken)) == len(spoken), "a name with two truths cannot be graded"


def test_misspelling_changes_one_word_by_one_slip() -> None:
    dice = Dice(0, "test")
    for _ in range(300):
        wrong = misspell("red refrigerator 128", dice).split()
        assert (wrong[0], wrong[2]) == ("red", "128")
        assert abs(len(wrong[1]) - len("refrigerator")) <= 1
    assert misspell("tv", dice) == "tv"


def test_the_first_stage_prefers_rare_shared_words() -> None:
    lexicon = Lexicon(["red lamp", "red sofa", "red rug", "blue chair"])
    assert lexicon.search("red lamp", 10) == [0, 1, 2]
    assert lexicon.search("Lamp", 10) == [0]
    assert lexicon.search("unheard of", 10) == []
