"""What every experiment leaves: tables without gaps and a small picture."""

import csv
from pathlib import Path

Rows = list[dict[str, str]]


def table(out: Path, name: str) -> Rows:
    """The rows of a CSV."""
    with (out / f"{name}.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def assert_is_small_picture(path: Path) -> None:
    picture = path.read_bytes()
    assert picture.startswith(b"\x89PNG")
    assert len(picture) < 1_000_000


def assert_has_no_gaps(rows: Rows) -> None:
    assert rows
    assert all(cell not in {"", "nan", "inf", "-inf", None} for row in rows for cell in row.values())
