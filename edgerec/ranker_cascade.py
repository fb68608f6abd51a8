"""A cascade: one student scores all candidates, a second one the best of them again, in one call and on one scale."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import numpy as np
from numpy.typing import NDArray

from .errors import InputError
from .ranker import Clock, Ranker
from .ranker_candidates import UNKNOWN, Candidate, Candidates, at_least_one, sort_out
from .ranker_deadline import Deadline
from .types import RankedList, UserProfile

STEP = 32
"""With a deadline the second student takes the best so many at a time: what it has scored when time is over is what mattered most."""


class Cascade:
    """Two open rankers as one: a cheap student for all candidates, a better one for the best `n`. Safe to share between threads.

    The order: the candidates that both scored, by the second student; then the others, by the first; then those there was no time for, in
    their own order. Ties keep candidate order throughout. Scores are on the second student's scale: the first's are moved there by a
    straight line, see `on_scale`, and none of them is above the score of a candidate that both scored.

    Parameters
    ----------
    first, second : open rankers. They may share a catalogue: one of a mid-fusion student also serves a cross student with the same
        tokenizer, text layout and features. Otherwise each has its own.
    n : how many the second scores.

    Raises
    ------
    InputError : `n` is below 1, or only one of the two has a catalogue.
    """

    def __init__(self, first: Ranker, second: Ranker, *, n: int = 100) -> None:
        if (first.catalog is None) != (second.catalog is None):
            which = "first" if first.catalog is None else "second"
            raise InputError(f"the {which} ranker has no catalogue and the other has one; open both with catalog=, or neither")
        self.first, self.second, self.n = first, second, at_least_one("n", n)

    def rank(
        self,
        query: str,
        candidates: Iterable[Candidate],
        *,
        top_k: int = 10,
        user: UserProfile | None = None,
        context: Mapping[str, str] | None = None,
        deadline_ms: float | None = None,
        n: int | None = None,
    ) -> RankedList:
        """The best `top_k` of the candidates, best first. No argument is changed.

        Parameters
        ----------
        n : how many the second student scores in this call; None: as opened.
        query, candidates, top_k, user, context, deadline_ms : as in `Ranker.rank`. The deadline is for both together; where it leaves no
            time for the second student, the first one's order and scores stand.

        Returns
        -------
        `RankedList.reason` says what the second student did not score and why, beside what `Ranker.rank` says. A candidate that either
        gives NaN is skipped. ``timings_us`` has ``second``, the second student's part of the stages, and ``model_version`` is both, joined
        by ``+``.

        Raises
        ------
        InputError, EngineError : as in `Ranker.rank`.
        """
        clock, deadline = Clock(), Deadline.after(deadline_ms)
        wanted, most = at_least_one("top_k", top_k), self.n if n is None else at_least_one("n", n)
        found = sort_out(candidates, self.first.newest())
        clock.lap("lookup")
        scores, done = self.first.score_found(query, found, user, context, clock, deadline)
        usable = ~np.isnan(scores)
        ranked = np.argsort(-scores, kind="stable")[: np.count_nonzero(usable)]  # NaN is last
        late = found.left_out([np.flatnonzero(done)]) if deadline.ns else []
        clock.lap("select")

        head, before = ranked[:most], clock.us["total"]
        again, asked, strangers = self._score_again(query, found, head, user, context, clock, deadline)
        clock.us["second"] = clock.us["total"] - before
        both = asked & ~np.isnan(again)
        best = np.lexsort((head[both], -again[both]))
        usable[head[asked & ~both]] = False
        rest = np.concatenate([head[~asked], ranked[most:]])
        places = np.concatenate([head[both][best], rest, np.array(late, np.int64)])[:wanted].tolist()
        moved = on_scale(scores[head[both]], again[both], scores[rest])
        told = _reason(found.count, len(late), len(head), int(asked.sum()), strangers, deadline.ms)
        notes = [f"{which} model: {one.note}" for which, one in (("first", self.first), ("second", self.second)) if one.note]
        result = RankedList(
            ids=tuple(map(found.ids.__getitem__, places)),
            scores=np.concatenate([again[both][best], moved, np.full(len(late), np.nan, np.float32)])[:wanted],
            skipped=_skipped(found, np.flatnonzero(done & ~usable)),
            timings_us=clock.us,
            model_version=f"{self.first.manifest.model_version}+{self.second.manifest.model_version}",
            degraded=bool(late or notes) or not asked.all(),
            reason="; ".join(filter(None, (told, *notes))),
        )
        clock.lap("select")
        return result

    def close(self) -> None:
        """Close both rankers."""
        self.first.close()
        self.second.close()

    def __enter__(self) -> Cascade:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _score_again(
        self,
        query: str,
        found: Candidates,
        head: NDArray[np.int64],
        user: UserProfile | None,
        context: Mapping[str, str] | None,
        clock: Clock,
        deadline: Deadline,
    ) -> tuple[NDArray[np.float32], NDArray[np.bool_], int]:
        """For each of the head's positions its score and whether it has one (it may be NaN); and how many are unknown to the second."""
        whole = dict(zip(found.item_positions.tolist(), found.items, strict=True))
        again, asked, strangers = np.full(len(head), np.nan, np.float32), np.zeros(len(head), np.bool_), 0
        step = STEP if deadline.ns else max(1, len(head))
        for begin in range(0, len(head), step):
            if deadline.over:
                break
            part = slice(begin, begin + step)
            chosen = sort_out([whole.get(place, found.ids[place]) for place in head[part].tolist()], self.second.newest())
            strangers += sum(why == UNKNOWN for _, why in chosen.skipped)
            clock.lap("lookup")
            again[part], asked[part] = self.second.score_found(query, chosen, user, context, clock, deadline)
            clock.lap("select")
        return again, asked, strangers


def on_scale(x: NDArray[np.float32], y: NDArray[np.float32], rest: NDArray[np.float32]) -> NDArray[np.float32]:
    """First-stage scores on the second stage's scale: never rising where they did not rise, and never above the lowest of `y`.

    The line ``a x + b`` is the least-squares fit over the candidates that both scored, with a at least 0 (1 where all x are equal). Where
    it puts the best of the rest above the lowest of `y`, all of it is moved down by the difference. Without any candidate that both
    scored there is no second scale: the scores stay as they are.

    Parameters
    ----------
    x, y : float32 [N], what the first and the second gave the same candidates.
    rest : float32 [R], what the first gave the others, in descending order.

    Returns
    -------
    float32 [R], in descending order.
    """
    if not len(y) or not len(rest):
        return rest
    low = y.min()
    there = np.isfinite(x) & np.isfinite(y)
    slope, shift = 1.0, 0.0
    if there.any():
        a, b = x[there].astype(np.float64), y[there].astype(np.float64)
        apart = a - a.mean()
        spread = float(apart @ apart)
        slope = max(0.0, float(apart @ (b - b.mean())) / spread) if spread > 0 else 1.0
        shift = float(b.mean() - slope * a.mean())
    known = np.isfinite(rest)
    moved = rest.astype(np.float64)
    moved[known] = slope * moved[known] + shift
    if known.any() and np.isfinite(low):
        moved[known] -= max(0.0, moved[known][0] - float(low))
    with np.errstate(over="ignore"):
        capped: NDArray[np.float32] = np.minimum(moved.astype(np.float32), low)
    return capped


def _skipped(found: Candidates, not_numbers: NDArray[np.int64]) -> tuple[tuple[str, str], ...]:
    skipped = sorted([*found.skipped, *((place, "score is NaN") for place in not_numbers.tolist())])
    return tuple((found.ids[place], why) for place, why in skipped)


def _reason(count: int, late: int, head: int, asked: int, strangers: int, deadline_ms: float) -> str:
    told = [f"{late} of {count} candidates were not scored within {deadline_ms:g} ms"] if late else []
    if strangers:
        told.append(f"{strangers} of the {head} best are not in the second model's catalogue")
    if asked + strangers < head:
        told.append(f"the second model scored {asked} of the {head} best within {deadline_ms:g} ms")
    return "; ".join(told)
