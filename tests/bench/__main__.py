"""The figures of README's "Speed", each beside one of the same minutes: median (least .. most) of the rounds.

Machines are shared and noisy: read the ratios, which come from the same rounds, and what else the machine was at, which
is told first and last. Times are CPU seconds of one process unless they are said to be the wall's. Requests are the
decode rows of real captures where they lie beside the checkout, else of the shipped sample, over and over.
"""

import argparse
import sys
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path

from tests.bench.compare import checked, compare
from tests.bench.curve import curves
from tests.bench.figures import Ask, Figure, keep, load, machine
from tests.bench.plans import captures
from tests.bench.policies import policies
from tests.bench.sizes import bounded, growth, scaling
from tests.bench.starts import cold, warm
from tests.bench.sweeps import sweep
from tests.bench.throughput import full, throughput
from traces.command import Parser, guarded, one_of, out_file
from traces.errors import UserError
from traces.progress import doing

Section = Callable[[Ask], Iterator[Figure]]
SECTIONS: dict[str, Section] = {
    "throughput": throughput, "full": full, "policies": policies, "bounds": bounded, "curve": curves, "warm": warm,
    "growth": growth, "scaling": scaling, "cold": cold, "sweep": sweep,
}  # fmt: skip
MINUTES = ("cold", "sweep")  # take minutes each, and are run where they are asked for
COMPARE = "compare"
MOST = 1e10  # of any number
LEAST = {"requests": 1, "each": 1, "runs": 1, "most": 1e4, "workers": 1}


def parser() -> Parser:
    out = Parser(
        prog="python -m tests.bench", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    told = {name: " ".join(str(section.__doc__).split()) for name, section in SECTIONS.items()}
    out.epilog = "sections:\n" + "\n".join(f"  {name:<11} {text}" for name, text in told.items())
    out.epilog += f"\n  {COMPARE:<11} this checkout and --base, interleaved; starts included"
    usual = ", ".join(name for name in SECTIONS if name not in MINUTES)
    out.add_argument("sections", nargs="*", metavar="SECTION", help=f"some of those below, or all (default: {usual})")
    out.add_argument("--requests", type=float, default=4e6, help="of throughput, full and bounds (default: 4e6)")
    out.add_argument("--each", type=float, default=1e6, help="of every other run (default: 1e6)")
    out.add_argument("--runs", type=int, default=5, help="rounds that count, behind one that does not (default: 5)")
    out.add_argument("--most", type=float, default=1e8, help="largest size of scaling and growth (default: 1e8)")
    out.add_argument("--workers", type=int, default=2, help="of the sweep (default: 2)")
    out.add_argument("--json", metavar="FILE", help="keep every figure there, with the values of all rounds")
    out.add_argument("--base", metavar="COMMIT|FOLDER", help="of compare: what this checkout is compared with")
    out.add_argument("--only", default="", metavar="TEXT", help="of compare: jobs whose names hold this")
    out.add_argument("--no-starts", action="store_true", help="of compare: no cold and warm starts")
    return out


def chosen(args: argparse.Namespace) -> dict[str, Section]:
    """The sections that are asked for. Raises UserError for one that is not there, or that lacks what it needs."""
    names = args.sections or [name for name in SECTIONS if name not in MINUTES]
    names = list(SECTIONS) if "all" in names else [one_of("section", name, (*SECTIONS, COMPARE)) for name in names]
    if (COMPARE in names) != bool(args.base):
        said = "missing" if args.base is None else repr(args.base)
        raise UserError(f"base: {said}: is of {COMPARE}; give both: python -m tests.bench compare --base COMMIT")
    for name, given in {"only": args.only, "no-starts": args.no_starts}.items():
        if given and COMPARE not in names:
            raise UserError(f"{name}: is of {COMPARE} alone; leave it out")
    base = checked(args.base) if args.base else None
    there = {COMPARE: partial(compare, base=base, only=args.only, starts=not args.no_starts)}
    return {name: (SECTIONS | there)[name] for name in names}


def asked(args: argparse.Namespace) -> Ask:
    """Raises UserError for numbers that mean nothing."""
    for name, least in LEAST.items():
        if not least <= getattr(args, name) <= MOST:
            raise UserError(f"{name}: {getattr(args, name):g}: must be from {least:g} to {MOST:g}")
    return Ask(captures(), args.requests, args.each, args.runs, args.most, args.workers)


def told(name: str, section: Section, ask: Ask) -> Iterator[Figure]:
    """The section's figures, each printed as it comes, below a heading where there is a new one."""
    print(f"{name}: {' '.join(str(getattr(section, 'func', section).__doc__).split())}", flush=True)
    doing(f"measuring {name}", at_once=False)
    heading = name
    for figure in section(ask):
        above = figure.name.rpartition("/")[0]
        if not figure.quiet:
            print(*([f" {above}"] if above != heading else []), figure.line(), sep="\n", flush=True)
            heading = above
        yield figure


def main(argv: Sequence[str] | None = None) -> int:
    """The command line; returns the exit status."""
    return guarded(_command, argv)


def _command(argv: list[str]) -> None:
    args = parser().parse_args(argv)
    sections, ask = chosen(args), asked(args)
    kept = None if args.json is None else out_file(args.json, force=True)
    numbers = {name: getattr(args, name) for name in LEAST}
    about = {**machine(), "asked": numbers, "load at first": load()}
    print(f"{about['commit']} on {about['cores']} cores of {about['cpu']}, caches {about['caches']}; {load()}")
    figures = [figure for name, section in sections.items() for figure in told(name, section, ask)]
    about["load at last"] = load()
    print(f"done; {about['load at last']}")
    if kept is not None:
        keep(Path(kept), figures, about)


if __name__ == "__main__":
    sys.exit(main())
