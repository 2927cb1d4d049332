"""Plug-ins: what other distributions offer under entry points of ours; nothing of them is imported before it is used.

    [project.entry-points."moe_offload_sim.policies"]
    "eviction.mine" = "my_package.policies:mine"

Groups: policies (sim.policies.plugged), readers (traces.foreign.registry), engines (sim.catalog.held).
"""

import sys
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any

from traces.errors import UserError

if TYPE_CHECKING:
    from importlib.metadata import EntryPoint

GROUP = "moe_offload_sim."


@dataclass(frozen=True)
class Plugin:
    """One entry point. name: under which it is asked for; of: distribution and version; also: other distributions that
    have one of this name."""

    name: str
    of: str
    entry: "EntryPoint"
    also: tuple[str, ...] = ()

    @property
    def origin(self) -> str:
        """Where it comes from, for people and for results: `my-package 0.1 (my_package.policies:mine)`."""
        return f"{self.of} ({self.entry.value})"

    def load(self) -> Any:
        """What it names. Raises UserError, one line that names the distribution, where that fails."""
        if self.also:
            raise self.wrong(f"{' and '.join(self.also)} has one of this name, too; uninstall one")
        try:
            return self.entry.load()
        except (Exception, SystemExit) as error:
            raise self.wrong(f"{type(error).__name__}: {error}") from None

    def wrong(self, why: object) -> UserError:
        """Of a plug-in that is of no use."""
        return UserError(f"plug-in {self.name} of {self.origin}: {why}")


def plugins(group: str) -> dict[str, Plugin]:
    """The plug-ins of a group by name, sorted."""
    return _found(group, tuple(sys.path))


@cache
def _found(group: str, _path: tuple[str, ...]) -> dict[str, Plugin]:
    """Remembered for as long as Python looks in the same places."""
    out: dict[str, Plugin] = {}
    for of, entry in _entries(GROUP + group):
        before = out.get(entry.name)
        out[entry.name] = Plugin(entry.name, of, entry) if before is None else _twice(before, of)
    return dict(sorted(out.items()))


def _twice(plugin: Plugin, of: str) -> Plugin:
    return Plugin(plugin.name, plugin.of, plugin.entry, (*plugin.also, of))


def _entries(group: str) -> Iterator[tuple[str, "EntryPoint"]]:
    """(distribution, entry point); of several copies of one distribution the first that Python finds counts."""
    from importlib.metadata import distributions  # late: nobody pays for it who asks for no plug-in

    seen = set()
    for each in distributions():
        found = each.entry_points.select(group=group)
        if found and each.metadata["Name"] not in seen:
            seen.add(each.metadata["Name"])
            yield from ((f"{each.metadata['Name']} {each.version}", entry) for entry in found)
