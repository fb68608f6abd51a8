"""Teacher, student, export: the same text scored by every form of one model; broken-off runs; refusals."""

from __future__ import annotations

import json
import resource
import shutil
import signal
import subprocess
import sys
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from edgerec.training import loop
from edgerec.training.config import LossSettings, Recipe, StudentSettings
from edgerec.training.data import load_dataset
from edgerec.training.distill import distill
from edgerec.training.export import export_student
from edgerec.training.student import StudentScorer, student_from_encoder
from edgerec.training.teacher import Teacher, train_teacher
from fixtures_tiny import tiny_recipe, write_base_model, write_shop
from fixtures_traced import export_traced_once
from tokenizers import Tokenizer

from edgerec.builder import build_engine
from edgerec.errors import BundleError, EdgerecError, InputError

DISTILL = LossSettings(bce=0.3, mse=0.5, margin_mse=0.5)


@pytest.fixture(scope="module")
def teacher(base: str, shop: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("teacher") / "teacher"
    train_teacher([shop], base, tiny_recipe(), out)
    return out


@pytest.fixture(scope="module")
def student(teacher: Path, shop: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("student") / "student"
    distill(teacher, [shop], tiny_recipe(loss=DISTILL), out)
    return out


def weights(folder: Path) -> dict[str, torch.Tensor]:
    from safetensors.torch import load_file

    return load_file(next(folder.glob("*.safetensors")))


def test_a_run_records_what_it_was_made_from(teacher: Path, shop: Path) -> None:
    info = json.loads((teacher / "training.json").read_text())
    assert info["kind"] == "teacher"
    assert info["identity"]["data"] == {"tiny": load_dataset(shop).sha256}
    assert info["steps"] == 6
    assert info["dev"]["objective"] == max(h["objective"] for h in info["history"])
    assert not teacher.with_name("teacher.run").exists()
    assert list((teacher / "tensorboard").iterdir())


@pytest.mark.parametrize("killed_at", [1, 3, 5])
def test_a_killed_run_resumed_gives_the_weights_of_an_unbroken_one(
    base: str, shop: Path, teacher: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, killed_at: int
) -> None:
    from edgerec.training import teacher as module

    whole = module._TeacherTask.losses
    calls = 0

    def dies(self: object, rows: object, epoch: int, progress: float) -> object:
        nonlocal calls
        calls += 1
        if calls > killed_at:
            raise KeyboardInterrupt
        return whole(self, rows, epoch, progress)  # type: ignore[arg-type]

    monkeypatch.setattr(module._TeacherTask, "losses", dies)
    out = tmp_path / "t"
    with pytest.raises(KeyboardInterrupt):
        train_teacher([shop], base, tiny_recipe(), out)
    assert not out.exists()
    monkeypatch.setattr(module._TeacherTask, "losses", whole)
    with pytest.raises(InputError, match="resume"):
        train_teacher([shop], base, tiny_recipe(), out)
    train_teacher([shop], base, tiny_recipe(), out, resume=True)
    ours, theirs = weights(out), weights(teacher)
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[k], theirs[k]) for k in ours)


def test_a_checkpoint_of_another_recipe_is_refused(base: str, shop: Path, tmp_path: Path) -> None:
    out = tmp_path / "t"
    run = loop.open_run(out, resume=False)
    (run / "checkpoint.pt").write_bytes(b"not a checkpoint")
    with pytest.raises(InputError, match="damaged"):
        train_teacher([shop], base, tiny_recipe(), out, resume=True)
    loop._save_atomically({"identity": "another"}, run / "checkpoint.pt")
    with pytest.raises(InputError, match="another recipe"):
        train_teacher([shop], base, tiny_recipe(), out, resume=True)


def test_a_process_killed_at_any_step_loses_nothing(base: str, shop: Path, tmp_path: Path) -> None:
    recipe = tiny_recipe(fit=replace(tiny_recipe().fit, epochs=8, max_steps=16, eval_every=1))
    code = (
        "import sys; from pathlib import Path; from edgerec.training.config import recipe_from_json; import json\n"
        "from edgerec.training.teacher import train_teacher\n"
        "base, shop, recipe, out = sys.argv[1:]\n"
        "train_teacher([Path(shop)], base, recipe_from_json(json.loads(recipe), 'test'), Path(out))"
    )
    arguments = [base, str(shop), json.dumps(recipe.to_json()), str(tmp_path / "killed")]
    with subprocess.Popen([sys.executable, "-c", code, *arguments], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        while not (tmp_path / "killed.run" / "checkpoint.pt").exists():
            with suppress(subprocess.TimeoutExpired):
                pytest.fail(f"it ended by itself: {process.wait(0.02)}")
        process.kill()
    assert process.returncode == -signal.SIGKILL
    assert not (tmp_path / "killed").exists()
    train_teacher([shop], base, recipe, tmp_path / "killed", resume=True)
    train_teacher([shop], base, recipe, tmp_path / "whole")
    ours, theirs = weights(tmp_path / "killed"), weights(tmp_path / "whole")
    assert all(torch.equal(ours[k], theirs[k]) for k in theirs)


def test_a_full_disk_keeps_the_checkpoint_before(tmp_path: Path) -> None:
    loop._save_atomically({"step": 1}, tmp_path / "checkpoint.pt")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, hard))
    try:
        with pytest.raises(EdgerecError, match="make room"):
            loop._save_atomically({"step": 2, "weights": torch.ones(100_000)}, tmp_path / "checkpoint.pt")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint.pt"]
    assert torch.load(tmp_path / "checkpoint.pt", weights_only=True) == {"step": 1}


def test_a_loss_that_is_not_finite_ends_the_run_and_keeps_the_checkpoint(base: str, shop: Path, tmp_path: Path) -> None:
    recipe = tiny_recipe()
    wild = replace(recipe, fit=replace(recipe.fit, learning_rate=1e30, clip_norm=1e30, eval_every=1, warmup=0.0))
    with pytest.raises(EdgerecError, match="loss became nan"):
        train_teacher([shop], base, wild, tmp_path / "t")
    assert (tmp_path / "t.run" / "checkpoint.pt").exists()
    assert not (tmp_path / "t").exists()


def test_a_k_class_head_scores_by_expected_gain(base: str, shop: Path, tmp_path: Path) -> None:
    train_teacher([shop], base, tiny_recipe(loss=LossSettings(bce=1.0, classes=3)), tmp_path / "t")
    scores = Teacher.load(tmp_path / "t").score("red lamp", list(load_dataset(shop).items.values()))
    assert scores.shape == (20,)
    assert ((scores >= 0) & (scores <= 1)).all()
    with pytest.raises(InputError, match="K-class"):
        export_student(tmp_path / "t", tmp_path / "e")


def test_the_student_of_all_layers_scores_as_its_teacher(teacher: Path, shop: Path) -> None:
    model = Teacher.load(teacher)
    items = list(load_dataset(shop).items.values())
    student = StudentScorer(student_from_encoder(teacher), model.encoder, None)
    np.testing.assert_allclose(student.score("blue sofa", items), model.score("blue sofa", items), atol=1e-5)


def test_scores_do_not_depend_on_the_other_items(student: Path, shop: Path) -> None:
    scorer = StudentScorer.load(student)
    items = list(load_dataset(shop).items.values())
    together = scorer.score("green chair", items)
    alone = np.concatenate([scorer.score("green chair", [item]) for item in items])
    np.testing.assert_allclose(together, alone, atol=1e-5)
    assert scorer.score("green chair", []).shape == (0,)


def test_teacher_scores_are_written_once_and_reused(teacher: Path, student: Path, shop: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert len(list(student.parent.glob("teacher-scores-*.npz"))) == 1
    monkeypatch.setattr(Teacher, "score_pairs", lambda *a, **k: pytest.fail("scored again"))
    distill(teacher, [shop], tiny_recipe(loss=DISTILL), student.parent / "again")
    ours, theirs = weights(student.parent / "again"), weights(student)
    assert all(torch.equal(ours[k], theirs[k]) for k in ours)


def test_first_stage_pairs_are_scored_by_the_teacher_and_used(teacher: Path, shop: Path, tmp_path: Path) -> None:
    settings = replace(tiny_recipe().student, unlabelled_per_query=15)
    info = distill(teacher, [shop], tiny_recipe(loss=DISTILL, student=settings), tmp_path / "s")
    assert info["pairs"]["unlabelled"] > 0


@pytest.mark.parametrize("features", [True, False])
def test_the_export_computes_what_the_student_computes(teacher: Path, shop: Path, tmp_path: Path, features: bool) -> None:
    settings = replace(tiny_recipe().student, features=features, layers=())
    distill(teacher, [shop], tiny_recipe(loss=DISTILL, student=settings), tmp_path / "s")
    info = export_student(tmp_path / "s", tmp_path / "e", data=[shop])
    assert info["export_check"]["max_abs_diff"] < 1e-4
    session = onnxruntime.InferenceSession(str(tmp_path / "e" / "student.onnx"), providers=["CPUExecutionProvider"])
    names = [i.name for i in session.get_inputs()]
    assert ("feature_ids" in names) is features
    with np.load(tmp_path / "e" / "calibration.npz") as sample:
        logits = session.run(["logits"], {name: sample[name] for name in names})[0]
        np.testing.assert_allclose(logits, sample["logits"], atol=1e-4)
        assert set(np.unique(sample["grades"])) <= {1.0, 2.0, 3.0}


def test_grades_of_several_data_sets_count_from_one_lowest_grade(student: Path, shop: Path, tmp_path: Path) -> None:
    other = write_shop(tmp_path / "other", "other")
    (other / "dataset.json").write_text('{"name": "other", "grades": {"min": 0, "max": 5}}')
    info = json.loads((export_traced_once(student, tmp_path / "e", data=[shop, other]) / "model.json").read_text())
    assert info["grades"] == {"min": 1.0, "max": 6.0}
    with np.load(tmp_path / "e" / "calibration.npz") as sample:
        assert set(np.unique(sample["grades"])) == {1.0, 2.0, 3.0, 4.0}  # 1 to 3 of a lowest 0 are 2 to 4 of a lowest 1


def test_the_last_layer_works_on_one_row_only(teacher: Path, tmp_path: Path) -> None:
    import onnx

    export_student(teacher, tmp_path / "e")
    graph = onnx.load(tmp_path / "e" / "student.onnx").graph
    shapes = {
        v.name: [d.dim_value for d in v.type.tensor_type.shape.dim]
        for v in onnx.shape_inference.infer_shapes(onnx.load(tmp_path / "e" / "student.onnx")).graph.value_info
    }
    gelu_rows = [shapes[n.output[0]][1] for n in graph.node if n.op_type == "Gelu"]
    assert gelu_rows == [0, 1]  # 0 is the dynamic length: the first layer computes every row, the last only [CLS]


def test_an_encoder_with_the_tanh_gelu_is_served_as_it_was_trained(shop: Path, tmp_path: Path) -> None:
    train_teacher([shop], str(write_base_model(tmp_path / "bert", gelu="gelu_new")), tiny_recipe(), tmp_path / "t")
    export_student(tmp_path / "t", tmp_path / "e", data=[shop])  # the graph is compared with torch
    assert json.loads((tmp_path / "e" / "model.json").read_text())["student"]["gelu"] == "tanh"
    build_engine(tmp_path / "e", tmp_path / "b")  # ... and the engine with the graph
    assert json.loads((tmp_path / "b" / "manifest.json").read_text())["backend"] == "native"


def test_another_activation_is_refused(shop: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"bert \(relu, .*gelu, gelu_new, gelu_pytorch_tanh"):
        student_from_encoder(write_base_model(tmp_path / "bert", gelu="relu"))


def test_an_encoder_whose_tokenizer_pads_and_cuts_gives_a_student_that_exports(
    base: str, teacher: Path, shop: Path, tmp_path: Path
) -> None:
    packaged = Path(shutil.copytree(base, tmp_path / "packaged"))
    tokenizer = Tokenizer.from_file(str(packaged / "tokenizer.json"))
    tokenizer.enable_padding(length=128)
    tokenizer.enable_truncation(8)
    tokenizer.save(str(packaged / "tokenizer.json"))
    distill(teacher, [shop], tiny_recipe(loss=DISTILL, student=StudentSettings(init=str(packaged), features=False)), tmp_path / "s")
    export_student(tmp_path / "s", tmp_path / "e", data=[shop])
    written = Tokenizer.from_file(str(tmp_path / "e" / "tokenizer.json"))
    assert written.padding is None
    assert written.truncation is None


def test_half_precision_graphs_are_strongly_typed_and_near_fp32(student: Path, tmp_path: Path) -> None:
    check = export_student(student, tmp_path / "e", half=("fp16", "bf16"))["export_check"]["half"]
    for name, kind, bound in (("fp16", onnx.TensorProto.FLOAT16, 2e-3), ("bf16", onnx.TensorProto.BFLOAT16, 2e-2)):
        graph = onnx.load(tmp_path / "e" / f"student.{name}.onnx").graph
        types = {tensor.name: tensor.data_type for tensor in graph.initializer}
        products = [types[node.input[1]] for node in graph.node if node.op_type in ("MatMul", "Gemm") and node.input[1] in types]
        assert products.count(kind) >= 6
        assert set(products) <= {kind, onnx.TensorProto.FLOAT}
        assert graph.output[0].type.tensor_type.elem_type == onnx.TensorProto.FLOAT
        assert 0 < check[name]["from_fp32"] < bound
        assert check[name]["max_abs_diff"] < bound
    with pytest.raises(InputError, match="fp8"):
        export_student(student, tmp_path / "f", half=("fp8",))


def test_a_student_learns_on_from_a_student(teacher: Path, student: Path, shop: Path, tmp_path: Path) -> None:
    recipe = tiny_recipe(loss=DISTILL)
    further = replace(
        recipe, student=StudentSettings(init=str(student)), fit=replace(recipe.fit, learning_rate=1e-12, feature_learning_rate=1e-12)
    )
    distill(teacher, [shop], further, tmp_path / "s")
    assert all(torch.allclose(one, weights(student)[name], atol=1e-9) for name, one in weights(tmp_path / "s").items())
    for refused in (StudentSettings(init=str(student), layers=(0,)), StudentSettings(init=str(student), features=False)):
        with pytest.raises(InputError, match="learns on as it is"):
            distill(teacher, [shop], replace(further, student=refused), tmp_path / "t")
        assert not (tmp_path / "t.run").exists()


@pytest.mark.parametrize(
    "settings", [StudentSettings(layers=(7,)), StudentSettings(init="nowhere")], ids=["layers that do not exist", "no such encoder"]
)
def test_an_impossible_student_is_an_input_error(teacher: Path, shop: Path, tmp_path: Path, settings: StudentSettings) -> None:
    with pytest.raises(InputError):
        distill(teacher, [shop], tiny_recipe(loss=DISTILL, student=settings), tmp_path / "s")
    assert not list(tmp_path.glob("s*"))


def test_wrong_folders_and_losses_are_refused(teacher: Path, student: Path, shop: Path, base: str, tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="no teacher"):
        Teacher.load(student)
    with pytest.raises(BundleError):
        StudentScorer.load(teacher)
    with pytest.raises(BundleError):
        Teacher.load(base)
    with pytest.raises(InputError, match="distillation needs"):
        distill(teacher, [shop], tiny_recipe(), tmp_path / "s")
    with pytest.raises(InputError, match="learns from judgements"):
        train_teacher([shop], base, Recipe("x", loss=LossSettings(bce=0, mse=1)), tmp_path / "t")
    with pytest.raises(InputError, match="exists already"):
        train_teacher([shop], base, tiny_recipe(), teacher)
    with pytest.raises(InputError, match="base-model"):
        train_teacher([shop], str(tmp_path / "nothing"), tiny_recipe(), tmp_path / "t")
    with pytest.raises(InputError):
        train_teacher([tmp_path / "no-data"], base, tiny_recipe(), tmp_path / "t")
    assert not (tmp_path / "t.run").exists()
    damaged = tmp_path / "damaged"
    shutil.copytree(student, damaged)
    (damaged / "student.safetensors").write_bytes(b"\xff" * 64)
    with pytest.raises(BundleError):
        StudentScorer.load(damaged)
