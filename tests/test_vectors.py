"""Retrieval vectors: the mean of what is stored, rounded as documented, and a damaged file is refused."""

from __future__ import annotations

import hashlib
import io

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgerec import vectors
from edgerec.errors import BundleError
from edgerec.states import ItemStates, StateSpec
from edgerec.vectors import RetrievalHead, VectorSpec, as_int8, mean_states, unit

HIDDEN, WIDTH = 6, 5


def head(numbers: int, seed: int = 0) -> RetrievalHead:
    rng = np.random.default_rng(seed)
    shapes = ((WIDTH, HIDDEN), (WIDTH,), (WIDTH, numbers), (WIDTH,))
    return RetrievalHead(*(rng.normal(size=shape).astype(np.float32) for shape in shapes))


@given(
    seed=st.integers(0, 10**6),
    lengths=st.lists(st.integers(1, 5), min_size=1, max_size=9),
    precision=st.sampled_from(["fp32", "fp16", "int8"]),
    chunk=st.integers(1, 4),
)
def test_item_vectors_are_those_of_a_plain_loop(seed: int, lengths: list[int], precision: str, chunk: int) -> None:
    spec, rng = StateSpec(2, 3, precision, ""), np.random.default_rng(seed)
    values, scales = spec.store(rng.normal(size=(sum(lengths), 6)).astype(np.float32))
    states = ItemStates(values, scales, np.r_[0, np.cumsum(lengths)].astype(np.int64))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(vectors, "_CHUNK_ITEMS", chunk)
        found, sizes = head(6).item_vectors(states, spec)
    assert (found.dtype, found.shape, sizes.dtype, sizes.shape) == (np.int8, (len(lengths), WIDTH), np.float32, (len(lengths),))
    for item, (begin, end) in enumerate(zip(states.offsets[:-1], states.offsets[1:], strict=True)):
        tokens = []
        for token in range(begin, end):
            factor = np.repeat(scales[token], 3) if precision == "int8" else 1.0
            tokens.append(values[token].astype(np.float64) * factor)
        one = head(6).item_weight.astype(np.float64) @ (sum(tokens) / len(tokens)) + head(6).item_bias
        one /= np.sqrt((one * one).sum())
        np.testing.assert_allclose(found[item] * sizes[item].astype(np.float64), one, atol=0.51 * sizes[item])
        assert np.abs(found[item]).max() == 127


def test_a_query_vector_is_that_of_the_mean_of_its_rows() -> None:
    rows = np.random.default_rng(1).normal(size=(2, 4, HIDDEN)).astype(np.float32)
    found, sizes = head(6).query_vectors(rows)
    again, same = head(6).query_vectors(np.concatenate([rows, rows[:, ::-1]], axis=1))
    np.testing.assert_array_equal(found, again)
    np.testing.assert_array_equal(sizes, same)
    for query, (values, size) in enumerate(zip(found, sizes, strict=True)):
        one = head(6).query_weight.astype(np.float64) @ (sum(rows[query].astype(np.float64)) / 4) + head(6).query_bias
        np.testing.assert_allclose(values * np.float64(size), one / np.sqrt((one * one).sum()), atol=0.51 * size)


def test_zeros_stay_zeros() -> None:
    values, scales = as_int8(unit(np.zeros((2, 3))))
    assert not values.any()
    assert (scales > 0).all()
    spec = StateSpec(1, 2, "fp32", "")
    none = head(2).item_vectors(ItemStates(np.zeros((0, 2), np.float32), np.zeros((0, 0), np.float32), np.zeros(1, np.int64)), spec)
    assert [len(column) for column in none] == [0, 0]
    one = ItemStates(np.ones((3, 2), np.float32), np.zeros((3, 0), np.float32), np.array([0, 3]))
    np.testing.assert_array_equal(mean_states(one, spec, 0, 1), [[1, 1]])


def test_a_head_comes_back_as_it_was_and_the_same_weights_are_the_same_bytes() -> None:
    data = head(6).to_bytes()
    assert head(6).to_bytes() == data
    spec = VectorSpec(WIDTH, hashlib.sha256(data).hexdigest())
    again = RetrievalHead.from_bytes(data, spec, hidden=HIDDEN, numbers=6, what="it")
    np.testing.assert_array_equal(again.item_weight, head(6).item_weight)
    for change in ({"hidden": 7, "numbers": 6}, {"hidden": HIDDEN, "numbers": 7}):
        with pytest.raises(BundleError, match="_weight is float32"):
            RetrievalHead.from_bytes(data, spec, **change, what="it")
    with pytest.raises(BundleError, match=r"not the one that model\.json names"):
        RetrievalHead.from_bytes(data + b"x", spec, hidden=HIDDEN, numbers=6, what="it")


def test_a_file_that_is_no_head_is_refused() -> None:
    buffer = io.BytesIO()
    np.savez(buffer, query_weight=np.zeros((WIDTH, HIDDEN), np.float32))
    good = head(6)
    bad = RetrievalHead(good.query_weight, good.query_bias * np.float32(np.nan), good.item_weight, good.item_bias).to_bytes()
    whole = good.to_bytes()
    for data in (b"", b"PK\x03\x04", buffer.getvalue(), whole[: len(whole) // 2], bad):
        spec = VectorSpec(WIDTH, hashlib.sha256(data).hexdigest())
        with pytest.raises(BundleError, match="it"):
            RetrievalHead.from_bytes(data, spec, hidden=HIDDEN, numbers=6, what="it")


@pytest.mark.parametrize(
    "value", [[], 3, {"width": 8}, {"width": 0, "sha256": ""}, {"width": True, "sha256": ""}, {"width": 8, "sha256": 1}]
)
def test_a_spec_that_is_none_is_refused(value: object) -> None:
    with pytest.raises(BundleError, match="here"):
        VectorSpec.from_json(value, "here")
    assert VectorSpec.from_json(None, "here") is None
    assert VectorSpec.from_json({"width": 8, "sha256": "ab"}, "here") == VectorSpec(8, "ab")
