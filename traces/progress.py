"""What a command says on stderr while it works: at once on a terminal, else a line every ten seconds.

A command is silent for at most `EVERY_S`. It says what it is doing with `doing`; `watched` (every `main`, by
`traces.command.guarded`) has a thread that repeats the last such word for as long as nothing newer is shown. There is
one standard error to a process, so there is one state.
"""

import contextlib
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

EVERY_S = 10.0
QUIET = "MOE_OFFLOAD_SIM_QUIET"  # in the environment: no line but errors and what is asked for

T = TypeVar("T")


class _Told:
    """What is being done, since when, and when that was last shown."""

    def __init__(self) -> None:
        self.what, self.begin, self.shown = "", time.monotonic(), time.monotonic()


_told = _Told()


def doing(what: str, at_once: bool = True) -> None:
    """What the command does now (`round 3 of 15: lru`). On a terminal it is shown at once.

    at_once: False for what changes many times a second, or is over before anybody has read it: only whoever has heard
    nothing for long is told."""
    _told.what = what
    if at_once and sys.stderr is not None and sys.stderr.isatty():
        show(what)


def now_doing() -> str:
    """What the command does; nothing where it has not said so."""
    return _told.what


def show(line: str) -> None:
    """A line on stderr, at once, terminal or not; none where nobody wants it."""
    if sys.stderr is not None and QUIET not in os.environ:
        print(line, file=sys.stderr, flush=True)
    _told.shown = time.monotonic()


def counted(
    things: Sequence[T], what: str, name: Callable[[T], object] | None = None, at_once: bool = True
) -> Iterator[T]:
    """The things, one after another, each told as it begins: `run 3 of 15: lru`, behind what is done already. name: of
    a thing; at_once: see `doing`."""
    outer = now_doing()
    for number, thing in enumerate(things, 1):
        named = "" if name is None else f": {name(thing)}"
        doing(f"{outer}{', ' if outer else ''}{what} {number:,} of {len(things):,}{named}", at_once)
        yield thing
    doing(outer, at_once=False)


@contextlib.contextmanager
def watched(every_s: float = EVERY_S) -> Iterator[None]:
    """While this lasts, nobody waits longer than `every_s` for a line that says what is being done, and for how long.
    A process that is forked meanwhile has no such thread, and says nothing."""
    if QUIET in os.environ:
        yield
        return
    ended = threading.Event()
    _told.what, _told.begin = "", time.monotonic()
    _told.shown = _told.begin
    thread = threading.Thread(target=_repeat, args=(ended, every_s), name="progress", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def _repeat(ended: threading.Event, every_s: float) -> None:
    while not ended.wait(max(0.0, _told.shown + every_s - time.monotonic())):
        if time.monotonic() - _told.shown >= every_s:
            show(f"{time.monotonic() - _told.begin:.0f} s: {_told.what or 'working'} ...")
