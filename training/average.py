"""Averages of a model's weights, kept beside them: over its steps, and with those that it began with."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn


class Average:
    """Exponential moving average of all parameters: calmer than the last step, and often better; and ``start_share`` parts of the weights
    that the model has now, where a run begins: what a model of other shops knows is worth keeping when it learns one.

    The decay grows from 0 towards ``decay`` as ``(1 + steps) / (10 + steps)``, so that a short run does not keep its first weights; a
    ``decay`` of 0 is the last step's weights.

    Sources: Polyak and Juditsky, Acceleration of stochastic approximation by averaging, 1992; the growing decay is TensorFlow's. Wortsman
    et al., Robust fine-tuning of zero-shot models, arXiv 2109.01903, mix the first weights in.
    """

    def __init__(self, model: nn.Module, decay: float, start_share: float = 0.0) -> None:
        self._model, self._decay, self._start_share, self._steps = model, decay, start_share, 0
        self._values = {name: p.detach().clone() for name, p in model.named_parameters()}
        self._start = {name: p.detach().clone() for name, p in model.named_parameters()} if start_share else {}

    @torch.no_grad()
    def update(self) -> None:
        """Take in the weights as they are now."""
        decay = min(self._decay, (1 + self._steps) / (10 + self._steps))
        self._steps += 1
        for name, parameter in self._model.named_parameters():
            self._values[name].lerp_(parameter, 1 - decay)

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """Inside the block the model has the averaged weights."""
        own = {name: p.detach().clone() for name, p in self._model.named_parameters()}
        mixed = {name: self._values[name].lerp(start, self._start_share) for name, start in self._start.items()}
        self._put(mixed or self._values)
        try:
            yield
        finally:
            self._put(own)

    @torch.no_grad()
    def _put(self, values: dict[str, Tensor]) -> None:
        for name, parameter in self._model.named_parameters():
            parameter.copy_(values[name])

    def state_dict(self) -> dict[str, object]:
        """For the checkpoint."""
        return {"steps": self._steps, "values": self._values}

    def load_state_dict(self, state: dict[str, object]) -> None:
        """From the checkpoint."""
        self._steps = int(state["steps"])  # type: ignore[call-overload]
        values: dict[str, Tensor] = state["values"]  # type: ignore[assignment]
        for name, value in self._values.items():
            value.copy_(values[name])
