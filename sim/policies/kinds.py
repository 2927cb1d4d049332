"""The kinds of policies, and what a parameter of one may be: all that a spec must know of them."""

from collections.abc import Mapping

KINDS = ("eviction", "prefetch", "miss", "rerank", "placement")
BULK = "bulk"  # the rule of visits of many rows: a miss policy, beside the run's own
SPLIT = "split"  # the one bulk rule that has parameters; as miss policy and bulk rule of one run it has them once
Value = float | int | str | bool


def plain(name: str) -> str:
    """A policy's name without case, underscores as hyphens: two names are the same when this is."""
    return name.lower().replace("_", "-")


def parametrised(chosen: Mapping[str, str], bulk: str) -> dict[str, str]:
    """The policies of a run that may be given parameters, by kind: those chosen, and a bulk rule split that is not the
    miss policy, too."""
    return {**chosen, **({BULK: bulk} if bulk == SPLIT != chosen["miss"] else {})}
