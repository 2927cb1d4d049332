"""Policies that other distributions bring: entry points `KIND.NAME` of the group `moe_offload_sim.policies`.

One is a function or a class as in docs/policies.md, or a `Policy`; it is found by NAME where no built-in one has it.
"""

from collections.abc import Iterator
from dataclasses import replace
from functools import cache

from sim.errors import SpecError
from sim.policies.fingerprint import fingerprint
from sim.policies.kinds import KINDS, plain
from sim.policies.policy import Policy
from sim.policies.user import is_policy, policy_of
from traces.errors import UserError
from traces.plugins import Plugin, plugins

GROUP = "policies"


def names(kind: str) -> list[str]:
    """Of the plug-ins of a kind, whether they are of use or not."""
    return [name.removeprefix(f"{kind}.") for name in plugins(GROUP) if name.startswith(f"{kind}.")]


def plugged(kind: str, name: str) -> Policy | None:
    """The plug-in of that kind and name. Raises SpecError, one line that names its distribution, where it is wrong."""
    name = spelled(kind, name) or name
    found = plugins(GROUP).get(f"{kind}.{name}")
    return None if found is None else _policy(kind, name, found)


def spelled(kind: str, name: str) -> str | None:
    """The spelling of a plug-in's name, whatever its case and underscores; None where there is none of that name."""
    every = names(kind)
    return name if name in every else next((each for each in every if plain(each) == plain(name)), None)


@cache
def _policy(kind: str, name: str, plugin: Plugin) -> Policy:
    try:
        thing = plugin.load()
        if isinstance(thing, Policy):
            return replace(thing, name=name, origin=plugin.origin)
        if not is_policy(thing):
            raise UserError(f"is {type(thing).__name__}; must be a function, a class or a Policy")
        made = policy_of(name, kind, thing, kept=True)
        return replace(made, sha256=fingerprint(thing), origin=plugin.origin)
    except UserError as error:
        wrong = error if str(error).startswith("plug-in ") else plugin.wrong(error)
        raise SpecError(f"{kind}: {wrong}") from None


def listed(kind: str, built_in: "frozenset[str]") -> Iterator[tuple[str, Policy | str]]:
    """(name, the policy or what is wrong with it, one line) of every plug-in of a kind."""
    for name in names(kind):
        if plain(name) in built_in:
            yield name, f"built in; the plug-in of {plugins(GROUP)[f'{kind}.{name}'].origin} is not used"
            continue
        try:
            found = plugged(kind, name)
            assert found is not None
            yield name, found
        except SpecError as error:
            yield name, str(error)


def of_no_kind() -> list[str]:
    """One line for each plug-in whose name says no kind that it could be of."""
    right = f"its name must be KIND.NAME, a KIND of {', '.join(KINDS[:-1])}"
    return [str(each.wrong(right)) for name, each in plugins(GROUP).items() if name.partition(".")[0] not in KINDS[:-1]]
