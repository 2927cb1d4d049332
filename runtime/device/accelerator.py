"""A real accelerator through torch.accelerator: CUDA, ROCm (which calls itself cuda), XPU. And devices of one stream.

Kernels go to one stream, copies to another; events order them on the device. Only the host's one thread talks to the
device, so no two threads fight for the interpreter: it looks whether copies have ended each time it launches
something, and all the while that it waits. So a landing is noticed within the time between two launches, some
microseconds, and the next transfer follows from there; the gap is in the record (`started_ns` after the last
`landed_ns`).

Times of events come from the device's own clock, as milliseconds from another event, the *anchor*, whose instant the
host knows: it happened after the host last saw that it had not (or had recorded it), and before the host saw that it
had. Each event keeps its own looks, so one that happened long before somebody asked is no anchor, whatever else the
host looked at meanwhile; and the host looks without sleeping, so that most are known to a few microseconds. An anchor
is worth its width, and what two clocks drift apart since; whichever is worth more stays.

cuDNN's attention is off while the port is open: it plans anew, for milliseconds, at every length of the context.

Host memory is page-locked by registering ordinary memory where the runtime can (cudaHostRegister): torch's own
allocator of page-locked memory rounds each block up to a power of two, which may double the hundred gigabytes that
experts take.
"""

import mmap
import os
import time
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from typing import Any, NamedTuple

import torch

from runtime.device.host_memory import host_bytes
from runtime.device.port import NOTHING, TIMEOUT_S, Buffer, Declared, DeviceError, Landed, Parts
from runtime.device.worker import RealPort, asks_device, failing, give_way

REGISTERED_FROM = 1 << 20  # bytes; for less, torch's own allocator wastes little
DRIFT = 20_000  # two clocks differ by 1 ns more in so many (50 ppm); a float32 of milliseconds loses less
FIRST_LOOKS = 20  # events of which the best is the first anchor
RENEWED_NS = 100_000_000  # an anchor that is older is looked for anew, on a stream where nothing else is
PATIENCE = 1000  # looks at an event that is to be an anchor


def current() -> torch.device | None:
    """The accelerator that torch finds, if any."""
    if not torch.accelerator.is_available():
        return None
    found = torch.accelerator.current_accelerator()
    index = _named(torch.accelerator, "current_device_index", "current_device_idx")
    return None if found is None else torch.device(found.type, index())


def _named(room: Any, *names: str) -> Any:
    """The first of these names that this torch has: some moved between 2.6 and 2.9."""
    return next(getattr(room, name) for name in names if hasattr(room, name))


def without_cudnn_attention() -> Callable[[], None]:
    """Turn it off; returns what turns it on again if it was on."""
    backends: Any = torch.backends.cuda
    before = bool(backends.cudnn_sdp_enabled())
    backends.enable_cudnn_sdp(False)
    return lambda: backends.enable_cudnn_sdp(before)


@asks_device
def cudart(call: str, *arguments: int) -> None:
    """A call to CUDA's runtime. Raises DeviceError with the code that it returned."""
    runtime: Any = torch.cuda  # whose cudart has no types
    if code := int(getattr(runtime.cudart(), call)(*arguments)):
        raise DeviceError(f"{call}: error {code} of the runtime")


def own_pages(nbytes: int) -> mmap.mmap:
    """Memory in pages that nobody else has: the runtime locks whole pages, and refuses one that is locked already.
    Raises RuntimeError when there is not enough."""
    private = {"flags": mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS} if hasattr(mmap, "MAP_PRIVATE") else {}
    try:
        return mmap.mmap(-1, nbytes, **private)
    except OSError as error:
        raise RuntimeError(error.strerror) from None


class Anchor(NamedTuple):
    """An event of the device, and when it happened by the host's clock, give or take half of `width_ns`."""

    event: Any
    ns: int
    width_ns: int

    def doubt_ns(self, at_ns: int) -> int:
        """What the time of an event about then is worth that is told from this one."""
        return self.width_ns + abs(at_ns - self.ns) // DRIFT


class DeviceEvent:
    """An event of the device, with a time."""

    @asks_device
    def __init__(self, port: "AcceleratorPort", stream: Any) -> None:
        self.port, self.anchor = port, port.anchor
        self.event = torch.Event(device=port.device, enable_timing=True)
        self.before_ns = time.perf_counter_ns()  # it happens after this
        self.event.record(stream)
        self.seen = False

    @asks_device
    def done(self) -> bool:
        if self.seen:
            return True
        looked = time.perf_counter_ns()
        if self.event.query():
            self.seen = True
            self.port.saw(self.event, self.before_ns, time.perf_counter_ns())
        else:
            self.before_ns = looked
        return self.seen

    def wait(self) -> None:
        self.port.wait_until(self.done)

    @asks_device
    def time_ns(self) -> int:
        return self.anchor.ns + round(float(self.anchor.event.elapsed_time(self.event)) * 1e6)


class DeviceCopy(DeviceEvent):
    """A copy between two events."""

    def __init__(self, port: "AcceleratorPort", begin: DeviceEvent, landed: Landed | None, stream: Any) -> None:
        super().__init__(port, stream)
        self.begin, self.landed = begin, landed

    def declare(self, ns: int) -> None:
        """It lasts what it lasts."""

    @property
    def started_ns(self) -> int | None:
        return self.begin.time_ns() if self.begin.done() else None


class DeviceStream:
    """A stream of the device."""

    def __init__(self, port: "AcceleratorPort", stream: Any) -> None:
        self.port, self.stream = port, stream

    def launch(self, work: Callable[[], Any], declared: Declared = NOTHING) -> None:
        with failing("the device"):
            work()
        self.port.poll()

    def copy(
        self, dst: torch.Tensor, src: torch.Tensor, landed: Landed | None = None, declared: Declared = NOTHING
    ) -> DeviceCopy:
        return self.transfer([(dst, src)], landed, declared)

    def transfer(self, parts: Parts, landed: Landed | None = None, declared: Declared = NOTHING) -> DeviceCopy:
        with failing("a copy"):
            self.port.renew()
            torch.accelerator.set_stream(self.stream)
            try:
                begin = DeviceEvent(self.port, self.stream)
                for dst, src in parts:
                    dst.copy_(src, non_blocking=True)
                copy = DeviceCopy(self.port, begin, landed, self.stream)
            finally:
                torch.accelerator.set_stream(self.port.compute.stream)
        if landed is not None:
            self.port.flights.append(copy)
        return copy

    def record(self) -> DeviceEvent:
        self.port.renew()
        return DeviceEvent(self.port, self.stream)

    @asks_device
    def wait(self, event: Any) -> None:
        if isinstance(event, DeviceEvent):
            self.stream.wait_event(event.event)
        else:
            event.wait()


class AcceleratorPort(RealPort):
    """See runtime.device.port.Port."""

    name = "accelerator"

    def __init__(self, device: torch.device, timeout_s: float = TIMEOUT_S) -> None:
        """Raises DeviceError when the device does not answer; then it is as if the port had never been."""
        with failing("the device"):
            self.before = torch.accelerator.current_stream(device)
        self.cudnn = without_cudnn_attention()
        super().__init__(device, max(1, (os.cpu_count() or 1) - 2), timeout_s)
        self.flights: deque[DeviceCopy] = deque()
        self.noticing = self.closed = False
        self.registered: dict[int, torch.Tensor] = {}
        self.copies = self.looked_ns = 0
        self.anchor = Anchor(None, 0, 1 << 62)
        try:
            with failing("the device"):
                self._open()
        except BaseException:
            self.close()
            raise

    def _open(self) -> None:
        """Streams, and the first anchor."""
        compute, link, self.quiet = (torch.Stream(device=self.device) for _ in range(3))
        self.compute, self.link = DeviceStream(self, compute), DeviceStream(self, link)
        named = getattr(getattr(torch, self.device.type, None), "get_device_name", None)
        self.named = self.device.type if named is None else named(self.device)
        torch.accelerator.set_stream(compute)
        torch.accelerator.synchronize(self.device)
        DeviceEvent(self, self.quiet).wait()  # an anchor, if a blunt one
        for _ in range(FIRST_LOOKS):
            self._look()

    # --- memory ---

    def alloc_host(self, nbytes: int, what: str, page_locked: bool = True) -> Buffer:
        if not page_locked:
            return super().alloc_host(nbytes, what)
        with failing(f"{what} ({nbytes / 1e9:.2f} GB page-locked beside {self._locked() / 1e9:.2f} GB)"):
            return self.keep(self._page_locked(nbytes), what)

    def _locked(self) -> int:
        return sum(b.tensor.numel() for b in self.buffers if b.tensor.device.type == "cpu")

    def _page_locked(self, nbytes: int) -> torch.Tensor:
        if self.device.type != "cuda" or nbytes < REGISTERED_FROM:
            return torch.empty(nbytes, dtype=torch.uint8, pin_memory=True)
        memory = torch.frombuffer(own_pages(nbytes), dtype=torch.uint8)
        cudart("cudaHostRegister", memory.data_ptr(), nbytes, 0)
        self.registered[memory.data_ptr()] = memory
        return memory

    def free(self, buffer: Buffer) -> None:
        at = 0 if buffer.freed else buffer.tensor.data_ptr()
        if at in self.registered:
            cudart("cudaHostUnregister", at)
            del self.registered[at]
        super().free(buffer)

    @asks_device
    def free_bytes(self) -> int:
        ask = getattr(torch.accelerator, "get_memory_info", None)
        ask = ask or getattr(torch, self.device.type).mem_get_info
        return int(ask(self.device)[0])

    # --- the host ---

    def renew(self) -> None:
        """A new anchor, where the old one is from long ago: nothing happened, or nobody looked in time."""
        now = time.perf_counter_ns()
        if now - max(self.anchor.ns, self.looked_ns) > RENEWED_NS:
            self.looked_ns = now
            self._look()

    def _look(self) -> None:
        """Have something happen, and watch it; without the landings, for the lock may be held."""
        event = DeviceEvent(self, self.quiet)
        for _ in range(PATIENCE):
            if event.done():
                break

    def saw(self, event: Any, before_ns: int, after_ns: int) -> None:
        """An event happened between two instants of the host's clock: a new anchor, if it is worth more."""
        if after_ns - before_ns <= self.anchor.doubt_ns(before_ns):
            self.anchor = Anchor(event, (before_ns + after_ns) // 2, after_ns - before_ns)

    def poll(self) -> None:
        """Tell of the copies that have ended, in order."""
        if self.noticing:
            return
        self.noticing = True
        try:
            while self.flights and self.flights[0].done():
                copy = self.flights.popleft()
                self.copies += 1
                assert copy.landed is not None
                copy.landed(copy.begin.time_ns(), copy.time_ns())
        finally:
            self.noticing = False

    def wait_until(self, ready: Callable[[], bool]) -> None:
        end = time.monotonic() + self.timeout_s
        with failing("the device"):
            while True:
                self.poll()
                with self.lock:
                    if ready():
                        return
                self.check()
                if time.monotonic() > end:
                    raise self.gave_up()
                give_way()  # the host's experts run in a thread that wants the interpreter too

    def facts(self) -> dict[str, Any]:
        """Which device, which software; asks nothing of the device, which may be gone when what it did is told."""
        return {
            "name": self.device.type,
            "what": f"{self.named}, {self.device.type} {torch.version.cuda or torch.version.hip or ''}".rstrip(),
            "torch": torch.__version__,
            "copies": self.copies,
            "page_locked": True,
            "host_free_bytes": host_bytes(),
        }

    def close(self) -> None:
        """Wait for what runs, if the device still answers, and give everything back; what a device that failed says to
        that is not told: it has said why already."""
        if self.closed:
            return
        self.closed = True
        self.flights.clear()
        self.cudnn()
        with suppress(Exception):
            torch.accelerator.synchronize(self.device)
        self.host.stop()
        for buffer in list(self.buffers):
            with suppress(Exception):
                self.free(buffer)
        with suppress(Exception):
            torch.accelerator.set_stream(self.before)
        with suppress(Exception):
            getattr(torch, self.device.type).empty_cache()
