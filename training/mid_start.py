"""Where a mid-fusion student starts: at the weights of a cross-encoder, with state maps that give its keys and values back.

Where a joint layer reads the full-width state of its own height, its state maps are the layer's own key and value maps: the student is that
cross-encoder with a mask. Elsewhere they are fitted by reduced-rank regression: over the tokens of a sample of items, the W numbers of a
state are chosen so that linear maps of them come closest, in squared error, to the keys and values that the cross-encoder's layers have at
their own heights when items see no query. Keys and values of each layer count alike, whatever their size. The numbers of a narrow state
come out uncorrelated and with variance 1, so that one int8 scale suits all of them.

Source: Izenman, Reduced-rank regression for the multivariate linear model, 1975.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from edgerec.errors import InputError
from edgerec.text import TextEncoder, TextSpec

from .config import StudentSettings
from .mid import JOINT_ROWS, MidShape, MidStudent, padding_mask
from .pairs import Pairs, TokenTable, query_pairs
from .student import Student, StudentShape

SAMPLE_ITEMS = 2048
RIDGE = 1e-6
"""Share of the largest eigenvalue of the states' covariance below which a direction counts as absent."""


def mid_from_cross(cross: Student, spec: TextSpec, settings: StudentSettings, sample: Sequence[tuple[Tensor, Tensor]]) -> MidStudent:
    """A mid-fusion student made of a cross student's weights, as ``settings`` want it.

    Parameters
    ----------
    sample : batches of ``item + suffix`` of real items: ids int64 [U, T], lengths int64 [U]. Read only where state maps are fitted.

    Raises
    ------
    InputError : numbers of layers or widths that the cross student does not have.
    """
    student = MidStudent(mid_shape(cross.shape, spec, settings)).to(next(cross.parameters()).device)
    _copy(cross, student)
    own_height = student.shape.read_layers() == list(range(student.shape.query_layers, student.shape.layers))
    if student.item.narrow is not None or not own_height:
        _fit_states(cross, student, sample)
    return student


def mid_shape(encoder: StudentShape, spec: TextSpec, settings: StudentSettings) -> MidShape:
    """The sizes of the mid-fusion student that ``settings`` make of this encoder.

    Raises
    ------
    InputError : numbers of layers or widths that the encoder does not have.
    """
    layers, hidden, positions = encoder.layers, encoder.hidden, encoder.positions
    start = len(spec.prefix) + spec.max_query_tokens + len(spec.middle)
    item_layers = settings.item_layers or layers - 1
    if not 1 <= settings.query_layers < layers or not 1 <= item_layers <= layers:
        raise InputError(
            f"student.query_layers is {settings.query_layers} and item_layers {item_layers}; an encoder of {layers} layers allows 1 to "
            f"{layers - 1} and 1 to {layers}"
        )
    if settings.state_width > hidden:
        raise InputError(f"student.state_width is {settings.state_width}; this encoder's states are {hidden} wide: at most that, or 0")
    if start + spec.max_item_tokens + len(spec.suffix) > positions:
        raise InputError(
            f"items stand at positions from {start} on, {spec.max_item_tokens + len(spec.suffix)} tokens at most; this encoder has "
            f"{positions} positions: lower text.max_tokens or text.max_query_tokens"
        )
    return MidShape(
        **{field.name: getattr(encoder, field.name) for field in dataclasses.fields(StudentShape)},
        query_layers=settings.query_layers,
        item_layers=item_layers,
        states=settings.states,
        state_width=settings.state_width or hidden,
        state_precision=settings.state_precision,
        item_start=start,
        query_type=spec.query_type,
        item_type=spec.item_type,
    )


def item_sample(pairs: Pairs, text: TextEncoder, *, seed: int) -> list[tuple[Tensor, Tensor]]:
    """What `mid_from_cross` fits state maps to: a seeded choice of the items of some pairs."""
    chosen = np.sort(np.random.default_rng(seed).permutation(len(pairs.items))[:SAMPLE_ITEMS])
    table = TokenTable(query_pairs("", [pairs.items[place] for place in chosen]), text)
    rows = sorted((table.item_row(number) for number in np.arange(len(chosen))), key=len)
    batches = [table.padded(rows[start : start + JOINT_ROWS]) for start in range(0, len(rows), JOINT_ROWS)]
    return [(torch.from_numpy(ids), torch.from_numpy(lengths)) for ids, lengths in batches]


def _copy(cross: Student, student: MidStudent) -> None:
    """Everything that has a counterpart in the cross student; state maps become the layers' own where widths allow it."""
    weights, tower = student.state_dict(), cross.tower.state_dict()
    for name, value in tower.items():
        side, _, rest = name.partition(".")
        if side == "layers":
            for target in (f"item.{name}", f"query.{name}"):
                if target in weights:
                    weights[target] = value
            number, _, part = rest.partition(".")
            kind, _, piece = part.partition(".")
            own = f"query.layers.{number}.state_{kind}.{piece}"
            if own in weights and weights[own].shape == value.shape:
                weights[own] = value
        else:
            weights[name if side == "pooler" else f"embeddings.{name}"] = value
    for part in ("features", "head"):
        module = getattr(cross, part)
        weights |= {f"{part}.{name}": value for name, value in module.state_dict().items()} if module is not None else {}
    student.load_state_dict(weights)


@torch.no_grad()
def _fit_states(cross: Student, student: MidStudent, sample: Sequence[tuple[Tensor, Tensor]]) -> None:
    if not sample:
        raise InputError("narrow states, and states that layers at several heights share, are fitted to items: give a sample of them")
    shape, heights = student.shape, _heights(cross, student, sample)
    first, reads = shape.query_layers, shape.read_layers()
    for place, kept in enumerate(shape.kept_layers()):
        readers = [first + number for number, layer in enumerate(reads) if layer == kept]
        blocks = [kind(heights[n]) for n in readers for kind in _maps(cross.tower.layers[n])]
        narrow, maps = reduced_rank(heights[kept], blocks, shape.state_width)
        shift = -heights[kept].mean(0) @ narrow
        if student.item.narrow is not None:
            _set(student.item.narrow[place], narrow, shift)
        else:
            maps = [(narrow @ wide, offset + shift @ wide) for wide, offset in maps]
        for target, (wide, offset) in zip((t for n in readers for t in _state_maps(student.query.layers[n])), maps, strict=True):
            _set(target, wide, offset)


def reduced_rank(x: Tensor, blocks: Sequence[Tensor], rank: int) -> tuple[Tensor, list[tuple[Tensor, Tensor]]]:
    """The ``rank`` numbers made of x from which linear maps give the blocks back best; each block counts alike.

    Parameters
    ----------
    x : float64 [n, H]; blocks : float64 [n, N] each.

    Returns
    -------
    narrow : [H, rank]; ``(x - mean of x) @ narrow`` are the numbers. Then for each block ``wide`` [rank, N] and ``offset`` [N]: it is about
    ``numbers @ wide + offset``.
    """
    centred = x - x.mean(0)
    values, vectors = torch.linalg.eigh(centred.T @ centred / len(x))
    whiten = vectors * values.clamp(min=float(values.max()) * RIDGE).rsqrt()
    offsets = [block.mean(0) for block in blocks]
    sizes = [float((block - offset).square().mean().sqrt()) or 1.0 for block, offset in zip(blocks, offsets, strict=True)]
    target = torch.cat([(block - offset) / size for block, offset, size in zip(blocks, offsets, sizes, strict=True)], dim=1)
    # In whitened coordinates regression is a plain product, and its best version of low rank the singular value decomposition.
    left, strength, right = torch.linalg.svd((centred @ whiten).T @ target / len(x), full_matrices=False)
    wide = (strength[:rank, None] * right[:rank]).split([block.shape[1] for block in blocks], dim=1)
    return whiten @ left[:, :rank], [(part * size, offset) for part, size, offset in zip(wide, sizes, offsets, strict=True)]


def _heights(cross: Student, student: MidStudent, sample: Sequence[tuple[Tensor, Tensor]]) -> list[Tensor]:
    """What stands below each layer of the cross-encoder, and above the last, when items see no query: float64 [n, H], real tokens alone."""
    student.eval()
    found: list[list[Tensor]] = [[] for _ in range(cross.shape.layers + 1)]
    for ids, lengths in sample:
        x = student.embeddings(ids, student.shape.item_start, student.shape.item_type)
        mask = padding_mask(lengths, ids.shape[1], x.dtype)
        real = torch.arange(ids.shape[1], device=ids.device) < lengths[:, None]
        found[0].append(x[real])
        for number, layer in enumerate(cross.tower.layers):
            x = layer.eval()(x, mask, first_row_only=False)
            found[number + 1].append(x[real])
    return [torch.cat(parts).double().cpu() for parts in found]


def _maps(layer: nn.Module) -> list[Callable[[Tensor], Tensor]]:
    """The key and value maps of a layer, in float64."""
    pair = [getattr(layer, name) for name in ("key", "value")]
    return [lambda x, one=one: x @ one.weight.double().cpu().T + one.bias.double().cpu() for one in pair]  # type: ignore[misc]


def _state_maps(layer: nn.Module) -> list[nn.Module]:
    return [getattr(layer, name) for name in ("state_key", "state_value")]


def _set(linear: Any, slope: Tensor, offset: Tensor) -> None:
    linear.weight.copy_(slope.T)
    linear.bias.copy_(offset)
