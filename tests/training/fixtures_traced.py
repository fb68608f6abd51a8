"""`export_student` for tests of what comes after it: each graph is traced once a run, which takes seconds, and copied from then on.

The same module, weights and inputs give the same file. `export_student` runs what it finds beside torch, so a copy that is not the
student's is refused like a wrong export.
"""

from __future__ import annotations

import hashlib
import shutil
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from edgerec.training import export
from fixtures_once import once
from torch import nn

_trace = export._export_onnx


@contextmanager
def traced_unmeasured() -> Iterator[None]:
    """Inside, `export_student` traces without coverage, which looks at every call inside torch: half as much time again."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(export, "_export_onnx", _unmeasured)
        yield


def export_traced_once(student: Path, folder: Path, *, data: Sequence[Path]) -> Path:
    """The export folder of ``student``."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(export, "_export_onnx", _traced_once)
        export.export_student(student, folder, data=data)
    return folder


def _traced_once(model: nn.Module, inputs: Any, path: Path) -> None:
    shape = getattr(getattr(model, "student", model), "shape", None)
    key = hashlib.sha256(repr((type(model), str(model), shape)).encode())
    for name, (example, _) in inputs.items():
        key.update(repr((name, example.dtype, example.shape)).encode())
    for name, value in model.state_dict().items():
        key.update(name.encode() + value.contiguous().numpy().tobytes())
    shutil.copyfile(once(f"{key.hexdigest()[:16]}-{path.name}", lambda made: _unmeasured(model, inputs, made)), path)


def _unmeasured(model: nn.Module, inputs: Any, path: Path) -> None:
    measured = sys.gettrace()
    sys.settrace(None)
    try:
        _trace(model, inputs, path)
    finally:
        sys.settrace(measured)
