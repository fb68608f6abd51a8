"""The folder of a bulk run: parts that appear whole, one query a line, and ``scores.json``, which says what they are of.

While a run is under way, and after a kill, all lies in ``OUT.run``; the last act renames it to ``OUT``. A part's name ends in the beginning
of its SHA-256, so what a disk has damaged is found, and made again.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from .catalog_info import sync_folder
from .errors import EngineError, InputError

SCORES = "scores.json"
FORMAT, VERSION = "edgerec-scores", 1
RUN = ".run"


@dataclass(frozen=True, slots=True)
class Part:
    """One file of finished queries.

    Attributes
    ----------
    file : its name in the folder.
    queries, ranked, skipped, degraded : lines, items in their lists, candidates that could not be ranked, lines with a ``reason``.
    bytes, sha256 : of the file.
    """

    file: str
    queries: int
    ranked: int
    skipped: int
    degraded: int
    bytes: int
    sha256: str


def part_of(number: int, data: bytes, query_ids: Sequence[str]) -> Part | None:
    """What the bytes of a part hold; None unless they are these queries', each once and in order."""
    try:
        lines = [json.loads(line) for line in data.splitlines()]
        found = [line["query_id"] for line in lines]
        ranked, skipped = (sum(len(line[name]) for line in lines) for name in ("ids", "skipped"))
    except (ValueError, KeyError, TypeError):
        return None
    if found != list(query_ids) or (data and not data.endswith(b"\n")):
        return None
    sha256 = hashlib.sha256(data).hexdigest()
    degraded = sum("reason" in line for line in lines)
    return Part(f"part-{number:06}-{sha256[:16]}.jsonl", len(lines), ranked, skipped, degraded, len(data), sha256)


class RunFolder:
    """``OUT.run`` of one run, under its lock. Made by `run_folder`."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.parts: list[Part] = []
        self._left: dict[str, list[Path]] = {}  # of an earlier run, by the beginning of their names
        for left in sorted(path.glob("part-*.jsonl")):
            self._left.setdefault(left.name.rpartition("-")[0], []).append(left)

    def find(self, number: int, query_ids: Sequence[str]) -> Part | None:
        """The finished part of these queries, if it is there and whole; anything else under its number is removed. Raises OSError."""
        found: Part | None = None
        for path in self._left.pop(f"part-{number:06}", ()):
            part = part_of(number, path.read_bytes(), query_ids)
            if found is None and part is not None and part.file == path.name:
                found = part
            else:
                path.unlink()
        return found

    def write(self, number: int, data: bytes, query_ids: Sequence[str]) -> Part:
        """Write a part: under another name, synced, renamed. Raises OSError; EngineError when the data are not these queries'."""
        part = part_of(number, data, query_ids)
        if part is None:
            raise EngineError(f"a worker returned other queries than the {len(query_ids)} that it was given; go on with resume")
        partial = self.path / f"part-{number:06}.tmp"
        _write(partial, data)
        os.replace(partial, self.path / part.file)
        sync_folder(self.path)
        return part

    def publish(self, target: Path, run: Mapping[str, Any], created: str) -> dict[str, Any]:
        """Write the list of the parts, and give the folder its name. Returns ``scores.json``. Raises OSError."""
        names = {part.file for part in self.parts} | {SCORES}
        for path in self.path.iterdir():
            if path.name not in names:
                path.unlink()
        totals = {name: sum(getattr(part, name) for part in self.parts) for name in ("queries", "ranked", "skipped", "degraded")}
        whole = _scores(run) | {"created": created, **totals, "parts": [asdict(part) for part in self.parts]}
        self._describe(whole)
        os.rename(self.path, target)
        sync_folder(target.parent)
        return whole

    def begin(self, run: Mapping[str, Any]) -> None:
        """Write what is to be scored, and by what; a run that is resumed must have written the same. Raises InputError, OSError."""
        path = self.path / SCORES
        if not path.exists():
            self._describe(_scores(run))
            return
        try:
            before = json.loads(path.read_bytes())
            same = {name: before[name] for name in ("format", "version", "run")}
        except (ValueError, KeyError, TypeError) as e:
            raise InputError(f"{path} is damaged ({e!r}); remove {self.path}, and begin again") from e
        now = _scores(run)
        if same != now:
            old, new = (dict(_leaves(value)) for value in (same, now))
            changed = [
                f"{name} was {old.get(name)!r:.80}, is {new.get(name)!r:.80}" for name in {**old, **new} if old.get(name) != new.get(name)
            ]
            raise InputError(f"{self.path} is of another run: {'; '.join(changed)}; score into a new folder, or remove this one")

    def _describe(self, value: Mapping[str, Any]) -> None:
        partial = self.path / f"{SCORES}.tmp"
        _write(partial, (json.dumps(value, indent=1) + "\n").encode())
        os.replace(partial, self.path / SCORES)
        sync_folder(self.path)


@contextmanager
def run_folder(target: Path, resume: bool) -> Iterator[RunFolder]:
    """The folder ``TARGET.run``, locked. Where a run fails it stays, if a part of it is done.

    Raises
    ------
    InputError : `target` exists; the folder exists and is not to be resumed, or another process scores into it.
    """
    if target.exists() or target.is_symlink():
        raise InputError(f"{target} exists; give a new path for the scores")
    target.parent.mkdir(parents=True, exist_ok=True)
    path = target.with_name(target.name + RUN)
    try:
        path.mkdir(exist_ok=resume)
    except FileExistsError as e:
        raise InputError(f"{path} exists: a run is under way, or was broken off; go on with resume (--resume), or remove the folder") from e
    lock = os.open(path, os.O_RDONLY)
    try:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as e:
            raise InputError(f"another process scores into {path}; wait for it, or give another path") from e
        try:
            yield RunFolder(path)
        except BaseException:
            if not any(path.glob("part-*.jsonl")):
                shutil.rmtree(path, ignore_errors=True)
            raise
    finally:
        os.close(lock)


def _scores(run: Mapping[str, Any]) -> dict[str, Any]:
    return {"format": FORMAT, "version": VERSION, "run": dict(run)}


def _leaves(value: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, inner in value.items():
        if isinstance(inner, Mapping):
            yield from _leaves(inner, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", inner


def _write(path: Path, data: bytes) -> None:
    with open(path, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
