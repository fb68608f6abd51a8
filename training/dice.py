"""Chance that is the same on every machine: only ``random.Random.random`` is used, whose sequence Python promises to keep."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import TypeVar

_T = TypeVar("_T")


class Dice:
    """A stream of random choices, fixed by a seed and a name.

    Streams of other names are independent, so more users do not change the items.
    """

    __slots__ = ("_random",)

    def __init__(self, seed: int, name: str) -> None:
        self._random = random.Random(f"{seed}:{name}").random

    def uniform(self, low: float = 0.0, high: float = 1.0) -> float:
        """A float in [low, high)."""
        return low + (high - low) * self._random()

    def chance(self, probability: float) -> bool:
        """True with this probability."""
        return self._random() < probability

    def below(self, n: int) -> int:
        """An integer in [0, n)."""
        return min(int(self._random() * n), n - 1)

    def pick(self, values: Sequence[_T]) -> _T:
        """One value, all equally likely."""
        return values[self.below(len(values))]

    def pick_weighted(self, values: Sequence[_T], weights: Sequence[float]) -> _T:
        """One value, as likely as its weight is large."""
        left = self._random() * sum(weights)
        for value, weight in zip(values, weights, strict=True):
            left -= weight
            if left < 0:
                return value
        return values[-1]

    def sample(self, values: Sequence[_T], n: int) -> list[_T]:
        """At most n different places of ``values``, in random order."""
        pool = list(values)
        for place in range(min(n, len(pool))):
            other = place + self.below(len(pool) - place)
            pool[place], pool[other] = pool[other], pool[place]
        return pool[:n]
