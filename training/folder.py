"""Writing a data folder: all of it or nothing. ``docs/data.md`` says what is in it."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from edgerec.errors import InputError
from edgerec.types import Item

QRELS_HEADER = "query-id\tcorpus-id\tscore"


@contextmanager
def new_folder(folder: Path) -> Iterator[Path]:
    """A folder beside ``folder`` to fill; it takes the name when the block ends well and is removed when it does not.

    Raises
    ------
    InputError : ``folder`` exists and is not an empty folder, or cannot be made.
    """
    folder = Path(folder)
    try:
        if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
            raise InputError(f"{folder} exists and is not empty; name a new folder or remove this one")
        folder.parent.mkdir(parents=True, exist_ok=True)
        staging = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
    except OSError as error:
        raise InputError(f"cannot make {folder}: {error.strerror}; name a folder that can be written") from error
    try:
        staging.chmod(0o755)
        yield staging
        for path in sorted(staging.rglob("*")):
            _sync(path)
        _sync(staging)
        os.replace(staging, folder)
        _sync(folder.parent)
    except BaseException:
        shutil.rmtree(staging, ignore_errors=True)
        raise


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    """One JSON object, indented."""
    path.write_text(json.dumps(value, ensure_ascii=False, indent=1) + "\n", encoding="utf-8", newline="\n")


def write_jsonl(path: Path, rows: Iterable[Mapping[str, Any]]) -> int:
    """One JSON object a line, UTF-8; how many there were.

    Raises
    ------
    InputError : a text holds a lone surrogate, or a number is not finite.
    """
    count = 0
    with open(path, "w", encoding="utf-8", newline="\n") as file:
        for row in rows:
            try:
                file.write(json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n")
            except ValueError as error:
                raise InputError(
                    f"{path.name}, row {count + 1} (_id {row.get('_id')!a}) cannot be written: {error}; clean the source"
                ) from error
            count += 1
    return count


def write_qrels(folder: Path, qrels: Mapping[str, Iterable[tuple[str, str, float]]]) -> None:
    """``folder/qrels/SPLIT.tsv`` for each split, rows (query id, item id, grade), in the order given.

    Raises
    ------
    InputError : an id holds a tab or a line break.
    """
    (folder / "qrels").mkdir()
    for split, rows in qrels.items():
        with open(folder / "qrels" / f"{split}.tsv", "w", encoding="utf-8", newline="\n") as file:
            file.write(QRELS_HEADER + "\n")
            for query_id, item_id, grade in rows:
                if {"\t", "\n", "\r"} & {*query_id, *item_id}:
                    raise InputError(f"ids {query_id!r}, {item_id!r}: a tab or a line break cannot be written to a .tsv; rename the id")
                file.write(f"{query_id}\t{item_id}\t{grade:g}\n")


def item_row(item: Item) -> dict[str, Any]:
    """The ``corpus.jsonl`` line of an item; empty fields are left out, ``title`` and ``text`` never."""
    row: dict[str, Any] = {"_id": item.id, "title": item.title, "text": item.text}
    row |= {name: value for name in ("brand", "category") if (value := getattr(item, name))}
    if item.price is not None:
        row["price"] = item.price
    if item.attributes:
        row["attributes"] = dict(item.attributes)
    return row


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
