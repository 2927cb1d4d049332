"""What the command lines of a device share: the host's memory as a flag, and a device that fails as one line."""

import argparse
import sys
from collections.abc import Callable
from typing import Any

from runtime.device.port import DeviceError
from sim.spec import memory_bytes


def host_memory_flag(group: Any) -> None:
    """--host-memory, of every command that holds experts on the host."""
    what = "host memory that there is (default: what the system says, which may begin small)"
    group.add_argument("--host-memory", type=_memory, metavar="100GB", help=what)


def _memory(text: str) -> int:
    try:
        return memory_bytes(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text}: {error}") from None


def with_device(command: Callable[[], int]) -> int:
    """A command on a device: what the device does wrong is one line and exit status 1, an interrupt 130."""
    try:
        return command()
    except DeviceError as error:
        return failed(str(error), 1)
    except KeyboardInterrupt:
        return failed("interrupted", 130)


def failed(why: str, status: int) -> int:
    """One line on stderr; returns the exit status."""
    print(f"error: {' '.join(why.split())}", file=sys.stderr)
    return status
