"""Export of a mid-fusion student: ``item_encoder.onnx`` (tokens -> states) and ``ranker.onnx`` (query, states -> logits).

Shape letters: B rows, U items, Q queries, R query tokens, T item tokens, G states of a token, W width of a state, F feature slots.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.export import Dim

from edgerec.states import StateSpec

from .mid import MidStudent
from .pairs import Rows, TokenTable
from .student import StudentScorer

ITEM_ENCODER, RANKER = "item_encoder.onnx", "ranker.onnx"
MID_SIZES = ("interaction", "query_layers", "item_layers", "states", "item_start", "query_type", "item_type")
"""Of the student, in model.json, beside those of a cross student."""
SHAPES = ((1, 1, 3, 2), (5, 2, 6, 17), (7, 3, 9, 33), (16, 1, 7, 20), (33, 4, 26, 62))
"""Rows, queries, query tokens and item tokens of the check; lengths are cut to what the student takes."""


class ItemGraph(nn.Module):
    """``item_ids`` int32 [U, T], ``item_lengths`` int32 [U] -> ``states`` float32 [U, T, G * W], before rounding."""

    def __init__(self, student: MidStudent) -> None:
        super().__init__()
        self.student = student

    def forward(self, item_ids: Tensor, item_lengths: Tensor) -> Tensor:
        """See the class."""
        return self.student.encode_items(item_ids, item_lengths)


class RankerGraph(nn.Module):
    """Queries, and items as they are stored -> ``logits`` float32 [B]; ``query_index`` int32 [B] is each row's query."""

    def __init__(self, student: MidStudent) -> None:
        super().__init__()
        self.student = student

    def forward(
        self, query_ids: Tensor, query_lengths: Tensor, query_index: Tensor, states: Tensor, item_lengths: Tensor, *rest: Tensor
    ) -> Tensor:
        """``rest``: ``state_scales`` float32 [B, T, G] for int8, then ids and weights of features where the student has them."""
        asking = self.student.encode_queries(query_ids, query_lengths)
        found = states.float()
        if self.student.shape.state_precision == "int8":
            scales, *rest = rest  # type: ignore[assignment]
            groups: Tensor = found.unflatten(2, (-1, self.student.shape.state_width))  # type: ignore[no-untyped-call]
            found = (groups * scales.unsqueeze(3)).flatten(2)
        index = query_index.long()
        return self.student(asking[index], query_lengths[index], found, item_lengths, *rest)  # type: ignore[no-any-return]


def state_spec(student: MidStudent, encoder: bytes) -> StateSpec:
    """What is kept of an item, and the hash of the graph that makes it."""
    shape = student.shape
    return StateSpec(len(shape.kept_layers()), shape.state_width, shape.state_precision, hashlib.sha256(encoder).hexdigest())


def mid_graphs(student: MidStudent, slots: int) -> dict[str, tuple[nn.Module, dict[str, tuple[Tensor, dict[int, Any]]]]]:
    """For each file its module and, by name, an example of each input and its dynamic sides."""
    shape = student.shape
    numbers = len(shape.kept_layers()) * shape.state_width
    rows, queries, items = (Dim(name, min=1, max=65536) for name in ("batch", "queries", "items"))
    asked, tokens = Dim("query_length", min=1, max=512), Dim("length", min=1, max=512)
    kept = {"fp32": torch.float32, "fp16": torch.float16, "int8": torch.int8}[shape.state_precision]
    # sizes of 2 and more: torch.export takes a size of 1 for a constant
    encoder: dict[str, tuple[Tensor, dict[int, Any]]] = {
        "item_ids": (_ints(3, 7), {0: items, 1: tokens}),
        "item_lengths": (_ints(3), {0: items}),
    }
    ranker: dict[str, tuple[Tensor, dict[int, Any]]] = {
        "query_ids": (_ints(2, 5), {0: queries, 1: asked}),
        "query_lengths": (_ints(2), {0: queries}),
        "query_index": (_ints(3), {0: rows}),
        "states": (torch.ones(3, 7, numbers).to(kept), {0: rows, 1: tokens}),
        "item_lengths": (_ints(3), {0: rows}),
    }
    if shape.state_precision == "int8":
        ranker["state_scales"] = (torch.ones(3, 7, len(shape.kept_layers())), {0: rows, 1: tokens})
    if slots:
        ranker["feature_ids"] = (torch.zeros(3, slots, dtype=torch.int32), {0: rows})
        ranker["feature_weights"] = (torch.zeros(3, slots), {0: rows})
    return {ITEM_ENCODER: (ItemGraph(student), encoder), RANKER: (RankerGraph(student), ranker)}


def _ints(*sizes: int) -> Tensor:
    return torch.ones(*sizes, dtype=torch.int32)


@torch.no_grad()
def check_mid(scorer: StudentScorer, folder: Path) -> dict[str, Any]:
    """Largest difference between the two graphs and torch over varied shapes, random tokens and features.

    States are compared as they are, logits on the same stored states: where a number lies between two int8 steps, either is right.
    """
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")  # before the import, see edgerec.engine.ort
    import onnxruntime

    student = scorer.student
    assert isinstance(student, MidStudent)
    encoder, ranker = (
        onnxruntime.InferenceSession(str(folder / name), providers=["CPUExecutionProvider"]) for name in (ITEM_ENCODER, RANKER)
    )
    spec, rng, worst = state_spec(student, b""), np.random.default_rng(0), 0.0
    text = scorer.text.spec
    longest = (student.shape.item_start, text.max_item_tokens + len(text.suffix))
    shapes = [(rows, queries, min(asked, longest[0]), min(tokens, longest[1])) for rows, queries, asked, tokens in SHAPES]
    for rows, queries, asked, tokens in shapes:
        item_ids, item_lengths = _random_rows(rng, rows, tokens, student.shape.vocab)
        states = encoder.run(["states"], {"item_ids": item_ids, "item_lengths": item_lengths})[0]
        real = np.arange(tokens) < item_lengths[:, None]
        expected = student.encode_items(torch.from_numpy(item_ids), torch.from_numpy(item_lengths)).numpy()
        kept, scales = spec.store(states)
        query_ids, query_lengths = _random_rows(rng, queries, asked, student.shape.vocab)
        feeds: dict[str, NDArray[Any]] = {
            "query_ids": query_ids,
            "query_lengths": query_lengths,
            "query_index": rng.integers(0, queries, rows).astype(np.int32),
            "states": kept,
            "item_lengths": item_lengths,
            **({"state_scales": scales} if spec.scales else {}),
        }
        if scorer.features is not None:
            slots = scorer.features.spec.slots
            feeds["feature_ids"] = rng.integers(0, student.shape.buckets, (rows, slots)).astype(np.int32)
            feeds["feature_weights"] = rng.normal(size=(rows, slots)).astype(np.float32)
        logits = RankerGraph(student)(*(torch.from_numpy(v) for v in feeds.values())).numpy()
        found = ranker.run(["logits"], feeds)[0]
        worst = max(worst, float(np.abs(found - logits).max()), float(np.abs(states - expected)[real].max()))
    return {"max_abs_diff": worst, "shapes": [list(s) for s in shapes]}


def _random_rows(rng: np.random.Generator, rows: int, tokens: int, vocab: int) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
    return rng.integers(0, vocab, (rows, tokens)).astype(np.int32), rng.integers(1, tokens + 1, rows).astype(np.int32)


def mid_rows(table: TokenTable, rows: Rows) -> Mapping[str, NDArray[np.int32]]:
    """Whole rows as a cross student's calibration sample has them: here the item is not cut to what the query leaves."""
    pairs, spec = table.pairs, table.spec
    halves = [(table.query_row(pairs.query[r]), table.item_row(pairs.item[r])) for r in rows]
    width = max(len(head) + len(tail) for head, tail in halves)
    ids = np.full((len(rows), width), spec.pad_id, np.int32)
    mask, types = np.zeros_like(ids), np.zeros_like(ids)
    for place, (head, tail) in enumerate(halves):
        end = len(head) + len(tail)
        ids[place, :end], mask[place, :end] = np.concatenate([head, tail]), 1
        types[place, : len(head)], types[place, len(head) : end] = spec.query_type, spec.item_type
    return {"input_ids": ids, "attention_mask": mask, "token_type_ids": types}
