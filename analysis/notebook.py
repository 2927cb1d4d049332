"""python -m analysis.notebook NAME [--trace FILE]: run a notebook and print what it finds; --html, --ipynb: keep it.

`python analysis/notebooks/NAME.py` is the same for that one. A page (--html) is one file that asks no host for
anything.
Exit status 0 done, 2 bad input (one line on stderr, nothing written), 1 a failure of ours.
"""

import sys
from collections.abc import Sequence
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from typing import Any

from traces.command import Parser, add_force, guarded, one_of, out_file, write_bytes
from traces.errors import UserError
from traces.extras import needed
from traces.format import npz
from traces.progress import doing

FOLDER = Path(__file__).parent / "notebooks"


def parser(own: Path | None) -> Parser:
    """own: the notebook that is run as a script, which needs no name."""
    prog = "python -m analysis.notebook" if own is None else f"python {own.name}"
    out = Parser(prog=prog, description="Run a notebook from top to bottom and print what it finds.")
    if own is None:
        out.add_argument("notebook", metavar="NAME|FILE.py", nargs="?", help="one of --list, or a copy of yours")
        out.add_argument("--list", action="store_true", help="the notebooks there are, and exit")
    out.add_argument("--trace", metavar="FILE", help="a trace of yours, or a shipped sample (default: the notebook's)")
    out.add_argument("--html", metavar="FILE", help="keep it as one page that needs no network, too")
    out.add_argument(
        "--ipynb", metavar="FILE", help="keep it as a Jupyter notebook with its outputs (this alone prints nothing)"
    )
    add_force(out)
    return out


def main(argv: Sequence[str] | None = None, app: Any = None, file: str = "") -> int:
    """The command line; returns the exit status. app, file: of a notebook that is run as a script."""
    return guarded(lambda words: _command(words, app, Path(file) if file else None), argv)


def _command(argv: list[str], app: Any, own: Path | None) -> None:
    args = parser(own).parse_args(argv)
    if own is None and args.list:
        print("\n".join(f"{path.stem:<22} {_title(path)}" for path in notebooks()))
        return
    if own is None and not args.notebook:
        raise UserError(f"NAME: missing; one of {', '.join(path.stem for path in notebooks())} is required")
    path = own or _found(args.notebook)
    for name in filter(None, (args.html, args.ipynb)):
        out_file(name, args.force)
    if args.trace:
        npz.find(args.trace)
    for module in ("marimo", "pandas", "plotly", *["nbformat"] * bool(args.ipynb)):
        needed(module, "a notebook")
    doing(f"running {path.stem}")
    if args.ipynb:
        _keep(args.ipynb, _jupyter(path, args.trace))
    if args.html or not args.ipynb:
        _shown(app or _loaded(path), path, args.trace, args.html)


def _shown(app: Any, path: Path, trace: str | None, html: str | None) -> None:
    """Run it, print what it found and, if asked, keep it as a page."""
    from analysis.pages.notebook import figures, page, text

    outputs, defs = app.run(defs={"TRACE": trace} if trace else {})
    if trace and "TRACE" not in defs:
        raise UserError(f"{path}: no cell of it is called TRACE, so --trace changes nothing")
    print(text(outputs))
    if html:
        _keep(html, page(_title(path), outputs).encode())
    elif figures(outputs):
        again = f"{path.stem if path.parent == FOLDER else path}{f' --trace {trace}' if trace else ''}"
        n = figures(outputs)
        what = f"{n} figures" if n > 1 else "figure"
        print(f"\nIts {what}: python -m analysis.notebook {again} --html {path.stem}.html")


def _keep(name: str, content: bytes) -> None:
    write_bytes(name, content)
    print(f"{name}: {len(content) / 1e6:.1f} MB", file=sys.stderr)


def _jupyter(path: Path, trace: str | None) -> bytes:
    from analysis.pages.jupyter import exported

    return exported(path, trace)


def notebooks() -> list[Path]:
    """Those that are shipped, by name."""
    return sorted(FOLDER.glob("*.py"))


def _title(path: Path) -> str:
    """What its app is called, read and not run."""
    return path.read_text().partition('app_title="')[2].partition('"')[0] or path.stem


def _found(name: str) -> Path:
    """The file of a notebook. Raises UserError."""
    if not name.endswith(".py"):
        return FOLDER / f"{one_of('notebook', name, [path.stem for path in notebooks()])}.py"
    if not Path(name).is_file():
        raise UserError(f"{name}: no such file")
    return Path(name)


def _loaded(path: Path) -> Any:
    """The app of a file, which runs nothing yet. Raises UserError where there is none."""
    spec = spec_from_file_location(path.stem, path)
    assert spec and spec.loader, path
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    if not hasattr(module, "app"):
        raise UserError(f"{path}: is no notebook: it has no `app`, as marimo writes one")
    return module.app


if __name__ == "__main__":
    sys.exit(main())
