"""`python -m sim.rum`, which there is not: one line in the place of Python's own."""

import importlib.util
import sys
from pathlib import Path

from traces.slips import did_you_mean


def commands(package: str) -> list[str]:
    """`sim.run`, ...: every command of a package, none of them imported."""
    found = importlib.util.find_spec(package)
    folder = Path(str(found and found.origin)).parent
    files = {f"{package}.{path.stem}": path for path in sorted(folder.glob("*.py")) if path.stem != "__main__"}
    files |= {f"{package}.{path.parent.name}": path for path in sorted(folder.glob("*/__main__.py"))}
    return [name for name, path in files.items() if "\ndef main(" in path.read_text()]


def refuse_unknown_module() -> None:
    """While `python -m NAME` looks for NAME, which is in the package that calls this: one line where it is not there,
    in the place of Python's own, with the nearest command. Ends the process with status 2."""
    if sys.argv[:1] != ["-m"] or "-m" not in sys.orig_argv[:-1]:
        return
    asked = sys.orig_argv[sys.orig_argv.index("-m") + 1]
    package, _, name = asked.partition(".")
    folder = Path(__file__).parents[1] / package
    if (
        name
        and not (folder / name.replace(".", "/")).is_dir()
        and not (folder / f"{name.replace('.', '/')}.py").is_file()
    ):
        print(
            f"error: {asked}: is no command{did_you_mean(asked, commands(package))}; python -m {package} lists them",
            file=sys.stderr,
        )
        raise SystemExit(2)
