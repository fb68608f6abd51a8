"""The reference engine is the oracle: it is right by itself, and ONNX Runtime agrees with it."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fixtures_export import make_export, random_rows
from hypothesis import given, settings
from hypothesis import strategies as st

from edgerec.builder import build_engine
from edgerec.engine import Engine, open_engine
from edgerec.engine.reference import erf, gelu, tanh_gelu
from edgerec.types import Batch

SHAPES = [(1, 16, True), (2, 32, True), (3, 64, False)]


@pytest.fixture(scope="module", params=SHAPES, ids=lambda shape: f"{shape[0]} layers x {shape[1]}")
def engines(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Engine, Engine, bool]:
    layers, hidden, features = request.param
    root = tmp_path_factory.mktemp("agreement")
    export = make_export(root / "export", layers=layers, hidden=hidden, features=features, seed=layers)
    for backend in ("ort", "reference"):
        build_engine(export, root / backend, backend=backend)
    return open_engine(root / "ort"), open_engine(root / "reference"), features


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10_000), rows=st.integers(1, 20), width=st.integers(5, 32))
def test_onnxruntime_agrees_with_the_reference(engines: tuple[Engine, Engine, bool], seed: int, rows: int, width: int) -> None:
    ort, reference, features = engines
    batch = Batch(**random_rows(np.random.default_rng(seed), rows, vocab=110, features=features, width=width))
    np.testing.assert_allclose(ort.run(batch), reference.run(batch), rtol=1e-4, atol=2e-5)


# Heads of 8, 16 and 32, sizes that pruning left uneven, with and without a pooler.
STUDENTS = [
    {"layers": 1, "hidden": 32},
    {"layers": 3, "hidden": 64, "features": False, "pooler": True},
    {"layers": 3, "hidden": 32, "pruned": [(1, 100), (3, 31), (4, 1)]},
    {"layers": 2, "hidden": 128, "pruned": [(3, 65), (1, 512)], "pooler": True},
    {"layers": 2, "hidden": 96, "pruned": [(2, 40), (3, 7)]},
    {"layers": 2, "hidden": 64, "gelu": "tanh"},
]


@pytest.mark.parametrize("student", STUDENTS, ids=str)
def test_the_native_engine_agrees_with_the_reference(student: dict[str, Any], tmp_path: Path) -> None:
    export = make_export(tmp_path / "export", **student, seed=3)
    batch = Batch(**random_rows(np.random.default_rng(4), 70, vocab=110, features=student.get("features", True)))
    build_engine(export, tmp_path / "reference", backend="reference")
    expected = open_engine(tmp_path / "reference").run(batch)
    build_engine(export, tmp_path / "fp32", backend="native")
    np.testing.assert_allclose(open_engine(tmp_path / "fp32").run(batch), expected, rtol=1e-5, atol=2e-5)
    for precision in ("bf16", "int8"):
        build_engine(export, tmp_path / precision, backend="native", precision=precision)
        off = open_engine(tmp_path / precision).run(batch) - expected
        # Random weights exaggerate what 8 bits lose; that the right weights meet the right numbers is what this sees.
        assert 0 < np.sqrt(np.mean(off**2)) < 0.1 * np.std(expected)


def test_the_tanh_gelu_is_that_of_onnxruntime_and_not_the_exact_one(tmp_path: Path) -> None:
    batch = Batch(**random_rows(np.random.default_rng(4), 70, vocab=110, features=True))
    logits = {}
    for kind in ("tanh", "exact"):  # the same weights
        export = make_export(tmp_path / kind, gelu=kind, scale=0.6)
        for backend in ("ort", "reference", "native"):
            build_engine(export, tmp_path / f"{kind}-{backend}", backend=backend)
            logits[kind, backend] = open_engine(tmp_path / f"{kind}-{backend}").run(batch)
    for backend in ("ort", "native"):
        np.testing.assert_allclose(logits["tanh", backend], logits["tanh", "reference"], rtol=1e-4, atol=2e-5)
    assert np.abs(logits["tanh", "reference"] - logits["exact", "reference"]).max() > 1e-3


@settings(max_examples=300, deadline=None)
@given(st.floats(-20, 20))
def test_erf_is_that_of_the_c_library(x: float) -> None:
    assert abs(float(erf(np.array([x]))[0]) - math.erf(x)) < 1e-11


def test_erf_at_the_ends() -> None:
    values = erf(np.array([0.0, -0.0, 6.0, -6.0, np.inf, -np.inf, np.nan]))
    np.testing.assert_allclose(values[:6], [0, 0, 1, -1, 1, -1], rtol=0, atol=1e-15)
    assert math.isnan(values[6])


def test_the_tanh_gelu_stays_near_the_exact_one() -> None:
    x = np.linspace(-6, 6, 1001)
    assert 1e-4 < np.abs(tanh_gelu(x) - gelu(x)).max() < 5e-4
    assert tanh_gelu(np.array([0.0]))[0] == 0.0


def test_gelu_of_known_points() -> None:
    np.testing.assert_allclose(gelu(np.array([0.0, 1.0, -1.0, 10.0])), [0, 0.8413447460685429, -0.15865525393145707, 10], atol=1e-11)


def test_a_pooler_is_used_where_there_is_one(tmp_path: Path) -> None:
    with_pooler = make_export(tmp_path / "a", pooler=True)
    without = make_export(tmp_path / "b")
    for name, export in (("a", with_pooler), ("b", without)):
        build_engine(export, tmp_path / f"{name}-reference", backend="reference")
        build_engine(export, tmp_path / f"{name}-ort", backend="ort")
    batch = Batch(**random_rows(np.random.default_rng(0), 8, vocab=110, features=True))
    logits = {name: open_engine(tmp_path / name).run(batch) for name in ("a-reference", "a-ort", "b-reference")}
    np.testing.assert_allclose(logits["a-ort"], logits["a-reference"], rtol=0, atol=2e-5)
    assert np.max(np.abs(logits["a-reference"] - logits["b-reference"])) > 0.1
