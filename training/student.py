"""The student: a BERT-type text tower and hashed features, joined in one logit. Written out plainly, so that its graph exports plainly.

Shape letters: B rows, T tokens, H hidden, F feature slots, D feature width.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import AutoConfig, AutoModel

from edgerec.errors import BundleError, InputError
from edgerec.features import FeatureEncoder, FeatureSpec
from edgerec.text import TextEncoder, TextSpec
from edgerec.types import Item

from .loop import device, few_shapes
from .pairs import HashedRows, Pairs, Rows, TokenTable, query_pairs
from .provenance import read_training_json

if TYPE_CHECKING:
    from .mid import MidStudent

ShapeT = TypeVar("ShapeT", bound="StudentShape")
GELUS = {"gelu": "exact", "gelu_new": "tanh", "gelu_pytorch_tanh": "tanh"}
"""`StudentShape.gelu` by what a Hugging Face folder calls it."""
MASKED = -1e4
"""Added to the attention scores of padding: finite, and small enough for half precision."""


def tensors(*arrays: NDArray[Any]) -> list[Tensor]:
    """The arrays, where the model is."""
    return [torch.from_numpy(array).to(device()) for array in arrays]


@dataclass(frozen=True, slots=True)
class StudentShape:
    """Sizes of a student; ``feature_dim`` 0 means that it has no features.

    ``heads`` and ``intermediate`` are those of a whole layer, and a head is ``hidden / heads`` wide. A pruned student has fewer of both,
    in ``layer_heads`` and ``layer_intermediate``, layer by layer; empty where nothing was pruned. ``gelu`` is that of the layers:
    ``exact``, or ``tanh``, its approximation.
    """

    layers: int
    hidden: int
    heads: int
    intermediate: int
    vocab: int
    positions: int
    pooler: bool
    buckets: int = 0
    feature_dim: int = 0
    feature_hidden: int = 0
    layer_heads: tuple[int, ...] = ()
    layer_intermediate: tuple[int, ...] = ()
    gelu: str = "exact"

    @classmethod
    def from_json(cls: type[ShapeT], value: Mapping[str, Any]) -> ShapeT:
        """From ``training.json``. Raises TypeError."""
        sizes: dict[str, Any] = {name: tuple(size) if isinstance(size, list) else size for name, size in value.items()}
        return cls(**sizes)

    @property
    def head_size(self) -> int:
        """Width of one head."""
        return self.hidden // self.heads

    def layer_sizes(self) -> list[tuple[int, int]]:
        """Heads and intermediate size of each layer."""
        heads = self.layer_heads or (self.heads,) * self.layers
        return list(zip(heads, self.layer_intermediate or (self.intermediate,) * self.layers, strict=True))


class Layer(nn.Module):
    """One post-LayerNorm transformer layer (Devlin et al., arXiv 1810.04805)."""

    def __init__(self, hidden: int, heads: int, head_size: int, intermediate: int) -> None:
        super().__init__()
        h, width = hidden, heads * head_size
        self.heads = heads
        self.query, self.key, self.value = (nn.Linear(h, width) for _ in range(3))
        self.attention_output = nn.Linear(width, h)
        self.attention_norm = nn.LayerNorm(h, eps=1e-12)
        self.intermediate = nn.Linear(h, intermediate)
        self.output = nn.Linear(intermediate, h)
        self.output_norm = nn.LayerNorm(h, eps=1e-12)
        self.dropout = nn.Dropout(0.1)
        self.gelu = "none"

    def forward(self, x: Tensor, mask: Tensor, *, first_row_only: bool) -> Tensor:
        """x [B, T, H], additive mask [B, 1, 1, T] -> [B, T, H], or [B, 1, H] when only the first row is wanted (exact)."""
        return self.attend(x[:, :1] if first_row_only else x, self.split(self.key(x)), self.split(self.value(x)), mask)

    def attend(self, rows: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> Tensor:
        """The rows [B, R, H] look at keys and values [B, A, T, S] under an additive mask [B, 1, 1, T] -> [B, R, H]."""
        q = self.split(self.query(rows))
        weights = F.softmax(q @ k.transpose(2, 3) * (q.shape[-1] ** -0.5) + mask, dim=-1)
        mixed = (self.dropout(weights).to(v.dtype) @ v).transpose(1, 2).flatten(2)
        rows = self.attention_norm(rows + self.dropout(self.attention_output(mixed)))
        inner = F.gelu(self.intermediate(rows), approximate=self.gelu)
        return self.output_norm(rows + self.dropout(self.output(inner)))  # type: ignore[no-any-return]

    def split(self, x: Tensor) -> Tensor:
        """[B, T, A * S] -> [B, A, T, S], head by head."""
        rows: Tensor = x.unflatten(2, (self.heads, -1))  # type: ignore[no-untyped-call]
        return rows.transpose(1, 2)


def set_gelu(student: nn.Module, shape: StudentShape) -> None:
    """Give all layers the shape's GELU. Raises ValueError."""
    if shape.gelu not in GELUS.values():
        raise ValueError(f"gelu is {shape.gelu!r}; expected one of {sorted(set(GELUS.values()))}")
    for module in student.modules():
        if isinstance(module, Layer):
            module.gelu = "tanh" if shape.gelu == "tanh" else "none"


class TextTower(nn.Module):
    """Token rows to one vector: embeddings, layers, the [CLS] row of the last one, and the pooler where the base model has it."""

    def __init__(self, shape: StudentShape) -> None:
        super().__init__()
        self.word_embeddings = nn.Embedding(shape.vocab, shape.hidden)
        self.position_embeddings = nn.Embedding(shape.positions, shape.hidden)
        self.type_embeddings = nn.Embedding(2, shape.hidden)
        self.embedding_norm = nn.LayerNorm(shape.hidden, eps=1e-12)
        self.layers = nn.ModuleList(Layer(shape.hidden, heads, shape.head_size, inner) for heads, inner in shape.layer_sizes())
        self.pooler = nn.Linear(shape.hidden, shape.hidden) if shape.pooler else None
        self.dropout = nn.Dropout(0.1)

    def forward(self, input_ids: Tensor, attention_mask: Tensor, token_type_ids: Tensor) -> Tensor:
        """Integers [B, T] each -> [B, H]."""
        positions = torch.arange(input_ids.shape[1], device=input_ids.device)
        x = self.word_embeddings(input_ids) + self.position_embeddings(positions) + self.type_embeddings(token_type_ids)
        x = self.dropout(self.embedding_norm(x))
        mask = (1.0 - attention_mask[:, None, None, :].to(x.dtype)) * MASKED
        last = len(self.layers) - 1
        for number, layer in enumerate(self.layers):
            x = layer(x, mask, first_row_only=number == last)
        first = x[:, 0]
        return first if self.pooler is None else torch.tanh(self.pooler(first))


class FeatureBag(nn.Module):
    """Hashed features to one vector: a weighted sum of embeddings and one hidden layer."""

    def __init__(self, shape: StudentShape) -> None:
        super().__init__()
        self.embedding = nn.Embedding(shape.buckets, shape.feature_dim)
        self.hidden = nn.Linear(shape.feature_dim, shape.feature_hidden)
        nn.init.normal_(self.embedding.weight, std=0.05)

    def forward(self, ids: Tensor, weights: Tensor) -> Tensor:
        """ids [B, F], weights [B, F] -> [B, feature_hidden]."""
        bag = (self.embedding(ids) * weights.unsqueeze(-1)).sum(1)
        return F.gelu(self.hidden(bag))


class Student(nn.Module):
    """logits [B] = head([text tower ; feature bag])."""

    def __init__(self, shape: StudentShape) -> None:
        super().__init__()
        self.shape = shape
        self.tower = TextTower(shape)
        self.features = FeatureBag(shape) if shape.feature_dim else None
        self.head = nn.Linear(shape.hidden + (shape.feature_hidden if shape.feature_dim else 0), 1)
        self.dropout = nn.Dropout(0.1)
        set_gelu(self, shape)

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor,
        token_type_ids: Tensor,
        feature_ids: Tensor | None = None,
        feature_weights: Tensor | None = None,
        *,
        vectors: bool = False,
    ) -> Tensor:
        """Integers [B, T] and [B, F], float32 weights [B, F] -> logits float32 [B]; with ``vectors`` [B, 1 + H], the tower's beside."""
        text = self.tower(input_ids, attention_mask, token_type_ids)
        joined = self.dropout(text)
        if self.features is not None:
            if feature_ids is None or feature_weights is None:
                raise InputError("this student has hashed features: pass feature_ids and feature_weights")
            joined = torch.cat([joined, self.features(feature_ids, feature_weights)], dim=1)
        logits: Tensor = self.head(joined).float()
        return torch.cat([logits, text.float()], dim=1) if vectors else logits[:, 0]

    def forward_rows(self, table: TokenTable, hashed: HashedRows | None, rows: Rows, *, vectors: bool = False) -> Tensor:
        """Logits [P] of the rows, in their order, through forward passes packed by length; with ``vectors`` [P, 1 + H], as `forward`."""
        parts, places = [], []
        for batch in table.forward_batches(rows, few_shapes=few_shapes()):
            inputs = tensors(batch.input_ids, batch.attention_mask, batch.token_type_ids)
            if hashed is not None:
                chosen = np.resize(rows[batch.rows], len(batch.input_ids))
                inputs += tensors(hashed.ids[chosen], hashed.weights[chosen])
            parts.append(self(*inputs, vectors=vectors)[: len(batch.rows)])
            places.append(batch.rows)
        return torch.cat(parts)[torch.from_numpy(np.argsort(np.concatenate(places)))]


def student_from_encoder(
    folder: Path, *, layers: Sequence[int] = (), buckets: int = 0, feature_dim: int = 0, feature_hidden: int = 0
) -> Student:
    """A student whose tower is (some layers of) a BERT-type encoder, e.g. the teacher's; its one-logit classifier comes along.

    Raises
    ------
    InputError : not a BERT-type encoder with absolute positions and a GELU of `GELUS`, or no such layers.
    """
    folder = Path(folder)
    try:
        config = AutoConfig.from_pretrained(folder)
    except (OSError, ValueError) as e:
        raise InputError(f"{folder}: {e}; expected a Hugging Face folder") from e
    position_kind = getattr(config, "position_embedding_type", "absolute")
    if config.model_type != "bert" or config.hidden_act not in GELUS or position_kind != "absolute":
        raise InputError(
            f"{folder} is of type {config.model_type} ({config.hidden_act}, {position_kind} positions); a student's tower is taken "
            f"from a BERT-type encoder with one of {', '.join(GELUS)} and absolute positions: set student.init to such a folder"
        )
    kept = tuple(layers) or tuple(range(config.num_hidden_layers))
    if not all(0 <= i < config.num_hidden_layers for i in kept):
        raise InputError(f"{folder} has layers 0 to {config.num_hidden_layers - 1}; student.layers names {list(kept)}")
    saved = load_file(folder / "model.safetensors")
    has_pooler = any(k.endswith("pooler.dense.weight") for k in saved)
    base: Any = AutoModel.from_pretrained(folder, add_pooling_layer=has_pooler)
    shape = StudentShape(
        layers=len(kept),
        hidden=config.hidden_size,
        heads=config.num_attention_heads,
        intermediate=config.intermediate_size,
        vocab=config.vocab_size,
        positions=config.max_position_embeddings,
        pooler=has_pooler,
        buckets=buckets,
        feature_dim=feature_dim,
        feature_hidden=feature_hidden,
        gelu=GELUS[config.hidden_act],
    )
    student = Student(shape)
    _copy_tower(student.tower, base, kept)
    classifier = saved.get("classifier.weight")
    if classifier is not None and classifier.shape[0] == 1:
        with torch.no_grad():
            student.head.weight.zero_()
            student.head.weight[:, : shape.hidden] = classifier
            student.head.bias.copy_(saved["classifier.bias"])
    return student


def _copy_tower(tower: TextTower, base: Any, kept: Sequence[int]) -> None:
    pairs: list[tuple[nn.Module, Any]] = [
        (tower.word_embeddings, base.embeddings.word_embeddings),
        (tower.position_embeddings, base.embeddings.position_embeddings),
        (tower.type_embeddings, base.embeddings.token_type_embeddings),
        (tower.embedding_norm, base.embeddings.LayerNorm),
    ]
    if tower.pooler is not None:
        pairs.append((tower.pooler, base.pooler.dense))
    layer: Any
    for layer, number in zip(tower.layers, kept, strict=True):
        theirs = base.encoder.layer[number]
        pairs += [
            (layer.query, theirs.attention.self.query),
            (layer.key, theirs.attention.self.key),
            (layer.value, theirs.attention.self.value),
            (layer.attention_output, theirs.attention.output.dense),
            (layer.attention_norm, theirs.attention.output.LayerNorm),
            (layer.intermediate, theirs.intermediate.dense),
            (layer.output, theirs.output.dense),
            (layer.output_norm, theirs.output.LayerNorm),
        ]
    for ours, theirs in pairs:
        ours.load_state_dict(theirs.state_dict())


class StudentScorer:
    """A student with its tokenizer and feature encoder: scores text. Computes in float32, as the exported engine does."""

    def __init__(self, student: Student | MidStudent, text: TextEncoder, features: FeatureEncoder | None) -> None:
        self.student = student.to(device())
        self.text = text
        self.features = features

    @classmethod
    def load(cls, folder: Path, *, state_precision: str = "") -> StudentScorer:
        """Open what `edgerec distill` wrote; ``state_precision`` keeps a mid-fusion student's states otherwise than its recipe does.

        Raises BundleError when it is not a student folder, InputError for a precision that this student does not have.
        """
        from .mid import check_precision, empty_student  # it builds on this module

        folder = Path(folder)
        info = read_training_json(folder, "student")
        check_precision(info.get("student"), state_precision)
        try:
            student = empty_student(info["student"], state_precision)
            student.load_state_dict(load_file(folder / "student.safetensors"))
            features = FeatureEncoder(FeatureSpec.from_json(info["features"])) if info["features"] else None
            return cls(student, TextEncoder(folder / "tokenizer.json", TextSpec.from_json(info["text"])), features)
        except (OSError, KeyError, TypeError, ValueError, RuntimeError, SafetensorError) as e:
            raise BundleError(f"{folder}: damaged student folder: {e}") from e

    def forward(self, table: TokenTable, hashed: HashedRows | None, rows: Rows, *, vectors: bool = False) -> Tensor:
        """Logits [P] of the rows, in their order, through forward passes packed by length; with ``vectors`` [P, 1 + H], what the head reads
        of the text beside them."""
        return self.student.forward_rows(table, hashed, rows, vectors=vectors)

    @torch.no_grad()
    def score_pairs(
        self, pairs: Pairs, rows: Rows | None = None, *, table: TokenTable | None = None, hashed: HashedRows | None = None
    ) -> NDArray[np.float32]:
        """Logits, float32 [P], of all rows or of those given, in evaluation mode."""
        self.student.eval()
        table = table or TokenTable(pairs, self.text)
        hashed = hashed or self.hash(pairs)
        rows = np.arange(len(pairs)) if rows is None else rows
        chunks = np.array_split(rows, max(1, len(rows) // 1024))
        return torch.cat([self.forward(table, hashed, chunk) for chunk in chunks]).cpu().numpy()

    def hash(self, pairs: Pairs) -> HashedRows | None:
        """Features of all rows, or None for a student without features."""
        return None if self.features is None else HashedRows.of(pairs, self.features)

    def score(self, query: str, items: Sequence[Item]) -> NDArray[np.float32]:
        """Logits, float32 [N], of one query's items, in order."""
        if not items:
            return np.empty(0, np.float32)
        return self.score_pairs(query_pairs(query, items))
