"""A mid-fusion student in numpy, in float64: the oracle of the other backends. Weights have their torch names.

Shapes: B rows, U items, Q queries, R query tokens, T tokens, H hidden, G states of a token, W width of a state.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..bundle import Manifest, read_file
from ..errors import BundleError, EngineError
from ..states import StateSpec
from ..types import StateBatch
from . import Limits
from .mid import MidRunner
from .probe import read_arrays
from .reference import (
    MASKED,
    Array,
    answer,
    attend,
    check_weights,
    frame_shapes,
    gelu_of,
    head_width,
    layer_shapes,
    layer_sizes,
    linear,
    norm,
)


class _Student:
    """Sizes and weights; `encode`, `ask` and `rank` are what `MidRunner` asks for."""

    def __init__(self, arrays: dict[str, NDArray[np.float32]], student: Mapping[str, Any], limits: Limits, spec: StateSpec) -> None:
        self.heads = [heads for heads, _ in layer_sizes(student)]
        self.alone, self.item_layers = int(student["query_layers"]), int(student["item_layers"])
        if not 1 <= self.alone < len(self.heads) or not 1 <= self.item_layers <= len(self.heads):
            raise ValueError(f"{self.alone} query layers and {self.item_layers} item layers of {len(self.heads)}")
        joint = range(self.alone, len(self.heads))
        self.reads = [self.item_layers if student["states"] == "one" else min(layer, self.item_layers) for layer in joint]
        self.kept = sorted(set(self.reads))
        if len(self.kept) != spec.groups:
            raise ValueError(f"{len(self.kept)} states of a token, states.groups says {spec.groups}")
        self.start, self.types = int(student["item_start"]), (int(student["query_type"]), int(student["item_type"]))
        self.spec, self.gelu = spec, gelu_of(student)
        check_weights(arrays, self._expected(arrays, student, limits), "embeddings", int(student["hidden"]), limits)
        self.weights: dict[str, Array] | None = {name: array.astype(np.float64) for name, array in arrays.items()}

    def encode(self, ids: NDArray[np.int32], lengths: NDArray[np.int32]) -> NDArray[np.float32]:
        """The item encoder: states float32 [U, T, G * W]."""
        weights = self._open()
        x, mask = self._embed(weights, ids, self.start, self.types[1]), _padding(lengths, ids.shape[1])
        found = []
        for index in range(self.item_layers):
            x = self._alone(weights, f"item.layers.{index}", x, mask, self.heads[index])
            if index + 1 in self.kept:
                found.append(x)
        if "item.narrow.0.weight" in weights:
            found = [linear(weights, f"item.narrow.{place}", state) for place, state in enumerate(found)]
        return np.concatenate(found, axis=2).astype(np.float32)

    def ask(self, ids: NDArray[np.int32], lengths: NDArray[np.int32]) -> Array:
        """The layers that see the query alone: rows [Q, R, H]."""
        weights = self._open()
        x, mask = self._embed(weights, ids, 0, self.types[0]), _padding(lengths, ids.shape[1])
        for index in range(self.alone):
            x = self._alone(weights, f"query.layers.{index}", x, mask, self.heads[index])
        return x

    def rank(self, batch: StateBatch) -> NDArray[np.float32]:
        """Logits, float32 [B], from ``batch.queries``."""
        assert batch.queries is not None
        weights, width = self._open(), self.spec.width
        states = batch.states.astype(np.float64).reshape(*batch.states.shape[:2], self.spec.groups, width)
        if self.spec.scales:
            states = states * batch.scales[..., None]
        mask = _padding(batch.query_lengths, batch.query_ids.shape[1])
        x = batch.queries[batch.query_index]  # [B, R, H]
        both = np.concatenate([mask[batch.query_index], _padding(batch.item_lengths, states.shape[1])], axis=3)
        for place, read in enumerate(self.reads):
            layer, state = f"query.layers.{self.alone + place}", states[:, :, self.kept.index(read)]
            key, value = (
                np.concatenate([linear(weights, f"{layer}.{name}", x), linear(weights, f"{layer}.state_{name}", state)], axis=1)
                for name in ("key", "value")
            )
            asking = x[:, :1] if place + 1 == len(self.reads) else x
            x = attend(weights, layer, asking, key, value, both, self.heads[self.alone + place], self.gelu)
        return answer(weights, "pooler", x[:, 0], batch.feature_ids, batch.feature_weights)

    def close(self) -> None:
        """Release the weights; runs in flight finish first."""
        self.weights = None

    def _open(self) -> dict[str, Array]:
        weights = self.weights
        if weights is None:
            raise EngineError("the engine is closed; open the bundle again")
        return weights

    def _embed(self, weights: dict[str, Array], ids: NDArray[np.int32], start: int, token_type: int) -> Array:
        places = weights["embeddings.position_embeddings.weight"][start : start + ids.shape[1]]
        state = weights["embeddings.word_embeddings.weight"][ids] + places + weights["embeddings.type_embeddings.weight"][token_type]
        return norm(weights, "embeddings.embedding_norm", state)

    def _alone(self, weights: dict[str, Array], layer: str, x: Array, mask: Array, heads: int) -> Array:
        key, value = (linear(weights, f"{layer}.{name}", x) for name in ("key", "value"))
        return attend(weights, layer, x, key, value, mask, heads, self.gelu)

    def _expected(
        self, arrays: Mapping[str, NDArray[np.float32]], student: Mapping[str, Any], limits: Limits
    ) -> dict[str, tuple[int, ...]]:
        hidden, size, width = int(student["hidden"]), head_width(student), self.spec.width
        found = frame_shapes(arrays, "embeddings", "pooler", hidden, limits)
        for index, (heads, inner) in enumerate(layer_sizes(student)):
            found |= layer_shapes(f"query.layers.{index}", hidden, heads * size, inner)
            if index < self.item_layers:
                found |= layer_shapes(f"item.layers.{index}", hidden, heads * size, inner)
            for name in ("state_key", "state_value") if index >= self.alone else ():
                found |= {
                    f"query.layers.{index}.{name}.weight": (heads * size, width),
                    f"query.layers.{index}.{name}.bias": (heads * size,),
                }
        for place in range(len(self.kept)) if width < hidden else ():
            found |= {f"item.narrow.{place}.weight": (width, hidden), f"item.narrow.{place}.bias": (width,)}
        return found


def open_mid_reference(root: Path, manifest: Manifest, model: Any, limits: Limits) -> MidRunner:
    """Open ``engine.npz``. Raises BundleError: the weights are damaged, or are not those of ``model.json``."""
    what = f"{root}: {manifest.engine_file}"
    arrays, spec = read_arrays(read_file(root, manifest, manifest.engine_file), what), StateSpec.from_model(model)
    assert spec is not None
    try:
        student = _Student(arrays, model["student"], limits, spec)
    except (KeyError, TypeError, ValueError, ZeroDivisionError) as error:
        raise BundleError(f"{what} does not hold the student of model.json: {error!r}") from error
    return MidRunner(
        model,
        limits,
        student.encode,
        student.rank,
        backend="reference",
        precision=manifest.precision,
        close=student.close,
        ask=student.ask,
    )


def _padding(lengths: NDArray[np.int32], width: int) -> Array:
    mask: Array = np.where(np.arange(width) < lengths[:, None], 0.0, MASKED)[:, None, None, :]
    return mask
