"""corpus.jsonl[.gz]: the items of a shop, one JSON object a line."""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol

from .errors import InputError
from .types import Item


class Digest(Protocol):
    """Anything that hashes what is read, e.g. ``hashlib.sha256()``."""

    def update(self, data: bytes, /) -> object: ...


def item_from_record(record: dict[str, Any], place: str) -> Item:
    """One line of `corpus.jsonl` as an Item; unknown keys are ignored, wrong types are InputError."""
    try:
        price = record.get("price")
        item = Item(
            id=record["_id"],
            title=record.get("title") or "",
            text=record.get("text") or "",
            brand=record.get("brand") or "",
            category=record.get("category") or "",
            price=None if price is None or price == "" else float(price),
            attributes={str(k): str(v) for k, v in (record.get("attributes") or {}).items()},
        )
    except (KeyError, TypeError, ValueError, AttributeError) as e:
        raise InputError(f"{place}: not an item ({e}); expected _id, title and text as strings, price as a number") from e
    if not all(isinstance(v, str) for v in (item.id, item.title, item.text, item.brand, item.category)):
        raise InputError(f"{place}: _id, title, text, brand and category must be strings")
    return item


def read_items(path: Path) -> Iterator[Item]:
    """Items of a `corpus.jsonl[.gz]`, streamed. Raises InputError with file and line."""
    for place, record in read_jsonl(Path(path)):
        yield item_from_record(record, place)


def read_jsonl(path: Path, digest: Digest | None = None) -> Iterator[tuple[str, dict[str, Any]]]:
    """Objects of a JSON-lines file, plain or gzip, each with its place ``file:line``. Raises InputError."""
    opener = gzip.open if path.suffix == ".gz" else open
    try:
        with opener(path, "rb") as f:
            for number, raw in enumerate(f, 1):
                if digest is not None:
                    digest.update(raw)
                if not raw.strip():
                    continue
                record = json.loads(raw)
                if not isinstance(record, dict):
                    raise ValueError(f"line {number} is not a JSON object")
                yield f"{path}:{number}", record
    except (OSError, EOFError, ValueError) as e:
        raise InputError(f"{path}: {e}; run `edgerec data validate`") from e
