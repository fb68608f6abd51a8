"""The README keeps its word: its example runs, its commands, targets and links exist."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import click
import pytest
from click.testing import CliRunner
from fixtures_export import make_export

from edgerec.cli import cli

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
DOCUMENTS = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])
BLOCKS = re.findall(r"^```(\w+)\n(.*?)^```", README, re.MULTILINE | re.DOTALL)
SHELL_LINES = [line for language, text in BLOCKS if language == "bash" for line in text.splitlines() if line]
COMMANDS = [shlex.split(line, comments=True) for line in SHELL_LINES]


def test_the_example_stands_by_line_30_and_has_at_most_10_lines() -> None:
    (example,) = [text for language, text in BLOCKS if language == "python"]
    assert README[: README.index(example)].count("\n") < 30
    assert len([line for line in example.splitlines() if line.strip()]) <= 10


def test_the_example_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(tmp_path)
    make_export(tmp_path / "export")
    shop = ["data", "simulate", "shop", "--items", "60", "--queries", "12", "--users", "5", "--events", "0"]
    for words in (shop, ["build-engine", "export", "bundle"], ["build-catalog", "shop/corpus.jsonl", "bundle", "catalog"]):
        result = CliRunner().invoke(cli, words)
        assert result.exit_code == 0, result.output
    (example,) = [text for language, text in BLOCKS if language == "python"]
    exec(compile(example, "README.md", "exec"), {})
    first, second, last = capsys.readouterr().out.splitlines()
    assert {first.split()[0], second.split()[0]} <= {"p00003", "p00017", "new"}
    assert last.startswith("() ")


@pytest.mark.parametrize("words", [w for w in COMMANDS if w[0] == "edgerec"], ids=" ".join)
def test_commands_and_their_options_exist(words: list[str]) -> None:
    command: click.Command = cli
    rest = words[1:]
    while isinstance(command, click.Group):
        command, rest = command.commands[rest[0]], rest[1:]
    known = {option for parameter in command.params if isinstance(parameter, click.Option) for option in parameter.opts}
    assert {word for word in rest if word.startswith("--")} - known == set()
    wanted = {max(p.opts, key=len) for p in command.params if isinstance(p, click.Option) and p.required}
    assert wanted - set(rest) == set()


def test_every_command_is_mentioned() -> None:
    names = [
        f"{name} {inner}" if inner else name
        for name, command in cli.commands.items()
        for inner in (command.commands if isinstance(command, click.Group) else [""])
    ]
    assert [name for name in names if f"edgerec {name}" not in README] == []


def test_make_targets_exist() -> None:
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    mentioned = {words[1] for words in COMMANDS if words[0] == "make"}
    assert mentioned
    assert mentioned <= targets


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_links_lead_somewhere(document: Path) -> None:
    targets = re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", document.read_text(encoding="utf-8"))
    assert [link for link in targets if "://" not in link and not (document.parent / link).exists()] == []


def test_extras_of_the_install_lines_exist() -> None:
    project = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    extras = re.findall(r"edgerec\[(\w+)\]", README)
    assert extras
    assert [extra for extra in extras if f"\n{extra} = [" not in project] == []
