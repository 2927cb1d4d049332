"""The few facts about a model that an import asks for: layers, MoE layers, experts per layer, top-k.

They come from flags, or from the shipped catalog by the model's name. The catalog is data (sim/catalog/models.toml):
this room reads the data and imports nothing of the simulator's.
"""

import re
import tomllib
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from traces.errors import TraceError
from traces.format.limits import MOST_LAYERS
from traces.slips import did_you_mean

ROUTER = ("score_function", "norm_topk", "routed_scaling_factor", "router")
MOST_OF_A_SHAPE = 10_000  # experts of a layer, layers, of a file
CATALOG = Path(__file__).resolve().parents[2] / "sim" / "catalog" / "models.toml"


@dataclass(frozen=True)
class Model:
    """What is known of a model before its log is read; None: not known. moe_layers: indices from 0, ascending.
    hint: said after what is asked for (that the catalog does not have the name, the nearest name). The others, of the
    catalog alone: how router logits become weights, and in words how experts are chosen."""

    name: str
    n_experts: int | None = None
    top_k: int | None = None
    n_layers: int | None = None
    moe_layers: tuple[int, ...] | None = None
    hint: str = ""
    score_function: str | None = None
    norm_topk: bool | None = None
    routed_scaling_factor: float = 1.0
    router: str = ""

    @property
    def chooses_by_score(self) -> bool:
        """Whether the experts of a token are those of the highest router logits, for all that is known of the model."""
        return re.search("bias|groups|SparseMixer|hash", self.router) is None

    @property
    def scaled_per_expert(self) -> bool:
        """Whether weights are times a number that each expert has of its own, which no trace holds."""
        return "scale" in self.router


def model(name: str, **given: Any) -> Model:
    """The model of that name; `given` (fields of Model) goes before what the catalog says."""
    facts: dict[str, Any] = {}
    entry = entry_of(name)
    if entry is None:
        facts["hint"] = f" (the catalog has no model {name[:60]!r}{did_you_mean(name, names())})"
    else:
        facts = facts_of(entry)
    return Model(name, **(facts | given))


def facts_of(entry: dict[str, Any]) -> dict[str, Any]:
    """Fields of Model that an entry of the catalog, or a file of one, says."""
    facts = {key: entry[key] for key in ("n_experts", "top_k", "n_layers")}
    facts |= {key: entry[key] for key in ROUTER if key in entry}
    every = range(entry.get("moe_first", 0), entry["n_layers"], entry.get("moe_step", 1))
    return facts | {"moe_layers": tuple(entry.get("moe_layer_list", every))}


def from_file(path: str) -> dict[str, Any]:
    """The entry that a file of a model is (docs/models.md), with its `name`; `sim.catalog` says more of what is wrong.
    Raises TraceError where it cannot be read, or lacks what says the shape."""
    try:
        entry = tomllib.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise TraceError(f"--like {path}: cannot be read as a model's file: {error}") from None
    for key in ("n_experts", "top_k", "n_layers"):
        value = entry.get(key)
        if not isinstance(value, int) or not 0 < value <= MOST_OF_A_SHAPE:
            raise TraceError(f"--like {path}: {key}: {value!r}: must be a whole number from 1 to {MOST_OF_A_SHAPE:,}")
    return {"name": Path(path).stem, **entry}


def entry_of(name: str) -> dict[str, Any] | None:
    """All that the catalog has under a name or an alias, with its `name`; None: nothing. `org/model` is `model`."""
    return _entries().get(_normal(name)) or _entries().get(_normal(name.rsplit("/", 1)[-1]))


def names() -> list[str]:
    """The catalog's models, in its order."""
    return list(dict.fromkeys(known["name"] for known in _entries().values()))


def parse_layers(text: str) -> tuple[int, ...]:
    """`1-8,10` as ascending indices. Raises TraceError where it is no such list."""
    layers: list[int] = []
    for part in text.split(","):
        low, dash, high = part.partition("-")
        if not low.strip().isdecimal() or (dash and not high.strip().isdecimal()):
            raise TraceError(f"--moe-layers {text[:40]!r}: layer indices are required, such as 1-26 or 0,2,4")
        if max(len(low), len(high)) > 6 or int(high or low) >= MOST_LAYERS:
            raise TraceError(f"--moe-layers {text[:40]!r}: at most layer {MOST_LAYERS - 1}")
        layers += range(int(low), int(high or low) + 1)
    if not layers or sorted(set(layers)) != layers:
        raise TraceError(f"--moe-layers {text[:40]!r}: ascending layer indices are required, each once")
    return tuple(layers)


def _normal(name: str) -> str:
    """Names ignore case, hyphens, underscores and spaces, as everywhere in the catalog."""
    return name.lower().replace("-", "").replace("_", "").replace(" ", "")


@cache
def _entries() -> dict[str, dict[str, Any]]:
    """The catalog's models, by name and alias as `_normal` says them."""
    found = tomllib.loads(CATALOG.read_text(encoding="utf-8"))
    return {_normal(word): {"name": name, **e} for name, e in found.items() for word in (name, *e.get("aliases", ()))}
