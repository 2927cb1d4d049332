"""Where a card is too small: whether smaller KV entries, or fewer, would make room."""

from collections.abc import Iterable, Mapping
from typing import Any

from sim.costs.memory_split import TooSmall
from sim.memo import Memo
from sim.prepare import prepare
from sim.spec import RunSpec
from traces.errors import UserError

SMALLER = "q8"


def smaller_kv(specs: Iterable[RunSpec], longest: int, memo: Memo) -> str:
    """`; KV entries that leave room: --kv-precision q8, or --context 32768`: with either, one of the runs that do not
    fit the card as they are does. longest: tokens of a request, the least that a context may be. Nothing where neither
    helps."""
    short = [spec for spec in specs if _fits(spec, {}, memo) is False]
    ways = [f"--kv-precision {SMALLER}"] if _any_fits(short, {"kv_precision": SMALLER}, memo) else []
    context = min((spec.context or 0 for spec in short), default=0) // 2
    while context >= longest and not _any_fits(short, {"context": context}, memo):
        context //= 2
    ways += [f"--context {context}"] if context >= longest else []
    return f"; KV entries that leave room: {', or '.join(ways)}" if ways else ""


def _any_fits(specs: Iterable[RunSpec], changes: Mapping[str, Any], memo: Memo) -> bool:
    return any(_fits(spec, changes, memo) for spec in specs)


def _fits(spec: RunSpec, changes: Mapping[str, Any], memo: Memo) -> bool | None:
    """Whether the card holds it; None where something else is wrong with it."""
    try:
        prepare(RunSpec.of({**spec.asked(), **changes}), memo)
    except TooSmall:
        return False
    except UserError:
        return None
    return True
