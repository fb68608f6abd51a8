"""A small data folder with graded judgements, and scorers whose quality on it is known."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from edgerec.types import Item

COLOURS = ("red", "blue", "green", "black")
THINGS = ("lamp", "chair", "table", "shelf", "rug")


def write_folder(folder: Path, *, grades: tuple[float, float] = (1, 4)) -> Path:
    """Twenty items (colour x thing), eight queries; grade by how much of the query the item matches. Split ``dev`` lists all items."""
    items = [f"{colour} {thing}" for colour in COLOURS for thing in THINGS]
    queries = [f"{COLOURS[i % 4]} {THINGS[i % 5]}s" for i in range(8)]
    (folder / "qrels").mkdir(parents=True)
    (folder / "dataset.json").write_text(json.dumps({"name": "toy", "grades": {"min": grades[0], "max": grades[1]}}))
    (folder / "corpus.jsonl").write_text("".join(json.dumps({"_id": f"i{n}", "title": title}) + "\n" for n, title in enumerate(items)))
    (folder / "queries.jsonl").write_text("".join(json.dumps({"_id": f"q{n}", "text": text}) + "\n" for n, text in enumerate(queries)))
    lines = ["query-id\tcorpus-id\tscore"]
    for q, query in enumerate(queries):
        for n, title in enumerate(items):
            lines.append(f"q{q}\ti{n}\t{true_grade(query, title, grades)}")
    (folder / "qrels" / "dev.tsv").write_text("\n".join(lines) + "\n")
    (folder / "qrels" / "tiny.tsv").write_text("query-id\tcorpus-id\tscore\nq0\ti0\t4\nq1\ti0\t1\nq1\ti1\t1\n")
    return folder


def true_grade(query: str, title: str, grades: tuple[float, float] = (1, 4)) -> float:
    """Lowest grade plus two thirds of the range for the colour and one for the thing: the rarer word counts less, so BM25 errs."""
    colour, thing = query.removesuffix("s").split(" ", 1)
    low, high = grades
    return low + (high - low) * (2 * (colour in title) + (thing in title)) / 3


class Perfect:
    """Knows the grades."""

    def score(self, query: str, items: Sequence[Item]) -> NDArray[np.float32]:
        return np.array([true_grade(query, item.title) for item in items], np.float32)


class Reversed:
    """Knows the grades and lies."""

    def score(self, query: str, items: Sequence[Item]) -> NDArray[np.float32]:
        return -Perfect().score(query, items)


class Constant:
    """Says nothing: every item scores the same."""

    def score(self, query: str, items: Sequence[Item]) -> NDArray[np.float32]:
        return np.zeros(len(items), np.float32)
