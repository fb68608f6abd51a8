"""Small files in the publishers' own formats: what becomes of every field, and that damaged ones are refused with file and line."""

from __future__ import annotations

import csv
import gzip
import io
import json
import sys
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from edgerec.training.data import load_dataset
from edgerec.training.importers import ImportReport, import_dataset
from edgerec.training.twins import twin_groups
from edgerec.training.validate import validate

from edgerec.errors import InputError, MissingExtraError


def table(rows: Sequence[Sequence[object]], *, delimiter: str = ",", encoding: str = "utf-8") -> bytes:
    text = io.StringIO()
    csv.writer(text, delimiter=delimiter, lineterminator="\n").writerows(rows)
    return text.getvalue().encode(encoding)


def put(folder: Path, **files: bytes) -> Path:
    folder.mkdir(exist_ok=True)
    for name, raw in files.items():
        (folder / f"{name}.csv").write_bytes(raw)
    return folder


FEATURES = "color : oak|size : queen |color:brown|odd"
WANDS_PRODUCTS = [
    ["product_id", "product_name", "product_class", "category hierarchy", "product_description", "product_features", "rating_count"],
    [
        0,
        'solid wood "sleigh" bed',
        "Beds",
        "Furniture / Bedroom / Beds",
        "a bed,\nin two lines",
        "color : oak|size : queen |color:brown|odd",
        15,
    ],
    [1, "slow cooker", "", "", "", "", ""],
    [2, "never judged", "Rugs", "Decor", "", "", ""],
    [0, "a second row of product 0", "", "", "", "", ""],
]
WANDS_QUERIES = [["query_id", "query", "query_class"], *([n, f"query {chr(97 + n)} text", "Beds"] for n in range(20))]
WANDS_LABELS = [
    ["id", "query_id", "product_id", "label"],
    *([n, n // 2, n % 2, ("Exact", "Partial", "Irrelevant")[n % 3]] for n in range(40)),
    [40, 0, 0, "Irrelevant"],
]


def wands(folder: Path, **changes: bytes) -> Path:
    tables = {"product": WANDS_PRODUCTS, "query": WANDS_QUERIES, "label": WANDS_LABELS}
    return put(folder, **{name: table(rows, delimiter="\t") for name, rows in tables.items()} | changes)


def test_wands(tmp_path: Path) -> None:
    report = import_dataset("wands", wands(tmp_path / "source"), tmp_path / "out")
    data = load_dataset(tmp_path / "out")
    bed = data.items["0"]
    assert (bed.title, bed.text, bed.category) == ('solid wood "sleigh" bed', "a bed,\nin two lines", "Furniture / Bedroom / Beds")
    assert bed.attributes == {"color": "oak, brown", "size": "queen"}
    assert data.items["1"].attributes == {}
    assert (data.grade_min, data.grade_max) == (0.0, 2.0)
    grades = {query_id: its for judged in data.qrels.values() for query_id, its in judged.items()}
    assert grades["0"] == {"0": 1.0, "1": 1.0}, "2 and 0 for one pair are averaged"
    assert grades["1"] == {"0": 0.0, "1": 2.0}
    assert set(data.qrels) == {"train", "dev", "test"}
    assert report == ImportReport(
        str(tmp_path / "out"),
        items=2,
        queries=20,
        judgements={split: sum(map(len, judged.values())) for split, judged in data.qrels.items()},
        notes={
            "products without a judgement left out": 1,
            "products with a repeated id left out": 1,
            "judgements averaged with others of their pair": 1,
        },
    )


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"label": table([["id", "query_id", "product_id", "label"], [0, 1, 0, ""]], delimiter="\t")}, r"label\.csv:2: label is ''"),
        ({"label": table([["id", "query_id", "product_id", "label"], [0, 99, 0, "Exact"]], delimiter="\t")}, r"label\.csv:2: query '99'"),
        ({"label": table([["id", "query_id", "product_id", "label"], [0, 1, 77, "Exact"]], delimiter="\t")}, r"\['77'\]"),
        ({"label": table([["id", "query_id", "product_id", "label"]], delimiter="\t")}, "no judgements"),
        ({"label": table([["id", "query", "product_id", "label"], [0, 1, 0, "Exact"]], delimiter="\t")}, "query_id is missing"),
        ({"label": b"id\tquery_id\tproduct_id\tlabel\n0\t1\t0\n"}, r"label\.csv:2: 3 cells"),
        ({"label": b""}, r"\(none\)"),
        ({"query": table([["query_id", "query"], [1, "a"], [1, "b"]], delimiter="\t")}, r"query\.csv:3: query '1' is there already"),
        ({"query": b"query_id\tquery\n0\tcaf\xe9\n"}, "not utf-8"),
        ({"product": table(WANDS_PRODUCTS)}, "product_id is missing"),
    ],
)
def test_damaged_wands_files_are_refused_and_nothing_is_written(tmp_path: Path, changes: dict[str, bytes], says: str) -> None:
    source = wands(tmp_path / "source", **changes)
    with pytest.raises(InputError, match=says):
        import_dataset("wands", source, tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["source"]


ESCI_LABELS = ["E", "S", "C", "I"]


def esci(folder: Path, *, queries: int = 30, **changes: list[Any]) -> Path:
    """Query n has products n and n + 1; even queries are in the small version, every fifth is in test."""
    folder.mkdir()
    places = range(2 * queries)
    examples: dict[str, list[Any]] = {
        "example_id": list(places),
        "query": [f"{'abcdefghij'[n // 2 % 10]}{'klmnopqrst'[n // 20]} shoes" for n in places],
        "query_id": [n // 2 for n in places],
        "product_id": [f"B{n // 2 + n % 2:03d}" for n in places],
        "product_locale": ["us"] * len(places),
        "esci_label": [ESCI_LABELS[n % 4] for n in places],
        "small_version": [int(n // 2 % 2 == 0) for n in places],
        "large_version": [1] * len(places),
        "split": ["test" if n // 2 % 5 == 0 else "train" for n in places],
    }
    ids = [f"B{n:03d}" for n in range(queries + 1)]
    products: dict[str, list[Any]] = {
        "product_id": [*ids, "B000"],
        "product_title": [*(f"Shoe {n}" for n in ids), "Zapato"],
        "product_description": ["long\ntext", *[None] * (len(ids))],
        "product_bullet_point": ["- point", *[None] * (len(ids))],
        "product_brand": ["Acme", *[None] * (len(ids))],
        "product_color": ["Red", *[None] * (len(ids))],
        "product_locale": [*["us"] * len(ids), "es"],
    }
    for name, columns in (("examples", examples), ("products", products)):
        columns |= {column: values for column, values in changes.items() if column in columns and len(values) == len(columns[column])}
        pq.write_table(pa.table(columns), folder / f"shopping_queries_dataset_{name}.parquet")
    return folder


def test_esci_keeps_the_publishers_test_split_and_cuts_dev_from_train(tmp_path: Path) -> None:
    report = import_dataset("esci", esci(tmp_path / "source"), tmp_path / "out")
    data = load_dataset(tmp_path / "out")
    assert set(data.qrels["test"]) == {"0", "5", "10", "15", "20", "25"}
    assert (len(data.qrels["dev"]), len(data.qrels["train"])) == (2, 22)
    assert data.qrels["test"]["0"] == {"B000": 3.0, "B001": 2.0}
    judged = {query_id: its for split in data.qrels.values() for query_id, its in split.items()}
    assert judged["1"] == {"B001": 1.0, "B002": 0.0}
    shoe = data.items["B000"]
    assert (shoe.title, shoe.text, shoe.brand, shoe.attributes) == ("Shoe B000", "long\ntext\n- point", "Acme", {"color": "Red"})
    assert (data.items["B001"].text, data.items["B001"].brand, data.items["B001"].attributes) == ("", "", {})
    assert (report.items, report.queries, sum(report.judgements.values())) == (31, 30, 60)


def test_esci_small_version_and_locale(tmp_path: Path) -> None:
    source = esci(tmp_path / "source")
    assert import_dataset("esci", source, tmp_path / "small", small=True).queries == 15
    with pytest.raises(InputError, match="no judgements"):
        import_dataset("esci", source, tmp_path / "es", locale="es")
    with pytest.raises(InputError, match="locale 'uk' is unknown"):
        import_dataset("esci", source, tmp_path / "uk", locale="uk")


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"esci_label": [None, *["E"] * 59]}, r"examples\.parquet, row 1: esci_label is None"),
        ({"esci_label": ["E"] * 59 + ["Exact"]}, "row 60: esci_label is 'Exact'"),
        ({"split": ["test", *["train"] * 59]}, "query '0' is in both splits"),
        ({"query": ["a"] * 59 + ["b"]}, "query '29' is 'b' here and 'a' before"),
        ({"query": [None] * 60}, "may be empty"),
        ({"product_id": [f"X{n}" for n in range(60)]}, "60 judged items are not among the products"),
    ],
)
def test_damaged_esci_files_are_refused(tmp_path: Path, changes: dict[str, list[Any]], says: str) -> None:
    with pytest.raises(InputError, match=says):
        import_dataset("esci", esci(tmp_path / "source", **changes), tmp_path / "out")


def test_esci_files_that_are_no_parquet_or_lack_a_column_are_refused(tmp_path: Path) -> None:
    source = esci(tmp_path / "source")
    products = source / "shopping_queries_dataset_products.parquet"
    pq.write_table(pq.read_table(products).drop_columns(["product_brand"]), products)
    with pytest.raises(InputError, match="product_brand is missing"):
        import_dataset("esci", source, tmp_path / "out")
    products.write_bytes(b"not parquet")
    with pytest.raises(InputError, match="cannot be read as parquet"):
        import_dataset("esci", source, tmp_path / "out")
    products.unlink()
    with pytest.raises(InputError, match="is missing"):
        import_dataset("esci", source, tmp_path / "out")


def test_esci_without_pyarrow_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = esci(tmp_path / "source")
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(MissingExtraError, match=r"edgerec\[train\]"):
        import_dataset("esci", source, tmp_path / "out")


TERMS = [
    "angle bracket",
    "l bracket",
    "deck over",
    "rain shower head",
    "shower only faucet",
    "convection otr",
    "emergency light",
    "mdf 3/4",
]


def homedepot(folder: Path, **changes: bytes) -> Path:
    train = [["id", "product_uid", "product_title", "search_term", "relevance"]]
    train += [[str(n), str(100001 + n // 2), f"Bracket {n // 2} 30° x 4½ in.", f" {term} ", str(1 + n % 3)] for n, term in enumerate(TERMS)]
    descriptions = [["product_uid", "product_description"], *([100001 + n, f'Holds "{n}"\nof them'] for n in range(4))]
    attributes = [
        ["product_uid", "name", "value"],
        [100001, "Bullet02", "second"],
        [100001, "Bullet01", "first"],
        [100001, "MFG Brand Name", "Simpson"],
        [100001, "Material", "Steel"],
        ["", "", ""],
        [999999, "Material", "of a product that is not judged"],
    ]
    tables = {"train": train, "product_descriptions": descriptions, "attributes": attributes}
    return put(folder, **{name: table(rows, encoding="latin-1") for name, rows in tables.items()} | changes)


def test_homedepot(tmp_path: Path) -> None:
    report = import_dataset("homedepot", homedepot(tmp_path / "source"), tmp_path / "out")
    data = load_dataset(tmp_path / "out")
    item = data.items["100001"]
    assert item.title == "Bracket 0 30° x 4½ in."
    assert item.text == 'Holds "0"\nof them\nfirst\nsecond'
    assert (item.brand, item.attributes) == ("Simpson", {"Material": "Steel"})
    assert sorted(data.queries.values()) == sorted(TERMS)
    assert list(data.queries) == [f"q{place:05d}" for place in range(len(TERMS))]
    assert (data.grade_min, data.grade_max) == (1.0, 3.0)
    assert report.notes == {"attribute rows without a product or a name left out": 1}
    assert len(data.items) == 4


def test_homedepot_takes_the_zip_files_of_the_publisher(tmp_path: Path) -> None:
    source = homedepot(tmp_path / "source")
    plain = import_dataset("homedepot", source, tmp_path / "plain")
    for path in sorted(source.glob("*.csv")):
        with zipfile.ZipFile(f"{path}.zip", "w") as archive:
            archive.write(path, path.name)
        path.unlink()
    zipped = import_dataset("homedepot", source, tmp_path / "zipped")
    assert zipped.judgements == plain.judgements
    assert load_dataset(tmp_path / "zipped").sha256 == load_dataset(tmp_path / "plain").sha256
    (source / "train.csv.zip").write_bytes(b"PK not a zip")
    with pytest.raises(InputError, match="cannot be opened"):
        import_dataset("homedepot", source, tmp_path / "broken")


@pytest.mark.parametrize("relevance", ["", "nan", "3.5", "0", "high"])
def test_a_grade_that_is_no_grade_is_refused(tmp_path: Path, relevance: str) -> None:
    header = ["id", "product_uid", "product_title", "search_term", "relevance"]
    source = homedepot(tmp_path / "source", train=table([header, [2, 100001, "A", "b", "2.33"], [3, 100001, "A", "c", relevance]]))
    with pytest.raises(InputError, match=r"train\.csv:3: relevance is"):
        import_dataset("homedepot", source, tmp_path / "out")


def crowdflower(folder: Path, rows: Sequence[Sequence[object]] = ()) -> Path:
    header = ["id", "query", "product_title", "product_description", "median_relevance", "relevance_variance"]
    default = [[n, f"query {'abcdefghij'[n % 10]}", f"Title {n}", f"<p>Text {n}</p>", 1 + n % 4, 0.0] for n in range(40)]
    return put(folder, train=table([header, *(rows or default)]))


def test_crowdflower_makes_one_item_of_equal_title_and_description(tmp_path: Path) -> None:
    rows = [
        [1, "led lights", "Wreath, lit", 'with "quotes"\r\nand lines', 4, 0.0],
        [4, "led lights", "Wreath, lit", 'with "quotes"\r\nand lines', 1, 0.47],
        [5, "wreath", "Wreath, lit", 'with "quotes"\r\nand lines', 3, 0.0],
        [8, "projector", "Wreath, lit", "", 2, 0.47],
    ]
    report = import_dataset("crowdflower", crowdflower(tmp_path / "source", rows), tmp_path / "out")
    data = load_dataset(tmp_path / "out")
    assert {item_id: (item.title, item.text) for item_id, item in data.items.items()} == {
        "cf00000": ("Wreath, lit", 'with "quotes"\r\nand lines'),
        "cf00001": ("Wreath, lit", ""),
    }
    grades = {data.queries[query_id]: its for judged in data.qrels.values() for query_id, its in judged.items()}
    assert grades == {"led lights": {"cf00000": 2.5}, "wreath": {"cf00000": 3.0}, "projector": {"cf00001": 2.0}}
    assert report.notes == {"judgements averaged with others of their pair": 1}


def test_a_cut_gzip_file_and_a_quote_never_closed_are_refused(tmp_path: Path) -> None:
    source = crowdflower(tmp_path / "source")
    raw = (source / "train.csv").read_bytes()
    (source / "train.csv.gz").write_bytes(gzip.compress(raw)[:-10])
    (source / "train.csv").unlink()
    with pytest.raises(InputError, match="copy the publisher's file again"):
        import_dataset("crowdflower", source, tmp_path / "out")
    (source / "train.csv").write_bytes(raw + b'41,query z,"never closed')
    with pytest.raises(InputError, match=r"train\.csv:42: 3 cells"):
        import_dataset("crowdflower", source, tmp_path / "out")


@pytest.mark.parametrize("kind", ["wands", "esci", "homedepot", "crowdflower"])
def test_what_is_imported_is_sound_and_the_same_for_the_same_seed(tmp_path: Path, kind: str) -> None:
    source = {"wands": wands, "esci": esci, "homedepot": homedepot, "crowdflower": crowdflower}[kind](tmp_path / "source")
    import_dataset(kind, source, tmp_path / "one", seed=3)
    import_dataset(kind, source, tmp_path / "two", seed=3)
    assert validate(tmp_path / "one").errors == ()
    one, two = load_dataset(tmp_path / "one"), load_dataset(tmp_path / "two")
    assert one.sha256 == two.sha256
    sides = {query_id: split for split, judged in one.qrels.items() for query_id in judged}
    ids = [query_id for query_id in one.queries if sides[query_id] != "test"]
    for query_id, group in zip(ids, twin_groups([one.queries[query_id] for query_id in ids]), strict=True):
        assert sides[query_id] == sides[ids[group]]
    assert json.loads((tmp_path / "one" / "dataset.json").read_text())["split_seed"] == 3


def test_another_seed_gives_another_split(tmp_path: Path) -> None:
    source = crowdflower(tmp_path / "source")
    dev = []
    for seed in range(4):
        import_dataset("crowdflower", source, tmp_path / str(seed), seed=seed)
        dev.append(frozenset(load_dataset(tmp_path / str(seed)).qrels["dev"]))
    assert len(set(dev)) > 1


def test_a_taken_folder_an_unknown_kind_and_no_source_are_refused(tmp_path: Path) -> None:
    source = crowdflower(tmp_path / "source")
    with pytest.raises(InputError, match="not empty"):
        import_dataset("crowdflower", source, source)
    with pytest.raises(InputError, match="kind 'amazon' is unknown"):
        import_dataset("amazon", source, tmp_path / "out")
    with pytest.raises(InputError, match="not a folder"):
        import_dataset("crowdflower", source / "train.csv", tmp_path / "out")
    with pytest.raises(InputError, match=r"query\.csv is missing"):
        import_dataset("wands", source, tmp_path / "out")
    (tmp_path / "out").mkdir()
    assert import_dataset("crowdflower", source, tmp_path / "out").items == 40
