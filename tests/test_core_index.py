"""The identifier table against a dict, and damaged tables against the promise of no wrong read."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgerec import InputError
from edgerec._core import hash_packed, index_build, index_find

I64 = np.ndarray[Any, np.dtype[np.int64]]
U8 = np.ndarray[Any, np.dtype[np.uint8]]
names = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)


def packed(ids: list[str]) -> tuple[U8, I64]:
    data = [i.encode() for i in ids]
    return np.frombuffer(b"".join(data), np.uint8), np.cumsum([0, *map(len, data)]).astype(np.int64)


@settings(max_examples=200)
@given(st.lists(names, max_size=60), st.lists(names, max_size=10), st.integers(0, 2**64 - 1))
def test_find_is_what_a_dict_finds(ids: list[str], others: list[str], seed: int) -> None:
    data, offsets = packed(ids)
    keys, slots = index_build(hash_packed(data, offsets, seed))
    assert len(keys) == len(slots) == max(8, 1 << (2 * len(ids) - 1).bit_length() if ids else 8)
    first = {name: i for i, name in reversed(list(enumerate(ids)))}
    asked = ids + others
    assert index_find(keys, slots, data, offsets, asked, seed).tolist() == [first.get(name, -1) for name in asked]


def test_equal_hashes_do_no_harm() -> None:
    ids = [f"item-{i}" for i in range(50)]
    data, offsets = packed(ids)
    hashes = hash_packed(data, offsets, 0)
    asked = ids[33]
    keys, slots = index_build(np.full(50, hashes[33], np.uint64))
    assert index_find(keys, slots, data, offsets, [asked, "item-99"], 0).tolist() == [33, -1]


def test_many_names_in_one_call() -> None:
    ids = [f"sku-{i}" for i in range(5000)]
    data, offsets = packed(ids)
    keys, slots = index_build(hash_packed(data, offsets, 1))
    asked = [*ids[::-1], "nowhere"]
    assert index_find(keys, slots, data, offsets, asked, 1).tolist() == [*range(4999, -1, -1), -1]


def test_a_name_without_utf8_form_is_unknown() -> None:
    data, offsets = packed(["a", ""])
    keys, slots = index_build(hash_packed(data, offsets, 0))
    assert index_find(keys, slots, data, offsets, ["\ud800", "a", "", "b\udfff"]).tolist() == [-1, 0, 1, -1]


# ---- hostile input ----


def table() -> tuple[list[str], Any, Any, U8, I64]:
    ids = ["red", "green", "blue"]
    data, offsets = packed(ids)
    keys, slots = index_build(hash_packed(data, offsets, 0))
    return ids, keys, slots, data, offsets


@pytest.mark.parametrize("slot", [3, 2**31 - 1, -2, -(2**31)])
def test_slots_that_point_outside_are_refused(slot: int) -> None:
    ids, keys, slots, data, offsets = table()
    slots[slots >= 0] = slot
    with pytest.raises(InputError, match="damaged index"):
        index_find(keys, slots, data, offsets, ids)


@pytest.mark.parametrize(("place", "value"), [(1, 99), (1, -1), (0, -5), (3, 2**62), (2, 0)])
def test_offsets_that_lie_are_refused(place: int, value: int) -> None:
    ids, keys, slots, data, offsets = table()
    offsets[place] = value
    with pytest.raises(InputError, match="damaged index"):
        index_find(keys, slots, data, offsets, ids)


def test_a_table_without_an_empty_slot_ends_the_search() -> None:
    _, keys, slots, data, offsets = table()
    slots[:] = 0
    assert index_find(keys, slots, data, offsets, ["nowhere", "x"]).tolist() == [-1, -1]


def test_lengths_that_do_not_fit_are_refused() -> None:
    ids, keys, slots, data, offsets = table()
    for k, s in ((keys[:-1], slots[:-1]), (keys, slots[:4]), (keys[:0], slots[:0])):
        with pytest.raises(InputError, match="power of two"):
            index_find(k, s, data, offsets, ids)
    with pytest.raises(InputError, match="at least one entry"):
        index_find(keys, slots, data, offsets[:0], ids)


def test_wrong_kinds_are_refused_and_named() -> None:
    ids, keys, slots, data, offsets = table()
    bad: list[tuple[Any, ...]] = [
        (keys.astype(np.int64), slots, data, offsets, ids),
        (keys, slots.astype(np.int64), data, offsets, ids),
        (keys, slots, bytes(data), offsets, ids),
        (keys, slots, data, offsets.astype(np.int32), ids),
        (keys, slots, data, offsets, tuple(ids)),
        (keys, slots, data, offsets, "red"),
        (keys, slots, data, offsets, ["red", 7]),
        (keys, slots, data, offsets, [b"red"]),
        (keys, slots, data, offsets, ids, -1),
    ]
    for arguments in bad:
        with pytest.raises(InputError):
            index_find(*arguments)
    with pytest.raises(InputError, match="hashes must be a numpy array"):
        index_build([1, 2])  # type: ignore[arg-type]


@settings(max_examples=200)
@given(st.data())
def test_any_damage_ends_in_an_answer_or_an_input_error(data: st.DataObject) -> None:
    ids, keys, slots, content, offsets = table()
    for array, low, high in ((keys, 0, 2**64 - 1), (slots, -(2**31), 2**31 - 1), (offsets, -(2**63), 2**63 - 1)):
        for place in data.draw(st.lists(st.integers(0, len(array) - 1), max_size=2)):
            array[place] = data.draw(st.one_of(st.integers(low, high), st.integers(max(low, -3), 20)))
    try:
        found = index_find(keys, slots, content, offsets, [*ids, "", "nowhere"])
    except InputError as error:
        damage = str(error)
    else:
        damage = "" if all(-1 <= i < 3 for i in found.tolist()) else f"found {found}"
    assert damage == "" or damage.startswith("damaged index")
