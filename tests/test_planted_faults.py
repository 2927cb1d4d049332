"""Law 11, the tests can fail: each fault of tests/planted.py, planted in a copy of the sources, fails the tests named.

pytest runs them in the copy, in a process of its own, with the core as plain Python: nothing is compiled.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.copied import copy_sources
from tests.planted import FAULTS, Fault

PASSED, FAILED = 0, 1  # pytest's exit statuses; a test that is not there, or does not even import, gives another one
CATCHERS = sorted({test for fault in FAULTS for test in fault.caught_by})
PAIRS = [(each, test) for each in FAULTS for test in each.caught_by]


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """The sources as they are, to plant a fault in."""
    copy_sources(tmp_path)
    return tmp_path


def plant(fault: Fault, folder: Path) -> None:
    for file, right, wrong in fault.edits:
        source = (folder / file).read_text()
        assert source.count(right) == 1, f"{file} has changed: plant this fault elsewhere"
        (folder / file).write_text(source.replace(right, wrong))


def outcome(folder: Path, *tests: str) -> tuple[int, str]:
    """(exit status, output) of pytest, which stops at the first failure."""
    off = {"NUMBA_DISABLE_JIT": "1", "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1", "PYTHONDONTWRITEBYTECODE": "1"}
    env = os.environ | off | {"PYTHONPATH": str(folder)}
    command = [sys.executable, "-m", "pytest", "-x", "--assert=plain", "-p", "no:cacheprovider", *tests]
    done = subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True, timeout=120)
    return done.returncode, done.stdout + done.stderr


def test_without_a_fault_they_pass(copy: Path) -> None:
    status, output = outcome(copy, *CATCHERS)
    assert status == PASSED, output


@pytest.mark.parametrize(("fault", "test"), PAIRS, ids=[f"{each.name}, {test.split('::')[1]}" for each, test in PAIRS])
def test_a_fault_is_caught(fault: Fault, test: str, copy: Path) -> None:
    plant(fault, copy)
    status, output = outcome(copy, test)
    assert status == FAILED, output
