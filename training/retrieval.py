"""A retrieval head for a trained mid-fusion student: two linear maps, learned with the rest of the student frozen.

Since nothing below changes, every query and item is encoded once, and an epoch is a few small products.

Source: in-batch softmax, Henderson et al., Efficient Natural Language Response Suggestion, arXiv 1705.00652; a temperature on cosines,
Chen et al., SimCLR, arXiv 2002.05709.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import shutil
import zlib
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from edgerec.errors import EdgerecError, InputError
from edgerec.states import ItemStates, StateSpec
from edgerec.types import Item
from edgerec.vectors import MAX_WIDTH, VECTORS_FILE, RetrievalHead, VectorSpec, mean_states, unit
from edgerec.words import split_words

from .data import Dataset
from .export_mid import state_spec
from .folder import new_folder
from .judged import relevant_from
from .mid import MidStudent
from .provenance import read_training_json
from .student import StudentScorer, tensors
from .teacher import train_datasets

ENCODED = 64
"""Queries or items of one pass, sorted by length first."""
TOLERANCE = 1e-5


@dataclass(frozen=True, slots=True)
class RetrievalSettings:
    """How the head is learned.

    Attributes
    ----------
    width : D, numbers of a vector.
    spans : made queries of each data set: spans of titles, whose item is the one with that title.
    epochs, batch, learning_rate : of AdamW; a batch's other items are what a query must not find.
    temperature : cosines are divided by it before the softmax.
    """

    width: int = 128
    spans: int = 20_000
    epochs: int = 10
    batch: int = 512
    learning_rate: float = 1e-3
    temperature: float = 0.05
    seed: int = 0

    def __post_init__(self) -> None:
        whole = {"width": self.width, "epochs": self.epochs, "batch": self.batch}
        wrong = {name: value for name, value in whole.items() if type(value) is not int or value < 1}
        if wrong or self.width > MAX_WIDTH or self.spans < 0 or self.learning_rate <= 0 or self.temperature <= 0:
            raise InputError(
                f"retrieval settings {asdict(self)}: expected a width from 1 to {MAX_WIDTH}, and numbers above 0 (spans may be 0)"
            )


@dataclass(frozen=True, slots=True)
class Positives:
    """Queries and the items that they should find: ``query`` and ``item``, int64 [P], are positions in the two tables."""

    queries: tuple[str, ...]
    items: tuple[Item, ...]
    query: NDArray[np.int64]
    item: NDArray[np.int64]


def add_retrieval(student: Path, out: Path, *, data: Sequence[Path], settings: RetrievalSettings | None = None) -> dict[str, Any]:
    """Write ``out``: the student as it was, and ``retrieve.npz``.

    Parameters
    ----------
    student : folder of a mid-fusion student.
    data : folders whose train splits and titles give the pairs: an item graded relevant (60 % of the grade range) for a query, and a span
        of a title with its item.

    Returns
    -------
    The ``training.json`` of ``out``; ``retrieval`` tells of this.

    Raises
    ------
    InputError : ``out`` exists, the student is not mid-fusion, or the data have no pair. BundleError : no student folder.
    EdgerecError : the loss is not finite.
    """
    student, out, settings = Path(student), Path(out), settings or RetrievalSettings()
    info = read_training_json(student, "student")
    scorer = StudentScorer.load(student)
    if not isinstance(scorer.student, MidStudent):
        raise InputError(f"{student} is a cross student: retrieval needs item states, so a mid-fusion student")
    datasets = train_datasets(data)
    with new_folder(out) as folder:
        pairs = positive_pairs(datasets, settings)
        head, loss = fit_head(query_rows(scorer, pairs.queries), item_means(scorer, pairs.items), pairs, settings)
        made = head.to_bytes()
        told = {
            **asdict(settings),
            "pairs": len(pairs.query),
            "loss": loss,
            "data": {one.name: one.sha256 for one in datasets},
            "sha256": hashlib.sha256(made).hexdigest(),
        }
        for path in student.iterdir():
            if path.is_file() and path.name not in ("training.json", VECTORS_FILE):
                shutil.copy(path, folder / path.name)
        (folder / VECTORS_FILE).write_bytes(made)
        info |= {"retrieval": told}
        (folder / "training.json").write_text(json.dumps(info, indent=1) + "\n", encoding="utf-8")
    return info


def positive_pairs(datasets: Sequence[Dataset], settings: RetrievalSettings) -> Positives:
    """The pairs of all data sets. Same arguments, same pairs. Raises InputError where there is none."""
    queries: dict[tuple[str, str], int] = {}
    items: dict[tuple[str, str], int] = {}
    listed: list[Item] = []
    pairs: dict[tuple[int, int], None] = {}

    def add(dataset: Dataset, text: str, item_id: str) -> None:
        if (dataset.name, item_id) not in items:
            items[dataset.name, item_id] = len(listed)
            listed.append(dataset.items[item_id])
        query = queries.setdefault((dataset.name, text), len(queries))
        pairs[query, items[dataset.name, item_id]] = None

    for dataset in datasets:
        bar = relevant_from(dataset)
        for query_id, grades in dataset.qrels.get("train", {}).items():
            for item_id, grade in grades.items():
                if grade >= bar:
                    add(dataset, dataset.queries[query_id], item_id)
        for text, item_id in title_spans(dataset, settings.spans, settings.seed):
            add(dataset, text, item_id)
    if not pairs:
        raise InputError(f"{', '.join(one.name for one in datasets)}: no item is relevant for a query, and no title gives one")
    both = np.array(list(pairs), np.int64)
    return Positives(tuple(text for _, text in queries), tuple(listed), both[:, 0], both[:, 1])


def title_spans(dataset: Dataset, count: int, seed: int) -> list[tuple[str, str]]:
    """Spans of titles and the ids of their items; as long, in words, as the training queries (2 to 5 words where there are none)."""
    rng = np.random.default_rng([seed, zlib.crc32(dataset.name.encode())])
    lengths = [max(1, len(split_words(dataset.queries[q]))) for q in dataset.qrels.get("train", {})] or [2, 3, 4, 5]
    ids, found = list(dataset.items), []
    for row in np.resize(rng.permutation(len(ids)), count).tolist():
        words = split_words(dataset.items[ids[row]].title)
        length = min(int(rng.choice(lengths)), len(words))
        if length:
            start = int(rng.integers(len(words) - length + 1))
            found.append((" ".join(words[start : start + length]), ids[row]))
    return found


@torch.no_grad()
def query_rows(scorer: StudentScorer, queries: Sequence[str]) -> NDArray[np.float32]:
    """The mean of each query's rows after the layers that see it alone, float32 [Q, H]."""
    student, spec = _mid(scorer), scorer.text.spec
    rows = [np.concatenate([spec.prefix, scorer.text.encode_query(text), spec.middle]).astype(np.int64) for text in queries]
    found = np.zeros((len(rows), student.shape.hidden), np.float32)
    for chosen, ids, lengths in _passes(rows, spec.pad_id):
        made = student.encode_queries(*tensors(ids, lengths)).float().cpu().numpy()
        real = np.arange(made.shape[1]) < lengths[:, None]
        found[chosen] = (made * real[:, :, None]).sum(axis=1) / lengths[:, None]
    return found


@torch.no_grad()
def item_means(scorer: StudentScorer, items: Sequence[Item]) -> NDArray[np.float32]:
    """The mean of each item's states as they are stored, float32 [R, G W]."""
    student, suffix = _mid(scorer), np.array(scorer.text.spec.suffix, np.int64)
    spec = state_spec(student, b"")
    tokens, offsets = scorer.text.encode_items([scorer.text.item_text(item) for item in items])
    rows = [np.concatenate([tokens[begin:end], suffix]) for begin, end in itertools.pairwise(offsets.tolist())]
    found = np.zeros((len(rows), spec.numbers), np.float32)
    for chosen, ids, lengths in _passes(rows, scorer.text.spec.pad_id):
        made = student.encode_items(*tensors(ids, lengths)).float().cpu().numpy()
        found[chosen] = mean_states(_end_to_end(made, lengths, spec), spec, 0, len(lengths))
    return found


def fit_head(
    queries: NDArray[np.float32], means: NDArray[np.float32], pairs: Positives, settings: RetrievalSettings
) -> tuple[RetrievalHead, float]:
    """Learn the two maps; also gives the mean loss of the last epoch. Raises EdgerecError when a loss is not finite."""
    torch.manual_seed(settings.seed)
    rng = np.random.default_rng(settings.seed)
    maps = [nn.Linear(side.shape[1], settings.width) for side in (queries, means)]
    optimizer = torch.optim.AdamW([weight for one in maps for weight in one.parameters()], lr=settings.learning_rate)
    asked, stored = torch.from_numpy(queries), torch.from_numpy(means)
    known = np.sort(pairs.query * len(pairs.items) + pairs.item)
    mean = 0.0
    for _ in range(settings.epochs):
        order, losses = rng.permutation(len(pairs.query)), []
        for begin in range(0, len(order), settings.batch):
            query, item = pairs.query[order[begin : begin + settings.batch]], pairs.item[order[begin : begin + settings.batch]]
            # other items that are right for the query, or the same item again, are no negatives
            right = np.isin(query[:, None] * len(pairs.items) + item[None, :], known)
            np.fill_diagonal(right, False)
            left, other = (
                nn.functional.normalize(one(table), dim=1) for one, table in zip(maps, (asked[query], stored[item]), strict=True)
            )
            logits: Tensor = (left @ other.T / settings.temperature).masked_fill(torch.from_numpy(right), -torch.inf)
            loss = nn.functional.cross_entropy(logits, torch.arange(len(query)))
            if not torch.isfinite(loss):
                raise EdgerecError("the retrieval head diverged: its loss is not finite; lower the learning rate")
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            losses.append(float(loss.detach()))
        mean = float(np.mean(losses))
    weights = [part.detach().numpy() for one in maps for part in (one.weight, one.bias)]
    return RetrievalHead(*weights), mean


def check_head(head: RetrievalHead, scorer: StudentScorer) -> float:
    """The largest difference between vectors as they are served, before rounding, and torch's, on random rows. Raises EdgerecError."""
    rng, shape = np.random.default_rng(0), _mid(scorer).shape
    worst = 0.0
    spec = state_spec(_mid(scorer), b"")
    lengths = rng.integers(1, 20, 16)
    states = _end_to_end(rng.normal(size=(16, 20, spec.numbers)).astype(np.float32), lengths, spec)
    means = mean_states(states, spec, 0, 16)
    asked = rng.normal(size=(16, 3, shape.hidden)).astype(np.float32)
    for rows, weight, bias, (values, scales) in (
        (asked.mean(axis=1), head.query_weight, head.query_bias, head.query_vectors(asked)),
        (means, head.item_weight, head.item_bias, head.item_vectors(states, spec)),
    ):
        told = torch.from_numpy(weight), torch.from_numpy(bias)
        expected = nn.functional.normalize(nn.functional.linear(torch.from_numpy(rows).float(), *told), dim=1).numpy()
        exact = unit(rows.astype(np.float64) @ weight.T + bias)
        worst = max(worst, float(np.abs(exact - expected).max()))
        rounded = values * scales[:, None]
        if np.abs(rounded - expected).max() > 0.51 * scales.max() + TOLERANCE or worst > TOLERANCE:
            raise EdgerecError(f"the retrieval vectors differ from torch by {worst:.2e}, above {TOLERANCE}; nothing was written")
    return worst


def export_head(scorer: StudentScorer, student: Path, out: Path) -> tuple[dict[str, Any], float] | None:
    """Copy a student's ``retrieve.npz`` into its export: ``retrieve`` of ``model.json`` and the check; None where there is no head."""
    path = student / VECTORS_FILE
    if not path.exists():
        return None
    data, shape = path.read_bytes(), _mid(scorer).shape
    told = read_training_json(student, "student")["retrieval"]
    spec = VectorSpec(told["width"], told["sha256"])
    head = RetrievalHead.from_bytes(data, spec, hidden=shape.hidden, numbers=state_spec(_mid(scorer), b"").numbers, what=str(path))
    worst = check_head(head, scorer)
    (out / VECTORS_FILE).write_bytes(data)
    return spec.to_json(), worst


def _mid(scorer: StudentScorer) -> MidStudent:
    student = scorer.student.eval()
    assert isinstance(student, MidStudent)
    return student


def _passes(rows: Sequence[NDArray[Any]], pad_id: int) -> list[tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]]:
    """Which rows, their ids int64 [B, T] and lengths int64 [B], by like length."""
    lengths = np.array([len(row) for row in rows], np.int64)
    order, found = np.argsort(lengths, kind="stable"), []
    for begin in range(0, len(order), ENCODED):
        chosen = order[begin : begin + ENCODED]
        ids = np.full((len(chosen), int(lengths[chosen].max())), pad_id, np.int64)
        for place, row in enumerate(chosen):
            ids[place, : lengths[row]] = rows[row]
        found.append((chosen, ids, lengths[chosen]))
    return found


def _end_to_end(states: NDArray[np.float32], lengths: NDArray[np.int64], spec: StateSpec) -> ItemStates:
    """States [U, T, G W] as the catalogue keeps them."""
    values, scales = spec.store(states)
    real = np.arange(states.shape[1]) < lengths[:, None]
    return ItemStates(values[real], scales[real], np.concatenate([[0], np.cumsum(lengths)]))
