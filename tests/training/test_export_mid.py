"""The two graphs of a mid-fusion student together are the student, however rows are cut into batches and padded."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
from edgerec.training.data import load_dataset
from edgerec.training.export import export_student
from edgerec.training.pairs import TokenTable, query_pairs
from edgerec.training.student import StudentScorer
from fixtures_mid import write_mid_student
from fixtures_traced import export_traced_once
from numpy.typing import NDArray

from edgerec.errors import InputError
from edgerec.states import StateSpec

KINDS: dict[str, dict[str, Any]] = {
    "per layer, fp32": {"query_layers": 1},
    "one, narrow, int8": {"query_layers": 1, "states": "one", "state_width": 16, "state_precision": "int8"},
    "one, fp16, no features": {"query_layers": 2, "states": "one", "state_precision": "fp16", "features": False},
}


@pytest.fixture(scope="module", params=KINDS)
def folders(request: pytest.FixtureRequest, shop: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    root = tmp_path_factory.mktemp("mid")
    student = write_mid_student(root / "student", shop, **KINDS[request.param])
    return student, export_traced_once(student, root / "export", data=[shop])


def padded(rows: list[NDArray[np.int32]], extra: int) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
    lengths = np.array([len(row) for row in rows], np.int32)
    ids = np.full((len(rows), int(lengths.max()) + extra), 7, np.int32)  # junk, not padding: nothing may read it
    for place, row in enumerate(rows):
        ids[place, : len(row)] = row
    return ids, lengths


def test_the_export_says_what_it_is(folders: tuple[Path, Path]) -> None:
    student, export = folders
    model = json.loads((export / "model.json").read_text())
    assert model["export_check"]["max_abs_diff"] < 1e-4
    assert model["student"]["interaction"] == "mid"
    spec = StateSpec.from_model(model)
    assert spec is not None
    assert spec.sha256 == hashlib.sha256((export / "item_encoder.onnx").read_bytes()).hexdigest()
    shape = StudentScorer.load(student).student.shape
    assert (spec.width, spec.precision) == (getattr(shape, "state_width"), getattr(shape, "state_precision"))  # noqa: B009
    assert not (export / "student.onnx").exists()


@pytest.mark.parametrize(("cut", "extra"), [(1, 0), (3, 5), (7, 1), (20, 9)])
def test_the_pair_of_graphs_scores_as_torch(folders: tuple[Path, Path], shop: Path, cut: int, extra: int) -> None:
    student, export = folders
    scorer = StudentScorer.load(student)
    spec = StateSpec.from_model(json.loads((export / "model.json").read_text()))
    assert spec is not None
    items = list(load_dataset(shop).items.values())
    encoder, ranker = (onnxruntime.InferenceSession(str(export / f"{name}.onnx")) for name in ("item_encoder", "ranker"))
    taken = {value.name for value in ranker.get_inputs()}
    for query in ("blue sofa", "", "red red red lamp of a shelf and a chair and a very long table"):
        pairs = query_pairs(query, items)
        table, hashed, found = TokenTable(pairs, scorer.text), scorer.hash(pairs), []
        for start in range(0, len(items), cut):
            rows = np.arange(start, min(start + cut, len(items)))
            item_ids, item_lengths = padded([table.item_row(r) for r in rows], extra)
            states = encoder.run(["states"], {"item_ids": item_ids, "item_lengths": item_lengths})[0]
            kept, scales = spec.store(states)
            query_ids, query_lengths = padded([table.query_row(np.int64(0))], extra)
            feeds = {
                "query_ids": query_ids,
                "query_lengths": query_lengths,
                "query_index": np.zeros(len(rows), np.int32),
                "states": kept,
                "state_scales": scales,
                "item_lengths": item_lengths,
            }
            if hashed is not None:
                feeds |= {"feature_ids": hashed.ids[rows], "feature_weights": hashed.weights[rows]}
            found.append(ranker.run(["logits"], {name: value for name, value in feeds.items() if name in taken})[0])
        # A state between two steps of its rounding may fall to either side.
        tolerance = {"fp32": 1e-4, "fp16": 1e-3, "int8": 2e-2}[spec.precision]
        np.testing.assert_allclose(np.concatenate(found), scorer.score(query, items), atol=tolerance)


def test_the_calibration_sample_holds_whole_rows_and_torchs_logits(folders: tuple[Path, Path]) -> None:
    student, export = folders
    scorer = StudentScorer.load(student)
    with np.load(export / "calibration.npz") as sample:
        ids, types, mask = sample["input_ids"], sample["token_type_ids"], sample["attention_mask"]
        assert np.isfinite(sample["logits"]).all()
        assert len(sample["logits"]) == len(ids) == len(sample["grades"])
        spec = scorer.text.spec
        for row in range(len(ids)):
            head = ids[row, (types[row] == spec.query_type) & (mask[row] == 1)]
            tail = ids[row, (types[row] == spec.item_type) & (mask[row] == 1)]
            assert head.tolist()[:1] == list(spec.prefix)
            assert head.tolist()[-1:] == list(spec.middle)
            assert tail.tolist()[-1:] == list(spec.suffix)


def test_states_may_be_kept_in_another_precision_than_the_recipes(folders: tuple[Path, Path], shop: Path) -> None:
    items = list(load_dataset(shop).items.values())
    exact, halves, bytes_ = (
        StudentScorer.load(folders[0], state_precision=kept).score("blue sofa", items) for kept in ("fp32", "fp16", "int8")
    )
    assert 0 < np.abs(halves - exact).max() < np.abs(bytes_ - exact).max() < 0.1 * exact.std() + 0.05
    with pytest.raises(InputError, match="state_precision"):
        StudentScorer.load(folders[0], state_precision="int4")


@pytest.mark.parametrize("folders", ["one, fp16, no features"], indirect=True)
def test_an_export_takes_the_precision_it_is_asked_for(folders: tuple[Path, Path], tmp_path: Path) -> None:
    model = export_student(folders[0], tmp_path / "export", state_precision="int8")
    assert model["states"]["precision"] == "int8"
