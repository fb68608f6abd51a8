"""The mid-fusion student: what concerns an item alone is computed once, as its states; only a query's few rows look at them.

The lower layers of the query's side see the query alone, once a request. The joint layers update the query's rows: each row looks at the
query's rows and at the item's states, which nothing changes any more. The last layer answers for [CLS].

Shape letters: B rows, U items, Q queries, T tokens, H hidden, G states a token has, W width of a state, F feature slots.

Source: MacAvaney et al., PreTTR, arXiv 2004.14255; MICE, arXiv 2602.16299. One narrow state for all layers, whose key and value maps can be
folded into the query's side: multi-head latent attention, DeepSeek-V2, arXiv 2405.04434.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import Tensor, nn

from edgerec.errors import InputError
from edgerec.states import PRECISIONS, SMALLEST

from .loop import few_shapes
from .pairs import HashedRows, Rows, TokenTable, round_up, starts
from .student import MASKED, FeatureBag, Layer, Student, StudentShape, set_gelu, tensors

STATES = ("per_layer", "one")
JOINT_ROWS = 32
"""Pairs that one pass through the joint layers takes while training."""
Sides: TypeAlias = Callable[[Rows, Rows, int, int], tuple[Tensor, Tensor]]
"""Places of queries and items, int64 [B] each, and how many of their tokens count -> rows [B, R, H] and states [B, T, G * W]."""


@dataclass(frozen=True, slots=True)
class MidShape(StudentShape):
    """Sizes of a mid-fusion student.

    Attributes
    ----------
    query_layers : layers that see the query alone; the others are joint.
    item_layers : layers of the item encoder.
    states : ``per_layer``: each joint layer reads what the item encoder has at its height (or at the top, where that is lower);
        ``one``: all read the top.
    state_width : numbers of one state; below ``hidden`` a linear map makes it narrow.
    state_precision : how a state is kept: fp32, fp16, or int8 with one float32 scale for each.
    item_start : the position of an item's first token; a query has those below.
    query_type, item_type : token types of the two sides.
    """

    interaction: str = "mid"
    query_layers: int = 1
    item_layers: int = 1
    states: str = "one"
    state_width: int = 0
    state_precision: str = "fp32"
    item_start: int = 0
    query_type: int = 0
    item_type: int = 1

    def read_layers(self) -> list[int]:
        """For each joint layer, how many layers of the item encoder made the state it reads."""
        joint = range(self.query_layers, self.layers)
        return [self.item_layers if self.states == "one" else min(layer, self.item_layers) for layer in joint]

    def kept_layers(self) -> list[int]:
        """After how many layers of the item encoder a state is kept: one entry for each of the G states of a token."""
        return sorted(set(self.read_layers()))


def view_left(progress: float, closing: float) -> float:
    """How much of what a closed view would see is still there after a share of the steps: from 1 at the start to 0 at ``closing``."""
    return max(0.0, 1 - progress / closing) if closing else 0.0


class JointLayer(Layer):
    """A layer whose rows look at themselves and at an item's states; these have key and value maps of their own."""

    def __init__(self, hidden: int, heads: int, head_size: int, intermediate: int, width: int) -> None:
        super().__init__(hidden, heads, head_size, intermediate)
        self.state_key, self.state_value = (nn.Linear(width, heads * head_size) for _ in range(2))

    def join(self, x: Tensor, states: Tensor, mask: Tensor, *, first_row_only: bool) -> Tensor:
        """x [B, R, H], states [B, T, W], additive mask [B, 1, 1, R + T] -> [B, R, H], or [B, 1, H]."""
        k = torch.cat([self.split(self.key(x)), self.split(self.state_key(states))], dim=2)
        v = torch.cat([self.split(self.value(x)), self.split(self.state_value(states))], dim=2)
        return self.attend(x[:, :1] if first_row_only else x, k, v, mask)


class Embeddings(nn.Module):
    """Token rows of one side to vectors; both sides share the tables."""

    def __init__(self, shape: MidShape) -> None:
        super().__init__()
        self.word_embeddings = nn.Embedding(shape.vocab, shape.hidden)
        self.position_embeddings = nn.Embedding(shape.positions, shape.hidden)
        self.type_embeddings = nn.Embedding(2, shape.hidden)
        self.embedding_norm = nn.LayerNorm(shape.hidden, eps=1e-12)
        self.dropout = nn.Dropout(0.1)

    def forward(self, ids: Tensor, start: int, token_type: int) -> Tensor:
        """Integers [B, T] at positions from ``start`` on -> [B, T, H]."""
        positions = torch.arange(start, start + ids.shape[1], device=ids.device)
        fixed = self.position_embeddings(positions) + self.type_embeddings.weight[token_type]
        return self.dropout(self.embedding_norm(self.word_embeddings(ids) + fixed))  # type: ignore[no-any-return]


class ItemEncoder(nn.Module):
    """Layers over an item's tokens, and the maps that make its states narrow."""

    def __init__(self, shape: MidShape) -> None:
        super().__init__()
        sizes = shape.layer_sizes()[: shape.item_layers]
        self.layers = nn.ModuleList(Layer(shape.hidden, heads, shape.head_size, inner) for heads, inner in sizes)
        self.kept = shape.kept_layers()
        narrow = shape.state_width < shape.hidden
        self.narrow = nn.ModuleList(nn.Linear(shape.hidden, shape.state_width) for _ in self.kept) if narrow else None

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        """x [U, T, H], additive mask [U, 1, 1, T] -> states [U, T, G * W]."""
        heights = [x]
        for layer in self.layers:
            heights.append(layer(heights[-1], mask, first_row_only=False))
        return self.states(heights)

    def states(self, heights: Sequence[Tensor]) -> Tensor:
        """The rows after each number of layers, [U, T, H] each -> states [U, T, G * W]."""
        found = [heights[number] for number in self.kept]
        if self.narrow is not None:
            found = [narrow(state) for narrow, state in zip(self.narrow, found, strict=True)]
        return torch.cat(found, dim=2)


class QuerySide(nn.Module):
    """All layers of the query's rows: the lower ones see the query alone, the joint ones an item's states too."""

    def __init__(self, shape: MidShape) -> None:
        super().__init__()
        self.alone, self.width = shape.query_layers, shape.state_width
        self.reads = [shape.kept_layers().index(layer) for layer in shape.read_layers()]
        self.layers = nn.ModuleList()
        for number, (heads, inner) in enumerate(shape.layer_sizes()):
            sizes = (shape.hidden, heads, shape.head_size, inner)
            self.layers.append(Layer(*sizes) if number < self.alone else JointLayer(*sizes, shape.state_width))

    def lower(self, x: Tensor, mask: Tensor) -> Tensor:
        """x [Q, R, H], additive mask [Q, 1, 1, R] -> [Q, R, H]."""
        for layer in self.layers[: self.alone]:
            x = layer(x, mask, first_row_only=False)
        return x

    def join(self, x: Tensor, mask: Tensor, states: Tensor, states_mask: Tensor) -> Tensor:
        """x [B, R, H], states [B, T, G * W], additive masks [B, 1, 1, R] and [B, 1, 1, T] -> the [CLS] row of the last layer, [B, H]."""
        both = torch.cat([mask, states_mask], dim=3)
        layer: JointLayer
        for place, layer in enumerate(self.layers[self.alone :]):  # type: ignore[assignment]
            start = self.reads[place] * self.width
            x = layer.join(x, states[:, :, start : start + self.width], both, first_row_only=place + 1 == len(self.reads))
        return x[:, 0]


class MidStudent(nn.Module):
    """logits [B] = head([the query's [CLS] row after it has seen the item ; feature bag])."""

    def __init__(self, shape: MidShape) -> None:
        super().__init__()
        self.shape = shape
        self.embeddings = Embeddings(shape)
        self.item, self.query = ItemEncoder(shape), QuerySide(shape)
        self.pooler = nn.Linear(shape.hidden, shape.hidden) if shape.pooler else None
        self.features = FeatureBag(shape) if shape.feature_dim else None
        self.head = nn.Linear(shape.hidden + (shape.feature_hidden if shape.feature_dim else 0), 1)
        self.dropout = nn.Dropout(0.1)
        self.view = 0.0
        """What is left, in training, of the sides' view of each other; see `view_left`."""
        set_gelu(self, shape)

    def encode_items(self, ids: Tensor, lengths: Tensor) -> Tensor:
        """``item + suffix``, integers [U, T] and [U] -> states [U, T, G * W], not rounded yet."""
        x = self.embeddings(ids, self.shape.item_start, self.shape.item_type)
        return self.item(x, padding_mask(lengths, ids.shape[1], x.dtype))  # type: ignore[no-any-return]

    def encode_queries(self, ids: Tensor, lengths: Tensor) -> Tensor:
        """``prefix + query + middle``, integers [Q, R] and [Q] -> rows [Q, R, H]."""
        x = self.embeddings(ids, 0, self.shape.query_type)
        return self.query.lower(x, padding_mask(lengths, ids.shape[1], x.dtype))

    def encode_open(self, ids: Tensor, lengths: Tensor, item_ids: Tensor, item_lengths: Tensor) -> tuple[Tensor, Tensor]:
        """Integers [B, R], [B], [B, T], [B] -> rows [B, R, H] and states [B, T, G * W] as above, of pairs whose sides still see each other.

        Attention to the other side has ``view`` times its weight, which at 1 makes this the cross-encoder.
        """
        rows = [self.embeddings(ids, 0, self.shape.query_type)]
        heights = [self.embeddings(item_ids, self.shape.item_start, self.shape.item_type)]
        own, other = (padding_mask(n, part[0].shape[1], part[0].dtype) for n, part in ((lengths, rows), (item_lengths, heights)))
        less = math.log(self.view)
        alone, joint = torch.cat([own, other + less], dim=3), torch.cat([own, other], dim=3)
        for_item = torch.cat([own + less, other], dim=3)
        for number in range(max(self.shape.query_layers, self.shape.item_layers)):
            asking: Layer = self.query.layers[number]  # type: ignore[assignment]
            holding: Layer = self.item.layers[number] if number < self.shape.item_layers else asking  # type: ignore[assignment]
            x, y = rows[-1], heights[-1]
            k = torch.cat([asking.split(asking.key(x)), holding.split(holding.key(y))], dim=2)
            v = torch.cat([asking.split(asking.value(x)), holding.split(holding.value(y))], dim=2)
            rows.append(asking.attend(x, k, v, alone if number < self.shape.query_layers else joint))
            if number < self.shape.item_layers:
                heights.append(holding.attend(y, k, v, for_item))
        return rows[self.shape.query_layers], self.item.states(heights)

    def forward(
        self,
        queries: Tensor,
        query_lengths: Tensor,
        states: Tensor,
        item_lengths: Tensor,
        feature_ids: Tensor | None = None,
        feature_weights: Tensor | None = None,
        *,
        vectors: bool = False,
    ) -> Tensor:
        """Query rows [B, R, H], states [B, T, G * W], lengths [B] each, features [B, F] -> logits float32 [B], or [B, 1 + H] with the
        ``vectors`` beside them that the head reads of the text."""
        mask = padding_mask(query_lengths, queries.shape[1], queries.dtype)
        first = self.query.join(queries, mask, states, padding_mask(item_lengths, states.shape[1], queries.dtype))
        text = first if self.pooler is None else torch.tanh(self.pooler(first))
        joined = self.dropout(text)
        if self.features is not None:
            if feature_ids is None or feature_weights is None:
                raise InputError("this student has hashed features: pass feature_ids and feature_weights")
            joined = torch.cat([joined, self.features(feature_ids, feature_weights)], dim=1)
        logits: Tensor = self.head(joined).float()
        return torch.cat([logits, text.float()], dim=1) if vectors else logits[:, 0]

    def stored(self, states: Tensor) -> Tensor:
        """States [U, T, G * W] as they come back from where they are kept."""
        return as_stored(states, self.shape.state_precision, self.shape.state_width)

    def forward_rows(self, table: TokenTable, hashed: HashedRows | None, rows: Rows, *, vectors: bool = False) -> Tensor:
        """Logits [P] of the rows, or [P, 1 + H] with ``vectors``, in their order: each item and query among them is encoded once, pairs are
        joined packed by length.

        While training with a ``view`` left, every pair is encoded as one.
        """
        queries, query_of = np.unique(table.pairs.query[rows], return_inverse=True)
        items, item_of = np.unique(table.pairs.item[rows], return_inverse=True)
        multiple = 8 if few_shapes() else 1
        open_view = self.training and self.view > 0
        query_lengths, item_lengths, sides = (self._open_sides if open_view else self._sides)(table, queries, items, multiple)
        keys = (item_lengths[item_of], query_lengths[query_of])
        order = np.lexsort(keys[::-1] if open_view else keys)
        parts = []
        for start in range(0, len(order), JOINT_ROWS):
            chosen = order[start : start + JOINT_ROWS]
            filled = np.resize(chosen, round_up(len(chosen), multiple))
            q, i = query_of[filled], item_of[filled]
            width, length = (round_up(int(sizes.max()), multiple) for sizes in (query_lengths[q], item_lengths[i]))
            own, kept = sides(q, i, width, length)
            of_query, of_item = tensors(query_lengths[q], item_lengths[i])
            inputs = [own, of_query, kept, of_item]
            if hashed is not None:
                inputs += tensors(hashed.ids[rows[filled]], hashed.weights[rows[filled]])
            parts.append(self(*inputs, vectors=vectors)[: len(chosen)])
        return torch.cat(parts)[torch.from_numpy(np.argsort(order))]

    def _sides(self, table: TokenTable, queries: Rows, items: Rows, multiple: int) -> tuple[Rows, Rows, Sides]:
        """Lengths of all queries and items, and what makes both sides of some pairs of them: `encode_queries`, and stored states."""
        heads = table.padded([table.query_row(number) for number in queries], multiple=multiple)
        asking = self.encode_queries(*tensors(*heads))
        states, item_lengths = self._item_states(table, items, multiple)

        def sides(q: Rows, i: Rows, width: int, length: int) -> tuple[Tensor, Tensor]:
            query_index, item_index = tensors(q, i)
            # Not by indexing: its gradient is summed in any order where a query or an item comes twice.
            return asking[:, :width].index_select(0, query_index), states[:, :length].index_select(0, item_index)

        return heads[1], item_lengths, sides

    def _open_sides(self, table: TokenTable, queries: Rows, items: Rows, multiple: int) -> tuple[Rows, Rows, Sides]:
        """The same while the sides see each other: `encode_open`."""
        heads = table.padded([table.query_row(number) for number in queries], multiple=multiple)
        tails = table.padded([table.item_row(number) for number in items], multiple=multiple)

        def sides(q: Rows, i: Rows, width: int, length: int) -> tuple[Tensor, Tensor]:
            own, states = self.encode_open(*tensors(heads[0][q, :width], heads[1][q], tails[0][i, :length], tails[1][i]))
            return own, self.stored(states)

        return heads[1], tails[1], sides

    def _item_states(self, table: TokenTable, items: Rows, multiple: int) -> tuple[Tensor, Rows]:
        """Stored states [U, T, G * W] of some items, and their lengths, int64 [U]."""
        held = [table.item_row(number) for number in items]
        lengths = np.array([len(row) for row in held], np.int64)
        order, longest = np.argsort(lengths, kind="stable"), round_up(int(lengths.max()), multiple)
        parts = []
        for chosen in np.split(order, starts(lengths[order], size=JOINT_ROWS, few_shapes=few_shapes())[1:]):
            batch = table.padded([held[place] for place in chosen], multiple=multiple)
            found = self.encode_items(*tensors(*batch))[: len(chosen)]
            parts.append(nn.functional.pad(self.stored(found), (0, 0, 0, longest - found.shape[1])))
        return torch.cat(parts)[torch.from_numpy(np.argsort(order))], lengths


def padding_mask(lengths: Tensor, width: int, dtype: torch.dtype) -> Tensor:
    """Lengths [B] -> additive mask [B, 1, 1, T]."""
    beyond = torch.arange(width, device=lengths.device) >= lengths[:, None]
    return beyond[:, None, None, :].to(dtype) * MASKED


def as_stored(states: Tensor, precision: str, width: int) -> Tensor:
    """States [U, T, G * W] rounded as ``precision`` keeps them; gradients pass as if they were not (Bengio et al., arXiv 1308.3432).

    int8: symmetric, -127 to 127, one scale for each state of each token.
    """
    if precision == "fp32":
        return states
    with torch.no_grad():
        exact = states.float()
        if precision == "fp16":
            rounded = exact.half().float()
        else:
            groups: Tensor = exact.unflatten(2, (-1, width))  # type: ignore[no-untyped-call]
            scale = groups.abs().amax(3, keepdim=True).clamp(min=SMALLEST) / 127
            rounded = (torch.round(groups / scale) * scale).flatten(2)
        change = (rounded - exact).to(states.dtype)
    return states + change


def check_precision(shape: object, state_precision: str) -> None:
    """Raise InputError unless a student of this shape in ``training.json`` can keep its states so; empty is always right."""
    mid = isinstance(shape, Mapping) and "state_precision" in shape
    if state_precision and (not mid or state_precision not in PRECISIONS):
        raise InputError(f"state_precision is {state_precision!r}; expected one of {', '.join(PRECISIONS)}, for a mid-fusion student")


def empty_student(shape: Mapping[str, Any], state_precision: str = "") -> Student | MidStudent:
    """A student of the kind and sizes that ``training.json`` tells, to load weights into."""
    if shape.get("interaction", "cross") == "cross":
        return Student(StudentShape.from_json(shape))
    return MidStudent(MidShape.from_json({**shape, "state_precision": state_precision or shape["state_precision"]}))
