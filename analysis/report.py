"""python -m analysis.report RUN... --out report.html: one page that opens in any browser, without a network.

Exit status 0 done, 2 bad input (one line on stderr, nothing written), 1 a failure of ours.
"""

import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from analysis.compare import Comparison, compare
from analysis.pages.page import render
from analysis.pages.panels import Section
from analysis.pages.policy_sections import cache, measured, prefetching, quality
from analysis.pages.run_sections import in_short, speed, time, what_was_run
from analysis.pages.trace_sections import find_trace, trace_section
from analysis.reading.runs import Run, RunError, load
from traces.command import Parser, guarded, write_bytes

DETAILED = 6  # full records that are drawn over time
DRAWN = 40  # runs in figures that have a row for each
MAX_PAGE_BYTES = 8_000_000


def report(
    runs: Sequence[Run],
    baseline: str | int = 0,
    trace: str | None = None,
    buddies: str | None = None,
    similarity: str | None = None,
    seed: int = 0,
) -> str:
    """The page as HTML. Runs as `load(paths, detail=DETAILED)` returns them. Raises UserError for bad input."""
    found = compare(runs, baseline, seed)
    drawn, rows = _drawn(runs, found)
    routed, why = find_trace(runs[0], trace)
    sections: list[Section | None] = [
        what_was_run(drawn),
        in_short(drawn, rows),
        speed(drawn, rows),
        time(drawn),
        cache(drawn, DETAILED),
        prefetching(drawn),
        quality(drawn, replace(found, rows=found.rows)),
        measured(runs),
        trace_section(routed, why, buddies, similarity),
    ]
    notes = list(found.notes)
    if len(drawn) < len(runs):
        notes.append(f"{len(runs)} runs: the baseline, the best and the fastest {DRAWN} have rows; quality shows all")
    return render([section for section in sections if section is not None], notes, _title(runs))


def _drawn(runs: Sequence[Run], found: Comparison) -> tuple[list[Run], Comparison]:
    """At most DRAWN runs, in their order: the baseline, then the Pareto-best, then the fastest."""
    if len(runs) <= DRAWN:
        return list(runs), found

    def standing(i: int) -> tuple[bool, bool, float]:
        row = found.rows[i]
        return row["run"] == found.baseline, row["pareto_best"], row["tokens_per_s"] or 0.0

    kept = sorted(sorted(range(len(runs)), key=standing, reverse=True)[:DRAWN])
    return [runs[i] for i in kept], replace(found, rows=[found.rows[i] for i in kept])


def _title(runs: Sequence[Run]) -> str:
    models = list(dict.fromkeys(run.trace["model"] for run in runs))
    return f"Expert offloading: {len(runs)} run{'s' * (len(runs) > 1)} of {', '.join(models)}"


def parser() -> Parser:
    out = Parser(prog="python -m analysis.report", description="Runs as one self-contained HTML page.")
    out.add_argument("runs", metavar="RUN", nargs="+", help="folder of a run or of a sweep, or a summary")
    out.add_argument("--out", metavar="FILE", required=True, help="the page")
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
    out = Path(args.out)
    if out.is_dir() or not out.parent.is_dir():
        raise RunError(f"out: {args.out}: must be a file in a folder that exists")
    if args.seed < 0:
        raise RunError(f"seed: {args.seed}: must be >= 0")
    runs = load(args.runs, DETAILED)
    page = report(runs, args.baseline, args.trace, args.buddies, args.similarity, args.seed).encode()
    if len(page) > MAX_PAGE_BYTES:
        raise RunError(f"out: the page would have {len(page):,} bytes, more than {MAX_PAGE_BYTES:,}; give fewer runs")
    write_bytes(out, page)
    print(f"{args.out}: {len(page) / 1e6:.1f} MB", file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main())
