"""The GPU day with its commands as forks of one process that has loaded the libraries: the same commands, the same
boxes, without the seconds that each `python -m` takes to load torch.

    python -m tests.forked_day [arguments of runtime.gpu]
"""

import contextlib
import importlib
import os
import runpy
import subprocess
import sys
import threading
from pathlib import Path
from typing import IO, Any

from tests.forked import OF_COMMANDS, status_of

WITH_MODELS = ("transformers", "transformers.integrations.moe")


class Fork:
    """In the place of `subprocess.Popen(["python", "-m", MODULE, ...])`, as runtime.gpu.box uses it."""

    def __init__(self, command: list[str], cwd: Path, env: dict[str, str], stdout: IO[bytes], **_: Any) -> None:
        self.pid = os.fork()
        if self.pid == 0:
            os._exit(_child(command[2:], cwd, env, stdout))

    def wait(self) -> int:
        return os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])


def _child(words: list[str], cwd: Path, env: dict[str, str], stdout: IO[bytes]) -> int:
    """Its exit status."""
    os.setsid()
    for number in (1, 2):
        os.dup2(stdout.fileno(), number)
    os.chdir(cwd)
    os.environ.update(env)
    sys.path.insert(0, str(cwd))
    sys.argv = words
    status = status_of(lambda: runpy.run_module(words[0], run_name="__main__", alter_sys=True))
    sys.stdout.flush()
    sys.stderr.flush()
    return status


def started(command: list[str], **how: Any) -> Any:
    """A fork; beside other threads, which may hold a lock of the interpreter, a process of its own."""
    alone = threading.current_thread() is threading.main_thread()
    return Fork(command, **how) if alone else subprocess.Popen(command, **how)


if __name__ == "__main__":
    for library in (*OF_COMMANDS, *WITH_MODELS):
        with contextlib.suppress(ImportError):
            importlib.import_module(library)
    from runtime.gpu import __main__ as day
    from runtime.gpu import box

    class Subprocess:
        """What box takes of the module."""

        Popen, DEVNULL, STDOUT = staticmethod(started), subprocess.DEVNULL, subprocess.STDOUT

    box.subprocess = Subprocess  # type: ignore[assignment, attr-defined]
    sys.exit(day.main(sys.argv[1:]))
