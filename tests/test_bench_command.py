"""The bench's command, what it keeps, and how two checkouts are compared. Nothing here looks at a time."""

import io
import json
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.bench import __main__ as command
from tests.bench import compare, worker
from tests.bench.figures import Ask, Figure, beside, ratio
from tests.test_bench_sections import BARE, figures_of, stubs
from traces.errors import UserError

# --- two checkouts ---


def test_a_worker_answers_what_it_can_and_says_what_it_cannot(tmp_path: Path) -> None:
    side, out = worker.Side({"bare": BARE}, 300, tmp_path), io.StringIO()
    asked = ["bare/eviction lfu", "bare/full record, eviction lru", "bare/bounds, eviction lru", "bare/miss none-such"]
    worker.serve(side, [job + "\n" for job in asked], out)
    names, *answers = map(json.loads, out.getvalue().splitlines())
    assert {*asked[:3]} <= {*names}
    assert [[*answer] for answer in answers] == [["s"], ["s"], ["s"], ["absent"]]
    assert "miss none-such: is not there" in answers[3]["absent"]


class Fake:
    """A side that takes so long at everything, and notes when it is asked."""

    def __init__(self, name: str, seconds: float, asked: list[str], lacks: str = "") -> None:
        self.name, self.seconds, self.asked, self.lacks = name, seconds, asked, lacks

    def ask(self, job: str) -> dict[str, Any]:
        self.asked.append(self.name)
        return {"absent": "not there"} if job == self.lacks else {"s": self.seconds}


def test_sides_take_turns_and_what_one_lacks_is_said(capsys: Any) -> None:
    asked: list[str] = []
    sides = [Fake("here", 1.0, asked), Fake("base", 4.0, asked, lacks="t/new")]
    found = figures_of(compare.jobs_compared(["t/old", "t/new"], sides, 3))
    assert found["compare/t/old"].values == (0.25,) * 3 and [*found] == [
        "compare/t/old", "compare/t/old, here", "compare/t/old, base",
    ]  # fmt: skip
    assert "t/new: not compared: in the base: not there" in capsys.readouterr().out
    assert asked == [*["base", "here"] * 2, *["here", "base"] * 2] * 2


def test_both_checkouts_start_alike(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compare, "FURTHER", {"one thing": ("--x",)})
    sides = []
    for name in ("here", "base"):
        (tmp_path / name).mkdir()
        sides.append(stubs(tmp_path / name, "pass"))
    found = figures_of(compare.starts_compared(sides, 1))
    kinds = {"the default run", "one thing"}
    assert {f"compare/cold/{name}" for name in kinds} | {"compare/warm/the default run"} <= {*found}
    assert found["compare/cold/the default run"].values == ratio(
        found["compare/cold/the default run, here"].values, found["compare/cold/the default run, base"].values
    )


WORKER = """
import json, sys, tests
def main():
    print(json.dumps([__file__, tests.__file__, sys.argv[1]]), flush=True)
    for line in sys.stdin:
        print(json.dumps({"s": 1.0, "job": line.strip()}), flush=True)
"""


def test_a_worker_is_this_checkouts_over_the_others_sources(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ours, theirs = tmp_path / "ours", tmp_path / "theirs"
    for root, code in ((ours, WORKER), (theirs, "raise ImportError('of the other checkout')")):
        (root / "tests" / "bench").mkdir(parents=True)
        (root / "tests" / "__init__.py").touch()
        (root / "tests" / "bench" / "__init__.py").touch()
        (root / "tests" / "bench" / "worker.py").write_text(code)
    monkeypatch.setattr(compare, "ROOT", ours)
    with compare.Worker(theirs, 400.0) as found:
        assert found.names == [
            str(ours / "tests/bench/worker.py"), str(theirs / "tests/__init__.py"), "400.0",
        ]  # fmt: skip
        assert found.ask("a job") == {"s": 1.0, "job": "a job"}


def git(root: Path, *words: str) -> str:
    who = ["-c", "user.name=a", "-c", "user.email=a@b"]
    done = subprocess.run(["git", "-C", str(root), *who, *words], check=True, capture_output=True, text=True)
    return done.stdout


def test_a_base_is_a_folder_or_a_commit_that_goes_again(tmp_path: Path) -> None:
    git(tmp_path, "init", "-q")
    (tmp_path / "a").write_text("old")
    git(tmp_path, "add", "a")
    git(tmp_path, "commit", "-qm", "one")
    (tmp_path / "a").write_text("new")
    with compare.checkout("HEAD", tmp_path) as there:
        assert (there / "a").read_text() == "old"
        assert len(git(tmp_path, "worktree", "list").splitlines()) == 2
    assert not there.exists() and len(git(tmp_path, "worktree", "list").splitlines()) == 1
    with compare.checkout(str(tmp_path), tmp_path) as there:
        assert there == tmp_path.resolve()
    with pytest.raises(UserError, match="base: 'none-such'"), compare.checkout("none-such", tmp_path):
        raise AssertionError("there is no such commit")


# --- figures, and the command ---


def test_the_base_runs_just_before_each_job_in_every_round() -> None:
    order: list[str] = []
    jobs = {name: lambda name=name: order.append(name) for name in ("a", "b")}
    found = beside(lambda: order.append("base"), jobs, 2)
    assert order == ["base", "a", "base", "b"] * 3 and {name: len(values) for name, values in found.items()} == {
        "a": 2, "b": 2,
    }  # fmt: skip


def run(monkeypatch: pytest.MonkeyPatch, *words: str) -> int:
    """The command with one section that finds three values."""

    def stub(ask: Ask) -> Iterator[Figure]:
        """One figure."""
        yield Figure("stub/x/y", "s", (3.0, 1.0, 2.5), "<= 2", "a note")
        yield Figure("stub/x/kept", "s", (1.0,), quiet=True)

    monkeypatch.setattr(command, "SECTIONS", {"stub": stub})
    return command.main(words)


def test_what_is_kept_is_what_was_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    assert run(monkeypatch, "stub", "--json", str(tmp_path / "b.json")) == 0
    kept = json.loads((tmp_path / "b.json").read_text())
    assert {"commit", "versions", "asked", "cpu", "cores", "caches", "load at first", "load at last"} < {*kept}
    assert kept["versions"]["numpy"] == np.__version__
    for figure in kept["figures"]:
        values = figure["values"]
        assert (figure["median"], figure["least"], figure["most"]) == (np.median(values), min(values), max(values))
    out = capsys.readouterr().out
    assert "2.50 s" in out and "(1.00 .. 3.00)" in out and "asked: <= 2; a note" in out and "kept" not in out


@pytest.mark.parametrize(
    ("words", "wrong"),
    [
        (["nope"], "section 'nope' is unknown"),
        (["compare"], "base: missing: is of compare"),
        (["compare", "--base", ""], "base: '': is of compare"),
        (["stub", "--base", "HEAD"], "base: 'HEAD': is of compare"),
        (["stub", "--runs", "0"], "runs: 0: must be from 1 to 1e+10"),
        (["stub", "--each", "nan"], "each: nan: must be from 1 to"),
        (["stub", "--requests", "inf"], "requests: inf: must be from 1 to"),
        (["stub", "--only", "lru"], "only: is of compare alone"),
        (["compare", "--base", "nosuch"], "base: 'nosuch': must be a commit"),
        (["compare", "--base", "/"], "base: '/': must be a commit or the folder of a checkout"),
        (["stub", "--json", "no/such/folder/b.json"], "its folder is not there"),
    ],
)
def test_bad_input_is_one_line(words: list[str], wrong: str, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    assert run(monkeypatch, *words) == 2
    out, err = capsys.readouterr()
    assert wrong in err and err.count("\n") == 1 and not out


def test_all_sections_stand_in_the_help(capsys: Any) -> None:
    told = command.parser().format_help()
    assert all(f"  {name} " in told for name in (*command.SECTIONS, command.COMPARE))
    usual = [*command.chosen(command.parser().parse_args([]))]
    assert usual == [name for name in command.SECTIONS if name not in command.MINUTES]
    assert [*command.chosen(command.parser().parse_args(["all"]))] == [*command.SECTIONS]
