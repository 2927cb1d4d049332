"""Which requests of a trace: by their places in it, or by what `groups` of its meta says of each."""

from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np
import numpy.typing as npt

from traces.errors import TraceError
from traces.format.trace import RoutingTrace

REQUEST = "request"  # in the place of a key: every request is a group of its own


def groups(trace: RoutingTrace) -> dict[str, list[str]]:
    """What meta says of each request, by key; nothing where it says nothing."""
    found: dict[str, list[str]] = trace.meta.get("groups", {})
    return found


def group(trace: RoutingTrace, key: str) -> list[str]:
    """One of them, of each request. Raises TraceError where it is not there, naming those that are."""
    every = groups(trace)
    if key not in every:
        there = f"must be one of {', '.join(every)}" if every else "the trace has none"
        raise TraceError(f"no group {key}; {there}")
    return every[key]


def ordinals(trace: RoutingTrace, asked: slice | Sequence[int] | tuple[str, str]) -> npt.NDArray[np.int64]:
    """Places of requests, from 0: of a slice, of a list (in its order), or of a group (key, value). Raises TraceError
    for none, for one that is not there and for one twice."""
    n = len(trace.requests()[0])
    if isinstance(asked, slice):
        found = list(range(n)[asked])
    elif isinstance(asked, tuple):
        key, value = asked
        of = group(trace, key)
        found = [i for i in range(n) if of[i] == value]
        if not found:
            raise TraceError(f"no request; {key} must be one of {', '.join(sorted(set(of)))}")
    else:
        found = list(asked)
    if not found or max(found) >= n:
        raise TraceError(f"{'chooses none' if not found else f'no request {max(found)}'}; the trace has {n}, from 0")
    if len(set(found)) < len(found):
        raise TraceError("names a request twice")
    return np.array(found, np.int64)


def parts(trace: RoutingTrace, by: str) -> Iterator[tuple[str, RoutingTrace]]:
    """(value, its requests) of each value of a group, in order of appearance; by `request`: each by its place. The meta
    of a part says which of whose requests it holds. Raises TraceError for a group that is not there."""
    n = len(trace.requests()[0])
    of = [str(i).zfill(len(str(n - 1))) for i in range(n)] if by == REQUEST else group(trace, by)
    for value in dict.fromkeys(of):
        chosen = [i for i in range(n) if of[i] == value]
        part = trace.take(chosen)
        yield value, replace(part, meta=part.meta | {"part": {"by": by, "is": value, "requests": chosen}})
