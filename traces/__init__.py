"""Routing traces: what they are (`format`), what they say (`statistics`), where they come from (the other rooms).

`traces.open` and `traces.capture` are looked up when they are asked for: `import traces` stays light, and no name of
this module takes the place of Python's own `open`.
"""

import importlib
from typing import Any

_DOOR = {"open": "traces.format.npz:open_trace", "capture": "traces.capturing.call:capture"}
__all__ = ["capture"]  # `from traces import *` leaves Python's `open` alone


def __getattr__(name: str) -> Any:
    if name not in _DOOR:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module, _, attribute = _DOOR[name].partition(":")
    return getattr(importlib.import_module(module), attribute)


def __dir__() -> list[str]:
    return sorted({*globals(), *_DOOR})
