"""docs/counting.md: every picture is what its commands print, and every other command runs."""

from pathlib import Path

import pytest

from tests.forked import Forks
from tests.pages import DocPage, run

pytestmark = pytest.mark.machine
PAGE = DocPage("counting.md")


def test_every_picture_is_what_its_commands_print(tmp_path: Path, commands: Forks) -> None:
    assert set(PAGE.files) == {"small-machine.toml", "small.jsonl", "small.toml"}
    assert len(PAGE.blocks) == 5
    PAGE.check(PAGE.write(tmp_path), commands)


def test_the_experiment_runs(tmp_path: Path, commands: Forks) -> None:
    (line,) = PAGE.commands
    assert "| h39s | mixtral-8x7b | 2 a layer |" in run(line, tmp_path, commands)


def test_every_flag_is_on_the_page() -> None:
    for flag in ("--reset", "--requests", "--skip-prompts", "--warmup-share", "--by"):
        assert flag in PAGE.text
