"""edgerec: rankers that run inside the search server."""

from __future__ import annotations

from .errors import BuildError, BundleError, EdgerecError, EngineError, FeatureError, InputError, MissingExtraError
from .types import Item, RankedList, UserProfile

__version__ = "0.1.0"
__all__ = [
    "BuildError",
    "BundleError",
    "EdgerecError",
    "EngineError",
    "FeatureError",
    "InputError",
    "Item",
    "MissingExtraError",
    "RankedList",
    "UserProfile",
]
