"""Deadlines: what was scored in time comes first, the rest keeps the first stage's order, and time is never an error."""

from __future__ import annotations

import math
from types import SimpleNamespace

import numpy as np
import pytest
from fixtures_ranker import IDS, ITEMS, make_shop

from edgerec import Item, Ranker, ranker_batches, ranker_deadline
from edgerec.builder import build_engine
from edgerec.errors import InputError

LONG = 1e9


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return make_shop(tmp_path_factory.mktemp("deadline"))


@pytest.fixture(scope="module", params=["ort", "native", "reference"])
def ranker(folder, request):
    bundle = folder / f"bundle-{request.param}"
    build_engine(folder / "export", bundle, backend=request.param)
    with Ranker.open(bundle, catalog=folder / "catalog", threads=2) as opened:
        yield opened


class SlowEngine:
    """Stands before a real engine, on a clock that only it moves: a call takes `cost` nanoseconds for each row."""

    backend = precision = "slow"

    def __init__(self, engine, monkeypatch, cost=1_000_000):
        self.now, self._engine, self._cost = 10**9, engine, cost
        monkeypatch.setattr(ranker_deadline, "monotonic_ns", lambda: self.now)

    def run(self, batch):
        self.now += batch.size * self._cost
        return self._engine.run(batch)

    def close(self):
        pass


@pytest.fixture
def slow(folder, monkeypatch):
    """A ranker whose engine takes 1 ms a row, in batches of at most 4 rows, one at a time."""
    with Ranker.open(folder / "bundle-ort", catalog=folder / "catalog", threads=1) as real:
        monkeypatch.setattr(ranker_batches, "BATCH_ROWS", 4)
        real._engine = SlowEngine(real._engine, monkeypatch)
        yield real


def assert_same(a, b):
    assert (a.ids, a.skipped, a.degraded, a.reason) == (b.ids, b.skipped, b.degraded, b.reason)
    np.testing.assert_array_equal(a.scores, b.scores)


@pytest.mark.parametrize("candidates", [IDS, [*ITEMS[:40], *IDS[40:90]], []], ids=["ids", "mixed", "none"])
def test_enough_time_changes_nothing(ranker, candidates):
    for deadline_ms in (LONG, 10**9, np.float32(1e9), 1e30):
        found = ranker.rank("red desk lamp", candidates, deadline_ms=deadline_ms)
        assert_same(found, ranker.rank("red desk lamp", candidates))
        assert (found.degraded, found.reason) == (False, "")


@pytest.mark.parametrize("top_k", [1, 10, 300, 1000])
@pytest.mark.parametrize("deadline_ms", [0, 0.0, np.int64(0), 1e-9])
def test_without_time_the_first_stages_order_stands(ranker, top_k, deadline_ms):
    found = ranker.rank("red desk lamp", IDS, top_k=top_k, deadline_ms=deadline_ms)
    assert found.ids == tuple(IDS[:top_k])
    assert (found.scores.dtype, found.scores.shape) == (np.float32, (len(found),))
    assert np.isnan(found.scores).all()
    assert found.degraded
    assert found.reason.startswith("300 of 300 candidates were not scored within ")


def test_what_cannot_be_ranked_is_skipped_as_ever(ranker):
    candidates = ["i3", "nowhere", Item("new", "red lamp"), "i3", "i1"]
    found = ranker.rank("red lamp", candidates, deadline_ms=0)
    assert found.ids == ("i3", "new", "i1")
    assert found.skipped == ranker.rank("red lamp", candidates).skipped == (("nowhere", "unknown id"), ("i3", "duplicate"))
    assert found.reason == "3 of 3 candidates were not scored within 0 ms"


def test_no_candidates_are_never_late(ranker):
    found = ranker.rank("red lamp", ["nowhere"], deadline_ms=0)
    assert (found.ids, found.degraded, found.reason) == ((), False, "")


def test_any_time_gives_all_candidates_the_scored_ones_first_with_their_scores(ranker):
    exact = dict(zip(IDS, ranker.score("red desk lamp", IDS).tolist(), strict=True))
    for deadline_ms in (0.05, 0.2, 0.5, 1, 2, 5, 10):
        found = ranker.rank("red desk lamp", IDS, top_k=300, deadline_ms=deadline_ms)
        late = np.isnan(found.scores)
        count = int(late.sum())
        assert sorted(found.ids) == sorted(IDS)
        assert not late[: 300 - count].any()
        assert [exact[i] for i in found.ids[: 300 - count]] == pytest.approx(found.scores[: 300 - count].tolist(), abs=1e-5)
        assert list(found.ids[300 - count :]) == sorted(found.ids[300 - count :], key=IDS.index)
        assert (np.diff(found.scores[: 300 - count]) <= 0).all()
        assert found.degraded == (count > 0)
        assert found.reason.startswith(f"{count} of 300 ") == (count > 0)


def test_a_slow_engine_scores_what_it_can(slow):
    candidates = IDS[:40]
    found = slow.rank("red lamp", candidates, top_k=40, deadline_ms=10)
    assert int(np.isnan(found.scores).sum()) == 28  # batches begin at 0, 4 and 8 ms
    assert found.reason == "28 of 40 candidates were not scored within 10 ms"
    assert len(slow.rank("red lamp", candidates, top_k=3, deadline_ms=10)) == 3
    best = slow.rank("red lamp", candidates, top_k=3, deadline_ms=10)
    assert (best.ids, best.degraded, np.isnan(best.scores).any()) == (found.ids[:3], True, False)


def test_more_time_never_scores_less(slow):
    scored = [int((~np.isnan(slow.rank("red lamp", IDS[:60], top_k=60, deadline_ms=ms).scores)).sum()) for ms in range(0, 70, 3)]
    assert scored == sorted(scored)
    assert (scored[0], scored[-1]) == (0, 60)
    assert len(set(scored)) > 10


def test_lanes_begin_no_batch_after_the_deadline(folder, monkeypatch):
    with Ranker.open(folder / "bundle-ort", catalog=folder / "catalog", threads=3) as lanes:
        lanes._engine = engine = SlowEngine(lanes._engine, monkeypatch)
        begun = []
        run = engine.run
        monkeypatch.setattr(engine, "run", lambda batch: (begun.append(engine.now), run(batch))[1])
        until = engine.now + 50_000_000
        found = lanes.rank("red lamp", IDS, top_k=300, deadline_ms=50)
        assert begun
        assert max(begun) < until
        assert 0 < int(np.isnan(found.scores).sum()) < 300


def test_the_time_is_counted_from_the_call_not_from_the_engine(slow):
    """Looking up, encoding and the batches before all count."""

    def late():
        yield from IDS[:20]
        slow._engine.now += 5_000_000

    assert slow.rank("red lamp", late(), deadline_ms=5).ids == tuple(IDS[:10])
    assert not slow.rank("red lamp", late(), deadline_ms=5 + 20).degraded


def test_nan_by_arithmetic_is_still_skipped_and_not_called_late(slow, monkeypatch):
    monkeypatch.setattr(slow, "_engine", SimpleNamespace(run=lambda batch: np.full(batch.size, np.nan, np.float32), close=lambda: None))
    found = slow.rank("red lamp", ["i1", "i2"], deadline_ms=LONG)
    assert (found.ids, found.degraded) == ((), False)
    assert found.skipped == (("i1", "score is NaN"), ("i2", "score is NaN"))


@pytest.mark.parametrize(
    ("deadline_ms", "message"),
    [
        (-1, "deadline_ms is -1"),
        (-1e-9, "deadline_ms is -1e-09"),
        (math.nan, "deadline_ms is nan"),
        (math.inf, "deadline_ms is inf"),
        (True, "got bool"),
        (False, "got bool"),
        (np.True_, "got bool"),
        ("5", "got str"),
        ([5], "got list"),
    ],
    ids=str,
)
def test_a_wrong_deadline_is_an_input_error(slow, deadline_ms, message):
    with pytest.raises(InputError, match=message):
        slow.rank("red lamp", IDS, deadline_ms=deadline_ms)
