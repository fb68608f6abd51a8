"""Pruning: what goes is what matters least, the rest computes what it did, and the smaller student lives like any other."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from edgerec.training.config import LossSettings, PruneSettings, Recipe, StudentSettings
from edgerec.training.data import load_dataset
from edgerec.training.distill import distill
from edgerec.training.export import export_student
from edgerec.training.prune import BLOCK, Units, choose, flops, importance, prune, smaller
from edgerec.training.student import Student, StudentScorer, StudentShape
from edgerec.training.teacher import train_teacher
from edgerec.training.vocabulary import remap, token_counts
from fixtures_tiny import tiny_recipe, write_base_model
from safetensors.torch import load_file
from torch import Tensor

from edgerec.builder import Tolerance, Tolerances, build_engine
from edgerec.engine import open_engine
from edgerec.engine.probe import batch_from, read_arrays
from edgerec.errors import BuildError, BundleError, InputError
from edgerec.types import Item

SHAPE = StudentShape(layers=2, hidden=32, heads=4, intermediate=64, vocab=50, positions=16, pooler=True)
LOOSE = Tolerances(int8=Tolerance(max_abs_diff=1.0, ndcg_drop=0.3, top_overlap=0.0, tau=0.0))
LOSS = LossSettings(bce=0.5, mse=0.5, margin_mse=0.2)


@pytest.fixture(scope="module")
def teacher(shop: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    work = tmp_path_factory.mktemp("work")
    train_teacher([shop], str(write_base_model(work / "bert")), tiny_recipe(), work / "teacher")
    return work / "teacher"


@pytest.fixture(scope="module")
def student(teacher: Path, shop: Path) -> Path:
    settings = StudentSettings(buckets=256, slots=8, feature_dim=4, feature_hidden=4)
    distill(teacher, [shop], tiny_recipe(loss=LOSS, student=settings), teacher.parent / "student")
    return teacher.parent / "student"


def recipe(**settings: object) -> Recipe:
    return tiny_recipe(loss=LOSS, prune=PruneSettings(**settings))  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def pruned(student: Path, shop: Path) -> Path:
    prune(student, [shop], recipe(flops=0.6, batches=4, vocabulary=True), student.parent / "pruned")
    return student.parent / "pruned"


@pytest.fixture(scope="module")
def exported(pruned: Path, shop: Path) -> Path:
    assert export_student(pruned, pruned.parent / "export", data=[shop])["export_check"]["max_abs_diff"] < 1e-4
    return pruned.parent / "export"


@pytest.fixture
def own(exported: Path, tmp_path: Path) -> Path:
    """A copy of the export that a test may break."""
    return Path(shutil.copytree(exported, tmp_path / "own"))


def rows(seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(0, SHAPE.vocab, (6, 9), generator=generator)
    return ids, torch.ones_like(ids), torch.zeros_like(ids)


def a_student() -> Student:
    torch.manual_seed(3)
    return Student(SHAPE).eval()


class SumTask:
    """The loss is a weighted sum of the logits of some rows."""

    def __init__(self, student: Student) -> None:
        self.student = student

    def losses(self, rows_: object, epoch: int, progress: float) -> dict[str, Tensor]:
        return {"sum": (self.student(*rows(epoch)) * torch.arange(1.0, 7.0)).sum()}

    def queries(self, rows_: np.ndarray) -> np.ndarray:  # type: ignore[type-arg]
        return rows_

    def evaluate(self) -> dict[str, float]:
        return {"objective": 0.0}


def test_importance_is_the_gradient_of_a_gate_on_each_unit() -> None:
    student = a_student()
    found = importance(student, SumTask(student), [np.arange(6)])
    size = SHAPE.head_size
    with torch.no_grad():
        for number, layer in enumerate(student.tower.layers):
            for linear, units, width in ((layer.attention_output, found[number].heads, size), (layer.output, found[number].columns, 1)):
                for unit in (0, len(units) - 1):
                    whole, losses = linear.weight.clone(), []
                    for gate in (1.001, 0.999):
                        linear.weight[:, unit * width : (unit + 1) * width] *= gate
                        losses.append(SumTask(student).losses(None, 0, 0.0)["sum"].item())
                        linear.weight.copy_(whole)
                    assert units[unit] == pytest.approx(abs(losses[0] - losses[1]) / 0.002, rel=0.02, abs=2e-3)


def test_a_student_without_silent_units_gives_the_same_logits() -> None:
    student = a_student()
    kept = [Units(np.array([0, 2]), np.arange(8, 32)), Units(np.array([3]), np.arange(0, 64, 2))]
    found = smaller(student, kept).eval()
    assert found.shape.layer_sizes() == [(2, 24), (1, 32)]
    with torch.no_grad():
        for layer, units in zip(student.tower.layers, kept, strict=True):
            heads = np.setdiff1d(np.arange(4), units.heads)
            for head in heads.tolist():
                layer.attention_output.weight[:, head * 8 : (head + 1) * 8] = 0
            layer.output.weight[:, np.setdiff1d(np.arange(64), units.columns)] = 0
        torch.testing.assert_close(found(*rows()), student(*rows()))
    assert sum(p.numel() for p in found.parameters()) < sum(p.numel() for p in student.parameters())


def test_what_matters_least_for_its_cost_goes_first_and_every_layer_keeps_something() -> None:
    rng = np.random.default_rng(0)
    units = [Units(rng.random(4), rng.random(64)) for _ in range(2)]
    kept = choose(units, SHAPE, 0.6, 16)
    shape = replace(SHAPE, layer_heads=tuple(len(u.heads) for u in kept), layer_intermediate=tuple(len(u.columns) for u in kept))
    assert flops(shape, 16) <= 0.6 * flops(SHAPE, 16)
    for layer, places in zip(units, kept, strict=True):
        assert len(places.heads) >= 1
        assert len(places.columns) >= BLOCK
        assert len(places.columns) % BLOCK == 0
        gone = np.setdiff1d(np.arange(4), places.heads)
        assert not len(gone) or layer.heads[gone].max() < layer.heads[places.heads].min()
    assert [len(u.heads) for u in choose(units, SHAPE, 1.0, 16)] == [4, 4]
    with pytest.raises(InputError, match="cannot be reached"):
        choose(units, SHAPE, 0.01, 16)


def test_multiplications_are_those_of_the_matrices() -> None:
    one = StudentShape(layers=1, hidden=8, heads=2, intermediate=16, vocab=9, positions=9, pooler=False)
    tokens = 5
    last = 2 * tokens * 64 + 2 * 64 + 2 * tokens * 8 + 2 * 8 * 16
    inner = 4 * tokens * 64 + 2 * tokens * tokens * 8 + 2 * tokens * 8 * 16
    assert flops(one, tokens) == last
    assert flops(replace(one, layers=2), tokens) == last + inner


def test_the_pruned_student_is_smaller_recovers_and_says_what_went(pruned: Path, student: Path) -> None:
    info = json.loads((pruned / "training.json").read_text())
    assert info["pruning"]["flops"] <= 0.6
    assert info["pruning"]["from"] == "student"
    assert {"dev_before", "dev_unrecovered"} <= info["pruning"].keys()
    assert info["steps"] == 6
    assert len(info["student"]["layer_heads"]) == 2
    assert (pruned / "student.safetensors").stat().st_size < (student / "student.safetensors").stat().st_size
    found = StudentScorer.load(pruned)
    assert found.student.shape.layer_sizes() == list(
        zip(info["student"]["layer_heads"], info["student"]["layer_intermediate"], strict=True)
    )


def test_pruning_again_gives_the_same_weights_and_a_broken_off_run_goes_on(
    pruned: Path, student: Path, shop: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from edgerec.training import loop

    whole, calls = loop._backward, 0

    def dies(*arguments: object) -> object:
        nonlocal calls
        calls += 1
        if calls > 3:
            raise KeyboardInterrupt
        return whole(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(loop, "_backward", dies)
    settings = recipe(flops=0.6, batches=4, vocabulary=True)
    with pytest.raises(KeyboardInterrupt):
        prune(student, [shop], settings, tmp_path / "p")
    monkeypatch.setattr(loop, "_backward", whole)
    prune(student, [shop], settings, tmp_path / "p", resume=True)
    ours, theirs = load_file(tmp_path / "p" / "student.safetensors"), load_file(pruned / "student.safetensors")
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


@pytest.mark.parametrize(
    ("backend", "precision"), [("native", "fp32"), ("native", "int8"), ("ort", "fp32"), ("ort", "int8"), ("reference", "fp32")]
)
def test_a_pruned_student_exports_and_builds_with_every_backend(exported: Path, tmp_path: Path, backend: str, precision: str) -> None:
    build_engine(exported, tmp_path / "bundle", backend=backend, precision=precision, tolerances=LOOSE)
    arrays = read_arrays((exported / "calibration.npz").read_bytes(), "calibration")
    logits = open_engine(tmp_path / "bundle").run(batch_from(arrays, "calibration"))
    np.testing.assert_allclose(logits, arrays["logits"], atol=1e-4 if precision == "fp32" else 0.2)


@pytest.mark.parametrize("sizes", [[4], [4, 5], [4, 0], "44", [4, 1.5]])
def test_the_contract_refuses_layer_sizes_that_cannot_be(own: Path, tmp_path: Path, sizes: object) -> None:
    path = own / "model.json"
    model = json.loads(path.read_text())
    model["student"]["layer_heads"] = sizes
    path.write_text(json.dumps(model))
    with pytest.raises(BuildError, match="layer_heads"):
        build_engine(own, tmp_path / "bundle")


def test_the_reference_backend_refuses_weights_of_other_sizes(own: Path, tmp_path: Path) -> None:
    path = own / "model.json"
    model = json.loads(path.read_text())
    del model["student"]["layer_heads"]
    path.write_text(json.dumps(model))
    with pytest.raises(BuildError, match="does not hold the student"):
        build_engine(own, tmp_path / "bundle", backend="reference")


def test_texts_of_kept_tokens_have_the_same_logits_with_a_smaller_vocabulary(student: Path, shop: Path, tmp_path: Path) -> None:
    info = prune(student, [shop], recipe(vocabulary=True), tmp_path / "v")
    before, after = StudentScorer.load(student), StudentScorer.load(tmp_path / "v")
    assert info["steps"] == 0
    report = info["pruning"]["vocabulary"]
    assert (
        report["tokens"]
        == after.student.shape.vocab
        == len(load_file(tmp_path / "v" / "student.safetensors")["tower.word_embeddings.weight"])
    )
    assert report["tokens"] < report["tokens_before"]
    assert report["embedding_bytes"] == 4 * 32 * report["tokens"]
    assert report["dev_unknown"] == report["dev_unknown_before"] == 0
    assert report["dev_queries_changed"] == 0
    dataset = load_dataset(shop)
    for text in (*dataset.queries.values(), "a b7 lamp", "ü lamp", ""):
        items = list(dataset.items.values())
        np.testing.assert_array_equal(after.score(text, items), before.score(text, items))
    gone = after.score("kitchen", items)  # no item or training query has the word: it is spelled out now
    assert np.isfinite(gone).all()
    assert not np.array_equal(gone, before.score("kitchen", items))


def test_tokens_are_counted_in_items_and_training_queries_only(student: Path, shop: Path, tmp_path: Path) -> None:
    dataset, scorer = load_dataset(shop), StudentScorer.load(student)
    counts = token_counts(scorer.text, [dataset])
    lamp, kitchen, glass = (int(scorer.text.encode_query(word)[0]) for word in ("lamp", "kitchen", "glass"))
    train = sum("lamp" in dataset.queries[q] for q in dataset.qrels["train"])
    assert counts[lamp] == 4 + train
    assert counts[kitchen] == 0
    more = replace(dataset, queries={**dataset.queries, next(iter(dataset.qrels["dev"])): "kitchen"}, items={"x": Item("x", "glass")})
    assert token_counts(scorer.text, [more])[kitchen] == 0
    assert token_counts(scorer.text, [more])[glass] == 1


def test_every_place_that_names_an_id_is_remapped() -> None:
    table = {
        "model": {"type": "WordPiece", "unk_token": "[UNK]", "vocab": {"[PAD]": 0, "[UNK]": 1, "[CLS]": 2, "[SEP]": 3, "old": 4, "a": 5}},
        "added_tokens": [{"id": 2, "content": "[CLS]"}, {"id": 3, "content": "[SEP]"}],
        "post_processor": {"type": "BertProcessing", "sep": ["[SEP]", 3], "cls": ["[CLS]", 2]},
        "padding": {"pad_id": 0},
        "truncation": {"max_length": 128},
    }
    found = remap(table, {0: 0, 1: 1, 3: 2, 2: 3, 5: 4})
    assert found["model"]["vocab"] == {"[PAD]": 0, "[UNK]": 1, "[CLS]": 3, "[SEP]": 2, "a": 4}
    assert [token["id"] for token in found["added_tokens"]] == [3, 2]
    assert found["post_processor"] == {"type": "BertProcessing", "sep": ["[SEP]", 2], "cls": ["[CLS]", 3]}
    assert found["padding"] is found["truncation"] is None


def test_old_folders_without_layer_sizes_are_readable(student: Path, tmp_path: Path) -> None:
    old = Path(shutil.copytree(student, tmp_path / "old"))
    info = json.loads((old / "training.json").read_text())
    del info["student"]["layer_heads"], info["student"]["layer_intermediate"]
    (old / "training.json").write_text(json.dumps(info))
    items = [Item("1", "red lamp"), Item("2", "sofa")]
    np.testing.assert_array_equal(StudentScorer.load(old).score("lamp", items), StudentScorer.load(student).score("lamp", items))
    info["student"]["layer_heads"] = [1]
    (old / "training.json").write_text(json.dumps(info))
    with pytest.raises(BundleError, match="damaged"):
        StudentScorer.load(old)


def test_what_cannot_be_pruned_is_said_before_any_work(student: Path, teacher: Path, shop: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="nothing to prune"):
        prune(student, [shop], recipe(), tmp_path / "p")
    with pytest.raises(BundleError, match="no student"):
        prune(teacher, [shop], recipe(flops=0.5), tmp_path / "p")
    with pytest.raises(InputError, match="distillation needs"):
        prune(student, [shop], tiny_recipe(prune=PruneSettings(flops=0.5)), tmp_path / "p")
    assert not list(tmp_path.iterdir())
    silent = tiny_recipe(loss=LossSettings(bce=0.0, mse=1.0), prune=PruneSettings(flops=0.5))
    with pytest.raises(InputError, match="its own teacher"):
        prune(student, [shop], silent, tmp_path / "p")
    prune(student, [shop], silent, tmp_path / "taught", teachers=[teacher])
