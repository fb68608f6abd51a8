"""The objective: which loss terms a recipe asks for, over the answers of teacher or student."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

from torch import Tensor
from torch.nn import functional as F

from . import losses
from .config import LossSettings


@dataclass(frozen=True, slots=True)
class Answers:
    """What a loss can look at, for P rows of a step.

    Attributes
    ----------
    outputs : [P, 1] logits, or [P, K] of a K-class head; scores : [P], what ranking would sort by.
    labels : [P] in [0, 1], NaN where nobody judged; groups : int64 [P], the query of each row.
    targets : [P], what the student should score; None where nobody teaches.
    vectors, target_vectors : [P, H], what the head reads of the text, the student's and the first teacher's; None where nobody asked.
    """

    outputs: Tensor
    scores: Tensor
    labels: Tensor
    groups: Tensor
    targets: Tensor | None = None
    vectors: Tensor | None = None
    target_vectors: Tensor | None = None

    @property
    def taught(self) -> Tensor:
        """The targets of a distillation."""
        if self.targets is None:
            raise ValueError("no teacher: these answers have no targets")
        return self.targets

    @property
    def vector_error(self) -> Tensor:
        """The mean squared error of the vectors."""
        if self.vectors is None or self.target_vectors is None:
            raise ValueError("nobody asked for the vectors of these answers")
        return F.mse_loss(self.vectors, self.target_vectors)


Term: TypeAlias = Callable[[Answers, LossSettings], Tensor]

TAUGHT: dict[str, Term] = {
    "mse": lambda a, s: F.mse_loss(a.scores, a.taught),
    "margin_mse": lambda a, s: losses.margin_mse(a.scores, a.taught, a.groups),
    "hidden": lambda a, s: a.vector_error,
    "listwise_kl": lambda a, s: losses.listwise_kl(a.scores, a.taught, a.groups, s.temperature),
}
"""Terms that need a teacher, by the name of their weight in the recipe."""

JUDGED: dict[str, Term] = {
    "bce": lambda a, s: losses.graded_cross_entropy(a.outputs, a.labels) if s.classes else losses.graded_bce(a.scores, a.labels),
    "listwise": lambda a, s: losses.listwise_softmax(a.scores, a.labels, a.groups, s.temperature),
    "pairwise": lambda a, s: losses.pairwise_logistic(a.scores, a.labels, a.groups, by_margin=s.pairwise_by_margin),
}
"""Terms that need judgements."""


def loss_terms(answer: Callable[[], Answers], settings: LossSettings) -> dict[str, Tensor]:
    """Weighted terms by name. ``answer`` runs the model; under R-Drop it runs twice, and every term is the mean of both."""
    first = answer()
    terms = _weighted(first, settings)
    if settings.r_drop > 0:
        second = answer()
        terms = {name: (term + other) / 2 for (name, term), other in zip(terms.items(), _weighted(second, settings).values(), strict=True)}
        terms["r_drop"] = settings.r_drop * losses.r_drop(first.outputs, second.outputs)
    return terms


def _weighted(answers: Answers, settings: LossSettings) -> dict[str, Tensor]:
    known = JUDGED if answers.targets is None else TAUGHT | JUDGED
    return {name: weight * term(answers, settings) for name, term in known.items() if (weight := getattr(settings, name)) > 0}
