"""Python that is there at once, its libraries loaded: for tests of sources in another folder, the core not compiled,
and for tests of commands, which are then as they are without the seconds that loading takes.

Run as a script, by its path, it loads the libraries and forks a process for each line of JSON on its standard input;
nothing of this project is loaded by then, so that each imports it from its own folder.
"""

import contextlib
import gc
import importlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

LIBRARIES = ("numpy", "numba", "pydantic", "simpy", "pytest", "hypothesis", "pandas", "scipy.optimize", "torch")
OF_COMMANDS = (*LIBRARIES, "numba.np.arraymath", "plotly.graph_objects", "marimo")
OFF = {"NUMBA_DISABLE_JIT": "1", "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1", "PYTHONDONTWRITEBYTECODE": "1"}
COMMAND = """
import os, runpy, sys
_, folder, errors, *sys.argv = sys.argv
os.chdir(folder)
os.dup2(os.open(errors, os.O_WRONLY), 2)
if sys.argv[0].endswith(".py"):
    runpy.run_path(sys.argv[0], run_name="__main__")
else:
    runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
"""
PATIENCE_S = 120
ROOT = Path(__file__).resolve().parents[1]


class Forks:
    """Runs code as `python -c CODE ARGUMENTS` in a folder, one after the other; in use `with Forks() as forks:`.
    compiled: the core is, and whatever commands load is there. python, env: another one, and what it finds in its
    environment."""

    def __init__(
        self, compiled: bool = False, python: str = sys.executable, env: Mapping[str, str] = os.environ
    ) -> None:
        self.compiled, self.python, self.env = compiled, python, env

    def __enter__(self) -> "Forks":
        command = [self.python, str(Path(__file__).resolve()), *(OF_COMMANDS if self.compiled else LIBRARIES)]
        env = {name: value for name, value in self.env.items() if name != "PYTHONPATH"}
        env |= {} if self.compiled else OFF
        self.server = subprocess.Popen(command, env=env, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        return self

    def __exit__(self, *_: object) -> None:
        self.server.communicate()

    def run(self, folder: Path, code: str, *arguments: str) -> tuple[int, str]:
        """(exit status, what it printed): -14 after PATIENCE_S."""
        assert self.server.stdin is not None and self.server.stdout is not None
        with tempfile.NamedTemporaryFile("r") as out:
            asked = {"folder": str(folder), "code": code, "arguments": arguments, "out": out.name}
            print(json.dumps(asked), file=self.server.stdin, flush=True)
            return int(self.server.stdout.readline()), out.read()

    def call(self, *words: str | Path, cwd: Path = ROOT, sources: Path = ROOT) -> "subprocess.CompletedProcess[str]":
        """`python -m WORDS`, or of a script `python WORDS`, in a folder, on the sources here or in another one."""
        with tempfile.NamedTemporaryFile("r") as errors:
            status, output = self.run(sources, COMMAND, str(cwd), errors.name, *map(str, words))
            return subprocess.CompletedProcess(words, status, output, errors.read())


def _child(folder: str, code: str, arguments: list[str], out: str) -> int:
    """Its exit status."""
    signal.alarm(PATIENCE_S)
    with open(os.devnull) as nothing, open(out, "w") as file:
        for number, end in enumerate((nothing, file, file)):
            os.dup2(end.fileno(), number)
    os.chdir(folder)
    os.environ["PYTHONPATH"] = folder
    sys.path.insert(0, folder)
    sys.argv = ["-c", *arguments]
    return status_of(lambda: exec(code, {"__name__": "__main__"}))


def status_of(run: Callable[[], object]) -> int:
    """The exit status of a process that runs this."""
    try:
        run()
    except SystemExit as left:
        return left.code if isinstance(left.code, int) else int(left.code is not None)
    except BaseException:
        traceback.print_exc()
        return 1
    return 0


def _serve() -> None:
    for line in sys.stdin:
        asked: dict[str, Any] = json.loads(line)
        pid = os.fork()
        if pid == 0:
            status = _child(**asked)
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(status)
        print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), flush=True)


if __name__ == "__main__":
    sys.path.pop(0)  # the folder of the tests, which a script finds there
    for library in sys.argv[1:]:
        with contextlib.suppress(ImportError):  # its tests are skipped
            importlib.import_module(library)
    gc.freeze()  # no process goes through all of theirs to collect its own
    _serve()
