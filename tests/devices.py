"""For tests of the device layer: a small store, kernels that check their slots, a device that is not there."""

import random
from collections import deque
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from runtime.device.port import Port
from runtime.experts.layout import Layout
from runtime.experts.quantised import LowLayout
from runtime.experts.store import ExpertStore
from runtime.replaying.machine import Machine
from runtime.replaying.stages import stages_of
from runtime.replaying.work import Job
from sim.core.plan import Plan
from sim.machines.record import RunRecord
from tests.plans import random_lossy_plan, random_plan

SMALL = Layout(8, 4, 3, False, torch.float32)


class Numbered:
    """Every weight of an expert is its number."""

    def fill(self, layer: int, expert: int, out: torch.Tensor) -> None:
        out.fill_(1000 * layer + expert + 1)


class Checked:
    """Kernels that compute nothing, and look whether the expert is in its slot when they run."""

    def __init__(self, store: ExpertStore, group: bool = False) -> None:
        self.store, self.group = store, group
        self.ran: list[tuple[int, int]] = []
        self.jobs: dict[int, Job] = {}

    def begin_step(self, step: int) -> None:
        """Nothing."""

    def dense(self, column: int) -> None:
        """Nothing."""

    def read_back(self) -> None:
        """Nothing."""

    def routed(self, jobs: dict[int, Job], host_jobs: dict[int, Job], later: Any = ()) -> None:
        self.jobs = jobs

    def expert(self, g: int, slot: int) -> None:
        held = self.store.target(slot).cpu()  # the host's bytes are compared on the host, wherever the slot is
        assert torch.equal(held, self.store.source(g)), f"slot {slot} does not hold expert {g}"
        self.ran.append((g, len(self.jobs[g].rows)))

    def experts(self, layer: int, jobs: Any, slots: Any) -> None:
        for job, slot in zip(jobs, slots, strict=True):
            self.expert(job.expert, slot)

    def on_host(self, job: Job) -> None:
        self.ran.append((job.expert, len(job.rows)))

    def join_host(self) -> None:
        """Nothing."""

    def end(self) -> None:
        """Nothing."""

    def check(self) -> None:
        """Nothing."""


def store_for(plan: Plan, port: Port, kind: type[ExpertStore] = ExpertStore) -> ExpertStore:
    """Tiny experts of a plan."""
    low = None if plan.low is None else LowLayout.of(SMALL.elements, "q8")
    low_slots = [] if plan.low is None else plan.low.slots.tolist()
    sizes = plan.experts.shape[1], plan.n_experts
    return kind(port, SMALL, *sizes, plan.slots.tolist(), Numbered(), None, low, low_slots, stages_of(plan))


def machine_on(
    plan: Plan, port: Port, kind: type[ExpertStore] = ExpertStore, group: bool = False, **more: Any
) -> Machine:
    store = store_for(plan, port, kind)
    return Machine(plan, port, store, Checked(store, group), **more)


def some_plan(seed: int) -> Plan:
    """Of the whole space; some with a warm-up."""
    plan = random_plan(seed // 2) if seed % 2 else random_lossy_plan(seed // 2)
    return replace(plan, warmup_steps=1) if seed % 5 == 0 and len(plan.step_prefill) > 2 else plan


def difference(expected: RunRecord, found: RunRecord) -> Any:
    """Where two records differ, in anything."""
    for name in expected.groups:
        for column, values in expected.groups[name].items():
            if not np.array_equal(values, found.groups[name][column]):
                return name, column
    for name in ("steps", "requests", "layer", "tokens", "windows"):
        for column, values in getattr(expected, name).items():
            if not np.array_equal(values, getattr(found, name)[column]):
                return name, column
    return None if expected.counters == found.counters else "counters"


class FakeAccelerator:
    """torch.accelerator on a machine without one: streams whose events happen when they are looked at often enough.

    `install` puts it in the place of torch's own. Work runs at once; only what events say is late, by a seed.
    """

    def __init__(self, seed: int) -> None:
        self.rng, self.clock = random.Random(seed), 0
        self.current: Any = None
        self.queues: list[deque[Any]] = []

    def install(self, monkeypatch: Any) -> None:
        fake = self

        class Stream:
            def __init__(self, device: Any = None) -> None:
                self.queue: deque[Any] = deque()
                fake.queues.append(self.queue)

            def wait_event(self, event: Any) -> None:
                self.queue.append(event)

        class Event:
            def __init__(self, device: Any = None, enable_timing: bool = False) -> None:
                assert enable_timing
                self.at: int | None = None

            def record(self, stream: Any) -> None:
                stream.queue.append(self)
                self.queue = stream.queue

            def query(self) -> bool:
                fake.advance()
                return self.at is not None

            def elapsed_time(self, other: Any) -> float:
                return (other.at - self.at) / 1e6

        fake.current = Stream()
        accelerator = torch.accelerator
        monkeypatch.setattr(torch, "Stream", Stream)
        monkeypatch.setattr(torch, "Event", Event)
        monkeypatch.setattr(accelerator, "current_stream", lambda device=None: fake.current)
        monkeypatch.setattr(accelerator, "set_stream", lambda stream: setattr(fake, "current", stream))
        monkeypatch.setattr(accelerator, "synchronize", lambda device=None: fake.drain())
        monkeypatch.setattr(accelerator, "empty_cache", lambda: None)
        monkeypatch.setattr(accelerator, "get_memory_info", lambda device=None: (1 << 40, 1 << 40))

    def advance(self) -> None:
        """Maybe one event more happens, in some stream."""
        self.clock += 100
        heads = [queue for queue in self.queues if queue]
        if heads and self.rng.random() < 0.5:
            event = self.rng.choice(heads).popleft()
            event.at = self.clock if event.at is None else event.at

    def drain(self) -> None:
        while any(self.queues):
            self.advance()
