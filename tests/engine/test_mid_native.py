"""The native engine of a mid-fusion student: near the reference in every precision, the same bits in any company and on threads; damaged
files and tables are refused."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from fixtures_export import random_rows

from edgerec import _core
from edgerec._native import Encoder
from edgerec.builder import build_engine
from edgerec.builder.contract import read_export
from edgerec.builder.native import native_engine
from edgerec.engine import MidEngine, QueryEngine, RaggedMidEngine, open_engine
from edgerec.engine.mid_native import MidNativeEngine
from edgerec.errors import BuildError, BundleError, EngineError, InputError
from edgerec.states import ItemStates
from edgerec.types import Batch, RaggedStateBatch

from .backends import NARROW, PER_LAYER, Case
from .test_mid import edit, joined
from .test_native_damage import damaged

PRECISIONS = ("fp32", "bf16", "int8")
STUDENTS: dict[str, dict[str, Any]] = {
    "per layer": PER_LAYER,
    "narrow": NARROW,
    "fp16": {**NARROW, "query_layers": 2, "state_precision": "fp16"},
}
OFFSETS = np.array([0, 3, 3, 22, 27, 40, 41], np.int64)


@pytest.fixture(scope="module", params=STUDENTS)
def root(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("mid")
    export = Case("", "", True, 0, mid=STUDENTS[request.param]).mid_export(folder)
    build_engine(export, folder / "reference", backend="reference")
    for precision in PRECISIONS:
        build_engine(export, folder / precision, backend="native", precision=precision, gate={"ndcg_drop": 1.0})
    return folder


def opened(path: Path, threads: int = 1) -> MidNativeEngine:
    engine = open_engine(path, threads=threads)
    assert isinstance(engine, MidNativeEngine)
    assert isinstance(engine, RaggedMidEngine)
    return engine


def items(engine: MidEngine) -> ItemStates:
    return engine.encode_ragged(np.random.default_rng(3).integers(5, 110, OFFSETS[-1]).astype(np.int32), OFFSETS)


def ranking(table: ItemStates, count: int = 70, seed: int = 0) -> RaggedStateBatch:
    """A query, and candidates drawn from the table, some of them several times."""
    rng = np.random.default_rng(seed)
    rows = rng.integers(0, len(table.offsets) - 1, count)
    drawn = random_rows(rng, count, vocab=110, features=True)
    return RaggedStateBatch(
        np.array([2, 40, 50, 60, 3], np.int32),
        table.values,
        table.scales,
        table.offsets[rows],
        table.offsets[rows + 1] - table.offsets[rows],
        drawn["feature_ids"],
        drawn["feature_weights"],
    )


def part(batch: RaggedStateBatch, rows: Any) -> RaggedStateBatch:
    names = ("starts", "lengths", "feature_ids", "feature_weights")
    return replace(batch, **{name: np.ascontiguousarray(getattr(batch, name)[rows]) for name in names})


@pytest.mark.parametrize("precision", PRECISIONS)
def test_logits_are_near_those_of_the_reference(root: Path, precision: str) -> None:
    reference, engine = open_engine(root / "reference"), opened(root / precision)
    assert isinstance(reference, MidEngine)
    batch = joined(reference, Batch(**random_rows(np.random.default_rng(4), 60, vocab=110, features=True)))
    expected = reference.run_states(batch)
    off = engine.run_states(batch) - expected
    if precision == "fp32":
        np.testing.assert_allclose(off, 0, atol=2e-5)
    else:  # that the right weights meet the right numbers is what this sees
        assert 0 < np.sqrt(np.mean(off**2)) < 0.1 * np.std(expected)


@pytest.mark.parametrize("precision", PRECISIONS)
def test_query_rows_are_those_of_the_reference_and_the_same_bits_in_company(root: Path, precision: str) -> None:
    reference, engine = open_engine(root / "reference"), opened(root / precision, 2)
    assert isinstance(reference, QueryEngine)
    assert isinstance(engine, QueryEngine)
    ids, lengths = np.array([[2, 40, 50, 60, 3], [2, 7, 3, 0, 0]], np.int32), np.array([5, 3], np.int32)
    expected, found = reference.encode_queries(ids, lengths), engine.encode_queries(ids, lengths)
    assert expected is not None
    for row, length in enumerate(lengths):
        off = found[row, :length] - expected[row, :length]
        assert np.abs(off).max() < (2e-5 if precision == "fp32" else 0.1 * np.std(expected[row, :length]) + 0.1)
        assert not found[row, length:].any()
        np.testing.assert_array_equal(engine.encode_queries(ids[row : row + 1, :length], lengths[row : row + 1])[0], found[row, :length])
    assert engine.encode_queries(ids[:0], lengths[:0]).shape == (0, 5, found.shape[2])
    with pytest.raises(EngineError, match="batch: query: "):
        engine.encode_queries(ids, np.array([5, 0], np.int32))


def test_states_are_those_of_the_reference(root: Path) -> None:
    reference, engine = open_engine(root / "reference"), opened(root / "fp32")
    assert isinstance(reference, MidEngine)
    expected, found = items(reference), items(engine)
    np.testing.assert_array_equal(found.offsets, expected.offsets)
    np.testing.assert_allclose(found.scales, expected.scales, rtol=1e-5)
    # A number between two steps of what is stored may be rounded to either.
    step = 1 if expected.values.dtype == np.int8 else 0.01 if expected.values.dtype == np.float16 else 2e-5
    off = np.abs(found.values.astype(np.float64) - expected.values)
    assert off.max() <= step
    assert np.mean(off > 0.5 * step) < 0.01


@pytest.mark.parametrize("precision", PRECISIONS)
def test_the_same_bits_alone_in_company_and_on_threads(root: Path, precision: str) -> None:
    engine = opened(root / precision)
    table = items(engine)
    batch = ranking(table)
    together = engine.run_ragged_states(batch)
    alone = [engine.run_ragged_states(part(batch, slice(i, i + 1)))[0] for i in range(batch.size)]
    np.testing.assert_array_equal(together, alone)
    order = np.random.default_rng(1).permutation(batch.size)
    np.testing.assert_array_equal(engine.run_ragged_states(part(batch, order)), together[order])
    for threads in (2, 3):
        other = opened(root / precision, threads)
        np.testing.assert_array_equal(other.run_ragged_states(batch), together)
        again = items(other)
        np.testing.assert_array_equal(again.values, table.values)
        np.testing.assert_array_equal(again.scales, table.scales)
        other.close()


def test_every_instruction_set_is_near_the_scalar_one(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for precision in PRECISIONS:
        found = {}
        for isa in _core.isas():
            monkeypatch.setenv("EDGEREC_ISA", isa)
            engine = opened(root / precision)
            found[isa] = engine.run_ragged_states(ranking(items(opened(root / "fp32"))))
        for isa, logits in found.items():
            np.testing.assert_allclose(logits, found["scalar"], atol=2e-5 if precision == "fp32" else 0.03, err_msg=isa)


def test_rows_without_time_are_nan_and_not_done(root: Path) -> None:
    engine = opened(root / "int8", 2)
    batch, done = ranking(items(engine)), np.ones(70, np.bool_)
    logits = engine.run_ragged_states(batch, deadline_ns=1, done=done)
    assert not done.any()
    assert np.isnan(logits).all()
    np.testing.assert_array_equal(engine.run_ragged_states(batch, deadline_ns=(1 << 63) - 1, done=done), engine.run_ragged_states(batch))
    assert done.all()


def change(**values: Callable[[Any], Any]) -> Callable[[RaggedStateBatch], RaggedStateBatch]:
    return lambda batch: replace(batch, **{name: make(getattr(batch, name)) for name, make in values.items()})


WRONG = {
    "an item before the table": change(starts=lambda a: a - 100),
    "an item behind the table": change(starts=lambda a: a + 100),
    "an item longer than the table": change(lengths=lambda a: a + (1 << 40)),
    "a negative length": change(lengths=lambda a: a - 100),
    "starts of other rows": change(starts=lambda a: a[:-1]),
    "int32 starts": change(starts=lambda a: a.astype(np.int32)),
    "a query without tokens": change(query_ids=lambda a: a[:0]),
    "a query too long": change(query_ids=lambda a: np.resize(a, 60)),
    "a token out of range": change(query_ids=lambda a: a + 1000),
    "states of another type": change(states=lambda a: a.astype(np.float64)),
    "states cut inside a token": change(states=lambda a: a.reshape(-1)[:-1]),
    "scales of other tokens": change(scales=lambda a: np.ones((len(a) + 1, 1), np.float32)),
    "features of other rows": change(feature_ids=lambda a: a[:-1]),
    "a feature out of range": change(feature_ids=lambda a: a + 10**6),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_ranking_is_an_engine_error(root: Path, name: str) -> None:
    engine = opened(root / "int8")
    batch = ranking(items(engine), 4)
    with pytest.raises(EngineError, match="batch: "):
        engine.run_ragged_states(WRONG[name](batch))
    assert engine.run_ragged_states(batch).shape == (4,)


def test_a_damaged_file_is_refused_or_answers(root: Path) -> None:
    data, rng = (root / "int8" / "engine.bin").read_bytes(), np.random.default_rng(5)
    batch = ranking(items(opened(root / "int8")), 3)
    answered = 0
    for _ in range(300):
        broken = damaged(data, rng)
        room = np.empty(len(broken) + 64, np.uint8)
        aligned = room[-room.ctypes.data % 64 :][: len(broken)]
        aligned[:] = np.frombuffer(broken, np.uint8)
        features = batch.feature_ids.reshape(-1), batch.feature_weights.reshape(-1)
        try:
            encoder = Encoder(aligned, isa="scalar", threads=1)
            found = encoder.rank(
                batch.query_ids, batch.states.reshape(-1), batch.scales.reshape(-1), batch.starts, batch.lengths, *features
            )
            answered += found.shape == (3,)
        except InputError:
            pass
    assert 50 < answered < 250


def test_the_engine_of_another_student_is_refused(root: Path, tmp_path: Path) -> None:
    for place, name, value in (("student", "item_start", 9), ("states", "precision", "fp32"), ("states", "width", 8)):
        copy = Path(shutil.copytree(root / "int8", tmp_path / name))
        if json.loads((copy / "model.json").read_text())[place][name] == value:
            continue
        edit(copy, place, **{name: value})
        content = (copy / "model.json").read_bytes()
        manifest = json.loads((copy / "manifest.json").read_text())
        manifest["files"]["model.json"] = {"sha256": hashlib.sha256(content).hexdigest(), "bytes": len(content)}
        (copy / "manifest.json").write_text(json.dumps(manifest))
        with pytest.raises(BundleError, match="does not hold the student"):
            open_engine(copy, probe=False)


def test_without_a_backend_native_is_picked(root: Path, tmp_path: Path) -> None:
    report = build_engine(root / "export", tmp_path / "bundle")
    assert (report.backend, report.backend_reason) == ("native", "the native engine runs this student")
    assert not (tmp_path / "bundle" / "items.onnx").exists()


@pytest.mark.parametrize("name", ["graph", "item_graph"])
def test_an_operator_it_does_not_run_is_named(root: Path, name: str) -> None:
    export = read_export(root / "export")
    model = onnx.load_model_from_string(getattr(export, name))
    next(node for node in model.graph.node if node.op_type == "Gelu").op_type = "Softplus"
    file = {"graph": "ranker.onnx", "item_graph": "item_encoder.onnx"}[name]
    with pytest.raises(BuildError, match=rf"{file}: the native engine does not run operator Softplus .*--backend ort"):
        native_engine(replace(export, **{name: model.SerializeToString()}), "fp32")


def test_weights_of_another_student_are_refused(root: Path) -> None:
    export = read_export(root / "export")
    for name, value, message in (("item_layers", 99, "99 item layers"), ("query_layers", 0, "0 query layers")):
        model = {**export.model, "student": {**export.model["student"], name: value}}
        with pytest.raises(BuildError, match=message):
            native_engine(replace(export, model=model), "int8")
    assert export.states is not None
    with pytest.raises(BuildError, match=r"narrow|state_key"):
        native_engine(replace(export, states=replace(export.states, width=export.states.width // 2)), "fp32")
