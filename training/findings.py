"""What a check of a data folder found: one record each, counted by code, in an order that does not change."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

KEPT_PER_CODE = 100
"""Findings of one code that are kept with their place; all are counted. A broken export has a million of the same."""

_SHOWN_PER_CODE = 5


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing wrong.

    Attributes
    ----------
    code : which check, e.g. ``"orphan-item"``; ``docs/data.md`` lists them.
    file : relative to the folder, e.g. ``"qrels/dev.tsv"``.
    line : from 1; 0 is the file as a whole.
    message : what was found, what was expected.
    """

    code: str
    file: str
    line: int
    message: str

    def __str__(self) -> str:
        return f"{self.file}:{self.line}: {self.message}" if self.line else f"{self.file}: {self.message}"


@dataclass(slots=True)
class Findings:
    """Errors and warnings while they are being collected."""

    errors: list[Finding] = field(default_factory=list)
    warnings: list[Finding] = field(default_factory=list)
    totals: Counter[str] = field(default_factory=Counter)

    def error(self, code: str, file: str, line: int, message: str) -> None:
        """Note what makes the data wrong or unreadable."""
        self._note(self.errors, Finding(code, file, line, message))

    def warn(self, code: str, file: str, line: int, message: str) -> None:
        """Note what is allowed and probably not meant."""
        self._note(self.warnings, Finding(code, file, line, message))

    def _note(self, to: list[Finding], finding: Finding) -> None:
        self.totals[finding.code] += 1
        if self.totals[finding.code] <= KEPT_PER_CODE:
            to.append(finding)


@dataclass(frozen=True, slots=True)
class ValidationReport:
    """The result of ``edgerec data validate``.

    Attributes
    ----------
    counts : of items, queries, judgements by split, events by type.
    grades : split -> grade -> judgements; ranges instead of values where there are more than 20 different grades.
    errors, warnings : at most ``KEPT_PER_CODE`` of each code.
    totals : findings by code, all of them.
    """

    folder: str
    counts: Mapping[str, Any]
    grades: Mapping[str, Mapping[str, int]]
    errors: tuple[Finding, ...]
    warnings: tuple[Finding, ...]
    totals: Mapping[str, int]

    def to_json(self) -> dict[str, Any]:
        """Plain dicts and lists, all of it."""

        def rows(findings: tuple[Finding, ...]) -> list[dict[str, Any]]:
            return [{"code": one.code, "file": one.file, "line": one.line, "message": one.message} for one in findings]

        return {
            "folder": self.folder,
            "ok": not self.errors,
            "counts": {name: dict(value) if isinstance(value, Mapping) else value for name, value in self.counts.items()},
            "grades": {split: dict(histogram) for split, histogram in self.grades.items()},
            "totals": dict(self.totals),
            "errors": rows(self.errors),
            "warnings": rows(self.warnings),
        }

    def to_text(self) -> str:
        """For people: counts, then the first findings of each code."""
        lines = [self.folder]
        for name, value in self.counts.items():
            shown = ", ".join(f"{key} {count:,}" for key, count in value.items()) or "none" if isinstance(value, Mapping) else f"{value:,}"
            lines.append(f"  {name}: {shown}")
        lines += [
            f"  grades in {split}: {', '.join(f'{grade} x {n:,}' for grade, n in seen.items())}" for split, seen in self.grades.items()
        ]
        for title, findings in (("error", self.errors), ("warning", self.warnings)):
            for code in dict.fromkeys(one.code for one in findings):
                lines.append(f"{title} {code} ({self.totals[code]:,})")
                of_code = [one for one in findings if one.code == code]
                lines += [f"  {one}" for one in of_code[:_SHOWN_PER_CODE]]
                if self.totals[code] > _SHOWN_PER_CODE:
                    lines.append(f"  ... and {self.totals[code] - min(len(of_code), _SHOWN_PER_CODE):,} more")
        lines.append(f"{self._total(self.errors):,} errors, {self._total(self.warnings):,} warnings")
        return "\n".join(lines)

    def _total(self, findings: tuple[Finding, ...]) -> int:
        return sum(self.totals[code] for code in {one.code for one in findings})
