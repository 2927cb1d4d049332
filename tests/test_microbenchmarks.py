"""Microbenchmarks on a device of stated durations, in simulated time (tests/stand_in.py): what is found is what was put
in, whether the host is faster than the device or slower."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch

from runtime.device.accelerator import AcceleratorPort
from runtime.device.choose import choose
from runtime.experts.layout import Layout
from runtime.experts.store import ExpertStore
from runtime.measuring import microbenchmarks
from runtime.measuring.table import said, tokens_of
from tests.devices import SMALL, Numbered
from tests.stand_in import StandIn

BIG = Layout(256, 512, 3, False, torch.bfloat16)  # 786,432 bytes
KERNELS = 4  # of an expert: two products, silu, times


@contextmanager
def stored(layout: Layout, **durations: Any) -> Iterator[tuple[Any, ExpertStore]]:
    with StandIn(noise=0.0, **durations), AcceleratorPort(torch.device("cuda", 0)) as port:
        yield port, ExpertStore(port, layout, 2, 4, [2, 2], Numbered())


@pytest.mark.parametrize(("kernel_ns", "launch_ns"), [(3_000, 25_000), (40_000, 5_000)])
def test_the_device_is_busy_for_its_kernels_and_the_host_for_its_launches(kernel_ns: int, launch_ns: int) -> None:
    # a copy takes 8 us: the host needs 100 us for each of eight launches, so that many copies must be ahead of them
    with stored(SMALL, kernel_ns=kernel_ns, launch_ns=launch_ns) as (port, store):
        (found,) = microbenchmarks.kernels(port, store, [4])
    assert found["tokens"] == 4 and found["ahead"]
    assert found["device_ns"] == pytest.approx(KERNELS * kernel_ns, rel=0.05)
    assert KERNELS * launch_ns <= found["host_ns"] < KERNELS * launch_ns * 1.1 + 3_000  # and views
    # one launch: the last kernel begins when it is launched, or behind the others
    behind = launch_ns + KERNELS * kernel_ns if kernel_ns > launch_ns else KERNELS * launch_ns + kernel_ns
    assert found["seen_ns"] == pytest.approx(behind, abs=12_000)
    assert said(found).endswith(": HOST-BOUND") == (launch_ns > kernel_ns)
    assert said(found).startswith(f"GPU busy {found['device_ns'] / 1e3:.1f} us of the {found['seen_ns'] / 1e3:.1f} us")


def test_bare_copies_of_an_expert() -> None:
    with stored(BIG, copy_ns=8_000, link_gbps=50.0) as (port, store):
        idle, following = microbenchmarks.bare_copies(port, store)
    lasts = 8_000 + BIG.nbytes / 50.0  # 23.7 us
    assert idle == pytest.approx(lasts, abs=1_000 + 5_000)  # an event before it and one behind it, and its launch
    assert following == pytest.approx(lasts, abs=1_000 + 5_000) and following >= lasts


def test_where_kernels_run_when_they_are_launched_the_host_is_never_ahead() -> None:
    with choose("cpu", 2.0, 5.0) as port:
        store = ExpertStore(port, SMALL, 2, 4, [2, 2], Numbered())
        (found,) = microbenchmarks.kernels(port, store, [2])
        idle, following = microbenchmarks.bare_copies(port, store)
        assert idle >= following
    assert found["device_ns"] == found["host_ns"] > 0 and not found["ahead"]
    assert "the host was not ahead" in said(found) and tokens_of(found) == "2 tokens"
    pace = SMALL.nbytes / 2.0
    assert idle >= pace + 5_000 - 1 and following >= pace - 1  # the pace of the link holds
