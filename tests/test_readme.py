"""The README's commands run, and the output it shows is the output they give."""

import csv
import re
from pathlib import Path
from statistics import median

import pytest

from tests.forked import Forks

pytestmark = pytest.mark.machine
ROOT = Path(__file__).parent.parent
BLOCKS = re.findall(r"```console\n(.*?)```", (ROOT / "README.md").read_text(), re.S)
SHOWN, USED = BLOCKS[0], BLOCKS[1]
PAGES = [ROOT / name for name in ("README.md", "ARCHITECTURE.md", "CONTRIBUTING.md", "CHANGELOG.md", "VALIDATION.md")]
PAGES += sorted((ROOT / "docs").glob("*.md"))


def call(commands: Forks, line: str) -> str:
    """The output of one `python -m ...` line of the README."""
    python, m, *words = line.split("#")[0].split()
    assert (python, m) == ("python", "-m")
    done = commands.call(*words)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_first_screen_shows_what_the_command_prints(commands: Forks) -> None:
    line, _, shown = SHOWN.partition("\n")
    assert call(commands, line.removeprefix("$ ")).split() == shown.split()


@pytest.mark.parametrize("line", [line.removeprefix("$ ") for line in USED.splitlines()])
def test_every_command_runs(line: str, commands: Forks) -> None:
    assert call(commands, line)


def test_the_errors_that_it_states_are_those_of_the_results() -> None:
    with open(ROOT / "analysis" / "results" / "published.csv", newline="") as file:
        rows = [row for row in csv.DictReader(line for line in file if line[0] != "#") if row["judged"] == "yes"]
    errors = {row["id"]: (row["phase"], abs(float(row["left_out_percent"]))) for row in rows}.values()
    decode, prefill = ([error for of, error in errors if of == phase] for phase in ("decode", "prefill"))
    stated = (
        f"of {len(decode)} published decode speeds, each predicted with its machine left out, the median error is "
        f"{median(decode):.0f} %, of {len(prefill)} prompt speeds {median(prefill):.0f} %"
    )
    assert stated in (ROOT / "README.md").read_text()


def test_every_command_named_is_a_module() -> None:
    named = {name for page in PAGES for name in re.findall(r"python -m ([a-z_.]+)", page.read_text())}
    ours = {name for name in named if name.split(".")[0] in ("sim", "traces", "runtime", "analysis", "tests")}
    assert len(ours) > 12
    for name in ours:
        path = ROOT / name.replace(".", "/")
        assert path.with_suffix(".py").is_file() or (path / "__main__.py").is_file(), name
