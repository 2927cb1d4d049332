"""Damaged files for every reader: `python -m tests.fuzz_readers --seconds 600 [--seed N] [--format NAME]`.

A good file of a small trace is damaged and read, named and untold: it is converted to what is valid, or refused in one
line that names it, with nothing left behind. Each failure is told once, with the folder that keeps its input. A run
that dies (no line at its end) has left the input in `work` of --keep. tests/test_fuzz_found.py runs a short one.
"""

import argparse
import contextlib
import io
import json
import re
import shutil
import signal
import sys
import tempfile
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Iterator
from itertools import cycle
from pathlib import Path
from typing import Any, NoReturn

import numpy as np

from tests.damage import damaged
from tests.foreign import FIXTURES, PER_TOKEN
from tests.gen import random_trace
from traces.__main__ import main as traces
from traces.format import npz, profile
from traces.format.check import validate

PER_FIXTURE = 24  # damaged files of each good one
MOST_SECONDS, MOST_MB = 30, 600  # of one reading; memory over what the process had before


class Late(BaseException):
    """A reading that takes too long: nothing that readers catch."""


def _late(*_: object) -> NoReturn:
    raise Late


def _memory(key: str) -> float:
    """MB of resident memory: VmRSS now, VmHWM at most since `_reset`."""
    found = re.search(rf"{key}:\s+(\d+)", Path("/proc/self/status").read_text())
    return int(found[1]) / 1024 if found else 0.0


def _reset() -> None:
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def _held(folder: Path) -> set[Path]:
    return set(folder.rglob("*"))


def failure(command: list[str], folder: Path) -> tuple[str, str] | None:
    """What is wrong with a command's end, in short and whole; None: nothing. `folder` has its input and is its own."""
    before, out = _held(folder), Path(command[-1])
    said, wrong, status = io.StringIO(), io.StringIO(), 0
    _reset()
    had = _memory("VmRSS")
    signal.signal(signal.SIGALRM, _late)
    signal.alarm(MOST_SECONDS)
    try:
        with contextlib.redirect_stdout(said), contextlib.redirect_stderr(wrong), warnings.catch_warnings():
            warnings.simplefilter("always")  # a warning is a line on stderr
            status = traces([*command[:-1], str(out)])
    except (Exception, Late) as error:
        frames = traceback.extract_tb(error.__traceback__)
        ours = [f for f in frames if "/traces/" in f.filename] or frames
        place = f"{Path(ours[-1].filename).name}:{ours[-1].name}:{ours[-1].lineno}"
        return f"{type(error).__name__} in {place}", traceback.format_exc()
    finally:
        signal.alarm(0)
    grown, err = _memory("VmHWM") - had, wrong.getvalue()
    if grown > MOST_MB:
        return f"memory: {command[3]}", f"{grown:.0f} MB"
    with contextlib.suppress(FileNotFoundError):
        if status == 0:
            with contextlib.suppress(ValueError):
                profile.read(out) if profile.is_profile(out) else validate(npz.read(out))
                out.unlink()
            if out.exists():
                return f"invalid: {command[3]}", said.getvalue()
    if _held(folder) != before:
        return f"left behind: {command[3]}", str(_held(folder) ^ before)
    named = str(folder) in err or err.startswith("error: --")
    right = not err if status == 0 else status == 2 and err.startswith("error: ") and err.count("\n") == 1 and named
    return None if right else (f"status {status}, said {re.sub('[0-9/].*', '', err)[:60]!r}", err)


def inputs(
    rng: np.random.Generator, name: str, folder: Path, spare: list[bytes], each: int
) -> Iterator[list[list[str]]]:
    """Commands over damaged files of a fixture, which lie in `folder` one after the other; `spare`: others' files."""
    format_name, file, build = FIXTURES[name]
    one = name in PER_TOKEN and PER_TOKEN[name][3]
    shape = {"tokens": int(rng.integers(4, 24)), "experts": int(rng.integers(4, 9)), "k": int(rng.integers(1, 4))}
    more = {"layers": int(rng.integers(1, 4)), "dense_layers": int(rng.integers(0, 3)), "prompt": 0.5}
    trace = random_trace(rng, requests=1 if one else 3, token_ids=bool(rng.random() < 0.5), **shape, **more)
    good = folder / "good" / file
    good.parent.mkdir()
    flags = build(good, trace)
    flags = flags[2:] if flags[0] == "--from" else flags
    spare[:] = [*spare[-40:], *(p.read_bytes() for p in good.parent.rglob("*") if p.is_file())]
    for _ in range(each):
        shutil.rmtree(folder / "bad", ignore_errors=True)
        shutil.copytree(good.parent, folder / "bad")
        damaged(rng, folder / "bad", spare)
        told = list(flags)
        if rng.random() < 0.2:
            at = 2 * int(rng.integers(0, len(told) // 2))
            del told[at : at + 2]
        rest = [str(folder / "bad" / file), *told, str(folder / "out.npz")]
        yield [["convert", "--force", "--from", format_name, *rest], ["convert", "--force", *rest]]


def run(
    seconds: float, seed: int, names: list[str], keep: Path, each: int = PER_FIXTURE
) -> tuple[dict[str, str], Counter[str]]:
    """(failures by what they are, how many readings of each fixture), after so many seconds; 0: each fixture once.
    each: damaged files of a good one."""
    rng, found, done, spare = np.random.default_rng(seed), dict[str, str](), Counter[str](), list[bytes]()
    end, work = time.monotonic() + seconds, keep / "work"
    for name in names if seconds == 0 else cycle(names):
        if seconds and time.monotonic() > end:
            break
        shutil.rmtree(work, ignore_errors=True)
        work.mkdir()
        for command in (command for commands in inputs(rng, name, work, spare, each) for command in commands):
            done[name] += 1
            wrong = failure(command, work)
            if wrong is not None and wrong[0] not in found:
                saved = Path(tempfile.mkdtemp(dir=keep, prefix=f"{name}-"))
                shutil.copytree(work / "bad", saved / "bad")
                (saved / "said.txt").write_text(json.dumps(command) + "\n" + wrong[1])
                found[wrong[0]] = f"{name}: {wrong[0]}: {saved}\n{wrong[1]}"
                print(found[wrong[0]][-1500:], flush=True)
    shutil.rmtree(work, ignore_errors=True)
    return found, done


def main(arguments: list[str] | None = None) -> int:
    command: Any = argparse.ArgumentParser(description="Damaged files for every reader.")
    command.add_argument("--seconds", type=float, default=600)
    command.add_argument("--seed", type=int, default=0)
    command.add_argument("--format", metavar="NAME", help="of a reader or of a fixture (default: all)")
    command.add_argument("--keep", type=Path, help="folder of the inputs that failed (default: a new one in /tmp)")
    options = command.parse_args(arguments)
    names = [name for name, entry in FIXTURES.items() if options.format in (None, name, entry[0])]
    if not names:
        command.error(f"--format {options.format}: one of {', '.join(FIXTURES)} is required")
    keep = options.keep or Path(tempfile.mkdtemp(prefix="fuzz-"))
    keep.mkdir(exist_ok=True)
    found, done = run(options.seconds, options.seed, names, keep)
    print(f"{done.total()} readings, {len(found)} failures; {dict(done)}")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
