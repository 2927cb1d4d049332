"""The one file to send back: what the parts found, the page, and the records under plain names; small by construction.

Only figures go in: files that are told by their ending to be logs, tables, records or traces of time; weights, routing
traces and checkpoints are neither.
"""

import tarfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import IO

from traces.command import replace

NAME = "gpu.tar.gz"
LIMIT_BYTES = 9_500_000  # of the files before they are compressed, which bounds the archive
ENDINGS = (".json", ".log", ".md", ".toml", ".gz")


def pack(out: Path, folders: Iterable[Path], plain: Mapping[str, Path], limit_bytes: int = LIMIT_BYTES) -> list[str]:
    """Write out/NAME with folders of `out` and with `plain`, {name in the archive: file}: smallest files first, until
    the limit. Returns the names of those that did not fit."""
    found = {str(path.relative_to(out)): path for folder in folders for path in folder.rglob("*") if _goes(path)}
    found |= {name: path for name, path in plain.items() if path.is_file()}
    kept, left, room = [], [], limit_bytes
    for name, path in sorted(found.items(), key=lambda item: (item[1].stat().st_size, item[0])):
        size = path.stat().st_size
        if size <= room:
            room -= size
            kept.append(name)
        else:
            left.append(name)
    replace(out / NAME, lambda file: _write(file, {name: found[name] for name in sorted(kept)}))
    return sorted(left)


def _goes(path: Path) -> bool:
    return path.suffix in ENDINGS and path.is_file() and not path.is_symlink()


def _write(file: IO[bytes], found: Mapping[str, Path]) -> None:
    with tarfile.open(fileobj=file, mode="w:gz") as tar:
        for name, path in found.items():
            tar.add(path, f"gpu/{name}", recursive=False)
