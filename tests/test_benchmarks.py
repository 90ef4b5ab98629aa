"""`make bench` measures everything, keeps it, and compares it with what was kept before."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

RUN = Path(__file__).parent.parent / "benchmarks" / "run.py"


@pytest.mark.slow  # two minutes: it learns maps and stores images
def test_the_benchmarks_print_one_table_and_keep_what_they_print(tmp_path: Path):
    kept = tmp_path / "kept.json"
    before = {"case": "hopmem --help", "peer": "python -c 'import torch'", "ratio": 9.87}
    kept.write_text(json.dumps({"ratios": [before]}))
    command = [sys.executable, str(RUN), "--quick", "--json", str(tmp_path / "new.json"), "--against", str(kept)]
    shown = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    found = json.loads((tmp_path / "new.json").read_text())
    rows = [line for line in shown.splitlines() if line.startswith("| ") and not line.startswith("| hopmem | over")]
    assert len(rows) == len(found["ratios"]) >= 15
    for line, each in zip(rows, found["ratios"], strict=True):
        assert line.startswith(f"| {each['case']} | {each['peer']} | {each['ratio']:.2f} |")
        assert 0 < each["low"] <= each["ratio"] <= each["high"]
        assert each["error"] is None or each["error"] <= 1e-5
    assert [line for line in rows if "| 9.87 |" in line] == [row for row in rows if row.startswith("| hopmem --help")]
