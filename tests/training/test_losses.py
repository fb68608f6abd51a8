"""Losses against slow, obvious oracles."""

from __future__ import annotations

import math

import numpy as np
import torch
from edgerec.training import losses
from hypothesis import given, settings
from hypothesis import strategies as st

ROWS = st.lists(
    st.tuples(st.integers(0, 4), st.floats(-4, 4, width=32), st.floats(-4, 4, width=32), st.floats(0, 1, width=32)), min_size=1, max_size=24
)


def tensors(rows: list[tuple[int, float, float, float]]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    groups, a, b, labels = zip(*rows, strict=True)
    return (
        torch.tensor(groups),
        torch.tensor(a, dtype=torch.float64),
        torch.tensor(b, dtype=torch.float64),
        torch.tensor(labels, dtype=torch.float64),
    )


def softmax(values: np.ndarray) -> np.ndarray:
    e = np.exp(values - values.max())
    return np.asarray(e / e.sum())


@settings(max_examples=60, deadline=None)
@given(ROWS)
def test_graded_bce_has_both_terms(rows: list[tuple[int, float, float, float]]) -> None:
    _, x, _, y = tensors(rows)
    p = 1 / (1 + np.exp(-x.numpy()))
    expected = np.mean([-(t * math.log(q) + (1 - t) * math.log(1 - q)) for t, q in zip(y.tolist(), p.tolist(), strict=True)])
    assert abs(losses.graded_bce(x, y).item() - expected) < 1e-9


def test_rows_nobody_judged_do_not_count_in_label_losses() -> None:
    x, nan = torch.tensor([0.3, 5.0]), float("nan")
    assert losses.graded_bce(x, torch.tensor([1.0, nan])) == losses.graded_bce(x[:1], torch.tensor([1.0]))
    assert losses.graded_bce(x, torch.tensor([nan, nan])) == 0
    groups = torch.tensor([0, 0, 0])
    with_unjudged = losses.listwise_softmax(torch.tensor([1.0, 2.0, 9.0]), torch.tensor([1.0, 0.0, nan]), groups)
    without = losses.listwise_softmax(torch.tensor([1.0, 2.0]), torch.tensor([1.0, 0.0]), groups[:2])
    assert torch.allclose(with_unjudged, without)


@settings(max_examples=60, deadline=None)
@given(ROWS, st.booleans())
def test_pairwise_logistic_is_the_mean_over_pairs_of_different_grade(rows: list[tuple[int, float, float, float]], by_margin: bool) -> None:
    groups, x, _, y = tensors(rows)
    total = weights = 0.0
    for i in range(len(rows)):
        for j in range(len(rows)):
            if groups[i] == groups[j] and y[i] > y[j]:
                weight = float(y[i] - y[j]) if by_margin else 1.0
                total += weight * math.log1p(math.exp(float(x[j] - x[i])))
                weights += weight
    expected = total / weights if weights else 0.0
    assert abs(losses.pairwise_logistic(x, y, groups, by_margin=by_margin).item() - expected) < 1e-9


def test_pairwise_logistic_leaves_out_rows_nobody_judged() -> None:
    x, groups = torch.tensor([0.0, 1.0, 5.0]), torch.tensor([0, 0, 0])
    with_unjudged = losses.pairwise_logistic(x, torch.tensor([1.0, 0.0, float("nan")]), groups)
    assert torch.allclose(with_unjudged, losses.pairwise_logistic(x[:2], torch.tensor([1.0, 0.0]), groups[:2]))


@settings(max_examples=60, deadline=None)
@given(ROWS)
def test_r_drop_is_the_mean_of_both_divergences(rows: list[tuple[int, float, float, float]]) -> None:
    _, x, y, _ = tensors(rows)
    p, q = 1 / (1 + np.exp(-x.numpy())), 1 / (1 + np.exp(-y.numpy()))

    def divergence(a: np.ndarray, b: np.ndarray) -> np.ndarray:
        return np.asarray(a * np.log(a / b) + (1 - a) * np.log((1 - a) / (1 - b)))

    expected = float((divergence(p, q) + divergence(q, p)).mean() / 2)
    assert abs(losses.r_drop(x.unsqueeze(1), y.unsqueeze(1)).item() - expected) < 1e-5
    two = [torch.stack([torch.zeros_like(v), v], 1) for v in (x, y)]  # a yes among two classes is a logit
    assert abs(losses.r_drop(*two).item() - expected) < 1e-5


@settings(max_examples=60, deadline=None)
@given(ROWS)
def test_margin_mse_is_the_mean_over_all_ordered_pairs_of_each_query(rows: list[tuple[int, float, float, float]]) -> None:
    groups, student, teacher, _ = tensors(rows)
    per_query = []
    for g in set(groups.tolist()):
        s, t = student[groups == g].numpy(), teacher[groups == g].numpy()
        n = len(s)
        if n > 1:
            per_query.append(np.mean([((s[i] - s[j]) - (t[i] - t[j])) ** 2 for i in range(n) for j in range(n) if i != j]))
    expected = float(np.mean(per_query)) if per_query else 0.0
    assert abs(losses.margin_mse(student, teacher, groups).item() - expected) < 1e-9


@settings(max_examples=60, deadline=None)
@given(ROWS, st.floats(0.5, 3))
def test_listwise_kl_is_the_divergence_of_each_query(rows: list[tuple[int, float, float, float]], temperature: float) -> None:
    groups, student, teacher, _ = tensors(rows)
    per_query = []
    for g in set(groups.tolist()):
        s, t = student[groups == g].numpy() / temperature, teacher[groups == g].numpy() / temperature
        if len(s) > 1:
            p, q = softmax(t), softmax(s)
            per_query.append(float((p * (np.log(p) - np.log(q))).sum()) * temperature**2)
    expected = float(np.mean(per_query)) if per_query else 0.0
    assert abs(losses.listwise_kl(student, teacher, groups, temperature).item() - expected) < 1e-9


@settings(max_examples=60, deadline=None)
@given(ROWS)
def test_listwise_softmax_is_the_cross_entropy_of_each_query(rows: list[tuple[int, float, float, float]]) -> None:
    groups, x, _, y = tensors(rows)
    per_query = []
    for g in set(groups.tolist()):
        s, t = x[groups == g].numpy(), y[groups == g].numpy()
        if len(s) > 1 and t.sum() > 0:
            per_query.append(float(-(t / max(t.sum(), 1e-9) * np.log(softmax(s))).sum()))
    expected = float(np.mean(per_query)) if per_query else 0.0
    assert abs(losses.listwise_softmax(x, y, groups).item() - expected) < 1e-6


def test_k_classes_split_an_averaged_grade_and_score_by_expected_gain() -> None:
    logits = torch.tensor([[0.0, 1.0, 2.0], [3.0, 0.0, 0.0]])
    log_p = torch.log_softmax(logits, 1)
    expected = -(0.5 * log_p[0, 1] + 0.5 * log_p[0, 2] + log_p[1, 0]) / 2
    assert torch.allclose(losses.graded_cross_entropy(logits, torch.tensor([0.75, 0.0])), expected)
    p = torch.softmax(logits, 1)
    assert torch.allclose(losses.expected_gain(logits), p[:, 1] / 3 + p[:, 2])


def test_row_order_does_not_matter() -> None:
    groups = torch.tensor([2, 0, 2, 0, 1])
    s, t, y = torch.randn(5), torch.randn(5), torch.rand(5)
    order = torch.tensor([4, 2, 0, 1, 3])
    for loss in (losses.margin_mse, losses.listwise_kl):
        assert torch.allclose(loss(s, t, groups), loss(s[order], t[order], groups[order]))
    assert torch.allclose(losses.listwise_softmax(s, y, groups), losses.listwise_softmax(s[order], y[order], groups[order]))
