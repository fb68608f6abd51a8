"""`loss.hidden`: a student learns the vector that its teacher's head reads, not the logit alone."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from edgerec.training.config import LossSettings, PruneSettings, Recipe, StudentSettings
from edgerec.training.distill import DistillTask, distill, guide_of
from edgerec.training.loop import set_dropout
from edgerec.training.pairs import Pairs, TokenTable, judged_pairs
from edgerec.training.prune import prune
from edgerec.training.student import StudentScorer
from edgerec.training.teacher import train_datasets, train_teacher
from fixtures_mid import write_mid_student
from fixtures_tiny import tiny_recipe, write_base_model
from torch import Tensor

from edgerec.errors import InputError

WHOLE = StudentSettings(features=False)
LOSS = LossSettings(bce=0.0, mse=1.0)


@pytest.fixture(scope="module")
def teacher(base: str, shop: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("teacher") / "teacher"
    train_teacher([shop], base, tiny_recipe(), out)
    return out


@pytest.fixture(scope="module")
def pairs(shop: Path) -> Pairs:
    return judged_pairs(train_datasets([shop]), "train")


def recipe(hidden: float, student: StudentSettings = WHOLE, steps: int = 6) -> Recipe:
    made = tiny_recipe(loss=replace(LOSS, hidden=hidden), student=student)
    return replace(made, fit=replace(made.fit, dropout=0.0, epochs=9, max_steps=steps, eval_every=100))


@torch.no_grad()
def vectors(scorer: StudentScorer, pairs: Pairs) -> Tensor:
    scorer.student.eval()
    return scorer.forward(TokenTable(pairs, scorer.text), scorer.hash(pairs), np.arange(len(pairs)), vectors=True)


@pytest.mark.parametrize("interaction", ["cross", "mid"])
def test_the_head_makes_the_logit_of_the_vector(teacher: Path, shop: Path, pairs: Pairs, tmp_path: Path, interaction: str) -> None:
    if interaction == "cross":
        distill(teacher, [shop], recipe(1.0), tmp_path / "s")
        folder = tmp_path / "s"
    else:
        folder = write_mid_student(tmp_path / "s", shop, features=False, query_layers=1)
    scorer = StudentScorer.load(folder)
    found, head = vectors(scorer, pairs), scorer.student.head
    assert found.shape == (len(pairs), 33)
    np.testing.assert_array_equal(found[:, 0], scorer.score_pairs(pairs))
    np.testing.assert_allclose(found[:, 0], found[:, 1:] @ head.weight[0].detach() + head.bias.item(), rtol=0, atol=1e-5)


def test_a_student_that_is_its_teacher_has_nothing_to_learn(teacher: Path, shop: Path, pairs: Pairs, tmp_path: Path) -> None:
    for layers, least, most in (((), 0.0, 1e-10), ((1,), 1e-6, 10.0)):
        asked = recipe(1.0, replace(WHOLE, layers=layers), steps=1)
        asked = replace(asked, fit=replace(asked.fit, learning_rate=1e-12))
        distill(teacher, [shop], asked, tmp_path / str(len(layers)))
        scorer = StudentScorer.load(tmp_path / str(len(layers)))
        set_dropout(scorer.student, 0.0)
        task = DistillTask(scorer, pairs, np.zeros(len(pairs), np.float32), pairs, asked, guide_of(teacher, scorer, asked))
        assert least <= task.losses(np.arange(12), 0, 0.0)["hidden"].item() <= most


def trained_errors(first: Path, shop: Path, pairs: Pairs, student: StudentSettings, folder: Path) -> list[float]:
    """How far the student's vectors are from those of ``first``: after training for the logits alone, and for the vectors too."""
    errors = []
    for hidden in (0.0, 20.0):
        distill(first, [shop], recipe(hidden, student, steps=30), folder / f"{hidden}")
        scorer = StudentScorer.load(folder / f"{hidden}")
        guide = guide_of(first, scorer, recipe(1.0))
        assert guide is not None
        errors.append(float(((vectors(scorer, pairs) - vectors(guide, pairs))[:, 1:] ** 2).mean()))
    return errors


def test_the_vectors_come_nearer_to_a_teachers(teacher: Path, shop: Path, pairs: Pairs, tmp_path: Path) -> None:
    alone, too = trained_errors(teacher, shop, pairs, replace(WHOLE, layers=(1,)), tmp_path)
    assert too < 0.8 * alone


def test_the_vectors_come_nearer_to_a_larger_students(teacher: Path, shop: Path, pairs: Pairs, tmp_path: Path) -> None:
    distill(teacher, [shop], recipe(0.0), tmp_path / "first")
    other = write_base_model(tmp_path / "other", layers=1)
    alone, too = trained_errors(tmp_path / "first", shop, pairs, replace(WHOLE, init=str(other)), tmp_path)
    assert too < 0.8 * alone


def test_a_teacher_of_another_width_is_refused(teacher: Path, shop: Path, tmp_path: Path) -> None:
    other = write_base_model(tmp_path / "wide", hidden=48)
    with pytest.raises(InputError, match=r"loss\.hidden needs a first teacher as wide as the student: .* has 32, the student 48"):
        distill(teacher, [shop], recipe(1.0, replace(WHOLE, init=str(other))), tmp_path / "s")
    assert not list(tmp_path.glob("s*"))


def test_a_pruned_student_recovers_towards_its_teachers_vectors(teacher: Path, shop: Path, tmp_path: Path) -> None:
    distill(teacher, [shop], recipe(0.0), tmp_path / "s")
    asked = replace(recipe(1.0), prune=PruneSettings(flops=0.6, batches=2))
    info = prune(tmp_path / "s", [shop], asked, tmp_path / "p", teachers=[teacher])
    assert info["steps"] == 6
