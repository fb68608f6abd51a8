"""The moving average of a model's weights, kept beside them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn


class Average:
    """Exponential moving average of all parameters: calmer than the last step, and often better.

    The decay grows from 0 towards ``decay`` as ``(1 + steps) / (10 + steps)``, so that a short run does not keep its first weights.

    Source: Polyak and Juditsky, Acceleration of stochastic approximation by averaging, 1992; the growing decay is TensorFlow's.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self._model, self._decay, self._steps = model, decay, 0
        self._values = {name: p.detach().clone() for name, p in model.named_parameters()}

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
        self._put(self._values)
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
