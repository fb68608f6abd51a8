"""FeaturePlan against a slow reading of docs/formats.md, with PyPI xxhash as the hash."""

from __future__ import annotations

import math
import struct
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import xxhash
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from edgerec import InputError
from edgerec._core import FeaturePlan

EMIT, COMMON, LEFT_ONLY, MATCH, CROSS = range(5)
Set = list[tuple[int, float]]  # (hash, weight), ascending


def le(x: int) -> bytes:
    return struct.pack("<Q", x % 2**64)


def emissions(op: int, left: Set, right: Set, seed: int) -> list[tuple[int, np.float32]]:
    """What a template emits, as docs/formats.md words it."""

    def h(data: bytes) -> int:
        return xxhash.xxh64_intdigest(data, seed=seed)

    in_right = {b for b, _ in right}
    if op == EMIT:
        return [(h(le(a)), np.float32(w)) for a, w in left]
    if op == COMMON:
        return [(h(le(a)), np.float32(w)) for a, w in left if a in in_right]
    if op == LEFT_ONLY:
        return [(h(le(a)), np.float32(w)) for a, w in left if a not in in_right]
    if op == CROSS:
        return [(h(le(a) + le(b)), np.float32(wa) * np.float32(wb)) for a, wa in left for b, wb in right]
    total = 0.0
    matched = 0.0
    for a, w in left:
        total += float(np.float32(w))
        matched += float(np.float32(w)) if a in in_right else 0.0
    if not total > 0:
        return []
    c = matched / total
    return [(seed, np.float32(c)), (h(le(max(-(10**15), min(10**15, math.floor(4 * c))))), np.float32(1))]


def encode_slowly(
    templates: Sequence[tuple[int, int, int, int]], sets: Sequence[Set], buckets: int, slots: int
) -> tuple[list[int], list[np.float32]]:
    row: dict[int, np.float32] = {}
    for op, left, right, seed in templates:
        for hashed, weight in emissions(op, sets[left], sets[right] if op != EMIT else [], seed):
            feature = ((hashed >> 32) * buckets) >> 32
            signed = weight if hashed & 1 else -weight
            if feature in row:
                row[feature] = np.float32(row[feature] + signed)
            elif len(row) < slots:
                row[feature] = signed
    spare = slots - len(row)
    return [*row, *[0] * spare], [*row.values(), *[np.float32(0)] * spare]


def plan_of(templates: Sequence[tuple[int, int, int, int]], buckets: int, slots: int) -> FeaturePlan:
    ops, lefts, rights, seeds = zip(*templates, strict=True) if templates else ((), (), (), ())
    return FeaturePlan(
        np.array(ops, np.int32),
        np.array(lefts, np.int32),
        np.array(rights, np.int32),
        np.array(seeds, np.uint64),
        buckets=buckets,
        slots=slots,
    )


# Few distinct hashes, so that sets meet; spread over all bits, so that ids and filter bits differ.
pool = [xxhash.xxh64_intdigest(b"%d" % i) for i in range(40)] + [0, 1, 2**63, 2**64 - 1]
weights = st.floats(-4, 4, width=32)


@st.composite
def one_set(draw: st.DrawFn, weighted: bool) -> Set:
    hashes = sorted(draw(st.sets(st.sampled_from(pool), max_size=12)))
    return [(h, draw(weights) if weighted else 1.0) for h in hashes]


Field = tuple[NDArray[np.uint64], NDArray[np.float32] | None, NDArray[np.int64] | None]
Joined = tuple[NDArray[np.uint64], NDArray[np.float32] | None, NDArray[np.int64], int]


@st.composite
def cases(draw: st.DrawFn) -> tuple[list[tuple[int, int, int, int]], list[Field], list[list[Set]], list[int], int, int]:
    """Templates, fields as arrays, the same fields as one list of sets per table row, rows, buckets, slots."""
    table = draw(st.integers(1, 4))
    fields: list[Field] = []
    slow: list[list[Set]] = []
    for _ in range(draw(st.integers(1, 4))):
        weighted, shared = draw(st.booleans()), draw(st.booleans())
        sets = [draw(one_set(weighted))] * table if shared else [draw(one_set(weighted)) for _ in range(table)]
        flat = sets[0] if shared else [pair for s in sets for pair in s]
        fields.append(
            (
                np.array([h for h, _ in flat], np.uint64),
                np.array([w for _, w in flat], np.float32) if weighted else None,
                None if shared else np.cumsum([0, *map(len, sets)]).astype(np.int64),
            )
        )
        slow.append(sets)
    field = st.integers(0, len(fields) - 1)
    templates = draw(st.lists(st.tuples(st.integers(0, 4), field, field, st.integers(0, 2**64 - 1)), max_size=6))
    rows = draw(st.lists(st.integers(0, table - 1), max_size=5))
    return templates, fields, slow, rows, draw(st.sampled_from([1, 7, 100, 32768, 2**31 - 1])), draw(st.integers(0, 20))


@settings(max_examples=300, deadline=None)
@given(cases())
def test_encode_is_what_the_format_says(
    case: tuple[list[tuple[int, int, int, int]], list[Field], list[list[Set]], list[int], int, int],
) -> None:
    templates, fields, slow, rows, buckets, slots = case
    ids, values = plan_of(templates, buckets, slots).encode(fields, np.array(rows, np.int64))
    assert ids.shape == values.shape == (len(rows), slots)
    for i, row in enumerate(rows):
        expected_ids, expected_values = encode_slowly(templates, [sets[row] for sets in slow], buckets, slots)
        assert ids[i].tolist() == expected_ids
        assert values[i].tobytes() == np.array(expected_values, np.float32).tobytes()


def item_by_item(slow: list[list[Set]]) -> list[Joined]:
    """The sets of several fields in one array, item by item."""
    count, table = len(slow), len(slow[0])
    flat = [slow[field][row] for row in range(table) for field in range(count)]
    offsets = np.cumsum([0, *map(len, flat)]).astype(np.int64)
    hashes = np.array([h for one in flat for h, _ in one], np.uint64)
    values = np.array([w for one in flat for _, w in one], np.float32)
    return [(hashes, values, offsets[field:], count - 1) for field in range(count)]


@settings(max_examples=150, deadline=None)
@given(cases())
def test_fields_that_share_an_array_give_the_same_rows(
    case: tuple[list[tuple[int, int, int, int]], list[Field], list[list[Set]], list[int], int, int],
) -> None:
    templates, fields, slow, rows, buckets, slots = case
    plan = plan_of(templates, buckets, slots)
    for apart, joined in zip(
        plan.encode(fields, np.array(rows, np.int64)), plan.encode(item_by_item(slow), np.array(rows, np.int64)), strict=True
    ):
        assert apart.tobytes() == joined.tobytes()


@pytest.mark.parametrize(("gap", "match"), [(1, "row"), (2**40, "gap"), (-1, "gap"), ("1", "gap")])
def test_a_gap_that_does_not_fit_is_refused(gap: object, match: str) -> None:
    field = (np.array([1, 2, 3], np.uint64), None, np.array([0, 1, 3], np.int64), gap)
    with pytest.raises(InputError, match=match):
        plan_of([(EMIT, 0, 0, 1)], 10, 4).encode([field], np.array([1], np.int64))  # type: ignore[list-item]


# ---- hostile input ----

one_template = [(EMIT, 0, 0, 1)]
good_field = (np.array([1, 2, 3], np.uint64), None, np.array([0, 1, 3], np.int64))


@pytest.mark.parametrize("offsets", [[0, 2, 1], [-1, 1, 3], [0, 1, 4], [0, 2**62, 3], [0, 3, 2]])
def test_offsets_that_lie_are_refused(offsets: list[int]) -> None:
    field = (good_field[0], None, np.array(offsets, np.int64))
    with pytest.raises(InputError, match="offsets"):
        plan_of(one_template, 100, 4).encode([field], np.array([0, 1], np.int64))


@pytest.mark.parametrize("row", [2, -1, 2**62, -(2**63)])
def test_rows_outside_the_table_are_refused(row: int) -> None:
    with pytest.raises(InputError, match=r"rows\[1\] = "):
        plan_of(one_template, 100, 4).encode([good_field], np.array([0, row], np.int64))


def test_weights_must_be_as_many_as_hashes() -> None:
    with pytest.raises(InputError, match="3 hashes but 2 weights"):
        plan_of(one_template, 100, 4).encode([(good_field[0], np.ones(2, np.float32), None)], np.zeros(1, np.int64))


@pytest.mark.parametrize(
    "field",
    [
        good_field[0],
        (good_field[0], None),
        [good_field[0], None, None],
        (None, None, None),
        (good_field[0].astype(np.int64), None, None),
        (good_field[0], np.ones(3), None),
        (good_field[0], None, np.zeros(0, np.int64)),
        (good_field[0], None, np.array([0, 1, 3], np.int32)),
        (good_field[0][::2], None, None),
        (good_field[0].reshape(1, 3), None, None),
        (good_field[0].astype(">u8"), None, None),
    ],
)
def test_fields_of_a_wrong_kind_are_refused(field: object) -> None:
    with pytest.raises(InputError, match=r"fields\[0\]"):
        plan_of(one_template, 100, 4).encode([field], np.zeros(1, np.int64))  # type: ignore[list-item]


def test_fields_must_be_enough_and_a_sequence() -> None:
    plan = plan_of([(COMMON, 0, 2, 1)], 100, 4)
    assert plan.fields == 3
    with pytest.raises(InputError, match="use 3 fields, and at most 256 are taken; got 1"):
        plan.encode([good_field], np.zeros(1, np.int64))
    with pytest.raises(InputError, match="at most 256"):
        plan.encode([good_field] * 257, np.zeros(1, np.int64))
    with pytest.raises(InputError, match="sequence"):
        plan.encode(7, np.zeros(1, np.int64))  # type: ignore[arg-type]


@pytest.mark.parametrize("template", [(5, 0, 0, 1), (-1, 0, 0, 1), (EMIT, -1, 0, 1), (MATCH, 0, 256, 1), (MATCH, 0, 2**31 - 1, 1)])
def test_templates_that_make_no_sense_are_refused(template: tuple[int, int, int, int]) -> None:
    with pytest.raises(InputError):
        plan_of([template], 100, 4)


def test_too_many_templates_are_refused() -> None:
    plan_of(one_template * 128, 100, 4)
    with pytest.raises(InputError, match="at most 128"):
        plan_of(one_template * 129, 100, 4)


@pytest.mark.parametrize(("buckets", "slots"), [(0, 4), (2**31, 4), (10, -1), (10, 2**31), (1.5, 4), (10, None), (float("nan"), 4)])
def test_sizes_out_of_range_are_refused(buckets: int, slots: int) -> None:
    with pytest.raises(InputError, match=r"(buckets|slots) must be"):
        plan_of(one_template, buckets, slots)


def test_template_arrays_must_have_one_length() -> None:
    i, u = np.zeros(2, np.int32), np.zeros(1, np.uint64)
    with pytest.raises(InputError, match="one length"):
        FeaturePlan(i, i, i, u, buckets=10, slots=4)


def test_arguments_are_not_changed_and_may_be_read_only() -> None:
    arrays: list[Any] = [
        np.array([5, 6, 7], np.uint64),
        np.array([1, -1, 2], np.float32),
        np.array([0, 2, 3], np.int64),
        np.array([1, 0], np.int64),
    ]
    before = [a.copy() for a in arrays]
    for a in arrays:
        a.flags.writeable = False
    plan_of([(CROSS, 0, 0, 1), (MATCH, 0, 0, 2)], 100, 8).encode([(arrays[0], arrays[1], arrays[2])], arrays[3])
    assert all(np.array_equal(a, b) for a, b in zip(arrays, before, strict=True))
