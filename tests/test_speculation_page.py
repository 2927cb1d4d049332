"""docs/speculation.md: every picture is what its commands print, and every other command runs."""

from pathlib import Path

import pytest

from tests.forked import Forks
from tests.pages import DocPage, run

pytestmark = pytest.mark.machine
PAGE = DocPage("speculation.md")


def test_every_picture_is_what_its_commands_print(tmp_path: Path, commands: Forks) -> None:
    assert set(PAGE.files) == {"small-machine.toml", "small.jsonl", "small.toml", "accepted.txt"}
    assert len(PAGE.blocks) == 4
    PAGE.check(PAGE.write(tmp_path), commands)


def test_every_other_command_runs(tmp_path: Path, commands: Forks) -> None:
    said = [run(line, tmp_path, commands) for line in PAGE.commands]
    assert len(said) == 5 and (tmp_path / "report.html").exists()
    assert "a window of" in said[1] and " pays (accept 0.7" in said[1]


def test_every_flag_of_windows_is_on_the_page() -> None:
    for flag in ("--speculate", "--accept", "--draft-ns", "draft-window.recall", "draft-window.width"):
        assert flag in PAGE.text
