"""python -m runtime.gpu.parts.probe cuda|cpu: each call that the accelerator port makes, alone, into probe.json.

So that what fails has a name, and what is slow a figure. On the CPU those probes run that need no GPU. Exit status 1
where one failed; the others have run all the same.
"""

import json
import os
import sys
import time
import traceback
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F

from runtime.device.accelerator import current
from runtime.device.choose import choose
from runtime.experts.layout import Weights
from runtime.gpu.parts.copies import registered
from runtime.replaying.layers import expert, grouped, has_grouped
from traces.command import write_bytes

Probe = Callable[[torch.device], Any]
ANYWHERE: dict[str, Probe] = {}
ON_A_GPU: dict[str, Probe] = {}
EXPERT_BYTES = 352_321_536  # of Mixtral in bf16
EXPERTS = {"mixtral-8x7b": (4096, 14336), "deepseek-v2-lite": (2048, 1408)}  # hidden size, intermediate size
BF16 = 0.02  # of the largest number that comes out: what two orders of summing in bf16 may differ by
SHRUNK = 16  # times smaller on the CPU
FEW, MANY = 20, 300  # calls whose mean is a time on the device, and a cost on the host


def probe(where: dict[str, Probe]) -> Callable[[Probe], Probe]:
    """Registers one under the name of its function."""

    def put(function: Probe) -> Probe:
        where[function.__name__.replace("_", " ")] = function
        return function

    return put


def us(ns: float) -> float:
    """For people."""
    return round(ns / 1e3, 2)


# --- anywhere ---


@probe(ANYWHERE)
def torch_accelerator(device: torch.device) -> Any:
    """What this torch calls what the port uses."""
    return {"found": str(current()), "has": sorted(name for name in dir(torch.accelerator) if name[0] != "_")}


@probe(ANYWHERE)
def the_port_opens_and_copies_both_ways(device: torch.device) -> Any:
    """One MB there and back through the port itself; what came back is what went."""
    with choose(device.type) as port:
        there, host = port.alloc_device(1 << 20, "a probe"), port.alloc_host(1 << 20, "a probe")
        host.tensor.fill_(7)
        landed: list[tuple[int, int]] = []
        port.link.copy(there.tensor, host.tensor, lambda began, ended: landed.append((began, ended)))
        port.wait_until(lambda: bool(landed))
        host.tensor.fill_(0)
        port.link.copy(host.tensor, there.tensor).wait()
        if not bool((host.tensor == 7).all()):
            raise RuntimeError("other bytes came back than went")
        return {"landed_us": us(landed[0][1] - landed[0][0]), "facts": port.facts()}


@probe(ANYWHERE)
def experts_one_by_one(device: torch.device) -> Any:
    """us of one expert on a few tokens."""
    out = {}
    for name in EXPERTS:
        up, down = slots_of(name, device)
        weights = Weights(up[0], down[0])
        for tokens in (1, 4, 16):
            call = partial(expert, tokens_for(up, tokens), weights)
            out[f"{name}, {tokens} tokens"] = us(mean_ns(call, device, FEW))
    return out


@probe(ANYWHERE)
def experts_in_one_grouped_kernel(device: torch.device) -> Any:
    """us of four of eight experts on one token each; what comes out must be what they give one by one."""
    if not has_grouped():
        return "this torch has no grouped_mm"
    out = {}
    for name in EXPERTS:
        up, down = slots_of(name, device)
        x, ends = tokens_for(up, 4), torch.tensor([1, 1, 2, 2, 2, 3, 3, 4], dtype=torch.int32, device=device)
        alone = [expert(x[i : i + 1], Weights(up[e], down[e])) for i, e in enumerate((0, 2, 5, 7))]
        apart = float((grouped(x, ends, up, down) - torch.cat(alone)).abs().max() / torch.cat(alone).abs().max())
        if not apart < BF16:
            raise RuntimeError(f"{name}: what the grouped kernel gives is {apart:.1%} off")
        out[name] = us(mean_ns(partial(grouped, x, ends, up, down), device, FEW))
    return out


def slots_of(name: str, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """Matrices of eight experts in bf16, as they lie in slots: up [8, 2 I, H], down [8, H, I]."""
    hidden, inner = EXPERTS[name] if device.type == "cuda" else (n // SHRUNK for n in EXPERTS[name])
    sizes = ((8, 2 * inner, hidden), (8, hidden, inner))
    up, down = (torch.empty(size, device=device, dtype=torch.bfloat16).normal_(0, 0.02) for size in sizes)
    return up, down


def tokens_for(up: torch.Tensor, count: int) -> torch.Tensor:
    """Activations [count, H]."""
    return torch.randn(count, up.shape[2], device=up.device, dtype=up.dtype)


@probe(ANYWHERE)
def attention_at_new_lengths(device: torch.device) -> Any:
    """us each, the last one again: a backend that plans anew at every length shows."""
    k = torch.randn(1, 8, 1300, 128, device=device, dtype=torch.bfloat16)
    q = torch.randn(1, 32, 1, 128, device=device, dtype=torch.bfloat16)
    out = {}
    for length in (300, 301, 302, 1201, 1202, 301):
        synchronize(device)
        began = time.perf_counter_ns()
        F.scaled_dot_product_attention(q, k[:, :, :length], k[:, :, :length], enable_gqa=True)
        synchronize(device)
        out[f"{length}{' again' * (str(length) in out)}"] = us(time.perf_counter_ns() - began)
    return out


@probe(ANYWHERE)
def costs_on_the_host(device: torch.device) -> Any:
    """us of the host for each call, nothing waited for."""
    x, square = (torch.ones(rows, 1024, device=device, dtype=torch.bfloat16) for rows in (1, 1024))
    calls: dict[str, Callable[[], object]] = {
        "a launch": lambda: x * 2,
        "a linear": lambda: F.linear(x, square),
        "sched_yield": os.sched_yield,
        "time.sleep(0)": lambda: time.sleep(0),
    }
    return {name: us(mean_ns(call, device, MANY, waiting=False)) for name, call in calls.items()}


# --- on a GPU ---


@probe(ON_A_GPU)
def streams_and_events(device: torch.device) -> Any:
    """A stream made current and put back, an event that another stream waits for, the time between two events."""
    a, before = torch.Stream(device=device), torch.accelerator.current_stream(device)
    torch.accelerator.set_stream(a)
    same = torch.accelerator.current_stream(device) == a
    torch.accelerator.set_stream(before)
    first, last = (torch.Event(device=device, enable_timing=True) for _ in range(2))
    first.record(a)
    before.wait_event(first)
    last.record(before)
    last.synchronize()
    if not same or not first.query():
        raise RuntimeError("the stream that was set is not current, or an event that was waited for has not happened")
    return {"between_us": round(first.elapsed_time(last) * 1e3, 2)}


@probe(ON_A_GPU)
def costs_of_events(device: torch.device) -> Any:
    """us of the host for each call."""
    stream, done = torch.Stream(device=device), torch.Event(device=device, enable_timing=True)
    done.record(stream)
    done.synchronize()

    def made() -> torch.Event:
        event = torch.Event(device=device, enable_timing=True)
        event.record(torch.accelerator.current_stream(device))
        return event

    def read_back(ids: torch.Tensor, host: torch.Tensor) -> None:
        host.copy_(ids, non_blocking=True)
        event = made()
        while not event.query():
            os.sched_yield()

    ids, host = torch.ones(2, dtype=torch.int64, device=device), torch.empty(2, dtype=torch.int64, pin_memory=True)
    calls: dict[str, Callable[[], object]] = {
        "made and recorded": made,
        "query": done.query,
        "elapsed_time": lambda: done.elapsed_time(done),
        "set_stream": lambda: torch.accelerator.set_stream(torch.accelerator.current_stream(device)),
        "two ids read back and seen": lambda: read_back(ids, host),
    }
    return {name: us(mean_ns(call, device, MANY, waiting=False)) for name, call in calls.items()}


@probe(ON_A_GPU)
def memory_registered_and_given_back(device: torch.device) -> Any:
    """ms for as many ordinary pages as an expert has; and whether torch then knows them as page-locked."""
    began = time.perf_counter_ns()
    with registered(EXPERT_BYTES) as memory:
        return {"register_ms": round((time.perf_counter_ns() - began) / 1e6, 1), "is_pinned": memory.is_pinned()}


@probe(ON_A_GPU)
def a_copy_of_an_expert_is_asynchronous(device: torch.device) -> Any:
    """One Mixtral expert from registered memory: when the call came back, and how fast the copy was."""
    with registered(EXPERT_BYTES) as memory:
        memory.fill_(3)
        there = torch.empty(EXPERT_BYTES, dtype=torch.uint8, device=device)
        begin, end = (torch.Event(device=device, enable_timing=True) for _ in range(2))
        stream = torch.accelerator.current_stream(device)
        synchronize(device)
        began = time.perf_counter_ns()
        begin.record(stream)
        there.copy_(memory, non_blocking=True)
        end.record(stream)
        returned_ns, early = time.perf_counter_ns() - began, not end.query()
        end.synchronize()
        if not early or not bool((there == 3).all()):
            raise RuntimeError("the call came back only when the copy had ended, or other bytes arrived")
        return {"returned_us": us(returned_ns), "gb_per_s": round(EXPERT_BYTES / begin.elapsed_time(end) / 1e6, 1)}


@probe(ON_A_GPU)
def free_memory(device: torch.device) -> Any:
    """As the port asks for it."""
    with choose(device.type) as port:
        return {"free_bytes": port.free_bytes(), "total_bytes": torch.cuda.get_device_properties(device).total_memory}


# --- all of them ---


def synchronize(device: torch.device) -> None:
    """Wait for the device; the CPU is always done."""
    if device.type != "cpu":
        torch.accelerator.synchronize(device)


def mean_ns(call: Callable[[], object], device: torch.device, times: int, waiting: bool = True) -> float:
    """ns of one of many calls; waiting: until the device has done the last of them."""
    call()
    synchronize(device)
    began = time.perf_counter_ns()
    for _ in range(times):
        call()
    if waiting:
        synchronize(device)
    spent = time.perf_counter_ns() - began
    synchronize(device)
    return spent / times


def found(device: torch.device) -> dict[str, dict[str, Any]]:
    """{name: {"found": ...} or {"failed": one line}} of every probe for this device."""
    out = {}
    for name, function in {**ANYWHERE, **(ON_A_GPU if device.type == "cuda" else {})}.items():
        try:
            out[name] = {"found": function(device)}
        except Exception as error:  # whatever it is: it gets a name, and the next probe runs
            traceback.print_exc()
            out[name] = {"failed": f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"}
        print(f"{name}: {json.dumps(out[name], default=str)}", flush=True)
    return out


def main(device: str) -> int:
    """The command."""
    results = found(torch.device(device, 0) if device == "cuda" else torch.device(device))
    write_bytes("probe.json", (json.dumps(results, indent=1, default=str) + "\n").encode())
    failed = [f"{name} ({result['failed']})" for name, result in results.items() if "failed" in result]
    print(f"{len(results)} probes, {len(failed)} failed{': ' * bool(failed)}{'; '.join(failed)}")
    return int(bool(failed))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
