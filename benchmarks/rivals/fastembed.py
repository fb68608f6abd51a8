"""fastembed: ``TextCrossEncoder.rerank`` on ONNX Runtime, fp32, its default batch of 64."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from . import Setup
from .onnx_folder import write_onnx_folder

NAME = "fastembed"
PACKAGE = "fastembed"
MODEL = "local/same-weights"


def prepare(setup: Setup) -> None:
    """A folder as its downloads have it."""
    write_onnx_folder(setup.weights, setup.work, max_tokens=setup.max_tokens)


def load(setup: Setup) -> Any:
    """The cross-encoder, registered under a name of its own."""
    from fastembed.common.model_description import ModelSource
    from fastembed.rerank.cross_encoder import TextCrossEncoder

    TextCrossEncoder.add_custom_model(MODEL, sources=ModelSource(hf=MODEL), model_file="model.onnx")
    return TextCrossEncoder(MODEL, specific_model_path=str(setup.work), cuda=False)


def rank(model: Any, query: str, titles: Sequence[str]) -> NDArray[np.float32]:
    """Logits of the pairs."""
    return np.fromiter(model.rerank(query, titles), np.float32, len(titles))
