"""The link between host and device. GB/s is bytes per ns."""

import math
from itertools import pairwise
from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from sim.catalog.parts import Count, Entry, Ns, Positive, Rate


class Link(Entry):
    """Host to device, or an SSD to memory. Either `h2d_gb_per_s`, with `n_half_bytes` = the copy size that reaches half
    of it, or `curve` = [bytes, GB/s] points in rising size.

    setup_ns: before a transfer on an idle link; follow_setup_ns: before one that follows on; per_copy_ns:
    each copy of it. gen, lanes and facts are for the reader.
    """

    memory: Literal["pinned", "pageable"] = "pinned"
    gen: Positive | None = None
    lanes: Positive | None = None
    h2d_gb_per_s: Rate | None = None
    n_half_bytes: Count = 0
    curve: tuple[tuple[Rate, Rate], ...] | None = None
    setup_ns: Ns
    follow_setup_ns: Ns = 0
    per_copy_ns: Ns = 0
    facts: dict[str, Any] = Field(default_factory=dict)

    @field_validator("curve", mode="before")
    @classmethod
    def _points(cls, value: Any) -> Any:
        """TOML has lists where the field has tuples."""
        return tuple(tuple(p) if isinstance(p, list) else p for p in value) if isinstance(value, list) else value

    @model_validator(mode="after")
    def _one_law(self) -> "Link":
        if (self.h2d_gb_per_s is None) == (self.curve is None):
            raise ValueError("h2d_gb_per_s or curve: give one of the two")
        if self.curve is not None:
            if self.n_half_bytes or not self.curve:
                raise ValueError("curve: needs points, and no n_half_bytes beside it")
            for (size, rate), (next_size, next_rate) in pairwise(self.curve):
                if next_size <= size or next_size / next_rate < size / rate:
                    raise ValueError(f"curve: at {next_size:g} bytes: size must rise, and time must not fall")
        return self

    def scaled(self, factor: float) -> "Link":
        """The same link at so many times its rate."""
        if self.h2d_gb_per_s is not None:
            return self.model_copy(update={"h2d_gb_per_s": self.h2d_gb_per_s * factor})
        return self.model_copy(update={"curve": tuple((size, rate * factor) for size, rate in self.curve or ())})

    def rate(self, size: float) -> float:
        """Bytes per ns of one copy of `size` bytes. Between the points of a curve the rate is a power of the
        size (a straight line in log-log, so that time never falls with size); outside them it is that of the
        nearest point."""
        if self.h2d_gb_per_s is not None:
            return self.h2d_gb_per_s * size / (size + self.n_half_bytes) if size > 0 else self.h2d_gb_per_s
        assert self.curve is not None
        if size <= self.curve[0][0]:
            return self.curve[0][1]
        for (low, low_rate), (high, high_rate) in pairwise(self.curve):
            if size <= high:
                share = math.log(size / low) / math.log(high / low)
                return float(low_rate * (high_rate / low_rate) ** share)
        return self.curve[-1][1]
