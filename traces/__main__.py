"""Command line of the traces: `python -m traces info | split | convert | synth | capture`.

`info` looks at frequency profiles too; `convert` is in traces.foreign.convert, `capture` in traces.capturing.
"""

import argparse
import json
import os
import sys
from collections.abc import Callable, Sequence

from traces.capturing import command as capturing
from traces.command import Parser, guarded, one_of
from traces.errors import TraceError
from traces.foreign.convert import add_arguments, convert
from traces.format import npz, profile
from traces.format.trace import split
from traces.statistics.describe import LOUD, describe, describe_profile, size
from traces.statistics.stats import info, info_of_profile


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command. Returns the exit status: 0 done, 2 bad input (one line on stderr)."""
    return guarded(_command, arguments)


def _command(arguments: list[str]) -> None:
    options = _parser().parse_args(_known_command(arguments))
    COMMANDS[options.command](options)


def _known_command(arguments: list[str]) -> list[str]:
    """The arguments, if they begin with a command or an option."""
    if not arguments:
        raise TraceError(f"no command; one of {', '.join(COMMANDS)} is required")
    if not arguments[0].startswith("-"):
        one_of("command", arguments[0], list(COMMANDS))
    return arguments


def _parser() -> Parser:
    parser = Parser(prog="python -m traces", description="Routing traces: look at, divide, import, generate, capture.")
    commands = parser.add_subparsers(dest="command", required=True, parser_class=Parser)
    file_help = "a .npz file, or the name of a shipped sample"

    command = commands.add_parser("info", help="shape, provenance and statistics of a trace")
    command.add_argument("file", help=file_help)
    command.add_argument("--json", action="store_true", help="print one JSON object")

    command = commands.add_parser("split", help="divide a trace into two by request")
    command.add_argument("file", help=file_help)
    command.add_argument("--fraction", type=float, required=True, help="share of the requests for OUT_A")
    command.add_argument("--seed", type=int, default=0)
    command.add_argument("out_a", metavar="OUT_A")
    command.add_argument("out_b", metavar="OUT_B")

    command = commands.add_parser("convert", help="from and to the files of other tools: docs/formats.md")
    add_arguments(command)

    command = commands.add_parser("synth", help="generate a synthetic trace")
    shape = command.add_mutually_exclusive_group(required=True)
    shape.add_argument("--like", metavar="NAME", help="which preset")
    shape.add_argument("--like-profile", metavar="FILE", help="a frequency profile, whose popularity it gets")
    command.add_argument("--tokens", type=int, metavar="N", help="of a profile's trace (default: 1024)")
    command.add_argument("--seed", type=int, default=0)
    command.add_argument("--out", required=True, metavar="FILE")

    capturing.add_arguments(commands.add_parser("capture", help="record the routing of a live model"))
    return parser


def _info(options: argparse.Namespace) -> None:
    path = npz.find(options.file)
    if profile.is_profile(path):
        counted = profile.read(path)
        print(json.dumps(info_of_profile(counted)) if options.json else describe_profile(counted, path.name))
        return
    facts = info(npz.read(path))
    print(json.dumps(facts, allow_nan=False) if options.json else describe(facts, path.name))


def _split(options: argparse.Namespace) -> None:
    if os.path.realpath(options.out_a) == os.path.realpath(options.out_b):
        raise TraceError(f"OUT_A and OUT_B are the same file, {options.out_a}; two are required")
    path = npz.find(options.file)
    first, second = split(npz.read(path), options.fraction, options.seed)
    npz.write_all([(options.out_a, first), (options.out_b, second)])
    print(f"{options.out_a}: {size(first)}\n{options.out_b}: {size(second)}")


def _synth(options: argparse.Namespace) -> None:
    from traces.synthetic import PRESETS, from_profile, synthesise

    if options.like_profile is not None:
        tokens = 1024 if options.tokens is None else options.tokens
        trace = from_profile(profile.read(npz.find(options.like_profile)), tokens, options.seed)
    elif options.tokens is not None:
        raise TraceError("--tokens: goes with --like-profile; a preset has its own lengths")
    else:
        trace = synthesise(one_of("preset", options.like, sorted(PRESETS)), options.seed)
    npz.write(options.out, trace)
    print(f"{options.out}: {size(trace)}; {LOUD}")


def _capture(options: argparse.Namespace) -> None:
    trace = capturing.run(options)
    npz.write(options.out, trace)
    print(f"{options.out}: {size(trace)} of {trace.model}")


COMMANDS: dict[str, Callable[[argparse.Namespace], None]] = {
    "info": _info,
    "split": _split,
    "convert": convert,
    "synth": _synth,
    "capture": _capture,
}

if __name__ == "__main__":
    sys.exit(main())
