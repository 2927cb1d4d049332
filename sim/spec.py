"""RunSpec: everything a run depends on, validated when it is made, saved with every result."""

import re
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from sim.errors import SpecError, unknown
from sim.policies.policy import Value
from sim.policies.registry import KINDS, assigned

MOST = 2**31 - 1  # of whatever is counted in rows, steps or tokens
LARGEST = 1e18  # of a parameter
Steps = Annotated[int, Field(ge=0, le=MOST)]
_SIZE = re.compile(r"^(\d+(?:\.\d+)?)\s*(B|KB|MB|GB|TB|KiB|MiB|GiB)$", re.IGNORECASE | re.ASCII)
_UNITS = {"b": 1, "kb": 1e3, "mb": 1e6, "gb": 1e9, "tb": 1e12, "kib": 2**10, "mib": 2**20, "gib": 2**30}


class RunSpec(BaseModel):
    """One field per flag of `python -m sim.run`, under the same name.

    model None: the one that the trace names. cache: slots per layer (of the pool when cache_scope is global) as an
    int, a fraction of the experts as a float, bytes as text with a unit. prefetch_budget None: no limit. max_steps
    None: all.
    calibration: a trace file, or the fraction of the requests that are set aside. expert_group None: the engine's.
    set: parameters by `policy.param`, or `kind.policy.param` where two policies of the run have one name.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    trace: str
    model: str | None = None
    hardware: str = "a100-pcie4"
    engine: str = "ideal"
    precision: str = "bf16"
    cache: int | float | str = 0.5
    cache_scope: Literal["layer", "global"] = "layer"
    cache_spread: Literal["even", "marginal"] = "even"
    eviction: str = "lru"
    prefetch: str = "none"
    prefetch_budget: Steps | None = None
    miss: str = "fetch"
    rerank: str = "none"
    placement: str = "first"
    transfer_order: Literal["fifo", "nearest-layer", "probability"] = "fifo"
    expert_group: Literal["one", "ready", "all"] | None = None
    batch: Annotated[int, Field(ge=1, le=MOST)] = 1
    prefill_chunk: Annotated[int, Field(ge=1, le=MOST)] = 512
    as_decode: bool = False
    context_offset: Steps = 0
    warmup_steps: Steps = 0
    max_steps: Annotated[int, Field(ge=1, le=MOST)] | None = None
    calibration: str | float | None = None
    seed: Annotated[int, Field(ge=0, lt=2**63)] = 0
    machine: Literal["compiled", "simpy"] = "compiled"
    set: dict[str, Value] = Field(default_factory=dict)

    @field_validator("cache", mode="before")
    @classmethod
    def _cache(cls, value: Any) -> Any:
        return parse_cache(value)

    @field_validator("calibration", mode="before")
    @classmethod
    def _calibration(cls, value: Any) -> Any:
        fraction = _number(value) if isinstance(value, str) else value
        if isinstance(fraction, (int, float)) and not 0 < fraction < 1:
            raise ValueError(f"{value!r} must be a file, or a fraction between 0 and 1")
        return value if fraction is None else float(fraction)

    @field_validator("set")
    @classmethod
    def _set(cls, value: dict[str, Value]) -> dict[str, Value]:
        for key, given in value.items():
            if not isinstance(given, str) and not abs(given) <= LARGEST:  # NaN is not either
                raise ValueError(f"{key}: must be a number of at most {LARGEST:g}")
        return value

    @classmethod
    def of(cls, fields: Mapping[str, Any], where: str = "") -> "RunSpec":
        """A spec from plain values (`where` names their file in errors). Raises SpecError, one line."""
        for key in fields:
            if key not in cls.model_fields:
                raise unknown(f"{where}field", key, cls.model_fields)
        try:
            return cls(**fields)
        except ValidationError as error:
            first = error.errors()[0]
            name = ".".join(str(part) for part in first["loc"][: 2 if first["loc"][0] == "set" else 1])
            wrong = first["msg"].removeprefix("Value error, ")
            given = repr(first["input"])
            raise SpecError(f"{where}{name}: {given if len(given) <= 80 else given[:77] + '...'}: {wrong}") from None

    @property
    def policies(self) -> dict[str, str]:
        """The name of the policy of each kind."""
        return {kind: getattr(self, kind) for kind in KINDS}

    def params(self, kind: str) -> dict[str, Value]:
        """The parameters given to the policy of a kind (policies.KINDS). Raises SpecError for one that nobody of the
        run has."""
        return assigned(self.policies, self.set)[kind]


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None


def parse_cache(value: Any) -> int | float | str:
    """`0.5` a fraction, `24` slots, `20GB` bytes. Raises ValueError saying which of them a value should have been."""
    if isinstance(value, str) and not _SIZE.match(value.strip()):
        number = _number(value)
        if number is None:
            raise ValueError("must be slots (24), a fraction of the experts (0.5) or bytes (20GB)")
        value = number if not value.strip().lstrip("+-").isdigit() else int(value)
    if isinstance(value, bool) or not isinstance(value, (int, float, str)):
        raise ValueError("must be slots (24), a fraction of the experts (0.5) or bytes (20GB)")
    if isinstance(value, int) and value < 1:
        raise ValueError("must be at least one slot")
    if isinstance(value, float) and not 0 < value <= 1:
        raise ValueError("a fraction must lie in (0, 1]; slots are whole numbers")
    return value.strip() if isinstance(value, str) else value


def slots_of(cache: int | float, experts: int) -> int:
    """Slots of a scope of so many experts: the int itself, of a fraction the whole ones, at least one."""
    return max(1, int(cache * experts)) if isinstance(cache, float) else cache


def cache_bytes(text: str) -> int:
    """Bytes of a size with a unit (GB = 1e9, GiB = 2**30). Raises ValueError for anything else."""
    found = _SIZE.match(text.strip())
    if found is None or len(text) > 40:
        raise ValueError("must be bytes with a unit, such as 24GB")
    return int(float(found[1]) * _UNITS[found[2].lower()])


def memory_bytes(text: str) -> int:
    """Bytes of memory that is stated to be there. Raises ValueError for what is no size with a unit, and for none."""
    size = cache_bytes(text)
    if size == 0:
        raise ValueError("must be above 0")
    return size
