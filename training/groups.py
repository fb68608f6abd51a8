"""Parameter groups: which weights learn at which rate, and which decay."""

from __future__ import annotations

import re
from typing import Any

from torch import nn

from .config import FitSettings

_LAYER = re.compile(r"\blayers?\.(\d+)\.")
FEATURES = "features."
"""Prefix of the hashed-feature half of a student; it has a rate of its own."""


def depth(name: str, layers: int) -> int:
    """How far up a weight stands: 0 for embeddings, i + 1 for layer i, ``layers + 1`` for what comes after (pooler, head).

    Names are those of Hugging Face's encoders and of `edgerec.training.student`.
    """
    found = _LAYER.search(name)
    if found:
        return int(found[1]) + 1
    # MPNet's relative_attention_bias is shared by all layers, like an embedding.
    return 0 if "embedding" in name or "relative_attention_bias" in name else layers + 1


def parameter_groups(model: nn.Module, settings: FitSettings) -> list[dict[str, Any]]:
    """Groups for the optimiser: rate ``learning_rate * layer_decay ** (top - depth)``; vectors (biases, norms) without weight decay.

    Source of layer-wise decay: Howard and Ruder, ULMFiT, arXiv 1801.06146.
    """
    named = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    layers = 1 + max((int(found[1]) for name, _ in named if (found := _LAYER.search(name))), default=-1)
    groups: dict[tuple[float, bool], dict[str, Any]] = {}
    for name, parameter in named:
        if name.startswith(FEATURES):
            rate, plain = settings.feature_learning_rate, True
        else:
            rate = settings.learning_rate * settings.layer_decay ** (layers + 1 - depth(name, layers))
            plain = parameter.ndim <= 1
        group = groups.setdefault((rate, plain), {"params": [], "lr": rate} | ({"weight_decay": 0.0} if plain else {}))
        group["params"].append(parameter)
    return list(groups.values())
