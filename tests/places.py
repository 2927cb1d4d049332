"""Empty environments outside the checkout, where a wheel of these sources is installed."""

import hashlib
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

from tests.blocks import ROOT

KEPT_OUT = ("PYTHONPATH", "NUMBA_CACHE_DIR", "MOE_OFFLOAD_SIM_QUIET", "VIRTUAL_ENV", "PYTHONSTARTUP")


class Place(NamedTuple):
    """An environment (its folder, what its processes have in theirs) and where its files are."""

    venv: Path
    env: dict[str, str]
    work: Path

    @property
    def python(self) -> str:
        return str(self.venv / "bin" / "python")

    @property
    def packages(self) -> Path:
        """Where wheels are unpacked."""
        return next(self.venv.glob("lib/python*/site-packages"))

    def within(self, name: str) -> "Place":
        """The same with a new folder for files."""
        (self.work / name).mkdir()
        return self._replace(work=self.work / name)

    def install(self, what: str) -> None:
        """By pip, in the versions of constraints.txt."""
        words = [self.python, "-m", "pip", "install", "-q", what]
        subprocess.run(words, check=True, env=self.env, cwd=self.work, stderr=subprocess.DEVNULL)


def here(work: Path) -> Place:
    """The environment that this process has."""
    return Place(Path(sys.prefix), {**os.environ, "PYTHONPATH": str(ROOT)}, work)


def empty_place(folder: Path) -> Place:
    """A new virtual environment and a home with nothing in it; packages come from where they always do."""
    for name in ("home", "cache", "work"):
        (folder / name).mkdir(parents=True)
    subprocess.run([sys.executable, "-m", "venv", folder / "venv"], check=True)
    env = {name: value for name, value in os.environ.items() if name not in KEPT_OUT}
    env |= {
        "PATH": f"{folder / 'venv' / 'bin'}:{os.environ['PATH']}",
        "HOME": str(folder / "home"),
        "XDG_CACHE_HOME": str(folder / "cache"),
        "PIP_CACHE_DIR": os.environ.get("PIP_CACHE_DIR", str(Path.home() / ".cache" / "pip")),
        "PIP_CONSTRAINT": str(ROOT / "constraints.txt"),
        "PIP_DISABLE_PIP_VERSION_CHECK": "1",
    }
    return Place(folder / "venv", env, folder / "work")


def wheel(folder: Path) -> Path:
    """Built of the sources that git knows: no leftovers of other builds are in it."""
    names = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, check=True, capture_output=True, text=True).stdout
    for name in filter(None, names.split("\0")):
        (folder / "sources" / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(ROOT / name, folder / "sources" / name)
    words = ["pip", "wheel", "-q", "--disable-pip-version-check", "--no-deps", "-w", str(folder)]
    subprocess.run([sys.executable, "-m", *words, str(folder / "sources")], check=True)
    return next(folder.glob("*.whl"))


def compile_as_here(place: Place) -> None:
    """The checkout's compiled machine becomes the place's. numba knows a source by its folder and time of change."""
    from sim.core.jit import CACHE_DIR
    from tests.machine import is_compiled

    assert is_compiled()
    cache = Path(place.env["XDG_CACHE_HOME"]) / "moe-offload-sim" / CACHE_DIR.name
    for file in CACHE_DIR.glob("*.o"):  # ours (sim.core.kept): by its name, wherever the sources lie
        cache.mkdir(parents=True, exist_ok=True)
        shutil.copy2(file, cache)
    for room in ("core", "machines"):
        ours, theirs = ROOT / "sim" / room, place.packages / "sim" / room
        shutil.copytree(CACHE_DIR / _cached(ours), cache / _cached(theirs), dirs_exist_ok=True)
        for path in ours.glob("*.py"):
            assert path.read_bytes() == (theirs / path.name).read_bytes()
            os.utime(theirs / path.name, ns=(path.stat().st_atime_ns, path.stat().st_mtime_ns))


def _cached(folder: Path) -> str:
    """Where in its cache numba keeps what it compiled of a folder's files (numba.core.caching)."""
    return f"{folder.name}_{hashlib.sha1(str(folder).encode()).hexdigest()}"
