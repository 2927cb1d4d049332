"""What `import traces` offers."""

from collections.abc import Iterable
from os import PathLike
from typing import Any, overload

from traces.capturing.recorder import Recorder
from traces.format.trace import RoutingTrace

__all__ = ["capture"]

def open(name: str | PathLike[str]) -> RoutingTrace:
    """The trace in a file, or the shipped sample of that name. Raises TraceError, one line."""

@overload
def capture(model: Any, prompts: None = None, *, logits: bool = True, lookahead: int = 3) -> Recorder:
    """A recorder, to be opened with `with` around code that runs the model."""

@overload
def capture(
    model: Any,
    prompts: Iterable[Any],
    *,
    tokenizer: Any = None,
    generate: int = 64,
    batch: int = 8,
    temperature: float = 1.0,
    seed: int = 0,
    logits: bool = True,
    lookahead: int = 3,
    device: str = "auto",
    name: str = "",
    **meta: Any,
) -> RoutingTrace:
    """The trace of a model's routing while it generates after each prompt (texts or token ids)."""
