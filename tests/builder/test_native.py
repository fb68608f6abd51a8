"""engine.bin: weights are packed as the kernels read them, and a student the native engine does not run is refused with the reason."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from fixtures_export import make_export, write_safetensors
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import helper

from edgerec.builder import build_engine
from edgerec.builder.contract import read_export
from edgerec.builder.native import native_engine
from edgerec.builder.native_packer import as_bf16, pack_bf16, pack_int8, pack_linear
from edgerec.builder.weights import read_safetensors
from edgerec.engine import open_engine
from edgerec.errors import BuildError
from edgerec.segment import SectionFile

Weights = dict[str, np.ndarray]


def sections(export: Path, precision: str, folder: Path) -> SectionFile:
    path = folder / f"{precision}.bin"
    path.write_bytes(native_engine(read_export(export), precision))
    return SectionFile(path)


def rewrite(export: Path, change: Callable[[Weights], object]) -> None:
    """Change the weights of an export, and leave its graph as it is."""
    path = export / "student.safetensors"
    weights = read_safetensors(path.read_bytes(), str(path))
    change(weights)
    write_safetensors(path, weights, {"format": "edgerec-student"})


@settings(max_examples=60, deadline=None)
@given(rows=st.integers(1, 70), columns=st.integers(1, 9), seed=st.integers(0, 99))
def test_float_weights_lie_in_panels_of_32_outputs(rows: int, columns: int, seed: int) -> None:
    weight = np.random.default_rng(seed).standard_normal((rows, columns)).astype(np.float32)
    packed = pack_linear(weight)
    assert packed.shape == (-(-rows // 32), columns, 32)
    for n in range(len(packed) * 32):
        np.testing.assert_array_equal(packed[n // 32, :, n % 32], weight[n] if n < rows else np.zeros(columns))


@settings(max_examples=60, deadline=None)
@given(panels=st.integers(1, 3), fours=st.integers(1, 5), seed=st.integers(0, 99), size=st.sampled_from([1e-20, 1e-3, 1.0, 1e20]))
def test_int8_weights_are_within_half_a_step_and_their_sums_are_theirs(panels: int, fours: int, seed: int, size: float) -> None:
    weight = (size * np.random.default_rng(seed).standard_normal((32 * panels, 4 * fours))).astype(np.float32)
    weight[3] = 0  # an output without weights
    packed, scale, sums = pack_int8(weight)
    assert (packed.shape, packed.dtype) == ((panels, fours, 32, 4), np.int8)
    q = np.array([packed[n // 32, :, n % 32, :].reshape(-1) for n in range(32 * panels)], np.float64)
    pairs = np.abs(q[:, 0::2] + q[:, 1::2])
    assert np.abs(q).max() <= 127
    assert pairs.max() <= 128  # times a byte it fits 16 bits
    rest = np.arange(len(q)) != 3
    assert np.all(np.maximum(np.abs(q).max(axis=1), pairs.max(axis=1))[rest] >= 126)  # ... and no range is left unused
    assert np.all(np.abs(q * scale[:, None] - weight) <= 0.5001 * scale[:, None])
    np.testing.assert_allclose(sums, q.sum(axis=1) * scale, rtol=1e-6)
    assert not q[3].any()
    assert sums[3] == 0


@settings(max_examples=60, deadline=None)
@given(panels=st.integers(1, 3), pairs=st.integers(1, 9), seed=st.integers(0, 99), size=st.sampled_from([1e-20, 1e-3, 1.0, 1e20]))
def test_bf16_weights_are_the_nearest_and_lie_in_pairs(panels: int, pairs: int, seed: int, size: float) -> None:
    weight = (size * np.random.default_rng(seed).standard_normal((32 * panels, 2 * pairs))).astype(np.float32)
    packed = pack_bf16(weight)
    assert (packed.shape, packed.dtype) == ((panels, pairs, 32, 2), np.uint16)
    halves = np.array([packed[n // 32, :, n % 32, :].reshape(-1) for n in range(32 * panels)])
    widened = (halves.astype(np.uint32) << 16).view(np.float32)
    assert np.all(np.abs(widened - weight) <= 2.0**-8 * np.abs(weight))


def test_of_two_bf16_as_near_the_even_one_is_taken() -> None:
    bits = np.array([0x3F808000, 0x3F818000, 0x3F808001, 0x3F817FFF, 0x80000000], np.uint32)
    assert as_bf16(bits.view(np.float32)).tolist() == [0x3F80, 0x3F82, 0x3F81, 0x3F81, 0x8000]


@pytest.mark.parametrize("precision", ["fp32", "bf16", "int8"])
def test_the_file_holds_what_the_format_says(tmp_path: Path, precision: str) -> None:
    export = make_export(tmp_path / "export", layers=2, hidden=64, pooler=True, pruned=[(3, 40), (4, 256)])
    found = sections(export, precision, tmp_path)
    weights = read_safetensors((export / "student.safetensors").read_bytes(), "x")
    vocab = weights["tower.word_embeddings.weight"].shape[0]
    assert found.column("config", np.int32).tolist() == [
        64,
        16,
        2,
        vocab,
        64,
        2,
        1,
        512,
        8,
        8,
        {"fp32": 0, "int8": 1, "bf16": 2}[precision],
    ]
    # Three heads of 16 become four, 40 inner units 64: whole panels.
    assert found.column("layers", np.int32, rank=2).tolist() == [[4, 64], [4, 256]]
    assert found.column("head", np.float32).shape == (64 + 8 + 1,)
    bias = found.column("layer00.qkv.bias", np.float32)
    np.testing.assert_allclose(bias[:48], weights["tower.layers.0.query.bias"] / 4, rtol=1e-6)  # 1 / sqrt(16) is folded in
    assert not bias[48:64].any()
    np.testing.assert_array_equal(bias[128 : 128 + 48], weights["tower.layers.0.value.bias"])
    assert ("layer00.up.scale" in found) == (precision == "int8")


def test_the_same_export_gives_the_same_bytes(tmp_path: Path) -> None:
    export = read_export(make_export(tmp_path / "export"))
    assert native_engine(export, "int8") == native_engine(export, "int8")


def test_an_unknown_operator_is_named(tmp_path: Path) -> None:
    export = make_export(tmp_path / "export")
    model = onnx.load(export / "student.onnx")
    last = model.graph.node[-1]
    last.output[0] = "before"
    model.graph.node.append(helper.make_node("Softplus", ["before"], ["logits"], name="odd_one"))
    onnx.save(model, export / "student.onnx")
    with pytest.raises(BuildError, match=r"operator Softplus \(node 'odd_one'\); --backend ort will take it"):
        native_engine(read_export(export), "fp32")


@pytest.mark.parametrize(("how", "said", "refused"), [("tanh", False, True), ("tanh", True, False), ("none", False, False)])
def test_a_tanh_gelu_that_model_json_says_nothing_of_is_refused(tmp_path: Path, how: str, said: bool, refused: bool) -> None:
    export = make_export(tmp_path / "export", gelu="tanh" if said else "exact")
    model = onnx.load(export / "student.onnx")
    model.graph.node.append(helper.make_node("Gelu", ["logits"], ["unused"], name="g", approximate=how))
    onnx.save(model, export / "student.onnx")
    source = read_export(export)
    if refused:
        with pytest.raises(BuildError, match="Gelu with the tanh approximation"):
            native_engine(source, "fp32")
    else:
        assert native_engine(source, "fp32")[:8] == b"EDRSECT1"


def test_an_unknown_gelu_is_refused(tmp_path: Path) -> None:
    source = read_export(make_export(tmp_path / "export", gelu="swish"))
    with pytest.raises(BuildError, match="the GELU 'swish'; --backend ort will take it"):
        native_engine(source, "fp32")


REFUSED: dict[str, tuple[Callable[[Weights], object], str]] = {
    "a weight is missing": (lambda w: w.pop("tower.layers.1.output.bias"), "tower.layers.1.output.bias is missing"),
    "a weight too many": (lambda w: w.update({"tower.adapter.weight": np.zeros((2, 2), np.float32)}), r"does not know: tower\.adapter"),
    "another shape": (lambda w: w.update({"head.weight": np.zeros((1, 41), np.float32)}), "head.weight is"),
    "NaN": (lambda w: w["tower.type_embeddings.weight"].__setitem__((0, 0), np.nan), "NaN"),
    "infinity": (lambda w: w["features.hidden.bias"].__setitem__(0, np.inf), "NaN or infinity"),
    "heads that are not whole": (lambda w: w.update({"tower.layers.0.query.weight": np.zeros((31, 32), np.float32)}), "not whole heads"),
    "three types": (lambda w: w.update({"tower.type_embeddings.weight": np.zeros((3, 32), np.float32)}), "3 token types"),
    "few positions": (lambda w: w.update({"tower.position_embeddings.weight": np.zeros((9, 32), np.float32)}), "9 positions"),
    "no features": (lambda w: w.pop("features.embedding.weight"), "features.embedding.weight is missing"),
}


@pytest.mark.parametrize("name", REFUSED)
@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_weights_that_do_not_fit_are_refused_with_the_way_out(tmp_path: Path, name: str, precision: str) -> None:
    export = make_export(tmp_path / "export")
    change, message = REFUSED[name]
    rewrite(export, change)
    with pytest.raises(BuildError, match=message) as error:
        native_engine(read_export(export), precision)
    assert "--backend ort" in str(error.value)


def test_a_hidden_size_of_no_whole_panels_is_refused(tmp_path: Path) -> None:
    export = read_export(make_export(tmp_path / "export", hidden=48))
    with pytest.raises(BuildError, match="hidden size 48"):
        native_engine(export, "fp32")


def test_a_bundle_says_what_it_is(tmp_path: Path) -> None:
    report = build_engine(make_export(tmp_path / "export"), tmp_path / "bundle", backend="native", precision="int8")
    assert (report.backend, report.precision, report.reduced_range) == ("native", "int8", False)
    engine = open_engine(tmp_path / "bundle")
    assert (engine.backend, engine.precision) == ("native", "int8")


def test_weights_that_are_not_those_of_the_graph_do_not_pass_parity(tmp_path: Path) -> None:
    export = make_export(tmp_path / "export")
    rewrite(export, lambda w: w["tower.layers.0.value.weight"].__imul__(-1))
    with pytest.raises(BuildError, match="fp32 native engine"):
        build_engine(export, tmp_path / "bundle", backend="native")
    assert not (tmp_path / "bundle").exists()
