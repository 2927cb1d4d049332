"""A command in a time box: a session of its own, one log, and killed with everything that it started."""

import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

LOOK_S = 0.05  # how often it is looked whether the command has ended
MARK = "MOE_GPU_DAY"  # in the environment of all that a day starts: the day's folder


@dataclass(frozen=True)
class Ended:
    """How a command ended. exit: its status, below 0 where a signal ended it (as subprocess has it); None: killed,
    because its time was over (timed_out) or the day was stopped."""

    exit: int | None
    seconds: float
    timed_out: bool = False


def run(
    command: Sequence[str],
    folder: Path,
    log: Path,
    seconds: float,
    environment: Mapping[str, str],
    stopped: Callable[[], bool] = lambda: False,
) -> Ended:
    """Run a command in a folder for at most so many seconds, or until `stopped()`; its output goes behind the log's.

    At its end nothing of its process group is left, whether it ended by itself or not.
    """
    began = time.monotonic()
    with log.open("ab") as out:
        child = subprocess.Popen(
            command,
            cwd=folder,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            while not (ended := _has_ended(child.pid)) and time.monotonic() < began + seconds and not stopped():
                time.sleep(LOOK_S)
        finally:  # before the leader is waited for: as long as it is not, its number is nobody else's
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(child.pid, signal.SIGKILL)
            status = child.wait()
    spent = time.monotonic() - began
    return Ended(status if ended else None, spent, not ended and spent >= seconds)


def _has_ended(pid: int) -> bool:
    return os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None


def kill_left_over(day: Path) -> list[int]:
    """Kill what an earlier run of this day left running when it was killed itself; the process ids. Nothing where the
    system has no /proc."""
    mark, found = f"{MARK}={day}".encode(), []
    for place in Path("/proc").glob("[0-9]*/environ"):
        with contextlib.suppress(OSError):  # not ours, or gone meanwhile
            if mark in place.read_bytes().split(b"\0") and int(place.parent.name) != os.getpid():
                os.kill(int(place.parent.name), signal.SIGKILL)
                found.append(int(place.parent.name))
    return found
