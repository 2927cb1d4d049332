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
from traces.slips import did_you_mean

LISTS = {
    "policies": "print the policies, a line each; with --json all that is known of them",
    "models": "print the models: layers, experts, GB by precision; of one every figure and its source",
    "hardware": "print the hardware: memory, GB/s of GPU, link and host; of one every figure and its source",
    "hosts": "print the hosts: GB/s, memory, cores; of one every figure and its source",
    "links": "print the links: GB/s, set-up; of one every figure and its source",
    "engines": "print the engines, and what each does on a miss; of one every figure and its source",
}

NEXT = {"prepared": "simulating", "run": "summing up, and finding bounds"}


def parser(leave_out: Sequence[str] = ()) -> Parser:
    """One flag per field of RunSpec but some, in groups, and the flags of the command itself."""
    out = Parser(prog="python -m sim.run", description="Simulate one run.", example="--trace mixtral.npz")
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
    group.add_argument("--describe", metavar="NAME", help="what a policy does and takes, or what a word here means")
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
        from sim.policies import describe

        return json.dumps(describe.listed()) if as_json else describe.listing()
    from sim.catalog import listing

    kind = what.removesuffix("s")
    if not name and not as_json:
        return listing.table(kind)
    found = listing.told(kind, name)
    return json.dumps(found) if as_json else listing.told_text(found)


def _describe(word: str, as_json: bool) -> str:
    """What is known of a policy, or of a word of the glossary. Raises SpecError, with the nearest, for any other."""
    from sim.outcome import glossary
    from sim.policies import describe

    found, words = describe.named(word), glossary.named(word)
    if not found and not words:
        known = [*describe.names(), *glossary.WORDS]
        wrong = f"is neither a policy (--list-policies) nor a word of the glossary{did_you_mean(word.lower(), known)}"
        raise SpecError(f"describe: {word!r} {wrong}")
    if as_json:
        told: dict[str, Any] = {kind: {each.name: describe.facts(kind, each)} for kind, each in found.items()}
        return json.dumps(told | ({"words": words} if words else {}))
    return "\n\n".join([*(describe.text(*each) for each in found.items()), *glossary.lines(words)])


def main(argv: Sequence[str] | None = None) -> int:
    """The command line; returns the exit status."""
    return guarded(_command, argv)


def _command(argv: list[str]) -> None:
    flags = _parser()
    args = flags.parse_args(argv)
    for what in LISTS:
        asked = getattr(args, f"list_{what}")
        if asked not in (None, False):
            print(_list(what, asked, args.json))
            return
    if args.describe is not None:
        print(_describe(args.describe, args.json))
        return
    if args.format is not None and args.json:
        raise SpecError(f"format: {args.format}: is JSON, and another one than --json; give one of the two")
    interchange.check(args, args.format)
    spec = spec_of(args, flags.example)
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
        from sim.outcome.table import table

        print(table(summary))


if __name__ == "__main__":
    sys.exit(main())
