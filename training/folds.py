"""Folds: one data folder becomes several, so that every judged query is once held out."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np

from edgerec.errors import InputError

from .data import load_dataset
from .folder import new_folder, write_qrels

SPLITS = ("train", "dev")


def write_folds(folder: Path, out: Path, *, count: int = 5, seed: int = 0) -> list[Path]:
    """Write ``out/0`` to ``out/K-1``, data folders of the same items, queries and name; return them.

    The judged queries of ``train`` and ``dev`` are pooled and dealt out at random: each is in ``dev`` of one fold and in ``train`` of the
    others. ``test`` is left out. Same arguments, same folds.

    Raises
    ------
    InputError : unusable data, fewer judged queries than folds, or `out` exists.
    """
    folder, out = Path(folder), Path(out)
    dataset = load_dataset(folder)
    judged = {query: grades for split in SPLITS for query, grades in dataset.qrels.get(split, {}).items()}
    if not 2 <= count <= len(judged):
        raise InputError(f"{folder}: cannot deal {len(judged)} judged queries out to {count} folds; expected 2 folds to one for each query")
    if len(judged) < sum(len(dataset.qrels.get(split, {})) for split in SPLITS):
        raise InputError(f"{folder}: a query is judged in train and in dev; run `edgerec data validate {folder}`")
    fold = dict(zip(judged, np.random.default_rng(seed).permutation(len(judged)) % count, strict=True))
    with new_folder(out) as staging:
        for number in range(count):
            to = staging / str(number)
            to.mkdir()
            for path in folder.iterdir():
                if path.is_file() and path.name.startswith(("corpus.", "queries.", "dataset.")):
                    shutil.copy(path, to)
            rows = {
                split: [(q, i, g) for q, grades in judged.items() if (fold[q] == number) == (split == "dev") for i, g in grades.items()]
                for split in SPLITS
            }
            write_qrels(to, rows)
    return [out / str(number) for number in range(count)]
