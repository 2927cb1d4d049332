"""What an answer needs that not everybody has installed: one line that says so."""

from importlib import import_module

from traces.errors import UserError

EXTRAS = {"pandas": "report", "plotly": "report", "marimo": "notebooks", "nbformat": "notebooks"}  # of pyproject.toml


def needed(what: str, *modules: str) -> None:
    """Raises UserError, one line that names the extra, for the first that is not installed."""
    for module in modules:
        try:
            import_module(module)
        except ImportError:
            extra = EXTRAS[module]
            raise UserError(f"{what} needs {module}: pip install 'moe-offload-sim[{extra}]'") from None
