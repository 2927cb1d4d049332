"""A user's own policies: `FILE.py:FUNCTION` where a policy's name may stand. How to: docs/policies.md.

What the function needs is said beside it, as attributes: `f.params = {"reach": 2.0}` (numbers, in the order
in which it finds them), `f.state = 16` (length of its array), `f.needs = ("logits",)` (arrays of the trace).
"""

import hashlib
import inspect
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from sim.core import eviction, miss, rerank
from sim.core.hooks import Hook, PolicyError, compile_hook
from sim.core.plan import Choice
from sim.errors import SpecError, unknown
from sim.fit.prediction import Prediction
from sim.policies.registry import Policy, Value
from sim.steps import Steps
from traces.format.trace import RoutingTrace

KINDS = {"eviction": eviction.USER, "miss": miss.USER, "rerank": rerank.USER}
OPTIONAL = ("weights", "logits", "lookahead", "token_ids")  # arrays that a trace may lack
OF_EVERY_MISS_POLICY = {
    "prefill": 0,
    "late": 0,
}  # lossy answers in prefill steps too; late experts are asked about


@dataclass(frozen=True)
class UserPolicy(Policy):
    """A run-time policy that is one function of the user; `name` is FILE.py:FUNCTION. sha256: of its file."""

    hook: Hook | None = None
    sha256: str = ""

    def choice(self, given: Mapping[str, Value]) -> Choice:
        """As the core takes it."""
        return replace(super().choice(given), function=self.hook)

    def may_answer_cpu(self, given: Mapping[str, Value]) -> bool:
        """Any miss policy of a user's may; what its parameters mean only it knows."""
        return self.answers_cpu

    def may_be_lossy(self, given: Mapping[str, Value]) -> bool:
        """The same."""
        return self.lossy

    def without_host(self, choice: Choice) -> Choice:
        """The same choice for hardware that has no durations for CPU answers: giving one is an error."""
        assert self.hook is not None
        return replace(choice, function=replace(self.hook, host=False))


@dataclass(frozen=True)
class UserPrefetch:
    """A predictor that is one function of the user: `f(trace, steps, **params)`, trace in, lists out."""

    name: str
    function: Callable[..., Any]
    doc: str
    sha256: str
    needs: tuple[str, ...] = ()
    oracle: bool = False
    given: Mapping[str, Value] = field(default_factory=dict)
    fitted: bool = False

    @property
    def parameters(self) -> Mapping[str, Any]:
        """Every parameter and its default."""
        every = inspect.signature(self.function).parameters.items()
        return {name: each.default for name, each in list(every)[2:]}

    def with_params(self, given: Mapping[str, Value]) -> "UserPrefetch":
        """The same with these arguments. Raises SpecError for one that the function does not take."""
        for key in given:
            if key not in self.parameters:
                raise unknown(f"set: parameter of {self.name}", key, self.parameters)
        return replace(self, given=given)

    def predict(self, trace: RoutingTrace, steps: Steps) -> Prediction:
        """What the function returns, checked. Raises SpecError where it fails or that is no use, one line."""
        try:
            found = self.function(trace, steps, **self.given)
        except Exception as error:
            raise SpecError(f"prefetch: {self.name}: raised {type(error).__name__}: {_line(error)}") from None
        if not isinstance(found, Prediction):
            if not isinstance(found, tuple) or len(found) not in (2, 3):
                raise SpecError(f"prefetch: {self.name}: returns {type(found).__name__}; must return (lists, row)")
            found = Prediction(*map(np.asarray, found))
        wrong = _wrong(found, trace)
        if wrong:
            raise SpecError(f"prefetch: {self.name}: {wrong}")
        lists, row, key = (
            found.lists.astype(np.int16),
            found.row.astype(np.int32),
            found.rank_key.astype(np.int64),
        )
        return Prediction(lists, row, key)


def _wrong(found: Prediction, trace: RoutingTrace) -> str | None:
    """What a prediction has that no run can use, or None."""
    layers, experts, tokens = trace.n_moe_layers, trace.n_experts, trace.n_tokens
    for name, array in (("lists", found.lists), ("row", found.row), ("rank_key", found.rank_key)):
        if not np.issubdtype(array.dtype, np.integer):
            return f"{name}: dtype is {array.dtype}; must be a whole-number type"
    distance = len(found.row) if found.row.ndim == 2 else 0
    if found.row.shape != (distance, tokens) or not 1 <= distance <= layers:
        return f"row: shape is {found.row.shape}; must be (distances 1 .. {layers}, {tokens} tokens)"
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


def load(text: str, kind: str) -> Any:
    """The policy FILE.py:FUNCTION of a kind (eviction, miss, rerank, prefetch). Raises SpecError."""
    path = Path(text.rpartition(":")[0])
    try:
        source = path.read_bytes()
    except OSError as error:
        raise SpecError(f"{kind}: {text}: {path}: {error.strerror}") from None
    return _load(text, kind, path.resolve(), source)


@lru_cache(maxsize=32)
def _load(text: str, kind: str, path: Path, source: bytes) -> Any:
    """Remembered for as long as the file stays as it is: a run looks its policies up more than once."""
    try:
        function = _function(_module(path, source), text.rpartition(":")[2])
        sha256 = hashlib.sha256(source).hexdigest()
        if kind == "prefetch":
            return _prefetch(text, function, sha256)
        return _policy(text, kind, function, sha256)
    except (SpecError, PolicyError) as error:
        raise SpecError(f"{kind}: {text}: {error}") from None


def _module(path: Path, source: bytes) -> ModuleType:
    """The file, run as a module of its own; numba and pickle want to find it again by its name."""
    module = ModuleType(f"user_policy_{hashlib.sha256(str(path).encode()).hexdigest()[:12]}")
    module.__file__ = str(path)
    sys.modules[module.__name__] = module
    try:
        exec(compile(source, str(path), "exec"), module.__dict__)
    except Exception as error:
        raise SpecError(f"{path.name} does not load: {type(error).__name__}: {_line(error)}") from None
    return module


def _function(module: ModuleType, name: str) -> Callable[..., Any]:
    """Raises SpecError where the file has no function of that name."""
    found = getattr(module, name, None)
    if not inspect.isfunction(getattr(found, "py_func", found)):
        names = [key for key, value in vars(module).items() if inspect.isfunction(getattr(value, "py_func", value))]
        raise unknown("function", name, names)
    return found  # type: ignore[return-value]


def _policy(text: str, kind: str, function: Any, sha256: str) -> UserPolicy:
    params, size = getattr(function, "params", {}), getattr(function, "state", 0)
    if not isinstance(params, Mapping) or not all(_is_number(value) for value in params.values()):
        raise SpecError(f"params: {params!r}: must be a dict of names and numbers")
    if not isinstance(size, int) or isinstance(size, bool) or size < 0:
        raise SpecError(f"state: {size!r}: must be a whole number, the length of the state array")
    common: Mapping[str, Value] = OF_EVERY_MISS_POLICY if kind == "miss" else {}
    taken = sorted(set(params) & set(common))
    if taken:
        raise SpecError(f"params: {taken[0]}: every miss policy has this one; name yours otherwise")
    return UserPolicy(
        name=text,
        kind=KINDS[kind],
        doc=_doc(function),
        source=text,
        params=dict(params),
        prepared=common,
        needs=_needs(function),
        lossy=kind != "eviction",
        answers_cpu=kind == "miss",
        user=True,
        hook=compile_hook(getattr(function, "py_func", function), size),
        sha256=sha256,
    )


def _prefetch(text: str, function: Any, sha256: str) -> UserPrefetch:
    function = getattr(function, "py_func", function)
    parameters = list(inspect.signature(function).parameters.values())
    if len(parameters) < 2 or any(p.default is p.empty for p in parameters[2:]):
        raise SpecError(
            f"takes {inspect.signature(function)}; must take (trace, steps) and then parameters with defaults"
        )
    oracle = bool(getattr(function, "oracle", False))
    return UserPrefetch(text, function, _doc(function), sha256, _needs(function), oracle)


def _needs(function: Any) -> tuple[str, ...]:
    needs = tuple(getattr(function, "needs", ()))
    for name in needs:
        if name not in OPTIONAL:
            raise unknown("needs", str(name), OPTIONAL)
    return needs


def _doc(function: Any) -> str:
    return (inspect.getdoc(function) or "a user's own").splitlines()[0]


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float | np.number)


def _line(error: Exception) -> str:
    return " ".join(str(error).split())
