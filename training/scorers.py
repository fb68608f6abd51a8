"""What evaluation can score with: a model folder, a bundle, anything with ``score``."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import numpy as np
from numpy.typing import NDArray

from edgerec.errors import BundleError, InputError
from edgerec.types import Item

from .judged import JudgedList

if TYPE_CHECKING:
    from edgerec.ranker import Ranker


class Scorer(Protocol):
    """Anything that scores candidates: a teacher, a student, a bundle, BM25, yours."""

    def score(self, query: str, items: Sequence[Item]) -> NDArray[np.float32]:
        """Scores float32 [N], larger is better; NaN for an item that could not be scored (it ranks last)."""
        ...


@dataclass(frozen=True, slots=True)
class Opened:
    """A scorer ready for use.

    Attributes
    ----------
    kind : ``teacher``, ``student``, ``bundle`` or ``scorer``.
    detail : what identifies it, e.g. a bundle's ``model_version``.
    """

    kind: str
    scorer: Scorer
    detail: Mapping[str, str] = field(default_factory=dict)


class BundleScorer:
    """A :class:`Scorer` over an open ranker whose catalogue holds the items: what a search server would run."""

    def __init__(self, ranker: Ranker) -> None:
        self._ranker = ranker

    def score(self, query: str, items: Sequence[Item]) -> NDArray[np.float32]:
        """Scores by item id, through the catalogue."""
        return self._ranker.score(query, [item.id for item in items])


@contextmanager
def open_model(folder: Path) -> Iterator[Opened]:
    """The scorer of a folder written by ``edgerec train`` or ``edgerec distill``; its ``training.json`` tells which.

    Raises
    ------
    BundleError : no such folder, or of another kind.
    """
    path = folder / "training.json"
    try:
        info = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as e:
        raise BundleError(f"{path}: {e}; expected a folder written by `edgerec train` or `edgerec distill`") from e
    kind = info.get("kind") if isinstance(info, dict) else None
    if kind == "teacher":
        from .teacher import Teacher

        yield Opened(kind, Teacher.load(folder))
    elif kind == "student":
        from .student import StudentScorer

        yield Opened(kind, StudentScorer.load(folder))
    else:
        raise BundleError(f"{path}: kind is {kind!r}; expected 'teacher' or 'student'")


@contextmanager
def open_bundle(bundle: Path, items: Iterable[Item]) -> Iterator[Opened]:
    """The scorer of a bundle, over a temporary catalogue of the given items.

    Raises
    ------
    BundleError : the bundle is damaged or of another version.
    """
    # Imported here: the serving half is met at a folder; only evaluation looks at both halves.
    from edgerec.bundle import read_manifest
    from edgerec.catalog import build_catalog
    from edgerec.ranker import Ranker

    manifest = read_manifest(bundle)
    detail = {"model_version": manifest.model_version, "backend": manifest.backend, "precision": manifest.precision}
    with tempfile.TemporaryDirectory(prefix="edgerec-") as work:
        build_catalog(items, bundle, Path(work) / "catalog")
        with Ranker.open(bundle, catalog=Path(work) / "catalog") as ranker:
            yield Opened("bundle", BundleScorer(ranker), detail)


def score_lists(scorer: Scorer, lists: Sequence[JudgedList], name: str = "the scorer") -> tuple[NDArray[np.float32], ...]:
    """The scorer's float32 [N] for each list. Raises InputError if a shape is wrong."""
    found = []
    for judged in lists:
        scores = np.asarray(scorer.score(judged.query, judged.items), np.float32)
        if scores.shape != (len(judged.items),):
            raise InputError(f"{name} returned scores of shape {scores.shape} for {len(judged.items)} items; expected one score an item")
        found.append(scores)
    return tuple(found)
