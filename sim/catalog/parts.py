"""What all descriptions share: strict frozen pydantic models, and validation errors as one line."""

from collections.abc import Mapping
from typing import Annotated, Any, TypeVar

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, model_validator

from sim.catalog.files import did_you_mean
from sim.errors import CatalogError

MAX_NS = 10**15  # eleven days: a longer duration is a mistake of units

Ns = Annotated[int, Field(ge=0, le=MAX_NS)]
Count = Annotated[int, Field(ge=0, le=10**15)]
Positive = Annotated[int, Field(gt=0, le=10**15)]
# GB/s, GB, TFLOP/s; the lower bounds keep every duration far inside int64
Rate = Annotated[float, Field(ge=1e-6, le=1e12)]
Share = Annotated[float, Field(ge=1e-3, le=1)]


def _rising(factors: tuple[float, float]) -> tuple[float, float]:
    if factors[0] > factors[1]:
        raise ValueError("must be [low, high], factors on tokens/s")
    return factors


Factors = Annotated[tuple[Rate, Rate], Field(strict=False), AfterValidator(_rising)]  # low, high: on tokens/s


class Entry(BaseModel):
    """A described thing. `source` says where its figures come from; `sources` names the figures that come
    from elsewhere."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)

    name: str = ""
    aliases: tuple[str, ...] = Field(default=(), strict=False)
    source: str = ""
    sources: dict[str, str] = Field(default_factory=dict)
    note: str = ""


class Sized(Entry):
    """What may say how much GPU memory there is: `mem_gb` (1e9 bytes) or `mem_mib` (2**20 bytes), not both."""

    mem_gb: Rate | None = None
    mem_mib: Positive | None = None

    @model_validator(mode="after")
    def _one_size(self) -> "Sized":
        if self.mem_gb is not None and self.mem_mib is not None:
            raise ValueError(f"mem_gb = {self.mem_gb:g}, mem_mib = {self.mem_mib}: give one of the two")
        return self

    @property
    def mem_bytes(self) -> int | None:
        """GPU memory that a run may use, in bytes; None where it is not said."""
        if self.mem_mib is not None:
            return self.mem_mib << 20
        return None if self.mem_gb is None else round(self.mem_gb * 1e9)


E = TypeVar("E", bound=BaseModel)


def build(kind: type[E], label: str, table: Mapping[str, Any]) -> E:
    """`kind` from a TOML table; CatalogError, one line with label, field, value and what would be right."""
    try:
        return kind.model_validate(dict(table))
    except ValidationError as error:
        raise CatalogError(_one_line(kind, label, error)) from None


def _one_line(kind: type[BaseModel], label: str, error: ValidationError) -> str:
    found = error.errors(include_url=False)
    first = min(found, key=lambda e: e["type"] != "extra_forbidden")  # a misspelt key explains a missing one
    where = ".".join(str(part) for part in first["loc"])
    more = f" (and {error.error_count() - 1} more)" if error.error_count() > 1 else ""
    if first["type"] == "extra_forbidden":
        known = _fields_at(kind, first["loc"][:-1])
        key = str(first["loc"][-1])
        hint = did_you_mean(key, known) or "; known: " + ", ".join(known)
        return f"{label}: {where}: unknown key{hint}{more}"
    if first["type"] == "missing":
        return f"{label}: {where}: missing, and there is no default{more}"
    text = first["msg"].removeprefix("Value error, ").removeprefix("Input ")
    if first["type"] == "model_type":
        text = "should be a table"
    if first["type"] == "value_error" and isinstance(first["input"], Mapping):
        return f"{label}: {where}{': ' if where else ''}{text}{more}"
    return f"{label}: {where} = {_short(first['input'])}: {text}{more}"


def _fields_at(kind: type[BaseModel], path: tuple[int | str, ...]) -> list[str]:
    for part in path:
        field = kind.model_fields.get(str(part))
        inner = [t for t in _types(field.annotation if field else None) if issubclass(t, BaseModel)]
        if not inner:
            return []
        kind = inner[0]
    return list(kind.model_fields)


def _types(annotation: Any) -> list[type]:
    options = getattr(annotation, "__args__", (annotation,))
    return [t for t in options if isinstance(t, type)]


def _short(value: object) -> str:
    text = " ".join(repr(value).split())
    return text if len(text) <= 60 else f"{text[:57]}..."
