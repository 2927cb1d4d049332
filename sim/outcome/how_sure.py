"""How sure the speeds of a run are, as figures and in words."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from sim.catalog.intervals import DECODE, LEVEL, PREFILL, interval, stated

if TYPE_CHECKING:
    from sim.prepare import Setting

PHASES = {"tokens_per_s": DECODE, "prompt_tokens_per_s": PREFILL}  # key of the summary -> phase
NOT_CALIBRATED = "not calibrated"


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


def between(pair: Sequence[float] | None) -> str:
    """` (80 %: 38.00-55.20)`, nothing of None."""
    return "" if pair is None else f" ({100 * LEVEL:g} %: {pair[0]:,.2f}-{pair[1]:,.2f})"


def how_sure(out: Mapping[str, Any], speed: str) -> str:
    """Behind a speed of a summary: its interval, or that nobody has measured how far costs from catalog rates are off;
    nothing of a speed that is None, or whose durations are given outright."""
    pair = out.get(key_of(speed))
    unknown = pair is None and out["marks"].get("catalog_costs") and out.get(speed) is not None
    return f" ({NOT_CALIBRATED})" if unknown else between(pair)
