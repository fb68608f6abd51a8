"""One suite for every backend: what an engine promises, whatever runs inside."""

from __future__ import annotations

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fixtures_export import MAX_TOKENS, random_rows
from hypothesis import given, settings
from hypothesis import strategies as st

from edgerec.engine import Engine, Limits, open_engine
from edgerec.errors import EngineError
from edgerec.types import Batch

from .backends import CASES, Case


@dataclass
class Served:
    case: Case
    bundle: Path
    engine: Engine
    vocab: int
    buckets: int
    tokens: int

    def rows(self, count: int, *, seed: int = 0, width: int = MAX_TOKENS) -> Batch:
        return Batch(**random_rows(np.random.default_rng(seed), count, vocab=self.vocab, features=self.case.features, width=width))


@pytest.fixture(scope="module", params=CASES, ids=str)
def served(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    with request.param.machine():
        bundle = request.param.build(tmp_path_factory.mktemp("engine"))
        model = json.loads((bundle / "model.json").read_text())
        engine = open_engine(bundle, threads=2)
        buckets = model["features"]["buckets"] if model["features"] else 0
        yield Served(request.param, bundle, engine, model["student"]["vocab"], buckets, Limits.from_model(model).tokens)
        engine.close()


def part(batch: Batch, rows: slice | list[int]) -> Batch:
    return Batch(*(np.ascontiguousarray(getattr(batch, name)[rows]) for name in Batch.__dataclass_fields__))


def padded(batch: Batch, width: int) -> Batch:
    def pad(array: Any) -> Any:
        return np.pad(array, ((0, 0), (0, width - array.shape[1])))

    return replace(
        batch,
        input_ids=pad(batch.input_ids),
        attention_mask=pad(batch.attention_mask),
        token_type_ids=pad(batch.token_type_ids),
    )


def test_is_an_engine_and_says_what_it_is(served: Served) -> None:
    assert isinstance(served.engine, Engine)
    assert (served.engine.backend, served.engine.precision) == (served.case.backend, served.case.precision)


@pytest.mark.parametrize(("rows", "width"), [(1, 5), (1, 6), (2, 7), (7, 16), (33, MAX_TOKENS)])
def test_one_finite_float32_logit_a_row(served: Served, rows: int, width: int) -> None:
    logits = served.engine.run(served.rows(rows, width=width))
    assert logits.dtype == np.float32
    assert logits.shape == (rows,)
    assert np.all(np.isfinite(logits))


def test_a_row_of_one_token(served: Served) -> None:
    batch = served.rows(3)
    one = replace(
        batch,
        input_ids=np.ascontiguousarray(batch.input_ids[:, :1]),
        attention_mask=np.ascontiguousarray(batch.attention_mask[:, :1]),
        token_type_ids=np.ascontiguousarray(batch.token_type_ids[:, :1]),
    )
    assert served.engine.run(one).shape == (3,)


def test_an_empty_batch_gives_no_logits(served: Served) -> None:
    logits = served.engine.run(part(served.rows(2), slice(0, 0)))
    assert logits.shape == (0,)
    assert logits.dtype == np.float32


def test_logits_differ_between_rows(served: Served) -> None:
    logits = served.engine.run(served.rows(16))
    assert np.std(logits) > served.case.company
    assert len(np.unique(logits)) > 12


@settings(max_examples=12, deadline=None)
@given(seed=st.integers(0, 1000), rows=st.integers(2, 12))
def test_a_batch_equals_its_rows_one_by_one(served: Served, seed: int, rows: int) -> None:
    batch = served.rows(rows, seed=seed)
    alone = np.concatenate([served.engine.run(part(batch, slice(i, i + 1))) for i in range(rows)])
    np.testing.assert_allclose(served.engine.run(batch), alone, rtol=0, atol=served.case.company)


@settings(max_examples=12, deadline=None)
@given(seed=st.integers(0, 1000), extra=st.integers(1, 12))
def test_padding_does_not_matter(served: Served, seed: int, extra: int) -> None:
    batch = served.rows(5, seed=seed, width=MAX_TOKENS - 12)
    longer = padded(batch, batch.input_ids.shape[1] + extra)
    np.testing.assert_allclose(served.engine.run(longer), served.engine.run(batch), rtol=0, atol=served.case.company)


def test_what_stands_in_the_padding_does_not_matter(served: Served) -> None:
    batch = served.rows(6)
    junk = replace(batch, input_ids=np.where(batch.attention_mask == 1, batch.input_ids, 7).astype(np.int32))
    np.testing.assert_allclose(served.engine.run(junk), served.engine.run(batch), rtol=0, atol=served.case.company)


@pytest.mark.parametrize("cut", [1, 5, 11])
def test_how_rows_are_split_does_not_matter(served: Served, cut: int) -> None:
    batch = served.rows(12)
    halves = np.concatenate([served.engine.run(part(batch, slice(0, cut))), served.engine.run(part(batch, slice(cut, 12)))])
    np.testing.assert_allclose(halves, served.engine.run(batch), rtol=0, atol=served.case.company)


def test_the_order_of_rows_only_reorders_the_logits(served: Served) -> None:
    batch = served.rows(8)
    order = [3, 1, 7, 0, 2, 6, 5, 4]
    np.testing.assert_allclose(served.engine.run(part(batch, order)), served.engine.run(batch)[order], rtol=0, atol=1e-5)


def test_the_same_batch_gives_the_same_bits(served: Served) -> None:
    batch = served.rows(9)
    np.testing.assert_array_equal(served.engine.run(batch), served.engine.run(batch))


def test_threads_equal_serial(served: Served) -> None:
    batches = [served.rows(1 + seed % 7, seed=seed) for seed in range(24)]
    serial = [served.engine.run(batch) for batch in batches]
    with ThreadPoolExecutor(8) as pool:
        for left, right in zip(pool.map(served.engine.run, batches), serial, strict=True):
            np.testing.assert_array_equal(left, right)


def test_the_batch_is_not_changed(served: Served) -> None:
    batch = served.rows(4)
    before = [getattr(batch, name).copy() for name in Batch.__dataclass_fields__]
    served.engine.run(batch)
    for name, old in zip(Batch.__dataclass_fields__, before, strict=True):
        np.testing.assert_array_equal(getattr(batch, name), old)


def test_read_only_and_strided_arrays_are_taken(served: Served) -> None:
    batch = served.rows(8)
    every_second = Batch(*(getattr(batch, name)[::2] for name in Batch.__dataclass_fields__))
    for name in Batch.__dataclass_fields__:
        getattr(every_second, name).flags.writeable = False
    np.testing.assert_array_equal(served.engine.run(every_second), served.engine.run(part(batch, slice(0, 8, 2))))


def test_features_move_the_logit_only_where_the_student_has_them(served: Served) -> None:
    batch = served.rows(8)
    without = replace(batch, feature_weights=np.zeros_like(batch.feature_weights))
    moved = float(np.max(np.abs(served.engine.run(without) - served.engine.run(batch))))
    assert moved > 0.1 if served.case.features else moved == 0.0


def test_a_nan_weight_spoils_its_own_row_only(served: Served) -> None:
    if not served.case.features:
        return  # it has no feature weight to spoil
    batch = served.rows(4)
    weights = batch.feature_weights.copy()
    weights[2, 0] = np.nan
    logits = served.engine.run(replace(batch, feature_weights=weights))
    assert np.isnan(logits).tolist() == [False, False, True, False]


def wrong(name: str, change: Any) -> Any:
    return lambda batch, served: replace(batch, **{name: change(getattr(batch, name), served)})


WRONG = {
    "int64 ids": wrong("input_ids", lambda a, s: a.astype(np.int64)),
    "float ids": wrong("input_ids", lambda a, s: a.astype(np.float32)),
    "big-endian ids": wrong("input_ids", lambda a, s: a.astype(">i4")),
    "list ids": wrong("input_ids", lambda a, s: a.tolist()),
    "one-dimensional ids": wrong("input_ids", lambda a, s: a[0]),
    "ids of three dimensions": wrong("input_ids", lambda a, s: a[None]),
    "an id out of the vocabulary": wrong("input_ids", lambda a, s: np.where(a == a.max(), s.vocab, a).astype(np.int32)),
    "a huge id": wrong("input_ids", lambda a, s: np.full_like(a, 2**31 - 1)),
    "a negative id": wrong("input_ids", lambda a, s: np.full_like(a, -1)),
    "a bool mask": wrong("attention_mask", lambda a, s: a.astype(bool)),
    "a short mask": wrong("attention_mask", lambda a, s: a[:, :-1]),
    "a mask of other rows": wrong("attention_mask", lambda a, s: a[:-1]),
    "a mask of twos": wrong("attention_mask", lambda a, s: a * 2),
    "a type of 2": wrong("token_type_ids", lambda a, s: a + 2),
    "a negative type": wrong("token_type_ids", lambda a, s: a - 1),
    "no tokens": lambda b, s: replace(
        b, input_ids=b.input_ids[:, :0], attention_mask=b.attention_mask[:, :0], token_type_ids=b.token_type_ids[:, :0]
    ),
    "too many tokens": lambda b, s: padded(b, s.tokens + 1),
    "int64 features": wrong("feature_ids", lambda a, s: a.astype(np.int64)),
    "float64 weights": wrong("feature_weights", lambda a, s: a.astype(np.float64)),
    "features of other rows": lambda b, s: replace(b, feature_ids=b.feature_ids[:-1], feature_weights=b.feature_weights[:-1]),
    "weights of other slots": wrong("feature_weights", lambda a, s: np.zeros((len(a), a.shape[1] + 1), np.float32)),
    "a feature out of range": lambda b, s: replace(
        b, feature_ids=np.full((b.size, 3), s.buckets, np.int32), feature_weights=np.ones((b.size, 3), np.float32)
    ),
    "a negative feature": lambda b, s: replace(
        b, feature_ids=np.full((b.size, 3), -1, np.int32), feature_weights=np.ones((b.size, 3), np.float32)
    ),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_batch_is_an_engine_error(served: Served, name: str) -> None:
    batch = served.rows(4)
    with pytest.raises(EngineError, match="batch: "):
        served.engine.run(WRONG[name](batch, served))
    assert served.engine.run(batch).shape == (4,)


def test_a_closed_engine_says_so(served: Served) -> None:
    engine = open_engine(served.bundle)
    engine.close()
    engine.close()
    with pytest.raises(EngineError, match="closed"):
        engine.run(served.rows(1))


def test_closing_does_not_break_runs_in_flight(served: Served) -> None:
    engine = open_engine(served.bundle)
    batch = served.rows(16)
    expected = engine.run(batch)

    def run(_: int) -> bool:
        try:
            np.testing.assert_array_equal(engine.run(batch), expected)
        except EngineError:
            return False
        return True

    with ThreadPoolExecutor(4) as pool:
        runs = [pool.submit(run, i) for i in range(20)]
        engine.close()
        [run.result() for run in runs]
    assert run(0) is False


@pytest.mark.parametrize("threads", [0, -1, True, 1.5])
def test_a_wrong_number_of_threads_is_refused(served: Served, threads: Any) -> None:
    with pytest.raises(EngineError, match="threads"):
        open_engine(served.bundle, threads=threads)
