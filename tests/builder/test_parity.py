"""Parity: every figure against a slow reading of its definition, and every gate by itself."""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
from fixtures_export import make_export
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray

from edgerec.builder.contract import read_export
from edgerec.builder.parity import Parity, Tolerance, Tolerances, _overlap, _tau, fp32_logits, measure, probe_rows, split
from edgerec.errors import BuildError
from edgerec.states import StateSpec
from edgerec.types import Batch

LOOSE = Tolerance(max_abs_diff=1.0, ndcg_drop=0.1, top_overlap=0.5, tau=0.5)
GOOD = Parity(
    rows=10,
    queries=2,
    export_max_abs_diff=0.0,
    max_abs_diff=0.5,
    mean_abs_diff=0.1,
    batch_max_abs_diff=0.0,
    nan_count=0,
    top_overlap=0.9,
    tau=0.9,
    ndcg_fp32=0.8,
    ndcg_built=0.75,
    probe_tolerance=0.5,
)
scores = hnp.arrays(np.float32, st.integers(2, 12), elements=st.sampled_from([-1.0, 0.0, 0.5, 2.0, 3.0]))


@settings(max_examples=100, deadline=None)
@given(left=scores, data=st.data())
def test_tau_is_the_balance_of_pairs(left: NDArray[np.float32], data: st.DataObject) -> None:
    right = data.draw(hnp.arrays(np.float32, len(left), elements=st.sampled_from([-1.0, 0.0, 0.5, 2.0, 3.0])))
    pairs = [(a, b) for a, b in combinations(range(len(left)), 2) if left[a] != left[b]]
    balance = sum(int(np.sign((left[a] - left[b]) * (right[a] - right[b]))) for a, b in pairs)
    assert _tau([(left, right)]) == pytest.approx(balance / len(pairs) if pairs else 1.0)


def test_tau_and_overlap_at_their_ends() -> None:
    up = np.arange(40, dtype=np.float32)
    assert (_tau([(up, up)]), _tau([(up, -up)])) == (1.0, -1.0)
    assert _tau([(up, up), (up[:2], -up[:2])]) == pytest.approx((780 - 1) / 781)
    assert _tau([]) == 1.0
    twins = np.array([0.0, 1e-6, 1.0], np.float32)
    assert (_tau([(twins, twins[[1, 0, 2]])], 1e-5), _tau([(twins, twins[[1, 0, 2]])])) == (1.0, pytest.approx(1 / 3))
    assert (_overlap(up, up), _overlap(up, -up)) == (1.0, 0.0)
    assert _overlap(up, np.roll(up, 5)) == 0.5


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        ({"nan_count": 1}, "not finite"),
        ({"max_abs_diff": 1.1}, r"max \|dlogit\|"),
        ({"max_abs_diff": math.nan}, r"max \|dlogit\|"),
        ({"ndcg_built": 0.69}, "nDCG@10 drops by 0.1100"),
        ({"top_overlap": 0.49}, "top overlap"),
        ({"tau": 0.49}, "Kendall tau"),
        ({"tau": math.nan}, "Kendall tau"),
    ],
)
def test_each_gate_refuses_by_itself(change: dict[str, float], fault: str) -> None:
    GOOD.check(LOOSE, "the engine")
    with pytest.raises(BuildError, match=fault):
        replace(GOOD, **change).check(LOOSE, "the engine")


def test_all_faults_are_told_at_once() -> None:
    with pytest.raises(BuildError, match=r"top overlap.*Kendall tau"):
        replace(GOOD, top_overlap=0.0, tau=0.0).check(LOOSE, "the engine")


def test_a_gain_in_ndcg_or_none_at_all_is_no_fault() -> None:
    replace(GOOD, ndcg_built=0.99).check(LOOSE, "the engine")
    replace(GOOD, ndcg_fp32=None, ndcg_built=None).check(LOOSE, "the engine")


def test_the_gate_follows_the_precision() -> None:
    tolerances = Tolerances(int8=LOOSE)
    assert tolerances.of("int8") is LOOSE
    assert tolerances.of("fp32").max_abs_diff == 1e-3


@pytest.mark.parametrize(("precision", "bound"), [("int8", 0.02), ("fp16", 1e-3)])
def test_states_that_may_fall_to_either_step_have_a_wider_bound(precision: str, bound: float) -> None:
    states = StateSpec(1, 128, precision, "0" * 64)
    bounds = Tolerances(int8=LOOSE).for_states(states)
    assert (bounds.export, bounds.of("fp32").max_abs_diff, bounds.of("int8")) == (bound, bound, LOOSE)
    assert bounds.of("fp32").tau == Tolerances().of("fp32").tau
    assert Tolerances().for_states(None) == Tolerances()


class Echo:
    """An engine that gives known logits, by the first feature weight of the row."""

    backend = precision = "test"

    def __init__(self, logits: NDArray[np.float32]) -> None:
        self.by_key = logits

    def run(self, batch: Batch) -> NDArray[np.float32]:
        return self.by_key[batch.feature_ids[:, 0]]

    def close(self) -> None:
        return None


def test_measured_figures_are_those_of_the_sample(tmp_path: Path) -> None:
    export = read_export(make_export(tmp_path / "export"))
    sample = export.calibration
    rows = sample.batch.size
    keyed = replace(sample, batch=replace(sample.batch, feature_ids=np.arange(rows, dtype=np.int32)[:, None]))
    reference = fp32_logits(export, 1e-3)
    same = measure(Echo(reference), keyed, reference, grade_min=0.0)
    assert (same.max_abs_diff, same.ndcg_drop, same.top_overlap, same.tau, same.nan_count) == (0.0, 0.0, 1.0, 1.0, 0)
    upside_down = measure(Echo(-reference), keyed, reference, grade_min=0.0)
    assert upside_down.tau == -1.0
    assert upside_down.top_overlap < 0.2
    assert upside_down.ndcg_drop > 0.2
    assert upside_down.max_abs_diff == pytest.approx(2 * float(np.abs(reference).max()))
    spoilt = reference.copy()
    spoilt[5] = np.nan
    assert measure(Echo(spoilt), keyed, reference, grade_min=0.0).nan_count == 1


def test_rows_without_a_grade_are_left_out_of_ndcg(tmp_path: Path) -> None:
    export = read_export(make_export(tmp_path / "export"))
    reference = fp32_logits(export, 1e-3)
    ungraded = replace(export.calibration, grades=np.full_like(export.calibration.grades, np.nan))
    keyed = replace(ungraded, batch=replace(ungraded.batch, feature_ids=np.arange(ungraded.batch.size, dtype=np.int32)[:, None]))
    assert measure(Echo(reference), keyed, reference, grade_min=0.0).ndcg_fp32 is None


@pytest.mark.parametrize("rows", [1, 2, 3, 4, 5, 1000])
def test_probe_rows_are_at_most_four_and_reach_both_ends(rows: int) -> None:
    chosen = probe_rows(rows).tolist()
    assert len(chosen) == len(set(chosen)) == min(rows, 4)
    assert (chosen[0], chosen[-1]) == (0, rows - 1)


@settings(max_examples=30, deadline=None)
@given(lengths=st.lists(st.integers(1, 9), min_size=1, max_size=20), size=st.integers(1, 7))
def test_splitting_keeps_every_token_and_cuts_padding(lengths: list[int], size: int) -> None:
    mask = (np.arange(12)[None, :] < np.array(lengths)[:, None]).astype(np.int32)
    ids = mask * (1 + np.arange(len(lengths), dtype=np.int32))[:, None]
    none = np.zeros((len(lengths), 0))
    pieces = split(Batch(ids, mask, np.zeros_like(ids), none.astype(np.int32), none.astype(np.float32)), size)
    assert [row[row > 0].tolist() for piece in pieces for row in piece.input_ids] == [row[row > 0].tolist() for row in ids]
    for start, piece in zip(range(0, len(lengths), size), pieces, strict=True):
        assert piece.input_ids.shape[1] == max(lengths[start : start + size])


def test_a_gate_replaces_its_own_bounds_and_no_others() -> None:
    changed = Tolerances().with_gate({"ndcg_drop": 0.2, "top_overlap": 0.3, "nan_count": 3}, "here")
    for precision in ("fp32", "int8"):
        before, after = Tolerances().of(precision), changed.of(precision)
        assert (after.ndcg_drop, after.top_overlap, after.nan_count) == (0.2, 0.3, 3)
        assert (after.tau, after.max_abs_diff) == (before.tau, before.max_abs_diff)
    replace(GOOD, nan_count=3).check(replace(LOOSE, nan_count=3), "the engine")


@pytest.mark.parametrize(
    "gate",
    [{"recall": 0.5}, {"tau": "high"}, {"tau": 1.5}, {"top_overlap": 1.1}, {"ndcg_drop": -0.1}, {"ndcg_drop": math.nan}, {"tau": True}],
)
def test_a_gate_that_makes_no_sense_is_refused(gate: dict[str, float]) -> None:
    with pytest.raises(BuildError, match="expected ndcg_drop from 0 to 1"):
        Tolerances().with_gate(gate, "here")
