"""Functions and classes of a Python session as policies, each by its own name: `eviction=my_function`.

A spec holds names alone, so that it can be saved; this is where a name is found again. It is the one state of this
process that runs share: the last function of a name is the one that runs, as it is in a notebook.
"""

import inspect
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

from sim.errors import SpecError
from sim.policies.compiled import arguments
from sim.policies.fingerprint import bytecode, fingerprint, functions
from sim.policies.kinds import Value
from sim.policies.policy import Policy
from sim.policies.user import is_policy, policy_of
from traces.errors import UserError

LAMBDA = "<lambda>"
_held: dict[tuple[str, str], tuple[str, Policy]] = {}  # by kind and name: what it was made from, and the policy


def held(kind: str, name: str) -> Policy | None:
    """The policy in memory of that kind and name."""
    return _held[kind, name][1] if (kind, name) in _held else None


def hold(kind: str, thing: Any, built_in: Iterable[str], name: str = "") -> tuple[str, dict[str, Value]]:
    """Make a function, a class or an instance findable; name: another than its own. built_in: names that are taken.

    Returns its name, and the parameters in which an instance differs from what its class has by default. Raises
    SpecError, one line, for what is no policy of that kind.
    """
    made = thing if is_policy(thing) else type(thing)
    name = name or str(getattr(made, "__name__", ""))
    try:
        if made.__module__ == "builtins" or not is_policy(made):
            raise SpecError("must be a policy's name, FILE.py:NAME, a function or a class")
        if name in built_in:
            raise SpecError("is the name of a built-in policy; name yours otherwise")
        if name != LAMBDA and not name.replace("-", "_").isidentifier():
            raise SpecError("its __name__ must be a word")
        given = {} if made is thing else _given(thing, made)
        of = fingerprint(made)
        key = of + "".join(map(bytecode, functions(made)))
        if _held.get((kind, name), ("",))[0] != key:
            policy = replace(policy_of(name, kind, made), sha256=of, origin=_origin(made))
            _held[kind, name] = key, policy
    except UserError as error:
        raise SpecError(f"{kind}: {name if made.__module__ != 'builtins' else repr(thing)}: {error}") from None
    return name, given


def _given(instance: Any, made: type) -> dict[str, Value]:
    """The arguments of an instance's constructor, found under their names, that are not the default."""
    out = {}
    for name, default in arguments(made).items():
        if not hasattr(instance, name):
            raise SpecError(f"__init__: {name}: is not kept as self.{name}, so its value is not known")
        if (value := getattr(instance, name)) != default:
            out[name] = value
    return out


def _origin(made: Any) -> str:
    """`FILE.py:NAME` of one that a file has, else where it was typed."""
    file = str(functions(made)[0].__code__.co_filename) if functions(made) else ""
    try:
        lines: Any = inspect.getsourcefile(made)
    except TypeError:
        lines = None
    return f"{file}:{made.__qualname__}" if lines and file.endswith(".py") else f"in memory ({made.__module__})"


def parameters(name: str, given: Mapping[str, Value]) -> dict[str, Value]:
    """As `set` takes them."""
    return {f"{name}.{key}": value for key, value in given.items()}
