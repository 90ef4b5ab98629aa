"""What the fuzzer does for a minute is done here for a moment, and for ever with what it once found."""

import random
import warnings

import pytest

from tests.fuzz.targets import FINDINGS, TARGETS, attempt, mutated

MUTATIONS = 200  # of each kind of file


@pytest.fixture(autouse=True)
def whatever_is_warned_of() -> None:
    warnings.simplefilter("ignore")  # libraries warn of damaged files; that hopmem keeps it to one line is tested apart


@pytest.mark.parametrize("name", list(TARGETS))
def test_what_the_fuzzer_begins_with_is_read(name: str):
    for seed in TARGETS[name].seeds():
        assert attempt(name, seed)


@pytest.mark.parametrize("name", list(TARGETS))
def test_changed_files_are_read_or_refused_in_one_line(name: str):
    draw, seeds = random.Random(0), TARGETS[name].seeds()
    outcomes = [attempt(name, mutated(draw.choice(seeds), draw)) for _ in range(MUTATIONS)]
    assert not all(outcomes)  # some were damaged indeed


@pytest.mark.parametrize("path", sorted(FINDINGS.glob("*/*")), ids=lambda path: f"{path.parent.name}/{path.name}")
def test_what_was_found_is_refused(path):
    assert not attempt(path.parent.name, path.read_bytes())
