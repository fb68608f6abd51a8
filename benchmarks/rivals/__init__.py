"""Rivals: one adapter per competitor, each a module with the same three functions.

``prepare(setup)``       write whatever the library needs under ``setup.work``, from the same weights; not timed.
``load(setup)``          open it, the way its documentation says; not timed.
``rank(model, query, titles)``  float32 [N], larger is better, in the order of ``titles``; this is what is timed.

and the constants ``NAME`` (for tables) and ``PACKAGE`` (whose version is recorded).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Setup:
    """What every contestant is made from.

    Attributes
    ----------
    weights : a Hugging Face folder of a BERT-type sequence classifier with one logit (a teacher that ``edgerec train`` wrote).
    data : the data folder that queries and titles come from.
    work : an own, empty folder for this contestant.
    max_tokens : the same limit on a (query, title) pair for all.
    trained : False for a stand-in with a random head: its scores mean nothing, only its speed does.
    """

    weights: Path
    data: Path
    work: Path
    max_tokens: int
    trained: bool


class Rival(Protocol):
    """The shape of an adapter; a module or an object."""

    NAME: str
    PACKAGE: str

    def prepare(self, setup: Setup) -> None: ...

    def load(self, setup: Setup) -> Any: ...

    def rank(self, model: Any, query: str, titles: Sequence[str]) -> NDArray[np.float32]: ...
