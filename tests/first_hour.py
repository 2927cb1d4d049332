"""python -m tests.first_hour [--write]: the first hour of a user, as a user has it.

A wheel of these sources is installed into two empty environments outside the checkout, side by side:

- a new user's, with what the wheel asks for and an empty cache: README.md and docs/first-hour.md in order, each command
  a process as it is typed. The first one compiles the machine, for real; behind it the cache holds the checkout's;
- a reader's, with EXTRAS and the checkout's compiled machine: every other page of docs, each in a folder of its own,
  its commands forked from one Python that has loaded the libraries.

A command or snippet must end within BOUND_S, print what the page shows, leave with status 0 (2 where the page shows an
error), and not be silent for longer than SILENT_S. What is not run here, and why, the pages say (tests/blocks.py), and
tests/test_blocks.py holds that nothing else is left out. This is the one check that looks at a clock.

--write: no wheel; docs/first-hour.md is run here, and what it shows is replaced by what its commands print.
"""

import argparse
import shlex
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from tests.blocks import DOCS, ROOT, Block, blocks, pages, prints, shortened
from tests.forked import Forks
from tests.places import Place, compile_as_here, empty_place, here, wheel
from tests.watched import BOUND_S, SILENT_S, Done, Snippets, command

EXTRAS = "report,parquet"
LONG = ("sim.recommend", "sim.sweep", "sim.experiments")  # a process each, which can be watched
FIRST = (ROOT / "README.md", DOCS / "first-hour.md")
Run = Callable[[str, Place], Done]


class Hour:
    """What was run, and what is wrong with it."""

    def __init__(self) -> None:
        self.wrong: list[str] = []
        self.ran, self.silent = 0, 0.0

    def judge(self, block: Block, line: str, shown: str, done: Done) -> None:
        """A line in the log, and a fault for each thing that is not as it must be. pip may be silent."""
        done = done._replace(silent=0.0) if line.startswith("pip ") else done
        self.ran, self.silent = self.ran + 1, max(self.silent, done.silent)
        say(f"{done.seconds:6.1f} s, {done.silent:4.1f} s silent  {block.page}:{block.line}  {line}")
        status, printed = 2 if shown.startswith("error: ") else 0, done.out or done.err
        faults = {
            f"exit status {done.status}, not {status}: {done.err[-2000:]}": done.status != status,
            f"silent for {done.silent:.1f} s, more than {SILENT_S:.0f} s": done.silent > SILENT_S,
            f"{done.seconds:.0f} s, more than {BOUND_S:.0f} s": done.seconds > BOUND_S,
            f"the page shows\n{shown}it prints\n{printed}": bool(shown) and not prints(shown, printed),
        }
        self.wrong += [f"{block.page}:{block.line}: {line}: {text}" for text, is_so in faults.items() if is_so]


def say(line: str) -> None:
    print(line, flush=True)


def as_typed(line: str, place: Place) -> Done:
    return command(line, place.work, place.env)


def walk(page: Path, place: Place, run: Run, judge: Callable[[Block, str, str, Done], None]) -> None:
    """A page's blocks in order, in one folder."""
    found, snippets = blocks(page), Snippets(place.work, place.env)
    for i, block in enumerate(found):
        if block.name:
            (place.work / block.name).write_text(block.text)
        elif block.target:
            with open(place.work / block.target, "a") as file:
                print(block.text, file=file)
        elif not (block.reason or block.test):
            for line, shown in block.commands:
                judge(block, line, shown, run(line, place))
            if block.kind == "python":
                behind = (
                    found[i + 1] if found[i + 1 : i + 2] and found[i + 1].kind == "text" else block._replace(text="")
                )
                judge(behind, "a snippet", behind.text, snippets.run(block.text))
    snippets.end()


# --- the two environments ---


def new_user(place: Place, built: Path, hour: Hour) -> None:
    """From the installation to the API, in one folder."""
    begin = time.monotonic()
    place.install(str(built))
    first: list[Done] = []

    def run(line: str, place: Place) -> Done:
        done = as_typed(line, place)
        if not first:
            compile_as_here(place)
        first.append(done)
        return done

    for page in FIRST:
        walk(page, place, run, hour.judge)
    say(f"a new user: {time.monotonic() - begin:.0f} s; the first command compiled for {first[0].seconds:.0f} s")
    if "compil" not in first[0].err:
        hour.wrong.append(f"the first command compiles and does not say so: {first[0].err!r}")


def reader(place: Place, built: Path, hour: Hour) -> None:
    """Of every other page."""
    begin = time.monotonic()
    place.install(f"{built}[{EXTRAS}]")
    compile_as_here(place)
    with Forks(True, place.python, place.env) as forks:
        for page in pages():
            if page not in FIRST:
                walk(page, place.within(page.stem), lambda line, there: _forked(forks, line, there), hour.judge)
    say(f"a reader: {time.monotonic() - begin:.0f} s")


def _forked(forks: Forks, line: str, place: Place) -> Done:
    """A command that ends at once is forked, any other is as it is typed."""
    python, m, *words = shlex.split(line, comments=True)
    if (python, m) != ("python", "-m") or words[0] in LONG:
        return as_typed(line, place)
    begin = time.monotonic()
    done = forks.call(*words, cwd=place.work, sources=place.packages)
    seconds = time.monotonic() - begin
    return Done(done.returncode, done.stdout, done.stderr, seconds, seconds)


def all_pages(folder: Path, hour: Hour) -> None:
    built = wheel(folder)
    say(f"a wheel of {built.stat().st_size / 1e6:.1f} MB: {built.name}")
    with ThreadPoolExecutor(2) as pool:
        ends = [pool.submit(who, empty_place(folder / who.__name__), built, hour) for who in (new_user, reader)]
    hour.wrong += ["".join(traceback.format_exception(error)) for end in ends if (error := end.exception())]


# --- what the page shows ---


def rewrite(page: Path, place: Place, hour: Hour) -> None:
    """Replaces what stands behind each command and snippet by what it prints now; one `...` is kept."""
    now: dict[Block, str] = {}

    def run(line: str, place: Place) -> Done:
        return Done(0, "", "", 0, 0) if line.startswith("pip ") else as_typed(line, place)

    def judge(block: Block, line: str, shown: str, done: Done) -> None:
        hour.judge(block, line, shown[:7] if shown.startswith("error: ") else "", done)
        printed = shortened(done.out or done.err, shown) if shown else ""
        now[block] = now.get(block, "") + ("" if line == "a snippet" else f"$ {line}\n") + printed

    walk(page, place, run, judge)
    lines = page.read_text().splitlines(keepends=True)
    for block in sorted(now, key=lambda block: -block.line):
        if block.kind in ("console", "text"):
            lines[block.line - 1 : block.line - 1 + block.text.count("\n")] = [now[block]]
    page.write_text("".join(lines))


def main() -> int:
    """The exit status: 1 where something is wrong."""
    parser = argparse.ArgumentParser(prog="python -m tests.first_hour", description=__doc__.partition("\n")[0])
    parser.add_argument("--write", action="store_true", help="docs/first-hour.md shows what its commands print here")
    write, begin, hour = parser.parse_args().write, time.monotonic(), Hour()
    with tempfile.TemporaryDirectory() as folder:
        if write:
            rewrite(FIRST[1], here(Path(folder)), hour)
        else:
            all_pages(Path(folder), hour)
    seconds = time.monotonic() - begin
    say(f"{hour.ran} commands and snippets in {seconds:.0f} s, none silent for more than {hour.silent:.1f} s")
    for text in hour.wrong:
        say(f"WRONG {text}")
    return int(bool(hour.wrong))


if __name__ == "__main__":
    sys.exit(main())
