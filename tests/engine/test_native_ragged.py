"""Rows of any length in one call of the native engine: their bits, deadlines, wrong batches, and how the ranker uses it."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fixtures_export import make_export
from hypothesis import given, settings
from hypothesis import strategies as st

from edgerec.builder import build_engine
from edgerec.catalog import build_catalog
from edgerec.engine import RaggedEngine, open_engine
from edgerec.engine.native import NativeEngine
from edgerec.errors import EngineError
from edgerec.ranker import Ranker
from edgerec.types import Batch, Item, RaggedBatch

from .native_bundle import PRECISIONS, native_bundle, part, rows


@pytest.fixture(scope="module", params=PRECISIONS)
def bundle(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return native_bundle(tmp_path_factory.mktemp("native"), request.param)


@pytest.fixture(scope="module")
def opened(bundle: Path) -> Iterator[RaggedEngine]:
    engine = open_engine(bundle, threads=2)
    assert isinstance(engine, RaggedEngine)
    yield engine
    engine.close()


def ragged(batch: Batch) -> RaggedBatch:
    lengths = batch.attention_mask.sum(axis=1, dtype=np.int64)
    kept = batch.attention_mask == 1
    starts = np.cumsum(lengths) - lengths
    return RaggedBatch(batch.input_ids[kept], batch.token_type_ids[kept], starts, lengths, batch.feature_ids, batch.feature_weights)


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 1000), count=st.integers(0, 80))
def test_ragged_rows_have_the_bits_of_padded_ones(opened: RaggedEngine, seed: int, count: int) -> None:
    batch = rows(count, seed=seed)
    np.testing.assert_array_equal(opened.run_ragged(ragged(batch)), opened.run(batch))


@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_rows_that_begin_alike_have_the_bits_of_rows_alone(opened: RaggedEngine, data: st.DataObject) -> None:
    """What candidates share with the query is computed once; none of them can tell."""
    common, count = data.draw(st.integers(0, 32)), data.draw(st.integers(1, 70))
    batch = rows(count, seed=data.draw(st.integers(0, 1000)))
    odd = data.draw(st.sampled_from([None, "input_ids", "token_type_ids"]))
    for name in ("input_ids", "token_type_ids", "attention_mask"):
        getattr(batch, name)[:, :common] = getattr(batch, name)[:1, :common] if name != "attention_mask" else 1
    if odd and common:  # one row is not like the others, in one token or its type
        getattr(batch, odd)[-1, data.draw(st.integers(0, common - 1))] ^= 1
    alone = np.concatenate([opened.run_ragged(ragged(part(batch, np.array([i])))) for i in range(count)])
    np.testing.assert_array_equal(opened.run_ragged(ragged(batch)), alone)


WRONG = {
    "a row too long": {"lengths": lambda a: np.full_like(a, 33)},
    "a row past the end": {"starts": lambda a: a + 1},
    "a row before the beginning": {"starts": lambda a: a - 1},
    "an empty row": {"lengths": lambda a: a * 0},
    "a negative length": {"lengths": lambda a: -a},
    "lengths of other rows": {"lengths": lambda a: a[:-1]},
    "int32 lengths": {"lengths": lambda a: a.astype(np.int32)},
    "starts of other rows": {"starts": lambda a: a[:-1]},
    "types of other rows": {"types": lambda a: a[:-1]},
    "int64 ids": {"ids": lambda a: a.astype(np.int64)},
    "an id out of range": {"ids": lambda a: np.full_like(a, 1 << 20)},
    "a negative id": {"ids": lambda a: -a - 1},
    "a type out of range": {"types": lambda a: a + 2},
    "a feature out of range": {"feature_ids": lambda a: a + 512, "feature_weights": np.ones_like},
    "flat features": {"feature_ids": lambda a: a.reshape(-1), "feature_weights": lambda a: a.reshape(-1)},
    "features of other rows": {"feature_ids": lambda a: a[:-1], "feature_weights": lambda a: a[:-1]},
    "float64 weights": {"feature_weights": lambda a: a.astype(np.float64)},
}


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_ragged_batch_is_an_engine_error(opened: RaggedEngine, name: str) -> None:
    batch = ragged(rows(5))
    with pytest.raises(EngineError, match="batch: "):
        opened.run_ragged(replace(batch, **{field: change(getattr(batch, field)) for field, change in WRONG[name].items()}))
    assert opened.run_ragged(batch).shape == (5,)


@settings(max_examples=25, deadline=None)
@given(share=st.floats(0, 1.2), count=st.integers(1, 80))
def test_rows_in_time_have_their_bits_and_the_others_nan(opened: RaggedEngine, share: float, count: int) -> None:
    batch = ragged(rows(count, seed=3))
    begun = time.monotonic_ns()
    expected = opened.run_ragged(batch)
    spent = time.monotonic_ns() - begun
    done = np.zeros(count, np.bool_)
    found = opened.run_ragged(batch, deadline_ns=time.monotonic_ns() + int(spent * share), done=done)
    np.testing.assert_array_equal(found[done], expected[done])
    assert np.isnan(found[~done]).all()


def test_a_deadline_in_the_past_scores_nothing_and_one_far_away_all(opened: RaggedEngine) -> None:
    batch = ragged(rows(40))
    done = np.ones(40, np.bool_)
    assert np.isnan(opened.run_ragged(batch, deadline_ns=1, done=done)).all()
    assert not done.any()
    np.testing.assert_array_equal(opened.run_ragged(batch, deadline_ns=2**63 - 1, done=done), opened.run_ragged(batch))
    assert done.all()


@pytest.mark.parametrize(
    "how",
    [
        {"deadline_ns": -1},
        {"deadline_ns": 1.5},
        {"deadline_ns": 2**63},
        {"done": np.zeros(4, np.bool_)},
        {"done": np.zeros(5, np.uint8)},
        {"done": np.broadcast_to(np.zeros(1, np.bool_), 5)},
        {"done": np.frombuffer(bytes(5), np.bool_)},
    ],
    ids=["negative", "a float", "too late", "of other rows", "no bool", "not contiguous", "read-only"],
)
def test_a_wrong_deadline_or_mask_is_an_engine_error(opened: RaggedEngine, how: dict[str, Any]) -> None:
    with pytest.raises(EngineError, match=next(iter(how))):
        opened.run_ragged(ragged(rows(5)), **how)


def test_a_closed_engine_takes_no_ragged_rows(bundle: Path) -> None:
    engine = open_engine(bundle)
    engine.close()
    with pytest.raises(EngineError, match="closed"):
        engine.run_ragged(ragged(rows(2)))


def test_the_ranker_gives_all_rows_in_one_call_and_ranks_as_the_reference_does(
    bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    build_engine(make_export(tmp_path / "export", pooler=True), tmp_path / "reference", backend="reference")
    items = [Item(str(i), f"red lamp {'desk oak ' * (i % 5)}{i}", brand="acme", price=float(i)) for i in range(60)]
    build_catalog(items, bundle, tmp_path / "catalog")
    candidates: list[str | Item] = [item.id for item in items[:50]] + items[50:]
    calls: list[int] = []
    run = NativeEngine.run_ragged
    with Ranker.open(bundle, catalog=tmp_path / "catalog") as native, Ranker.open(tmp_path / "reference") as slow:
        monkeypatch.setattr(NativeEngine, "run_ragged", lambda self, batch, **how: (calls.append(batch.size), run(self, batch, **how))[1])
        scores = native.score("red oak lamp", candidates)
        expected = slow.score("red oak lamp", items)
        assert calls == [50, 10]
        assert native.rank("red oak lamp", candidates).ids == tuple(str(i) for i in np.argsort(-scores, kind="stable")[:10])
    exact = native.manifest.precision == "fp32"
    np.testing.assert_allclose(scores, expected, rtol=0, atol=1e-5 if exact else 0.1)
