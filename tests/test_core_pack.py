"""PairFrame.pack against list concatenation, longest_first against sorted."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgerec import InputError
from edgerec._core import PairFrame, longest_first

token = st.integers(-(2**31), 2**31 - 1)


def tokens(most: int) -> st.SearchStrategy[list[int]]:
    return st.lists(token, max_size=most)


def i32(values: list[int]) -> np.ndarray[Any, np.dtype[np.int32]]:
    return np.array(values, np.int32)


def i64(values: list[int]) -> np.ndarray[Any, np.dtype[np.int64]]:
    return np.array(values, np.int64)


@settings(max_examples=200, deadline=None)
@given(
    st.lists(tokens(30), min_size=1, max_size=5),
    tokens(8),
    tokens(2),
    tokens(2),
    tokens(2),
    token,
    st.integers(0, 25),
    st.integers(0, 3),
    st.data(),
)
def test_a_row_is_prefix_query_middle_item_suffix(
    items: list[list[int]],
    query: list[int],
    prefix: list[int],
    middle: list[int],
    suffix: list[int],
    pad: int,
    room: int,
    extra: int,
    data: st.DataObject,
) -> None:
    rows = data.draw(st.lists(st.integers(0, len(items) - 1), max_size=6))
    fixed = len(prefix) + len(query) + len(middle) + len(suffix)
    expected = []
    for row in rows:
        item = items[row][:room]
        left = prefix + query + middle
        expected.append((left + item + suffix, [5] * len(left) + [6] * len(item + suffix)))
    longest = max((len(ids) for ids, _ in expected), default=fixed)
    width = data.draw(st.sampled_from([None, longest + extra]))
    frame = PairFrame(i32(prefix), i32(middle), i32(suffix), pad_id=pad, query_type=5, item_type=6, max_tokens=fixed + room)
    offsets = i64([0, *np.cumsum([len(item) for item in items]).tolist()])
    found = frame.pack(i32(query), i32([t for item in items for t in item]), offsets, i64(rows), width)
    wide = longest if width is None else width
    assert all(a.shape == (len(rows), wide) and a.dtype == np.int32 for a in found)
    for i, (ids, types) in enumerate(expected):
        spare = wide - len(ids)
        assert found[0][i].tolist() == ids + [pad] * spare
        assert found[1][i].tolist() == [1] * len(ids) + [0] * spare
        assert found[2][i].tolist() == types + [0] * spare
    flat, flat_types, starts, lengths = frame.pack_ragged(i32(query), i32([t for item in items for t in item]), offsets, i64(rows))
    ragged = [(ids or [pad], types or [0]) for ids, types in expected]
    assert lengths.tolist() == [len(ids) for ids, _ in ragged]
    assert starts.tolist() == [0, *np.cumsum(lengths)[:-1].tolist()][: len(rows)]
    assert flat.tolist() == [token for ids, _ in ragged for token in ids]
    assert flat_types.tolist() == [kind for _, types in ragged for kind in types]


def pack(**changes: Any) -> Any:
    """A small good call, with arguments replaced."""
    parts: dict[str, Any] = {"prefix": i32([101]), "middle": i32([102]), "suffix": i32([102])}
    parts |= {"pad_id": 0, "query_type": 0, "item_type": 1, "max_tokens": 64}
    call: dict[str, Any] = {"query": i32([1, 2]), "tokens": i32([3, 4, 5, 6]), "offsets": i64([0, 1, 4]), "rows": i64([0, 1])}
    frame = PairFrame(**{name: changes.pop(name, value) for name, value in parts.items()})
    return frame.pack(**call | changes)


def test_a_small_call() -> None:
    ids, mask, types = pack()
    assert ids.tolist() == [[101, 1, 2, 102, 3, 102, 0, 0], [101, 1, 2, 102, 4, 5, 6, 102]]
    assert mask.tolist() == [[1, 1, 1, 1, 1, 1, 0, 0], [1] * 8]
    assert types.tolist() == [[0, 0, 0, 0, 1, 1, 0, 0], [0, 0, 0, 0, 1, 1, 1, 1]]


def test_a_frame_is_made_once_and_keeps_its_parts() -> None:
    prefix = i32([101])
    frame = PairFrame(prefix, i32([]), i32([102]), pad_id=0, query_type=0, item_type=0, max_tokens=8)
    prefix[:] = 7
    assert frame.pack(i32([1]), i32([3]), i64([0, 1]), i64([0]))[0].tolist() == [[101, 1, 3, 102]]
    with pytest.raises(InputError, match="already"):
        frame.__init__(prefix, prefix, prefix, pad_id=0, query_type=0, item_type=0, max_tokens=8)  # type: ignore[misc]


# ---- hostile input ----


@pytest.mark.parametrize("offsets", [[0, 5, 4], [0, 3, 2], [-1, 1, 4], [0, 1, 5], [0, 2**62, 4], [-(2**63), 1, 4]])
def test_offsets_that_lie_are_refused(offsets: list[int]) -> None:
    with pytest.raises(InputError, match="offsets"):
        pack(offsets=i64(offsets))


@pytest.mark.parametrize("row", [2, -1, 2**62, -(2**63)])
def test_rows_outside_the_table_are_refused(row: int) -> None:
    with pytest.raises(InputError, match="position 1"):
        pack(rows=i64([0, row]))


def test_a_table_without_offsets_is_refused() -> None:
    with pytest.raises(InputError, match="at least one entry"):
        pack(offsets=i64([]))
    with pytest.raises(InputError, match="row number"):
        pack(offsets=i64([0]))


def test_a_frame_longer_than_the_limit_is_refused() -> None:
    with pytest.raises(InputError, match="5 tokens, more than max_tokens = 4; shorten the query"):
        pack(max_tokens=4)
    assert pack(max_tokens=5)[0].tolist() == [[101, 1, 2, 102, 102]] * 2


def test_a_width_below_the_longest_row_is_refused() -> None:
    with pytest.raises(InputError, match="width 7 is less than the longest row, 8 tokens"):
        pack(width=7)


@pytest.mark.parametrize(
    "change",
    [
        {"query": [1, 2]},
        {"tokens": np.zeros(4, np.int64)},
        {"rows": np.zeros(2, np.int32)},
        {"prefix": None},
        {"suffix": np.zeros((1, 1), np.int32)},
        {"middle": i32([1, 2, 3])[::2]},
        {"pad_id": 2**31},
        {"query_type": 0.5},
        {"max_tokens": -1},
        {"width": float("nan")},
        {"max_tokens": 2**31},
    ],
)
def test_wrong_kinds_are_refused_and_named(change: dict[str, Any]) -> None:
    (name,) = change
    with pytest.raises(InputError, match=name):
        pack(**change)


@given(
    st.lists(st.integers(0, 9), min_size=1, max_size=6),
    st.lists(st.integers(0, 5), max_size=60),
    st.integers(0, 2**31 - 1) | st.integers(0, 9),
)
def test_longest_first_is_a_stable_sort(sizes: list[int], picks: list[int], cap: int) -> None:
    rows = [pick % len(sizes) for pick in picks]
    order, lengths = longest_first(i64([0, *np.cumsum(sizes).tolist()]), i64(rows), cap)
    expected = sorted(range(len(rows)), key=lambda i: -min(sizes[rows[i]], cap))
    assert order.tolist() == expected
    assert lengths.tolist() == [min(sizes[rows[i]], cap) for i in expected]


@pytest.mark.parametrize(
    ("offsets", "rows", "cap", "message"),
    [
        ([0, 1], [1], 5, "row"),
        ([0, 1], [-1], 5, "row"),
        ([0, 3, 1], [0], 5, "offsets"),
        ([], [], 5, "at least one entry"),
        ([0, 1], [0], -1, "cap"),
        ([0, 1], [0], 2**31, "cap"),
    ],
)
def test_longest_first_refuses(offsets: list[int], rows: list[int], cap: int, message: str) -> None:
    with pytest.raises(InputError, match=message):
        longest_first(i64(offsets), i64(rows), cap)
