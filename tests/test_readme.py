"""The README's commands run, and the output it shows is the output they give."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.machine
ROOT = Path(__file__).parent.parent
BLOCKS = re.findall(r"```console\n(.*?)```", (ROOT / "README.md").read_text(), re.S)
SHOWN, USED = BLOCKS[0], BLOCKS[1]
PAGES = [ROOT / name for name in ("README.md", "ARCHITECTURE.md", "CONTRIBUTING.md", "CHANGELOG.md", "VALIDATION.md")]
PAGES += sorted((ROOT / "docs").glob("*.md"))


def call(line: str) -> str:
    """The output of one `python -m ...` line of the README."""
    command = [sys.executable, *line.split("#")[0].split()[1:]]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_first_screen_shows_what_the_command_prints() -> None:
    line, _, shown = SHOWN.partition("\n")
    assert call(line.removeprefix("$ ")).split() == shown.split()


@pytest.mark.parametrize("line", [line.removeprefix("$ ") for line in USED.splitlines()])
def test_every_command_runs(line: str) -> None:
    assert call(line)


def test_every_command_named_is_a_module() -> None:
    named = {name for page in PAGES for name in re.findall(r"python -m ([a-z_.]+)", page.read_text())}
    ours = {name for name in named if name.split(".")[0] in ("sim", "traces", "runtime", "analysis", "tests")}
    assert len(ours) > 12
    for name in ours:
        path = ROOT / name.replace(".", "/")
        assert path.with_suffix(".py").is_file() or (path / "__main__.py").is_file(), name
