"""The manifest: what ``manifest.json`` of a bundle says, with every key, type and range checked.

Also the strict JSON reader and the content identity that bundles and catalogues share.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from mmap import mmap
from typing import Any

from .errors import BundleError

MANIFEST = "manifest.json"
FORMAT, VERSION = "edgerec-bundle", 1
ENGINE_FILES: Mapping[str, str] = {"ort": "engine.onnx", "reference": "engine.npz", "tensorrt": "plans.json", "native": "engine.bin"}
ITEM_ENGINE_FILE = "items.onnx"
"""Of a mid-fusion student on ``ort``: its item encoder, beside the engine file."""
QUERY_ENGINE_FILE = "query.onnx"
"""And the layers of it that see the query alone."""
COMPILED_TOKENIZER = "tokenizer.bin"
"""The tokenizer as csrc/wordpiece.c reads it; only where it was compiled. It follows from ``tokenizer.json``: no part of any id."""
REQUIRED_FILES = ("tokenizer.json", "features.json", "model.json", "parity.json")
PRECISIONS = ("fp32", "fp16", "bf16", "int8", "fp8")
MAX_FILE_BYTES = 1 << 40
CHUNK_BYTES = 1 << 20
"""A larger file has a hash for every so many bytes too, unless that makes more than ``MAX_CHUNKS``: several threads check it at once."""
MAX_CHUNKS = 1024

_MAX_FILES = 64
_MAX_DEPTH = 64
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}", re.ASCII)
_SHA256 = re.compile(r"[0-9a-f]{64}", re.ASCII)
_CREATED = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ", re.ASCII)


def is_plain_name(name: str) -> bool:
    """True for a file name that cannot leave its folder: ASCII letters, digits, ``. _ -``, at most 128, not hidden."""
    return _NAME.fullmatch(name) is not None


def json_object(value: object, what: str) -> dict[str, Any]:
    """``value`` if it is a JSON object, else BundleError naming ``what``."""
    if not isinstance(value, dict):
        raise BundleError(f"{what} is {type(value).__name__}, expected an object")
    return value


@dataclass(frozen=True, slots=True)
class FileEntry:
    """What the manifest says of one file: ``sha256`` in lower-case hex, its size in ``bytes``, the hashes of its ``chunks``, or none."""

    sha256: str
    bytes: int
    chunks: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """The object that ``files`` has for it."""
        return {"sha256": self.sha256, "bytes": self.bytes} | ({"chunks": list(self.chunks)} if self.chunks else {})


@dataclass(frozen=True, slots=True)
class Manifest:
    """``manifest.json``, checked.

    Attributes
    ----------
    model_version : identity of the model, ``NAME-PRECISION-HASH``.
    backend, precision : which engine runs it (a key of ``ENGINE_FILES``) and in which number format.
    content_id : hex SHA-256 of all that a catalogue depends on; see `content_id`.
    created : UTC time, ``YYYY-MM-DDTHH:MM:SSZ``.
    fingerprint : the machine and the versions the engine was built with; values are text or lists of text.
    files : every file of the bundle but the manifest itself, by name.
    """

    model_version: str
    backend: str
    precision: str
    content_id: str
    created: str
    fingerprint: Mapping[str, str | list[str]]
    files: Mapping[str, FileEntry]

    @property
    def engine_file(self) -> str:
        """The name of the file the backend loads."""
        return ENGINE_FILES[self.backend]

    def to_json(self) -> dict[str, Any]:
        """The object ``manifest.json`` holds."""
        return {
            "format": FORMAT,
            "version": VERSION,
            "model_version": self.model_version,
            "backend": self.backend,
            "precision": self.precision,
            "content_id": self.content_id,
            "created": self.created,
            "fingerprint": dict(self.fingerprint),
            "files": {name: entry.to_json() for name, entry in self.files.items()},
        }

    @classmethod
    def from_json(cls, value: object) -> Manifest:
        """Check every key, type and range of a decoded manifest. Raises BundleError."""
        top = json_object(value, "manifest.json")
        if top.get("format") != FORMAT:
            raise BundleError(f"manifest.json: format is {top.get('format')!r:.80}, expected {FORMAT!r}; this is not an edgerec bundle")
        version = top.get("version")
        if type(version) is not int or version != VERSION:
            raise BundleError(
                f"manifest.json: bundle version is {version!r:.80}, this edgerec reads version {VERSION}; "
                "build the bundle again or install the edgerec that wrote it"
            )
        backend = _text(top, "backend", _NAME)
        if backend not in ENGINE_FILES:
            raise BundleError(f"manifest.json: backend {backend!r} is unknown, expected one of {', '.join(ENGINE_FILES)}")
        precision = _text(top, "precision", _NAME)
        if precision not in PRECISIONS:
            raise BundleError(f"manifest.json: precision {precision!r} is unknown, expected one of {', '.join(PRECISIONS)}")
        files = {}
        listed = json_object(top.get("files"), "manifest.json: files")
        if len(listed) > _MAX_FILES:
            raise BundleError(f"manifest.json: files lists {len(listed)} names, at most {_MAX_FILES} are allowed")
        for name, raw in listed.items():
            if not is_plain_name(name) or name == MANIFEST:
                raise BundleError(f"manifest.json: files: {name!r:.80} is not a plain file name")
            entry = json_object(raw, f"manifest.json: files: {name}")
            size = entry.get("bytes")
            if type(size) is not int or not 0 <= size <= MAX_FILE_BYTES:
                raise BundleError(f"manifest.json: files: {name}: bytes is {size!r:.80}, expected an integer from 0 to {MAX_FILE_BYTES}")
            files[name] = FileEntry(_text(entry, "sha256", _SHA256), size, _chunks(entry.get("chunks", []), name, size))
        for name in (ENGINE_FILES[backend], *REQUIRED_FILES):
            if name not in files:
                raise BundleError(f"manifest.json: files lacks {name}, which a bundle for backend {backend!r} must have")
        return cls(
            model_version=_text(top, "model_version", _NAME),
            backend=backend,
            precision=precision,
            content_id=_text(top, "content_id", _SHA256),
            created=_text(top, "created", _CREATED),
            fingerprint=_fingerprint(top.get("fingerprint")),
            files=files,
        )


def parse_json(data: bytes, what: str) -> Any:
    """Decode JSON as the format means it: UTF-8, no duplicate keys, no NaN or infinity, no absurd nesting.

    Parameters
    ----------
    data : the file's bytes.
    what : its name, for the message.

    Raises
    ------
    BundleError : on anything else.
    """
    try:
        value = json.loads(
            data.decode("utf-8"),
            object_pairs_hook=_unique_pairs,
            parse_constant=_refuse_constant,
            parse_float=_finite_float,
            parse_int=_short_int,
        )
    except (ValueError, RecursionError) as error:
        raise BundleError(f"{what} is not valid JSON: {str(error) or type(error).__name__:.200}") from error
    _check_depth(value, what)
    return value


def content_id(tokenizer: bytes | mmap, features_json: object, text_json: object, states_json: object = None) -> str:
    """Hex SHA-256 of what a catalogue depends on: a catalogue fits every bundle with the same id.

    Parameters
    ----------
    tokenizer : the bytes of ``tokenizer.json``.
    features_json, text_json : the decoded feature spec (or None) and the ``text`` part of ``model.json``; key order is irrelevant.
    states_json : its ``states`` part; None for a student without item states.
    """
    digest = hashlib.sha256()
    states = [] if states_json is None else [_canonical(states_json)]
    for part in (tokenizer, _canonical(features_json), _canonical(text_json), *states):
        digest.update(len(part).to_bytes(8, "little"))
        digest.update(part)
    return digest.hexdigest()


def _canonical(value: object) -> bytes:
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False).encode()


def _unique_pairs(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) != len(pairs):
        raise ValueError("an object has the same key twice")
    return result


def _refuse_constant(text: str) -> float:
    raise ValueError(f"{text} is not a JSON number")


def _finite_float(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"number {text:.40} is out of range")
    return value


def _short_int(text: str) -> int:
    if len(text) > 20:
        raise ValueError(f"integer {text:.40}... is out of range")
    return int(text)


def _check_depth(value: object, what: str) -> None:
    level = [value]
    for _ in range(_MAX_DEPTH + 1):
        parents = [node for node in level if isinstance(node, (dict, list))]
        if not parents:
            return
        level = [child for node in parents for child in (node.values() if isinstance(node, dict) else node)]
    raise BundleError(f"{what} is nested deeper than {_MAX_DEPTH} levels")


def _text(owner: dict[str, Any], key: str, pattern: re.Pattern[str]) -> str:
    value = owner.get(key)
    if not isinstance(value, str) or not pattern.fullmatch(value):
        raise BundleError(f"{MANIFEST}: {key} is {value!r:.80}, expected text matching {pattern.pattern}")
    return value


def _chunks(value: object, name: str, size: int) -> tuple[str, ...]:
    if not isinstance(value, list) or (value and len(value) != -(-size // CHUNK_BYTES)):
        raise BundleError(f"{MANIFEST}: files: {name}: chunks is no list of one hash for each {CHUNK_BYTES} of its {size} bytes")
    if not all(isinstance(one, str) and _SHA256.fullmatch(one) for one in value):
        raise BundleError(f"{MANIFEST}: files: {name}: chunks holds what is no hash, expected text matching {_SHA256.pattern}")
    return tuple(value)


def _fingerprint(value: object) -> dict[str, str | list[str]]:
    result: dict[str, str | list[str]] = {}
    for key, entry in json_object(value, f"{MANIFEST}: fingerprint").items():
        texts = entry if isinstance(entry, list) else [entry]
        if not all(isinstance(text, str) for text in texts):
            raise BundleError(f"{MANIFEST}: fingerprint: {key!r:.80} is neither text nor a list of text")
        result[key] = entry
    return result
