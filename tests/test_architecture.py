"""ARCHITECTURE.md is true: what it names is there, and its lines can be read."""

import re

import pytest

from tests.copied import ROOT

TEXT = (ROOT / "ARCHITECTURE.md").read_text()
LAWS = re.findall(r"`(tests/\w+\.py)::(\w+)`", TEXT)
FOLDERS = ("traces/", "sim/", "runtime/", "analysis/", "tests/")


def test_lines_are_at_most_120_columns() -> None:
    assert [line for line in TEXT.splitlines() if len(line) > 120] == []


@pytest.mark.parametrize(("file", "test"), LAWS)
def test_an_invariant_has_its_test(file: str, test: str) -> None:
    assert f"def {test}(" in (ROOT / file).read_text()


def test_there_are_invariants_numbered_without_a_gap() -> None:
    part = TEXT.split("### Invariants")[1].split("\n## ")[0]
    numbers = [int(n) for n in re.findall(r"^(\d+)\. ", part, re.M)]
    assert len(numbers) > 15 and numbers == list(range(1, len(numbers) + 1)) and len(numbers) == len(LAWS)


def test_every_path_that_is_named_is_there() -> None:
    named = [name for name in re.findall(r"`([\w/.]+)`", TEXT) if name.startswith(FOLDERS)]
    assert len(named) > 50
    assert [name for name in named if not (ROOT / name).exists()] == []
