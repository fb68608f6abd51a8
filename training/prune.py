"""Structured pruning: a student loses the heads and FFN columns that matter least, is physically smaller for it, and learns to do without.

Importance of a unit: ``|sum of weight * gradient|`` over the weights through which it speaks, which is the gradient of a gate on its
output (Michel et al., Are sixteen heads really better than one, arXiv 1905.10650; Molchanov et al., arXiv 1906.10771).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from edgerec.errors import InputError

from .config import Recipe
from .dev import first_stage_metrics
from .distill import DistillTask, check_taught, distill_batches, finish_student, fit_student, guide_of, student_info, student_pairs
from .loop import Task, open_run, seed_everything
from .pairs import Rows, judged_pairs
from .provenance import provenance, read_training_json, weights_sha256
from .student import Student, StudentScorer, StudentShape
from .targets import ensemble_targets
from .teacher import train_datasets
from .vocabulary import prune_vocabulary

BLOCK = 8
"""FFN columns leave in blocks of so many: an odd width costs as much as the next multiple of the vector unit."""
ROUNDING = 1e-8
"""A loss below this is what rounding leaves of none: the same rows, in other passes, score a little otherwise."""
Scores = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Units:
    """One layer's heads [A] and FFN columns [I]: their importance, or the places of those that stay."""

    heads: NDArray[Any]
    columns: NDArray[Any]


def prune(
    student: Path,
    data: Sequence[Path],
    recipe: Recipe,
    out: Path,
    *,
    teachers: Sequence[Path] = (),
    resume: bool = False,
    progress: bool = False,
) -> dict[str, Any]:
    """Take from a student what ``recipe.prune`` says, train the rest to recover, and write it to ``out``.

    Parameters
    ----------
    teachers : whom it learns from while it recovers; by default the student as it was. Nothing is trained where ``prune.flops`` is 1.

    Returns
    -------
    The ``training.json`` of the folder; ``pruning`` says what went, and dev metrics before and after.

    Raises
    ------
    InputError : unusable data or recipe. BundleError : no student folder. EdgerecError : training diverged.
    """
    settings, student, out = recipe.prune, Path(student), Path(out)
    if settings.flops == 1 and not settings.vocabulary:
        raise InputError("nothing to prune: set prune.flops below 1 or prune.vocabulary = true in the recipe")
    read_training_json(student, "student")
    datasets = train_datasets(data)
    dev, train, first_stage = judged_pairs(datasets, "dev"), student_pairs(datasets, recipe), first_stage_metrics(datasets)
    if settings.flops < 1:
        check_taught(recipe)
    scorer = StudentScorer.load(student)
    if not isinstance(scorer.student, Student):
        raise InputError(
            f"{student} is a mid-fusion student, which pruning does not know; prune a student of student.interaction = 'cross'"
        )
    run = open_run(out, resume=resume)
    before = DistillTask(scorer, train, np.zeros(len(train), np.float32), dev, recipe).evaluate()
    scorer, vocabulary = prune_vocabulary(scorer, student, datasets, settings, run)
    facts = provenance(datasets, recipe, {"student": weights_sha256(student), "teachers": [weights_sha256(Path(t)) for t in teachers]})
    pruning: dict[str, Any] = {"from": student.name, "dev_before": before, "vocabulary": vocabulary}
    members: list[dict[str, Any]] = []
    if settings.flops < 1:
        folders = [Path(t) for t in teachers] or [student]
        targets, members = ensemble_targets(folders, train, datasets, recipe, out.parent, progress=progress)
        guide = guide_of(folders[0], scorer, recipe)
        seed_everything(recipe.seed)
        whole, tokens = scorer.student.shape, scorer.text.spec.max_tokens
        assert isinstance(scorer.student, Student)
        task = DistillTask(scorer, train, targets, dev, recipe, guide)
        units = importance(scorer.student, task, distill_batches(train, recipe, 0)[: settings.batches])
        scorer = StudentScorer(smaller(scorer.student, choose(units, whole, settings.flops, tokens)), scorer.text, scorer.features)
        pruning["flops"] = flops(scorer.student.shape, tokens) / flops(whole, tokens)
        task = DistillTask(scorer, train, targets, dev, recipe, guide)
        pruning["dev_unrecovered"] = task.evaluate()
        result = fit_student(scorer, train, task, recipe, run=run, facts=facts, progress=progress)
    else:
        after = DistillTask(scorer, train, np.zeros(len(train), np.float32), dev, recipe).evaluate()
        result = {"steps": 0, "best_step": 0, "dev": after, "history": []}
    made = {"first_stage": first_stage, "teachers": members, "pruning": pruning}
    info = {**student_info(scorer, datasets, train, recipe), **made, **facts, **result}
    return finish_student(out, run, scorer, info)


def importance(student: Student, task: Task, batches: Iterable[Rows]) -> list[Units]:
    """Importance of every head and column, summed over training steps, without dropout. Raises InputError if nothing matters."""
    layers: list[Any] = list(student.tower.layers)
    size = student.shape.head_size
    found = [Units(np.zeros(layer.heads), np.zeros(layer.output.in_features)) for layer in layers]
    student.eval()
    largest = 0.0
    for rows in batches:
        student.zero_grad(set_to_none=True)
        loss = torch.stack(list(task.losses(rows, 0, 0.0).values())).sum()
        largest = max(largest, abs(loss.item()))
        loss.backward()  # type: ignore[no-untyped-call]
        for layer, units in zip(layers, found, strict=True):
            units.heads[:] += np.abs(_pull(layer.attention_output).reshape(-1, size).sum(1))
            units.columns[:] += np.abs(_pull(layer.output))
    student.zero_grad(set_to_none=True)
    if largest < ROUNDING or not any(units.heads.any() or units.columns.any() for units in found):
        raise InputError(
            "no head or column matters to the loss: a student that is its own teacher has nothing to learn from loss.mse alone; "
            "give loss.bce or loss.listwise a weight, or name a --teacher"
        )
    return found


def _pull(linear: nn.Linear) -> Scores:
    """``weight * gradient`` summed over the outputs of a linear map, by input, float64 [in]."""
    assert linear.weight.grad is not None
    return (linear.weight * linear.weight.grad).sum(0).detach().cpu().numpy().astype(np.float64)


def flops(shape: StudentShape, tokens: int) -> int:
    """Multiplications of the encoder's layers for one row of ``tokens`` tokens; the last layer answers for [CLS] alone."""
    sizes = shape.layer_sizes()
    return sum(_layer_flops(shape, heads, inner, tokens, last=i == len(sizes) - 1) for i, (heads, inner) in enumerate(sizes))


def _layer_flops(shape: StudentShape, heads: int, inner: int, tokens: int, *, last: bool) -> int:
    asking, width = 1 if last else tokens, heads * shape.head_size
    projections = shape.hidden * width * (2 * tokens + 2 * asking)  # key, value; query, output
    return projections + 2 * asking * tokens * width + 2 * asking * shape.hidden * inner


def choose(units: Sequence[Units], shape: StudentShape, share: float, tokens: int) -> list[Units]:
    """The places that stay: what matters least for its cost goes first, until ``share`` of the multiplications is left.

    Every layer keeps a head and a block of columns.

    Raises
    ------
    InputError : the share cannot be reached.
    """
    candidates: list[tuple[float, int, str, NDArray[np.intp], int]] = []
    for number, layer in enumerate(units):
        last, heads, inner = number == len(units) - 1, len(layer.heads), len(layer.columns)
        whole = _layer_flops(shape, heads, inner, tokens, last=last)
        head_cost = whole - _layer_flops(shape, heads - 1, inner, tokens, last=last)
        column_cost = whole - _layer_flops(shape, heads, inner - 1, tokens, last=last)
        for place in np.argsort(layer.heads, kind="stable")[: heads - 1]:
            candidates.append((layer.heads[place] / head_cost, number, "heads", np.array([place]), head_cost))
        order = np.argsort(layer.columns, kind="stable")
        for start in range(0, inner - BLOCK, BLOCK):
            block = order[start : start + BLOCK]
            cost = column_cost * len(block)
            candidates.append((layer.columns[block].sum() / cost, number, "columns", block, cost))
    left, budget = flops(shape, tokens), share * flops(shape, tokens)
    gone = [Units(np.zeros(len(u.heads), bool), np.zeros(len(u.columns), bool)) for u in units]
    for _, number, kind, places, cost in sorted(candidates, key=lambda c: c[:3]):
        if left <= budget:
            break
        getattr(gone[number], kind)[places] = True
        left -= cost
    if left > budget:
        raise InputError(f"prune.flops = {share:g} cannot be reached: one head and {BLOCK} columns a layer are {left / budget * share:.3f}")
    return [Units(np.flatnonzero(~g.heads), np.flatnonzero(~g.columns)) for g in gone]


@torch.no_grad()
def smaller(student: Student, kept: Sequence[Units]) -> Student:
    """A student with only those heads and columns; the same logits as one whose others are silent."""
    shape = dataclasses.replace(
        student.shape, layer_heads=tuple(len(u.heads) for u in kept), layer_intermediate=tuple(len(u.columns) for u in kept)
    )
    weights = student.state_dict()
    for number, units in enumerate(kept):
        layer = f"tower.layers.{number}"
        width = torch.from_numpy((units.heads[:, None] * shape.head_size + np.arange(shape.head_size)).ravel())
        columns = torch.from_numpy(units.columns)
        for name in ("query", "key", "value"):
            weights[f"{layer}.{name}.weight"] = weights[f"{layer}.{name}.weight"].cpu()[width]
            weights[f"{layer}.{name}.bias"] = weights[f"{layer}.{name}.bias"].cpu()[width]
        weights[f"{layer}.attention_output.weight"] = weights[f"{layer}.attention_output.weight"].cpu()[:, width]
        weights[f"{layer}.intermediate.weight"] = weights[f"{layer}.intermediate.weight"].cpu()[columns]
        weights[f"{layer}.intermediate.bias"] = weights[f"{layer}.intermediate.bias"].cpu()[columns]
        weights[f"{layer}.output.weight"] = weights[f"{layer}.output.weight"].cpu()[:, columns]
    found = Student(shape)
    found.load_state_dict(weights)
    return found
