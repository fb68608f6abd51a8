"""OpenVINO as a user would run a reranker on it: all pairs in one batch padded to the longest, the plugin's defaults with the latency hint.

On processors with AMX or AVX-512 BF16 those defaults compute an fp32 model in bfloat16. int8 is NNCF's post-training quantisation for
transformers, calibrated on pairs of the data.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from . import Setup
from .onnx_folder import write_onnx_folder

CALIBRATION_BATCHES, CALIBRATION_PAIRS = 30, 10
"""As many pairs as NNCF reads by default."""


@dataclass(frozen=True)
class Compiled:
    """A compiled model and its tokenizer."""

    model: Any
    tokenizer: Any


class OpenVino:
    """One configuration: ``fp32``, the model as it is, or ``int8``."""

    PACKAGE = "openvino"

    def __init__(self, precision: str) -> None:
        self.precision = precision
        self.NAME = "OpenVINO" + (" int8" if precision == "int8" else "")

    def prepare(self, setup: Setup) -> None:
        """The ONNX file that FlashRank and fastembed get; for int8, its quantised form."""
        write_onnx_folder(setup.weights, setup.work, max_tokens=setup.max_tokens)
        if self.precision != "int8":
            return
        import nncf
        import openvino

        model = openvino.Core().read_model(setup.work / "model.onnx")
        quantised = nncf.quantize(model, nncf.Dataset(list(self._calibration(setup))), model_type=nncf.ModelType.TRANSFORMER)
        openvino.save_model(quantised, setup.work / "int8.xml")

    def load(self, setup: Setup) -> Compiled:
        """Compiled for the CPU."""
        import openvino

        name = "int8.xml" if self.precision == "int8" else "model.onnx"
        model = openvino.Core().compile_model(setup.work / name, "CPU", {"PERFORMANCE_HINT": "LATENCY"})
        return Compiled(model, _tokenizer(setup))

    def rank(self, model: Compiled, query: str, titles: Sequence[str]) -> NDArray[np.float32]:
        """Logits of the pairs."""
        logits = model.model(_inputs(model.tokenizer, [(query, title) for title in titles]))[0]
        return np.asarray(logits, np.float32)[:, 0]

    def _calibration(self, setup: Setup) -> Any:
        from edgerec.training.data import load_dataset

        dataset, tokenizer = load_dataset(setup.data), _tokenizer(setup)
        pairs = [(dataset.queries[q], dataset.items[i].title) for q, grades in dataset.qrels["train"].items() for i in grades]
        drawn = np.random.default_rng(0).permutation(len(pairs))[: CALIBRATION_BATCHES * CALIBRATION_PAIRS]
        for part in np.array_split(drawn, CALIBRATION_BATCHES):
            yield _inputs(tokenizer, [pairs[i] for i in part.tolist()])


def _tokenizer(setup: Setup) -> Any:
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(setup.work / "tokenizer.json"))
    tokenizer.enable_truncation(setup.max_tokens)
    tokenizer.enable_padding()
    return tokenizer


def _inputs(tokenizer: Any, pairs: Sequence[tuple[str, str]]) -> dict[str, NDArray[np.int64]]:
    encoded = tokenizer.encode_batch(list(pairs))
    columns = {"input_ids": "ids", "attention_mask": "attention_mask", "token_type_ids": "type_ids"}
    return {name: np.array([getattr(one, column) for one in encoded], np.int64) for name, column in columns.items()}
