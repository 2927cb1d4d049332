"""README.md and docs/: nothing is shown that nobody runs; what a block is, and when a command prints what is shown."""

import re
import tomllib
from pathlib import Path

import pytest

from tests import watched
from tests.blocks import DOCS, REASONS, ROOT, Block, blocks, is_form, pages, prints, shortened
from tests.first_hour import FIRST, Hour
from tests.watched import Done, Snippets, command

FOUND = [block for page in pages() for block in blocks(page)]
SHOWN = [block for block in FOUND if block.commands or block.kind == "python"]


def test_every_block_is_run_or_says_why_not() -> None:
    """By a test of the suite, which names the page, or for a reason of the list; all others by the first hour."""
    for block in SHOWN:
        where = f"{block.page}:{block.line}"
        assert not block.reason or block.reason in REASONS, f"{where}: {block.reason}: no such reason"
        if block.test:
            assert Path(block.page).name in (ROOT / block.test).read_text(), f"{where}: {block.test} runs another page"
        assert not block.mark or block.reason or block.test or block.target, f"{where}: what is {block.mark!r}?"
    assert sum(len(block.commands) for block in SHOWN if not (block.reason or block.test)) > 100


def test_of_the_readme_and_the_first_hour_nothing_is_left_out_but_the_installation() -> None:
    left_out = [block for block in SHOWN if ROOT / block.page in FIRST and block.mark]
    assert [(block.page, block.reason) for block in left_out] == [("docs/first-hour.md", "installs")]


def test_the_first_hour_is_one() -> None:
    minutes = re.findall(r"^## .* \((\d+) minutes\)$", FIRST[1].read_text(), re.M)
    assert len(minutes) == 10 and sum(map(int, minutes)) <= 60


def test_ci_runs_the_first_hour() -> None:
    assert "make first-hour" in (ROOT / ".ci" / "run").read_text()
    assert "python -m tests.first_hour\n" in (ROOT / "Makefile").read_text()


def test_the_wheel_has_every_package() -> None:
    listed = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"]
    rooms = ("traces", "sim", "runtime", "analysis")
    there = {path.parent.relative_to(ROOT) for room in rooms for path in (ROOT / room).rglob("*.py")}
    assert {str(path).replace("/", ".") for path in there} - set(listed) <= {"analysis.notebooks"}


PAGE = """text

    python -m a.b --trace TRACE
    python -m a.b --cache 3

`a.toml`, a file:

```toml
x = 1
```

<!-- not run: a GPU -->
```console
$ python -m a.b
one
$ python -m a.c
two
...
```

<!-- into my.py -->
```python
f = 1
```

```python
print(f)
```

```text
1
```
"""


def test_what_a_block_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tests.blocks.ROOT", tmp_path)
    (tmp_path / "page.md").write_text(PAGE)
    indented, file, console, part, snippet, text = blocks(tmp_path / "page.md")
    assert (indented.line, indented.commands) == (3, [("python -m a.b --cache 3", "")])
    assert (file.name, file.text, file.commands) == ("a.toml", "x = 1\n", [])
    assert (console.line, console.reason) == (14, "a GPU")
    assert console.commands == [("python -m a.b", "one\n"), ("python -m a.c", "two\n...\n")]
    assert (part.target, snippet.mark, text.kind, text.text) == ("my.py", "", "text", "1\n")


@pytest.mark.parametrize(
    "line", ["python -m a --trace TRACE", "python -m a [--out b]", "python -m a b|c", "llama -m x"]
)
def test_a_form_is_not_typed(line: str) -> None:
    assert is_form(line) and not is_form("python -m a --vram 24GB --set b.c=1  # TRACE | [--x]")


@pytest.mark.parametrize(
    ("shown", "printed", "is_it"),
    [
        ("a\nb\n", "a  \nb\n", True),
        ("a\n", "a\nb\n", False),
        ("a\n...\n", "a\nb\nc\n", True),
        ("a\n...\nc\n", "a\nb\nb\nc\n", True),
        ("...\nc\n", "a\nb\n", False),
        ("a...\n", "abc\n", False),
        ("1.5\n", "1x5\n", False),
    ],
)
def test_when_a_command_prints_what_is_shown(shown: str, printed: str, is_it: bool) -> None:
    assert prints(shown, printed) == is_it


def test_what_is_shown_anew_keeps_its_length() -> None:
    assert shortened("1\n2\n3\n4 \n", "a\n...\nd\n") == "1\n...\n4\n"
    assert shortened("1\n2\n", "a\n...\n") == "1\n...\n" and shortened("1\n2\n", "a\n") == "1\n2\n"


@pytest.mark.parametrize(
    ("done", "fault"),
    [
        (Done(0, "a\n", "", 1, 1), ""),
        (Done(1, "a\n", "why", 1, 1), "exit status 1, not 0: why"),
        (Done(0, "a\n", "", 60, 15.5), "silent for 15.5 s"),
        (Done(0, "a\n", "", 241, 10), "more than 240 s"),
        (Done(0, "b\n", "", 1, 1), "the page shows"),
    ],
)
def test_the_first_hour_finds_what_is_wrong(done: Done, fault: str) -> None:
    hour = Hour()
    hour.judge(Block("page.md", 1, "console", ""), "x", "a\n", done)
    assert len(hour.wrong) == bool(fault) and fault in "".join(hour.wrong)


def test_an_error_that_is_shown_must_be_one() -> None:
    hour = Hour()
    hour.judge(Block("page.md", 1, "console", ""), "x", "error: a\n", Done(2, "", "error: a\n", 1, 1))
    assert not hour.wrong
    hour.judge(Block("page.md", 1, "console", ""), "x", "error: a\n", Done(0, "error: a\n", "", 1, 1))
    assert hour.wrong


ENV = {"PATH": "/usr/bin:/bin"}


def test_silence_between_lines_is_measured(tmp_path: Path) -> None:
    done = command("echo a; sleep 0.4; echo b >&2; exit 3", tmp_path, ENV)
    assert (done.status, done.out, done.err) == (3, "a\n", "b\n") and done.seconds >= done.silent >= 0.3


def test_what_does_not_end_is_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watched, "BOUND_S", 0.2)
    assert command("echo a; sleep 600", tmp_path, ENV).status == 124


def test_snippets_share_what_they_define(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import os

    snippets = Snippets(tmp_path, dict(os.environ))
    assert snippets.run("x = 1").out == "" and snippets.run("print(x)\nprint()").out == "1\n\n"
    failed = snippets.run("y")
    assert failed.status == 1 and "NameError" in failed.err and snippets.run("x").status == 1
    snippets.end()


def test_a_page_of_docs_is_found() -> None:
    assert {DOCS / "policies.md", *FIRST} <= set(pages()) and len(FOUND) > 100
