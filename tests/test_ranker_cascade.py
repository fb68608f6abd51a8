"""Cascade: the best by the first student come again before the second, and one order and one scale come out, against a plain oracle."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from fixtures_export import WORDS, make_export
from fixtures_ranker import IDS, ITEMS, USER
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

import edgerec
from edgerec import Cascade, Item, Ranker, ranker_deadline
from edgerec.builder import build_engine
from edgerec.catalog import build_catalog
from edgerec.errors import BundleError, InputError
from edgerec.ranker_candidates import Candidates
from edgerec.ranker_cascade import STEP, on_scale

LOW, HIGH = float(np.float32(-3e38)), float(np.float32(3e38))
floats = st.floats(-100, 100, width=32) | st.sampled_from([0.0, 1.0, -1.0, math.inf, -math.inf])
scores_of_a_student = st.lists(floats | st.just(math.nan), min_size=12, max_size=12)


class Stub:
    """A ranker whose scores are given by id, on a clock that only it moves: a candidate takes a millisecond, in the order they come."""

    now = 10**9

    def __init__(self, scores: Mapping[str, float], version: str = "stub") -> None:
        self.scores, self.catalog = scores, SimpleNamespace(find=self._find)
        self.manifest, self.note = SimpleNamespace(model_version=version), ""
        self.asked: list[str] = []

    def newest(self) -> SimpleNamespace:
        return self.catalog

    def _find(self, ids: Sequence[str]) -> NDArray[np.int64]:
        return np.array([0 if name in self.scores else -1 for name in ids], np.int64)

    def score_found(
        self, query: str, found: Candidates, user: Any, context: Any, clock: Any, deadline: Any
    ) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
        del query, user, context
        scores, done = np.full(len(found.ids), np.nan, np.float32), np.zeros(len(found.ids), np.bool_)
        rows = range(len(found.ids)) if found.row_positions is None else found.row_positions.tolist()
        for place in sorted([*rows, *found.item_positions.tolist()]):
            if deadline.ns and Stub.now >= deadline.ns:
                break
            Stub.now += 10**6
            scores[place], done[place] = self.scores.get(found.ids[place], 0.5), True
            self.asked.append(found.ids[place])
        clock.lap("score")
        return scores, done


def stubs(first: Sequence[float], second: Sequence[float], n: int) -> Cascade:
    names = [f"c{i}" for i in range(len(first))]
    one, two = (Stub(dict(zip(names, scores, strict=True)), version) for scores, version in ((first, "one"), (second, "two")))
    return Cascade(one, two, n=n)  # type: ignore[arg-type]


@pytest.mark.parametrize("failed", ["first", "second"])
def test_an_engine_that_stands_in_for_another_is_never_silent(failed: str) -> None:
    cascade = stubs([3, 2, 1], [1, 2, 3], n=2)
    assert not cascade.rank("q", ["c0", "c1", "c2"]).degraded
    getattr(cascade, failed).note = "the CPU engine has taken over"
    found = cascade.rank("q", ["c0", "c1", "c2"])
    assert (found.degraded, found.reason) == (True, f"{failed} model: the CPU engine has taken over")
    assert found.ids == ("c1", "c0", "c2")


@given(
    first=scores_of_a_student, second=scores_of_a_student, n=st.integers(1, 14), top_k=st.integers(1, 14), order=st.permutations(range(12))
)
def test_the_order_is_that_of_the_plain_oracle(first: list[float], second: list[float], n: int, top_k: int, order: list[int]) -> None:
    found = stubs(first, second, n).rank("q", [f"c{i}" for i in order], top_k=top_k)
    ranked = sorted((p for p in range(12) if not math.isnan(first[order[p]])), key=lambda p: (-first[order[p]], p))
    head, tail = ranked[:n], ranked[n:]
    again = sorted((p for p in head if not math.isnan(second[order[p]])), key=lambda p: (-second[order[p]], p))
    assert found.ids == tuple(f"c{order[p]}" for p in (again + tail)[:top_k])
    np.testing.assert_array_equal(found.scores[: len(again)], np.float32([second[order[p]] for p in again[:top_k]]))
    gone = sorted({*range(12)} - {*again, *tail})
    assert found.skipped == tuple((f"c{order[p]}", "score is NaN") for p in gone)
    assert (found.scores[:-1] >= found.scores[1:]).all()
    assert not np.isnan(found.scores).any()
    assert (found.degraded, found.reason, found.model_version) == (False, "", "one+two")


@given(
    x=st.lists(floats, min_size=0, max_size=8),
    y=st.lists(floats, min_size=8, max_size=8),
    rest=st.lists(st.floats(LOW, HIGH, width=32) | st.sampled_from([math.inf, -math.inf]), max_size=8),
)
def test_the_scale_never_turns_an_order_round_nor_passes_the_head(x: list[float], y: list[float], rest: list[float]) -> None:
    ordered = np.array(sorted(rest, reverse=True), np.float32)
    head = np.array(y[: len(x)], np.float32)
    moved = on_scale(np.array(x, np.float32), head, ordered)
    assert moved.dtype == np.float32
    assert moved.shape == ordered.shape
    assert not np.isnan(moved).any()
    assert (moved[:-1] >= moved[1:]).all()
    if len(x):
        assert (moved <= head.min()).all()
    else:
        np.testing.assert_array_equal(moved, ordered)


@given(slope=st.floats(0.1, 5), shift=st.floats(-5, 5), seed=st.integers(0, 99))
def test_students_that_differ_by_a_line_come_to_one_scale(slope: float, shift: float, seed: int) -> None:
    x = np.sort(np.random.default_rng(seed).normal(size=9).astype(np.float32))[::-1]
    y = (slope * x.astype(np.float64) + shift).astype(np.float32)
    np.testing.assert_allclose(on_scale(x[:4], y[:4], x[4:]), y[4:], atol=1e-4)


@pytest.mark.parametrize(
    ("x", "y", "rest", "moved"),
    [
        ([2, 1], [30, 10], [0.5, 0], [0, -10]),  # 20 x - 10, at 0.5 already below 10
        ([2, 1], [30, 10], [1, 1], [10, 10]),
        ([1, 2], [5, 3], [0, -1], [3, 3]),  # the students disagree: a slope of 0, the mean 4 moved down to 3
        ([1, 1], [5, 3], [0, -1], [3, 2]),  # nothing to fit: differences stay
        ([1], [5], [0, -1], [4, 3]),
        ([1, 2, 3], [9, 0, 9], [1, -1], [0, 0]),
        ([math.inf, 1], [7, 5], [0, -math.inf], [4, -math.inf]),
        ([2, 1], [1, -math.inf], [0, 0], [-math.inf, -math.inf]),
    ],
)
def test_the_line_by_hand(x: list[float], y: list[float], rest: list[float], moved: list[float]) -> None:
    np.testing.assert_allclose(on_scale(np.float32(x), np.float32(y), np.float32(rest)), np.float32(moved), atol=1e-5)


def test_the_second_student_sees_the_best_n_and_n_may_be_given_for_a_call() -> None:
    cascade = stubs([5, 1, 4, 2, 3], [1, 2, 3, 4, 5], 2)
    names = [f"c{i}" for i in range(5)]
    assert cascade.rank("q", names).ids == ("c2", "c0", "c4", "c3", "c1")
    assert cascade.second.asked == ["c0", "c2"]  # type: ignore[attr-defined]
    assert cascade.rank("q", names, n=5).ids == ("c4", "c3", "c2", "c1", "c0")
    assert cascade.rank("q", names, n=1).ids == ("c0", "c2", "c4", "c3", "c1")


def test_unknown_and_repeated_candidates_are_skipped_as_ever() -> None:
    cascade = stubs([1, 2, 3], [3, 2, 1], 2)
    found = cascade.rank("q", ["c0", "nowhere", "c2", Item("new", "lamp"), "c2", "c1"])
    assert found.ids == ("c1", "c2", "c0", "new")
    assert found.skipped == (("nowhere", "unknown id"), ("c2", "duplicate"))
    assert cascade.rank("q", []).ids == ()
    assert cascade.rank("q", ["nowhere"]).skipped == (("nowhere", "unknown id"),)


def test_a_candidate_the_second_catalogue_lacks_keeps_its_place_after_the_head_and_it_is_told() -> None:
    cascade = stubs([5, 4, 3, 2], [1, 2, 3, 4], 3)
    del cascade.second.scores["c0"]  # type: ignore[attr-defined]
    found = cascade.rank("q", ["c0", "c1", "c2", "c3"])
    assert found.ids == ("c2", "c1", "c0", "c3")
    assert (found.degraded, found.reason) == (True, "1 of the 3 best are not in the second model's catalogue")
    assert (found.scores[:-1] >= found.scores[1:]).all()


@pytest.fixture
def slow(monkeypatch: pytest.MonkeyPatch) -> Cascade:
    """100 candidates, a millisecond each for either student; the second one turns the order round."""
    monkeypatch.setattr(ranker_deadline, "monotonic_ns", lambda: Stub.now)
    return stubs([float(-i) for i in range(100)], [float(i) for i in range(100)], 60)


NAMES = [f"c{i}" for i in range(100)]


@pytest.mark.parametrize("deadline_ms", [0, 30, 100])
def test_without_time_for_the_second_student_the_first_ones_order_and_scores_stand(slow: Cascade, deadline_ms: int) -> None:
    found = slow.rank("q", NAMES, top_k=100, deadline_ms=deadline_ms)
    assert found.ids == tuple(NAMES)
    np.testing.assert_array_equal(found.scores[:deadline_ms], -np.arange(deadline_ms))
    assert np.isnan(found.scores[deadline_ms:]).all()
    late = f"{100 - deadline_ms} of 100 candidates were not scored within {deadline_ms} ms"
    second = f"the second model scored 0 of the {min(60, deadline_ms)} best within {deadline_ms} ms"
    assert found.reason == "; ".join([late] * (deadline_ms < 100) + [second] * (deadline_ms > 0))
    assert found.degraded


def test_with_some_time_the_second_student_takes_the_best_first(slow: Cascade) -> None:
    found = slow.rank("q", NAMES, top_k=100, deadline_ms=100 + STEP + 3)
    scored = STEP + 3
    assert found.ids == (*reversed(NAMES[:scored]), *NAMES[scored:])
    assert found.reason == f"the second model scored {scored} of the 60 best within {100 + STEP + 3} ms"
    assert (found.scores[:-1] >= found.scores[1:]).all()


def test_enough_time_changes_nothing(slow: Cascade) -> None:
    one, other = slow.rank("q", NAMES, top_k=100), slow.rank("q", NAMES, top_k=100, deadline_ms=160)
    assert (one.ids, one.reason, one.degraded) == (other.ids, other.reason, other.degraded) == (other.ids, "", False)
    np.testing.assert_array_equal(one.scores, other.scores)
    assert slow.rank("q", NAMES, top_k=100, deadline_ms=159).degraded


@pytest.mark.parametrize(
    ("arguments", "message"),
    [({"n": 0}, "n is 0"), ({"n": 1.5}, "n must be an int"), ({"top_k": 0}, "top_k is 0"), ({"deadline_ms": -1}, "deadline_ms is -1")],
)
def test_a_wrong_argument_is_an_input_error(slow: Cascade, arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        slow.rank("q", NAMES, **arguments)
    with pytest.raises(InputError, match="put it in a list"):
        slow.rank("q", "c1")


# ------------------------------------------------------------------------------------------------------- real students


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two students of other weights and sizes, one text layout, and so one catalogue of 10,000 items."""
    root = tmp_path_factory.mktemp("cascade")
    make_export(root / "small", seed=1, layers=1)
    make_export(root / "large", seed=2)
    for name in ("small", "large"):
        build_engine(root / name, root / f"{name}-bundle", backend="native")
    rng = np.random.default_rng(2)
    more = [Item(f"m{i}", " ".join(rng.choice(WORDS, rng.integers(1, 8))), price=float(i % 50)) for i in range(9700)]
    build_catalog([*ITEMS, *more], root / "small-bundle", root / "catalog")
    return root


@pytest.fixture(scope="module")
def cascade(folder: Path) -> Any:
    catalog = edgerec.Catalog.open(folder / "catalog")
    first, second = (Ranker.open(folder / f"{name}-bundle", catalog=catalog, threads=1) for name in ("small", "large"))
    with Cascade(first, second, n=50) as opened:
        yield opened


@pytest.mark.parametrize("count", [40, 300, 10_000])
def test_real_students_give_the_oracles_order(cascade: Cascade, count: int) -> None:
    assert cascade.first.catalog is not None
    ids = cascade.first.catalog.ids()[:count]
    first, second = (ranker.score("red desk lamp", ids, user=USER) for ranker in (cascade.first, cascade.second))
    head = sorted(range(count), key=lambda i: (-first[i], i))
    expected = sorted(head[:50], key=lambda i: (-second[i], i)) + head[50:]
    found = cascade.rank("red desk lamp", ids, top_k=count, user=USER)
    assert found.ids == tuple(ids[i] for i in expected)
    np.testing.assert_array_equal(found.scores[:50], second[expected[:50]])
    assert (found.scores[:-1] >= found.scores[1:]).all()
    assert found.ids[:7] == cascade.rank("red desk lamp", ids, top_k=7, user=USER).ids
    assert not found.degraded


def test_whole_items_ids_and_mappings_may_be_mixed(cascade: Cascade) -> None:
    mixed: list[Any] = [
        [item.id, item, {"id": item.id, "title": item.title, "brand": item.brand, "price": item.price}][i % 3]
        for i, item in enumerate(ITEMS)
    ]
    plain, found = (cascade.rank("red lamp", listed, top_k=100) for listed in (IDS, mixed))
    np.testing.assert_allclose(found.scores, plain.scores, atol=1e-5)
    assert mixed[0] == ITEMS[0].id


def test_timings_say_what_the_second_student_took(cascade: Cascade) -> None:
    timings = cascade.rank("red lamp", IDS).timings_us
    assert list(timings) == ["lookup", "encode", "score", "select", "total", "second"]
    assert sum(timings[stage] for stage in ("lookup", "encode", "score", "select")) == pytest.approx(timings["total"])
    assert 0 < timings["second"] < timings["total"]


def test_threads_get_the_answers_of_one(cascade: Cascade) -> None:
    queries = ["red lamp", "blue sofa", "", "desk"]
    alone = [cascade.rank(query, IDS, top_k=80) for query in queries]
    with ThreadPoolExecutor(8) as pool:
        for one, many in itertools.product([alone], [list(pool.map(lambda q: cascade.rank(q, IDS, top_k=80), queries)) for _ in range(3)]):
            assert [found.ids for found in many] == [found.ids for found in one]


def test_a_catalogue_on_one_side_alone_is_refused(folder: Path) -> None:
    with Ranker.open(folder / "small-bundle", catalog=folder / "catalog") as one, Ranker.open(folder / "large-bundle") as other:
        for pair in ((one, other), (other, one)):
            with pytest.raises(InputError, match="has no catalogue"):
                Cascade(*pair)
        with pytest.raises(InputError, match="n is 0"):
            Cascade(one, one, n=0)


def test_another_text_layout_needs_another_catalogue(folder: Path, tmp_path: Path) -> None:
    make_export(tmp_path / "other", seed=3, features=False)
    build_engine(tmp_path / "other", tmp_path / "bundle", backend="native")
    with pytest.raises(BundleError, match="content_id"):
        Ranker.open(tmp_path / "bundle", catalog=folder / "catalog")
    build_catalog(ITEMS, tmp_path / "bundle", tmp_path / "catalog")
    first = Ranker.open(folder / "small-bundle", catalog=folder / "catalog")
    with Cascade(first, Ranker.open(tmp_path / "bundle", catalog=tmp_path / "catalog"), n=10) as cascade:
        found = cascade.rank("red lamp", IDS, top_k=300)
        assert sorted(found.ids) == sorted(IDS)
        assert not found.degraded
