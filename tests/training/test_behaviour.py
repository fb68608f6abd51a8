"""From a dirty log to labels: what is dropped is told, position leaks nowhere, time splits, and the truth comes back."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from edgerec.training.behaviour import BehaviourLabels, LabelRow, labels_from_events, write_behaviour_dataset
from edgerec.training.cleaning import CleaningReport, CleaningRules, Request, clean
from edgerec.training.data import load_dataset
from edgerec.training.simulate import simulate
from edgerec.training.validate import validate
from hypothesis import given
from hypothesis import strategies as st

from edgerec.errors import InputError
from edgerec.events import Action, Event, Impression

SHOP = ("a", "b", "c", "new")


def page(
    request_id: str = "r1", *, ts: float = 100, items: Sequence[str] = ("a", "b"), user_id: str = "u1", query: str = "lamp"
) -> Impression:
    places = tuple(range(1, len(items) + 1))
    return Impression(request_id, ts, user_id, query, tuple(items), places, tuple(1 / place for place in places))


def act(kind: str = "click", item_id: str = "b", request_id: str = "r1", *, ts: float = 110) -> Action:
    return Action(kind, request_id, item_id, ts)


def cleaned(*events: Event, rules: CleaningRules | None = None) -> tuple[list[Request], CleaningReport]:
    report = CleaningReport()
    placed = [(f"events.jsonl:{line}", event) for line, event in enumerate(events, 1)]
    return clean(placed, set(SHOP), rules or CleaningRules(), report), report


def write_log(folder: Path, events: Sequence[Event], *, raw: str = "") -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "corpus.jsonl").write_text("".join(json.dumps({"_id": item_id, "title": f"Title {item_id}"}) + "\n" for item_id in SHOP))
    (folder / "events.jsonl").write_text("".join(json.dumps(event.to_json()) + "\n" for event in events) + raw)
    return folder


def labels(rows: Sequence[LabelRow]) -> dict[tuple[str, str], int]:
    return {(row.request_id, row.item_id): row.label for row in rows}


def test_a_clean_log_loses_nothing() -> None:
    requests, report = cleaned(page(), act("click"), act("cart", ts=120), act("purchase", ts=130), page("r2", ts=200))
    assert [(request.page.request_id, dict(request.grades), request.last_ts) for request in requests] == [
        ("r1", {"b": 3}, 130),
        ("r2", {}, 200),
    ]
    assert report.dropped == {}
    assert report.read == {"impression": 2, "click": 1, "cart": 1, "purchase": 1}
    assert report.kept == {"requests": 2, "shown items": 4, "items acted on": 1}


@pytest.mark.parametrize(
    ("events", "reason", "where", "grades"),
    [
        ([page(), page(), act()], "impression sent twice", 2, [{"b": 1}]),
        ([page(), page(query="sofa"), act()], "impression of a request id that is taken", 2, [{"b": 1}]),
        ([page(), act(request_id="r9")], "action without its impression", 2, [{}]),
        ([page(), act(item_id="z")], "action on an item the shop does not know", 2, [{}]),
        ([page(), act(item_id="c")], "action on an item that was not shown", 2, [{}]),
        ([page(), act(ts=99)], "action before its impression", 2, [{}]),
        ([page(), act(ts=100 + 86401)], "action long after its impression", 2, [{}]),
        ([page(), act(), act(ts=111)], "action repeated", 3, [{"b": 1}]),
        ([page(query=" ")], "impression without a query", 1, []),
        ([page(items=())], "impression without a known item", 1, []),
        ([page(items=("z",))], "impression without a known item", 1, []),
        ([page(items=("z", "b")), act()], "shown item the shop does not know", 1, [{"b": 1}]),
    ],
)
def test_every_drop_has_a_reason_and_a_place(events: list[Event], reason: str, where: int, grades: list[dict[str, int]]) -> None:
    requests, report = cleaned(*events)
    assert [request.grades for request in requests] == grades
    assert report.dropped[reason] == 1
    assert report.examples[reason] == [f"events.jsonl:{where}"]
    assert f"dropped {reason}: 1 (e.g. events.jsonl:{where})" in report.to_text()
    assert json.loads(json.dumps(report.to_json()))["dropped"][reason] == 1


def test_items_lose_their_place_with_the_unknown_ones_and_nothing_else() -> None:
    [request], _ = cleaned(page(items=("z", "b", "y", "a")))
    assert (request.page.items, request.page.positions, request.page.propensities) == (("b", "a"), (2, 4), (1 / 2, 1 / 4))


def test_lines_out_of_order_are_joined_all_the_same_and_noted() -> None:
    shuffled, report = cleaned(act("cart", ts=120), page("r2", ts=200), page(), act())
    straight, _ = cleaned(page(), act(), act("cart", ts=120), page("r2", ts=200))
    assert shuffled == straight
    assert report.noted["lines out of order of time"] == 2
    assert report.dropped == {}


def test_a_user_with_too_many_searches_within_an_hour_is_a_bot() -> None:
    rules = CleaningRules(most_requests_an_hour=3)
    fast = [page(f"f{place}", ts=1000 + place, user_id="fast") for place in range(4)]
    slow = [page(f"s{place}", ts=1000 + 1300 * place, user_id="slow") for place in range(4)]
    nobody = [page(f"n{place}", ts=1000 + place, user_id="") for place in range(9)]
    requests, report = cleaned(*fast, *slow, *nobody, rules=rules)
    assert {request.page.user_id for request in requests} == {"slow", ""}
    assert report.dropped == {"impression of a bot: too many searches an hour": 4}


def test_a_user_who_acts_on_nearly_everything_is_a_bot() -> None:
    keen = [page(f"k{place}", user_id="keen") for place in range(5)]
    all_of_it = [act(item_id=item_id, request_id=f"k{place}") for place in range(5) for item_id in "ab"]
    requests, report = cleaned(*keen, *all_of_it)
    assert requests == []
    assert report.dropped == {"impression of a bot: acts on nearly all it is shown": 5}
    assert len(cleaned(*keen[:4], *all_of_it[:8])[0]) == 4, "four pages are too few to say"


@pytest.mark.parametrize("wrong", [{"most_requests_an_hour": 0}, {"most_acted_on": 0.0}, {"least_pages": 0}, {"most_delay_s": 0.0}])
def test_rules_that_make_no_sense_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(InputError):
        CleaningRules(**wrong)


def test_labels_are_the_strongest_action_and_weights_the_inverse_propensity(tmp_path: Path) -> None:
    events = [
        page(items=("a", "b", "c", "new")),
        act("click"),
        act("cart", ts=120),
        act("click", "new", ts=130),
        act("purchase", "a", ts=140),
    ]
    found = labels_from_events(write_log(tmp_path / "shop", events), clip=3.0, dev_share=0.0)
    assert labels(found.train) == {("r1", "a"): 3, ("r1", "b"): 2, ("r1", "c"): 0, ("r1", "new"): 1}
    assert [row.weight for row in found.train] == [1.0, 2.0, 1.0, 3.0]
    assert found.report.noted["weights clipped"] == 1
    assert (found.dev, found.rows) == ((), found.train)


def test_propensities_are_taken_from_eta_where_the_log_has_none(tmp_path: Path) -> None:
    folder = write_log(tmp_path / "shop", [replace(page(items=("a", "b", "c")), propensities=None), act("click", "c")])
    found = labels_from_events(folder, eta=2.0, dev_share=0.0)
    assert {row.item_id: row.weight for row in found.train} == {"a": 1.0, "b": 1.0, "c": 9.0}
    assert found.report.noted["requests without propensities"] == 1


def test_cold_items_and_unknown_users_are_kept(tmp_path: Path) -> None:
    found = labels_from_events(write_log(tmp_path / "shop", [page(items=("new",), user_id="")]), dev_share=0.0)
    assert [(row.item_id, row.user_id, row.label) for row in found.train] == [("new", "", 0)]


def test_no_record_has_a_position_and_none_can_be_read_off_their_order(tmp_path: Path) -> None:
    names = {field.name for field in fields(LabelRow)}
    assert names == {"request_id", "query", "item_id", "user_id", "label", "weight", "ts"}
    first = page(items=("c", "a", "b"))
    other_positions = replace(first, positions=(7, 3, 9))
    other_order = replace(first, items=("b", "c", "a"), positions=(3, 1, 2), propensities=(1 / 3, 1.0, 1 / 2))
    results = [
        labels_from_events(write_log(tmp_path / f"{n}", [one, act()])).train for n, one in enumerate((first, other_positions, other_order))
    ]
    assert results[0] == results[1] == results[2]
    assert {row.weight for row in results[0] if row.label == 0} == {1.0}, "an item without action must not tell its propensity"


def test_the_split_is_by_time_and_no_request_is_on_both_sides(tmp_path: Path) -> None:
    events: list[Event] = [page(f"r{place}", ts=100 * place) for place in range(10)]
    events += [act(request_id="r1", ts=150), act(request_id="r7", ts=850), act(request_id="r9", ts=950)]
    random.Random(0).shuffle(events)
    found = labels_from_events(write_log(tmp_path / "shop", events), dev_share=0.2)
    assert found.split_ts == 800
    assert {row.request_id for row in found.train} == {f"r{place}" for place in range(7)}
    assert {row.request_id for row in found.dev} == {"r8", "r9"}
    assert found.report.dropped == {"request with actions on both sides of the split": 1}


def test_requests_of_one_moment_are_on_one_side(tmp_path: Path) -> None:
    same = labels_from_events(write_log(tmp_path / "same", [page(f"r{place}") for place in range(10)]), dev_share=0.5)
    assert (len(same.dev), same.split_ts) == (0, float("inf"))
    tied = [page(f"r{place}", ts=100 if place < 2 else 200) for place in range(10)]
    found = labels_from_events(write_log(tmp_path / "tied", tied), dev_share=0.2)
    assert (len(found.train), len(found.dev)) == (4, 16)


@given(data=st.data())
def test_train_is_before_dev_whatever_the_log(data: st.DataObject, tmp_path_factory: pytest.TempPathFactory) -> None:
    times = data.draw(st.lists(st.integers(0, 30), min_size=1, max_size=12))
    events: list[Event] = [page(f"r{place}", ts=ts) for place, ts in enumerate(times)]
    for place, ts in enumerate(times):
        if data.draw(st.booleans()):
            events.append(act(item_id=data.draw(st.sampled_from("ab")), request_id=f"r{place}", ts=ts + data.draw(st.integers(-2, 9))))
    folder = write_log(tmp_path_factory.mktemp("log") / "shop", data.draw(st.permutations(events)))
    try:
        found: BehaviourLabels = labels_from_events(folder, dev_share=data.draw(st.floats(0, 0.9)))
    except InputError:
        return
    assert all(row.ts < found.split_ts for row in found.train)
    assert all(row.ts >= found.split_ts for row in found.dev)
    assert not {row.request_id for row in found.train} & {row.request_id for row in found.dev}
    assert found.rows
    assert all(1 <= row.weight <= 10 and 0 <= row.label <= 3 for row in found.rows)


def test_torn_and_broken_lines_are_dropped_and_told(tmp_path: Path) -> None:
    folder = write_log(tmp_path / "shop", [page(), act()], raw='{"type": "click"}\n{"type": "imp')
    found = labels_from_events(folder, dev_share=0.0)
    assert len(found.train) == 2
    assert found.report.examples["line that cannot be read"] == ["events.jsonl:3", "events.jsonl:4"]


def test_what_cannot_be_used_is_refused(tmp_path: Path) -> None:
    folder = write_log(tmp_path / "shop", [page()])
    for wrong in ({"clip": 0.5}, {"eta": -1.0}, {"dev_share": 1.0}, {"clip": float("nan")}):
        with pytest.raises(InputError, match="expected clip from 1"):
            labels_from_events(folder, **wrong)
    with pytest.raises(InputError, match="prior_looks"):
        write_behaviour_dataset(folder, tmp_path / "out", prior_looks=-1.0)
    with pytest.raises(InputError, match="no request is left after cleaning"):
        labels_from_events(write_log(tmp_path / "empty", [act()]))
    (folder / "events.jsonl").unlink()
    with pytest.raises(InputError, match=r"neither events\.jsonl"):
        labels_from_events(folder)


def test_a_dataset_of_behaviour_has_the_worth_of_a_look(tmp_path: Path) -> None:
    events: list[Event] = [page(f"r{place}", ts=100 + place) for place in range(4)]
    events += [act("click", "b", request_id="r0", ts=101), act("purchase", "a", request_id="r1", ts=102)]
    folder = write_log(tmp_path / "shop", events)
    report = write_behaviour_dataset(folder, tmp_path / "out", dev_share=0.0, prior_looks=0.0)
    data = load_dataset(tmp_path / "out")
    [(query_id, grades)] = data.qrels["train"].items()
    assert data.queries == {query_id: "lamp"}
    # a was looked at 4 times and earned 3; b was looked at 4 * 1/2 times and earned 1.
    assert grades == {"a": pytest.approx(0.75), "b": pytest.approx(0.5)}
    assert (data.grade_min, data.grade_max, set(data.items)) == (0.0, 3.0, set(SHOP))
    assert report.kept["requests"] == 4
    write_behaviour_dataset(folder, tmp_path / "drawn", dev_share=0.0, prior_looks=1e9)
    drawn = load_dataset(tmp_path / "drawn").qrels["train"][query_id]
    assert drawn == {"a": pytest.approx(4 / 6, abs=1e-5), "b": pytest.approx(4 / 6, abs=1e-5)}


def test_the_truth_of_the_generated_shop_comes_back_from_its_log(tmp_path: Path) -> None:
    shop = simulate(tmp_path / "shop", items=200, queries=40, users=60, events=15_000, seed=5)
    write_behaviour_dataset(shop, tmp_path / "out")
    assert validate(tmp_path / "out").errors == ()
    truth, found = load_dataset(shop), load_dataset(tmp_path / "out")
    assert {"train", "dev"} == set(found.qrels)
    true_ids = {text: query_id for query_id, text in truth.queries.items()}
    by_grade: dict[float, list[float]] = {}
    for query_id, grades in found.qrels["train"].items():
        for item_id, worth in grades.items():
            by_grade.setdefault(truth.qrels["train"][true_ids[found.queries[query_id]]][item_id], []).append(worth)
    means = [float(np.mean(by_grade[grade])) for grade in (0.0, 1.0, 2.0, 3.0)]
    assert means == sorted(means)
    assert means[3] > 3 * means[0]


def test_the_written_folder_is_all_or_nothing(tmp_path: Path) -> None:
    folder = write_log(tmp_path / "shop", [page()])
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine").write_text("mine")
    with pytest.raises(InputError, match="not empty"):
        write_behaviour_dataset(folder, tmp_path / "out")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "shop"]
