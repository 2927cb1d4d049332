"""python -m tests.digests [--root CHECKOUT] [--only TEXT] [--out FILE]: what every command gives out, a line each.

A line is a digest, the exit status, the name and the command, for each one in tests/command_lines/commands.txt. The
digest is of the exit status, stdout, stderr and every file written, by name. Archives count by their members and what
is in them, compressed files by what they hold. Two runs print the same lines, so whatever `diff` finds between the
lines of two checkouts is something that a user sees; `--work DIR` keeps what the commands wrote, to see what it is.

The commands, their files and what makes foreign ones are those of this checkout, also for another --root.
"""

import argparse
import gzip
import hashlib
import io
import os
import re
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from graphlib import TopologicalSorter
from pathlib import Path

HERE = Path(__file__).resolve().parents[1]
COMMANDS = HERE / "tests/command_lines/commands.txt"
FILES = HERE / "tests/command_lines/files"
CAPTURES = {"captures": HERE.parent / "shared/traces", "cases": HERE.parent / "shared/cases"}
LIMIT_S = 300  # then the exit status is 124
# What a command says of the machine and of the day, and not of the result. Simulated times stay.
REPLACED = tuple(
    (re.compile(pattern, re.MULTILINE), word)
    for pattern, word in (
        # a sweep's last line on stderr; in sweep.json how fast it went, and the digest of the core's sources
        (rb"^(\d+ runs) in [^\n]* of the time \([^\n]*\)$", rb"\1"),
        (rb'("last": )\{\s*"engine"[^}]*\}', rb"\1{}"),
        (rb'("core": )"core-\w+"', rb'\1""'),
        # progress bars of transformers
        (rb"\r?[\w ]*: *\d+%\|[^|\r\n]*\| \d+/\d+[^\r\n]*", b""),
    )
)

LEFT_OUT = re.compile(r"(^|/)parts/part-\d+\.parquet$")  # how many rows of a sweep are in which part: as time goes

Replace = Callable[[bytes], bytes]


# --- the digest ---


def digest(folder: Path, status: int, out: bytes, err: bytes, replace: Replace) -> str:
    """12 hex digits of everything that a command gave out; `folder` holds the files it wrote."""
    parts = [("status", b"%d" % status), ("stdout", out), ("stderr", err)]
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if LEFT_OUT.search(name):
            continue
        parts += [(name + "/", b"")] if path.is_dir() else contents("file " + name, path.read_bytes())
    total = hashlib.sha256()
    for name, data in parts:
        for piece in (name.encode(), replace(data)):
            total.update(b"%d:" % len(piece) + piece)
    return total.hexdigest()[:12]


def contents(name: str, data: bytes) -> Iterator[tuple[str, bytes]]:
    """(name, bytes) of a file, of the members of an archive, of what a compressed file holds."""
    if data.startswith(b"PK\x03\x04"):
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            for member in sorted(archive.namelist()):
                yield f"{name}/{member}", archive.read(member)
    else:
        yield name, gzip.decompress(data) if data.startswith(b"\x1f\x8b") else data


def replacing(places: Mapping[str, Path]) -> Replace:
    """Text that hangs on the machine gives way to a word; places: folders and the words that they become."""
    known = sorted(
        ((str(path).encode(), word.encode()) for word, path in places.items()), key=lambda pair: -len(pair[0])
    )

    def replace(data: bytes) -> bytes:
        for path, word in known:
            data = data.replace(path, word)
        for pattern, word in REPLACED:
            data = pattern.sub(word, data)
        return data

    return replace


# --- the commands ---


def commands() -> dict[str, str]:
    """Command by name, in the order of the file."""
    lines = [line for line in COMMANDS.read_text().splitlines() if line and not line.startswith("#")]
    found = dict(line.split(": ", 1) for line in lines)
    if len(found) != len(lines):
        raise ValueError(f"{COMMANDS}: a name stands there twice")
    return found


def needs(command: str) -> set[str]:
    """The names of `../NAME` in a command: other commands, and the data beside them."""
    return set(re.findall(r"\.\./([\w-]+)", command))


def chosen(every: Mapping[str, str], only: str = "", absent: frozenset[str] = frozenset()) -> list[str]:
    """The names of the commands that hold `only` in name or command and need nothing of what is absent."""

    def possible(name: str) -> bool:
        return not needs(every[name]) & absent and all(possible(other) for other in needs(every[name]) & every.keys())

    return [name for name, command in every.items() if only in f"{name}: {command}" and possible(name)]


def in_order(every: Mapping[str, str], names: list[str]) -> list[str]:
    """The names and those of the commands that they need, each behind what it needs."""
    graph: dict[str, set[str]] = {}
    left = list(names)
    while left:
        name = left.pop(0)
        graph[name] = needs(every[name]) & every.keys()
        left += graph[name] - graph.keys()
    return list(TopologicalSorter(graph).static_order())


# --- running them ---


def environment(root: Path) -> dict[str, str]:
    """One thread each, the width of a terminal of ours, and the machine compiled for that checkout."""
    own = {"PYTHONPATH": str(root), "NUMBA_CACHE_DIR": str(root / ".numba_cache"), "PYTHONDONTWRITEBYTECODE": "1"}
    own |= {"OMP_NUM_THREADS": "1", "COLUMNS": "120", "LC_ALL": "C.UTF-8", "TZ": "UTC", "HF_HUB_OFFLINE": "1"}
    own |= {"MOE_OFFLOAD_SIM_QUIET": "1"}  # what is said hangs on how long it takes
    return os.environ | own | {"PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}


def foreign_files(folder: Path) -> None:
    """`folder/NAME/FILE` for each name of tests.foreign, of one small trace: 3 MoE layers behind a dense one."""
    import numpy as np

    from tests.foreign import COUNTED, PER_TOKEN
    from tests.gen import random_trace

    one_request = {name: one for name, (*_, one) in PER_TOKEN.items()}
    for name, (_, file, build, *_) in (PER_TOKEN | COUNTED).items():
        requests = 1 if one_request.get(name) else 3
        rng = np.random.default_rng(0)
        trace = random_trace(rng, 18, requests=requests, token_ids=True, dense_layers=1, prompt=0.5)
        (folder / name).mkdir(parents=True)
        build(folder / name / file, trace)


def set_up(work: Path, root: Path) -> None:
    """The folders that commands read, and the machine compiled, so that no command says that it compiles."""
    shutil.copytree(FILES, work / "files")
    foreign_files(work / "foreign")
    for name, path in CAPTURES.items():
        if path.is_dir():
            (work / name).symlink_to(path)
    subprocess.run([sys.executable, "-m", "tests.warm"], cwd=root, env=environment(root), check=True)


def run(name: str, command: str, work: Path, root: Path) -> str:
    """Run a command in a folder of its own; its line."""
    folder = work / name
    folder.mkdir()
    done = subprocess.run(
        ["timeout", str(LIMIT_S), "bash", "-c", command],
        cwd=folder,
        env=environment(root),
        stdin=subprocess.DEVNULL,
        capture_output=True,
    )
    (work / "said").mkdir(exist_ok=True)
    (work / "said" / name).write_bytes(done.stdout + b"--- stderr ---\n" + done.stderr)
    places = {"WORK": work, "ROOT": root, **{word.upper(): path for word, path in CAPTURES.items()}}
    found = digest(folder, done.returncode, done.stdout, done.stderr, replacing(places))
    return f"{found} {done.returncode} {name}: {command}"


def lines(root: Path, work: Path, only: str = "") -> Iterator[str]:
    """The line of each command that `only` chooses, as they stand in the file; two run at a time."""
    every = commands()
    names = chosen(every, only, frozenset(word for word, path in CAPTURES.items() if not path.is_dir()))
    set_up(work, root)
    started: dict[str, Future[str]] = {}

    def behind(name: str) -> str:
        for other in needs(every[name]) & every.keys():
            started[other].result()
        return run(name, every[name], work, root)

    with ThreadPoolExecutor(2) as pool:
        for name in in_order(every, names):
            started[name] = pool.submit(behind, name)
        for name in names:
            yield started[name].result()


def main() -> int:
    """The command line; returns the exit status."""
    out = argparse.ArgumentParser(prog="python -m tests.digests", description="What every command gives out.")
    out.add_argument("--root", type=Path, default=HERE, metavar="CHECKOUT", help="run its commands (default: this one)")
    out.add_argument("--only", default="", metavar="TEXT", help="commands with this in their line")
    out.add_argument("--out", type=Path, metavar="FILE", help="write the lines there, too")
    out.add_argument("--work", type=Path, metavar="DIR", help="run there and leave what was written")
    args = out.parse_args()
    if args.work is not None and args.work.exists():
        out.error(f"--work: {args.work}: is there; a folder that is not there yet is needed")
    if not (args.root / "sim").is_dir():
        out.error(f"--root: {args.root}: is no checkout")
    found = []
    with tempfile.TemporaryDirectory(prefix="digests-") as temporary:
        work = args.work or Path(temporary)
        work.mkdir(parents=True, exist_ok=True)
        for line in lines(args.root.resolve(), work.resolve(), args.only):
            print(line, flush=True)
            found.append(line)
    if not found:
        out.error(f"--only: {args.only}: in no command that can be run here")
    if args.out:
        args.out.write_text("".join(f"{line}\n" for line in found))
    return 0


if __name__ == "__main__":
    sys.exit(main())
