"""Distillation: teacher scores, written once, become the targets of a smaller student."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import save_file
from torch import Tensor
from tqdm import tqdm

from edgerec.errors import InputError
from edgerec.features import FeatureEncoder, default_spec
from edgerec.text import TextEncoder, TextSpec, text_spec_from_tokenizer

from . import losses
from .config import LossSettings, Recipe
from .dev import dev_metrics
from .loop import fit, open_run, seed_everything
from .pairs import Pairs, Rows, TokenTable, epoch_batches, judged_pairs
from .provenance import finish, provenance, read_training_json
from .student import Student, StudentScorer, student_from_encoder
from .teacher import Teacher, train_datasets
from .unjudged import with_unjudged

Scores = NDArray[np.float32]
SCORED_AT_ONCE = 16_384


class _DistillTask:
    """Teacher scores and judgements in, loss out."""

    def __init__(self, scorer: StudentScorer, train: Pairs, targets: Scores, dev: Pairs, settings: LossSettings) -> None:
        self._scorer, self._train, self._dev, self._settings = scorer, train, dev, settings
        self._targets = torch.from_numpy(targets)
        self._table, self._hashed = TokenTable(train, scorer.text), scorer.hash(train)
        self._dev_table, self._dev_hashed = TokenTable(dev, scorer.text), scorer.hash(dev)

    def losses(self, rows: Rows) -> dict[str, Tensor]:
        logits = self._scorer.forward(self._table, self._hashed, rows)
        targets = self._targets[rows].to(logits.device)
        labels = torch.from_numpy(self._train.label[rows]).to(logits.device)
        groups = torch.from_numpy(self._train.query[rows]).to(logits.device)
        s = self._settings
        terms: dict[str, Tensor] = {}
        if s.mse > 0:
            terms["mse"] = s.mse * torch.nn.functional.mse_loss(logits, targets)
        if s.margin_mse > 0:
            terms["margin_mse"] = s.margin_mse * losses.margin_mse(logits, targets, groups)
        if s.listwise_kl > 0:
            terms["listwise_kl"] = s.listwise_kl * losses.listwise_kl(logits, targets, groups, s.temperature)
        if s.bce > 0:
            terms["bce"] = s.bce * losses.graded_bce(logits, labels)
        if s.listwise > 0:
            terms["listwise"] = s.listwise * losses.listwise_softmax(logits, labels, groups, s.temperature)
        return terms

    def evaluate(self) -> dict[str, float]:
        return dev_metrics(self._dev, self._scorer.score_pairs(self._dev, table=self._dev_table, hashed=self._dev_hashed))


def distill(
    teacher: Path, data: Sequence[Path], recipe: Recipe, out: Path, *, resume: bool = False, progress: bool = False
) -> dict[str, Any]:
    """Train a student on the teacher's scores of judged and first-stage pairs, and on the judgements; write the best checkpoint to ``out``.

    The teacher's scores are kept in ``teacher-scores-*.npz`` beside ``out`` and reused by every later run over the same pairs.

    Returns
    -------
    The ``training.json`` of the folder: shape, recipe, provenance, dev metrics.

    Raises
    ------
    InputError : unusable data or recipe. BundleError : ``teacher`` is no teacher folder. EdgerecError : training diverged.
    """
    if recipe.loss.mse + recipe.loss.margin_mse + recipe.loss.listwise_kl <= 0:
        raise InputError("distillation needs loss.mse, loss.margin_mse or loss.listwise_kl above 0")
    if recipe.loss.classes:
        raise InputError("a student has one logit: loss.classes belongs to teacher recipes")
    teacher, out = Path(teacher), Path(out)
    teacher_info = read_training_json(teacher, "teacher")
    datasets = train_datasets(data)
    counts = {"per_query": recipe.student.unlabelled_per_query, "span_queries": recipe.student.span_queries, "seed": recipe.seed}
    train, dev = judged_pairs([with_unjudged(d, **counts) for d in datasets], "train"), judged_pairs(datasets, "dev")
    run = open_run(out, resume=resume)  # only now, so that bad data leaves no run folder behind
    targets, scores_file = teacher_scores(teacher, train, out.parent, progress=progress)
    seed_everything(recipe.seed)
    scorer = _new_student(teacher, teacher_info, recipe, run)
    facts = provenance(datasets, recipe, {"teacher": _weights_sha256(teacher), "teacher_scores": scores_file.name})
    result = fit(
        scorer.student,
        _parameter_groups(scorer.student, recipe),
        lambda epoch: epoch_batches(
            train,
            batch_size=recipe.fit.batch_size,
            group_size=recipe.fit.group_size,
            passes=recipe.fit.passes,
            seed=recipe.seed,
            epoch=epoch,
        ),
        _DistillTask(scorer, train, targets, dev, recipe.loss),
        recipe.fit,
        run=run,
        identity=json.dumps(facts["identity"], sort_keys=True),
        seed=recipe.seed,
        progress=progress,
    )
    grades = [(d.grade_min, d.grade_max) for d in datasets]
    info = {
        "kind": "student",
        "student": dataclasses.asdict(scorer.student.shape),
        "text": scorer.text.spec.to_json(),
        "features": None if scorer.features is None else scorer.features.spec.to_json(),
        "grades": {"min": grades[0][0], "max": grades[0][1]},
        "pairs": {"judged": int((~np.isnan(train.label)).sum()), "unlabelled": int(np.isnan(train.label).sum())},
        "teacher": {"dev": teacher_info["dev"], "recipe": teacher_info["recipe"]["name"]},
        "recipe": recipe.to_json(),
        **facts,
        **result,
    }

    def write(folder: Path) -> None:
        save_file({k: v.contiguous() for k, v in scorer.student.state_dict().items()}, folder / "student.safetensors")
        shutil.copy(run / "tokenizer.json", folder / "tokenizer.json")

    return finish(out, run, info, write)


def teacher_scores(teacher: Path, pairs: Pairs, folder: Path, *, progress: bool) -> tuple[Scores, Path]:
    """The teacher's score of every pair, float32 [P], from the file of an earlier run or computed now."""
    key = hashlib.sha256(_weights_sha256(teacher).encode())
    for query, item in zip(pairs.query, pairs.item, strict=True):
        key.update(f"{pairs.query_texts[query]}\0{pairs.items[item].id}\0{pairs.items[item].title}\n".encode("utf-8", "surrogatepass"))
    path = folder / f"teacher-scores-{key.hexdigest()[:16]}.npz"
    scores = np.full(len(pairs), np.nan, np.float32)
    if path.exists():
        with np.load(path) as saved:
            scores = saved["scores"]
    if len(scores) != len(pairs):
        raise InputError(f"{path}: holds {len(scores)} scores, expected {len(pairs)}; delete it to score anew")
    missing = np.flatnonzero(np.isnan(scores))
    if len(missing) == 0:
        return scores, path
    model = Teacher.load(teacher)
    table = TokenTable(pairs, model.encoder)
    with tqdm(total=len(pairs), initial=len(pairs) - len(missing), disable=not progress, unit="pair", desc="teacher") as bar:
        for start in range(0, len(missing), SCORED_AT_ONCE):
            rows = missing[start : start + SCORED_AT_ONCE]
            scores[rows] = model.score_pairs(pairs, rows, table=table)
            if not bool(np.isfinite(scores[rows]).all()):
                raise InputError(f"the teacher {teacher} gives scores that are not finite; train it again with a lower learning rate")
            _save_scores(path, scores)
            bar.update(len(rows))
    return scores, path


def _save_scores(path: Path, scores: Scores) -> None:
    staging = path.with_name(path.name + ".partial")
    with open(staging, "wb") as f:
        np.savez(f, scores=scores)
        f.flush()
        os.fsync(f.fileno())
    os.replace(staging, path)


def _new_student(teacher: Path, teacher_info: dict[str, Any], recipe: Recipe, run: Path) -> StudentScorer:
    s = recipe.student
    source = teacher if s.init == "teacher" else Path(s.init)
    sizes = {"buckets": s.buckets, "feature_dim": s.feature_dim, "feature_hidden": s.feature_hidden} if s.features else {}
    student = student_from_encoder(source, layers=s.layers, **sizes)
    features = FeatureEncoder(default_spec(buckets=s.buckets, slots=s.slots)) if s.features else None
    shutil.copy(source / "tokenizer.json", run / "tokenizer.json")
    if s.init == "teacher":
        spec = TextSpec.from_json(teacher_info["text"])
    else:
        t = recipe.text
        spec = text_spec_from_tokenizer(
            run / "tokenizer.json", max_tokens=t.max_tokens, max_query_tokens=t.max_query_tokens, item_fields=t.item_fields
        )
    return StudentScorer(student, TextEncoder(run / "tokenizer.json", spec), features)


def _parameter_groups(student: Student, recipe: Recipe) -> list[dict[str, Any]]:
    hashed = list(student.features.parameters()) if student.features is not None else []
    mine = {id(p) for p in hashed}
    rest = [p for p in student.parameters() if id(p) not in mine]
    groups: list[dict[str, Any]] = [
        {"params": [p for p in rest if p.ndim > 1], "lr": recipe.fit.learning_rate},
        {"params": [p for p in rest if p.ndim <= 1], "lr": recipe.fit.learning_rate, "weight_decay": 0.0},
    ]
    if hashed:
        groups.append({"params": hashed, "lr": recipe.fit.feature_learning_rate, "weight_decay": 0.0})
    return groups


def _weights_sha256(folder: Path) -> str:
    return hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()
