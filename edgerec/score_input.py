"""What a bulk run scores: a query log, and for each query the ids of its candidates.

Lists of candidates come as JSON Lines ``{"query_id", "items": [id, ...]}``, as a TREC run (``query Q0 item rank score tag``), or as
``query-id<TAB>corpus-id<TAB>score`` with that header; each also ``.gz``. Their order decides ties, as in `Ranker.rank`; a run's ranks and
scores are not read.
"""

from __future__ import annotations

import gzip
import hashlib
import itertools
import json
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .corpus import read_jsonl
from .errors import InputError
from .types import UserProfile

Lists = Iterable[tuple[str, Sequence[str]]]
"""Query ids, each once, with the ids of their candidates."""


@dataclass(frozen=True, slots=True)
class Request:
    """One query of the log. Without `candidates` every item of the catalogue is one; `user` and `context` as in `Ranker.rank`."""

    id: str
    query: str
    candidates: tuple[str, ...] | None = None
    user: UserProfile | None = None
    context: Mapping[str, str] | None = None


@dataclass(frozen=True, slots=True)
class Requests:
    """All that is to be scored.

    Attributes
    ----------
    rows : read once; ids must be different.
    source : what tells these from others, e.g. the SHA-256 of the files; a run that is resumed must have the same.
    """

    rows: Iterable[Request]
    source: Mapping[str, str] = field(default_factory=dict)


def read_requests(queries: Path, candidates: Path | None = None) -> Requests:
    """Requests of a query log, ``queries.jsonl[.gz]`` or a data folder, in its order; with `candidates`, a file of lists, in that file's.

    A query without a list comes after those that have one, without candidates: a first stage may find nothing.

    Raises
    ------
    InputError : a file cannot be read. Iterating: a wrong line, with file and line; a query twice; a list of an unknown query, or a second
        list of one.
    """
    log = query_file(queries)
    source = {"queries": sha256_of(log)}
    if candidates is None:
        return Requests(read_log(log), source)
    return Requests(with_lists(read_log(log), read_lists(candidates)), {**source, "candidates": sha256_of(candidates)})


def query_file(path: Path) -> Path:
    """The file itself, or a data folder's ``queries.jsonl[.gz]``. Raises InputError."""
    if not path.is_dir():
        return path
    for name in ("queries.jsonl", "queries.jsonl.gz"):
        if (path / name).exists():
            return path / name
    raise InputError(f"{path}: neither queries.jsonl nor queries.jsonl.gz is there; expected a data folder, or give the file itself")


def with_lists(log: Iterable[Request], lists: Lists) -> Iterator[Request]:
    """Put the lists to their queries. Errors as of `read_requests`."""
    queries = {request.id: request for request in log}
    listed: set[str] = set()
    for query_id, items in lists:
        if query_id in listed:
            raise InputError(
                f"query {query_id!r:.80} has two lists of candidates, or its lines do not stand together; sort the file by query"
            )
        if query_id not in queries:
            raise InputError(
                f"query {query_id!r:.80} has candidates, but is not in the query log; give the log that the lists were made of"
            )
        listed.add(query_id)
        asked = queries[query_id]
        yield Request(asked.id, asked.query, tuple(items), asked.user, asked.context)
    for query_id, asked in queries.items():
        if query_id not in listed:
            yield Request(asked.id, asked.query, (), asked.user, asked.context)


def read_log(path: Path) -> Iterator[Request]:
    """Lines of a query log: ``_id``, ``text``, optionally the objects ``user`` and ``context``. Raises InputError with file and line."""
    seen: set[str] = set()
    for place, record in read_jsonl(path):
        query_id, text, context = record.get("_id"), record.get("text"), record.get("context")
        if not isinstance(query_id, str) or not query_id or not isinstance(text, str):
            raise InputError(f"{place}: a query needs the strings _id and text")
        if query_id in seen:
            raise InputError(f"{place}: query {query_id!r:.80} stands twice; give each its own _id")
        seen.add(query_id)
        if context is not None and not (isinstance(context, dict) and all(isinstance(value, str) for value in context.values())):
            raise InputError(f"{place}: context is {context!r:.80}; expected an object of strings")
        user = None if record.get("user") is None else user_from_record(record["user"], f"{place}: user")
        yield Request(query_id, text, None, user, context)


def user_from_record(fields: object, place: str) -> UserProfile:
    """``{"id"?, "brands"?: {name: weight}, "categories"?: {...}}`` as a profile. Raises InputError that names the place."""
    if not isinstance(fields, dict):
        raise InputError(f"{place}: expected a JSON object, found {type(fields).__name__}")
    unknown = sorted(set(fields) - {"id", "brands", "categories"})
    if unknown:
        raise InputError(f"{place}: unknown keys {unknown}; expected id, brands, categories")
    for name in ("brands", "categories"):
        weights = fields.get(name, {})
        if not isinstance(weights, dict) or not all(isinstance(w, (int, float)) for w in weights.values()):
            raise InputError(f"{place}: {name} is {weights!r}; expected an object of numbers")
    return UserProfile(id=str(fields.get("id", "")), brands=fields.get("brands", {}), categories=fields.get("categories", {}))


def read_lists(path: Path) -> Iterator[tuple[str, list[str]]]:
    """Lists of candidates, in any of the formats above. Raises InputError with file and line."""
    opener = gzip.open if path.suffix == ".gz" else open
    try:
        with opener(path, "rb") as file:
            first = file.readline().decode().strip()
            if first.startswith("{"):
                yield from (_list_of(record, place) for place, record in read_jsonl(path))
                return
            header = first.split("\t") == ["query-id", "corpus-id", "score"]
            lines = file if header else itertools.chain([first.encode()], file)
            pairs = (_pair(line, header, f"{path}:{number}") for number, line in enumerate(lines, 2 if header else 1) if line.strip())
            for query_id, group in itertools.groupby(pairs, lambda pair: pair[0]):
                yield query_id, [item_id for _, item_id in group]
    except (OSError, EOFError, UnicodeDecodeError, zlib.error) as e:
        raise InputError(f"{path}: {e}; expected JSON Lines, a TREC run, or query-id<TAB>corpus-id<TAB>score") from e


def sha256_of(path: Path) -> str:
    """Of a file's bytes, as they lie. Raises InputError."""
    digest = hashlib.sha256()
    try:
        with open(path, "rb") as file:
            while chunk := file.read(1 << 20):
                digest.update(chunk)
    except OSError as e:
        raise InputError(f"{path}: {e}") from e
    return digest.hexdigest()


def digest_of(value: Any) -> str:
    """SHA-256 of JSON, whatever the order of its keys."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def _list_of(record: dict[str, Any], place: str) -> tuple[str, list[str]]:
    query_id, items = record.get("query_id"), record.get("items")
    if not isinstance(query_id, str) or not isinstance(items, list) or not all(isinstance(one, str) for one in items):
        raise InputError(f"{place}: a list of candidates needs query_id, a string, and items, a list of ids")
    return query_id, items


def _pair(line: bytes, tabs: bool, place: str) -> tuple[str, str]:
    """Query and item of a line: the first two of three columns, or the first and the third of six."""
    text = line.decode()
    cells = text.rstrip("\r\n").split("\t") if tabs else text.split()
    if len(cells) != (3 if tabs else 6):
        expected = "query-id<TAB>corpus-id<TAB>score" if tabs else "a TREC run (query Q0 item rank score tag)"
        raise InputError(f"{place}: {len(cells)} columns; expected {expected}")
    return cells[0], cells[1 if tabs else 2]
