"""The formats that are read and written, as the modules of `formats` say them: a new one is a module there."""

from importlib import import_module
from pathlib import Path
from pkgutil import iter_modules
from typing import TypeVar

from traces.errors import TraceError
from traces.foreign import formats
from traces.foreign.format import Reader, Writer

Said = TypeVar("Said", Reader, Writer)
# The order in which help and errors list them; one that is not here comes after these, by name.
READ = (
    "csv jsonl npz nested-json moe-cache-lab moearc counts-csv counts-json"
    " llamacpp vllm sglang sglang-routed megatron flame trtllm-raw trtllm imatrix sglang-stat moe-infinity"
)
WRITTEN = "sglang eplb moe-infinity flame vllm"


def _said(kind: type[Said], order: list[str]) -> dict[str, Said]:
    said: dict[str, Said] = {}
    for file in iter_modules(formats.__path__):
        module = import_module(f"{formats.__name__}.{file.name}")
        said |= {value.name: value for value in vars(module).values() if isinstance(value, kind)}
    return {name: said[name] for name in (*order, *sorted(said.keys() - set(order)))}


READERS = _said(Reader, READ.split())
WRITERS = _said(Writer, WRITTEN.split())
FLAGS = tuple(sorted({flag for reader in READERS.values() for flag in reader.flags}))


def detected(path: Path) -> str:
    """The name of the one format that a path looks like. Raises TraceError where that is none, or several."""
    if not path.exists():
        raise TraceError(f"{path}: No such file or directory")
    found = [name for name, reader in READERS.items() if reader.detect(path)]
    if len(found) == 1:
        return found[0]
    which = f"looks like {' and like '.join(found)}" if found else "is in no format that can be told by its content"
    raise TraceError(f"{path}: {which}; required: --from, one of {', '.join(READERS)}")
