"""What a timeline takes from the spec of a run, because the record has only what came of it."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Asked:
    """serial: visits wait for all their copies into stages; ahead: so many layers ahead are streamed; link_share: what
    is left of the link's rate while the host computes, None: the hardware's, which the spec does not say; measured: its
    times are a device's; reset: each request begins as the first one did."""

    serial: bool = False
    ahead: int = 0
    link_share: float | None = None
    measured: bool = False
    reset: bool = False

    @staticmethod
    def of(spec: Mapping[str, Any], measured: bool = False) -> "Asked":
        """From the spec in a summary; what it does not name was not asked for."""
        share = spec.get("link_share")
        share = float(share) if isinstance(share, int | float) else None
        ahead = spec.get("ahead")
        layers = ahead if isinstance(ahead, int) else 0
        return Asked(bool(spec.get("serial")), layers, share, measured, spec.get("reset") == "request")


NOTHING = Asked()
