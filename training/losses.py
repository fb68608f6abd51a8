"""Losses. Scores of several queries are one flat vector [P]; ``groups`` int64 [P] says which query a row belongs to.

Shape letters: P pairs in the batch, G queries in the batch, K classes.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


def graded_bce(logits: Tensor, labels: Tensor) -> Tensor:
    """Binary cross-entropy against graded labels in [0, 1], both terms. Rows with NaN labels are left out; 0 if none is left."""
    known = ~torch.isnan(labels)
    if not bool(known.any()):
        return logits.sum() * 0.0
    return F.binary_cross_entropy_with_logits(logits[known], labels[known])


def graded_cross_entropy(class_logits: Tensor, labels: Tensor) -> Tensor:
    """K-class cross-entropy [P, K]; a label between two classes is split over them linearly (averaged grades)."""
    known = ~torch.isnan(labels)
    if not bool(known.any()):
        return class_logits.sum() * 0.0
    k = class_logits.shape[1]
    position = labels[known] * (k - 1)
    low = position.floor().clamp(0, k - 2).long()
    high_share = (position - low).unsqueeze(1)
    target = torch.zeros(len(position), k, dtype=class_logits.dtype, device=class_logits.device)
    target.scatter_(1, low.unsqueeze(1), 1 - high_share).scatter_(1, low.unsqueeze(1) + 1, high_share)
    return -(target * F.log_softmax(class_logits[known], dim=1)).sum(1).mean()


def expected_gain(class_logits: Tensor) -> Tensor:
    """Score of the K-class head: the expectation of the gain ``2^k - 1``, scaled to [0, 1]. [P, K] -> [P]."""
    k = class_logits.shape[1]
    gains = torch.pow(2.0, torch.arange(k, dtype=torch.float32, device=class_logits.device)) - 1
    return (F.softmax(class_logits.float(), dim=1) * (gains / gains[-1])).sum(1)


def listwise_softmax(scores: Tensor, labels: Tensor, groups: Tensor, temperature: float = 1.0) -> Tensor:
    """ListNet's top-one cross-entropy, targets proportional to the label; groups without a positive label do not count.

    Source: Cao et al., Learning to Rank: From Pairwise Approach to Listwise Approach, ICML 2007.
    """
    padded, mask = _by_group(scores / temperature, groups)
    targets, known = _by_group(torch.nan_to_num(labels), groups)
    known &= ~_by_group(torch.isnan(labels), groups)[0].bool()
    targets = targets * known
    total = targets.sum(1)
    usable = (total > 0) & (known.sum(1) > 1)
    if not bool(usable.any()):
        return scores.sum() * 0.0
    log_p = F.log_softmax(padded.masked_fill(~(mask & known), -1e4), dim=1)
    return -((targets / total.clamp(min=1e-9).unsqueeze(1)) * log_p).sum(1)[usable].mean()


def pairwise_logistic(scores: Tensor, labels: Tensor, groups: Tensor, *, by_margin: bool = False) -> Tensor:
    """Mean over all pairs of one query with ``labels[i] > labels[j]`` of ``log(1 + exp(scores[j] - scores[i]))``; 0 if there is none.

    ``by_margin`` weighs a pair by ``labels[i] - labels[j]``. Rows with NaN labels make no pairs.

    Source: Burges et al., Learning to rank using gradient descent, ICML 2005 (RankNet).
    """
    difference = labels.unsqueeze(1) - labels.unsqueeze(0)  # NaN compares false
    better, worse = torch.nonzero((difference > 0) & (groups.unsqueeze(1) == groups.unsqueeze(0)), as_tuple=True)
    if not len(better):
        return scores.sum() * 0.0
    loss = F.softplus(scores[worse] - scores[better])
    weights = difference[better, worse].to(loss.dtype) if by_margin else torch.ones_like(loss)
    return (loss * weights).sum() / weights.sum()


def r_drop(outputs: Tensor, again: Tensor) -> Tensor:
    """Symmetric divergence of two answers to the same rows, [P, 1] logits of a yes or [P, K] of classes.

    Source: Wu et al., R-Drop, arXiv 2106.14448. The mean of KL(p || q) and KL(q || p) is ``sum((p - q) (log p - log q)) / 2``, for one
    logit ``(p - q) (x - y) / 2``.
    """
    x, y = outputs.float(), again.float()
    if outputs.shape[1] == 1:
        return ((x.sigmoid() - y.sigmoid()) * (x - y)).mean() / 2
    return ((x.softmax(1) - y.softmax(1)) * (x.log_softmax(1) - y.log_softmax(1))).sum(1).mean() / 2


def margin_mse(student: Tensor, teacher: Tensor, groups: Tensor) -> Tensor:
    """Mean squared error of the score margins of all item pairs within each query.

    Source: Hofstätter et al., arXiv 2010.02666. Over all pairs this equals twice the within-query variance of the error, which is
    how it is computed: linear in the number of items.
    """
    error, mask = _by_group(student - teacher, groups)
    count = mask.sum(1)
    usable = count > 1
    if not bool(usable.any()):
        return student.sum() * 0.0
    mean = (error * mask).sum(1) / count
    variance = (((error - mean.unsqueeze(1)) * mask) ** 2).sum(1) / (count - 1).clamp(min=1)
    return 2 * variance[usable].mean()


def listwise_kl(student: Tensor, teacher: Tensor, groups: Tensor, temperature: float = 1.0) -> Tensor:
    """KL(teacher || student) of the softmax over each query's items, times temperature squared (Hinton et al., arXiv 1503.02531)."""
    s, mask = _by_group(student / temperature, groups)
    t, _ = _by_group(teacher / temperature, groups)
    usable = mask.sum(1) > 1
    if not bool(usable.any()):
        return student.sum() * 0.0
    log_s = F.log_softmax(s.masked_fill(~mask, -1e4), dim=1)
    log_t = F.log_softmax(t.masked_fill(~mask, -1e4), dim=1)
    divergence = (log_t.exp() * (log_t - log_s)).masked_fill(~mask, 0).sum(1)
    return divergence[usable].mean() * temperature**2


def _by_group(values: Tensor, groups: Tensor) -> tuple[Tensor, Tensor]:
    """Rows [P] as a padded matrix [G, longest] and its mask."""
    _, inverse, counts = torch.unique(groups, return_inverse=True, return_counts=True)
    order = torch.argsort(inverse, stable=True)
    starts = torch.cumsum(counts, 0) - counts
    column = torch.arange(len(groups), device=groups.device) - starts[inverse[order]]
    width = int(counts.max())
    padded = torch.zeros(len(counts), width, dtype=values.dtype, device=values.device)
    mask = torch.zeros(len(counts), width, dtype=torch.bool, device=values.device)
    padded = padded.index_put((inverse[order], column), values[order])
    mask[inverse[order], column] = True
    return padded, mask
