"""Hashing, projection and sets: published vectors, PyPI xxhash, and plain Python as the oracles."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import xxhash
from hypothesis import given, settings
from hypothesis import strategies as st

from edgerec import InputError
from edgerec._core import hash64, hash_packed, hash_strings, hash_trigrams, project, sort_unique, sort_unique_rows

VECTORS = Path(__file__).parent / "csrc" / "xxh64_vectors.txt"
seeds = st.one_of(st.integers(0, 2**64 - 1), st.just(0))


def published_vectors() -> list[tuple[int, int, int]]:
    lines = [line.split() for line in VECTORS.read_text(encoding="ascii").splitlines() if not line.startswith("#")]
    return [(int(length), int(seed), int(value, 16)) for length, seed, value in lines]


def published_input(length: int) -> bytes:
    """The author's pseudo-random sequence; the vectors' file describes it."""
    out, g = bytearray(), 2654435761
    for _ in range(length):
        out.append(g >> 56)
        g = g * 11400714785074694797 % 2**64
    return bytes(out)


@pytest.mark.parametrize(("length", "seed", "value"), published_vectors())
def test_hash64_gives_the_published_values(length: int, seed: int, value: int) -> None:
    assert hash64(published_input(length), seed) == value
    assert xxhash.xxh64_intdigest(published_input(length), seed=seed) == value, "the oracle of the other tests"


@pytest.mark.parametrize("length", [*range(0, 100), 127, 128, 129, 1000, 100_000])
def test_hash64_of_every_short_length(length: int) -> None:
    data = published_input(length)
    assert hash64(data, length) == xxhash.xxh64_intdigest(data, seed=length)


@given(st.binary(max_size=300), seeds)
def test_hash64_is_xxh64(data: bytes, seed: int) -> None:
    assert hash64(data, seed) == xxhash.xxh64_intdigest(data, seed=seed)


text = st.text(st.characters(exclude_categories=["Cs"]), max_size=80)


@given(st.lists(text, max_size=20), seeds, st.binary(max_size=80))
def test_hash_strings_hashes_prefix_and_utf8(values: list[str], seed: int, prefix: bytes) -> None:
    found = hash_strings(values, seed, prefix)
    assert found.dtype == np.uint64
    assert found.tolist() == [xxhash.xxh64_intdigest(prefix + v.encode(), seed=seed) for v in values]


@pytest.mark.parametrize("prefix_size", [1, 31, 32, 33, 90])
@pytest.mark.parametrize("value_size", [0, 1, 31, 32, 33, 97, 128, 5000])
def test_hash_strings_joins_prefix_and_value_at_any_length(prefix_size: int, value_size: int) -> None:
    prefix, value = published_input(prefix_size), "é" * (value_size // 2) + "x" * (value_size % 2)
    assert hash_strings([value], 3, prefix).tolist() == [xxhash.xxh64_intdigest(prefix + value.encode(), seed=3)]


@given(st.lists(st.binary(max_size=70), max_size=40), st.binary(max_size=3), st.binary(max_size=3), seeds)
def test_hash_packed_is_hash64_of_each(values: list[bytes], before: bytes, after: bytes, seed: int) -> None:
    data = np.frombuffer(before + b"".join(values) + after, np.uint8)
    offsets = (len(before) + np.cumsum([0, *map(len, values)])).astype(np.int64)
    assert hash_packed(data, offsets, seed).tolist() == [xxhash.xxh64_intdigest(v, seed=seed) for v in values]


def test_hash_packed_of_more_than_a_batch() -> None:
    values = [published_input(i % 45) for i in range(3000)]
    data = np.frombuffer(b"".join(values), np.uint8)
    offsets = np.cumsum([0, *map(len, values)]).astype(np.int64)
    assert hash_packed(data, offsets, 5).tolist() == [xxhash.xxh64_intdigest(v, seed=5) for v in values]


@given(st.lists(st.integers(0, 2**64 - 1), max_size=30), st.integers(1, 2**31 - 1))
def test_project_is_multiply_shift_and_lowest_bit(hashes: list[int], buckets: int) -> None:
    ids, signs = project(np.array(hashes, np.uint64), buckets)
    assert (str(ids.dtype), str(signs.dtype)) == ("int32", "float32")
    assert ids.tolist() == [((h >> 32) * buckets) >> 32 for h in hashes]
    assert signs.tolist() == [1.0 if h % 2 else -1.0 for h in hashes]


entries = st.tuples(st.one_of(st.integers(0, 12), st.integers(0, 2**64 - 1)), st.floats(-100, 100, width=32))


@settings(max_examples=200)
@given(st.lists(entries, max_size=120))
def test_sort_unique_adds_weights_in_the_order_given(pairs: list[tuple[int, float]]) -> None:
    hashes, weights = np.array([h for h, _ in pairs], np.uint64), np.array([w for _, w in pairs], np.float32)
    before = hashes.copy(), weights.copy()
    expected: dict[int, np.float32] = {}
    for h, w in zip(hashes.tolist(), weights, strict=True):
        expected[h] = np.float32(expected[h] + w) if h in expected else w
    found, sums = sort_unique(hashes, weights)
    assert sums is not None
    assert found.tolist() == sorted(expected)
    assert sums.tobytes() == np.array([expected[h] for h in sorted(expected)], np.float32).tobytes()
    alone, nothing = sort_unique(hashes)
    assert alone.tolist() == found.tolist()
    assert nothing is None
    assert np.array_equal(hashes, before[0])
    assert np.array_equal(weights, before[1])


def trigrams(text: str) -> list[str]:
    padded = [f"^{word}$" for word in text.split(" ") if word]
    return [one[i : i + 3] for one in padded for i in range(len(one) - 2)]


@given(st.lists(st.text(st.one_of(st.sampled_from("ab é€😀^$"), st.characters(exclude_categories=["Cs"])), max_size=30), max_size=8), seeds)
def test_hash_trigrams_hashes_every_three_code_points_of_a_padded_word(texts: list[str], seed: int) -> None:
    hashes, counts = hash_trigrams(texts, seed, b"3=")
    assert (hashes.dtype, counts.dtype) == (np.uint64, np.int64)
    assert counts.tolist() == [len(trigrams(text)) for text in texts]
    assert hashes.tolist() == [xxhash.xxh64_intdigest(b"3=" + one.encode(), seed=seed) for text in texts for one in trigrams(text)]


@given(st.lists(st.lists(st.integers(0, 9), max_size=40), max_size=12))
def test_sort_unique_rows_makes_a_set_of_every_row(rows: list[list[int]]) -> None:
    hashes = np.array([h for row in rows for h in row], np.uint64)
    counts = np.array([len(row) for row in rows], np.int64)
    before = hashes.copy(), counts.copy()
    found, left = sort_unique_rows(hashes, counts)
    assert left.tolist() == [len(set(row)) for row in rows]
    assert found.tolist() == [h for row in rows for h in sorted(set(row))]
    assert np.array_equal(hashes, before[0])
    assert np.array_equal(counts, before[1])


# ---- hostile input ----


@pytest.mark.parametrize("counts", [[2, 2], [1, 1], [-1, 4], [2**62, 2**62, 2**62], []])
def test_sort_unique_rows_refuses_counts_that_are_no_partition(counts: list[int]) -> None:
    with pytest.raises(InputError, match="counts for 3 hashes"):
        sort_unique_rows(np.zeros(3, np.uint64), np.array(counts, np.int64))


@pytest.mark.parametrize("texts", ["abc", ("a",), None, [b"a"], ["a", None], [1]])
def test_hash_trigrams_takes_a_list_of_str(texts: list[str]) -> None:
    with pytest.raises(InputError, match="texts"):
        hash_trigrams(texts)


@pytest.mark.parametrize("weight", [float("nan"), float("inf"), float("-inf")])
def test_sort_unique_refuses_weights_that_are_no_numbers(weight: float) -> None:
    with pytest.raises(InputError, match=r"weights\[1\] is"):
        sort_unique(np.zeros(3, np.uint64), np.array([1, weight, 1], np.float32))


def test_sort_unique_refuses_weights_of_another_length() -> None:
    with pytest.raises(InputError, match=r"as many entries as hashes \(3\), got 2"):
        sort_unique(np.zeros(3, np.uint64), np.zeros(2, np.float32))


@pytest.mark.parametrize("offsets", [[0, 3, 2], [-1, 0, 4], [0, 2, 5], [0, 2**62, 4], [5, 5, 5], [2**63 - 1, 0, 0]])
def test_hash_packed_refuses_offsets_that_lie(offsets: list[int]) -> None:
    with pytest.raises(InputError, match="offsets for 4 bytes"):
        hash_packed(np.zeros(4, np.uint8), np.array(offsets, np.int64))


def test_hash_packed_refuses_no_offsets_at_all() -> None:
    with pytest.raises(InputError, match="at least one"):
        hash_packed(np.zeros(4, np.uint8), np.zeros(0, np.int64))


@pytest.mark.parametrize("seed", [-1, 2**64, 1.5, None, "0", float("nan")])
def test_seeds_out_of_range_are_refused(seed: int) -> None:
    with pytest.raises(InputError, match="seed must be"):
        hash64(b"", seed)


def test_numpy_integers_are_seeds() -> None:
    assert hash64(b"a", np.uint64(2**64 - 1)) == xxhash.xxh64_intdigest(b"a", seed=2**64 - 1)  # type: ignore[arg-type]


def test_lone_surrogates_are_named() -> None:
    with pytest.raises(InputError, match=r"values\[1\] cannot be encoded as UTF-8"):
        hash_strings(["fine", "\ud800"])
    with pytest.raises(InputError, match=r"texts\[1\] cannot be encoded as UTF-8"):
        hash_trigrams(["fine", "\ud800"])


@pytest.mark.parametrize("values", ["abc", ("a",), None, [b"a"], ["a", None], [1]])
def test_hash_strings_takes_a_list_of_str(values: list[str]) -> None:
    with pytest.raises(InputError, match="values"):
        hash_strings(values)


def test_wrong_kinds_are_refused_and_named() -> None:
    with pytest.raises(InputError, match="data must be bytes, got str"):
        hash64("a")  # type: ignore[arg-type]
    with pytest.raises(InputError, match="prefix must be bytes, got str"):
        hash_strings(["a"], prefix="w=")  # type: ignore[arg-type]
    with pytest.raises(InputError, match="data must be a numpy array of uint8, got bytes"):
        hash_packed(b"abc", np.zeros(1, np.int64))  # type: ignore[arg-type]
    with pytest.raises(InputError, match="hashes must have dtype uint64, got int64; convert"):
        project(np.zeros(3, np.int64), 10)
    with pytest.raises(InputError, match=r"one dimension, got shape \(2, 2\)"):
        project(np.zeros((2, 2), np.uint64), 10)
    with pytest.raises(InputError, match="C-contiguous"):
        project(np.zeros(8, np.uint64)[::2], 10)
    unaligned = np.frombuffer(b"\0" * 33, np.uint8)[1:].view(np.uint64)
    with pytest.raises(InputError, match="aligned"):
        project(unaligned, 10)
    with pytest.raises(InputError, match="buckets must be in 1"):
        project(np.zeros(1, np.uint64), 0)
