"""A CUDA machine that is not there: its streams, copies and clocks in simulated time, its memory a CPU's.

Within `with StandIn() as machine:` it takes the place of what `runtime.device.accelerator` asks torch for. Tensors of
the device are CPU tensors that say they lie on cuda:0; an operation on one runs at once and takes time on the current
stream, as a kernel would. Nothing is real about the time: the host's clock (`time.perf_counter_ns`, `time.monotonic`)
is a counter that goes on by what each call costs the host, so that a run gives the same numbers on every machine,
however busy. What is told from a real device:

    tensors     of the device and of the host do not mix: RuntimeError, with torch's words
    streams     in order; a kernel begins when the host has launched it and its stream is free; events in a stream
    events      happen at an instant (`Event.at_ns`, on the host's clock: the truth); query, elapsed_time as float32 ms
    copies      between host and device: asynchronous from page-locked memory only; of memory that is not contiguous
                they block, and are noted in `strided`
    readback    .cpu(), .item(), .tolist(), torch.equal, ... wait for the current stream
    time.sleep  takes 65 us more than it is asked for (Linux's timer slack with CPython 3.11 to 3.13)
"""

import os
import random
import time
from collections.abc import Callable
from functools import partial
from itertools import cycle
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch.overrides import TorchFunctionMode

CUDA = torch.device("cuda", 0)
READBACK = {"cpu", "item", "tolist", "numpy", "equal", "allclose", "__bool__", "__float__", "__int__", "nonzero"}
MATRICES = {"linear", "grouped_mm"}
SLEEP_NS = 65_000
BARE = {int, float, bool, str, type(None), torch.dtype, torch.device}  # holds no tensor: most of what is given


class OnDevice(torch.Tensor):
    """A tensor of the device: a CPU tensor that says otherwise."""

    machine: "StandIn"

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return cls.machine.call(func, args, kwargs or {})


class Mode(TorchFunctionMode):
    """Sees what is made on the device, or page-locked."""

    def __init__(self, machine: "StandIn") -> None:
        super().__init__()
        self.machine = machine

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return self.machine.call(func, args, kwargs or {})


def changed(x: Any, how: Callable[[torch.Tensor], Any]) -> Any:
    """What an operation takes or gives, each tensor in it changed."""
    kind = type(x)
    if kind in BARE:
        return x
    if isinstance(x, torch.Tensor):
        return how(x)
    if kind is list or kind is tuple:
        return kind([changed(part, how) for part in x])
    if kind is dict:
        return {name: changed(part, how) for name, part in x.items()}
    return tuple(changed(part, how) for part in x) if isinstance(x, tuple) else x  # of several results


def plain(x: Any) -> Any:
    """The CPU tensors behind tensors of the device; anything else is itself."""
    return changed(x, lambda t: t.as_subclass(torch.Tensor) if isinstance(t, OnDevice) else t)


def on_device(x: Any) -> Any:
    return changed(x, lambda t: t.as_subclass(OnDevice))


def tensors(*found: Any) -> list[torch.Tensor]:
    out: list[torch.Tensor] = []
    changed(found, out.append)
    return out


def start_of(x: torch.Tensor) -> int:
    return int(plain(x).untyped_storage().data_ptr())


class StandIn:
    """See the module's text. Durations in ns: copy_ns of any copy, and its bytes at link_gbps; kernel_ns of any kernel,
    and the bytes of its matrices at memory_gbps; launch_ns: of the host for each call; noise: share by which each
    duration of the host varies; hiccups: how often in a second of its work the host is away for 0.3 to 3 ms (it
    decides, collects garbage, is preempted); yield_ns: what a look at what has not happened yet costs beside itself,
    which a test of long waits may raise to be done sooner; drift_ppm: how much faster the device's clock is."""

    def __init__(
        self,
        seed: int = 0,
        link_gbps: float = 55.0,
        copy_ns: int = 8_000,
        memory_gbps: float = 3000.0,
        kernel_ns: int = 3_000,
        launch_ns: int = 5_000,
        noise: float = 0.2,
        hiccups: float = 0.0,
        yield_ns: int = 700,
        drift_ppm: float = 0.0,
        memory_bytes: int = 1 << 37,
    ) -> None:
        self.rng, self.now, self.hiccups, self.yield_ns = random.Random(seed), 10**12, hiccups, yield_ns
        self.factors = cycle([1 + noise * self.rng.uniform(-1, 1) for _ in range(4099)])
        self.works_ns = self.rng.expovariate(hiccups) * 1e9 if hiccups else float("inf")  # until the next hiccup
        self.link_gbps, self.copy_ns, self.memory_gbps = link_gbps, copy_ns, memory_gbps
        self.kernel_ns, self.launch_ns, self.memory_bytes = kernel_ns, launch_ns, memory_bytes
        self.pace = 1 + drift_ppm * 1e-6
        self.locked: dict[int, int] = {}  # page-locked memory: {address: bytes}
        self.strided: list[str] = []  # copies that were to be asynchronous and cannot
        self.copies: list[tuple[int, int]] = []  # (bytes, ns) of each asynchronous copy to the device
        self.queries = self.kernels = 0
        self.current: Any = None
        self.streams: list[Any] = []

    # --- the host's clock ---

    def pass_ns(self, ns: float) -> None:
        """The host spends so long, give or take the noise."""
        self.now += int(ns * next(self.factors)) + 1
        self.works_ns -= ns
        if self.works_ns < 0:
            self.works_ns = self.rng.expovariate(self.hiccups) * 1e9
            self.now += self.rng.randrange(300_000, 3_000_000)

    def clock(self) -> int:
        self.now += 60
        return self.now

    def until(self, instant: int) -> None:
        self.now = max(self.now, instant)

    # --- streams ---

    def busy(self, ns: float) -> int:
        """The current stream is busy for so long; when that ends."""
        stream = self.current
        stream.free_ns = max(stream.free_ns, self.now) + round(ns)
        return int(stream.free_ns)

    def wait_for_all(self, device: Any = None) -> None:
        self.until(max(stream.free_ns for stream in self.streams))
        self.pass_ns(5_000)

    # --- operations ---

    def call(self, func: Any, args: Any, kwargs: Any) -> Any:
        """One operation of torch."""
        name = func.__name__
        if name == "__get__":
            return self._attribute(func, args)
        if name in ("to", "cpu", "copy_"):
            return self._moved(func, name, args, kwargs)
        given = tensors(args, kwargs)
        here = [x for x in given if isinstance(x, OnDevice)]
        makes = not given and torch.device(kwargs.get("device") or "cpu").type == "cuda"
        if not here and not makes and torch.device(kwargs.get("device") or "cpu").type != "cuda":
            return self._on_host(func, args, kwargs)
        self._same_device(name, given, here)
        kwargs = {**kwargs, "device": "cpu"} if kwargs.get("device") is not None else kwargs
        with torch._C.DisableTorchFunctionSubclass():
            out = func(*plain(args), **plain(kwargs))
        return self._done(name, plain(given), out)

    def _attribute(self, func: Any, args: Any) -> Any:
        what, here = getattr(func.__self__, "__name__", ""), isinstance(args[0], OnDevice)
        if here and what == "device":
            return CUDA
        with torch._C.DisableTorchFunctionSubclass():
            out = func(*plain(args))
        if what == "is_cuda":
            return here
        return out.as_subclass(OnDevice) if here and isinstance(out, torch.Tensor) else out

    def _on_host(self, func: Any, args: Any, kwargs: Any) -> Any:
        """Memory of the host, perhaps page-locked."""
        lock = kwargs.pop("pin_memory", False)
        out = func(*args, **kwargs)
        if lock:
            self.locked[start_of(out)] = out.untyped_storage().nbytes()
        return out

    def _same_device(self, name: str, given: Any, here: Any) -> None:
        elsewhere = [x for x in given if not isinstance(x, OnDevice) and x.dim() > 0]
        if here and elsewhere and name not in ("__getitem__", "__setitem__"):
            said = "Expected all tensors to be on the same device, but found at least two devices, cuda:0 and cpu!"
            raise RuntimeError(f"{said} (in {name})")

    def _done(self, name: str, given: list[torch.Tensor], out: Any) -> Any:
        """The time that it took, and its results as the device's."""
        made = tensors(out)
        shared = {start_of(x) for x in given}
        if name in READBACK:
            self._read_back()
        elif _writes(name) or not all(start_of(x) in shared for x in made):
            self._kernel(name, given)
        elif made:
            self.pass_ns(500)  # a view
        return out if name in READBACK else on_device(out)

    def _kernel(self, name: str, given: list[torch.Tensor]) -> None:
        self.pass_ns(self.launch_ns)
        self.kernels += 1
        moved = sum(x.numel() * x.element_size() for x in given[1:]) if name in MATRICES else 0
        self.busy(self.kernel_ns + moved / self.memory_gbps)

    def _read_back(self) -> None:
        self.until(self.busy(self.copy_ns))
        self.pass_ns(5_000)

    def _moved(self, func: Any, name: str, args: Any, kwargs: Any) -> Any:
        """A copy, or a conversion."""
        whole, target = args[0], None
        if name == "copy_":
            target, source = args[0], args[1]
        else:
            source = args[0]
            target = CUDA if self._to_device(name, args, kwargs, isinstance(whole, OnDevice)) else None
        kwargs = {k: v for k, v in kwargs.items() if k != "device"}
        rest = [x for x in args if not _names_device(x)]
        with torch._C.DisableTorchFunctionSubclass():
            out = func(*plain(rest), **plain(kwargs))
        ends = (target is CUDA or isinstance(target, OnDevice), isinstance(source, OnDevice))
        if ends[0] != ends[1]:
            host = target if name == "copy_" and not ends[0] else source if not ends[1] else out
            self._transfer(host, target if name == "copy_" else out, source, ends[0], bool(kwargs.get("non_blocking")))
        elif ends[0]:
            self._kernel(name, [])
        return out.as_subclass(OnDevice) if ends[0] else out

    def _to_device(self, name: str, args: Any, kwargs: Any, there: bool) -> bool:
        """Where a tensor goes that is moved or converted."""
        if name == "cpu":
            return False
        for x in (kwargs.get("device"), *args[1:]):
            if _names_device(x):
                return torch.device(x).type == "cuda"
            if isinstance(x, torch.Tensor):
                return isinstance(x, OnDevice)
        return there

    def _transfer(self, host: Any, dst: Any, src: Any, to_device: bool, asked: bool) -> None:
        """Bytes over the link, on the current stream."""
        nbytes = plain(src).numel() * plain(src).element_size()
        ns = self.copy_ns + nbytes / self.link_gbps
        self.pass_ns(self.launch_ns)
        straight = plain(dst).is_contiguous() and plain(src).is_contiguous()
        if asked and not straight:
            self.strided.append(f"{nbytes} bytes, strides {plain(dst).stride()} and {plain(src).stride()}")
        ended = self.busy(ns)
        small = to_device and nbytes <= 1 << 16  # the driver keeps its own copy of those
        if not (asked and straight and (self._is_locked(host) or small)):
            self.until(ended)
        elif to_device:
            self.copies.append((nbytes, round(ns)))

    def _is_locked(self, x: torch.Tensor) -> bool:
        at = int(plain(x).data_ptr())
        return any(start <= at < start + size for start, size in self.locked.items())

    # --- in the place of torch ---

    def __enter__(self) -> "StandIn":
        self.patches, self.mode = pytest.MonkeyPatch(), Mode(self)
        self._install_streams(self.patches)
        self._install_runtime(self.patches)
        self._install_clock(self.patches)
        self.patches.setattr(OnDevice, "machine", self, raising=False)
        self.mode.__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        self.mode.__exit__(*error)
        self.patches.undo()

    def _install_streams(self, monkeypatch: Any) -> None:
        machine = self

        class Stream:
            def __init__(self, device: Any = None) -> None:
                self.free_ns = machine.now
                machine.streams.append(self)

            def wait_event(self, event: Any) -> None:
                machine.pass_ns(1_000)
                self.free_ns = max(self.free_ns, event.at_ns)

        class Event:
            def __init__(self, device: Any = None, enable_timing: bool = False) -> None:
                assert enable_timing

            def record(self, stream: Any) -> None:
                machine.pass_ns(2_000)
                self.at_ns = stream.free_ns = max(stream.free_ns, machine.now)

            def query(self) -> bool:
                machine.queries += 1
                machine.pass_ns(1_000)
                return bool(self.at_ns <= machine.now)

            def synchronize(self) -> None:
                machine.until(self.at_ns)
                machine.pass_ns(5_000)

            def elapsed_time(self, other: Any) -> float:
                assert max(self.at_ns, other.at_ns) <= machine.now, "asked for the time of what has not happened"
                return float(np.float32((other.at_ns - self.at_ns) * machine.pace / 1e6))

        self.current = Stream()
        monkeypatch.setattr(torch, "Stream", Stream)
        monkeypatch.setattr(torch, "Event", Event)

    def _install_runtime(self, monkeypatch: Any) -> None:
        accelerator, cuda = torch.accelerator, torch.cuda
        properties = SimpleNamespace(name="a stand-in", total_memory=self.memory_bytes)
        memory = (self.memory_bytes, self.memory_bytes)
        for room, name, value in (
            (accelerator, "is_available", lambda: True),
            (accelerator, "current_accelerator", lambda *_, **__: torch.device("cuda")),
            (accelerator, "current_device_index", lambda: 0),
            (accelerator, "current_stream", lambda device=None: self.current),
            (accelerator, "set_stream", lambda stream: setattr(self, "current", stream)),
            (accelerator, "synchronize", self.wait_for_all),
            (accelerator, "empty_cache", lambda: None),
            (accelerator, "get_memory_info", lambda device=None: memory),
            (cuda, "mem_get_info", lambda device=None: memory),
            (cuda, "empty_cache", lambda: None),
            (cuda, "get_device_name", lambda device=None: properties.name),
            (cuda, "get_device_properties", lambda device=None: properties),
            (cuda, "cudart", lambda: self),
            (torch, "Generator", lambda device=None, of=torch.Generator: of()),
        ):
            monkeypatch.setattr(room, name, value, raising=False)

    def _give_way(self, truly: Callable[[], None]) -> None:
        """The host's thread wants the interpreter, too: without it it is let in every 5 ms."""
        truly()
        self.pass_ns(self.yield_ns)

    def cudaHostRegister(self, address: int, nbytes: int, flags: int) -> int:
        if address in self.locked:
            return 712  # cudaErrorHostMemoryAlreadyRegistered
        self.locked[address] = nbytes
        return 0

    def cudaHostUnregister(self, address: int) -> int:
        return 0 if self.locked.pop(address, None) is not None else 713  # cudaErrorHostMemoryNotRegistered

    def _install_clock(self, monkeypatch: Any) -> None:
        def sleep(seconds: float) -> None:
            self.pass_ns(seconds * 1e9 + SLEEP_NS)

        monkeypatch.setattr(time, "perf_counter_ns", self.clock)
        monkeypatch.setattr(time, "monotonic", lambda: self.clock() / 1e9)
        monkeypatch.setattr(time, "sleep", sleep)
        if hasattr(os, "sched_yield"):
            monkeypatch.setattr(os, "sched_yield", partial(self._give_way, os.sched_yield))


def _writes(name: str) -> bool:
    """Whether an operation changes a tensor in place."""
    return name == "__setitem__" or (name.endswith("_") and not name.endswith("__"))


def _names_device(x: Any) -> bool:
    return isinstance(x, torch.device) or (isinstance(x, str) and x.split(":")[0] in ("cpu", "cuda"))
