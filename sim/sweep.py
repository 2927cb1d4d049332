"""python -m sim.sweep: every configuration of a grid, on every core or a Ray cluster; killed, it goes on where it was.

Exit status 0 done (failing configurations are rows with an error), 2 bad input or nothing but failures, 130 stopped by
Ctrl-C.
"""

import argparse
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

from sim.errors import SpecError
from traces.command import Parser, guarded, one_of, typed

ENGINES = ("local", "ray")
INTERRUPTED = 130


def parser() -> Parser:
    out = Parser(prog="python -m sim.sweep", description="Run every configuration of a sweep. See docs/sweeps.md.")
    out.add_argument("--config", required=True, metavar="FILE", help="TOML: fields of a run, lists are axes")
    out.add_argument("--out", metavar="DIR", help="the sweep's folder (default: the config's name with .sweep)")
    out.add_argument("--engine", default="local", metavar="local|ray", help="who runs it (default: local)")
    out.add_argument("--ray-address", metavar="ADDRESS", help="of the cluster: local (default), auto, HOST:PORT")
    out.add_argument(
        "--workers", type=int, metavar="N", help="processes (default: every core, every CPU of the cluster)"
    )
    out.add_argument("--retry-failed", action="store_true", help="run those again that ended in an error")
    return out


def main(argv: Sequence[str] | None = None) -> int:
    """The command line; returns the exit status."""
    return guarded(_command, argv)


def _command(argv: list[str]) -> int:
    args = parser().parse_args(argv)
    _check(args)
    from sim.flags import read_toml
    from sim.sweeps.answer import COLUMNS_READ, answer
    from sim.sweeps.config import expand
    from sim.sweeps.session import Session

    tables = read_toml(args.config)
    runs = expand(tables, f"config: {args.config}")
    folder = Path(args.out) if args.out else Path(Path(args.config).stem + ".sweep")
    session = Session(folder, tables, runs, sys.stderr)
    try:
        table = session.run(args.engine, args.ray_address or "local", args.workers, args.retry_failed)
    except KeyboardInterrupt:
        again = f"{typed('python -m sim.sweep')} {shlex.join(argv)}"
        print(
            f"interrupted: {session.safe:,} of {len(runs):,} runs are safe in {folder}; go on: {again}", file=sys.stderr
        )
        return INTERRUPTED
    finally:
        session.close()
    print(answer(table.select(COLUMNS_READ).to_pylist()))
    print(f"{folder / 'results.parquet'}: {len(runs):,} rows")
    return 2 if all(session.store.done.values()) else 0


def _check(args: argparse.Namespace) -> None:
    one_of("engine", args.engine, ENGINES)
    if args.ray_address and args.engine != "ray":
        raise SpecError("ray-address: needs --engine ray")
    if args.workers is not None and args.workers < 1:
        raise SpecError(f"workers: {args.workers}: must be at least 1")


if __name__ == "__main__":
    sys.exit(main())
