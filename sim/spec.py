"""RunSpec: everything a run depends on, validated when it is made, saved with every result."""

import re
from collections.abc import Mapping
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from sim.errors import SpecError, unknown
from sim.policies.kinds import KINDS, Value

MOST = 2**31 - 1  # of whatever is counted in rows, steps or tokens
LARGEST = 1e18  # of a parameter
WHOLE = "N"  # the metavar of whatever is a whole number
_SIZE = re.compile(r"^(\d+(?:\.\d+)?)\s*(B|KB|MB|GB|TB|KiB|MiB|GiB)$", re.IGNORECASE | re.ASCII)
_UNITS = {"b": 1, "kb": 1e3, "mb": 1e6, "gb": 1e9, "tb": 1e12, "kib": 2**10, "mib": 2**20, "gib": 2**30}


def flag(metavar: str | None, what: str, default: Any = ..., **limits: Any) -> Any:
    """A field and what its flag shows of it: the word for its value (None: it takes none), and what it says."""
    return Field(default, description=what, json_schema_extra={"metavar": metavar}, **limits)


class RunSpec(BaseModel):
    """One field per flag of `python -m sim.run`, under the same name.

    model None: the one that the trace names. cache: slots per layer (of the pool when cache_scope is global) as an
    int, a fraction of the experts as a float, bytes as text with a unit. prefetch_budget None: no limit. max_steps
    None: all.
    calibration: a trace file, or the fraction of the requests that are set aside. expert_group None: the engine's.
    set: parameters by `policy.param`, or `kind.policy.param` where two policies of the run have one name.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    trace: str = flag("FILE|SAMPLE", "routing trace; a name that is no file is a shipped sample")
    model: str | None = flag("NAME|FILE", "model whose sizes are charged (default: the trace's)", None)
    hardware: str = flag("NAME|FILE", "GPU, link and host, or fixed durations", "a100-pcie4")
    engine: str = flag("NAME|FILE", "what the inference engine itself costs", "ideal")
    precision: str = flag("NAME", "precision of the experts: bf16, q8, q4, mxfp4, ...", "bf16")
    cache: int | float | str = flag("0.5|24|20GB", "share of the experts, slots per layer (of the pool), or bytes", 0.5)
    cache_scope: Literal["layer", "global"] = flag("layer|global", "slots of each layer's own, or one pool", "layer")
    cache_spread: Literal["even", "marginal"] = flag(
        "even|marginal", "slots of the layers alike, or where the calibration hits more", "even"
    )
    eviction: str = flag("NAME|FILE.py:F", "which resident makes room", "lru")
    prefetch: str = flag("NAME|FILE.py:F", "what is fetched before it is wanted", "none")
    prefetch_budget: int | None = flag(WHOLE, "prefetches that may join per visit (default: all)", None, ge=0, le=MOST)
    miss: str = flag("NAME|FILE.py:F", "what happens when a wanted expert is not there", "fetch")
    rerank: str = flag("NAME|FILE.py:F", "re-ranking of the routed experts", "none")
    placement: str = flag("NAME", "first residents", "first")
    transfer_order: Literal["fifo", "nearest-layer", "probability"] = flag(
        "NAME", "fifo, nearest-layer or probability, among prefetches", "fifo"
    )
    expert_group: Literal["one", "ready", "all"] | None = flag(
        "one|ready|all", "how the GPU takes experts (default: the engine's)", None
    )
    batch: int = flag(WHOLE, "requests that decode together", 1, ge=1, le=MOST)
    prefill_chunk: int = flag(WHOLE, "tokens of a prefill step", 512, ge=1, le=MOST)
    as_decode: bool = flag(None, "run prompt rows as decode steps", False)
    context_offset: int = flag(WHOLE, "added to every position", 0, ge=0, le=MOST)
    warmup_steps: int = flag(WHOLE, "first steps that no figure counts", 0, ge=0, le=MOST)
    max_steps: int | None = flag(WHOLE, "stop after so many steps", None, ge=1, le=MOST)
    calibration: str | float | None = flag("FILE|FRACTION", "what policies are fitted on; never judged", None)
    seed: int = flag(WHOLE, "of everything random", 0, ge=0, lt=2**63)
    machine: Literal["compiled", "simpy"] = flag(
        "compiled|simpy", "which machine; they agree to the nanosecond", "compiled"
    )
    set: dict[str, Value] = flag(
        "[KIND.]POLICY.PARAM=VALUE", "a parameter of a chosen policy (KIND where two policies have one name)", {}
    )

    @field_validator("cache", mode="before")
    @classmethod
    def _cache(cls, value: Any) -> Any:
        return parse_cache(value)

    @field_validator("calibration", mode="before")
    @classmethod
    def _calibration(cls, value: Any) -> Any:
        fraction = number(value) if isinstance(value, str) else value
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
        """The parameters given to the policy of a kind (one of KINDS). Raises SpecError for one that nobody of the run
        has."""
        from sim.policies.registry import assigned  # late: with it comes the core

        return assigned(self.policies, self.set)[kind]


def number(text: str) -> float | None:
    """The number that a text is; None where it is none."""
    try:
        return float(text)
    except ValueError:
        return None


def parse_cache(value: Any) -> int | float | str:
    """`0.5` a fraction, `24` slots, `20GB` bytes. Raises ValueError saying which of them a value should have been."""
    if isinstance(value, str) and not _SIZE.match(value.strip()):
        share = number(value)
        if share is None:
            raise ValueError("must be slots (24), a fraction of the experts (0.5) or bytes (20GB)")
        value = share if not value.strip().lstrip("+-").isdigit() else int(value)
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
