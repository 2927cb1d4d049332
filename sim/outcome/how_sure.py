"""How sure the speeds of a run are, as figures and in words."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from sim.catalog.intervals import DECODE, LEVEL, PREFILL, interval, stated

if TYPE_CHECKING:
    from sim.prepare import Setting

PHASES = {"tokens_per_s": DECODE, "prompt_tokens_per_s": PREFILL}  # key of the summary -> phase
NOT_CALIBRATED = "not calibrated"
TIE = 0.01  # two speeds that differ by no more have no winner


def key_of(speed: str) -> str:
    """The summary's key of the interval of a speed."""
    return f"{speed}_interval"


def intervals(setting: "Setting", out: Mapping[str, Any]) -> dict[str, list[float] | None]:
    """[low, high] tokens/s of each speed that `out` has. What is known of an engine holds where it does what it is
    known for: its costs beside other policies have what a file states alone."""
    spec = setting.spec
    of = interval if spec.behaves is not None else stated
    found = {speed: of(spec.engine, setting.hardware, phase) for speed, phase in PHASES.items() if speed in out}
    return {key_of(speed): None if each is None else each.of(out[speed]) for speed, each in found.items()}


def any_interval(out: Mapping[str, Any]) -> bool:
    """Whether a summary has the interval of one of its speeds."""
    return any(out.get(key_of(speed)) for speed in PHASES)


def how_sure(pair: Sequence[float] | None, catalog_costs: bool | None) -> str:
    """Behind a speed: ` (80 %: 38.00-55.20)`; of one from catalog costs without an interval that nobody has measured
    how far off those are; nothing of others."""
    if pair is not None:
        return f" ({100 * LEVEL:g} %: {between(pair)})"
    return f" ({NOT_CALIBRATED})" if catalog_costs else ""


def overlap(one: Sequence[float] | None, other: Sequence[float] | None) -> bool:
    """Whether two speeds cannot be told apart; not of what nobody knows. Only of different engines: policies on one
    engine and machine share the error of its costs, so their ratio is far surer than either speed."""
    return one is not None and other is not None and one[0] <= other[1] and other[0] <= one[1]


def between(pair: Sequence[float]) -> str:
    """`38.00-55.20`."""
    return f"{pair[0]:,.2f}-{pair[1]:,.2f}"
