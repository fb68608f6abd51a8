"""The bundle: a folder that holds one built model and the proof that it is whole.

``manifest.json`` lists every other file with its size and SHA-256. Nothing in a bundle is trusted before it is checked against that
list: sizes before reading, hashes before parsing. The hashes find damage and mix-ups; they are no signature, so a bundle should come
from a place you trust. Layout: docs/formats.md, "Bundle".
"""

from __future__ import annotations

import hashlib
import mmap
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from threading import Thread
from typing import IO, Any

from .errors import BundleError
from .manifest import CHUNK_BYTES, COMPILED_TOKENIZER, MANIFEST, MAX_FILE_BYTES, FileEntry, Manifest, content_id, json_object, parse_json

__all__ = [
    "BundleReader",
    "FileEntry",
    "Manifest",
    "content_id",
    "describe",
    "map_file",
    "read_file",
    "read_json",
    "read_manifest",
    "verify_bundle",
]

_MAX_MANIFEST_BYTES = 1 << 20
_KEPT_BYTES = 1 << 20
"""A file of a bundle that is being verified is kept for those who read it next, if it is no larger."""
_MAPPED = ("tokenizer.json", COMPILED_TOKENIZER)
"""Files that a ranker keeps mapped while it serves: the tokenizers library may want the first later, the second is used as it lies."""


def read_manifest(path: str | os.PathLike[str]) -> Manifest:
    """Read and check ``manifest.json`` alone: cheap, says nothing about the other files. Raises BundleError."""
    root = Path(path)
    data = _read(root, MANIFEST, max_bytes=_MAX_MANIFEST_BYTES)
    try:
        return Manifest.from_json(parse_json(data, MANIFEST))
    except BundleError as error:
        raise BundleError(f"{root}: {error}") from error


def read_file(path: str | os.PathLike[str], manifest: Manifest, name: str) -> bytes:
    """Read one listed file and return its bytes only if size and SHA-256 are the manifest's. Raises BundleError."""
    root = Path(path)
    entry = manifest.files.get(name)
    if entry is None:
        raise BundleError(f"{root}: {name} is not listed in {MANIFEST}")
    data = _read(root, name, exact_bytes=entry.bytes)
    _Check(root, name, entry, data).all()
    return data


def map_file(path: str | os.PathLike[str], manifest: Manifest, name: str) -> mmap.mmap | bytes:
    """Map one listed file into memory, read-only, if size and SHA-256 are the manifest's; an empty one is ``b""``. Raises BundleError.

    The file must not change while it is mapped: its pages are read when they are needed.
    """
    root = Path(path)
    entry = manifest.files.get(name)
    if entry is None:
        raise BundleError(f"{root}: {name} is not listed in {MANIFEST}")
    data = _map(root, name, entry)
    _Check(root, name, entry, data).all()
    return data


def read_json(path: str | os.PathLike[str], manifest: Manifest, name: str) -> Any:
    """Read one listed JSON file, verified and decoded strictly. Raises BundleError."""
    return parse_json(read_file(path, manifest, name), f"{path}: {name}")


def bundle_files(path: str | os.PathLike[str]) -> dict[str, bytes]:
    """Every file of a bundle by its name, verified, the manifest too: to be laid down elsewhere. Raises BundleError."""
    root = Path(path)
    manifest = read_manifest(root)
    return {name: read_file(root, manifest, name) for name in manifest.files} | {MANIFEST: (root / MANIFEST).read_bytes()}


class _Check:
    """A file's content, being hashed chunk by chunk, where the manifest has chunks of it: several threads may `work` on it."""

    def __init__(self, root: Path, name: str, entry: FileEntry, data: mmap.mmap | bytes) -> None:
        self._root, self._name, self._entry, self.data = root, name, entry, data
        self._left = [*enumerate(entry.chunks)] or [(0, entry.sha256)]
        self._found: list[tuple[int, str, str]] = []

    def work(self) -> None:
        """Hash what no other thread has taken."""
        step = CHUNK_BYTES if self._entry.chunks else max(self._entry.bytes, 1)
        with suppress(IndexError), memoryview(self.data) as view:
            while True:
                number, said = self._left.pop()
                with view[number * step : (number + 1) * step] as chunk:
                    self._found.append((number * step, said, hashlib.sha256(chunk).hexdigest()))

    def all(self) -> None:
        """Hash the whole of it. Raises BundleError."""
        self.work()
        self.done()

    def done(self) -> None:
        """After all threads have worked. Raises BundleError: what was hashed is not what the manifest says."""
        for start, said, found in sorted(self._found):
            if found != said:
                where = f" from byte {start} on" if self._entry.chunks else ""
                what = f"{self._name} has sha256 {found[:12]}...{where}"
                raise BundleError(f"{self._root}: {what}, {MANIFEST} says {said[:12]}...; it was damaged or changed")


class BundleReader:
    """A bundle that is being opened: each file is read, verified and decoded once, whoever asks for it.

    What it gives is shared between those who ask: nobody may change it. Not for several threads, but for the one that `begin` starts.

    Attributes
    ----------
    root, manifest : the folder, and its manifest, checked.

    Raises
    ------
    BundleError : the manifest is missing or wrong; or, of any method, a file is.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.root = Path(path)
        self.manifest = read_manifest(self.root)
        self._mapped: dict[str, mmap.mmap | bytes] = {}
        self._read: dict[str, bytes] = {}
        self._decoded: dict[str, Any] = {}
        self._begun: dict[str, tuple[_Check, Thread]] = {}

    def begin(self, name: str) -> None:
        """Start to hash a large file, on a thread of its own: `map` helps it with the rest, and says what is wrong."""
        with suppress(BundleError, KeyError, RuntimeError):  # the last: the system has no thread. `map` does it all
            entry = self.manifest.files[name]
            check = _Check(self.root, name, entry, _map(self.root, name, entry))
            thread = Thread(target=check.work, name="edgerec-open", daemon=True)
            thread.start()
            self._begun[name] = check, thread

    def map(self, name: str) -> mmap.mmap | bytes:
        """As `map_file`."""
        if (begun := self._begun.pop(name, None)) is not None:
            check, thread = begun
            check.work()
            thread.join()
            check.done()
            self._mapped[name] = check.data
        if name not in self._mapped:
            self._mapped[name] = map_file(self.root, self.manifest, name)
        return self._mapped[name]

    def read(self, name: str) -> bytes:
        """As `read_file`."""
        if name not in self._read:
            self._read[name] = read_file(self.root, self.manifest, name)
        return self._read[name]

    def json(self, name: str) -> Any:
        """As `read_json`."""
        if name not in self._decoded:
            self._decoded[name] = parse_json(self.read(name), f"{self.root}: {name}")
        return self._decoded[name]

    def verify(self, *, but: str | None = None) -> None:
        """Check all that `verify_bundle` checks, but the hash of the file `but`, which the caller maps or reads, and so checks, later."""
        root, manifest = self.root, self.manifest
        try:
            present = sorted(entry.name for entry in os.scandir(root))
        except OSError as error:
            raise BundleError(f"{root}: cannot be listed: {error}") from error
        unlisted = [name for name in present if name != MANIFEST and name not in manifest.files]
        if unlisted:
            raise BundleError(
                f"{root}: {unlisted[0]!r:.80} is not listed in {MANIFEST}; a bundle holds nothing else, remove it or build again"
            )
        for name, entry in manifest.files.items():
            if name == but:
                continue
            if name in _MAPPED:
                self.map(name)
            elif entry.bytes <= _KEPT_BYTES:
                self.read(name)
            else:
                read_file(root, manifest, name)  # not mapped: a disk that fails under a mapping ends the process
        model = json_object(self.json("model.json"), f"{root}: model.json")
        found = content_id(self.map("tokenizer.json"), self.json("features.json"), model.get("text"), model.get("states"))
        if found != manifest.content_id:
            raise BundleError(
                f"{root}: content_id is {manifest.content_id[:12]}..., its files give {found[:12]}...; build the bundle again"
            )


def verify_bundle(path: str | os.PathLike[str]) -> Manifest:
    """Check the whole bundle: every size and hash, no file too many, and that ``content_id`` is that of the files.

    Raises
    ------
    BundleError : says which file is wrong and how.
    """
    files = BundleReader(path)
    files.verify()
    for name, entry in files.manifest.files.items():
        if entry.chunks:  # each was right; the hash of the whole is for other programs
            data = _read(files.root, name, exact_bytes=entry.bytes)
            _Check(files.root, name, FileEntry(entry.sha256, entry.bytes), data).all()
    return files.manifest


def describe(path: str | os.PathLike[str]) -> dict[str, Any]:
    """What ``edgerec inspect`` shows, ready for JSON: the manifest, the model's sizes and training, and the parity figures.

    Reads and verifies the small JSON files only; `verify_bundle` checks the rest. Raises BundleError.
    """
    manifest = read_manifest(path)
    model = json_object(read_json(path, manifest, "model.json"), f"{path}: model.json")
    features = read_json(path, manifest, "features.json")
    return {
        **manifest.to_json(),
        "path": os.fspath(path),
        "total_bytes": sum(entry.bytes for entry in manifest.files.values()),
        "model": {key: model.get(key) for key in ("name", "student", "text", "grades", "training", "dev_metrics", "export_check")},
        "features": {key: features.get(key) for key in ("version", "hash", "buckets", "slots")} if isinstance(features, dict) else None,
        "parity": read_json(path, manifest, "parity.json"),
    }


@contextmanager
def _open(root: Path, name: str, *, exact_bytes: int | None = None, max_bytes: int = MAX_FILE_BYTES) -> Iterator[IO[bytes]]:
    """Open a regular file of the expected size; a link, a folder or a pipe is refused without following or blocking."""
    try:
        # O_NONBLOCK: opening a FIFO must not wait for a writer.
        descriptor = os.open(root / name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except (OSError, ValueError) as error:
        raise BundleError(f"{root}: {name} cannot be opened ({error}); expected a bundle folder with regular files") from error
    with os.fdopen(descriptor, "rb", closefd=True) if _is_file(descriptor) else _refuse(descriptor, root, name) as stream:
        size = os.fstat(stream.fileno()).st_size
        if exact_bytes is not None and size != exact_bytes:
            raise BundleError(f"{root}: {name} has {size} bytes, {MANIFEST} says {exact_bytes}; copy or build the bundle again")
        if size > max_bytes:
            raise BundleError(f"{root}: {name} has {size} bytes, at most {max_bytes} are allowed")
        try:
            yield stream
        except OSError as error:
            raise BundleError(f"{root}: {name} cannot be read: {error}") from error


def _is_file(descriptor: int) -> bool:
    return stat.S_ISREG(os.fstat(descriptor).st_mode)


def _refuse(descriptor: int, root: Path, name: str) -> IO[bytes]:
    os.close(descriptor)
    raise BundleError(f"{root}: {name} is not a regular file")


def _read(root: Path, name: str, *, exact_bytes: int | None = None, max_bytes: int = MAX_FILE_BYTES) -> bytes:
    with _open(root, name, exact_bytes=exact_bytes, max_bytes=max_bytes) as stream:
        return stream.read(max_bytes if exact_bytes is None else exact_bytes)


def _map(root: Path, name: str, entry: FileEntry) -> mmap.mmap | bytes:
    with _open(root, name, exact_bytes=entry.bytes) as stream:
        return mmap.mmap(stream.fileno(), entry.bytes, access=mmap.ACCESS_READ) if entry.bytes else b""
