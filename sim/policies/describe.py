"""Policies in words: the list of them, and everything that is known of one. `sim.run --list-policies`, `--describe`."""

import textwrap
from collections.abc import Iterator, Mapping
from typing import Any

from sim.catalog.files import normal
from sim.errors import SpecError
from sim.policies import plugged
from sim.policies.kinds import KINDS
from sim.policies.policy import Policy, called, is_user
from sim.policies.registry import TABLES, find
from sim.policies.told import paragraph

WIDTH = 99  # columns of whatever is printed here
_ON_A_MISS = ("stream", "remote", "cpu", "cpu-admit", "split")
_READ = {
    "eviction": "docs/evictions.md",
    "prefetch": "docs/policies.md, sim/fit/predictors.py",
    "miss": "docs/policies.md, sim/core/miss.py",
    "rerank": "docs/policies.md, sim/core/rerank.py",
    "placement": "docs/policies.md, sim/fit/placement.py",
}
_MARKS = {
    "oracle": "oracle (reads the future: no engine can)",
    "fitted": "fitted (learns from --calibration FILE|FRACTION, which is never judged)",
    "lossy": "lossy (replayed open loop: the routing stays the trace's)",
    "user": "a user's own",
}
_WITH = {"draft-window": "--speculate 3", "profile": "--set profile.file=P.npz", "learned": "--trace B-learned.npz"}


def listing() -> str:
    """Every policy, a line each of at most WIDTH columns, by kind, with its marks."""
    lines = []
    for kind, policies in TABLES.items():
        lines.append(f"{kind}:")
        lines += [_line(policy) for policy in policies.values()]
        lines += [_plugged(name, found) for name, found in plugged.listed(kind, frozenset(policies))]
    return "\n".join(
        [
            *lines,
            *plugged.of_no_kind(),
            "python -m sim.run --describe NAME says more: parameters, what it needs, its source",
        ]
    )


def _line(policy: Policy) -> str:
    marks = [
        *([f"plug-in of {policy.origin}"] if policy.origin else []),
        *_marks(policy),
        *([f"needs {' and '.join(policy.needs)}"] if policy.needs else []),
    ]
    tail = f" [{', '.join(marks)}]" if marks else ""
    head = f"  {policy.name:<19} "
    return head + textwrap.shorten(policy.doc, WIDTH - len(head) - len(tail), placeholder=" ...") + tail


def _plugged(name: str, found: Policy | str) -> str:
    """Of a plug-in that is of no use what is wrong with it, whole."""
    return f"  {name:<19} {found}" if isinstance(found, str) else _line(found)


def _marks(policy: Policy) -> list[str]:
    return [mark for mark in _MARKS if getattr(policy, mark)]


def named(word: str) -> dict[str, Policy]:
    """The policies that a word names, by kind: NAME (of every kind that has one), KIND.NAME, or a user's own FILE.py:F;
    none of any other word. Raises SpecError where a user's own does not load."""
    kind, dot, name = word.partition(".")
    if not (dot and kind in KINDS):
        kind, name = "", word
    if is_user(name):
        return _users(name, kind)
    kinds = [kind] if kind else KINDS
    built_in = {
        each: policy for each in kinds for policy in TABLES[each].values() if normal(policy.name) == normal(name)
    }
    return built_in or {each: found for each in kinds if (found := plugged.plugged(each, name)) is not None}


def _users(name: str, kind: str) -> dict[str, Policy]:
    """A function of (trace, steps) is a prefetcher; of (view, state, params) it may be any of the others."""
    try:
        return {kind or "prefetch": find(kind or "prefetch", name)}
    except SpecError:
        if kind:
            raise
    return {"eviction": find("eviction", name)}


def names() -> list[str]:
    """Everything that `named` knows."""
    return [name for policies in TABLES.values() for name in policies]


def facts(kind: str, policy: Policy) -> dict[str, Any]:
    """All that is known of a policy, as a JSON object."""
    return {
        "does": policy.doc,
        "more": policy.more or paragraph(kind, policy.name),
        "marks": _marks(policy),
        "needs": [*policy.needs],
        "source": f"plug-in of {policy.origin}" if policy.origin else policy.source,
        "parameters": {
            key: {"default": policy.said(key), "may_be": policy.allowed(key), "means": policy.means.get(key, "")}
            for key in _order(policy)
        },
        "example": example(kind, policy),
        "read": "docs/on-a-miss.md" if kind == "miss" and policy.name in _ON_A_MISS else _READ[kind],
    }


def _order(policy: Policy) -> list[str]:
    """The parameters of a policy, first those that are worth trying."""
    return [*dict.fromkeys((*(policy.search or {}), *policy.parameters))]


def listed() -> dict[str, dict[str, Any]]:
    """`facts` of every policy, by kind and name."""
    return {kind: {name: facts(kind, each) for name, each in table.items()} for kind, table in TABLES.items()}


def text(kind: str, policy: Policy) -> str:
    """The same of one policy, for people."""
    told = facts(kind, policy)
    lines = [
        *_wrapped(f"{policy.name} ({kind}): {policy.doc}"),
        *(["", *_wrapped(told["more"])] if told["more"] else []),
        "",
    ]
    rows = {
        "marks": "; ".join(_MARKS[mark] for mark in told["marks"]),
        "needs": ", ".join(f"`{array}` in the trace" for array in told["needs"]),
        "source": told["source"],
        "example": told["example"],
        "read": told["read"],
    }
    lines += [line for name, row in rows.items() if row for line in _row(name, row)]
    return "\n".join([*lines, *_parameters(policy, told["parameters"])])


def _parameters(policy: Policy, told: Mapping[str, Mapping[str, str]]) -> Iterator[str]:
    if not told:
        yield from _row("parameters", "none")
        return
    yield from ("", f"parameters, --set {called(policy.name)}.NAME=VALUE:")
    for name, about in told.items():
        said = f"default {about['default']}" if about["default"] else "none by default"
        yield f"  {name:<14} {said}; {about['may_be']}"
        yield from _wrapped(about["means"], " " * 17)


def _wrapped(words: str, front: str = "") -> list[str]:
    parts = (textwrap.wrap(part, WIDTH, initial_indent=front, subsequent_indent=front) for part in words.split("\n\n"))
    return [line for i, part in enumerate(parts) for line in ([""] * (i > 0) + part)]


def _row(name: str, words: str) -> list[str]:
    if name == "example":  # to be copied whole
        return [f"{name:<10} {words}"]
    return textwrap.wrap(words, WIDTH, initial_indent=f"{name:<10} ", subsequent_indent=" " * 11)


def example(kind: str, policy: Policy) -> str:
    """A command that runs it, with one of its parameters."""
    name = called(policy.name)
    values = {key: policy.said(key) for key in _order(policy) if policy.said(key) not in ("", "None")}
    for key, tried in (policy.search or {}).items():
        values |= {key: str(next(value for value in (*tried, *tried) if value != policy.parameters[key]))}
    chosen = [f"--set {name}.{key}={value}" for key, value in values.items()]
    words = [
        f"python -m sim.run --trace {'tiny-moe.npz' if kind == 'rerank' else 'mixtral.npz'} --{kind} {policy.name}",
        "--calibration 0.3" if policy.fitted else "",
        f"--set {name}.matrix=FILE.npz" if "matrix" in policy.prepared else "",
        _WITH.get(policy.name, ""),
        *chosen[:1],
    ]
    return " ".join(word for word in words if word)
