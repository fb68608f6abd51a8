"""The behaviour log, ``events.jsonl``: its records, how they are read, how a server appends them.

One JSON object a line::

    {"type": "impression", "request_id": "r1", "ts": 1767225623, "user_id": "u1", "query": "red lamp",
     "items": ["a", "b"], "positions": [1, 2], "propensities": [1.0, 0.5]}
    {"type": "click", "request_id": "r1", "item_id": "b", "ts": 1767225629}

``type`` is ``impression``, ``click``, ``cart`` or ``purchase``; ``ts`` is in Unix seconds; ``user_id`` and ``propensities``
may be left out; keys not named here are ignored. A damaged line is never lost in silence: the reader hands it over as a
``Fault``, or raises.
"""

from __future__ import annotations

import gzip
import json
import os
import threading
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import IO, Any

from .errors import InputError

ACTIONS = ("click", "cart", "purchase")
"""The kinds of action, the weakest first."""

MAX_LINE_BYTES = 16 * 2**20
"""A longer line is a fault: no record is that large, and a file without line breaks must not fill the memory."""


@dataclass(frozen=True, slots=True)
class Fault:
    """One thing wrong with a file; ``line`` counts from 1, 0 is the file as a whole."""

    file: str
    line: int
    message: str

    def __str__(self) -> str:
        return f"{self.file}:{self.line}: {self.message}" if self.line else f"{self.file}: {self.message}"


OnFault = Callable[[Fault], None]
"""What to do with a fault, e.g. ``faults.append``."""


@dataclass(frozen=True, slots=True)
class Impression:
    """A page of results as the user saw it.

    Attributes
    ----------
    request_id : joins the page to its actions.
    ts : Unix seconds.
    user_id : ``""`` when unknown.
    items : ids, each once.
    positions : of the items, from 1, each once.
    propensities : the chance in (0, 1] that each item was looked at; ``None`` when unknown.
    """

    request_id: str
    ts: float
    user_id: str
    query: str
    items: tuple[str, ...]
    positions: tuple[int, ...]
    propensities: tuple[float, ...] | None = None

    def to_json(self) -> dict[str, Any]:
        """The line of the log, as an object."""
        row: dict[str, Any] = {"type": "impression", "request_id": self.request_id, "ts": self.ts, "user_id": self.user_id}
        row |= {"query": self.query, "items": list(self.items), "positions": list(self.positions)}
        return row if self.propensities is None else row | {"propensities": list(self.propensities)}


@dataclass(frozen=True, slots=True)
class Action:
    """What a user did with one item of a page; ``kind`` is one of ``ACTIONS``, ``ts`` in Unix seconds."""

    kind: str
    request_id: str
    item_id: str
    ts: float

    def to_json(self) -> dict[str, Any]:
        """The line of the log, as an object."""
        return {"type": self.kind, "request_id": self.request_id, "item_id": self.item_id, "ts": self.ts}


Event = Impression | Action


def read_events(path: Path | str, *, on_fault: OnFault | None = None) -> Iterator[tuple[int, Event]]:
    """The events of a ``.jsonl`` or ``.jsonl.gz`` file with their line numbers, one at a time.

    Parameters
    ----------
    on_fault : called for each line that cannot be used, among them a last line torn by a crash; ``None`` raises instead.

    Raises
    ------
    InputError : the file cannot be opened; or, without ``on_fault``, the first fault.
    """
    report = on_fault or _refuse
    path = Path(path)
    for number, raw in read_lines(path, report):
        try:
            event = parse_event(raw)
        except InputError as error:
            torn = "" if raw.endswith(b"\n") else "the last line is torn, as by a crash while it was written; "
            report(Fault(path.name, number, f"{torn}{error}"))
        else:
            yield number, event


def parse_event(raw: bytes | str) -> Event:
    """One line of the log.

    Raises
    ------
    InputError : it is not valid JSON, or a field is missing, of another type or out of range.
    """
    row = parse_object(raw)
    kind = row.get("type")
    request_id, ts = _text(row, "request_id"), _number(row, "ts")
    if not request_id:
        raise InputError("request_id is empty; it must name the request")
    if kind in ACTIONS:
        return Action(kind, request_id, _text(row, "item_id"), ts)
    if kind != "impression":
        raise InputError(f"type is {kind!a}; expected 'impression', {', '.join(map(repr, ACTIONS))}")
    items = _list(row, "items", str)
    positions = _list(row, "positions", int)
    propensities = None if row.get("propensities") is None else _list(row, "propensities", float)
    if len(set(items)) != len(items):
        raise InputError("items holds an id twice; a page shows an item once")
    for name, values in (("positions", positions), ("propensities", propensities)):
        if values is not None and len(values) != len(items):
            raise InputError(f"{name} has {len(values)} values for {len(items)} items; expected one each")
    if len(set(positions)) != len(positions) or any(position < 1 for position in positions):
        raise InputError("positions must be different integers, from 1")
    if propensities is not None and not all(0 < value <= 1 for value in propensities):
        raise InputError("propensities must be in (0, 1]")
    user_id = "" if row.get("user_id") is None else _text(row, "user_id")
    return Impression(request_id, ts, user_id, _text(row, "query"), items, positions, propensities)


def parse_object(raw: bytes | str) -> dict[str, Any]:
    """A JSON object from one line, strictly: UTF-8, no NaN or Infinity, no key twice.

    Raises
    ------
    InputError : it is anything else.
    """
    try:
        text = raw.decode("utf-8") if isinstance(raw, bytes) else raw
        row = json.loads(text, parse_constant=_no_constant, object_pairs_hook=_unique)
    except UnicodeDecodeError as error:
        raise InputError(f"not valid UTF-8 at byte {error.start}: {error.reason}") from error
    except RecursionError as error:
        raise InputError("not valid JSON: nested too deeply") from error
    except ValueError as error:
        raise InputError(f"not valid JSON: {error}") from error
    if not isinstance(row, dict):
        raise InputError(f"expected a JSON object, got {type(row).__name__}")
    return row


def read_lines(path: Path, on_fault: OnFault, *, blank: bool = False) -> Iterator[tuple[int, bytes]]:
    """The lines of a file, ``.gz`` or plain, with their numbers and their line ends, without a byte order mark.

    Blank lines are counted, and given only when ``blank`` asks for them.

    A gzip stream that is cut short or damaged gives what can be read of it, then a fault; so does a line above
    ``MAX_LINE_BYTES``.

    Raises
    ------
    InputError : the file cannot be opened.
    """
    try:
        opener: Any = gzip.open if path.suffix == ".gz" else open
        file: IO[bytes] = opener(path, "rb")
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror}") from error
    number = 0
    with file:
        try:
            while raw := file.readline(MAX_LINE_BYTES):
                number += 1
                if len(raw) == MAX_LINE_BYTES and not raw.endswith(b"\n"):
                    on_fault(Fault(path.name, number, f"the line is longer than {MAX_LINE_BYTES} bytes; it was passed over"))
                    while raw and not raw.endswith(b"\n"):
                        raw = file.readline(MAX_LINE_BYTES)
                    continue
                if number == 1:
                    raw = raw.removeprefix(b"\xef\xbb\xbf")
                if blank or raw.strip():
                    yield number, raw
        except EOFError:
            on_fault(Fault(path.name, number, "the gzip stream is cut short after this line; copy the file again"))
        except (OSError, zlib.error) as error:
            on_fault(Fault(path.name, number, f"cannot be read after this line: {error}; copy the file again"))


class EventWriter:
    """Appends events to a log; safe to call from threads.

    Each event is one ``write`` to a file opened for appending, so a crash of the process tears at most the line being
    written. A log that ends in a torn line is continued on a new one: the torn line stays, and ``read_events`` reports it.

    Parameters
    ----------
    path : a plain ``.jsonl`` file; made if missing.
    sync : wait after each event until it is on the disk, to survive a power cut; ``False`` leaves that to the system.

    Raises
    ------
    InputError : the file cannot be opened for appending, or is a ``.gz``.
    """

    __slots__ = ("_handle", "_lock", "_path", "_sync", "_torn")

    def __init__(self, path: Path | str, *, sync: bool = False) -> None:
        self._path, self._sync, self._lock = Path(path), sync, threading.Lock()
        if self._path.suffix == ".gz":
            raise InputError(f"{path}: a compressed log cannot be appended to; write plain .jsonl and compress it when it is closed")
        try:
            self._handle = os.open(self._path, os.O_RDWR | os.O_APPEND | os.O_CREAT | getattr(os, "O_CLOEXEC", 0), 0o644)
            size = os.fstat(self._handle).st_size
            self._torn = size > 0 and os.pread(self._handle, 1, size - 1) != b"\n"
        except OSError as error:
            raise InputError(f"cannot append to {path}: {error.strerror}") from error

    def append(self, event: Event) -> None:
        """Write one event.

        Raises
        ------
        InputError : the event would not be read back (see ``parse_event``), the disk refuses, or the writer is closed.
        """
        line = json.dumps(event.to_json(), ensure_ascii=False).encode("utf-8", "surrogatepass")
        if parse_event(line) != event:
            raise InputError(f"{event!r} would not be read back as it is; use the types of the record")
        with self._lock:
            if self._handle < 0:
                raise InputError(f"{self._path} is closed; open a new EventWriter")
            left = memoryview((b"\n" if self._torn else b"") + line + b"\n")
            self._torn = True
            try:
                while left:
                    left = left[os.write(self._handle, left) :]
                self._torn = False
                if self._sync:
                    os.fsync(self._handle)
            except OSError as error:
                raise InputError(f"cannot append to {self._path}: {error.strerror}") from error

    def close(self) -> None:
        """Close the file; closing twice is harmless."""
        with self._lock:
            if self._handle >= 0:
                os.close(self._handle)
                self._handle = -1

    def __enter__(self) -> EventWriter:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()


def _refuse(fault: Fault) -> None:
    raise InputError(str(fault))


def _no_constant(name: str) -> float:
    raise ValueError(f"{name} is not a number JSON knows")


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    row = dict(pairs)
    if len(row) != len(pairs):
        raise ValueError("a key occurs twice in an object")
    return row


def _text(row: dict[str, Any], name: str) -> str:
    value = row.get(name)
    if not isinstance(value, str):
        raise InputError(f"{name} is {value!a}; expected a string" if name in row else f"{name} is missing")
    return _sound(value, name)


def _sound(value: str, name: str) -> str:
    if not value.isascii() and any("\ud800" <= letter <= "\udfff" for letter in value):
        raise InputError(f"{name} holds a lone surrogate, which is no text: {value!a}")
    return value


def _number(row: dict[str, Any], name: str) -> float:
    value = row.get(name)
    if isinstance(value, bool) or not isinstance(value, int | float) or not -1e300 < value < 1e300:
        raise InputError(f"{name} is {value!a}; expected a finite number" if name in row else f"{name} is missing")
    return value


def _list(row: dict[str, Any], name: str, kind: type) -> tuple[Any, ...]:
    values = row.get(name)
    kinds = (int, float) if kind is float else (kind,)
    if not isinstance(values, list) or not all(isinstance(value, kinds) and not isinstance(value, bool) for value in values):
        raise InputError(f"{name} must be a list of {kind.__name__}" if name in row else f"{name} is missing")
    for value in values:
        if isinstance(value, str):
            _sound(value, name)
    return tuple(values)
