"""Builds a catalogue: items are encoded chunk by chunk, the chunks laid end to end, and the folder appears whole or not at all."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from datetime import datetime, timezone
from functools import partial
from pathlib import Path

import numpy as np

from .catalog_chunks import Chunk, ChunkFile, plan_chunks, run_folder
from .catalog_columns import Columns, count_items, hash_ids, write_segment
from .catalog_encoder import ItemEncoder
from .catalog_info import CatalogInfo, sync_folder, write_info
from .catalog_snapshot import Catalog
from .crew import Crew, check_crew, work_elsewhere, work_here
from .errors import BundleError, InputError
from .types import Item

SEGMENT_FILE = "segments/000000.seg"


def build_catalog(
    items: Iterable[Item],
    bundle: str | os.PathLike[str],
    catalog: str | os.PathLike[str],
    *,
    progress: Callable[[int], None] | None = None,
    threads: int | None = None,
    workers: int = 1,
    engine: str = "local",
    resume: bool = False,
    previous: str | os.PathLike[str] | None = None,
) -> CatalogInfo:
    """Tokenise and hash every item for one bundle, and write the catalogue folder. For a mid-fusion student, items are encoded too.

    Memory is bounded by some chunks of items and about 100 bytes an item; the disk holds the catalogue twice for a moment. Chunks that are
    done lie in ``CATALOG.run`` beside the catalogue; a build that is killed leaves them there.

    Parameters
    ----------
    items : read once; ids must be different.
    bundle : the bundle whose tokenizer, text layout and feature spec are used.
    catalog : the folder to create; it must not exist.
    progress : called with the number of items done, after every chunk.
    threads : of the engine that encodes items; None: the cores this process may use, or one for each of several workers.
    workers : processes that encode items; the files are the same for any number, but for the time in ``catalog.json``. With more than one
        a program must guard its main module (``if __name__ == "__main__"``), as `multiprocessing` asks.
    engine : ``local``, or ``ray``: items are encoded on the Ray cluster that this process is connected to, or that of ``RAY_ADDRESS`` or of
        this machine, by as many tasks at once as it has room for; `workers` does not count. Needs the extra ``edgerec[ray]``.
    resume : go on from the chunks that an earlier build of this catalogue has left; chunks whose items or bundle are others now are made
        again. Keeps the chunks, too, when this build fails.
    previous : a catalogue of the same ``content_id``: items that it has, unchanged, are copied from it.

    Raises
    ------
    InputError : `workers` is below 1, `engine` is unknown, no item, an item of a wrong type, an empty id, or an id that came before (the
        message names it).
    BundleError : the bundle or `previous` is damaged, `previous` was made for another model, or the folder exists or cannot be written.
    EngineError : the engine that encodes items cannot be loaded on this machine, or fails; a worker died, or there is no cluster.
    MissingExtraError : `engine` is ``ray``, and ray is not installed.
    """
    check_crew(workers, engine)
    target = Path(catalog)
    with ItemEncoder(bundle, threads=threads) as encoder:
        old = None if previous is None else _open_previous(previous, encoder)
        try:
            with run_folder(target, resume) as run:
                with _crew(encoder, bundle, engine, workers, threads) as crew:
                    chunks = list(_write_chunks(plan_chunks(items, encoder, run, old), crew, progress))
                if not chunks:
                    raise InputError("there are no items to build a catalogue from")
                _refuse_duplicates(chunks)
                folder = run / "catalog"
                (folder / "segments").mkdir(parents=True)
                segment = write_segment(folder, SEGMENT_FILE, [(chunk, range(count_items(chunk))) for chunk in chunks])
                info = CatalogInfo(
                    items=segment.items,
                    content_id=encoder.content_id,
                    model_version=encoder.model_version,
                    fields=encoder.fields,
                    segments=(segment,),
                    created=datetime.now(timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ"),
                    states=encoder.states,
                    vectors=encoder.vectors,
                )
                sync_folder(folder / "segments")
                write_info(folder, info)
                os.rename(folder, target)
                sync_folder(target.parent)
        except OSError as e:
            raise BundleError(f"{target}: the catalogue could not be written: {e}") from e
    return info


def _crew(
    encoder: ItemEncoder, bundle: str | os.PathLike[str], engine: str, workers: int, threads: int | None
) -> AbstractContextManager[Crew[Sequence[Item], Columns]]:
    if engine == "local" and workers == 1:
        return work_here(encoder.compute)
    opener = partial(_open_encoder, threads=threads or 1)
    return work_elsewhere(opener, Path(bundle), engine=engine, workers=workers, threads=threads or 1, what="encode items")


def _open_encoder(bundle: Path, *, threads: int) -> Callable[[Sequence[Item]], Columns]:
    return ItemEncoder(bundle, threads=threads).compute


def _write_chunks(
    chunks: Iterable[Chunk], crew: Crew[Sequence[Item], Columns], progress: Callable[[int], None] | None
) -> Iterator[ChunkFile]:
    """Make the files that are not there yet; yields all, in order."""
    done = 0
    for chunk, computed in crew.map((chunk, chunk.missing or None) for chunk in chunks):
        if not chunk.done:
            chunk.write(computed)
        done += chunk.items
        if progress is not None:
            progress(done)
        yield ChunkFile(chunk.path)


def _open_previous(path: str | os.PathLike[str], encoder: ItemEncoder) -> Catalog:
    previous = Catalog.open(path)
    info = previous.info
    # Not its vectors: where they are another head's, or none, they are made of the states that it has.
    if (info.content_id, info.fields, info.states) != (encoder.content_id, encoder.fields, encoder.states):
        raise BundleError(
            f"{path} was built for content_id {info.content_id} (model {info.model_version}), but the bundle has content_id "
            f"{encoder.content_id} (model {encoder.model_version}); nothing of it can be used again: build without it"
        )
    return previous


def _refuse_duplicates(chunks: Sequence[ChunkFile]) -> None:
    """Raise InputError naming an id that two items have. Ids are compared only where their hashes agree."""
    sizes = [count_items(chunk) for chunk in chunks]
    starts = np.cumsum([0, *sizes])
    id_hashes = np.concatenate([hash_ids(chunk, range(size)) for chunk, size in zip(chunks, sizes, strict=True)])
    order = np.argsort(id_hashes, kind="stable")
    ordered = id_hashes[order]
    seen: dict[bytes, int] = {}
    for i in np.flatnonzero(ordered[1:] == ordered[:-1]):
        if i and ordered[i] != ordered[i - 1]:
            seen.clear()
        for row in order[i : i + 2].tolist():
            owner = int(np.searchsorted(starts, row, "right")) - 1
            value = _read_id(chunks[owner], row - int(starts[owner]))
            if seen.setdefault(value, row) != row:
                raise InputError(f"items {seen[value] + 1} and {row + 1} both have the id {value.decode()!r}; ids must be different")


def _read_id(columns: Columns, row: int) -> bytes:
    start, end = columns["ids.offsets"][row : row + 2].tolist()
    return columns["ids"][start:end].tobytes()
