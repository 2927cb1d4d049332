"""python -m runtime.gpu: everything that a GPU can show about this project, in one command.

Exit status 0 every part done and no validation outside its tolerance (a dry run's do not count), 1 something failed or
is outside, or the disk is full, 3 something was skipped or is inconclusive, 2 bad input, 130 interrupted. Started again
it runs what is not done. What to send back is `gpu.tar.gz` in the folder of `--out`.
"""

import errno
import fcntl
import importlib.util
import json
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from runtime.gpu import box
from runtime.gpu.archive import NAME
from runtime.gpu.day import PAGE, Day, listed, status
from runtime.gpu.table import parts
from traces.command import Parser, guarded, one_of, out_folder
from traces.errors import UserError

ROOT = Path(__file__).resolve().parents[2]
NEEDED = ("torch", "numpy", "numba", "scipy", "pydantic", "simpy")
BUDGET_S = 540.0
ASK_S = 120.0  # a first import of torch from a slow disk
NAMES = [part.name for part in parts("cuda")]


def parser() -> Parser:
    """The flags."""
    out = Parser(prog="python -m runtime.gpu", description="Everything that a GPU can show about this project.")
    add = out.add_argument
    add("--device", default="auto", choices=("auto", "cuda", "cpu"), help="cpu: a dry run of the whole (default: auto)")
    add("--parts", metavar="A,B", help=f"only these of {', '.join(NAMES)}")
    add("--out", default="out/gpu", metavar="DIR", help="where results are kept and packed (default: out/gpu)")
    add("--seconds", type=float, default=BUDGET_S, metavar="N", help=f"of everything (default: {BUDGET_S:.0f})")
    add("--again", action="store_true", help="run what is done already, too")
    add("--host-memory", metavar="SIZE", help="host memory that there is, as 100GB (default: what the system says)")
    add("--wheels", metavar="DIR", help="packages for a machine without a registry (default: $WHEELS)")
    return out


def main(argv: Sequence[str] | None = None) -> int:
    """The command line; returns the exit status."""
    return guarded(_command, argv)


def _command(argv: list[str]) -> int:
    args = parser().parse_args(argv)
    chosen = NAMES if args.parts is None else [one_of("parts: part", name, NAMES) for name in args.parts.split(",")]
    if not 0 < args.seconds < float("inf"):
        raise UserError(f"seconds: {args.seconds:g}: must be above 0")
    out = out_folder(args.out).resolve()
    site = bring(args.wheels or os.environ.get("WHEELS"), out)
    environment = environment_of(site)
    memory = None if args.host_memory is None else size(args.host_memory)
    made_with = ask(environment)
    device = choose(args.device, made_with)
    if device == "cpu":  # the dry run: parts beside each other, on a few cores
        environment["OMP_NUM_THREADS"] = "1"
    out.mkdir(parents=True, exist_ok=True)
    with (out / ".lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(
                f"out: {args.out}: another run is at work there; wait for it, or give another DIR"
            ) from None
        day = Day(out, parts(device), {"device": device, **made_with}, args.seconds, environment, memory)
        return run(day, chosen, args.again)


def run(day: Day, chosen: Sequence[str], again: bool) -> int:
    """The day until its end, until a signal asks for it, or until its folder takes nothing more, which is one line on
    stderr; prints the page and where the archive is. The exit status."""
    try:
        return _run(day, chosen, again)
    except OSError as error:
        mend = "make room there" if error.errno in (errno.ENOSPC, errno.EDQUOT) else "mend that"
        why = f"{error.strerror or error}; {mend} and start again: what is kept is not run again"
        print(f"error: out: {day.out}: {why}", file=sys.stderr)
        return 1


def _run(day: Day, chosen: Sequence[str], again: bool) -> int:
    if left := box.kill_left_over(day.out):
        day.say(f"ended what an earlier run left: processes {', '.join(map(str, left))}")
    for name in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(name, day.stop)
    results = day.run(chosen, again)
    left_out = day.pack()
    day.say(f"\n{(day.out / PAGE).read_text(encoding='utf-8')}\n{listed(results)}\n")
    if left_out:
        day.say(f"too large to send back, and only in {day.out}: {', '.join(left_out)}")
    day.say(f"send back {day.out / NAME} ({(day.out / NAME).stat().st_size / 1e6:.2f} MB)")
    return status(results, day.stopped)


# --- what the machine has ---


def missing(names: Sequence[str] = NEEDED) -> list[str]:
    """Packages that are not here."""
    return [name for name in names if importlib.util.find_spec(name) is None]


def bring(wheels: str | None, out: Path) -> Path | None:
    """Install what is missing from a folder of wheels into a folder beside the results; that folder, or None where
    nothing is missing. Raises UserError, one line, where that cannot be."""
    lacking, site = missing(), out / "site"
    if not lacking:
        return None
    if wheels is None:
        how = "pip install -e '.[runtime]', or give a folder of wheels by --wheels"
        raise UserError(f"packages: {', '.join(lacking)}: not installed; {how}")
    if not Path(wheels).is_dir():
        raise UserError(f"wheels: {wheels}: no such folder")
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-index", "--find-links", wheels]
    done = subprocess.run([*pip, "--upgrade", "--target", str(site), *lacking], capture_output=True, text=True)
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["pip failed"])[-1]
        raise UserError(f"wheels: {wheels}: {', '.join(lacking)} not installed from there: {last}")
    sys.path.insert(0, str(site))
    return site


def environment_of(site: Path | None) -> dict[str, str]:
    """Of the parts: the project and what was brought can be imported, nothing asks a network, logs are not held
    back."""
    paths = [str(ROOT), *([str(site)] if site else []), os.environ.get("PYTHONPATH", "")]
    return {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(path for path in paths if path),
        "PYTHONUNBUFFERED": "1",
        "HF_HUB_OFFLINE": "1",
        "TOKENIZERS_PARALLELISM": "false",
    }


def ask(environment: dict[str, str]) -> dict[str, str]:
    """GPU and versions as torch says them, in a process of its own: this one holds no device. Raises UserError."""
    command = [sys.executable, "-m", "runtime.gpu.parts.here"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=ASK_S, env=environment)
    except subprocess.TimeoutExpired:
        raise UserError(f"device: torch has not said within {ASK_S:.0f} s what is here") from None
    if done.returncode:
        raise UserError(f"device: torch does not start: {(done.stderr.strip().splitlines() or ['no word of why'])[-1]}")
    found: dict[str, str] = json.loads(done.stdout)
    return found


def choose(device: str, here: dict[str, str]) -> str:
    """The device that was asked for. Raises UserError where it is not here."""
    if device == "cuda" and not here["gpu"]:
        raise UserError("device: cuda: torch finds no GPU here; --device cpu is the dry run")
    return ("cuda" if here["gpu"] else "cpu") if device == "auto" else device


def size(text: str) -> str:
    """A size with a unit, as one word. Raises UserError."""
    from sim.spec import memory_bytes  # late: it needs more than the standard library

    try:
        memory_bytes(text)
    except ValueError as error:
        raise UserError(f"host-memory: {text}: {error}") from None
    return "".join(text.split())


if __name__ == "__main__":
    sys.exit(main())
