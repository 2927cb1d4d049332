"""Compiling the machine takes minutes: nothing does it before a test needs it, and then one process does it for all."""

import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from sim.core import jit
from tests import machine
from tests.machine import ROOT, is_compiled, needs_the_machine

NEEDY = ("from sim.machines import compiled", "def f():\n    from sim import run", "C = ['-m', 'sim.run']")
FREE = (
    "from sim.costs.roofline import costs",
    "C = ['-m', 'traces', 'info']",
    "import numpy",
    "import runtime.measuring.fits",
)


@pytest.mark.parametrize("source", [*NEEDY, *FREE])
def test_what_a_test_file_names_says_whether_it_needs_the_machine(source: str, tmp_path: Path) -> None:
    path = tmp_path / "tests" / "test_it.py"
    path.parent.mkdir()
    path.write_text(source)
    assert needs_the_machine(path) == (source in NEEDY)


def test_neither_collecting_nor_a_test_without_the_machine_compiles(tmp_path: Path) -> None:
    """One file that needs the machine is collected, one that does not is run: numba's cache stays empty."""
    files = ["tests/test_agreement.py", "tests/test_catalog.py"]
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-k", "test_catalog.py", *files]
    env = os.environ | {"NUMBA_CACHE_DIR": str(tmp_path)}
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True)
    assert done.returncode == 0 and " passed, " in done.stdout, done.stdout
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


def test_of_processes_that_need_it_at_once_one_compiles(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    begun: list[Any] = []
    status = [1]

    def popen(command: list[str], cwd: Path) -> Any:
        begun.append(command[3:])
        return SimpleNamespace(wait=lambda: status[0])

    monkeypatch.setattr(jit, "CACHE_DIR", tmp_path)
    monkeypatch.setattr(machine.subprocess, "Popen", popen)
    ask = is_compiled.__wrapped__  # what a process does once
    assert not ask() and len(begun) == 2  # it fails, and is not taken for done
    status[0] = 0
    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(lambda _: ask(), range(4)))
    assert begun == [list(each) for each in machine.BATCHES] * 2
    monkeypatch.setattr(machine, "_sources", lambda: "edited since")
    assert ask() and len(begun) == 6
