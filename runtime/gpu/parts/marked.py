"""python -m runtime.gpu.parts.marked cuda|cpu: the tests that are marked gpu, without any plugin of pytest; on the CPU
the same tests on a simulated GPU.

Exit status NOT_HERE where pytest, what the tests need of it, or the tests themselves are not on this machine, and where
no test passed though none failed.
"""

import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from xml.etree import ElementTree

from runtime.gpu.parts import NOT_HERE

ROOT = Path(__file__).resolve().parents[3]
NEEDED = ("pytest", "hypothesis")
FLAGS = ("-p", "no:cacheprovider", "-o", "addopts=", "-W", "default", "-q", "-rA", "--tb=short")
CHOSEN = {"cuda": ("-m", "gpu"), "cpu": ("-k", "stand-in")}  # the parameter of the fixture `accelerator`
FINE = (0, 5)  # of pytest: none failed, none was found


def lacking() -> str:
    """What is not here, or nothing."""
    names = [name for name in NEEDED if importlib.util.find_spec(name) is None]
    return f"{', '.join(names)}: not installed" if names else "" if (ROOT / "tests").is_dir() else "tests/: not here"


def files() -> list[str]:
    """Test files that may have a test marked gpu, by itself or by the fixture of that name: to ask pytest of all files
    would import all that the project can."""
    named = re.compile(r"\bmark\.gpu\b|\baccelerator: ")
    return sorted(str(path) for path in (ROOT / "tests").glob("test_*.py") if named.search(path.read_text()))


def passed(report: Path) -> tuple[int, list[str]]:
    """How many tests passed by pytest's report of none that failed, a JUnit XML file, and why others were skipped."""
    cases = list(ElementTree.parse(report).iter("testcase"))
    whys = {found.get("message", "") for case in cases for found in case.iter("skipped")}
    return sum(case.find("skipped") is None for case in cases), sorted(whys)


def main(device: str) -> int:
    """pytest's exit status, or NOT_HERE."""
    if why := lacking():
        print(why)
        return NOT_HERE
    environment = {**os.environ, "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
    with TemporaryDirectory() as folder:
        report = Path(folder) / "report.xml"
        command = [sys.executable, "-m", "pytest", *FLAGS, *CHOSEN[device], f"--junitxml={report}", *files()]
        status = subprocess.run(command, cwd=ROOT, env=environment).returncode
        count, whys = passed(report) if status in FINE else (0, [])
    if status in FINE and count == 0:
        print(f"no test passed: {'; '.join(whys) or 'none was found'}")
        return NOT_HERE
    return status


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
