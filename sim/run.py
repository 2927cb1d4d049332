"""python -m sim.run: simulate one run and print what it comes to.

Exit status 0 done, 2 bad input (one line on stderr), 1 a failure of ours.
"""

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sim.errors import SpecError
from sim.flags import add_groups, spec_of
from sim.outcome import interchange
from sim.simulation import check_out, simulate, write
from traces.command import Parser, guarded
from traces.progress import doing

LISTS = {
    "policies": "print the policies, their parameters and sources",
    "models": "print the models: layers, experts, GB by precision; of one every figure and its source",
    "hardware": "print the hardware: memory, GB/s of GPU, link and host; of one every figure and its source",
    "hosts": "print the hosts: GB/s, memory, cores; of one every figure and its source",
    "links": "print the links: GB/s, set-up; of one every figure and its source",
    "engines": "print the engines, and what each does on a miss; of one every figure and its source",
}

NEXT = {"prepared": "simulating", "run": "summing up, and finding bounds"}


def parser(leave_out: Sequence[str] = ()) -> Parser:
    """One flag per field of RunSpec but some, in groups, and the flags of the command itself."""
    out = Parser(prog="python -m sim.run", description="Simulate one run.")
    add_groups(out, leave_out)
    group = out.add_argument_group("input and output")
    group.add_argument("--config", metavar="FILE", help="TOML with any of the fields above; flags win")
    group.add_argument("--out", metavar="DIR", help="write summary.json and record.npz there")
    group.add_argument("--force", action="store_true", help="replace a run that is in DIR already")
    group.add_argument("--record", choices=("none", "summary", "full"), help="what record.npz holds (default: summary)")
    group.add_argument("--json", action="store_true", help="print exactly one JSON object")
    for what, text in LISTS.items():
        one: dict[str, Any] = (
            {"action": "store_true"} if what == "policies" else {"nargs": "?", "const": "", "metavar": "NAME|FILE"}
        )
        group.add_argument(f"--list-{what}", help=text, **one)
    return out


def _parser() -> Parser:
    """With what this command alone writes."""
    out = parser()
    group = out.add_argument_group("formats of other tools (docs/interchange.md)")
    what = "print what serving benchmarks and monitoring read: AIPerf's JSON, OpenTelemetry's"
    group.add_argument("--format", choices=interchange.FORMATS, help=what)
    interchange.goodput_flag(group)
    return out


def _list(what: str, name: str, as_json: bool) -> str:
    """The list of a kind; with a name, or as JSON, every figure of the entry or the entries."""
    if what == "policies":
        return _list_policies()
    from sim.catalog import listing

    kind = what.removesuffix("s")
    if not name and not as_json:
        return listing.table(kind)
    found = listing.told(kind, name)
    return json.dumps(found) if as_json else listing.told_text(found)


def _list_policies() -> str:
    from sim.policies.registry import TABLES

    lines = []
    for kind, policies in TABLES.items():
        lines.append(f"{kind}:")
        for name, policy in policies.items():
            marks = [word for word in ("oracle", "fitted", "lossy") if getattr(policy, word)]
            needs = [f"needs {array}" for array in policy.needs]
            parameters = (f"{key}={_short(policy, key)}" for key in policy.parameters)
            tail = "; ".join([*marks, *needs, *parameters])
            lines.append(f"  {name:<18} {policy.doc} [{policy.source}]" + (f" ({tail})" if tail else ""))
    return "\n".join(lines)


def _short(policy: Any, key: str) -> str:
    """A parameter's default, as --set takes it."""
    value = policy.parameters[key]
    said = [word for word, number in policy.words(key).items() if number == value]
    return said[0] if said else f"{value:g}" if isinstance(value, float) else str(value)


def main(argv: Sequence[str] | None = None) -> int:
    """The command line; returns the exit status."""
    return guarded(_command, argv)


def _command(argv: list[str]) -> None:
    args = _parser().parse_args(argv)
    for what in LISTS:
        asked = getattr(args, f"list_{what}")
        if asked not in (None, False):
            print(_list(what, asked, args.json))
            return
    if args.format is not None and args.json:
        raise SpecError(f"format: {args.format}: is JSON, and another one than --json; give one of the two")
    interchange.check(args, args.format)
    spec = spec_of(args)
    check_out(args)
    doing(f"reading {spec.trace}, fitting and pricing", at_once=False)
    summary, record = simulate(spec, args.record == "full", reached=lambda stage: doing(NEXT[stage], at_once=False))
    if args.out is not None:
        write(Path(args.out), summary, record, args.record or "summary")
    if args.format is not None:
        print(interchange.text([(Path(spec.trace).stem, summary, record)], args.format, args.goodput))
    elif args.json:
        print(json.dumps(summary))
    else:
        from sim.outcome.report import table

        print(table(summary))


if __name__ == "__main__":
    sys.exit(main())
