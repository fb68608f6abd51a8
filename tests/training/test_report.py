"""The HTML report: complete, self-contained, escaped, written whole or not at all."""

from __future__ import annotations

import sys
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from xml.etree import ElementTree

import pytest
from edgerec.training.evaluate import evaluate
from edgerec.training.plot import quality_plot
from edgerec.training.report import render_report, write_report
from edgerec.training.table import Table
from fixtures_judged import Constant, Perfect, Reversed, write_folder

from edgerec.errors import MissingExtraError

VOID = {"meta"}


class Outline(HTMLParser):
    """Tags and attributes; fails on a tag that is closed out of order."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.seen: list[tuple[str, dict[str, str | None]]] = []
        self.feed(page)
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> Table:
    folder = write_folder(tmp_path_factory.mktemp("data") / "toy")
    rankers = {"perfect": Perfect(), "reversed": Reversed(), "constant": Constant()}
    return evaluate(folder, "dev", scorers=rankers, samples=50, latency=True, latency_calls=4, command="make test")


def test_the_page_is_well_formed_and_loads_nothing(table: Table) -> None:
    page = render_report(table)
    outline = Outline(page)
    tags = [tag for tag, _ in outline.seen]
    assert tags.count("svg") == 1
    assert "script" not in tags
    assert "link" not in tags
    for _, attributes in outline.seen:
        for name, value in attributes.items():
            if name in ("src", "href", "xlink:href"):
                assert value is not None
                assert value.startswith("#"), "only references inside the page"
    assert "url(http" not in page
    assert "@import" not in page


def test_the_page_says_what_was_measured_and_how(table: Table) -> None:
    page = render_report(table, title="Tuesday")
    for text in ("<h1>Tuesday</h1>", "toy, split dev", "160 judged pairs", "make test", table.provenance["data_sha256"], "numpy "):
        assert text in page
    for row in table.rows:
        assert row.name in page
        assert f"{row.ndcg.value:.3f}" in page


def test_losses_against_bm25_show_query_titles_and_grades(table: Table) -> None:
    page = render_report(table, losses=2, shown=3)
    assert "reversed: better on 0 queries, worse on 8, equal on 0" in page
    assert page.count('<div class="loss">') == 4, "two each for the reversed and the constant ranker, none for the perfect one"
    assert "red lamps" in page
    assert page.count("<li>") == 4 * 2 * 3


def test_without_losses_no_text_of_the_data_is_in_the_page(table: Table) -> None:
    page = render_report(table, losses=0)
    assert "lamp" not in page
    assert "Where it loses" not in page


def test_names_queries_and_titles_are_escaped(table: Table) -> None:
    evil = "<script>alert('$x_1$')</script>&"
    judged = tuple(replace(one, query=evil, items=tuple(replace(item, title=evil + "\ud800") for item in one.items)) for one in table.lists)
    rows = tuple(replace(row, name=evil) if row.name == "reversed" else row for row in table.rows)
    page = render_report(replace(table, data=evil, rows=rows, lists=judged), title=evil)
    assert "<script" not in page
    assert "&lt;script&gt;alert(" in page
    Outline(page)


def test_a_lone_surrogate_does_not_cost_the_report(table: Table, tmp_path: Path) -> None:
    write_report(table, tmp_path / "report.html", title="a \ud800 b")
    assert "<h1>a ? b</h1>" in (tmp_path / "report.html").read_text(encoding="utf-8")


def test_several_data_sets_share_one_page(table: Table) -> None:
    page = render_report([table, replace(table, data="other")])
    assert "<h2>toy, split dev</h2>" in page
    assert "<h2>other, split dev</h2>" in page


def test_writing_replaces_the_file_and_leaves_nothing_else(table: Table, tmp_path: Path) -> None:
    target = tmp_path / "report.html"
    target.write_text("old")
    write_report(table, target)
    assert target.read_text(encoding="utf-8").startswith("<!doctype html>")
    assert [path.name for path in tmp_path.iterdir()] == ["report.html"]


def test_a_failure_while_writing_keeps_the_old_file(table: Table, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target = tmp_path / "report.html"
    target.write_text("old")

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("edgerec.training.report.os.fsync", full)
    with pytest.raises(OSError, match="No space"):
        write_report(table, target)
    assert target.read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["report.html"]


def test_the_plot_is_valid_svg_and_the_same_every_time(table: Table) -> None:
    for one in (table, replace(table, rows=tuple(replace(row, latency=None) for row in table.rows))):
        svg = quality_plot(one)
        assert ElementTree.fromstring(svg).tag.endswith("svg")
        assert svg == quality_plot(one)
        assert "perfect" in svg


def test_the_plot_survives_undefined_figures(tmp_path: Path) -> None:
    empty = evaluate(write_folder(tmp_path / "toy"), "tiny", scorers={"perfect": Perfect()}, samples=10, command="test")
    Outline(render_report(empty))


def test_the_plot_leaves_matplotlib_settings_alone(table: Table) -> None:
    import matplotlib

    before = dict(matplotlib.rcParams)
    quality_plot(table)
    assert dict(matplotlib.rcParams) == before


def test_without_matplotlib_the_message_names_the_extra(table: Table, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(MissingExtraError, match=r"edgerec\[train\]"):
        quality_plot(table)
