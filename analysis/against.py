"""python -m analysis.against TIMINGS RUN...: your own times beside simulated ones: how far off, and why.

TIMINGS: times of steps, tokens or requests, or the figures that an engine prints (docs/against.md). RUN: the folder of
`python -m sim.run --out`; its trace must still be there. Exit status 0 done, 2 bad input, 1 a failure of ours.
"""

import json
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from analysis.comparing import own_times
from analysis.reading.load import load
from analysis.reading.run import Run
from sim.flags import asked_of
from sim.spec import RunSpec
from traces.command import Parser, guarded
from traces.errors import UserError
from traces.progress import counted, doing

if TYPE_CHECKING:
    from analysis.comparing.why import Why


def parser() -> Parser:
    out = Parser(
        prog="python -m analysis.against", description="Your own times beside simulated ones, and why they differ."
    )
    out.add_argument("timings", metavar="TIMINGS", help="CSV of times, or what llama.cpp or vLLM says of itself")
    out.add_argument("runs", metavar="RUN", nargs="+", help="folder of a run")
    out.add_argument("--trace", metavar="FILE", help="the runs' routing trace, where it lies elsewhere now")
    out.add_argument("--json", action="store_true", help="print one JSON object")
    return out


def main(argv: Sequence[str] | None = None) -> int:
    """The command line; returns the exit status."""
    return guarded(_command, argv)


def _command(argv: list[str]) -> None:
    args = parser().parse_args(argv)
    own, runs = own_times.read(args.timings), load(args.runs)
    from analysis.comparing import why_told

    found = [(run, explained(run, own, args.trace)) for run in counted(runs, "run", lambda run: run.name)]
    found = why_told.ordered(found)
    if args.json:
        print(json.dumps({"timings": args.timings, "runs": [why_told.as_dict(*one) for one in found]}))
        return
    print("\n\n".join(why_told.text(run, own, one) for run, one in found))
    print(f"\n{why_told.commands(found[0][0])}")


def explained(run: Run, own: own_times.OwnTimes, trace: str | None = None) -> "Why":
    """The run again, and each of its parts. Raises UserError, one line, where it cannot be run again as it was."""
    from analysis.comparing.why import why  # with them comes the core
    from sim.prepare import prepare

    if run.measured:
        raise UserError(f"{run.source}: is measured on a device; a simulated run is compared with times")
    fields = asked_of(run.spec, f"{run.source}: spec: ")
    doing(f"reading {fields['trace']}", at_once=False)
    setting = prepare(RunSpec.of(fields | ({} if trace is None else {"trace": trace})))
    if setting.trace_hash != run.trace["hash"]:
        raise UserError(
            f"{run.source}: trace: {setting.spec.trace} is not the one that it ran on; --trace FILE names it"
        )
    found = why(setting, own)
    if run.record is not None and (run.record.steps["end_ns"] != found.record.steps["end_ns"]).any():
        raise UserError(
            f"{run.source}: record: the run comes out otherwise now (hardware or policy changed); run it again"
        )
    return found


if __name__ == "__main__":
    sys.exit(main())
