"""A user's own policies: `FILE.py:NAME` where a policy's name may stand, or the function or class itself from Python
(`sim.policies.in_memory`). How to: docs/policies.md.

What a function needs is said beside it, as attributes: `f.params = {"reach": 2.0}` (numbers, in the order
in which it finds them), `f.state = 16` (length of its array), `f.needs = ("logits",)` (arrays of the trace). A class
says the last two as its own attributes; its parameters are its constructor's arguments.
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

from sim.core import miss, rerank, worth
from sim.errors import SpecError, unknown
from sim.policies.compiled import arguments, compiled, of_class
from sim.policies.meanings import COMMON, paragraphs, told
from sim.policies.policy import Policy
from sim.policies.user_prefetch import UserPredictor, parameters_of
from traces.errors import UserError

KINDS = {"eviction": worth.USER, "miss": miss.USER, "rerank": rerank.USER}
OPTIONAL = ("weights", "logits", "lookahead", "token_ids")  # arrays that a trace may lack
OF_EVERY_MISS_POLICY = {"prefill": 0, "late": 0}  # lossy answers in prefill steps too; late experts are asked about


# --- from a file ---


def load(text: str, kind: str) -> Policy:
    """The policy FILE.py:NAME of a kind (eviction, miss, rerank, prefetch). Raises SpecError."""
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
        found = _named(_module(path, source), text.rpartition(":")[2])
        made = policy_of(text, kind, found, kept=True)
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


def _named(module: ModuleType, name: str) -> Callable[..., Any]:
    """Raises SpecError where the file has no function or class of that name."""
    found = getattr(module, name, None)
    if not is_policy(found):
        raise unknown("function", name, [key for key, value in vars(module).items() if is_policy(value)])
    return found  # type: ignore[return-value]


# --- from a function or a class ---


def is_policy(thing: Any) -> bool:
    """Whether it is what a policy may be written as: a function (numba's too), or a class."""
    return inspect.isfunction(getattr(thing, "py_func", thing)) or inspect.isclass(thing)


def policy_of(name: str, kind: str, thing: Any, kept: bool = False) -> Policy:
    """A function or a class as a policy; kept: what numba compiles may be kept on disk, beside its file. Raises
    UserError, one line without its name, where it is none."""
    made = getattr(thing, "py_func", thing)
    return _prefetcher(name, made) if kind == "prefetch" else _in_the_core(name, kind, made, kept)


def _in_the_core(name: str, kind: str, made: Any, kept: bool) -> Policy:
    size = getattr(made, "state", 0)
    if not isinstance(size, int) or isinstance(size, bool) or size < 0:
        raise SpecError(f"state: {size!r}: must be a whole number, the length of the state array")
    params = arguments(made) if inspect.isclass(made) else getattr(made, "params", {})
    if not isinstance(params, Mapping) or not all(isinstance(v, int | float | np.number) for v in params.values()):
        raise SpecError(f"params: {params!r}: must be a dict of names and numbers")
    common = OF_EVERY_MISS_POLICY if kind == "miss" else {}
    taken = sorted(set(params) & set(common))
    if taken:
        raise SpecError(f"params: {taken[0]}: every miss policy has this one; name yours otherwise")
    function, numbers = of_class(made) if inspect.isclass(made) else (made, None)
    return Policy(
        name,
        KINDS[kind],
        _doc(made),
        source=name,
        params=dict(params),
        prepared=common,
        means=told(made.__doc__, params) | {key: COMMON[key] for key in common},
        more=paragraphs(made.__doc__, params),
        needs=_needs(made),
        lossy=kind != "eviction",
        answers_cpu=kind == "miss",
        hook=compiled(function, size, kept and numbers is None),
        numbers=numbers,
    )


def _prefetcher(name: str, made: Any) -> Policy:
    return Policy(
        name,
        0,
        _doc(made),
        source=name,
        prepared=parameters_of(made),
        means=told(made.__doc__, parameters_of(made)),
        more=paragraphs(made.__doc__, parameters_of(made)),
        needs=_needs(made),
        fitted=inspect.isclass(made) and hasattr(made, "fit"),
        oracle=bool(getattr(made, "oracle", False)),
        make=partial(UserPredictor, name, made),
    )


def _needs(made: Any) -> tuple[str, ...]:
    needs = tuple(getattr(made, "needs", ()))
    for name in needs:
        if name not in OPTIONAL:
            raise unknown("needs", str(name), OPTIONAL)
    return needs


def _doc(made: Any) -> str:
    return (inspect.getdoc(made) or "a user's own").splitlines()[0]
