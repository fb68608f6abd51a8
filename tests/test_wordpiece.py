"""A compiled tokenizer gives the ids of the tokenizers library, or says that it has to be asked; damaged, it is refused."""

from __future__ import annotations

import itertools
import json
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from fixtures_export import CHARACTERS, SPECIAL, WORDS, make_export, write_tokenizer
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, normalizers, pre_tokenizers
from tokenizers.models import BPE, WordPiece

from edgerec import InputError, Item, Ranker
from edgerec._wordpiece import SECTIONS, Wordpiece
from edgerec.builder import build_engine, wordpiece
from edgerec.builder.wordpiece import COMPILED, aligned, compile_tokenizer
from edgerec.builder.wordpiece_check import check_ids
from edgerec.bundle import content_id, read_manifest
from edgerec.bundle_writer import write_bundle
from edgerec.catalog import Catalog, build_catalog
from edgerec.errors import BuildError, BundleError
from edgerec.segment import SectionFile
from edgerec.text import TextEncoder, TextSpec

NO_LIMIT = 1 << 20
# Of every kind that matters: letters with and without accents, of alphabets with and without case, one that is two words, Chinese, and
# prefixes of each other, so that the longest has to be found.
LETTERS = "éßñøçœµαβςσжщяאبकทやカ中한ᄀᄒ\u0301\u0327\u302e0١²"
PIECES = [
    *WORDS,
    *["!", "?", ".", ",", "-", "(", ")", "'", '"', "¿", "…", "。", "€", "☃", "😀", "🛋", "$"],
    "un",
    "unaff",
    "##aff",
    "##affable",
    "##able",
    "##ables",
    "caf",
    "##fe",
    "##fé",
    "naïve",
    "straße",
    "##straße",
]

TOKENIZERS = {
    "uncased": {"lowercase": True},
    "cased": {"lowercase": False},
    "cased and stripped": {"lowercase": False, "strip_accents": True},
    "uncased with accents": {"lowercase": True, "strip_accents": False},
    "not cleaned": {"lowercase": True, "clean_text": False, "handle_chinese_chars": False},
}


def make_tokenizer(**settings: bool) -> Tokenizer:
    pieces = dict.fromkeys(SPECIAL + list(CHARACTERS + LETTERS) + [f"##{c}" for c in CHARACTERS + LETTERS] + PIECES)
    tokenizer = Tokenizer(WordPiece({piece: i for i, piece in enumerate(pieces)}, unk_token="[UNK]", max_input_chars_per_word=20))
    tokenizer.normalizer = normalizers.BertNormalizer(**settings)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.add_special_tokens(SPECIAL)
    return tokenizer


@pytest.fixture(scope="module", params=TOKENIZERS)
def pair(request: pytest.FixtureRequest) -> tuple[Wordpiece, Tokenizer]:
    """A compiled tokenizer and the library's."""
    library = make_tokenizer(**TOKENIZERS[request.param])
    compiled = compile_tokenizer(library.to_str().encode())
    assert compiled.reason == COMPILED
    return Wordpiece(aligned(compiled.data)), library


@pytest.fixture(scope="module")
def uncased() -> tuple[Wordpiece, Tokenizer, bytes]:
    library = make_tokenizer(**TOKENIZERS["uncased"])
    data = compile_tokenizer(library.to_str().encode()).data
    return Wordpiece(aligned(data)), library, data


def ids_of(library: Tokenizer, text: str) -> list[int]:
    ids: list[int] = library.encode(text, add_special_tokens=False).ids
    assert library.encode_batch_fast([text], add_special_tokens=False)[0].ids == ids
    return ids


def assert_same(compiled: Wordpiece, library: Tokenizer, text: str, limit: int = NO_LIMIT) -> bool:
    """Whether the compiled one knows; what it gives is the library's."""
    found = compiled.encode(text, limit)
    if found is None:
        return False
    assert found.dtype == np.int32
    assert found.tolist() == ids_of(library, text)[:limit]
    return True


PARTS = st.sampled_from([*PIECES, *WORDS, *LETTERS, *CHARACTERS, " ", "\t", "\u0301", "[", "[CLS", "\u0345", "É", "İ", "ﬁ", "\u200d"])
TEXTS = st.text(st.characters(exclude_categories=["Cs"])) | st.lists(
    PARTS | st.text(st.characters(exclude_categories=["Cs"]), max_size=3)
).map("".join)


@settings(max_examples=400)
@given(text=TEXTS, limit=st.sampled_from([NO_LIMIT, 1, 3, 8]))
def test_any_text_has_the_ids_of_the_library(pair: tuple[Wordpiece, Tokenizer], text: str, limit: int) -> None:
    assert_same(*pair, text, limit)


@settings(max_examples=200)
@given(texts=st.lists(TEXTS, max_size=8), limit=st.sampled_from([NO_LIMIT, 2]))
def test_a_batch_is_its_texts_alone(uncased: tuple[Wordpiece, Tokenizer, bytes], texts: list[str], limit: int) -> None:
    compiled = uncased[0]
    ids, offsets, asked = compiled.encode_all(texts, limit)
    assert (ids.dtype, offsets.dtype, asked.dtype) == (np.int32, np.int64, np.bool_)
    alone = [compiled.encode(text, limit) for text in texts]
    assert asked.tolist() == [row is None for row in alone]
    rows = [ids[a:b].tolist() for a, b in itertools.pairwise(offsets.tolist())]
    assert rows == [[] if row is None else row.tolist() for row in alone]


@pytest.mark.parametrize(
    "text",
    ["Red LAMP", "unaffable", "Straße straße", "naïve na\u0131ve café", "中国中", "한 \u1112\u1161", "é" * 20, "é" * 21, "İSTANBUL ΣΑΣ", "",
     " \u3000\u00a0 ", "a\u200db", "x" * 5000, "!?…", "[CLS [ SEP]", "\ufffd\ue000\u0378", "e\u0301\u0323", "\u0301 \u20dd"],
)  # fmt: skip
def test_the_library_is_not_needed_for_ordinary_text(pair: tuple[Wordpiece, Tokenizer], text: str) -> None:
    assert assert_same(*pair, text)


@pytest.mark.parametrize("text", ["[CLS]", "red[SEP]lamp", "[[MASK]"])
def test_a_text_with_an_added_token_is_the_librarys(pair: tuple[Wordpiece, Tokenizer], text: str) -> None:
    compiled, _ = pair
    assert compiled.encode(text, NO_LIMIT) is None
    assert compiled.encode_all(["red", text], NO_LIMIT)[2].tolist() == [False, True]
    assert compiled.encode("red lamp " + text, 2) is not None  # what lies behind the limit is not read


def test_marks_that_the_library_puts_in_order_are_the_librarys(uncased: tuple[Wordpiece, Tokenizer, bytes]) -> None:
    compiled, library, _ = uncased
    assert ids_of(library, "a\u302e\U0001d165") == ids_of(library, "a\U0001d165\u302e")
    assert compiled.encode("a\u302e\U0001d165", NO_LIMIT) is None


def test_sixteen_threads_get_the_ids_of_one(uncased: tuple[Wordpiece, Tokenizer, bytes]) -> None:
    compiled, library, _ = uncased
    texts = [f"Red lamp {i} unaffable é中" for i in range(400)]
    serial = [ids_of(library, text) for text in texts]

    def encode(_: int) -> list[list[int]]:
        ids, offsets, _ = compiled.encode_all(texts, NO_LIMIT)
        return [row.tolist() for row in np.split(ids, offsets[1:-1])]

    with ThreadPoolExecutor(16) as pool:
        assert all(rows == serial for rows in pool.map(encode, range(32)))


@pytest.mark.parametrize(("text", "message"), [(b"red", "expected text as str"), (None, "expected text"), ("\ud800", "lone surrogates")])
def test_what_is_no_text_is_an_input_error(uncased: tuple[Wordpiece, Tokenizer, bytes], text: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        uncased[0].encode(text, 8)
    with pytest.raises(InputError, match=message):
        uncased[0].encode_all(["red", text], 8)
    with pytest.raises(InputError, match="limit"):
        uncased[0].encode("red", -1)


def test_the_file_is_the_same_whenever_it_is_made(uncased: tuple[Wordpiece, Tokenizer, bytes], monkeypatch: pytest.MonkeyPatch) -> None:
    _, library, data = uncased
    monkeypatch.setattr(wordpiece, "ask_points", wordpiece.ask_points.__wrapped__)
    monkeypatch.setattr(wordpiece, "check_ids", lambda *_: None)  # as it was when the first was made
    assert compile_tokenizer.__wrapped__(library.to_str().encode()).data == data


def test_the_file_has_the_documented_sections(uncased: tuple[Wordpiece, Tokenizer, bytes], tmp_path: Path) -> None:
    (tmp_path / "tokenizer.bin").write_bytes(uncased[2])
    file = SectionFile(tmp_path / "tokenizer.bin")
    file.verify()
    assert file.names == SECTIONS
    page = (Path(__file__).parents[1] / "docs" / "formats.md").read_text(encoding="utf-8")
    assert all(f"`{name}`" in page for name in SECTIONS)


def test_a_damaged_file_is_refused_or_read_within_its_bounds(uncased: tuple[Wordpiece, Tokenizer, bytes]) -> None:
    data, rng = uncased[2], np.random.default_rng(0)
    refused = 0
    for cut in (0, 1, 63, 64, 65, 64 + 128 * len(SECTIONS), len(data) - 1):
        with pytest.raises(InputError):
            Wordpiece(aligned(data[:cut]))
    for _ in range(300):
        broken = aligned(data)
        # The header and the table are a small part of the file: half of the flips are theirs.
        for place in rng.choice(64 + 128 * len(SECTIONS) if rng.integers(2) else len(data), 3, replace=False).tolist():
            broken[place] ^= 1 << rng.integers(8)
        try:
            Wordpiece(broken).encode_all(["Red unaffable é中!", "[CLS]", "x" * 300], 64)
        except InputError as error:
            refused += "section" in str(error)
    assert refused > 30


def changed(tokenizer: Tokenizer, **parts: object) -> bytes:
    data = json.loads(tokenizer.to_str())
    for name, value in parts.items():
        owner = data["model"] if name in data["model"] else data
        owner[name] = value
    return json.dumps(data).encode()


def other_kinds() -> dict[str, tuple[bytes, str]]:
    plain = make_tokenizer()
    normalized = make_tokenizer()
    normalized.add_tokens([AddedToken("Lampe", normalized=True)])
    bpe = Tokenizer(BPE({"a": 0}, []))
    vocab = {piece: i for piece, i in plain.get_vocab().items() if piece != "[UNK]"}
    return {
        "model": (bpe.to_str().encode(), "its model is BPE; WordPiece is compiled"),
        "normalizer": (changed(plain, normalizer=None), "its normalizer is absent"),
        "pre-tokenizer": (changed(plain, pre_tokenizer={"type": "Whitespace"}), "its pre_tokenizer is Whitespace"),
        "added token": (normalized.to_str().encode(), "'Lampe' is matched in normalised text"),
        "long words": (changed(plain, max_input_chars_per_word=1000), "max_input_chars_per_word is 1000"),
        "no unknown token": (changed(plain, vocab=vocab, added_tokens=[]), "lacks the unknown token"),
        "long piece": (changed(plain, vocab={"[UNK]": 0, "a" * 300: 1}, added_tokens=[]), "of up to 300 bytes"),
    }


@pytest.mark.parametrize("kind", other_kinds())
def test_another_kind_of_tokenizer_is_left_to_the_library_and_the_reason_named(kind: str) -> None:
    tokenizer, why = other_kinds()[kind]
    compiled = compile_tokenizer(tokenizer)
    assert compiled.data == b""
    assert why in compiled.reason


def test_a_compiled_tokenizer_that_differs_is_not_used(
    uncased: tuple[Wordpiece, Tokenizer, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    other = make_tokenizer(lowercase=False)
    with pytest.raises(BuildError, match="other ids than the library for"):
        check_ids(uncased[0], other)
    honest = wordpiece._hash
    monkeypatch.setattr(wordpiece, "_hash", lambda piece, continues: honest(piece, False))
    compiled = compile_tokenizer.__wrapped__(uncased[1].to_str().encode())
    assert compiled.data == b""
    assert "other ids than the library for" in compiled.reason


@pytest.fixture(scope="module")
def export(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_export(tmp_path_factory.mktemp("wordpiece") / "export")


@pytest.fixture(scope="module")
def bundle(export: Path) -> Path:
    report = build_engine(export, export.parent / "bundle")
    assert report.tokenizer == report.to_json()["tokenizer"] == COMPILED
    assert "tokenizer.bin" in read_manifest(report.bundle).files
    return report.bundle


def repacked(bundle: Path, to: Path, **files: bytes | None) -> Path:
    """The bundle with files replaced or left out, sealed again."""
    manifest = read_manifest(bundle)
    content = {name: (bundle / name).read_bytes() for name in manifest.files}
    content |= {name.replace("_", "."): data for name, data in files.items() if data is not None}
    kept = {name: data for name, data in content.items() if files.get(name.replace(".", "_"), b"") is not None}
    model, features = json.loads(kept["model.json"]), json.loads(kept["features.json"])
    identity = content_id(kept["tokenizer.json"], features, model["text"])
    write_bundle(
        to,
        kept,
        model_version=manifest.model_version,
        backend=manifest.backend,
        precision=manifest.precision,
        content_id=identity,
        fingerprint=manifest.fingerprint,
    )
    return to


ITEMS = [Item("1", "Red lamp"), Item("2", "[SEP] sofa"), Item("3", ""), Item("4", "\u302e desk ünique")]


def test_a_bundle_without_it_gives_the_same_catalogue_and_scores(bundle: Path, tmp_path: Path) -> None:
    old = repacked(bundle, tmp_path / "old", tokenizer_bin=None)
    assert not (old / "tokenizer.bin").exists()
    assert read_manifest(old).content_id == read_manifest(bundle).content_id
    catalogs = [
        build_catalog(ITEMS, folder, tmp_path / f"catalog-{i}") and tmp_path / f"catalog-{i}" for i, folder in enumerate((bundle, old))
    ]
    tokens = [Catalog.open(catalog).take(np.arange(4)) for catalog in catalogs]
    for a, b in zip(*(list(taken[:2]) for taken in tokens), strict=True):
        np.testing.assert_array_equal(a, b)
    scores = []
    for folder in (bundle, old):
        with Ranker.open(folder, catalog=catalogs[0], threads=1) as ranker:
            scores.append([ranker.score(query, [*"1234", *ITEMS[:1]]) for query in ("red lamp", "[CLS] red", "\u302e")])
    np.testing.assert_array_equal(*scores)


@pytest.mark.parametrize("name", ["tokenizer.bin", "tokenizer.json"])
def test_a_damaged_file_of_a_bundle_is_refused(bundle: Path, tmp_path: Path, name: str) -> None:
    copy = Path(shutil.copytree(bundle, tmp_path / "copy"))
    data = bytearray((copy / name).read_bytes())
    data[len(data) // 2] ^= 1
    (copy / name).write_bytes(data)
    for verify in (True, False):
        with pytest.raises(BundleError, match=f"{name} has sha256"):
            Ranker.open(copy, verify=verify)
    with pytest.raises(BundleError, match=f"{name} has sha256"):
        build_catalog(ITEMS, copy, tmp_path / "catalog")


def test_a_file_of_another_version_is_refused_though_its_hash_fits(bundle: Path, tmp_path: Path) -> None:
    broken = repacked(bundle, tmp_path / "broken", tokenizer_bin=b"EDRSECT1" + bytes(100))
    with pytest.raises(BundleError, match=r"the compiled tokenizer beside .* build the bundle again"):
        Ranker.open(broken)


def test_the_library_is_loaded_once_by_the_text_that_needs_it(bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    loaded = []
    real = Tokenizer.from_buffer

    class Counted:
        @staticmethod
        def from_buffer(data: bytes) -> Tokenizer:
            loaded.append(len(data))
            return real(data)

    monkeypatch.setattr("tokenizers.Tokenizer", Counted)
    spec = TextSpec.from_json(json.loads((bundle / "model.json").read_text())["text"])
    content = (bundle / "tokenizer.json").read_bytes()
    compiled = aligned((bundle / "tokenizer.bin").read_bytes())
    text = TextEncoder(tmp_path / "gone.json", spec, compiled=compiled, content=content)
    plain = TextEncoder(bundle / "tokenizer.json", spec)
    loaded.clear()
    text.encode_query("red lamp")
    text.encode_items(["red", "lamp"])
    assert loaded == []
    queries = [f"[SEP] red {i}" for i in range(64)]
    with ThreadPoolExecutor(16) as pool:
        found = [ids.tolist() for ids in pool.map(text.encode_query, queries)]
    assert found == [plain.encode_query(query).tolist() for query in queries]
    assert loaded == [len(content)]
    for a, b in zip(text.encode_items(["red", "[SEP]", "lamp"]), plain.encode_items(["red", "[SEP]", "lamp"]), strict=True):
        np.testing.assert_array_equal(a, b)


@given(text=st.text(st.characters(categories=None)))
def test_an_encoder_with_it_gives_what_one_without_gives(encoders: tuple[TextEncoder, TextEncoder], text: str) -> None:
    with_it, without = encoders
    np.testing.assert_array_equal(with_it.encode_query(text), without.encode_query(text))
    for a, b in zip(with_it.encode_items(["red", text, ""]), without.encode_items(["red", text, ""]), strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.fixture(scope="module")
def encoders(bundle: Path) -> tuple[TextEncoder, TextEncoder]:
    spec = TextSpec.from_json(json.loads((bundle / "model.json").read_text())["text"])
    compiled = aligned((bundle / "tokenizer.bin").read_bytes())
    return TextEncoder(bundle / "tokenizer.json", spec, compiled=compiled), TextEncoder(bundle / "tokenizer.json", spec)


def test_opening_and_ranking_do_not_import_the_library(bundle: Path) -> None:
    program = (
        "import sys; from edgerec import Item, Ranker\n"
        f"ranker = Ranker.open({str(bundle)!r}, threads=1)\n"
        "ranker.rank('Red lamp', [Item('1', 'desk lamp'), Item('2', 'sofa')])\n"
        "print('tokenizers' in sys.modules)\n"
        "ranker.rank('[SEP] lamp', [Item('1', 'desk lamp')])\n"
        "print('tokenizers' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "True"]


def test_a_build_without_it_says_why(tmp_path: Path) -> None:
    export = make_export(tmp_path / "export")
    write_tokenizer(export / "tokenizer.json")
    (export / "tokenizer.json").write_bytes(changed(Tokenizer.from_file(str(export / "tokenizer.json")), max_input_chars_per_word=300))
    report = build_engine(export, tmp_path / "bundle")
    assert "max_input_chars_per_word is 300" in report.tokenizer
    assert not (report.bundle / "tokenizer.bin").exists()
    with Ranker.open(report.bundle, threads=1) as ranker:
        assert len(ranker.rank("red lamp", [Item("1", "lamp")])) == 1
