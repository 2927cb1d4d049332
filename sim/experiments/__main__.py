"""python -m sim.experiments NAME ...: exit status 0 done, 2 bad input (one line on stderr), 1 a failure of
ours.
"""

import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from sim.errors import unknown
from sim.experiments import admission, buddymoe, engines, hit_rates, policies, published
from sim.experiments.tables import Report, command_line
from traces.command import guarded, typed

EXPERIMENTS: dict[str, Callable[[Sequence[str]], tuple[Report, str | None]]] = {
    "policies": policies.report,
    "buddymoe": buddymoe.report,
    "published": published.report,
    "admission": admission.report,
    "engines": engines.report,
    "hit-rates": hit_rates.report,
}
NAMES = "\n".join(
    f"  {name:<12} {(sys.modules[run.__module__].__doc__ or '').splitlines()[0]}" for name, run in EXPERIMENTS.items()
)


def main(argv: Sequence[str] | None = None) -> int:
    """The command line; returns the exit status."""
    return guarded(_command, argv)


def _command(args: list[str]) -> int:
    if not args or args[0] in ("-h", "--help"):
        usage = f"usage: {typed('python -m sim.experiments')} NAME [flags], NAME one of\n{NAMES}"
        print(usage, file=sys.stdout if args else sys.stderr)
        return 0 if args else 2
    if args[0] not in EXPERIMENTS:
        raise unknown("experiment", args[0], EXPERIMENTS)
    report, out = EXPERIMENTS[args[0]](args[1:])
    text = report.markdown(command_line(args))
    if out is not None:
        report.write(Path(out), args[0], command_line(args))
    print(text, end="")
    return 0


if __name__ == "__main__":
    sys.exit(main())
