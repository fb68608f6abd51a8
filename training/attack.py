"""Adversarial steps: the loss must also be small where the weights are moved to where it grows fastest.

``fgm`` moves the word embeddings (Miyato et al., Adversarial training methods for semi-supervised text classification, arXiv 1605.07725),
``awp`` the weight matrices (Wu et al., Adversarial weight perturbation helps robust generalization, arXiv 2004.05884; one step of it).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from .config import AttackSettings


@contextmanager
def perturbed(model: nn.Module, settings: AttackSettings) -> Iterator[None]:
    """Inside the block the attacked weights are moved along their gradients; after it they are, bit for bit, what they were.

    Uses the gradients that a backward pass has left; whatever the block adds to them stays.
    """
    attacked = [p for name, p in model.named_parameters() if p.grad is not None and _is_attacked(name, p, settings.kind)]
    before = [p.detach().clone() for p in attacked]
    with torch.no_grad():
        for parameter in attacked:
            parameter.add_(_move(parameter, settings))
    try:
        yield
    finally:
        with torch.no_grad():
            for parameter, value in zip(attacked, before, strict=True):
                parameter.copy_(value)


def _is_attacked(name: str, parameter: Tensor, kind: str) -> bool:
    embedding = "embedding" in name
    return "word_embeddings" in name if kind == "fgm" else parameter.ndim > 1 and not embedding


def _move(parameter: Tensor, settings: AttackSettings) -> Tensor:
    gradient = parameter.grad
    assert gradient is not None
    length = float(gradient.norm())
    if length == 0 or not torch.isfinite(gradient).all():
        return torch.zeros_like(parameter)
    reach = settings.epsilon * (float(parameter.norm()) if settings.kind == "awp" else 1.0)
    return gradient * (reach / length)
