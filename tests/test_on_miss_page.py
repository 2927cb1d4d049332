"""docs/on-a-miss.md: every picture is what its commands print."""

import re
from pathlib import Path

import pytest

from tests.forked import Forks
from tests.pages import DocPage

pytestmark = pytest.mark.machine
PAGE = DocPage("on-a-miss.md")
SEMANTICS = ("stream ", "..4=", "5x", "remote ", "cpu~", "+=", "admit ", "not admitted", "slowed", "|vis|")


def test_every_picture_is_what_its_commands_print(tmp_path: Path, commands: Forks) -> None:
    assert (
        set(PAGE.files) == {"small-machine.toml", "small.jsonl", "small.toml", "slow-link.toml"}
        and len(PAGE.blocks) == 20
    )
    PAGE.check(PAGE.write(tmp_path), commands)


def test_the_pictures_show_all_that_there_is() -> None:
    for mark in SEMANTICS:
        assert any(mark in block.text.partition("\nns")[2] for block in PAGE.blocks), mark


def test_every_flag_on_a_miss_is_on_the_page(commands: Forks) -> None:
    shown = commands.call("sim.run", "--help").stdout.partition("\non a miss:")[2].partition("\n\n")[0]
    flags = re.findall(r"^  (--[\w-]+)", shown, re.M)
    assert len(flags) > 12
    assert [flag for flag in flags if flag not in PAGE.text] == []
