"""Ranking metrics, counterfactual estimators and bootstrap intervals. Plain numpy, one query (or one log) at a time.

Conventions, the same for every ranking metric here:

* A larger score is better. Equal scores keep candidate order, as in ``edgerec._core.topk``; NaN scores come last, also in candidate
  order. A caller whose candidate order says something about relevance shuffles it first (``edgerec.training.evaluate`` does).
* A metric that a query does not define (nothing relevant to find, or nothing irrelevant to tell it from) is NaN, never 0 or 1: such a
  query says nothing about the ranker. Average over queries with ``numpy.nanmean`` and report how many were left out.

Shape letters: N candidates of one query, Q queries, M events or pairs.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .errors import InputError

Floats = NDArray[np.float64]


def gain(grades: ArrayLike, grade_min: float) -> Floats:
    """nDCG gain of graded judgements, ``2 ** (grade - grade_min) - 1``.

    Parameters
    ----------
    grades : float [...], grades at or above ``grade_min``; averaged (fractional) grades are fine.
    grade_min : the grade that is worth nothing, ``dataset.json: grades.min``.

    Returns
    -------
    float64, the shape of ``grades``.

    Raises
    ------
    InputError : a grade below ``grade_min`` or not finite.

    Source: Burges et al., Learning to rank using gradient descent, ICML 2005.
    """
    values = np.asarray(grades, np.float64)
    if values.size and not bool(np.all(np.isfinite(values) & (values >= grade_min))):
        raise InputError(
            f"grades must be finite and at least {grade_min}; found {values[~(values >= grade_min) | ~np.isfinite(values)][0]}"
        )
    return np.asarray(np.exp2(values - grade_min) - 1.0, np.float64)


def rank_order(scores: ArrayLike) -> NDArray[np.intp]:
    """Candidate indices, best first: score descending, then candidate order; NaN last.

    Parameters
    ----------
    scores : float [N]

    Returns
    -------
    intp [N]
    """
    # Negated because numpy sorts ascending with NaN at the end; in float64, so that integer scores do not wrap.
    return np.argsort(-_vector("scores", scores), kind="stable")


def ndcg(gains: ArrayLike, scores: ArrayLike, k: int) -> float:
    """Normalised discounted cumulative gain of the top ``k``, in [0, 1].

    Parameters
    ----------
    gains : float [N], at least 0, already transformed (see :func:`gain`).
    scores : float [N], what the ranker sorts by.
    k : cut-off; the ideal ranking is cut at ``k`` too.

    Returns
    -------
    float; NaN if no gain is positive (the ideal is 0).

    Raises
    ------
    InputError : shapes differ, ``k < 1``, or a gain is negative or not finite.

    Source: Järvelin and Kekäläinen, Cumulated gain-based evaluation of IR techniques, TOIS 2002, with the ``log2(rank + 1)`` discount.
    """
    values, ranking = _pair("gains", gains, scores, k)
    if values.size and not bool(np.all(np.isfinite(values) & (values >= 0))):
        raise InputError("gains must be finite and at least 0; see edgerec.metrics.gain")
    discounts = 1.0 / np.log2(np.arange(2, min(k, len(values)) + 2))
    ideal = float(np.sort(values)[::-1][:k] @ discounts)
    return float(values[ranking[:k]] @ discounts) / ideal if ideal > 0 else float("nan")


def mrr(relevant: ArrayLike, scores: ArrayLike, k: int) -> float:
    """Reciprocal rank of the first relevant candidate among the top ``k``; 0 if it is further down.

    Parameters
    ----------
    relevant : bool [N]
    scores : float [N]
    k : cut-off.

    Returns
    -------
    float in [0, 1]; NaN if no candidate is relevant.

    Raises
    ------
    InputError : shapes differ or ``k < 1``.
    """
    flags, ranking = _pair("relevant", relevant, scores, k)
    hits = flags[ranking] > 0
    if not hits.any():
        return float("nan")
    first = int(np.argmax(hits))
    return 1.0 / (first + 1) if first < k else 0.0


def recall(relevant: ArrayLike, scores: ArrayLike, k: int) -> float:
    """Share of the relevant candidates that stand among the top ``k``.

    Parameters
    ----------
    relevant : bool [N]
    scores : float [N]
    k : cut-off.

    Returns
    -------
    float in [0, 1]; NaN if no candidate is relevant.

    Raises
    ------
    InputError : shapes differ or ``k < 1``.
    """
    flags, ranking = _pair("relevant", relevant, scores, k)
    hits = flags[ranking] > 0
    total = int(hits.sum())
    return int(hits[:k].sum()) / total if total else float("nan")


def auc(relevant: ArrayLike, scores: ArrayLike, *, weights: ArrayLike | None = None) -> float:
    """Area under the ROC curve: the chance that a relevant candidate scores above an irrelevant one; a tie counts one half.

    Parameters
    ----------
    relevant : bool [M]
    scores : float [M]; NaN counts as below every number and tied with other NaN.
    weights : float [M], at least 0, how often each row counts; ones if None.

    Returns
    -------
    float in [0, 1]; NaN if one of the two classes is empty.

    Raises
    ------
    InputError : shapes differ, or a weight is negative or not finite.

    Source: Mann and Whitney 1947 with average ranks (Hanley and McNeil 1982).
    """
    flags = _vector("relevant", relevant) > 0
    values = _vector("scores", scores)
    _same_length("relevant", flags, "scores", values)
    counts = np.ones(len(values)) if weights is None else _vector("weights", weights)
    _same_length("weights", counts, "scores", values)
    if counts.size and not bool(np.all(np.isfinite(counts) & (counts >= 0))):
        raise InputError("weights must be finite and at least 0")
    if not len(values):
        return float("nan")
    order, starts = _tie_groups(values)
    return _auc_of_groups(flags[order], starts, counts[order])


def kendall_tau(a: ArrayLike, b: ArrayLike) -> float:
    """Kendall's rank correlation of two scorings of the same candidates, tau-b (corrected for ties).

    Parameters
    ----------
    a, b : float [N], without NaN.

    Returns
    -------
    float in [-1, 1]; NaN if either is constant or N < 2. O(N^2) time, O(N) memory.

    Raises
    ------
    InputError : shapes differ or a value is NaN.

    Source: Kendall, The treatment of ties in ranking problems, Biometrika 1945.
    """
    left, right = _vector("a", a), _vector("b", b)
    _same_length("a", left, "b", right)
    if np.isnan(left).any() or np.isnan(right).any():
        raise InputError("kendall_tau: NaN has no rank; drop those candidates from both scorings first")
    agreement = pairs_left = pairs_right = 0
    for i in range(len(left) - 1):
        # Compared, not subtracted: the difference of two infinities would be NaN.
        sign_left = (left[i] > left[i + 1 :]).astype(np.int64) - (left[i] < left[i + 1 :])
        sign_right = (right[i] > right[i + 1 :]).astype(np.int64) - (right[i] < right[i + 1 :])
        agreement += int(sign_left @ sign_right)
        pairs_left += int(np.count_nonzero(sign_left))
        pairs_right += int(np.count_nonzero(sign_right))
    if not pairs_left or not pairs_right:
        return float("nan")
    return agreement / math.sqrt(pairs_left * pairs_right)


def ips(rewards: ArrayLike, propensities: ArrayLike, *, target: ArrayLike | None = None, clip: float | None = None) -> float:
    """Inverse propensity estimate of a policy's mean reward from another policy's log.

    ``mean(w * reward)`` with ``w = min(target / propensity, clip)``. Unbiased without clipping; clipping trades bias for variance.

    Parameters
    ----------
    rewards : float [M], what was observed, e.g. 1 for a click.
    propensities : float [M] in (0, 1], chance that the logging policy showed (or the user examined) this event.
    target : float [M] in [0, 1], chance that the evaluated policy does the same; ones if None (it always would).
    clip : largest weight, or None.

    Returns
    -------
    float; NaN if M is 0.

    Raises
    ------
    InputError : shapes differ, a propensity outside (0, 1], a target outside [0, 1], or ``clip <= 0``.

    Source: Horvitz and Thompson 1952; Joachims, Swaminathan and Schnabel, Unbiased learning-to-rank with biased feedback, WSDM 2017.
    """
    values, weights = _importance(rewards, propensities, target, clip)
    return float(np.mean(weights * values)) if len(values) else float("nan")


def snips(rewards: ArrayLike, propensities: ArrayLike, *, target: ArrayLike | None = None, clip: float | None = None) -> float:
    """Self-normalised inverse propensity estimate, ``sum(w * reward) / sum(w)``; arguments as in :func:`ips`.

    Less variance than :func:`ips` for a small bias, and always within the range of the rewards.

    Returns
    -------
    float; NaN if the weights sum to 0.

    Raises
    ------
    InputError : as :func:`ips`.

    Source: Swaminathan and Joachims, The self-normalized estimator for counterfactual learning, NeurIPS 2015.
    """
    values, weights = _importance(rewards, propensities, target, clip)
    largest = float(weights.max(initial=0.0))
    if largest <= 0:
        return float("nan")
    shares = weights / largest  # denormal weights would lose their digits in the products
    return float(shares @ values) / float(shares.sum())


def bootstrap_interval(values: ArrayLike, *, seed: int, samples: int = 2000, level: float = 0.95) -> tuple[float, float]:
    """Percentile bootstrap interval of the mean of per-query values.

    Queries are resampled, never pairs: the candidates of one query are not independent.

    Parameters
    ----------
    values : float [Q], one metric value per query; NaN (undefined for that query) is left out.
    seed : of the resampling; same seed, same interval.
    samples : number of resamples.
    level : coverage in (0, 1).

    Returns
    -------
    (low, high); NaN if no value is defined.

    Raises
    ------
    InputError : ``samples < 1`` or ``level`` outside (0, 1).

    Source: Efron and Tibshirani, An introduction to the bootstrap, 1993, chapter 13.
    """
    _check_bootstrap(samples, level)
    column = _vector("values", values)
    column = column[~np.isnan(column)]
    if not len(column):
        return float("nan"), float("nan")
    rng = np.random.default_rng(seed)
    means = np.empty(samples)
    for i in range(samples):  # one row at a time: samples x Q indices at once would be 160 MB for 10,000 queries
        means[i] = column[rng.integers(0, len(column), len(column))].mean()
    return _percentiles(means, level)


def auc_interval(
    relevant: ArrayLike, scores: ArrayLike, query_index: ArrayLike, *, seed: int, samples: int = 2000, level: float = 0.95
) -> tuple[float, float]:
    """Percentile bootstrap interval of the AUC pooled over pairs, resampling whole queries.

    Parameters
    ----------
    relevant, scores : as in :func:`auc`, all pairs of all queries, [M].
    query_index : int [M], the query of each pair.
    seed, samples, level : as in :func:`bootstrap_interval`.

    Returns
    -------
    (low, high); NaN if the pooled AUC is undefined. Resamples that lack a class are left out.

    Raises
    ------
    InputError : shapes differ, ``samples < 1`` or ``level`` outside (0, 1).
    """
    _check_bootstrap(samples, level)
    flags, values = _vector("relevant", relevant) > 0, _vector("scores", scores)
    clusters = np.asarray(query_index)
    _same_length("relevant", flags, "scores", values)
    _same_length("query_index", clusters, "scores", values)
    if not flags.any() or flags.all():
        return float("nan"), float("nan")
    order, starts = _tie_groups(values)
    flags = flags[order]
    names, of_pair = np.unique(clusters[order], return_inverse=True)
    rng = np.random.default_rng(seed)
    areas = np.empty(samples)
    for i in range(samples):
        drawn = np.bincount(rng.integers(0, len(names), len(names)), minlength=len(names))
        areas[i] = _auc_of_groups(flags, starts, drawn[of_pair].astype(np.float64))
    areas = areas[~np.isnan(areas)]
    return _percentiles(areas, level) if len(areas) else (float("nan"), float("nan"))


def _tie_groups(scores: Floats) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """Ascending order with NaN first, and where each run of equal scores starts in it."""
    order = np.argsort(-scores, kind="stable")[::-1]
    ordered = scores[order]
    same = (ordered[1:] == ordered[:-1]) | (np.isnan(ordered[1:]) & np.isnan(ordered[:-1]))
    return order, np.concatenate([[0], np.flatnonzero(~same) + 1]).astype(np.intp)


def _auc_of_groups(relevant: NDArray[np.bool_], starts: NDArray[np.intp], weights: Floats) -> float:
    """AUC of weighted rows sorted by ascending score."""
    wins = np.add.reduceat(np.where(relevant, weights, 0.0), starts)
    losses = np.add.reduceat(np.where(relevant, 0.0, weights), starts)
    pairs = float(wins.sum() * losses.sum())
    return float(wins @ (np.cumsum(losses) - 0.5 * losses)) / pairs if pairs > 0 else float("nan")


def _importance(rewards: ArrayLike, propensities: ArrayLike, target: ArrayLike | None, clip: float | None) -> tuple[Floats, Floats]:
    values, chances = _vector("rewards", rewards), _vector("propensities", propensities)
    _same_length("rewards", values, "propensities", chances)
    wanted = np.ones(len(values)) if target is None else _vector("target", target)
    _same_length("target", wanted, "rewards", values)
    if not bool(np.all((chances > 0) & (chances <= 1))):
        raise InputError("propensities must be in (0, 1]: an event that could not happen cannot be in the log")
    if not bool(np.all((wanted >= 0) & (wanted <= 1))):
        raise InputError("target must be in [0, 1]: the evaluated policy's chance of the logged action")
    if clip is not None and not clip > 0:
        raise InputError(f"clip must be above 0 or None; got {clip}")
    weights = wanted / chances
    return values, weights if clip is None else np.minimum(weights, clip)


def _pair(name: str, values: ArrayLike, scores: ArrayLike, k: int) -> tuple[Floats, NDArray[np.intp]]:
    if k < 1:
        raise InputError(f"k must be at least 1; got {k}")
    column, ranking = _vector(name, values), rank_order(scores)
    _same_length(name, column, "scores", ranking)
    return column, ranking


def _vector(name: str, values: ArrayLike) -> Floats:
    column = np.asarray(values, np.float64)
    if column.ndim != 1:
        raise InputError(f"{name} must have one dimension; got shape {column.shape}")
    return column


def _same_length(name: str, values: NDArray[np.generic], other: str, others: NDArray[np.generic]) -> None:
    if len(values) != len(others):
        raise InputError(f"{name} has {len(values)} entries and {other} has {len(others)}; they must be the same candidates")


def _check_bootstrap(samples: int, level: float) -> None:
    if samples < 1 or not 0 < level < 1:
        raise InputError(f"samples must be at least 1 and level in (0, 1); got samples={samples}, level={level}")


def _percentiles(estimates: Floats, level: float) -> tuple[float, float]:
    low, high = np.quantile(estimates, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)
