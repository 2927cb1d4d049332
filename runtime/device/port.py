"""The device port: the little that the replay needs of a device, whichever backend gives it.

A port has three *streams*, each of which does what it is given in the order in which it was given: `compute` (kernels
of the GPU), `link` (copies) and `host` (experts that the CPU computes beside the GPU). What is put into a stream may
run at any time after that; nothing is ordered between streams, or between a stream and the host, but by events. That
is CUDA's model, and the contract of every backend:

    accelerator   torch.accelerator: CUDA, ROCm, XPU; a device without streams (MPS) does one thing at a time
    cpu           kernels run where they are launched, a worker thread paced to a given GB/s is the copy engine
    virtual       nothing is real but the order: kept in simulated time, or any legal order, with a check for races

What is `Declared` of an operation is how long it lasts by the plan, and what it touches: virtual time lasts that long,
and the virtual backend checks the accesses; real devices ignore both.

Landings. A copy may be given `landed(started_ns, landed_ns)`. It is called once, when the host has learnt that the copy
has ended, in the order of the copies: by the link's own thread (cpu), or by the host's thread while it launches or
waits (accelerator, virtual). It is never called while somebody holds `port.lock`, so whoever shares state with it takes
that lock, and nothing may be launched on `compute` or waited for with the lock held.
"""

from collections.abc import Callable, Hashable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol, Self

import torch

TIMEOUT_S = 120.0  # nothing that a run waits for takes longer; a wait that does is an error and no hang


class DeviceError(RuntimeError):
    """The device failed while it ran: one line, exit status 1."""


@dataclass(eq=False)
class Buffer:
    """Memory of a port as bytes: `tensor` uint8 [nbytes]; what = its name in errors."""

    tensor: torch.Tensor
    what: str
    freed: bool = False

    def give_back(self) -> None:
        """Drop the memory. Raises DeviceError the second time."""
        if self.freed:
            raise DeviceError(f"double free of {self.what}")
        self.freed, self.tensor = True, torch.empty(0, dtype=torch.uint8)


Access = tuple[Buffer, Hashable]  # a buffer, and which part of it
Landed = Callable[[int, int], None]
Parts = Sequence[tuple[torch.Tensor, torch.Tensor]]  # destination and source of each copy


class Declared(NamedTuple):
    """What is said of an operation beside what it does. ns: how long it lasts by the plan; gap_ns: of a copy, from now
    to its start on an idle link; reads, writes: what it touches."""

    ns: int = 0
    gap_ns: int = 0
    reads: Sequence[Access] = ()
    writes: Sequence[Access] = ()


NOTHING = Declared()


class Event(Protocol):
    """A point in a stream."""

    def done(self) -> bool:
        """Whether everything in front of it has run."""

    def wait(self) -> None:
        """The calling host thread waits. Raises DeviceError when the device failed or nothing happens for too long."""

    def time_ns(self) -> int:
        """When it happened, on the port's clock; only once it is done."""


class Copy(Event, Protocol):
    """A copy under way: the event behind it, done before `landed` is called."""

    @property
    def started_ns(self) -> int | None:
        """When it began to move data, None where it has not, or where the device tells only at the end."""

    def declare(self, ns: int) -> None:
        """By the plan it lasts so long after all; see Declared."""


class Stream(Protocol):
    """Work in order."""

    def launch(self, work: Callable[[], Any], declared: Declared = NOTHING) -> None:
        """Run a function that issues torch operations. It may run later, elsewhere: it must not wait for anything."""

    def record(self) -> Event:
        """An event behind all that was put into this stream so far."""

    def wait(self, event: Event) -> None:
        """What is put in from now on runs after that event; the host does not wait."""


class CopyStream(Stream, Protocol):
    """Work and copies in order."""

    def copy(
        self, dst: torch.Tensor, src: torch.Tensor, landed: Landed | None = None, declared: Declared = NOTHING
    ) -> Copy:
        """Copy bytes, either way between host and device."""

    def transfer(self, parts: Parts, landed: Landed | None = None, declared: Declared = NOTHING) -> Copy:
        """Several copies one after another as one, which begins with the first and lands with the last."""


class Port(Protocol):
    """One device. Use it as a context manager: leaving it waits for what runs and frees all memory."""

    name: str
    device: torch.device

    @property
    def compute(self) -> CopyStream:
        """Kernels of the GPU."""

    @property
    def link(self) -> CopyStream:
        """Copies."""

    @property
    def host(self) -> Stream:
        """What the CPU computes beside the GPU."""

    @property
    def lock(self) -> AbstractContextManager[Any]:
        """Held by whoever shares state with landings; may be taken again by its holder."""

    def alloc_device(self, nbytes: int, what: str) -> Buffer:
        """Device memory. Raises DeviceError when there is not enough."""

    def alloc_host(self, nbytes: int, what: str, page_locked: bool = True) -> Buffer:
        """Host memory, page-locked where the device knows that."""

    def free(self, buffer: Buffer) -> None:
        """Give memory back; nothing that runs may still use it. Raises DeviceError when it was given back before."""

    def now_ns(self) -> int:
        """The port's clock."""

    def let_pass(self, ns: int) -> None:
        """The host waits so long for what the device is not given to do, as behind a kernel that lasts so long."""

    def soon(self, call: Callable[[], None]) -> None:
        """Call (with the lock held) before time goes on: at once where time is real."""

    def poll(self) -> None:
        """A chance to notice landings, between two launches of a long row of them; without the lock."""

    def notify(self) -> None:
        """Somebody's condition may have come true (with the lock held)."""

    def wait_until(self, ready: Callable[[], bool]) -> None:
        """The host waits until `ready()`, which is asked with the lock held. Raises like Event.wait."""

    def touch(self, reads: Sequence[Access] = (), writes: Sequence[Access] = ()) -> None:
        """The host itself reads or writes these now."""

    def sync(self) -> None:
        """Wait for everything in every stream, landings included."""

    def free_bytes(self) -> int:
        """Device memory that can still be had."""

    def facts(self) -> dict[str, Any]:
        """What the port is and how it behaved, for the summary."""

    def close(self) -> None:
        """Stop threads, free all memory; safe to call twice and after a failure."""

    def __enter__(self) -> Self: ...

    def __exit__(self, *_: object) -> None: ...
