"""python -m analysis.compare RUN...: runs side by side, each against a baseline.

Exit status 0 done, 2 bad input (one line on stderr), 1 a failure of ours.
"""

import sys
from collections.abc import Sequence

from analysis.comparing.comparison import compare
from analysis.comparing.formats import FORMATS
from analysis.comparing.pairing import RESAMPLES
from analysis.reading.load import load
from analysis.reading.run import Run
from analysis.showing.words import plain
from sim.outcome import interchange
from traces.command import Parser, guarded
from traces.errors import UserError
from traces.progress import doing


def parser() -> Parser:
    prog, example = "python -m analysis.compare", "out/lru out/buddy"
    out = Parser(prog=prog, description="Runs side by side, each against a baseline.", example=example)
    out.add_argument("runs", metavar="RUN", nargs="+", help="folder of a run or of a sweep, or a summary")
    out.add_argument("--baseline", metavar="NAME|INDEX", default="0", help="run to compare with (default: the first)")
    every = sorted([*FORMATS, *interchange.FORMATS])
    out.add_argument("--format", choices=every, default="table", help="aiperf, otel: docs/interchange.md (table)")
    interchange.goodput_flag(out)
    out.add_argument("--seed", type=int, default=0, metavar="N", help="of the bootstrap's draws (default: 0)")
    out.add_argument(
        "--resamples", type=int, default=RESAMPLES, metavar="N", help=f"bootstrap draws (default: {RESAMPLES})"
    )
    return out


def main(argv: Sequence[str] | None = None) -> int:
    """The command line; returns the exit status."""
    return guarded(_command, argv)


def _command(argv: list[str]) -> None:
    args = parser().parse_args(argv)
    if not 10 <= args.resamples <= 1_000_000:
        raise UserError(f"resamples: {args.resamples}: must lie in [10, 1000000]")
    if args.seed < 0:
        raise UserError(f"seed: {args.seed}: must be >= 0")
    interchange.check(args, args.format)
    runs = load(args.runs)
    if args.format in interchange.FORMATS:
        print(interchange.text([_recorded(run) for run in runs], args.format, args.goodput))
        return
    doing(f"comparing {len(runs)} runs", at_once=False)
    found = compare(runs, args.baseline, args.seed, args.resamples)
    print(FORMATS[args.format](found))
    if args.format in ("csv", "svg"):  # what a machine reads holds rows only
        print("\n".join(f"! {plain(note)}" for note in found.notes), file=sys.stderr)


def _recorded(run: Run) -> interchange.Run:
    if run.record is None:
        raise UserError(f"{run.source}: has no record of its requests; run it again with --out")
    return run.name, run.summary, run.record


if __name__ == "__main__":
    sys.exit(main())
