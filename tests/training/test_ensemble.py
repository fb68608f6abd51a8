"""Ensembles of teachers: calibration, the mean, what is kept on disk and what is said about it."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from edgerec.training.config import EnsembleSettings, LossSettings, Recipe
from edgerec.training.data import Dataset
from edgerec.training.distill import distill
from edgerec.training.pairs import Pairs, judged_pairs
from edgerec.training.targets import ensemble_targets, platt, standardise, teacher_scores
from edgerec.training.teacher import Teacher, train_teacher
from edgerec.training.weak import Coverage, embed, weak_scores
from fixtures_tiny import tiny_recipe

from edgerec.errors import InputError

DISTILL = LossSettings(bce=0.3, mse=0.5)


@pytest.fixture(scope="module")
def pairs(dataset: Dataset) -> Pairs:
    return judged_pairs([dataset], "train")


@pytest.fixture(scope="module")
def teachers(base: str, shop: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    work = tmp_path_factory.mktemp("teachers")
    for name, seed in (("first", 0), ("second", 1)):
        train_teacher([shop], base, replace(tiny_recipe(), seed=seed), work / name)
    return [work / "first", work / "second"]


def with_ensemble(**settings: object) -> Recipe:
    return tiny_recipe(loss=DISTILL, ensemble=EnsembleSettings(**settings))  # type: ignore[arg-type]


def test_platt_finds_the_line_that_made_the_labels() -> None:
    rng = np.random.default_rng(0)
    scores = rng.normal(3.0, 20.0, 4000).astype(np.float32)
    labels = (1 / (1 + np.exp(-(0.2 * scores - 1.5)))).astype(np.float32)
    slope, offset = platt(scores, labels)
    assert slope == pytest.approx(0.2, rel=0.02)
    assert offset == pytest.approx(-1.5, rel=0.02)
    labels[::2] = np.nan
    assert platt(scores, labels)[0] == pytest.approx(0.2, rel=0.03)


def test_platt_survives_scores_that_separate_the_labels_and_refuses_one_class() -> None:
    scores = np.array([-1, -2, 1, 2], np.float32)
    slope, offset = platt(scores, np.array([0, 0, 1, 1], np.float32))
    assert 0 < slope < 100
    assert abs(offset) < 1
    for labels in (np.ones(4, np.float32), np.full(4, np.nan, np.float32)):
        with pytest.raises(InputError, match="more than one grade"):
            platt(scores, labels)


def test_standardise_gives_mean_0_and_deviation_1() -> None:
    scores = np.array([4, 8, 6, 2], np.float32)
    slope, offset = standardise(scores, scores)
    np.testing.assert_allclose([np.mean(slope * scores + offset), np.std(slope * scores + offset)], [0, 1], atol=1e-6)
    with pytest.raises(InputError, match="same score"):
        standardise(np.ones(3, np.float32), scores)


def test_one_teacher_is_taken_as_it_is(teachers: list[Path], pairs: Pairs, dataset: Dataset, tmp_path: Path) -> None:
    targets, members = ensemble_targets(teachers[:1], pairs, [dataset], with_ensemble(), tmp_path, progress=False)
    np.testing.assert_array_equal(targets, Teacher.load(teachers[0]).score_pairs(pairs))
    assert "slope" not in members[0]


@pytest.mark.parametrize("calibration", ["platt", "standardise"])
def test_several_teachers_are_the_mean_of_their_calibrated_scores(
    teachers: list[Path], pairs: Pairs, dataset: Dataset, tmp_path: Path, calibration: str
) -> None:
    recipe = with_ensemble(calibration=calibration, weak=True)
    targets, members = ensemble_targets(teachers, pairs, [dataset], recipe, tmp_path, progress=False)
    scores = [Teacher.load(teacher).score_pairs(pairs) for teacher in teachers]
    scores.append(weak_scores(pairs, [dataset], "", cosine=0.0, max_tokens=32, precision="fp32"))
    lines = [{"platt": platt, "standardise": standardise}[calibration](s, pairs.label) for s in scores]
    expected = np.mean([slope * s + offset for s, (slope, offset) in zip(scores, lines, strict=True)], axis=0)
    np.testing.assert_allclose(targets, expected, atol=1e-5)
    assert [m["kind"] for m in members] == ["teacher", "teacher", "weak"]
    assert [(m["slope"], m["offset"]) for m in members] == [pytest.approx(line) for line in lines]


def test_the_weak_member_mixes_words_and_embeddings(base: str, pairs: Pairs, dataset: Dataset) -> None:
    scores = weak_scores(pairs, [dataset], base, cosine=0.5, max_tokens=16, precision="fp32")
    coverage = Coverage(dataset)
    for row in (0, 7, len(pairs) - 1):
        query, title = pairs.query_texts[pairs.query[row]], pairs.items[pairs.item[row]].title
        a, b = embed([query, title], base, max_tokens=16, precision="fp32")
        assert scores[row] == pytest.approx(0.5 * max(0, float(a @ b)) + 0.5 * coverage.score(query, title), abs=1e-5)


def test_the_students_folder_names_every_member_and_scores_are_reused(
    teachers: list[Path], shop: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = with_ensemble(weak=True)
    distill(teachers, [shop], recipe, tmp_path / "s")
    info = json.loads((tmp_path / "s" / "training.json").read_text())
    assert [m["name"] for m in info["teachers"]] == ["first", "second", "weak"]
    assert len({m["sha256"] for m in info["teachers"][:2]}) == 2
    files = {m["scores"] for m in info["teachers"]}
    assert files == {path.name for path in tmp_path.glob("*-scores-*.npz")}
    assert {m["sha256"] for m in info["identity"]["inputs"]["teachers"] if m["kind"] == "teacher"} == {
        m["sha256"] for m in info["teachers"][:2]
    }
    monkeypatch.setattr(Teacher, "score_pairs", lambda *a, **k: pytest.fail("scored again"))
    monkeypatch.setattr("edgerec.training.targets.weak_scores", lambda *a, **k: pytest.fail("scored again"))
    distill([*teachers], [shop], recipe, tmp_path / "again")


def test_a_student_can_teach(teachers: list[Path], shop: Path, pairs: Pairs, tmp_path: Path) -> None:
    from edgerec.training.student import StudentScorer

    distill(teachers[0], [shop], with_ensemble(), tmp_path / "s")
    scores, _ = teacher_scores(tmp_path / "s", pairs, tmp_path, progress=False)
    np.testing.assert_array_equal(scores, StudentScorer.load(tmp_path / "s").score_pairs(pairs))


def test_no_teacher_is_an_input_error(pairs: Pairs, dataset: Dataset, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="at least one"):
        ensemble_targets([], pairs, [dataset], with_ensemble(), tmp_path, progress=False)
