"""python -m runtime.gpu.parts.marked: the tests that are marked gpu, without any plugin of pytest.

Exit status NOT_HERE where pytest, what the tests need of it, or the tests themselves are not on this machine.
"""

import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path

from runtime.gpu.parts import NOT_HERE

ROOT = Path(__file__).resolve().parents[3]
NEEDED = ("pytest", "hypothesis")
FLAGS = ("-p", "no:cacheprovider", "-o", "addopts=", "-W", "default", "-q", "-rA", "-m", "gpu", "--tb=short")


def lacking() -> str:
    """What is not here, or nothing."""
    names = [name for name in NEEDED if importlib.util.find_spec(name) is None]
    return f"{', '.join(names)}: not installed" if names else "" if (ROOT / "tests").is_dir() else "tests/: not here"


def files() -> list[str]:
    """Test files that may have a test marked gpu, by itself or by the fixture of that name: to ask pytest of all files
    would import all that the project can."""
    named = re.compile(r"\bmark\.gpu\b|\baccelerator: ")
    return sorted(str(path) for path in (ROOT / "tests").glob("test_*.py") if named.search(path.read_text()))


def main() -> int:
    """pytest's exit status, or NOT_HERE."""
    if why := lacking():
        print(why)
        return NOT_HERE
    environment = {**os.environ, "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
    return subprocess.run([sys.executable, "-m", "pytest", *FLAGS, *files()], cwd=ROOT, env=environment).returncode


if __name__ == "__main__":
    sys.exit(main())
