"""Reports: JSON that any parser reads, tables that fit, and names that can't upset the terminal."""

import io
import json
import math
import sys
from typing import Any

import pytest

from hopmem.patterns import Skipped
from hopmem.pipeline import Outcome
from hopmem.report import Style, show, show_lines, to_json
from hopmem.results import Match, RetrieveResult, StoreResult

UGLY = [
    "[red]x[/red]",
    "[/]",
    "a\\[b]\\",
    "bell\a",
    "\x1b[31mred",
    "new\nline",
    "tab\there",
    "\u202eevil",
    "byte\udcff",
    "a:heart:b",
]


def match(name: str = "a.png", **changes: Any) -> Match:
    facts: dict[str, Any] = {"query": name, "match": name, "index": 0, "confidence": 0.9, "margin": 0.8, "support": 1}
    facts |= {"state": "single", "steps": 1, "converged": True, "energy": -0.5}
    return Match(**facts | changes)


def retrieved(*matches: Match, beta: float = 2.0, **said: Any) -> Outcome[RetrieveResult]:
    return Outcome(RetrieveResult(alpha=1.0, beta=beta, steps=1, results=list(matches)), "cpu", **said)


def stored(bank: str = "bank", duplicate: str = "a") -> Outcome[StoreResult]:
    return Outcome(StoreResult(bank, 3, 2, [2], "uint8", [[duplicate, "b"]], 123), "cpu")


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_what_is_not_finite_is_null(value, capsys):
    outcome = retrieved(match(energy=value, confidence=value), beta=value)
    said = to_json(outcome, "retrieve")
    assert (said["beta"], said["results"][0]["energy"], said["results"][0]["confidence"]) == (None, None, None)
    json.dumps(said, allow_nan=False)
    show_lines(outcome.result.results)
    assert json.loads(capsys.readouterr().out)["energy"] is None


@pytest.mark.parametrize("name", UGLY)
def test_json_keeps_a_name_and_stays_utf_8(name, capsys):
    show(retrieved(match(name)), "retrieve", Style(as_json=True))
    out = capsys.readouterr().out
    expected = name.encode("utf-8", "backslashreplace").decode()
    assert json.loads(out)["results"][0]["match"] == expected
    assert out.count("\n") == 1


def shown(capsys, monkeypatch, outcome: Outcome[Any], columns: int = 80) -> tuple[str, str]:
    monkeypatch.setenv("COLUMNS", str(columns))
    show(outcome, "retrieve", Style())
    output = capsys.readouterr()
    return output.out, output.err


@pytest.mark.parametrize("columns", [20, 40, 80])
def test_tables_fit_and_fold_long_names_whole(columns, capsys, monkeypatch):
    name = "deep/" * 30 + "end.png"
    for outcome in (retrieved(match(name)), stored(name)):
        out, _ = shown(capsys, monkeypatch, outcome, columns)
        assert max(len(line) for line in out.splitlines()) <= columns
    if columns == 80:
        out, _ = shown(capsys, monkeypatch, stored(name))
        cells = [line.split("│")[2].strip() for line in out.splitlines() if line.startswith("│")]
        assert name in "".join(cells)


def printable(name: str) -> str:
    """A name as a terminal may see it: its characters, or escapes of those that would act on it."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape", "backslashreplace").decode() for c in name)


@pytest.mark.parametrize("name", UGLY)
@pytest.mark.parametrize("place", ["answer", "bank", "duplicate"])
def test_a_name_is_shown_in_tables_as_it_is_with_controls_escaped(place, name, capsys, monkeypatch):
    outcomes = {"answer": retrieved(match(name)), "bank": stored(bank=name), "duplicate": stored(duplicate=name)}
    out, _ = shown(capsys, monkeypatch, outcomes[place])
    assert all(c.isprintable() for c in out.replace("\n", ""))
    assert printable(name) in out


@pytest.mark.parametrize("name", UGLY)
def test_a_name_is_shown_in_warnings_as_it_is_with_controls_escaped(name, capsys, monkeypatch):
    outcome = retrieved(match(), warnings=[f"about {name}"], skipped=[Skipped(name, "broken")])
    _, err = shown(capsys, monkeypatch, outcome)
    assert err.splitlines() == [f"warning: about {printable(name)}", f"skipped: {printable(name)}: broken"]


def test_a_long_warning_stays_one_line(capsys, monkeypatch):
    _, err = shown(capsys, monkeypatch, retrieved(match(), warnings=["word " * 60 + "end"]), columns=40)
    assert err.count("\n") == 1


@pytest.mark.parametrize("encoding", ["utf-8", "cp1252", "ascii"])
def test_a_terminal_of_any_encoding_gets_the_table(encoding, monkeypatch):
    raw = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(raw, encoding=encoding, write_through=True))
    show(retrieved(match("日本.png", match=None)), "retrieve", Style())
    out = raw.getvalue().decode(encoding)
    assert ("日本.png" if encoding == "utf-8" else r"\u65e5\u672c.png") in out
    assert "rejected" in out
