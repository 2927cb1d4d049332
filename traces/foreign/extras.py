"""Libraries of the extra `formats`, imported when a format needs one."""

import importlib
from typing import Any

from traces.errors import UserError


def needed(module: str, what: str) -> Any:
    """The module. Raises UserError, one line that names the extra, where it is not installed."""
    try:
        return importlib.import_module(module)
    except ImportError:
        name = module.split(".")[0]
        raise UserError(f"{what} needs {name}, which is not installed: pip install -e .[formats]") from None
