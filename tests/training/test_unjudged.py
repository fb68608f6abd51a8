"""Pairs that nobody judged, and their weak labels."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from edgerec.training.config import FitSettings, WarmUpSettings
from edgerec.training.data import Dataset
from edgerec.training.first_stage import Bm25
from edgerec.training.judged import judged_lists
from edgerec.training.teacher import Teacher, train_teacher
from edgerec.training.unjudged import CANDIDATES, first_stage_pairs, span_pairs, with_unjudged
from edgerec.training.weak import Coverage, embed, warm_up_dataset
from fixtures_tiny import tiny_recipe

from edgerec.errors import InputError
from edgerec.metrics import auc
from edgerec.types import Item


def with_titles(dataset: Dataset, *titles: str) -> Dataset:
    return replace(dataset, items={str(i): Item(str(i), title) for i, title in enumerate(titles)})


def test_made_queries_are_spans_of_titles_as_long_as_real_queries(dataset: Dataset) -> None:
    long_titles = with_titles(dataset, *(f"a{i} b{i} c{i} d{i} e{i}" for i in range(30)))
    texts, pairs = span_pairs(long_titles, Bm25(long_titles), queries=40, seed=0)
    assert len(texts) == 40
    assert texts.keys() == pairs.keys()
    assert {len(text.split()) for text in texts.values()} == {2}  # every query of the tiny shop has two words
    for name, text in texts.items():
        assert any(text in item.title for item in long_titles.items.values())
        assert 1 <= len(pairs[name]) <= CANDIDATES
        assert all(math.isnan(grade) for grade in pairs[name].values())


def test_made_queries_depend_on_seed_and_data_set_only(dataset: Dataset) -> None:
    bm25 = Bm25(dataset)
    assert span_pairs(dataset, bm25, 15, 3)[0] == span_pairs(dataset, bm25, 15, 3)[0]
    assert span_pairs(dataset, bm25, 15, 3)[0] != span_pairs(dataset, bm25, 15, 4)[0]
    assert span_pairs(dataset, bm25, 15, 3)[0] != span_pairs(replace(dataset, name="other"), bm25, 15, 3)[0]


def test_items_without_words_make_no_query(dataset: Dataset) -> None:
    silent = with_titles(dataset, "", "...", "lamp")
    texts, _ = span_pairs(silent, Bm25(silent), queries=9, seed=0)
    assert set(texts.values()) == {"lamp"}


def test_unjudged_pairs_join_the_train_split_and_change_no_judgement(dataset: Dataset) -> None:
    joined = with_unjudged(dataset, per_query=5, span_queries=7, seed=0)
    assert joined.qrels["dev"] == dataset.qrels["dev"]
    for query_id, grades in dataset.qrels["train"].items():
        found = joined.qrels["train"][query_id]
        assert {i: g for i, g in found.items() if not math.isnan(g)} == grades
        assert set(first_stage_pairs(dataset, Bm25(dataset), [query_id], 5)[query_id]) <= set(found)
    made = set(joined.qrels["train"]) - set(dataset.qrels["train"])
    assert len(made) == 7
    assert made <= set(joined.queries)
    assert with_unjudged(dataset, per_query=0, span_queries=0, seed=0) is dataset


def test_coverage_counts_rare_words_more(dataset: Dataset) -> None:
    coverage = Coverage(with_titles(dataset, "red lamp", "red chair", "red sofa", "blue lamps"))
    assert coverage.score("red lamp", "Lamp, RED") == 1.0
    assert coverage.score("red lamp", "green bench") == 0.0
    assert coverage.score("", "red lamp") == 0.0
    assert coverage.score("red sofa", "sofa") > 0.5 > coverage.score("red sofa", "red")
    assert coverage.score("lamp", "blue lamps") == 1.0


def test_an_embedding_has_length_one_and_does_not_depend_on_its_batch(base: str, capsys: pytest.CaptureFixture[str]) -> None:
    texts = ["red lamp", "lamp", "blue chair and green table", ""] * 20
    together = embed(texts, base, max_tokens=16, precision="fp32", progress=True)
    assert "embeddings: 100%" in capsys.readouterr().err
    assert np.allclose(np.linalg.norm(together, axis=1), 1, atol=1e-5)
    for i in (0, 1, 2, 3, 79):
        assert np.allclose(embed([texts[i]], base, max_tokens=16, precision="fp32")[0], together[i], atol=1e-5)
    assert "embeddings" not in capsys.readouterr().err


@pytest.mark.parametrize("cosine", [0.0, 0.5])
def test_weak_labels_mix_coverage_and_cosine(base: str, dataset: Dataset, cosine: float) -> None:
    settings = WarmUpSettings(span_queries=6, cosine=cosine)
    weak = warm_up_dataset(dataset, base, settings, max_tokens=16, precision="fp32", seed=0)
    assert len(set(dataset.qrels["train"]) & set(weak.qrels["train"])) == 6  # of the nine training queries
    coverage = Coverage(dataset)
    for query_id, grades in weak.qrels["train"].items():
        query = weak.queries[query_id]
        for item_id, grade in grades.items():
            title = dataset.items[item_id].title
            a, b = embed([query, title], base, max_tokens=16, precision="fp32")
            assert grade == pytest.approx(cosine * max(0, float(a @ b)) + (1 - cosine) * coverage.score(query, title), abs=1e-5)
            assert 0 <= weak.label(grade) <= 1


def test_no_dev_judgement_reaches_the_warm_up(base: str, dataset: Dataset) -> None:
    weak = warm_up_dataset(dataset, base, WarmUpSettings(span_queries=6), max_tokens=16, precision="fp32", seed=0)
    assert set(weak.qrels) == {"train"}
    assert not set(dataset.qrels["dev"]) & set(weak.queries)


def fitted(steps: int, **parts: object) -> object:
    fit = FitSettings(epochs=100, batch_size=24, max_steps=steps, eval_every=steps, learning_rate=5e-3, precision="fp32", dropout=0.0)
    return tiny_recipe(fit=fit, **parts)


def auc_on_train(folder: Path, dataset: Dataset) -> float:
    teacher = Teacher.load(folder)
    lists = judged_lists(dataset, "train")
    scores = np.concatenate([teacher.score(one.query, one.items) for one in lists])
    return auc(np.concatenate([one.grades for one in lists]) == 3, scores)


def test_training_learns_the_judgements(base: str, shop: Path, dataset: Dataset, tmp_path: Path) -> None:
    train_teacher([shop], base, fitted(1), tmp_path / "new")  # type: ignore[arg-type]
    train_teacher([shop], base, fitted(400), tmp_path / "fitted")  # type: ignore[arg-type]
    assert auc_on_train(tmp_path / "new", dataset) < 0.75
    assert auc_on_train(tmp_path / "fitted", dataset) > 0.85


def test_the_warm_up_comes_first_and_once(base: str, shop: Path, dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from edgerec.training import teacher as module

    seen: list[set[str]] = []
    whole = module._TeacherTask.losses

    def watched(self: module._TeacherTask, rows: module.Rows, epoch: int, progress: float) -> object:
        seen.append({self._train.names[i] for i in self._train.dataset[rows].tolist()})
        return whole(self, rows, epoch, progress)

    monkeypatch.setattr(module._TeacherTask, "losses", watched)
    recipe = replace(fitted(0, warm_up=WarmUpSettings(span_queries=20)), fit=FitSettings(epochs=2, batch_size=24, precision="fp32"))  # type: ignore[type-var]
    train_teacher([shop], base, recipe, tmp_path / "teacher")  # type: ignore[arg-type]
    warm = seen.count({"tiny/warm-up"})
    assert 0 < warm < len(seen)
    assert seen == [{"tiny/warm-up"}] * warm + [{"tiny"}] * (len(seen) - warm)


def test_a_bad_base_model_is_named_before_any_work(shop: Path, tmp_path: Path) -> None:
    recipe = tiny_recipe(warm_up=WarmUpSettings(span_queries=5, cosine=0.5))
    with pytest.raises(InputError, match="base-model"):
        train_teacher([shop], str(tmp_path / "nowhere"), recipe, tmp_path / "out")
    assert not list(tmp_path.glob("out*"))
