"""What every command shares: results on stdout, progress on a terminal's stderr, files written whole, missing extras named."""

from __future__ import annotations

import json
import os
import shlex
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click

from .errors import MissingExtraError

#: Arguments and options that name something to read: a missing path is a usage error (exit code 2).
EXISTING_FILE = click.Path(exists=True, dir_okay=False, path_type=Path)
EXISTING_FOLDER = click.Path(exists=True, file_okay=False, path_type=Path)
NEW_FILE = click.Path(dir_okay=False, path_type=Path)
NEW_FOLDER = click.Path(file_okay=False, path_type=Path)

as_json = click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")


def show(result: Mapping[str, Any], *, as_json: bool) -> None:
    """Print a result on stdout: JSON, or one ``key: value`` line per leaf."""
    if as_json:
        click.echo(dump(result))
        return
    for key, value in leaves(result):
        click.echo(f"{key}: {value}")


def dump(value: Any) -> str:
    """JSON as every command prints it. NaN is refused: it is not JSON."""
    return json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False, default=_plain)


def _plain(value: Any) -> Any:
    if isinstance(value, Path):
        return str(value)
    if hasattr(value, "tolist"):  # a numpy scalar or array
        return value.tolist()
    raise TypeError(f"{type(value).__name__} is not JSON")


def leaves(value: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    """``("a.b", "1")`` for ``{"a": {"b": 1}}``; lists stay on one line."""
    for key, inner in value.items():
        if isinstance(inner, Mapping):
            yield from leaves(inner, f"{prefix}{key}.")
        elif isinstance(inner, float):
            yield f"{prefix}{key}", f"{inner:.6g}"
        elif isinstance(inner, (list, tuple)):
            yield f"{prefix}{key}", json.dumps(inner, ensure_ascii=False, default=_plain)
        else:
            yield f"{prefix}{key}", str(inner)


def write_text(path: Path, text: str) -> None:
    """Write a whole file or none: temporary name, fsync, rename."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        with open(partial, "w", encoding="utf-8") as f:
            f.write(text)
            f.flush()
            os.fsync(f.fileno())
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def command_line() -> str:
    """This command as a person would type it, for the provenance of figures, however it was started."""
    return shlex.join(["edgerec", *sys.argv[1:]])


def on_terminal() -> bool:
    """Whether stderr is a terminal: only then do commands show progress."""
    return sys.stderr.isatty()


@contextmanager
def counter(label: str, *, every: int = 1000) -> Iterator[Callable[[int], None] | None]:
    """A callback that redraws ``label: n`` on a terminal's stderr; None where nobody looks."""
    if not on_terminal():
        yield None
        return
    last = -every

    def count(done: int) -> None:
        nonlocal last
        if done - last >= every:
            last = done
            click.echo(f"\r{label}: {done:,}", err=True, nl=False)

    yield count
    click.echo("", err=True)


@contextmanager
def needs(extra: str) -> Iterator[None]:
    """Turn the failing import of a third-party module into the pip command that brings it.

    Raises
    ------
    MissingExtraError : a module that is not ours could not be found inside the block.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        module = (error.name or "").partition(".")[0]
        if module in ("", "edgerec"):
            raise
        raise MissingExtraError(module, extra) from error
