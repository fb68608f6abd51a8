"""Bundles: what is written is read back, what is damaged is refused, and nothing is left half done."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgerec.bundle import (
    BundleReader,
    content_id,
    describe,
    read_file,
    read_json,
    read_manifest,
    verify_bundle,
)
from edgerec.bundle_writer import check_target, write_bundle
from edgerec.errors import BundleError
from edgerec.manifest import Manifest, parse_json

TEXT = {"max_tokens": 8, "prefix": [1]}
FILES: dict[str, bytes | Path] = {
    "engine.onnx": b"not a real graph",
    "tokenizer.json": b"{}",
    "features.json": b"null",
    "model.json": json.dumps({"name": "m", "text": TEXT}).encode(),
    "parity.json": b'{"tau": 1.0}',
}


def write(path: Path, files: dict[str, bytes | Path] = FILES, **changes: Any) -> Manifest:
    fields: dict[str, Any] = {
        "model_version": "m-fp32-00000000",
        "backend": "ort",
        "precision": "fp32",
        "content_id": content_id(b"{}", None, TEXT),
        "fingerprint": {"os": "linux", "cpu_flags": ["avx2", "fma"]},
    }
    return write_bundle(path, files, **{**fields, **changes})


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    write(tmp_path / "bundle")
    return tmp_path / "bundle"


def test_a_written_bundle_reads_back_and_verifies(tmp_path: Path) -> None:
    written = write(tmp_path / "bundle")
    assert read_manifest(tmp_path / "bundle") == written == verify_bundle(tmp_path / "bundle")
    assert {name: read_file(tmp_path / "bundle", written, name) for name in written.files} == FILES
    assert written.engine_file == "engine.onnx"
    assert written.created.endswith("Z")


def test_files_may_be_given_as_paths(tmp_path: Path) -> None:
    source = tmp_path / "graph"
    source.write_bytes(b"x" * (3 << 20))
    manifest = write(tmp_path / "bundle", {**FILES, "engine.onnx": source})
    assert manifest.files["engine.onnx"].bytes == 3 << 20
    assert verify_bundle(tmp_path / "bundle") == manifest


def test_nothing_but_the_bundle_is_left_behind(tmp_path: Path) -> None:
    write(tmp_path / "bundle")
    write(tmp_path / "bundle", replace=True)
    assert os.listdir(tmp_path) == ["bundle"]


def test_files_are_readable_by_others_as_the_umask_allows(tmp_path: Path) -> None:
    old = os.umask(0o022)
    try:
        write(tmp_path / "bundle")
    finally:
        os.umask(old)
    assert (tmp_path / "bundle").stat().st_mode & 0o777 == 0o755
    assert (tmp_path / "bundle" / "engine.onnx").stat().st_mode & 0o777 == 0o644


def test_an_existing_path_is_not_replaced_unless_asked(bundle: Path) -> None:
    with pytest.raises(BundleError, match="exists"):
        write(bundle, model_version="other")
    assert read_manifest(bundle).model_version == "m-fp32-00000000"
    write(bundle, model_version="other", replace=True)
    assert read_manifest(bundle).model_version == "other"


def test_a_folder_that_is_no_bundle_is_never_replaced(tmp_path: Path) -> None:
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "letter.txt").write_text("dear")
    with pytest.raises(BundleError, match="not a bundle"):
        write(tmp_path / "home", replace=True)
    assert (tmp_path / "home" / "letter.txt").read_text() == "dear"


def test_a_symbolic_link_is_not_replaced(bundle: Path, tmp_path: Path) -> None:
    (tmp_path / "current").symlink_to(bundle)
    with pytest.raises(BundleError, match="symbolic link"):
        check_target(tmp_path / "current", replace=True)


@pytest.mark.parametrize("name", ["../escape", "a/b", "/etc/x", "", ".hidden", "manifest.json", "naïve", "a" * 129])
def test_a_bad_file_name_is_refused_and_leaves_nothing(tmp_path: Path, name: str) -> None:
    with pytest.raises(BundleError):
        write(tmp_path / "bundle", {**FILES, name: b"x"})
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize(
    "changes",
    [{"backend": "abacus"}, {"precision": "int3"}, {"model_version": "a b"}, {"content_id": "xyz"}, {"fingerprint": {"os": 1}}],
)
def test_what_could_not_be_read_is_not_written(tmp_path: Path, changes: dict[str, Any]) -> None:
    with pytest.raises(BundleError):
        write(tmp_path / "bundle", **changes)
    assert os.listdir(tmp_path) == []


def test_a_missing_source_file_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="could not be written"):
        write(tmp_path / "bundle", {**FILES, "engine.onnx": tmp_path / "absent"})
    assert os.listdir(tmp_path) == []


def test_a_failed_rename_brings_the_old_bundle_back(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rename, calls = os.rename, []

    def second_fails(source: Path, target: Path) -> None:
        calls.append(source)
        if len(calls) == 2:
            raise OSError("disk on fire")
        rename(source, target)

    monkeypatch.setattr(os, "rename", second_fails)
    with pytest.raises(BundleError, match="disk on fire"):
        write(bundle, model_version="other", replace=True)
    assert verify_bundle(bundle).model_version == "m-fp32-00000000"
    assert os.listdir(bundle.parent) == ["bundle"]


def test_a_changed_byte_is_found_by_verify_and_by_read(bundle: Path) -> None:
    manifest = read_manifest(bundle)
    (bundle / "engine.onnx").write_bytes(b"not a real graPh")
    with pytest.raises(BundleError, match=r"engine\.onnx has sha256"):
        verify_bundle(bundle)
    with pytest.raises(BundleError, match=r"engine\.onnx has sha256"):
        read_file(bundle, manifest, "engine.onnx")


@pytest.mark.parametrize("begun", [True, False], ids=["by two threads", "by one"])
def test_a_large_file_is_hashed_in_chunks_and_a_changed_byte_is_found_in_any(tmp_path: Path, begun: bool) -> None:
    content = bytes(range(256)) * 4096 * 2 + b"the rest"
    manifest = write(tmp_path / "bundle", {**FILES, "engine.onnx": content})
    assert [len(manifest.files[name].chunks) for name in ("engine.onnx", "model.json")] == [3, 0]
    for place in (0, (1 << 20) - 1, 1 << 20, len(content) - 1):
        damaged = bytearray(content)
        damaged[place] ^= 1
        for data, refused in ((content, False), (bytes(damaged), True)):
            (tmp_path / "bundle" / "engine.onnx").write_bytes(data)
            reader = BundleReader(tmp_path / "bundle")
            if begun:
                reader.begin("engine.onnx")
            if not refused:
                assert bytes(reader.map("engine.onnx")) == content
                continue
            with pytest.raises(BundleError, match=rf"engine\.onnx has sha256 .* from byte {place >> 20 << 20} on"):
                reader.map("engine.onnx")
            with pytest.raises(BundleError, match=r"engine\.onnx has sha256"):
                verify_bundle(tmp_path / "bundle")


def test_hashing_that_was_begun_leaves_it_to_map_to_complain(tmp_path: Path) -> None:
    write(tmp_path / "bundle", FILES)
    (tmp_path / "bundle" / "engine.onnx").unlink()
    reader = BundleReader(tmp_path / "bundle")
    reader.begin("engine.onnx")
    reader.begin("no such file")
    with pytest.raises(BundleError, match="cannot be opened"):
        reader.map("engine.onnx")


def test_a_file_that_is_not_listed_cannot_be_read(bundle: Path) -> None:
    with pytest.raises(BundleError, match="not listed"):
        read_file(bundle, read_manifest(bundle), "../../etc/passwd")


def test_files_of_another_model_are_found_by_content_id(tmp_path: Path) -> None:
    write(tmp_path / "bundle", {**FILES, "tokenizer.json": b'{"other": 1}'})
    with pytest.raises(BundleError, match="content_id"):
        verify_bundle(tmp_path / "bundle")


def test_content_id_ignores_key_order_and_separates_its_parts() -> None:
    assert content_id(b"t", {"a": 1, "b": 2}, {}) == content_id(b"t", {"b": 2, "a": 1}, {})
    assert (
        len({content_id(b"t", {"a": 1}, {}), content_id(b"t", {}, {"a": 1}), content_id(b"", {"a": 1}, {}), content_id(b"t", None, {})})
        == 4
    )


def test_describe_is_plain_json(bundle: Path) -> None:
    shown = describe(bundle)
    assert json.loads(json.dumps(shown)) == shown
    assert shown["model"]["name"] == "m"
    assert shown["parity"] == {"tau": 1.0}
    assert shown["total_bytes"] == sum(len(value) for value in FILES.values() if isinstance(value, bytes))


def test_a_missing_bundle_is_a_bundle_error(tmp_path: Path) -> None:
    for call in (read_manifest, verify_bundle, describe):
        with pytest.raises(BundleError, match="cannot be opened"):
            call(tmp_path / "absent")


def test_read_json_refuses_what_is_not_json(tmp_path: Path) -> None:
    manifest = write(tmp_path / "bundle", {**FILES, "parity.json": b'{"tau": NaN}'})
    with pytest.raises(BundleError, match="NaN"):
        read_json(tmp_path / "bundle", manifest, "parity.json")


@pytest.mark.parametrize(
    "data",
    [b"", b"\xff\xfe", b"{", b'{"a": 1, "a": 2}', b"[NaN]", b"[-Infinity]", b"[1e999]", b"[1" + b"0" * 5000 + b"]", b"[" * 100_000],
)
def test_strict_json_refuses(data: bytes) -> None:
    with pytest.raises(BundleError, match="valid JSON"):
        parse_json(data, "x")


def test_strict_json_bounds_nesting() -> None:
    assert parse_json(b"[" * 64 + b"]" * 64, "x")
    with pytest.raises(BundleError, match="nested"):
        parse_json(b"[" * 66 + b"]" * 66, "x")


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)


@settings(max_examples=150, deadline=None)
@given(
    key=st.sampled_from(["format", "version", "model_version", "backend", "precision", "content_id", "created", "fingerprint", "files"]),
    value=json_values,
)
def test_any_value_anywhere_gives_a_manifest_or_a_bundle_error(key: str, value: Any) -> None:
    entry = {"sha256": "0" * 64, "bytes": 1}
    good = {
        "format": "edgerec-bundle",
        "version": 1,
        "model_version": "m",
        "backend": "ort",
        "precision": "fp32",
        "content_id": "0" * 64,
        "created": "2026-01-01T00:00:00Z",
        "fingerprint": {},
        "files": dict.fromkeys(FILES, entry),
    }
    assert Manifest.from_json(good).to_json() == good
    for broken in ({**good, key: value}, {k: v for k, v in good.items() if k != key}):
        try:
            read = Manifest.from_json(broken)
        except BundleError:
            continue
        assert read.to_json() == broken


@settings(max_examples=150, deadline=None)
@given(position=st.integers(0, 5000), byte=st.integers(0, 255))
def test_any_byte_of_the_manifest_changed_gives_a_manifest_or_a_bundle_error(
    tmp_path_factory: pytest.TempPathFactory, position: int, byte: int
) -> None:
    folder = tmp_path_factory.mktemp("flip") / "bundle"
    write(folder)
    data = bytearray((folder / "manifest.json").read_bytes())
    data[position % len(data)] = byte
    (folder / "manifest.json").write_bytes(data)
    try:
        read_manifest(folder)
        verify_bundle(folder)
    except BundleError:
        pass
    shutil.rmtree(folder.parent)


def test_a_reader_reads_and_decodes_a_file_once(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    reader = BundleReader(bundle)
    reader.verify()
    monkeypatch.setattr("edgerec.bundle._open", None)  # from here on no file is opened
    assert reader.json("model.json") is reader.json("model.json")
    assert reader.read("features.json") is reader.read("features.json")
    assert bytes(reader.map("tokenizer.json")) == (bundle / "tokenizer.json").read_bytes()


def test_a_file_begun_on_a_thread_is_waited_for_and_refused_as_ever(bundle: Path) -> None:
    reader = BundleReader(bundle)
    reader.begin("engine.onnx")
    assert bytes(reader.map("engine.onnx")) == (bundle / "engine.onnx").read_bytes()
    (bundle / "engine.onnx").write_bytes(b"damaged")
    reader = BundleReader(bundle)
    reader.begin("engine.onnx")
    with pytest.raises(BundleError, match=r"engine\.onnx has 7 bytes"):
        reader.map("engine.onnx")
    reader.begin("absent.bin")
    with pytest.raises(BundleError, match=r"absent\.bin is not listed"):
        reader.map("absent.bin")
