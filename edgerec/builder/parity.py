"""Step 4, parity: the built engine against the exported fp32 graph, in logits and in what ranking makes of them."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..engine import Engine
from ..engine.mid import MidRunner
from ..engine.mid_ort import feeds
from ..engine.ort import ort
from ..errors import BuildError
from ..metrics import gain, ndcg
from ..states import StateSpec
from ..types import Batch
from .contract import Calibration, Export

CUTOFF = 10
GATES = {"ndcg_drop": (0.0, 1.0), "top_overlap": (0.0, 1.0), "tau": (-1.0, 1.0), "nan_count": (0, math.inf)}
"""Bounds that a recipe or the command line may set, and their ranges."""
STEP = 0.02
"""What int8 states that are rounded another way may do to a logit; 0.002 was seen of a trained student of six layers."""
_ROWS = 32
_PROBE_ROWS = 4
# Logits closer than this share of their spread are the same but for rounding: twins in the sample would swap freely.
_SAME = 1e-4
Floats = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Tolerance:
    """The gate of one precision; a figure worse than its bound refuses the build.

    Attributes
    ----------
    max_abs_diff : largest difference of a logit; infinity where the ranking measures decide alone.
    ndcg_drop : how much of the mean nDCG@10 of the calibration queries may be lost.
    top_overlap : least mean share of the fp32 top rows that the built engine also puts on top.
    tau : least Kendall tau between the two orders.
    nan_count : how many logits may be NaN or infinite.
    """

    max_abs_diff: float
    ndcg_drop: float
    top_overlap: float
    tau: float
    nan_count: int = 0


@dataclass(frozen=True, slots=True)
class Tolerances:
    """The gates by precision, and ``export``: how far the exported graph itself may be from the logits torch gave.

    Bf16 and int8 have no bound on single logits: their scale is the student's own, and a shift that all rows share changes no order. Tau is
    the loosest of the others: it counts every pair of near-equal rows that swaps, wherever in the list and whatever their grades. Fp16 has
    the gate of bf16, fp8 that of int8.
    """

    export: float = 1e-3
    fp32: Tolerance = field(default_factory=lambda: Tolerance(max_abs_diff=1e-3, ndcg_drop=0.001, top_overlap=0.99, tau=0.99))
    bf16: Tolerance = field(default_factory=lambda: Tolerance(max_abs_diff=math.inf, ndcg_drop=0.005, top_overlap=0.9, tau=0.95))
    int8: Tolerance = field(default_factory=lambda: Tolerance(max_abs_diff=math.inf, ndcg_drop=0.01, top_overlap=0.8, tau=0.9))

    def for_states(self, states: StateSpec | None) -> Tolerances:
        """The bounds for a student that keeps such states: of int8 ones, a number between two steps may fall to either, which moves a logit
        by more than arithmetic does."""
        if states is None or states.precision != "int8":
            return self
        bound = max(STEP, self.fp32.max_abs_diff)
        return replace(self, export=max(STEP, self.export), fp32=replace(self.fp32, max_abs_diff=bound))

    def with_gate(self, gate: Mapping[str, float], place: str) -> Tolerances:
        """The same gates, at every precision with the bounds of ``gate`` in place of their own; see `GATES`.

        Raises
        ------
        BuildError : another name, or a bound that is no number it can have.
        """
        for name, bound in gate.items():
            low, high = GATES.get(name, (math.inf, -math.inf))
            if isinstance(bound, bool) or not isinstance(bound, (int, float)) or not low <= bound <= high:
                known = ", ".join(f"{n} from {a:g} to {b:g}" for n, (a, b) in GATES.items())
                raise BuildError(f"{place}: gate {name} = {bound!r:.40}; expected {known}")
        bounds = {precision: replace(self.of(precision), **gate) for precision in ("fp32", "bf16", "int8")}  # type: ignore[arg-type]
        return replace(self, **bounds)  # type: ignore[arg-type]

    def of(self, precision: str) -> Tolerance:
        """The gate of a precision."""
        return {"fp16": self.bf16, "bf16": self.bf16, "int8": self.int8, "fp8": self.int8}.get(precision, self.fp32)


@dataclass(frozen=True, slots=True)
class Parity:
    """What the calibration sample showed; ``parity.json`` of the bundle.

    Attributes
    ----------
    rows, queries : size of the sample; queries with at least two rows count.
    export_max_abs_diff : exported fp32 graph against torch, logits.
    max_abs_diff, mean_abs_diff : built engine against exported graph, over the finite logits.
    batch_max_abs_diff : the built engine against itself, rows alone against rows in company.
    nan_count : logits of the built engine that are NaN or infinite.
    top_overlap : mean over queries; top is the better half of a query's rows, at most 10. 1 if no query has two rows.
    tau : Kendall's, over all pairs within queries but those that fp32 tells apart by rounding only. 1 if there is none.
    ndcg_fp32, ndcg_built : mean nDCG@10 over the queries whose grades allow it; None if none does.
    probe_tolerance : how far a probe logit may be off when the bundle is loaded.
    """

    rows: int
    queries: int
    export_max_abs_diff: float
    max_abs_diff: float
    mean_abs_diff: float
    batch_max_abs_diff: float
    nan_count: int
    top_overlap: float
    tau: float
    ndcg_fp32: float | None
    ndcg_built: float | None
    probe_tolerance: float

    @property
    def ndcg_drop(self) -> float:
        """nDCG@10 lost by the built engine; 0 where it is not defined."""
        return 0.0 if self.ndcg_fp32 is None or self.ndcg_built is None else self.ndcg_fp32 - self.ndcg_built

    def to_json(self) -> dict[str, Any]:
        """Plain values for ``parity.json``."""
        return {**asdict(self), "ndcg_drop": self.ndcg_drop}

    def check(self, tolerance: Tolerance, what: str) -> None:
        """Raise BuildError, with every figure that is out of bounds."""
        faults = []
        if self.nan_count > tolerance.nan_count:
            faults.append(f"{self.nan_count} of {self.rows} logits are not finite")
        if not self.max_abs_diff <= tolerance.max_abs_diff:
            faults.append(f"max |dlogit| {self.max_abs_diff:.3g} is above {tolerance.max_abs_diff:.3g}")
        if not self.ndcg_drop <= tolerance.ndcg_drop:
            faults.append(f"nDCG@{CUTOFF} drops by {self.ndcg_drop:.4f}, allowed {tolerance.ndcg_drop:.4f}")
        if not self.top_overlap >= tolerance.top_overlap:
            faults.append(f"top overlap {self.top_overlap:.3f} is below {tolerance.top_overlap:.3f}")
        if not self.tau >= tolerance.tau:
            faults.append(f"Kendall tau {self.tau:.3f} is below {tolerance.tau:.3f}")
        if faults:
            raise BuildError(f"{what} does not match the exported fp32 graph: {'; '.join(faults)}. No bundle was written")


def fp32_logits(export: Export, tolerance: float) -> Floats:
    """Logits [M] of the exported graph, unoptimised; proves that it gives what torch gave and takes rows of ``max_tokens``.

    Raises
    ------
    BuildError : the graph fails, or is further than ``tolerance`` from the logits in the calibration sample.
    """
    batch = export.calibration.batch
    what = "ranker.onnx with item_encoder.onnx" if export.states else "student.onnx"
    try:
        run = _exported_mid(export) if export.states else _exported_cross(export)
        logits = np.concatenate([run(part) for part in split(batch, _ROWS)])
        run(_longest(batch, export))
    # ONNX Runtime's exceptions share no base class but Exception.
    except Exception as error:
        raise BuildError(f"{export.folder}: {what} does not run on the calibration rows: {error}") from error
    worst = _max_abs(logits, export.calibration.logits)
    if not worst <= tolerance:
        raise BuildError(
            f"{export.folder}: {what} does not give the logits that calibration.npz records: max |dlogit| {worst:.3g} is above "
            f"{tolerance:.3g}; the export is damaged or mixed from two students, export it again"
        )
    return logits


def plain_session(graph: bytes) -> ort.InferenceSession:
    """The graph as it was written: nothing is optimised."""
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 3
    return ort.InferenceSession(graph, options, providers=["CPUExecutionProvider"])


def _exported_cross(export: Export) -> Callable[[Batch], Floats]:
    session = plain_session(export.graph)
    names = [value.name for value in session.get_inputs()]
    return lambda part: np.asarray(session.run(["logits"], {name: getattr(part, name) for name in names})[0], np.float32)


def _exported_mid(export: Export) -> Callable[[Batch], Floats]:
    items, ranker = plain_session(export.item_graph), plain_session(export.graph)
    return MidRunner(
        export.model,
        export.limits,
        lambda ids, lengths: items.run(["states"], {"item_ids": ids, "item_lengths": lengths})[0],
        lambda rows: ranker.run(["logits"], feeds(rows))[0],
        backend="ort",
        precision="fp32",
        close=lambda: None,
    ).run


def measure(engine: Engine, calibration: Calibration, reference: Floats, *, grade_min: float) -> Parity:
    """Score the calibration sample with the built engine and compare with the fp32 logits [M]."""
    batch = calibration.batch
    built = np.concatenate([engine.run(part) for part in split(batch, _ROWS)])
    alone = np.concatenate([engine.run(part) for part in split(take(batch, probe_rows(batch.size)), 1)])
    finite = np.isfinite(built)
    # What is not finite is counted by itself; ranking puts it last, and so do the figures of ranking.
    ranked = np.where(finite, built, built[finite].min(initial=0.0) - 1).astype(np.float32)
    queries = [rows for rows in _groups(calibration.query_index) if len(rows) > 1]
    worst = _max_abs(built[finite], reference[finite]) if finite.any() else math.nan
    mean = float(np.mean(np.abs(built - reference)[finite])) if finite.any() else math.nan
    rounding = _SAME * float(np.std(reference))
    judged = [(reference[rows], ranked[rows], calibration.grades[rows]) for rows in queries]
    ndcgs = [(_ndcg(fp32, grades, grade_min), _ndcg(other, grades, grade_min)) for fp32, other, grades in judged]
    defined = np.asarray([pair for pair in ndcgs if not math.isnan(pair[0])], np.float64).reshape(-1, 2)
    return Parity(
        rows=batch.size,
        queries=len(queries),
        export_max_abs_diff=_max_abs(reference, calibration.logits),
        max_abs_diff=worst,
        mean_abs_diff=mean,
        batch_max_abs_diff=_max_abs(alone, built[probe_rows(batch.size)]),
        nan_count=int(np.count_nonzero(~finite)),
        top_overlap=float(np.mean([_overlap(a, b) for a, b, _ in judged])) if judged else 1.0,
        tau=_tau([(a, b) for a, b, _ in judged], rounding),
        ndcg_fp32=float(defined[:, 0].mean()) if len(defined) else None,
        ndcg_built=float(defined[:, 1].mean()) if len(defined) else None,
        # Another CPU rounds otherwise in places: it may differ from this one by a few times what this engine differs from fp32, no more.
        probe_tolerance=max(1e-3, 4 * mean) if math.isfinite(mean) else 1e-3,
    )


def probe_rows(rows: int) -> NDArray[np.intp]:
    """Which calibration rows become the probe: at most 16, spread evenly."""
    return np.unique(np.linspace(0, rows - 1, min(rows, _PROBE_ROWS)).astype(np.intp))


def take(batch: Batch, rows: NDArray[np.intp] | slice) -> Batch:
    """The rows of a batch, in order."""
    return Batch(
        input_ids=batch.input_ids[rows],
        attention_mask=batch.attention_mask[rows],
        token_type_ids=batch.token_type_ids[rows],
        feature_ids=batch.feature_ids[rows],
        feature_weights=batch.feature_weights[rows],
    )


def split(batch: Batch, rows: int) -> list[Batch]:
    """The batch in pieces of at most ``rows`` rows, each cut to its longest row."""
    pieces = [take(batch, slice(start, start + rows)) for start in range(0, batch.size, rows)]
    return [_cut(piece, int(np.flatnonzero(piece.attention_mask.max(axis=0)).max(initial=0)) + 1) for piece in pieces]


def _cut(batch: Batch, tokens: int) -> Batch:
    ids, mask, types = (np.ascontiguousarray(a[:, :tokens]) for a in (batch.input_ids, batch.attention_mask, batch.token_type_ids))
    return Batch(ids, mask, types, batch.feature_ids, batch.feature_weights)


def _longest(batch: Batch, export: Export) -> Batch:
    one, tokens = take(batch, slice(0, 1)), export.limits.tokens
    ids, types = (np.resize(array, (1, tokens)) for array in (one.input_ids, one.token_type_ids))
    if export.states:  # its two sides are bounded each by itself
        text = export.model["text"]
        types = np.where(np.arange(tokens) < export.model["student"]["item_start"], text["query_type"], text["item_type"])
        types = types.astype(np.int32)[None]
    return Batch(ids, np.ones_like(ids), types, one.feature_ids, one.feature_weights)


def _groups(query_index: NDArray[np.int32]) -> list[NDArray[np.intp]]:
    order = np.argsort(query_index, kind="stable")
    return np.split(order, np.flatnonzero(np.diff(query_index[order])) + 1)


def _max_abs(left: Floats, right: Floats) -> float:
    """NaN if any difference is NaN, so that no bound accepts it."""
    return float(np.max(np.abs(left.astype(np.float64) - right))) if left.size else 0.0


def _overlap(left: Floats, right: Floats) -> float:
    k = min(CUTOFF, (len(left) + 1) // 2)
    return len(np.intersect1d(np.argsort(-left, kind="stable")[:k], np.argsort(-right, kind="stable")[:k])) / k


def _tau(lists: Sequence[tuple[Floats, Floats]], rounding: float = 0.0) -> float:
    """Kendall's tau-a over all pairs within the lists that the left side tells apart by more than ``rounding``; 1 if there is none.

    Over pairs, not a mean over lists: a list of two rows is all right or all wrong, and would count as much as one of thirty.
    """
    signs = [np.zeros(0)]
    for left, right in lists:
        a, b = ((x[:, None] - x[None, :])[np.triu_indices(len(x), 1)] for x in (left, right))
        signs.append((np.sign(a) * np.sign(b))[np.abs(a) > rounding])
    pairs = np.concatenate(signs)
    return float(pairs.mean()) if len(pairs) else 1.0


def _ndcg(scores: Floats, grades: Floats, grade_min: float) -> float:
    known = np.isfinite(grades)
    return ndcg(gain(grades[known], grade_min), scores[known], CUTOFF) if known.any() else math.nan
