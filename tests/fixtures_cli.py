"""The command line, in this process."""

from __future__ import annotations

from click.testing import CliRunner, Result

from edgerec.cli import cli


def run(*words: object, text: str | None = None) -> Result:
    """``edgerec`` with these words, and ``text`` on its standard input."""
    return CliRunner().invoke(cli, [str(word) for word in words], input=text, prog_name="edgerec")


def ok(*words: object, text: str | None = None) -> Result:
    """The same, and it succeeds."""
    result = run(*words, text=text)
    assert result.exit_code == 0, f"{result.output}\n{result.exception!r}"
    return result
