"""The sections that a mid-fusion student's ``engine.bin`` has more: its item encoder, and the joint layers' maps of states.

Shapes: H hidden, G states of a token, W width of a state.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from ..states import StateSpec
from .native_packer import PANEL, Packer

KINDS = ("fp32", "int8", "fp16")
"""Precisions of states, by the number that section ``mid`` has for them."""


def mid_sections(packer: Packer, student: Mapping[str, Any], spec: StateSpec) -> None:
    """Give the packer all sections of a mid-fusion student, whose weights have the names of `edgerec.engine.mid_reference`.

    Raises
    ------
    BuildError : a size that the native engine does not run, or weights that are not those of ``model.json``.
    """
    try:
        layers, alone, items = (int(student[key]) for key in ("layers", "query_layers", "item_layers"))
        start, asking, item_type, hidden = (int(student[key]) for key in ("item_start", "query_type", "item_type", "hidden"))
        one = student["states"] == "one"
    except (KeyError, TypeError, ValueError) as error:
        raise packer.refused(f"model.json: student lacks sizes of a mid-fusion student: {error!r}") from error
    reads = [items if one else min(layer, items) for layer in range(alone, layers)]
    kept = sorted(set(reads))
    if not 1 <= alone < layers or not 1 <= items <= layers:
        raise packer.refused(f"{alone} query layers and {items} item layers of {layers}")
    if len(kept) != spec.groups or spec.width > hidden:
        raise packer.refused(f"{spec.groups} states of {spec.width} numbers; its layers read {len(kept)}, of at most {hidden}")
    widths = packer.frame("embeddings", "pooler", "query.layers")
    packer.numbers("mid", [alone, items, start, asking, item_type, spec.groups, spec.width, KINDS.index(spec.precision)])
    packer.numbers("keeps", kept)
    packer.numbers("reads", [kept.index(layer) for layer in reads])
    packer.stack("items", "item.layers", items)
    for place in range(spec.groups) if spec.width < hidden else ():
        weight, bias = packer.weight_and_bias(f"item.narrow.{place}", spec.width, hidden)
        more = -spec.width % PANEL
        packer.linear(f"item{place:02d}.narrow", np.pad(weight, ((0, more), (0, 0))), np.pad(bias, (0, more)), "fp32")
    for layer in range(alone, layers):
        packer.state_maps(f"layer{layer:02d}", f"query.layers.{layer}", widths[layer], spec.width, last=layer == layers - 1)
