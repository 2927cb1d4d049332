"""Which project made a result: its version, and a hash of its sources, which says so where the version does not."""

import hashlib
from pathlib import Path

from sim import __version__

ROOT = Path(__file__).resolve().parents[2]
FOLDERS = ("sim", "runtime", "traces")  # what parts run; analysis shows what they found
DIGITS = 12


def project(root: Path = ROOT) -> dict[str, str]:
    """{"version", "sources"}: the package's version, and the first hex digits of the SHA-256 over path and bytes of
    every Python file that parts run."""
    digest = hashlib.sha256()
    for path in sorted(path for folder in FOLDERS for path in (root / folder).rglob("*.py")):
        data = path.read_bytes()
        digest.update(f"{path.relative_to(root).as_posix()}\0{len(data)}\0".encode() + data)
    return {"version": __version__, "sources": digest.hexdigest()[:DIGITS]}
