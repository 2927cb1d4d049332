"""What every command line of this project shares: arguments, one-line errors, exit statuses, files written whole.

Exit status 0 done, 2 bad input (one line on stderr that names what is wrong and what would be right), 130 interrupted,
1 a failure of ours (a traceback).
"""

import argparse
import difflib
import os
import sys
import tempfile
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import IO, Any, NoReturn

from traces.errors import UserError
from traces.progress import watched


class Parser(argparse.ArgumentParser):
    """Bad arguments raise UserError like every other bad input; an unknown one is told the nearest that exists."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**{"allow_abbrev": False, **options})

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message}; see {self.prog} --help")

    def parse_args(self, args: Any = None, namespace: Any = None) -> Any:
        found, rest = self.parse_known_args(args, namespace)
        if rest:
            flag = str(rest[0]).split("=")[0]
            self.error(f"{flag}: unknown argument{did_you_mean(flag, self._flags())}")
        return found

    def _flags(self) -> list[str]:
        """Every option, those of the commands below this one too."""
        out: list[str] = []
        for action in self._actions:
            out += action.option_strings
            if isinstance(action, argparse._SubParsersAction):
                for command in action.choices.values():
                    out += command._flags()
        return out


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """`; did you mean X?`, or nothing when no known word is near."""
    near = difflib.get_close_matches(word, list(known), 1, 0.5)
    return f"; did you mean {near[0]}?" if near else ""


def one_of(what: str, name: str, names: Sequence[str]) -> str:
    """`name` if it is one of `names`. Raises UserError that lists them, with the nearest."""
    if name in names:
        return name
    raise UserError(f"{what} {name!r} is unknown{did_you_mean(name, names)}; one of {', '.join(names)} is required")


def guarded(command: Callable[[list[str]], int | None], argv: Sequence[str] | None = None) -> int:
    """Run a command with its arguments; returns the exit status. The last word of every `main`.

    UserError and OSError are one line on stderr and status 2, Ctrl-C is one and 130; whoever stops reading our output
    early has seen enough; any other exception is ours and goes through. Meanwhile stderr says every ten seconds what is
    being done.
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
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    except (UserError, OSError) as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2


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
