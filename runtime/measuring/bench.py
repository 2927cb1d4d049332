"""What calibration and validation measure with: a device opened once, on which many settings are replayed
(runtime.replaying.opened)."""

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
import torch

from runtime.device.worker import failing
from runtime.measuring import microbenchmarks
from runtime.replaying.decisions import Outcome
from runtime.replaying.lockstep import LockStep, in_lock_step
from runtime.replaying.machine import Machine
from runtime.replaying.opened import Opened
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

    def dense(self, step: int, layer: int) -> None:
        """See Machine.dense; its mark is where the dense part ended."""
        super().dense(step, layer)
        self.dense_end.append(self.mark)

    def run(self) -> RunRecord:
        """See Machine.run; the marks are put among the visits."""
        self.dense_end: list[int] = []
        record = super().run()
        record.groups["visits"]["dense_end_ns"] = np.array(self.dense_end, np.int64)
        return record


class PortBench(Opened):
    """See the module's text and class Bench."""

    failed: str | None = None

    def _open(self) -> None:
        super()._open()
        properties = getattr(getattr(torch, self.port.device.type, None), "get_device_properties", None)
        with failing("the device"):
            self.memory = {} if properties is None else {"mem_gb": properties(self.port.device).total_memory / 1e9}

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
        return self.machine(setting, Noting).run()

    def lock_step(self, setting: Setting, record: RunRecord) -> tuple[RunRecord | None, Outcome]:
        if self.failed is not None:
            return None, Outcome(error=f"not replayed, because an earlier lock-step ended: {self.failed}")
        replayed, outcome = in_lock_step(self.machine(setting, Noting, LockStep.of(record)))
        if not outcome.equal:
            self.failed = str(outcome.error or outcome.difference)
        return replayed if outcome.equal else None, outcome
