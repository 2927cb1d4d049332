"""The one way from a spec to what a run comes to, and the folder that keeps it."""

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sim.memo import Memo, afresh
from sim.spec import RunSpec
from traces.command import out_folder, write_bytes
from traces.errors import UserError

if TYPE_CHECKING:
    from sim.core.plan import Plan
    from sim.machines.record import RunRecord

FILES = ("summary.json", "record.npz")  # of a run's folder


def machine(name: str) -> "Callable[[Plan, bool], RunRecord]":
    """The machine of that name (`RunSpec.machine`): takes a plan, and whether to log every event; gives the record."""
    if name == "simpy":
        from sim.machines.discrete import run
    else:
        from sim.machines.compiled import run
    return run


def simulate(
    spec: RunSpec,
    full: bool = False,
    memo: Memo = afresh,
    reached: Callable[[str], None] = lambda stage: None,
    **in_memory: Any,
) -> "tuple[dict[str, Any], RunRecord]":
    """(summary object, record) of one spec. Raises SpecError, TraceError or CatalogError for what is wrong with it.

    full: the record holds every visit, execution, transfer and answer. memo: keeps what other specs share with this
    one. reached: told when it is "prepared" and when it has "run". in_memory: see `sim.prepare.prepare`.
    """
    from sim.outcome.report import result
    from sim.prepare import prepare

    setting = prepare(spec, memo, **in_memory)
    reached("prepared")
    record = machine(spec.machine)(setting.plan, full)
    reached("run")
    return result(setting, record, memo), record


def check_out(args: argparse.Namespace) -> None:
    """Before anything runs: where it goes, and that it takes nobody's place. Raises UserError."""
    if args.out is None:
        if args.record not in (None, "none"):
            raise UserError(f"record: {args.record}: nothing keeps it; give --out DIR too")
        return
    out_folder(args.out, () if args.force else FILES)


def write(folder: Path, summary: dict[str, Any], record: "RunRecord", kind: str) -> None:
    """`summary.json` and, unless kind is `none`, `record.npz` in a folder that is made, each whole or not at all."""
    from sim.machines.record import save

    folder.mkdir(parents=True, exist_ok=True)
    if kind != "none":
        save(record, folder / "record.npz", {name: summary[name] for name in ("spec", "machine", "trace")})
    text = json.dumps(summary, indent=1) + "\n"
    write_bytes(folder / "summary.json", text.encode())
    if kind == "none":  # a record that lies there is of the run whose place this one takes
        (folder / "record.npz").unlink(missing_ok=True)
