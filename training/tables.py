"""Tables as data publishers ship them, read row by row: csv and tsv, plain, .gz or .zip, and parquet."""

from __future__ import annotations

import csv
import gzip
import io
import zipfile
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack
from pathlib import Path
from typing import IO, Any, cast

from edgerec.errors import InputError, MissingExtraError

Row = tuple[str, Mapping[str, str]]
"""Where a row stands, ``file:line``, and its cells by column; a missing cell is ``""``."""

# A product description longer than csv's own 128 KiB is no fault; one of this size is a quote that is never closed.
_LONGEST_CELL = 4 * 2**20


def read_csv(source: Path, name: str, columns: Sequence[str], *, delimiter: str = ",", encoding: str = "utf-8") -> Iterator[Row]:
    """Rows of ``source/name``, or of ``name.gz`` or ``name.zip`` beside it.

    Parameters
    ----------
    columns : that must be there, in any order among others; ``"a|b"`` takes either name and is filled under ``a``.

    Raises
    ------
    InputError : the file or a column is missing, a row has another number of cells than the header, the encoding is wrong.
    """
    with ExitStack() as stack:
        path, raw = _open(source, name, stack)
        text = stack.enter_context(io.TextIOWrapper(raw, encoding=encoding, newline=""))
        limit = csv.field_size_limit(_LONGEST_CELL)
        stack.callback(csv.field_size_limit, limit)
        reader = csv.reader(text, delimiter=delimiter)
        start = 1
        try:
            header = [cell.removeprefix("\ufeff").strip() for cell in next(reader, [])]
            picked = _pick(path, header, columns)
            start = reader.line_num + 1
            for cells in reader:
                if cells:
                    if len(cells) != len(header):
                        raise InputError(
                            f"{path.name}:{start}: {len(cells)} cells; the header has {len(header)}; is a quote or a tab missing?"
                        )
                    yield f"{path.name}:{start}", {column: cells[place] for column, place in picked.items()}
                start = reader.line_num + 1
        except UnicodeDecodeError as error:
            raise InputError(
                f"{path.name}, after line {start - 1}: not {encoding}: {error.reason}; is it the publisher's own file?"
            ) from error
        except (csv.Error, OSError, EOFError, zlib.error, zipfile.BadZipFile) as error:
            raise InputError(f"{path.name}:{start}: cannot be read: {error}; copy the publisher's file again") from error


def read_parquet(source: Path, name: str, columns: Sequence[str]) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Rows of ``source/name`` with their places ``file, row N``; a null is None.

    Raises
    ------
    InputError : the file or a column is missing, or it is not parquet.
    MissingExtraError : pyarrow is not installed.
    """
    try:
        import pyarrow as pa
        import pyarrow.parquet as pq
    except ImportError as error:
        raise MissingExtraError("pyarrow", "train") from error
    path = source / name
    if not path.is_file():
        raise InputError(f"{path} is missing; name the folder with the publisher's files")
    try:
        with pq.ParquetFile(path) as file:
            _pick(path, file.schema_arrow.names, columns)
            number = 0
            for batch in file.iter_batches(batch_size=8192, columns=list(columns)):
                for row in batch.to_pylist():
                    number += 1
                    yield f"{path.name}, row {number}", row
    except (pa.ArrowException, OSError) as error:
        raise InputError(f"{path.name} cannot be read as parquet: {error}; copy the publisher's file again") from error


def _open(source: Path, name: str, stack: ExitStack) -> tuple[Path, IO[bytes]]:
    path = source / name
    try:
        if path.is_file():
            return path, stack.enter_context(open(path, "rb"))
        if (packed := source / f"{name}.gz").is_file():
            return packed, stack.enter_context(cast("AbstractContextManager[IO[bytes]]", gzip.open(packed, "rb")))
        if (packed := source / f"{name}.zip").is_file():
            archive = stack.enter_context(zipfile.ZipFile(packed))
            return packed, stack.enter_context(archive.open(name))
    except (OSError, KeyError, zipfile.BadZipFile) as error:
        raise InputError(f"{name} in {source} cannot be opened: {error}") from error
    raise InputError(f"{path} is missing (.gz and .zip too); name the folder with the publisher's files")


def _pick(path: Path, header: Sequence[str], columns: Sequence[str]) -> dict[str, int]:
    picked = {}
    for column in columns:
        names = column.split("|")
        found = next((name for name in names if name in header), None)
        if found is None:
            raise InputError(f"{path.name} has the columns {', '.join(header) or '(none)'}; {' or '.join(names)} is missing")
        picked[names[0]] = header.index(found)
    return picked
