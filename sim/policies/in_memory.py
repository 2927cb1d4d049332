"""Functions and classes of a Python session as policies, each by its own name: `eviction=my_function`.

A spec holds names alone, so that it can be saved; this is where a name is found again. It is the one state of this
process that runs share: the last function of a name is the one that runs, as it is in a notebook.
"""

import inspect
import textwrap
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from sim.errors import SpecError
from sim.policies.compiled import constructor, with_defaults, without_default
from sim.policies.fingerprint import bytecode, fingerprint, functions
from sim.policies.kinds import Value, plain
from sim.policies.policy import Policy
from sim.policies.user import is_policy, policy_of
from traces.errors import UserError

LAMBDA = "<lambda>"


@dataclass
class Held:
    """A function or class, what tells it from another of its name, and the policy, once it has been asked for.
    required: of an instance, the constructor's arguments without a default, which each of its runs gives."""

    made: Any
    identity: str
    required: dict[str, Value]
    policy: Policy | None = None


_held: dict[tuple[str, str], Held] = {}


def held(kind: str, name: str) -> Policy | None:
    """The policy in memory of that kind and name, compiled when it is first asked for. Raises SpecError, one line,
    where it cannot be."""
    found = _held.get((kind, name))
    if found is not None and found.policy is None:
        try:
            made = policy_of(name, kind, with_defaults(found.made, found.required))
        except UserError as error:
            raise SpecError(f"{kind}: {name}: {error}") from None
        found.policy = replace(made, sha256=fingerprint(found.made), origin=_origin(found.made))
    return None if found is None else found.policy


def is_held(kind: str, name: str) -> bool:
    """Whether there is one, whatever it is worth."""
    return (kind, name) in _held


def own_name(kind: str, thing: Any) -> str:
    """What a function, a class or an instance of one is called. Raises SpecError for what is none."""
    made = _made(thing)
    no_class = inspect.isclass(made) and made.__module__ == "builtins"
    if no_class or (made is not thing and not any(functions(each) for each in made.__mro__)):  # not of Python's making
        said = "; ".join(["must be a policy's name, FILE.py:NAME, a function or a class", *_instead(thing)])
        raise SpecError(f"{kind}: {textwrap.shorten(repr(thing), 80, placeholder='...')}: {said}")
    return str(made.__name__)


def _instead(thing: Any) -> list[str]:
    """What may be given for what is nearly a policy."""
    if inspect.ismethod(thing):
        return ["give the instance, whose __call__ (of a prefetcher predict) answers, in the place of its method"]
    if isinstance(thing, partial):
        return ["what is fixed goes into its params, or give an instance of a class that keeps it"]
    return ["wrap it in a function of your own"] if callable(thing) else []


def identity(thing: Any) -> str:
    """What tells it from another of its name: what it does."""
    made = _made(thing)
    return fingerprint(made) + "".join(bytecode(function.__code__) for function in functions(made))


def hold(kind: str, thing: Any, built_in: Iterable[str], name: str = "") -> tuple[str, dict[str, Value]]:
    """Make a function, a class or an instance findable; name: another than its own. built_in: names that are taken.

    Returns its name, and the parameters in which an instance differs from what its class has by default. Raises
    SpecError, one line, for what is no policy of that kind.
    """
    made, name = _made(thing), name or own_name(kind, thing)
    try:
        if plain(name) in built_in:  # whatever its case and underscores, as everywhere
            raise SpecError("is the name of a built-in policy; name yours otherwise")
        if not name.removeprefix(LAMBDA).replace("-", "_").isidentifier() and name != LAMBDA:
            raise SpecError("its __name__ must be a word")
        given, mine = {} if made is thing else _given(thing, made), identity(made)
        required = {key: value for key, value in given.items() if without_default(made, key)}
    except SpecError as error:
        raise SpecError(f"{kind}: {name}: {error}") from None
    before = _held.get((kind, name))
    same = before is not None and before.identity == mine and before.required.keys() == required.keys()
    if before is None or before.policy is None or not same:  # one that failed is tried anew
        _held[kind, name] = Held(made, mine, required)
    return name, given


def _made(thing: Any) -> Any:
    """The function or class itself, of an instance its class."""
    return thing if is_policy(thing) else type(thing)


def _given(instance: Any, made: type) -> dict[str, Value]:
    """The arguments of an instance's constructor, found under their names, that are not the default or have none."""
    out = {}
    for name, default in constructor(made).items():
        if not hasattr(instance, name):
            raise SpecError(f"__init__: {name}: is not kept as self.{name}, so its value is not known")
        value = getattr(instance, name)
        if not isinstance(value, (str, int, float)):
            raise SpecError(f"self.{name} is {type(value).__name__}; a parameter is a number or text")
        if value != default:
            out[name] = value
    return out


def _origin(made: Any) -> str:
    """`FILE.py:NAME` of one that a file has, else where it was typed."""
    file = str(functions(made)[0].__code__.co_filename) if functions(made) else ""
    if file.endswith(".py") and Path(file).is_file():
        return f"{file}:{made.__qualname__}"
    return f"in memory ({made.__module__})" if made.__module__ else "in memory"


def parameters(name: str, given: Mapping[str, Value]) -> dict[str, Value]:
    """As `set` takes them."""
    return {f"{name}.{key}": value for key, value in given.items()}
