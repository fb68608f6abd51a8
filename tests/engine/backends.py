"""The backends under the contract. A new backend is one more line in ``CASES``."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fixtures_export import make_export
from fixtures_mid import write_mid_student
from fixtures_standin import standin
from fixtures_tiny import write_shop
from fixtures_traced import export_traced_once

from edgerec.builder import build_engine


@dataclass(frozen=True)
class Case:
    """One way to serve the small student.

    ``company`` is how far a logit may move when its row is scored in another batch. Int8 by batch has one activation scale a batch; its
    bound is half of the logits' own spread (about 0.4), so that it fails when rows are mixed up, and that of the others is rounding.
    """

    backend: str
    precision: str
    features: bool
    company: float
    activations: str = "token"
    mid: Mapping[str, Any] = field(default_factory=dict)

    def build(self, root: Path) -> Path:
        """An export and its bundle; returns the bundle."""
        export = self.mid_export(root) if self.mid else make_export(root / "export", features=self.features)
        # Three dev queries, or calibrated int8 of a width of 32, tell nothing of nDCG when weights are random.
        gate = {"ndcg_drop": 1.0} if self.mid or self.backend == "tensorrt" else {}
        build_engine(export, root / "bundle", backend=self.backend, precision=self.precision, activations=self.activations, gate=gate)
        return root / "bundle"

    def machine(self) -> AbstractContextManager[Any]:
        """Where the backend runs: TensorRT on the GPU of tests/standin."""
        return standin() if self.backend == "tensorrt" else nullcontext()

    def mid_export(self, root: Path) -> Path:
        """The export of a mid-fusion student."""
        shop = write_shop(root / "shop")
        student = write_mid_student(root / "student", shop, features=self.features, **self.mid)
        return export_traced_once(student, root / "export", data=[shop])

    def __str__(self) -> str:
        return (
            "mid-" if self.mid else ""
        ) + f"{self.backend}-{self.precision}-{self.activations}-{'features' if self.features else 'plain'}"


PER_LAYER: dict[str, Any] = {"query_layers": 1}
NARROW: dict[str, Any] = {"query_layers": 1, "states": "one", "state_width": 16, "state_precision": "int8"}
CASES = [
    Case("ort", "fp32", True, 1e-5),
    Case("ort", "fp32", False, 1e-5),
    Case("ort", "int8", True, 0.2, activations="batch"),
    Case("ort", "int8", False, 0.2, activations="batch"),
    Case("ort", "int8", True, 1e-4),
    Case("ort", "int8", False, 1e-4),
    # The native engine promises the same bits whatever the company.
    Case("native", "fp32", True, 0.0),
    Case("native", "fp32", False, 0.0),
    Case("native", "bf16", True, 0.0),
    Case("native", "bf16", False, 0.0),
    Case("native", "int8", True, 0.0),
    Case("native", "int8", False, 0.0),
    Case("reference", "fp32", True, 1e-6),
    Case("reference", "fp32", False, 1e-6),
    # On the stand-in GPU, which computes with ONNX Runtime.
    Case("tensorrt", "fp32", True, 1e-5),
    Case("tensorrt", "fp16", False, 5e-3),
    Case("tensorrt", "int8", True, 0.05),
    Case("tensorrt", "fp32", True, 1e-4, mid=PER_LAYER),
    Case("tensorrt", "fp16", False, 0.02, mid=NARROW),
    Case("ort", "fp32", True, 1e-4, mid=PER_LAYER),
    # A number between two int8 steps may be rounded to either when its row has other company.
    Case("ort", "fp32", False, 0.02, mid=NARROW),
    Case("ort", "int8", True, 0.02, mid=PER_LAYER),
    Case("native", "fp32", True, 0.0, mid=PER_LAYER),
    Case("native", "bf16", True, 0.0, mid=NARROW),
    Case("native", "int8", False, 0.0, mid=NARROW),
    Case("native", "int8", True, 0.0, mid=PER_LAYER),
    Case("reference", "fp32", True, 1e-5, mid=PER_LAYER),
    Case("reference", "fp32", False, 0.02, mid=NARROW),
]
