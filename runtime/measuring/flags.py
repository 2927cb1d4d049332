"""The flags that calibration and validation share, and what they come to."""

import argparse
import math
from collections.abc import Callable, Sequence
from typing import Any

from runtime.device.accelerator import current
from runtime.device.choose import choose
from runtime.device.flags import host_memory_flag
from runtime.device.port import Port
from runtime.measuring.bench import PortBench
from runtime.measuring.cases import BenchLink
from runtime.measuring.rounds import Deadline
from runtime.replaying.opened import Options
from sim.errors import SpecError
from sim.prepare import Setting
from sim.spec import parse_cache


def device_flags(out: argparse.ArgumentParser) -> None:
    """The flags that say which device, and how the model is made to fit it."""
    group = out.add_argument_group("the device")
    group.add_argument(
        "--device", default="auto", metavar="auto|cpu|cuda|xpu|mps", help="where it runs (default: auto)"
    )
    group.add_argument("--precision", metavar="bf16|fp32", help="of the experts (default: bf16; --device cpu: fp32)")
    group.add_argument(
        "--scale", type=float, metavar="F", help="times the model's widths (default: 1; --device cpu: 0.0625)"
    )
    group.add_argument(
        "--alias-host", type=int, metavar="N", help="distinct experts per layer on the host; others share"
    )
    host_memory_flag(group)
    group.add_argument("--link-gbps", type=float, metavar="N", help="pace of --device cpu's link")
    group.add_argument("--link-latency-us", type=float, default=10.0, metavar="N", help="its set-up (default: 10)")
    group.add_argument("--expert-kernel", default="auto", metavar="auto|loop|grouped", help="how a group's experts run")


def measuring_flags(out: argparse.ArgumentParser) -> None:
    """The flags that say how long and how often."""
    group = out.add_argument_group("measuring")
    group.add_argument("--steps", type=int, metavar="N", help="steps of a replay (default: 64; --quick: 24)")
    most = "rounds, as far as the time does (default: calibrate 5, --quick: 3; validate as many as there is time for)"
    group.add_argument("--repeats", type=int, metavar="N", help=most)
    whole = "seconds for everything (default: calibrate 600, --quick: 90; validate 1200, --quick: 270)"
    group.add_argument("--seconds", type=positive, metavar="N", help=whole)
    group.add_argument("--as-decode", action="store_true", help="run prompt rows as decode steps (--quick does)")
    group.add_argument("--expert-group", metavar="one|ready|all", help="how the GPU takes experts (default: one)")
    group.add_argument("--prefill-chunk", type=int, metavar="N", help="tokens of a prefill step")
    group.add_argument("--context-offset", type=int, metavar="N", help="added to every position")
    group.add_argument(
        "--seed", type=int, default=0, metavar="N", help="of the order of replays and of the requests set aside"
    )
    group.add_argument("--quick", action="store_true", help="minutes instead of longer")


# --- types for argparse -----------------------------------------------------------------------------------------------


def listed(kind: Callable[[str], Any]) -> Callable[[str], list[Any]]:
    """Values with commas between."""

    def parse(text: str) -> list[Any]:
        try:
            return [kind(part) for part in text.split(",")]
        except ValueError as error:
            raise argparse.ArgumentTypeError(f"{text}: {error}") from None

    return parse


def capacity(text: str) -> int | float:
    """Slots per layer, or a fraction of the experts; bytes would depend on --scale."""
    value = parse_cache(text)
    if isinstance(value, str):
        raise ValueError("must be slots (24) or a fraction of the experts (0.5)")
    return value


def requests(text: str) -> int:
    """A whole number above 0."""
    if not text.strip().isdecimal() or int(text) < 1:
        raise ValueError("must be whole numbers above 0")
    return int(text)


def positive(text: str) -> float:
    """A finite number above 0."""
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < math.inf:
        raise argparse.ArgumentTypeError(f"{text}: must be a number above 0")
    return value


# --- what they come to ------------------------------------------------------------------------------------------------


def common_fields(args: argparse.Namespace) -> dict[str, Any]:
    """The fields of RunSpec that every case has, with the defaults of the device."""
    cpu = device_name(args) == "cpu"
    out: dict[str, Any] = {
        "precision": args.precision or ("fp32" if cpu else "bf16"),
        "max_steps": args.steps or (24 if args.quick else 64),
        "warmup_steps": 1,
        "as_decode": args.as_decode or args.quick,
        "seed": args.seed,
    }
    if out["max_steps"] <= out["warmup_steps"]:
        raise SpecError(f"steps: {args.steps}: must be above {out['warmup_steps']}, which warm up")
    for name in ("model", "expert_group", "prefill_chunk", "context_offset"):
        if getattr(args, name) is not None:
            out[name] = getattr(args, name)
    return out


def deadline_of(args: argparse.Namespace, quick_s: float, long_s: float) -> Deadline:
    """From now on; as asked for, or what a command allows itself."""
    return Deadline(args.seconds or (quick_s if args.quick else long_s))


def device_name(args: argparse.Namespace) -> str:
    """The device that `auto` stands for."""
    if args.device != "auto":
        return str(args.device)
    found = current()
    return "cpu" if found is None else str(found.type)


def own_link(args: argparse.Namespace) -> BenchLink:
    """The one link whose pace is not chosen: the device's, or a CPU's at the pace that was asked for."""
    return BenchLink("link", args.link_gbps, args.link_latency_us) if device_name(args) == "cpu" else BenchLink("link")


def options_of(args: argparse.Namespace) -> Options:
    """How the bench is made. Raises SpecError for numbers that cannot be."""
    scale = (0.0625 if device_name(args) == "cpu" else 1.0) if args.scale is None else args.scale
    named = (("scale", scale), ("repeats", args.repeats), ("alias-host", args.alias_host), ("steps", args.steps))
    for name, value in named:
        if value is not None and not value > 0:
            raise SpecError(f"{name}: {value}: must be above 0")
    if scale > 1:
        raise SpecError(f"scale: {scale:g}: must be at most 1")
    return Options(scale=scale, alias=args.alias_host, kernel=args.expert_kernel, host_bytes=args.host_memory)


def port_of(args: argparse.Namespace) -> Port:
    """The port that the flags name; whoever opens it closes it."""
    return choose(device_name(args), args.link_gbps, args.link_latency_us)


def open_bench(args: argparse.Namespace, settings: Sequence[Setting], options: Options) -> PortBench:
    """The device with room for the settings, to be opened."""
    return PortBench(port_of(args), settings, options)
