"""docs/python.md is true: its snippets run, in order, and print what it shows; its tables name what there is."""

import contextlib
import io
import re
from pathlib import Path
from typing import Any

import pytest

from analysis.api.drawn import KINDS
from sim.flags import add_groups
from sim.spec import RunSpec
from traces.command import Parser

pytestmark = pytest.mark.machine
PAGE = (Path(__file__).parent.parent / "docs" / "python.md").read_text()
SNIPPET = re.compile(r"(<!-- not run: .*? -->\n)?```python\n(.*?)```(?:\n\n```text\n(.*?)```)?", re.S)


def test_snippets_print_what_the_page_shows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    scope: dict[str, Any] = {"__name__": "page"}
    ran = 0
    for skipped, code, shown in SNIPPET.findall(PAGE):
        if skipped:
            compile(code, "python.md", "exec")
            continue
        out = io.StringIO()
        with contextlib.redirect_stdout(out):
            exec(compile(code, "python.md", "exec"), scope)
        ran += 1
        if shown:
            assert [line.rstrip() for line in out.getvalue().splitlines()] == shown.splitlines()
    assert ran > 8 and (tmp_path / "evictions.html").stat().st_size > 10_000


def test_every_kind_of_figure_is_in_the_table() -> None:
    rows = re.findall(r"^\| (`.*?`) \|", PAGE.split("| kind |")[1].split("\n\n")[0], re.M)
    assert {name for row in rows for name in re.findall(r"`(\w+)`", row)} == set(KINDS)


def test_every_flag_of_a_run_is_an_argument_by_its_name() -> None:
    parser = Parser()
    add_groups(parser)
    flags = {option for action in parser._actions for option in action.option_strings if option.startswith("--")}
    assert flags - {"--help"} == {f"--{name.replace('_', '-')}" for name in RunSpec.model_fields}
