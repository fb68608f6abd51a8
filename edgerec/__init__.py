"""edgerec: rankers that run inside the search server.

``import edgerec`` loads NumPy and nothing heavier: `Ranker`, `Cascade`, `Catalog` and `CatalogWriter` are imported when they are first
used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .errors import BuildError, BundleError, EdgerecError, EngineError, FeatureError, InputError, MissingExtraError
from .types import Item, RankedList, UserProfile

if TYPE_CHECKING:
    from .catalog import Catalog, CatalogWriter
    from .ranker import Ranker
    from .ranker_cascade import Cascade

__version__ = "0.1.0"
__all__ = [
    "BuildError",
    "BundleError",
    "Cascade",
    "Catalog",
    "CatalogWriter",
    "EdgerecError",
    "EngineError",
    "FeatureError",
    "InputError",
    "Item",
    "MissingExtraError",
    "RankedList",
    "Ranker",
    "UserProfile",
]


def __getattr__(name: str) -> Any:
    if name == "Ranker":
        from .ranker import Ranker

        return Ranker
    if name == "Cascade":
        from .ranker_cascade import Cascade

        return Cascade
    if name in ("Catalog", "CatalogWriter"):
        from . import catalog

        return getattr(catalog, name)
    raise AttributeError(f"module 'edgerec' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
