"""Targets of a distillation: the scores of one teacher, or the mean of several once they speak on one scale."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from edgerec.errors import InputError

from .config import Recipe
from .data import Dataset
from .pairs import Pairs, Rows, TokenTable
from .provenance import base_identity, read_training_json, weights_sha256
from .student import StudentScorer
from .teacher import Teacher
from .weak import weak_scores

Scores = NDArray[np.float32]
SCORED_AT_ONCE = 16_384


def ensemble_targets(
    teachers: Sequence[Path], pairs: Pairs, datasets: Sequence[Dataset], recipe: Recipe, folder: Path, *, embedder: str = "", progress: bool
) -> tuple[Scores, list[dict[str, Any]]]:
    """What the student should score for each pair, float32 [P], and what each member of the ensemble is.

    One member: its scores as they are. Several: the mean of their calibrated scores, see :data:`CALIBRATIONS`. Each member's scores are
    kept in a file of their own in ``folder`` and reused by every later run over the same pairs.

    Raises
    ------
    InputError : no teacher, scores that are not finite, or judgements that allow no calibration. BundleError : no model folder.
    """
    if not teachers:
        raise InputError("distillation needs a teacher; give at least one")
    found: list[tuple[Scores, dict[str, Any]]] = []
    for teacher in teachers:
        info = read_training_json(teacher, "teacher", "student")
        scores, path = teacher_scores(teacher, pairs, folder, progress=progress)
        facts = {"name": teacher.name, "kind": info["kind"], "sha256": weights_sha256(teacher), "scores": path.name}
        found.append((scores, {**facts, "recipe": info["recipe"]["name"], "dev": info["dev"]}))
    if recipe.ensemble.weak:
        found.append(_weak_member(pairs, datasets, recipe, folder, embedder, progress=progress))
    if len(found) == 1:
        return found[0][0], [found[0][1]]
    members, total = [], np.zeros(len(pairs))
    for scores, facts in found:
        slope, offset = CALIBRATIONS[recipe.ensemble.calibration](scores, pairs.label)
        total += slope * scores + offset
        members.append({**facts, "slope": slope, "offset": offset})
    return (total / len(found)).astype(np.float32), members


def standardise(scores: Scores, labels: NDArray[np.float32]) -> tuple[float, float]:
    """Slope and offset that give the scores mean 0 and deviation 1."""
    deviation = float(np.std(scores, dtype=np.float64))
    if deviation == 0:
        raise InputError("a teacher gives every pair the same score: nothing to learn from it")
    return 1 / deviation, -float(np.mean(scores, dtype=np.float64)) / deviation


def platt(scores: Scores, labels: NDArray[np.float32]) -> tuple[float, float]:
    """Slope and offset that make ``sigmoid(slope * score + offset)`` the best estimate of the label, by Newton's method.

    Source: Platt, Probabilistic outputs for support vector machines, 1999; labels may be graded.
    """
    known = ~np.isnan(labels)
    y = labels[known].astype(np.float64)
    if len(y) == 0 or float(y.mean()) in (0.0, 1.0):
        raise InputError("Platt's calibration needs training judgements of more than one grade; set ensemble.calibration = 'standardise'")
    scale, shift = standardise(scores, labels)
    x = np.stack([scale * scores[known].astype(np.float64) + shift, np.ones(len(y))], axis=1)
    weights = np.zeros(2)
    for _ in range(50):
        p = 1 / (1 + np.exp(-np.clip(x @ weights, -30, 30)))
        # The ridge keeps scores that separate the labels perfectly from running away.
        gradient = x.T @ (p - y) / len(y) + 1e-4 * weights
        curvature = (x * (p * (1 - p))[:, None]).T @ x / len(y) + 1e-4 * np.eye(2)
        step = np.linalg.solve(curvature, gradient)
        weights -= step
        if float(np.abs(step).max()) < 1e-9:
            break
    return float(weights[0] * scale), float(weights[0] * shift + weights[1])


CALIBRATIONS: dict[str, Callable[[Scores, NDArray[np.float32]], tuple[float, float]]] = {"platt": platt, "standardise": standardise}


def teacher_scores(teacher: Path, pairs: Pairs, folder: Path, *, progress: bool) -> tuple[Scores, Path]:
    """The teacher's score of every pair, float32 [P], from the file of an earlier run or computed now."""
    path = folder / f"teacher-scores-{_key(pairs, weights_sha256(teacher))}.npz"
    scores = _read_scores(path, len(pairs))
    missing = np.flatnonzero(np.isnan(scores))
    if len(missing) == 0:
        return scores, path
    score = _scoring(teacher, pairs)
    with tqdm(total=len(pairs), initial=len(pairs) - len(missing), disable=not progress, unit="pair", desc="teacher") as bar:
        for start in range(0, len(missing), SCORED_AT_ONCE):
            rows = missing[start : start + SCORED_AT_ONCE]
            scores[rows] = score(rows)
            if not bool(np.isfinite(scores[rows]).all()):
                raise InputError(f"the teacher {teacher} gives scores that are not finite; train it again with a lower learning rate")
            _save_scores(path, scores)
            bar.update(len(rows))
    return scores, path


def _scoring(folder: Path, pairs: Pairs) -> Callable[[Rows], Scores]:
    if read_training_json(folder, "teacher", "student")["kind"] == "teacher":
        model = Teacher.load(folder)
        table = TokenTable(pairs, model.encoder)
        return lambda rows: model.score_pairs(pairs, rows, table=table)
    scorer = StudentScorer.load(folder)
    tokens, hashed = TokenTable(pairs, scorer.text), scorer.hash(pairs)
    return lambda rows: scorer.score_pairs(pairs, rows, table=tokens, hashed=hashed)


def _weak_member(
    pairs: Pairs, datasets: Sequence[Dataset], recipe: Recipe, folder: Path, embedder: str, *, progress: bool
) -> tuple[Scores, dict[str, Any]]:
    cosine = recipe.ensemble.weak_cosine
    identity = {"embedder": base_identity(embedder) if cosine else "", "cosine": cosine}
    options: dict[str, Any] = {"max_tokens": recipe.text.max_tokens, "precision": recipe.fit.precision}
    path = folder / f"weak-scores-{_key(pairs, json.dumps({**identity, **options}))}.npz"
    scores = _read_scores(path, len(pairs))
    if np.isnan(scores).any():
        scores = weak_scores(pairs, datasets, embedder, cosine=cosine, progress=progress, **options)
        _save_scores(path, scores)
    return scores, {"name": "weak", "kind": "weak", **identity, "scores": path.name}


def _key(pairs: Pairs, scorer: str) -> str:
    key = hashlib.sha256(scorer.encode())
    items = [hashlib.sha256(repr(item).encode("utf-8", "surrogatepass")).digest() for item in pairs.items]
    for query, item in zip(pairs.query.tolist(), pairs.item.tolist(), strict=True):
        key.update(pairs.query_texts[query].encode("utf-8", "surrogatepass") + b"\0" + items[item])
    return key.hexdigest()[:16]


def _read_scores(path: Path, count: int) -> Scores:
    scores = np.full(count, np.nan, np.float32)
    if path.exists():
        with np.load(path) as saved:
            scores = saved["scores"]
    if len(scores) != count:
        raise InputError(f"{path}: holds {len(scores)} scores, expected {count}; delete it to score anew")
    return scores


def _save_scores(path: Path, scores: Scores) -> None:
    staging = path.with_name(path.name + ".partial")
    with open(staging, "wb") as f:
        np.savez(f, scores=scores)
        f.flush()
        os.fsync(f.fileno())
    os.replace(staging, path)
