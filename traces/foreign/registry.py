"""The formats that are read and written, as the modules of `formats` say them: a new one is a module there."""

import sys
import zipfile
from collections.abc import Iterator
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from pkgutil import iter_modules
from typing import TypeVar

from traces.errors import TraceError, UserError
from traces.foreign import formats
from traces.foreign.format import Reader, Writer
from traces.foreign.json_lines import BOM
from traces.foreign.models import Model
from traces.plugins import Plugin, plugins

Said = TypeVar("Said", Reader, Writer)
# The order in which help and errors list them; one that is not here comes after these, by name.
READ = (
    "csv jsonl npz nested-json moe-cache-lab moearc llamacpp vllm sglang sglang-routed hf megatron flame trtllm-raw "
    "bigmoeonedge expert-selection parquet counts-csv counts-json trtllm imatrix sglang-stat moe-infinity"
)
WRITTEN = "parquet sglang eplb moe-infinity flame vllm"


def _said(kind: type[Said], order: list[str]) -> dict[str, Said]:
    said: dict[str, Said] = {}
    for file in iter_modules(formats.__path__):
        module = import_module(f"{formats.__name__}.{file.name}")
        said |= {value.name: value for value in vars(module).values() if isinstance(value, kind)}
    return {name: said[name] for name in (*order, *sorted(said.keys() - set(order)))}


READERS = _said(Reader, READ.split())
WRITERS = _said(Writer, WRITTEN.split())
FLAGS = tuple(sorted({flag for reader in READERS.values() for flag in reader.flags}))


GROUP = "readers"
UNKNOWN = Model("")


def names() -> list[str]:
    """Of all readers: ours, and those that other distributions bring, of use or not."""
    return [*READERS, *(name for name in plugins(GROUP) if name not in READERS)]


def reader_of(name: str) -> Reader:
    """The reader of one of `names`. Raises TraceError, one line that names its distribution, for a plug-in that is
    wrong."""
    return READERS[name] if name in READERS else _plugged(plugins(GROUP)[name])


def _plugged(plugin: Plugin) -> Reader:
    try:
        found = plugin.load()
        if not isinstance(found, Reader):
            raise plugin.wrong(f"is {type(found).__name__}; must be a traces.foreign.format.Reader")
    except UserError as error:
        raise TraceError(str(error)) from None
    return replace(found, name=plugin.name)


def _all() -> Iterator[Reader]:
    """Every reader that can be used; of a plug-in that cannot a line says why, and the others go on."""
    for name in names():
        try:
            yield reader_of(name)
        except TraceError as error:
            print(f"! {error}", file=sys.stderr)


def detected(path: Path, model: Model = UNKNOWN, columns: bool = False) -> str:
    """The name of the one format that a path looks like, of a model of which this much is known; columns: its names are
    told, so that it need not have known ones.

    Raises TraceError where it looks like none, and where it could be several: what is ambiguous is not guessed."""
    if not path.exists():
        raise TraceError(f"{path}: No such file or directory")
    found = [reader for reader in _all() if reader.detect(path)]
    if columns and not found:
        found = [READERS[_of_named_columns(path)]]
    fitting = [reader for reader in found if reader.fits(path, model)] or found
    could_be = [f"{reader.doc} (--from {reader.name})" for reader in fitting]
    if len(fitting) == 1:
        besides = fitting[0].could_be(path, model)
        if not besides:
            return fitting[0].name
        could_be.append(besides)
    if not found:
        wrong = "is in no format that can be told by its content"
        raise TraceError(f"{path}: {wrong}; required: --from, one of {', '.join(names())}")
    raise TraceError(f"{path}: could be {', or '.join(could_be)}; required: --from, which decides")


def _of_named_columns(path: Path) -> str:
    """Which of the formats with columns of anybody's names a file is: arrays, JSON, or else CSV."""
    if not path.is_file() or zipfile.is_zipfile(path):
        return "npz"
    with path.open("rb") as file:
        begin = file.read(64).removeprefix(BOM).lstrip()
    return "jsonl" if begin[:1] in (b"{", b"[") else "csv"
