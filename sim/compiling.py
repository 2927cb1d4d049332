"""What is compiled is said: what and about how long as it begins, how long it took as it ends.

numba tells of every function that it compiles and none that its cache held ("numba:compile"); what a function calls is
told inside it, so that the outermost is what somebody waits for. Whoever imports this module has it said, on stderr.
What takes less than a second is not worth a line. Of processes that compile the same at once one says so.
"""

import json
import time
import zlib
from contextlib import suppress
from pathlib import Path
from typing import IO, Any

from numba.core import event, types

from sim.core import jit, view_type
from traces import progress
from traces.command import write_bytes

try:
    from fcntl import LOCK_EX, LOCK_NB, lockf
except ImportError:  # not a POSIX system: each process speaks for itself
    lockf = None  # type: ignore[assignment]

WORTH_A_LINE_S = 1.0
SECONDS = "compile-seconds.json"  # beside the cache: what each part took last

LOOP = ("sim.machines.compiled", "_loop")
LOG, MISS, AHEAD, HOOKS, RULES = 1, 3, 4, 5, 6  # of its arguments, None where a version does without
ENGINES, EVERYTHING = "engines' own ways on a miss", "prefetch, and any answer to a miss"
PARTS = {AHEAD: "prefetch", HOOKS: "evictions that look back, or of your own"}
# seconds on two shared cores of a server of 2021, numba 0.68 (1.4 times those of the CPU alone); only where nothing is
# known of this machine
WALL_S = {
    "the machine: caches alone": 9.0,
    "the machine: prefetch": 11.0,
    "the machine: evictions that look back, or of your own": 11.0,
    "the machine: prefetch, evictions that look back, or of your own": 13.0,
    "the machine: prefetch, and any answer to a miss": 25.0,
    "the machine: engines' own ways on a miss, prefetch": 12.0,
    "the machine: engines' own ways on a miss, any eviction, prefetch, and any answer to a miss": 25.0,
    "link.next_commit, one choice": 5.0,
    "visit.decide, one choice": 12.0,
    "visit.finish_group, one choice": 1.0,
    "bounds": 1.5,
    "miss curve": 3.5,
}
A_CHOICE_S, FULL_RECORD = 1.0, ", full record"


def part(dispatcher: Any, args: Any) -> str:
    """What compiling this is called; nothing for what is not ours."""
    function = dispatcher.py_func
    room, name = function.__module__, function.__name__
    if tuple(args) == (view_type.VIEW, view_type.FLOATS, view_type.FLOATS):
        return f"your policy {name}"
    if (room, name) == LOOP:
        return _version(args)
    if room == "sim.outcome.packing":
        return "bounds"
    if room == "analysis.curves.stack_distances":
        return "miss curve"
    return f"{room.rpartition('.')[2]}.{name}, one choice" if room.startswith(("sim.core.", "sim.machines.")) else ""


def _version(args: Any) -> str:
    has = {place for place in (LOG, MISS, AHEAD, HOOKS, RULES) if not isinstance(args[place], types.NoneType)}
    parts = [EVERYTHING] if MISS in has else [what for place, what in PARTS.items() if place in has]
    if RULES in has:
        parts = [ENGINES, *(["any eviction"] if MISS in has else []), *parts]
    return f"the machine: {', '.join(parts) or 'caches alone'}" + (FULL_RECORD if LOG in has else "")


class Said(event.Listener):
    """Tells the outermost compilation. numba compiles one thing at a time, under a lock of its own."""

    def __init__(self) -> None:
        self.depth, self.begin = 0, 0.0
        self.what, self.before, self.told = "", "", False
        self.lock: IO[Any] | None = None

    def on_start(self, told: Any) -> None:
        self.depth += 1
        if self.depth > 1:
            return
        dispatcher = told.data["dispatcher"]
        self.what, self.begin, self.told = part(dispatcher, told.data["args"]), time.monotonic(), False
        if not self.what:
            return
        expected = about_s(self.what)
        self.before = progress.now_doing()
        progress.doing(f"compiling {self.what}", at_once=False)
        if expected >= WORTH_A_LINE_S and self._first():
            progress.show(f"compiling {self.what} (about {expected:.0f} s; {_kept(dispatcher)}) ...")
            self.told = True

    def on_end(self, told: Any) -> None:
        self.depth -= 1
        if self.depth > 0 or not self.what:
            return
        took = time.monotonic() - self.begin
        progress.doing(self.before, at_once=False)
        if told._exc_details is None:  # it is ours to say what went wrong with the run
            _keep(self.what, took)
            if self.told:
                progress.show(f"compiled {self.what} in {took:.1f} s")
        self._release()

    def _first(self) -> bool:
        """Whether no other process says so already: until the lock is closed, nobody else does."""
        if lockf is None:
            return True
        self.lock = None
        with suppress(OSError):  # no folder to agree in
            self.lock = (jit.CACHE_DIR / "compiling").open("ab")
        try:
            if self.lock is not None:
                lockf(self.lock, LOCK_EX | LOCK_NB, 1, zlib.crc32(self.what.encode()))
        except OSError:
            self._release()
            return False
        return True

    def _release(self) -> None:
        if self.lock is not None:
            self.lock.close()
        self.lock = None


def about_s(what: str) -> float:
    """Seconds that compiling a part takes: what it took last on this machine, else what it took elsewhere."""
    plain = what.removesuffix(FULL_RECORD)
    guess = WALL_S.get(plain, A_CHOICE_S) * (1.1 if what != plain else 1.0)
    return float(_seconds().get(what, WORTH_A_LINE_S if what.startswith("your policy") else guess))


def _kept(dispatcher: Any) -> str:
    if not jit.KEPT:
        mend = "NUMBA_CACHE_DIR names another folder"
        return f"NOT KEPT: {jit.ASKED} cannot be written, so each process compiles it again; {mend}"
    if str(dispatcher.py_func.__module__).startswith("sim."):
        return f"kept in {jit.CACHE_DIR}"
    where = dispatcher._cache.cache_path
    return "not kept: the next process compiles it again" if where is None else f"kept in {Path(where).parent}"


def _file() -> Path:
    return jit.CACHE_DIR.parent / SECONDS


def _seconds() -> dict[str, float]:
    """By part; nothing where there is no such file, or it is no longer one of ours."""
    try:
        found = json.loads(_file().read_text())
        return {name: float(took) for name, took in found.items() if took > 0}
    except (OSError, ValueError, TypeError, AttributeError):
        return {}


def _keep(what: str, took_s: float) -> None:
    with suppress(OSError):  # where nothing can be kept this is the least
        write_bytes(_file(), (json.dumps(_seconds() | {what: round(took_s, 2)}, indent=1) + "\n").encode())


event.register("numba:compile", Said())  # type: ignore[no-untyped-call]
