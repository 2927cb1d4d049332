"""What a function or a class in memory does, as a sha256: its source, what is said beside it, and what it uses that is
written elsewhere."""

import hashlib
import inspect
from collections.abc import Iterator
from types import CodeType, FunctionType, ModuleType
from typing import Any

import numpy as np

# what is said beside a policy, as its attributes (sim.policies.user): what it is where nobody says it
SAID: dict[str, Any] = {"params": {}, "state": 0, "needs": (), "oracle": False}


def fingerprint(thing: Any) -> str:
    """sha256 (hex) of its source text, and then, where there are any, of what is said beside it (SAID) and the values
    that it takes from around it: variables of an enclosing function, globals, the functions and classes of its module
    that it calls, what a class inherits. Of one that has no text (typed at a prompt that keeps none), of its bytecode.
    """
    digest = hashlib.sha256(source_of(thing).encode())
    for name, text in [*_said(thing), *_around(thing, {id(thing)})]:
        digest.update(f"\n{name} = {text}".encode())
    return digest.hexdigest()


def source_of(thing: Any) -> str:
    """The text of a function or a class; where nobody has it, its bytecode."""
    try:
        return inspect.getsource(thing)
    except (OSError, TypeError):
        return "\n".join(f"{function.__qualname__}: {bytecode(function.__code__)}" for function in functions(thing))


def bytecode(code: CodeType) -> str:
    """What tells two bodies apart, whatever their text. (marshal's bytes hang on who else holds a constant.)"""
    consts = [bytecode(each) if isinstance(each, CodeType) else repr(each) for each in code.co_consts]
    return repr((code.co_code.hex(), code.co_names, code.co_varnames, code.co_freevars, consts))


def functions(thing: Any) -> list[FunctionType]:
    """A function itself, or the methods of a class that are written in it."""
    made = getattr(thing, "py_func", thing)
    return [made] if inspect.isfunction(made) else [v for v in vars(made).values() if inspect.isfunction(v)]


def _said(thing: Any) -> Iterator[tuple[str, str]]:
    """(name, text) of what is said beside it, and is not what it is anyway: the text of a function has none of it."""
    made = getattr(thing, "py_func", thing)
    for name, unsaid in SAID.items():
        value = getattr(made, name, unsaid)
        if _text(value) != _text(unsaid):
            yield name, _text(value)


def _around(thing: Any, seen: set[int]) -> Iterator[tuple[str, str]]:
    """(name, text) of all that its functions use from around them, and what those use; of a class its values and the
    classes that it inherits from, too."""
    if inspect.isclass(thing):
        yield from _of_class(thing, seen)
    for function in functions(thing):
        found = inspect.getclosurevars(function)
        for name, value in sorted({**found.globals, **found.nonlocals}.items()):
            if id(value) in seen:
                continue
            inner = getattr(value, "py_func", value)
            if inspect.isfunction(inner) or inspect.isclass(inner):
                seen.add(id(value))
                yield name, source_of(inner)
                if inner.__module__ == function.__module__:
                    yield from _around(inner, seen)
            else:
                yield name, _text(value)
        for defaults in filter(None, (function.__defaults__, function.__kwdefaults__)):
            yield "defaults", _text(defaults)


def _of_class(made: type, seen: set[int]) -> Iterator[tuple[str, str]]:
    """Its attributes that are values, and its bases."""
    values = ((name, value) for name, value in vars(made).items() if not name.startswith("__") and name not in SAID)
    yield from ((name, _text(value)) for name, value in values if isinstance(value, str | int | float | np.ndarray))
    for base in made.__bases__:
        if base.__module__ != "builtins" and id(base) not in seen:
            seen.add(id(base))
            yield base.__qualname__, source_of(base)
            yield from _around(base, seen)


def _text(value: Any) -> str:
    """A value as text: an array's bytes, a module's name; of an object without a spelling of its own, its type."""
    if isinstance(value, ModuleType):
        return value.__name__
    if isinstance(value, np.ndarray):
        return f"{value.dtype} {value.shape} {hashlib.sha256(np.ascontiguousarray(value).tobytes()).hexdigest()}"
    text = repr(value)
    return type(value).__qualname__ if " at 0x" in text else text
