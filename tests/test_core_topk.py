"""topk and TopK against sorting everything."""

from __future__ import annotations

import threading
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgerec import InputError
from edgerec._core import TopK, topk

F32 = np.ndarray[Any, np.dtype[np.float32]]
Mask = np.ndarray[Any, np.dtype[np.bool_]]

# Few values, so that there are ties; every special one.
values = st.one_of(
    st.sampled_from([0.0, -0.0, 1.0, 0.5, -1.0, 1e-45, float("nan"), float("inf"), float("-inf")]),
    st.floats(width=32),
)


def sort_everything(scores: F32, k: int, mask: Mask | None = None) -> list[int]:
    places = [i for i in range(len(scores)) if not np.isnan(scores[i]) and (mask is None or not mask[i])]
    return sorted(places, key=lambda i: (-float(scores[i]), i))[:k]


def check(found: tuple[Any, F32], scores: F32, expected: list[int]) -> None:
    indices, best = found
    assert (str(indices.dtype), str(best.dtype)) == ("int64", "float32")
    assert indices.tolist() == expected
    assert best.tobytes() == scores[expected].tobytes()


@st.composite
def scored(draw: st.DrawFn) -> tuple[F32, Mask | None]:
    scores = np.array(draw(st.lists(values, max_size=150)), np.float32)
    masked = draw(st.booleans())
    return scores, np.array(draw(st.lists(st.booleans(), min_size=len(scores), max_size=len(scores))), bool) if masked else None


@settings(max_examples=200)
@given(scored(), st.integers(0, 160))
def test_topk_is_what_sorting_gives(case: tuple[F32, Mask | None], k: int) -> None:
    scores, mask = case
    expected = sort_everything(scores, k, mask)
    check(topk(scores, k, mask), scores, expected)
    if mask is not None:
        check(topk(scores, k, mask.astype(np.uint8) * 200), scores, expected)


@settings(max_examples=200)
@given(scored(), st.integers(0, 160), st.randoms(use_true_random=False), st.data())
def test_the_answer_does_not_depend_on_how_the_stream_is_cut(
    case: tuple[F32, Mask | None], k: int, random: Any, data: st.DataObject
) -> None:
    scores, mask = case
    cuts = sorted(data.draw(st.lists(st.integers(0, len(scores)), max_size=6)))
    pieces = list(zip([0, *cuts], [*cuts, len(scores)], strict=True))
    random.shuffle(pieces)
    selection = TopK(k)
    for begin, end in pieces:
        if mask is None and random.random() < 0.5:
            nans = selection.push_at(scores[begin:end], np.arange(begin, end))
            assert nans == np.isnan(scores[begin:end]).sum()
        else:
            selection.push(scores[begin:end], begin, None if mask is None else mask[begin:end])
    check(selection.finish(), scores, sort_everything(scores, k, mask))


def shapes(n: int) -> dict[str, F32]:
    rng = np.random.default_rng(n)
    i = np.arange(n)
    made = {
        "random": rng.standard_normal(n),
        "ascending": i,
        "descending": -i,
        "equal": np.zeros(n),
        "few values": rng.integers(0, 3, n),
        "sawtooth": i % 1000,
        "one column in five": np.where(i % 320 < 64, i, -1),
        "half NaN": np.where(rng.random(n) < 0.5, np.nan, rng.random(n)),
        "all NaN": np.full(n, np.nan),
    }
    return {name: scores.astype(np.float32) for name, scores in made.items()}


@pytest.mark.parametrize("n", [1, 64, 1000, 2048, 2049, 70_000, 200_000])
@pytest.mark.parametrize("k", [1, 10, 100, 256, 257, 3000, 300_000])
def test_long_inputs_of_every_shape(n: int, k: int) -> None:
    mask = np.random.default_rng(1).random(n) < 0.3
    for name, scores in shapes(n).items():
        for m in (None, mask):
            places = np.flatnonzero(~np.isnan(scores) if m is None else ~np.isnan(scores) & ~m)
            expected = places[np.argsort(-scores[places], kind="stable")][:k]
            indices, best = topk(scores, k, m)
            assert np.array_equal(indices, expected), name
            assert np.array_equal(best, scores[expected]), name


def test_ties_go_to_the_lower_index_also_when_it_comes_later() -> None:
    selection = TopK(2)
    selection.push(np.ones(5, np.float32), 100)
    selection.push(np.ones(5, np.float32), 0)
    assert selection.finish()[0].tolist() == [0, 1]


def test_both_zeros_are_equal_and_keep_their_sign() -> None:
    indices, best = topk(np.array([-0.0, 0.0, -0.0], np.float32), 3)
    assert indices.tolist() == [0, 1, 2]
    assert np.signbit(best).tolist() == [True, False, True]


def test_finish_can_be_asked_again_and_pushed_after() -> None:
    selection = TopK(3)
    assert selection.finish()[0].tolist() == []
    selection.push(np.array([1, 5, 3, 4], np.float32))
    assert selection.finish()[0].tolist() == [1, 3, 2]
    assert selection.finish()[0].tolist() == [1, 3, 2]
    selection.push_at(np.array([9], np.float32), np.array([-7]))
    assert selection.finish()[0].tolist() == [-7, 1, 3]


def test_scores_are_not_changed_and_may_be_read_only() -> None:
    scores = np.array([3, 1, 2], np.float32)
    scores.flags.writeable = False
    assert topk(scores, 2)[0].tolist() == [0, 2]
    assert scores.tolist() == [3, 1, 2]


def test_a_huge_k_costs_only_what_is_there() -> None:
    assert topk(np.array([1, 2], np.float32), 2**44)[0].tolist() == [1, 0]


# ---- hostile input ----


@pytest.mark.parametrize("k", [-1, 2**44 + 1, 2**63, 1.0, 2.5, float("nan"), None, "3"])
def test_k_must_be_a_count(k: int) -> None:
    with pytest.raises(InputError, match="k must be"):
        topk(np.zeros(3, np.float32), k)
    with pytest.raises(InputError, match="k must be"):
        TopK(k)


def test_memory_that_is_not_there_is_a_memory_error() -> None:
    with pytest.raises(MemoryError, match="top-k of k = 17592186044416"):
        TopK(2**44)


@pytest.mark.parametrize(
    "scores",
    [
        [1.0],
        np.zeros(3),
        np.zeros(3, np.float16),
        np.zeros((1, 3), np.float32),
        np.zeros(6, np.float32)[::2],
        np.zeros(3, ">f4"),
        None,
        np.float32(1),
    ],
)
def test_scores_must_be_a_float32_array(scores: Any) -> None:
    selection = TopK(2)
    for call in (lambda: topk(scores, 2), lambda: selection.push(scores), lambda: selection.push_at(scores, np.zeros(3, np.int64))):
        with pytest.raises(InputError, match="scores must"):
            call()
    assert selection.finish()[0].tolist() == []


@pytest.mark.parametrize(
    "mask", [[True, False, True], np.zeros(2, bool), np.zeros(4, np.uint8), np.zeros(3, np.int64), np.zeros(6, bool)[::2]]
)
def test_the_mask_must_fit_the_scores(mask: Any) -> None:
    with pytest.raises(InputError, match="mask must"):
        topk(np.zeros(3, np.float32), 2, mask)
    with pytest.raises(InputError, match="mask must"):
        TopK(2).push(np.zeros(3, np.float32), 0, mask)


def test_starts_and_indices_out_of_range_are_refused() -> None:
    selection = TopK(2)
    for start in (-1, 2**62 + 1, 0.5):
        with pytest.raises(InputError, match="start must be"):
            selection.push(np.zeros(3, np.float32), start)  # type: ignore[arg-type]
    with pytest.raises(InputError, match=r"as many entries as scores \(3\), got 2"):
        selection.push_at(np.zeros(3, np.float32), np.zeros(2, np.int64))
    with pytest.raises(InputError, match="int64"):
        selection.push_at(np.zeros(3, np.float32), np.zeros(3, np.int32))


def test_k_is_given_once() -> None:
    selection = TopK(2)
    with pytest.raises(InputError, match="make a new one"):
        selection.__init__(3)
    assert TopK.__new__(TopK).finish()[0].tolist() == []


# ---- threads ----


def test_threads_with_their_own_selections_agree_with_serial() -> None:
    scores = np.random.default_rng(3).standard_normal(300_000).astype(np.float32)
    expected = topk(scores, 500)[0].tolist()
    found: list[list[int]] = []

    def work() -> None:
        selection = TopK(500)
        for begin in range(0, len(scores), 50_000):
            selection.push(scores[begin : begin + 50_000], begin)
        found.append(selection.finish()[0].tolist())

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [expected] * 4
