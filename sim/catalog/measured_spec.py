"""What a device took, measured in place by `runtime.calibrate`: the [measured] section of a hardware file.

The terms are those of the simulated machine, each with its spread, so that a run costs what the device took and a
reader sees how well that is known. They hold for one model at one precision on one device: whoever simulates another
model takes a hardware file of catalog terms.
"""

from itertools import pairwise
from typing import Annotated, Literal

from pydantic import Field, field_validator, model_validator

from sim.catalog.link_spec import Link
from sim.catalog.model_spec import Kind
from sim.catalog.parts import Entry, Ns, Positive, Sized

TERMS = (
    "decide_ns",
    "group_ns",
    "commit_gap_ns",
    "transfer_idle_ns",
    "transfer_following_ns",
    "expert",
    "cpu_expert",
    "head",
    "dense",
)
Text = Annotated[str, Field(max_length=200, pattern=r"^[ -~]*$")]  # one line, for people
Fraction = Annotated[float, Field(ge=0, le=1e6)]


class Knots(Entry):
    """Durations at some numbers of tokens: `tokens` rises from 1, `ns` never falls. Between two knots the time is on
    the straight line between them, beyond the last one on the last line drawn out (one knot: constant)."""

    tokens: Annotated[tuple[Positive, ...], Field(strict=False, min_length=1)]
    ns: Annotated[tuple[Ns, ...], Field(strict=False, min_length=1)]

    @model_validator(mode="after")
    def _a_curve(self) -> "Knots":
        self._along("ns", self.ns)
        return self

    def _along(self, name: str, values: tuple[int, ...]) -> None:
        if self.tokens[0] != 1 or any(b <= a for a, b in pairwise(self.tokens)):
            raise ValueError(f"tokens: {list(self.tokens)}: must rise from 1")
        if len(values) != len(self.tokens):
            raise ValueError(f"{name}: {len(values)} values for {len(self.tokens)} numbers of tokens")
        for tokens, (a, b) in zip(self.tokens[1:], pairwise(values), strict=True):
            if b < a:
                raise ValueError(f"{name}: {b} at {tokens} tokens: less than with fewer tokens ({a})")


class HostKnots(Knots):
    """One expert on the host: `ns` while the link is idle, `busy_ns` while it carries something."""

    busy_ns: Annotated[tuple[Ns, ...], Field(strict=False, min_length=1)]

    @model_validator(mode="after")
    def _two_curves(self) -> "HostKnots":
        self._along("busy_ns", self.busy_ns)
        return self


class DenseKnots(Knots):
    """One layer without its routed experts, by the rows of the step: `ns` + `entry_ns` x KV entries scored.

    layer: `moe`, or `ffn` for one that has a dense FFN in their place; attention as in the model; phase of the step.
    """

    layer: Literal["moe", "ffn"] = "moe"
    attention: Kind = "full"
    phase: Literal["decode", "prefill"] = "decode"
    entry_ns: Fraction = 0.0

    @property
    def kind(self) -> tuple[str, str, str]:
        return self.layer, self.attention, self.phase


class Uncertainty(Entry):
    """How well a term is known. spread: (largest - smallest) / median of `repeats` independent fits; residual: median
    |measured - fitted| / fitted over `samples` observations."""

    spread: Fraction
    residual: Fraction
    repeats: Positive
    samples: Positive


class Measured(Sized):
    """Durations measured on a device; they replace every other cost, the engine's included.

    device, torch, date: where and when. model, precision, scale: what ran (`scale` < 1: a model with its hidden sizes
    shrunk for a small machine; memory is then not that of the model). expert_bytes: what one transfer carried.
    decide_ns: each visit; group_ns: each expert group, its first launch and the host's wake-up; transfer_idle_ns from
    the start on an idle link, transfer_following_ns behind another. dense: one table per kind of layer and phase;
    head: by the rows of a decode step (a prefill step counts as one). cpu_expert: absent where no expert ran on the
    host. link: set-up and size curve of bare copies, for reading and for hardware files of other models.
    uncertainty: by term.
    """

    device: Text
    torch: Text
    date: Text = ""
    model: Text
    precision: Text
    scale: Annotated[float, Field(gt=0, le=1)] = 1.0
    expert_bytes: Positive
    decide_ns: Ns
    group_ns: Ns = 0
    transfer_idle_ns: Ns
    transfer_following_ns: Ns
    commit_gap_ns: Ns = 0
    commit_depth: Positive = 1
    expert: Knots
    head: Knots
    cpu_expert: HostKnots | None = None
    dense: Annotated[tuple[DenseKnots, ...], Field(strict=False, min_length=1)]
    link: Link | None = None
    uncertainty: dict[str, Uncertainty] = Field(default_factory=dict)

    @field_validator("uncertainty")
    @classmethod
    def _of_terms(cls, value: dict[str, Uncertainty]) -> dict[str, Uncertainty]:
        for name in value:
            if name not in TERMS:
                raise ValueError(f"{name}: no such term; one of {', '.join(TERMS)}")
        return value

    @model_validator(mode="after")
    def _one_table_each(self) -> "Measured":
        kinds = [table.kind for table in self.dense]
        for kind in kinds:
            if kinds.count(kind) > 1:
                raise ValueError(f"dense: {' '.join(kind)}: given {kinds.count(kind)} times")
        return self
