"""A check of a data folder under way: what was found so far, and how its files are read without stopping at a fault."""

from __future__ import annotations

import gzip
import zlib
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeGuard

from edgerec.errors import InputError
from edgerec.events import Fault, parse_object, read_lines

from .findings import Findings
from .text_faults import check_text

_HEAD_BYTES = 65536


@dataclass(slots=True)
class Check:
    """The folder, what was found, and what later files refer to.

    Attributes
    ----------
    counts, grades : for the report; grades are split -> grade -> judgements.
    range : the lowest and the highest grade, by ``dataset.json``; ``None`` when it does not say.
    split_by_time : ``dataset.json`` says so: a query may then be judged on both sides, by behaviour before and after.
    items : id -> line.
    queries : id -> (line, text).
    judged : split -> query id -> the line it is first judged on.
    """

    folder: Path
    found: Findings = field(default_factory=Findings)
    counts: dict[str, Any] = field(default_factory=dict)
    grades: dict[str, Counter[float]] = field(default_factory=dict)
    range: tuple[float, float] | None = None
    split_by_time: bool = False
    items: dict[str, int] = field(default_factory=dict)
    queries: dict[str, tuple[int, str]] = field(default_factory=dict)
    judged: dict[str, dict[str, int]] = field(default_factory=dict)


def rows(check: Check, name: str, *, needed: bool) -> Iterator[tuple[str, int, dict[str, Any]]]:
    """The objects of ``name`` or ``name.gz`` as (file, line, object); a line that is none is noted and left out."""
    path = one_of(check, name)
    if path is None:
        if needed:
            check.found.error("missing-file", name, 0, f"is missing; expected {name} or {name}.gz")
        return
    for line, text in texts(check, path, path.name):
        try:
            yield path.name, line, parse_object(text)
        except InputError as error:
            check.found.error("malformed", path.name, line, str(error))


def texts(check: Check, path: Path, file: str, *, blank: bool = False) -> Iterator[tuple[int, str]]:
    """The lines of a file, decoded and without their ends; a line that is not UTF-8 is noted and left out."""

    def report(fault: Fault) -> None:
        check.found.error("unreadable", file, fault.line, fault.message)

    file_faults(check, path, file)
    try:
        for line, raw in read_lines(path, report, blank=blank):
            try:
                yield line, raw.decode("utf-8").removesuffix("\n").removesuffix("\r")
            except UnicodeDecodeError as error:
                check.found.error("encoding", file, line, f"not valid UTF-8 at byte {error.start} of the line: {error.reason}")
    except InputError as error:
        check.found.error("unreadable", file, 0, str(error))


def file_faults(check: Check, path: Path, file: str) -> None:
    """What is said once of a file: no content, a byte order mark, Windows line ends."""
    opener: Any = gzip.open if path.suffix == ".gz" else open
    try:
        with opener(path, "rb") as stream:
            head: bytes = stream.read(_HEAD_BYTES)
    except (OSError, EOFError, zlib.error):
        return  # read_lines meets the same fault and reports it with its line
    if not head.strip():
        check.found.warn("empty-file", file, 0, "is empty")
    if head.startswith(b"\xef\xbb\xbf"):
        note = check.found.error if file.endswith(".tsv") else check.found.warn
        note("byte-order-mark", file, 1, "starts with a byte order mark; save the file as UTF-8 without it")
    if b"\r\n" in head:
        check.found.warn("line-ends", file, 1, "has Windows line ends (CR LF); expected LF")


def one_of(check: Check, name: str) -> Path | None:
    """``name`` or ``name.gz``, whichever is there; plain where both are, which is noted."""
    paths = [path for path in (check.folder / name, check.folder / f"{name}.gz") if path.is_file()]
    if len(paths) == 2:
        check.found.warn("unread-file", paths[1].name, 0, f"is not read: {name} is there too; remove one of them")
    return paths[0] if paths else None


def new_id(check: Check, file: str, line: int, row: Mapping[str, Any], before: Mapping[str, Any]) -> str | None:
    """The row's ``_id``, or None, noted, when it is missing, no string or taken; ``before`` maps ids to their line."""
    value = row.get("_id")
    if not isinstance(value, str) or not value:
        check.found.error("wrong-type", file, line, f"_id is {value!a:.60}; expected a string that is not empty")
        return None
    check_text(check.found, file, line, "_id", value)
    if "\t" in value or len(value.splitlines()) > 1 or value.splitlines()[0] != value:
        check.found.error("odd-id", file, line, f"_id {value!a} has a tab or a line break in it; a .tsv cannot refer to it")
    elif value.strip() != value:
        check.found.warn("odd-id", file, line, f"_id {value!a} has white space at an end; it is part of the id")
    if value in before:
        first = before[value]
        check.found.error("duplicate-id", file, line, f"_id {value!a} is also on line {first[0] if isinstance(first, tuple) else first}")
        return None
    return value


def is_number(value: Any) -> TypeGuard[float]:
    """Whether it is a finite number, and not a bool."""
    return isinstance(value, int | float) and not isinstance(value, bool) and -1e300 < value < 1e300
