"""FlashRank: ``Ranker.rerank`` on ONNX Runtime, fp32, all candidates in one batch padded to the longest."""

from __future__ import annotations

from collections.abc import Sequence
from importlib import import_module
from typing import Any

import numpy as np
from numpy.typing import NDArray

from . import Setup
from .onnx_folder import write_onnx_folder

NAME = "FlashRank"
PACKAGE = "flashrank"
MODEL = "same-weights"


def prepare(setup: Setup) -> None:
    """A folder as its downloads have it."""
    write_onnx_folder(setup.weights, setup.work / MODEL, max_tokens=setup.max_tokens)


def load(setup: Setup) -> Any:
    """The ranker; it knows local models only through its table of known names."""
    module = import_module("flashrank.Ranker")  # `from flashrank import Ranker` gives the class of that name
    module.model_file_map[MODEL] = "model.onnx"
    return module.Ranker(model_name=MODEL, cache_dir=str(setup.work), max_length=setup.max_tokens, log_level="WARNING")


def rank(model: Any, query: str, titles: Sequence[str]) -> NDArray[np.float32]:
    """Probabilities, put back into the order of the titles (it returns them sorted)."""
    from flashrank import RerankRequest

    passages = [{"id": place, "text": title} for place, title in enumerate(titles)]
    scores = np.empty(len(titles), np.float32)
    for found in model.rerank(RerankRequest(query=query, passages=passages)):
        scores[found["id"]] = found["score"]
    return scores
