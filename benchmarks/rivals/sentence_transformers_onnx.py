"""sentence-transformers' ONNX backend. Its extra wants older packages than the other rivals, so it runs in a process of its own.

    python -m venv ENV; ENV/bin/pip install torch==2.13.0 'sentence-transformers[onnx]'

``rank`` writes a request to that process and reads its scores, which costs some ten microseconds of what is timed.
"""

from __future__ import annotations

import json
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from . import Setup
from .onnx_folder import write_onnx_folder

WORKER = r"""
import json, sys
from importlib.metadata import version
from sentence_transformers import CrossEncoder
folder, max_tokens = sys.argv[1:]
model = CrossEncoder(folder, backend="onnx", max_length=int(max_tokens), device="cpu", local_files_only=True,
                     model_kwargs={"file_name": "model.onnx", "provider": "CPUExecutionProvider"})
print(version("sentence-transformers"), flush=True)
for line in sys.stdin:
    query, titles = json.loads(line)
    scores = model.predict([(query, title) for title in titles], show_progress_bar=False)
    print(json.dumps([float(score) for score in scores]), flush=True)
"""


class SentenceTransformersOnnx:
    """The contestant; ``python`` is the interpreter that has its packages."""

    NAME = "sentence-transformers, ONNX"
    PACKAGE = "sentence-transformers"

    def __init__(self, python: Path) -> None:
        self._python = python
        self.VERSION = ""

    def prepare(self, setup: Setup) -> None:
        """Export the model the way published ones are."""
        if not (setup.work / "model.onnx").exists():
            write_onnx_folder(setup.weights, setup.work, max_tokens=setup.max_tokens)

    def load(self, setup: Setup) -> Any:
        """The process, when it has opened the model."""
        command = [str(self._python), "-c", WORKER, str(setup.work), str(setup.max_tokens)]
        process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        assert process.stdout is not None
        self.VERSION = process.stdout.readline().strip()
        if not self.VERSION:
            raise SystemExit(f"{self._python} could not open the ONNX model; see its message above")
        return process

    def rank(self, model: Any, query: str, titles: Sequence[str]) -> NDArray[np.float32]:
        """Probabilities of the pairs."""
        model.stdin.write(json.dumps([query, list(titles)]) + "\n")
        model.stdin.flush()
        return np.array(json.loads(model.stdout.readline()), np.float32)
