"""python -m sim.sweep: every configuration of a grid, on every core or a Ray cluster; killed, it goes on where it was.

Exit status 0 done (failing configurations are rows with an error), 2 bad input or nothing but failures, 130 stopped by
Ctrl-C.
"""

import argparse
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sim.errors import SpecError
from sim.flags import add_groups, read_toml
from traces.command import Parser, guarded, one_of, typed

ENGINES = ("local", "ray")
INTERRUPTED = 130


def parser() -> Parser:
    """--config, every flag of sim.run with commas between its values, and who runs it all."""
    example = "--trace mixtral.npz --cache 2,3,4 --eviction lru,lfu"
    what = "Run every configuration of a sweep: of a file, of flags whose values have commas between, or of both."
    out = Parser(prog="python -m sim.sweep", description=f"{what} See docs/sweeps.md.", example=example)
    add_groups(out, lists=True)
    group = out.add_argument_group("the sweep")
    group.add_argument("--config", metavar="FILE", help="TOML: fields of a run, lists are axes; flags win")
    group.add_argument("--repeats", type=int, metavar="N", help="seeds seed, seed + 1, ... of every configuration")
    group.add_argument(
        "--out",
        metavar="DIR",
        help="the sweep's folder (default: the config's name with .sweep; with flags by content)",
    )
    group.add_argument("--pool", metavar="local|ray", help="who runs it (default: local)")
    group.add_argument("--ray-address", metavar="ADDRESS", help="of the cluster: local (default), auto, HOST:PORT")
    group.add_argument(
        "--workers", type=int, metavar="N", help="processes (default: every core, every CPU of the cluster)"
    )
    group.add_argument("--retry-failed", action="store_true", help="run those again that ended in an error")
    return out


def main(argv: Sequence[str] | None = None) -> int:
    """The command line; returns the exit status."""
    return guarded(_command, argv)


def _command(argv: list[str]) -> int:
    flags = parser()
    args = flags.parse_args(argv)
    _check(args)
    from sim.sweeps.config import expand, swept
    from sim.sweeps.from_flags import folder_of, spelt_out, tables_of
    from sim.sweeps.session import Session

    config = read_toml(args.config) if args.config else {}
    tables = tables_of(args, argv, config)
    if not tables:
        raise SpecError(f"nothing to sweep: give --config FILE, or flags, such as: {flags.example}")
    runs = expand(tables, f"config: {args.config}" if args.config else "sweep")
    if all(run.spec is None for run in runs):
        raise SpecError(f"no configuration can be run: {runs[0].error}{spelt_out(runs[0].fields)}")
    folder = Path(args.out) if args.out else folder_of(args.config, tables, tables != config)
    if not args.out:
        print(f"{folder}: {len(runs):,} runs{_axes(tables)}", file=sys.stderr)
    session = Session(folder, tables, runs, sys.stderr)
    try:
        table = session.run(args.pool, args.ray_address or "local", args.workers, args.retry_failed)
    except KeyboardInterrupt:
        again = f"{typed('python -m sim.sweep')} {shlex.join(argv)}"
        print(
            f"interrupted: {session.safe:,} of {len(runs):,} runs are safe in {folder}; go on: {again}", file=sys.stderr
        )
        return INTERRUPTED
    finally:
        session.close()
    from sim.sweeps.answer import COLUMNS_READ, answer  # once the workers have what they need

    print(answer(table.select(COLUMNS_READ).to_pylist(), swept(tables)))
    print(f"{folder / 'results.parquet'}: {len(runs):,} rows")
    return 2 if all(session.store.done.values()) else 0


def _axes(tables: dict[str, Any]) -> str:
    """Which fields have several values, in words."""
    named = [name.removeprefix("set.") for name, value in tables.items() if isinstance(value, (list, dict))]
    return f" over {', '.join(named)}" if named else ""


def _check(args: argparse.Namespace) -> None:
    """What is no field of a run. An --engine that runs sweeps, as that flag once named it, is the pool."""
    if args.engine in ENGINES and args.pool is None:
        args.pool, args.engine = args.engine, None
    args.pool = one_of("pool", args.pool or "local", ENGINES)
    if args.ray_address and args.pool != "ray":
        raise SpecError("ray-address: needs --pool ray")
    if args.workers is not None and args.workers < 1:
        raise SpecError(f"workers: {args.workers}: must be at least 1")


if __name__ == "__main__":
    sys.exit(main())
