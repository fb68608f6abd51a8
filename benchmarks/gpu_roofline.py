"""How far an engine is from what the GPU can do: operations over the measured rate of products, bytes over the measured rate of copies.

A layer of hidden size H and FFN size I takes, on B rows of T tokens, 8 B T H^2 operations for query, key, value and output, 4 B T H I
for the FFN and 4 B T^2 H for attention, a product and its sum being two; the last layer computes key and value of all tokens, the rest
for the first token alone. Bytes: each weight once, and each layer's rows read and written once. Embeddings, norms and features are left
out, so the time is a lower bound.

Source: Williams, Waterman and Patterson, Roofline: an insightful visual performance model, CACM 2009.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

BYTES = {"fp16": 2, "bf16": 2}
"""Of a number, in the precisions whose rate of products the suite measures."""


@dataclass(frozen=True, slots=True)
class Work:
    """Operations and bytes of one run."""

    operations: float
    bytes: float

    @classmethod
    def of(cls, layers: int, hidden: int, ffn: int, rows: int, tokens: int, number_bytes: int) -> Work:
        """Of a student on one bucket."""
        every = rows * tokens
        layer = 8 * every * hidden**2 + 4 * every * hidden * ffn + 4 * every * tokens * hidden
        last = 4 * every * hidden**2 + 4 * rows * hidden**2 + 4 * rows * hidden * ffn + 4 * every * hidden
        weights = layers * (4 * hidden**2 + 2 * hidden * ffn)
        return cls((layers - 1) * layer + last, number_bytes * (weights + layers * 2 * every * hidden))

    def least_ms(self, tera_operations: float, giga_bytes: float) -> float:
        """At these rates a second, whichever takes longer."""
        return 1e3 * max(self.operations / (tera_operations * 1e12), self.bytes / (giga_bytes * 1e9))


def roofline(suite: Any, not_run: type[Exception]) -> Iterator[dict[str, Any]]:
    """Every engine's p50 as a multiple of that bound."""
    products = _rate(suite, "rivals", "fp16 matmul TFLOP/s")
    copies = _rate(suite, "bandwidth", "copy GB/s (read and write)")
    missing = [what for what, rate in (("products (section rivals)", products), ("copies (section bandwidth)", copies)) if not rate]
    if missing:
        raise not_run(f"no rate was measured of {' and '.join(missing)}")
    for row in suite.found["engine latency"]["rows"]:
        if "p50 ms" not in row or row["precision"] not in BYTES:
            continue
        student = json.loads((suite.exports[row["student"]] / "model.json").read_text(encoding="utf-8"))["student"]
        rows, tokens = map(int, row["bucket"].split("x"))
        work = Work.of(student["layers"], student["hidden"], student["intermediate"], rows, tokens, BYTES[row["precision"]])
        least = work.least_ms(products, copies)
        yield {
            **{key: row[key] for key in ("student", "precision", "flavour", "bucket", "sent", "launch") if key in row},
            "GFLOP": work.operations / 1e9,
            "MB": work.bytes / 1e6,
            "least ms": least,
            "p50 ms": row["p50 ms"],
            "p50 / least": row["p50 ms"] / least,
        }


def _rate(suite: Any, section: str, key: str) -> float:
    return max((float(row[key]) for row in suite.found.get(section, {"rows": []})["rows"] if key in row), default=0.0)
