"""Datasets on disk (BEIR layout): items, queries and graded judgements of one shop."""

from __future__ import annotations

import csv
import hashlib
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgerec.corpus import item_from_record, read_jsonl
from edgerec.errors import InputError
from edgerec.types import Item

Qrels = dict[str, dict[str, float]]


@dataclass(frozen=True, slots=True)
class Dataset:
    """One data folder, read whole.

    Attributes
    ----------
    qrels : split -> query id -> item id -> grade, in file order.
    grade_min, grade_max : the range `dataset.json` states; ``label = (grade - min) / (max - min)``, nDCG gain ``2^(grade - min) - 1``.
    sha256 : over the contents of all files read, for provenance.
    """

    name: str
    items: dict[str, Item]
    queries: dict[str, str]
    qrels: dict[str, Qrels]
    grade_min: float
    grade_max: float
    sha256: str

    def label(self, grade: float) -> float:
        """The training target in [0, 1]."""
        return (grade - self.grade_min) / (self.grade_max - self.grade_min)


def load_dataset(folder: Path) -> Dataset:
    """Read a data folder. Strict: the first fault raises InputError with file and line; `edgerec data validate` lists them all."""
    folder = Path(folder)
    digest = hashlib.sha256()
    meta = _read_json(folder / "dataset.json", digest)
    try:
        low, high = float(meta["grades"]["min"]), float(meta["grades"]["max"])
    except (KeyError, TypeError, ValueError) as e:
        raise InputError(f"{folder}/dataset.json: expected {{'grades': {{'min': number, 'max': number}}}}") from e
    if not (math.isfinite(low) and math.isfinite(high) and low < high):
        raise InputError(f"{folder}/dataset.json: grades.min {low} must be below grades.max {high}")
    items = {}
    for place, record in read_jsonl(_find(folder, "corpus.jsonl"), digest):
        item = item_from_record(record, place)
        if item.id in items:
            raise InputError(f"{place}: item {item.id!r} stands twice; run `edgerec data validate {folder}`")
        items[item.id] = item
    queries = {}
    for place, record in read_jsonl(_find(folder, "queries.jsonl"), digest):
        if not isinstance(record.get("_id"), str) or not isinstance(record.get("text"), str):
            raise InputError(f"{place}: a query needs the strings _id and text")
        queries[record["_id"]] = record["text"]
    qrels = {path.stem: _read_qrels(path, digest) for path in sorted((folder / "qrels").glob("*.tsv"))}
    for split, judged in qrels.items():
        for query_id, grades in judged.items():
            missing = [i for i in grades if i not in items]
            if query_id not in queries or missing:
                raise InputError(
                    f"{folder}/qrels/{split}.tsv: query {query_id!r} or items {missing[:3]} are unknown; run `edgerec data validate`"
                )
    return Dataset(str(meta.get("name") or folder.name), items, queries, qrels, low, high, digest.hexdigest())


def _find(folder: Path, name: str) -> Path:
    for path in (folder / name, folder / f"{name}.gz"):
        if path.exists():
            return path
    raise InputError(f"{folder}: neither {name} nor {name}.gz is there; expected the layout that docs/data.md describes")


def _read_json(path: Path, digest: Any) -> dict[str, Any]:
    try:
        raw = path.read_bytes()
        digest.update(raw)
        value = json.loads(raw)
    except (OSError, ValueError) as e:
        raise InputError(f"{path}: {e}") from e
    if not isinstance(value, dict):
        raise InputError(f"{path}: expected one JSON object")
    return value


def _read_qrels(path: Path, digest: Any) -> Qrels:
    raw = path.read_bytes()
    digest.update(raw)
    judged: Qrels = {}
    try:
        lines = raw.decode("utf-8").splitlines()
    except UnicodeDecodeError as e:
        raise InputError(f"{path}: not UTF-8 ({e}); run `edgerec data validate`") from e
    rows: Sequence[list[str]] = list(csv.reader(lines, delimiter="\t", quoting=csv.QUOTE_NONE))
    if not rows or rows[0] != ["query-id", "corpus-id", "score"]:
        raise InputError(f"{path}: the first line must be query-id<TAB>corpus-id<TAB>score")
    for number, row in enumerate(rows[1:], 2):
        try:
            query_id, item_id, grade = row
            judged.setdefault(query_id, {})[item_id] = float(grade)
        except ValueError as e:
            raise InputError(f"{path}:{number}: expected query id, item id and a number, found {row}") from e
    return judged
