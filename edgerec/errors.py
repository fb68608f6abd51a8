"""Every error edgerec raises on purpose. A message says what was given, what was expected, what to do."""

from __future__ import annotations


class EdgerecError(Exception):
    """Base class: ``except EdgerecError`` catches all that edgerec raises on purpose."""


class InputError(EdgerecError, ValueError):
    """An argument or an input file is not what the function takes."""


class FeatureError(EdgerecError, ValueError):
    """A feature specification is inconsistent, or its golden vectors do not reproduce."""


class BundleError(EdgerecError):
    """A bundle, an export folder or a catalogue is damaged, of another version, or of another model."""


class EngineError(EdgerecError, RuntimeError):
    """An engine could not be loaded or could not score a batch."""


class BuildError(EdgerecError, RuntimeError):
    """``edgerec build-engine`` refused or failed; no bundle was written."""


class MissingExtraError(EdgerecError, ImportError):
    """A part of edgerec needs an optional dependency that is not installed.

    Parameters
    ----------
    module : the module that could not be imported, e.g. ``"torch"``.
    extra : the extra that brings it, e.g. ``"train"``.
    """

    def __init__(self, module: str, extra: str) -> None:
        super().__init__(f"{module} is not installed; run: pip install 'edgerec[{extra}]'")
        self.module = module
        self.extra = extra

    def __reduce__(self) -> tuple[type[MissingExtraError], tuple[str, str]]:
        return type(self), (self.module, self.extra)
