"""A small shop, its bundle and its catalogue, for the tests of the serve path."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from fixtures_export import WORDS, make_export

from edgerec import Item, UserProfile
from edgerec.builder import build_engine
from edgerec.catalog import build_catalog

rng = np.random.default_rng(1)
ITEMS = [
    Item(f"i{i}", " ".join(rng.choice(WORDS, rng.integers(0, 20))), brand=("", "acme", "zenith")[i % 3], price=float(i) or None)
    for i in range(300)
]
IDS = [item.id for item in ITEMS]
USER = UserProfile("u", {"acme": 1.0})
SCORE_TOLERANCE = 1e-5  # fp32: another batch may sum in another order
NAMES = [f"id-{n}" for n in range(6)]


def item(name: str, version: int) -> Item:
    """An item that changes; another version has other tokens and features."""
    return Item(name, "red lamp " * (version % 4) + f"sofa {version}", brand=f"b{version}", price=float(version))


def make_shop(folder: Path, backend: str = "ort") -> Path:
    """Folders ``export``, ``bundle`` and ``catalog`` in `folder`."""
    make_export(folder / "export")
    build_engine(folder / "export", folder / "bundle", backend=backend)
    build_catalog(ITEMS, folder / "bundle", folder / "catalog")
    return folder
