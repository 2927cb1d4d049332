"""Libraries that not everybody has installed: which extra brings one, in one line."""

import importlib
import sys
from typing import Any

from traces.errors import UserError

# module -> the extra of pyproject.toml that brings it; the smallest, where there are several
EXTRAS = {
    "pandas": "report",
    "plotly": "report",
    "pyarrow": "parquet",
    "safetensors": "formats",
    "torch": "runtime",
    "scipy": "runtime",
    "tokenizers": "train",
    "transformers": "hf",
    "lm_eval": "lm-eval",
    "ray": "ray",
    "marimo": "notebooks",
    "nbformat": "notebooks",
}


def needed(module: str, what: str, extra: str = "") -> Any:
    """The module. Raises UserError, one line that names the extra (of the library, or one that brings more that `what`
    needs), where it is not installed."""
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        raise not_installed(error, what, extra) from None


def not_installed(error: ModuleNotFoundError, what: str, extra: str = "") -> UserError:
    """One line for a library that is missing. Raises the error again where no extra brings it: that is ours."""
    name = str(error.name).split(".")[0]
    if name not in EXTRAS:
        raise error
    return UserError(
        f"{what} needs {name}, which is not installed: pip install 'moe-offload-sim[{extra or EXTRAS[name]}]'"
    )


def refuse_what_is_missing(package: str) -> None:
    """Called by a package whose commands import libraries of extras where they begin, when it is imported: where that
    is for `python -m PACKAGE.COMMAND`, a library that the command lacks is one line and exit status 2."""
    if sys.argv[:1] != ["-m"] or "-m" not in sys.orig_argv:
        return
    command = sys.orig_argv[sys.orig_argv.index("-m") + 1]
    if not command.startswith(f"{package}."):
        return
    try:
        importlib.import_module(command)
    except ModuleNotFoundError as error:
        print(f"error: {not_installed(error, f'python -m {command}')}", file=sys.stderr)
        raise SystemExit(2) from None
    del sys.modules[command]  # it is about to run as __main__
