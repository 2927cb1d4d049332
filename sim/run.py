"""python -m sim.run: simulate one run and print what it comes to.

Exit status 0 done, 2 bad input (one line on stderr), 1 a failure of ours.
"""

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sim.flags import add_groups, spec_of
from sim.simulation import check_out, simulate, write
from traces.command import Parser, guarded

LISTS = ("policies", "models", "hardware", "engines")
LISTED = {"engines": "print the engines, and what each does on a miss"}


def parser() -> Parser:
    """One flag per field of RunSpec, in groups, and the flags of the command itself."""
    out = Parser(prog="python -m sim.run", description="Simulate one run.")
    add_groups(out)
    group = out.add_argument_group("input and output")
    group.add_argument("--config", metavar="FILE", help="TOML with any of the fields above; flags win")
    group.add_argument("--out", metavar="DIR", help="write summary.json and record.npz there")
    group.add_argument("--force", action="store_true", help="replace a run that is in DIR already")
    group.add_argument("--record", choices=("none", "summary", "full"), help="what record.npz holds (default: summary)")
    group.add_argument("--json", action="store_true", help="print exactly one JSON object")
    for what in LISTS:
        group.add_argument(
            f"--list-{what}", action="store_true", help=LISTED.get(what, f"print the {what} and their sources")
        )
    return out


def _list(what: str) -> str:
    from sim import catalog

    if what == "policies":
        return _list_policies()
    entries = catalog.entries(what if what == "hardware" else what.removesuffix("s"))
    told = {name: entry.get("does") or entry.get("source", "") for name, entry in entries.items()}
    return "\n".join(f"{name:<24} {text}" for name, text in told.items())


def _list_policies() -> str:
    from sim.policies.registry import TABLES

    lines = []
    for kind, policies in TABLES.items():
        lines.append(f"{kind}:")
        for name, policy in policies.items():
            marks = [word for word in ("oracle", "fitted", "lossy") if getattr(policy, word)]
            needs = [f"needs {array}" for array in policy.needs]
            tail = "; ".join([*marks, *needs, *(f"{key}={_short(value)}" for key, value in policy.parameters.items())])
            lines.append(f"  {name:<18} {policy.doc} [{policy.source}]" + (f" ({tail})" if tail else ""))
    return "\n".join(lines)


def _short(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


def main(argv: Sequence[str] | None = None) -> int:
    """The command line; returns the exit status."""
    return guarded(_command, argv)


def _command(argv: list[str]) -> None:
    args = parser().parse_args(argv)
    for what in LISTS:
        if getattr(args, f"list_{what}"):
            print(_list(what))
            return
    spec = spec_of(args)
    check_out(args)
    summary, record = simulate(spec, args.record == "full")
    if args.out is not None:
        write(Path(args.out), summary, record, args.record or "summary")
    if args.json:
        print(json.dumps(summary))
    else:
        from sim.outcome.report import table

        print(table(summary))


if __name__ == "__main__":
    sys.exit(main())
