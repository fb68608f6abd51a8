"""Engines of mid-fusion students: items encoded once score as whole rows do, backends agree, and wrong input is refused."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fixtures_export import random_rows
from hypothesis import given, settings
from hypothesis import strategies as st

from edgerec.builder import build_engine
from edgerec.bundle import verify_bundle
from edgerec.engine import Limits, MidEngine, QueryEngine, open_engine
from edgerec.engine.mid import MidLayout, _compact
from edgerec.errors import BuildError, BundleError, EngineError
from edgerec.states import StateSpec
from edgerec.types import Batch, StateBatch

from .backends import NARROW, PER_LAYER, Case

BACKENDS = ("ort", "native", "reference")


@pytest.fixture(scope="module", params=[PER_LAYER, NARROW], ids=["per layer", "narrow"])
def root(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("mid")
    export = Case("", "", True, 0, mid=request.param).mid_export(folder)
    for backend in BACKENDS:
        build_engine(export, folder / backend, backend=backend)
    return folder


@pytest.fixture(scope="module")
def engines(root: Path) -> Iterator[dict[str, MidEngine]]:
    opened: dict[str, Any] = {backend: open_engine(root / backend, threads=1) for backend in BACKENDS}
    assert all(isinstance(engine, MidEngine) for engine in opened.values())
    yield opened
    for engine in opened.values():
        engine.close()


def rows(count: int, seed: int = 0) -> Batch:
    return Batch(**random_rows(np.random.default_rng(seed), count, vocab=110, features=True))


def joined(engine: MidEngine, batch: Batch) -> StateBatch:
    """The rows with their items encoded."""
    real = batch.attention_mask == 1
    query, item = (_compact(batch.input_ids, real & (batch.token_type_ids == side)) for side in (0, 1))
    states, scales = engine.encode_items(*item)
    index = np.arange(batch.size, dtype=np.int32)
    return StateBatch(*query, index, states, scales, item[1], batch.feature_ids, batch.feature_weights)


@settings(max_examples=10, deadline=None)
@given(seed=st.integers(0, 1000), count=st.integers(1, 12))
def test_backends_agree_with_the_reference(engines: dict[str, MidEngine], seed: int, count: int) -> None:
    batch = joined(engines["reference"], rows(count, seed))
    expected = engines["reference"].run_states(batch)
    np.testing.assert_allclose(engines["ort"].run_states(batch), expected, rtol=1e-4, atol=5e-5)
    np.testing.assert_allclose(engines["native"].run_states(batch), expected, rtol=1e-5, atol=2e-5)


@pytest.mark.parametrize("backend", BACKENDS)
def test_one_query_for_many_items_scores_as_whole_rows_do(engines: dict[str, MidEngine], backend: str) -> None:
    engine, batch = engines[backend], rows(9)
    apart = joined(engine, batch)
    every = [(q, i) for q in (2, 5) for i in range(9)]
    asked, items = np.array([q for q, _ in every]), np.array([i for _, i in every])
    together = StateBatch(
        query_ids=apart.query_ids[[2, 5]],
        query_lengths=apart.query_lengths[[2, 5]],
        query_index=(asked == 5).astype(np.int32),
        states=apart.states[items],
        scales=apart.scales[items],
        item_lengths=apart.item_lengths[items],
        feature_ids=batch.feature_ids[items],
        feature_weights=batch.feature_weights[items],
    )
    found = engine.run_states(together)
    np.testing.assert_allclose(found[[2, 9 + 5]], engine.run(batch)[[2, 5]], atol=0.02)
    alone = replace(
        together,
        **{
            name: getattr(together, name)[7:8]
            for name in StateBatch.__dataclass_fields__
            if name not in ("query_ids", "query_lengths", "queries")
        },
    )
    np.testing.assert_allclose(engine.run_states(alone), found[7:8], atol=1e-4)


@pytest.mark.parametrize("backend", BACKENDS)
def test_states_of_items_end_to_end_are_those_of_each_item(engines: dict[str, MidEngine], root: Path, backend: str) -> None:
    model = json.loads((root / backend / "model.json").read_text())
    spec, layout = StateSpec.from_model(model), MidLayout.from_model(model, Limits.from_model(model))
    assert spec is not None
    rng = np.random.default_rng(0)
    items = [rng.integers(5, 110, length).astype(np.int32) for length in (3, 0, 29, 7, 7)]
    offsets = np.r_[0, np.cumsum([len(item) for item in items])]
    found = engines[backend].encode_ragged(np.concatenate(items), offsets)
    states, scales = found.values, found.scales
    np.testing.assert_array_equal(np.diff(found.offsets), [len(item) + 1 for item in items])
    assert states.nbytes + scales.nbytes == spec.token_bytes * (int(offsets[-1]) + len(items))
    sizes = scales if spec.scales else np.ones((len(states), spec.groups), np.float32)
    whole = states.reshape(len(states), spec.groups, spec.width) * sizes[:, :, None]
    for place, item in enumerate(items):
        alone = np.concatenate([item, layout.suffix]).astype(np.int32)
        kept, size = engines[backend].encode_items(alone[None], np.array([len(alone)], np.int32))
        start = offsets[place] + place
        one = kept[0].reshape(len(alone), spec.groups, spec.width) * (size[0] if spec.scales else np.ones((len(alone), 1)))[:, :, None]
        np.testing.assert_allclose(whole[start : start + len(alone)], one, atol=0.05)


@pytest.mark.parametrize("backend", BACKENDS)
def test_queries_encoded_beforehand_score_as_they_do_in_the_call(engines: dict[str, MidEngine], backend: str) -> None:
    engine, batch = engines[backend], joined(engines[backend], rows(6))
    assert isinstance(engine, QueryEngine)
    queries = engine.encode_queries(batch.query_ids, batch.query_lengths)
    np.testing.assert_array_equal(engine.run_states(replace(batch, queries=queries)), engine.run_states(batch))
    assert queries is not None
    with pytest.raises(EngineError, match="batch: queries is"):
        engine.run_states(replace(batch, queries=queries[:, :, :-1]))
    with pytest.raises(EngineError, match="batch: query_ids"):
        engine.encode_queries(batch.query_ids + 1000, batch.query_lengths)


def change(**values: Callable[[Any], Any]) -> Callable[[StateBatch], StateBatch]:
    return lambda batch: replace(batch, **{name: make(getattr(batch, name)) for name, make in values.items()})


WRONG = {
    "an unknown query": change(query_index=lambda a: a + 1),
    "a negative query": change(query_index=lambda a: a - 1),
    "int64 queries": change(query_index=lambda a: a.astype(np.int64)),
    "states of another type": change(states=lambda a: a.astype(np.float64)),
    "states too narrow": change(states=lambda a: a[:, :, :-1]),
    "states of other rows": change(states=lambda a: a[:-1]),
    "scales of other rows": change(scales=lambda a: a[:-1]),
    "a length beyond the states": change(item_lengths=lambda a: a + 99),
    "a negative length": change(item_lengths=lambda a: a - 99),
    "a query too long": change(query_ids=lambda a: np.pad(a, ((0, 0), (0, 60)))),
    "a query length beyond its tokens": change(query_lengths=lambda a: a + 99),
    "a token out of range": change(query_ids=lambda a: a + 1000),
    "features of other rows": change(feature_ids=lambda a: a[:-1]),
    "a feature out of range": change(feature_ids=lambda a: a + 10**6),
}


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_batch_of_states_is_an_engine_error(engines: dict[str, MidEngine], backend: str, name: str) -> None:
    batch = joined(engines[backend], rows(4))
    with pytest.raises(EngineError, match="batch: "):
        engines[backend].run_states(WRONG[name](batch))
    assert engines[backend].run_states(batch).shape == (4,)


@pytest.mark.parametrize("backend", BACKENDS)
def test_wrong_items_are_an_engine_error_and_none_are_fine(engines: dict[str, MidEngine], backend: str) -> None:
    encode, ids = engines[backend].encode_items, np.full((2, 5), 7, np.int32)
    for wrong in (
        (ids + 1000, [5, 5]),
        (ids, [5, 6]),
        (ids, [5]),
        (np.pad(ids, ((0, 0), (0, 99))), [5, 5]),
        (ids.astype(np.int64), [5, 5]),
    ):
        with pytest.raises(EngineError, match="batch: item_ids"):
            encode(wrong[0], np.array(wrong[1], np.int32))
    assert encode(ids[:0], np.zeros(0, np.int32))[0].shape[:2] == (0, 5)


def test_a_bundle_holds_its_graphs_and_is_whole(root: Path) -> None:
    manifest = verify_bundle(root / "ort")
    assert {"engine.onnx", "items.onnx", "query.onnx"} <= manifest.files.keys()
    assert verify_bundle(root / "reference").content_id == manifest.content_id


@pytest.mark.parametrize(
    ("breaks", "message"),
    [
        (lambda e: (e / "item_encoder.onnx").unlink(), "item_encoder.onnx cannot be read"),
        (lambda e: (e / "item_encoder.onnx").write_bytes((e / "ranker.onnx").read_bytes()), "has inputs"),
        (lambda e: edit(e, "states", sha256="0" * 64), "the export is mixed"),
        (lambda e: edit(e, "states", width=0), "states: groups and width"),
        (lambda e: edit(e, "states", precision="int4"), "states: precision"),
        (lambda e: edit(e, "states", more=1), "states must be an object"),
        (lambda e: edit(e, "student", interaction="cross"), "interaction"),
        (lambda e: edit(e, "student", item_start=0), "positive integers"),
        (lambda e: edit(e, "text", item_type=0), "mid-fusion student"),
    ],
)
def test_a_broken_export_is_refused(root: Path, tmp_path: Path, breaks: Callable[[Path], object], message: str) -> None:
    shutil.copytree(root / "export", tmp_path / "export")
    breaks(tmp_path / "export")
    with pytest.raises(BuildError, match=message):
        build_engine(tmp_path / "export", tmp_path / "bundle")


def edit(export: Path, part: str, **values: Any) -> None:
    model = json.loads((export / "model.json").read_text())
    model[part] |= values
    (export / "model.json").write_text(json.dumps(model))


def test_weights_of_another_student_are_refused(root: Path, tmp_path: Path) -> None:
    from safetensors.numpy import load_file, save_file

    shutil.copytree(root / "export", tmp_path / "export")
    weights = load_file(tmp_path / "export" / "student.safetensors")
    del weights["query.layers.1.state_key.bias"]
    save_file(weights, tmp_path / "export" / "student.safetensors")
    with pytest.raises((BuildError, BundleError), match="does not hold the student"):
        build_engine(tmp_path / "export", tmp_path / "bundle", backend="reference")
