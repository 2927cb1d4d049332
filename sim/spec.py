"""RunSpec: everything a run depends on, validated when it is made, saved with every result."""

import re
from collections.abc import Container, Mapping
from fractions import Fraction
from functools import cache
from typing import TYPE_CHECKING, Any, Literal

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    ModelWrapValidatorHandler,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)

from sim import catalog
from sim.engines import FIT, behaving, cache_goes_without_saying, set_by_engine, told
from sim.errors import SpecError, unknown
from sim.policies.kinds import KINDS, SPLIT, Value, parametrised, plain
from traces.slips import did_you_mean

if TYPE_CHECKING:
    from sim.catalog.engine_spec import Engine
    from sim.catalog.hardware_spec import Hardware

VERSION = 3  # of what the fields mean, saved with each spec; until 2 --engine named costs alone
MOST = 2**31 - 1  # of whatever is counted in rows, steps or tokens
LARGEST = 1e18  # of a parameter
WHOLE = "N"  # the metavar of whatever is a whole number
NUMBER = "X"  # of any other number
MOST_WINDOW = 256  # rows of a speculative window
WITHOUT_SLOTS = "without-slots"  # of dense_on_host: wherever there are none
ALL = "all"  # of accept: every row of a window
YES_NO = "yes|no"  # of what is true unless told otherwise
RATE = "GB/S"  # the metavar of a rate, 1e9 bytes/s
RATES = (1e-6, 1e9)  # of a host or a link; beyond, no duration would be an integer of ns
CHANGES = ("host", "host_gbps", "link_gbps")  # arguments of catalog.hardware beside its name
WORDED = ("cache_scope", "cache_spread", "transfer_order", "expert_group", "machine", "bulk", "merge", "reset")
_SIZE = re.compile(r"^(\d+(?:\.\d+)?)\s*(B|KB|MB|GB|TB|KiB|MiB|GiB)$", re.IGNORECASE | re.ASCII)
_ROWS = re.compile(r"^[1-9]\d{0,9}E?$", re.ASCII)
_LAYERS = re.compile(r"^layers:(first:)?(\d{1,9})$", re.ASCII)
_SLICE = re.compile(r"^(-?\d{1,18})?:(-?\d{1,18})?$", re.ASCII)
_ORDINALS = re.compile(r"^\d{1,18}(,\d{1,18})*$", re.ASCII)
_PERCENT = re.compile(r"^\s*\d+(?:\.\d+)?\s*%\s*$", re.ASCII)
_FILE = re.compile(r"(^|[\w)\]])\.[A-Za-z][A-Za-z0-9]*$")
_UNITS = {"b": 1, "kb": 1e3, "mb": 1e6, "gb": 1e9, "tb": 1e12, "kib": 2**10, "mib": 2**20, "gib": 2**30}


def flag(metavar: str | None, what: str, default: Any = ..., **limits: Any) -> Any:
    """A field and what its flag shows of it: the word for its value (None: it takes none), and what it says."""
    return Field(default, description=what, json_schema_extra={"metavar": metavar}, **limits)


def later(metavar: str | None, what: str, default: Any, **limits: Any) -> Any:
    """A field that came with version 2 or later: saved only where it is not the default, what a run did before."""
    return Field(default, description=what, json_schema_extra={"metavar": metavar, "later": True}, **limits)


class RunSpec(BaseModel):
    """One field per flag of `python -m sim.run`, under the same name.

    model None: the one that the trace names. cache: slots per layer (of the pool when cache_scope is global) as an
    int, a fraction of the experts as a float, bytes as text with a unit. prefetch_budget None: no limit. max_steps
    None: all.
    calibration: a trace file, or the fraction of the requests that are set aside. expert_group None: the engine's.
    set: parameters by `policy.param`, or `kind.policy.param` where two policies of the run have one name.
    What is not given an engine may set (`sim.engines`): a spec holds what the run does, whoever said it.
    engine_as_costs: it sets nothing. cache may be `fit`: as much of the engine's knob as `vram` (or the hardware's
    memory) holds beside the KV entries of `context` tokens a sequence.
    cache may also name the slots of each layer: `layers:N` all experts of the last N MoE layers and none elsewhere,
    `layers:first:N` of the first N, or a file of one number per MoE layer; n_cpu_moe and override_tensor say the same
    in llama.cpp's words (REGEX=CPU, several with commas between), and cache is None. What comes on a miss: bulk and
    what follows it, as in `sim.core.plan.OnMiss`; bulk_rows: so many rows, or `32E`: rows x top-k >= 32 x experts.
    speculate None: one token of a request in a decode step; draft_ns int ns.
    None: as the engine (cpu_visit_us), the host (link_share, ram) or the hardware (CHANGES) has it.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    trace: str = flag("FILE|SAMPLE", "routing trace; a name that is no file is a shipped sample")
    model: str | None = flag("NAME|FILE", "model whose sizes are charged (default: the trace's)", None)
    hardware: str = flag("NAME|FILE", "GPU, link and host, or fixed durations", "a100-pcie4")
    engine: str = flag("NAME|FILE", "what the inference engine does on a miss, and costs", "ideal")
    precision: str = flag("NAME", "precision of the experts: bf16, q8, q4, mxfp4, ...", "bf16")
    cache: int | float | str | None = flag(
        "0.5|24|20GB|fit|layers:[first:]N|FILE",
        "share of the experts, slots per layer (of the pool), bytes, or what fits; all of the last (first) N MoE "
        "layers and none elsewhere; a number per MoE layer",
        0.5,
    )
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
    transfer_chunk: str | None = later(
        "256KB", "bytes after which a demand may pass what is fetched ahead (default: a whole transfer)", None
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
    bulk: Literal["none", "fetch", "cpu", "stream", "remote", "split"] = later(
        "none|fetch|cpu|stream|remote|split", "the rule of steps of many rows, in place of --miss", "none"
    )
    bulk_rows: str | None = later("32|32E", "many rows: so many, or (32E) rows x top-k >= 32 x experts", None)
    bulk_touch: bool = later(
        YES_NO, "whether such steps touch and count the residents that they run (default: yes)", True
    )
    stages: int = later(WHOLE, "staging buffers of one expert each (default: 0, as many as needed)", 0, ge=0, le=MOST)
    serial: bool = later(None, "nothing of a layer runs on the GPU until its streamed copies have landed", False)
    merge: Literal["none", "runs"] = later("none|runs", "streamed copies of consecutive ids are one transfer", "none")
    whole_layer: bool = later(None, "where a layer streams, its unwanted experts are copied, too", False)
    ahead: int = later(WHOLE, "MoE layers streamed ahead, whole (default: 0)", 0, ge=0, le=MOST)
    beside: bool = later(YES_NO, "whether the GPU computes while the host does (default: yes)", True)
    defer: int = later(
        WHOLE,
        "host experts of a token, of least weight, that only the next layer waits for (default: 0)",
        0,
        ge=0,
        le=MOST,
    )
    link_share: float | None = later(
        NUMBER, "the link's rate while the host computes, as a share (default: the host's)", None, gt=0, le=1
    )
    cpu_visit_us: float | None = later(
        NUMBER, "once per layer that computes on the host, us (default: the engine's)", None, ge=0, le=1e9
    )
    n_cpu_moe: int | None = later(
        WHOLE, "the first N MoE layers have no slots, the others hold all experts", None, ge=0, le=MOST
    )
    override_tensor: str | None = later("REGEX=CPU", "the same by llama.cpp's tensor names", None, max_length=100_000)
    dense_on_host: str | None = later(
        "without-slots|layers:N|layers:first:N|FILE", "the MoE layers whose dense part is the host's, too", None
    )
    engine_as_costs: bool = later(None, "of the engine its costs alone, not what it does on a miss", False)
    vram: str | None = later("24GB", "memory of the GPU; without a --cache as much as fits is cached", None)
    context: int | None = later(
        WHOLE,
        "tokens of KV entries kept for each sequence (default: the longest request)",
        None,
        ge=1,
        le=MOST,
    )
    kv_precision: str = later("NAME", "precision of KV entries", "bf16")
    reset: Literal["none", "request"] = later("none|request", "each request begins as the first one did", "none")
    skip_prompts: bool = later(None, "prompt rows are not run: what a decoder alone sees", False)
    requests: str | None = later(
        "A:B|0,3,5|KEY=VALUE", "the requests of the trace, from 0, or a group of its meta; the rest is not there", None
    )
    warmup_share: float | None = later(
        NUMBER, "share of the steps that no figure counts, in the place of --warmup-steps", None, ge=0, lt=1
    )
    ram: str | None = later("64GB", "memory of the host (default: what the hardware says)", None)
    host: str | None = later("NAME|FILE", "a host in the place of the hardware's (sim.run --list-hosts)", None)
    host_gbps: float | None = later(
        RATE, "what the host reads, sustained, 1e9 bytes/s (default: what the hardware says)", None
    )
    speculate: int | None = later(
        WHOLE, "rows of a request in a decode step, a window of which some are accepted", None, ge=1, le=MOST_WINDOW
    )
    accept: float | str = later(
        "P|all|FILE",
        "of a window: how likely each row behind the first is accepted; or a file of how many rows are, window by "
        "window (default: all)",
        ALL,
    )
    draft_ns: int = later(
        WHOLE, "what the draft model takes for each row behind the first of a window, ns (default: 0)", 0, ge=0, le=MOST
    )
    link_gbps: float | None = later(
        RATE, "what the links send to the GPU, whatever the size; their set-up stays (default: the hardware's)", None
    )
    price_per_hour: float | None = later(
        NUMBER, "of the machine, in any currency: says what 1,000 tokens cost", None, gt=0, le=1e9
    )
    watts: float | None = later(
        NUMBER, "that the GPU takes while it computes: says Wh per 1,000 tokens", None, gt=0, le=1e6
    )
    idle_watts: float | None = later(NUMBER, "that it takes while it waits (default: as --watts)", None, ge=0, le=1e6)

    @field_validator(*KINDS, mode="before")
    @classmethod
    def _policy(cls, value: Any, info: ValidationInfo) -> Any:
        """A policy's name as it is written here: `LRU` and `gate_lookahead` name no other."""
        if not isinstance(value, str) or value == plain(value):
            return value
        from sim.policies.registry import canonical  # late: with it comes the core

        return canonical(str(info.field_name), value)

    @field_validator(*WORDED, mode="before")
    @classmethod
    def _word(cls, value: Any) -> Any:
        return plain(value) if isinstance(value, str) else value

    @field_validator("cache", mode="before")
    @classmethod
    def _cache(cls, value: Any) -> Any:
        if value is None:
            return None
        fit = isinstance(value, str) and value.strip().lower() == FIT
        return FIT if fit else per_layer(value) or parse_cache(value)

    @field_validator("bulk_rows", mode="before")
    @classmethod
    def _bulk_rows(cls, value: Any) -> Any:
        text = str(value).strip().upper()
        if isinstance(value, bool) or (value is not None and not _ROWS.match(text)):
            raise ValueError("must be rows (32), or 32E for rows x top-k >= 32 x experts; whole, from 1")
        return None if value is None else text

    @field_validator("bulk_touch", "beside", mode="before")
    @classmethod
    def _yes_or_no(cls, value: Any) -> Any:
        if not isinstance(value, bool) and value not in ("yes", "no"):
            raise ValueError("must be yes or no")
        return value in ("yes", True)

    @field_validator("link_share")
    @classmethod
    def _few_digits(cls, value: float | None) -> float | None:
        if value is not None and exact(value).denominator > 10**6:
            raise ValueError("must have at most six digits after the point")
        return value

    @field_validator("dense_on_host", mode="before")
    @classmethod
    def _dense_on_host(cls, value: Any) -> Any:
        if value not in (None, WITHOUT_SLOTS) and per_layer(value) is None:
            raise ValueError(f"must be {WITHOUT_SLOTS}, layers:N, layers:first:N or a file of 0 or 1 per MoE layer")
        return value

    @field_validator("requests")
    @classmethod
    def _requests(cls, value: str | None) -> str | None:
        if value is not None:
            parse_requests(value)
        return value

    @field_validator("ram", "vram", "transfer_chunk")
    @classmethod
    def _memory(cls, value: str | None) -> str | None:
        if value is not None:
            memory_bytes(value)
        return value

    @field_validator("host_gbps", "link_gbps", mode="before")
    @classmethod
    def _rate(cls, value: Any) -> Any:
        rate = number(value) if isinstance(value, str) else value
        if value is None:
            return None
        if isinstance(rate, bool) or not isinstance(rate, (int, float)) or not rate > 0:
            plain = re.fullmatch(r"(\d+(?:\.\d+)?)\s*GB(?:/S|PS)?", str(value).strip(), re.IGNORECASE | re.ASCII)
            meant = f"; did you mean {plain[1]}?" if plain else ""
            raise ValueError(f"must be more than 0, in GB/s (1e9 bytes){meant}")
        if not RATES[0] <= rate <= RATES[1]:
            raise ValueError(f"must be from {RATES[0]:g} to {RATES[1]:g}, in GB/s (1e9 bytes)")
        return float(rate)

    @field_validator("accept", mode="before")
    @classmethod
    def _accept(cls, value: Any) -> Any:
        share = number(value) if isinstance(value, str) else value
        if value == ALL or share is None:
            return value
        if isinstance(share, bool) or not isinstance(share, (int, float)) or not 0 <= share <= 1:
            raise ValueError(f"must be a share from 0 to 1, {ALL}, or a file of counts")
        return float(share)

    @field_validator("calibration", mode="before")
    @classmethod
    def _calibration(cls, value: Any) -> Any:
        fraction = number(value) if isinstance(value, str) else value
        if isinstance(fraction, (int, float)) and not 0 < fraction < 1:
            meant = f"; did you mean {fraction / 100 if fraction > 1 else 0.3:g}?" if 1 <= fraction < 100 else ""
            raise ValueError(f"must be a file, or a fraction between 0 and 1{meant}")
        if isinstance(value, str) and _PERCENT.match(value) and not _FILE.search(value):
            raise ValueError(f"must be a file, or a fraction between 0 and 1; {of_percent(value)}")
        return value if fraction is None else float(fraction)

    @field_validator("set")
    @classmethod
    def _set(cls, value: dict[str, Value]) -> dict[str, Value]:
        for key, given in value.items():
            if not isinstance(given, str) and not abs(given) <= LARGEST:  # NaN is not either
                raise ValueError(f"{key}: must be a number of at most {LARGEST:g}")
        return value

    @model_validator(mode="after")
    def _power(self) -> "RunSpec":
        if self.idle_watts is not None and self.watts is None:
            raise SpecError(f"idle_watts: {self.idle_watts:g}: goes with --watts, which is missing")
        if self.idle_watts is not None and self.watts is not None and self.idle_watts > self.watts:
            raise SpecError(f"idle_watts: {self.idle_watts:g}: must be at most --watts, {self.watts:g}, at work")
        return self

    @model_validator(mode="after")
    def _counting(self) -> "RunSpec":
        if self.reset == "request" and self.batch > 1:
            raise SpecError(f"reset: request: with --batch {self.batch} requests share the cache; must be --batch 1")
        if self.skip_prompts and self.as_decode:
            raise SpecError("skip_prompts: with --as-decode prompt rows are run; give one of the two")
        if self.warmup_share and self.warmup_steps:
            raise SpecError(
                f"warmup_share: {self.warmup_share}: says what --warmup-steps does, too; give one of the two"
            )
        return self

    @model_validator(mode="wrap")
    @classmethod
    def _with_its_engine(cls, data: Any, handler: ModelWrapValidatorHandler["RunSpec"]) -> "RunSpec":
        """With what its engine sets (or --vram); where that is nothing, as it is given."""
        spec = handler(data)
        given = {name: getattr(spec, name) for name in RunSpec.model_fields if name in spec.model_fields_set}
        more = set_by_engine(given, defaults(), per_layer)
        try:
            made = handler({**given, **more}) if more else spec
            for name in more:
                if name != "set" and getattr(made, name) != more[name]:
                    right = f"must be written as {getattr(made, name)!r}"
                    raise SpecError(f"engine {spec.engine}: sets.{name}: {more[name]!r}: {right}")
            return made
        except ValidationError as error:
            first = error.errors()[0]
            wrong = f"sets.{first['loc'][0]}: {first['input']!r}: {first['msg'].removeprefix('Value error, ')}"
            raise SpecError(f"engine {spec.engine}: {wrong}") from None

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
            if not first["loc"]:  # of the whole: an engine's refusal
                raise SpecError(f"{where}{first['msg'].removeprefix('Value error, ')}") from None
            name = ".".join(str(part) for part in first["loc"][: 2 if first["loc"][0] == "set" else 1])
            given = repr(first["input"])
            raise SpecError(
                f"{where}{name}: {given if len(given) <= 80 else given[:77] + '...'}: {_wrong(first)}"
            ) from None

    @property
    def policies(self) -> dict[str, str]:
        """The name of the policy of each kind."""
        return {kind: getattr(self, kind) for kind in KINDS}

    def params(self, kind: str) -> dict[str, Value]:
        """The parameters given to the policy of a kind (one of KINDS, or `bulk`). Raises SpecError for one that nobody
        of the run has."""
        from sim.policies.registry import assigned  # late: with it comes the core

        found = assigned(parametrised(self.policies, self.bulk), self.set)
        return found.get(kind, found["miss"] if self.bulk == SPLIT else {})

    def saved(self, leave_out: Container[str] = ()) -> dict[str, Any]:
        """The fields as they are kept with a result, and the version of what they mean: those that came with version 2
        or later only where they are not the default, or where an engine would set another."""
        fields = {**self.model_dump(), "version": VERSION}
        every, mine = RunSpec.model_fields, self.who_set["you"]
        return {
            name: value
            for name, value in fields.items()
            if name not in leave_out
            and not (name in every and came_later(name) and value == every[name].default and name not in mine)
        }

    @property
    def changes(self) -> dict[str, Any]:
        """What is asked for in the place of the hardware's own, as arguments of `catalog.hardware`."""
        return {name: value for name in CHANGES if (value := getattr(self, name)) is not None}

    def described(self) -> "Hardware":
        """The hardware, changed as asked for. Raises CatalogError."""
        return catalog.hardware(self.hardware, **self.changes)

    @property
    def behaves(self) -> "Engine | None":
        """The engine, where it sets what the run does."""
        return None if self.engine_as_costs else behaving(self.engine)

    @property
    def who_set(self) -> dict[str, dict[str, Any]]:
        """What the `engine` set, and what of an engine's to set `you` did; nothing where it sets nothing."""
        engine = self.behaves
        return {"engine": {}, "you": {}} if engine is None else told(engine, self.model_dump(), defaults())

    def asked(self) -> dict[str, Any]:
        """The fewest fields that give this spec: what is not a default, nor the engine's."""
        who, fields = self.who_set, self.model_dump()
        unsaid = {"set", *who["engine"], *(["cache"] if cache_goes_without_saying(self.behaves, fields) else [])}
        said = (name for name in fields if fields[name] != defaults()[name] or name in who["you"])
        parameters = {key: value for key, value in self.set.items() if f"set.{key}" not in who["engine"]}
        return {name: fields[name] for name in said if name not in unsaid} | ({"set": parameters} if parameters else {})


_MUST = {  # pydantic's kinds of errors, in the words of this project
    "greater_than_equal": "must be at least {ge}",
    "greater_than": "must be above {gt}",
    "less_than": "must be below {lt}",
    "less_than_equal": "must be at most {le}",
    "int_type": "must be a whole number",
    "float_type": "must be a number",
    "string_type": "must be text",
    "bool_type": "must be true or false",
    "literal_error": "must be {expected}",
}


def _wrong(error: Mapping[str, Any]) -> str:
    """What pydantic says of a value: what it must be and, of a word, the nearest there is."""
    context = error.get("ctx", {})
    if error["type"] not in _MUST:
        return str(error["msg"]).removeprefix("Value error, ")
    known = re.findall(r"'([^']*)'", str(context.get("expected", "")))
    return _MUST[error["type"]].format(**context) + did_you_mean(str(error["input"]).lower(), known)


@cache
def defaults() -> dict[str, Any]:
    """Of every field; of `trace`, which has none, an empty name."""
    fields = RunSpec.model_fields.items()
    return {name: "" if field.is_required() else field.default for name, field in fields}


def came_later(name: str) -> bool:
    """Whether a field came with version 2 or later."""
    extra = RunSpec.model_fields[name].json_schema_extra
    return isinstance(extra, dict) and "later" in extra


def number(text: str) -> float | None:
    """The number that a text is; None where it is none."""
    try:
        return float(text)
    except ValueError:
        return None


def exact(value: float) -> Fraction:
    """The decimal that a number was written as: 0.35 is 7/20."""
    return Fraction(repr(value))


def per_layer(value: Any) -> str | None:
    """The text where it says something of each layer: layers:N, layers:first:N, or the name of a file; else None.
    Raises ValueError for `layers:` without a number."""
    text = value.strip() if isinstance(value, str) else ""
    if text.startswith("layers:") and parse_layers(text) is None:
        raise ValueError("must be layers:N (the last N MoE layers) or layers:first:N")
    return text if text.startswith("layers:") or _FILE.search(text) else None


def parse_layers(text: str) -> tuple[bool, int] | None:
    """(whether the first ones, how many) of layers:N and layers:first:N; None of anything else."""
    found = _LAYERS.match(text)
    return None if found is None else (found[1] is not None, int(found[2]))


def of_percent(text: str) -> str:
    """Of `30%`, what was meant."""
    return f"did you mean {float(text.strip().rstrip('%')) / 100:g}?"


def parse_cache(value: Any) -> int | float | str:
    """`0.5` a fraction, `24` slots, `20GB` bytes. Raises ValueError saying which of them a value should have been."""
    if isinstance(value, str) and not _SIZE.match(value.strip()):
        share = number(value)
        if share is None:
            meant = f"; {of_percent(value)}" if _PERCENT.match(value) else _with_unit(value)
            raise ValueError(f"must be slots (24), a fraction of the experts (0.5) or bytes (20GB){meant}")
        value = share if not value.strip().lstrip("+-").isdigit() else int(value)
    if isinstance(value, bool) or not isinstance(value, (int, float, str)):
        raise ValueError("must be slots (24), a fraction of the experts (0.5) or bytes (20GB)")
    if isinstance(value, int) and value < 1:
        raise ValueError("must be at least one slot")
    if isinstance(value, float) and not 0 < value <= 1:
        raise ValueError("a fraction must lie in (0, 1]; slots are whole numbers")
    return value.strip() if isinstance(value, str) else value


def parse_requests(text: str) -> slice | list[int] | tuple[str, str]:
    """A:B as Python's slice, ordinals with commas between, or (key, value) of a group. Raises ValueError."""
    key, equals, value = text.partition("=")
    if equals and key and value:
        return key, value
    if found := _SLICE.match(text):
        return slice(*(int(end) if end else None for end in found.groups()))
    if _ORDINALS.match(text):
        return [int(ordinal) for ordinal in text.split(",")]
    raise ValueError("must be A:B, ordinals from 0 (0,3,5) or KEY=VALUE of a group, such as domain=code")


def slots_of(cache: int | float, experts: int) -> int:
    """Slots of a scope of so many experts: the int itself, of a fraction the whole ones, at least one."""
    return max(1, int(cache * experts)) if isinstance(cache, float) else cache


def cache_bytes(text: str) -> int:
    """Bytes of a size with a unit (GB = 1e9, GiB = 2**30). Raises ValueError for anything else."""
    found = _SIZE.match(text.strip())
    if found is None or len(text) > 40:
        raise ValueError(f"must be bytes with a unit, such as 24GB{_with_unit(text)}")
    return int(float(found[1]) * _UNITS[found[2].lower()])


def _with_unit(text: str) -> str:
    """Of `24` or `24G`, the size in GB that was probably meant."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([KMGT])?", text.strip(), re.IGNORECASE | re.ASCII)
    if found is None or len(text) > 40:
        return ""
    usual = "MiB" if float(found[1]) >= 1000 else "GB"  # as drivers say it
    return f"; did you mean {found[1]}{f'{found[2].upper()}B' if found[2] else usual}?"


def memory_bytes(text: str) -> int:
    """Bytes of memory that is stated to be there. Raises ValueError for what is no size with a unit, and for none."""
    size = 0 if number(text) == 0 else cache_bytes(text)
    if size == 0:
        raise ValueError("must be above 0")
    return size
