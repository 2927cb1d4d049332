"""What every command line of this project shares: arguments, one-line errors, exit statuses, files written whole.

Exit status 0 done, 2 bad input (one line on stderr that names what is wrong and what would be right), 130 interrupted,
1 a failure of ours (a traceback).
"""

import argparse
import os
import re
import sys
import tempfile
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import IO, Any, NoReturn

from traces import slips
from traces.errors import UserError
from traces.extras import not_installed
from traces.progress import watched
from traces.slips import did_you_mean

INTERRUPTED = 130  # exit status of what Ctrl-C ended

SCRIPT = "moe-offload-sim"  # the console script; `python -m sim` is the same (sim.__main__)
STARTED_BY = (f"{SCRIPT} ", "python -m sim ")  # begins sys.argv[0] where one of these runs a command


def typed(command: str) -> str:
    """`python -m sim.run` as the user typed it: perhaps `moe-offload-sim run`. What follows stays."""
    if not sys.argv[0].startswith(STARTED_BY) or command.startswith(sys.argv[0]):
        return command
    return re.sub(r"^python -m \S+", lambda _: sys.argv[0], command)


class Parser(argparse.ArgumentParser):
    """Bad arguments raise UserError like every other bad input, with what was probably meant (`traces.slips`).

    example: words behind `prog` that make a command, shown in the help and where something is missing.
    """

    def __init__(self, *, example: str = "", **options: Any) -> None:
        name = {"prog": typed(options["prog"])} if options.get("prog") else {}
        super().__init__(**{"allow_abbrev": False, **options, **name})
        self.example = f"{self.prog} {example}" if example else ""
        self.epilog = self.epilog or (f"such as: {self.example}" if example else None)
        self.given: list[str] = []  # the words that are being parsed
        self.named: dict[str, Callable[[str], bool]] = {}  # by flag: whether a word that stands alone was meant as it

    def error(self, message: str) -> NoReturn:
        strange = slips.strange(self, self.given) if "required" in message else None
        told = slips.told(self, message, self.example)
        raise UserError(told if strange is None else slips.unknown(self, self.given, strange))

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        self.given = list(sys.argv[1:] if args is None else args)
        if any(action.nargs == "?" and not action.option_strings for action in self._actions):
            args = slips.gathered(self, self.given)
        if (twice := slips.repeated(self, self.given)) is not None:
            raise UserError(twice)
        found, rest = super().parse_known_args(args, namespace)
        if rest:
            raise UserError(slips.unknown(self, self.given, str(rest[0])))
        return found, rest

    def _get_value(self, action: argparse.Action, text: str) -> Any:
        try:
            return super()._get_value(action, text)
        except argparse.ArgumentError:
            if action.type not in (int, float):
                raise
            raise argparse.ArgumentError(action, slips.no_number(text, action.type is int)) from None

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        if action.choices is not None and value not in action.choices:
            known = [str(each) for each in action.choices]
            wrong = f"{value!r} is unknown{did_you_mean(str(value), known)}; one of {', '.join(known)} is required"
            raise argparse.ArgumentError(action, wrong)


def one_of(what: str, name: str, names: Sequence[str]) -> str:
    """`name` if it is one of `names`. Raises UserError that lists them, with the nearest."""
    if name in names:
        return name
    raise UserError(f"{what} {name!r} is unknown{did_you_mean(name, names)}; one of {', '.join(names)} is required")


def guarded(command: Callable[[list[str]], int | None], argv: Sequence[str] | None = None) -> int:
    """Run a command with its arguments; returns the exit status. The last word of every `main`.

    UserError, OSError and a missing library of an extra are one line on stderr and status 2, Ctrl-C is one and 130;
    whoever stops reading our output early has seen enough; any other exception is ours and goes through. Meanwhile
    stderr says every ten seconds what is being done.
    """
    try:
        with watched():
            status = command(list(sys.argv[1:] if argv is None else argv))
        if sys.stdout is not None:  # None: whoever started us closed it
            sys.stdout.flush()
        return status or 0
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except ModuleNotFoundError as error:
        print(f"error: {not_installed(error, 'what is asked for')}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return INTERRUPTED
    except (UserError, OSError) as error:
        named = isinstance(error, OSError) and error.filename is not None and not error.filename2
        text = f"{error.filename}: {error.strerror}" if isinstance(error, OSError) and named else str(error)
        print(f"error: {' '.join(text.split())}", file=sys.stderr)
        return 2


def out_file(path: str | Path, force: bool = False) -> Path:
    """Where a file goes that a command writes. Raises UserError where it is there already (unless `force`), where a
    folder is in its place, or where there is no folder to hold it."""
    file = Path(path)
    if not str(path).strip() or file.is_dir():
        raise UserError(f"out: {str(path)!r}: must name a file")
    if not file.absolute().parent.is_dir():
        raise UserError(f"out: {path}: its folder is not there (No such file or directory); make {file.parent} first")
    if not os.access(file.absolute().parent, os.W_OK | os.X_OK):
        raise UserError(f"out: {path}: its folder is not ours to write to; give another --out")
    if file.exists() and not force:
        raise UserError(f"out: {path}: is there already; give another name, or --force to replace it")
    return file


def add_force(command: Any) -> None:
    """--force of a command that writes files: without it none is replaced."""
    command.add_argument("--force", action="store_true", help="replace what is there under the name")


def out_folder(path: str | Path, keep: Iterable[str] = ()) -> Path:
    """Where `--out DIR` says that files go; whoever writes makes it. keep: files that are not to be replaced.

    Raises UserError where a file is in its place, or where one of `keep` is in it."""
    folder = Path(path)
    if not str(path).strip():
        raise UserError(f"out: {str(path)!r}: must name a folder")
    if (folder.exists() or folder.is_symlink()) and not folder.is_dir():
        raise UserError(f"out: {path}: is a {'file' if folder.exists() else 'dangling link'}; must be a folder")
    above = next((parent for parent in (folder, *folder.parents) if parent.exists()), folder)
    if not above.is_dir() or not os.access(above, os.W_OK | os.X_OK):
        raise UserError(f"out: {path}: no folder can be made there: {above} is not ours to write to")
    there = [name for name in keep if (folder / name).exists()]
    if there:
        raise UserError(f"out: {path}: holds results already ({', '.join(there)}); give another DIR, or --force")
    return folder


def replace(path: str | Path, write: Callable[[IO[bytes]], object]) -> None:
    """Write a file whole or not at all: under a temporary name beside it, then renamed."""
    path = Path(path)
    handle, draft = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            write(file)
        os.chmod(draft, 0o644)
        os.replace(draft, path)
    except BaseException:
        os.unlink(draft)
        raise


def write_bytes(path: str | Path, data: bytes) -> None:
    """`replace` for what is all in memory."""
    replace(path, lambda file: file.write(data))
