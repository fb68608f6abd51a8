"""Every way of breaking a bundle, as a function that breaks a good one in place.

``DAMAGE`` leaves the manifest as it was, or breaks it: `verify_bundle` must refuse. ``FORGED`` changes a file and writes the matching hash
into the manifest, as an attacker or a faulty builder would: hashes say nothing then, and loading must still end in a clean error.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper

Break = Callable[[Path], None]


def manifest_of(bundle: Path) -> dict[str, Any]:
    value: dict[str, Any] = json.loads((bundle / "manifest.json").read_text())
    return value


def put_manifest(bundle: Path, value: object) -> None:
    (bundle / "manifest.json").write_text(json.dumps(value))


def forge(bundle: Path, name: str, data: bytes) -> None:
    """Replace a file and make the manifest agree."""
    (bundle / name).write_bytes(data)
    manifest = manifest_of(bundle)
    manifest["files"][name] = {"sha256": hashlib.sha256(data).hexdigest(), "bytes": len(data)}
    put_manifest(bundle, manifest)


def field(*keys: str, value: object) -> Break:
    """Set one field of the manifest, however deep."""

    def apply(bundle: Path) -> None:
        manifest = manifest_of(bundle)
        owner = manifest
        for key in keys[:-1]:
            owner = owner[key]
        owner[keys[-1]] = value
        put_manifest(bundle, manifest)

    return apply


def without(*keys: str) -> Break:
    """Remove one field of the manifest."""

    def apply(bundle: Path) -> None:
        manifest = manifest_of(bundle)
        owner = manifest
        for key in keys[:-1]:
            owner = owner[key]
        del owner[keys[-1]]
        put_manifest(bundle, manifest)

    return apply


def manifest_bytes(data: bytes) -> Break:
    return lambda bundle: (bundle / "manifest.json").write_bytes(data) and None


def truncated(name: str, size: int) -> Break:
    return lambda bundle: os.truncate(bundle / name, size)


def flipped(name: str) -> Break:
    def apply(bundle: Path) -> None:
        data = bytearray((bundle / name).read_bytes())
        data[len(data) // 2] ^= 1
        (bundle / name).write_bytes(data)

    return apply


def grown(name: str) -> Break:
    def apply(bundle: Path) -> None:
        with open(bundle / name, "ab") as stream:
            stream.write(b"\0")

    return apply


def linked(name: str) -> Break:
    """The right bytes, but through a symbolic link out of the bundle."""

    def apply(bundle: Path) -> None:
        outside = bundle.parent / f"outside-{name}"
        os.rename(bundle / name, outside)
        (bundle / name).symlink_to(outside)

    return apply


def replaced_by(make: Callable[[Path], None], name: str) -> Break:
    def apply(bundle: Path) -> None:
        (bundle / name).unlink()
        make(bundle / name)

    return apply


def extra(name: str) -> Break:
    return lambda bundle: (bundle / name).write_bytes(b"x") and None


def listed_outside(name: str) -> Break:
    """A listed name that points out of the bundle, at a file that exists, with its true hash."""

    def apply(bundle: Path) -> None:
        data = b"secret"
        (bundle.parent / "secret").write_bytes(data)
        manifest = manifest_of(bundle)
        manifest["files"][name.format(parent=bundle.parent)] = {"sha256": hashlib.sha256(data).hexdigest(), "bytes": len(data)}
        put_manifest(bundle, manifest)

    return apply


def many_files(bundle: Path) -> None:
    manifest = manifest_of(bundle)
    manifest["files"] |= {f"f{i}": {"sha256": "0" * 64, "bytes": 0} for i in range(100)}
    put_manifest(bundle, manifest)


def huge_manifest(bundle: Path) -> None:
    manifest = manifest_of(bundle)
    manifest["fingerprint"]["padding"] = "x" * (2 << 20)
    put_manifest(bundle, manifest)


def swapped(bundle: Path) -> None:
    (bundle / "tokenizer.json").rename(bundle / "x")
    (bundle / "features.json").rename(bundle / "tokenizer.json")
    (bundle / "x").rename(bundle / "features.json")


DAMAGE: dict[str, Break] = {
    "manifest missing": lambda bundle: (bundle / "manifest.json").unlink(),
    "manifest empty": manifest_bytes(b""),
    "manifest cut short": truncated("manifest.json", 40),
    "manifest not UTF-8": manifest_bytes(b"\xff\xfe{}"),
    "manifest binary": manifest_bytes(bytes(range(256)) * 10),
    "manifest a list": manifest_bytes(b"[]"),
    "manifest null": manifest_bytes(b"null"),
    "manifest a number": manifest_bytes(b"7"),
    "manifest nested 100,000 deep": manifest_bytes(b'{"format":' * 100_000),
    "manifest with a duplicate key": manifest_bytes(b'{"format": "edgerec-bundle", "format": "edgerec-bundle"}'),
    "manifest with NaN": manifest_bytes(b'{"format": "edgerec-bundle", "version": NaN}'),
    "manifest with a number of 10,000 digits": manifest_bytes(b'{"format": "edgerec-bundle", "version": 1' + b"0" * 10_000 + b"}"),
    "manifest of 2 MB": huge_manifest,
    "manifest a folder": replaced_by(lambda path: path.mkdir(), "manifest.json"),
    "manifest a pipe": replaced_by(os.mkfifo, "manifest.json"),
    "manifest a link": linked("manifest.json"),
    "format of something else": field("format", value="pickle"),
    "format missing": without("format"),
    "version of the future": field("version", value=2),
    "version true": field("version", value=True),
    "version 1.0": field("version", value=1.0),
    "version text": field("version", value="1"),
    "backend unknown": field("backend", value="os.system"),
    "backend a list": field("backend", value=["ort"]),
    "precision unknown": field("precision", value="fp99"),
    "model version with a slash": field("model_version", value="../../x"),
    "model version empty": field("model_version", value=""),
    "content id of another model": field("content_id", value="0" * 64),
    "content id not hex": field("content_id", value="z" * 64),
    "created not a date": field("created", value="yesterday"),
    "fingerprint nested": field("fingerprint", "x", value={"y": {}}),
    "fingerprint missing": without("fingerprint"),
    "files a list": field("files", value=[]),
    "files empty": field("files", value={}),
    "files null": field("files", value=None),
    "files lists the manifest": field("files", "manifest.json", value={"sha256": "0" * 64, "bytes": 1}),
    "files lists 100 more": many_files,
    "file entry a string": field("files", "engine.onnx", value="sha256"),
    "file size negative": field("files", "engine.onnx", "bytes", value=-1),
    "file size a float": field("files", "engine.onnx", "bytes", value=1.5),
    "file size huge": field("files", "engine.onnx", "bytes", value=2**63),
    "file hash short": field("files", "engine.onnx", "sha256", value="00"),
    "chunks an object": field("files", "engine.onnx", "chunks", value={"0": "0" * 64}),
    "more chunks than bytes": field("files", "engine.onnx", "chunks", value=["0" * 64] * 2000),
    "chunk hash in capitals": field("files", "engine.onnx", "chunks", value=["A" * 64]),
    "chunk hash wrong": field("files", "engine.onnx", "chunks", value=["0" * 64]),
    "file hash in capitals": field("files", "engine.onnx", "sha256", value="A" * 64),
    "engine not listed": without("files", "engine.onnx"),
    "tokenizer not listed": without("files", "tokenizer.json"),
    "name climbs out": listed_outside("../secret"),
    "name absolute": listed_outside("{parent}/secret"),
    "name with NUL": field("files", "a\0b", value={"sha256": "0" * 64, "bytes": 1}),
    "name a lone surrogate": field("files", "\ud800", value={"sha256": "0" * 64, "bytes": 1}),
    "engine missing": lambda bundle: (bundle / "engine.onnx").unlink(),
    "engine empty": truncated("engine.onnx", 0),
    "engine cut short": truncated("engine.onnx", 1000),
    "engine one byte longer": grown("engine.onnx"),
    "engine one bit flipped": flipped("engine.onnx"),
    "engine a link": linked("engine.onnx"),
    "engine a folder": replaced_by(lambda path: path.mkdir(), "engine.onnx"),
    "engine a pipe": replaced_by(os.mkfifo, "engine.onnx"),
    "tokenizer one bit flipped": flipped("tokenizer.json"),
    "parity one bit flipped": flipped("parity.json"),
    "probe one bit flipped": flipped("probe.npz"),
    "tokenizer and features swapped": swapped,
    "unlisted file": extra("payload.so"),
    "unlisted hidden file": extra(".payload"),
    "unlisted folder": lambda bundle: (bundle / "folder").mkdir(),
}


def forged(name: str, data: bytes | Callable[[bytes], bytes]) -> Break:
    def apply(bundle: Path) -> None:
        forge(bundle, name, data if isinstance(data, bytes) else data((bundle / name).read_bytes()))

    return apply


def model_field(*keys: str, value: object) -> Break:
    def change(data: bytes) -> bytes:
        model = json.loads(data)
        owner = model
        for key in keys[:-1]:
            owner = owner[key]
        owner[keys[-1]] = value
        return json.dumps(model).encode()

    return forged("model.json", change)


def npz(**arrays: Any) -> Callable[[bytes], bytes]:
    """The ``.npz`` with some arrays replaced; None removes one."""

    def change(data: bytes) -> bytes:
        with np.load(io.BytesIO(data)) as old:
            merged = {**{name: old[name] for name in old.files}, **arrays}
        buffer = io.BytesIO()
        np.savez(buffer, allow_pickle=True, **{name: value for name, value in merged.items() if value is not None})
        return buffer.getvalue()

    return change


class _Bomb:
    def __reduce__(self) -> tuple[Callable[[str], int], tuple[str]]:
        return os.system, ("touch PWNED",)


def pickled(data: bytes) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("logits.npy", pickle.dumps(_Bomb()))
    return buffer.getvalue()


def zip_bomb(data: bytes) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive, archive.open("input_ids.npy", "w", force_zip64=True) as member:
        for _ in range(256):
            member.write(bytes(1 << 20))
    return buffer.getvalue()


def lying_npy(data: bytes) -> bytes:
    """A header that promises 2^40 numbers, and none of them."""
    header = b"{'descr': '<i4', 'fortran_order': False, 'shape': (1099511627776, 1), }"
    header += b" " * (-(len(header) + 11) % 64) + b"\n"
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("input_ids.npy", b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header)
    return buffer.getvalue()


def graph(change: Callable[[onnx.ModelProto], None]) -> Callable[[bytes], bytes]:
    def apply(data: bytes) -> bytes:
        model = onnx.load_model_from_string(data)
        change(model)
        serialised: bytes = model.SerializeToString()
        return serialised

    return apply


def external_weights(model: onnx.ModelProto) -> None:
    """Weights "stored" in a file outside the bundle."""
    tensor = next(t for t in model.graph.initializer if len(t.dims) == 2)
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    for key, value in (("location", "../../../../etc/passwd"), ("offset", "0"), ("length", "64")):
        tensor.external_data.add(key=key, value=value)


def other_output(model: onnx.ModelProto) -> None:
    model.graph.output[0].name = model.graph.node[0].output[0]


def other_input(model: onnx.ModelProto) -> None:
    model.graph.input[0].name = "words"


def wide_output(model: onnx.ModelProto) -> None:
    """``logits`` becomes [B, 1]."""
    last = next(node for node in model.graph.node if node.output[0] == "logits")
    last.output[0] = "flat"
    model.graph.initializer.append(helper.make_tensor("axis_1", TensorProto.INT64, [1], [1]))
    model.graph.node.append(helper.make_node("Unsqueeze", ["flat", "axis_1"], ["logits"]))
    model.graph.output[0].CopyFrom(helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", 1]))


def unknown_operator(model: onnx.ModelProto) -> None:
    model.graph.node[0].op_type = "RunShell"


def cyclic(model: onnx.ModelProto) -> None:
    model.graph.node[0].input[0] = "logits"


def scrambled(model: onnx.ModelProto) -> None:
    """Same shapes, other weights: only the probe can tell."""
    for tensor in model.graph.initializer:
        if len(tensor.dims) == 2 and tensor.raw_data:
            values = np.frombuffer(tensor.raw_data, np.uint8)
            tensor.raw_data = values.reshape(-1, 4)[::-1].tobytes() if values.size % 4 == 0 else values[::-1].tobytes()


FORGED: dict[str, Break] = {
    "engine empty": forged("engine.onnx", b""),
    "engine garbage": forged("engine.onnx", os.urandom(5000)),
    "engine cut in half": forged("engine.onnx", lambda data: data[: len(data) // 2]),
    "engine of text": forged("engine.onnx", b"#!/bin/sh\nrm -rf /\n"),
    "engine with weights elsewhere": forged("engine.onnx", graph(external_weights)),
    "engine with another output": forged("engine.onnx", graph(other_output)),
    "engine with another input": forged("engine.onnx", graph(other_input)),
    "engine with logits of two dimensions": forged("engine.onnx", graph(wide_output)),
    "engine with an unknown operator": forged("engine.onnx", graph(unknown_operator)),
    "engine with a cycle": forged("engine.onnx", graph(cyclic)),
    "engine with other weights": forged("engine.onnx", graph(scrambled)),
    "probe garbage": forged("probe.npz", b"PK\x03\x04" + bytes(100)),
    "probe empty": forged("probe.npz", b""),
    "probe without tokens": forged("probe.npz", npz(input_ids=None)),
    "probe without logits": forged("probe.npz", npz(logits=None)),
    "probe with float64 logits": forged("probe.npz", npz(logits=np.zeros(16))),
    "probe with too few logits": forged("probe.npz", npz(logits=np.zeros(3, np.float32))),
    "probe with NaN logits": forged("probe.npz", npz(logits=np.full(16, np.nan, np.float32))),
    "probe with ids out of the vocabulary": forged("probe.npz", npz(input_ids=np.full((16, 4), 1 << 30, np.int32))),
    "probe of scalars": forged("probe.npz", npz(input_ids=np.int32(1), attention_mask=np.int32(1), token_type_ids=np.int32(1))),
    "probe of objects": forged("probe.npz", npz(input_ids=np.array([None], dtype=object))),
    "probe with a pickle": forged("probe.npz", pickled),
    "probe a zip bomb": forged("probe.npz", zip_bomb),
    "probe promising a terabyte": forged("probe.npz", lying_npy),
    "parity a list": forged("parity.json", b"[]"),
    "parity without a tolerance": forged("parity.json", b"{}"),
    "parity with an infinite tolerance": forged("parity.json", b'{"probe_tolerance": 1e999}'),
    "parity with a tolerance of 0": forged("parity.json", b'{"probe_tolerance": 0}'),
    "parity with a text tolerance": forged("parity.json", b'{"probe_tolerance": "1"}'),
    "model a list": forged("model.json", b"[]"),
    "model without sizes": model_field("student", value={}),
    "model with a vocabulary of text": model_field("student", "vocab", value="30522"),
    "model with a vocabulary of 0": model_field("student", "vocab", value=0),
    "model with a vocabulary of 2^60": model_field("student", "vocab", value=2**60),
    "model without text": model_field("text", value=None),
    "model that forgets its features": model_field("features", value=None),
    "model with features of a list": model_field("features", value=[1]),
}
