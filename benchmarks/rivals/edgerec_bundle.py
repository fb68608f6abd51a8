"""edgerec itself: the same weights, exported and built as any student is."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from . import Setup


@dataclass(frozen=True)
class Opened:
    """A ranker and, when it works from a catalogue, the id of each title (ids are what a search server holds)."""

    ranker: Any
    ids: Mapping[str, str]


class Edgerec:
    """One configuration.

    Parameters
    ----------
    precision : ``int8`` or ``fp32``. backend : ``ort`` (ONNX Runtime) or ``native``.
    catalog : candidates by id, their tokens precomputed (the intended use); else whole items, tokenised in the call as rivals do.
    """

    PACKAGE = "edgerec"

    def __init__(self, precision: str, *, catalog: bool, backend: str = "ort") -> None:
        self.precision, self.catalog, self.backend = precision, catalog, backend
        self.NAME = f"edgerec {precision}" + ("" if catalog else ", no catalogue") + (", native" if backend == "native" else "")

    def prepare(self, setup: Setup) -> None:
        """Export, build, catalogue."""
        from edgerec.training.data import load_dataset
        from edgerec.training.export import export_student

        from edgerec.builder import Tolerance, Tolerances, build_engine
        from edgerec.catalog import build_catalog

        export = setup.work.parent / "edgerec-export"  # one for all configurations
        if not export.exists():
            export_student(setup.weights, export, data=[setup.data])
        # A random head's scores lie so close together that rounding may order them anyhow: only trained weights can pass the gate.
        anything = Tolerance(max_abs_diff=float("inf"), ndcg_drop=1.0, top_overlap=0.0, tau=-1.0)
        tolerances = Tolerances() if setup.trained else Tolerances(int8=anything)
        build_engine(export, setup.work / "bundle", backend=self.backend, precision=self.precision, tolerances=tolerances)
        if self.catalog:
            build_catalog(load_dataset(setup.data).items.values(), setup.work / "bundle", setup.work / "catalog")

    def load(self, setup: Setup) -> Opened:
        """The open ranker; threads: the cores this process may use, as the rivals' defaults."""
        from edgerec.ranker import Ranker

        if self.catalog:
            return with_catalog(setup.work / "bundle", setup)
        return Opened(Ranker.open(setup.work / "bundle"), {})

    def rank(self, model: Opened, query: str, titles: Sequence[str]) -> NDArray[np.float32]:
        """Logits of the candidates."""
        from edgerec.types import Item

        if self.catalog:
            return model.ranker.score(query, [model.ids[title] for title in titles])
        return model.ranker.score(query, [Item(str(place), title) for place, title in enumerate(titles)])


class EdgerecBundle:
    """A bundle of other weights, as a mid-fusion student's: its time stands beside the contestants', its order is its own."""

    PACKAGE = "edgerec"

    def __init__(self, bundle: Path) -> None:
        self._bundle, self.NAME = bundle, f"edgerec {bundle.name}"

    def prepare(self, setup: Setup) -> None:
        """The catalogue."""
        from edgerec.training.data import load_dataset

        from edgerec.catalog import build_catalog

        build_catalog(load_dataset(setup.data).items.values(), self._bundle, setup.work / "catalog")

    def load(self, setup: Setup) -> Opened:
        """The open ranker."""
        return with_catalog(self._bundle, setup)

    def rank(self, model: Opened, query: str, titles: Sequence[str]) -> NDArray[np.float32]:
        """Logits of the candidates."""
        return model.ranker.score(query, [model.ids[title] for title in titles])


def with_catalog(bundle: Path, setup: Setup) -> Opened:
    """A ranker over the contestant's catalogue, and the ids of the titles."""
    from edgerec.training.data import load_dataset

    from edgerec.ranker import Ranker

    ids = {item.title: item.id for item in load_dataset(setup.data).items.values()}
    return Opened(Ranker.open(bundle, catalog=setup.work / "catalog"), ids)
