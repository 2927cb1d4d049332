"""The sources in a folder of their own, where a test may change them."""

import compileall
import shutil
from pathlib import Path
from py_compile import PycInvalidationMode

ROOT = Path(__file__).resolve().parents[1]
FOLDERS = ("traces", "sim", "analysis", "runtime", "docs", "tests")
LINKED = ("traces/samples", "analysis/results")


def compiled_sources(folder: Path) -> Path:
    """What tests import and read, bytecode too, in an empty folder; shipped samples and results are the same files."""
    left_out = shutil.ignore_patterns("__pycache__", *(Path(name).name for name in LINKED))
    for name in FOLDERS:
        shutil.copytree(ROOT / name, folder / name, ignore=left_out)
    for name in LINKED:
        (folder / name).symlink_to(ROOT / name)
    shutil.copy(ROOT / "pyproject.toml", folder)
    # told by contents: an edit may be of the same second and size
    compileall.compile_dir(folder, quiet=1, invalidation_mode=PycInvalidationMode.CHECKED_HASH)
    return folder


def copied(sources: Path, folder: Path) -> Path:
    """Compiled sources in another empty folder."""
    return shutil.copytree(sources, folder, symlinks=True, dirs_exist_ok=True)
