"""python -m analysis.report RUN... --out report.html: one page that opens in any browser, without a network.

Exit status 0 done, 2 bad input (one line on stderr, nothing written), 1 a failure of ours.
"""

import sys
from collections.abc import Sequence

from analysis.pages.report import DETAILED, report
from analysis.reading.load import load
from traces.command import Parser, add_force, guarded, out_file, write_bytes
from traces.errors import UserError
from traces.progress import doing

MAX_PAGE_BYTES = 8_000_000


def parser() -> Parser:
    out = Parser(
        prog="python -m analysis.report",
        description="Runs as one self-contained HTML page.",
        example="out/lru out/buddy",
    )
    out.add_argument("runs", metavar="RUN", nargs="+", help="folder of a run or of a sweep, or a summary")
    out.add_argument("--out", metavar="FILE", default="report.html", help="the page (default: report.html)")
    add_force(out)
    out.add_argument("--baseline", metavar="NAME|INDEX", default="0", help="run to compare with (default: the first)")
    out.add_argument("--trace", metavar="FILE", help="routing trace of the first run (default: where its spec says)")
    out.add_argument("--buddies", metavar="FILE", help="buddy lists (python -m sim.profile --out) for q mass over rank")
    out.add_argument("--similarity", metavar="FILE", help=".npz with `similarity` [MoE layers, experts, experts]")
    out.add_argument("--seed", type=int, default=0, metavar="N", help="of the bootstrap's draws (default: 0)")
    return out


def main(argv: Sequence[str] | None = None) -> int:
    """The command line; returns the exit status."""
    return guarded(_command, argv)


def _command(argv: list[str]) -> None:
    args = parser().parse_args(argv)
    out = out_file(args.out, args.force)
    if args.seed < 0:
        raise UserError(f"seed: {args.seed}: must be >= 0")
    runs = load(args.runs, DETAILED)
    doing("comparing and drawing", at_once=False)
    page = report(runs, args.baseline, args.trace, args.buddies, args.similarity, args.seed).encode()
    if len(page) > MAX_PAGE_BYTES:
        raise UserError(f"out: the page would have {len(page):,} bytes, more than {MAX_PAGE_BYTES:,}; give fewer runs")
    write_bytes(out, page)
    print(f"{args.out}: {len(page) / 1e6:.1f} MB", file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main())
