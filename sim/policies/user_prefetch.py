"""A user's own prefetcher: a function of trace and steps, or a class that predicts, whose answer is checked."""

import inspect
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np

from sim.errors import SpecError
from sim.fit.prediction import Prediction
from sim.policies.compiled import arguments, built
from sim.policies.kinds import Value
from sim.steps import Steps
from traces.format.trace import RoutingTrace


class UserPredictor:
    """A predictor of the user: trace in, lists out. made: `f(trace, steps, **given)`, or a class, constructed with what
    is given, of `predict(trace, steps)` and perhaps `fit(calibration)`, or of `__call__(trace, steps)`."""

    def __init__(self, name: str, made: Callable[..., Any], **given: Value) -> None:
        self.name, self.is_class = name, inspect.isclass(made)
        self.made: Any = built(made, given) if isinstance(made, type) else partial(made, **given)
        self.fitted = self.is_class and hasattr(made, "fit")

    def fit(self, calibration: RoutingTrace) -> None:
        """Lets a class learn from the calibration trace. Raises SpecError where it fails, one line."""
        self._asked("fit", self.made.fit, calibration)

    def predict(self, trace: RoutingTrace, steps: Steps) -> Prediction:
        """What it returns, checked. Raises SpecError where it fails or that is no use, one line."""
        found = self._asked("", getattr(self.made, "predict", self.made), trace, steps)
        if not isinstance(found, Prediction):
            if not isinstance(found, tuple) or len(found) not in (2, 3):
                raise SpecError(f"prefetch: {self.name}: returns {type(found).__name__}; must return (lists, row)")
            found = Prediction(*map(np.asarray, found))
        wrong = _wrong(found, trace, len(steps.row))
        if wrong:
            raise SpecError(f"prefetch: {self.name}: {wrong}")
        return Prediction(found.lists.astype(np.int16), found.row.astype(np.int32), found.rank_key.astype(np.int64))

    def _asked(self, what: str, function: Callable[..., Any], *given: Any) -> Any:
        try:
            return function(*given)
        except Exception as error:
            where = f"{self.name}.{what}" if what else self.name
            raise SpecError(f"prefetch: {where}: raised {type(error).__name__}: {error}") from None


def parameters_of(made: Any) -> dict[str, Any]:
    """Parameters and defaults of a prefetcher. Raises SpecError where it takes something else than it should."""
    if inspect.isclass(made):
        method: Any = getattr(made, "predict", None) or vars(made).get("__call__")
        if not inspect.isfunction(method) or len(inspect.signature(method).parameters) != 3:
            raise SpecError("has no predict(self, trace, steps), which returns (lists, row)")
        return arguments(made)
    parameters = list(inspect.signature(made).parameters.values())
    if len(parameters) < 2 or any(p.default is p.empty for p in parameters[2:]):
        raise SpecError(f"takes {inspect.signature(made)}; must take (trace, steps) and then parameters with defaults")
    return {p.name: p.default for p in parameters[2:]}


def _wrong(found: Prediction, trace: RoutingTrace, rows: int) -> str | None:
    """What a prediction for so many rows has that no run can use, or None."""
    layers, experts = trace.n_moe_layers, trace.n_experts
    for name, array in (("lists", found.lists), ("row", found.row), ("rank_key", found.rank_key)):
        if not np.issubdtype(array.dtype, np.integer):
            return f"{name}: dtype is {array.dtype}; must be a whole-number type"
    distance = len(found.row) if found.row.ndim == 2 else 0
    if found.row.shape != (distance, rows) or not 1 <= distance <= layers:
        return f"row: shape is {found.row.shape}; must be (distances 1 .. {layers}, {rows} rows)"
    shape = found.lists.shape
    if len(shape) != 4 or shape[0] not in (1, distance) or shape[2] != layers:
        return f"lists: shape is {shape}; must be (1 or {distance}, rows, {layers} layers, entries)"
    for name, array, end in (("lists", found.lists, experts), ("row", found.row, shape[1])):
        if array.size and (array.min() < -1 or array.max() >= end):
            return f"{name}: {array.min()} .. {array.max()}; must lie in -1 .. {end - 1}"
    if found.rank_key.size and found.rank_key.shape != (distance, shape[3]):
        return f"rank_key: shape is {found.rank_key.shape}; must be ({distance}, {shape[3]})"
    return None
