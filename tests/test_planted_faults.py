"""Law 11, the tests can fail: each fault of tests/planted.py, planted in a copy of the sources, fails the tests named.

pytest runs them in the copy, in a process of its own (tests/forked.py), with the core as plain Python: nothing is
compiled.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.copied import copied
from tests.forked import Forks
from tests.planted import FAULTS, Fault

PASSED, FAILED = 0, 1  # pytest's exit statuses; a test that is not there, or does not even import, gives another one
CATCHERS = sorted({test for fault in FAULTS for test in fault.caught_by})
PAIRS = [(each, test) for each in FAULTS for test in each.caught_by]
PYTEST = """
import sys, pytest
from hypothesis import Phase, settings

class Once:
    def pytest_collection(self):  # any case that shows the fault will do, it need not be a small one
        once = settings(settings.get_profile("repeatable"), phases=[Phase.explicit, Phase.generate])
        settings.register_profile("once", once)
        settings.load_profile("once")

sys.exit(pytest.main(["-x", "--assert=plain", "-p", "no:cacheprovider", *sys.argv[1:]], plugins=[Once()]))
"""


@pytest.fixture(scope="module")
def copy(sources: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The sources as they are, to plant one fault after the other in."""
    return copied(sources, tmp_path_factory.mktemp("planted"))


@contextmanager
def planted(fault: Fault, folder: Path) -> Iterator[None]:
    """Within it the fault is there."""
    before = {file: (folder / file).read_text() for file, _, _ in fault.edits}
    try:
        for file, right, wrong in fault.edits:
            source = (folder / file).read_text()
            assert source.count(right) == 1, f"{file} has changed: plant this fault elsewhere"
            (folder / file).write_text(source.replace(right, wrong))
        yield
    finally:
        for file, source in before.items():
            (folder / file).write_text(source)


@pytest.mark.parametrize("file", sorted({test.split("::")[0] for test in CATCHERS}))
def test_without_a_fault_they_pass(file: str, copy: Path, forks: Forks) -> None:
    status, output = forks.run(copy, PYTEST, *(test for test in CATCHERS if test.startswith(f"{file}::")))
    assert status == PASSED, output


@pytest.mark.parametrize(("fault", "test"), PAIRS, ids=[f"{each.name}, {test.split('::')[1]}" for each, test in PAIRS])
def test_a_fault_is_caught(fault: Fault, test: str, copy: Path, forks: Forks) -> None:
    with planted(fault, copy):
        status, output = forks.run(copy, PYTEST, test)
    assert status == FAILED, output
