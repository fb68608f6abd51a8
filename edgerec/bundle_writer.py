"""Writing a bundle: whole, synced, and put in place by one rename. `edgerec.bundle` reads them."""

from __future__ import annotations

import hashlib
import json
import os
import secrets
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from datetime import datetime, timezone
from pathlib import Path

from .errors import BundleError
from .manifest import CHUNK_BYTES, MANIFEST, MAX_CHUNKS, FileEntry, Manifest, is_plain_name

__all__ = ["check_target", "write_bundle"]


def write_bundle(
    path: str | os.PathLike[str],
    files: Mapping[str, bytes | Path],
    *,
    model_version: str,
    backend: str,
    precision: str,
    content_id: str,
    fingerprint: Mapping[str, str | list[str]],
    replace: bool = False,
) -> Manifest:
    """Write a bundle so that ``path`` is either absent (or the old bundle) or complete.

    The files go to a sibling folder, are synced to disk, and one rename puts the folder in place. With ``replace`` the old bundle is
    renamed away first and removed after: between the two renames ``path`` does not exist, so a running server should be given a new
    path and not see its own replaced.

    Parameters
    ----------
    files : content by name; a Path is copied.
    replace : allow ``path`` to exist, if it is a bundle.

    Raises
    ------
    BundleError : ``path`` exists and may not be replaced, a name or field is not allowed, or the disk refuses.
    """
    root = Path(path)
    check_target(root, replace=replace)
    try:
        root.parent.mkdir(parents=True, exist_ok=True)
        with _sibling(root) as temporary:
            entries = {name: _write(temporary, name, content) for name, content in sorted(files.items())}
            created = datetime.now(timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ")
            manifest = Manifest(model_version, backend, precision, content_id, created, fingerprint, entries)
            # What is written must be what is accepted: the same check, on the same JSON.
            manifest = Manifest.from_json(manifest.to_json())
            _write(temporary, MANIFEST, json.dumps(manifest.to_json(), indent=1).encode() + b"\n")
            _sync_folder(temporary)
            _put_in_place(temporary, root)
            _sync_folder(root.parent)
    except OSError as error:
        raise BundleError(f"{root}: the bundle could not be written: {error}") from error
    return manifest


def check_target(path: str | os.PathLike[str], *, replace: bool = False) -> None:
    """Raise BundleError if `write_bundle` would refuse ``path``: it exists, and is not a bundle that may be replaced."""
    root = Path(path)
    if root.is_symlink():
        raise BundleError(f"{root} is a symbolic link; give the folder it points to, or a new path")
    if not root.exists():
        return
    if not replace:
        raise BundleError(f"{root} exists; give a new path, or ask for it to be replaced")
    if not (root / MANIFEST).is_file():
        raise BundleError(f"{root} exists and is not a bundle (no {MANIFEST}); it will not be replaced")


@contextmanager
def _sibling(root: Path) -> Iterator[Path]:
    """A new folder beside ``root`` (same file system, so that a rename is atomic), removed if it is still there at the end."""
    temporary = _unique(root, "tmp")
    temporary.mkdir()
    try:
        yield temporary
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _unique(root: Path, kind: str) -> Path:
    return root.with_name(f".{root.name}.{secrets.token_hex(6)}.{kind}")


def _write(folder: Path, name: str, content: bytes | Path) -> FileEntry:
    if not is_plain_name(name):
        raise BundleError(f"{name!r:.80} is not a plain file name")
    digest, size, chunks = hashlib.sha256(), 0, []
    with open(folder / name, "xb") as target:
        for chunk in _chunks(content):
            target.write(chunk)
            digest.update(chunk)
            size += len(chunk)
            chunks.append(hashlib.sha256(chunk).hexdigest())
        target.flush()
        os.fsync(target.fileno())
    return FileEntry(digest.hexdigest(), size, tuple(chunks) if 1 < len(chunks) <= MAX_CHUNKS else ())


def _chunks(content: bytes | Path) -> Iterator[bytes]:
    if isinstance(content, bytes):
        yield from (content[start : start + CHUNK_BYTES] for start in range(0, len(content), CHUNK_BYTES))
        return
    with open(content, "rb") as source:
        while chunk := source.read(CHUNK_BYTES):
            yield chunk


def _put_in_place(temporary: Path, root: Path) -> None:
    if not root.exists():
        os.rename(temporary, root)
        return
    old = _unique(root, "old")
    os.rename(root, old)
    try:
        os.rename(temporary, root)
    except OSError:
        os.rename(old, root)
        raise
    shutil.rmtree(old, ignore_errors=True)


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        # Some file systems refuse fsync on a folder; the rename is atomic there all the same.
        with suppress(OSError):
            os.fsync(descriptor)
    finally:
        os.close(descriptor)
