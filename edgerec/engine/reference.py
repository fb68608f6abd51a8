"""The reference backend: the student in numpy, in float64, written to be read. The oracle of the other backends, not fast.

Shapes: B rows, T tokens, H hidden, A heads, S = H / A, F feature slots, D feature width.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..bundle import Manifest, read_file, read_json
from ..errors import BundleError, EngineError
from ..types import Batch
from . import Limits
from .probe import read_arrays

Array = NDArray[np.float64]
Gelu = Callable[[Array], Array]

_EPSILON = 1e-12
MASKED = -1e4
_ERF_STEPS = 256
_ERF_END = 6


def _erf_table() -> Array:
    """Per interval of the grid the four coefficients of the cubic in t = 0..1, ``c0 + c1 t + c2 t^2 + c3 t^3``."""
    grid = np.arange(_ERF_END * _ERF_STEPS + 1) / _ERF_STEPS
    value = np.array([math.erf(x) for x in grid])
    slope = 2 / math.sqrt(math.pi) * np.exp(-(grid**2)) / _ERF_STEPS
    rise, start, end = np.diff(value), slope[:-1], slope[1:]
    return np.stack([value[:-1], start, 3 * rise - 2 * start - end, start + end - 2 * rise])


_ERF = _erf_table()


class ReferenceEngine:
    """Runs ``engine.npz``. See `edgerec.engine.Engine`.

    Parameters
    ----------
    root, manifest : the bundle; the engine file is verified against the manifest.
    limits : what the student accepts.

    Raises
    ------
    BundleError : the weights are damaged, or are not those of the model in ``model.json``.
    """

    backend = "reference"

    def __init__(self, root: Path, manifest: Manifest, limits: Limits) -> None:
        self.precision = manifest.precision
        self._limits = limits
        student = read_json(root, manifest, "model.json")["student"]
        what = f"{root}: {manifest.engine_file}"
        arrays = read_arrays(read_file(root, manifest, manifest.engine_file), what)
        try:
            self._heads, self._gelu = [heads for heads, _ in layer_sizes(student)], gelu_of(student)
            check_weights(arrays, _expected(arrays, student, limits), "tower", int(student["hidden"]), limits)
        except (KeyError, TypeError, ValueError, ZeroDivisionError) as error:
            raise BundleError(f"{what} does not hold the student of model.json: {error!r}") from error
        self._weights: dict[str, Array] | None = {name: array.astype(np.float64) for name, array in arrays.items()}

    def run(self, batch: Batch) -> NDArray[np.float32]:
        """Logits, float32 [B]. Raises EngineError."""
        weights = self._weights
        if weights is None:
            raise EngineError("the engine is closed; open the bundle again")
        self._limits.check(batch)
        if not batch.size:
            return np.zeros(0, np.float32)
        state = tower(weights, batch, heads=self._heads, inner=self._gelu)
        return answer(weights, "tower.pooler", state, batch.feature_ids, batch.feature_weights)

    def close(self) -> None:
        """Release the weights; runs in flight finish first."""
        self._weights = None


def tower(weights: dict[str, Array], batch: Batch, *, heads: Sequence[int], inner: Gelu) -> Array:
    """The [CLS] row after the last layer of a post-LN BERT, float64 [B, H]; ``heads`` by layer, ``inner`` the layers' GELU."""
    tokens = batch.input_ids.shape[1]
    state = (
        weights["tower.word_embeddings.weight"][batch.input_ids]
        + weights["tower.position_embeddings.weight"][:tokens]
        + weights["tower.type_embeddings.weight"][batch.token_type_ids]
    )
    state = norm(weights, "tower.embedding_norm", state)  # [B, T, H]
    mask: Array = (1.0 - batch.attention_mask[:, None, None, :].astype(np.float64)) * MASKED
    for index, count in enumerate(heads):
        layer = f"tower.layers.{index}"
        # Nothing reads the other rows of the last layer.
        asking = state[:, :1] if index == len(heads) - 1 else state
        key, value = (linear(weights, f"{layer}.{name}", state) for name in ("key", "value"))
        state = attend(weights, layer, asking, key, value, mask, count, inner)
    return state[:, 0]


def attend(weights: dict[str, Array], layer: str, asking: Array, key: Array, value: Array, mask: Array, heads: int, inner: Gelu) -> Array:
    """One layer: rows [B, R, H] look at keys and values [B, T, A * S] under an additive mask [B, 1, 1, T] -> [B, R, H]."""

    def by_head(x: Array) -> Array:
        return x.reshape(*x.shape[:2], heads, -1).transpose(0, 2, 1, 3)  # [B, A, T, S]

    query, keys, values = by_head(linear(weights, f"{layer}.query", asking)), by_head(key), by_head(value)
    scores = query @ keys.swapaxes(2, 3) / math.sqrt(query.shape[-1]) + mask
    context = (_softmax(scores) @ values).transpose(0, 2, 1, 3).reshape(*asking.shape[:2], -1)
    asking = norm(weights, f"{layer}.attention_norm", linear(weights, f"{layer}.attention_output", context) + asking)
    columns = inner(linear(weights, f"{layer}.intermediate", asking))
    return norm(weights, f"{layer}.output_norm", linear(weights, f"{layer}.output", columns) + asking)


def answer(
    weights: dict[str, Array], pooler: str, state: Array, feature_ids: NDArray[np.int32], feature_weights: NDArray[np.float32]
) -> NDArray[np.float32]:
    """Logits, float32 [B], from the [CLS] rows [B, H]: the pooler and the features, where the student has them, and the head."""
    if f"{pooler}.weight" in weights:
        state = np.tanh(linear(weights, pooler, state))
    if "features.hidden.weight" in weights:
        rows = weights["features.embedding.weight"][feature_ids]  # [B, F, D]
        bag = np.einsum("bf,bfd->bd", feature_weights.astype(np.float64), rows)
        state = np.concatenate([state, gelu(linear(weights, "features.hidden", bag))], axis=1)
    return linear(weights, "head", state)[:, 0].astype(np.float32)


def gelu(x: Array) -> Array:
    """The exact GELU, ``x * Phi(x)``."""
    return x * 0.5 * (1.0 + erf(x / math.sqrt(2.0)))


def tanh_gelu(x: Array) -> Array:
    """Its approximation by tanh. Source: Hendrycks and Gimpel, arXiv 1606.08415."""
    return 0.5 * x * (1.0 + np.tanh(math.sqrt(2.0 / math.pi) * (x + 0.044715 * x**3)))


def gelu_of(student: Mapping[str, Any]) -> Gelu:
    """What ``student.gelu`` of ``model.json`` names. Raises ValueError."""
    kinds: dict[object, Gelu] = {"exact": gelu, "tanh": tanh_gelu}
    if (name := student.get("gelu", "exact")) not in kinds:
        raise ValueError(f"gelu is {name!r:.80}, expected one of {sorted(map(str, kinds))}")
    return kinds[name]


def erf(x: Array) -> Array:
    """The error function, absolute error below 1e-11.

    Cubic Hermite interpolation of `math.erf` on a grid of step h = 1/256; the error is at most h^4 / 384 times the largest fourth
    derivative (below 8), that is 5e-12. Beyond 6 the function is 1 to within 3e-17.

    Source: Burden and Faires, Numerical Analysis, theorem 3.9 (Hermite interpolation error).
    """
    place = np.minimum(np.abs(x), _ERF_END) * _ERF_STEPS
    # The last interval also takes the end point; NaN takes any interval and stays NaN.
    left = np.minimum(np.nan_to_num(place), _ERF.shape[1] - 1).astype(np.intp)
    t = place - left
    c0, c1, c2, c3 = (row[left] for row in _ERF)
    value = c0 + t * (c1 + t * (c2 + t * c3))
    signed: Array = np.copysign(value, x)
    return signed


def linear(weights: dict[str, Array], name: str, x: Array) -> Array:
    """Torch's layout: weight [out, in]."""
    product: Array = x @ weights[f"{name}.weight"].T
    return product + weights[f"{name}.bias"]


def norm(weights: dict[str, Array], name: str, x: Array) -> Array:
    centred = x - x.mean(axis=-1, keepdims=True)
    scaled: Array = centred / np.sqrt((centred**2).mean(axis=-1, keepdims=True) + _EPSILON)
    return scaled * weights[f"{name}.weight"] + weights[f"{name}.bias"]


def _softmax(x: Array) -> Array:
    powers: Array = np.exp(x - x.max(axis=-1, keepdims=True))
    total: Array = powers.sum(axis=-1, keepdims=True)
    return powers / total


def layer_sizes(student: Mapping[str, Any]) -> list[tuple[int, int]]:
    """Heads and FFN columns of each layer; a pruned student lists them. Raises KeyError, TypeError, ValueError."""
    layers = int(student["layers"])
    if not 0 < layers <= 1000:
        raise ValueError(f"{layers} layers")
    heads = student.get("layer_heads", [student["heads"]] * layers)
    columns = student.get("layer_intermediate", [student["intermediate"]] * layers)
    if len(heads) != layers or len(columns) != layers:
        raise ValueError(f"{layers} layers, sizes of {len(heads)} and {len(columns)}")
    sizes = [(int(a), int(i)) for a, i in zip(heads, columns, strict=True)]
    if any(a < 1 or i < 1 for a, i in sizes):
        raise ValueError(f"every layer has a head and a column at least; got {sizes}")
    return sizes


def layer_shapes(layer: str, hidden: int, width: int, inner: int) -> dict[str, tuple[int, ...]]:
    """Shapes of the weights of one layer whose heads are ``width`` wide together."""
    found: dict[str, tuple[int, ...]] = {}
    maps = {**dict.fromkeys(("query", "key", "value"), (width, hidden)), "attention_output": (hidden, width)}
    for name, shape in {**maps, "intermediate": (inner, hidden), "output": (hidden, inner)}.items():
        found |= {f"{layer}.{name}.weight": shape, f"{layer}.{name}.bias": shape[:1]}
    for name in ("attention_norm", "output_norm"):
        found |= {f"{layer}.{name}.weight": (hidden,), f"{layer}.{name}.bias": (hidden,)}
    return found


def frame_shapes(
    arrays: Mapping[str, NDArray[np.float32]], embeddings: str, pooler: str, hidden: int, limits: Limits
) -> dict[str, tuple[int, ...]]:
    """Shapes of what stands below and above the layers; the parts that are optional where the weights have them. Raises KeyError."""
    found: dict[str, tuple[int, ...]] = {
        f"{embeddings}.word_embeddings.weight": (limits.vocab, hidden),
        f"{embeddings}.type_embeddings.weight": (limits.types, hidden),
        f"{embeddings}.embedding_norm.weight": (hidden,),
        f"{embeddings}.embedding_norm.bias": (hidden,),
    }
    # Some pretrained towers have no pooler.
    if f"{pooler}.weight" in arrays:
        found |= {f"{pooler}.weight": (hidden, hidden), f"{pooler}.bias": (hidden,)}
    width = 0
    if limits.buckets:
        feature_width = int(arrays["features.embedding.weight"].shape[-1])
        width = int(arrays["features.hidden.weight"].shape[0])
        found["features.embedding.weight"] = (limits.buckets, feature_width)
        found |= {"features.hidden.weight": (width, feature_width), "features.hidden.bias": (width,)}
    return found | {"head.weight": (1, hidden + width), "head.bias": (1,)}


def check_weights(
    arrays: Mapping[str, NDArray[np.float32]], expected: Mapping[str, tuple[int, ...]], embeddings: str, hidden: int, limits: Limits
) -> None:
    """Every weight the forward reads is there, float32, with its shape, and positions are enough. Raises KeyError, ValueError."""
    for name, shape in expected.items():
        if arrays[name].dtype != np.float32 or arrays[name].shape != shape:
            raise ValueError(f"{name} is {arrays[name].dtype} {arrays[name].shape}, expected float32 {shape}")
    positions = arrays[f"{embeddings}.position_embeddings.weight"]
    if positions.dtype != np.float32 or positions.ndim != 2 or positions.shape[0] < limits.tokens or positions.shape[1] != hidden:
        raise ValueError(f"{embeddings}.position_embeddings.weight is {positions.shape}, expected at least ({limits.tokens}, {hidden})")


def head_width(student: Mapping[str, Any]) -> int:
    """Numbers of one head. Raises KeyError, TypeError, ValueError, ZeroDivisionError."""
    hidden, whole = int(student["hidden"]), int(student["heads"])
    if hidden % whole:
        raise ValueError(f"{hidden} hidden units in {whole} heads")
    return hidden // whole


def _expected(arrays: Mapping[str, NDArray[np.float32]], student: Mapping[str, Any], limits: Limits) -> dict[str, tuple[int, ...]]:
    hidden, size = int(student["hidden"]), head_width(student)
    found = frame_shapes(arrays, "tower", "tower.pooler", hidden, limits)
    for index, (heads, inner) in enumerate(layer_sizes(student)):
        found |= layer_shapes(f"tower.layers.{index}", hidden, heads * size, inner)
    return found
