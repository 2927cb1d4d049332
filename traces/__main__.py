"""Command line of the traces: `python -m traces info | split | convert | card | synth | capture`.

`info` looks at frequency profiles too; `convert` and `card` are in traces.foreign, `capture` in traces.capturing.
"""

import argparse
import json
import os
import re
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from traces.capturing import command as capturing
from traces.command import Parser, add_force, guarded, one_of, out_file
from traces.errors import TraceError
from traces.foreign import card
from traces.foreign.convert import add_arguments, convert
from traces.format import npz, profile
from traces.format.groups import parts
from traces.format.trace import split
from traces.progress import doing
from traces.statistics.describe import LOUD, describe, describe_profile, marked, size
from traces.statistics.stats import info, info_of_profile

EXAMPLE = "python -m traces info"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command. Returns the exit status: 0 done, 2 bad input (one line on stderr)."""
    return guarded(_command, arguments)


def _command(arguments: list[str]) -> None:
    by = any(word.partition("=")[0] == "--by" for word in arguments)
    helps = "-h" in arguments or "--help" in arguments
    options = _parser(by, helps).parse_args(_known_command(arguments))
    doing(f"traces {options.command} {getattr(options, 'file', None) or ''}".rstrip(), at_once=False)
    COMMANDS[options.command](options)


def _known_command(arguments: list[str]) -> list[str]:
    """The arguments, if they begin with a command or an option."""
    if not arguments:
        raise TraceError(f"no command; one of {', '.join(COMMANDS)} is required, such as: {EXAMPLE} mixtral.npz")
    if not arguments[0].startswith("-") and arguments[0] not in COMMANDS:
        if npz.is_name(arguments[0]):
            raise TraceError(f"{arguments[0]}: is no command; did you mean {EXAMPLE} {arguments[0]}?")
        one_of("command", arguments[0], list(COMMANDS))
    return arguments


def _parser(by: bool, helps: bool = False) -> Parser:
    """by: `split` is asked for a file for each group, and so takes no names of two; helps: help is asked for."""
    parser = Parser(prog="python -m traces", description="Routing traces: look at, divide, import, generate, capture.")
    commands = parser.add_subparsers(dest="command", required=True, parser_class=Parser)
    file_help = "a .npz file, or the name of a shipped sample"

    command = commands.add_parser("info", help="shape, provenance and statistics of a trace", example="mixtral.npz")
    command.add_argument("file", help=file_help)
    command.add_argument("--json", action="store_true", help="print one JSON object")

    command = commands.add_parser("split", help="divide a trace by request: into two, or a file for each group")
    command.add_argument("file", help=file_help)
    how = command.add_mutually_exclusive_group(required=True)
    how.add_argument("--fraction", type=float, help="share of the requests for OUT_A")
    how.add_argument("--by", metavar="KEY", help="a group of the trace's meta, such as domain; or request, for each")
    command.add_argument("--seed", type=int, default=0, help="of --fraction")
    command.add_argument("--out", metavar="DIR", help="of --by: FILE-VALUE.npz for each value (default: FILE-by-KEY)")
    add_force(command)
    if not by:
        command.add_argument("out_a", metavar="OUT_A", nargs="?", help="default: FILE-a.npz")
        command.add_argument("out_b", metavar="OUT_B", nargs="?", help="default: FILE-b.npz")

    command = commands.add_parser("convert", help="from and to the files of other tools: docs/formats.md")
    add_arguments(command, helps)

    card.add_arguments(commands.add_parser("card", help="a trace as a data set, with its card, to publish"))

    command = commands.add_parser("synth", help="generate a synthetic trace")
    shape = command.add_mutually_exclusive_group(required=True)
    shape.add_argument("--like", metavar="NAME", help="a preset, any model of the catalog, or a model's file")
    shape.add_argument("--like-profile", metavar="FILE", help="a frequency profile, whose popularity it gets")
    shape.add_argument("--list", action="store_true", help="which models are fitted, and which generic")
    command.add_argument("--uniform", action="store_true", help="the control: that shape, every token draws anew")
    command.add_argument("--requests", type=int, metavar="N", help="how many (default: the preset's)")
    command.add_argument("--prompt", type=int, metavar="N", help="prompt tokens of each (default: the preset's)")
    command.add_argument("--generated", type=int, metavar="N", help="generated tokens of each (default: the preset's)")
    command.add_argument("--tokens", type=int, metavar="N", help="of a profile's trace (default: 1024)")
    command.add_argument("--seed", type=int, default=0)
    command.add_argument("--out", metavar="FILE", help="default: NAME-synthetic.npz")
    add_force(command)

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
    if options.by is not None:
        _split_by(options)
        return
    if options.out is not None:
        raise TraceError(f"--out: {options.out}: goes with --by; --fraction writes OUT_A and OUT_B")
    path = npz.find(options.file)
    if options.out_a is not None and options.out_b is None:
        raise TraceError(f"OUT_B: missing; beside {options.out_a}, or give neither")
    both = zip((options.out_a, options.out_b), "ab", strict=True)
    out_a, out_b = (f"{path.stem}-{part}.npz" if given is None else given for given, part in both)
    if os.path.realpath(out_a) == os.path.realpath(out_b):
        raise TraceError(f"OUT_A and OUT_B are the same file, {out_a}; two are required")
    first, second = split(npz.read(path), options.fraction, options.seed)
    _refuse_there((out_a, out_b), options.force)
    npz.write_all([(out_a, first), (out_b, second)])
    print(f"{out_a}: {size(first)}\n{out_b}: {size(second)}")


def _refuse_there(files: Iterable[str | Path], force: bool) -> None:
    """None of several files is replaced, but by --force; what else is wrong with a place the writer says."""
    for file in files:
        if not force and os.path.isfile(file):
            out_file(file)


def _split_by(options: argparse.Namespace) -> None:
    path = npz.find(options.file)
    folder = Path(options.out or f"{path.stem}-by-{options.by}")
    if not folder.absolute().parent.is_dir() or (folder.exists() and not folder.is_dir()):
        raise TraceError(f"--out: {folder}: must be a folder, or a new one in a folder that is there")
    files = {}
    for value, part in parts(npz.read(path), options.by):
        name = folder / f"{path.stem}-{re.sub(r'[^A-Za-z0-9._-]+', '-', value)}.npz"
        if name in files:
            raise TraceError(f"--by: {options.by}: two values make the name {name.name}; they must differ in letters")
        files[name] = part
    _refuse_there(files, options.force)
    new = not folder.exists()
    folder.mkdir(exist_ok=True)
    try:
        npz.write_all(list(files.items()))
    except BaseException:
        if new:
            folder.rmdir()
        raise
    print("\n".join(f"{name}: {size(part)}" for name, part in files.items()))


def _synth(options: argparse.Namespace) -> None:
    from traces.generic import listing, synthesise
    from traces.synthetic import from_profile

    if options.list:
        print(listing())
        return
    if options.like_profile is not None:
        for flag in ("uniform", "requests", "prompt", "generated"):
            if getattr(options, flag) not in (None, False):
                raise TraceError(f"--{flag}: goes with --like")
        tokens = 1024 if options.tokens is None else options.tokens
        trace = from_profile(profile.read(npz.find(options.like_profile)), tokens, options.seed)
    elif options.tokens is not None:
        raise TraceError("--tokens: goes with --like-profile; --like has --requests, --prompt and --generated")
    else:
        lengths = {"prompt": options.prompt, "generated": options.generated}
        trace = synthesise(options.like, options.seed, options.requests, options.uniform, **lengths)
    name = Path(options.like_profile or options.like).stem
    out = out_file(options.out or f"{name}-{'uniform' if options.uniform else 'synthetic'}.npz", options.force)
    npz.write(out, trace)
    print(f"{out}: {size(trace)}; {LOUD}{marked(trace.meta)}")


def _capture(options: argparse.Namespace) -> None:
    out = out_file(options.out or f"{Path(options.model).name}-capture.npz", options.force)
    trace = capturing.run(options)
    npz.write(out, trace)
    print(f"{out}: {size(trace)} of {trace.model}")


COMMANDS: dict[str, Callable[[argparse.Namespace], None]] = {
    "info": _info,
    "split": _split,
    "convert": convert,
    "card": card.card,
    "synth": _synth,
    "capture": _capture,
}

if __name__ == "__main__":
    sys.exit(main())
