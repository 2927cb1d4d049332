"""docs/on-a-miss.md: every picture is what its commands print."""

import re
import shlex
from pathlib import Path

import pytest

from tests.forked import Forks

pytestmark = pytest.mark.machine
PAGE = (Path(__file__).parents[1] / "docs" / "on-a-miss.md").read_text()
FILES = dict(re.findall(r"^`([\w.-]+)`[^\n]*:\n\n```\w+\n(.*?)^```", PAGE, re.S | re.M))
BLOCKS = re.findall(r"^```console\n(.*?)^```", PAGE, re.S | re.M)
SEMANTICS = ("stream ", "..4=", "5x", "remote ", "cpu~", "+=", "admit ", "not admitted", "slowed", "|vis|")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The page's files, and its trace."""
    out = tmp_path_factory.mktemp("page")
    for name, text in FILES.items():
        (out / name).write_text(text)
    return out


def test_every_picture_is_what_its_commands_print(folder: Path, commands: Forks) -> None:
    assert set(FILES) == {"small-machine.toml", "small.jsonl", "small.toml", "slow-link.toml"} and len(BLOCKS) == 20
    for block in BLOCKS:
        lines = [line.removeprefix("$ ") for line in block.splitlines() if line.startswith("$ ")]
        shown = "".join(line + "\n" for line in block.splitlines() if not line.startswith("$ "))
        for line in lines:
            python, m, *words = shlex.split(line)
            assert (python, m) == ("python", "-m")
            done = commands.call(*words, cwd=folder)
            assert done.returncode == 0, f"{line}: {done.stderr}"
        assert done.stdout == shown, lines


def test_the_pictures_show_all_that_there_is() -> None:
    for mark in SEMANTICS:
        assert any(mark in block.partition("\nns")[2] for block in BLOCKS), mark


def test_every_flag_on_a_miss_is_on_the_page(commands: Forks) -> None:
    shown = commands.call("sim.run", "--help").stdout.partition("\non a miss:")[2].partition("\n\n")[0]
    flags = re.findall(r"^  (--[\w-]+)", shown, re.M)
    assert len(flags) > 12
    assert [flag for flag in flags if flag not in PAGE] == []
