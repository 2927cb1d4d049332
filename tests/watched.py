"""A process whose output is read as it comes: what it said, how long it took, and for how long it said nothing."""

import contextlib
import os
import queue
import signal
import subprocess
import threading
import time
from collections.abc import Iterable
from pathlib import Path
from typing import IO, NamedTuple

BOUND_S = 240.0  # of a command or a snippet, the ones that compile the machine included
SILENT_S = 15.0  # of any: a line every ten (traces/progress.py) is promised, once Python is there, on an idle computer
END = "\0end"  # a snippet's last line on both streams

# Runs files of Python one after the other in one namespace, as the cells of a notebook are.
SNIPPETS = f"""
import sys
names = {{"__name__": "__main__"}}
for path in map(str.strip, sys.stdin):
    exec(compile(open(path).read(), path, "exec"), names)
    for stream in (sys.stdout, sys.stderr):
        print({END!r}, file=stream, flush=True)
"""


class Done(NamedTuple):
    """status: as of a shell, 124 after BOUND_S. silent: the longest time without a line on either stream, seconds."""

    status: int
    out: str
    err: str
    seconds: float
    silent: float


class Watched:
    """A process of its own group, that a time limit ends."""

    def __init__(self, words: Iterable[str], cwd: Path, env: dict[str, str]) -> None:
        self.process = subprocess.Popen(
            list(words),
            cwd=cwd,
            env=env,
            text=True,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,
        )
        self.lines: queue.SimpleQueue[tuple[int, str]] = queue.SimpleQueue()  # (stream, line); "" where it ended
        for stream, pipe in enumerate((self.process.stdout, self.process.stderr)):
            assert pipe is not None
            threading.Thread(target=self._read, args=(stream, pipe), daemon=True).start()

    @property
    def pipe(self) -> IO[str]:
        """Its standard input."""
        assert self.process.stdin is not None
        return self.process.stdin

    def _read(self, stream: int, pipe: IO[str]) -> None:
        with pipe:
            for line in pipe:
                self.lines.put((stream, line))
        self.lines.put((stream, ""))

    def follow(self) -> Done:
        """Until both streams have ended, or said that a snippet has."""
        said, open_ = ("", ""), {0, 1}
        begin = last = time.monotonic()
        silent, status = 0.0, 0
        while open_:
            try:
                stream, line = self.lines.get(timeout=max(0.0, begin + BOUND_S - time.monotonic()))
            except queue.Empty:
                self.end()
                status = 124
                break
            silent, last = max(silent, time.monotonic() - last), time.monotonic()
            if line.rstrip("\n") in ("", END) and line != "\n":
                open_.discard(stream)
                status = status or (self.process.wait() if not line else 0)
            else:
                said = tuple(text + line if i == stream else text for i, text in enumerate(said))
        return Done(status, *said, time.monotonic() - begin, silent)

    def end(self) -> None:
        """Whatever it does."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()


def command(line: str, cwd: Path, env: dict[str, str]) -> Done:
    """A line as a shell runs it."""
    watched = Watched(("bash", "-c", line), cwd, env)
    watched.pipe.close()
    return watched.follow()


class Snippets:
    """One Python for the snippets of a page, from the first on."""

    def __init__(self, cwd: Path, env: dict[str, str]) -> None:
        self.cwd, self.env, self.number = cwd, env, 0
        self.watched: Watched | None = None

    def run(self, text: str) -> Done:
        """What it printed; a snippet that raises ends them all, with status 1."""
        self.number += 1
        self.watched = self.watched or Watched(("python", "-c", SNIPPETS), self.cwd, self.env)
        path = self.cwd / f"snippet_{self.number}.py"
        path.write_text(text)
        if self.watched.process.poll() is not None:
            return Done(1, "", "an earlier snippet has ended their Python", 0, 0)
        print(path.name, file=self.watched.pipe, flush=True)
        return self.watched.follow()

    def end(self) -> None:
        if self.watched:
            self.watched.pipe.close()
            self.watched.end()
