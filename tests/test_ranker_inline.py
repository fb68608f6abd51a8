"""The cache of whole items' states: what it gives is what the engine would give, in bounded memory, from any number of threads."""

from __future__ import annotations

import itertools
import tracemalloc
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from edgerec import Ranker, ranker_deadline, ranker_inline
from edgerec.errors import EngineError, InputError
from edgerec.ranker_deadline import Deadline
from edgerec.ranker_inline import ENTRY_BYTES, InlineStates, StateCache
from edgerec.ranker_lanes import Lanes
from edgerec.states import ItemStates

WIDTH = 8
Items = Sequence[Sequence[int]]


def state(item: Sequence[int]) -> NDArray[np.float64]:
    """[len + 1, WIDTH]: what the engine below makes of one item, the suffix included."""
    return np.outer([*item, -1], np.arange(1, WIDTH + 1)) + sum(item)


class Engine:
    """Makes float32 states; in company they are a little different, as they are where sums are rounded."""

    def __init__(self, error: float = 1.0) -> None:
        self.calls: list[list[tuple[int, ...]]] = []
        self._error = error

    def encode_ragged(self, tokens: NDArray[np.int32], offsets: NDArray[np.int64]) -> ItemStates:
        items = [tuple(tokens[a:b].tolist()) for a, b in itertools.pairwise(offsets.tolist())]
        self.calls.append(items)
        values = np.concatenate([state(item) for item in items]) + self._error * (len(items) - 1)
        return ItemStates(
            values.astype(np.float32), values[:, :2].astype(np.float32), offsets + np.arange(len(offsets), dtype=offsets.dtype)
        )


def make(limit: int, *, engine: Engine | None = None, threads: int = 1, together: bool = False) -> InlineStates:
    return InlineStates(engine or Engine(), Lanes(threads), limit_bytes=limit, together=together)  # type: ignore[arg-type]


def ask(inline: InlineStates, items: Items, deadline: Deadline | None = None) -> tuple[ItemStates, NDArray[np.bool_]]:
    tokens = np.array([token for item in items for token in item], np.int32)
    return inline.encode(tokens, np.r_[0, np.cumsum([len(item) for item in items])].astype(np.int64), deadline or Deadline())


def assert_right(found: ItemStates, items: Items) -> None:
    for item, start, end in zip(items, found.offsets[:-1], found.offsets[1:], strict=True):
        np.testing.assert_array_equal(found.values[start:end], state(item))
        np.testing.assert_array_equal(found.scales[start:end], state(item)[:, :2])


def cost(item: Sequence[int]) -> int:
    return 4 * len(item) + (len(item) + 1) * (WIDTH + 2) * 4 + ENTRY_BYTES


some_items = st.lists(st.lists(st.integers(0, 3), max_size=4), min_size=1, max_size=8)


@given(requests=st.lists(some_items, min_size=1, max_size=6), limit=st.integers(0, 6000))
def test_any_requests_get_what_the_engine_gives_each_item_alone(requests: list[Items], limit: int) -> None:
    inline = make(limit)
    for items in requests:
        found, done = ask(inline, items)
        assert done.all()
        assert_right(found, items)
        assert inline.cache.size_bytes <= limit


@given(requests=st.lists(some_items, max_size=8), limit=st.integers(0, 6000))
def test_the_least_recently_used_go_first(requests: list[Items], limit: int) -> None:
    engine = Engine()
    inline, kept = make(limit, engine=engine), list[tuple[int, ...]]()
    for items in requests:
        engine.calls.clear()
        ask(inline, items)
        unique = list(dict.fromkeys(map(tuple, items)))
        missing = [item for item in unique if item not in kept]
        assert engine.calls == [[item] for item in missing]
        kept = [item for item in kept if item not in unique] + [item for item in unique if item in kept]
        for item in missing:
            if cost(item) <= limit:
                kept.append(item)
                while sum(map(cost, kept)) > limit:
                    kept.pop(0)
        assert inline.cache.size_bytes == sum(map(cost, kept))
        assert len(inline.cache) == len(kept)


def test_without_a_cache_every_request_encodes_its_items_once() -> None:
    engine = Engine()
    inline = make(0, engine=engine)
    for _ in range(2):
        ask(inline, [[1], [2], [1]])
    assert engine.calls == [[(1,)], [(2,)]] * 2


def test_items_go_together_where_company_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ranker_inline, "TOGETHER", 2)
    engine, items = Engine(error=0.0), [[1], [2, 2], [], [3]]
    inline = make(10**6, engine=engine, together=True)
    for _ in range(2):
        assert_right(ask(inline, items)[0], items)
    assert engine.calls == [[(1,), (2, 2)], [(), (3,)]]


def test_an_entry_cannot_be_written_to() -> None:
    inline = make(10**6)
    ask(inline, [[1, 2]])
    ((values, scales),) = inline.cache.find([np.array([1, 2], np.int32).tobytes()]).values()
    for array in (values, scales):
        assert array.base is None
        with pytest.raises(ValueError, match="read-only"):
            array[0] = 0
    found, _ = ask(inline, [[1, 2]])
    found.values[:] = 0  # the caller's own
    assert_right(ask(inline, [[1, 2]])[0], [[1, 2]])


def test_what_is_kept_takes_no_more_memory_than_the_limit() -> None:
    limit = 200_000
    tracemalloc.start()
    try:
        cache = StateCache(limit)
        before = tracemalloc.get_traced_memory()[0]
        for number in range(5000):
            rows = number % 7
            cache.keep(number.to_bytes(4, "little") * (1 + rows), (np.zeros((rows, WIDTH), np.int8), np.zeros((rows, 1), np.float32)))
        held = tracemalloc.get_traced_memory()[0] - before
    finally:
        tracemalloc.stop()
    assert limit // 2 < cache.size_bytes <= limit
    assert held <= limit + 20_000  # the dictionary grows in steps


def test_many_threads_get_the_answers_of_one() -> None:
    def run(seed: int) -> int:
        rng = np.random.default_rng(seed)
        for _ in range(60):
            items = [rng.integers(0, 3, rng.integers(0, 4)).tolist() for _ in range(5)]
            found, done = ask(inline, items)
            assert done.all()
            assert_right(found, items)
        return seed

    inline = make(5000, threads=3)
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(run, range(8))) == list(range(8))
    entries = inline.cache._entries
    assert inline.cache.size_bytes == sum(cost(np.frombuffer(key, np.int32)) for key in entries) <= 5000


def test_items_there_is_no_time_for_have_no_states(monkeypatch: pytest.MonkeyPatch) -> None:
    class Slow(Engine):
        now = 10**9

        def encode_ragged(self, tokens: NDArray[np.int32], offsets: NDArray[np.int64]) -> ItemStates:
            Slow.now += 10**6
            return super().encode_ragged(tokens, offsets)

    monkeypatch.setattr(ranker_deadline, "monotonic_ns", lambda: Slow.now)
    inline, items = make(10**6, engine=Slow()), [[1], [2], [1], [3, 3], [4]]
    found, done = ask(inline, items, Deadline.after(2))
    assert done.tolist() == [True, True, True, False, False]
    assert np.diff(found.offsets).tolist() == [2, 2, 2, 0, 0]
    found, done = ask(inline, items[::-1], Deadline.after(0))  # what is kept needs no time
    assert done.tolist() == [False, False, True, True, True]
    found, done = ask(make(0), items, Deadline(1))
    assert not done.any()
    assert found.offsets.tolist() == [0] * 6
    assert_right(ask(inline, items)[0], items)


def test_an_engine_that_fails_leaves_the_cache_as_it_was() -> None:
    class Failing(Engine):
        def encode_ragged(self, tokens: NDArray[np.int32], offsets: NDArray[np.int64]) -> ItemStates:
            if 9 in tokens:
                raise EngineError("out of luck")
            return super().encode_ragged(tokens, offsets)

    inline = make(10**6, engine=Failing())
    ask(inline, [[1]])
    with pytest.raises(EngineError, match="out of luck"):
        ask(inline, [[2], [9]])
    assert_right(ask(inline, [[1], [2]])[0], [[1], [2]])


def test_a_forked_child_does_not_wait_for_its_parents_lock(monkeypatch: pytest.MonkeyPatch) -> None:
    inline = make(10**6)
    ask(inline, [[1]])
    inline.cache._lock.acquire()
    monkeypatch.setattr(ranker_inline.os, "getpid", lambda: -1)
    assert_right(ask(inline, [[1]])[0], [[1]])
    assert len(inline.cache) == 1


@pytest.mark.parametrize("limit", [-1, True, 1.5, "1", None], ids=repr)
def test_a_wrong_limit_is_an_input_error(limit: object) -> None:
    check: Callable[[object], object] = StateCache  # type: ignore[assignment]
    with pytest.raises(InputError, match="inline_cache_bytes"):
        check(limit)
    with pytest.raises(InputError, match="inline_cache_bytes"):
        Ranker.open("no-such-bundle", inline_cache_bytes=limit)  # type: ignore[arg-type]
