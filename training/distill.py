"""Distillation: teacher scores, written once, become the targets of a smaller student."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer
from torch import Tensor

from edgerec.errors import EdgerecError, InputError
from edgerec.features import FeatureEncoder, default_spec
from edgerec.text import TextEncoder, TextSpec, text_spec_from_tokenizer

from . import workers
from .augment import augmenter
from .config import Recipe
from .data import Dataset
from .dev import dev_metrics, first_stage_metrics
from .groups import parameter_groups
from .loop import Task, discard_run, fit, open_run, seed_everything, set_dropout
from .mid import MidStudent, view_left
from .mid_start import item_sample, mid_from_cross, mid_shape
from .objective import TAUGHT, Answers, loss_terms
from .pairs import Pairs, Rows, TokenTable, epoch_batches, judged_pairs
from .provenance import finish, provenance, read_training_json, weights_sha256
from .student import Student, StudentScorer, student_from_encoder
from .targets import Scores, ensemble_targets
from .teacher import train_datasets
from .unjudged import with_unjudged


class DistillTask:
    """Teacher scores and judgements in, loss out. ``guide``: the teacher whose vectors ``loss.hidden`` looks at, of training texts as they
    are."""

    def __init__(
        self, scorer: StudentScorer, train: Pairs, targets: Scores, dev: Pairs, recipe: Recipe, guide: StudentScorer | None = None
    ) -> None:
        self._scorer, self._train, self._dev, self._settings = scorer, train, dev, recipe.loss
        self._targets, self._closing = torch.from_numpy(targets), recipe.student.closing
        self._augment = augmenter(recipe.augment, item_fields=scorer.text.spec.item_fields, seed=recipe.seed)
        self._table, self._hashed = TokenTable(train, scorer.text), scorer.hash(train)
        self._dev_table, self._dev_hashed = TokenTable(dev, scorer.text), scorer.hash(dev)
        self._guide = None if guide is None else (guide, TokenTable(train, guide.text), guide.hash(train))

    def losses(self, rows: Rows, epoch: int, progress: float) -> dict[str, Tensor]:
        if isinstance(self._scorer.student, MidStudent):
            self._scorer.student.view = view_left(progress, self._closing)
        table, hashed, places = self._table, self._hashed, rows
        if self._augment:
            changed = self._augment.pairs(self._train, rows, epoch)
            table, hashed, places = TokenTable(changed, self._scorer.text), self._scorer.hash(changed), np.arange(len(rows))
        known = (torch.from_numpy(self._train.label[rows]), torch.from_numpy(self._train.query[rows]), self._targets[rows])
        taught = self._taught_vectors(rows)

        def answer() -> Answers:
            found = self._scorer.forward(table, hashed, places, vectors=True)
            logits, vectors = found[:, 0], found[:, 1:]
            labels, groups, targets = (values.to(logits.device) for values in known)
            return Answers(logits.unsqueeze(1), logits, labels, groups, targets, vectors, taught)

        return loss_terms(answer, self._settings)

    @torch.no_grad()
    def _taught_vectors(self, rows: Rows) -> Tensor | None:
        if self._guide is None:
            return None
        guide, table, hashed = self._guide
        guide.student.eval()
        return guide.forward(table, hashed, rows, vectors=True)[:, 1:]

    def queries(self, rows: Rows) -> Rows:
        return self._train.query[rows]

    def evaluate(self) -> dict[str, float]:
        return dev_metrics(self._dev, self._scorer.score_pairs(self._dev, table=self._dev_table, hashed=self._dev_hashed))


@workers.joined()
def distill(
    teachers: Path | Sequence[Path],
    data: Sequence[Path],
    recipe: Recipe,
    out: Path,
    *,
    embedder: str = "",
    resume: bool = False,
    progress: bool = False,
) -> dict[str, Any]:
    """Train a student on the scores of one or more teachers, and on the judgements; write the best checkpoint to ``out``.

    Pairs are the judged ones and those the recipe adds. The scores of each teacher are kept in ``teacher-scores-*.npz`` beside ``out`` and
    reused by every later run over the same pairs.

    Parameters
    ----------
    teachers : model folders; where ``student.init`` is ``teacher``, the student's weights come from the first.
    embedder : a sentence-embedding model, for the weak member of an ensemble (``ensemble.weak``).

    Returns
    -------
    The ``training.json`` of the folder: shape, recipe, provenance, dev metrics.

    Raises
    ------
    InputError : unusable data or recipe. BundleError : a teacher is no model folder. EdgerecError : training diverged.
    """
    check_taught(recipe)
    if recipe.ensemble.weak and recipe.ensemble.weak_cosine and not embedder:
        raise InputError("ensemble.weak_cosine above 0 needs --embedder, the folder or hub name of a sentence-embedding model")
    folders, out = [Path(teachers)] if isinstance(teachers, (str, Path)) else [Path(t) for t in teachers], Path(out)
    infos = [read_training_json(folder, "teacher", "student") for folder in folders]
    datasets = train_datasets(data)
    train, dev, first_stage = student_pairs(datasets, recipe), judged_pairs(datasets, "dev"), first_stage_metrics(datasets)
    run = open_run(out, resume=resume)  # only now, so that bad data leaves no run folder behind
    targets, members = workers.first(
        lambda: ensemble_targets(folders, train, datasets, recipe, out.parent, embedder=embedder, progress=progress)
    )
    seed_everything(recipe.seed)
    try:
        scorer = _new_student(folders[0], infos[0], recipe, run, train)
        guide = guide_of(folders[0], scorer, recipe)
    except EdgerecError:
        discard_run(run)
        raise
    made_of: dict[str, Any] = {"teachers": [{k: m.get(k) for k in ("kind", "sha256", "embedder", "scores")} for m in members]}
    if recipe.student.init != "teacher":
        made_of["init"] = weights_sha256(Path(recipe.student.init))
    facts = provenance(datasets, recipe, made_of)
    task = DistillTask(scorer, train, targets, dev, recipe, guide)
    result = fit_student(scorer, train, task, recipe, run=run, facts=facts, progress=progress)
    info = {**student_info(scorer, datasets, train, recipe), "first_stage": first_stage, "teachers": members, **facts, **result}
    return finish_student(out, run, scorer, info)


def check_taught(recipe: Recipe) -> None:
    """Raise InputError for a recipe that cannot teach a student."""
    if not any(getattr(recipe.loss, name) for name in TAUGHT):
        raise InputError(f"distillation needs one of loss.{', loss.'.join(TAUGHT)} above 0")
    if recipe.loss.classes:
        raise InputError("a student has one logit: loss.classes belongs to teacher recipes")


def guide_of(teacher: Path, scorer: StudentScorer, recipe: Recipe) -> StudentScorer | None:
    """The teacher whose vectors the student is to have; None where ``loss.hidden`` is 0.

    Raises InputError where it is no BERT-type encoder of the student's width.
    """
    if not recipe.loss.hidden:
        return None
    info = read_training_json(teacher, "teacher", "student")
    if info["kind"] == "student":
        guide = StudentScorer.load(teacher)
    else:
        text = TextEncoder(teacher / "tokenizer.json", TextSpec.from_json(info["text"]))
        guide = StudentScorer(student_from_encoder(teacher), text, None)
    if (theirs := guide.student.shape.hidden) != (own := scorer.student.shape.hidden):
        raise InputError(f"loss.hidden needs a first teacher as wide as the student: {teacher} has {theirs}, the student {own}")
    return guide


def student_pairs(datasets: Sequence[Dataset], recipe: Recipe) -> Pairs:
    """What a student learns from: the train splits and the unjudged pairs the recipe asks for."""
    counts = {"per_query": recipe.student.unlabelled_per_query, "span_queries": recipe.student.span_queries, "seed": recipe.seed}
    return judged_pairs([with_unjudged(d, **counts) for d in datasets], "train")


def distill_batches(train: Pairs, recipe: Recipe, epoch: int) -> list[Rows]:
    """The steps of one epoch."""
    return epoch_batches(train, recipe.fit, seed=recipe.seed, epoch=epoch)


def fit_student(
    scorer: StudentScorer, train: Pairs, task: Task, recipe: Recipe, *, run: Path, facts: Mapping[str, Any], progress: bool
) -> dict[str, Any]:
    """Train a student in place; see `edgerec.training.loop.fit`."""
    set_dropout(scorer.student, recipe.fit.dropout)
    return fit(
        scorer.student,
        parameter_groups(scorer.student, recipe.fit),
        lambda epoch: distill_batches(train, recipe, epoch),
        task,
        recipe.fit,
        run=run,
        identity=json.dumps(facts["identity"], sort_keys=True),
        seed=recipe.seed,
        progress=progress,
    )


def student_info(scorer: StudentScorer, datasets: Sequence[Dataset], train: Pairs, recipe: Recipe) -> dict[str, Any]:
    """What ``training.json`` says of a student beside provenance and dev metrics."""
    return {
        "kind": "student",
        "student": dataclasses.asdict(scorer.student.shape),
        "text": scorer.text.spec.to_json(),
        "features": None if scorer.features is None else scorer.features.spec.to_json(),
        "grades": {"min": datasets[0].grade_min, "max": datasets[0].grade_max},
        "pairs": {"judged": int((~np.isnan(train.label)).sum()), "unlabelled": int(np.isnan(train.label).sum())},
        "recipe": recipe.to_json(),
    }


def finish_student(out: Path, run: Path, scorer: StudentScorer, info: Mapping[str, Any]) -> dict[str, Any]:
    """Write the student's folder; its tokenizer lies in the run folder."""

    def write(folder: Path) -> None:
        save_file({k: v.contiguous() for k, v in scorer.student.state_dict().items()}, folder / "student.safetensors")
        shutil.copy(run / "tokenizer.json", folder / "tokenizer.json")

    return finish(out, run, info, write)


def _copy_tokenizer(source: Path, to: Path) -> None:
    """Packaged encoders pad and truncate in their tokenizer.json; edgerec does both itself."""
    tokenizer = Tokenizer.from_file(str(source))
    if tokenizer.padding is None and tokenizer.truncation is None:
        shutil.copy(source, to)
        return
    tokenizer.no_padding()
    tokenizer.no_truncation()
    tokenizer.save(str(to))


def _new_student(teacher: Path, teacher_info: dict[str, Any], recipe: Recipe, run: Path, train: Pairs) -> StudentScorer:
    s = recipe.student
    source, tokenizer = teacher if s.init == "teacher" else Path(s.init), run / "tokenizer.json"
    if (source / "student.safetensors").exists():
        made = StudentScorer.load(source)
        if s.layers or s.features != (made.features is not None):
            raise InputError(
                f"student.init = {s.init!r} is a student and learns on as it is: no student.layers, and student.features as there"
            )
        workers.first(lambda: shutil.copy(source / "tokenizer.json", tokenizer))
        if s.interaction == "cross":
            return made
        if isinstance(made.student, Student):
            return _mid(made.student, made.text, made.features, recipe, train)
        has, asked = (dataclasses.asdict(shape) for shape in (made.student.shape, mid_shape(made.student.shape, made.text.spec, s)))
        if has != asked:
            differ = ", ".join(f"{name} = {size!r}" for name, size in has.items() if size != asked[name])
            raise InputError(f"student.init = {s.init!r} is mid-fusion and learns on as it is, with {differ}: ask for that")
        return made
    sizes = {"buckets": s.buckets, "feature_dim": s.feature_dim, "feature_hidden": s.feature_hidden} if s.features else {}
    student = student_from_encoder(source, layers=s.layers, **sizes)
    features = FeatureEncoder(default_spec(buckets=s.buckets, slots=s.slots)) if s.features else None
    workers.first(lambda: _copy_tokenizer(source / "tokenizer.json", tokenizer))
    if s.init == "teacher":
        spec = TextSpec.from_json(teacher_info["text"])
    else:
        t = recipe.text
        spec = text_spec_from_tokenizer(tokenizer, max_tokens=t.max_tokens, max_query_tokens=t.max_query_tokens, item_fields=t.item_fields)
    text = TextEncoder(tokenizer, spec)
    return StudentScorer(student, text, features) if s.interaction == "cross" else _mid(student, text, features, recipe, train)


def _mid(cross: Student, text: TextEncoder, features: FeatureEncoder | None, recipe: Recipe, train: Pairs) -> StudentScorer:
    def fitted() -> MidStudent:
        return mid_from_cross(cross, text.spec, recipe.student, item_sample(train, text, seed=recipe.seed))

    # Once: another machine's linear algebra may turn the states' axes otherwise.
    return StudentScorer(workers.first(fitted), text, features)
