"""Item states: what a mid-fusion student keeps of an item, how it is rounded, and what it costs. Layout: docs/formats.md, "Catalogue".

Shape letters: T tokens, G states of a token, W width of one state.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .errors import BundleError

PRECISIONS: Mapping[str, type[np.generic]] = {"fp32": np.float32, "fp16": np.float16, "int8": np.int8}


@dataclass(frozen=True, slots=True)
class ItemStates:
    """States of many items, end to end; item i has the tokens ``offsets[i]`` to ``offsets[i + 1]``, those of ``item + suffix``.

    Attributes
    ----------
    values : [total, G * W] as they are stored.
    scales : float32 [total, G]; no columns but for int8.
    offsets : int64 [R + 1]
    """

    values: NDArray[Any]
    scales: NDArray[np.float32]
    offsets: NDArray[np.int64]


SMALLEST = 1e-20
"""A state of zeros has this as its largest number: its scale must not be 0."""

_MAX_NUMBERS = 1 << 16


@dataclass(frozen=True, slots=True)
class StateSpec:
    """The ``states`` object of ``model.json``.

    Attributes
    ----------
    groups : G, how many states a token has.
    width : W, numbers of one state.
    precision : ``fp32``, ``fp16``, or ``int8`` with one float32 scale for each state.
    sha256 : of the exported item encoder: states of another one mean something else.
    """

    groups: int
    width: int
    precision: str
    sha256: str

    @classmethod
    def from_model(cls, model: object, what: str = "model.json") -> StateSpec | None:
        """Read it from a decoded ``model.json``; None for a student without item states. Raises BundleError."""
        found = model.get("states") if isinstance(model, Mapping) else None
        if found is None:
            return None
        if not isinstance(found, Mapping) or set(found) != set(cls.__dataclass_fields__):
            raise BundleError(f"{what}: states must be an object of {', '.join(cls.__dataclass_fields__)}; got {found!r:.200}")
        spec = cls(**found)
        counts = (spec.groups, spec.width)
        if not all(type(n) is int and 0 < n <= _MAX_NUMBERS for n in counts) or spec.groups * spec.width > _MAX_NUMBERS:
            raise BundleError(
                f"{what}: states: groups and width are {counts!r:.80}; expected integers from 1, at most {_MAX_NUMBERS} together"
            )
        if spec.precision not in PRECISIONS or not isinstance(spec.sha256, str):
            raise BundleError(f"{what}: states: precision is {spec.precision!r:.80}; expected one of {', '.join(PRECISIONS)}, and a sha256")
        return spec

    def to_json(self) -> dict[str, Any]:
        """The object `from_model` reads."""
        return asdict(self)

    @property
    def numbers(self) -> int:
        """G * W, numbers of one token."""
        return self.groups * self.width

    @property
    def scales(self) -> int:
        """How many scales a token has: G for int8, else 0."""
        return self.groups if self.precision == "int8" else 0

    @property
    def token_bytes(self) -> int:
        """Bytes that one token takes."""
        return self.numbers * np.dtype(PRECISIONS[self.precision]).itemsize + 4 * self.scales

    def store(self, states: NDArray[np.float32]) -> tuple[NDArray[Any], NDArray[np.float32]]:
        """Round states, float32 [..., G * W], to what is kept: numbers [..., G * W] and scales float32 [..., `scales`].

        int8: symmetric, -127 to 127, halves to even, as training rounds.
        """
        if self.precision != "int8":
            return states.astype(PRECISIONS[self.precision]), np.zeros((*states.shape[:-1], 0), np.float32)
        groups = states.reshape(*states.shape[:-1], self.groups, self.width)
        scales = np.maximum(np.abs(groups).max(axis=-1), np.float32(SMALLEST)) / np.float32(127)
        # A number that is not finite spoils its own state; it must not warn on the way.
        with np.errstate(invalid="ignore"):
            rounded = np.rint(groups / scales[..., None]).astype(np.int8)
        return rounded.reshape(states.shape), scales

    def restore(self, values: NDArray[Any], scales: NDArray[np.float32]) -> NDArray[np.float32]:
        """The numbers, float32 [..., G * W], that stored ones [..., G * W] with their scales [..., `scales`] stand for."""
        if not self.scales:
            return values.astype(np.float32)
        groups = values.reshape(*values.shape[:-1], self.groups, self.width)
        return np.asarray(groups * scales[..., None], np.float32).reshape(values.shape)
