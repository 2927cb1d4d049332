"""The README's commands run, and the output it shows is the output they give."""

import csv
import re
from pathlib import Path
from statistics import median

import pytest

from tests.blocks import blocks, prints
from tests.forked import Forks

pytestmark = pytest.mark.machine
ROOT = Path(__file__).parent.parent
COMMANDS = [each for block in blocks(ROOT / "README.md") for each in block.commands]
PAGES = [ROOT / name for name in ("README.md", "ARCHITECTURE.md", "CONTRIBUTING.md", "CHANGELOG.md", "VALIDATION.md")]
PAGES += sorted((ROOT / "docs").glob("*.md"))


@pytest.mark.parametrize("line, shown", COMMANDS, ids=[line for line, _ in COMMANDS])
def test_every_command_runs_and_prints_what_is_shown(line: str, shown: str, commands: Forks) -> None:
    python, m, *words = line.split("#")[0].split()
    assert (python, m) == ("python", "-m")
    done = commands.call(*words)
    assert done.returncode == 0 and done.stdout, done.stderr
    assert not shown or prints(shown, done.stdout), done.stdout


def test_the_first_screen_has_two_commands_with_what_they_print() -> None:
    assert [line.split()[2] for line, shown in COMMANDS if shown] == ["sim.run", "sim.recommend"] and len(COMMANDS) > 8


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
