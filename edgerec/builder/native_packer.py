"""Packing weights for the native engine: folded, quantised, and in the order the C kernels read them. See docs/formats.md, `engine.bin`.

Shapes: V vocabulary, P positions, H hidden, A heads, S = H / A, I inner, D feature width; a linear layer has K inputs and N outputs.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import BuildError
from .contract import Export

Floats = NDArray[np.float32]

PANEL = 32
"""Outputs of a linear layer that are packed together; EDR_PANEL in csrc/engine_kernels.h."""

PRECISIONS = ("fp32", "int8", "bf16")
"""By the number that section ``config`` has for them."""
GELUS = ("exact", "tanh")
"""By the number in section ``gelu``, which a student of the first lacks."""


def pack_linear(weight: Floats) -> Floats:
    """Float32 [N, K] as [N / 32, K, 32]; N is rounded up with zeros."""
    panels = -(-weight.shape[0] // PANEL)
    full = np.zeros((panels * PANEL, weight.shape[1]), np.float32)
    full[: weight.shape[0]] = weight
    return np.ascontiguousarray(full.reshape(panels, PANEL, -1).transpose(0, 2, 1))


def quantised(rows: Floats, peak: Floats) -> tuple[NDArray[np.int8], Floats]:
    """Float32 [N, K] as int8 and a scale for each row, float32 [N], at which the row's ``peak`` [N] becomes 127."""
    scale = np.where(peak > 1e-30, peak / np.float32(127), np.float32(1)).astype(np.float32)
    return np.rint(rows / scale[:, None]).astype(np.int8), scale


def pack_int8(weight: Floats) -> tuple[NDArray[np.int8], Floats, Floats]:
    """Float32 [N, K] as int8 [N / 32, K / 4, 32, 4], the scale of each output [N], and scale times the sum of its weights [N].

    Symmetric: ``weight[n] = scale[n] * q[n]`` with q in -127 .. 127, and ``q[n, 2 i] + q[n, 2 i + 1]`` in -128 .. 128: times two
    bytes that is a number of 16 bits, as the fastest product of AVX2 wants it.
    """
    pairs = np.abs(weight[:, 0::2] + weight[:, 1::2])
    rounded, scale = quantised(weight, np.maximum(np.abs(weight).max(axis=1), pairs.max(axis=1)))
    sums = (rounded.sum(axis=1, dtype=np.float64) * scale).astype(np.float32)
    packed = rounded.reshape(-1, PANEL, weight.shape[1] // 4, 4).transpose(0, 2, 1, 3)
    return np.ascontiguousarray(packed), scale, sums


def as_bf16(values: Floats) -> NDArray[np.uint16]:
    """The nearest bfloat16, of two the even one: the upper half of a float32's bits, in a uint16. Values must be finite."""
    bits = values.view(np.uint32)
    return ((bits + np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))) >> np.uint32(16)).astype(np.uint16)


def pack_bf16(weight: Floats) -> NDArray[np.uint16]:
    """Float32 [N, K] as bfloat16 [N / 32, K / 2, 32, 2]."""
    return np.ascontiguousarray(as_bf16(weight).reshape(-1, PANEL, weight.shape[1] // 2, 2).transpose(0, 2, 1, 3))


class Packer:
    """Takes weights by name, checking each against the sizes the others imply; whatever is left over at the end is a fault too."""

    def __init__(self, weights: Mapping[str, Floats], export: Export, precision: str) -> None:
        self._left = dict(weights)
        self._what = f"{export.folder}: student.safetensors"
        self._export, self._precision = export, precision
        student = export.model["student"]
        self._hidden, self._layers, self._heads = (int(student[key]) for key in ("hidden", "layers", "heads"))
        self._out: dict[str, NDArray[Any]] = {}

    def frame(self, embeddings: str, pooler: str, layers: str) -> list[int]:
        """The layers, ``config``, and what stands below and above the layers; returns the width of each layer's heads together.

        Parameters
        ----------
        embeddings, pooler, layers : what the names of the weights begin with.
        """
        hidden, limits = self._hidden, self._export.limits
        if hidden % 32 or hidden > 8192:
            raise self.refused(f"hidden size {hidden} is not a multiple of 32 up to 8192")
        if hidden % self._heads or not 1 <= self._layers <= 64:
            raise self.refused(f"{self._layers} layers of {hidden} hidden units in {self._heads} heads")
        positions, types = self._rows(f"{embeddings}.position_embeddings.weight"), self._rows(f"{embeddings}.type_embeddings.weight")
        if positions < limits.tokens or types != limits.types:
            raise self.refused(f"{positions} positions and {types} token types; model.json needs {limits.tokens} and {limits.types}")
        pooled, size = f"{pooler}.weight" in self._left, hidden // self._heads
        bag = self._left["features.embedding.weight"].shape[1] if limits.buckets and "features.embedding.weight" in self._left else 0
        mlp = self._rows("features.hidden.weight") if limits.buckets else 0
        tower = [hidden, size, self._layers, limits.vocab, positions, types, pooled]
        self._out["config"] = np.array([*tower, limits.buckets, bag, mlp, PRECISIONS.index(self._precision)], np.int32)
        if (gelu := self._export.model["student"].get("gelu", GELUS[0])) != GELUS[0]:
            if gelu not in GELUS:
                raise self.refused(f"the GELU {gelu!r:.80}")
            self.numbers("gelu", [GELUS.index(gelu)])
        widths = self.stack("layers", layers, self._layers, folds=self._export.states is None)
        self._embeddings(embeddings, positions, types)
        if pooled:
            self.linear("pooler", *self.weight_and_bias(pooler, hidden, hidden), "fp32")
        if limits.buckets:
            self._out["feature_table"] = self._take("features.embedding.weight", limits.buckets, bag)
            self.linear("feature_mlp", *self.weight_and_bias("features.hidden", mlp, bag), "fp32")
        head, bias = self.weight_and_bias("head", 1, hidden + mlp)
        self._out["head"] = np.concatenate([head[0], bias])
        return widths

    def numbers(self, name: str, values: list[int]) -> None:
        """A section of int32."""
        self._out[name] = np.array(values, np.int32)

    def stack(self, ours: str, theirs: str, count: int, *, folds: bool = False) -> list[int]:
        """`count` layers, their sizes first: section ``layers`` and ``layerNN.*``, or ``items`` and ``itemNN.*``.

        `folds`: the last one's keys and values become the maps that `_folds` makes.
        """
        size = self._hidden // self._heads
        names = [f"{theirs}.{i}" for i in range(count)]
        sizes = [(self._rows(f"{name}.query.weight"), self._rows(f"{name}.intermediate.weight")) for name in names]
        if any(width % size for width, _ in sizes):
            raise self.refused(f"queries of {[width for width, _ in sizes]} outputs are not whole heads of {size}")
        self._out[ours] = np.array([[(w + self._spare(w)) // size, n + -n % 32] for w, n in sizes], np.int32)
        for i, (width, inner) in enumerate(sizes):
            self._layer(f"{ours.removesuffix('s')}{i:02d}", names[i], width, inner, folds=folds and i == count - 1)
        return [width for width, _ in sizes]

    def state_maps(self, ours: str, theirs: str, width: int, inputs: int, *, last: bool) -> None:
        """A joint layer's keys and values of states of so many numbers, which are filled up to a panel, as the heads are.

        Of the last layer, where one row asks, the maps are applied to questions and answers instead (`_folds`); biases stand apart.
        """
        more, spare = ((0, 0), (0, -inputs % PANEL)), self._spare(width)
        parts = [self.weight_and_bias(f"{theirs}.state_{name}", width, inputs) for name in ("key", "value")]
        key, value = (np.pad(np.pad(weight, more), ((0, spare), (0, 0))) for weight, _ in parts)
        biases = [np.pad(bias, (0, spare)) for _, bias in parts]
        if not last:
            self.linear(f"{ours}.state", np.concatenate([key, value]), np.concatenate(biases), self._precision)
            return
        self._folds(ours, key, value, np.zeros_like(biases[1]))
        self._out[f"{ours}.state_bias"] = np.stack(biases)

    def _folds(self, ours: str, key: Floats, value: Floats, bias: Floats) -> None:
        """The maps of a last layer, whose row asks alone: ``fold`` takes a head's question q to what it looks at, ``W_k^T q`` (a key's bias
        adds as much to every score), and ``unfold`` a mean of that to the head's answer, `bias` and all."""
        size = self._hidden // self._heads
        more = ((0, 0), (0, -size % PANEL), (0, 0))
        fold = np.ascontiguousarray(key.reshape(-1, size, key.shape[1]).transpose(0, 2, 1)).reshape(-1, size)
        unfold = np.pad(value.reshape(-1, size, value.shape[1]), more).reshape(-1, value.shape[1])
        self.linear(f"{ours}.fold", fold, np.zeros(len(fold), np.float32), "fp32")
        self.linear(f"{ours}.unfold", unfold, np.pad(bias.reshape(-1, size), more[:2]).ravel(), "fp32")

    def done(self) -> dict[str, NDArray[Any]]:
        """The arrays of engine.bin by section name, ``config`` first. Raises BuildError: a weight is left over."""
        if self._left:
            raise self.refused(f"weights it does not know: {', '.join(sorted(self._left))[:200]}")
        return self._out

    def _spare(self, width: int) -> int:
        """Columns of the heads to add, so that whole heads fill whole panels. Their weights, like those of the units that fill up an inner
        size, are zero: they add nothing to any sum."""
        return -width % math.lcm(PANEL, self._hidden // self._heads)

    def _layer(self, ours: str, theirs: str, width: int, inner: int, *, folds: bool) -> None:
        hidden = self._hidden
        size = hidden // self._heads
        spare, more = self._spare(width), -inner % 32
        # The attention scale is folded into the query: q.k needs no multiplication afterwards.
        scale = np.float32(1 / math.sqrt(size))
        weights, biases = [], []
        for name, factor in (("query", scale), ("key", np.float32(1)), ("value", np.float32(1))):
            weight, bias = self.weight_and_bias(f"{theirs}.{name}", width, hidden)
            weights.append(np.pad(weight * factor, ((0, spare), (0, 0))))
            biases.append(np.pad(bias * factor, (0, spare)))
        if folds:
            self.linear(f"{ours}.query", weights[0], biases[0], self._precision)
            self._folds(ours, weights[1], weights[2], biases[2])
        else:
            self.linear(f"{ours}.qkv", np.concatenate(weights), np.concatenate(biases), self._precision)
        mix, mix_bias = self.weight_and_bias(f"{theirs}.attention_output", hidden, width)
        self.linear(f"{ours}.attention_output", np.pad(mix, ((0, 0), (0, spare))), mix_bias, self._precision)
        self._norm(f"{ours}.attention_norm", f"{theirs}.attention_norm")
        up, up_bias = self.weight_and_bias(f"{theirs}.intermediate", inner, hidden)
        down, down_bias = self.weight_and_bias(f"{theirs}.output", hidden, inner)
        self.linear(f"{ours}.up", np.pad(up, ((0, more), (0, 0))), np.pad(up_bias, (0, more)), self._precision)
        self.linear(f"{ours}.down", np.pad(down, ((0, 0), (0, more))), down_bias, self._precision)
        self._norm(f"{ours}.output_norm", f"{theirs}.output_norm")

    def _embeddings(self, theirs: str, positions: int, types: int) -> None:
        word = self._take(f"{theirs}.word_embeddings.weight", self._export.limits.vocab, self._hidden)
        if self._precision == "int8":
            self._out["word"], self._out["word.scale"] = quantised(word, np.abs(word).max(axis=1))
        else:
            self._out["word"] = as_bf16(word) if self._precision == "bf16" else word
        self._out["position"] = self._take(f"{theirs}.position_embeddings.weight", positions, self._hidden)
        self._out["type"] = self._take(f"{theirs}.type_embeddings.weight", types, self._hidden)
        self._norm("embedding_norm", f"{theirs}.embedding_norm")

    def linear(self, name: str, weight: Floats, bias: Floats, precision: str) -> None:
        """The sections of one linear layer."""
        if precision == "int8":
            self._out[f"{name}.weight"], self._out[f"{name}.scale"], self._out[f"{name}.sums"] = pack_int8(weight)
        else:
            self._out[f"{name}.weight"] = pack_bf16(weight) if precision == "bf16" else pack_linear(weight)
        self._out[f"{name}.bias"] = np.pad(bias, (0, -len(bias) % PANEL))

    def _norm(self, ours: str, theirs: str) -> None:
        self._out[ours] = np.stack([self._take(f"{theirs}.{part}", self._hidden) for part in ("weight", "bias")])

    def weight_and_bias(self, name: str, rows: int, columns: int) -> tuple[Floats, Floats]:
        """Take the two out of the weights. Raises BuildError."""
        return self._take(f"{name}.weight", rows, columns), self._take(f"{name}.bias", rows)

    def _take(self, name: str, *shape: int) -> Floats:
        value = self._left.pop(name, None)
        if value is None or value.shape != shape:
            raise self.refused(f"{name} is {'missing' if value is None else list(value.shape)}, expected {list(shape)}")
        if not np.all(np.isfinite(value)):
            raise self.refused(f"{name} holds NaN or infinity")
        return value

    def _rows(self, name: str) -> int:
        value = self._left.get(name)
        if value is None or value.ndim != 2:
            raise self.refused(f"{name} is {'missing' if value is None else list(value.shape)}, expected a matrix")
        return int(value.shape[0])

    def refused(self, why: str) -> BuildError:
        """The error that says so."""
        return BuildError(f"{self._what}: the native engine does not run this student: {why}; --backend ort will take it")
