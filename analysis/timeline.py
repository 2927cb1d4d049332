"""python -m analysis.timeline RUN --steps 10:20 --out t.json.gz: a run as a timeline, to look at in Perfetto.

RUN is a folder that `sim.run --out RUN --record full` wrote, or the replay on a device: both have the same record and
give the same tracks, so that two files open side by side. Open the result at https://ui.perfetto.dev (nothing is
uploaded), in chrome://tracing, or with whatever reads torch.profiler's traces.

    GPU   steps             one slice per step
          layers            one slice per visit: from the end of the one before it to its own end
          compute           dense, decide, experts (L12.E37) and the overhead of their groups, stall by cause,
                            cpu_wait, head: one after another they are the run's time, and by their `part` they add up
                            to the summary's breakdown
          H2D link 0        one slice per copy (L12.E37), with cause, wait in the queue, victim, and what became of it
                          of runs that stream, admit or compute on the host (docs/on-a-miss.md): `stream L1.E3..E7`,
                          experts copied into stages as one transfer; `admit L1.E3`; `remote L1.E3`, read while it runs;
                          marks where an admission was rejected; below it, where the host slowed the link
    host  CPU experts       what the host computes beside the GPU, and what it pays once a visit

With --text the same of a few short steps as text, GPU, link and host one below the other; with --html FILE one decode
step as a page of its own, which needs neither Perfetto nor a network (`analysis.report` has it beside other runs).

An arrow leads from a copy to the first execution that it serves. `L12` is the 13th MoE layer, `E37` an expert of it;
`L12.E37 low` is its low-precision copy.
"""

import sys
from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path

from analysis.reading.load import load
from analysis.reading.run import Run
from analysis.timelines.chrome_json import write
from analysis.timelines.events import Context, events, head
from analysis.timelines.text import picture
from analysis.timelines.tracks import tracks, window
from traces.command import Parser, add_force, guarded, out_file, write_bytes
from traces.errors import UserError
from traces.progress import doing


def steps_of(text: str | None, n: int) -> tuple[int, int]:
    """`10:20` (step 10 to 19), `10:`, `:20` or one step `10`, of a run of n steps; None: all. Raises UserError."""
    if text is None:
        return 0, n
    first, colon, last = text.partition(":")
    try:
        lo = int(first) if first or not colon else 0
        hi = int(last) if last else n if colon else lo + 1
    except ValueError:
        raise UserError(f"steps: {text}: must be FIRST:LAST, such as 10:20 for the steps 10 to 19") from None
    if not 0 <= lo < hi <= n:
        raise UserError(f"steps: {text}: must lie in 0:{n}, the steps of this run, and hold at least one")
    return lo, hi


def parser() -> Parser:
    """The command line."""
    prog, example = "python -m analysis.timeline", "RUN --steps 10:20 (of: sim.run ... --out RUN --record full)"
    out = Parser(prog=prog, description="A run as a timeline for Perfetto.", example=example)
    out.add_argument("run", metavar="RUN", help="folder written with --out RUN --record full")
    out.add_argument("--steps", metavar="10:20", help="which steps, the last one not (default: all)")
    out.add_argument("--text", action="store_true", help="print a few short steps as text instead of writing a file")
    out.add_argument("--html", metavar="FILE", help="one decode step as a page; --steps N says which")
    out.add_argument("--out", metavar="FILE", help="where to write (default: RUN/timeline.json.gz)")
    add_force(out)
    return out


def main(argv: Sequence[str] | None = None) -> int:
    """The command line; returns the exit status."""
    return guarded(_command, argv)


def _command(argv: list[str]) -> None:
    args = parser().parse_args(argv)
    run = load([args.run], detail=1)[0]
    if run.record is None or not run.full:
        raise UserError(f"{args.run}: has no record of every visit; run it again with --out and --record full")
    n = len(run.record.steps["begin_ns"])
    first, last = steps_of(args.steps, n)
    if args.html:
        _page(args, run, first if args.steps else None, last - first)
        return
    context = Context.of(run)
    if args.text:
        if args.out:
            raise UserError(f"out: {args.out}: nothing is written with --text; leave one of them out")
        shown = window(tracks(run.record, context.asked), run.record, first, last)
        print(picture(shown, int(run.record.steps["begin_ns"][first]), int(run.record.steps["end_ns"][last - 1])))
        return
    out = out_file(args.out or Path(args.run) / "timeline.json.gz", args.force)
    front = head(out.name, context, run.summary["memory"]["gpu"])
    doing(f"writing {out}", at_once=False)
    written = write(out, front, events(run.record, context, first, last))
    for note in run.summary["notes"]:
        print(f"! {note}")
    print(f"{out}: steps {first} to {last - 1} of {n}, {written:,} events; open it at https://ui.perfetto.dev")


def _page(args: Namespace, run: Run, step: int | None, n: int) -> None:
    """One step as a page."""
    if args.text or args.out:
        raise UserError(f"html: {args.html}: is written instead of --{'text' if args.text else 'out'}; leave one out")
    if step is not None and n > 1:
        raise UserError(f"steps: {args.steps}: --html shows one step, such as {step}")
    from analysis.pages.page import render  # late: plotly
    from analysis.pages.step_section import steps

    section = steps([run], run.name, step)
    write_bytes(
        out_file(args.html, args.force), render([section], run.summary["notes"], f"A step of {run.name}").encode()
    )
    print(args.html)


if __name__ == "__main__":
    sys.exit(main())
