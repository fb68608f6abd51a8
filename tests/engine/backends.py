"""The backends under the contract. A new backend is one more line in ``CASES``."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from fixtures_export import make_export

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

    def build(self, root: Path) -> Path:
        """An export and its bundle; returns the bundle."""
        export = make_export(root / "export", features=self.features)
        build_engine(export, root / "bundle", backend=self.backend, precision=self.precision, activations=self.activations)
        return root / "bundle"

    def __str__(self) -> str:
        return f"{self.backend}-{self.precision}-{self.activations}-{'features' if self.features else 'plain'}"


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
]
