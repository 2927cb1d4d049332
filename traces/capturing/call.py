"""`traces.capture`: the recorder from Python, open around a model's own code, or one call from prompts to a trace."""

from importlib import import_module
from typing import Any

from traces.errors import UserError

EXTRAS = "pip install 'moe-offload-sim[hf,train]'"


def capture(model: Any, **options: Any) -> Any:
    """A recorder to be opened with `with`."""
    try:
        recorder: Any = import_module("traces.capturing.recorder")
    except ModuleNotFoundError as error:
        raise UserError(f"capture needs {error.name}, which is not installed; {EXTRAS}") from error
    return recorder.Recorder(model, **options)
