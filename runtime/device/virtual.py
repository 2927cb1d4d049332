"""A device of which nothing is real but the order: for proofs and for tests of whatever drives a port.

Operations are queued per stream and run when the host waits, one at a time. Which stream's turn it is, is the port's
`pick`:

    timed      simulated time: the operation that ends first, as the plan says how long each lasts. At one instant
               copies land first, then kernels end; `soon` comes last. So the torch machine becomes a simulator whose
               record must equal the compiled machine's.
    shuffled   any, by a seed; now and then also while the host goes on, as real devices do
    scripted   one script of turns after another; `every_order` runs them all, where a program is small

Found are: a race (two accesses that nothing orders: runtime.device.races), a use or a free of memory that an operation
may still use, a use after free, a double free, a wait for something that can never happen.
"""

import random
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

import torch

from runtime.device.port import NOTHING, Access, Buffer, Declared, DeviceError, Landed, Parts
from runtime.device.races import Clock, Races, join
from runtime.device.worker import failing

STREAMS = ("link", "compute", "host")
NEVER = 1 << 62


class Op:
    """Something queued in a stream: work (a kernel or a copy), or a mark. Also the event behind it."""

    def __init__(self, stream: "VirtualStream", planned_ns: int = 0, gap_ns: int = 0) -> None:
        self.stream, self.port = stream, stream.port
        self.planned_ns, self.queued_ns = planned_ns, stream.port.now + gap_ns
        self.work: Callable[[], Any] | None = None
        self.landed: Landed | None = None
        self.after: Op | None = None  # an event that it waits for
        self.ended_ns: int | None = None
        self.clock: Clock = {}

    def start_ns(self) -> int:
        """When it starts, given that it is the next of its stream."""
        waited = 0 if self.after is None or self.after.ended_ns is None else self.after.ended_ns
        return max(self.queued_ns, self.stream.free_ns, waited)

    @property
    def started_ns(self) -> int | None:
        """See port.Copy."""
        queue = self.stream.queue
        if self.ended_ns is not None or not queue or queue[0] is not self or self.start_ns() > self.port.now:
            return None
        return self.start_ns()

    def declare(self, ns: int) -> None:
        self.planned_ns = ns

    def may_run(self) -> bool:
        return self.after is None or self.after.done()

    def done(self) -> bool:
        return self.ended_ns is not None

    def wait(self) -> None:
        self.port.wait_until(self.done)
        self.port.races.learn(self.clock)

    def time_ns(self) -> int:
        assert self.ended_ns is not None, "asked for the time of what has not happened"
        return self.ended_ns


class VirtualStream:
    """A queue of operations, in order."""

    def __init__(self, port: "VirtualPort", name: str) -> None:
        self.port, self.name = port, name
        self.queue: deque[Op] = deque()
        self.free_ns = 0
        self.clock: Clock = {}

    def launch(self, work: Callable[[], Any], declared: Declared = NOTHING) -> None:
        self._queue(work, declared)
        self.port.meanwhile()

    def copy(
        self, dst: torch.Tensor, src: torch.Tensor, landed: Landed | None = None, declared: Declared = NOTHING
    ) -> Op:
        return self.transfer([(dst, src)], landed, declared)

    def transfer(self, parts: Parts, landed: Landed | None = None, declared: Declared = NOTHING) -> Op:
        op = self._queue(lambda: [dst.copy_(src) for dst, src in parts], declared)
        op.landed = landed
        return op

    def record(self) -> Op:
        op = Op(self)
        op.clock = dict(self.clock)
        self.queue.append(op)
        self.port.settle()
        return op

    def wait(self, event: Any) -> None:
        op = Op(self)
        op.after = event
        join(self.clock, event.clock)
        self.queue.append(op)

    def _queue(self, work: Callable[[], Any], declared: Declared) -> Op:
        """Ordered behind the stream's last one and behind what the host has done; then its accesses are checked."""
        op = Op(self, declared.ns, declared.gap_ns)
        op.work = work
        op.clock = self.port.races.queued(self.name, self.clock, declared.reads, declared.writes)
        self.queue.append(op)
        return op


class Held:
    """The lock of a port without threads: nothing runs while it is held."""

    def __init__(self) -> None:
        self.depth = 0

    def __enter__(self) -> None:
        self.depth += 1

    def __exit__(self, *_: object) -> None:
        self.depth -= 1


class VirtualPort:
    """See runtime.device.port.Port, and above. Make one by `timed` or `shuffled`; `every_order` makes many."""

    name = "virtual"
    device = torch.device("cpu")

    def __init__(
        self,
        pick: Callable[[list[Op]], Op],
        trust_host: bool = False,
        idle: Callable[[], bool] = lambda: False,
        memory_bytes: int = 1 << 62,
    ) -> None:
        self.pick, self.idle, self.memory_bytes = pick, idle, memory_bytes
        self.now = self.steps = 0
        self.streams = self.link, self.compute, self.host = tuple(VirtualStream(self, name) for name in STREAMS)
        self.lock = Held()
        self.races = Races(trust_host)
        self.buffers: list[Buffer] = []
        self.calls: list[Callable[[], None]] = []

    # --- memory ---

    def alloc_device(self, nbytes: int, what: str) -> Buffer:
        if nbytes > self.free_bytes():
            raise DeviceError(f"{what}: no {nbytes / 1e9:.2f} GB of memory")
        with failing(f"{what} ({nbytes / 1e9:.2f} GB)"):
            self.buffers.append(Buffer(torch.zeros(nbytes, dtype=torch.uint8), what))
        return self.buffers[-1]

    def alloc_host(self, nbytes: int, what: str, page_locked: bool = True) -> Buffer:
        return self.alloc_device(nbytes, what)

    def free(self, buffer: Buffer) -> None:
        """Everything that touched the buffer must be known to the host to have run."""
        self.races.freed(buffer)
        buffer.give_back()
        self.buffers.remove(buffer)

    def free_bytes(self) -> int:
        return self.memory_bytes - sum(buffer.tensor.numel() for buffer in self.buffers)

    # --- the host ---

    def touch(self, reads: Sequence[Access] = (), writes: Sequence[Access] = ()) -> None:
        self.races.host_touches(reads, writes)

    def now_ns(self) -> int:
        return self.now

    def let_pass(self, ns: int) -> None:
        self.compute.launch(lambda: None, Declared(ns))
        self.compute.record().wait()

    def soon(self, call: Callable[[], None]) -> None:
        self.calls.append(call)

    def poll(self) -> None:
        """Work runs whole: nothing lands in it."""

    def notify(self) -> None:
        """Waiting looks after every operation."""

    def meanwhile(self) -> None:
        """The device goes on while the host does, as `idle` says."""
        while not self.lock.depth and self.idle() and self._step():
            pass

    def wait_until(self, ready: Callable[[], bool]) -> None:
        assert not self.lock.depth, "waits with the lock held"
        while self._lands_now() or not ready():
            if not self._step():
                raise DeviceError("the host waits and nothing is under way")

    def sync(self) -> None:
        while self._step():
            pass
        for stream in self.streams:
            self.races.learn(stream.clock)

    # --- running ---

    def settle(self) -> None:
        """Marks take no time: those at the heads of the queues happen."""
        moved = True
        while moved:
            moved = False
            for stream in self.streams:
                while stream.queue and stream.queue[0].work is None and stream.queue[0].may_run():
                    op = stream.queue.popleft()
                    op.ended_ns = stream.free_ns = op.start_ns()
                    moved = True

    def _heads(self) -> list[Op]:
        self.settle()
        return [stream.queue[0] for stream in self.streams if stream.queue and stream.queue[0].work is not None]

    def _lands_now(self) -> bool:
        """In simulated time: what lands at this instant comes before whatever the host does at it."""
        return self.pick is first_end and any(
            op.landed is not None and op.start_ns() + op.planned_ns == self.now for op in self._heads()
        )

    def _step(self) -> bool:
        """Run what comes next; False when there is nothing."""
        heads = self._heads()
        op = self.pick(heads) if heads else None
        end = NEVER if op is None else self._end(op)
        if self.calls and end > self.now:
            calls, self.calls = self.calls, []
            with self.lock:
                for call in calls:
                    call()
            return True
        if op is None:
            return False
        self.now, self.steps = end, self.steps + 1
        self._run(op)
        return True

    def _end(self, op: Op) -> int:
        return op.start_ns() + op.planned_ns if self.pick is first_end else self.now + 1

    def _run(self, op: Op) -> None:
        started = op.start_ns() if self.pick is first_end else self.now
        op.stream.queue.popleft()
        op.ended_ns = op.stream.free_ns = self.now
        assert op.work is not None
        op.work()
        self.settle()
        if op.landed is not None:
            self.races.learn(op.clock)
            op.landed(started, self.now)

    # --- the rest ---

    def facts(self) -> dict[str, Any]:
        return {"name": self.name, "what": "a virtual device", "operations": self.steps}

    def close(self) -> None:
        """What is queued is dropped."""
        for stream in self.streams:
            stream.queue.clear()
        for buffer in list(self.buffers):
            buffer.give_back()
        self.buffers = []

    def __enter__(self) -> "VirtualPort":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def first_end(ops: list[Op]) -> Op:
    """The operation that ends first; at one instant a copy, then a kernel."""
    return min(ops, key=lambda op: (op.start_ns() + op.planned_ns, op.landed is None))


def timed() -> VirtualPort:
    """Simulated time."""
    return VirtualPort(first_end)


def shuffled(seed: int, trust_host: bool = False) -> VirtualPort:
    """Any legal order. Some seeds are fair, others starve the link, the kernels or the host for long."""
    rng = random.Random(seed)
    favour, often = rng.choice([None, *STREAMS]), rng.choice([0.0, 0.3, 0.9])

    def pick(ops: list[Op]) -> Op:
        liked = [op for op in ops if op.stream.name == favour]
        return rng.choice(liked if liked and rng.random() < 0.95 else ops)

    return VirtualPort(pick, trust_host, lambda: rng.random() < often)


def every_order(program: Callable[[VirtualPort], None], most: int = 10_000, trust_host: bool = False) -> int:
    """Run a small program in each of its legal orders, as far as the host's own waiting leaves them open; how many
    there were. Raises what the program raises, and DeviceError when there are more than `most`."""
    script: list[int] = []
    runs = 0
    while True:
        made: list[tuple[int, int]] = []

        def choose(n: int, made: list[tuple[int, int]] = made, script: list[int] = script) -> int:
            i = script[len(made)] if len(made) < len(script) else 0
            made.append((i, n))
            return i

        with VirtualPort(lambda ops: ops[choose(len(ops))], trust_host, lambda: choose(2) == 1) as port:
            program(port)
        runs += 1
        if runs > most:
            raise DeviceError(f"more than {most} orders")
        while made and made[-1][0] + 1 == made[-1][1]:
            made.pop()
        if not made:
            return runs
        script = [i for i, _ in made[:-1]] + [made[-1][0] + 1]
