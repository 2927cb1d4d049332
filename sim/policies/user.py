"""A user's own policies: `FILE.py:FUNCTION` where a policy's name may stand. How to: docs/policies.md.

What the function needs is said beside it, as attributes: `f.params = {"reach": 2.0}` (numbers, in the order
in which it finds them), `f.state = 16` (length of its array), `f.needs = ("logits",)` (arrays of the trace).
"""

import hashlib
import inspect
import sys
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import lru_cache, partial
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

import sim.compiling  # noqa: F401  # a function that takes long to compile says so
from sim.core import miss, rerank, worth
from sim.core.hooks import compile_hook
from sim.errors import SpecError, unknown
from sim.fit.prediction import Prediction
from sim.policies.kinds import Value
from sim.policies.policy import Policy
from sim.steps import Steps
from traces.errors import UserError
from traces.format.trace import RoutingTrace

KINDS = {"eviction": worth.USER, "miss": miss.USER, "rerank": rerank.USER}
OPTIONAL = ("weights", "logits", "lookahead", "token_ids")  # arrays that a trace may lack
OF_EVERY_MISS_POLICY = {"prefill": 0, "late": 0}  # lossy answers in prefill steps too; late experts are asked about


class UserPredictor:
    """A predictor that is one function of the user: `f(trace, steps, **given)`, trace in, lists out."""

    fitted = False

    def __init__(self, name: str, function: Callable[..., Any], **given: Value) -> None:
        self.name, self.function, self.given = name, function, given

    def predict(self, trace: RoutingTrace, steps: Steps) -> Prediction:
        """What the function returns, checked. Raises SpecError where it fails or that is no use, one line."""
        try:
            found = self.function(trace, steps, **self.given)
        except Exception as error:
            raise SpecError(f"prefetch: {self.name}: raised {type(error).__name__}: {error}") from None
        if not isinstance(found, Prediction):
            if not isinstance(found, tuple) or len(found) not in (2, 3):
                raise SpecError(f"prefetch: {self.name}: returns {type(found).__name__}; must return (lists, row)")
            found = Prediction(*map(np.asarray, found))
        wrong = _wrong(found, trace, len(steps.row))
        if wrong:
            raise SpecError(f"prefetch: {self.name}: {wrong}")
        return Prediction(found.lists.astype(np.int16), found.row.astype(np.int32), found.rank_key.astype(np.int64))


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


# --- loading ---


def load(text: str, kind: str) -> Policy:
    """The policy FILE.py:FUNCTION of a kind (eviction, miss, rerank, prefetch). Raises SpecError."""
    path = Path(text.rpartition(":")[0])
    try:
        source = path.read_bytes()
    except OSError as error:
        raise SpecError(f"{kind}: {text}: {path}: {error.strerror}") from None
    return _load(text, kind, path.resolve(), source)


@lru_cache(maxsize=32)
def _load(text: str, kind: str, path: Path, source: bytes) -> Policy:
    """Remembered for as long as the file stays as it is: a run looks its policies up more than once."""
    try:
        function = _function(_module(path, source), text.rpartition(":")[2])
        made = _prefetcher(text, function) if kind == "prefetch" else _policy(text, kind, function)
        return replace(made, sha256=hashlib.sha256(source).hexdigest())
    except UserError as error:
        raise SpecError(f"{kind}: {text}: {error}") from None


def _module(path: Path, source: bytes) -> ModuleType:
    """The file, run as a module of its own; numba and pickle want to find it again by its name."""
    module = ModuleType(f"user_policy_{hashlib.sha256(str(path).encode()).hexdigest()[:12]}")
    module.__file__ = str(path)
    sys.modules[module.__name__] = module
    try:
        exec(compile(source, str(path), "exec"), module.__dict__)
    except Exception as error:
        raise SpecError(f"{path.name} does not load: {type(error).__name__}: {error}") from None
    return module


def _function(module: ModuleType, name: str) -> Callable[..., Any]:
    """Raises SpecError where the file has no function of that name."""
    found = getattr(module, name, None)
    if not inspect.isfunction(getattr(found, "py_func", found)):
        names = [key for key, value in vars(module).items() if inspect.isfunction(getattr(value, "py_func", value))]
        raise unknown("function", name, names)
    return found  # type: ignore[return-value]


def _policy(text: str, kind: str, function: Any) -> Policy:
    params, size = getattr(function, "params", {}), getattr(function, "state", 0)
    if not isinstance(params, Mapping) or not all(isinstance(v, int | float | np.number) for v in params.values()):
        raise SpecError(f"params: {params!r}: must be a dict of names and numbers")
    if not isinstance(size, int) or isinstance(size, bool) or size < 0:
        raise SpecError(f"state: {size!r}: must be a whole number, the length of the state array")
    common = OF_EVERY_MISS_POLICY if kind == "miss" else {}
    taken = sorted(set(params) & set(common))
    if taken:
        raise SpecError(f"params: {taken[0]}: every miss policy has this one; name yours otherwise")
    return Policy(
        text,
        KINDS[kind],
        _doc(function),
        source=text,
        params=dict(params),
        prepared=common,
        needs=_needs(function),
        lossy=kind != "eviction",
        answers_cpu=kind == "miss",
        hook=compile_hook(getattr(function, "py_func", function), size),
    )


def _prefetcher(text: str, function: Any) -> Policy:
    function = getattr(function, "py_func", function)
    signature = inspect.signature(function)
    parameters = list(signature.parameters.values())
    if len(parameters) < 2 or any(p.default is p.empty for p in parameters[2:]):
        raise SpecError(f"takes {signature}; must take (trace, steps) and then parameters with defaults")
    return Policy(
        text,
        0,
        _doc(function),
        source=text,
        prepared={p.name: p.default for p in parameters[2:]},
        needs=_needs(function),
        oracle=bool(getattr(function, "oracle", False)),
        make=partial(UserPredictor, text, function),
    )


def _needs(function: Any) -> tuple[str, ...]:
    needs = tuple(getattr(function, "needs", ()))
    for name in needs:
        if name not in OPTIONAL:
            raise unknown("needs", str(name), OPTIONAL)
    return needs


def _doc(function: Any) -> str:
    return (inspect.getdoc(function) or "a user's own").splitlines()[0]
