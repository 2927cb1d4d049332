"""What holds for every test: how hypothesis looks for examples, and when the machine is compiled."""

import gc
import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

from tests.copied import compiled_sources
from tests.forked import Forks
from tests.machine import is_compiled, needs_the_machine

# One thread of torch, before it is loaded: the workers share the cores, and sums of several threads differ.
os.environ["OMP_NUM_THREADS"] = "1"
# Nor does what a command prints hang on how long it took: no line every ten seconds, here or in processes of tests.
os.environ["MOE_OFFLOAD_SIM_QUIET"] = "1"

# No verdict hangs on how busy the computer is: no deadline, no health check that measures time. The same sources are
# tried on the same examples everywhere, so that a red run is repeated by repeating it, and a planted fault that is
# caught once is caught always. `--hypothesis-profile explore` draws new ones each time and prints how to repeat a find.
settings.register_profile(
    "repeatable",
    deadline=None,
    derandomize=True,
    database=None,
    print_blob=True,
    suppress_health_check=[HealthCheck.too_slow],
)
settings.register_profile("explore", settings.get_profile("repeatable"), derandomize=False)
settings.load_profile("repeatable")


def pytest_collection() -> None:
    """What is loaded from here on stays: nobody looks through it for garbage, now or during the tests."""
    gc.disable()


def pytest_collection_finish() -> None:
    """Nothing has run the machine by now: it would have been compiled in every worker, for tests not even selected."""
    gc.freeze()
    gc.enable()
    gc.set_threshold(100_000, 50, 100)  # a run makes many small objects and few circles
    loop = getattr(sys.modules.get("sim.machines.compiled"), "_loop", None)
    if getattr(loop, "overloads", None):
        raise pytest.UsageError("a test file runs the machine while it is imported: let a fixture do it")


@pytest.hookimpl(tryfirst=True)  # before any fixture, which may run the machine
def pytest_runtest_setup(item: pytest.Item) -> None:
    """The first test that needs the machine compiles it, once for all workers; the others wait."""
    if os.environ.get("NUMBA_DISABLE_JIT"):
        return
    told = item.get_closest_marker("machine") is not None
    if (told or needs_the_machine(item.path)) and not is_compiled():
        pytest.fail("the machine does not compile: `python -m tests.warm` says why", pytrace=False)


@pytest.fixture(scope="session")
def forks() -> Iterator[Forks]:
    """Where code runs on the sources of another folder."""
    with Forks() as found:
        yield found


@pytest.fixture(scope="session")
def commands() -> Iterator[Forks]:
    """Where commands run on the sources here."""
    with Forks(compiled=True) as found:
        yield found


@pytest.fixture(scope="session")
def sources(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The sources with their bytecode, to be copied: see tests.copied."""
    return compiled_sources(tmp_path_factory.mktemp("sources"))


@pytest.fixture
def two_threads() -> Iterator[None]:
    """Of torch."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


@pytest.fixture(params=["stand-in", pytest.param("real", marks=pytest.mark.gpu)])
def accelerator(request: pytest.FixtureRequest) -> Iterator[float]:
    """A CUDA device, the simulated one or the machine's own; how much smaller models should be there."""
    from runtime.device.accelerator import current
    from tests.stand_in import StandIn

    if request.param == "stand-in":
        with StandIn():
            yield 1 / 128
    elif current() is None:
        pytest.skip("torch finds no accelerator")
    else:
        yield 1 / 8
