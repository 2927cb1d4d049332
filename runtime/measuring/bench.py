"""A device opened once, on which many settings are replayed: what calibration and validation measure with.

Weights, slots and KV caches are allocated once, for the largest of the settings that will come; each replay then has
its own plan, and with it its own capacity, policies and steps. Replays do not know of each other: the first residents
are copied anew and every choice starts afresh.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from copy import copy
from dataclasses import replace
from typing import Any, Protocol

import numpy as np
import torch

from runtime.device.port import Port
from runtime.device.worker import failing
from runtime.experts.checkpoint import Checkpoint
from runtime.experts.layout import Layout
from runtime.experts.store import ExpertStore, Source, Synthetic, fits, need
from runtime.measuring import microbenchmarks
from runtime.replay import Options, at_scale, groups, uses_host
from runtime.replaying.decisions import Outcome
from runtime.replaying.layers import CatalogWork
from runtime.replaying.lockstep import LockStep
from runtime.replaying.machine import AsTheyCome, Machine
from runtime.replaying.shapes import Batches, dense_bytes
from sim.catalog import precision
from sim.machines.record import RunRecord
from sim.prepare import Setting


class Bench(Protocol):
    """What calibration and validation ask of a device; a fake one is a few lines (tests/test_validate.py)."""

    def replay(self, setting: Setting) -> RunRecord:
        """The full record of one free-running replay, with `dense_end_ns` among its visits."""

    def lock_step(self, setting: Setting, record: RunRecord) -> tuple[RunRecord | None, Outcome]:
        """Replay in a record's order of completions: what came out (None: it could not go on), what was compared."""

    def pace(self, gbps: float, latency_us: float) -> None:
        """Set the link's pace for the replays to come; only where it is paced."""

    def facts(self) -> dict[str, Any]:
        """What the device is: `what`, `torch`, `host_bytes` of memory as stated (None: nobody did), and for the CPU the
        pace and how well it was kept."""

    def bare_copy_ns(self) -> tuple[int, int]:
        """What the fastest bare copy of one expert lasts: on an idle link, and behind another copy."""

    def kernels(self, tokens: Sequence[int]) -> list[dict[str, Any]]:
        """For each number of tokens what one expert takes of the device and of the host
        (runtime.measuring.microbenchmarks.Kernel)."""

    @property
    def expert_bytes(self) -> int:
        """What one transfer carries."""


class Noting(Machine):
    """The torch machine, noting when each dense part ended on the device."""

    dense_end: list[int]

    def dense(self, step: int, layer: int) -> None:
        """See Machine.dense; its mark is where the dense part ended."""
        super().dense(step, layer)
        self.dense_end.append(self.mark)

    def noted(self) -> RunRecord:
        """Run, and put the marks among the visits."""
        self.dense_end = []
        record = self.run()
        record.groups["visits"]["dense_end_ns"] = np.array(self.dense_end, np.int64)
        return record


class Extent:
    """What must be there for every one of the settings: slots of each scope, and room in the dense part."""

    def __init__(self, settings: Sequence[Setting], options: Options) -> None:
        first = at_scale(settings[0], options.scale)
        assert first.model is not None
        self.model, self.alias, self.host_bytes = first.model, options.alias, options.host_bytes
        self.layout = Layout.of(self.model, precision(first.spec.precision))
        self.layers, self.n_layers = first.trace.meta["moe_layers"], first.trace.n_layers
        self.sizes = (len(self.layers), first.plan.n_experts)
        self.slots = max((s.plan.slots.tolist() for s in settings), key=sum)
        self.room = _room([_batches(s) for s in settings])

    def refuse(self, port: Port) -> None:
        """Raises StoreError, with the numbers, when it does not fit."""
        dense = dense_bytes(self.model, self.layout, self.room, self.n_layers, self.layers)
        fits(need(self.layout, *self.sizes, sum(self.slots), self.alias, dense), port, self.host_bytes)


class PortBench:
    """See the module's text and class Bench."""

    def __init__(self, port: Port, settings: Sequence[Setting], options: Options) -> None:
        """Raises StoreError, before anything is allocated, when the largest of the settings does not fit."""
        self.port, self.options = port, options
        self.failed: str | None = None
        e = Extent(settings, options)
        e.refuse(port)
        source: Source = Synthetic(e.layout, settings[0].spec.seed)
        if options.weights is not None:
            source = Checkpoint(options.weights, e.layout, e.layers)
        to_host, group = any(uses_host(s.plan) for s in settings), groups(options.kernel, e.layout, port)
        with failing("weights and caches"):
            properties = getattr(getattr(torch, port.device.type, None), "get_device_properties", None)
            self.memory = {} if properties is None else {"mem_gb": properties(port.device).total_memory / 1e9}
            self.store = ExpertStore(port, e.layout, *e.sizes, e.slots, source, e.alias)
            self.work = CatalogWork(port, e.model, self.store, e.room, e.layers, e.n_layers, to_host, group)

    @property
    def expert_bytes(self) -> int:
        return self.store.layout.nbytes

    def pace(self, gbps: float, latency_us: float) -> None:
        link: Any = self.port.link
        link.gbps, link.latency_ns = gbps, round(latency_us * 1e3)

    def facts(self) -> dict[str, Any]:
        return {"torch": torch.__version__, **self.memory, **self.port.facts(), "host_bytes": self.options.host_bytes}

    def bare_copy_ns(self) -> tuple[int, int]:
        link: Any = self.port.link
        if hasattr(link, "gbps"):  # a paced link holds its pace, however slow the machine is just now
            following = int(self.expert_bytes / link.gbps)
            return following + link.latency_ns, following
        return microbenchmarks.bare_copies(self.port, self.store)

    def kernels(self, tokens: Sequence[int]) -> list[dict[str, Any]]:
        return microbenchmarks.kernels(self.port, self.store, tokens)

    def replay(self, setting: Setting) -> RunRecord:
        return self._machine(setting, AsTheyCome).noted()

    def lock_step(self, setting: Setting, record: RunRecord) -> tuple[RunRecord | None, Outcome]:
        if self.failed is not None:
            return None, Outcome(error=f"not replayed, because an earlier lock-step ended: {self.failed}")
        machine = self._machine(setting, LockStep.of(record))
        order = machine.order
        assert isinstance(order, LockStep)
        try:
            replayed = machine.noted()
            order.finish()
        except RuntimeError as error:  # a difference, perhaps by way of the link's thread, which then is no more
            if order.outcome.equal:
                raise
            self.failed = str(order.outcome.error or order.outcome.difference or error)
            return None, order.outcome
        return replayed, order.outcome

    def _machine(self, setting: Setting, order: Any) -> Noting:
        plan = replace(setting.plan, expert_bytes=self.expert_bytes)
        self._cut(plan.slots.tolist())
        self.work.batches = _batches(setting)
        return Noting(plan, self.port, self.store, self.work, order=order)

    def _cut(self, slots: list[int]) -> None:
        """The slots that there are, shared out as a plan has them."""
        self.store.slots = slots
        self.store.first_slot = [sum(slots[:i]) for i in range(len(slots))]


def _batches(setting: Setting) -> Batches:
    plan = setting.plan
    return Batches(setting.trace, plan.step_offset, plan.step_row, plan.step_prefill, setting.spec.context_offset)


def _room(every: Sequence[Batches]) -> Batches:
    """Batches as large as the largest of each kind."""
    out = copy(every[0])
    for name in ("places", "longest", "most"):
        setattr(out, name, max(getattr(b, name) for b in every))
    return out


@contextmanager
def opened(port: Port, settings: Sequence[Setting], options: Options) -> Iterator[PortBench]:
    """A bench with room for every one of the settings; the port is closed at the end, whatever happens."""
    try:
        yield PortBench(port, settings, options)
    finally:
        port.close()
