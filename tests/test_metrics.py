"""edgerec.metrics against scikit-learn, scipy and slow, obvious oracles."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy.stats import kendalltau
from sklearn.metrics import ndcg_score, roc_auc_score

from edgerec import metrics
from edgerec.errors import InputError

few = settings(max_examples=60, deadline=None)
sizes = st.integers(1, 30)
# Small integers make ties likely; NaN and infinities must have a place too.
tied_scores = st.one_of(st.integers(-3, 3).map(float), st.sampled_from([math.nan, math.inf, -math.inf]))


@st.composite
def judged(draw: st.DrawFn, scores: st.SearchStrategy[float] = tied_scores) -> tuple[list[float], list[float]]:
    n = draw(sizes)
    grades = draw(st.lists(st.integers(0, 3).map(float), min_size=n, max_size=n))
    return grades, draw(st.lists(scores, min_size=n, max_size=n))


@st.composite
def distinct(draw: st.DrawFn) -> tuple[list[float], list[float]]:
    n = draw(st.integers(2, 30))
    grades = draw(st.lists(st.integers(0, 3).map(float), min_size=n, max_size=n))
    return grades, draw(st.permutations([i * 0.5 for i in range(n)]))


def slow_order(scores: list[float]) -> list[int]:
    return sorted(range(len(scores)), key=lambda i: (math.isnan(scores[i]), 0.0 if math.isnan(scores[i]) else -scores[i], i))


def slow_auc(relevant: list[bool], scores: list[float]) -> float:
    keys = [-math.inf if math.isnan(s) else s for s in scores]
    lowest = [math.isnan(s) for s in scores]
    total = pairs = 0.0
    for i, j in itertools.product(range(len(scores)), repeat=2):
        if relevant[i] and not relevant[j]:
            pairs += 1
            left, right = (not lowest[i], keys[i]), (not lowest[j], keys[j])
            total += 1.0 if left > right else 0.5 if left == right else 0.0
    return total / pairs if pairs else math.nan


def test_gain_is_zero_at_the_lowest_grade_and_doubles_from_there() -> None:
    np.testing.assert_array_equal(metrics.gain([1, 2, 3, 4], 1), [0, 1, 3, 7])
    assert metrics.gain(2.5, 1.0) == pytest.approx(2**1.5 - 1)


@pytest.mark.parametrize("grade", [0.5, math.nan, math.inf])
def test_gain_refuses_a_grade_outside_the_range(grade: float) -> None:
    with pytest.raises(InputError, match="at least 1"):
        metrics.gain([1.0, grade], 1.0)


@few
@given(judged())
def test_order_is_by_score_then_candidate_order_with_nan_last(case: tuple[list[float], list[float]]) -> None:
    assert metrics.rank_order(case[1]).tolist() == slow_order(case[1])


def test_integer_scores_do_not_wrap() -> None:
    assert metrics.rank_order(np.array([0, 200, 100], np.uint8)).tolist() == [1, 2, 0]


@few
@given(distinct(), st.integers(1, 12))
def test_ndcg_equals_scikit_learn_without_ties(case: tuple[list[float], list[float]], k: int) -> None:
    gains = metrics.gain(case[0], 0.0)
    ours = metrics.ndcg(gains, case[1], k)
    if gains.any():
        assert ours == pytest.approx(ndcg_score([gains], [case[1]], k=k))
    else:
        assert math.isnan(ours)


@few
@given(judged(), st.integers(1, 40))
def test_ndcg_equals_the_definition_with_ties_and_nan(case: tuple[list[float], list[float]], k: int) -> None:
    gains = [2**g - 1 for g in case[0]]
    ideal = sum(g / math.log2(r + 2) for r, g in enumerate(sorted(gains, reverse=True)[:k]))
    found = sum(gains[i] / math.log2(r + 2) for r, i in enumerate(slow_order(case[1])[:k]))
    ours = metrics.ndcg(gains, case[1], k)
    assert ours == pytest.approx(found / ideal) if ideal else math.isnan(ours)


@few
@given(judged(), st.integers(1, 12))
def test_ndcg_is_one_for_the_perfect_order_and_never_more(case: tuple[list[float], list[float]], k: int) -> None:
    gains = metrics.gain(case[0], 0.0)
    if gains.any():
        assert metrics.ndcg(gains, gains, k) == pytest.approx(1.0)
        assert 0.0 <= metrics.ndcg(gains, case[1], k) <= 1.0 + 1e-12


def test_a_candidate_with_a_nan_score_ranks_below_minus_infinity() -> None:
    assert metrics.mrr([True, False], [math.nan, -math.inf], 10) == 0.5


@few
@given(judged(), st.integers(1, 40))
def test_mrr_and_recall_equal_the_definition(case: tuple[list[float], list[float]], k: int) -> None:
    relevant = [g >= 2 for g in case[0]]
    ranks = [r for r, i in enumerate(slow_order(case[1]), start=1) if relevant[i]]
    if not ranks:
        assert math.isnan(metrics.mrr(relevant, case[1], k))
        assert math.isnan(metrics.recall(relevant, case[1], k))
    else:
        assert metrics.mrr(relevant, case[1], k) == (1 / ranks[0] if ranks[0] <= k else 0.0)
        assert metrics.recall(relevant, case[1], k) == sum(r <= k for r in ranks) / len(ranks)


@few
@given(distinct())
def test_auc_equals_scikit_learn_without_ties(case: tuple[list[float], list[float]]) -> None:
    relevant = [g >= 2 for g in case[0]]
    if 0 < sum(relevant) < len(relevant):
        assert metrics.auc(relevant, case[1]) == pytest.approx(roc_auc_score(relevant, case[1]))


@few
@given(judged())
def test_auc_counts_every_pair_and_half_a_tie(case: tuple[list[float], list[float]]) -> None:
    relevant = [g >= 2 for g in case[0]]
    assert metrics.auc(relevant, case[1]) == pytest.approx(slow_auc(relevant, case[1]), nan_ok=True)


@few
@given(judged(), st.data())
def test_auc_weights_are_repetitions(case: tuple[list[float], list[float]], data: st.DataObject) -> None:
    relevant = np.array(case[0]) >= 2
    times = np.array(data.draw(st.lists(st.integers(0, 3), min_size=len(relevant), max_size=len(relevant))))
    repeated = metrics.auc(np.repeat(relevant, times), np.repeat(case[1], times))
    assert metrics.auc(relevant, case[1], weights=times) == pytest.approx(repeated, nan_ok=True)


@few
@given(judged())
def test_auc_of_the_negated_scores_is_the_complement(case: tuple[list[float], list[float]]) -> None:
    scores = np.nan_to_num(np.array(case[1]), nan=0.0)
    relevant = np.array(case[0]) >= 2
    assert metrics.auc(relevant, -scores) == pytest.approx(1 - metrics.auc(relevant, scores), nan_ok=True)


@few
@given(hnp.arrays(np.float64, st.tuples(st.just(2), st.integers(2, 25)), elements=st.integers(-3, 3).map(float)))
def test_kendall_tau_equals_scipy(pair: np.ndarray) -> None:
    ours = metrics.kendall_tau(pair[0], pair[1])
    if len(set(pair[0])) < 2 or len(set(pair[1])) < 2:
        assert math.isnan(ours)
    else:
        assert ours == pytest.approx(kendalltau(pair[0], pair[1]).statistic, abs=1e-12)


def test_kendall_tau_takes_infinities_and_refuses_nan() -> None:
    assert metrics.kendall_tau([math.inf, 1.0, -math.inf], [3, 2, 1]) == 1.0
    with pytest.raises(InputError, match="NaN"):
        metrics.kendall_tau([math.nan, 1.0], [1.0, 2.0])


def test_ips_recovers_the_value_of_another_policy() -> None:
    # Two actions with rewards 1 and 3; the log shows the second one time in five, the new policy nine times in ten.
    rng = np.random.default_rng(0)
    second = rng.random(200_000) < 0.2
    rewards, logged, wanted = np.where(second, 3.0, 1.0), np.where(second, 0.2, 0.8), np.where(second, 0.9, 0.1)
    truth = 0.9 * 3 + 0.1 * 1
    assert metrics.ips(rewards, logged, target=wanted) == pytest.approx(truth, rel=0.02)
    assert metrics.snips(rewards, logged, target=wanted) == pytest.approx(truth, rel=0.02)
    assert np.mean(rewards) < 1.5


def test_ips_and_snips_by_hand() -> None:
    rewards, chances = [1.0, 0.0, 1.0], [0.5, 1.0, 0.1]
    assert metrics.ips(rewards, chances) == pytest.approx((2 + 0 + 10) / 3)
    assert metrics.snips(rewards, chances) == pytest.approx(12 / 13)
    assert metrics.ips(rewards, chances, clip=4.0) == pytest.approx((2 + 0 + 4) / 3)
    assert metrics.snips(rewards, chances, clip=4.0) == pytest.approx(6 / 7)
    assert math.isnan(metrics.ips([], []))
    assert math.isnan(metrics.snips([1.0], [0.5], target=[0.0]))


@few
@given(
    st.lists(st.tuples(st.floats(-5, 5), st.floats(0.01, 1), st.floats(0, 1)), min_size=1, max_size=20),
    st.one_of(st.none(), st.floats(0.1, 20)),
)
def test_snips_stays_within_the_rewards(rows: list[tuple[float, float, float]], clip: float | None) -> None:
    rewards, chances, wanted = zip(*rows, strict=True)
    estimate = metrics.snips(rewards, chances, target=wanted, clip=clip)
    assert math.isnan(estimate) or min(rewards) - 1e-9 <= estimate <= max(rewards) + 1e-9


@pytest.mark.parametrize(
    ("chances", "target", "clip"),
    [([0.0], None, None), ([1.5], None, None), ([math.nan], None, None), ([0.5], [2.0], None), ([0.5], None, 0.0)],
)
def test_ips_refuses_impossible_chances(chances: list[float], target: list[float] | None, clip: float | None) -> None:
    with pytest.raises(InputError):
        metrics.ips([1.0], chances, target=target, clip=clip)


def test_bootstrap_interval_is_reproducible_and_ignores_undefined_queries() -> None:
    values = np.random.default_rng(1).random(50)
    first = metrics.bootstrap_interval(values, seed=3)
    assert first == metrics.bootstrap_interval(values, seed=3)
    assert first != metrics.bootstrap_interval(values, seed=4)
    assert first == metrics.bootstrap_interval(np.concatenate([values, [math.nan]]), seed=3)
    assert first[0] < values.mean() < first[1]


def test_bootstrap_interval_matches_the_normal_one_on_many_queries() -> None:
    values = np.random.default_rng(2).normal(5.0, 2.0, 400)
    low, high = metrics.bootstrap_interval(values, seed=0)
    half = 1.96 * values.std() / math.sqrt(len(values))
    assert low == pytest.approx(values.mean() - half, abs=0.15 * half)
    assert high == pytest.approx(values.mean() + half, abs=0.15 * half)


def test_bootstrap_interval_of_one_value_is_that_value_and_of_none_is_nan() -> None:
    assert metrics.bootstrap_interval([0.25], seed=0, samples=10) == (0.25, 0.25)
    assert all(math.isnan(x) for x in metrics.bootstrap_interval([math.nan], seed=0))


def test_auc_interval_contains_the_estimate_and_resamples_whole_queries() -> None:
    rng = np.random.default_rng(5)
    queries = np.repeat(np.arange(40), 25)
    relevant = rng.random(1000) < 0.4
    scores = rng.normal(size=1000) + relevant
    low, high = metrics.auc_interval(relevant, scores, queries, seed=0, samples=300)
    assert low < metrics.auc(relevant, scores) < high
    assert (low, high) == metrics.auc_interval(relevant, scores, queries, seed=0, samples=300)
    # One query holding all the pairs: nothing varies between resamples.
    alone = metrics.auc_interval(relevant, scores, np.zeros(1000, int), seed=0, samples=20)
    assert alone == pytest.approx((metrics.auc(relevant, scores),) * 2)


def test_auc_interval_equals_resampling_by_hand() -> None:
    relevant, scores, queries = [1, 0, 1, 0, 1, 0], [0.9, 0.1, 0.2, 0.8, 0.5, 0.5], ["a", "a", "b", "b", "c", "c"]
    rng = np.random.default_rng(7)
    areas = []
    for _ in range(50):
        rows = [r for name in rng.integers(0, 3, 3) for r in (2 * name, 2 * name + 1)]
        areas.append(slow_auc([bool(relevant[r]) for r in rows], [scores[r] for r in rows]))
    expected = np.quantile(areas, [0.025, 0.975])
    assert metrics.auc_interval(relevant, scores, queries, seed=7, samples=50) == pytest.approx(tuple(expected))


def test_undefined_auc_has_no_interval() -> None:
    assert all(math.isnan(x) for x in metrics.auc_interval([1, 1], [0.1, 0.2], [0, 1], seed=0))


@pytest.mark.parametrize("k", [0, -1])
def test_a_cut_off_below_one_is_refused(k: int) -> None:
    for metric in (metrics.ndcg, metrics.mrr, metrics.recall):
        with pytest.raises(InputError, match="k must be"):
            metric([1.0], [1.0], k)


def test_shapes_that_do_not_fit_are_refused() -> None:
    with pytest.raises(InputError, match="2 entries"):
        metrics.ndcg([1.0, 0.0], [1.0], 10)
    with pytest.raises(InputError, match="one dimension"):
        metrics.auc([[1, 0]], [[1.0, 2.0]])
    with pytest.raises(InputError, match="at least 0"):
        metrics.ndcg([-1.0], [1.0], 10)
    with pytest.raises(InputError, match="weights"):
        metrics.auc([1, 0], [1.0, 2.0], weights=[1, -1])
    for bad in ({"samples": 0}, {"level": 1.0}):
        with pytest.raises(InputError, match="samples"):
            metrics.bootstrap_interval([1.0], seed=0, **bad)


def test_no_candidates_is_undefined_not_an_error() -> None:
    assert all(math.isnan(m([], [], 10)) for m in (metrics.ndcg, metrics.mrr, metrics.recall))
    assert math.isnan(metrics.auc([], []))
