"""A student for GPUs: products in half precision, everything that sums over many numbers in float32.

Under strong typing, as in TensorRT, precision lives in the graph itself. Weights and products are fp16 or bf16; softmax, LayerNorm, the
residual stream and the head stay float32, where half precision overflows or loses what ranking needs.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from edgerec.errors import InputError

from .student import Student

HALVES = {"fp16": torch.float16, "bf16": torch.bfloat16}


class HalfLinear(nn.Module):
    """A linear layer whose product runs, and whose result stays, in half precision."""

    def __init__(self, whole: nn.Linear, dtype: torch.dtype) -> None:
        super().__init__()
        self.weight = nn.Parameter(whole.weight.detach().to(dtype), requires_grad=False)
        self.bias = nn.Parameter(whole.bias.detach().to(dtype), requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        """[.., in] of any precision -> [.., out] in half."""
        return F.linear(x.to(self.weight.dtype), self.weight, self.bias)


class HalfEmbedding(nn.Module):
    """A table kept in half precision; what is read from it is float32 again."""

    def __init__(self, whole: nn.Embedding, dtype: torch.dtype) -> None:
        super().__init__()
        self.weight = nn.Parameter(whole.weight.detach().to(dtype), requires_grad=False)

    def forward(self, ids: Tensor) -> Tensor:
        """Integers [..] -> float32 [.., H]."""
        return F.embedding(ids, self.weight).float()


def halved(student: nn.Module, precision: str) -> Student:
    """A copy whose text tower computes its products in ``fp16`` or ``bf16``; same inputs, float32 logits [B].

    Raises InputError for a mid-fusion student.
    """
    if not isinstance(student, Student):
        raise InputError("half-precision graphs are written of cross students only, this one is mid-fusion")
    dtype, found = HALVES[precision], copy.deepcopy(student).eval()
    tower: Any = found.tower
    tower.word_embeddings = HalfEmbedding(tower.word_embeddings, dtype)
    for layer in tower.layers:
        for name, module in list(layer.named_children()):
            if isinstance(module, nn.Linear):
                setattr(layer, name, HalfLinear(module, dtype))
    if tower.pooler is not None:
        tower.pooler = HalfLinear(tower.pooler, dtype)
    return found
