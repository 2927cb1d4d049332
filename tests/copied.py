"""The sources in a folder of their own, where a test may change them."""

import shutil
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
FOLDERS = ("traces", "sim", "analysis", "runtime", "docs", "tests")


def copy_sources(folder: Path) -> None:
    """What tests import and read; the shipped samples are the same files."""
    left_out = shutil.ignore_patterns("__pycache__", "samples", "results")
    for name in FOLDERS:
        shutil.copytree(ROOT / name, folder / name, ignore=left_out)
    (folder / "traces" / "samples").symlink_to(ROOT / "traces" / "samples")
    shutil.copy(ROOT / "pyproject.toml", folder)
