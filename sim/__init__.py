"""The simulator: choices in core, durations in machines, one record. From Python: docs/python.md.

What `sim.simulate` and the others are stands in `analysis.api`, above this package; it is looked up when it is asked
for, so that `import sim` stays light. This is the one door upward (ARCHITECTURE.md).
"""

import importlib
import sys
from typing import Any

__version__ = "0.1.0"

if sys.argv[:1] == ["-m"]:  # Python is looking for `python -m NAME`: one line where there is no such command
    from traces.listing import refuse_unknown_module

    refuse_unknown_module()

_DOOR = {
    "simulate": "analysis.api.runs:simulate",
    "simulate_many": "analysis.api.runs:simulate_many",
    "compare": "analysis.api.offered:compare",
    "figure": "analysis.api.offered:figure",
    "open_run": "analysis.api.result:open_run",
    "Result": "analysis.api.result:Result",
    "UserError": "traces.errors:UserError",
}
__all__ = [*_DOOR, "__version__"]


def __getattr__(name: str) -> Any:
    if name not in _DOOR:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module, _, attribute = _DOOR[name].partition(":")
    return getattr(importlib.import_module(module), attribute)


def __dir__() -> list[str]:
    return sorted({*globals(), *_DOOR})
