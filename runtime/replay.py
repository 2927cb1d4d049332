"""python -m runtime.replay: replay a trace on a real device, with the policies of the simulator.

Takes every flag of sim.run. The summary is the simulator's, with machine "torch" and an entry `device`; the record has
the simulator's schema. Exit status 0 done, 1 the device failed or decisions differ, 2 bad input, 130 interrupted.
"""

import argparse
import sys
from collections.abc import Sequence

from runtime.device.flags import host_memory_flag, with_device
from runtime.replaying.layers import KERNELS
from sim.errors import SpecError
from sim.run import LISTS, parser
from sim.run import main as simulate
from sim.simulation import announce_compiling, check_out
from traces.command import guarded, typed


def arguments() -> argparse.ArgumentParser:
    """The flags of sim.run and of the device."""
    out = parser(("link_gbps",))  # a device has its own
    out.prog, out.description = typed("python -m runtime.replay"), "Replay a trace on a device."
    group = out.add_argument_group("the device")
    group.add_argument(
        "--device", default="auto", metavar="auto|cpu|cuda|xpu|mps", help="where it runs (default: auto)"
    )
    group.add_argument(
        "--link-gbps", dest="paced_gbps", type=float, metavar="N", help="pace of --device cpu's link (default: 25)"
    )
    group.add_argument("--link-latency-us", type=float, default=10.0, metavar="N", help="its set-up (default: 10)")
    group.add_argument("--scale", type=float, default=1.0, metavar="F", help="times the model's widths (default: 1)")
    group.add_argument(
        "--alias-host", type=int, metavar="N", help="distinct experts per layer on the host; others share"
    )
    host_memory_flag(group)
    group.add_argument("--weights", metavar="DIR", help="experts of a Hugging Face checkpoint (default: seeded noise)")
    group.add_argument("--expert-kernel", choices=KERNELS, default="auto", help="how the experts of a group run")
    group.add_argument("--repeat", type=int, default=1, metavar="N", help="run so often, report the median")
    group.add_argument("--lock-step", metavar="DIR", help="take the order of completions from the full record there")
    group.add_argument("--check", action="store_true", help="run the order of completions through the core alone, too")
    return out


def main(argv: Sequence[str] | None = None) -> int:
    """The command line; returns the exit status."""
    return guarded(_command, argv)


def _command(argv: list[str]) -> int:
    args = arguments().parse_args(argv)
    for what in LISTS:
        name = getattr(args, f"list_{what}")
        if name not in (None, False):
            return simulate([f"--list-{what}", *([name] if isinstance(name, str) and name else [])])
    if args.machine is not None:
        raise SpecError(f"machine: {args.machine}: the replay is the torch machine; leave it out")
    for name, value, low in (("scale", args.scale, 0), ("repeat", args.repeat, 0), ("alias-host", args.alias_host, 0)):
        if value is not None and not value > low:
            raise SpecError(f"{name}: {value}: must be above {low}")
    if args.lock_step and args.repeat != 1:
        raise SpecError(f"repeat: {args.repeat}: a lock-step runs once")
    check_out(args)
    announce_compiling()
    return with_device(lambda: _replayed(args))


def _replayed(args: argparse.Namespace) -> int:
    from runtime.replaying.replays import run  # late: it takes longer to import than --help to print

    return run(args)


if __name__ == "__main__":
    sys.exit(main())
