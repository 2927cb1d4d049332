"""Waiting for what other processes do."""

import time
from collections.abc import Callable
from pathlib import Path

PATIENCE_S = 120.0  # for what takes a moment unless it never happens


def eventually(what: Callable[[], bool]) -> None:
    end = time.monotonic() + PATIENCE_S
    while not what():
        assert time.monotonic() < end, "it never happened"
        time.sleep(0.05)


def gone(pid: int) -> bool:
    """No such process, or one that is dead and not yet waited for."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except OSError:
        return True
